"""Folders of finished runs, as training and evaluation leave them, with made-up predictions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import parse_config
from atomloom.store.files import file_digest, write_json, write_sealed
from atomloom.store.parquet import write_table


def write_run(
    folder: Path,
    test: pd.DataFrame,
    target: str = "y",
    train: pd.DataFrame | None = None,
    metrics: dict[str, Any] | None = None,
    **sections: Any,
) -> Path:
    """Write a run whose test rows have the columns id, label and prediction; return its folder."""
    content = {"dataset": {"name": "x", "source": "x", "target": target}, "model": {"width": 8}}
    config = parse_config(content | copy.deepcopy(sections)).model_dump(mode="json")
    parts = [("test", test)] + ([("train", train)] if train is not None else [])
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "id": frame["id"],
                    "split": split,
                    target: np.asarray(frame["label"], dtype=np.float64),
                    f"{target}_predicted": np.asarray(frame["prediction"], dtype=np.float64),
                }
            )
            for split, frame in parts
        ],
        ignore_index=True,
    )
    folder.mkdir(parents=True)
    write_table(folder / "predictions.parquet", table)
    write_json(folder / "metrics.json", metrics or {})
    write_sealed(
        folder / "run.json",
        {
            "run_key": folder.name,
            "config": config,
            "model": {"name": config["model"]["name"], "parameters": 1234},
            "epochs_run": 3,
            "seconds": 1800.0,
            "started": "2026-01-02T03:04:05+00:00",
            "finished": "2026-01-02T03:34:05+00:00",
            "environment": {"python": "3.11", "torch": "2.13.0+cpu", "atomloom": "0.1.0",
                            "platform": "Linux", "cpu": "a cpu", "device": "cpu", "threads": 2},
            "results": {name: file_digest(folder / name)
                        for name in ("metrics.json", "predictions.parquet")},
        },
    )  # fmt: skip
    return folder
