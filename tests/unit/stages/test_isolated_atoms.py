"""Frames of isolated atoms: their energies are the references, and nothing is trained on them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from atomloom.api import run_pipeline
from atomloom.commands.evaluate import Comparison, compare_with_labels
from atomloom.config import Split, parse_config
from atomloom.config.training import PotentialTraining
from atomloom.errors import AtomloomError
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.stages.convert import convert_chunk
from atomloom.stages.plan import make_plan
from atomloom.stages.split import write_split
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.structures.vacuum import isolated_atoms

COPPER, SILVER = -1.5, -2.5


def single(element: str, energy: float, box: float = 0.0) -> Atoms:
    """One atom, perhaps in a periodic box, with its energy."""
    atoms = Atoms(element, cell=[box] * 3, pbc=bool(box))
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def crystals(count: int = 20) -> list[Atoms]:
    """Alloys of copper and silver with energies that are sums over their atoms, and a little more."""
    made = []
    for place in range(count):
        atoms = bulk("Cu", a=3.6 + 0.02 * place, cubic=True)
        atoms.symbols[: 1 + place % 3] = "Ag"
        silver = int((atoms.symbols == "Ag").sum())
        energy = (COPPER - 3) * (4 - silver) + (SILVER - 3) * silver + 0.1 * (place % 2)
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        made.append(atoms)
    return made


def settings(frames: list[Atoms], references="isolated_atoms", mode="memory", **dataset):
    write("all.extxyz", frames)
    return parse_config(
        {
            "dataset": {"name": "d", "source": "all.extxyz", "target": "energy"} | dataset,
            "model": {"name": "painn", "width": 8, "layers": 1, "cutoff": 4.0},
            "graph": {"neighbors": "radius", "cutoff": 4.0},
            "training": {
                "epochs": 1,
                "device": "cpu",
                "threads": 1,
                "batch": {"structures": 8},
                "loader": {"mode": mode},
                "potential": {"reference_energies": references},
            },
            "split": {"duplicates": "report"},
        }
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def split(config, lines: list[str]) -> tuple[pd.DataFrame, dict, RunPaths]:
    """The divided data set and its `split.json`."""
    layout = Layout(config)
    plan = make_plan(layout, lambda _: None)
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, lambda _: None)
    paths = RunPaths(layout, plan)
    write_split(paths, lines.append)
    content = json.loads((paths.split / "split.json").read_text())
    return pd.read_parquet(paths.split / "dataset.parquet"), content, paths


def test_a_run_takes_their_energies_and_says_so():
    frames = [single("Cu", COPPER), *crystals(), single("Ag", SILVER, 12.0)]
    lines: list[str] = []
    run = run_pipeline(settings(frames), lines.append)
    assert "isolated atoms: 2, not trained on; reference energies (eV): Ag -2.5, Cu -1.5" in lines
    assert "references: isolated atoms Cu, Ag" in lines
    found = run.model.card.scaler.to_dict()
    assert found["element_energies"] == {"Cu": COPPER, "Ag": SILVER}
    assert found["shift"] == pytest.approx(-3.0, abs=0.05)
    assert run.model.card.facts["reference_energies"] == {"isolated atoms": ["Cu", "Ag"]}
    assert len(run.predictions) == 20
    assert "isolated atoms, taken for reference energies" in run.report.read_text()


def test_a_model_file_is_not_judged_on_them():
    run = run_pipeline(settings([single("Cu", COPPER), *crystals()]), lambda _: None)
    model = run.places.run / "model.safetensors"
    write("new.extxyz", [*crystals(3), single("Cu", COPPER), single("Ag", 100.0, 12.0)])
    lines: list[str] = []
    found = compare_with_labels(Comparison(model, ("new.extxyz",)), lines.append)
    assert found.metrics["energy_per_atom"]["test"]["count"] == 3
    assert "isolated atoms: 2, reference energies of the model: not compared" in lines
    write("alone.extxyz", [single("Cu", COPPER)])
    with pytest.raises(AtomloomError, match="--source: all structures are isolated atoms"):
        compare_with_labels(Comparison(model, ("alone.extxyz",)), lines.append)


def test_a_model_that_was_trained_on_them_is_judged_on_them():
    run = run_pipeline(settings([single("Cu", COPPER), *crystals()], "fit"), lambda _: None)
    found = compare_with_labels(
        Comparison(run.places.run / "model.safetensors", ("all.extxyz",)), lambda _: None
    )
    assert found.metrics["energy_per_atom"]["test"]["count"] == 21


def test_on_disk_an_element_of_isolated_atoms_alone_is_in_nobody_s_way():
    frames = [single("Cu", COPPER), single("Au", -9.0), *crystals()]
    run = run_pipeline(settings(frames, mode="disk"), lambda _: None)
    assert set(run.model.card.scaler.to_dict()["element_energies"]) == {"Cu", "Ag"}
    assert run.model.card.facts["reference_energies"] == {
        "isolated atoms": ["Cu"],
        "fitted": ["Ag"],
    }


def test_by_default_they_are_structures_like_any_other_and_a_hint_is_given():
    frames = [single("Cu", COPPER), *crystals()]
    lines: list[str] = []
    table, content, paths = split(settings(frames, "fit"), lines)
    assert len(table) == 21
    assert "isolated_atoms" not in content
    assert "isolated_atoms" not in paths.dataset_spec
    assert any("isolated_atoms takes their energies as references" in line for line in lines)


def test_they_are_in_no_split_and_another_key_says_so():
    frames = [single("Cu", COPPER), *crystals()]
    _, _, before = split(settings(frames, "fit"), [])
    table, content, after = split(settings(frames), [])
    assert table["n_atoms"].min() == 4
    assert content["used"] == 20
    assert content["isolated_frames"] == 1
    assert content["isolated_atoms"] == {"Cu": COPPER}
    assert before.dataset_key != after.dataset_key


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([single("Cu", -1.5), single("Cu", -1.7, 15.0)],
         "isolated atoms of Cu have different energies: -1.7 eV in all-000001 and -1.5 eV in all-000000"),
        ([single("Cu", -1.5, 4.0)], "no frame with an energy is an isolated atom"),
    ],
    ids=["two energies", "no isolated atom"],
)  # fmt: skip
def test_a_conflict_and_a_lack_are_one_clear_line(frames, says):
    with pytest.raises(AtomloomError) as error:
        split(settings([*frames, *crystals()]), [])
    assert "\n" not in str(error.value)
    assert f"training.potential.reference_energies: {says}" in str(error.value)


def test_equal_energies_twice_are_no_conflict():
    frames = [single("Cu", COPPER), single("Cu", COPPER + 1e-6, 20.0), *crystals()]
    assert split(settings(frames), [])[1]["isolated_atoms"] == {"Cu": COPPER}


def test_atoms_in_vast_boxes_are_pointed_to():
    frames = [single("Cu", COPPER), single("Ag", SILVER, 30.0), *crystals()]
    lines: list[str] = []
    _, content, _ = split(settings(frames), lines)
    assert content["isolated_atoms"] == {"Cu": COPPER}
    assert any("1 records are in quarantine for their volume per atom" in line for line in lines)
    _, content, _ = split(settings(frames, options={"box": "molecule"}), [])
    assert content["isolated_atoms"] == {"Ag": SILVER, "Cu": COPPER}


BINDING = -3.25
"""eV per atom, beyond the isolated atoms."""


def alloys() -> tuple[StructureTable, np.ndarray, np.ndarray]:
    """Structures of copper, silver and gold, their counts [S, 3], and energies with binding and a little more."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (30, 3)) + np.array([1, 0, 0])
    structures = []
    for row in counts:
        numbers = np.repeat([29, 47, 79], row).astype(np.uint8)
        positions = np.arange(3.0 * len(numbers)).reshape(-1, 3)
        structures.append(Structure(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool)))
    per_atom = BINDING + rng.normal(0, 0.05, 30)
    energies = counts @ np.array([-5.0, -7.0, -2.0]) + per_atom * counts.sum(axis=1)
    return StructureTable.from_structures(structures), counts, energies


