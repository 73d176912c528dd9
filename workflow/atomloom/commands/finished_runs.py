"""Finished runs as leaderboards need them: what was predicted for the test set, and what it took.

A run is read from its own folder alone, so that a copy of it serves as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config.model import MODELS
from atomloom.config.training import CLASS_LOSSES
from atomloom.errors import AtomloomError, again
from atomloom.pipeline.run_card import require_result
from atomloom.store.files import read_json
from atomloom.store.parquet import read_table


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A trained and evaluated run of a property model with one target."""

    folder: Path
    card: Mapping[str, Any]
    """The run card."""
    target: str
    table: pd.DataFrame
    """The rows of `predictions.parquet`."""

    @property
    def test(self) -> pd.DataFrame:
        """Test rows, with columns id, label and prediction."""
        rows = self.table[self.table["split"] == "test"]
        columns = {"id": "id", self.target: "label", f"{self.target}_predicted": "prediction"}
        return rows[list(columns)].rename(columns=columns).reset_index(drop=True)

    @property
    def config(self) -> Mapping[str, Any]:
        """The config, every default filled in."""
        return self.card["config"]

    @property
    def loss(self) -> str:
        """Loss that it was trained with."""
        return str(self.config["training"]["loss"])

    @property
    def classes(self) -> bool:
        """Whether it predicts classes."""
        return self.loss in CLASS_LOSSES

    @property
    def model_text(self) -> str:
        """The model in one sentence, with its paper if it is one of atomloom's."""
        name = str(self.config["model"]["name"])
        about = " ".join((MODELS[name].__doc__ or "").split()) if name in MODELS else name
        parameters = self.card.get("model", {}).get("parameters", 0)
        return f"{about} {parameters:,} parameters."

    @property
    def recipe(self) -> dict[str, Any]:
        """The config without output folders."""
        return {name: value for name, value in self.config.items() if name != "paths"}

    @property
    def cost(self) -> Cost:
        """Hours that the training took, of all processes on all nodes."""
        environment, training = self.card["environment"], self.config["training"]
        processes = training.get("devices", 1) * training.get("nodes", 1)
        hours = self.card["seconds"] / 3600 * processes
        if environment["device"] != "cpu":  # a GPU has its name there
            return Cost(0.0, hours)
        return Cost(hours * environment["threads"], 0.0)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that the run was made with."""
        about = ("platform", "cpu", "device", "threads")
        return {n: str(v) for n, v in self.card["environment"].items() if n not in about}


@dataclass(frozen=True)
class Cost:
    """Time of training."""

    cpu_hours: float
    """Hours on a CPU times the threads."""
    gpu_hours: float
    """Hours on GPUs times their number."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_hours + other.cpu_hours, self.gpu_hours + other.gpu_hours)

    @property
    def text(self) -> str:
        """Both in words."""
        return f"{self.cpu_hours:.3g} CPU hours and {self.gpu_hours:.3g} GPU hours of training"


def read_run(folder: Path) -> FinishedRun:
    """Read a run, whose test predictions must be finite numbers with an id each.

    Raises:
        AtomloomError: when it is not a finished run of a property model with one target, a file is missing or
            damaged, or a prediction is unusable.
    """
    if not (folder / "run.json").exists():
        raise AtomloomError(
            "no run.json: this is not the folder of a trained run",
            where=folder,
            todo="name folders like results/<name>/runs/<run>",
        )
    card = read_json(
        folder / "run.json", "config", "environment", "seconds", "finished", todo=again("train")
    )
    targets = card["config"]["dataset"]["target"]
    predictions = folder / "predictions.parquet"
    table = read_table(predictions, todo=again("evaluate"))
    require_result(card, predictions, again("evaluate"))
    if len(targets) != 1 or f"{targets[0]}_predicted" not in table:
        raise AtomloomError(
            f"has the targets {', '.join(targets)}: leaderboards take a property model with one target",
            where=folder,
        )
    run = FinishedRun(folder, card, targets[0], table)
    test = run.test
    if not len(test):
        raise AtomloomError("has no test rows", where=folder)
    twice = [name for name, count in Counter(test["id"]).items() if count > 1]
    if twice:
        raise AtomloomError(f"{len(twice)} ids occur twice, such as {twice[0]}", where=folder)
    bad = test.loc[~np.isfinite(test["prediction"].to_numpy(np.float64)), "id"]
    if len(bad):
        raise AtomloomError(
            f"{len(bad)} predictions are not finite numbers, such as that of {bad.iloc[0]}",
            where=folder,
        )
    return run
