"""Whole runs of a config in one scratch folder, and what they came to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.api import prepare, run_pipeline
from atomloom.config import Config, parse_config
from atomloom.pipeline.stage_table import STAGES


@dataclass(frozen=True)
class Outcome:
    """A trained and evaluated run."""

    folder: Path
    metrics: Mapping[str, Any]
    train_seconds: float
    """Time of the training stage alone, validation included."""
    train_processor_seconds: float
    """Time of the processor in it, which other work on the machine does not enter."""
    data_seconds: float
    """Time from raw files to graphs and splits."""

    def error(self, target: str, split: str, kind: str) -> float:
        """An error of `metrics.json`."""
        return float(self.metrics[target][split][kind])

    def table(self, name: str) -> pd.DataFrame:
        """`predictions`, or `forces` or `stress` of a potential."""
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def run_card(self) -> dict[str, Any]:
        """The run card."""
        return json.loads((self.folder / "run.json").read_text())


def placed(config: Mapping[str, Any], folder: Path) -> Config:
    """Config with results and store below `folder`."""
    paths = {"results": str(folder / "results"), "store": str(folder / "store")}
    return parse_config({**config, "paths": paths})


def measured_run(config: Mapping[str, Any], folder: Path, log=lambda message: None) -> Outcome:
    """All stages of a config, results and store below `folder`, with the time of training by itself."""
    whole = placed(config, folder)
    begun = time.perf_counter()
    places = prepare(whole, log)
    prepared, processor = time.perf_counter(), time.process_time()
    STAGES["train"].run(places, log)
    trained, processor = time.perf_counter(), time.process_time() - processor
    run = run_pipeline(whole, log)
    return Outcome(run.folder, run.metrics, trained - prepared, processor, prepared - begun)


def rmse(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean square error."""
    return float(np.sqrt(np.mean((np.asarray(predicted) - np.asarray(reference)) ** 2)))
