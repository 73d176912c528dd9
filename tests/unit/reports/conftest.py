"""A run's files as the stages write them, small and made up, for the report to read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomloom.reports import ReportInputs

FORMULAS = ("NaCl", "MgO", "SrTiO3", "TiO2", "Fe2O3", "CsPbI3", "GaAs", "ZnS")


@dataclass(frozen=True)
class FakeRun:
    """Files of one run, in a folder; tests edit them before they write the report."""

    folder: Path

    @property
    def inputs(self) -> ReportInputs:
        return ReportInputs(
            run=self.folder / "run.json",
            metrics=self.folder / "metrics.json",
            predictions=self.folder / "predictions.parquet",
            history=self.folder / "history.csv",
            quarantine=self.folder / "quarantine.csv",
            timings=self.folder / "timings",
            index=self.folder / "index.json",
            model="iComFormer",
        )

    @property
    def required(self) -> ReportInputs:
        full = self.inputs
        return ReportInputs(full.run, full.metrics, full.predictions, model=full.model)

    def edit_json(self, name: str, **changes: object) -> None:
        path = self.folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def predictions_frame(count: int, targets: tuple[str, ...], seed: int = 0) -> pd.DataFrame:
    """Rows with known errors: 0.1 x a standard normal on test, half of that in training."""
    random = np.random.default_rng(seed)
    formulas = random.choice(FORMULAS, count)
    columns = {
        "id": [f"made-up-{i:05d}" for i in range(count)],
        "split": random.choice(["train", "val", "test"], count, p=[0.7, 0.15, 0.15]),
        "formula": formulas,
        "elements": [",".join(sorted(set(re.findall(r"[A-Z][a-z]?", f)))) for f in formulas],
        "n_atoms": random.integers(2, 20, count),
    }
    for target in targets:
        reference = random.normal(size=count)
        scale = np.where(columns["split"] == "train", 0.05, 0.1)
        columns[target] = reference
        columns[f"{target}_predicted"] = reference + scale * random.normal(size=count)
    return pd.DataFrame(columns)


def metrics_of(frame: pd.DataFrame, targets: tuple[str, ...]) -> dict:
    content: dict = {}
    for target in targets:
        content[target] = {}
        for split, rows in frame.groupby("split"):
            reference = rows[target].to_numpy()
            error = rows[f"{target}_predicted"].to_numpy() - reference
            spread = reference - reference.mean()
            content[target][split] = {
                "mae": np.abs(error).mean(),
                "rmse": np.sqrt((error**2).mean()),
                "r2": 1 - (error**2).sum() / (spread**2).sum() if len(rows) > 1 else None,
                "max_error": np.abs(error).max(),
                "mad": np.abs(spread).mean(),
                "count": len(rows),
            }
    return content


@pytest.fixture
def make_run(tmp_path):
    """`make_run(count, targets, unit)` writes all files of a run and returns it."""

    def make(
        count: int = 400,
        targets: tuple[str, ...] = ("band_gap",),
        unit: object = "eV",
        epochs: int = 20,
    ) -> FakeRun:
        folder = tmp_path / "run"
        folder.mkdir()
        frame = predictions_frame(count, targets)
        frame.to_parquet(folder / "predictions.parquet")
        (folder / "metrics.json").write_text(json.dumps(metrics_of(frame, targets)))
        counts = frame["split"].value_counts().to_dict()
        card = {
            "run_key": "0123456789abcdef",
            "dataset": {
                "name": "minerals",
                "records": count + 60,
                "used": count,
                "quarantined": 60,
                **counts,
            },
            "keys": {"graph": "fedcba9876543210", "run": "0123456789abcdef"},
            "config": {
                "dataset": {"name": "minerals", "target": list(targets)},
                "training": {"epochs": epochs, "loss": "mse", "learning_rate": 0.001},
            },
            "model": {"name": "icomformer", "parameters": 4966497},
            "target": list(targets),
            "unit": unit,
            "environment": {"atomloom": "0.1.0", "python": "3.11.9", "device": "cpu", "threads": 2},
            "code": {"commit": "a" * 40, "dirty": False},
            "started": "2026-05-01T10:00:00+00:00",
            "finished": "2026-05-01T10:02:05+00:00",
            "seconds": 125.0,
            "epochs_run": epochs,
            "best_epoch": epochs - 3,
            "determinism": {"seed": 0, "deterministic": True},
        }
        (folder / "run.json").write_text(json.dumps(card))
        epoch = np.arange(1, epochs + 1)
        history = {
            "epoch": epoch,
            "step": 10 * epoch,
            "learning_rate": 1e-3 * epoch / epochs,
            "train_loss": np.exp(-epoch / 5.0),
            "val_loss": np.exp(-epoch / 6.0) + 0.01,
            "seconds": 1.0 + 0 * epoch,
            "data_seconds": 0.1 + 0 * epoch,
            "forward_seconds": 0.3 + 0 * epoch,
            "backward_seconds": 0.6 + 0 * epoch,
        }
        for target in targets:
            name = "val_mae" if len(targets) == 1 else f"val_mae_{target}"
            history[name] = np.exp(-epoch / 8.0)
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
        pd.DataFrame(
            {
                "id": [f"bad-{i}" for i in range(60)],
                "source": "raw/minerals.tar.xz",
                "record": range(60),
                "reason": [
                    f"atoms {i} and {i + 1} are 0.{i} A apart; raise dataset.checks.min_distance"
                    if i % 3
                    else "no label"
                    for i in range(60)
                ],
            }
        ).to_csv(folder / "quarantine.csv", index=False)
        for stage, jobs in (("train", 1), ("convert", 3), ("plan", 1)):
            (folder / "timings" / stage).mkdir(parents=True)
            for job in range(jobs):
                (folder / "timings" / stage / f"{job}.tsv").write_text(
                    f"s\th:m:s\tmax_rss\tmax_vms\n{2.0 + job}\t0:00:02\t{100.0 * (job + 1)}\t-\n"
                )
        (folder / "index.json").write_text(
            json.dumps(
                {
                    "structures": count,
                    "atoms": 10 * count,
                    "edges": 120 * count,
                    "bytes": 700 * count,
                    "neighbors_histogram": [0] * 12 + [9 * count, count],
                }
            )
        )
        return FakeRun(folder)

    return make
