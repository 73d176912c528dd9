"""`atomloom diff`: two runs, and what differs in config, data, code, environment and results.

Results are compared number by number, weights tensor by tensor; by digest where a card has one, after the files have
been checked against it. `atomloom reproduce` uses the same comparison to say how close a run came to its repetition.

Differences of weights are relative to the largest weight of a tensor, those of errors and predictions to
the larger of two numbers, or the largest of a column.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from atomloom.errors import AtomloomError, again
from atomloom.inference.model_file import weights_digest
from atomloom.pipeline.evidence import Evidence
from atomloom.pipeline.run_card import HISTORY
from atomloom.pipeline.runs import changes_nothing, default_of
from atomloom.reports.formats import number, plural
from atomloom.store.files import file_digest
from atomloom.store.keys import canonical, flat
from atomloom.store.parquet import read_table

MODEL = "model.safetensors"
SHOWN = 5
"""Number of tensors and of errors that are listed, those that differ most first."""
TOLD = 24
"""Characters of a digest or another long value that are shown."""
NOTHING = "-"
TABLE = "predictions.parquet"
PLACES = ("id", "atom", "component")
"""Columns that say of which structure, atom and component a row of a table is."""
TIMES = ("seconds", "started", "finished")
"""Entries of a card that differ between any two runs."""


@dataclass(frozen=True)
class Change:
    """Value that differs between two runs."""

    name: str
    one: Any
    """Value of the first; None where it has none."""
    other: Any
    note: str = ""


@dataclass(frozen=True)
class Agreement:
    """Comparison of results of one kind."""

    kind: str
    """`weights`, `errors` or `predictions`."""
    count: int
    """Number of tensors, numbers or columns compared; 0 if only digests could be."""
    worst: float | None
    """Max relative difference: 0 if equal to the bit, infinite if not comparable; None if not known."""
    changes: tuple[Change, ...] = ()
    """Items that differ, worst first."""
    note: str = ""

    @property
    def equal(self) -> bool:
        """Whether they are equal to the bit."""
        return self.worst == 0.0

    def to_dict(self) -> dict[str, Any]:
        """Content as JSON values; a difference that cannot be told is null."""
        told = self.worst is not None and math.isfinite(self.worst)
        return {
            "equal": self.equal,
            "compared": self.count,
            "max_difference": self.worst if told else None,
            "where": {change.name: [change.one, change.other] for change in self.changes[:SHOWN]},
            "note": self.note,
        }

    @property
    def text(self) -> str:
        """Line for people."""
        many = {"weights": "tensor", "errors": "number", "predictions": "column"}[self.kind]
        of = f" ({plural(self.count, many)})" if self.count else ""
        if self.equal:
            return f"{self.kind}: equal to the bit{of}{f' ({self.note})' if self.note else ''}"
        if self.worst is None:
            return f"{self.kind}: differ, how far is not known: {self.note}"
        if math.isinf(self.worst):
            return f"{self.kind}: cannot be compared: {self.note}"
        return (
            f"{self.kind}: {len(self.changes):,} of {plural(self.count, many)} differ, by up to "
            f"{number(self.worst)} of their size{f'; {self.note}' if self.note else ''}"
        )


@dataclass(frozen=True)
class Comparison:
    """Two runs compared."""

    config: list[Change] = field(default_factory=list)
    data: list[Change] = field(default_factory=list)
    code: list[Change] = field(default_factory=list)
    environment: list[Change] = field(default_factory=list)
    results: list[Change] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Content as JSON values."""
        sections = ("config", "data", "code", "environment", "results")
        found: dict[str, Any] = {
            section: {item.name: [item.one, item.other] for item in getattr(self, section)}
            for section in sections
        }
        found["comparison"] = {item.kind: item.to_dict() for item in self.agreements}
        return found

    def lines(self, one: str, other: str) -> Iterator[str]:
        """Text for people, one section after another."""
        yield f"a: {one}"
        yield f"b: {other}"
        for section in ("config", "data", "code", "environment", "results"):
            changes: list[Change] = getattr(self, section)
            yield ""
            yield f"{section}{'' if changes else ': no difference'}"
            yield from table_of(changes)
        for agreement in self.agreements:
            yield f"  {agreement.text}"
            yield from table_of(agreement.changes[:SHOWN], indent=4)


def table_of(changes: Sequence[Change], indent: int = 2) -> Iterator[str]:
    """Lines of a table of what differs."""
    rows = [(item.name, shown(item.one), shown(item.other), item.note) for item in changes]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield " " * indent + "  ".join([*cells, row[3]]).rstrip()


