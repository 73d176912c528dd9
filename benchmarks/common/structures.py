"""Made-up crystals of any number and size, and frames of them as text."""

from __future__ import annotations

import numpy as np

from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure


def random_crystals(count: int, atoms: int, seed: int = 0) -> list[Structure]:
    """Mildly skewed cells of 15 A^3 per atom, atoms at random places of a grid, slightly off it."""
    rng = np.random.default_rng(seed)
    side = (15.0 * atoms) ** (1 / 3)
    steps = int(np.ceil((1.5 * atoms) ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(steps)] * 3), axis=-1).reshape(-1, 3) / steps
    crystals = []
    for _ in range(count):
        cell = side * (np.diag(rng.uniform(0.8, 1.2, 3)) + rng.normal(scale=0.08, size=(3, 3)))
        places = grid[rng.permutation(len(grid))[:atoms]] + rng.normal(scale=0.02, size=(atoms, 3))
        crystals.append(
            Structure(rng.choice([8, 14, 22, 38], atoms), places @ cell, cell, [True] * 3)
        )
    return crystals


def extxyz_frame(structure: Structure, energy: float = 0.0) -> str:
    """Text of one periodic frame with an energy."""
    lattice = " ".join(f"{x:.8f}" for x in structure.cell.ravel())
    rows = "\n".join(
        f"{SYMBOLS[number]} {x:.8f} {y:.8f} {z:.8f}"
        for number, (x, y, z) in zip(
            structure.numbers.tolist(), structure.positions.tolist(), strict=True
        )
    )
    head = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 energy={energy:.6f} pbc="T T T"'
    return f"{len(structure)}\n{head}\n{rows}\n"
