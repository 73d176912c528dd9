"""What a run leaves behind besides its model: other epochs' models, logs; and who writes it."""

from __future__ import annotations

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ase.build import bulk
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atomloom.errors import AtomloomError
from atomloom.inference.predict import load_model, predict_table
from atomloom.store.keys import TRAINER
from atomloom.structures.elements import SYMBOLS
from atomloom.training import trainer
from atomloom.training.logging.history import History, progress_line
from atomloom.training.trainer import train
from tests.unit.training.runs import (
    SumModel,
    history,
    small_config,
    small_data,
    use_sum_model,
)

GOLDEN = {1: (0.9951060365837596, 2.705964328144167)}
"""TRAINER -> last training loss and last validation MAE of the run below."""


def quiet(_):
    """Take no notice."""


def test_a_training_ends_as_this_version_of_the_trainer_ends(tmp_path):
    """Results changed: raise TRAINER in keys.py, so that old runs are not taken for new ones, and write
    the new figures above."""
    options = {"precision": "64", "ema_decay": 0.9, "clip_norm": 1.0, "accumulate": 2}
    train(small_data(40), small_config(epochs=3, **options), tmp_path, quiet)
    last = history(tmp_path)[-1]
    assert (last["train_loss"], last["val_mae"]) == pytest.approx(GOLDEN[TRAINER], rel=1e-6)


def test_gradient_checkpointing_changes_no_bit_of_a_run(tmp_path):
    data = small_data(40)
    for on in (False, True):
        train(data, small_config(gradient_checkpointing=on), tmp_path / str(on), quiet)
    one, other = (load_file(tmp_path / str(on) / "model.safetensors") for on in (False, True))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert history(tmp_path / "False") == history(tmp_path / "True")


