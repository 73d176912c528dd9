"""Points chosen by Optuna's tree-structured Parzen estimator, by the results so far.

The study is told of the finished trials in their order and asked for the next ones; it is made anew
each time, so that what it says follows from the results alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atomloom.config.sweep import Axis, Sweep
from atomloom.store.files import write_atomically
from atomloom.sweeps.space import Point, holds


def next_points(
    sweep: Sweep, done: Sequence[tuple[Point, float | None]], count: int, journal: Path
) -> list[Point]:
    """The points of the next round.

    Args:
        sweep: the sweep.
        done: points of all rounds before and their values, in order; None where a trial failed.
        count: how many points are wanted.
        journal: where the study's journal is written, for Optuna's own tools.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=(sweep.seed + len(done)) % 2**32)
    found: list[Point] = []

    def fill(path: Path) -> None:
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend), study_name="sweep", sampler=sampler
        )
        for point, value in done:
            study.add_trial(_frozen(sweep, point, value))
        for _ in range(count):
            trial, point = study.ask(), {}
            for name, axis in sweep.parameters.items():
                if holds(axis, point):
                    point[name] = _asked(trial, name, axis)
            found.append(point)

    write_atomically(journal, fill)
    return found


def _asked(trial: Any, name: str, axis: Axis) -> Any:
    if axis.values:
        return axis.values[trial.suggest_categorical(name, tuple(range(len(axis.values))))]
    low, high = axis.bounds
    if axis.whole:
        return trial.suggest_int(name, low, high, log=axis.log)
    return float(f"{trial.suggest_float(name, low, high, log=axis.log):.12g}")


def _frozen(sweep: Sweep, point: Point, value: float | None) -> Any:
    """A finished or failed trial as Optuna knows it."""
    import optuna

    spaces: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for name, chosen in point.items():
        axis = sweep.parameters[name]
        if axis.values:
            spaces[name] = optuna.distributions.CategoricalDistribution(
                tuple(range(len(axis.values)))
            )
            params[name] = axis.values.index(chosen)
            continue
        low, high = axis.bounds
        if axis.whole:
            spaces[name] = optuna.distributions.IntDistribution(int(low), int(high), log=axis.log)
            params[name] = chosen
        else:
            spaces[name] = optuna.distributions.FloatDistribution(low, high, log=axis.log)
            params[name] = min(max(chosen, low), high)
    state = optuna.trial.TrialState
    return optuna.trial.create_trial(
        params=params,
        distributions=spaces,
        value=value,
        state=state.FAIL if value is None else state.COMPLETE,
    )
