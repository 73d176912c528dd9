"""Label tables: read CSV and parquet files, and join their rows to records by id.

A record is found by its id, or by its file name if the file holds only that record. All cells, including
ids, are kept as text, so that a table means the same in every format; a cell that is not a number is not
a label, and the reason is recorded. Nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from atomloom.config import Config, Labels, expand_variables
from atomloom.config.teacher import TAUGHT
from atomloom.errors import AtomloomError
from atomloom.readers.base import MAX_RECORD_BYTES, decode, label_number
from atomloom.readers.entries import ID_KEYS
from atomloom.readers.sources import MAX_TABLE_BYTES, read_table
from atomloom.targets import TargetSpec

OWN = "own:"
"""Prefix of a column of labels alongside structures in their files, where other records may hold theirs
inside: the split, which sees those, combines both."""
TEXT = "text:"
"""Prefix of a column that the split's options name."""
MISSING = frozenset(("", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "none", "null"))
"""Texts of a cell, in lower case, that mean a missing value."""
SHOWN = 40
"""Max characters of a cell shown in an error."""

_TRUTH = {"true": 1.0, "false": 0.0}
_SEPARATORS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")  # written by spreadsheets
_UNNAMED = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class LabelTable:
    """Label file: its columns as text, and the rows of its ids."""

    file: str
    names: tuple[str, ...]
    """Names of the columns, in order; a name may occur twice if it is not used."""
    cells: tuple[Callable[[], list[Any]], ...]
    """Values of each column, fetched on demand."""
    ids: list[str | None]
    """Id of each row; None where it has none."""
    _columns: dict[str, list[str | None]] = field(default_factory=dict, repr=False)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id; the first if an id occurs more than once."""
        rows: dict[str, int] = {}
        for row, name in enumerate(self.ids):
            if name is not None:
                rows.setdefault(name, row)
        return rows

    def column(self, name: str) -> list[str | None]:
        """Values of one column, None where a cell is empty.

        Raises:
            AtomloomError: when there is no such column, or more than one.
        """
        if name not in self.names:
            raise no_column(name, [self])
        if self.names.count(name) > 1:
            raise _several(name, self.file)
        if name not in self._columns:
            values = self.cells[self.names.index(name)]()
            self._columns[name] = [_text_of(value) for value in values]
        return self._columns[name]

    def contradictory(self, names: Sequence[str]) -> set[str]:
        """Ids that occur more than once with different values in some of these columns."""
        return {
            name
            for row, name in enumerate(self.ids)
            if name is not None
            and (first := self.row_of[name]) != row
            and not self.agree(first, row, names)
        }

    def agree(self, row: int, other: int, names: Sequence[str]) -> bool:
        """Whether two rows agree in those of the given columns that exist."""
        columns = [self.column(name) for name in names if name in self.names]
        return all(_same(values[row], values[other]) for values in columns)


@dataclass(frozen=True)
class Joined:
    """Labels of all records, one row per record."""

    frame: pd.DataFrame
    """Targets and global features as numbers, columns for the split as text, and `problem`, the reason
    why a record cannot be used."""
    unclaimed: int
    """Rows of the label tables that no record claimed."""


@dataclass(frozen=True)
class Named:
    """Names of the records to which labels are joined."""

    ids: Sequence[str]
    names: Sequence[str]
    """Names of their files."""
    sources: Sequence[str]
    """Their locations, `file` or `archive::member`."""
    own: Sequence[Mapping[str, float | str]]
    """Values alongside the structures in their files."""
    inside: set[str] = field(default_factory=set)
    """Names of values that some of the structures may hold themselves."""


def read_labels(labels: Labels) -> LabelTable:
    """Read a label table that the config names.

    Raises:
        AtomloomError: when the file is missing, empty or not a table, or the id column is missing.
    """
    if labels.file is None:
        raise AtomloomError("no label file is configured", where="dataset.labels.file")
    payload = read_table(expand_variables(labels.file))
    if payload[:4] == b"PAR1":
        names, cells = _parquet_columns(payload, labels.file)
    else:
        names, cells = _csv_columns(payload, labels)
    position = _id_position(labels, names)
    ids = _ids(cells[position]())
    _refuse_row_numbers(labels, names, ids, position)
    return LabelTable(labels.file, tuple(names), tuple(cells), ids)


def no_column(name: str, tables: Sequence[LabelTable]) -> AtomloomError:
    """Error that no table has a column."""
    known = ", ".join(dict.fromkeys(name for table in tables for name in table.names))
    files = " or ".join(dict.fromkeys(table.file for table in tables))
    return AtomloomError(f"no column `{name}`", where=files, todo=f"columns are: {known}")


def rows_of_records(
    table: LabelTable, ids: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, int]:
    """Row of the table for each record (-1 for none) and the number of unclaimed ids of the table.

    Args:
        table: the label table.
        ids: record ids.
        names: file names of the records, tried where the id is not in the table. A name
            of several records is ambiguous and not used.
    """
    counts, taken = Counter(names), set(ids)
    rows = np.array(
        [
            table.row_of.get(
                record,
                table.row_of.get(name, -1) if counts[name] == 1 and name not in taken else -1,
            )
            for record, name in zip(ids, names, strict=True)
        ],
        dtype=np.int64,
    )
    claimed = len(set(rows.tolist()) - {-1})
    return rows, len(table.row_of) + table.ids.count(None) - claimed


def to_number(value: str | float | None) -> float:
    """Label as a number, with true as 1 and false as 0; NaN if it is missing or not a finite number."""
    number = value
    if isinstance(value, str):
        number = label_number(value)
        number = _TRUTH.get(value.strip().lower()) if number is None else number
    return float(number) if number is not None and np.isfinite(number) else np.nan


def is_missing(value: str | float | None) -> bool:
    """Whether a cell means a missing value, rather than holding an invalid one."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or value != value


