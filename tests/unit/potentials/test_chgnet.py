"""CHGNet teaches by its own package, known by the content of its weights, which are read without running code.

Most tests have a package of the same form in its place, whose model is one number.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from atomloom.config import parse_config
from atomloom.config.foundation import CHGNET_WEIGHTS
from atomloom.config.teacher import Teacher
from atomloom.errors import AtomloomError
from atomloom.pipeline.outside_data import outside_data
from atomloom.pipeline.paths import Layout
from atomloom.potentials.teachers import Label, ase_calculator, teach
from atomloom.structures.adapters import to_structure
from atomloom.structures.table import StructureTable
from atomloom.training.trainer import _trained_on

MODEL = """
class CHGNet:
    def __init__(self, scale, mlp_out_bias):
        self.scale, self.biased = scale, mlp_out_bias
        print("CHGNet initialized")

    @classmethod
    def from_dict(cls, content, **options):
        return cls(float(content["state_dict"]["scale"]), **options)
"""
DYNAMICS = """
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

class CHGNetCalculator(Calculator):
    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, model=None, *, use_device=None, on_isolated_atoms="warn", **kwargs):
        super().__init__(**kwargs)
        self.model, self.isolated, self.calls = model, on_isolated_atoms, 0
        print("CHGNet will run on cpu")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        assert atoms.cell.rank == 3
        self.calls += 1
        scale = self.model.scale + self.model.biased
        self.results = {
            "energy": np.float32(scale * len(atoms)),
            "forces": np.full((len(atoms), 3), scale, dtype=np.float32),
            "stress": np.eye(3, dtype=np.float32) * scale,
        }
"""


def write_weights(path: Path, scale: float, biased: bool = False) -> Path:
    state = {"scale": torch.tensor(scale)}
    if biased:
        state["atom_conv_layers.0.mlp_out.layers.1.bias"] = torch.zeros(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"state_dict": state, "model_args": {}}}, path)
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Folder of a package in CHGNet's place."""
    folder = tmp_path / "site" / "chgnet"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "model" / "__init__.py").write_text(MODEL)
    (folder / "model" / "dynamics.py").write_text(DYNAMICS)
    for scale, (name, file) in enumerate(CHGNET_WEIGHTS.items(), 1):
        write_weights(folder / "pretrained" / file, scale, biased=name == "0.2.0")
    monkeypatch.syspath_prepend(folder.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "chgnet"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "chgnet"]:
        del sys.modules[name]


def labels(frames: list[Atoms], **settings) -> list[Label]:
    table = StructureTable.from_structures([to_structure(atoms) for atoms in frames])
    return list(teach(Teacher(calculator="chgnet", **settings), table))


def layout(**settings) -> Layout:
    dataset = {"name": "a", "source": "x.extxyz", "target": ["energy", "forces"]}
    given = {"calculator": "chgnet", **settings}
    return Layout(parse_config({"dataset": dataset, "model": {"name": "painn"}, "teacher": given}))


# --- with a package in its place ------------------------------------------------------------------


def test_its_numbers_are_labels_in_double_precision_and_it_greets_nobody(package, capsys):
    (label,) = labels([bulk("Cu", cubic=True)])
    assert not label.failure
    assert label.energy == 4.0
    np.testing.assert_array_equal(label.forces, np.ones((4, 3)))
    np.testing.assert_array_equal(label.stress, np.eye(3))
    assert label.forces.dtype == label.stress.dtype == np.float64
    assert capsys.readouterr().out == ""


def test_weights_are_chosen_by_name_or_file(package, tmp_path):
    own = write_weights(tmp_path / "own.pth.tar", 7.0)
    energies = [
        labels([bulk("Cu")], model=name)[0].energy for name in ("0.2.0", "r2scan", str(own))
    ]
    assert energies == [3.0, 3.0, 7.0], "that of 0.2.0 has biases, which add one"


def test_it_is_known_by_the_content_of_its_weights(package, tmp_path):
    copied = tmp_path / "copy.pth.tar"
    copied.write_bytes((package / "pretrained" / CHGNET_WEIGHTS["0.3.0"]).read_bytes())
    key = layout().teacher_key
    assert key == layout(model="0.3.0").teacher_key == layout(model=str(copied)).teacher_key
    assert key != layout(model="r2scan").teacher_key
    write_weights(package / "pretrained" / CHGNET_WEIGHTS["0.3.0"], 5.0)
    assert key != layout().teacher_key


