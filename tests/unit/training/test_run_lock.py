"""One run is trained by one process at a time; a kill releases it, and who waited goes on from its state."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

import pytest

from atomloom.errors import AtomloomError
from atomloom.training import run_lock
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


def test_a_file_system_without_locks_does_not_stop_a_training(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with alone(tmp_path, lambda line: None):
        assert (tmp_path / LOCK).exists()


def test_a_run_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(AtomloomError, match="cannot be written"), alone(tmp_path, print):
        pass
