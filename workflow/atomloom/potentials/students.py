"""Students and their teachers: a potential learnt from a calculator compared with it.

Errors on labelled structures are measured by the stage `evaluate`; here are the times of both, and a
short dynamics of the student along which the teacher is evaluated. It knows nothing of files or stages.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from atomloom.config.teacher import Teacher
from atomloom.potentials.calculator import AtomloomCalculator
from atomloom.potentials.teachers import ase_calculator
from atomloom.structures.adapters import to_ase
from atomloom.structures.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

TEMPERATURE = 300.0
"""Temperature of the initial velocities, K."""
STEP = 1.0
"""fs."""
ASKED_EVERY = 10
"""Steps between two frames that the teacher evaluates."""
REPEATS = 5
"""Repetitions of the timing of all structures together."""
TIMED = 16
"""Number of structures whose evaluation is timed."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of a student with its teacher; the dynamics is of a structure of `atoms` atoms."""

    teacher_seconds: float
    """Median time of a structure's label."""
    student_seconds: float
    """Median time per structure of energy, forces and stress, one by one."""
    student_batch_seconds: float
    """Time per structure when all timed ones are evaluated together."""
    atoms: int
    steps: int
    """Number of steps of the dynamics; 0 without one."""
    energy_rmse: float | None = None
    """eV/atom, student against teacher along the student's dynamics, without their mean difference."""
    energy_offset: float | None = None
    """eV/atom, that mean difference."""
    force_rmse: float | None = None
    """eV/A, root mean square error of the forces along the dynamics."""
    drift: float | None = None
    """eV/atom, change of the student's total energy from the first to the last step."""


class _Dynamics(TypedDict):
    energy_rmse: float
    energy_offset: float
    force_rmse: float
    drift: float


def compare_with_teacher(
    teacher: Teacher,
    model: Path,
    structures: Sequence[Structure],
    teacher_seconds: float,
    seed: int = 0,
) -> Comparison:
    """Time a student, and compare it with its teacher along a short dynamics.

    Args:
        teacher: the calculator that labelled.
        model: the student's model file.
        structures: some that it was not trained on.
        teacher_seconds: median time of a label.
        seed: of the velocities.
    """
    student = AtomloomCalculator(model)
    timed = [to_ase(_bare(structure)) for structure in structures[:TIMED]]
    student.calculate_batch(timed)  # compiles
    singles = []
    for atoms in timed:
        begun = time.perf_counter()
        student.calculate_batch([atoms])
        singles.append(time.perf_counter() - begun)
    batches = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        student.calculate_batch(timed)
        batches.append((time.perf_counter() - begun) / len(timed))
    together = statistics.median(batches)
    first = timed[0]
    times = (teacher_seconds, statistics.median(singles), together, len(first))
    if not teacher.dynamics_steps:
        return Comparison(*times, steps=0)
    return Comparison(
        *times, steps=teacher.dynamics_steps, **_dynamics(teacher, student, first, seed)
    )


def _dynamics(teacher: Teacher, student: AtomloomCalculator, atoms: Atoms, seed: int) -> _Dynamics:
    from ase import units
    from ase.md.velocitydistribution import Stationary, thermalize_momenta
    from ase.md.verlet import VelocityVerlet

    judge = ase_calculator(teacher)
    atoms.calc = student
    rng = np.random.RandomState(seed)
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=rng, exact_temperature=True)
    Stationary(atoms)
    total, energies, forces = [], [], []

    def ask() -> None:
        total.append(atoms.get_total_energy())
        frame = atoms.copy()
        frame.calc = judge
        energies.append(atoms.get_potential_energy() - frame.get_potential_energy())
        forces.append(atoms.get_forces() - frame.get_forces())

    course = VelocityVerlet(atoms, timestep=STEP * units.fs)
    course.attach(ask, interval=ASKED_EVERY)
    course.run(teacher.dynamics_steps)
    differences = np.array(energies) / len(atoms)
    return {
        "energy_rmse": float(differences.std()),
        "energy_offset": float(differences.mean()),
        "force_rmse": float(np.sqrt(np.mean(np.square(forces)))),
        "drift": (total[-1] - total[0]) / len(atoms),
    }


def _bare(structure: Structure) -> Structure:
    return Structure(structure.numbers, structure.positions, structure.cell, structure.pbc)
