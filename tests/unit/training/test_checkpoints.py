"""When a state is saved, and which signals end a training."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from atomloom.training import checkpoint
from atomloom.training.checkpoint import CheckpointTimer, termination_noticed


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