@pytest.mark.parametrize("isolated", [{"Cu": -5.0}, {"Cu": -5.0, "Au": -2.0, "Pt": -9.0}])
def test_other_elements_are_fitted_around_them_without_the_binding(isolated):
    table, counts, energies = alloys()
    settings = PotentialTraining(reference_energies="isolated_atoms", energy_scale="energy")
    found = AtomicEnergies.fit(settings, table, energies, np.arange(30), isolated=isolated)
    names = ("Cu", "Ag", "Au")
    known = [place for place, name in enumerate(names) if name in isolated]
    fitted = [place for place in range(3) if place not in known]
    rest = energies - counts[:, known] @ np.array([isolated[names[place]] for place in known])
    matrix = np.column_stack([counts[:, fitted], counts.sum(axis=1)])
    solution = np.linalg.lstsq(matrix, rest, rcond=None)[0]
    expected = {names[place]: energy for place, energy in zip(fitted, solution, strict=False)}
    expected |= {name: isolated[name] for name in names if name in isolated}
    assert found.to_dict()["element_energies"] == pytest.approx(expected)
    assert found.shift == pytest.approx(BINDING, abs=0.1)
    assert found.scale < 0.2
    left = (energies - found.offsets(table)) / counts.sum(axis=1)
    assert np.abs(left).max() < 0.4


