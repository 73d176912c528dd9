"""Tabular models: fitted by scikit-learn, stored as plain arrays, predicted by atomloom alone."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from ase.build import bulk
from safetensors import safe_open

import atomloom
from atomloom.api import _placed, run_pipeline
from atomloom.cli import main
from atomloom.config import parse_config
from atomloom.config.model import MODELS, TabularSection
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model, write_model
from atomloom.inference.predict import load_model, predict_table
from atomloom.models.registry import build_model
from atomloom.sweeps.space import config_of, first_points
from atomloom.training import tabular
from atomloom.training.tabular import Fit, fit_table
from atomloom.training.trainer import train
from tests.unit.training.runs import small_data

NAMES = ("extra_trees", "gaussian_process", "gradient_boosting", "svr")
SMALL = {
    "extra_trees": {"n_estimators": 10},
    "gaussian_process": {"noise": 0.1},
    "gradient_boosting": {"max_iter": 8, "min_samples_leaf": 3},
    "svr": {"C": 2.0},
}
COUNT = 60
FEATURES = ("a", "b", "c")
TREES = ("extra_trees", "gradient_boosting")


def content(name, *, targets=("y",), model=None, **training):
    """Values of a config of a small tabular model."""
    return {
        "dataset": {
            "name": "t", "source": ["none"], "target": list(targets), "unit": "eV",
            "labels": {"file": "none"}, "global_features": list(FEATURES),
        },
        "model": {"name": name, **SMALL[name], **(model or {})},
        "training": {"threads": 1, **training},
    }  # fmt: skip


def config_of_model(name, **options):
    return parse_config(content(name, **options))


@pytest.fixture(scope="module")
def rows():
    """Features and two targets of some structures."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(COUNT, 3))
    y = np.stack([np.sin(2 * x[:, 0]) + x[:, 1] ** 2, x[:, 2] - x[:, 0] * x[:, 1]], axis=1)
    return x, y + rng.normal(scale=0.3, size=y.shape)


def data_of(rows, targets=None):
    """Labelled atoms with these features."""
    x, y = rows
    return replace(
        small_data(COUNT),
        targets=y[:, :1] if targets is None else targets,
        global_features=100.0 + 3.0 * x,
    )


def fitted(name, x, y, **options):
    """Model with the arrays of a fit, and its section."""
    config = config_of_model(name, **options)
    classes = config.training.loss == "cross_entropy"
    outputs = int(y.max()) + 1 if classes else y.shape[1]
    model = build_model(config.model, outputs, global_features=x.shape[1])
    arrays = fit_table(model, x, y, Fit(config.training, 1, lambda line: None))
    return model, arrays, config


def by_scikit_learn(name, x, y, others, loss="mse"):
    """Predictions of an estimator of scikit-learn with the same options."""
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern
    from sklearn.svm import SVR

    if name == "svr":
        return SVR(C=2.0).fit(x, y).predict(others)
    if name == "gaussian_process":
        kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(np.sqrt(3), (1e-2, 1e4), nu=2.5)
        return GaussianProcessRegressor(kernel, alpha=0.1).fit(x, y).predict(others)
    classes = loss in ("bce", "cross_entropy")
    criterion = {"mae": "absolute_error", "mse": "squared_error"}.get(loss)
    if name == "extra_trees":
        options = {"n_estimators": 10, "random_state": 0}
        own = (
            ExtraTreesClassifier(max_features=1.0, **options)
            if classes
            else ExtraTreesRegressor(criterion=criterion, **options)
        )
    else:
        options = {"max_iter": 8, "min_samples_leaf": 3, "random_state": 0}
        own = (
            HistGradientBoostingClassifier(**options)
            if classes
            else HistGradientBoostingRegressor(loss=criterion, **options)
        )
    own.fit(x, y)
    return own.predict_proba(others) if classes else own.predict(others)


def outputs_of(model, x):
    with torch.no_grad():
        return model.of_features(torch.from_numpy(x)).numpy()


# --- predictions ---


