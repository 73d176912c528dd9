"""Molecular dynamics of many replicas together: each step evaluates all of them at once.

Velocity Verlet (Swope et al., J. Chem. Phys. 76, 637 (1982)), in ASE's order of operations, and
Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34),
whose configurational averages are accurate at long time steps. Replicas may differ in everything and
are independent: a replica moves the same alone and with others. Units are ASE's: give time steps as
`1.0 * ase.units.fs`.

Legend: S replicas, A atoms of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from atomloom.errors import AtomloomError
from atomloom.potentials.committee import Committee, Evaluation, Source
from atomloom.potentials.verlet_list import VerletList
from atomloom.store.files import expand_home

NOISE_STREAM = 0x6E6F6973  # separates the draws of noise from other uses of the same seed


@dataclass(frozen=True, eq=False)
class Frame:
    """State of all replicas at one time. Arrays belong to the run: copy those to be kept."""

    step: int
    """Number of steps since the start."""
    time: float
    """Time in ASE's unit; divide by `ase.units.fs` for fs."""
    node_ptr: np.ndarray
    """[S+1], first atom of each replica."""
    positions: np.ndarray
    """[A, 3] A, never wrapped."""
    momenta: np.ndarray
    """[A, 3], ASE's unit."""
    evaluation: Evaluation
    """Energies [S] and forces [A, 3]; of a committee, deviations."""
    kinetic: np.ndarray
    """[S] eV."""
    temperature: np.ndarray
    """[S] K, by the degrees of freedom that are not fixed."""

    @property
    def total(self) -> np.ndarray:
        """[S] eV, sum of potential and kinetic energy."""
        return self.evaluation.energy + self.kinetic


Observer = Callable[[Frame], object]


class Options(TypedDict, total=False):
    """Arguments common to all dynamics."""

    skin: float
    device: str
    dtype: str | None


