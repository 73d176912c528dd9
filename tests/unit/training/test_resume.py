"""A run killed at any moment goes on, and ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment
from safetensors.torch import load_file

from atomloom.errors import AtomloomError
from atomloom.training import trainer
from atomloom.training.trainer import train
from tests.unit.training.runs import history, small_config, small_data, use_sum_model

ROOT = Path(__file__).resolve().parents[3]
SAVE_ALWAYS = 1e-9  # minutes between states: after every step

VARIANTS = {
    "plain": {},
    "average, accumulation, clipping": {"ema_decay": 0.9, "accumulate": 2, "clip_norm": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "64 bits": {"precision": "64"},
    "plateau": {"scheduler": "plateau", "plateau_patience": 0, "early_stopping": 2},
    "sgd": {"optimizer": "sgd", "scheduler": "cosine", "learning_rate": 0.01},
}


class Killed(BaseException):
    """Stands for a kill inside this process: no handler of the package catches it."""


def quiet(_):
    """Take no notice."""


def kill() -> None:
    raise Killed


def kill_at(monkeypatch, function: str, call: int, kill=kill) -> None:
    """Let the run be killed where a function of the loop is called for the `call`-th time."""
    genuine, calls = getattr(trainer, function), 0

    def counting(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            kill()
        return genuine(*args, **kwargs)

    monkeypatch.setattr(trainer, function, counting)


def assert_equal_runs(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    states = [torch.load(run / "state" / "last.ckpt", weights_only=True) for run in (one, other)]
    for name in ("model", "average"):
        assert all(
            torch.equal(states[0][name][key], states[1][name][key]) for key in states[0][name]
        )
    moments = [state["optimizer"]["state"] for state in states]
    for index, tensors in moments[0].items():
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, moments[1][index][name]), name
    for name in ("epoch", "position", "step", "waited", "plateau", "scaler"):
        assert states[0][name] == states[1][name], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_equals_the_uninterrupted_run(tmp_path, monkeypatch, variant):
    """Stopped three times in the middle of epochs, each time after another number of steps."""
    data = small_data(60)
    config = small_config(checkpoint_minutes=SAVE_ALWAYS, **VARIANTS[variant])
    train(data, config, tmp_path / "whole", quiet)
    for step in (3, 3, 6):
        with monkeypatch.context() as patch:
            kill_at(patch, "_seed_noise", step)
            with pytest.raises(Killed):
                train(data, config, tmp_path / "parts", quiet)
    lines = []
    train(data, config, tmp_path / "parts", lines.append)
    assert lines[0].startswith("resuming at epoch ")
    assert not lines[0].endswith("batch 1"), "the last stop was in the middle of an epoch"
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_in_legs_equals_the_uninterrupted_run(tmp_path, variant):
    """Stopped on purpose after epochs, as the rungs of a sweep are."""
    data = small_data(60)
    config = small_config(checkpoint_minutes=SAVE_ALWAYS, **VARIANTS[variant])
    whole = train(data, config, tmp_path / "whole", quiet)
    for until in (1, 1, 2):
        assert train(data, config, tmp_path / "legs", quiet, until=until) is None
        assert len(history(tmp_path / "legs")) == until
        assert not (tmp_path / "legs" / "state" / "finished.json").exists()
    last = train(data, config, tmp_path / "legs", quiet, until=10_000)
    assert last.epochs_run == whole.epochs_run
    assert_equal_runs(tmp_path / "whole", tmp_path / "legs")


@pytest.mark.parametrize(
    "function", ["save_state", "write_model", "share_from_first", "progress_line", "set_rate"]
)
def test_a_stop_at_any_stage_loses_nothing(tmp_path, monkeypatch, function):
    data = small_data(40)
    config = small_config(checkpoint_minutes=SAVE_ALWAYS)
    train(data, config, tmp_path / "whole", quiet)
    for call in (1, 2):
        with monkeypatch.context() as patch:
            kill_at(patch, function, call)
            with pytest.raises(Killed):
                train(data, config, tmp_path / "parts", quiet)
    train(data, config, tmp_path / "parts", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_stopped_early_is_not_gone_on_with(tmp_path, monkeypatch):
    """Killed after its last epoch and before it could say that it was the last."""
    data = small_data(40)
    config = small_config(epochs=50, early_stopping=1, scheduler="constant", learning_rate=0.05)
    whole = train(data, config, tmp_path / "whole", quiet)
    assert whole.stopped_early
    with monkeypatch.context() as patch:
        kill_at(patch, "write_sealed", 1)
        with pytest.raises(Killed):
            train(data, config, tmp_path / "parts", quiet)
    parts = train(data, config, tmp_path / "parts", quiet)
    assert (parts.epochs_run, parts.stopped_early) == (whole.epochs_run, True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_the_scaler_of_fp16_is_resumed_and_what_it_leaves_out_is_said(tmp_path, monkeypatch):
    """On a CPU that is made to take fp16, which the config refuses there."""

    def open_fp16(settings, log):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=4)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler), LightningEnvironment()]
        fabric = Fabric(accelerator="cpu", devices=1, plugins=plugins)
        fabric.launch()
        return fabric

    monkeypatch.setattr(trainer, "open_fabric", open_fp16)
    use_sum_model(monkeypatch)
    data, lines = small_data(60), []
    config = small_config(precision="fp16-mixed", checkpoint_minutes=SAVE_ALWAYS, clip_norm=1.0)
    train(data, config, tmp_path / "whole", lines.append)
    assert any(line.startswith("fp16: gradients overflowed") for line in lines)
    for step in (3, 6):
        with monkeypatch.context() as patch:
            kill_at(patch, "_seed_noise", step)
            with pytest.raises(Killed):
                train(data, config, tmp_path / "parts", quiet)
    train(data, config, tmp_path / "parts", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    state = torch.load(tmp_path / "whole" / "state" / "last.ckpt", weights_only=True)
    assert state["scaler"]["scale"] < 2.0**20


def test_states_at_ends_of_epochs_suffice(tmp_path, monkeypatch):
    """With states far apart the epoch is begun anew, and the run is still the same."""
    data, config = small_data(60), small_config()
    train(data, config, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        kill_at(patch, "_seed_noise", 8)
        with pytest.raises(Killed):
            train(data, config, tmp_path / "parts", quiet)
    lines = []
    train(data, config, tmp_path / "parts", lines.append)
    assert lines[0] == "resuming at epoch 2, batch 1"
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


CHILD = """
import os, random, signal, sys, threading, time
from pathlib import Path

