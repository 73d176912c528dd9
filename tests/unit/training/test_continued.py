"""A finished run trained on for more epochs ends with the bits of one that had them all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from atomloom.errors import AtomloomError
from atomloom.training.checkpoint import load_state
from atomloom.training.train_state import state_digest
from atomloom.training.trainer import Start, train
from tests.unit.training.runs import history, small_config, small_data

VARIANTS = {
    "constant": {"scheduler": "constant"},
    "plateau, average": {"scheduler": "plateau", "plateau_patience": 0, "ema_decay": 0.9},
    "sgd, bf16": {"scheduler": "constant", "optimizer": "sgd", "precision": "bf16-mixed"},
    "full batches": {"optimizer": "lbfgs", "scheduler": "onecycle"},
}


def quiet(_):
    """Take no notice."""


def start_of(run: Path) -> Start:
    content = json.loads((run / "state" / "finished.json").read_text())
    return Start(run / "state" / "last.ckpt", content["key"], content["state"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_epochs_end_with_the_bits_of_all_epochs_at_once(variant, tmp_path):
    data, options = small_data(24), VARIANTS[variant]
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    train(data, small_config(epochs=4, **options), whole, quiet)
    train(data, small_config(epochs=2, **options), first, quiet)
    kept = (first / "model.safetensors").read_bytes()
    train(data, small_config(epochs=4, **options), second, quiet, start=start_of(first))
    assert history(second) == history(whole)
    assert len(history(second)) == 4
    for name in ("model.safetensors", "checkpoints/last.safetensors"):
        assert (second / name).read_bytes() == (whole / name).read_bytes(), name
    assert start_of(second).digest == start_of(whole).digest != start_of(first).digest
    assert (first / "model.safetensors").read_bytes() == kept, "the parent is only read"


def test_a_run_that_continues_is_resumed_from_its_own_state(tmp_path):
    data = small_data(24)
    config = small_config(epochs=5, scheduler="constant")
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    train(data, small_config(epochs=2, scheduler="constant"), first, quiet)
    start, said = start_of(first), []
    assert train(data, config, second, said.append, until=3, start=start) is None
    train(data, config, second, said.append, start=start)
    train(data, config, whole, quiet)
    told = [line for line in said if line.startswith(("continuing", "resuming"))]
    assert told == [f"continuing {first} after epoch 2", "resuming at epoch 4, batch 1"]
    assert (second / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_equal_runs_have_equal_state_digests_whatever_their_times(tmp_path):
    state = {"epoch": 1, "seconds": 2.0, "key": "a", "model": {"w": torch.zeros(2)}, "history": []}
    row = {"val_loss": 0.5, "seconds": 1.0, "data_seconds": 0.1}
    slow = {**state, "seconds": 3.0, "key": "b", "history": [row | {"data_seconds": 7.0}]}
    assert state_digest({**state, "history": [row]}) == state_digest(slow)
    for changed in (
        {"epoch": 2},
        {"model": {"w": torch.tensor([0.0, -0.0])}},
        {"model": {"v": torch.zeros(2)}},
        {"history": [row | {"val_loss": 0.6}]},
    ):
        assert state_digest(slow | changed) != state_digest(slow), changed


def test_a_state_of_other_settings_or_none_is_refused(tmp_path):
    data, first = small_data(24), tmp_path / "first"
    train(data, small_config(epochs=1, scheduler="constant"), first, quiet)
    config, start = small_config(epochs=2, scheduler="constant"), start_of(first)
    wrong = Start(start.state, "another key", start.digest)
    with pytest.raises(AtomloomError, match="other data or settings"):
        train(data, config, tmp_path / "second", quiet, start=wrong)
    other = Start(start.state, start.key, "digest of another state")
    with pytest.raises(AtomloomError, match="is not the state that this run is to begin with"):
        train(data, config, tmp_path / "second", quiet, start=other)
    start.state.write_bytes(start.state.read_bytes()[:-40])
    with pytest.raises(AtomloomError, match="digest differs"):
        train(data, config, tmp_path / "second", quiet, start=start)
    start.state.unlink()
    with pytest.raises(AtomloomError, match="does not exist"):
        train(data, config, tmp_path / "second", quiet, start=start)


def test_a_run_that_stopped_early_is_continued_only_with_more_patience(tmp_path):
    options = {"scheduler": "constant", "learning_rate": 1.0}
    data, first = small_data(24), tmp_path / "first"
    result = train(data, small_config(epochs=30, early_stopping=1, **options), first, quiet)
    assert result.stopped_early
    more = small_config(epochs=40, early_stopping=1, **options)
    with pytest.raises(AtomloomError, match=r"stopped early.*early_stopping must be more"):
        train(data, more, tmp_path / "second", quiet, start=start_of(first))
    epochs = result.epochs_run + 2
    unbounded = small_config(epochs=epochs, **options)
    done = train(data, unbounded, tmp_path / "second", quiet, start=start_of(first))
    assert (done.epochs_run, done.stopped_early) == (epochs, False)


def test_the_final_state_of_a_run_has_the_digest_that_is_recorded(tmp_path):
    train(small_data(24), small_config(epochs=1, scheduler="constant"), tmp_path, quiet)
    start = start_of(tmp_path)
    assert state_digest(load_state(start.state, start.key)) == start.digest
