"""Stacks: finished runs as one model, weighted by errors on rows that their members have not trained on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.io import write

import atomloom
from atomloom.cli import main
from atomloom.commands.stacking import error_bar, fitted_weights, stack_runs
from atomloom.errors import AtomloomError
from atomloom.features.computing import FeatureComputer
from atomloom.inference.stack import Combination, load_stack

COUNT, FOLDS = 60, 2
MODELS = ({"name": "svr", "C": 5.0}, {"name": "extra_trees", "n_estimators": 8})


def quiet(_):
    """Take no notice."""


def normal(*shape, seed=5):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Structures, features, and the runs of all folds of two models."""
    folder = tmp_path_factory.mktemp("project")
    structures = [bulk("NaCl", "rocksalt", a=5.4 + 0.01 * place) for place in range(COUNT)]
    x = normal(2, COUNT)
    y = np.sin(2 * x[0]) + x[1] ** 2 + 0.2 * normal(COUNT, seed=6)
    features = {"a": x[0], "b": x[1]}

    def run(model, fold=0, labels=y, given=features, **split):
        return atomloom.train(
            structures, {"y": labels}, name="t", folder=folder, model=model, log=quiet,
            global_features=given, threads=1,
            split={"duplicates": "report", "val_folds": FOLDS, "val_fold": fold, **split},
        )  # fmt: skip

    runs = [run(model, fold) for model in MODELS for fold in range(FOLDS)]
    return folder, structures, features, run, runs


@pytest.fixture(scope="module")
def stacked(project, tmp_path_factory):
    """A stack of these runs, and what was said of it."""
    path = tmp_path_factory.mktemp("stack") / "stack.safetensors"
    lines: list[str] = []
    content = stack_runs([run.folder for run in project[4]], path, True, lines.append)
    return path, content, lines


# --- weights and error bars ---


def test_weights_are_those_of_the_least_squares_with_the_sum_one():
    noise = normal(4000, 3) * [1.0, 2.0, 1.0]
    label = normal(4000, seed=6)
    predicted = label[:, None] + noise
    predicted[:, 2] = predicted[:, 0] + 5.0  # of no use
    weights = fitted_weights(label, predicted)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert weights[2] == 0.0
    shares = np.linspace(0, 1, 1001)
    errors = [np.mean((noise[:, 0] * s + noise[:, 1] * (1 - s)) ** 2) for s in shares]
    assert weights[0] == pytest.approx(shares[int(np.argmin(errors))], abs=2e-3)
    assert weights[0] == pytest.approx(0.8, abs=0.03)  # one over the variances


def test_an_error_bar_holds_two_thirds_of_the_errors_and_follows_the_deviation():
    spread = np.exp(normal(3000))
    error = np.abs(normal(3000, seed=6)) * 3.0 * spread
    floor, slope = error_bar(error, spread)
    bar = np.sqrt(floor**2 + (slope * spread) ** 2)
    assert (error <= bar).mean() == pytest.approx(0.683, abs=0.002)
    assert slope == pytest.approx(3.0, rel=0.05)
    for third in np.array_split(np.argsort(spread), 3):
        assert (error <= bar)[third].mean() == pytest.approx(0.683, abs=0.05)


def test_an_error_bar_is_a_constant_where_deviations_say_nothing():
    spread = np.exp(normal(3000))
    floor, slope = error_bar(np.abs(normal(3000, seed=6)), spread)
    assert floor == pytest.approx(1.0, rel=0.05)
    assert slope * np.median(spread) < 0.2
    assert error_bar(np.ones(9), np.zeros(9))[1] == 0.0
    assert error_bar(np.zeros(9), np.ones(9)) == (0.0, 0.0)


# --- a stack ---