from atomloom.errors import AtomloomError
from atomloom.training import trainer
from atomloom.training.trainer import train
from tests.unit.training.runs import small_config, small_data

data = small_data(60)
config = small_config(epochs=4, ema_decay=0.9, checkpoint_minutes=1e-9, prefetch=0)
run = Path(sys.argv[1])
draw = random.Random(int(sys.argv[2]))
kills = 0
while not (run / "state" / "finished.json").exists():
    child = os.fork()  # the imports are paid for once; no thread has been started yet
    if child == 0:
        train(data, config, run, lambda line: None)
        os._exit(0)
    # Early attempts are killed before long, later ones are given the time to get somewhere.
    limit = time.monotonic() + draw.uniform(0.05, 0.4) * 1.3**kills
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            break
        time.sleep(0.002)
print(kills)
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    """SIGKILL at random moments, in the middle of writing files too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "workflow"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed"), "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    config = small_config(epochs=4, ema_decay=0.9, checkpoint_minutes=1e-9, prefetch=0)
    train(small_data(60), config, tmp_path / "whole", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("call", "place"), [(3, "epoch 1, batch 4"), (10, "epoch 3, batch 1")])
def test_a_termination_signal_saves_the_state_first(tmp_path, monkeypatch, call, place):
    """Schedulers send SIGTERM before they kill: not a step is lost then."""
    data, config = small_data(60), small_config()
    train(data, config, tmp_path / "whole", quiet)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        kill_at(patch, "_seed_noise", call, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(AtomloomError, match="SIGTERM"):
            train(data, config, tmp_path / "parts", quiet)
    assert signal.getsignal(signal.SIGTERM) == before
    lines = []
    train(data, config, tmp_path / "parts", lines.append)
    assert lines[0] == f"resuming at {place}"
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_whose_model_is_damaged_trains_again(tmp_path):
    """As the error that names the damage says it will."""
    data, config = small_data(), small_config()
    train(data, config, tmp_path, quiet)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50] + bytes([whole[-50] ^ 4]) + whole[-49:])
    train(data, config, tmp_path, quiet)
    assert path.read_bytes() == whole
