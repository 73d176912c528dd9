"""Structures and batches for the tests of potentials."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from atomloom.config import GraphSpec
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable


def radius_batch(
    structures: list[Structure], cutoff: float, dtype: torch.dtype = torch.float64
) -> GraphBatch:
    """One batch of the structures with our own radius graphs."""
    spec = GraphSpec(neighbors="radius", cutoff=cutoff)
    table = build_graphs(StructureTable.from_structures(structures), spec)
    rows = np.arange(len(table))
    return GraphLoader(table, rows, dtype=dtype).slice(rows)


def structure(numbers, positions, cell=None, pbc=False) -> Structure:
    return Structure(
        numbers=np.asarray(numbers),
        positions=np.asarray(positions, dtype=float),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=float),
        pbc=np.broadcast_to(np.asarray(pbc), 3).copy(),
    )


def molecule(seed: int = 0, atoms: int = 7) -> Structure:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms]
    positions = 1.7 * grid + rng.normal(scale=0.15, size=(atoms, 3))
    return structure(rng.choice([1, 6, 8], size=atoms), positions)


def crystal(seed: int = 1, atoms: int = 3) -> Structure:
    """Triclinic; the first atom lies outside the cell."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 3.6 + rng.normal(scale=0.3, size=(3, 3))
    sites = np.array([[0.02, 0.0, 0.05], [0.5, 0.48, 0.1], [0.45, 0.1, 0.52]])[:atoms]
    positions = (sites + np.array([[2.0, -1.0, 0.0], [0.0] * 3, [0.0] * 3])[:atoms]) @ cell
    return structure(rng.choice([14, 29, 8], size=atoms), positions, cell, True)


def slab(seed: int = 2) -> Structure:
    """Periodic in two directions."""
    rng = np.random.default_rng(seed)
    cell = np.diag([3.1, 3.4, 12.0])
    positions = rng.uniform(0.0, 1.0, size=(3, 3)) * 0.3 + np.array(
        [[0.0, 0.0, 1.0], [1.5, 1.6, 2.2], [0.2, 1.7, 3.6]]
    )
    return structure([22, 8, 8], positions, cell, [True, True, False])


def lone_atom(number: int = 18) -> Structure:
    return structure([number], [[0.3, 0.2, -0.1]])


def wire() -> Structure:
    """One atom, periodic in one direction: edges to its own images alone."""
    return structure([6], [[0.0, 0.0, 0.4]], np.diag([9.0, 9.0, 1.9]), [False, False, True])


def everything() -> list[Structure]:
    return [molecule(), crystal(), lone_atom(), slab(), wire()]


def turned(given: Structure, matrix: np.ndarray) -> Structure:
    """Positions and cell times a matrix."""
    return replace(given, positions=given.positions @ matrix, cell=given.cell @ matrix)


def orthogonal(seed: int, determinant: int) -> np.ndarray:
    """A random rotation, or with determinant -1 a rotation with a reflection."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * determinant * np.sign(np.linalg.det(matrix))


def moved(given: Structure, by: np.ndarray) -> Structure:
    return replace(given, positions=given.positions + by)


def reference_structures(content) -> list[Structure]:
    """The five structures of reference arrays."""
    return [
        structure(*(content[f"s{index}_{key}"] for key in ("numbers", "positions", "cell", "pbc")))
        for index in range(5)
    ]


def joined(content, key: str) -> np.ndarray:
    """Reference values of the five structures, one after another."""
    return np.concatenate([np.atleast_1d(content[f"s{index}_{key}"]) for index in range(5)])
