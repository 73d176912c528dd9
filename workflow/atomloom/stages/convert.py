"""Stage `convert`: the raw records of one chunk become one shard of canonical structures.

A record that cannot be read, or fails a check, becomes a row of the shard's quarantine. Names of
records stay in the plan: the shard knows its records by their place in the chunk, so that renaming
or moving files rebuilds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.errors import AtomloomError
from atomloom.keys import CONVERTER, canonical_json, chain_hash, fingerprint_record
from atomloom.layout import Layout
from atomloom.plan import Plan
from atomloom.shards import read_shard, write_shard
from atomloom.stages.plan import SPOOL
from atomloom.structures.checks import check_structure
from atomloom.structures.readers import parse_record
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

MEMBER_COLUMNS = ["id", "source", "number", "format", "file", "offset", "length", "fingerprint"]
PLAN_AGAIN = "plan again: `atomloom plan`, or `snakemake --forcerun plan`"
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
    members = _members_of(layout, plan, key)
    if chain_hash([canonical_json(layout.reader_spec), *members["fingerprint"]]) != key:
        raise AtomloomError(
            f"does not hold the records that chunk {key} is named by",
            where=layout.plan_folder / "members.parquet",
            todo=PLAN_AGAIN,
        )
    read = read_records(layout, members)
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
        AtomloomError: when raw files are gone, or hold other bytes than when they were planned.
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
    properties, per_atom = collect_properties(read.structures)
    arrays |= {array_name(name): array for name, array in properties.items()}
    attributes = {
        "kind": "structures",
        "converter": CONVERTER,
        "spec": spec,
        "per_atom": sorted(per_atom),
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
        property_of(name): array for name, array in arrays.items() if name.startswith(PROPERTY)
    }
    fields = ("hash", "node_ptr", "numbers", "positions", "cell", "pbc")
    return ConvertedChunk(
        table=StructureTable(
            **{name: arrays[name] for name in fields},
            properties=named,
            per_atom=frozenset(attributes["per_atom"]),
        ),
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
    """Each member with its bytes, which are those that were planned; files are opened once where
    records follow each other."""
    spool = layout.plan_folder / "records.spool"
    name, file = None, None
    try:
        for member in members.itertuples():
            path = spool if member.file == SPOOL else _file_of(member.source)
            if path != name:
                if file is not None:
                    file.close()
                name, file = path, open(path, "rb")  # noqa: SIM115 - closed below, or when the next one is opened
            file.seek(member.offset)
            payload = file.read(member.length)
            if fingerprint_record(member.format, payload) != member.fingerprint:
                raise _changed(path, member, path == spool)
            yield member, payload
    except OSError as error:
        raise AtomloomError(
            f"cannot be read: {error.strerror}", where=error.filename, todo=PLAN_AGAIN
        ) from None
    finally:
        if file is not None:
            file.close()


def _file_of(source: str) -> Path:
    """The file on disk of a record's source, `file` or `archive::member`; names may hold colons."""
    parts = source.split("::")
    ends = range(len(parts), 1, -1)
    whole = (Path("::".join(parts[:end])) for end in ends)
    return next((path for path in whole if path.is_file()), Path(parts[0]))


def _changed(path: Path, member: Any, spooled: bool) -> AtomloomError:
    """What is said of bytes that are not those that were planned."""
    return AtomloomError(
        f"record {member.number} of {member.source} (`{member.id}`) is not what was planned: "
        + ("the spool is damaged" if spooled else "the file has changed since"),
        where=path,
        todo=PLAN_AGAIN,
    )


def array_name(name: str) -> str:
    """Name of a property's array in the shard; a slash would nest Zarr groups."""
    return PROPERTY + name.replace("%", "%25").replace("/", "%2F")


def property_of(name: str) -> str:
    """The property that an array of the shard holds."""
    return name.removeprefix(PROPERTY).replace("%2F", "/").replace("%25", "%")


def collect_properties(
    structures: Sequence[Structure],
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Properties as arrays by name, and the names of those that have a row per atom.

    The others have a row per structure; NaN stands where a structure has no such value, or one of
    another shape than most have.
    """
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    forms: dict[str, Counter[tuple[bool, tuple[int, ...]]]] = {}
    for place, structure in enumerate(structures):
        for name, value in structure.properties.items():
            array = np.asarray(value, dtype=np.float64)
            found.setdefault(name, []).append((place, array))
            forms.setdefault(name, Counter())[_form(structure, name, array)] += 1
    node_ptr = np.concatenate([[0], np.cumsum([len(s) for s in structures])]).astype(np.int64)
    arrays: dict[str, np.ndarray] = {}
    per_atom: set[str] = set()
    for name in sorted(found):
        form = forms[name].most_common(1)[0][0]
        of_atoms, tail = form
        array = np.full((int(node_ptr[-1]) if of_atoms else len(structures), *tail), np.nan)
        for place, value in found[name]:
            if _form(structures[place], name, value) == form:
                rows = slice(node_ptr[place], node_ptr[place + 1]) if of_atoms else place
                array[rows] = value
        arrays[name] = array
        per_atom |= {name} if of_atoms else set()
    return arrays, per_atom


def _form(structure: Structure, name: str, value: np.ndarray) -> tuple[bool, tuple[int, ...]]:
    """Whether a property has a row per atom, and the shape of what a row holds."""
    of_atoms = name in structure.per_atom
    return of_atoms, value.shape[1:] if of_atoms else value.shape


def without_properties(chunk: ConvertedChunk) -> StructureTable:
    """The bare structures of a chunk."""
    return replace(chunk.table, properties={}, per_atom=frozenset())
