"""Stage `evaluate`: the trained model's predictions of every labelled structure, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from atomloom.files import write_atomically, write_json
from atomloom.layout import PlannedLayout
from atomloom.reports.figures import parity_figure
from atomloom.stages.train import load_labelled
from atomloom.training.metrics import split_metrics
from atomloom.training.predict import load_model, predict_table


def evaluate_run(places: PlannedLayout, log: Callable[[str], None]) -> Path:
    """Write `predictions.parquet` and `.csv`, `metrics.json` and `parity.png`; return the run's folder.

    Raises:
        AtomloomError: when the run is not trained, or index or split are missing.
    """
    run, config = places.run, places.config
    data = load_labelled(places)
    model = load_model(run / "model.safetensors")
    frame = pd.read_parquet(places.split / "dataset.parquet")
    index = pd.read_parquet(places.index / "index.parquet", columns=["record"])
    frame = frame[frame["record"].isin(index["record"])].reset_index(drop=True)
    rows = index.reset_index().set_index("record")["index"].loc[frame["record"]].to_numpy()
    predicted = predict_table(model, data.table, rows, config.training.batch)
    names = config.dataset.target
    table = frame[["id", "split", "formula", "elements", "n_atoms", *names]].copy()
    for column, name in enumerate(names):
        table[f"{name}_predicted"] = predicted[:, column]
    write_atomically(run / "predictions.parquet", lambda path: table.to_parquet(path, index=False))
    write_atomically(run / "predictions.csv", lambda path: table.to_csv(path, index=False))
    metrics = {name: split_metrics(table, name, config.training.loss == "bce") for name in names}
    write_json(run / "metrics.json", metrics)
    write_atomically(
        run / "parity.png", lambda path: parity_figure(table, names, config.dataset.unit, path)
    )
    for name in names:
        for split, values in metrics[name].items():
            log(
                f"{split:5s} {name}: MAE {values['mae']:.4g} {config.dataset.unit} over {values['count']:,}"
            )
    return run
