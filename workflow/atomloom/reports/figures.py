"""Figures of a run, drawn by matplotlib without a display: SVG for the page, files for the run.

In the page a figure takes the page's colours and font: each colour of `LIGHT` becomes a CSS variable
of the same role, so that one drawing serves light, dark and print. More than some thousands of points are
drawn as pixels inside the SVG, or as a density. This module knows arrays, names and units, nothing
of file layouts or HTML.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from atomloom.errors import AtomloomError
from atomloom.reports.formats import (
    MINUS,
    brief,
    duration,
    fixed,
    number,
    numbers_apart,
    plural,
    ten_to,
    with_unit,
)
from atomloom.reports.tables import (
    GraphStatistics,
    Predictions,
    StageTiming,
    Structures,
    predictions_of,
)
from atomloom.reports.trends import Bin
from atomloom.store.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

VECTOR_POINTS = 2_000
"""Max number of points in a figure drawn as SVG elements that show their names under the pointer."""
SCATTER_POINTS = 6_000
"""Max number of points in a parity plot; beyond it densities are shown, one panel per split."""
CLASSES = 12
"""Max number of different whole numbers among labels that are drawn as bars, one per number."""
OUTLIERS = 100
"""Number of the largest errors that are drawn as points with names where the rest are pixels."""
WIDTH, HEIGHT, SQUARE = 4.4, 3.1, 4.4  # inches; small, so that letters stay readable on a phone
PIXELS_PER_INCH = 220
LETTERS_AN_INCH = 14  # of an axis label, with room for ticks and title
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
"""Splits in words; test sets with names have these."""
SET_COLOURS = ("#5a6fd6", "#b3478c", "#4d8f3a", "#9a6a3c", "#7a55b5", "#c0504d")
"""Colours of test sets with names, in turn; with a contrast of 3:1 on both backgrounds."""
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Palette:
    """Colour by role. Data colours keep a contrast of 3:1 on both backgrounds, so they never change."""

    ink: str
    muted: str
    line: str
    card: str
    train: str = "#8592a6"
    val: str = "#d97e06"
    test: str = "#0b8fa6"


LIGHT = Palette(ink="#1b2028", muted="#5b6573", line="#e2e5ea", card="#ffffff")
DARK = Palette(ink="#e9ecf1", muted="#a0a9b6", line="#313843", card="#191d23")

_DATES: Mapping[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""Formats of a figure file, and metadata left out so that the same figure gives the same bytes."""
_MARKERS = {"train": "o", "val": "^"}
_SIZES = {"train": 7.0}
_PARTS = {"data": LIGHT.train, "forward": LIGHT.test, "backward": "#5a6fd6", "optimizer": LIGHT.val}
_STYLE: Mapping[RcKeyType, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "text.color": LIGHT.ink,
    "axes.labelcolor": LIGHT.ink,
    "axes.edgecolor": LIGHT.muted,
    "xtick.color": LIGHT.muted,
    "ytick.color": LIGHT.muted,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT.line,
    "grid.linewidth": 0.6,
    "legend.frameon": True,
    "legend.facecolor": LIGHT.card,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fancybox": False,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # targets have names like band_gap, and may contain $
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
}
_FILE_STYLE: Mapping[RcKeyType, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "parity",
    "savefig.facecolor": LIGHT.card,
}


@contextmanager
def style() -> Iterator[None]:
    """Context with the matplotlib settings of this module, needed for drawing and saving."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@dataclass(frozen=True)
class Course:
    """Course of a run, one point per epoch (or per step, if a file has several rows per epoch)."""

    x: np.ndarray
    """[points] epochs or steps."""
    x_label: str
    best: float | None
    """Position of the best model on x, if known."""


def inline_svg(
    figure: Figure, name: str, alt: str, tips: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Convert a figure to an `<svg>` element that takes colours and font from the page around it.

    Args:
        figure: one of this module's.
        name: different for each figure of a page; ids within the element derive from it.
        alt: description of the figure, for those who cannot see it.
        tips: gid of a point collection -> one text per point, shown under the pointer.
    """
    buffer = io.StringIO()
    with style(), warnings.catch_warnings():
        # The browser has the characters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        matplotlib.rcParams["svg.hashsalt"] = name
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=PIXELS_PER_INCH)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for gid, texts in (tips or {}).items():
        _add_tips(root, gid, texts)
    _drop_unused_ids(root)
    _drop_style_sheets(root)
    for element in root.iter():
        _restyle(element)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": alt}
    if tips:
        root.set("class", "named")  # points that the page's script names under the pointer
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _add_tips(root: ElementTree.Element, gid: str, texts: Sequence[str]) -> None:
    group = root.find(f".//*[@id='{gid}']")
    if group is None:
        return
    defined = {id(inner) for defs in group.iter(f"{{{SVG}}}defs") for inner in defs.iter()}
    marks = [
        mark
        for mark in group.iter()
        if mark.tag in (f"{{{SVG}}}use", f"{{{SVG}}}path") and id(mark) not in defined
    ]
    if len(marks) != len(texts):
        return
    for mark, text in zip(marks, texts, strict=True):
        ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text
    styles = {mark.get("style", "") for mark in marks}
    if len(styles) == 1:  # said once, not a thousand times
        group.set("style", styles.pop())
        for mark in marks:
            mark.attrib.pop("style", None)


