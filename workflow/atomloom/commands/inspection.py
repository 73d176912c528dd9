"""`atomloom inspect`: what is in a shard, a folder of graphs, an index or a raw file, as text.

It reads and counts; it knows nothing of configs and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import GraphStore
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records, list_files
from atomloom.stages.convert import read_chunk
from atomloom.store.keys import canonical_json
from atomloom.store.shards import SUFFIX, read_attributes
from atomloom.structures.composition import reduced_formula
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure

SHOWN = 8
"""Number of the most frequent formulas, elements and reasons that are listed."""
BAR = 40
"""Length of the longest bar of a histogram in characters."""


def inspect_path(path: Path) -> Iterator[str]:
    """Describe in lines what is at `path`: a shard, an index, a folder of graph shards or raw files.

    Raises:
        AtomloomError: when there is nothing, or it is damaged or of no known kind.
    """
    if not path.exists():
        raise AtomloomError("no such file or folder", where=path)
    is_shard = path.name.endswith(SUFFIX)
    if is_shard and read_attributes(path).get("kind") == "structures":
        yield from _structures(path)
    elif is_shard or (path / "index.parquet").exists() or any(path.glob(f"*{SUFFIX}")):
        store = GraphStore(path)
        yield from _graphs(store.load(), store.attributes)
    else:
        yield from _raw(path)


def _structures(path: Path) -> Iterator[str]:
    chunk, spec = read_chunk(path), read_attributes(path).get("spec")
    yield f"structures         {len(chunk.table):,}"
    yield from _atoms(chunk.table.numbers, chunk.table.node_ptr)
    yield f"properties         {', '.join(sorted(chunk.table.properties)) or 'none'}"
    yield from _refused(reason for _, reason in chunk.quarantine)
    yield f"spec               {canonical_json(spec)}"


def _graphs(table: GraphTable, attributes: Mapping[str, Any]) -> Iterator[str]:
    yield f"graphs             {len(table):,}"
    yield from _atoms(table.numbers, table.node_ptr)
    yield f"edges              {len(table.src):,}"
    if table.triplet is not None:
        yield f"triplets           {len(table.triplet):,}"
    yield f"spec               {canonical_json(attributes['spec'])}"
    atom = table.dst.astype(np.int64) + np.repeat(table.node_ptr[:-1], np.diff(table.edge_ptr))
    neighbors = np.bincount(np.bincount(atom, minlength=len(table.numbers)))
    yield "neighbours per atom"
    yield from _histogram(neighbors)


def _atoms(numbers: np.ndarray, node_ptr: np.ndarray) -> Iterator[str]:
    sizes = np.diff(node_ptr)
    if not len(sizes):
        return
    formulas = Counter(reduced_formula(numbers[a:b]) for a, b in pairwise(node_ptr))
    elements = Counter(SYMBOLS[number] for number in numbers.tolist())
    yield f"atoms              {len(numbers):,}, {sizes.min()} to {sizes.max()} per structure"
    yield f"elements           {_most(elements)}"
    yield f"formulas           {_most(formulas)}"


def _raw(path: Path) -> Iterator[str]:
    formats: Counter[str] = Counter()
    properties: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    reasons: list[str] = []
    structures: list[Structure] = []
    files = list_files(path)
    if not files:
        raise AtomloomError("no file that a reader recognises", where=path)
    for record in enumerate_records(files):
        formats[record.format] += 1
        labels.update(record.labels.keys())
        try:
            structure = parse_record(record.format, record.payload, record.id)
        except AtomloomError as error:
            reasons.append(f"{record.id}: {error}")
            continue
        properties.update(structure.properties.keys())
        structures.append(structure)
    yield f"records            {sum(formats.values()):,} ({_most(formats)})"
    if structures:
        counts = [len(structure) for structure in structures]
        numbers = np.concatenate([structure.numbers for structure in structures])
        yield from _atoms(numbers, np.concatenate([[0], np.cumsum(counts)]))
        periodic = Counter(str(int(structure.pbc.sum())) for structure in structures)
        yield f"periodic in        {', '.join(f'{n} directions {c:,}' for n, c in sorted(periodic.items()))}"
    yield f"properties         {_most(properties) or 'none'}"
    yield f"labels             {_most(labels) or 'none'}"
    yield from _refused(iter(reasons))


def _refused(reasons: Iterator[str]) -> Iterator[str]:
    listed = list(reasons)
    yield f"cannot be used     {len(listed):,}"
    yield from (f"  {reason}" for reason in listed[:SHOWN])
    if len(listed) > SHOWN:
        yield f"  ... and {len(listed) - SHOWN:,} more"


def _most(counted: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counted.most_common(SHOWN))
    return shown + (f", ... ({len(counted):,} in all)" if len(counted) > SHOWN else "")


def _histogram(counts: np.ndarray) -> Iterator[str]:
    longest = max(counts.max(), 1)
    for value in np.flatnonzero(counts):
        yield f"  {value:5d} {'#' * max(1, round(BAR * counts[value] / longest))} {counts[value]:,}"
