"""Stage `convert`: the raw records of one chunk become one shard of canonical structures.

A record that cannot be read, or fails a check, becomes a row of the shard's quarantine. Names of
records stay in the plan: the shard knows its records by their place in the chunk, so that renaming
or moving files rebuilds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.errors import AtomloomError
from atomloom.keys import CONVERTER
from atomloom.layout import Layout
from atomloom.plan import Plan
from atomloom.shards import read_shard, write_shard
from atomloom.stages.plan import SPOOL
from atomloom.structures.checks import check_structure
from atomloom.structures.readers import parse_record
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

MEMBER_COLUMNS = ["id", "source", "number", "format", "file", "offset", "length"]
PROPERTY = "property:"
"""Prefix of property arrays in the shard."""


@dataclass(frozen=True)
class ConvertedChunk:
    """What a shard of structures holds."""

    table: StructureTable
    record: np.ndarray
    """[S] int32, place of each structure's record in the chunk."""
    quarantine: tuple[tuple[int, str], ...]
    """(place of the record in the chunk, reason) of each record that was refused."""


def convert_chunk(layout: Layout, plan: Plan, key: str, log: Callable[[str], None]) -> Path:
    """Write the shard of structures of chunk `key` and return its path.

    Raises:
        AtomloomError: when the plan has no such chunk, or raw files changed since the plan was made.
    """
    read = read_records(layout, _members_of(layout, plan, key))
    path = layout.structures(key)
    write_structures(path, read, layout.reader_spec)
    log(f"{len(read.structures):,} structures, {len(read.quarantine)} in quarantine")
    return path


@dataclass(frozen=True)
class ReadRecords:
    """Records parsed and checked, one by one."""

    structures: list[Structure]
    places: list[int]
    """Place of each structure's record among those read."""
    quarantine: list[tuple[int, str]]
    """(place, reason) of each record that was refused."""


def read_records(layout: Layout, members: pd.DataFrame) -> ReadRecords:
    """Parse and check the records of some rows of `members.parquet` (columns MEMBER_COLUMNS).

    Raises:
        AtomloomError: when raw files are gone or shorter than when they were planned.
    """
    dataset = layout.config.dataset
    read = ReadRecords([], [], [])
    for place, (member, payload) in enumerate(_payloads(layout, members)):
        try:
            structure = parse_record(member.format, payload, member.id, dataset.options)
            check_structure(structure, dataset.checks)
        except AtomloomError as error:
            read.quarantine.append((place, str(error)))
            continue
        read.structures.append(structure)
        read.places.append(place)
    return read


def write_structures(path: Path, read: ReadRecords, spec: Mapping[str, object]) -> None:
    """Write structures, their properties and the quarantine as one shard."""
    table = StructureTable.from_structures(read.structures)
    arrays = {
        "hash": table.hash,
        "record": np.array(read.places, dtype=np.int32),
        "node_ptr": table.node_ptr,
        "numbers": table.numbers,
        "positions": table.positions,
        "cell": table.cell,
        "pbc": table.pbc,
    }
    for name, array in _collect_properties(read.structures).items():
        arrays[PROPERTY + name.replace("/", "_")] = array  # a slash would nest Zarr groups
    attributes = {
        "kind": "structures",
        "converter": CONVERTER,
        "spec": spec,
        "quarantine": [list(row) for row in read.quarantine],
    }
    write_shard(path, arrays, attributes)


def read_chunk(path: Path) -> ConvertedChunk:
    """Read a shard of structures.

    Raises:
        AtomloomError: when it is missing or damaged.
    """
    arrays, attributes = read_shard(path)
    named = {
        name.removeprefix(PROPERTY): array
        for name, array in arrays.items()
        if name.startswith(PROPERTY)
    }
    fields = ("hash", "node_ptr", "numbers", "positions", "cell", "pbc")
    return ConvertedChunk(
        table=StructureTable(**{name: arrays[name] for name in fields}, properties=named),
        record=arrays["record"],
        quarantine=tuple((int(place), str(reason)) for place, reason in attributes["quarantine"]),
    )


def _members_of(layout: Layout, plan: Plan, key: str) -> pd.DataFrame:
    chunk = next((chunk for chunk in plan.chunks if chunk.key == key), None)
    if chunk is None:
        raise AtomloomError(f"the plan has no chunk {key}", where=layout.plan_folder / "plan.json")
    position = plan.chunks.index(chunk)
    return pd.read_parquet(
        layout.plan_folder / "members.parquet",
        columns=MEMBER_COLUMNS,
        filters=[("chunk", "==", position)],
    )


def _payloads(layout: Layout, members: pd.DataFrame) -> Iterator[tuple[object, bytes]]:
    """Each member with its bytes; files are opened once where records follow each other."""
    spool = layout.plan_folder / "records.spool"
    name, file = None, None
    try:
        for member in members.itertuples():
            path = spool if member.file == SPOOL else Path(member.source.split("::")[0])
            if path != name:
                if file is not None:
                    file.close()
                name, file = path, open(path, "rb")  # noqa: SIM115 - closed below, or when the next one is opened
            file.seek(member.offset)
            payload = file.read(member.length)
            if len(payload) != member.length:
                raise AtomloomError(
                    "is shorter than when it was planned", where=path, todo="run the plan again"
                )
            yield member, payload
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error.strerror}", where=error.filename) from None
    finally:
        if file is not None:
            file.close()


def _collect_properties(structures: list[Structure]) -> dict[str, np.ndarray]:
    """Named properties as arrays: one row a structure, or one row an atom; NaN where one has none.

    A property whose shape differs from structure to structure other than by the number of atoms is
    left out.
    """
    atoms = np.array([len(s) for s in structures], dtype=np.int64)
    names = sorted({name for s in structures for name in s.properties})
    collected = {}
    for name in names:
        values = [np.asarray(s.properties.get(name, np.nan), dtype=np.float64) for s in structures]
        present = [i for i, s in enumerate(structures) if name in s.properties]
        tails = {values[i].shape for i in present}
        if len(tails) == 1 and not _is_per_atom(values, atoms, present):
            rows = [
                v if i in set(present) else np.full(next(iter(tails)), np.nan)
                for i, v in enumerate(values)
            ]
            collected[name] = np.stack(rows)
        elif _is_per_atom(values, atoms, present):
            tail = values[present[0]].shape[1:]
            has = set(present)
            rows = [
                v if i in has else np.full((atoms[i], *tail), np.nan) for i, v in enumerate(values)
            ]
            collected[name] = np.concatenate(rows)
    return collected


def _is_per_atom(values: list[np.ndarray], atoms: np.ndarray, present: Iterable[int]) -> bool:
    shapes = [(values[i].shape, atoms[i]) for i in present]
    tail = shapes[0][0][1:]
    return all(shape[:1] == (count,) and shape[1:] == tail for shape, count in shapes)


def without_properties(chunk: ConvertedChunk) -> StructureTable:
    """The bare structures of a chunk."""
    return replace(chunk.table, properties={})
