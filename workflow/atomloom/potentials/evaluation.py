"""Energies, forces and stress of many structures by trained potentials, batch by batch.

Graphs are built here and not kept; for repeated evaluation of a moving structure, as in dynamics,
`verlet_list` keeps its neighbours. It knows graphs and model files, nothing of the origin of
structures.

Legend: S structures, A atoms of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atomloom.config.training import Batching
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.potentials.committee import Committee, Evaluation, Source
from atomloom.store.keys import HASH_BYTES
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable


def evaluate_table(
    potential: Source | Sequence[Source] | Committee,
    table: GraphTable,
    *,
    forces: bool = True,
    stress: bool = False,
    bounds: Batching | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate graphs built by the potential's own spec, in their order.

    Args:
        potential: a potential or a committee.
        table: the graphs.
        forces: whether to compute forces.
        stress: whether to compute stresses.
        bounds: max structures, atoms, edges and triplets per batch; the device is not synchronised
            before the last batch is under way.
        device: `auto`, `cpu` or `cuda`; `auto` leaves a committee where it is.

    Raises:
        AtomloomError: when the model is not a potential, or was not trained on some element.
    """
    committee = Committee.open(potential, device)
    if not len(table):
        return _nothing(forces, stress)
    committee.require_elements(table.numbers)
    loader = GraphLoader(
        table,
        np.arange(len(table)),
        bounds=bounds,
        dtype=committee.dtype,
        device=committee.device,
    )
    outputs = [committee.ask(batch, forces=forces, stress=stress) for batch in loader]
    return committee.read(outputs, table.numbers, table.node_ptr)


def calculate_batch(
    potential: Source | Sequence[Source] | Committee,
    structures: Sequence[Any],
    *,
    forces: bool = True,
    stress: bool = False,
    device: str = "auto",
    dtype: str | None = None,
) -> Evaluation:
    """Evaluate structures of any sizes at once, in one forward and one backward pass.

    Args:
        potential: a model file, several, or loaded ones; for repeated calls open a `Committee` once.
        structures: of atomloom, pymatgen, ASE or jarvis-tools. Memory grows with their edges; for
            lists of any length see `atomloom predict`.
        forces: whether to compute forces.
        stress: whether to compute stresses.
        device: `auto`, `cpu` or `cuda`.
        dtype: `float32` or `float64`; by default that of the file.

    Raises:
        AtomloomError: when a structure is none of these, or has an element that the potential
            was not trained on.
    """
    committee = Committee.open(potential, device, dtype)
    if not len(structures):
        return _nothing(forces, stress)
    table = structure_table([plain_structure(item) for item in structures])
    committee.require_elements(table.numbers)
    graphs = build_graphs(table, committee.graph)
    rows = np.arange(len(table))
    loader = GraphLoader(graphs, rows, dtype=committee.dtype, device=committee.device)
    output = committee.ask(loader.slice(rows), forces=forces, stress=stress)
    return committee.read([output], table.numbers, table.node_ptr)


def plain_structure(item: Any) -> Structure:
    """Structure without properties from one of atomloom, pymatgen, ASE or jarvis-tools.

    Raises:
        AtomloomError: when it is none of these, or a coordinate is not finite.
    """
    if isinstance(item, Structure):
        return item
    if type(item).__module__.startswith("ase."):
        # The adapter would also collect labels, which takes longer than a small molecule's graph.
        return Structure(item.numbers, item.positions, item.cell.array, item.pbc)
    return to_structure(item)


def structure_table(structures: Sequence[Structure]) -> StructureTable:
    """Table of the structures; hashes, which evaluation does not use, are zeros."""
    counts = [len(structure) for structure in structures]
    return StructureTable(
        hash=np.zeros((len(structures), HASH_BYTES), dtype=np.uint8),
        node_ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=np.concatenate([s.numbers for s in structures]),
        positions=np.concatenate([s.positions for s in structures]),
        cell=np.stack([s.cell for s in structures]),
        pbc=np.stack([s.pbc for s in structures]),
    )


def _nothing(forces: bool, stress: bool) -> Evaluation:
    return Evaluation(
        node_ptr=np.zeros(1, dtype=np.int64),
        energy=np.zeros(0),
        atom_energies=np.zeros(0),
        forces=np.zeros((0, 3)) if forces else None,
        stress=np.zeros((0, 3, 3)) if stress else None,
    )