def test_a_model_that_cannot_be_computed_again_is_named(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    with pytest.raises(AtomloomError, match="no layers that can be recomputed"):
        train(small_data(), small_config(gradient_checkpointing=True), tmp_path, quiet)


@pytest.mark.parametrize("average", [None, 0.8])
def test_models_of_every_so_many_epochs_and_of_the_last_are_kept(tmp_path, monkeypatch, average):
    use_sum_model(monkeypatch)
    data = small_data()
    config = small_config(epochs=5, keep_every=2, ema_decay=average, learning_rate=0.03)
    train(data, config, tmp_path, quiet)
    kept = {path.stem: path for path in (tmp_path / "checkpoints").iterdir()}
    assert set(kept) == {"epoch-0002", "epoch-0004", "last"}
    rows, errors = data.split("val"), history(tmp_path)
    for name, epoch in (("epoch-0002", 2), ("epoch-0004", 4), ("last", 5)):
        model = load_model(kept[name])
        assert model.card.facts["epoch"] == epoch
        error = np.abs(predict_table(model, data.table, rows) - data.targets[rows]).mean()
        assert error == pytest.approx(errors[epoch - 1]["val_mae"], rel=1e-6)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_has_each_epoch_once_after_a_stop_too(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    config = small_config(epochs=4, loggers=["tensorboard"], checkpoint_minutes=1e-9)
    genuine, calls = trainer.write_model, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        genuine(*arguments)

    monkeypatch.setattr(trainer, "write_model", stop)
    with pytest.raises(KeyboardInterrupt):
        train(small_data(), config, tmp_path, quiet)
    train(small_data(), config, tmp_path, quiet)
    rows, shown = history(tmp_path), scalars(tmp_path / "tensorboard")
    for tag, column in (("error/val_mae", "val_mae"), ("loss/train", "train_loss")):
        assert [step for step, _ in shown[tag]] == [1, 2, 3, 4], tag
        np.testing.assert_allclose([v for _, v in shown[tag]], [r[column] for r in rows], rtol=1e-6)
    assert {"loss/val", "learning_rate", "time/data_seconds"} <= set(shown)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(AtomloomError, match=f"{name} is not installed"):
        train(small_data(), small_config(loggers=[name]), tmp_path, quiet)


def test_mlflow_and_wandb_are_told_each_epoch(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    seen = {"mlflow": [], "wandb": []}

    class Info:
        run_id = "1234"

    class Run:
        info = Info()

        def log(self, values, step):
            seen["wandb"].append((step, values["error/val_mae"]))

        def finish(self):
            seen["wandb"].append("end")

    mlflow, wandb = ModuleType("mlflow"), ModuleType("wandb")
    mlflow.start_run = lambda **options: Run()
    mlflow.log_params = lambda values: seen.update(parameters=values)
    mlflow.log_metrics = lambda values, step: seen["mlflow"].append((step, values["error/val_mae"]))
    mlflow.end_run = lambda: seen["mlflow"].append("end")
    wandb.init = lambda **options: Run()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(small_data(), small_config(loggers=["mlflow", "wandb"]), tmp_path, quiet)
    expected = [(int(row["epoch"]), row["val_mae"]) for row in history(tmp_path)] + ["end"]
    assert seen["mlflow"] == seen["wandb"] == expected
    assert seen["parameters"]["training.epochs"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fsdp"}, "several devices; there is 1"),
        ({"strategy": "fsdp", "devices": 2, "compile": True}, "neither with compile"),
        ({"compile": True, "gradient_checkpointing": True}, "exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(AtomloomError, match=message):
        small_config(**options)


class Broken(SumModel):
    """Asks for a number in the middle, which no compiled graph can hold."""

    def forward(self, batch):
        if float(batch.positions.sum()) > 1e9:
            return super().forward(batch) * 0
        return super().forward(batch)


@pytest.mark.slow
# The compiler imports a module of torch that is written in torch's older way.
@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")
def test_a_broken_graph_is_said_so(tmp_path, monkeypatch):
    use_sum_model(monkeypatch, Broken)
    lines = []
    train(small_data(), small_config(epochs=1, compile=True), tmp_path, lines.append)
    assert any("the graph is broken" in line for line in lines), lines


def test_the_log_shows_the_least_error_of_each_target_whichever_epoch_is_the_best():
    history = History(["gap", "energy", "rare"])
    for epoch, maes in enumerate([(3.0, 0.5, math.nan), (1.0, 0.9, math.nan)]):
        history.add(
            epoch=epoch + 1,
            step=epoch,
            learning_rate=1e-3,
            train_loss=1.0,
            val_loss=1.0,
            maes=maes,
            seconds=1.0,
            parts={"data": 0.0},
        )
    line = progress_line(history, 10, ["gap", "energy", "rare"], ["eV", "eV/atom", ""], 1.0)
    assert "gap 1 eV (best 1), energy 0.9 eV/atom (best 0.5), rare nan (best nan)" in line


def test_a_target_that_is_called_like_a_time_keeps_its_digits(tmp_path):
    history = History(["gap", "lifetime_seconds"])
    numbers = {"learning_rate": 1.0, "train_loss": 1.0, "val_loss": 1.0, "seconds": 0.123456789}
    history.add(epoch=1, step=1, maes=[0.5, 1.25e-9], parts={}, **numbers)
    history.write(tmp_path / "history.csv")
    (row,) = csv.DictReader((tmp_path / "history.csv").read_text().splitlines())
    assert row["val_mae_lifetime_seconds"] == "1.25e-09"
    assert row["seconds"] == "0.123457"


def test_a_property_model_knows_the_elements_it_was_trained_on(tmp_path):
    """What it predicts of others comes with a warning; an older file, which does not say, with none."""
    data = small_data()
    train(data, small_config(epochs=1), tmp_path, quiet)
    rows = data.rows["train"]
    expected = {int(number) for row in rows for number in data.table[row].numbers}
    model = load_model(tmp_path / "model.safetensors")
    assert model.card.elements == tuple(SYMBOLS[number] for number in sorted(expected))
    other = next(number for number in range(1, 90) if number not in expected)
    known = min(expected)
    assert model.card.unseen(np.array([known, other])) == (SYMBOLS[other],)
    assert replace(model.card, elements=None).unseen(np.array([other])) == ()
    with pytest.warns(UserWarning, match=f"has not seen {SYMBOLS[other]} in training"):
        model.predict([bulk(SYMBOLS[other], "sc", a=3.0)])
    model.predict([bulk(SYMBOLS[known], "sc", a=3.0)])
