"""Errors of predictions in real units: MAE, RMSE, R2, greatest error, and what to compare them with.

It knows nothing of models; unknown targets (NaN) are left out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def error_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float | int | None]:
    """Errors of one target; None where they are not defined (no rows, or equal targets for r2).

    `mad` is the mean absolute deviation of the targets from their mean: the MAE of always
    predicting the mean, to be compared with `mae`.

    Args:
        targets: [R] in real units, NaN where unknown.
        predictions: [R], likewise.
    """
    known = np.isfinite(targets)
    truth, predicted = targets[known], predictions[known]
    if not len(truth):
        empty: dict[str, float | int | None] = dict.fromkeys(
            ("mae", "rmse", "r2", "max_error", "mad")
        )
        return empty | {"count": 0}
    errors = predicted - truth
    spread = truth - truth.mean()
    variance = float(spread @ spread)
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(errors @ errors / len(errors))),
        "r2": 1.0 - float(errors @ errors) / variance if variance > 0 else None,
        "max_error": float(np.abs(errors).max()),
        "mad": float(np.abs(spread).mean()),
        "count": len(truth),
    }


def split_metrics(table: pd.DataFrame, target: str) -> dict[str, dict[str, float | int | None]]:
    """`error_metrics` of each split.

    Args:
        table: columns `split`, the target's name, and that with `_predicted` behind.
        target: name of the target.
    """
    return {
        split: error_metrics(
            part[target].to_numpy(np.float64), part[f"{target}_predicted"].to_numpy(np.float64)
        )
        for split in ("train", "val", "test")
        if len(part := table[table["split"] == split])
    }
