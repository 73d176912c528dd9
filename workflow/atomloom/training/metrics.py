"""Errors of predictions in real units: MAE, RMSE, R2, greatest error, and what to compare them with;
for classes also accuracy, F1 and the area under the ROC curve.

It knows nothing of models; unknown targets (NaN) are left out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata


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


def class_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float | int | None]:
    """How well classes are told apart; None where that is not defined.

    Accuracy and F1 are those of deciding at a probability of 0.5. `auc` is the probability that a
    structure of class 1 gets the higher prediction of two of different classes (ties count half).

    Args:
        targets: [R], 0 or 1, NaN where unknown.
        predictions: [R], probabilities of 1.
    """
    known = np.isfinite(targets)
    truth, predicted = targets[known] == 1, predictions[known]
    chosen = predicted > 0.5
    ones, zeros = int(truth.sum()), int((~truth).sum())
    hits = int((truth & chosen).sum())
    # Mann and Whitney: the sum of the ranks of class 1, less what it would be at the very least.
    ranks = rankdata(predicted)[truth].sum() if ones else 0.0
    return {
        "accuracy": float((truth == chosen).mean()) if len(truth) else None,
        "f1": 2 * hits / (ones + int(chosen.sum())) if ones + int(chosen.sum()) else None,
        "auc": float((ranks - ones * (ones + 1) / 2) / (ones * zeros)) if ones and zeros else None,
        "ones": ones,
    }


def split_metrics(
    table: pd.DataFrame, target: str, classes: bool = False
) -> dict[str, dict[str, float | int | None]]:
    """`error_metrics` of each split, and `class_metrics` with them where wanted.

    Args:
        table: columns `split`, the target's name, and that with `_predicted` behind.
        target: name of the target.
        classes: whether targets are 0 and 1, and predictions probabilities.
    """
    metrics = {}
    for split in ("train", "val", "test"):
        part = table[table["split"] == split]
        if len(part):
            truth = part[target].to_numpy(np.float64)
            predicted = part[f"{target}_predicted"].to_numpy(np.float64)
            metrics[split] = error_metrics(truth, predicted)
            if classes:
                metrics[split] |= class_metrics(truth, predicted)
    return metrics