@pytest.mark.parametrize("name", NAMES)
def test_predictions_from_the_arrays_are_those_of_scikit_learn(rows, name):
    x, y = rows
    model, _, _ = fitted(name, x[:40], y[:40])
    found = outputs_of(model, x[40:])
    for column in range(2):
        wanted = by_scikit_learn(name, x[:40], y[:40, column], x[40:])
        np.testing.assert_allclose(found[:, column], wanted, rtol=0, atol=1e-9)
        assert wanted.std() > 0.1


@pytest.mark.parametrize("name", TREES)
def test_absolute_errors_are_minimised_where_the_loss_is_mae(rows, name):
    x, y = rows
    model, _, _ = fitted(name, x[:40], y[:40, :1], loss="mae")
    wanted = by_scikit_learn(name, x[:40], y[:40, 0], x[40:], loss="mae")
    np.testing.assert_allclose(outputs_of(model, x[40:])[:, 0], wanted, rtol=0, atol=1e-9)
    assert not np.allclose(wanted, by_scikit_learn(name, x[:40], y[:40, 0], x[40:]))


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("count", [2, 3])
def test_probabilities_of_classes_are_those_of_scikit_learn(rows, name, count):
    x, y = rows
    classes = np.digitize(y[:, 0], np.quantile(y[:, 0], np.arange(1, count) / count)).astype(float)
    losses = ["cross_entropy", "bce"] if count == 2 else ["cross_entropy"]
    for loss in losses:
        model, _, _ = fitted(name, x[:40], classes[:40, None], loss=loss)
        outputs = torch.from_numpy(outputs_of(model, x[40:]))
        found = outputs.sigmoid() if loss == "bce" else outputs.softmax(dim=1)
        wanted = by_scikit_learn(name, x[:40], classes[:40], x[40:], loss)
        wanted = wanted[:, 1:] if loss == "bce" else wanted
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-9)
        assert np.ptp(wanted) > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_target_leaves_a_row_out_of_the_fit_of_this_target_alone(rows, name):
    x, y = rows
    gaps = y.copy()
    gaps[:15, 0] = np.nan
    both, _, _ = fitted(name, x, gaps)
    first, _, _ = fitted(name, x[15:], y[15:, :1])
    second, _, _ = fitted(name, x, y[:, 1:])
    found = outputs_of(both, x)
    np.testing.assert_allclose(found[:, :1], outputs_of(first, x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[:, 1:], outputs_of(second, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("svr", {"kernel": "linear", "epsilon": 0.5}),
        ("gaussian_process", {"kernel": "rbf", "anisotropic": True, "noise": "fit"}),
        ("gaussian_process", {"kernel": "matern", "nu": 0.5}),
        ("gaussian_process", {"kernel": "matern", "nu": 1.5}),
        ("extra_trees", {"max_depth": 1, "max_features": "sqrt"}),
        ("extra_trees", {"min_samples_leaf": 60}),
        ("gradient_boosting", {"min_samples_leaf": 60}),
        ("gradient_boosting", {"max_features": 0.5, "l2_regularization": 1.0}),
    ],
)
def test_every_option_reaches_the_fit(rows, name, options):
    # Fits compare the arrays with scikit-learn's predictions by themselves.
    x, y = rows
    usual, _, _ = fitted(name, x, y)
    other, _, _ = fitted(name, x, y, model=options)
    assert np.abs(outputs_of(usual, x) - outputs_of(other, x)).max() > 1e-3


def test_a_change_of_the_inner_tables_of_scikit_learn_is_noticed(rows, monkeypatch):
    x, y = rows
    true = tabular._nodes_of_histogram
    monkeypatch.setattr(
        tabular, "_nodes_of_histogram", lambda nodes: true(nodes) | {"value": true(nodes)["value"] + 1}
    )  # fmt: skip
    with pytest.raises(AtomloomError, match=r"gradient_boosting differ by .* scikit-learn"):
        fitted("gradient_boosting", x, y)


# --- runs ---


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    """Folder of a run of each model, by name."""
    found = {}
    for name in NAMES:
        found[name] = tmp_path_factory.mktemp(name)
        train(data_of(rows), config_of_model(name), found[name], lambda line: None)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_model_history_and_result(rows, runs, name):
    data, folder = data_of(rows), runs[name]
    lines: list[str] = []
    result = train(data, config_of_model(name), folder, lines.append)
    assert lines == ["already trained"]
    assert (result.epochs_run, result.best_epoch, result.device) == (1, 1, "cpu")
    predicted = predict_table(load_model(folder / "model.safetensors"), data.table,
                              global_features=data.global_features)  # fmt: skip
    val = data.split("val")
    mae = np.abs(predicted - data.targets)[val].mean()
    assert result.best_val_mae["y"] == pytest.approx(mae, rel=1e-9)
    assert mae < np.abs(data.targets[val] - data.targets[data.split("train")].mean()).mean()
    assert (folder / "history.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_same_fit_gives_the_same_bits(rows, runs, name, tmp_path):
    train(data_of(rows), config_of_model(name, threads=2), tmp_path, lambda line: None)
    digests = []
    for folder in (tmp_path, runs[name]):
        with safe_open(folder / "model.safetensors", "pt") as file:
            digests.append(json.loads(file.metadata()["atomloom"])["digest"])
    assert digests[0] == digests[1]


def test_the_seed_changes_the_trees(rows):
    x, y = rows
    one, _, _ = fitted("extra_trees", x, y, model={"max_depth": 3})
    other, _, _ = fitted("extra_trees", x, y, model={"max_depth": 3}, seed=1)
    assert not np.array_equal(outputs_of(one, x), outputs_of(other, x))


def test_logarithms_are_learnt(rows, tmp_path):
    data = data_of(rows, targets=np.exp(3.0 * rows[1][:, :1]))
    folder = tmp_path / "logs"
    train(data, config_of_model("svr", log_targets=["y"]), folder, lambda line: None)
    found = predict_table(load_model(folder / "model.safetensors"), data.table,
                          global_features=data.global_features)  # fmt: skip
    assert (found > 0).all()
    train_rows = data.split("train")
    errors = np.log(found[train_rows] / data.targets[train_rows])
    assert np.abs(errors).mean() < 0.2 * np.log(data.targets[train_rows]).std()


def test_an_unknown_feature_of_a_training_row_is_one_line(rows, tmp_path):
    data = data_of(rows)
    data.global_features[data.split("train")[3], 1] = np.nan
    with pytest.raises(AtomloomError, match=r"b of row \d+ is nan"):
        train(data, config_of_model("svr"), tmp_path, lambda line: None)


def test_noise_that_leaves_no_digits_is_one_line(rows):
    x, y = rows
    with pytest.raises(AtomloomError, match=r"noise 1e-12 is too small for these rows"):
        fitted("gaussian_process", np.round(x), y, model={"noise": 1e-12})


def test_a_feature_whose_squares_overflow_is_one_line(rows, tmp_path):
    data = data_of(rows)
    data.global_features[:, 1] *= 1e200
    with pytest.raises(AtomloomError, match=r"values of b, of up to .*e\+20\d, have squares that"):
        train(data, config_of_model("svr"), tmp_path, lambda line: None)


@pytest.mark.parametrize("name", NAMES)
def test_equal_targets_are_learnt_by_a_model_that_can_be_read(rows, name, tmp_path):
    data = data_of(rows, targets=np.full((COUNT, 1), 7.0))  # no support vector is left
    train(data, config_of_model(name), tmp_path, lambda line: None)
    model = load_model(tmp_path / "model.safetensors")
    found = predict_table(model, data.table, global_features=data.global_features)
    np.testing.assert_allclose(found, 7.0, atol=1e-6)


def test_a_covariance_beyond_the_memory_is_one_line(rows, monkeypatch):
    from atomloom.data.memory import FreeMemory

    monkeypatch.setattr(tabular, "free_memory", lambda: FreeMemory(10_000, "a test"))
    with pytest.raises(AtomloomError, match=r"60 rows .* use svr, extra_trees"):
        fitted("gaussian_process", *rows)


# --- model files ---

DAMAGE = {
    "a child before its node": ("extra_trees", "left", lambda a: a.fill_(0)),
    "a child beyond the nodes": ("gradient_boosting", "right", lambda a: a.fill_(2**30)),
    "a feature that does not exist": ("extra_trees", "feature", lambda a: a.add_(3)),
    "a negative feature": ("gradient_boosting", "feature", lambda a: a.sub_(1)),
    "a root beyond the nodes": ("extra_trees", "root", lambda a: a.add_(2**30)),
    "a tree of no output": ("extra_trees", "output", lambda a: a.add_(1)),
    "fewer thresholds than nodes": ("extra_trees", "threshold", lambda a: a[:-1]),
    "no tree": ("gradient_boosting", "root", lambda a: a[:0]),
    "classes of another kind": ("extra_trees", "classes", lambda a: a.fill_(7)),
    "thresholds in 32 bits": ("extra_trees", "threshold", lambda a: a.float()),
    "fewer weights than rows": ("svr", "weights", lambda a: a[:-1]),
    "rows of no output": ("svr", "first", lambda a: a.sub_(1)),
    "no range": ("svr", "gamma", lambda a: a.fill_(0.0)),
    "rows of other features": ("gaussian_process", "rows", lambda a: a[:, :-1]),
    "a negative length scale": ("gaussian_process", "length_scale", lambda a: a.neg_()),
    "no array of weights": ("gaussian_process", "weights", lambda a: None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_with_wrong_arrays_is_one_line(runs, damage, tmp_path):
    name, array, change = DAMAGE[damage]
    tensors, card = read_model(runs[name] / "model.safetensors")
    changed = change(tensors.pop(array).clone())
    if changed is not None:
        tensors[array] = changed
    path = tmp_path / "model.safetensors"
    write_model(path, tensors, card)  # with a digest that fits
    with pytest.raises(AtomloomError, match="does not hold the arrays of its model"):
        load_model(path)


def test_prediction_needs_no_scikit_learn(rows, runs, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # to import it would raise an error
    data = data_of(rows)
    for folder in runs.values():
        model = load_model(folder / "model.safetensors")
        assert predict_table(model, data.table, global_features=data.global_features).shape == (
            COUNT,
            1,
        )


# --- the page ---

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "tabular.md").read_text()


def pieces(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_configs_of_the_page_are_ones():
    first, derived, sweep = (yaml.safe_load(text) for text in pieces("yaml"))
    assert parse_config(derived).features
    config = parse_config(first | sweep)
    names = {point["model.name"] for point in first_points(config.sweep)}
    assert names == {"extra_trees", "gradient_boosting", "svr"}
    for point in first_points(config.sweep):
        config_of(config, point)


def test_the_page_names_every_model_with_its_options():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", PAGE, re.MULTILINE))
    own = {name for name, section in MODELS.items() if issubclass(section, TabularSection)}
    assert set(rows) == own
    for name, options in rows.items():
        assert set(re.findall(r"`(\w+)`", options)) == set(MODELS[name].model_fields) - {"name"}


def test_the_script_of_the_page_trains_reports_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    structures = [bulk("NaCl", "rocksalt", a=5.4 + 0.01 * place) for place in range(40)]
    temperatures = np.linspace(100.0, 500.0, 40)[np.random.default_rng(0).permutation(40)]
    given = {"atomloom": atomloom, "structures": structures, "temperatures": temperatures,
             "gaps": 2.0 + 0.01 * temperatures, "more_structures": structures[:3]}  # fmt: skip
    (script,) = pieces("python")
    exec(script, given)
    run = given["run"]
    np.testing.assert_allclose(run.predict(structures[:3], global_features={"temperature": 300.0}), 5.0, atol=0.3)  # fmt: skip
    assert run.metrics["target"]["test"]["mae"] < 0.3
    assert json.loads((run.folder / "run.json").read_text())["epochs_run"] == 1
    report = run.report.read_text()
    assert "no curves: the model was fitted at once" in report
    assert "Scikit-learn: Machine Learning in Python" in report
    assert "Neighbours per atom" not in report
    (index,) = tmp_path.glob("results/notebook/index/*/index.json")
    assert json.loads(index.read_text())["edges"] == 0


def test_features_of_composition_and_trees_are_one_short_config(tmp_path, monkeypatch, capsys):
    _, derived, _ = (yaml.safe_load(text) for text in pieces("yaml"))
    monkeypatch.chdir(tmp_path)
    source = ROOT / derived["dataset"]["source"]
    (tmp_path / "cif").mkdir()
    for file in sorted(source.iterdir())[:40]:
        (tmp_path / "cif" / file.name).write_bytes(file.read_bytes())
    derived["dataset"] |= {"source": "cif"}
    derived["dataset"]["labels"]["file"] = str(ROOT / derived["dataset"]["labels"]["file"])
    derived["dataset"]["checks"] = {"max_fraction": 1.0}
    derived["split"] = {"duplicates": "report", "ratios": [0.6, 0.2, 0.2]}
    derived["training"] = {"threads": 1}
    run = run_pipeline(parse_config(derived), lambda line: None)
    call = ["predict", "--model", str(run.folder / "model.safetensors"), "--source", "cif"]
    assert main([*call, "--output", "predicted.parquet"]) == 0
    found = pd.read_parquet("predicted.parquet").set_index("id")["cohesive_energy_per_atom"]
    wanted = run.predictions.set_index("id")["cohesive_energy_per_atom_predicted"]
    np.testing.assert_allclose(found.loc[wanted.index], wanted, rtol=1e-12)
    assert len(wanted) == 40
    assert wanted.nunique() > 3


def test_a_key_of_the_model_is_meant_where_training_has_no_use_for_it():
    placed = _placed({"model": "gradient_boosting", "learning_rate": 0.3, "log_targets": "y"}, {})
    assert placed["model"] == {"name": "gradient_boosting", "learning_rate": 0.3}
    assert placed["training"] == {"log_targets": "y"}


# --- configs ---


@pytest.mark.parametrize(
    "training",
    [
        {"epochs": 50}, {"stop_after": 3}, {"learning_rate": 0.1}, {"optimizer": "sgd"}, {"start_from": "run"},
        {"continue_from": "run"}, {"devices": 2}, {"nodes": 2}, {"early_stopping": 3}, {"compile": True},
        {"precision": "64"}, {"ema_decay": 0.9}, {"clip_norm": 1.0}, {"loss_weights": {"y": 2.0}},
        {"keep_every": 1}, {"potential": {"force_fraction": 0.5}}, {"loggers": ["mlflow"]},
    ],
    ids=lambda training: next(iter(training)),
)  # fmt: skip
def test_what_means_nothing_for_a_table_is_refused_by_its_name(training):
    (name,) = training
    with pytest.raises(AtomloomError) as caught:
        config_of_model("extra_trees", **training)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"device": "cuda"}}, "fitted on the CPU"),
        ({"training": {"loss": "huber"}}, "mse or mae or bce or cross_entropy"),
        ({"graph": {"neighbors": "knn"}}, "needs graph.neighbors: none"),
        ({"graph": {"cutoff": 5.0}}, "cutoff means nothing for neighbors: none"),
        ({"dataset": {"global_features": []}}, "learns from dataset.global_features"),
        ({"model": {"name": "extra_trees", "C": 1.0}}, "C"),
        ({"model": "painn", "graph": {"neighbors": "none"}}, "needs graph.neighbors: radius"),
    ],
)
def test_what_cannot_be_is_one_line(change, said):
    own = content("extra_trees")
    for section, values in change.items():
        own[section] = own.get(section, {}) | values if isinstance(values, dict) else values
    if own["model"] == "painn":
        own["dataset"] |= {"target": ["energy"], "global_features": []}
        own["training"] = {}
    with pytest.raises(AtomloomError) as caught:
        parse_config(own)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_tabular_model_has_a_fit():
    sections = {section for section in MODELS.values() if issubclass(section, TabularSection)}
    assert set(tabular.FITS) == set(tabular.JOINTS) == sections


def test_a_sweep_goes_over_tabular_models_and_their_options():
    base = config_of_model("extra_trees")
    trial = config_of(base, {"model.name": "svr", "model.C": 3.0})
    assert (trial.model.name, trial.model.C, trial.training.epochs) == ("svr", 3.0, 1)
    assert trial.graph == base.graph
    deeper = config_of(base, {"model.n_estimators": 20})
    assert (deeper.model.n_estimators, base.model.n_estimators) == (20, 10)
