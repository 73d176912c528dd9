"""Neighbour graphs from structures and a GraphSpec, for a whole chunk or for one structure.

Chooses kernels and data types and checks that a structure can have the requested graph. A graph
depends only on its structure and spec: not on its chunk, nor on donors. It knows nothing of files or
torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from atomloom.config.graph import GraphSpec
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import Graph, GraphTable
from atomloom.graphs.primitive import name_of, reduce_table
from atomloom.graphs.search import lattice_triads, search_chunk, triplet_pairs
from atomloom.store.keys import BUILDER
from atomloom.structures.adapters import to_structure
from atomloom.structures.table import StructureTable

FARTHEST = 1e6
"""Max distance from the origin in A; atoms farther away are refused."""


class Donors(Protocol):
    """Existing graphs of the same spec, by structure hash; a dict will do."""

    def get(self, structure_hash: bytes, /) -> Graph | None:
        """Graph of the structure with this 32-byte hash, or None."""


def build_graphs(
    table: StructureTable, spec: GraphSpec, donors: Donors | None = None
) -> GraphTable:
    """Build the neighbour graphs of a chunk of structures.

    Args:
        table: the structures.
        spec: which atoms are neighbours, and what is stored about them.
        donors: graphs to copy instead of searching again. A donor is used only if its atoms are those
            of the structure to the last bit (with `primitive`, if the hash is equal), so the bytes are
            the same with or without it.

    Raises:
        AtomloomError: naming the structure, if its graph cannot be built: a lattice triad for
            a structure that is not periodic in three directions, an atom thousands of cells
            away, or no primitive cell.
    """
    attributes = {"kind": "graphs", "spec": spec.key_content(), "builder": BUILDER}
    if spec.lattice or spec.lattice_edges:
        _require_crystals(table)
    _require_near(table)
    given = {} if donors is None else _fitting(table, spec, donors)
    searched = np.array([row for row in range(len(table)) if row not in given], dtype=np.int64)
    whole = len(searched) == len(table)
    graphs = _search(table if whole else table.take(searched), spec)
    if given:
        donated = GraphTable.from_graphs(
            [table.hash[row].tobytes() for row in given], list(given.values())
        )
        order = np.empty(len(table), dtype=np.int64)
        order[searched] = np.arange(len(searched))
        order[list(given)] = len(searched) + np.arange(len(given))
        graphs = GraphTable.concatenate([graphs, donated]).take(order)
    return replace(_compact(graphs, table), attributes=attributes)


def build_graph(structure: Any, spec: GraphSpec) -> Graph:
    """Build the neighbour graph of one structure of atomloom, pymatgen, ASE or jarvis-tools.

    Raises:
        AtomloomError: as `build_graphs`, or if `structure` is none of these.
    """
    return build_graphs(StructureTable.from_structures([to_structure(structure)]), spec)[0]


def _search(table: StructureTable, spec: GraphSpec) -> GraphTable:
    if spec.neighbors == "none":
        return _without_edges(table)
    if spec.primitive:
        table = reduce_table(table)
    knn = spec.neighbors == "knn"
    node_ptr = _plain(table.node_ptr, np.int64)
    cell = _plain(table.cell, np.float64)
    edge_ptr, src, dst, shift, listed, distance = search_chunk(
        node_ptr,
        _plain(table.positions, np.float64),
        cell,
        _plain(table.pbc, np.bool_),
        spec.max_neighbors if knn else 0,
        float(spec.cutoff),
        knn and spec.short == "keep",
        float(spec.shell_tolerance),
        spec.lattice_edges,
    )
    triplet_ptr = triplet = None
    if spec.triplets is not None:
        triplet_ptr, triplet = triplet_pairs(edge_ptr, dst, distance, float(spec.triplets))
    return GraphTable(
        hash=table.hash,
        node_ptr=node_ptr,
        edge_ptr=edge_ptr,
        numbers=table.numbers,
        positions=table.positions,
        cell=table.cell,
        pbc=table.pbc,
        src=src,
        dst=dst,
        shift=shift,
        listed=listed if knn else None,
        lattice=lattice_triads(cell, float(spec.shell_tolerance)) if spec.lattice else None,
        triplet_ptr=triplet_ptr,
        triplet=triplet,
    )


def _without_edges(table: StructureTable) -> GraphTable:
    """Graphs of atoms alone."""
    none = np.zeros(0, dtype=np.int64)
    return GraphTable(
        hash=table.hash,
        node_ptr=_plain(table.node_ptr, np.int64),
        edge_ptr=np.zeros(len(table) + 1, dtype=np.int64),
        numbers=table.numbers,
        positions=table.positions,
        cell=table.cell,
        pbc=table.pbc,
        src=none,
        dst=none,
        shift=none.reshape(0, 3),
    )


def _plain(array: np.ndarray, dtype: type) -> np.ndarray:
    """Contiguous, writeable array: the kernels are compiled for this kind only."""
    return np.require(array, dtype, ["C", "W"])


def _compact(graphs: GraphTable, table: StructureTable) -> GraphTable:
    """Graphs in the smallest integer types that can hold them."""
    most = int(np.diff(graphs.node_ptr).max(initial=0))
    atom = np.uint16 if most <= 2**16 else np.uint32
    low, high = int(graphs.shift.min(initial=0)), int(graphs.shift.max(initial=0))
    if low < -(2**15) or high >= 2**15:
        edge = int(np.abs(graphs.shift.astype(np.int64)).max(axis=1).argmax())
        row = int(np.searchsorted(graphs.edge_ptr, edge, side="right")) - 1
        raise AtomloomError(
            f"an atom is {max(-low, high)} cells away from its neighbours",
            where=name_of(table, row),
            todo="wrap the atoms into the cell",
        )
    cells = np.int8 if low >= -(2**7) and high < 2**7 else np.int16
    return replace(
        graphs,
        src=graphs.src.astype(atom),
        dst=graphs.dst.astype(atom),
        shift=graphs.shift.astype(cells),
    )


def _fitting(table: StructureTable, spec: GraphSpec, donors: Donors) -> dict[int, Graph]:
    """Graph of each structure that has a donor, by row."""
    given = {}
    for row in range(len(table)):
        graph = donors.get(table.hash[row].tobytes())
        if graph is None:
            continue
        atoms = slice(table.node_ptr[row], table.node_ptr[row + 1])
        # With `primitive` a graph follows from what is hashed. Otherwise its positions are those of
        # the record, which the hash knows only to 1e-8 A.
        if spec.primitive or (
            _same_bits(graph.positions, table.positions[atoms])
            and _same_bits(graph.cell, table.cell[row])
        ):
            given[row] = graph
    return given


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _require_near(table: StructureTable) -> None:
    """Refuse coordinates that leave too few digits for distances or overflow cell counts."""
    far = np.flatnonzero((np.abs(table.positions) > FARTHEST).any(axis=1))
    if len(far):
        row = int(np.searchsorted(table.node_ptr, far[0], side="right")) - 1
        raise AtomloomError(
            f"atom {far[0] - table.node_ptr[row]} is more than {FARTHEST:g} A from the origin",
            where=name_of(table, row),
            todo="wrap the atoms into the cell",
        )


def _require_crystals(table: StructureTable) -> None:
    flat = np.flatnonzero(~table.pbc.all(axis=1))
    if len(flat):
        raise AtomloomError(
            "the lattice triad needs three periodic directions",
            where=name_of(table, int(flat[0])),
            todo="set `lattice` and `lattice_edges` to false, or leave such structures out",
        )
