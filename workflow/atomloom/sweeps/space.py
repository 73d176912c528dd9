"""Points of a sweep: the values that its trials give to the swept keys, and the configs they make.

All of it follows from the sweep's section, and for TPE from the results of the rounds before, so that
any process at any time finds the same trials. It knows nothing of files.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from atomloom.config import Config, parse_config
from atomloom.config.root import graph_needs
from atomloom.config.sweep import Axis, Sweep
from atomloom.errors import AtomloomError

Point = dict[str, Any]
"""Swept key -> value; keys whose condition does not hold are absent."""

STREAM = 0x73776565  # keeps the draws of a sweep apart from other draws


def first_points(sweep: Sweep) -> list[Point]:
    """The points of a method that needs no results, each once, in order."""
    if sweep.method == "list":
        return _each_once(dict(trial) for trial in sweep.trials)
    if sweep.method == "grid":
        return _each_once(_grid(sweep.parameters))
    axes = sweep.parameters
    shares = _sobol(sweep, len(axes)) if sweep.method == "sobol" else _uniform(sweep, len(axes))
    return _each_once(_point(axes, row) for row in shares)


def config_of(base: Config, point: Mapping[str, Any]) -> Config:
    """The config of one run of a sweep.

    Raises:
        AtomloomError: when a key is not known, or has a value that it cannot have.
    """
    content = base.model_dump(mode="json", exclude={"sweep"}, exclude_unset=True)
    # Whatever is usual for the model of a trial: it differs from its base in the point alone.
    content["training"] = base.training.model_dump(mode="json")
    if point.get("model.name", base.model.name) != base.model.name:
        content["model"] = {}  # keys of another model say nothing of this one
    elif point.get("training.start_from"):
        _leave_out_model(content, base)
    for key, value in point.items():
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise AtomloomError(f"`{key}` is not a key of the config", where="sweep.parameters")
        inner[last] = copy.deepcopy(value)  # which another key may go into
    # What a model decides of the graph was filled in by the base's, and is again by that of the trial.
    for key in {*base.model.graph_needs(), *graph_needs(content.get("model"))}:
        if f"graph.{key}" not in point:
            content.get("graph", {}).pop(key, None)
    shown = ", ".join(f"{key}: {json.dumps(value)}" for key, value in point.items())
    return parse_config(content, where=f"sweep trial ({shown})")


def _leave_out_model(content: dict[str, Any], base: Config) -> None:
    """Remove the model from the content of a trial that starts from its own one, where the base does not say it:
    that is the default, or of the model that the base starts from."""
    start = base.start_model
    theirs = start.sections if start else {"model": {"name": base.model.name}, "graph": {}}
    own = content["model"]
    if any(theirs["model"].get(key, value) != value for key, value in own.items()):
        return
    if start or own.keys() == {"name"}:
        del content["model"]
        graph, of_start = content["graph"], theirs["graph"]
        content["graph"] = {n: v for n, v in graph.items() if n not in of_start or of_start[n] != v}


def _grid(axes: Mapping[str, Axis]) -> Iterator[Point]:
    columns = [axis.values or axis.spaced for axis in axes.values()]
    for row in itertools.product(*columns):
        yield _where_conditions_hold(axes, dict(zip(axes, row, strict=True)))


def _uniform(sweep: Sweep, axes: int) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64([STREAM, sweep.seed]))
    return draw.random((sweep.count, axes))


def _sobol(sweep: Sweep, axes: int) -> np.ndarray:
    from scipy.stats import qmc

    rows = 1 << math.ceil(math.log2(sweep.count))  # balanced in powers of two alone
    return qmc.Sobol(axes, scramble=True, rng=sweep.seed).random(rows)[: sweep.count]


def _point(axes: Mapping[str, Axis], shares: Sequence[float]) -> Point:
    chosen = {n: a.value_at(float(s)) for (n, a), s in zip(axes.items(), shares, strict=True)}
    return _where_conditions_hold(axes, chosen)


def _where_conditions_hold(axes: Mapping[str, Axis], chosen: Mapping[str, Any]) -> Point:
    point: Point = {}
    for name, value in chosen.items():
        if holds(axes[name], point):
            point[name] = value
    return point


def holds(axis: Axis, point: Mapping[str, Any]) -> bool:
    """Whether the condition of an axis holds at a point."""
    return all(
        # a list of values, or the one value, which may be a list
        name in point
        and (point[name] == wanted or (isinstance(wanted, list) and point[name] in wanted))
        for name, wanted in axis.when.items()
    )


def _each_once(points: Iterator[Point] | Sequence[Point]) -> list[Point]:
    found = {json.dumps(point, sort_keys=True): point for point in points}
    return list(found.values())
