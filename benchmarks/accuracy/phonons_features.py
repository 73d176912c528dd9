"""matbench_phonons from derived features: tabular models on the five official folds, a network, stacks of them.

    python -m benchmarks.accuracy.phonons_features [--only SET] [--model NAME] [--folder FOLDER]

The vibrational frequencies are those of a published potential, so these are errors with outside data;
`--model untrained` takes the highest of them for the peak. A folder that is kept has them from then on (they
take most of the time). Updates its rows of benchmarks/results/phonons_features.json.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from atomloom.api import prepare, run_pipeline
from atomloom.commands.stacking import stack_runs
from atomloom.stages.split import read_dataset
from benchmarks.accuracy.matbench_phonons import FOLDS, PRESET, PUBLISHED, TARGET
from benchmarks.common.results import Parser, data_path, machine, read_result, write_result
from benchmarks.common.runs import measured_run, placed

SETS: dict[str, dict[str, Any]] = {
    "composition": {"composition": {}},
    "frequencies": {"gamma": {"source": "gamma_frequencies", "model": "sevennet-l3i5"}},
    "both": {
        "composition": {},
        "gamma": {"source": "gamma_frequencies", "model": "sevennet-l3i5"},
    },
    "all": {
        "composition": {},
        "gamma": {"source": "gamma_frequencies", "model": "sevennet-l3i5"},
        "embedding": {"source": "embedding", "model": "sevennet-l3i5"},
    },
}
"""Section `features` by the name of a set."""
MODELS: dict[str, dict[str, Any]] = {
    "extra_trees": {"n_estimators": 500, "max_features": 0.5},
    "gradient_boosting": {},
    "svr": {"C": 10.0},
    "gaussian_process": {},
}
"""Options of the section `model`, chosen beforehand; all learn the logarithm of the peak."""
PLAIN = "extra_trees of the peak"
"""The first of them without logarithms."""
NETWORK, EPOCHS = "crystal_transformer", 80
"""A network, which takes the features beside the graph, trained as in the preset but for the epochs."""
MEAN = "mean with a network"
STACKS = {
    "stack": tuple(MODELS),
    "stack with a network": (PLAIN, "gaussian_process", NETWORK),
    MEAN: (PLAIN, "gaussian_process", NETWORK),
}
"""Models of each stack; weights are fitted to predictions of validation rows, but for those of MEAN, which are equal."""


def config_of(features: dict[str, Any], model: str, fold: int) -> dict[str, Any]:
    """The preset of the folds with another model."""
    config = yaml.safe_load(PRESET.read_text())
    config["split"]["fold"] = fold
    kept = {name: config[name] for name in ("dataset", "split")} | {"features": features}
    if model == NETWORK:
        training = {**config["training"], "epochs": EPOCHS}
        return {**kept, "model": {"name": NETWORK}, "training": training}
    training = {"seed": 0, "threads": 1, "log_targets": [] if model == PLAIN else [TARGET]}
    own = "extra_trees" if model == PLAIN else model
    return {
        **kept,
        "model": {"name": own, **MODELS[own]},
        "training": training,
    }


def row_of(features: dict[str, Any], model: str, folder: Path) -> dict[str, Any]:
    """Errors of the five folds, and the processor time of their fits."""
    runs = [measured_run(config_of(features, model, fold), folder, print) for fold in range(FOLDS)]
    errors = [run.error(TARGET, "test", "mae") for run in runs]
    return {
        "fold_mae": errors,
        "mean_mae": statistics.mean(errors),
        "std": statistics.pstdev(errors),
        "fit_processor_seconds": sum(run.train_processor_seconds for run in runs),
        "config": runs[0].run_card()["config"]["model"],
    }


def row_of_stack(features: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Errors of stacks of models."""
    errors, within, weights = [], [], []
    for fold in range(FOLDS):
        runs = [
            run_pipeline(placed(config_of(features, model, fold), folder)) for model in STACKS[name]
        ]
        output = folder / f"{name}{fold}.safetensors"
        told = stack_runs([run.folder for run in runs], output, name != MEAN, print)
        test = told["errors"][TARGET]["test"]
        errors.append(test["mae"])
        within.append(test["within_error_bar"])
        weights.append(told["combinations"][TARGET]["weights"])
    return {
        "fold_mae": errors,
        "mean_mae": statistics.mean(errors),
        "std": statistics.pstdev(errors),
        "within_error_bar": within,
        "weights": weights,
    }


def row_untrained(features: dict[str, Any], _: str, folder: Path) -> dict[str, Any]:
    """Errors of the highest frequency, taken for the peak."""
    errors = []
    for fold in range(FOLDS):
        places = prepare(placed(config_of(features, "extra_trees", fold), folder))
        frame = read_dataset(places).query("split == 'test'")
        errors.append(float((frame["gamma.max"] - frame[TARGET]).abs().mean()))
    return {"fold_mae": errors, "mean_mae": statistics.mean(errors)}


ROWS: dict[str, Callable[[dict[str, Any], str, Path], dict[str, Any]]] = {
    **dict.fromkeys((*MODELS, PLAIN, NETWORK), row_of),
    **dict.fromkeys(STACKS, row_of_stack),
    "untrained": row_untrained,
}
"""Rows of the result by name."""


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__, parts=list(SETS))
    parser.add_argument("--model", choices=list(ROWS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    data_path("matbench_phonons")  # the preset names it by the environment variable
    for name, features in SETS.items():
        for model, row_by in ROWS.items():
            if options.only not in (None, name) or options.model not in (None, model):
                continue
            if model == "untrained" and name != "frequencies":
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = options.folder or Path(scratch)
                row = row_by(features, model, folder)
            content = read_result("phonons_features")
            content.setdefault("features", {}).setdefault(name, {})[model] = row
            content |= {
                "unit": "cm^-1",
                "published_mean_mae": PUBLISHED,
                "machine": machine("atomloom", "scikit-learn", "torch"),
            }
            if options.write:
                write_result("phonons_features", content)
            print(f"{name}, {model}: MAE {row['mean_mae']:.2f} cm^-1, mean of {FOLDS} folds")


if __name__ == "__main__":
    main()
