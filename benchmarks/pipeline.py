"""What the accuracy benchmarks share: all stages in one scratch folder, and what a run came to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import parse_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.stages.convert import convert_chunk
from atomloom.stages.evaluate import evaluate_run
from atomloom.stages.graphs import build_chunk
from atomloom.stages.index import write_index
from atomloom.stages.plan import make_plan
from atomloom.stages.split import write_split
from atomloom.stages.train import train_run

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ATOMLOOM_DATA") or ROOT.parent / "shared" / "data")


@dataclass(frozen=True)
class Outcome:
    """A trained and evaluated run."""

    folder: Path
    metrics: Mapping[str, Any]
    train_seconds: float
    """Of the training stage alone, validation included."""
    data_seconds: float
    """From raw files to graphs and splits."""

    def error(self, target: str, split: str, kind: str) -> float:
        """An error of `metrics.json`."""
        return float(self.metrics[target][split][kind])

    def table(self, name: str) -> pd.DataFrame:
        """`predictions`, or `forces` or `stress` of a potential."""
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def run_card(self) -> dict[str, Any]:
        """The run card, without what a committed result shall not hold."""
        return json.loads((self.folder / "run.json").read_text())


def run_pipeline(config: Mapping[str, Any], folder: Path, log=lambda message: None) -> Outcome:
    """All stages of a config, results and store below `folder`."""
    paths = {"results": str(folder / "results"), "store": str(folder / "store")}
    layout = Layout(parse_config({**config, "paths": paths}))
    begun = time.perf_counter()
    make_plan(layout, log)
    plan = Plan.read(layout.plan_folder / "plan.json")
    for chunk in plan.chunks:
        if not layout.structures(chunk.key).exists():
            convert_chunk(layout, plan, chunk.key, log)
        if not layout.graphs(chunk.key).exists():
            build_chunk(layout, chunk.key, log)
    places = RunPaths(layout, plan)
    write_index(places, log)
    write_split(places, log)
    planned = time.perf_counter()
    train_run(places, log)
    trained = time.perf_counter()
    evaluate_run(places, log)
    return Outcome(
        places.run,
        json.loads((places.run / "metrics.json").read_text()),
        train_seconds=trained - planned,
        data_seconds=planned - begun,
    )


def rmse(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean square error."""
    return float(np.sqrt(np.mean((np.asarray(predicted) - np.asarray(reference)) ** 2)))
