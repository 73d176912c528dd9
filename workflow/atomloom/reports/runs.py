"""Table of the other runs of a data set, in the report of one of them.

It shows the runs that are there when the page is written: a later run makes no page of another one stale. So the
page says so, and how it is written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atomloom.pipeline.paths import own_report
from atomloom.pipeline.run_table import table_of, value_text
from atomloom.pipeline.runs import RunRecord, read_run, run_folders
from atomloom.reports.formats import moment
from atomloom.reports.page import link

SHOWN = 30
"""Max number of runs in the table: the best ones, and the present one."""
FIELDS = 8
"""Max number of columns for fields of the config."""


@dataclass(frozen=True)
class RunRow:
    """One run in the table."""

    name: str
    key: str
    link: str
    """Address of its own report; empty where there is none, and for the present run."""
    present: bool
    state: str
    reason: str
    errors: tuple[float | None, ...]
    """Errors; accuracies of targets that are classes."""
    values: tuple[str, ...]
    """Values of the fields in which runs differ."""
    seconds: float | None
    when: str


@dataclass(frozen=True)
class RunsPart:
    """Content of the table."""

    fields: tuple[str, ...]
    """Names of the fields in which runs differ."""
    errors: tuple[tuple[str, str, str], ...]
    """Target, split and unit of each column of errors."""
    classes: tuple[str, ...]
    """Targets that are classes, whose columns are accuracies."""
    rows: tuple[RunRow, ...]
    count: int
    """Number of runs that there are."""
    more_fields: int
    """Number of further fields in which they differ."""


def runs_part(dataset: Path, present: str, folder: Path) -> RunsPart:
    """Collect the runs of a data set, with links relative to `folder`.

    Args:
        dataset: folder of the data set's results.
        present: key of the run that the page is about.
        folder: where the page is.
    """
    found = [_finished_state(read_run(path)) for path in run_folders(dataset)]
    table = table_of(found)
    chosen = _chosen(table.runs, present)
    columns = list(table.differing.values())[:FIELDS]
    names = table.names
    pairs = table.main_errors
    rows = [
        RunRow(
            name=names[place],
            key=run.key,
            link=_link(dataset, run, present, folder),
            present=run.key == present,
            state=run.progress,
            reason=run.reason,
            errors=tuple(table.score(run, target, split) for target, split in pairs),
            values=tuple(value_text(values[place]) for values in columns),
            seconds=run.seconds,
            when=moment(run.when).removesuffix(" UTC"),
        )
        for place, run in enumerate(table.runs)
        if run.key in chosen
    ]
    return RunsPart(
        fields=tuple(table.fields[:FIELDS]),
        errors=tuple((target, split, table.unit(target)) for target, split in pairs),
        classes=tuple({target: None for target, _ in pairs if table.of_classes(target)}),
        rows=tuple(rows),
        count=len(found),
        more_fields=max(0, len(table.fields) - FIELDS),
    )


def _finished_state(run: RunRecord) -> RunRecord:
    """The run as a page can tell it, which is read later: one in training may have been stopped by then."""
    return replace(run, state="unfinished") if run.state in ("training", "stopped") else run


def _chosen(runs: Sequence[RunRecord], present: str) -> set[str]:
    best = [run.key for run in runs][:SHOWN]
    return {*best, present}


def _link(dataset: Path, run: RunRecord, present: str, folder: Path) -> str:
    page = own_report(dataset, run.key)
    return link(page, folder) if run.key != present and page.is_file() else ""
