"""The five official folds of matbench_phonons, by the preset of that name.

    python -m benchmarks.accuracy.matbench_phonons [--fold N] [--model NAME] [--epochs N] [--folder FOLDER]

Trains iComFormer, or another model at its default size, on each fold's training rows (5 % of them held out to choose
the epoch by) and predicts its test rows. A folder that is kept resumes. Updates its folds of
benchmarks/results/matbench_phonons.json.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.results import ROOT, Parser, data_path, read_result, write_result
from benchmarks.common.runs import measured_run

PRESET = ROOT / "config" / "presets" / "matbench-phonons.yaml"
TARGET = "last phdos peak"
FOLDS = 5
MODELS = ("icomformer", "crystal_transformer")
PUBLISHED = {
    "MEGNet (kgcnn)": 28.76,
    "coNGN": 28.89,
    "ALIGNN": 29.54,
    "SchNet (kgcnn)": 38.96,
    "CGCNN": 57.76,
}
"""Mean MAE over the folds, cm^-1 (Matbench v0.1)."""


def config_of(
    fold: int, threads: int, model: str = MODELS[0], epochs: int | None = None
) -> dict[str, Any]:
    """The preset with another fold, another model, or other epochs."""
    config = yaml.safe_load(PRESET.read_text())
    config["training"]["epochs"] = epochs or config["training"]["epochs"]
    if model != config["model"]["name"]:
        config["model"] = {"name": model}
    config["split"]["fold"] = fold
    config["training"]["threads"] = threads
    return config


def run_fold(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train, evaluate, and say what is committed of it."""
    outcome = measured_run(config, folder, print)
    card = outcome.run_card()
    del card["config"]["paths"]
    return {
        "mae": outcome.error(TARGET, "test", "mae"),
        "rmse": outcome.error(TARGET, "test", "rmse"),
        "validation_mae": outcome.error(TARGET, "val", "mae"),
        "train_mae": outcome.error(TARGET, "train", "mae"),
        "structures": {name: card["dataset"][name] for name in ("train", "val", "test")},
        "best_epoch": card["best_epoch"],
        "seconds": card["seconds"],
        "processor_seconds": outcome.train_processor_seconds,
        "run_key": card["run_key"],
        "commit": card["code"]["commit"],
    } | {"card": {name: card[name] for name in ("model", "config", "environment")}}


def summary(folds: dict[str, Any]) -> dict[str, Any]:
    """The file: errors of the folds there are, and their mean where all are."""
    errors = [folds[str(fold)]["mae"] for fold in range(FOLDS) if str(fold) in folds]
    content: dict[str, Any] = {"fold_mae": errors, "unit": "cm^-1"}
    if len(errors) == FOLDS:
        content |= {"mean_mae": statistics.mean(errors), "std": statistics.pstdev(errors)}
    cards = [folds[fold].pop("card") for fold in sorted(folds) if "card" in folds[fold]]
    return {**content, "published_mean_mae": PUBLISHED, "folds": folds, "cards": cards[-1:]}


def main() -> None:
    """Run what is asked for and update the result file."""
    parser = Parser(__doc__)
    parser.add_argument("--fold", type=int, choices=range(FOLDS))
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--epochs", type=int, help="by default those of the preset")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data_path("matbench_phonons")  # the preset names it by the environment variable
    results = read_result("matbench_phonons")
    others = results.pop("other models", {})
    content = results if options.model == MODELS[0] else others.get(options.model, {})
    for fold in range(FOLDS) if options.fold is None else [options.fold]:
        with tempfile.TemporaryDirectory() as scratch:
            config = config_of(fold, options.threads, options.model, options.epochs)
            row = run_fold(config, options.folder or Path(scratch))
        content = summary(content.get("folds", {}) | {str(fold): row})
        if options.model == MODELS[0]:
            results = content
        else:
            others[options.model] = {k: v for k, v in content.items() if "published" not in k}
        if options.write:
            write_result(
                "matbench_phonons", {**results, **({"other models": others} if others else {})}
            )
        print(f"fold {fold}: MAE {row['mae']:.2f} cm^-1 in {row['seconds']:.0f} s")
    mean = f"mean {content['mean_mae']:.2f}" if "mean_mae" in content else "folds are missing"
    print(f"matbench_phonons: {mean}; published: {PUBLISHED}")


if __name__ == "__main__":
    main()
