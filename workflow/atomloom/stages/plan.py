"""Stage `plan`: enumerate the raw records, fingerprint them, join labels, cut chunks.

Cheap: nothing is parsed if the format allows it. Records that cannot be reached again by a byte
range (members of compressed archives, entries of a JSON) are copied once, uncompressed, into
`records.spool`, so that converting N chunks reads every byte once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from atomloom.config import Config
from atomloom.data.splits import fixed_digest
from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import SPOOL, Chunk, Plan, cut_chunks
from atomloom.pipeline.stage_table import shards_per_chunk
from atomloom.readers.naming import tell_apart
from atomloom.readers.registry import parse_record, texts_of
from atomloom.readers.sources import RawRecord, enumerate_records, source_name
from atomloom.stages.labels import (
    LabelTable,
    Named,
    array_targets,
    is_missing,
    join_labels,
    no_column,
    read_here,
    read_labels,
)
from atomloom.stages.sources import label_members, refresh_sources
from atomloom.store.files import read_json, write_atomically, write_spec
from atomloom.store.keys import canonical_json, chain_hash, fingerprint_record
from atomloom.store.parquet import read_table, write_table

ROW_GROUP = 4000
"""Rows per group of `members.parquet`: the job of a chunk reads one or two groups."""
MANY_FILES = 100_000
"""Number of files of chunks above which the plan warns."""
LOOKED_AT = 10_000
"""Max number of structures parsed in search of a target that no table names."""
_NO_LABELS: dict[
    str, float | str
] = {}  # one object for all: with millions of records each byte counts


@dataclass
class _Members:
    """Growing columns of `members.parquet`."""

    id: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    format: list[str] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    fingerprint: list[bytes] = field(default_factory=list)
    name: list[str] = field(default_factory=list)
    labels: list[Mapping[str, float | str]] = field(default_factory=list)


def make_plan(layout: Layout, log: Callable[[str], None], spool_all: bool = False) -> Plan:
    """Write `plan.json`, `members.parquet`, `labels.parquet` and `records.spool`; return the plan.

    Args:
        layout: paths of the project.
        log: takes one line at a time.
        spool_all: spool all records, so that nothing after the plan reads raw files.

    Raises:
        AtomloomError: when a source or the label table is missing, unreadable or cannot be downloaded,
            or there is no record.
    """
    dataset = layout.config.dataset
    folder = layout.plan_folder
    manifest = read_json(refresh_sources(layout, fetch=log))
    files = [Path(path) for path, _ in manifest["files"]]
    tables = [read_labels(table) for table in dataset.label_tables]
    members = _Members()
    search = _Search.of(layout.config, tables)
    in_tables = {name for table in tables for name in table.names}
    texts = [name for name in layout.config.split.columns if name not in {*in_tables, "formula"}]

    tables_within, absolute = label_members(layout), [os.path.abspath(path) for path in files]

    def spool(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            records = enumerate_records(files, dataset.format, dataset.options, dataset.pattern)
            for record in records:
                if (absolute[record.file], record.member.removeprefix("./")) in tables_within:
                    continue
                _add(members, record, files, file, texts, spool_all)
                search.look(record)
                if len(members.id) % 20_000 == 0:
                    log(f"{len(members.id):,} records seen")

    write_atomically(folder / "records.spool", spool)
    if not members.id:
        raise AtomloomError("no record found", where=", ".join(dataset.source))

    members.id, members.name = tell_apart(members.id, members.name, members.source)
    search.check(tables)
    joined = join_labels(
        layout.config,
        tables,
        Named(members.id, members.name, members.source, members.labels, search.inside),
    )
    labels, unclaimed = joined.frame, joined.unclaimed
    reader = canonical_json(layout.reader_spec)
    bounds = dataset.chunks.bounds
    chunks = tuple(
        Chunk(chain_hash([reader, *members.fingerprint[first : first + count]]), first, count)
        for first, count in cut_chunks(members.fingerprint, *bounds)
    )
    chunk_of = np.repeat(np.arange(len(chunks)), [chunk.count for chunk in chunks])
    plan = Plan(
        chunks=chunks,
        records=len(members.id),
        members_digest=_members_digest(members.id, members.fingerprint),
        labels_digest=_labels_digest(labels),
        fixed_digest=fixed_digest(layout.config.split, members.source),
        labels_without_record=unclaimed,
    )
    frame = pd.DataFrame(
        {
            "id": members.id,
            "source": members.source,
            "number": np.array(members.number, dtype=np.int64),
            "format": members.format,
            "file": np.array(members.file, dtype=np.int32),
            "offset": np.array(members.offset, dtype=np.int64),
            "length": np.array(members.length, dtype=np.int64),
            "fingerprint": members.fingerprint,
            "chunk": chunk_of.astype(np.int32),
        }
    )
    write_table(folder / "labels.parquet", labels)
    write_table(folder / "members.parquet", frame, row_group_size=ROW_GROUP)
    write_spec(folder, layout.plan_spec)
    plan.write(folder / "plan.json")
    log(f"{plan.records:,} records in {len(chunks)} chunks")
    for line in _files_to_come(plan, layout.config):
        log(line)
    if unclaimed:
        log(f"{unclaimed:,} rows of the label table have no record")
    return plan


def _files_to_come(plan: Plan, config: Config) -> Iterator[str]:
    """Lines on the number of files by chunks, which is what grows with a data set."""
    shards = len(plan.chunk_keys) * shards_per_chunk(config)
    yield (
        f"files of chunks: {shards:,} shards in the store; {shards:,} times of jobs and, by the workflow, "
        f"{shards:,} logs in the results"
    )
    if 3 * shards > MANY_FILES:
        yield (
            f"warning: {3 * shards:,} files may be more than a quota of files allows: a larger dataset.chunks.mean "
            f"(now {config.dataset.chunks.mean:,}) makes fewer, if it is set before anything is converted"
        )


def absent_targets(layout: Layout) -> list[str]:
    """Targets of a config of which no record and no label table has a value; if that would take parsing more
    than LOOKED_AT structures, those that are undecided are not among them."""
    dataset = layout.config.dataset
    sought = set(dataset.target)
    for table in [read_labels(one) for one in dataset.label_tables]:
        for name in sought & set(table.names):
            if not all(map(is_missing, table.column(name))):
                sought.discard(name)
    manifest = read_json(refresh_sources(layout, fetch=lambda _: None))
    files = [Path(path) for path, _ in manifest["files"]]
    parsed = unread = 0
    for record in enumerate_records(files, dataset.format, dataset.options, dataset.pattern):
        sought -= {name for name, value in record.labels.items() if not is_missing(value)}
        if not sought or parsed == LOOKED_AT:
            return []
        parsed += 1
        try:
            structure = parse_record(record.format, record.payload, record.id, dataset.options)
            sought -= structure.properties.keys()
        except AtomloomError:
            unread += 1  # the reason is reported by convert
    return [] if parsed == unread else [name for name in dataset.target if name in sought]


def read_members(layout: Layout, plan: Plan) -> pd.DataFrame:
    """Read the columns id, source and number of the plan's records.

    Raises:
        AtomloomError: when the table is missing or damaged, or of another plan.
    """
    path = layout.plan_folder / "members.parquet"
    members = read_table(path, ["id", "source", "number", "fingerprint"], todo=again("plan"))
    if _members_digest(members["id"], members.pop("fingerprint")) != plan.members_digest:
        raise AtomloomError("holds other records than the plan", where=path, todo=again("plan"))
    return members


def read_planned_labels(layout: Layout, plan: Plan) -> pd.DataFrame:
    """Read the labels of the plan's records from `labels.parquet`; errors as `read_members`."""
    path = layout.plan_folder / "labels.parquet"
    labels = read_table(path, todo=again("plan"))
    if len(labels) != plan.records or _labels_digest(labels) != plan.labels_digest:
        raise AtomloomError("holds other labels than the plan", where=path, todo=again("plan"))
    return labels


