"""Stage `plan`: enumerate the raw records, fingerprint them, join labels, cut chunks.

Cheap: nothing is parsed where the format allows it. Records that cannot be reached again by a byte
range (members of compressed archives, entries of a JSON) are copied once, uncompressed, into
`records.spool`, so that converting N chunks reads every byte once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from atomloom.config import Split, expand_variables
from atomloom.config.root import POTENTIAL_TARGETS
from atomloom.data.splits import names_by_source
from atomloom.errors import AtomloomError
from atomloom.files import file_digest, read_json, write_atomically, write_spec
from atomloom.keys import canonical_json, chain_hash, fingerprint_record
from atomloom.layout import Layout
from atomloom.plan import Chunk, Plan, cut_chunks
from atomloom.stages.labels import read_labels, rows_of_records, to_number
from atomloom.stages.naming import tell_apart
from atomloom.stages.sources import refresh_sources
from atomloom.structures.sources import RawRecord, enumerate_records

SPOOL = -1
"""File number of a record whose bytes are in the spool."""
ROW_GROUP = 4000
"""Rows of `members.parquet` that are read together: a chunk's job looks at one or two such groups."""
_NO_LABELS: dict[str, float | str] = {}  # one for all: of millions of records each byte counts


@dataclass
class _Members:
    """Columns of `members.parquet` while they grow."""

    id: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    format: list[str] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    fingerprint: list[bytes] = field(default_factory=list)
    name: list[str] = field(default_factory=list)
    labels: list[dict[str, float | str]] = field(default_factory=list)


def make_plan(layout: Layout, log: Callable[[str], None]) -> Plan:
    """Write `plan.json`, `members.parquet`, `labels.parquet` and `records.spool`; return the plan.

    Raises:
        AtomloomError: when a source or the label table is missing, unreadable or cannot be downloaded,
            or there is no record.
    """
    dataset = layout.config.dataset
    folder = layout.plan_folder
    manifest = read_json(refresh_sources(layout, fetch=log))
    files = [Path(path) for path, _ in manifest["files"]]
    members = _Members()

    def spool(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            records = enumerate_records(files, dataset.format, dataset.options, dataset.pattern)
            for record in records:
                _add(members, record, files, file)
                if len(members.id) % 20_000 == 0:
                    log(f"{len(members.id):,} records seen")

    write_atomically(folder / "records.spool", spool)
    if not members.id:
        raise AtomloomError("no record found", where=", ".join(dataset.source))

    members.id, members.name = tell_apart(members.id, members.name, members.source)
    labels, unclaimed = _join_labels(layout, members)
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
        members_digest=chain_hash(
            part for pair in zip(members.id, members.fingerprint, strict=True) for part in pair
        ),
        labels_digest=chain_hash([labels.to_csv(index=False)]),
        fixed_digest=_fixed_digest(layout.config.split, members.source),
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
    write_atomically(folder / "labels.parquet", lambda path: labels.to_parquet(path, index=False))
    write_atomically(
        folder / "members.parquet",
        lambda path: frame.to_parquet(path, index=False, row_group_size=ROW_GROUP),
    )
    write_spec(folder, layout.plan_spec)
    plan.write(folder / "plan.json")
    log(f"{plan.records:,} records in {len(chunks)} chunks")
    if unclaimed:
        log(f"{unclaimed:,} rows of the label table have no record")
    return plan


def _fixed_digest(split: Split, sources: list[str]) -> str:
    """Names what says from outside which records are the test set; empty where nothing does."""
    if split.kind == "sources":
        return chain_hash(names_by_source(split, sources))
    return file_digest(Path(expand_variables(split.folds_file))) if split.folds_file else ""


def _add(members: _Members, record: RawRecord, files: list[Path], spool: BinaryIO) -> None:
    payload = record.payload
    if payload is None:
        with open(files[record.file], "rb") as file:
            file.seek(record.offset)
            payload = file.read(record.length)
    if record.offset >= 0:
        where, offset = record.file, record.offset
    else:
        where, offset = SPOOL, spool.tell()
        spool.write(payload)
    path = files[record.file]
    members.id.append(record.id)
    members.source.append(f"{path}::{record.member}" if record.member else str(path))
    members.number.append(record.number)
    members.format.append(record.format)
    members.file.append(where)
    members.offset.append(offset)
    members.length.append(len(payload))
    members.fingerprint.append(fingerprint_record(record.format, payload))
    members.name.append(record.member.rpartition("/")[2] if record.member else path.name)
    members.labels.append(record.labels or _NO_LABELS)


def _join_labels(layout: Layout, members: _Members) -> tuple[pd.DataFrame, int]:
    """Label values of every record, row by row: targets as numbers, other columns as text.

    Targets that neither the label table nor the records' own columns name are left out here; the
    split stage looks for them among the properties of the converted structures. A column `problem`
    says why a record has no label.
    """
    config = layout.config
    texts = [c for c in (config.split.column, config.split.group) if c and c != "formula"]
    wanted = [*config.dataset.target, *config.dataset.global_features]
    problem = [""] * len(members.id)
    if config.dataset.labels.file is None:
        known = {key for labels in members.labels for key in labels}
        get = lambda column: [labels.get(column) for labels in members.labels]  # noqa: E731
        targets = [name for name in wanted if name in known]
        unclaimed = 0
    else:
        table = read_labels(config.dataset.labels)
        rows, unclaimed = rows_of_records(table, members.id, members.name)
        get = lambda column: [  # noqa: E731
            values[row] if row >= 0 else None for values in [table.column(column)] for row in rows
        ]
        # Energies, forces and stress may stand in the records beside a table of other columns, as
        # may global features.
        own = set(config.dataset.global_features)
        own |= set(POTENTIAL_TARGETS if config.model.kind == "potential" else ())
        targets = [name for name in wanted if name in table.columns or name not in own]
        for position, (name, row) in enumerate(zip(members.id, rows, strict=True)):
            if row < 0:
                problem[position] = f"no label: `{name}` is not in {table.file}"
            elif name in table.repeated:
                problem[position] = f"`{name}` has several different labels in {table.file}"
        _mark_repeats(members, problem)
    columns: dict[str, object] = {}
    for target in targets:
        values = get(target)
        numbers = np.array([to_number(value) for value in values])
        for position in np.flatnonzero(np.isnan(numbers)):
            shown = (
                "is missing"
                if values[position] is None
                else f"is {values[position]!r}, no finite number"
            )
            problem[position] = problem[position] or f"no label: {target} {shown}"
        columns[target] = numbers
    for text in texts:
        columns[f"text:{text}"] = [None if value is None else str(value) for value in get(text)]
    return pd.DataFrame(columns | {"problem": problem}), unclaimed


def _mark_repeats(members: _Members, problem: list[str]) -> None:
    """A label joined by id belongs to one record: later records of the same id get none."""
    first: dict[str, int] = {}
    for position, name in enumerate(members.id):
        other = first.setdefault(name, position)
        if other != position and not problem[position]:
            problem[position] = f"id `{name}` stands before in {members.source[other]}"