def test_molecules_are_evaluated_once_in_a_cell_that_nobody_sees(package):
    calculator, atoms = ase_calculator(Teacher(calculator="chgnet")), molecule("CH3CH2OH")
    atoms.calc = calculator
    assert atoms.get_potential_energy() == 9.0
    atoms.get_forces()
    assert calculator.calls == 1
    assert atoms.cell.rank == 0
    assert labels([atoms])[0].stress is None


def test_what_it_has_not_learnt_is_a_failure_with_a_reason(package):
    known, unknown = labels([bulk("Cu"), Atoms("Am", cell=[3] * 3, pbc=True)])
    assert not known.failure
    assert unknown.failure == "CHGNet knows elements 1 to 94, not 95"
    assert ase_calculator(Teacher(calculator="chgnet")).isolated == "error"
    asked = {"on_isolated_atoms": "ignore"}
    assert ase_calculator(Teacher(calculator="chgnet", options=asked)).isolated == "ignore"


class _Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file has run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": _Runs()}, "cannot be read as data"),
        ({"weights": 1}, "is not a model that CHGNet has saved"),
        ({"model": {"state_dict": {}}}, "is not a model that CHGNet has saved"),
        ([1], "is not a checkpoint of CHGNet"),
    ],
    ids=["code", "other", "empty", "list"],
)
def test_a_file_that_is_none_of_its_models_is_one_line_and_runs_nothing(
    package, tmp_path, content, message
):
    torch.save(content, tmp_path / "some.pth.tar")
    with pytest.raises(AtomloomError, match=message):
        labels([bulk("Cu")], model=str(tmp_path / "some.pth.tar"))


@pytest.mark.parametrize("name", ["model", "on_isolated_atom"])
def test_an_option_that_it_would_ignore_is_refused(package, name):
    with pytest.raises(AtomloomError, match=f"no option `{name}`; known are use_device"):
        labels([bulk("Cu")], options={name: "error"})


def test_a_name_of_no_weights_is_one_line(package):
    for ask in (
        lambda: layout(model="0.4.0").teacher_key,
        lambda: labels([bulk("Cu")], model="0.4.0"),
    ):
        with pytest.raises(AtomloomError, match=r"0\.4\.0: no .*here"):
            ask()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    from atomloom.config import foundation

    monkeypatch.setattr(foundation, "find_spec", lambda name: None)
    for ask in (lambda: layout().teacher_key, lambda: labels([bulk("Cu")])):
        with pytest.raises(
            AtomloomError, match=r"CHGNet 0\.3\.0 lies in the package chgnet.*chgnet==0\.4\.2"
        ):
            ask()


@pytest.mark.parametrize(
    ("settings", "model", "data"),
    [
        ({}, "CHGNet 0.3.0", "relaxations of the Materials Project"),
        ({"model": "own.pth.tar"}, "CHGNet own.pth.tar", "unknown data"),
    ],
    ids=["published", "own"],
)
def test_a_run_says_on_what_its_teacher_was_trained(settings, model, data):
    (seen,) = outside_data(layout(**settings).config)
    assert seen == {"through": "teacher.model", "model": model, "data": [data]}


def test_a_model_says_on_what_the_calculator_of_its_features_was_trained():
    feature = {"source": "gamma_frequencies", "calculator": "chgnet"}
    dataset = {"name": "a", "source": "x.csv", "target": "gap", "global_features": ["gamma"]}
    config = parse_config({"dataset": dataset, "features": {"gamma": feature}})
    assert _trained_on(config, 3) == ["a (3 structures)", "relaxations of the Materials Project"]
    (seen,) = outside_data(config)
    assert seen["through"] == "features.gamma"
    assert seen["data"] == ["relaxations of the Materials Project"]


# --- the package itself ---------------------------------------------------------------------------


def test_chgnet_teaches():
    pytest.importorskip("chgnet")
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.05, seed=0)
    energies = {"0.3.0": -16.245285, "0.2.0": -16.159466, "r2scan": -43.208126}
    for name, energy in energies.items():  # by its own calculator, chgnet 0.4.2
        assert labels([copper], model=name)[0].energy == pytest.approx(energy, abs=1e-4)

    def strained(amount: float) -> Atoms:
        atoms = copper.copy()
        atoms.set_cell(copper.cell.array * [1 + amount, 1, 1], scale_atoms=True)
        return atoms

    label, up, down = labels([copper, strained(1e-3), strained(-1e-3)])
    slope = (up.energy - down.energy) / 2e-3 / copper.get_volume()
    assert label.stress[0, 0] == pytest.approx(slope, abs=1e-4)
    np.testing.assert_allclose(label.forces.sum(axis=0), 0, atol=1e-4)
