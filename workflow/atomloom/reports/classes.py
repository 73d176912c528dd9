"""Classes: which are taken for which, and whether probabilities are to be trusted.

It knows columns of the predictions, nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from atomloom.reports import figures
from atomloom.reports.figures import SPLIT_NAMES
from atomloom.reports.formats import number
from atomloom.reports.page import Drawing, drawing
from atomloom.reports.tables import probability_columns

SHOWN_CLASSES = 12
"""Max number of classes whose table of true and predicted ones is shown."""
BINS = 10


@dataclass(frozen=True)
class ClassPart:
    """Content of the page on a target whose values are classes."""

    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Structures by true class (rows) and predicted class; empty for too many classes."""
    reliability: Drawing


def class_part(frame: pd.DataFrame, target: str, split: str, place: int) -> ClassPart | None:
    """Summarise the classes of a target on a split; None where no row is known.

    Args:
        frame: the predictions.
        target: whose values are classes; with several, columns `TARGET_p0`, ... are their probabilities.
        split: of the rows.
        place: of the target in the page, for the name of the figure.
    """
    rows = frame[(frame["split"] == split) & frame[target].notna()]
    columns = probability_columns(frame, target)
    if columns:
        shares = rows[columns].to_numpy(np.float64)
    else:
        ones = rows[f"{target}_predicted"].to_numpy(np.float64)
        shares = np.stack([1.0 - ones, ones], axis=1)
    known = np.isfinite(shares).all(axis=1)
    shares, truth = shares[known], rows[target].to_numpy(np.float64)[known].astype(np.int64)
    count = shares.shape[1]
    if not len(truth) or truth.min() < 0 or truth.max() >= count:
        return None
    chosen, confidence = shares.argmax(axis=1), shares.max(axis=1)
    confusion = np.bincount(truth * count + chosen, minlength=count**2).reshape(count, count)
    inside = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    points = [
        (float(confidence[own].mean()), float((truth == chosen)[own].mean()), int(own.sum()))
        for number_ in range(BINS)
        if (own := inside == number_).any()
    ]
    caption = (
        f"Calibration on {SPLIT_NAMES.get(split, split)}: share of right decisions among structures of "
        f"similar confidence, in {number(len(points))} bins. On the line, a probability means what it says."
    )
    return ClassPart(
        names=tuple(map(str, range(count))),
        confusion=tuple(map(tuple, confusion.tolist())) if count <= SHOWN_CLASSES else (),
        reliability=drawing(figures.reliability_figure(points), f"reliability-{place}", caption),
    )
