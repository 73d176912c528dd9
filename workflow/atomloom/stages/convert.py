"""Stage `convert`: the raw records of one chunk to one shard of canonical structures.

A record that cannot be read, or fails a check, becomes a row of the shard's quarantine. Names of
records stay in the plan: the shard knows its records by their position in the chunk, so that
renaming or moving files rebuilds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import SPOOL, Chunk, Plan
from atomloom.readers.registry import parse_record
from atomloom.store.files import read_ahead
from atomloom.store.forms import Form, misfit
from atomloom.store.keys import CONVERTER, canonical_json, chain_hash, fingerprint_record
from atomloom.store.parquet import read_rows
from atomloom.store.shards import REPAIR, SUFFIX, read_shard, reasons_in, write_shard
from atomloom.structures.checks import check_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import FORMS, StructureTable, no_structures


class Member(NamedTuple):
    """Row of `members.parquet`, as far as converting its record needs it."""

    id: str
    source: str
    number: int
    format: str
    file: int
    offset: int
    length: int
    fingerprint: bytes


PROPERTY = "property:"
"""Prefix of property arrays in the shard."""
RECORD_FORMS = {"hash": FORMS["hash"], "record": Form(("S",), ("int32",))}


@dataclass(frozen=True)
class ConvertedChunk:
    """Content of a shard of structures."""

    table: StructureTable
    record: np.ndarray
    """[S] int32, index of each structure's record in the chunk."""
    quarantine: tuple[tuple[int, str], ...]
    """(index in the chunk, reason) of each refused record."""


def convert_chunk(layout: Layout, plan: Plan, key: str, log: Callable[[str], None]) -> Path:
    """Write the shard of structures of chunk `key` and return its path.

    Raises:
        AtomloomError: when the plan has no such chunk, or raw files changed since the plan was made.
    """
    members = _members_of(layout, plan, key)
    if (
        chain_hash(
            [canonical_json(layout.reader_spec), *(member.fingerprint for member in members)]
        )
        != key
    ):
        raise AtomloomError(
            f"does not hold the records of chunk {key}",
            where=layout.plan_folder / "members.parquet",
            todo=again("plan"),
        )
    read = read_records(layout, members)
    path = layout.structures(key)
    write_structures(path, read, layout.reader_spec, key)
    log(f"{len(read.structures):,} structures, {len(read.quarantine)} in quarantine")
    return path


@dataclass(frozen=True)
class ReadRecords:
    """Structures of parsed and checked records."""

    structures: list[Structure]
    places: list[int]
    """Index of each structure's record among those read."""
    quarantine: list[tuple[int, str]]
    """(index, reason) of each refused record."""


def read_records(layout: Layout, members: Iterable[Member]) -> ReadRecords:
    """Parse and check the records of some rows of `members.parquet`.

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


def write_structures(
    path: Path, read: ReadRecords, spec: Mapping[str, object], chunk: str = ""
) -> None:
    """Write structures, their properties and the quarantine as one shard.

    With the key of its chunk, the shard identifies itself, so that another one in its place is noticed.
    """
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
    write_shard(path, arrays, attributes | ({"chunk": chunk} if chunk else {}))


def read_chunk(path: Path) -> ConvertedChunk:
    """Read a shard of structures.

    Raises:
        AtomloomError: when it is missing or damaged, holds something else, or arrays that make no sense.
    """
    arrays, attributes = read_shard(path)
    quarantine = _require_records(path, arrays, attributes)
    fields = {name: arrays[name] for name in FORMS if name in arrays}
    if wrong := no_structures(fields):
        raise _senseless(path, wrong)
    named = {
        property_of(name): array for name, array in arrays.items() if name.startswith(PROPERTY)
    }
    per_atom = frozenset(attributes["per_atom"])
    for name, array in named.items():
        rows = len(fields["numbers" if name in per_atom else "hash"])
        if array.dtype != np.float64 or array.ndim == 0 or len(array) != rows:
            raise _senseless(path, f"property `{name}` is not {rows} rows of numbers")
    return ConvertedChunk(
        table=StructureTable(**fields, properties=named, per_atom=per_atom),
        record=arrays["record"],
        quarantine=quarantine,
    )


@dataclass(frozen=True)
class ChunkRecords:
    """Outcome of the records of a chunk."""

    record: np.ndarray
    """[S] int32, index of each structure's record in the chunk."""
    hash: np.ndarray
    """[S, 32] uint8, structure hashes."""
    quarantine: tuple[tuple[int, str], ...]
    """(index, reason) of each refused record."""

    def __len__(self) -> int:
        return len(self.record) + len(self.quarantine)