def write_part(layout: Layout, plan: Plan, rows: np.ndarray, other: Layout) -> Plan:
    """Write the plan of some of a plan's records, all in one chunk, for another config on the same raw files.

    Args:
        layout: paths of the whole data set.
        plan: its plan.
        rows: records of the part, in ascending order.
        other: paths of the part; its config has the same `dataset` but for checks and name.

    Raises:
        AtomloomError: when a table of the plan is missing or damaged.
    """
    folder, own = other.plan_folder, layout.plan_folder
    members = read_table(own / "members.parquet", todo=again("plan")).iloc[rows]
    members = members.reset_index(drop=True).assign(chunk=np.int32(0))
    labels = read_planned_labels(layout, plan).iloc[rows].reset_index(drop=True)
    key = chain_hash([canonical_json(other.reader_spec), *members["fingerprint"]])
    part = Plan(
        chunks=(Chunk(key, 0, len(rows)),),
        records=len(rows),
        members_digest=_members_digest(members["id"], members["fingerprint"]),
        labels_digest=_labels_digest(labels),
        fixed_digest="",
        labels_without_record=0,
    )
    write_table(folder / "members.parquet", members)
    write_table(folder / "labels.parquet", labels)
    (folder / "records.spool").symlink_to((own / "records.spool").resolve())
    part.write(folder / "plan.json")
    return part


