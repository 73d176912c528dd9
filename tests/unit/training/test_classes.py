"""Classes: two or more, told by probabilities that can be trusted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as reference

from atomloom.config import parse_config
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.inference.metrics import (
    calibration_error,
    class_metrics,
    many_class_metrics,
    split_metrics,
)
from atomloom.inference.model_file import read_model
from atomloom.inference.predict import load_model, predict_table
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.training.objectives.losses import loss_sum
from atomloom.training.trainer import train
from tests.unit.training.runs import history, small_config, small_data, use_sum_model

NAN = float("nan")


def quiet(_):
    """Take no notice."""


def classed_data(structures: int = 180, classes: int = 3) -> LabelledGraphs:
    """Classes by quantiles of a number that can be learnt."""
    data = small_data(structures)
    values = data.targets[:, 0]
    limits = np.quantile(values, np.arange(1, classes) / classes)
    return LabelledGraphs(
        data.table, np.searchsorted(limits, values)[:, None].astype(float), data.rows
    )


def test_cross_entropy_is_torch_s_over_what_is_known():
    prediction = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0], [3.0], [NAN], [2.0], [2.0]], dtype=torch.float64)
    loss = loss_sum("cross_entropy", prediction, target)
    known = [0, 1, 3, 4]
    expected = torch.nn.functional.cross_entropy(
        prediction[known], torch.tensor([0, 3, 2, 2]), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert prediction.grad[2].tolist() == [0.0] * 4
    bad = torch.full((1, 4), NAN)
    assert torch.isnan(loss_sum("cross_entropy", bad, torch.tensor([[NAN]])))


def test_metrics_of_classes_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=300)
    logits = rng.normal(size=(300, 4))
    logits[np.arange(300), truth] += 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ours = many_class_metrics(
        np.append(truth, NAN), np.concatenate([probabilities, np.full((1, 4), 0.25)])
    )
    chosen = probabilities.argmax(axis=1)
    assert ours["accuracy"] == reference.accuracy_score(truth, chosen)
    assert ours["f1"] == pytest.approx(reference.f1_score(truth, chosen, average="macro"))
    assert ours["auc"] == pytest.approx(
        reference.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
    )
    assert ours["mae"] == pytest.approx(1 - probabilities[np.arange(300), truth].mean())
    assert ours["count"] == 300


def test_two_classes_have_the_same_metrics_either_way():
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=200)
    ones = rng.uniform(size=200)
    binary = class_metrics(truth.astype(float), ones)
    many = many_class_metrics(truth.astype(float), np.column_stack((1 - ones, ones)))
    for name in ("accuracy", "auc", "calibration"):
        assert many[name] == pytest.approx(binary[name]), name


def test_calibration_is_the_gap_between_confidence_and_truth():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.5, 1.0, size=200_000)
    honest = rng.uniform(size=200_000) < confidence
    assert calibration_error(honest, confidence) < 0.005
    boasting = rng.uniform(size=200_000) < confidence - 0.2
    assert calibration_error(boasting, confidence) == pytest.approx(0.2, abs=0.005)
    assert calibration_error(np.array([True, False]), np.array([1.0, 1.0])) == 0.5
    assert calibration_error(np.zeros(0, bool), np.zeros(0)) is None


def test_classes_that_are_not_there_have_no_part_in_the_metrics():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]])
    one = many_class_metrics(np.zeros(2), probabilities)
    assert (one["auc"], one["f1"], one["accuracy"]) == (None, 1.0, 1.0)
    assert many_class_metrics(np.zeros(0), np.zeros((0, 3)))["accuracy"] is None
    table = pd.DataFrame({"split": "test", "a": [0.0, 1.0], "a_predicted": [0.0, 0.0]})
    table = table.assign(a_p0=[0.9, 0.7], a_p1=[0.1, 0.3])
    assert split_metrics(table, "a", classes=True)["test"]["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 1.0, 0.5], "a of row 2 is 0.5, not the index of a class"),
        ([0.0, -1.0, 1.0], "a of row 1 is -1, not the index of a class"),
        ([0.0, np.inf, 1.0], "a of row 1 is inf, not the index of a class"),
        ([0.0, 1.0, 2.0], "no training structure is of class 2 of a"),
        ([0.0, 1.0, 1e18], "no training structure is of class 2, 3, 4, 5, 6, 7, 8, 9 of a"),
        ([0.0, 2.0, 0.0], "no training structure is of class 1 of a"),
        ([0.0, 0.0, 0.0], "all structures are of one class of a"),
    ],
)
def test_classes_that_cannot_be_learnt_are_refused(values, message):
    with pytest.raises(AtomloomError, match=message):
        TargetScaler.for_many_classes(np.array(values)[:, None], np.array([0, 1]), "a")


def test_several_classes_are_learnt_and_told_by_the_model_file(tmp_path, monkeypatch):
    """One class is absent from validation, one target is unknown, most batches lack a class."""
    use_sum_model(monkeypatch)
    data = classed_data()
    train_rows, val = data.split("train"), data.split("val")
    val = val[data.targets[val, 0] != 1]
    data.targets[train_rows[0]] = NAN
    data = LabelledGraphs(data.table, data.targets, {**data.rows, "val": val})
    config = small_config(
        loss="cross_entropy", epochs=30, learning_rate=0.03, batch={"structures": 4}
    )
    result = train(data, config, tmp_path, quiet)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.card.columns == ("target0_p0", "target0_p1", "target0_p2")
    rows = data.split("test")
    probabilities = predict_table(loaded, data.table, rows)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    found = many_class_metrics(data.targets[rows, 0], probabilities)
    assert found["accuracy"] > 0.6
    assert found["auc"] > 0.8
    own = predict_table(loaded, data.table, val)
    wrong = 1 - own[np.arange(len(val)), data.targets[val, 0].astype(int)].mean()
    assert result.best_val_mae["target0"] == pytest.approx(wrong, rel=1e-6)
    loss = [row["val_loss"] for row in history(tmp_path)]
    assert result.best_epoch == 1 + int(np.argmin(loss))
    alone = np.concatenate([predict_table(loaded, data.table, [row]) for row in rows])
    np.testing.assert_allclose(alone, probabilities, rtol=1e-5, atol=1e-7)


def test_a_real_network_has_an_output_for_each_class(tmp_path):
    data = classed_data(40)
    train(data, small_config(loss="cross_entropy", epochs=1), tmp_path, quiet)
    tensors, card = read_model(tmp_path / "model.safetensors")
    assert tensors["fc_out.weight"].shape[0] == card.outputs == 3


@pytest.mark.parametrize(
    ("target", "training", "message"),
    [
        (["a", "b"], {"loss": "cross_entropy"}, "for one target"),
        (["a"], {"loss": "cross_entropy", "log_targets": ["a"]}, "exclude each other"),
    ],
)
def test_what_classes_cannot_have_is_refused(target, training, message):
    with pytest.raises(AtomloomError, match=message):
        parse_config(
            {"dataset": {"name": "x", "source": "x", "target": target}, "training": training}
        )


def test_calibration_has_15_intervals_of_confidence():
    """Two decisions between 0.6 and 0.7, on both sides of 10/15: right and wrong do not cancel."""
    found = calibration_error(np.array([True, False]), np.array([0.62, 0.68]))
    assert found == pytest.approx((0.38 + 0.68) / 2)
    together = calibration_error(np.array([True, False]), np.array([0.61, 0.65]))
    assert together == pytest.approx(abs(-0.39 + 0.65) / 2)