def test_an_element_with_neither_a_frame_nor_a_structure_is_unknown():
    table, _, energies = alloys()
    settings = PotentialTraining(reference_energies="isolated_atoms")
    with pytest.raises(AtomloomError, match="no energies of isolated atoms"):
        AtomicEnergies.fit(settings, table, energies, np.arange(30))
    found = AtomicEnergies.fit(
        settings, table, energies, np.arange(30), np.ones((len(table.numbers), 3)), {"Pt": -9.0}
    )
    with pytest.raises(AtomloomError, match="not trained on Pt"):
        found.require_elements(np.array([78]))
    # With nothing to hold to, only the sum of reference and shift is determined.
    plain = AtomicEnergies.fit(
        PotentialTraining(), table, energies, np.arange(30), np.ones((len(table.numbers), 3))
    )
    assert found.offsets(table) == pytest.approx(plain.offsets(table), abs=0.1)


def test_only_a_single_atom_far_from_its_images_is_isolated():
    def atoms(count: int, cell, pbc) -> Structure:
        positions = np.arange(3.0 * count).reshape(count, 3)
        return Structure(
            np.full(count, 29, np.uint8), positions, np.array(cell, float), np.array(pbc)
        )

    skewed = [[12, 0, 0], [9, 9, 0], [0, 0, 12]]  # planes 9 A apart, vectors longer than 12
    found = isolated_atoms(
        StructureTable.from_structures(
            [
                atoms(1, np.zeros((3, 3)), [False] * 3),
                atoms(1, 10 * np.eye(3), [True] * 3),
                atoms(1, 9.9 * np.eye(3), [True] * 3),
                atoms(1, 4 * np.eye(3), [False] * 3),
                atoms(1, skewed, [True] * 3),
                atoms(1, np.diag([20.0, 20.0, 3.0]), [False, False, True]),
                atoms(2, np.zeros((3, 3)), [False] * 3),
            ]
        )
    )
    assert found.tolist() == [True, True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("references", "told"),
    [
        ("fit", "split: no training structure with an energy holds Au: a potential could not predict 1 of gold"),
        ({"Cu": COPPER, "Ag": SILVER}, "reference_energies: has no energy of Au, needed by 1 of gold"),
    ],
    ids=["fit", "given"],
)  # fmt: skip
def test_an_element_of_a_test_set_alone_is_told_before_training(references, told):
    gold = bulk("Au", a=4.1, cubic=True)
    gold.calc = SinglePointCalculator(gold, energy=-9.0)
    config = settings([*crystals(), gold], references)
    sets = {"gold": {"column": "formula", "equals": "Au"}}
    config = config.model_copy(update={"split": Split(test=sets, duplicates="report")})
    with pytest.raises(AtomloomError) as error:
        split(config, [])
    assert f"{told} (first: all-000020)" in str(error.value)


def test_a_given_energy_of_an_element_is_enough_to_predict_it():
    gold = bulk("Au", a=4.1, cubic=True)
    gold.calc = SinglePointCalculator(gold, energy=-9.0)
    config = settings([*crystals(), gold], {"Cu": COPPER, "Ag": SILVER, "Au": -1.0})
    sets = {"gold": {"column": "formula", "equals": "Au"}}
    config = config.model_copy(update={"split": Split(test=sets, duplicates="report")})
    _, content, _ = split(config, [])
    assert content["test_sets"] == {"gold": 1}


def test_elements_whose_energies_are_unknown_in_training_are_told_too():
    frames = crystals()
    dark = bulk("Au", a=4.1, cubic=True)
    dark.calc = SinglePointCalculator(dark, forces=np.zeros((4, 3)))
    config = settings([*frames, dark], "fit", target=["energy", "forces"])
    config = config.model_copy(update={"split": Split(ratios=(0.9, 0.1, 0.0), duplicates="report")})
    for atoms in frames:
        atoms.calc.results["forces"] = np.zeros((4, 3))
    write("all.extxyz", [*frames, dark])
    with pytest.raises(AtomloomError, match="no training structure with an energy holds Au"):
        split(config, [])
