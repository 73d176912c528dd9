"""A model file says which features its network needs, and whoever predicts computes them as in training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.io import write

from atomloom.api import Run, run_pipeline
from atomloom.commands.evaluate import Comparison, compare_with_labels
from atomloom.commands.predict import Prediction, predict_files
from atomloom.config import parse_config
from atomloom.config.features import Feature
from atomloom.config.training import Batching
from atomloom.errors import AtomloomError
from atomloom.features import computing
from atomloom.features.computing import FeatureComputer
from atomloom.inference.model_file import CardFeature, read_model, write_model
from atomloom.inference.predict import load_model
from atomloom.pipeline.outside_data import outside_data
from tests.unit.potentials.models import write_potential

PHONONS = {"source": "gamma_frequencies", "calculator": "emt"}


def quiet(*_):
    """Take no notice."""


def crystals(count: int) -> list:
    made = []
    for number in range(count):
        atoms = bulk("Cu" if number % 3 else "Ag", a=3.6 + 0.05 * number)
        atoms.info.update(gap=float(number), T=float(number % 5))
        made.append(atoms)
    return made


def trained(folder: Path, features: object, told: tuple[str, ...] = ()) -> Run:
    write(folder / "metals.extxyz", crystals(16))
    content = {
        "dataset": {
            "name": "metals",
            "source": str(folder / "metals.extxyz"),
            "target": "gap",
            "global_features": list(told),
        },
        "features": features,
        "split": {"duplicates": "report"},
        "model": {"name": "extra_trees", "n_estimators": 5},
        "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
    }
    return run_pipeline(parse_config(content), quiet)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return trained(tmp_path_factory.mktemp("metals"), {"phonons": PHONONS, "composition": {}})


@pytest.fixture
def model(run) -> Path:
    return run.folder / "model.safetensors"


def predictions(run: Run) -> pd.Series:
    return pd.read_parquet(run.folder / "predictions.parquet").set_index("id")["gap_predicted"]


def test_predictions_from_the_file_alone_are_those_of_the_run(run, model, tmp_path):
    """One structure that EMT does not know is refused with the reason, and the others are predicted."""
    frames = crystals(16)
    frames[4].numbers[:] = 26
    loaded = load_model(model)
    known = [frame for number, frame in enumerate(frames) if number != 4]
    expected = predictions(run)[[f"metals-{number:06d}" for number in range(16) if number != 4]]
    assert np.array_equal(loaded.predict(known)[:, 0], expected)
    with (
        pytest.raises(AtomloomError, match="structure 1: phonons: No EMT-potential for Fe"),
        pytest.warns(UserWarning, match="has not seen Fe"),
    ):
        loaded.predict(frames[3:5])
    write(tmp_path / "metals.extxyz", frames)
    request = Prediction(
        (model,), (str(tmp_path / "metals.extxyz"),), tmp_path / "out.parquet", Batching()
    )
    table = pd.read_parquet(predict_files(request, quiet)).set_index("id")
    assert table["gap"].to_dict() == expected.to_dict()
    refused = (tmp_path / "out.quarantine.csv").read_text().splitlines()[1:]
    assert [line.split(",", 3)[-1] for line in refused] == ["phonons: No EMT-potential for Fe"]


def test_errors_on_new_data_are_of_features_that_are_computed_for_them(run, model, tmp_path):
    write(tmp_path / "new.extxyz", crystals(16))
    found = compare_with_labels(Comparison(model, (str(tmp_path / "new.extxyz"),)), quiet)
    error = np.abs(predictions(run).to_numpy() - np.arange(16.0)).mean()
    assert found.metrics["gap"]["test"]["mae"] == pytest.approx(error)


def test_features_of_the_data_are_still_told_and_derived_ones_may_be(tmp_path):
    run = trained(tmp_path, ["composition"], told=("T",))
    loaded = load_model(run.folder / "model.safetensors")
    assert loaded.card.told == ("T",)
    frames = crystals(16)
    temperatures = [frame.info["T"] for frame in frames]
    found = loaded.predict(frames, global_features={"T": temperatures})
    assert np.array_equal(found[:, 0], predictions(run))
    with pytest.raises(AtomloomError, match="T"):
        loaded.predict(frames)
    names = loaded.card.global_features.names
    given = dict.fromkeys(names, 1.0)
    assert len(np.unique(loaded.predict(frames, global_features=given))) == 1, "not computed"


def edited(model: Path, folder: Path, **features: CardFeature) -> Path:
    tensors, card = read_model(model)
    path = folder / "edited.safetensors"
    write_model(path, tensors, replace(card, features={**card.features, **features}))
    return path


@pytest.mark.parametrize(
    ("calculator", "key", "said"),
    [
        ("os:system", "0" * 16, "calculator of the module os, whose code would be run.*--trust os"),
        ("emt", "0" * 16, "not that of the training"),
    ],
    ids=["code of others", "another version"],
)
def test_a_file_runs_no_code_of_others_and_no_other_numbers(model, tmp_path, calculator, key, said):
    section = Feature(source="gamma_frequencies", calculator=calculator)
    path = edited(model, tmp_path, phonons=CardFeature(section, key))
    with pytest.raises(AtomloomError, match=said):
        load_model(path).predict(crystals(2))


def test_another_potential_under_the_same_name_is_refused_and_its_trust_is_the_users(tmp_path):
    potential = write_potential(tmp_path / "cu.safetensors", elements=("Cu", "Ag"))
    phonons = {
        "source": "gamma_frequencies",
        "model": str(potential),
        "options": {"device": "cpu", "trust": "some_module"},
    }
    run = trained(tmp_path, {"phonons": phonons})
    (entry,) = outside_data(run.config)
    assert entry == {
        "through": "features.phonons", "model": str(potential), "data": ["unknown data"],
    }  # fmt: skip
    card = json.loads((run.folder / "run.json").read_text())
    assert card["outside_data"]["seen"] == [entry]
    loaded = load_model(run.folder / "model.safetensors", trust="mine")
    assert loaded.card.facts["trained_on"][1:] == ["unknown data"]
    asked = []
    genuine = computing.open_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            computing, "open_source", lambda n, f: asked.append(f.options) or genuine(n, f)
        )
        FeatureComputer.of(loaded.card, loaded.trust)
    assert asked == [{"device": "cpu", "trust": ["mine"]}]
    write_potential(potential, elements=("Cu", "Ag"), seed=1)
    with pytest.raises(AtomloomError, match=r"cu\.safetensors.* is not that of the training"):
        loaded.predict(crystals(2))
