"""Structures and slow, plain reference searches for the tests of graphs."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ase.build import bulk, molecule
from ase.spacegroup import crystal
from hypothesis import strategies as st

from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable


def from_ase(atoms) -> Structure:
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def nacl_primitive() -> Structure:
    return from_ase(bulk("NaCl", "rocksalt", a=5.64))


def nacl_cubic() -> Structure:
    return from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True))


def rutile() -> Structure:
    sites = [(0, 0, 0), (0.3053, 0.3053, 0)]
    lengths = [4.594, 4.594, 2.959, 90, 90, 90]
    return from_ase(crystal(["Ti", "O"], sites, spacegroup=136, cellpar=lengths))


def perovskite() -> Structure:
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]
    lengths = [3.905, 3.905, 3.905, 90, 90, 90]
    return from_ase(crystal(["Sr", "Ti", "O"], sites, spacegroup=221, cellpar=lengths))


def magnesium() -> Structure:
    return from_ase(bulk("Mg", "hcp", a=3.209, c=5.211))


def copper() -> Structure:
    return from_ase(bulk("Cu", "fcc", a=3.61))


def water() -> Structure:
    return from_ase(molecule("H2O"))


def random_structure(seed: int, atoms: int, pbc=(True, True, True), skew=0.4, spread=1.0):
    """Atoms at random, some of them outside the cell; about 12 A^3 an atom."""
    rng = np.random.default_rng(seed)
    side = (12.0 * atoms) ** (1 / 3)
    cell = side * (np.diag(rng.uniform(0.7, 1.4, 3)) + skew * rng.uniform(-1, 1, (3, 3)))
    if np.linalg.det(cell) < 0.2 * side**3:
        cell = side * np.diag(rng.uniform(0.7, 1.4, 3))
    fractions = rng.uniform(-spread, 1 + spread, (atoms, 3))
    return Structure(rng.integers(1, 90, atoms), fractions @ cell, cell, pbc)


@st.composite
def structures(draw, most: int = 8, pbc=None):
    """Random structures of up to `most` atoms, of any periodicity unless told."""
    periodic = draw(st.tuples(st.booleans(), st.booleans(), st.booleans())) if pbc is None else pbc
    return random_structure(draw(st.integers(0, 10**6)), draw(st.integers(1, most)), periodic)


def table_of(*members: Structure) -> StructureTable:
    return StructureTable.from_structures(list(members))


def images_within(structure: Structure, radius: float):
    """Every (dst, src, shift, distance) within a radius, by brute force over whole cells."""
    cell, pbc = structure.cell, structure.pbc
    reach = np.zeros(3, int)
    if pbc.any():
        # Widths between lattice planes of the periodic directions, and how far atoms stray.
        inverse = np.linalg.pinv(cell[pbc])
        spans = (structure.positions @ inverse).max(0) - (structure.positions @ inverse).min(0)
        reach[pbc] = np.ceil(radius * np.linalg.norm(inverse, axis=0) + spans).astype(int) + 1
    grid = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1)
    shifts = grid.reshape(-1, 3)
    offsets = shifts @ cell
    found = []
    for dst in range(len(structure)):
        for src in range(len(structure)):
            vectors = structure.positions[src] + offsets - structure.positions[dst]
            distances = np.linalg.norm(vectors, axis=1)
            near = distances <= radius
            if dst == src:
                near &= np.abs(shifts).any(axis=1)
            found += [
                (dst, src, tuple(shift), distance)
                for shift, distance in zip(shifts[near].tolist(), distances[near], strict=True)
            ]
    return found


def edge_set(graph) -> dict[tuple, int]:
    """Each edge (dst, src, shift) and its bits (0 for radius graphs)."""
    bits = np.zeros(len(graph.src), int) if graph.listed is None else graph.listed
    keys = zip(
        graph.dst.tolist(), graph.src.tolist(), map(tuple, graph.shift.tolist()), strict=True
    )
    edges = dict(zip(keys, bits.tolist(), strict=True))
    assert len(edges) == len(graph.src), "an edge stands twice"
    return edges


def shape_of(graph, relabel=None, digits: int = 5) -> Counter:
    """What no rigid motion or choice of cell changes: ends, distance and bits of every edge."""
    names = np.arange(len(graph.numbers)) if relabel is None else relabel
    bits = np.zeros(len(graph.src), int) if graph.listed is None else graph.listed
    # Self-edges of a lattice triad carry their bit by sign; only the number of bits is invariant.
    count = (bits & 1) + (bits >> 1)
    return Counter(
        zip(
            names[graph.dst].tolist(),
            names[graph.src].tolist(),
            np.round(graph.distances, digits).tolist(),
            count.tolist(),
            strict=True,
        )
    )


def rotation(seed: int) -> np.ndarray:
    """A random proper rotation, [3, 3]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)
