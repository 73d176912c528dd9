"""matbench_phonons from derived features: tabular models on the five official folds.

    python -m benchmarks.accuracy.phonons_features [--only SET] [--model NAME] [--folder FOLDER]

The vibrational frequencies are those of a published potential, so these are errors with outside data. A folder
that is kept has them from then on (they take most of the time). Updates its rows of
benchmarks/results/phonons_features.json.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy.matbench_phonons import FOLDS, PRESET, PUBLISHED, TARGET
from benchmarks.common.results import Parser, data_path, machine, read_result, write_result
from benchmarks.common.runs import measured_run

SETS: dict[str, dict[str, Any]] = {
    "composition": {"composition": {}},
    "frequencies": {"gamma": {"source": "gamma_frequencies", "model": "sevennet-l3i5"}},
    "both": {
        "composition": {},
        "gamma": {"source": "gamma_frequencies", "model": "sevennet-l3i5"},
    },
}
"""Section `features` by the name of a set."""
MODELS: dict[str, dict[str, Any]] = {
    "extra_trees": {"n_estimators": 500, "max_features": 0.5},
    "gradient_boosting": {},
    "svr": {"C": 10.0},
    "gaussian_process": {},
}
"""Options of the section `model`, chosen beforehand."""


def config_of(features: dict[str, Any], model: str, fold: int) -> dict[str, Any]:
    """The preset of the folds with another model, which learns logarithms of the peaks."""
    config = yaml.safe_load(PRESET.read_text())
    config["split"]["fold"] = fold
    kept = {name: config[name] for name in ("dataset", "split")}
    training = {"seed": 0, "threads": 1, "log_targets": [TARGET]}
    return {
        **kept,
        "features": features,
        "model": {"name": model, **MODELS[model]},
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
        "outside_data": runs[0].run_card().get("outside_data"),
        "config": runs[0].run_card()["config"]["model"],
    }


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__, parts=list(SETS))
    parser.add_argument("--model", choices=list(MODELS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    data_path("matbench_phonons")  # the preset names it by the environment variable
    for name, features in SETS.items():
        for model in MODELS:
            if options.only not in (None, name) or options.model not in (None, model):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                row = row_of(features, model, options.folder or Path(scratch))
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
