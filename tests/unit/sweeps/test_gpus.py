"""GPUs lent to trials: none to two at a time, and back after a kill; no GPU is needed to tell."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest

from atomloom.commands import gpus
from atomloom.commands.gpus import VISIBLE, lent, visible_gpus
from atomloom.errors import AtomloomError


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with three GPUs that nobody else uses."""
    monkeypatch.setenv(VISIBLE, "0,GPU-a/b,7")
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in gpus.JOB_IDS:
        monkeypatch.delenv(name, raising=False)


def take(held: ExitStack, wanted: float) -> str:
    return held.enter_context(lent(wanted, lambda line: None))[VISIBLE]


def test_trials_at_the_same_time_have_gpus_of_their_own_and_one_too_many_waits(monkeypatch):
    lines: list[str] = []
    with ExitStack() as held:
        first = held.enter_context(ExitStack())
        assert take(first, 1) == "0"
        assert take(held, 2) == "GPU-a/b,7"
        monkeypatch.setattr(gpus.time, "sleep", lambda seconds: first.close())
        with lent(1, lines.append) as environment:
            assert environment == {VISIBLE: "0"}
    assert lines == ["all GPUs are in use: waiting for one"]


def test_halves_of_a_gpu_are_lent_twice_after_every_gpu_was_lent_once(monkeypatch):
    with ExitStack() as held:
        once = [take(held, 0.5) for _ in range(3)]
        twice = [take(held, 0.5) for _ in range(3)]
        assert once == twice == ["0", "GPU-a/b", "7"]
        monkeypatch.setattr(gpus.time, "sleep", lambda seconds: held.close())
        assert take(ExitStack(), 1) == "0", "a whole one waits for both halves"


def test_a_killed_trial_gives_its_gpus_back():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lent(3, lambda line: None):
            os.write(writing, b".")
            signal.pause()
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lines: list[str] = []
    with lent(3, lines.append) as environment:
        assert environment == {VISIBLE: "0,GPU-a/b,7"}
    assert not lines
    os.close(reading)
    os.close(writing)


def test_jobs_of_a_scheduler_number_their_gpus_themselves(monkeypatch):
    with ExitStack() as held:
        for job in ("11", "12"):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            assert take(held, 3) == "0,GPU-a/b,7"


def test_more_than_there_are_is_refused_and_without_any_nothing_is_lent(monkeypatch):
    with pytest.raises(AtomloomError, match="needs 4 GPUs, and there are 3"):
        take(ExitStack(), 4)
    for named in ("", "-1", "-1,0"):
        monkeypatch.setenv(VISIBLE, named)
        with lent(1, lambda line: None) as environment:
            assert environment == {}
    monkeypatch.setenv(VISIBLE, "1, 0,-1,2")
    assert visible_gpus() == ["1", "0"]