def _members_digest(ids: Iterable[str], fingerprints: Iterable[bytes]) -> str:
    pairs = zip(ids, fingerprints, strict=True)
    return chain_hash(part for pair in pairs for part in pair)


def _labels_digest(labels: pd.DataFrame) -> str:
    return chain_hash([labels.to_csv(index=False)])


def _add(
    members: _Members,
    record: RawRecord,
    files: list[Path],
    spool: BinaryIO,
    texts: list[str],
    spool_all: bool,
) -> None:
    """Add a record, with values of some names inside it that are text."""
    if record.offset >= 0 and not spool_all:
        where, offset = record.file, record.offset
    else:
        where, offset = SPOOL, spool.tell()
        spool.write(record.payload)
    path = files[record.file]
    members.id.append(record.id)
    members.source.append(source_name(path, record.member))
    members.number.append(record.number)
    members.format.append(record.format)
    members.file.append(where)
    members.offset.append(offset)
    members.length.append(len(record.payload))
    members.fingerprint.append(fingerprint_record(record.format, record.payload))
    members.name.append(record.member.rpartition("/")[2] if record.member else path.name)
    inside = texts_of(record.format, record.payload, texts) if texts else {}
    members.labels.append({**inside, **record.labels} if inside else record.labels or _NO_LABELS)


@dataclass
class _Search:
    """Search in the records for targets that no label table names.

    An unknown name is thus found before anything is converted. Structures are parsed only until all
    names are found, and at most `LOOKED_AT` of them; beyond that, the split reports missing names.
    """

    wanted: list[str]
    """Names that may be alongside structures or inside them."""
    sought: set[str]
    """Names not found yet, and those of arrays, which are only inside."""
    options: dict[str, Any]
    inside: set[str] = field(default_factory=set)
    """Names alongside some structures that others may hold inside."""
    found: set[str] = field(default_factory=set)
    """Names of numbers in the records."""
    parsed: int = 0
    unread: int = 0
    """Number of parsed records that could not be read."""

    @classmethod
    def of(cls, config: Config, tables: list[LabelTable]) -> _Search:
        in_tables = {name for table in tables for name in table.names}
        wanted = [name for name in read_here(config) if name not in in_tables]
        arrays = {one.name for one in array_targets(config) if config.teacher is None}
        # A structure that must be ordered first, which may take long, holds no other numbers.
        options = {k: v for k, v in config.dataset.options.items() if k != "order"}
        return cls(wanted, {*wanted, *arrays}, options)

    def look(self, record: RawRecord) -> None:
        """Search one record."""
        for name in self.wanted:
            if not record.labels or name.encode() in record.payload:
                self.inside.add(name)
        if not self.sought:
            return
        self.found.update(record.labels)
        self.sought -= record.labels.keys()
        if self.sought and self.parsed < LOOKED_AT:
            self.parsed += 1
            try:
                structure = parse_record(record.format, record.payload, record.id, self.options)
            except AtomloomError:
                self.unread += 1
                return  # the reason is reported by convert
            self.found.update(structure.properties)
            self.sought -= structure.properties.keys()

    def check(self, tables: list[LabelTable]) -> None:
        """Refuse a config with a name that no record has.

        Raises:
            AtomloomError: with the name and the existing names.
        """
        name = min(self.sought, default=None)
        if name is None or self.parsed == LOOKED_AT or (self.parsed and self.unread == self.parsed):
            return  # known, or not known to be missing: if nothing can be read, that is reported instead
        if tables and name in self.wanted:
            raise no_column(name, tables)
        raise AtomloomError(
            f"no record has a property `{name}`",
            where="dataset.target",
            todo=f"properties found: {', '.join(sorted(self.found)) or 'none'}; or name a label table",
        )
