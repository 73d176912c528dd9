"""Points chosen by Optuna's tree-structured Parzen estimator, by the results so far.

The study is told of the finished trials in their order and asked for the next ones; it is made anew
each time, so that what it says follows from the results alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atomloom.config.sweep import Axis, Sweep
from atomloom.store.files import write_atomically
from atomloom.sweeps.space import Point, holds

STUDY = "sweep"
"""Name of the study in its journal."""
NO_TIME = "1970-01-01T00:00:00+00:00"
"""Time of everything in a journal: when a trial ran would make two journals of one study differ."""


def next_points(sweep: Sweep, done: Sequence[tuple[Point, float | None]]) -> Iterator[Point]:
    """The points of the next round, without end; a point may come again.

    Args:
        sweep: the sweep.
        done: points of all rounds before and their values, in order; None where a trial failed.
    """
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=(sweep.seed + len(done)) % 2**32)
    study = optuna.create_study(study_name=STUDY, sampler=sampler)
    for point, value in done:
        study.add_trial(_frozen(sweep, point, value))
    while True:
        trial, point = study.ask(), {}
        for name, axis in sweep.parameters.items():
            if holds(axis, point):
                point[name] = _asked(trial, name, axis)
        yield point


def write_journal(sweep: Sweep, done: Sequence[tuple[Point, float | None]], journal: Path) -> None:
    """Write the study as a journal, for Optuna's own tools; the same study gives the same bytes."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(logging.WARNING)

    def fill(path: Path) -> None:
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(storage=storage, study_name=STUDY)
        for point, value in done:
            study.add_trial(_frozen(sweep, point, value))
        lines = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write_atomically(journal, fill)


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    """Entry of a journal without its time and the process that wrote it."""
    times = {name: NO_TIME for name in entry if name.startswith("datetime") and entry[name]}
    return {**entry, **times, "worker_id": STUDY}


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
