"""`atomloom evaluate --model`: errors of a model file on labelled data are those of its predictions."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import atomloom
from atomloom.cli import main
from atomloom.commands.evaluate import Comparison, _suspect_unit, compare_with_labels
from atomloom.errors import AtomloomError
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.potentials.evaluation import calculate_batch
from tests.unit.potentials.models import rattled_copper, write_property_model

AWAY = 0.25


def labelled(model, frames: list, **changes) -> list:
    """Frames with labels that are a known way from the model's predictions."""
    found = calculate_batch(model, frames, stress=True)
    first = np.concatenate([[0], np.cumsum([len(atoms) for atoms in frames])])
    for place, atoms in enumerate(frames):
        labels = {
            "energy": found.energy[place] - AWAY * len(atoms),
            "forces": found.forces[first[place] : first[place + 1]] + 2 * AWAY,
            "stress": found.stress[place] + AWAY / 100,
        }
        atoms.calc = SinglePointCalculator(atoms, **{**labels, **changes})
    return frames


def compared(model, source, lines=None, **options):
    say = (lambda _: None) if lines is None else lines.append
    return compare_with_labels(Comparison(model, (str(source),), **options), say)


def refusal(*arguments, **options) -> str:
    with pytest.raises(AtomloomError) as error:
        compared(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_of_energies_forces_and_stress_are_exact(copper, tmp_path, capsys):
    frames = labelled(copper, rattled_copper(7))
    strange = labelled(copper, rattled_copper(1))[0]
    strange.symbols[0] = "Al"
    write(tmp_path / "new.extxyz", [*frames[:3], strange, bulk("Cu"), *frames[3:]])
    output = tmp_path / "out" / "errors.parquet"
    arguments = ["--model", copper, "--source", tmp_path / "new.extxyz", "--output", output]
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["energy_per_atom"]["test"]["mae"] == pytest.approx(AWAY, abs=1e-5)
    assert metrics["forces"]["test"]["rmse"] == pytest.approx(2 * AWAY, abs=1e-5)
    assert metrics["forces"]["test"]["count"] == 7 * 4 * 3
    assert metrics["stress"]["test"]["mae"] == pytest.approx(AWAY / 100, abs=1e-5)
    table = pd.read_parquet(output)
    assert table["id"].tolist() == [f"new-{i:06d}" for i in (0, 1, 2, 5, 6, 7, 8)]
    assert np.allclose(table["energy_predicted"] - table["energy"], 4 * AWAY, atol=1e-4)
    assert len(pd.read_parquet(output.with_name("errors.forces.parquet"))) == 7 * 4 * 3
    reasons = pd.read_csv(output.with_name("errors.quarantine.csv")).set_index("id")["reason"]
    assert reasons["new-000003"] == "the potential was not trained on Al"
    assert reasons["new-000004"] == "no label: the record has no energy and no forces and no stress"


def test_data_with_energies_alone_are_compared_by_energies(copper, tmp_path):
    write(tmp_path / "e.extxyz", labelled(copper, rattled_copper(3), forces=None, stress=None))
    lines: list[str] = []
    found = compared(copper, tmp_path / "e.extxyz", lines)
    assert list(found.metrics) == ["energy_per_atom"]
    assert "no record has forces: it is not compared" in lines
    assert found.lines()[0].split()[:3] == ["target", "unit", "mae"]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """A property model, and crystals with its predictions as labels, in meV and under another name."""
    folder = tmp_path_factory.mktemp("gaps")
    model = write_property_model(folder / "model.safetensors")
    frames = rattled_copper(12)
    write(folder / "frames.extxyz", frames)
    predicted = atomloom.load_model(model).predict(frames)[:, 0]
    ids = [f"frames-{i:06d}" for i in range(12)]
    table = pd.DataFrame({"name": ids, "band_gap": 1000 * predicted, "gap": predicted})
    table.to_csv(folder / "labels.csv", index=False)
    return model, folder


def test_labels_in_a_table_have_another_name_and_unit(gaps):
    model, folder = gaps
    options = {"labels": (str(folder / "labels.csv"),), "names": {"gap": "band_gap"}}
    found = compared(model, folder / "frames.extxyz", units={"gap": "meV"}, **options)
    assert found.metrics["gap"]["test"]["mae"] < 1e-4
    lines: list[str] = []
    wrong = compared(model, folder / "frames.extxyz", lines, **options)
    assert wrong.metrics["gap"]["test"]["mae"] > 100
    assert any("labels of gap are 1000 times the predictions" in line for line in lines)


def test_a_poor_model_is_not_taken_for_a_wrong_unit():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"gap": rng.normal(5, 1, 40), "gap_predicted": rng.normal(1, 1, 40)})
    lines: list[str] = []
    _suspect_unit("gap", table, lines.append)
    _suspect_unit("gap", table.assign(gap=rng.normal(0, 1e-4, 40)), lines.append)
    assert not lines
    far = rng.normal(5, 1, 40) * rng.choice([-1, 1], 40)  # large, but of no common sign
    _suspect_unit("gap", table.assign(gap=30 * far), lines.append)
    assert not lines


