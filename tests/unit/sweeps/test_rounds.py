"""Rounds, rungs and slots: what runs, on what, and which trials go on."""

from __future__ import annotations

import math

import pytest

from atomloom.config.sweep import Sweep
from atomloom.errors import AtomloomError
from atomloom.sweeps.rounds import (
    Result,
    Slot,
    Trial,
    before,
    best_of,
    read_round,
    rounds,
    rungs,
    score,
    slots,
    width,
    write_round,
)

HALVED = Sweep.model_validate(
    {"parameters": {"model.width": [8]}, "halving": {"min_epochs": 2, "factor": 3}}
)
WHOLE = Sweep.model_validate({"parameters": {"model.width": [8]}})


def result(trial: int, value: float | None) -> Result:
    return Result(trial, "stopped" if value is not None else "failed", value=value)


def test_rungs_grow_by_the_factor_and_end_with_all_epochs():
    assert rungs(HALVED, 20) == (2, 6, 18, 20)
    assert rungs(HALVED, 18) == (2, 6, 18)
    assert rungs(HALVED, 2) == (2,)
    assert rungs(WHOLE, 20) == (20,)


def test_every_slot_of_a_rung_goes_on_in_exactly_one_of_the_next():
    for trials in (1, 2, 3, 10, 27, 28):
        for rung in range(1, 4):
            wide = width(HALVED, trials, rung)
            taken = [n for number in range(wide) for n in before(HALVED, trials, rung, number)]
            assert taken == list(range(width(HALVED, trials, rung - 1)))


def test_halving_trains_far_fewer_epochs_than_all_trials_to_the_end():
    epochs, trials = 54, 27
    reach = rungs(HALVED, epochs)
    trained = sum(
        width(HALVED, trials, rung) * (reach[rung] - (reach[rung - 1] if rung else 0))
        for rung in range(len(reach))
    )
    assert trials * epochs / trained > 4


def test_a_round_has_each_slot_once_and_all_repeats():
    names = [str(slot) for slot in slots(HALVED, 18, 0, 10, 2)]
    assert len(names) == len(set(names)) == 2 * (10 + 4 + 2)
    assert all(str(Slot.named(name)) == name for name in names)


@pytest.mark.parametrize("name", ["", "1-2-3", "a-b-c-d", "0-0-0-0-0", "../0-0-0-0"])
def test_what_is_not_a_slot_is_refused(name):
    with pytest.raises(AtomloomError, match="not a slot"):
        Slot.named(name)


def test_the_least_mean_goes_on_and_of_equal_ones_the_first_trial():
    assert best_of({5: [result(0, 0.5)], 6: [result(1, 0.4)], 7: [result(2, 0.4)]}) == 6
    assert best_of({0: [result(0, 0.2), result(0, 0.6)], 1: [result(1, 0.3), result(1, 0.3)]}) == 1


def test_a_trial_of_which_one_run_failed_counts_less_than_any_other():
    assert score([result(0, 0.1), result(0, None)]) == math.inf
    assert best_of({0: [result(0, None)], 1: [result(1, 9.0)]}) == 1


def test_rounds_of_tpe_hold_all_trials():
    tpe = Sweep.model_validate(
        {"method": "tpe", "count": 10, "round": 4, "parameters": {"model.width": [8, 16]}}
    )
    assert rounds(tpe) == 3
    assert rounds(WHOLE) == 1


def test_a_round_is_read_as_it_was_written_and_damage_is_seen(tmp_path):
    path = tmp_path / "round-0000.json"
    trials = [Trial(0, {"model.width": 8}), Trial(1, {"model.width": 0}, (), "too small")]
    write_round(path, trials)
    assert read_round(path) == trials
    path.write_text(path.read_text().replace("too small", "too large"))
    with pytest.raises(AtomloomError, match="damaged"):
        read_round(path)
