"""The page and the figures of a sweep.

Knows its table and its curves, nothing of how trials were chosen or run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from atomloom.reports import figures
from atomloom.reports.calibration import (
    calibration_caption,
    calibration_figure,
    calibration_of,
)
from atomloom.reports.formats import NONE, number, plural, unit_name
from atomloom.reports.page import Drawing, drawing, environment
from atomloom.store.files import write_atomically

OWN = ("trial", "status", "value", "std", "runs", "epochs", "best_epoch", "run", "reason", "refit")
"""Columns of the table that are not swept keys."""
SHOWN = 200
"""Rows of the table in the page; all are in the file."""


@dataclass(frozen=True)
class RefitRow:
    """One run of the refit of the best trial."""

    run: str
    """Run key."""
    values: str
    """Its seed or fold, in words; empty if it has none of its own."""
    epochs: int
    """Epochs trained."""
    best_epochs: Sequence[int]
    """Best epochs of the trial's runs."""
    errors: Sequence[str]
    """Errors on the test set, in words; none where there is no test set."""
    reason: str
    """Reason of a failure."""


@dataclass(frozen=True)
class SweepPage:
    """Content of the page."""

    title: str
    metric: str
    table: pd.DataFrame
    """One row per trial, with the columns of `OWN` and one per swept key."""
    curves: Mapping[int, Sequence[float | None]]
    """Trial -> validation figure by epoch."""
    importance: Mapping[str, float]
    best: int | None
    """The best trial."""
    full_epochs: int
    """Epochs of all trials trained to the end."""
    facts: Sequence[tuple[str, str]]
    refit: Sequence[RefitRow] = ()
    committee: pd.DataFrame | None = None
    """Predictions of the committee with their deviations; None without one."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Units by target."""
    first_rung: int = 0
    """Epochs that all trials were trained for, of a halved sweep."""


def write_sweep_page(page: SweepPage, folder: Path) -> None:
    """Write `sweep.html`, and each figure as PNG and SVG, into a folder."""
    drawn: list[tuple[str, Figure, str]] = []
    ranked = page.table[page.table["value"].notna()].sort_values(["value", "trial"], kind="stable")
    if len(ranked):
        keys = [n for n in page.table.columns if n not in OWN and ranked[n].notna().any()]
        drawn.append(
            (
                "learning-curves",
                curves_figure(page),
                "Validation of each trial by epoch; the best trial in colour. Trials that were stopped "
                "end early.",
            )
        )
        if keys:
            drawn.append(
                (
                    "parallel-coordinates",
                    parallel_figure(ranked, keys, page.metric),
                    f"One line per trial through its values to its {page.metric}; the better, the "
                    "darker, the best trial in colour.",
                )
            )
    if page.importance:
        drawn.append(
            (
                "importance",
                importance_figure(page.importance),
                f"Share of each key in the variance of {page.metric}"
                + (f" after {plural(page.first_rung, 'epoch')}" if page.first_rung else "")
                + " (fANOVA).",
            )
        )
    if page.committee is not None:
        drawn += _calibrations(page.committee, page.units)
    for name, figure, _ in drawn:
        for ending in ("png", "svg"):
            _save(figure, folder / f"{name}.{ending}")
    text = _page(page, ranked, [drawing(figure, name, text) for name, figure, text in drawn])
    write_atomically(folder / "sweep.html", lambda path: path.write_text(text, encoding="utf-8"))


def _calibrations(
    committee: pd.DataFrame, units: Mapping[str, str]
) -> list[tuple[str, Figure, str]]:
    """Name, figure and caption of the calibration of each target that has one."""
    found: list[tuple[str, Figure, str]] = []
    for target, unit in units.items():
        if f"{target}_std" not in committee or not (known := calibration_of(committee, target)):
            continue
        unit = unit_name(unit)
        name = "calibration" if len(units) == 1 else f"calibration-{len(found)}"
        found.append((name, calibration_figure(known, unit), calibration_caption(known, unit)))
    return found


def _save(figure: Figure, path: Path) -> None:
    def save(temporary: Path) -> None:
        with figures.style():
            matplotlib.rcParams.update(figures._FILE_STYLE)
            matplotlib.rcParams["svg.hashsalt"] = path.stem
            figure.savefig(
                temporary,
                format=path.suffix[1:],
                dpi=figures.PIXELS_PER_INCH,
                metadata=figures._DATES[path.suffix[1:]],
            )

    write_atomically(path, save)


