"""Recipes for potentials and the defaults, on lithium of mlearn and ethanol of rMD17, with equal epochs.

    python -m benchmarks.accuracy.recipes [--only lithium | ethanol] [--folder FOLDER] [--threads N]

Each model is trained with its defaults, with the recipes of config/recipes, and with the batches of 64 that are the
default of the other models. Budgets are short, so that recipes are compared and not published errors reached; an
epoch of L-BFGS is 20 steps on all frames, so that it has fewer epochs. A folder that is kept resumes. Updates its
part of benchmarks/results/recipes.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy.potentials_accuracy import dataset_of
from benchmarks.common.results import ROOT, Parser, read_result, rounded, write_result
from benchmarks.common.runs import measured_run

SETS = {"lithium": ("mlearn", "Li", ["Li"]), "ethanol": ("rmd17", "ethanol", ["C", "H", "O"])}
EPOCHS = {
    ("lithium", "painn"): 20,
    ("lithium", "chebyshev"): 300,
    ("ethanol", "painn"): 30,
    ("ethanol", "chebyshev"): 200,
}
LBFGS_EPOCHS = 12
RECIPES = {
    "painn": {"defaults": {}, "batches of 64": {"batch": {"structures": 64}}},
    "chebyshev": {"defaults": {}, "defaults, batches of 8": {"batch": {"structures": 8}}},
}
"""Model -> what it is trained with besides the recipes: the section `training`."""
SIZES = {"lithium": {"painn": "small", "chebyshev": "small medium"},
         "ethanol": {"painn": "medium", "chebyshev": "small medium"}}  # fmt: skip


def config_of(set_name: str, model: str, own: dict[str, Any], threads: int) -> dict[str, Any]:
    """A whole config: the data set, and the sections `model` and `training` of a recipe."""
    kind, name, species = SETS[set_name]
    network = {"name": model, **own.get("model", {})}
    if model == "chebyshev":
        network["species"] = species
    training = {**own["training"], "threads": threads, "seed": 0}
    few = training.get("optimizer") == "lbfgs"
    training["epochs"] = LBFGS_EPOCHS if few else EPOCHS[set_name, model]
    return dataset_of(kind, name) | {"model": network, "training": training}


def recipes_of(set_name: str, model: str) -> dict[str, dict[str, Any]]:
    """Recipes by name: sections `model` and `training`."""
    found = {name: {"training": training} for name, training in RECIPES[model].items()}
    for size in SIZES[set_name][model].split():
        path = ROOT / "config" / "recipes" / f"{model}-{size}.yaml"
        found[path.stem] = yaml.safe_load(path.read_text())
    return found


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__, parts=list(SETS))
    parser.add_argument("--folder", type=Path, help="kept, so that finished runs are not repeated")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    content = read_result("recipes")
    for set_name in [options.only] if options.only else SETS:
        for model in RECIPES:
            for name, own in recipes_of(set_name, model).items():
                with tempfile.TemporaryDirectory() as scratch:
                    config = config_of(set_name, model, own, options.threads)
                    outcome = measured_run(config, options.folder or Path(scratch), print)
                    card = outcome.run_card()
                row = {
                    "test_force_mae_mev_per_a": 1e3 * outcome.error("forces", "test", "mae"),
                    "test_energy_mae_mev_per_atom": 1e3
                    * outcome.error("energy_per_atom", "test", "mae"),
                    "epochs": card["epochs_run"],
                    "batch": card["config"]["training"]["batch"]["structures"],
                    "train_frames": card["dataset"]["train"],
                    "parameters": card["model"]["parameters"],
                    "run_key": card["run_key"],
                    "processor": card["environment"]["cpu"],
                    "threads": card["environment"]["threads"],
                }
                content.setdefault(set_name, {}).setdefault(model, {})[name] = rounded(row)
                if options.write:
                    write_result("recipes", content)
                print(json.dumps({"set": set_name, "recipe": name, **rounded(row)}))


if __name__ == "__main__":
    main()
