"""Make `cif/` and `id_prop.csv`: small crystals with GFN1-xTB cohesive energies.

Each parent crystal (a formula in a prototype) is brought near its GFN1-xTB
volume, then strained and rattled. A structure is rounded to the digits of its
CIF before it is computed: the label belongs to the very numbers that are stored.

    python make.py --out . --cache /tmp/demo_crystals

Units: A, eV, eV/atom. A second run with the same cache resumes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import math
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.formula import Formula
from ase.geometry import cell_to_cellpar, cellpar_to_cell
from ase.units import Bohr, Hartree
from tblite.interface import Calculator

METHOD = "GFN1-xTB"
ITERATIONS = 250  # of the self-consistent field
SUPERCELL_WIDTH = 10.0  # A, least perpendicular width of a cell sampled at Gamma
SCAN_WIDTH = 7.5  # A, the same for the cheaper search of the volume
LARGEST_STRAIN = 0.05  # bound on the absolute eigenvalues of a strain tensor
SCALE_STEP, LAST_SCALE_STEP = 0.04, 3  # search of a within 12 % of the table below
STRONGEST_BINDING = -12.0  # eV/atom; nothing here may be bound more
WIDEST_GROUP = 1.0  # eV/atom; how far a variant may lie from its parent
CELL_DECIMALS, POSITION_DECIMALS, LABEL_DECIMALS = 6, 8, 5

# Unpaired electrons of the free atom in its ground state (Hund, NIST ASD).
UNPAIRED = {
    **dict.fromkeys(("H", "Li", "Na", "K", "Rb", "Cs", "F", "Cl", "Br", "I"), 1),
    **dict.fromkeys(("Be", "Mg", "Ca", "Zn", "Cd"), 0),
    **dict.fromkeys(("B", "Al", "Ga", "Cu", "Ag"), 1),
    **dict.fromkeys(("Si", "Ge", "Sn", "Pb", "O", "S", "Se", "Te"), 2),
    **dict.fromkeys(("P", "As", "Sb"), 3),
    "Nb": 5,
}

ThreeVectors = tuple[tuple[float, ...], ...]
FCC: ThreeVectors = ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
BCC: ThreeVectors = ((-0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5, -0.5))
SIMPLE: ThreeVectors = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
HEXAGONAL: ThreeVectors = ((1, 0, 0), (-0.5, math.sqrt(0.75), 0), (0, 0, 1))
AS_IT_IS: ThreeVectors = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
FCC_TO_TETRAGONAL: ThreeVectors = ((1, -1, 0), (1, 1, -1), (0, 0, 1))
FCC_TO_CUBIC: ThreeVectors = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
BCC_TO_CUBIC: ThreeVectors = ((0, 1, 1), (1, 0, 1), (1, 1, 0))
TO_DOUBLE_SQUARE: ThreeVectors = ((1, -1, 0), (1, 1, 0), (0, 0, 1))


@dataclass(frozen=True)
class Prototype:
    """A crystal structure without its elements."""

    vectors: ThreeVectors  # rows, primitive cell, in units of (a, a, c)
    sites: tuple[ThreeVectors, ...]  # fractional, per element, rarest element first
    rattle_cell: ThreeVectors  # rows: the cell in which atoms are displaced, in primitive vectors


PROTOTYPES = {
    "rocksalt": Prototype(FCC, (((0, 0, 0),), ((0.5, 0.5, 0.5),)), FCC_TO_TETRAGONAL),
    "zincblende": Prototype(FCC, (((0, 0, 0),), ((0.25, 0.25, 0.25),)), FCC_TO_TETRAGONAL),
    "wurtzite": Prototype(
        HEXAGONAL,
        (
            ((1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0.5)),
            ((1 / 3, 2 / 3, 0.375), (2 / 3, 1 / 3, 0.875)),
        ),
        AS_IT_IS,
    ),
    "fluorite": Prototype(
        FCC, (((0, 0, 0),), ((0.25, 0.25, 0.25), (0.75, 0.75, 0.75))), FCC_TO_TETRAGONAL
    ),
    "rutile": Prototype(
        SIMPLE,
        (
            ((0, 0, 0), (0.5, 0.5, 0.5)),
            ((0.305, 0.305, 0), (0.695, 0.695, 0), (0.195, 0.805, 0.5), (0.805, 0.195, 0.5)),
        ),
        AS_IT_IS,
    ),
    "perovskite": Prototype(
        SIMPLE,
        (((0, 0, 0),), ((0.5, 0.5, 0.5),), ((0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))),
        AS_IT_IS,
    ),
    "CsCl": Prototype(SIMPLE, (((0, 0, 0),), ((0.5, 0.5, 0.5),)), TO_DOUBLE_SQUARE),
    "fcc": Prototype(FCC, (((0, 0, 0),),), FCC_TO_CUBIC),
    "bcc": Prototype(BCC, (((0, 0, 0),),), BCC_TO_CUBIC),
    "diamond": Prototype(FCC, (((0, 0, 0), (0.25, 0.25, 0.25)),), FCC_TO_TETRAGONAL),
}

# Formula and measured (or usual) a, and c where it is free, in A: where the search
# of the volume begins.
PARENTS = {
    "rocksalt": "LiCl:5.13 LiBr:5.50 NaF:4.62 NaCl:5.64 NaBr:5.97 NaI:6.47 KF:5.35 KH:5.70 "
    "KBr:6.60 RbCl:6.58 MgS:5.20 MgSe:5.46 CaS:5.69 AgCl:5.55 AgBr:5.77 "
    "GeTe:5.98 SnSe:6.00 PbS:5.94 PbTe:6.46",
    "zincblende": "BeS:4.87 BeSe:5.14 MgTe:6.42 ZnS:5.41 ZnTe:6.10 CdS:5.82 CdTe:6.48 BP:4.54 "
    "AlP:5.46 AlSb:6.14 GaP:5.45 GaAs:5.65 GaSb:6.10 CuCl:5.42 CuI:6.05 AgI:6.47",
    "wurtzite": "MgTe:4.54:7.38 ZnS:3.82:6.26 CdSe:4.30:7.01 AgI:4.59:7.51 AlP:3.86:6.34",
    "fluorite": "CdF2:5.39 Li2S:5.71 Li2Se:6.00 Na2S:6.53 K2S:7.39",
    "rutile": "SnO2:4.74:3.19 ZnF2:4.70:3.13",
    "perovskite": "CsPbCl3:5.60 CsPbBr3:5.87 CsPbI3:6.29 CsSnBr3:5.80 CsSnI3:6.22 KMgCl3:4.99 "
    "KCdF3:4.29",
    "CsCl": "CsBr:4.29 CsI:4.57",
    "fcc": "Cu:3.61 Ag:4.09",
    "bcc": "Nb:3.30",
    "diamond": "Si:5.43 Ge:5.66 Sn:6.49",
}

VARIANTS = ("eq", "compressed", "stretched", "sheared", "rattled1", "rattled2", "mixed")
RATTLED = ("rattled1", "rattled2", "mixed")  # stored in the rattle cell of the prototype


@dataclass(frozen=True)
class Parent:
    """A formula in a prototype, with lattice parameters in A."""

    formula: str
    prototype: str
    a: float
    c: float

    @property
    def name(self) -> str:
        return f"{self.formula}-{self.prototype}"

    def primitive(self, scale: float = 1.0) -> Atoms:
        """The primitive cell, with both lattice parameters times `scale`."""
        prototype = PROTOTYPES[self.prototype]
        counts = Formula(self.formula).count()
        elements = sorted(counts, key=counts.get)  # stable: keeps A before B in ABX3
        symbols, positions = [], []
        for element, sites in zip(elements, prototype.sites, strict=True):
            symbols += [element] * len(sites)
            positions += sites
        cell = np.array(prototype.vectors) * np.array([self.a, self.a, self.c]) * scale
        return Atoms(symbols, scaled_positions=positions, cell=cell, pbc=True)


def parents() -> Iterator[Parent]:
    """All parents of the table, in its order."""
    for prototype, line in PARENTS.items():
        for entry in line.split():
            formula, *lengths = entry.split(":")
            a = float(lengths[0])
            yield Parent(formula, prototype, a, float(lengths[-1]))


def supercell_matrix(cell: np.ndarray, width: float) -> np.ndarray:
    """The smallest superlattice (integer rows) with all perpendicular widths >= `width` (A)."""
    longest = 1.6 * width  # longer vectors make cells flatter than the best one
    reach = np.ceil(longest * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int)
    integers = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    lengths = np.linalg.norm(integers @ cell, axis=1)
    integers = integers[(lengths >= width) & (lengths <= longest)]
    integers = integers[[next(n for n in row if n) > 0 for row in integers]]  # v, not also -v
    vectors = integers @ cell
    lengths = np.linalg.norm(vectors, axis=1)

    best, best_volume = None, math.inf
    for i, j in itertools.combinations(range(len(vectors)), 2):
        normal = np.cross(vectors[i], vectors[j])
        area = np.linalg.norm(normal)
        if area < width * max(lengths[i], lengths[j]):
            continue
        volumes = np.abs(vectors[j + 1 :] @ normal)
        tall = (volumes >= width * area) & (volumes < best_volume * (1 - 1e-6))
        for k in np.flatnonzero(tall):
            if volumes[k] >= best_volume * (1 - 1e-6):
                continue
            rows = [i, j, j + 1 + k]
            widths = 1 / np.linalg.norm(np.linalg.inv(vectors[rows]), axis=0)
            if widths.min() >= width:
                best, best_volume = integers[rows], volumes[k]
    if best is None:
        raise ValueError(f"no superlattice of width {width} A for cell {cell.tolist()}")
    return best if np.linalg.det(best) > 0 else -best


class Energies:
    """GFN1-xTB energies (eV), each computed once and kept in a folder of small files."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        cache.mkdir(parents=True, exist_ok=True)

    def total(self, atoms: Atoms, unpaired: int = 0) -> float | None:
        """Energy of a cell sampled at Gamma, or of a free atom; None if not converged."""
        content = json.dumps(
            [METHOD, unpaired, str(atoms.symbols), atoms.cell.tolist(), atoms.positions.tolist()]
        )
        path = self.cache / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(single_point(atoms, unpaired)))
            os.replace(partial, path)
        return json.loads(path.read_text())

    def cohesive(self, atoms: Atoms, matrix: np.ndarray) -> float | None:
        """Cohesive energy (eV/atom) of a small cell, computed in the supercell `matrix`."""
        total = self.total(make_supercell(atoms, matrix))
        if total is None:
            return None
        copies = round(np.linalg.det(matrix))
        free = sum(self.total(Atoms(element), UNPAIRED[element]) for element in atoms.symbols)
        return (total / copies - free) / len(atoms)


