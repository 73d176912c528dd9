"""Stage `train`: the labelled graphs and the config become a trained model and its run card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.files import write_json, write_spec
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import GraphStore
from atomloom.layout import PlannedLayout
from atomloom.runcard import environment, now
from atomloom.stages.split import read_split_counts
from atomloom.training.data import LabelledGraphs
from atomloom.training.loop import train


def train_run(places: PlannedLayout, log: Callable[[str], None]) -> Path:
    """Train, or go on with, the run of this config; return its folder.

    Raises:
        AtomloomError: when index or split are missing, or the training itself fails.
    """
    started = now()
    run = places.run
    run.mkdir(parents=True, exist_ok=True)
    write_spec(run, places.run_spec)
    data = load_labelled(places)
    result = train(data, places.config, run, log)
    config = places.config
    write_json(
        run / "run.json",
        {
            "run_key": places.run_key,
            "dataset": {"name": config.dataset.name, **read_split_counts(places)},
            "keys": {
                "plan": places.layout.plan_folder.name,
                "graph": places.layout.graph_key,
                "index": places.index.name,
                "dataset": places.dataset_key,
                "run": places.run_key,
            },
            "config": config.model_dump(mode="json"),
            "target": config.dataset.target,
            "unit": config.dataset.unit,
            "model": {"name": config.model.name, "parameters": result.parameters},
            "epochs_run": result.epochs_run,
            "best_epoch": result.best_epoch,
            "seconds": result.seconds,
            "started": started,
            "finished": now(),
            **environment(result.device, result.threads),
        },
    )
    return run


def load_labelled(places: PlannedLayout) -> LabelledGraphs:
    """All graphs of the data set with their targets, and which rows belong to which split."""
    index = pd.read_parquet(places.index / "index.parquet", columns=["record"])
    dataset = pd.read_parquet(places.split / "dataset.parquet")
    row_of = pd.Series(np.arange(len(index)), index=index["record"])
    known = dataset[dataset["record"].isin(row_of.index)]
    table: GraphTable = GraphStore(places.index).load()
    targets = np.full((len(index), len(places.config.dataset.target)), np.nan)
    rows = row_of[known["record"]].to_numpy()
    targets[rows] = known[places.config.dataset.target].to_numpy(np.float64)
    return LabelledGraphs(
        table=table,
        targets=targets,
        rows={name: rows[(known["split"] == name).to_numpy()] for name in ("train", "val", "test")},
    )
