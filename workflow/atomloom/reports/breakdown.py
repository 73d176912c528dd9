"""Breakdown of a target's errors: figures against size, label and distance; drawings of the worst.

It fills the part of the page below parity and errors by element. It knows predictions and structures,
nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from atomloom.reports import figures, trends
from atomloom.reports.drawings import draw_structure, element_colour
from atomloom.reports.figures import SPLIT_NAMES
from atomloom.reports.formats import fixed, number, plural, with_unit
from atomloom.reports.page import Drawing, drawing
from atomloom.reports.tables import Predictions, WorstPrediction
from atomloom.structures.elements import NUMBERS, SYMBOLS
from atomloom.structures.structure import Structure

QUANTILES = 10
DRAWINGS_SIZE = 120_000
"""Max number of characters of the drawn structures of one target; further ones are not drawn."""


@dataclass(frozen=True)
class StructureCard:
    """Drawing of a structure with a large error."""

    svg: Markup | None
    """Drawing; None where there is none, see `reason`."""
    id: str
    formula: str
    error: str
    reason: str
    """Reason why it is not drawn; empty if it is."""


@dataclass(frozen=True)
class Breakdown:
    """Figures and drawings of one target."""

    trends: tuple[Drawing, ...]
    notes: tuple[str, ...]
    """Reasons why figures are missing."""
    cards: tuple[StructureCard, ...]
    legend: tuple[tuple[str, str], ...]
    """(symbol, colour) of the elements in the drawings."""


def break_down(
    place: int,
    predictions: Predictions,
    worst: Sequence[WorstPrediction],
    points: int,
    structures: Mapping[str, Structure],
) -> Breakdown:
    """Break down the errors of one target on its judged split.

    Args:
        place: of the target in the page, for the names of figures.
        predictions: of the target.
        worst: the largest errors, largest first.
        points: max number of points in a figure.
        structures: structures of the largest errors by id, as far as they are known.
    """
    drawn, notes = _trends(place, predictions, points)
    cards, legend = _cards(predictions, worst, structures)
    return Breakdown(drawn, notes, cards, legend)


def _trends(
    place: int, predictions: Predictions, points: int
) -> tuple[tuple[Drawing, ...], tuple[str, ...]]:
    split = predictions.judged_split
    assert split is not None  # predictions without rows are not shown
    errors = trends.structure_errors(predictions, split)
    drawings, notes = [], []
    sizes = predictions.n_atoms[errors.row]
    known = np.isfinite(sizes)
    if len(np.unique(sizes[known])) > 1:
        caption = f"Error against size, {_of(predictions, split)}."
        drawings.append(
            _trend(
                f"size-{place}",
                predictions,
                errors,
                known,
                sizes,
                "atoms per structure",
                points,
                caption,
            )
        )
    else:
        notes.append("no error against size: all structures have as many atoms")
    if (label := _by_label(place, predictions, split)) is not None:
        drawings.append(label)
    training = predictions.formula[predictions.of("train")]
    chosen = _evenly(len(errors.row), trends.JUDGED)
    distances = (
        trends.composition_distances(predictions.formula[errors.row[chosen]], training)
        if split != "train" and len(training)
        else None
    )
    if distances is not None and distances.any():
        shown = np.zeros(len(errors.row), dtype=bool)
        shown[chosen] = True
        values = np.full(len(errors.row), np.nan)
        values[chosen] = distances
        caption = (
            f"Error against distance to the nearest training structure, {_of(predictions, split)}. The "
            "distance is the share of atoms that would have to be of another element for the composition "
            "to be that of a training structure; where atoms are does not count."
        )
        if len(chosen) < len(errors.row):
            caption += f" {number(len(chosen))} structures, evenly chosen."
        drawings.append(
            _trend(
                f"distance-{place}",
                predictions,
                errors,
                shown,
                values,
                "distance to the nearest training composition",
                points,
                caption,
            )
        )
    elif distances is not None:
        notes.append(
            "no error against distance to the training set: every composition is also that of a training "
            "structure, so that all distances between compositions are 0"
        )
    return tuple(drawings), tuple(notes)


def _of(predictions: Predictions, split: str) -> str:
    kind = (
        "structures"
        if predictions.noun == "structure"
        else f"means of {predictions.noun}s by structure"
    )
    return f"{SPLIT_NAMES.get(split, split)} {kind}"


def _trend(
    name: str,
    predictions: Predictions,
    errors: trends.StructureErrors,
    known: np.ndarray,
    values: np.ndarray,
    label: str,
    points: int,
    caption: str,
) -> Drawing:
    """Draw errors against one property of structures, for those whose property is known."""
    rows, sizes, own = errors.row[known], errors.error[known], values[known]
    group = None if errors.group is None else errors.group[known]
    drawn = _evenly(len(rows), points)
    if len(drawn) < len(rows):
        caption += f" {number(len(drawn))} of {number(len(rows))} are drawn, evenly chosen; bins are of all."
    names = [
        f"{' '.join(filter(None, (predictions.formula[row], predictions.id[row])))}: "
        f"{with_unit(number(error, 3), predictions.unit)} at {number(value, 3)}"
        for row, error, value in zip(rows[drawn], sizes[drawn], own[drawn], strict=True)
    ]
    figure, tips = figures.trend_figure(
        own[drawn], sizes[drawn], trends.binned(own, sizes, group), label, predictions, names
    )
    return drawing(figure, name, caption, tips)


def _by_label(place: int, predictions: Predictions, split: str) -> Drawing | None:
    rows = predictions.of(split)
    found = trends.binned(
        predictions.reference[rows],
        np.abs(predictions.error[rows]),
        None if predictions.group is None else predictions.group[rows],
        bins=QUANTILES,
    )
    if len(found) < 2:
        return None
    counts = sorted({one.count for one in found})
    each = plural(counts[0], predictions.noun)
    if len(counts) > 1:
        each = f"{number(counts[0])} to {plural(counts[-1], predictions.noun)}"
    caption = (
        f"Error by quantile of the label on {SPLIT_NAMES.get(split, split)}: {len(found)} bins of {each}, "
        "with standard errors."
    )
    figure = figures.quantile_figure(found, predictions)
    return drawing(figure, f"quantiles-{place}", caption)


def _evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` items, at even distances."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def _cards(
    predictions: Predictions, worst: Sequence[WorstPrediction], structures: Mapping[str, Structure]
) -> tuple[tuple[StructureCard, ...], tuple[tuple[str, str], ...]]:
    """Drawings of the worst predictions, each structure once, and the elements in them."""
    ids = list(dict.fromkeys(one.id for one in worst))
    if not any(id in structures for id in ids):
        return (), ()
    cards, size, elements = [], 0, set()
    for id in ids:
        own = [one for one in worst if one.id == id]
        structure, svg, reason = structures.get(id), None, "not drawn: the store no longer has it"
        if structure is not None:
            svg = draw_structure(structure, {one.atom for one in own if one.atom is not None})
            reason = f"not drawn: {plural(len(structure), 'atom')} are too many to tell apart"
        if svg is not None and size + len(svg) > DRAWINGS_SIZE:
            svg, reason = None, "not drawn: the page would be too large"
        if svg is not None and structure is not None:
            size, reason = size + len(svg), ""
            elements |= {SYMBOLS[number] for number in structure.numbers}
        error = with_unit(fixed(own[0].error, 3, sign=True), predictions.unit)
        cards.append(StructureCard(svg, id, own[0].formula, error, reason))
    ordered = sorted(elements, key=NUMBERS.__getitem__)
    return tuple(cards), tuple((symbol, element_colour(NUMBERS[symbol])) for symbol in ordered)