def array_targets(config: Config) -> tuple[TargetSpec, ...]:
    """The targets that are more than a scalar per structure, as forces and stress."""
    return tuple(target for target in config.targets if not target.is_column)


def read_here(config: Config) -> list[str]:
    """Targets and global features that are scalars per structure and not from a teacher."""
    dataset, arrays = config.dataset, {target.name for target in array_targets(config)}
    taught = () if config.teacher is None else TAUGHT
    wanted = [*dataset.target, *dataset.global_features]
    return [name for name in wanted if name not in arrays and name not in taught]


def join_labels(config: Config, tables: Sequence[LabelTable], records: Named) -> Joined:
    """Join label values to every record, row by row.

    A column of a label table takes precedence over the records. Names that are neither in the tables nor in
    the rows of the records' own files are left out here: the split looks for them inside the structures.

    Raises:
        AtomloomError: when a column is missing, or no record has a value of a target.
    """
    join = _Join(config, tables, records)
    columns: dict[str, object] = {}
    for name in read_here(config):
        values = join.values(name)
        if values is not None:
            mixed = not join.tables_with(name) and name in records.inside
            columns[OWN + name if mixed else name] = join.numbers(name, values, mixed)
    for name in config.split.columns:
        if name != "formula":
            columns[TEXT + name] = join.texts(name)
    join.mark_unlabelled(columns)
    return Joined(pd.DataFrame(columns | {"problem": join.problem}), join.unclaimed)


