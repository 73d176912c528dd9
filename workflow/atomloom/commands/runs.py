"""Command `atomloom runs`: a table of all runs under a results folder, for people, as CSV or as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from atomloom.config import Config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.run_table import RunTable, flat_row, no_column, table_of, text_lines
from atomloom.pipeline.runs import RunRecord, all_runs, runs_of

REASONS = 5
"""Max number of runs of a data set whose failure is told below the table."""


@dataclass(frozen=True)
class Listing:
    """Request for a table of runs."""

    results: Path
    """Results folder of a project, or of one data set."""
    config: Config | None = None
    """Only runs of this config's data set, in its own results folder; its run is marked."""
    sort: str = "val"
    reverse: bool = False


def listed(request: Listing) -> list[RunTable]:
    """Tables of the runs, one per data set.

    Raises:
        AtomloomError: when there is no such folder, or no table has the column to sort by.
    """
    if request.config is None:
        runs = all_runs(request.results)
    else:
        folder = Layout(request.config).results
        runs = runs_of(folder) if folder.is_dir() else []
    groups = [list(group) for _, group in groupby(runs, key=lambda run: run.folder.parent)]
    tables: list[RunTable] = []
    unknown = 0
    for group in groups:
        try:
            tables.append(table_of(group, request.sort, request.reverse))
        except AtomloomError:  # another data set may have the column
            unknown += 1
            tables.append(table_of(group))
    if unknown and unknown == len(tables):
        raise no_column(request.sort, tables)
    return tables


def present_run(config: Config | None) -> str:
    """Key of the run that a config describes; empty where there is no plan."""
    if config is None:
        return ""
    layout = Layout(config)
    try:
        return RunPaths(layout, Plan.read(layout.plan_folder / "plan.json")).run_key
    except AtomloomError:
        return ""


def as_text(request: Listing, width: int | None) -> Iterator[str]:
    """Lines of the tables, for a terminal of this width."""
    tables, present = listed(request), present_run(request.config)
    if not tables:
        where = request.results if request.config is None else Layout(request.config).results
        yield f"no runs in {where} yet"
    for place, table in enumerate(tables):
        if place:
            yield ""
        if len(tables) > 1 or request.config is None:
            yield _title(table)
        yield from text_lines(table, width, present)
        yield from _reasons(table)


def _title(table: RunTable) -> str:
    """Line above a table."""
    count = len(table.runs)
    targets = list(dict.fromkeys(target for target, _ in table.main_errors))
    classes = [target for target in targets if table.of_classes(target)]
    numbers = [
        f"{target} {table.unit(target)}".rstrip() for target in targets if target not in classes
    ]
    shown = f"; mean absolute errors of {', '.join(numbers)}" if numbers else ""
    shown += f"; accuracies of {', '.join(classes)}" if classes else ""
    return f"{table.runs[0].dataset}: {count:,} run{'s' * (count != 1)}{shown}"


def _reasons(table: RunTable) -> Iterator[str]:
    """Lines on the runs that failed or are damaged."""
    told = [
        (name, run)
        for name, run in zip(table.names, table.runs, strict=True)
        if run.reason and run.state in ("failed", "damaged")
    ]
    for name, run in told[:REASONS]:
        yield f"{name} {'is damaged' if run.state == 'damaged' else 'failed'}: {run.reason}"
    if len(told) > REASONS:
        yield f"and {len(told) - REASONS:,} more (--json tells why)"


def as_csv(request: Listing) -> str:
    """The tables as one CSV; a column per config field in which runs differ."""
    rows = [row for table in listed(request) for row in _rows(table)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(table: RunTable) -> Iterator[dict[str, Any]]:
    for place in range(len(table.runs)):
        differing = {name: values[place] for name, values in table.differing.items()}
        texts = {
            name: json.dumps(value) if isinstance(value, (list, dict)) else value
            for name, value in differing.items()
        }
        yield {**flat_row(table, place), **texts}


def as_json(request: Listing) -> str:
    """The tables as one JSON list, an object per run."""
    found = [
        _content(table, place, run)
        for table in listed(request)
        for place, run in enumerate(table.runs)
    ]
    return json.dumps(found, indent=1, ensure_ascii=False)


def _content(table: RunTable, place: int, run: RunRecord) -> dict[str, Any]:
    row = flat_row(table, place)
    scores = {
        f"{split}_{figure}_{target}"
        for target, split in table.errors
        for figure in ("mae", "accuracy")
    }
    return {
        **{name: value for name, value in row.items() if name not in scores},
        "errors": {target: dict(splits) for target, splits in run.errors.items()},
        **(
            {"accuracies": {target: dict(splits) for target, splits in run.accuracies.items()}}
            if run.accuracies
            else {}
        ),
        "units": dict(run.units),
        "keys": dict(run.keys),
        "differing": {name: values[place] for name, values in table.differing.items()},
    }


def shown(lines: Sequence[str], encoding: str) -> str:
    """Lines as text that an output of this encoding can hold."""
    return "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
