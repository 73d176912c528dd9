"""Placement of a data set: in memory as a whole, or on disk with one window of it in memory.

`choose_loader` compares the graphs with the free memory and records its choice and
reason; `load_graphs` and `open_loader` do it. The window decides the order of batches, so a resumed
run keeps the choice it began with, and processes that share batches take that of the first. This
module knows nothing of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np

from atomloom.config.training import Batching
from atomloom.data.batching import Windows, plan_epoch
from atomloom.data.loader import GraphLoader, Loader, LoaderOptions, ShardLoader
from atomloom.data.memory import FreeMemory, free_memory
from atomloom.data.on_disk import GraphSource, OnDiskGraphs
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable

SHARE = 0.5
"""Share of the free memory for graphs where no budget is set; the rest is for the model."""
WHERE = "training.loader"
"""Section of the config for placement."""


@dataclass(frozen=True)
class Placement:
    """Choice of placement, in JSON values."""

    window: int | None
    """On disk: bytes of graphs that are held, and shuffled, at a time. None: all are in memory."""
    graphs: int
    """Bytes of all graphs."""
    budget: int | None
    """Bytes that they may take in this process; None where no comparison was needed."""
    reason: str
    """Reason for the choice."""

    @property
    def text(self) -> str:
        """Description in one line for the log."""
        if self.window is None:
            return f"graphs in memory: {_size(self.graphs)}; {self.reason}"
        return (
            f"graphs on disk: {_size(self.graphs)}, shuffled in windows of {_size(self.window)}; "
            f"{self.reason}"
        )


def choose_loader(
    source: GraphSource,
    bounds: Batching,
    *,
    mode: Literal["auto", "memory", "disk"] = "auto",
    budget: int | None = None,
    processes: int = 1,
    begun: Placement | None = None,
) -> Placement:
    """Choose where the graphs are held.

    Args:
        source: graphs; a table is already in memory.
        bounds: of batches, one of which is held besides the windows.
        mode: `memory` or `disk` force the choice; `auto` takes memory if the graphs fit.
        budget: bytes that graphs may take in each process; by default half of the free memory.
        processes: number of processes of this run that share the machine.
        begun: the choice with which the run began; its order of batches is kept.

    Raises:
        AtomloomError: when neither fits, or the choice of the run no longer does.
    """
    if isinstance(source, GraphTable):
        if begun is not None and begun.window is not None:
            raise AtomloomError(
                "the run began with graphs on disk, and graphs in memory have another order",
                where=WHERE,
                todo="resume with the graphs of the store",
            )
        return Placement(None, _table_bytes(source), None, "given in memory")
    free = free_memory()
    given = budget is not None
    budget = budget if budget is not None else int(SHARE * free.size / processes)
    why = _reason(free, budget, given, processes)
    whole = int(source.weights.sum())
    batch = _heaviest(source, bounds)

    def two_of(window: int) -> int:
        return 2 * (window + batch) + source.reading

    if begun is not None:
        # Half of the free memory is caution: a run that has begun may take all of it.
        most = budget if given else free.size // processes
        need = whole + source.reading if begun.window is None else two_of(begun.window)
        if need > most:
            kept = "all graphs" if begun.window is None else f"windows of {_size(begun.window)}"
            raise _too_large(f"the run began with {kept} in memory, which takes {_size(need)}", why)
        return Placement(begun.window, whole, budget, "as the run began")
    if mode == "memory":
        return Placement(None, whole, budget, "as set")
    if mode == "auto" and whole + source.reading <= budget:
        return Placement(None, whole, budget, why)
    shard = int(np.bincount(source.shard, source.weights).max(initial=0))
    if two_of(shard) > budget:
        raise _too_large(f"two shards and two batches take {_size(two_of(shard))}", why)
    window = (budget - source.reading) // 2 - batch
    return Placement(window, whole, budget, why if mode == "auto" else f"as set; {why}")


def load_graphs(source: GraphSource, choice: Placement) -> GraphSource:
    """Apply the choice: read all graphs into memory, or leave them on disk."""
    if isinstance(source, OnDiskGraphs) and choice.window is None:
        return source.read(np.arange(len(source)))
    return source


def open_loader(
    source: GraphSource,
    rows: np.ndarray,
    targets: np.ndarray | None = None,
    bounds: Batching | None = None,
    *,
    choice: Placement | None = None,
    **options: Unpack[LoaderOptions],
) -> Loader:
    """Open the chosen loader; for the other arguments see `Loader`.

    Args:
        source: what `load_graphs` returned.
        rows: rows to iterate over.
        targets: [S, K] float64.
        bounds: of batches.
        choice: result of `choose_loader`; a table in memory needs none.
        options: other arguments.
    """
    if isinstance(source, GraphTable):
        return GraphLoader(source, rows, targets, bounds, **options)
    if choice is None or choice.window is None:
        raise ValueError("the choice is to hold the graphs: open what `load_graphs` returns")
    windows = Windows(source.shard, source.weights, choice.window)
    return ShardLoader(source, rows, targets, bounds, windows=windows, **options)


def _heaviest(source: OnDiskGraphs, bounds: Batching) -> int:
    """Bytes of the heaviest batch that the bounds allow."""
    order = np.argsort(-source.weights, kind="stable")
    plan = plan_epoch(order, source.sizes, bounds)
    return int(plan.sums(source.weights).max(initial=0))


def _table_bytes(table: GraphTable) -> int:
    return sum(value.nbytes for value in vars(table).values() if isinstance(value, np.ndarray))


def _reason(free: FreeMemory, budget: int, given: bool, processes: int) -> str:
    if given:
        return f"budget {_size(budget)}, as set"
    each = f" by {processes} processes" if processes > 1 else ""
    return f"budget {_size(budget)}, half of the {free.limit} ({_size(free.size)}){each}"


def _too_large(what: str, why: str) -> AtomloomError:
    return AtomloomError(
        f"{what}; {why}", where=WHERE, todo="give more memory, or cut smaller chunks"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
