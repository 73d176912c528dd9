"""Calibration of a committee: whether the spread of its members says how large the error is.

It knows a table with TARGET, TARGET_predicted and TARGET_std, nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from atomloom.reports import figures
from atomloom.reports.formats import number, percent, plural, with_unit
from atomloom.reports.tables import SPLITS, judged_first

LEAST_IN_BIN, BINS = 10, 10


@dataclass(frozen=True)
class Calibration:
    """Errors of a committee against the deviation of its members, on one split."""

    target: str
    split: str
    spread: np.ndarray
    """[B] root mean square deviation of each bin of structures."""
    error: np.ndarray
    """[B] RMSE of each bin."""
    count: int
    mae: float
    within: float
    """Share of errors within one deviation; 68 % for normal errors of this size."""
    rank: float
    """Spearman's correlation of deviations and absolute errors."""


def calibration_of(frame: pd.DataFrame, target: str) -> Calibration | None:
    """Compare errors and deviations on the test set, or the best substitute; None without rows or spread."""
    columns = [target, f"{target}_predicted", f"{target}_std"]
    rows = frame[np.isfinite(frame[columns].to_numpy(np.float64)).all(axis=1)]
    named = [split for split in rows["split"].unique() if split not in SPLITS]
    split = next((s for s in judged_first(named) if (rows["split"] == s).any()), None)
    rows = rows[rows["split"] == split]
    error = np.abs(rows[columns[1]] - rows[target]).to_numpy(np.float64)
    spread = rows[columns[2]].to_numpy(np.float64)
    if split is None or not spread.any():
        return None
    order = np.argsort(spread, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // LEAST_IN_BIN)))
    from scipy.stats import spearmanr  # half a second that models without deviations need not take

    varied = len(np.unique(spread)) > 1 and len(np.unique(error)) > 1
    return Calibration(
        target=target,
        split=split,
        spread=np.array([np.sqrt((spread[part] ** 2).mean()) for part in parts]),
        error=np.array([np.sqrt((error[part] ** 2).mean()) for part in parts]),
        count=len(rows),
        mae=float(error.mean()),
        within=float((error <= spread).mean()),
        rank=float(spearmanr(spread, error).statistic) if varied else float("nan"),
    )


def calibration_figure(found: Calibration, unit: str) -> Figure:
    """RMSE against the deviation of the members, one point per bin; on the line they are equal."""
    with figures.style():
        figure, axes = figures._figure(figures.SQUARE)
        most = 1.08 * float(max(found.spread.max(), found.error.max()))
        axes.plot([0, most], [0, most], color=figures.LIGHT.muted, linewidth=0.8)
        axes.plot(found.spread, found.error, color=figures.LIGHT.test, marker="o", markersize=4)
        axes.set_xlim(0, most)
        axes.set_ylim(0, most)
        axes.set_aspect("equal", adjustable="box")
        axes.set_xlabel(figures._label("deviation of the members", unit, figures.SQUARE))
        axes.set_ylabel(figures._label(f"RMSE of {found.target}", unit, figures.SQUARE))
    return figure


def calibration_caption(found: Calibration, unit: str) -> str:
    """Numbers of the figure, in a sentence."""
    split = figures.SPLIT_NAMES.get(found.split, found.split)
    return (
        f"Committee on {plural(found.count, f'{split} structure')}: MAE of {found.target} "
        f"{with_unit(number(found.mae), unit)}; {percent(found.within)} of its errors are within one deviation of "
        f"its members (68 % if these were calibrated); rank correlation of deviation and error {number(found.rank, 2)}."
    )
