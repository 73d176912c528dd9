"""Learning rates: equal to PyTorch's one-cycle, and never rising again past their end."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from atomloom.config.training import Training
from atomloom.training.optim.schedules import Plateau, Schedule

STEPS = 40


def test_one_cycle_equals_pytorch():
    settings = Training(learning_rate=3e-3, warmup=0.3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=3e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=STEPS + 1, pct_start=(0.3 * STEPS + 1) / (STEPS + 1)
    )
    ours = Schedule(settings)
    for step in range(STEPS + 1):
        group = optimizer.param_groups[0]
        assert ours.lr(step / STEPS) == pytest.approx(group["lr"], rel=1e-9)
        assert ours.momentum(step / STEPS) == pytest.approx(group["betas"][0], rel=1e-9)
        optimizer.step()
        if step < STEPS:
            theirs.step()


@pytest.mark.parametrize("kind", ["onecycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_scheduler_stays_at_its_end(kind, warmup):
    schedule = Schedule(Training(scheduler=kind, learning_rate=1.0, warmup=warmup))
    rates = [schedule.lr(step / STEPS) for step in range(3 * STEPS)]
    peak = rates.index(max(rates))
    assert peak == (0 if kind == "constant" else round(warmup * STEPS))
    assert max(rates) == pytest.approx(1.0)
    falling = rates[peak:]
    assert all(after <= before for before, after in pairwise(falling))
    assert len(set(rates[STEPS:])) == 1


def test_cosine_warms_up_in_a_straight_line_and_ends_at_nothing():
    schedule = Schedule(Training(scheduler="cosine", learning_rate=1.0, warmup=0.5))
    rates = [schedule.lr(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.04, 0.52, 1.0, 0.5, 0.0])
    assert schedule.momentum(0.2) is None


def test_plateau_lowers_the_rate_when_the_error_stops_falling():
    plateau = Plateau(factor=0.5, patience=1)
    scales = []
    for error in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0):
        plateau.see(error)
        scales.append(plateau.scale)
    assert scales == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_continues_from_its_state():
    whole, first = Plateau(0.1, 0), Plateau(0.1, 0)
    errors = [3.0, 3.0, 2.0, 2.0, 2.0]
    for error in errors:
        whole.see(error)
    for error in errors[:2]:
        first.see(error)
    second = Plateau(0.1, 0)
    second.load_state_dict(first.state_dict())
    for error in errors[2:]:
        second.see(error)
    assert second == whole


def test_multistep_falls_after_its_milestones():
    settings = Training(
        scheduler="multistep", milestones=[2, 5], epochs=7, learning_rate=1.0, plateau_factor=0.1
    )
    schedule = Schedule(settings)
    rates = [schedule.lr(epoch / 7) for epoch in range(8)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert schedule.lr((2 + 0.99) / 7) == schedule.lr(2 / 7)
    for given in ({"milestones": [2]}, {"scheduler": "multistep"}):
        with pytest.raises(ValueError, match="go together"):
            Training(**given)
    with pytest.raises(ValueError, match="increasing"):
        Training(scheduler="multistep", milestones=[3, 3])
