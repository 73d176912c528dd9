"""Tables of the runs of a data set: one row per run, a column for each thing in which they differ.

The command `atomloom runs` prints it, and the report of a run holds it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.pipeline.progress import in_words
from atomloom.pipeline.runs import RunRecord, differences

MAIN_TARGETS = 2
"""Max number of targets whose errors are shown; exports have those of all."""
MAIN_FIELDS = 4
"""Number of config fields that a narrow terminal shows rather than times."""
LONGEST = 28
"""Max characters of a value of the config in a table."""
ABSENT = "-"


@dataclass(frozen=True, eq=False)
class RunTable:
    """Runs of one data set, in order, and what there is to say of them."""

    runs: tuple[RunRecord, ...]
    differing: dict[str, tuple[Any, ...]]
    """Config field in which runs differ -> its value in each of them."""
    errors: tuple[tuple[str, str], ...]
    """Target and split of each known error, targets in the order of the config, validation first."""

    @cached_property
    def names(self) -> list[str]:
        """Short name of each run; the key where two runs have one name."""
        count = Counter(run.name for run in self.runs)
        return [run.name if count[run.name] == 1 else run.key for run in self.runs]

    @property
    def fields(self) -> list[str]:
        """Shortest unmistakable name of each differing field, such as `learning_rate`."""
        return [_shortest(name, [*self.differing]) for name in self.differing]

    @property
    def main_errors(self) -> tuple[tuple[str, str], ...]:
        """Target and split of the errors of the first targets."""
        targets = list(dict.fromkeys(target for target, _ in self.errors))[:MAIN_TARGETS]
        return tuple(pair for pair in self.errors if pair[0] in targets)

    def of_classes(self, target: str) -> bool:
        """Whether a target is of classes, which have accuracies."""
        return any(target in run.accuracies for run in self.runs)

    def score(self, run: RunRecord, target: str, split: str) -> float | None:
        """Score of a run: accuracy for classes, whose errors are those of probabilities; else the error."""
        scores = run.accuracies if self.of_classes(target) else run.errors
        return scores.get(target, {}).get(split)

    def unit(self, target: str) -> str:
        """Unit of a target, as far as a run knows it."""
        return next((run.units[target] for run in self.runs if run.units.get(target)), "")


def table_of(runs: Sequence[RunRecord], sort: str = "val", reverse: bool = False) -> RunTable:
    """Make a table of the runs of one data set.

    Args:
        runs: of one data set, in any order.
        sort: what to sort by: a column of `flat_row`, a config field, or `val` or `test` for the score of
            the first target, the best first. Runs without a value come last.
        reverse: whether the greatest comes first.

    Raises:
        AtomloomError: when there is no such column.
    """
    table = RunTable(tuple(runs), _tuples(differences(runs)), _errors_of(runs))
    values = _sorted_by(table, sort)
    known = [place for place, value in enumerate(values) if value is not None]
    known.sort(key=lambda place: runs[place].key)
    known.sort(key=lambda place: _ordered(values[place]), reverse=reverse)
    rest = [place for place, value in enumerate(values) if value is None]
    rest.sort(key=lambda place: (runs[place].state == "planned", runs[place].key))
    order = known + rest
    differing = {
        name: tuple(column[place] for place in order) for name, column in table.differing.items()
    }
    return RunTable(tuple(runs[place] for place in order), differing, table.errors)


def _tuples(columns: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in columns.items()}


def _errors_of(runs: Sequence[RunRecord]) -> tuple[tuple[str, str], ...]:
    """Targets in the order in which most runs have them, each with its splits but the training set."""
    targets = dict.fromkeys(name for run in runs for name in (*run.units, *run.errors))
    splits = dict.fromkeys(
        ["val", "test", *(split for run in runs for one in run.errors.values() for split in one)]
    )
    return tuple(
        (target, split)
        for target in targets
        for split in splits
        if split != "train" and any(split in run.errors.get(target, ()) for run in runs)
    )


def _sorted_by(table: RunTable, sort: str) -> list[Any]:
    """Value of each run to sort by."""
    if sort in ("val", "test"):
        target = next((target for target, split in table.errors if split == sort), "")
        scores = [table.score(run, target, sort) for run in table.runs]
        if table.of_classes(target):
            return [None if score is None else -score for score in scores]
        return scores
    sort = "seconds" if sort == "time" else sort
    rows = [flat_row(table, place) for place in range(len(table.runs))]
    named = dict(zip(table.fields, table.differing, strict=True))
    if rows and sort in rows[0]:
        return [row[sort] for row in rows]
    if sort in table.differing or sort in named:
        return list(table.differing[named.get(sort, sort)])
    raise no_column(sort, [table])


def no_column(sort: str, tables: Sequence[RunTable]) -> AtomloomError:
    """Error that names the columns of some tables, of which none is the one to sort by."""
    columns = ["val", "test", "time"]
    for table in tables:
        columns += [*(flat_row(table, 0) if table.runs else []), *table.fields]
    return AtomloomError(
        f"the table has no column `{sort}`",
        where="--sort",
        todo=f"choose from {', '.join(dict.fromkeys(columns))}",
    )


def _ordered(value: Any) -> tuple[int, Any]:
    """Sort key of numbers, then texts, then everything else by its text."""
    if isinstance(value, (int, float)):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, str(value))


def flat_row(table: RunTable, place: int) -> dict[str, Any]:
    """One run as a flat row of numbers and texts, for a CSV."""
    run = table.runs[place]
    return {
        "dataset": run.dataset,
        "name": table.names[place],
        "key": run.key,
        "state": run.state,
        "epoch": run.epoch,
        "epochs": run.epochs,
        "best_epoch": run.best_epoch,
        **{
            f"{split}_mae_{target}": run.errors.get(target, {}).get(split)
            for target, split in table.errors
        },
        **{
            f"{split}_accuracy_{target}": run.accuracies.get(target, {}).get(split)
            for target, split in table.errors
            if table.of_classes(target)
        },
        "seconds": run.seconds,
        "when": run.when or None,
        "reason": run.reason or None,
        "folder": str(run.folder),
    }


# --- as text ---


@dataclass(frozen=True, eq=False)
class Column:
    """Column of a table of text."""

    head: str
    cells: tuple[str, ...]
    right: bool = False
    """Whether it is aligned to the right, as numbers are."""
    spare: int = 0
    """Rank among those left out where the width is too small: the greatest goes first, 0 never."""

    @cached_property
    def width(self) -> int:
        """Columns of the terminal that it takes."""
        return max(map(shown_width, (self.head, *self.cells)))


def text_lines(table: RunTable, width: int | None = None, present: str = "") -> list[str]:
    """Lines of a table for a terminal.

    Args:
        table: the runs.
        width: of the terminal; None: as wide as it gets.
        present: key of a run to mark.
    """
    columns, dropped = _columns(table, present), []
    while width is not None and _width_of(columns) > width and max(c.spare for c in columns):
        least = max(columns, key=lambda column: column.spare)
        columns.remove(least)
        dropped.append(least.head)
    rows = zip(*(_aligned(column) for column in columns), strict=True)
    lines = [_fitting("  ".join(row).rstrip(), width) for row in rows]
    if dropped:
        left_out = ", ".join(reversed(dropped))
        lines.append(f"left out for lack of width: {left_out}")
    return lines


def _columns(table: RunTable, present: str) -> list[Column]:
    runs = table.runs
    marks = ["> " if run.key == present else "  " for run in runs] if present else [""] * len(runs)
    names = tuple(mark + name for mark, name in zip(marks, table.names, strict=True))
    columns = [Column("run", names), Column("state", tuple(run.progress for run in runs))]
    several = len({target for target, _ in table.main_errors}) > 1
    for place, (target, split) in enumerate(table.main_errors):
        cells = tuple(_error(table.score(run, target, split)) for run in runs)
        head = f"{split} {target}" if several else split
        columns.append(Column(head, cells, right=True, spare=2 if place else 1))
    for place, (name, values) in enumerate(
        zip(table.fields, table.differing.values(), strict=True)
    ):
        spare = (10 if place < MAIN_FIELDS else 30) + place
        columns.append(Column(name, tuple(map(value_text, values)), spare=spare))
    times = tuple(ABSENT if run.seconds is None else in_words(run.seconds) for run in runs)
    columns.append(Column("time", times, right=True, spare=28))
    return [*columns, Column("when (UTC)", tuple(_minute(run.when) for run in runs), spare=29)]


def _width_of(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + 2 * (len(columns) - 1)


def _aligned(column: Column) -> list[str]:
    pad = [" " * (column.width - shown_width(text)) for text in (column.head, *column.cells)]
    texts = zip(pad, (column.head, *column.cells), strict=True)
    return [space + text if column.right else text + space for space, text in texts]


def _fitting(line: str, width: int | None) -> str:
    """Line cut to a width."""
    if width is None or shown_width(line) <= width:
        return line
    while line and shown_width(line) > width - 1:
        line = line[:-1]
    return f"{line}~"


def shown_width(text: str) -> int:
    """Columns of a terminal that a text takes: wide characters take two, accents none."""
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _error(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def _minute(when: str) -> str:
    """ISO time to the minute."""
    return when[:16].replace("T", " ") or ABSENT


def value_text(value: Any) -> str:
    """Value of a config field as a short text."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        text = ", ".join(map(value_text, value)) or "none"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name}: {value_text(item)}" for name, item in value.items()) or "none"
    else:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _shortest(name: str, others: Sequence[str]) -> str:
    """Shortest end of a dotted name that no other has; `model` for the name of the model."""
    parts = name.removesuffix(".name").split(".")
    others = [other.removesuffix(".name") for other in others]
    for start in range(len(parts) - 1, -1, -1):
        end = ".".join(parts[start:])
        if sum(other == end or other.endswith(f".{end}") for other in others) == 1:
            return end
    return name