def shown(value: Any) -> str:
    """Value as text of bounded length."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 2 * TOLD else f"{text[:TOLD]}..."


# --- two runs ---


def compare_runs(one: Evidence, other: Evidence) -> Comparison:
    """Compare two runs by their cards and by the files that there are."""
    return Comparison(
        config=config_changes(one, other),
        data=data_changes(one, other),
        code=_changes(one.section("code"), other.section("code")),
        environment=environment_changes(one, other),
        results=_result_changes(one, other),
        agreements=compare_results(one, other),
    )


def config_changes(one: Evidence, other: Evidence) -> list[Change]:
    """Fields of the config that differ; what only one version has counts with its default."""
    first, second = flat(one.section("config")), flat(other.section("config"))
    found = []
    for name in dict.fromkeys([*first, *second]):
        values = first.get(name, default_of(name)), second.get(name, default_of(name))
        if _plain(values[0]) != _plain(values[1]):
            found.append(Change(name, *values, "(in no key)" if changes_nothing(name) else ""))
    return found


def data_changes(one: Evidence, other: Evidence) -> list[Change]:
    """Keys, digests and counts of the data that differ, and the raw files that do."""
    sides = []
    for run in (one, other):
        data = {name: value for name, value in run.section("data").items() if name != "index"}
        lists = {name: data.pop(name, {}) for name in ("files", "tables")}
        counts = flat({"dataset": run.section("dataset")})
        keys = {
            f"{name} key": run.section("keys").get(name) for name in ("dataset", "graph", "index")
        }
        digests = {f"raw {name}": lists[name].get("digest") for name in lists}
        sides.append((keys | counts | data | digests, lists))
    (first, lists), (second, others) = sides
    if not _both_record(one, other):
        known = {
            name for name in {**first, **second} if None not in (first.get(name), second.get(name))
        }
        first, second = ({n: v for n, v in side.items() if n in known} for side in (first, second))
    found = _changes(first, second)
    for name in ("files", "tables") if _both_record(one, other) else ():
        found += _file_changes(lists[name].get("listed", []), others[name].get("listed", []))
    return found


def _file_changes(one: Sequence[Any], other: Sequence[Any]) -> list[Change]:
    """Raw files whose content differs, or that only one run has, by the ends of their paths."""
    first, second = ({Path(path).name: digest for path, digest in side} for side in (one, other))
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return [Change(f"raw file {name}", first.get(name), second.get(name)) for name in names]


def environment_changes(one: Evidence, other: Evidence) -> list[Change]:
    """Versions, machine, device and threads that differ; what one card does not record is left out."""
    first, second = one.section("environment"), other.section("environment")
    recorded = _both_record(one, other)
    names = [
        name for name in {**first, **second} if recorded or {name} <= first.keys() & second.keys()
    ]
    found = _changes({n: first.get(n) for n in names}, {n: second.get(n) for n in names})
    placed = [_placement(run) for run in (one, other)]
    if placed[0] != placed[1]:
        found.append(Change("graphs held", *placed))
    return found


def _both_record(one: Evidence, other: Evidence) -> bool:
    """Whether both cards record all that a card records today."""
    return bool(one.section("data") and other.section("data"))


def _placement(run: Evidence) -> str:
    """Place of the graphs in training, on which the order of batches depends."""
    window = run.section("loader").get("window")
    return "in memory" if window is None else f"on disk, windows of {window:,} bytes"


def _result_changes(one: Evidence, other: Evidence) -> list[Change]:
    names = ("epochs_run", "best_epoch", "seconds")
    first, second = ({name: run.card.get(name) for name in names} for run in (one, other))
    first["parameters"], second["parameters"] = (
        run.section("model").get("parameters") for run in (one, other)
    )
    found = _changes(first, second)
    errors = [flat(run.metrics or {}) for run in (one, other)]
    for name in {**errors[0], **errors[1]}:
        if name.endswith(".mae") or name.endswith(".accuracy"):
            values = errors[0].get(name), errors[1].get(name)
            if values[0] != values[1]:
                found.append(Change(name, *values, _percent(*values)))
    return found


def _percent(one: Any, other: Any) -> str:
    if not (_is_number(one) and _is_number(other) and one):
        return ""
    return f"({100 * (other - one) / abs(one):+.3g} %)"


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Change]:
    names = [name for name in {**one, **other} if name not in TIMES or name == "seconds"]
    return [
        Change(name, one.get(name), other.get(name))
        for name in names
        if _plain(one.get(name)) != _plain(other.get(name))
    ]


def _plain(value: Any) -> Any:
    """Value such that 8 equals 8.0, whatever it is."""
    try:
        return canonical(value)
    except TypeError:
        return repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- results ---


def compare_results(one: Evidence, other: Evidence) -> list[Agreement]:
    """Compare weights, errors and predictions, as far as both runs have them.

    Raises:
        AtomloomError: when a file of results is damaged, or is not the one that its card records.
    """
    for run in (one, other):
        require_recorded(run)
    found = [_weights(one, other), _errors(one, other), _predictions(one, other)]
    return [item for item in found if item is not None]


def require_recorded(run: Evidence) -> None:
    """Check the files of a run against the digests in its card; cards of before have none.

    Raises:
        AtomloomError: when a file is damaged, or is not the one that the card records.
    """
    results = run.section("results")
    digests = {**_file_digests(run), **run.section("digests")}
    if results:  # what a card of today does not record is not of its run
        digests = {"metrics.json": None, TABLE: None} | digests
    for name, digest in digests.items():
        path = run.file(name)
        if path is not None and file_digest(path) != digest:
            _refuse(run, name)
    if results.get("weights") is not None:
        tensors = read_weights(run)
        if tensors is not None and weights_digest(tensors) != results["weights"]:
            _refuse(run, MODEL)


def missing_files(run: Evidence) -> list[str]:
    """Names of the files that the card of a run records and that are not there."""
    names = {**_file_digests(run), **run.section("digests")}
    return [name for name in names if run.file(name) is None]


def _refuse(run: Evidence, name: str) -> NoReturn:
    todo = "" if run.origin is None else again("train" if name in (MODEL, HISTORY) else "evaluate")
    raise AtomloomError(f"{name} is not the one that the card records", where=run.name, todo=todo)


def _file_digests(run: Evidence) -> dict[str, Any]:
    """Digests that the card has of files, by name."""
    return {name: value for name, value in run.section("results").items() if "." in name}


def _recorded(one: Evidence, other: Evidence, name: str) -> tuple[Any, Any]:
    return one.section("results").get(name), other.section("results").get(name)


def _by_digest(
    kind: str, one: Evidence, other: Evidence, pair: tuple[Any, Any], name: str
) -> Agreement | None:
    """Agreement of two runs of which one has no such file, as digests tell; None if neither has any."""
    without = [run for run in (one, other) if run.file(name) is None]
    told = f"{'one run has' if len(without) == 1 else 'the runs have'} no {name}"
    if None not in pair:
        worst = 0.0 if pair[0] == pair[1] else None
        return Agreement(kind, 0, worst, note=f"by digest: {told}" if worst == 0.0 else told)
    if len(without) == len([value for value in pair if value is None]) == 2:
        return None
    return Agreement(kind, 0, math.inf, note=f"{told}, and a card has no digest of it")


def _weights(one: Evidence, other: Evidence) -> Agreement | None:
    """Compare the weights, tensor by tensor where both model files are there."""
    first, second = (read_weights(run) for run in (one, other))
    if first is None or second is None:
        digests = [
            run.section("results").get("weights") if own is None else weights_digest(own)
            for run, own in ((one, first), (other, second))
        ]
        return _by_digest("weights", one, other, (digests[0], digests[1]), MODEL)
    if first.keys() != second.keys() or any(
        (first[n].shape, first[n].dtype) != (second[n].shape, second[n].dtype) for n in first
    ):
        return Agreement("weights", len(first), math.inf, note="the networks differ")
    changes = []
    for name, tensor in first.items():
        if torch.equal(tensor, second[name]):
            continue
        a, b = tensor.double(), second[name].double()
        size = float(torch.maximum(a.abs(), b.abs()).max())
        difference = float((a - b).abs().max()) / size if size else 0.0
        changes.append(
            (difference, Change(name, None, None, f"by {number(difference)} of {number(size)}"))
        )
    changes.sort(key=lambda item: -item[0])
    worst = changes[0][0] if changes else 0.0
    told = _first_epoch(one, other) if changes else ""
    return Agreement("weights", len(first), worst, tuple(c for _, c in changes), told)


def read_weights(run: Evidence) -> dict[str, torch.Tensor] | None:
    """Tensors of the model file, whatever model it is of; None where it is missing.

    Raises:
        AtomloomError: when the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run.file(MODEL)
    if path is None:
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AtomloomError(
            f"cannot be read: {error}", where=path, todo="remove it to compare digests alone"
        ) from None