def single_point(atoms: Atoms, unpaired: int) -> float | None:
    """GFN1-xTB energy in eV from a fresh guess; None if the field does not converge."""
    lattice = (atoms.cell.array / Bohr, atoms.pbc) if atoms.pbc.any() else ()
    calculator = Calculator(METHOD, atoms.numbers, atoms.positions / Bohr, 0.0, unpaired, *lattice)
    calculator.set("verbosity", 0)
    calculator.set("max-iter", ITERATIONS)
    try:
        return float(calculator.singlepoint().get("energy") * Hartree)
    except RuntimeError as error:
        print(f"  {atoms.symbols}: {error}", flush=True)
        return None


def best_scale(parent: Parent, energies: Energies) -> float | None:
    """Scale of a and c at the energy minimum; None if there is none near the table's values.

    Walks downhill from 1 in steps of SCALE_STEP, then takes the vertex of the
    parabola through the lowest point and its neighbours.
    """
    matrix = supercell_matrix(parent.primitive().cell.array, SCAN_WIDTH)

    def at(step: int) -> float | None:
        return energies.cohesive(parent.primitive(1 + step * SCALE_STEP), matrix)

    step = 0
    while abs(step) < LAST_SCALE_STEP:
        below, here, above = at(step - 1), at(step), at(step + 1)
        if below is None or here is None or above is None:
            return None
        if here <= below and here <= above:
            vertex = step + 0.5 * (below - above) / (below - 2 * here + above)
            return round(1 + vertex * SCALE_STEP, 4)
        step += -1 if below < above else 1
    return None


def random_shear(rng: np.random.Generator) -> np.ndarray:
    """A symmetric, traceless strain (3, 3); largest |eigenvalue| 0.02 to LARGEST_STRAIN."""
    gaussian = rng.normal(size=(3, 3))
    strain = (gaussian + gaussian.T) / 2
    strain -= np.trace(strain) / 3 * np.eye(3)
    return strain / np.abs(np.linalg.eigvalsh(strain)).max() * rng.uniform(0.02, LARGEST_STRAIN)


def make_variant(parent: Parent, scale: float, variant: str, seed: int) -> Atoms:
    """One strained or rattled cell of a parent; depends on nothing made before it."""
    name = zlib.crc32(f"{parent.name}-{variant}".encode())
    rng = np.random.default_rng([seed, name])
    atoms = parent.primitive(scale)
    strain, sigma = np.zeros((3, 3)), 0.0
    if variant == "compressed":
        strain = -rng.uniform(0.015, 0.045) * np.eye(3)
    elif variant == "stretched":
        strain = rng.uniform(0.015, 0.045) * np.eye(3)
    elif variant == "sheared":
        strain = random_shear(rng)
    elif variant == "rattled1":
        sigma = rng.uniform(0.02, 0.06)
    elif variant == "rattled2":
        sigma = rng.uniform(0.06, 0.1)
    elif variant == "mixed":
        strain, sigma = random_shear(rng), rng.uniform(0.02, 0.1)
    if variant in RATTLED:
        atoms = make_supercell(atoms, np.array(PROTOTYPES[parent.prototype].rattle_cell))
        atoms.positions += rng.normal(scale=sigma, size=(len(atoms), 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return rounded(atoms)


def rounded(atoms: Atoms) -> Atoms:
    """The structure that its CIF describes: lengths and angles, then fractions, rounded."""
    fractions = atoms.get_scaled_positions(wrap=True).round(POSITION_DECIMALS) % 1.0
    cell = cellpar_to_cell(cell_to_cellpar(atoms.cell.array).round(CELL_DECIMALS))
    return Atoms(atoms.symbols, scaled_positions=fractions, cell=cell, pbc=True)


def cif(atoms: Atoms, name: str) -> str:
    """A minimal P1 CIF."""
    lengths_and_angles = cell_to_cellpar(atoms.cell.array)
    keys = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}"]
    lines += [
        f"_cell_{key} {value:.{CELL_DECIMALS}f}"
        for key, value in zip(keys, lengths_and_angles, strict=True)
    ]
    lines += ["_symmetry_space_group_name_H-M 'P 1'", "_symmetry_Int_Tables_number 1"]
    lines += ["loop_", "_symmetry_equiv_pos_as_xyz", "'x, y, z'"]
    lines += ["loop_", "_atom_site_label", "_atom_site_type_symbol"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    fractions = atoms.get_scaled_positions(wrap=False)
    for number, (symbol, fraction) in enumerate(zip(atoms.symbols, fractions, strict=True), 1):
        coordinates = " ".join(f"{x:.{POSITION_DECIMALS}f}" for x in fraction)
        lines.append(f"{symbol}{number} {symbol} {coordinates}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "demo_crystals")
    parser.add_argument("--seed", type=int, default=20240)
    arguments = parser.parse_args()
    folder = arguments.out / "cif"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.cif"):
        stale.unlink()

    begin = time.monotonic()
    energies = Energies(arguments.cache)
    rows = []
    dropped = {"no minimum": 0, "not converged": 0, "outlier": 0}
    for parent in parents():
        scale = best_scale(parent, energies)
        if scale is None:
            print(f"{parent.name}: dropped, no energy minimum near the table", flush=True)
            dropped["no minimum"] += 1
            continue
        rattle_cell = np.array(PROTOTYPES[parent.prototype].rattle_cell)
        # one superlattice for all siblings, wide enough under any of their strains
        superlattice = supercell_matrix(
            rattle_cell @ parent.primitive(scale).cell.array,
            SUPERCELL_WIDTH / (1 - LARGEST_STRAIN),
        )
        values = {}
        for variant in VARIANTS:
            atoms = make_variant(parent, scale, variant, arguments.seed)
            matrix = superlattice if variant in RATTLED else superlattice @ rattle_cell
            value = energies.cohesive(atoms, matrix)
            if value is None:
                dropped["not converged"] += 1
                continue
            values[variant] = value
            near = abs(value - values.get("eq", value)) <= WIDEST_GROUP
            if not (STRONGEST_BINDING <= value < 0 and near):
                print(f"{parent.name}-{variant}: dropped, {value:.3f} eV/atom", flush=True)
                dropped["outlier"] += 1
                continue
            name = f"{parent.name}-{variant}"
            (folder / f"{name}.cif").write_text(cif(atoms, name))
            label = f"{value:.{LABEL_DECIMALS}f}"
            rows.append([name, label, parent.formula, parent.prototype, parent.name])
        summary = " ".join(f"{value:.3f}" for value in values.values())
        seconds = time.monotonic() - begin
        size = round(np.linalg.det(superlattice @ rattle_cell)) * len(parent.primitive())
        print(f"{parent.name}: a x {scale}, {size} atoms, {summary}; {seconds:.0f} s", flush=True)

    with (arguments.out / "id_prop.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "cohesive_energy_per_atom", "formula", "prototype", "group"])
        writer.writerows(rows)
    print(f"{len(rows)} crystals; dropped: {dropped}")


if __name__ == "__main__":
    main()
