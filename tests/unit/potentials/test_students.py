"""A student in a short dynamics: what is said of it beside its teacher, by numbers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from atomloom.config.teacher import Teacher
from atomloom.potentials import students

ATOMS, STEPS = 4, 30
RISE = 0.02
"""eV, by which the student's energy rises at every step, without a force that would take it up."""


class Rising(Calculator):
    """Its energy goes up from step to step; it has no forces."""

    implemented_properties = ("energy", "forces")

    def __init__(self) -> None:
        super().__init__()
        self.steps = -1

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.steps += 1
        self.results = {"energy": RISE * self.steps, "forces": np.zeros((len(atoms), 3))}


def test_drift_and_offset_are_of_an_atom_and_have_the_sign_of_the_student():
    teacher = Teacher(
        calculator="ase.calculators.lj:LennardJones",
        options={"epsilon": 0.0},
        dynamics_steps=STEPS,
    )
    found = students._dynamics(teacher, Rising(), bulk("Cu", cubic=True), seed=0)
    asked = RISE * np.arange(0, STEPS + 1, students.ASKED_EVERY) / ATOMS  # the teacher says 0
    assert found["drift"] == pytest.approx(RISE * STEPS / ATOMS)
    assert found["energy_offset"] == pytest.approx(asked.mean())
    assert found["energy_rmse"] == pytest.approx(asked.std())
    assert found["force_rmse"] == pytest.approx(0.0, abs=1e-12)
