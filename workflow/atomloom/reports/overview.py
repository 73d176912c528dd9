"""Overview of the data before any error: labels, sizes and elements of each split.

It counts the rows of the predictions, which hold every labelled structure, and draws them. It knows
nothing of files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atomloom.reports import figures
from atomloom.reports.figures import SPLIT_NAMES
from atomloom.reports.formats import decimals_for, number, plural
from atomloom.reports.page import Drawing, drawing
from atomloom.reports.tables import POSITIONS, Predictions, Structures


@dataclass(frozen=True)
class LabelRow:
    """Summary of the labels of one target on one split."""

    target: str
    unit: str
    split: str
    known: int
    missing: int
    """Structures of the split without a label."""
    mean: float
    std: float
    least: float
    median: float
    most: float
    decimals: int


@dataclass(frozen=True)
class CountedElement:
    """Element in the periodic table of the overview."""

    symbol: str
    row: int
    column: int
    counts: tuple[int, ...]
    """Structures with this element, one number per split of the overview."""
    trained: int
    """Structures with this element in training."""
    heat: float
    """Position of the number of training structures from 0 (one) to 1 (the most), logarithmic."""
    tip: str

    @property
    def unseen(self) -> bool:
        """Whether the element is in other splits, but not in training."""
        return not self.trained and any(self.counts)


@dataclass(frozen=True)
class Overview:
    """Content of the section on data."""

    splits: tuple[str, ...]
    labels: tuple[LabelRow, ...]
    drawings: tuple[Drawing, ...]
    elements: tuple[CountedElement, ...]
    """All elements, counted or not; empty where the structures name none."""

    @property
    def present(self) -> list[CountedElement]:
        """Elements that occur, most frequent first."""
        found = [e for e in self.elements if any(e.counts)]
        return sorted(found, key=lambda e: (-sum(e.counts), e.symbol))


def overview_of(structures: Structures, shown: Sequence[Predictions]) -> Overview:
    """Summarise the data.

    Args:
        structures: all of them.
        shown: predictions of the targets whose labels are drawn.
    """
    drawings = [_labels_drawing(place, found) for place, found in enumerate(shown)]
    if np.isfinite(structures.n_atoms).any():
        drawings.append(_sizes_drawing(structures))
    return Overview(
        splits=structures.splits,
        labels=tuple(row for found in shown for row in _label_rows(found, structures)),
        drawings=tuple(drawings),
        elements=_counted_elements(structures),
    )


def _label_rows(found: Predictions, structures: Structures) -> list[LabelRow]:
    rows = []
    for split in found.splits:
        values = found.reference[found.of(split)]
        missing = found.missing.get(split, 0)
        if found.noun != "structure":  # their tables have no rows for what is unknown
            missing = int((structures.split == split).sum()) - found.structures(split)
        rows.append(
            LabelRow(
                target=found.target,
                unit=found.unit,
                split=split,
                known=len(values),
                missing=missing,
                mean=float(values.mean()),
                std=float(values.std()),
                least=float(values.min()),
                median=float(np.median(values)),
                most=float(values.max()),
                decimals=decimals_for(float(found.reference.std()) or abs(float(values.mean()))),
            )
        )
    return rows


def _labels_drawing(place: int, found: Predictions) -> Drawing:
    figure, beyond = figures.label_figure(found)
    low, high = number(float(found.reference.min())), number(float(found.reference.max()))
    unit = f" {found.unit}" if found.unit else ""
    caption = f"Labels: {found.target} of each split, from {low} to {high}{unit}."
    if beyond:
        caption += f" {plural(beyond, found.noun)} beyond the ends not shown."
    return drawing(figure, f"labels-{place}", caption)


def _sizes_drawing(structures: Structures) -> Drawing:
    sizes = structures.n_atoms[np.isfinite(structures.n_atoms)]
    least, most = int(sizes.min()), int(sizes.max())
    span = f"all of {plural(least, 'atom')}" if least == most else f"{least:,} to {most:,} atoms"
    caption = f"Sizes of structures: {span}, half of them up to {number(int(np.median(sizes)))}."
    return drawing(figures.size_figure(structures), "sizes", caption)


def _counted_elements(structures: Structures) -> tuple[CountedElement, ...]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in structures.splits}
    for split, symbols in zip(structures.split, structures.elements, strict=True):
        counts[split].update(symbols)
    if not any(counts.values()):
        return ()
    trained = counts.get("train", Counter())
    most = max(trained.values(), default=0)
    cells = []
    for symbol, (row, column) in POSITIONS.items():
        own = tuple(count[symbol] for count in counts.values())
        n = trained[symbol]
        heat = math.log(n) / math.log(most) if n > 1 else 0.0
        told = ", ".join(
            f"{number(count)} {SPLIT_NAMES.get(split, split)}"
            for split, count in zip(counts, own, strict=True)
        )
        tip = f"{symbol}: {f'structures: {told}' if any(own) else 'in no structure'}"
        cells.append(CountedElement(symbol, row, column, own, n, heat, tip))
    return tuple(cells)
