"""One run is trained by one process at a time; a kill releases it, and who waited goes on from its state."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atomloom.errors import AtomloomError, StoppedRun
from atomloom.training import run_lock, trainer
from atomloom.training.run_lock import LOCK, alone
from atomloom.training.trainer import train
from tests.unit.training.runs import history, small_config, small_data


def test_a_training_waits_for_the_one_that_has_the_run_and_goes_on_from_its_state(tmp_path):
    data, config = small_data(), small_config(epochs=3)
    train(data, config, tmp_path / "whole", lambda line: None)
    run, lines = tmp_path / "run", []

    def log(line: str) -> None:
        lines.append(line)
        if "waiting" in line:  # what the other process does meanwhile
            with open(run / LOCK) as file:
                assert str(os.getpid()) in file.read()
            held.__exit__(None, None, None)
            train(data, config, run, lambda line: None, until=2)

    held = alone(run, lambda line: None)
    held.__enter__()
    train(data, config, run, log)
    waiting, resuming = (
        next(place for place, line in enumerate(lines) if word in line)
        for word in ("waiting", "resuming at epoch 3")
    )
    assert waiting < resuming
    assert history(run) == history(tmp_path / "whole")


def test_a_kill_releases_the_run(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with alone(tmp_path, lambda line: None):
            os.write(writing, b".")
            signal.pause()
    os.read(reading, 1)
    with open(tmp_path / LOCK) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lines: list[str] = []
    with alone(tmp_path, lines.append):
        assert not lines
    os.close(reading)
    os.close(writing)


def refuse(*_):
    """What a file system without locks answers."""
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_file_system_without_locks_does_not_stop_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with alone(tmp_path, lambda line: None) as hold:
        assert (tmp_path / LOCK).exists()
        assert hold.taken_by() == ""


def test_who_lost_a_run_is_told_to_whom(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with alone(tmp_path, print) as first, alone(tmp_path, print) as second:
        assert first.taken_by() == f"process {os.getpid()} on {platform.node()}"
        assert second.taken_by() == ""
        (tmp_path / LOCK).write_text("")  # as seen between two writes of a third
        assert first.taken_by() == second.taken_by() == "another process"
        (tmp_path / LOCK).unlink()
        assert second.taken_by() == "", "a folder that was removed tells of nobody"


@pytest.mark.parametrize("place", ["behind", "over"])
def test_of_two_that_begin_at_once_without_locks_the_last_one_trains(tmp_path, monkeypatch, place):
    """Both have emptied the file before either writes: behind the other, or where appending is none, over it."""
    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    monkeypatch.setattr(run_lock.platform, "node", lambda: "a-node-with-a-long-name")
    with alone(tmp_path, print) as first:
        earlier = (tmp_path / LOCK).read_text()
        monkeypatch.setattr(run_lock.platform, "node", lambda: "b")
        with alone(tmp_path, print) as last:
            later = (tmp_path / LOCK).read_text()
            kept = earlier if place == "behind" else ""
            (tmp_path / LOCK).write_text(kept + later + earlier[len(later) :] * (not kept))
            assert first.taken_by() == f"process {os.getpid()} on b"
            assert last.taken_by() == "", "one of them trains"


SAVE_ALWAYS = 1e-9
EVERY_STEP = {"epochs": 4, "checkpoint_minutes": SAVE_ALWAYS}


@pytest.mark.parametrize("until", [None, 3])
def test_without_locks_the_last_one_trains_and_the_other_ends_with_its_result(
    tmp_path, monkeypatch, until
):
    """The second copy starts while the first is in its second epoch, and is itself interrupted."""
    data, config = small_data(), small_config(**EVERY_STEP)
    whole = train(data, config, tmp_path / "whole", lambda line: None, until=until)
    run, lines = tmp_path / "run", []
    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    seen = []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 2"):
            train(data, config, run, lambda line: None, until=2)
            seen.append(state_of(run))

    def finish(_: float) -> None:
        assert state_of(run) == seen[0], "the first one has written nothing more"
        result = train(data, config, run, lambda line: None, until=until)
        assert result is None or result.epochs_run == 4

    monkeypatch.setattr(trainer.time, "sleep", finish)
    result = train(data, config, run, log, until=until)
    assert "has taken this run over" in lines[-1]
    assert lines[-2].startswith("epoch 2")
    assert history(run) == history(tmp_path / "whole")
    assert model_of(run) == model_of(tmp_path / "whole")
    if whole is not None:
        assert result.best_val_mae == whole.best_val_mae
        assert result.steps == whole.steps
        assert finished(run) == finished(tmp_path / "whole")


def test_a_training_that_waits_for_the_one_that_took_over_can_be_stopped(tmp_path, monkeypatch):
    data, config = small_data(), small_config(**EVERY_STEP)
    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    monkeypatch.setattr(trainer.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))

    def log(line: str) -> None:
        if line.startswith("epoch 1"):
            train(data, config, tmp_path, lambda line: None, until=1)

    with pytest.raises(StoppedRun):
        train(data, config, tmp_path, log)
    assert not (tmp_path / "state" / "finished.json").exists()


def state_of(run: Path) -> bytes:
    return (run / "state" / "last.ckpt").read_bytes()


def model_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def finished(run: Path) -> str:
    return json.loads((run / "state" / "finished.json").read_text())["state"]


COPY = """
import errno, fcntl, sys

from atomloom.training import run_lock
from atomloom.training.trainer import train
from tests.unit.training.runs import small_config, small_data
from tests.unit.training.test_run_lock import EVERY_STEP, refuse

if sys.argv[2] == "no locks":
    run_lock.fcntl.flock = refuse
ready = small_data()
print("ready", flush=True)
sys.stdin.readline()
train(ready, small_config(**EVERY_STEP), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_two_copies_of_a_training_that_start_together_both_end_with_the_whole_result(
    tmp_path, locks
):
    train(small_data(), small_config(**EVERY_STEP), tmp_path / "whole", lambda line: None)
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(COPY)
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(root / "workflow"), str(root)])
    copies = [
        subprocess.Popen(
            [sys.executable, str(script), str(run), locks],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    for copy in copies:
        assert copy.stdout.readline() == "ready\n"
    for copy in copies:
        copy.stdin.write("go\n")
        copy.stdin.flush()
    said = [copy.communicate()[0] for copy in copies]
    assert [copy.returncode for copy in copies] == [0, 0], said
    waited = "is trained by" if locks == "locks" else "has taken this run over"
    assert sum(waited in text for text in said) == 1, said
    assert history(run) == history(tmp_path / "whole")
    assert model_of(run) == model_of(tmp_path / "whole")
    assert finished(run) == finished(tmp_path / "whole")


def test_a_run_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(AtomloomError, match="cannot be written"), alone(tmp_path, print):
        pass
