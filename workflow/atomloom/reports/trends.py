"""Errors against what may cause them: size, label, distance to the training set.

Errors of vectors and of atoms are averaged over each structure first, since size and distance belong to
structures. It knows arrays, nothing of files or figures.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atomloom.reports.tables import Predictions, standard_error
from atomloom.structures.elements import NUMBERS, SYMBOLS

BINS = 8
"""Max number of bins of structures."""
LEAST_IN_BIN = 5
JUDGED = 2_000
"""Max number of structures whose distance to the training set is computed."""
_TOKEN = re.compile(r"([A-Z][a-z]?|\(|\))(\d+(?:\.\d+)?)?")


@dataclass(frozen=True, eq=False)
class StructureErrors:
    """Absolute errors by structure on one split. S is the number of structures."""

    row: np.ndarray
    """[S] int64, the first row of each structure in the predictions."""
    error: np.ndarray
    """[S] float64, absolute error, or the mean over the numbers of a structure."""
    group: np.ndarray | None
    """[S] groups that the split kept together; None if structures are independent."""


@dataclass(frozen=True)
class Bin:
    """Structures with similar values, and their mean error."""

    low: float
    high: float
    middle: float
    """Mean of the values."""
    mae: float
    uncertainty: float | None
    """Standard error of the MAE over independent groups; None for one group."""
    count: int


def structure_errors(predictions: Predictions, split: str) -> StructureErrors:
    """Absolute errors of a split, one per structure."""
    rows = np.flatnonzero(predictions.of(split))
    errors = np.abs(predictions.error[rows])
    if predictions.noun == "structure":
        return StructureErrors(rows, errors, _of_rows(predictions.group, rows))
    codes, _ = pd.factorize(predictions.id[rows])
    first = np.unique(codes, return_index=True)[1]
    means = np.bincount(codes, errors) / np.bincount(codes)
    return StructureErrors(rows[first], means, _of_rows(predictions.group, rows[first]))


def _of_rows(group: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if group is None else group[rows]


def binned(
    values: np.ndarray, errors: np.ndarray, groups: np.ndarray | None, bins: int = BINS
) -> tuple[Bin, ...]:
    """Bins with about as many structures each, equal values never apart.

    Args:
        values: [S] finite.
        errors: [S] absolute errors.
        groups: [S] independent groups; None if each is one.
        bins: max number of bins.
    """
    if not len(values):
        return ()
    count = max(1, min(bins, len(values) // LEAST_IN_BIN))
    edges = np.quantile(values, np.linspace(0, 1, count + 1)[1:-1])
    place = np.searchsorted(np.unique(edges), values, side="left")
    found = []
    for number in np.unique(place):
        inside = place == number
        own = errors[inside]
        found.append(
            Bin(
                low=float(values[inside].min()),
                high=float(values[inside].max()),
                middle=float(values[inside].mean()),
                mae=float(own.mean()),
                uncertainty=standard_error(own, _of_rows(groups, inside)),
                count=len(own),
            )
        )
    return tuple(found)


def composition(formula: str) -> np.ndarray | None:
    """[119] float32 shares of the elements in a formula, by atomic number; None where it is not a formula."""
    stack: list[dict[str, float]] = [defaultdict(float)]
    end = 0
    for token in _TOKEN.finditer(formula):
        if token.start() != end:
            return None
        end, (symbol, digits) = token.end(), token.groups()
        factor = float(digits) if digits else 1.0
        if symbol == "(":
            stack.append(defaultdict(float))
        elif symbol == ")":
            if len(stack) < 2:
                return None
            for name, amount in stack.pop().items():
                stack[-1][name] += factor * amount
        elif symbol in NUMBERS:
            stack[-1][symbol] += factor
        else:
            return None
    total = sum(stack[0].values())
    if end != len(formula) or len(stack) > 1 or not total:
        return None
    shares = np.zeros(len(SYMBOLS), dtype=np.float32)
    for name, amount in stack[0].items():
        shares[NUMBERS[name]] += amount / total
    return shares


def composition_distances(wanted: np.ndarray, training: np.ndarray) -> np.ndarray | None:
    """[W] share of the atoms of each structure that would have to be of another element for it to have
    the composition of a training structure, of the one that needs least.

    It is half the sum of the differences between the shares of all elements: 0 for a composition that is in
    training, 1 for one that shares no element with any.

    Args:
        wanted: [W] formulas.
        training: formulas of the training structures.

    Returns:
        Distances; None where a formula is missing or is none.
    """
    known = [composition(formula) for formula in np.unique(training)]
    names, place = np.unique(wanted, return_inverse=True)
    asked = [composition(formula) for formula in names]
    if not known or any(one is None for one in known + asked):
        return None
    columns = np.ascontiguousarray(np.stack([one for one in known if one is not None]).T)
    found = np.empty(len(names))
    for number, one in enumerate(asked):
        assert one is not None
        common = np.zeros(columns.shape[1], dtype=np.float32)
        for element in np.flatnonzero(one):
            common += np.minimum(columns[element], one[element])
        found[number] = 1.0 - float(common.max())
    # Shares are single-precision: what is equal differs by their rounding.
    found[found < 1e-5] = 0.0
    return found[place]