def _drop_style_sheets(root: ElementTree.Element) -> None:
    """Remove style sheets, which inside an inline SVG would apply to the whole page."""
    for parent in list(root.iter()):
        for sheet in parent.findall(f"{{{SVG}}}style"):
            parent.remove(sheet)


def _restyle(element: ElementTree.Element) -> None:
    """Set the page's colours and font; round coordinates to 0.01 points, finer than any screen."""
    for name, value in element.attrib.items():
        if name == "style":
            for role, colour in asdict(LIGHT).items():
                value = value.replace(colour, f"var(--{role})")
            element.set(name, re.sub(r"font-family: [^;]*(; |$)", "", value))
        elif name in ("d", "x", "y", "transform", "points", "width", "height"):
            element.set(name, re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", value))
    if element.tag not in (f"{{{SVG}}}text", f"{{{SVG}}}title"):
        element.text = None if not (element.text or "").strip() else element.text
    element.tail = None if not (element.tail or "").strip() else element.tail


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Remove unused ids, which must be unique in a page; matplotlib names a part of every figure `axes_1`."""
    used = set(
        re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values()))
    )
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)


# --- data -------------------------------------------------------------------------------------


@style()
def label_figure(predictions: Predictions) -> tuple[Figure, int]:
    """Histogram of the labels, as shares of each split; bars where they are a few whole numbers.

    Returns:
        figure, and the number of labels beyond its ends, which are not shown.
    """
    values = predictions.reference
    figure, axes = _figure()
    distinct = np.unique(values)
    whole = len(distinct) <= CLASSES and np.array_equal(distinct, np.round(distinct))
    if whole:
        _bars_by_split(axes, predictions, values, distinct)
        axes.set_xticks(range(len(distinct)), [f"{v:.0f}".replace("-", MINUS) for v in distinct])
    low, high = (values.min(), values.max()) if whole else _ends(values)
    if not whole:
        _stairs_by_split(axes, predictions, values, np.linspace(low, high, 41))
        axes.set_xlim(low, high)
    axes.set_xlabel(_label(f"reference {predictions.target}", predictions.unit, WIDTH))
    axes.set_ylabel(f"{predictions.noun}s of the split (%)")
    return figure, int(((values < low) | (values > high)).sum())


@style()
def size_figure(structures: Structures) -> Figure:
    """Histogram of the numbers of atoms, as shares of each split."""
    sizes = structures.n_atoms
    least, most = float(np.nanmin(sizes)), float(np.nanmax(sizes))
    figure, axes = _figure()
    if most - least <= 60:
        edges = np.arange(least - 0.5, most + 1.0)
    elif least > 0 and most / least > 50:
        edges = np.unique(np.round(np.geomspace(least, most + 1, 31))) - 0.5
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        edges = np.linspace(least - 0.5, most + 0.5, 41)
    _stairs_by_split(axes, structures, sizes, edges)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("atoms per structure")
    axes.set_ylabel("structures of the split (%)")
    return figure


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Ends of a histogram: all values, unless a few outliers would compress the rest."""
    low, high = float(values.min()), float(values.max())
    inner = np.quantile(values, [0.005, 0.995])
    width = float(inner[1] - inner[0])
    if width > 0:
        low, high = max(low, inner[0] - 0.5 * width), min(high, inner[1] + 0.5 * width)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _stairs_by_split(
    axes: Axes, divided: Predictions | Structures, values: np.ndarray, edges: np.ndarray
) -> None:
    """Histograms of all splits over the same bins, the training split filled."""
    for split in divided.splits:
        own = values[divided.split == split]
        axes.stairs(
            100 * np.histogram(own, edges)[0] / len(own),
            edges,
            fill=split == "train",
            color=_colour(divided.named, split),
            alpha=0.45 if split == "train" else 1.0,
            linewidth=1.3,
            label=_counted(split, len(own)),
        )
    axes.set_ylim(bottom=0)
    _legend_above(axes)


def _bars_by_split(
    axes: Axes, divided: Predictions | Structures, values: np.ndarray, distinct: np.ndarray
) -> None:
    """Bars of all splits side by side, one group per value."""
    width = 0.8 / len(divided.splits)
    for place, split in enumerate(divided.splits):
        own = values[divided.split == split]
        axes.bar(
            np.arange(len(distinct)) + (place - (len(divided.splits) - 1) / 2) * width,
            [100 * float((own == value).mean()) for value in distinct],
            width=0.92 * width,
            color=_colour(divided.named, split),
            label=_counted(split, len(own)),
        )
    _legend_above(axes)


def _counted(split: str, count: int) -> str:
    return f"{SPLIT_NAMES.get(split, split)} ({number(count)})"


def _legend_above(axes: Axes) -> None:
    """Legend above the axes: inside, it would hide what is drawn."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        ncols=3,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0.1,
    )


# --- learning curve ---------------------------------------------------------------------------


@style()
def loss_figure(course: Course, losses: Mapping[str, np.ndarray], label: str) -> Figure:
    """Losses over the course of training, logarithmic where they are positive.

    Args:
        course: the horizontal axis.
        losses: split (train, val) -> [points] losses; NaN is left out.
        label: name of the loss, with its unit.
    """
    figure, axes = _figure()
    for split, values in losses.items():
        _line(axes, course.x, values, getattr(LIGHT, split), SPLIT_NAMES[split])
    if all(np.nanmin(values) > 0 for values in losses.values()):
        _log_scale(axes, "y")
    axes.set_ylabel(_label(label, "", HEIGHT))
    _finish_course(axes, course)
    axes.legend(loc="upper right")
    return figure


@style()
def validation_figure(course: Course, errors: Mapping[str, np.ndarray], unit: str) -> Figure:
    """Validation MAE over the course of training, one line per target.

    Args:
        course: the horizontal axis.
        errors: name of the target -> [points] MAE.
        unit: of all these targets.
    """
    figure, axes = _figure()
    colours = (LIGHT.val, LIGHT.test, LIGHT.train, "#5a6fd6", "#b4478f", "#5c8a2e")
    for place, (target, values) in enumerate(errors.items()):
        _line(axes, course.x, values, colours[place % len(colours)], target)
    everything = np.concatenate([values[np.isfinite(values)] for values in errors.values()])
    if everything.min() > 0 and everything.max() / everything.min() > 5:
        _log_scale(axes, "y")
    of = f" of {next(iter(errors))}" if len(errors) == 1 else ""
    axes.set_ylabel(_label(f"validation MAE{of}", unit, HEIGHT))
    _finish_course(axes, course)
    if len(errors) > 1:
        axes.legend(loc="upper right")
    return figure


@style()
def learning_rate_figure(course: Course, rate: np.ndarray) -> Figure:
    """Learning rate over the course of training."""
    figure, axes = _figure()
    _line(axes, course.x, rate, LIGHT.ink, "learning rate")
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: brief(v)))
    _finish_course(axes, course)
    return figure


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    shown = np.isfinite(x) & np.isfinite(y)
    # A line of one point is invisible without a marker.
    marker = "o" if shown.sum() <= 12 else ""
    axes.plot(x[shown], y[shown], color=colour, label=label, marker=marker, markersize=3)


def _finish_course(axes: Axes, course: Course) -> None:
    axes.set_xlabel(course.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}".replace("-", MINUS)))
    if course.best is None:
        return
    axes.axvline(course.best, color=LIGHT.muted, linewidth=0.8, linestyle=(0, (4, 3)))
    low, high = axes.get_xlim()
    right = course.best > (low + high) / 2
    axes.annotate(
        f"best: {course.best:,.0f}",
        (course.best, 1),
        xycoords=("data", "axes fraction"),
        xytext=(2 if right else -2, 2),
        textcoords="offset points",
        ha="right" if right else "left",
        color=LIGHT.muted,
        fontsize=7.5,
    )


# --- predictions ------------------------------------------------------------------------------


@style()
def parity_figures(
    predictions: Predictions, vector_points: int = VECTOR_POINTS
) -> tuple[tuple[str, Figure, dict[str, list[str]]], ...]:
    """Predicted against reference values: one figure, or one per split if there are many points.

    Args:
        predictions: of one target.
        vector_points: max number of points drawn as SVG elements with a tip.

    Returns:
        (description, figure, tips for `inline_svg`) of each figure.
    """
    splits = predictions.splits
    if len(predictions) <= SCATTER_POINTS:
        figure, axes = _figure(SQUARE)
        tips = _scatter(axes, predictions, splits, vector_points)
        tips = tips or _outliers(axes, predictions, np.arange(len(predictions)))
        _finish_parity(axes, predictions)
        return ((_and([SPLIT_NAMES.get(s, s) for s in splits]), figure, tips),)
    found: list[tuple[str, Figure, dict[str, list[str]]]] = []
    for split in reversed(splits):
        figure, axes = _figure(SQUARE)
        _density(figure, axes, predictions, split)
        tips = _outliers(axes, predictions, np.flatnonzero(predictions.of(split)))
        _finish_parity(axes, predictions)
        found.append((SPLIT_NAMES.get(split, split), figure, tips))
    return tuple(found)


def parity_figure(
    predictions: pd.DataFrame | Sequence[pd.DataFrame],
    target: str | Sequence[str],
    unit: str | Mapping[str, str],
    output: str | Path,
    named: Sequence[str] = (),
) -> Path:
    """Write predicted against reference values as a figure file, one panel per target.

    Args:
        predictions: columns split, TARGET and TARGET_predicted; id, formula and so on may be there.
            One table for all targets, or one for each.
        target: name of the target, or names.
        unit: unit of all targets, or of each by name; empty if it has none.
        output: the file; its extension sets the format (.png, .svg or .pdf; the ending of a
            temporary file may follow).
        named: names of further test sets.

    Raises:
        AtomloomError: when a target has no finite pair of values, or the extension is any other.
    """
    output = Path(output)
    endings = [ending[1:] for ending in output.suffixes if ending[1:] in _DATES]
    if not endings:
        raise AtomloomError("a figure is written as .png, .svg or .pdf", where=output)
    kind = endings[-1]
    targets = [target] if isinstance(target, str) else list(target)
    frames = [predictions] * len(targets) if isinstance(predictions, pd.DataFrame) else predictions
    panels: list[tuple[Predictions, tuple[str, ...]]] = []
    for name, frame in zip(targets, frames, strict=True):
        own = unit if isinstance(unit, str) else unit.get(name, "")
        found = predictions_of(frame, name, own, named=named)
        if found is None or not len(found):
            raise AtomloomError(f"no finite predictions of {name!r} to draw", where=output)
        splits = found.splits
        many = len(found) > SCATTER_POINTS
        panels += [(found, (split,)) for split in splits] if many else [(found, splits)]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style():
        matplotlib.rcParams.update(_FILE_STYLE)
        figure = Figure(figsize=(4.3 * columns, 4.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (found, splits) in zip(grid, panels, strict=False):
            if len(found) > SCATTER_POINTS:
                _density(figure, axes, found, splits[0])
            else:
                _scatter(axes, found, splits)
            _finish_parity(axes, found)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        write_atomically(
            output,
            lambda path: figure.savefig(
                path, format=kind, dpi=PIXELS_PER_INCH, metadata=_DATES[kind]
            ),
        )
    return output


@style()
def error_figure(predictions: Predictions) -> tuple[Figure, float, int]:
    """Histogram of errors, as shares of each split.

    Returns:
        figure, the largest error shown (unit of the target), and the number of structures with larger
        errors, which are not shown.
    """
    errors = predictions.error
    reach = _reach(errors)
    judged_count = int(predictions.of(predictions.judged_split or "").sum())
    # About twice the square root of the number of structures; odd, so that one bin is around zero.
    bins = min(41, max(11, 2 * math.isqrt(judged_count) + 1))
    edges = np.linspace(-reach, reach, bins + 1)
    figure, axes = _figure(SQUARE)
    splits = predictions.splits
    for split in splits:
        values = errors[predictions.of(split)]
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        judged = split == predictions.judged_split
        axes.stairs(
            shares,
            edges,
            fill=judged,
            color=_colour(predictions.named, split),
            alpha=0.55 if judged else 1.0,
            linewidth=1.2,
            label=SPLIT_NAMES.get(split, split),
        )
    axes.axvline(0, color=LIGHT.muted, linewidth=0.8)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(
        _label(
            f"error of {predictions.target}, predicted {MINUS} reference", predictions.unit, WIDTH
        )
    )
    axes.set_ylabel(f"{predictions.noun}s of the split (%)")
    _legend_above(axes)
    return figure, reach, int((np.abs(errors) > reach).sum())


def _colour(named: Sequence[str], split: str) -> str:
    if split in SPLIT_NAMES:
        return getattr(LIGHT, split)
    return SET_COLOURS[named.index(split) % len(SET_COLOURS)]


def _scatter(
    axes: Axes, predictions: Predictions, splits: Sequence[str], vector_points: int = VECTOR_POINTS
) -> dict[str, list[str]]:
    few = len(predictions) <= vector_points
    tips = {}
    for order, split in enumerate(splits):
        rows = predictions.of(split)
        gid = f"points-{split if split in SPLIT_NAMES else order}"
        axes.scatter(
            predictions.reference[rows],
            predictions.predicted[rows],
            s=_SIZES.get(split, 15.0) * (1.0 if few else 0.4),
            marker=_MARKERS.get(split, "o"),
            color=_colour(predictions.named, split),
            alpha=0.55 if split == "train" else 0.8,
            linewidths=0,
            zorder=2 + order,
            rasterized=not few,
            gid=gid,
            label=_split_label(predictions, split),
        )
        if few:
            tips[gid] = [_tip(predictions, int(row)) for row in np.flatnonzero(rows)]
    # Above the axes: inside, it would hide outliers.
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handletextpad=0.2, borderpad=0.1
    )
    for handle in legend.legend_handles:
        assert isinstance(handle, PathCollection)
        handle.set_alpha(1.0)
        handle.set_rasterized(False)
        handle.set_sizes([16])
        handle.set_gid(None)
    return tips


def _outliers(axes: Axes, predictions: Predictions, rows: np.ndarray) -> dict[str, list[str]]:
    """Rings around the largest errors of some rows, and their tips."""
    largest = rows[np.argsort(-np.abs(predictions.error[rows]), kind="stable")[:OUTLIERS]]
    axes.scatter(
        predictions.reference[largest],
        predictions.predicted[largest],
        s=9.0,
        facecolors="none",
        edgecolors=LIGHT.ink,
        linewidths=0.5,
        zorder=9,
        gid="points-largest",
    )
    return {"points-largest": [_tip(predictions, int(row)) for row in largest]}


def _density(figure: Figure, axes: Axes, predictions: Predictions, split: str) -> None:
    rows = predictions.of(split)
    colour = to_rgb(_colour(predictions.named, split))
    ramp = LinearSegmentedColormap.from_list(split, [(*colour, 0.16), (*colour, 1.0)])
    low, high = _limits(predictions)
    norm = LogNorm(vmin=1)
    image = axes.hexbin(
        predictions.reference[rows],
        predictions.predicted[rows],
        gridsize=70,
        extent=(low, high, low, high),
        mincnt=1,
        cmap=ramp,
        norm=norm,
        linewidths=0,
        rasterized=True,
        zorder=2,
    )
    if norm.vmax is None or norm.vmax <= 1:
        image.set_norm(LogNorm(vmin=1, vmax=2))
    bar = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.02, aspect=28)
    bar.set_label(f"{predictions.noun}s per cell")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    axes.set_title(_split_label(predictions, split), loc="left", color=LIGHT.ink)


def _finish_parity(axes: Axes, predictions: Predictions) -> None:
    low, high = _limits(predictions)
    axes.plot([low, high], [low, high], color=LIGHT.muted, linewidth=0.8, zorder=1.5)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel(_label(f"reference {predictions.target}", predictions.unit, SQUARE))
    axes.set_ylabel(_label(f"predicted {predictions.target}", predictions.unit, SQUARE))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6))


def _limits(predictions: Predictions) -> tuple[float, float]:
    values = np.concatenate([predictions.reference, predictions.predicted])
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _reach(errors: np.ndarray) -> float:
    """Half-width of the histogram: all errors, unless a few outliers would compress the rest."""
    sizes = np.abs(errors)
    largest, most = float(sizes.max()), float(np.quantile(sizes, 0.99))
    reach = largest if largest <= 2.5 * most or most == 0 else 1.3 * most
    return reach * 1.001 or 1.0


def _split_label(predictions: Predictions, split: str) -> str:
    mae = with_unit(number(predictions.mae(split)), predictions.unit)
    return (
        f"{SPLIT_NAMES.get(split, split)} ({number(int(predictions.of(split).sum()))}), MAE {mae}"
    )


def _tip(predictions: Predictions, row: int) -> str:
    name = " ".join(filter(None, (predictions.formula[row], predictions.id[row])))
    reference, predicted = (
        number(v[row], 4) for v in (predictions.reference, predictions.predicted)
    )
    return f"{name}: {with_unit(predicted, predictions.unit)}, reference {reference}"


# --- errors against what may cause them -------------------------------------------------------


@style()
def trend_figure(
    values: np.ndarray,
    errors: np.ndarray,
    bins: Sequence[Bin],
    label: str,
    predictions: Predictions,
    names: Sequence[str],
) -> tuple[Figure, dict[str, list[str]]]:
    """Absolute errors against a property of structures, and their mean in bins with its standard error.

    Args:
        values: [P] of the structures that are drawn as points.
        errors: [P] their absolute errors.
        bins: of all structures.
        label: name of the property.
        predictions: of the target.
        names: [P] tip of each point.

    Returns:
        figure, tips for `inline_svg`.
    """
    figure, axes = _figure()
    split = predictions.judged_split or "test"
    colour = _colour(predictions.named, split)
    positive = errors[errors > 0]
    logarithmic = len(positive) > 0 and errors.max() > 10 * np.median(positive)
    floor = float(np.quantile(positive, 0.02)) if logarithmic else 0.0
    axes.scatter(
        values,
        np.maximum(errors, floor),
        s=12.0,
        color=colour,
        alpha=0.45,
        linewidths=0,
        gid="points-trend",
    )
    axes.errorbar(
        [one.middle for one in bins],
        [max(one.mae, floor) for one in bins],
        yerr=[one.uncertainty or 0.0 for one in bins],
        color=LIGHT.ink,
        linewidth=1.2,
        marker="s",
        markersize=3.5,
        capsize=2.0,
        label="mean of a bin, standard error",
    )
    if logarithmic:
        _log_scale(axes, "y")
        axes.set_ylim(bottom=0.8 * floor)
    else:
        axes.set_ylim(bottom=0)
    if np.array_equal(values, np.round(values)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(_label(label, "", WIDTH))
    axes.set_ylabel(_label("absolute error", predictions.unit, HEIGHT))
    _legend_above(axes)
    return figure, {"points-trend": list(names)}


@style()
def quantile_figure(bins: Sequence[Bin], predictions: Predictions) -> Figure:
    """MAE by quantile of the label, with its standard error; the ends of each bin are written below."""
    figure, axes = _figure()
    split = predictions.judged_split or "test"
    places = np.arange(len(bins))
    axes.bar(
        places,
        [one.mae for one in bins],
        yerr=[one.uncertainty or 0.0 for one in bins],
        width=0.9,
        color=_colour(predictions.named, split),
        alpha=0.75,
        error_kw={"ecolor": LIGHT.ink, "elinewidth": 1.0, "capsize": 2.0},
    )
    mae = predictions.mae(split) or 0.0
    axes.axhline(mae, color=LIGHT.muted, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.annotate(
        "MAE of all",
        (1, mae),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        color=LIGHT.muted,
        fontsize=7.0,
        bbox={"facecolor": LIGHT.card, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
    )
    ends = [bins[0].low, *(one.high for one in bins)]
    axes.set_xticks(np.arange(len(ends)) - 0.5, numbers_apart(ends), rotation=35, fontsize=6.5)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_label(f"reference {predictions.target}", predictions.unit, WIDTH))
    axes.set_ylabel(_label("MAE", predictions.unit, HEIGHT))
    return figure


@style()
def reliability_figure(points: Sequence[tuple[float, float, int]]) -> Figure:
    """Accuracy against confidence: points (mean confidence, accuracy, structures) with standard errors."""
    figure, axes = _figure(SQUARE)
    confidence, accuracy, count = (
        np.array(values, dtype=float) for values in zip(*points, strict=True)
    )
    axes.plot([0, 1], [0, 1], color=LIGHT.muted, linewidth=0.8)
    axes.errorbar(
        confidence,
        accuracy,
        yerr=np.sqrt(accuracy * (1 - accuracy) / count),
        color=LIGHT.test,
        marker="o",
        markersize=4,
        capsize=2.0,
    )
    low = min(0.5, float(confidence.min()))
    axes.set_xlim(low - 0.02, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence: probability of the predicted class")
    axes.set_ylabel("accuracy: share of right predictions")
    return figure


# --- timing and graphs ------------------------------------------------------------------------


@style()
def stage_figure(timings: Sequence[StageTiming]) -> Figure:
    """Seconds of all jobs by stage, in the order of the pipeline from top to bottom."""
    figure, axes = _figure(max(1.3, 0.65 + 0.3 * len(timings)))
    unit, scale = _time_unit(max(t.seconds for t in timings))
    places = np.arange(len(timings))[::-1]
    values = np.array([t.seconds / scale for t in timings])
    axes.barh(places, values, height=0.62, color=LIGHT.test)
    for place, value, timing in zip(places, values, timings, strict=True):
        axes.annotate(
            f"{duration(timing.seconds)}, {plural(timing.jobs, 'job')}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=LIGHT.muted,
        )
    axes.set_yticks(places, [t.stage for t in timings])
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT.ink)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(values.max() * 1.42, 1e-9))
    axes.set_xlabel(f"time of all jobs ({unit})")
    axes.set_ylabel("stage")
    return figure


def longest_shown(seconds: np.ndarray) -> float:
    """Upper end of the shown times of epochs [points]: one that took many times as long as the others,
    such as the first with compilation, would flatten them all."""
    usual = 1.2 * float(np.percentile(seconds, 95))
    longest = float(seconds.max())
    return usual if longest > 3.0 * usual > 0.0 else longest


@style()
def epoch_time_figure(course: Course, parts: Mapping[str, np.ndarray]) -> Figure:
    """Time per epoch: stacked seconds of each part over the course.

    Args:
        course: the horizontal axis.
        parts: data, forward, backward, optimizer -> [points] seconds.
    """
    figure, axes = _figure()
    stacked = [np.nan_to_num(values) for values in parts.values()]
    shown = longest_shown(np.sum(stacked, axis=0))
    unit, scale = _time_unit(shown)
    axes.stackplot(
        course.x,
        *[values / scale for values in stacked],
        labels=list(parts),
        colors=[_PARTS[part] for part in parts],
        linewidth=0,
        step="mid",
    )
    axes.set_ylabel(f"time per epoch ({unit})")
    axes.set_xlim(course.x.min() - 0.5, course.x.max() + 0.5)
    axes.set_ylim(bottom=0, top=max(shown / scale, 1e-9) * 1.18)
    _finish_course(axes, Course(course.x, course.x_label, None))
    axes.legend(loc="upper right", ncols=4, handlelength=1, columnspacing=1.2)
    return figure


@style()
def neighbor_figure(statistics: GraphStatistics) -> Figure:
    """Histogram of the numbers of neighbours of atoms."""
    figure, axes = _figure(HEIGHT * 0.8)
    neighbors = np.array([pair[0] for pair in statistics.neighbors])
    counts = np.array([pair[1] for pair in statistics.neighbors])
    axes.bar(neighbors, 100 * counts / counts.sum(), width=0.9, color=LIGHT.test)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("neighbours per atom")
    axes.set_ylabel("atoms (%)")
    return figure


# --- shared -----------------------------------------------------------------------------------


def _figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _log_scale(axes: Axes, which: str) -> None:
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_data_interval()
    close = high / low < 30
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if close else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_power))


def _power(value: float, _: object = None) -> str:
    exponent = math.log10(value) if value > 0 else 0.5
    if -4 <= exponent <= 4:
        return fixed(value, max(0, -math.floor(exponent + 1e-9)))
    whole = round(exponent)
    return ten_to(whole) if abs(exponent - whole) < 1e-9 else number(value, 1)


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 1:
        return "ms", 1e-3
    if seconds < 300:
        return "s", 1.0
    return ("min", 60.0) if seconds < 3 * 3600 else ("h", 3600.0)


def _label(text: str, unit: str, inches: float) -> str:
    """Axis label that fits: if needed, its unit goes to a second line and its middle is left out."""
    most = int(inches * LETTERS_AN_INCH)
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"
    if not unit:
        return text
    return f"{text}{' ' if len(text) + len(unit) + 3 <= most else chr(10)}({unit})"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