def _first_epoch(one: Evidence, other: Evidence) -> str:
    """First epoch at which the histories differ, in words."""
    rows = [_history(run) for run in (one, other)]
    if rows[0] is None or rows[1] is None:
        return ""
    for epoch, (first, second) in enumerate(zip(*rows, strict=False), start=1):
        if first != second:
            return f"the histories differ from epoch {epoch} on"
    return "the histories agree" if len(rows[0]) == len(rows[1]) else "one history is longer"


def _history(run: Evidence) -> list[dict[str, str]] | None:
    path = run.file(HISTORY)
    if path is None:
        return None
    with open(path, newline="", errors="replace") as file:
        return [
            {name: value for name, value in row.items() if not str(name).endswith("seconds")}
            for row in csv.DictReader(file)
        ]


def _errors(one: Evidence, other: Evidence) -> Agreement | None:
    """Compare the numbers of `metrics.json`."""
    pair = one.metrics, other.metrics
    if pair[0] is None or pair[1] is None:
        name = "metrics.json"
        return _by_digest("errors", one, other, _recorded(one, other, name), name)
    first, second = flat(pair[0]), flat(pair[1])
    names = [
        name
        for name in {**first, **second}
        if _is_number(first.get(name)) or _is_number(second.get(name))
    ]
    changes = []
    for name in names:
        a, b = first.get(name), second.get(name)
        if a == b:
            continue
        difference = math.inf
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            difference = abs(a - b) / max(abs(a), abs(b))
        changes.append((difference, Change(name, a, b, f"by {number(difference)}")))
    changes.sort(key=lambda item: -item[0])
    worst = changes[0][0] if changes else 0.0
    note = "one has numbers that the other has not" if math.isinf(worst) else ""
    return Agreement("errors", len(names), worst, tuple(change for _, change in changes), note)


