"""Teachers: calculators that label structures with energies, forces and stress.

Each is an ASE calculator, or a trained atomloom potential, which labels many structures at once. It
knows structures, not files or chunks.

Legend: S structures, A atoms of all of them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from atomloom.config.foundation import CHGNET, teacher_file
from atomloom.config.teacher import Calculator
from atomloom.errors import AtomloomError
from atomloom.structures.adapters import stress_matrix, to_ase
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

if TYPE_CHECKING:
    import ase.calculators.calculator

    from atomloom.potentials.committee import Committee

TBLITE_METHODS = {"gfn1-xtb": "GFN1-xTB", "gfn2-xtb": "GFN2-xTB"}
TOGETHER = 256
"""Number of structures that an atomloom potential labels at a time."""
PLACED = ("device", "dtype")
"""Options of an atomloom potential that a committee takes."""


@dataclass(frozen=True, eq=False)
class Label:
    """Label of one structure of N atoms by a teacher."""

    energy: float = np.nan
    """Energy in eV; NaN where the teacher failed."""
    forces: np.ndarray | None = None
    """[N, 3], eV/A."""
    stress: np.ndarray | None = None
    """[3, 3], eV/A^3, dE/dstrain / volume; None where the cell is not periodic in all directions,
    or the calculator has none."""
    seconds: float = 0.0
    """Time it took."""
    failure: str = ""
    """Reason for a failure."""


Teach = Callable[[StructureTable], Iterator[Label]]
"""Labels of structures, in order, by a teacher that is ready."""


def teach(teacher: Calculator, table: StructureTable) -> Iterator[Label]:
    """Compute labels of structures, in order; a structure that fails gets a reason and stops nothing.

    Raises:
        AtomloomError: when the calculator is not installed, or does not take these options.
    """
    yield from open_teacher(teacher)(table)


def open_teacher(teacher: Calculator, stress: bool = True) -> Teach:
    """Prepare a teacher for several tables of structures.

    Args:
        teacher: the calculator.
        stress: whether labels have the stress, where there is one.

    Raises:
        AtomloomError: as `teach`.
    """
    if teacher.calculator == "atomloom":
        return _Potential.open(teacher, stress)
    calculator = ase_calculator(teacher)
    return lambda table: (_label(calculator, table[row], stress) for row in range(len(table)))


def ase_calculator(teacher: Calculator) -> ase.calculators.calculator.Calculator:
    """Create the teacher as an ASE calculator.

    Raises:
        AtomloomError: as `teach`.
    """
    name = teacher.calculator
    try:
        make = _factory(teacher)
    except AtomloomError:
        raise
    except Exception as error:  # an imported module may raise anything
        raise AtomloomError(
            f"{name} is not available: {_reason(error)}",
            where="teacher.calculator",
            todo="install it, or name another: gfn1-xtb, gfn2-xtb, emt, chgnet, atomloom, module:Class",
        ) from None
    try:
        return make(**teacher.options)
    except AtomloomError:
        raise
    except Exception as error:  # so may a calculator that looks for its program or files
        raise AtomloomError(f"{name}: {_reason(error)}", where="teacher.options") from None


def _factory(teacher: Calculator) -> Callable[..., Any]:
    name = teacher.calculator
    if name in TBLITE_METHODS:
        tblite = import_module("tblite.ase")
        return lambda **options: tblite.TBLite(
            **{"method": TBLITE_METHODS[name], "verbosity": 0, **options}
        )
    if name == "emt":
        return import_module("ase.calculators.emt").EMT
    if name == CHGNET:
        from atomloom.potentials.chgnet import chgnet_calculator

        file = teacher_file(teacher)
        assert file is not None
        return partial(chgnet_calculator, file)
    if name == "atomloom":
        from atomloom.inference.predict import load_model
        from atomloom.potentials.calculator import AtomloomCalculator

        return lambda trust=(), **options: AtomloomCalculator(
            load_model(model_path(teacher), trust), **options
        )
    module, _, attribute = name.partition(":")
    if not attribute:
        raise AttributeError("it is not one of those known by name, and not `module:Class`")
    made = getattr(import_module(module), attribute)
    base = import_module("ase.calculators.calculator").BaseCalculator
    if not (isinstance(made, type) and issubclass(made, base)):
        # An arbitrary function with arbitrary arguments is a program, not a teacher.
        raise AtomloomError(
            f"{name} is not a class of ASE calculators",
            where="teacher.calculator",
            todo="name a subclass of ase.calculators.calculator.Calculator",
        )
    return made


def model_path(teacher: Calculator) -> str:
    """Path of the model file of a teacher that is a trained potential.

    Raises:
        AtomloomError: when the config names none.
    """
    file = teacher_file(teacher)
    if file is None:
        raise AtomloomError("`atomloom` needs a model file", where="teacher.model")
    return str(file)


def _label(calculator: Any, structure: Structure, wanted: bool) -> Label:
    begun = time.perf_counter()
    atoms = to_ase(Structure(structure.numbers, structure.positions, structure.cell, structure.pbc))
    atoms.calc = calculator
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
            stress = None
            if wanted and structure.pbc.all() and "stress" in calculator.implemented_properties:
                stress = stress_matrix(np.asarray(atoms.get_stress()))
    except Exception as error:  # a calculator may raise anything
        if hasattr(calculator, "reset"):
            calculator.reset()
        return Label(seconds=time.perf_counter() - begun, failure=_reason(error))
    if not np.isfinite(energy) or not np.isfinite(forces).all():
        return Label(seconds=time.perf_counter() - begun, failure="energy or forces are not finite")
    return Label(energy, np.asarray(forces, dtype=np.float64), stress, time.perf_counter() - begun)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


@dataclass(frozen=True)
class _Potential:
    """Trained potential as a teacher, which labels many structures at once."""

    committee: Committee
    stress: bool

    @classmethod
    def open(cls, teacher: Calculator, stress: bool) -> _Potential:
        from atomloom.inference.predict import load_model
        from atomloom.potentials.committee import Committee

        unknown = sorted(set(teacher.options) - {"device", "dtype", "skin", "trust"})
        if unknown:
            raise AtomloomError(
                f"atomloom: no option `{unknown[0]}`",
                where="teacher.options",
                todo="known are device, dtype, skin, trust",
            )
        options = {key: value for key, value in teacher.options.items() if key in PLACED}
        model = load_model(model_path(teacher), teacher.options.get("trust", ()))
        return cls(Committee.open(model, **options), stress)

    def __call__(self, table: StructureTable) -> Iterator[Label]:
        from atomloom.graphs.build import build_graphs
        from atomloom.potentials.evaluation import evaluate_table

        for first in range(0, len(table), TOGETHER):
            begun = time.perf_counter()
            rows = np.arange(first, min(first + TOGETHER, len(table)))
            graphs = build_graphs(table.take(rows), self.committee.graph)
            found = evaluate_table(self.committee, graphs, forces=True, stress=self.stress)
            each = (time.perf_counter() - begun) / len(rows)
            assert found.forces is not None
            for place, row in enumerate(rows):
                atoms = slice(*graphs.node_ptr[place : place + 2])
                known = found.stress is not None and table.pbc[row].all()
                stress = found.stress[place] if known and found.stress is not None else None
                yield Label(float(found.energy[place]), found.forces[atoms], stress, each)
