"""The five official folds of matbench_phonons, by the preset of that name.

    python benchmarks/matbench_phonons.py [--fold N] [--folder FOLDER] [--threads N]

Trains iComFormer on each fold's training rows (5 % of them held out to choose the epoch by) and
predicts its test rows. A folder that is kept goes on where it was. Data come from ../shared/data, or
ATOMLOOM_DATA. Updates its folds of benchmarks/results/matbench_phonons.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from pipeline import DATA, ROOT, run_pipeline

RESULT = ROOT / "benchmarks" / "results" / "matbench_phonons.json"
PRESET = ROOT / "config" / "presets" / "matbench-phonons.yaml"
TARGET = "last phdos peak"
FOLDS = 5
PUBLISHED = {
    "MEGNet (kgcnn)": 28.76,
    "coNGN": 28.89,
    "ALIGNN": 29.54,
    "SchNet (kgcnn)": 38.96,
    "CGCNN": 57.76,
}
"""Mean MAE over the folds, cm^-1 (Matbench v0.1)."""


def config_of(fold: int, threads: int) -> dict[str, Any]:
    """The preset with another fold."""
    config = yaml.safe_load(PRESET.read_text())
    config["split"]["fold"] = fold
    config["training"]["threads"] = threads
    return config


def run_fold(fold: int, folder: Path, threads: int) -> dict[str, Any]:
    """Train, evaluate, and say what is committed of it."""
    outcome = run_pipeline(config_of(fold, threads), folder, print)
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fold", type=int, choices=range(FOLDS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("ATOMLOOM_DATA", str(DATA))
    for fold in range(FOLDS) if options.fold is None else [options.fold]:
        with tempfile.TemporaryDirectory() as scratch:
            row = run_fold(fold, options.folder or Path(scratch), options.threads)
        content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        folds = content.get("folds", {}) | {str(fold): row}
        RESULT.write_text(json.dumps(summary(folds), indent=1) + "\n")
        print(f"fold {fold}: MAE {row['mae']:.2f} cm^-1 in {row['seconds']:.0f} s")
    content = json.loads(RESULT.read_text())
    mean = f"mean {content['mean_mae']:.2f}" if "mean_mae" in content else "folds are missing"
    print(f"matbench_phonons: {mean}; published: {PUBLISHED}")


if __name__ == "__main__":
    main()