def _predictions(one: Evidence, other: Evidence) -> Agreement | None:
    """Compare the tables of predictions; those of equal digests are equal as they stand."""
    tables = {name for run in (one, other) for name in _file_digests(run)}
    names = [TABLE, *sorted(name for name in tables - {TABLE} if name.endswith(".parquet"))]
    found = []
    for name in names:
        pair, paths = _recorded(one, other, name), (one.file(name), other.file(name))
        if paths[0] is None or paths[1] is None:
            found.append(_by_digest("predictions", one, other, pair, name))
        elif None not in pair and pair[0] == pair[1]:
            found.append(Agreement("predictions", 0, 0.0))
        else:
            found.append(_table(paths[0], paths[1]))
    return _together([item for item in found if item is not None])


def _together(agreements: Sequence[Agreement]) -> Agreement | None:
    """One agreement of several of a kind; None of none."""
    ranked = sorted(agreements, key=lambda item: -(math.inf if item.worst is None else item.worst))
    if not ranked:
        return None
    return Agreement(
        ranked[0].kind,
        sum(item.count for item in ranked),
        ranked[0].worst,
        tuple(change for item in ranked for change in item.changes),
        "; ".join(dict.fromkeys(item.note for item in ranked if item.note)),
    )


def _table(one: Path, other: Path) -> Agreement:
    """Compare labels and predictions of two tables, row by row."""
    first, second = read_table(one, todo=""), read_table(other, todo="")
    places = [name for name in PLACES if name in first or name in second]
    if len(first) != len(second) or not all(_same(first, second, name) for name in places):
        return Agreement("predictions", 0, math.inf, note="they are of other structures")
    columns = [[name for name in frame if _is_result(frame, name)] for frame in (first, second)]
    if set(columns[0]) != set(columns[1]):
        note = "one has columns that the other has not"
        return Agreement("predictions", 0, math.inf, note=note)
    changes = []
    for column in columns[0]:
        a, b = (frame[column].to_numpy(np.float64) for frame in (first, second))
        if np.array_equal(a, b, equal_nan=True):
            continue
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        apart[~np.isfinite(apart)] = math.inf  # a number here and none there
        row = int(apart.argmax())
        size = float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) or 1.0
        difference = float(apart[row]) / size
        where = ", ".join(
            [f"{column} of {first['id'][row]}", *(f"{p} {first[p][row]}" for p in places[1:])]
        )
        changes.append(
            (difference, Change(where, float(a[row]), float(b[row]), f"by {number(difference)}"))
        )
    changes.sort(key=lambda item: -item[0])
    worst = changes[0][0] if changes else 0.0
    note = "one has numbers that the other has not" if math.isinf(worst) else ""
    return Agreement("predictions", len(columns[0]), worst, tuple(c for _, c in changes), note)


def _same(one: pd.DataFrame, other: pd.DataFrame, column: str) -> bool:
    return column in one and column in other and one[column].equals(other[column])


def _is_result(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column holds labels or predictions: numbers, or the class `NAME_predicted`."""
    return str(column).endswith("_predicted") or pd.api.types.is_float_dtype(frame[column])
