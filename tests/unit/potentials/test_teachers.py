"""Teachers label what they are given, say why where they fail, and are asked once."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from atomloom.config.teacher import Teacher
from atomloom.errors import AtomloomError
from atomloom.potentials.teachers import ase_calculator, teach
from atomloom.structures.adapters import stress_matrix, to_structure
from atomloom.structures.table import StructureTable
from tests.unit.potentials.models import write_potential


def rattled(count: int, symbol: str = "Cu"):
    made = []
    for seed in range(count):
        atoms = bulk(symbol, cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.set_cell(atoms.cell.array * (1 + 0.01 * seed), scale_atoms=True)
        made.append(atoms)
    return made


def table_of(frames) -> StructureTable:
    return StructureTable.from_structures([to_structure(atoms) for atoms in frames])


def test_labels_are_those_of_the_calculator():
    frames = rattled(3)
    for atoms, label in zip(
        frames, teach(Teacher(calculator="emt"), table_of(frames)), strict=True
    ):
        atoms.calc = EMT()
        assert label.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(label.forces, atoms.get_forces(), atol=1e-10)
        np.testing.assert_allclose(label.stress, stress_matrix(atoms.get_stress()), atol=1e-10)
        assert label.seconds > 0


def test_any_ase_calculator_can_teach():
    teacher = Teacher(calculator="ase.calculators.lj:LennardJones", options={"epsilon": 0.3})
    (label,) = teach(teacher, table_of(rattled(1)))
    other = Teacher(calculator="ase.calculators.lj:LennardJones", options={"epsilon": 0.6})
    (twice,) = teach(other, table_of(rattled(1)))
    assert twice.energy == pytest.approx(2 * label.energy)


def test_molecules_have_no_stress():
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = False
    (label,) = teach(Teacher(calculator="emt"), table_of([atoms]))
    assert label.stress is None
    assert np.isfinite(label.energy)


def test_a_failure_says_why_and_stops_nobody():
    frames = rattled(3)
    frames[1].numbers[0] = 26
    labels = list(teach(Teacher(calculator="emt"), table_of(frames)))
    assert [bool(label.failure) for label in labels] == [False, True, False]
    assert "Fe" in labels[1].failure
    assert np.isnan(labels[1].energy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calculator": "nonsense"}, "nonsense is not available"),
        ({"calculator": "no.such.module:Thing"}, "is not available"),
        ({"calculator": "ase.calculators.emt:Nothing"}, "is not available"),
        ({"calculator": "ase.calculators.tip3p:TIP3P", "options": {"x": 1}}, "TIP3P: "),
        (
            {"calculator": "ase.build:bulk", "options": {"name": "Cu"}},
            "not a class of ASE calculators",
        ),
        (
            {"calculator": "os:system", "options": {"command": "x"}},
            "not a class of ASE calculators",
        ),
        ({"calculator": "builtins:dict"}, "not a class of ASE calculators"),
        ({"calculator": "ase:Atoms"}, "not a class of ASE calculators"),
        ({"calculator": "no such:Thing"}, "is not available"),
        ({"calculator": ":Thing"}, "is not available"),
        ({"calculator": "atomloom"}, "needs a model file"),
    ],
)
def test_a_teacher_that_is_not_there_is_one_clear_line(settings, message):
    with pytest.raises(AtomloomError, match=message):
        ase_calculator(Teacher(**settings)).get_potential_energy(bulk("Cu"))


def test_a_potential_teaches_in_the_precision_asked_for_and_takes_no_other_options(tmp_path):
    model = str(write_potential(tmp_path / "cu.safetensors"))
    table = table_of(rattled(2))

    def energies(**options) -> np.ndarray:
        teacher = Teacher(calculator="atomloom", model=model, options=options)
        return np.array([label.energy for label in teach(teacher, table)])

    difference = np.abs(energies(dtype="float64") - energies(device="cpu"))
    assert (difference > 0).any()
    assert (difference < 1e-4).all()
    with pytest.raises(AtomloomError, match="no option `dtpye`; known are device, dtype, skin"):
        energies(dtpye="float64")


def test_a_module_that_breaks_while_it_is_imported_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('no licence')")
    with pytest.raises(AtomloomError, match="no licence"):
        ase_calculator(Teacher(calculator="breaks_on_import:Thing"))


def test_xtb_teaches():
    pytest.importorskip("tblite")
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    (label,) = teach(Teacher(calculator="gfn1-xtb"), table_of([atoms]))
    assert not label.failure
    assert label.forces.shape == (8, 3)
    np.testing.assert_allclose(label.forces, 0, atol=1e-3)
    np.testing.assert_allclose(label.stress, label.stress.T, atol=1e-10)
