"""Errors of predictions in real units: MAE, RMSE, R2, max error, and a reference for comparison;
for classes also accuracy, F1, the area under the ROC curve and the calibration of probabilities.

It knows nothing of models; unknown targets (NaN) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

CALIBRATION_BINS = 15


def error_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float | int | None]:
    """Errors of one target; None where they are undefined (no rows, or equal targets for r2).

    `mad` is the mean absolute deviation of the targets from their mean: the MAE of always
    predicting the mean, to be compared with `mae`.

    Args:
        targets: [R] in real units, NaN where unknown.
        predictions: [R] in real units.
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


def log_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float | int | None]:
    """MAE, RMSE and R2 of decadic logarithms, as `mae_log10` and so on; None where undefined.

    They are those of the space that is learnt with `training.log_targets`, in decades: in real units, the
    largest values alone decide.

    Args:
        targets: [R] in real units, NaN where unknown.
        predictions: [R] in real units.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log10(values) for values in (targets, predictions)]
    both = np.isfinite(logs).all(axis=0)  # a value that is not positive has no logarithm
    found = error_metrics(*(values[both] for values in logs))
    return {f"{name}_log10": found[name] for name in ("mae", "rmse", "r2")}


def class_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float | int | None]:
    """Metrics of two classes; None where undefined.

    Accuracy and F1 are for a threshold of 0.5. `auc` is the probability that a
    structure of class 1 gets the higher prediction of two of different classes (ties count half).
    `calibration` is the expected calibration error, see `calibration_error`.

    Args:
        targets: [R], 0 or 1, NaN where unknown.
        predictions: [R], probabilities of 1.
    """
    known = np.isfinite(targets)
    truth, predicted = targets[known] == 1, predictions[known]
    chosen = predicted > 0.5
    ones, zeros = int(truth.sum()), int((~truth).sum())
    hits = int((truth & chosen).sum())
    return {
        "accuracy": float((truth == chosen).mean()) if len(truth) else None,
        "f1": 2 * hits / (ones + int(chosen.sum())) if ones + int(chosen.sum()) else None,
        "auc": _area(truth, predicted) if ones and zeros else None,
        "calibration": calibration_error(truth == chosen, np.maximum(predicted, 1.0 - predicted)),
        "ones": ones,
    }


def many_class_metrics(
    targets: np.ndarray, probabilities: np.ndarray
) -> dict[str, float | int | None]:
    """Metrics of C classes; None where undefined.

    `mae`, `rmse` and `max_error` are of one minus the probability of the true class; for two classes
    that is the error of the probability of class 1. `f1` is the mean over classes that occur in the
    truth or among the predictions; `auc` is the mean, over classes that occur and are not the only one, of
    that class against all others.

    Args:
        targets: [R], indices of classes, NaN where unknown.
        probabilities: [R, C].
    """
    known = np.isfinite(targets)
    truth, predicted = targets[known].astype(np.int64), probabilities[known]
    errors = error_metrics(
        np.ones(len(truth)), np.take_along_axis(predicted, truth[:, None], axis=1)[:, 0]
    )
    errors |= {"r2": None, "mad": None}
    chosen = predicted.argmax(axis=1)
    scores, areas = [], []
    for number in range(predicted.shape[1]):
        own, taken = truth == number, chosen == number
        if own.any() or taken.any():
            scores.append(2 * (own & taken).sum() / (own.sum() + taken.sum()))
        if own.any() and not own.all():
            areas.append(_area(own, predicted[:, number]))
    return errors | {
        "accuracy": float((truth == chosen).mean()) if len(truth) else None,
        "f1": float(np.mean(scores)) if scores else None,
        "auc": float(np.mean(areas)) if areas else None,
        "calibration": calibration_error(truth == chosen, predicted.max(axis=1)),
        "classes": predicted.shape[1],
    }


def calibration_error(right: np.ndarray, confidence: np.ndarray) -> float | None:
    """Expected calibration error (Guo et al., ICML 2017): the mean difference between the confidence of
    decisions and their accuracy, over 15 equal intervals of confidence; None without rows.

    Args:
        right: [R] bool, whether each decision was right.
        confidence: [R], the predicted probability of the decision.
    """
    if not len(right):
        return None
    inside = np.ceil(confidence * CALIBRATION_BINS).clip(1, CALIBRATION_BINS).astype(np.int64)
    gaps = np.bincount(inside, weights=confidence - right)
    return float(np.abs(gaps).sum() / len(right))


def _area(own: np.ndarray, predicted: np.ndarray) -> float:
    """Area under the ROC curve of rows that are of a class (`own`) against the others."""
    from scipy.stats import rankdata  # half a second that scalars need not take

    ones, zeros = int(own.sum()), int((~own).sum())
    # Mann and Whitney: the sum of the ranks of the class minus its min.
    ranks = rankdata(predicted)[own].sum()
    return float((ranks - ones * (ones + 1) / 2) / (ones * zeros))


def split_metrics(
    table: pd.DataFrame,
    target: str,
    classes: bool = False,
    splits: Sequence[str] = ("train", "val", "test"),
    log: bool = False,
) -> dict[str, dict[str, float | int | None]]:
    """Metrics of each split: `error_metrics`, `log_metrics` where logarithms are learnt, and `class_metrics`
    for classes.

    Args:
        table: columns `split`, the target's name, and that with suffix `_predicted`; for several
            classes, those with suffixes `_p0`, `_p1`, ...: their probabilities.
        target: name of the target.
        classes: whether targets are classes; 0 and 1, with predictions the probabilities of 1, unless
            there are probabilities of several.
        splits: values of `split`, in the order of the result; those without rows are left out.
        log: whether the logarithm of the target is learnt.
    """
    metrics = {}
    many = probability_columns(table, target)
    for split in splits:
        part = table[table["split"] == split]
        if len(part):
            truth = part[target].to_numpy(np.float64)
            predicted = part[f"{target}_predicted"].to_numpy(np.float64)
            if classes and many:
                metrics[split] = many_class_metrics(truth, part[many].to_numpy(np.float64))
                continue
            metrics[split] = error_metrics(truth, predicted)
            if log:
                metrics[split] |= log_metrics(truth, predicted)
            if classes:
                metrics[split] |= class_metrics(truth, predicted)
    return metrics


def probability_columns(table: pd.DataFrame, target: str) -> list[str]:
    """Columns of a table with the probabilities of a target's classes, in their order."""
    names: list[str] = []
    while f"{target}_p{len(names)}" in table:
        names.append(f"{target}_p{len(names)}")
    return names