class VelocityVerlet:
    """Dynamics of replicas at constant energy.

    Atoms fixed by ASE's `FixAtoms` do not move; other constraints are refused.

    Args:
        potential: a model file, several, or a committee.
        replicas: initial structures with momenta; they are not changed.
        timestep: in ASE's unit.
        skin: A, distance beyond the cutoff within which neighbours are searched.
        device: `auto`, `cpu` or `cuda`.
        dtype: `float32` or `float64`; by default that of the file.

    Raises:
        AtomloomError: without replicas, for other constraints than `FixAtoms`, or when the potential
            was not trained on some element.
    """

    def __init__(
        self,
        potential: Source | Sequence[Source] | Committee,
        replicas: Sequence[Atoms],
        timestep: float,
        *,
        skin: float = 0.5,
        device: str = "auto",
        dtype: str | None = None,
    ) -> None:
        if not len(replicas):
            raise AtomloomError("no replicas", where="dynamics")
        if not timestep > 0:
            raise AtomloomError(
                f"a time step of {timestep}", where="dynamics", todo="give one above 0"
            )
        self.committee = Committee.open(potential, device, dtype)
        self.timestep = float(timestep)
        self.step = 0
        self._templates = [atoms.copy() for atoms in replicas]
        self.node_ptr = np.cumsum([0, *(len(atoms) for atoms in replicas)])
        self.positions = np.concatenate([atoms.positions for atoms in replicas])
        self.masses = np.concatenate([atoms.get_masses() for atoms in replicas])[:, None]
        self.cell = np.stack([atoms.cell.array for atoms in replicas])
        numbers = np.concatenate([atoms.numbers for atoms in replicas])
        self.committee.require_elements(numbers)
        self._fixed = np.concatenate([_fixed_atoms(atoms) for atoms in replicas])
        self._free = np.add.reduceat(3 * ~self._fixed, self.node_ptr[:-1])
        self.momenta = np.concatenate([atoms.get_momenta() for atoms in replicas])
        self.momenta[self._fixed] = 0.0
        self.graphs = VerletList(
            self.committee.graph,
            self.node_ptr,
            numbers,
            np.stack([atoms.pbc for atoms in replicas]),
            skin,
            self.committee.dtype,
            self.committee.device,
        )
        self._observers: list[tuple[Observer, int]] = []
        self.evaluation = self._evaluate()

    def __len__(self) -> int:
        return len(self.node_ptr) - 1

    def attach(self, observer: Observer, every: int = 1) -> None:
        """Call the observer with the frame at steps divisible by `every`, including the current one."""
        self._observers.append((observer, every))

    def run(self, steps: int) -> None:
        """Run a number of steps.

        Raises:
            AtomloomError: naming the replica, when one has blown up.
        """
        if self.step == 0:
            self._show()
        for _ in range(steps):
            self._advance()
            self.step += 1
            self._show()

    def frame(self) -> Frame:
        """Current state of the replicas."""
        of_atoms = (self.momenta**2 / (2.0 * self.masses)).sum(axis=1)
        kinetic = np.add.reduceat(of_atoms, self.node_ptr[:-1])
        temperature = 2.0 * kinetic / (np.maximum(self._free, 1) * units.kB)
        return Frame(
            self.step,
            self.step * self.timestep,
            self.node_ptr,
            self.positions,
            self.momenta,
            self.evaluation,
            kinetic,
            temperature,
        )

    def atoms(self) -> list[Atoms]:
        """Replicas as ASE Atoms, with momenta, energies and forces."""
        found = []
        assert self.evaluation.forces is not None
        for place, template in enumerate(self._templates):
            own = self.evaluation.atoms(place)
            atoms = template.copy()
            atoms.positions = self.positions[own]
            atoms.set_momenta(self.momenta[own], apply_constraint=False)
            atoms.calc = SinglePointCalculator(
                atoms,
                energy=float(self.evaluation.energy[place]),
                forces=self.evaluation.forces[own].copy(),
            )
            found.append(atoms)
        return found

    def _advance(self) -> None:
        self._kick()
        self._drift(self.timestep)
        self.evaluation = self._evaluate()
        self._kick()

    def _kick(self) -> None:
        self.momenta += 0.5 * self.timestep * self._forces

    def _drift(self, time: float) -> None:
        self.positions = self.positions + time * self.momenta / self.masses

    def _evaluate(self) -> Evaluation:
        self._require_finite(self.positions)
        output = self.committee.ask(self.graphs.batch(self.positions, self.cell))
        found = self.committee.read([output], self.graphs.numbers, self.node_ptr)
        assert found.forces is not None  # requested above
        self._require_finite(found.forces)
        self._forces = found.forces
        if self._fixed.any():
            self._forces = np.where(self._fixed[:, None], 0.0, found.forces)
        return found

    def _require_finite(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            atom = np.flatnonzero(~np.isfinite(values).all(axis=1))[0]
            replica = int(np.searchsorted(self.node_ptr, atom, side="right")) - 1
            raise AtomloomError(
                f"replica {replica} has blown up in step {self.step + 1}",
                where="dynamics",
                todo="take a shorter time step, or check whether it starts from overlapping atoms",
            )

    def _show(self) -> None:
        wanted = [observer for observer, every in self._observers if self.step % every == 0]
        if wanted:
            frame = self.frame()
            for observer in wanted:
                observer(frame)


class Langevin(VelocityVerlet):
    """Dynamics of replicas at constant temperature, each with its own noise.

    A step is B A O A B: half a kick, half a drift, friction and noise, half a drift, half a kick.
    Without friction it is a step of velocity Verlet.

    Args:
        potential: a model file, several, or a committee.
        replicas: initial structures with momenta.
        timestep: in ASE's unit.
        temperature_K: K, for all or for each.
        friction: in ASE's unit, as `0.01 / ase.units.fs`, for all or for each.
        seeds: of the noise, one per replica; by default 0, 1, 2, ...
        options: those of `VelocityVerlet`.

    Raises:
        AtomloomError: as `VelocityVerlet`, or when the number of values is not that of replicas.
    """

    def __init__(
        self,
        potential: Source | Sequence[Source] | Committee,
        replicas: Sequence[Atoms],
        timestep: float,
        *,
        temperature_K: float | Sequence[float],
        friction: float | Sequence[float],
        seeds: Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(potential, replicas, timestep, **options)
        temperature = self._of_replicas(temperature_K, "temperature_K")
        damping = self._of_replicas(friction, "friction")
        seeds = range(len(self)) if seeds is None else seeds
        if len(seeds) != len(self):
            raise AtomloomError(f"{len(seeds)} seeds for {len(self)} replicas", where="seeds")
        self._noise = [np.random.Generator(np.random.PCG64([NOISE_STREAM, s])) for s in seeds]
        counts = np.diff(self.node_ptr)
        kept = np.repeat(np.exp(-damping * self.timestep), counts)[:, None]
        thermal = np.repeat(units.kB * temperature, counts)[:, None] * self.masses
        self._kept = kept
        self._width = np.where(self._fixed[:, None], 0.0, np.sqrt((1.0 - kept**2) * thermal))
        self._draw = np.empty_like(self.momenta)

    def _of_replicas(self, value: float | Sequence[float], name: str) -> np.ndarray:
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if len(values) not in (1, len(self)) or not (values >= 0).all():
            raise AtomloomError(
                f"{value} is not one number of at least 0, nor one for each of {len(self)} replicas",
                where=name,
            )
        return np.broadcast_to(values, len(self))

    def _advance(self) -> None:
        self._kick()
        self._drift(0.5 * self.timestep)
        for place, noise in enumerate(self._noise):
            noise.standard_normal(out=self._draw[self.node_ptr[place] : self.node_ptr[place + 1]])
        self.momenta = self._kept * self.momenta + self._width * self._draw
        self._drift(0.5 * self.timestep)
        self.evaluation = self._evaluate()
        self._kick()


class TrajectoryFiles:
    """Observer that appends each replica to its own extended XYZ file.

    Args:
        dynamics: the run.
        paths: one per replica; existing files are overwritten.
    """

    def __init__(self, dynamics: VelocityVerlet, paths: Sequence[str | Path]) -> None:
        if len(paths) != len(dynamics):
            raise AtomloomError(f"{len(paths)} files for {len(dynamics)} replicas", where="paths")
        self._dynamics, self._paths = dynamics, [Path(expand_home(path)) for path in paths]
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    def __call__(self, frame: Frame) -> None:
        """Append the frame."""
        from ase.io import write

        for path, atoms in zip(self._paths, self._dynamics.atoms(), strict=True):
            atoms.info["step"] = frame.step
            write(path, atoms, format="extxyz", append=True)


def _fixed_atoms(atoms: Atoms) -> np.ndarray:
    """[N] bool, whether each atom is fixed."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise AtomloomError(
                f"cannot keep a {type(constraint).__name__}",
                where="dynamics",
                todo="use ASE's dynamics with AtomloomCalculator, which keep all constraints",
            )
        fixed[constraint.index] = True
    return fixed
