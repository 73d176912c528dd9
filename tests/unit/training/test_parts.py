"""Losses, targets, moving averages, metrics, model files and the clock, each by itself."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from atomloom.config import Batching
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.inference.metrics import class_metrics, error_metrics, split_metrics
from atomloom.inference.predict import load_model, predict_table
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.store.keys import chain_hash
from atomloom.targets import spec_of
from atomloom.training.batch_norm import statistics_of_this_batch
from atomloom.training.checkpoint import CheckpointTimer, save_state
from atomloom.training.logging.history import duration
from atomloom.training.objectives import property as property_objective
from atomloom.training.objectives.losses import loss_sum
from atomloom.training.optim.ema import MovingAverage
from atomloom.training.trainer import train
from tests.unit.data.tables import random_table
from tests.unit.training.runs import small_config, small_data

NAN = float("nan")


# --- losses ---


@pytest.mark.parametrize(
    ("kind", "expected"), [("mse", 0.25 + 9.0), ("mae", 3.5), ("huber", 0.125 + 2.5)]
)
def test_losses_sum_over_what_is_known(kind, expected):
    prediction = torch.tensor([[1.0, 5.0], [2.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.5, NAN], [5.0, NAN]])
    loss = loss_sum(kind, prediction, target)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert prediction.grad[:, 1].tolist() == [0.0, 0.0]
    assert torch.isfinite(prediction.grad).all()


def test_a_prediction_that_is_not_a_number_is_not_hidden_by_an_unknown_target():
    prediction, target = torch.tensor([[NAN, 1.0]]), torch.tensor([[NAN, 1.0]])
    assert math.isnan(loss_sum("mse", prediction, target))


def test_cross_entropy_sums_over_what_is_known():
    prediction = torch.tensor([[2.0, 5.0], [-1.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1.0, NAN], [0.0, NAN]])
    loss = loss_sum("bce", prediction, target)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)), rel=1e-6)
    loss.backward()
    assert prediction.grad[:, 1].tolist() == [0.0, 0.0]


# --- targets ---


def test_standardized_training_targets_have_mean_0_and_deviation_1():
    targets = np.random.default_rng(0).normal(50, 9, size=(80, 2))
    targets[4, 1] = NAN
    rows = np.arange(60)
    standardizer = TargetScaler.fit(targets, rows, ["a", "b"])
    z = standardizer.standardize(targets)
    np.testing.assert_allclose(np.nanmean(z[rows], axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(np.nanstd(z[rows], axis=0), 1)
    np.testing.assert_allclose(standardizer.restore(z), targets, rtol=1e-14)


def test_equal_targets_are_not_divided_by_rounding_noise():
    targets = np.full((10, 1), 0.1)
    standardizer = TargetScaler.fit(targets, np.arange(10), ["a"])
    assert standardizer.std.tolist() == [1.0]


def test_logarithms_are_undone():
    targets = np.array([[1.0, -3.0], [10.0, 4.0], [100.0, 0.0]])
    standardizer = TargetScaler.fit(targets, np.arange(3), ["a", "b"], ["a"])
    np.testing.assert_allclose(standardizer.mean, [np.log(10), 1 / 3])
    np.testing.assert_allclose(
        standardizer.restore(standardizer.standardize(targets)), targets, atol=1e-14
    )


@pytest.mark.parametrize(
    ("targets", "logs", "message"),
    [
        ([[NAN], [NAN]], [], "no training structure has a value of a"),
        ([[1.0], [np.inf]], [], "a of row 1 is infinite"),
        ([[1.0], [1e300]], [], r"a, of up to 1e\+300, have squares that overflow"),
        ([[1.7e308], [1.7e308]], [], "squares that overflow"),
        ([[1e-300], [2e-300]], [], "squares that overflow"),
        ([[1.0], [-2.0]], ["a"], "a of row 1 is -2.0, which has no logarithm"),
        ([[1.0], [2.0]], ["b"], "b is not a target"),
    ],
)
def test_targets_that_cannot_be_learnt_are_refused(targets, logs, message):
    with pytest.raises(AtomloomError, match=message):
        TargetScaler.fit(np.array(targets), np.arange(2), ["a"], logs)


@pytest.mark.parametrize(
    ("targets", "message"),
    [([[0.0], [2.0]], "a of row 1 is 2, not 0 or 1"), ([[1.0], [1.0]], "of one class of a")],
)
def test_targets_that_are_no_classes_are_refused(targets, message):
    with pytest.raises(AtomloomError, match=message):
        TargetScaler.for_classes(np.array(targets), np.arange(2), ["a"])


def test_classes_have_no_logarithm():
    with pytest.raises(AtomloomError, match="exclude each other"):
        small_config(loss="bce", log_targets=["target0"])


def test_a_structure_in_two_splits_is_refused():
    data = small_data(12)
    with pytest.raises(AtomloomError, match="two splits"):
        LabelledGraphs(data.table, data.targets, {"train": np.arange(6), "test": np.arange(5, 9)})


# --- targets that are no column ---


def with_arrays(**changes) -> LabelledGraphs:
    data = small_data(12)
    arrays = {
        "stress": np.ones((12, 3, 3)),
        "forces": np.zeros((len(data.table.numbers), 3)),
    }
    specs = [spec_of(name, name) for name in arrays]
    own = {"arrays": arrays, "specs": specs, "global_features": np.full((12, 1), 2.0)} | changes
    return LabelledGraphs(data.table, data.targets, {"train": np.arange(6)}, **own)


def test_the_digest_of_a_data_set_is_that_of_the_version_before():
    """A run that was begun goes on, so the order of the arrays is theirs: forces, then stress."""
    data, table = with_arrays(), small_data(12).table
    values = (data.targets, data.arrays["forces"], data.arrays["stress"], data.global_features)
    parts = [array.tobytes() for array in (table.hash, table.node_ptr, table.edge_ptr, *values)]
    assert data.digest() == chain_hash([*parts, b"train", data.rows["train"].tobytes()])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"forces": np.zeros((12, 3))}, r"forces of shape \(12, 3\), not"),
        ({"stress": np.zeros((12, 9))}, r"stress of shape \(12, 9\), not \(12, 3, 3\)"),
        ({"dipole": np.zeros((12, 3))}, "arrays of .*dipole.* for the targets"),
    ],
)
def test_arrays_that_are_not_of_the_targets_are_refused(arrays, message):
    with pytest.raises(AtomloomError, match=message):
        with_arrays(arrays={**with_arrays().arrays, **arrays})


# --- moving average ---


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_ema_is_the_weighted_mean_of_the_weights_so_far():
    model = network()
    average = MovingAverage(model, decay=0.99)
    expected = model[0].weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            model[0].weight += 1.0
        average.update(step)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.state_dict()["0.weight"], expected)


def test_ema_averages_statistics_and_copies_counters():
    model = network()
    average = MovingAverage(model, decay=0.5)
    model.train()(torch.randn(16, 3) + 3)
    average.update(1)
    state = average.state_dict()
    assert state["1.num_batches_tracked"] == 1
    assert not torch.equal(state["1.running_mean"], model[1].running_mean)


def test_ema_that_is_loaded_goes_on_where_it_was_and_leaves_the_weights_alone():
    model, other = network(), network()
    average, loaded = MovingAverage(model, decay=0.5), MovingAverage(other, decay=0.5)
    with torch.no_grad():
        model[0].weight += 1.0
    average.update(1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    loaded.load_state_dict(average.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    other.load_state_dict(model.state_dict())
    for each in (average, loaded):
        each.update(2)
    found, expected = loaded.state_dict(), average.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ema_is_applied_inside_the_block_only():
    model = network()
    average = MovingAverage(model, decay=0.5)
    with torch.no_grad():
        model[0].weight += 1.0
    own = model[0].weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model[0].weight.detach(), own - 1.0)
    assert torch.equal(model[0].weight.detach(), own)


# --- batch norms ---


def test_batch_norms_start_from_their_first_batch():
    model = network()
    values = 3.0 + 1e-3 * torch.randn(50, 3)
    with statistics_of_this_batch(model):
        model.train()(values)
    features = model[0](values)
    torch.testing.assert_close(model[1].running_mean, features.mean(0))
    torch.testing.assert_close(model[1].running_var, features.var(0), rtol=1e-3, atol=0)


# --- metrics ---


def test_metrics_equal_scikit_learn():
    from sklearn import metrics as theirs

    rng = np.random.default_rng(0)
    truth = rng.normal(10, 3, size=50)
    predicted = truth + rng.normal(size=50)
    ours = error_metrics(np.append(truth, NAN), np.append(predicted, 5.0))
    assert ours["count"] == 50
    assert ours["mae"] == pytest.approx(theirs.mean_absolute_error(truth, predicted))
    assert ours["rmse"] == pytest.approx(theirs.root_mean_squared_error(truth, predicted))
    assert ours["r2"] == pytest.approx(theirs.r2_score(truth, predicted))
    assert ours["max_error"] == pytest.approx(theirs.max_error(truth, predicted))
    assert ours["mad"] == pytest.approx(np.abs(truth - truth.mean()).mean())
    small = error_metrics(np.array([0.1, 0.2]), np.array([0.1, 0.3]))
    assert small["r2"] == pytest.approx(-1.0), "targets of any size have one"


def test_class_metrics_equal_scikit_learn():
    from sklearn import metrics as theirs

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, size=60).astype(float)
    predicted = np.clip(np.round(0.3 * truth + rng.uniform(0, 0.7, size=60), 2), 0, 1)  # has ties
    ours = class_metrics(np.append(truth, NAN), np.append(predicted, 0.9))
    assert ours["auc"] == pytest.approx(theirs.roc_auc_score(truth, predicted))
    assert ours["f1"] == pytest.approx(theirs.f1_score(truth, predicted > 0.5))
    assert ours["accuracy"] == pytest.approx(theirs.accuracy_score(truth, predicted > 0.5))
    assert ours["ones"] == truth.sum()


def test_class_metrics_of_one_class_have_no_auc():
    assert class_metrics(np.ones(3), np.full(3, 0.9))["auc"] is None
    assert class_metrics(np.zeros(3), np.full(3, 0.1))["f1"] is None
    assert class_metrics(np.zeros(0), np.zeros(0))["accuracy"] is None


def test_metrics_that_are_not_defined_are_none():
    assert error_metrics(np.array([NAN]), np.array([1.0]))["mae"] is None
    assert error_metrics(np.array([2.0, 2.0]), np.array([1.0, 2.0]))["r2"] is None
    assert json.dumps(error_metrics(np.array([2.0]), np.array([1.0])), allow_nan=False)


def test_outputs_of_several_processes_are_gathered_in_the_order_of_rows(monkeypatch):
    outputs = np.arange(10.0).reshape(5, 2)
    monkeypatch.setattr(property_objective, "summed", lambda tensor, fabric: tensor)
    gathered = [
        property_objective._gathered(
            outputs[rank::2], 5, SimpleNamespace(world_size=2, global_rank=rank, device="cpu")
        )
        for rank in (0, 1)
    ]
    np.testing.assert_array_equal(gathered[0] + gathered[1], outputs)


def test_splits_are_measured_apart():
    table = pd.DataFrame(
        {"split": ["train", "test", "test"], "a": [1.0, 2.0, 3.0], "a_predicted": [1.0, 3.0, 5.0]}
    )
    metrics = split_metrics(table, "a")
    assert list(metrics) == ["train", "test"]
    assert metrics["train"]["mae"] == 0
    assert metrics["test"]["mae"] == 1.5


# --- model files and predictions ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    config = small_config(epochs=1, targets=2)
    train(small_data(targets=2), config, run, lambda line: None)
    return run / "model.safetensors", config


def test_a_model_file_says_all_that_is_needed_to_use_it(trained):
    path, config = trained
    loaded = load_model(path)
    assert loaded.card.model == config.model
    assert loaded.card.graph == config.graph
    assert loaded.card.targets == ("target0", "target1")
    assert loaded.card.unit == "eV"
    assert not loaded.model.training


def test_model_files_are_read_by_safetensors_alone(trained):
    with safe_open(trained[0], "pt") as file:
        assert set(file.keys()) == set(load_model(trained[0]).model.state_dict())
        assert json.loads(file.metadata()["atomloom"])["targets"] == ["target0", "target1"]


def test_predictions_depend_on_no_neighbour_in_the_batch_and_on_no_order(trained):
    loaded, table = load_model(trained[0]), random_table(30, seed=5)
    rows = np.array([7, 3, 3, 29, 0])
    together = predict_table(loaded, table)
    assert together.shape == (30, 2)
    assert together.dtype == np.float64
    picked = predict_table(loaded, table, rows, Batching(structures=2))
    np.testing.assert_allclose(picked, together[rows], rtol=2e-5)


@pytest.mark.filterwarnings("ignore:the model has not seen")  # it was trained on random elements
def test_structures_of_other_libraries_are_predicted(trained):
    from ase.build import bulk
    from pymatgen.core import Lattice, Structure

    loaded = load_model(trained[0])
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    same = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    predicted = loaded.predict([salt, same, bulk("Cu")])
    assert predicted.shape == (3, 2)
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-4)
    assert not np.allclose(predicted[0], predicted[2])
    assert loaded.predict([]).shape == (0, 2)


def test_loading_a_model_draws_no_random_numbers(trained):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_model(trained[0])
    assert torch.equal(torch.rand(1), expected)


def test_files_that_are_no_models_are_refused(tmp_path, trained):
    with pytest.raises(AtomloomError, match="no model here"):
        load_model(tmp_path / "missing.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(trained[0].read_bytes()[:500])
    with pytest.raises(AtomloomError, match="cannot be read"):
        load_model(damaged)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(AtomloomError, match="not a model of atomloom"):
        load_model(other)
    newer = tmp_path / "newer.safetensors"
    content = {"format": 99, "facts": {"atomloom": "9.9"}}
    save_file({"a": torch.zeros(1)}, newer, metadata={"atomloom": json.dumps(content)})
    with pytest.raises(AtomloomError, match=r"format 99.*use atomloom 9.9"):
        load_model(newer)


# --- state, clock, times ---


def test_a_state_of_anything_but_plain_values_is_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a PosixPath"):
        save_state(tmp_path / "last.ckpt", "key", {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_states_cost_a_small_share_of_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr("atomloom.training.checkpoint.time.monotonic", lambda: now)
    timer = CheckpointTimer(minutes=5)
    assert timer.due(end_of_epoch=True), "the first epoch is saved, to learn what it costs"
    now = 1.0
    timer.saved(started=0.0)
    now = 50.9
    assert not timer.due(end_of_epoch=True)
    now = 51.1
    assert timer.due(end_of_epoch=True)
    assert not timer.due()
    now = 301.1
    assert timer.due()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (280, "4:40"), (3880, "1:04:40")]
)
def test_durations_read_as_a_clock(seconds, text):
    assert duration(seconds) == text