@pytest.mark.parametrize("unit", [1e3, 1e-3, 27.2114])
def test_a_unit_far_off_is_told_of_a_poor_model_too(unit):
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, 60)
    predicted = 0.5 * truth + 0.5 * rng.normal(0, 1, 60)
    table = pd.DataFrame({"forces": unit * truth, "forces_predicted": predicted})
    lines: list[str] = []
    _suspect_unit("forces", table, lines.append)
    (line,) = lines
    assert re.match(r"warning: labels of forces are \S+ times the predictions, roughly:", line)
    _suspect_unit("forces", table.assign(forces=truth), lines.append)
    _suspect_unit("forces", table[:9], lines.append)
    assert len(lines) == 1


CLASSES = {"two": TargetScaler(np.zeros(1), np.ones(1), np.zeros(1, bool), classes=True)}
CLASSES["several"] = replace(CLASSES["two"], class_count=3)


@pytest.mark.parametrize(
    ("kind", "label", "told"),
    [("two", 643.0, "0 or 1"), ("two", 0.5, "0 or 1"), ("several", 3, "0 to 2"), ("several", 1.5, "0 to 2")],
)  # fmt: skip
def test_labels_that_are_no_classes_of_the_model_are_refused(tmp_path, kind, label, told):
    model = write_property_model(tmp_path / "model.safetensors", scaler=CLASSES[kind])
    write(tmp_path / "frames.extxyz", rattled_copper(3))
    ids = [f"frames-{i:06d}" for i in range(3)]
    options = {"labels": (str(tmp_path / "labels.csv"),), "names": {"gap": "metal"}}
    pd.DataFrame({"id": ids, "metal": [0, 1, 1]}).to_csv(tmp_path / "labels.csv", index=False)
    found = compared(model, tmp_path / "frames.extxyz", **options)
    assert found.metrics["gap"]["test"]["count"] == 3
    pd.DataFrame({"id": ids, "metal": [0, 1, label]}).to_csv(tmp_path / "labels.csv", index=False)
    text = refusal(model, tmp_path / "frames.extxyz", **options)
    assert f"metal of frames-000002 is {label:g}, not a class of the model ({told})" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"names": {"gap": "nope"}}, "labels.csv: no column `nope`"),
        ({"names": {"bulk": "k"}}, "--target: the model does not predict bulk; it predicts gap"),
        ({"units": {"gap": "furlong"}}, "--unit: labels of gap in `furlong` cannot be converted"),
        ({"id_column": "key"}, "labels.csv: no column `key`"),
        ({"output": "table.txt"}, "the output is a table"),
    ],
    ids=["no such column", "no such target", "no such unit", "no such id", "no such table"],
)
def test_what_cannot_be_compared_is_one_clear_line(gaps, tmp_path, options, says):
    model, folder = gaps
    if "output" in options:
        options = {"output": tmp_path / options["output"]}
    text = refusal(model, folder / "frames.extxyz", labels=(str(folder / "labels.csv"),), **options)
    assert says in text.replace(f"{folder}/", "")


def test_data_without_any_label_or_record_are_refused(gaps, tmp_path):
    model, folder = gaps
    assert "no record has a property `gap`" in refusal(model, folder / "frames.extxyz")
    (tmp_path / "empty.extxyz").write_text("")
    assert "empty.extxyz" in refusal(model, tmp_path / "empty.extxyz")
    assert "missing.extxyz" in refusal(model, tmp_path / "missing.extxyz")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--model", "m"], ["--source", "s"], ["--config", "c", "--model", "m", "--source", "s"]],
    ids=["nothing", "model alone", "source alone", "config too"],
)
def test_a_run_and_a_model_file_are_not_mixed_up(arguments, capsys):
    assert main(["evaluate", *arguments]) == 1
    assert "give either --config" in capsys.readouterr().err


def test_options_for_a_model_file_are_refused_with_a_config(capsys):
    assert main(["evaluate", "--config", "c.yaml", "--json"]) == 1
    assert "--json: is only for a model file" in capsys.readouterr().err
