"""Parquet tables that are either intact or an error: page checksums, and a digest of every column.

Page checksums do not cover the footer, which a flipped bit near the end of the file changes; so digests
of the values are stored in the metadata, and compared when a column is read as a whole. Tables of other
programs have neither, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomloom.errors import AtomloomError
from atomloom.store.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DIGESTS = b"atomloom.digests"
"""Key of the digests of columns in the metadata of the schema, as JSON by name."""


def write_table(path: Path, table: pd.DataFrame | pa.Table, **options: Any) -> None:
    """Write a table atomically; `options` are those of `pyarrow.parquet.write_table`.

    Raises:
        AtomloomError: when the disk is full or the folder cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    frame = table.to_pandas(ignore_metadata=True)
    digests = {name: _digest(frame[name], table.schema.field(name).type) for name in frame}
    metadata = {**(table.schema.metadata or {}), DIGESTS: json.dumps(digests)}
    table = table.replace_schema_metadata(metadata)
    write_atomically(
        path, lambda part: pq.write_table(table, part, write_page_checksum=True, **options)
    )


def read_table(path: Path, columns: Sequence[str] | None = None, *, todo: str) -> pd.DataFrame:
    """Read the table at `path`.

    Args:
        path: of the file.
        columns: to read; all if None.
        todo: how to make the file again, for the message.

    Raises:
        AtomloomError: when it is missing, truncated, altered, not a parquet file, or lacks one of
            `columns`.
    """
    return _read(path, columns, todo)[1]


def read_arrow(path: Path, *, todo: str) -> pa.Table:
    """Read the whole table as an Arrow table; errors as `read_table`."""
    return _read(path, None, todo)[0]


def read_rows(
    path: Path, columns: Sequence[str], first: int, count: int, *, todo: str
) -> list[tuple[Any, ...]]:
    """Read some rows, or those of them that there are, from their row groups alone and without pandas.

    Only checksums tell that they are undamaged; errors as `read_table`.
    """
    import pyarrow.parquet as pq

    with _damage_named(path, todo):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            ends = list(accumulate(sizes))
            groups = [
                group
                for group, (end, size) in enumerate(zip(ends, sizes, strict=True))
                if end > first and end - size < first + count
            ]
            table = file.read_row_groups(groups, list(columns)).select(list(columns))
        before = ends[groups[0]] - sizes[groups[0]] if groups else 0
        table = table.slice(first - before, count)
        table.validate(full=True)
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _read(path: Path, columns: Sequence[str] | None, todo: str) -> tuple[pa.Table, pd.DataFrame]:
    import pyarrow.parquet as pq

    wanted = None if columns is None else list(columns)
    options = {"partitioning": None, "page_checksum_verification": True}
    with _damage_named(path, todo):
        table = pq.read_table(path, columns=wanted, **options)
        digests = json.loads((table.schema.metadata or {}).get(DIGESTS, b"{}"))
        table.validate(full=True)
        # The metadata of pandas are not needed, and may be damaged too.
        frame = table.to_pandas(ignore_metadata=True)
    if digests and not _agree(table, frame, digests, whole=wanted is None):
        raise AtomloomError("is damaged: its digest differs", where=path, todo=todo)
    return table, frame


@contextmanager
def _damage_named(path: Path, todo: str) -> Iterator[None]:
    """Turn what pyarrow raises into an AtomloomError that says where."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise AtomloomError("no such table", where=path, todo=todo) from None
    except (OSError, ValueError, KeyError, TypeError, MemoryError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AtomloomError(f"cannot be read as a table: {reason}", where=path, todo=todo) from None


def _agree(table: pa.Table, frame: pd.DataFrame, digests: Any, whole: bool) -> bool:
    """Whether the columns are those that were written, and all of them if all were requested."""
    if not isinstance(digests, Mapping) or (whole and set(digests) != set(frame)):
        return False
    return all(digests.get(n) == _digest(frame[n], table.schema.field(n).type) for n in frame)


def _digest(values: pd.Series, kind: pa.DataType) -> str:
    """Digest of a column's values, independent of their layout in the file."""
    import pandas as pd

    rows = pd.util.hash_array(values.to_numpy(dtype=object if values.dtype == "str" else None))
    own = f"{kind}:{len(rows)}:".encode() + rows.tobytes()
    return hashlib.blake2b(own, digest_size=16).hexdigest()