def test_every_row_outside_the_test_set_is_predicted_out_of_fold(project, stacked):
    _, content, lines = stacked
    runs = project[4]
    tables = [run.predictions.set_index("id") for run in runs]
    split = tables[0]["split"]
    found = pd.read_parquet(stacked[0].with_name("stack.predictions.parquet")).set_index("id")
    assert set(found.index[found["split"] == "val"]) == set(split.index[split != "test"])
    assert set(found.index[found["split"] == "test"]) == set(split.index[split == "test"])
    weights = list(content["combinations"]["y"]["weights"].values())
    wanted = np.zeros(len(found))
    for place, weight in enumerate(weights):
        members = tables[FOLDS * place : FOLDS * place + FOLDS]
        of_kind = []
        for name in found.index:
            held = [t for t in members if t.loc[name, "split"] in ("val", "test")]
            assert len(held) == (1 if found.loc[name, "split"] == "val" else FOLDS)
            of_kind.append(np.mean([t.loc[name, "y_predicted"] for t in held]))
        wanted += weight * np.array(of_kind)
    np.testing.assert_allclose(found["y_predicted"], wanted, rtol=1e-12)
    for part in ("val", "test"):
        own, told = found[found["split"] == part], content["errors"]["y"][part]
        assert told["mae"] == pytest.approx(np.abs(own["y"] - own["y_predicted"]).mean(), rel=1e-12)
        within = (np.abs(own["y"] - own["y_predicted"]) <= own["y_std"]).mean()
        assert told["within_error_bar"] == pytest.approx(within)
    val = content["errors"]["y"]["val"]
    assert val["within_error_bar"] == pytest.approx(0.683, abs=0.03)
    assert any("stack: MAE val" in line for line in lines)


def test_the_file_predicts_as_its_members_do_together(project, stacked):
    _, structures, features, _, runs = project
    path, content, _ = stacked
    given = {name: values[:4] for name, values in features.items()}
    stack = atomloom.load_stack(path)
    found, bars = stack.predict_with_errors(structures[:4], device="cpu", global_features=given)
    np.testing.assert_array_equal(found, stack.predict(structures[:4], global_features=given))
    own = [run.predict(structures[:4], global_features=given)[:, 0] for run in runs]
    by_kind = np.stack([np.mean(own[:FOLDS], axis=0), np.mean(own[FOLDS:], axis=0)], axis=1)
    weights = np.array(list(content["combinations"]["y"]["weights"].values()))
    np.testing.assert_allclose(found[:, 0], by_kind @ weights, rtol=1e-12)
    assert (bars > 0).all()
    assert stack.units == {"y": ""}
    with pytest.raises(AtomloomError, match="no member of the stack takes c"):
        stack.predict(structures[:4], global_features={**given, "c": 1.0})


def test_a_network_and_a_tabular_model_are_one_stack(project, tmp_path, capsys):
    folder, structures, features, _, runs = project
    network = atomloom.train(
        structures, {"y": labels_of(project)}, name="t", folder=folder, log=quiet, epochs=1,
        model={"name": "icomformer", "width": 4, "layers": 2}, threads=1,
        split={"duplicates": "report", "val_folds": FOLDS},
    )  # fmt: skip
    path = tmp_path / "both.safetensors"
    call = ["stack", str(network.folder), str(runs[0].folder), "--output", str(path)]
    assert main([*call, "--weights", "mean"]) == 0
    stack = atomloom.load_stack(path)
    given = {name: values[:3] for name, values in features.items()}
    mean = (
        network.predict(structures[:3]) + runs[0].predict(structures[:3], global_features=given)
    ) / 2
    np.testing.assert_allclose(stack.predict(structures[:3], global_features=given), mean, rtol=1e-9)  # fmt: skip
    assert "0.500 of icomformer" in capsys.readouterr().out


