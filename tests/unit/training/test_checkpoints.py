"""When a state is saved, and which signals end a training."""

from __future__ import annotations

import io
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from atomloom.errors import AtomloomError
from atomloom.store.keys import fingerprint
from atomloom.training import checkpoint
from atomloom.training.checkpoint import CheckpointTimer, load_state, termination_noticed


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, in seconds; tests change it."""
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    return now


def test_a_state_is_due_after_so_many_minutes(clock):
    timer = CheckpointTimer(2.0)
    clock[0] += 119.0
    assert not timer.due()
    clock[0] += 2.0
    assert timer.due()
    timer.saved(clock[0])
    assert not timer.due()


def test_at_the_end_of_an_epoch_a_state_is_due_where_saving_is_a_small_share_of_the_time(clock):
    timer = CheckpointTimer(60.0)
    assert timer.due(end_of_epoch=True), "what it costs is not known yet"
    begun = clock[0]
    clock[0] += 3.0
    timer.saved(begun)
    clock[0] += 3.0 / checkpoint.SHARE - 1.0
    assert not timer.due(end_of_epoch=True)
    clock[0] += 2.0
    assert timer.due(end_of_epoch=True)
    assert not timer.due()


def test_the_first_signal_is_noticed_and_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with termination_noticed() as asked:
        assert asked() == 0
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            assert asked() == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_beside_the_main_thread_no_signal_is_caught():
    answers = []

    def ask() -> None:
        with termination_noticed() as asked:
            answers.append(asked())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [0]


class Mischief:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_state_that_would_run_code_is_refused_and_runs_none(tmp_path):
    """Even one whose digest is right, since whoever writes a file can write its digest."""
    buffer = io.BytesIO()
    content = {"format": checkpoint.FORMAT, "key": "k", "more": Mischief(tmp_path / "done")}
    torch.save(content, buffer)
    buffer.write(fingerprint(buffer.getbuffer()))
    (tmp_path / "last.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(AtomloomError, match="cannot be read"):
        load_state(tmp_path / "last.ckpt", "k")
    assert not (tmp_path / "done").exists()