def read_chunk_records(path: Path) -> ChunkRecords:
    """Read the outcome of the records of a chunk, without structures; errors as `read_chunk`."""
    arrays, attributes = read_shard(path, names=["record", "hash"])
    quarantine = _require_records(path, arrays, attributes)
    return ChunkRecords(arrays["record"], arrays["hash"], quarantine)


def require_whole(chunk: Chunk, records: int, path: Path) -> None:
    """Raise AtomloomError if a shard does not account for all records of its chunk."""
    if records != chunk.count:
        raise AtomloomError(
            f"holds {records} records, the plan has {chunk.count} in this chunk",
            where=path,
            todo=REPAIR,
        )


def _require_records(
    path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> tuple[tuple[int, str], ...]:
    """Quarantine of a shard of structures, checked to account for each record once."""
    if attributes.get("kind") != "structures" or not isinstance(attributes.get("per_atom"), list):
        raise AtomloomError("is a shard, but not of structures", where=path, todo=REPAIR)
    chunk = attributes.get("chunk", path.name.removesuffix(SUFFIX))
    if path.name != f"{chunk}{SUFFIX}":
        raise AtomloomError(f"holds the structures of chunk {chunk}", where=path, todo=REPAIR)
    quarantine = tuple(reasons_in(attributes, "quarantine", path))
    if wrong := misfit(arrays, RECORD_FORMS):
        raise _senseless(path, wrong)
    places = np.concatenate([arrays["record"], np.array([p for p, _ in quarantine], np.int64)])
    if not np.array_equal(np.sort(places), np.arange(len(places))):
        raise _senseless(path, "`record` and the quarantine do not hold each record once")
    return quarantine


def _senseless(path: Path, wrong: str) -> AtomloomError:
    return AtomloomError(f"makes no sense: {wrong}", where=path, todo=REPAIR)


def _members_of(layout: Layout, plan: Plan, key: str) -> list[Member]:
    chunk = next((chunk for chunk in plan.chunks if chunk.key == key), None)
    if chunk is None:
        raise AtomloomError(f"the plan has no chunk {key}", where=layout.plan_folder / "plan.json")
    table = layout.plan_folder / "members.parquet"
    rows = read_rows(table, Member._fields, chunk.first, chunk.count, todo=again("plan"))
    return [Member(*row) for row in rows]


def _payloads(layout: Layout, members: Iterable[Member]) -> Iterator[tuple[Member, bytes]]:
    """Iterate over members with their bytes, checked against the plan; files are opened once where
    records follow each other."""
    spool = layout.plan_folder / "records.spool"

    def path_of(member: Member) -> Path:
        return spool if member.file == SPOOL else _file_of(member.source)

    runs = [(path, list(rows)) for path, rows in groupby(members, path_of)]
    try:
        for (path, rows), opens in zip(runs, read_ahead([path for path, _ in runs]), strict=True):
            with opens() as file:
                for member in rows:
                    file.seek(member.offset)
                    payload = file.read(member.length)
                    if fingerprint_record(member.format, payload) != member.fingerprint:
                        raise _changed(path, member, path == spool)
                    yield member, payload
    except OSError as error:
        raise AtomloomError(
            f"cannot be read: {error.strerror}", where=error.filename, todo=again("plan")
        ) from None


def _file_of(source: str) -> Path:
    """File on disk of a record's source, `file` or `archive::member`; names may contain colons."""
    parts = source.split("::")
    ends = range(len(parts), 1, -1)
    whole = (Path("::".join(parts[:end])) for end in ends)
    return next((path for path in whole if path.is_file()), Path(parts[0]))


def _changed(path: Path, member: Member, spooled: bool) -> AtomloomError:
    """Error for bytes that are not those that were planned."""
    return AtomloomError(
        f"record {member.number} of {member.source} (`{member.id}`) is not what was planned: "
        + ("the spool is damaged" if spooled else "the file has changed since"),
        where=path,
        todo=again("plan"),
    )


def array_name(name: str) -> str:
    """Name of a property's array in the shard; a slash would nest Zarr groups."""
    return PROPERTY + name.replace("%", "%25").replace("/", "%2F")


def property_of(name: str) -> str:
    """Property that an array of the shard holds."""
    return name.removeprefix(PROPERTY).replace("%2F", "/").replace("%25", "%")


def collect_properties(
    structures: Sequence[Structure],
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Collect properties as arrays by name, and the names of those that have one row per atom.

    The others have one row per structure; NaN where a structure has no such value, or one of another
    shape than most.
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
    """Whether a property has one row per atom, and the shape of a row."""
    of_atoms = name in structure.per_atom
    return of_atoms, value.shape[1:] if of_atoms else value.shape


def without_properties(chunk: ConvertedChunk) -> StructureTable:
    """Structures of a chunk, without properties."""
    return replace(chunk.table, properties={}, per_atom=frozenset())