def curves_figure(page: SweepPage) -> Figure:
    """Validation by epoch, one line per trial."""
    with figures.style():
        figure, axes = figures._figure()
        for trial, curve in sorted(page.curves.items(), key=lambda item: item[0] == page.best):
            y = np.array([np.nan if value is None else value for value in curve], dtype=float)
            if not np.isfinite(y).any():
                continue
            best = trial == page.best
            axes.plot(
                np.arange(1, len(y) + 1),
                y,
                color=figures.LIGHT.test if best else figures.LIGHT.muted,
                linewidth=1.8 if best else 0.8,
                alpha=1.0 if best else 0.55,
                marker="o" if len(y) == 1 else None,
                markersize=2.5,
                zorder=3 if best else 2,
            )
        known = [v for curve in page.curves.values() for v in curve if v is not None]
        if known and min(known) > 0 and max(known) / min(known) > 20:
            figures._log_scale(axes, "y")
        axes.set_xlabel("epoch")
        axes.set_ylabel("val_loss" if page.metric == "error" else page.metric)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    return figure


def parallel_figure(ranked: pd.DataFrame, keys: Sequence[str], metric: str) -> Figure:
    """Parallel coordinates: an axis per swept key, and one for the value."""
    columns = [*keys, "value"]
    scaled, ends = [], []
    for name in columns:
        place, low, high = _placed(ranked[name])
        scaled.append(place)
        ends.append((low, high))
    lines = np.stack(scaled, axis=1)
    with figures.style():
        figure, axes = figures._figure()
        count = len(ranked)
        for row in reversed(range(count)):
            best = row == 0
            axes.plot(
                np.arange(len(columns)),
                lines[row],
                color=figures.LIGHT.test if best else figures.LIGHT.muted,
                alpha=1.0 if best else 0.85 - 0.5 * row / max(1, count - 1),
                linewidth=1.8 if best else 0.9,
                zorder=3 if best else 2,
            )
        for x, (low, high) in enumerate(ends):
            axes.axvline(x, color=figures.LIGHT.line, linewidth=0.8, zorder=1)
            axes.text(x, 1.04, high, ha="center", va="bottom", fontsize=6.5)
            axes.text(x, -0.04, low, ha="center", va="top", fontsize=6.5)
        names = [name.partition(".")[2] or name for name in keys]
        axes.set_xticks(
            range(len(columns)),
            [*names, metric],
            rotation=20 if len(columns) > 3 else 0,
            fontsize=7,
        )
        axes.tick_params(axis="x", pad=14, length=0)
        axes.set_yticks([])
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(-0.12, 1.12)
    return figure


def _placed(values: pd.Series) -> tuple[np.ndarray, str, str]:
    """Values between 0 and 1, by rank of decades where they span many, and the names of both ends."""
    if not pd.api.types.is_numeric_dtype(values):
        kinds = sorted({str(value) for value in values})
        places = np.array([kinds.index(str(value)) for value in values], dtype=float)
        return places / max(1, len(kinds) - 1), kinds[0], kinds[-1]
    numbers = values.to_numpy(float)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    ends = number(low), number(high)
    if low > 0 and high / low > 20:
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    return (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5), *ends


def importance_figure(importance: Mapping[str, float]) -> Figure:
    """A bar per swept key."""
    names = list(importance)[::-1]
    with figures.style():
        figure, axes = figures._figure(0.9 + 0.28 * len(names))
        axes.barh(
            range(len(names)), [importance[n] for n in names], color=figures.LIGHT.test, height=0.6
        )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the variance")
        axes.grid(False, axis="y")
    return figure


def _page(page: SweepPage, ranked: pd.DataFrame, drawings: Sequence[Drawing]) -> str:
    others = page.table[page.table["value"].isna()]
    ordered = pd.concat([ranked, others])
    keys = [name for name in page.table.columns if name not in OWN]
    trained = int(page.table["epochs"].sum())
    statuses = page.table["status"].value_counts()
    counted = [
        f"{int(statuses[name])} {name}"
        for name in ("finished", "stopped", "failed")
        if name in statuses
    ]
    share = (
        f", {trained / page.full_epochs:.0%} of training all to the end" if page.full_epochs else ""
    )
    summary = (
        f"{plural(len(page.table), 'trial')} ({', '.join(counted)}), "
        f"{plural(trained, 'epoch')} in all{share}."
    )
    return (
        environment()
        .get_template("sweep.html.j2")
        .render(
            title=page.title,
            summary=summary,
            metric=page.metric,
            best=page.best,
            keys=keys,
            rows=[_row(row, keys) for row in ordered.head(SHOWN).to_dict("records")],
            left_out=max(0, len(ordered) - SHOWN),
            drawings=drawings,
            facts=page.facts,
            refit=page.refit,
        )
    )


def _row(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    def shown(value: Any) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return NONE
        return value if isinstance(value, str) else number(value, 4)

    return {
        **{name: row[name] for name in ("trial", "status", "epochs", "reason")},
        "value": shown(row["value"]),
        "std": shown(row["std"]),
        "runs": row["run"].split(",") if row["run"] else [],
        "point": [shown(row[key]) for key in keys],
    }
