"""Label tables: read a CSV or parquet file and join its rows to records by id.

A record is found by its id, or by its file name. Values that are no number become missing, and
say why; nothing is guessed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from atomloom.config import Labels, expand_variables
from atomloom.errors import AtomloomError
from atomloom.structures.sources import MAX_TABLE_BYTES, read_table


@dataclass(frozen=True)
class LabelTable:
    """Columns of a label file as text, by record id."""

    file: str
    columns: dict[str, list[str | None]]
    row_of: dict[str, int]
    """Row of each id; the first where an id stands more than once."""
    repeated: frozenset[str]
    """Ids that stand more than once with different rows."""

    def column(self, name: str) -> list[str | None]:
        """Values of one column.

        Raises:
            AtomloomError: when there is no such column.
        """
        if name not in self.columns:
            raise AtomloomError(
                f"no column `{name}`",
                where=self.file,
                todo=f"columns are: {', '.join(self.columns)}",
            )
        return self.columns[name]


def read_labels(labels: Labels) -> LabelTable:
    """Read the label table named in the config.

    Raises:
        AtomloomError: when the file is missing, empty or no table, or the id column is not there.
    """
    if labels.file is None:
        raise AtomloomError("no label file is configured", where="dataset.labels.file")
    frame = _read_frame(expand_variables(labels.file), labels.columns)
    names = [str(name) for name in frame.columns]
    if isinstance(labels.id_column, int):
        if labels.id_column >= len(names):
            raise AtomloomError(
                f"has only {len(names)} columns",
                where=labels.file,
                todo="set dataset.labels.id_column",
            )
        position = labels.id_column
    elif labels.id_column in names:
        position = names.index(labels.id_column)
    else:
        raise AtomloomError(
            f"no column `{labels.id_column}`",
            where=labels.file,
            todo=f"columns are: {', '.join(names)}",
        )
    columns = {
        name: [
            None if value is None or value != value else str(value).strip()
            for value in frame.iloc[:, i].tolist()
        ]
        for i, name in enumerate(names)
    }
    row_of: dict[str, int] = {}
    repeated = set()
    for row, name in enumerate(columns[names[position]]):
        if name is None:
            continue
        first = row_of.setdefault(name, row)
        if first != row and any(values[first] != values[row] for values in columns.values()):
            repeated.add(name)
    return LabelTable(labels.file, columns, row_of, frozenset(repeated))


def rows_of_records(
    table: LabelTable, ids: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, int]:
    """Row of the table for each record (-1 for none) and how many ids of the table stay unclaimed.

    Args:
        table: the label table.
        ids: record ids.
        names: file names of the records, tried where the id is not in the table.
    """
    rows = np.array(
        [
            table.row_of.get(record, table.row_of.get(name, -1))
            for record, name in zip(ids, names, strict=True)
        ],
        dtype=np.int64,
    )
    claimed = len(set(rows.tolist()) - {-1})
    return rows, len(table.row_of) - claimed


def to_number(text: str | float | None) -> float:
    """A label as a number; NaN where it is missing or no finite number."""
    try:
        number = float(text) if text is not None else np.nan
    except ValueError:
        return np.nan
    return number if np.isfinite(number) else np.nan


def _read_frame(file: str, columns: list[str] | None) -> pd.DataFrame:
    name = file.split("::")[-1]
    try:
        payload = read_table(file)
        if name.endswith(".parquet"):
            _refuse_endless(payload, file)
            return pd.read_parquet(io.BytesIO(payload))
        frame = pd.read_csv(
            io.BytesIO(payload),
            header=None if columns else 0,
            dtype=str,
            keep_default_na=False,
            na_values=["", "nan", "NaN", "None", "null", "NA"],
            skipinitialspace=True,
        )
        if columns and len(columns) != len(frame.columns):
            raise AtomloomError(
                f"has {len(frame.columns)} columns, dataset.labels.columns names {len(columns)}",
                where=file,
            )
        return frame.set_axis(columns, axis=1) if columns else frame
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error}", where=file) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise AtomloomError(f"is no table: {error}", where=file) from None


def _refuse_endless(payload: bytes, file: str) -> None:
    """Stop before a parquet file of a few bytes that repeats a value fills the memory."""
    about = pq.ParquetFile(io.BytesIO(payload)).metadata
    size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    if max(size, 8 * about.num_rows * about.num_columns) > MAX_TABLE_BYTES:
        raise AtomloomError(
            f"a table of more than {MAX_TABLE_BYTES >> 30} GiB",
            where=file,
            todo="cut it into several",
        )
