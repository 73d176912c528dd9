"""Refits: configs that train the best trial once more, on training and validation rows together.

Without a validation set nothing can be chosen by its error. So what the trial's validation chose is taken
from there: the epoch after which training stops, and for `plateau` the epochs at which the rate fell. The
schedule stays that of all epochs, so that rates by epoch are those of the trial. It knows nothing of files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from atomloom.config import Config
from atomloom.sweeps.rounds import Result, Trial
from atomloom.sweeps.space import Point, config_of

FOLD = ("split.val_folds", "split.val_fold")
"""Keys that have no meaning where validation rows are training rows."""


@dataclass(frozen=True)
class Refit:
    """One run of a refit."""

    point: Point
    """All its values."""
    config: Config
    values: Point
    """Its seed, or the fold that is its test set."""
    stop_after: int
    """Epoch after which it stops."""
    best_epochs: tuple[int, ...]
    """Best epochs of the trial's runs that it stands for; it stops after the (lower) median of them."""


def refits(
    base: Config, trial: Trial, results: Sequence[Result], rates: Sequence[Sequence[float]]
) -> list[Refit]:
    """Refits of a trial: one for each of its runs, except that folds of one cross-validation share theirs.

    Args:
        base: config that the trial differs from.
        trial: the best trial.
        results: of its runs.
        rates: learning rate by epoch, of each run; only looked at for `plateau`.
    """
    groups: dict[str, list[int]] = {}
    for place, repeat in enumerate(trial.repeats):
        groups.setdefault(json.dumps(_own(repeat.values), sort_keys=True), []).append(place)
    found = []
    for places in groups.values():
        ordered = sorted(places, key=lambda place: (results[place].best_epoch, place))
        median = ordered[(len(ordered) - 1) // 2]
        values, stop = _own(trial.repeats[median].values), results[median].best_epoch
        point = {**trial.point, **values}
        own = config_of(base, point)
        point |= {"split.validation": False, "split.val_folds": None, "split.val_fold": 0}
        point |= {"training.early_stopping": None, "training.continue_from": None}
        point |= {"training.stop_after": stop if stop < own.training.epochs else None}
        if own.training.scheduler == "plateau":
            point |= _same_steps(rates[median][:stop])
        best_epochs = tuple(sorted(results[place].best_epoch for place in places))
        found.append(Refit(point, config_of(base, point), values, stop, best_epochs))
    return found


def _own(values: Point) -> Point:
    return {key: value for key, value in values.items() if key not in FOLD}


def _same_steps(rates: Sequence[float]) -> dict[str, Any]:
    """Scheduler whose rate falls after the same epochs."""
    fallen = [epoch for epoch, (a, b) in enumerate(pairwise(rates), start=1) if b < a]
    if not fallen:
        return {"training.scheduler": "constant"}
    return {"training.scheduler": "multistep", "training.milestones": fallen}
