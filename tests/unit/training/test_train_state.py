"""What a run saves is one object, and what it loads is all of it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from atomloom import training
from atomloom.errors import AtomloomError
from atomloom.training.checkpoint import load_state, save_state
from atomloom.training.fabric import open_fabric
from atomloom.training.failures import check_finite
from atomloom.training.precision_report import compare_precisions
from atomloom.training.trainer import Trainer, train
from tests.unit.training.potentials import pair_config, pair_data, use_pair_model
from tests.unit.training.runs import small_config, small_data, use_sum_model

PACKAGE = Path(training.__file__).parent
LONGEST = 60  # lines of a function, its docstring with it


def quiet(_):
    """Take no notice."""


def new_trainer(data, config) -> Trainer:
    fabric = open_fabric(config.training, quiet)
    return Trainer(data, config, fabric, data.split("train"), data.split("val"), quiet)


def assert_same(one, other, where=""):
    """Nested dicts and lists of the same values, to the bit."""
    if isinstance(one, torch.Tensor):
        np.testing.assert_array_equal(one, other, where)  # which takes NaN for equal to NaN
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{number}")
    else:
        assert one == other, where


@pytest.mark.parametrize("kind", ["property", "potential"])
def test_a_state_that_is_loaded_is_saved_the_same(tmp_path, monkeypatch, kind):
    """A part that is saved and not loaded, or loaded into another place, would differ."""
    options = {"epochs": 2, "ema_decay": 0.9, "scheduler": "plateau", "plateau_patience": 0}
    if kind == "property":
        use_sum_model(monkeypatch)
        data, config = small_data(40), small_config(**options)
    else:
        use_pair_model(monkeypatch)
        data = pair_data(24)
        config = pair_config(potential={"sampling": "error"}, **options)
    train(data, config, tmp_path, quiet)
    file = tmp_path / "state" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    trainer = new_trainer(data, config)
    trainer.state.load_state_dict(load_state(file, saved["key"]))
    save_state(tmp_path / "again.ckpt", saved["key"], trainer.state.state_dict())
    assert_same(saved, torch.load(tmp_path / "again.ckpt", weights_only=True))


def test_states_hold_what_those_of_earlier_versions_hold(tmp_path, monkeypatch):
    """A run that a version before has begun resumes with this one: no name may change."""
    use_sum_model(monkeypatch)
    train(small_data(40), small_config(epochs=1, ema_decay=0.9), tmp_path, quiet)
    saved = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)
    assert sorted(saved) == [
        "average", "best", "epoch", "errors", "format", "history", "key", "model", "objective",
        "optimizer", "plateau", "position", "scaler", "seconds", "step", "waited",
    ]  # fmt: skip
    assert sorted(saved["best"]) == ["epoch", "error", "maes", "step", "weights"]
    assert sorted(saved["plateau"]) == ["best", "scale", "waited"]
    assert saved["format"] == 1


def test_forward_and_backward_stand_once(monkeypatch):
    """What tells precisions apart takes the steps that a training takes."""
    calls = []

    def counted(self, *arguments, genuine=Trainer.micro_step):
        calls.append(self.settings.precision)
        return genuine(self, *arguments)

    monkeypatch.setattr(Trainer, "micro_step", counted)
    use_sum_model(monkeypatch)
    compare_precisions(small_data(), small_config(), 3, quiet)
    assert calls.count("64") == calls.count("32") == 1 + 3
    backward = [path.name for path in PACKAGE.rglob("*.py") if ".backward(" in path.read_text()]
    assert sorted(backward) == ["compile.py", "trainer.py"], "compile.py only tries a model"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_function_of_a_training_is_too_long_to_hold(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST, f"{node.name} has {lines} lines"


def test_lbfgs_takes_batches_whose_number_another_order_would_change(tmp_path, monkeypatch):
    """Bounded by atoms, as many structures make other numbers of batches each epoch."""
    use_pair_model(monkeypatch)
    data = pair_data(24)
    config = pair_config(epochs=4, optimizer="lbfgs", batch={"atoms": 13})
    loader = new_trainer(data, config).loader(data.split("train"), seed=0, shuffle=True)
    assert len({len(loader.plan(epoch)) for epoch in range(4)}) > 1
    assert train(data, config, tmp_path, quiet).epochs_run == 4


def test_a_batch_that_is_not_finite_is_named_wherever_it_stands(tmp_path):
    sums = torch.zeros(5, 2)
    check_finite(sums, range(5), tmp_path, 0)
    sums[1, 1] = np.nan
    check_finite(sums, range(2, 5), tmp_path, 0)
    with pytest.raises(AtomloomError, match="epoch 1, batch 2"):
        check_finite(sums, range(5), tmp_path, 0)