class _Join:
    """Rows of the tables for the records, and the first problem of each record."""

    def __init__(self, config: Config, tables: Sequence[LabelTable], records: Named) -> None:
        self._config, self._records, self._tables = config, records, tables
        self._rows = []
        self.unclaimed = 0
        self.problem = [""] * len(records.ids)
        self._reasons: dict[str, list[str]] = {}
        for table in tables:
            rows, unclaimed = rows_of_records(table, records.ids, records.names)
            self._rows.append(rows)
            self.unclaimed += unclaimed
        if tables:
            self._mark_rows()
            self._mark_repeats()

    def tables_with(self, name: str) -> list[tuple[LabelTable, np.ndarray]]:
        """Tables that have a column, with the row of each record in them."""
        pairs = zip(self._tables, self._rows, strict=True)
        return [(table, rows) for table, rows in pairs if name in table.names]

    def values(self, name: str) -> list[Any] | None:
        """[records] cells of a column, None where missing; None if no table or record has such a column."""
        found = self.tables_with(name)
        if not found:
            own = [labels.get(name) for labels in self._records.own]
            return own if any(value is not None for value in own) else None
        (table, rows), *others = found
        column = table.column(name)
        merged = [None if row < 0 else column[row] for row in rows.tolist()]
        origin = [table.file] * len(merged)
        for table, rows in others:
            column = table.column(name)
            for place in np.flatnonzero(rows >= 0).tolist():
                value = column[rows[place]]
                if is_missing(merged[place]):
                    merged[place], origin[place] = value, table.file
                elif not is_missing(value) and not _same(value, merged[place]):
                    self._note(
                        place,
                        f"{name} is {merged[place]} in {origin[place]} and {value} in {table.file}",
                    )
        return merged

    def numbers(self, name: str, values: list[Any], mixed: bool) -> np.ndarray:
        """[records] float64; NaN where missing, with the reason recorded."""
        numbers = np.array([to_number(value) for value in values], dtype=np.float64)
        reasons = self._reasons[name] = [""] * len(values)
        for place in np.flatnonzero(np.isnan(numbers)).tolist():
            value = values[place]
            if value is None:
                reasons[place] = f"no label: {name} is missing"
                continue
            shown = value if len(str(value)) <= SHOWN else f"{str(value)[:SHOWN]}..."
            reasons[place] = f"no label: {name} is {shown!r}, not a finite number"
            if not is_missing(value):
                self._note(place, reasons[place])
        if not mixed and np.isnan(numbers).all():
            self._refuse(name, reasons)
        return numbers

    def texts(self, name: str) -> list[str | None]:
        """[records] cells of a column that the split's options name.

        Raises:
            AtomloomError: when no table or record has it.
        """
        if self._tables and not self.tables_with(name):
            raise no_column(name, self._tables)
        values = self.values(name)
        if values is None:
            raise AtomloomError(
                f"no record has a column `{name}` alongside it",
                where="split",
                todo="name a label table that has one",
            )
        return [None if value is None else str(value) for value in values]

    def mark_unlabelled(self, columns: Mapping[str, Any]) -> None:
        """Record why records have no label at all, or lack a global feature.

        For names that the structures may hold themselves, such as forces and stress, only the split can
        tell.
        """
        told = set(self._config.dataset.global_features)
        here = read_here(self._config)
        targets = [name for name in here if name not in told]
        inside = {target.name for target in array_targets(self._config)}
        if targets and not inside and all(name in columns for name in targets):
            unknown = np.all([np.isnan(columns[name]) for name in targets], axis=0)
            for place in np.flatnonzero(unknown).tolist():
                self._note(place, self._reasons[targets[0]][place])
        for name in here:
            if name in told and name in columns:
                for place in np.flatnonzero(np.isnan(columns[name])).tolist():
                    self._note(place, self._reasons[name][place])

    def _note(self, place: int, reason: str) -> None:
        self.problem[place] = self.problem[place] or reason

    def _mark_rows(self) -> None:
        """Record which records are in no table, or in one with several different rows."""
        used = [*read_here(self._config), *self._config.split.columns]
        counts = Counter(self._records.sources)
        files_of = Counter(self._records.names)
        files = " or ".join(dict.fromkeys(table.file for table in self._tables))
        for place in np.flatnonzero(np.all([rows < 0 for rows in self._rows], axis=0)).tolist():
            name, source = self._records.ids[place], self._records.sources[place]
            reason = f"no label: `{name}` is not in {files}"
            file = self._records.names[place]
            if counts[source] > 1 and any(file in table.row_of for table in self._tables):
                reason += f" (`{file}` is, but that file has {counts[source]} records)"
            self._note(place, reason)
        for table, rows in zip(self._tables, self._rows, strict=True):
            torn = table.contradictory(used)
            by_file = table.row_of.keys() & files_of.keys() - set(self._records.ids)
            for place in np.flatnonzero(rows >= 0).tolist() if torn or by_file else ():
                name, file = self._records.ids[place], self._records.names[place]
                by_both = file in by_file and files_of[file] == 1
                if table.ids[rows[place]] in torn or (
                    by_both and not table.agree(rows[place], table.row_of[file], used)
                ):
                    self._note(place, f"`{name}` has several different labels in {table.file}")

    def _mark_repeats(self) -> None:
        """Record later records of an id: a label joined by id belongs to one record."""
        first: dict[str, int] = {}
        for place, name in enumerate(self._records.ids):
            other = first.setdefault(name, place)
            if other != place:
                self._note(place, f"id `{name}` occurs before in {self._records.sources[other]}")

    def _refuse(self, name: str, reasons: Sequence[str]) -> None:
        first = next((p for p in self.problem if p), "") or reasons[0]
        raise AtomloomError(
            f"no record has a value of `{name}` (first: {self._records.ids[0]}, {first})",
            where=self._tables[0].file if self._tables else "dataset.target",
            todo="compare its ids with the names of the records" if "is not in" in first else "",
        )