def test_derived_features_are_computed_once_and_the_command_predicts(
    project, tmp_path, monkeypatch
):
    folder, _, _, _, _ = project
    structures = [
        bulk(a + "Cl", "rocksalt", a=5.4 + 0.01 * i) for i in range(14) for a in ("Na", "K", "Li")
    ]
    labels = np.array([one.numbers[0] + 0.1 * i for i, one in enumerate(structures)])
    runs = [
        atomloom.train(
            structures, {"z": labels}, {"features": ["composition"]}, name="derived", folder=folder,
            model=model, log=quiet, threads=1, split={"duplicates": "report", "ratios": [0.4, 0.4, 0.2]},
        )
        for model in MODELS
    ]  # fmt: skip
    path = tmp_path / "stack.safetensors"
    stack_runs([run.folder for run in runs], path, False, quiet)
    computed = []
    genuine = FeatureComputer.compute
    monkeypatch.setattr(
        FeatureComputer, "compute", lambda *given: computed.append(1) or genuine(*given)
    )
    found, bars = load_stack(path).predict_with_errors(structures)
    assert len(computed) == 1
    write(tmp_path / "new.extxyz", structures)
    table = tmp_path / "table.parquet"
    call = ["predict", "--model", str(path), "--source", str(tmp_path / "new.extxyz")]
    assert main([*call, "--output", str(table)]) == 0
    written = pd.read_parquet(table)
    np.testing.assert_allclose(written["z"], found[:, 0], rtol=1e-6)
    np.testing.assert_allclose(written["z_std"], bars[:, 0], rtol=1e-6)


def test_the_command_says_what_a_stack_must_be_told(stacked, tmp_path, capsys):
    write(tmp_path / "new.extxyz", bulk("NaCl", "rocksalt", a=5.4))
    call = ["predict", "--model", str(stacked[0]), "--source", str(tmp_path / "new.extxyz")]
    assert main([*call, "--output", str(tmp_path / "t.parquet")]) != 0
    assert "must be told a, b of each structure" in capsys.readouterr().err


def test_the_same_runs_give_the_same_bytes(project, stacked, tmp_path):
    stack_runs([run.folder for run in project[4]], tmp_path / "stack.safetensors", True, quiet)
    assert (tmp_path / "stack.safetensors").read_bytes() == stacked[0].read_bytes()
    told = json.loads((tmp_path / "stack.json").read_text())
    assert told == json.loads(stacked[0].with_suffix(".json").read_text())


# --- what cannot be ---


def labels_of(project):
    """Labels in the order of the structures."""
    table = project[4][0].predictions
    number = table["id"].str.rpartition("-")[2].astype(int)
    return table.set_index(number)["y"].sort_index().to_numpy()


def refused(folders, path, words):
    with pytest.raises(AtomloomError, match=words) as caught:
        stack_runs(folders, path, True, quiet)
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_runs_that_do_not_go_together_are_one_line(project, tmp_path):
    _, _, _, run, runs = project
    path = tmp_path / "s.safetensors"
    refused([runs[0].folder], path, "two runs or more")
    refused([runs[0].folder, runs[0].folder], path, "two runs or more")
    refused([runs[0].folder, tmp_path], path, "is not a finished run")
    refused([runs[0].folder, runs[3].folder], path, "only 0 validation rows")
    other = run(MODELS[1], seed=1)
    refused([runs[0].folder, other.folder], path, "had a part in the training of")
    relabelled = run(MODELS[1], labels=labels_of(project) + 1.0)
    refused([runs[0].folder, relabelled.folder], path, "different labels of y")
    refused([runs[0].folder, runs[2].folder], tmp_path / "s.pt", "NAME.safetensors")


def test_a_damaged_or_foreign_file_is_one_line(project, stacked, tmp_path):
    whole = stacked[0].read_bytes()
    path = tmp_path / "stack.safetensors"
    for change in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2]):
        path.write_bytes(change)
        with pytest.raises(AtomloomError, match=r"is damaged: its digest differs|cannot be read"):
            load_stack(path)
    with pytest.raises(AtomloomError, match="is not a stack of models"):
        load_stack(project[4][0].folder / "model.safetensors")
    with pytest.raises(AtomloomError, match="is a stack of several models"):
        atomloom.load_model(stacked[0])
    with pytest.raises(AtomloomError, match="no stack here"):
        load_stack(tmp_path / "none.safetensors")


def test_kinds_without_weight_add_nothing():
    both = Combination((0.0, 1.0), 0.5, 2.0)
    predicted = normal(5, 2)
    for one, other in zip(
        both.combined(predicted), both.of([1]).combined(predicted[:, 1:]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
