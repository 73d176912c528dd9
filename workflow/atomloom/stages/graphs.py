"""Stage `graphs`: the structures of one chunk to one shard of neighbour graphs.

A structure already known under the same graph spec is copied from the shard that has it (its
donor) instead of being searched again; the bytes are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atomloom.config import GraphSpec
from atomloom.errors import AtomloomError, again
from atomloom.graphs.build import build_graph, build_graphs
from atomloom.graphs.graph import Graph, GraphTable
from atomloom.graphs.store import read_graphs, write_graphs
from atomloom.pipeline.paths import Layout
from atomloom.stages.convert import (
    ChunkRecords,
    read_chunk,
    without_properties,
)
from atomloom.store.files import write_spec
from atomloom.store.parquet import read_table
from atomloom.store.shards import REPAIR, reasons_in
from atomloom.structures.table import StructureTable

DONORS = "donors.parquet"


@dataclass(frozen=True)
class Donors:
    """Existing graphs of one spec, by structure hash; shards are read when first needed."""

    folder: Path
    place: dict[bytes, tuple[str, int]]
    """Structure hash -> shard file name and row."""
    opened: dict[str, GraphTable]

    @classmethod
    def of(cls, folder: Path) -> Donors:
        """Load the donors of a graph folder; none if no index was written yet."""
        path = folder / DONORS
        if not path.exists():
            return cls(folder, {}, {})
        try:
            frame = read_table(path, ["hash", "shard", "row"], todo=again("index"))
        except AtomloomError:
            return cls(folder, {}, {})  # a damaged shortcut is ignored; the index writes it again
        places = zip(frame["shard"], frame["row"], strict=True)
        return cls(folder, dict(zip(frame["hash"], places, strict=True)), {})

    def get(self, structure_hash: bytes) -> Graph | None:
        """Graph of this structure, or None."""
        if structure_hash not in self.place:
            return None
        shard, row = self.place[structure_hash]
        try:
            if shard not in self.opened:
                self.opened[shard] = read_graphs(self.folder / shard)
            table = self.opened[shard]
            return table[row] if table.hash[row].tobytes() == structure_hash else None
        except AtomloomError:
            # A donor is only a shortcut: if it is missing or damaged, the graph is searched again.
            del self.place[structure_hash]
            return None


def build_chunk(layout: Layout, key: str, log: Callable[[str], None]) -> Path:
    """Write the shard of graphs of chunk `key` and return its path.

    Raises:
        AtomloomError: when the chunk is not converted, or its shard is damaged.
    """
    spec = layout.config.graph
    write_spec(layout.graph_folder, layout.graph_spec)
    structures = without_properties(read_chunk(layout.structures(key)))
    donors = Donors.of(layout.graph_folder)
    graphs, skipped = _build(structures, spec, donors)
    path = layout.graphs(key)
    write_graphs(path, graphs, spec, attributes={"skipped": [list(row) for row in skipped]})
    borrowed = sum(len(table) for table in donors.opened.values())
    log(
        f"{len(graphs):,} graphs, {len(graphs.src):,} edges"
        + (f", {len(skipped)} in quarantine" if skipped else "")
        + (", known graphs copied" if borrowed else "")
    )
    return path


@dataclass(frozen=True)
class ChunkGraphs:
    """Graphs of a chunk, and which of its structures have one."""

    table: GraphTable
    kept: np.ndarray
    """[S] bool, whether a structure has a graph: the rows of the table, in order."""
    skipped: tuple[tuple[int, str], ...]
    """(row of the structures, reason) of each of the others."""


def read_chunk_graphs(records: ChunkRecords, graphs: Path) -> ChunkGraphs:
    """Read the shard of graphs of a chunk, and check that they are those of its structures.

    Raises:
        AtomloomError: when the shard is missing or damaged, or holds graphs of other structures.
    """
    table = read_graphs(graphs)
    skipped = tuple(reasons_in(table.attributes, "skipped", graphs))
    rows = np.array([row for row, _ in skipped], dtype=np.int64)
    kept = np.ones(len(records.record), dtype=bool)
    inside = not len(rows) or 0 <= rows.min() <= rows.max() < len(kept)
    if inside:
        kept[rows] = False
    if not inside or not np.array_equal(records.hash[kept], table.hash):
        raise AtomloomError("holds graphs of other structures", where=graphs, todo=REPAIR)
    return ChunkGraphs(table, kept, skipped)


def _build(
    structures: StructureTable, spec: GraphSpec, donors: Donors
) -> tuple[GraphTable, list[tuple[int, str]]]:
    """Build graphs of all structures that can have one, with rows and reasons of the others."""
    try:
        return build_graphs(structures, spec, donors=donors), []
    except AtomloomError:
        pass  # at least one cannot be built: find it by trying one by one
    kept, skipped = [], []
    for row in range(len(structures)):
        try:
            build_graph(structures[row], spec)
            kept.append(row)
        except AtomloomError as error:
            skipped.append((row, str(error)))
    return build_graphs(
        structures.take(np.array(kept, dtype=np.int64)), spec, donors=donors
    ), skipped