# --- cells ---


def _text_of(value: Any) -> str | None:
    """Cell as text; None if it is empty."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return (decode(value) if isinstance(value, bytes) else str(value)).strip() or None


def _same(a: str | float | None, b: str | float | None) -> bool:
    """Whether two cells are equal: as numbers if both are, else as text."""
    if a == b or (is_missing(a) and is_missing(b)):
        return True
    first, second = to_number(a), to_number(b)
    return first == second


def _ids(cells: Sequence[Any]) -> list[str | None]:
    """Ids as text; integers that became floats because of missing values are integers again."""
    whole = all(isinstance(v, float) and (v != v or v.is_integer()) for v in cells)
    return [_text_of(int(v) if whole and v == v else v) for v in cells]


def _id_position(labels: Labels, names: Sequence[str]) -> int:
    if isinstance(labels.id_column, int):
        if labels.id_column >= len(names):
            raise AtomloomError(
                f"has only {len(names)} columns",
                where=labels.file,
                todo="set dataset.labels.id_column",
            )
        return labels.id_column
    if labels.id_column not in names:
        raise AtomloomError(
            f"no column `{labels.id_column}`",
            where=labels.file,
            todo=f"columns are: {', '.join(names)}",
        )
    if names.count(labels.id_column) > 1:
        raise _several(labels.id_column, str(labels.file))
    return names.index(labels.id_column)


def _several(name: str, file: str) -> AtomloomError:
    return AtomloomError(f"has several columns `{name}`", where=file, todo="rename all but one")


def _refuse_row_numbers(
    labels: Labels, names: Sequence[str], ids: Sequence[str | None], position: int
) -> None:
    """Refuse row numbers written by pandas as ids if another column has a usual name of ids.

    In a table that was sorted or filtered they are in another order, or have gaps.
    """
    other = next((name for name in names if name.lower() in ID_KEYS), None)
    if (
        isinstance(labels.id_column, int)
        and names[position].startswith("Unnamed: ")
        and other is not None
        and all(name is not None and name.isdecimal() for name in ids)
    ):
        raise AtomloomError(
            f"its first column has no name and numbers the rows, and there is a column `{other}`",
            where=labels.file,
            todo=f"set dataset.labels.id_column to {other}, or to `{names[position]}`",
        )


# --- files ---


def _parquet_columns(payload: bytes, file: str) -> tuple[list[str], list[Callable[[], list[Any]]]]:
    """Columns of a parquet table, with an index of pandas before the others, as in its CSV.

    An unnamed index that numbers the rows comes last: it is left over from filtering.
    """
    try:
        _refuse_endless(payload, file)
        table = pq.ParquetFile(pa.BufferReader(payload)).read()
        about = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise AtomloomError(f"is not a table: {reason}", where=file) from None
    index = about.get("index_columns", [])

    def rank(place: int) -> int:
        if table.column_names[place] not in index:
            return 1
        unnamed = _UNNAMED.fullmatch(table.column_names[place])
        return 2 if unnamed and pa.types.is_integer(table.schema.types[place]) else 0

    order = sorted(range(table.num_columns), key=rank)
    names = [_UNNAMED.sub("index", table.column_names[place]).strip() for place in order]
    return names, [table.column(place).to_pylist for place in order]


def _refuse_endless(payload: bytes, file: str) -> None:
    """Refuse a small parquet file that repeats a value so often that it would fill the memory."""
    about = pq.ParquetFile(pa.BufferReader(payload)).metadata
    size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    if max(size, 8 * about.num_rows * about.num_columns) > MAX_TABLE_BYTES:
        raise AtomloomError(
            f"a table of more than {MAX_TABLE_BYTES >> 30} GiB",
            where=file,
            todo="cut it into several",
        )


def _csv_columns(payload: bytes, labels: Labels) -> tuple[list[str], list[Callable[[], list[Any]]]]:
    """Columns of a CSV, with the separator that fits all its rows."""
    file = str(labels.file)
    text = _decoded(payload, file)
    if text.lstrip()[:1] in ("{", "["):
        raise AtomloomError("is JSON", where=file, todo="label tables are CSV or parquet")
    order: tuple[str, ...] = ("\t", *_SEPARATORS[:2]) if ".tsv" in file.lower() else _SEPARATORS
    if told := _SEPARATOR_LINE.match(text):
        text, order = text[told.end() :], (told[1],)
    readings = []
    for separator in order:
        readings.append(_Reading.of(text, separator, labels.columns))
        if readings[-1].fits:
            break
    best = max(readings, key=lambda reading: (reading.fits, len(reading.names)))
    if best.problem:
        raise AtomloomError(best.problem, where=file, todo=best.todo)
    rows = best.rows

    def cells(place: int) -> Callable[[], list[Any]]:
        return lambda: [row[place] for row in rows]

    return best.names, [cells(place) for place in range(len(best.names))]


def _decoded(payload: bytes, file: str) -> str:
    if payload[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as spreadsheets write "Unicode text"
        try:
            return payload.decode("utf-16")
        except UnicodeDecodeError as error:
            raise AtomloomError(f"is not a table: {error}", where=file) from None
    if b"\0" in payload:
        raise AtomloomError("is neither text nor parquet", where=file, todo="save it as CSV")
    return decode(payload).removeprefix("\ufeff")


@dataclass(frozen=True)
class _Reading:
    """CSV read with one separator."""

    names: list[str]
    rows: list[list[str]]
    problem: str = ""
    """Reason why it cannot be read in this way; empty if it can."""
    todo: str = ""

    @property
    def fits(self) -> bool:
        """Whether the separator fits the table."""
        return not self.problem and len(self.names) > 1

    @classmethod
    def of(cls, text: str, separator: str, given: list[str] | None) -> _Reading:
        """Cut a text into rows; columns without a name are named as by pandas."""
        csv.field_size_limit(MAX_RECORD_BYTES)
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
        )
        names: list[str] = []
        rows: list[list[str]] = []
        try:
            lines = _stripped(reader)
            names = list(given) if given else next(lines, (0, []))[1]
            if not names:
                return cls([], [], "is not a table: it is empty")
            for number, row in lines:
                if given and not rows and row != given and sorted(row) == sorted(given):
                    problem = f"its first row names the columns {', '.join(row)}"
                    todo = "leave dataset.labels.columns out, or give them in this order"
                    return cls(names, [], problem, todo)
                if any(row[len(names) :]) or any(names[len(row) :]):
                    said = "dataset.labels.columns names" if given else "the header names"
                    problem = f"line {number} has {len(row)} columns, {said} {len(names)}"
                    return cls(
                        names, [], problem, "give every row as many cells as there are names"
                    )
                rows.append(row[: len(names)] + [""] * (len(names) - len(row)))
        except csv.Error as error:
            return cls(names, [], f"is not a table: line {reader.line_num}: {error}")
        if not rows:
            return cls(names, [], "is not a table: it has no rows")
        return cls([name or f"Unnamed: {place}" for place, name in enumerate(names)], rows)


def _stripped(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Non-empty lines, by number, without blanks around their cells."""
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells
