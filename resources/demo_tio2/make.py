"""Make `tio2.extxyz`: rattled and strained TiO2 frames labelled by GFN1-xTB.

Every frame starts from the measured structure of one phase (rutile, anatase,
brookite), is strained, rattled, rounded to the digits of the file, and only
then computed: the labels belong to the very numbers that are stored.

    python make.py --out . --cache /tmp/demo_tio2

Units: A, eV, eV/A, eV/A^3. A second run with the same cache resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.spacegroup import crystal
from ase.stress import voigt_6_to_full_3x3_stress
from tblite.ase import TBLite

METHOD = "GFN1-xTB"
ACCURACY = 0.1  # of tblite; 1.0 is its default, smaller is tighter
RATTLE_SIGMAS = (0.02, 0.05, 0.08, 0.11, 0.15)  # A
LARGEST_STRAIN = 0.04  # bound on the absolute eigenvalues of the strain tensor
CLOSEST_CONTACT = 1.55  # A; atoms that a rattle brings closer are rattled again
LENGTH_DECIMALS = 8
LABEL_DECIMALS = 6


@dataclass(frozen=True)
class Phase:
    """A TiO2 polymorph as measured, and the supercell in which it is sampled."""

    name: str
    spacegroup: int
    cell: tuple[float, float, float]  # a, b, c in A; all angles are 90 degrees
    sites: tuple[tuple[str, tuple[float, float, float]], ...]  # fractional
    supercell: tuple[tuple[int, int, int], ...]  # rows: new vectors in old ones

    def ideal(self) -> Atoms:
        """The unstrained supercell, at the measured lattice parameters (A)."""
        unit = crystal(
            [element for element, _ in self.sites],
            [position for _, position in self.sites],
            spacegroup=self.spacegroup,
            cellpar=[*self.cell, 90, 90, 90],
        )
        cell = make_supercell(Atoms(unit, info={}), np.array(self.supercell))
        return Atoms(cell.symbols, cell.positions, cell=cell.cell, pbc=True)


PHASES = (
    Phase(
        "rutile",
        136,
        (4.594, 4.594, 2.959),
        (("Ti", (0, 0, 0)), ("O", (0.305, 0.305, 0))),
        ((2, 0, 0), (0, 2, 0), (0, 0, 2)),
    ),
    Phase(
        "anatase",
        141,
        (3.785, 3.785, 9.514),
        (("Ti", (0, 0, 0)), ("O", (0, 0, 0.208))),
        ((1, -1, 0), (1, 1, 0), (0, 0, 1)),
    ),
    Phase(
        "brookite",
        61,
        (9.184, 5.447, 5.145),
        (
            ("Ti", (0.1289, 0.0972, 0.8628)),
            ("O", (0.0095, 0.1491, 0.1835)),
            ("O", (0.2314, 0.1110, 0.5366)),
        ),
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ),
)


@dataclass(frozen=True)
class Labels:
    """What the method says of a frame: energy (eV), forces (eV/A), stress (eV/A^3).

    The stress follows ASE: dE/dstrain/V, positive when the cell is under tension.
    """

    energy: float
    forces_N3: np.ndarray
    stress_33: np.ndarray


def random_strain(rng: np.random.Generator) -> np.ndarray:
    """A symmetric strain tensor (3, 3), largest |eigenvalue| within LARGEST_STRAIN.

    An isotropic share is added to a random symmetric tensor, so that the volume
    is sampled as widely as the shape.
    """
    gaussian = rng.normal(size=(3, 3))
    strain = (gaussian + gaussian.T) / 2 + rng.normal() * np.eye(3)
    strain /= np.abs(np.linalg.eigvalsh(strain)).max()
    return strain * rng.uniform(0, LARGEST_STRAIN)


def rattle(atoms: Atoms, sigma: float, rng: np.random.Generator) -> None:
    """Displace all atoms by Gaussians of `sigma` (A), keeping CLOSEST_CONTACT.

    Without the bound, the tail of the widest Gaussian gives forces of 40 eV/A.
    """
    positions_N3 = atoms.positions.copy()
    moving = np.ones(len(atoms), dtype=bool)
    while moving.any():
        step_N3 = rng.normal(scale=sigma, size=positions_N3.shape)
        atoms.positions[moving] = (positions_N3 + step_N3)[moving]
        distances_NN = atoms.get_all_distances(mic=True)
        np.fill_diagonal(distances_NN, np.inf)
        moving = distances_NN.min(axis=1) < CLOSEST_CONTACT


def make_frame(phase: Phase, seed: int, index: int) -> Atoms:
    """Frame `index`: strained, rattled and rounded (A); depends on nothing before it."""
    rng = np.random.default_rng([seed, index])
    atoms = phase.ideal()
    deformation = np.eye(3) + random_strain(rng)
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    rattle(atoms, rng.choice(RATTLE_SIGMAS), rng)
    atoms.set_cell(atoms.cell.array.round(LENGTH_DECIMALS))
    atoms.positions = atoms.positions.round(LENGTH_DECIMALS)
    return atoms


def compute(atoms: Atoms) -> Labels:
    """GFN1-xTB labels; a new calculator each time, so no frame starts from another."""
    atoms = atoms.copy()
    atoms.calc = TBLite(method=METHOD, accuracy=ACCURACY, verbosity=0)
    return Labels(
        atoms.get_potential_energy(),
        atoms.get_forces(),
        voigt_6_to_full_3x3_stress(atoms.get_stress()),
    )


def cached_labels(atoms: Atoms, cache: Path) -> Labels | None:
    """Labels from the cache or computed; None when the SCF does not converge."""
    content = json.dumps(
        [METHOD, ACCURACY, str(atoms.symbols), atoms.cell.tolist(), atoms.positions.tolist()]
    )
    path = cache / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if not path.exists():
        try:
            labels = compute(atoms)
            record = [labels.energy, labels.forces_N3.tolist(), labels.stress_33.tolist()]
        except Exception as error:  # ASE and tblite raise several types here
            print(f"  no labels: {error}", flush=True)
            record = None
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        os.replace(partial, path)
    record = json.loads(path.read_text())
    if record is None:
        return None
    energy, forces, stress = record
    return Labels(energy, np.array(forces), np.array(stress))


def extxyz_block(atoms: Atoms, labels: Labels, phase: str) -> str:
    """One extended-XYZ frame with the keys ASE uses, in fewer bytes than ASE writes."""

    def numbers(values: np.ndarray, decimals: int) -> str:
        # adding 0.0 turns -0.0 into 0.0
        return " ".join(f"{v:.{decimals}f}" for v in np.round(values, decimals).ravel() + 0.0)

    lines = [
        str(len(atoms)),
        f'Lattice="{numbers(atoms.cell.array, LENGTH_DECIMALS)}" '
        "Properties=species:S:1:pos:R:3:forces:R:3 "
        f"energy={labels.energy:.{LABEL_DECIMALS}f} "
        f'stress="{numbers(labels.stress_33, LABEL_DECIMALS + 2)}" '
        f'phase={phase} pbc="T T T"',
    ]
    for symbol, position, force in zip(
        atoms.symbols, atoms.positions, labels.forces_N3, strict=True
    ):
        lines.append(
            f"{symbol} {numbers(position, LENGTH_DECIMALS)} {numbers(force, LABEL_DECIMALS)}"
        )
    return "\n".join(lines) + "\n"


def force_error(atoms: Atoms, labels: Labels, atom: int, step: float = 1e-3) -> float:
    """Largest |analytic - central difference| (eV/A) over the components of one atom."""
    errors = []
    for axis in range(3):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(compute(moved).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        errors.append(abs(labels.forces_N3[atom, axis] + slope))
    return max(errors)


def stress_error(atoms: Atoms, labels: Labels, step: float = 1e-4) -> float:
    """Largest |analytic - central difference of dE/dstrain/V| (eV/A^3), six components."""
    errors = []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            deformation = np.eye(3)
            deformation[i, j] += sign * step / 2
            deformation[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
            energies.append(compute(strained).energy)
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        errors.append(abs(labels.stress_33[i, j] - slope))
    return max(errors)


def check(frames: list[tuple[Atoms, Labels, str]]) -> None:
    """Print how far forces and stress lie from central finite differences."""
    for index in (1, len(frames) - 1):
        atoms, labels, phase = frames[index]
        atom = int(np.abs(labels.forces_N3).max(axis=1).argmax())
        size = np.abs(labels.forces_N3[atom]).max()
        error = force_error(atoms, labels, atom)
        print(
            f"check: frame {index} ({phase}) atom {atom}: "
            f"force off by {error:.1e} of {size:.2f} eV/A"
        )
    atoms, labels, phase = frames[1]
    size = np.abs(labels.stress_33).max()
    error = stress_error(atoms, labels)
    print(f"check: frame 1 ({phase}): stress off by {error:.1e} of {size:.4f} eV/A^3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "demo_tio2")
    parser.add_argument("--seed", type=int, default=20240)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--check", action="store_true", help="compare with finite differences")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.cache.mkdir(parents=True, exist_ok=True)

    begin = time.monotonic()
    frames: list[tuple[Atoms, Labels, str]] = []
    for index in range(arguments.frames):
        phase = PHASES[index % len(PHASES)]
        atoms = make_frame(phase, arguments.seed, index)
        labels = cached_labels(atoms, arguments.cache)
        if labels is not None:
            frames.append((atoms, labels, phase.name))
        if (index + 1) % 10 == 0:
            print(f"{index + 1} frames, {time.monotonic() - begin:.0f} s", flush=True)

    path = arguments.out / "tio2.extxyz"
    path.write_text("".join(extxyz_block(*frame) for frame in frames))
    dropped = arguments.frames - len(frames)
    print(f"{len(frames)} frames in {path.name}, {dropped} dropped, {path.stat().st_size} bytes")
    for phase in PHASES:
        energies = [labels.energy / len(a) for a, labels, name in frames if name == phase.name]
        print(f"{phase.name}: {len(energies)} frames, {np.ptp(energies):.3f} eV/atom wide")
    if arguments.check:
        check(frames)


if __name__ == "__main__":
    main()
