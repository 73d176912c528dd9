"""Loaders: the batches of a data set, from memory or, on disk, from one window of shards at a time.

Batches are a function of (seed, epoch, position) and of the windows, so integers are the only
state; with the same windows both loaders give the same batches. Background threads work
ahead (reading shards and the compiled passes release the interpreter lock). This module knows nothing
of models or training.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import TypedDict, TypeVar, Unpack

import numpy as np
import torch

from atomloom.config.training import Batching
from atomloom.data.batch import LABEL_OF, GraphBatch
from atomloom.data.batching import (
    BatchPlan,
    Sizes,
    Windows,
    check_rows,
    draw_rows,
    oversize,
    plan_epoch,
    share,
)
from atomloom.data.collate import FLOATS, Collator, Extras, Held, PackedBatch, Pass
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import Graphs, GraphTable

T = TypeVar("T")

LEARNT_EXTRAS = ("forces", "stress", *LABEL_OF.values())
"""Prefixes of the names of extras of a batch that are targets."""
AHEAD = 2
"""Number of batches prepared ahead where that pays."""
WORTH_A_THREAD = 1e-3
"""Min seconds for writing a batch for which a thread pays."""
MEASURED = 3
"""Number of batches for measuring that time."""


@dataclass(frozen=True)
class Preparation:
    """Preparation of batches chosen by a loader."""

    prefetch: int
    """Batches that a thread prepares ahead; 0: none, they are written on demand."""
    seconds: float | None
    """Time for writing one, where it was measured; None where `prefetch` was given."""
    pinned: bool
    """Whether they are in page-locked memory, from which a GPU copies them during its work."""

    @property
    def text(self) -> str:
        """Description in one clause for the log."""
        how = f"{self.prefetch} batches ahead in a thread" if self.prefetch else "no thread"
        why = "as set" if self.seconds is None else f"{1e3 * self.seconds:.2g} ms to write one"
        return f"{how} ({why}), {'page-locked' if self.pinned else 'pageable'} memory"


class LoaderOptions(TypedDict, total=False):
    """Arguments of `Loader` that its callers pass on."""

    seed: int
    shuffle: bool
    dtype: torch.dtype
    multiplicity: bool | None
    vectors: bool
    rank: int
    ranks: int
    prefetch: int | None
    device: torch.device | str
    of_atoms: Mapping[str, np.ndarray] | None
    of_structures: Mapping[str, np.ndarray] | None
    with_edges: Callable[[int], np.ndarray] | None
    passes: Sequence[Pass]
    sampling_weights: Callable[[int], np.ndarray] | None


class Loader(ABC):
    """Base of both loaders: plans, ranks, preparing ahead.

    Args:
        source: graphs of the whole data set.
        rows: the rows to iterate over.
        targets: [S, K] float64 for all rows of the data set, NaN where unknown; None for none.
        bounds: max structures, atoms, edges and triplets per batch.
        windows: shuffle within windows; None: the whole data set is one.
        seed: seed of the orders.
        shuffle: a new order in every epoch; otherwise that of `rows`.
        dtype: working precision of the floats.
        multiplicity: weight edges as ComFormer's graph holds them (once or twice, by `listed`);
            False if every edge counts once. None: True if the graphs have `listed`.
        vectors: compute edge vectors, in float64 before rounding; False if they must be
            differentiated.
        rank: index of the part of each batch to deliver, of `ranks`. A rank whose part is empty gets the
            first structure of the batch with unknown targets, so that all ranks take every step.
        ranks: number of processes that share each batch.
        prefetch: batches to prepare ahead in a background thread; 0 for none. None: measure, and
            work ahead if writing a batch takes long enough for a thread to pay.
        device: of the delivered batches; transfers to a GPU run in parallel to its work.
        of_atoms: further values of all atoms of the data set, [A, D] each; in `batch.extras` by name.
        of_structures: further values of all structures, [S, D] each; in `batch.extras` by name.
        with_edges: structures whose edges are needed in an epoch, [S] bool; by default all.
            `batch.extras` then has `selected` [B] and `computed` [N], bool.
        passes: further tensors to compute for each batch while preparing it; `batch.extras` by name.
        sampling_weights: [S], relative chances of structures in an epoch: as many as there are rows
            are then drawn, some more than once. By default every row comes once.

    Raises:
        AtomloomError: when rows reach beyond the data set, repeat, or targets do not fit it.
    """

    def __init__(
        self,
        source: Graphs,
        form: GraphTable,
        sizes: Sizes,
        rows: np.ndarray,
        targets: np.ndarray | None = None,
        bounds: Batching | None = None,
        *,
        windows: Windows | None = None,
        seed: int = 0,
        shuffle: bool = False,
        dtype: torch.dtype = torch.float32,
        multiplicity: bool | None = None,
        vectors: bool = True,
        rank: int = 0,
        ranks: int = 1,
        prefetch: int | None = None,
        device: torch.device | str = "cpu",
        of_atoms: Mapping[str, np.ndarray] | None = None,
        of_structures: Mapping[str, np.ndarray] | None = None,
        with_edges: Callable[[int], np.ndarray] | None = None,
        passes: Sequence[Pass] = (),
        sampling_weights: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.rows = check_rows(rows, len(source), "rows")
        if sampling_weights is not None and windows is not None:
            raise AtomloomError(
                "weighted sampling needs the graphs in memory",
                where="training.potential.sampling",
                todo="raise training.loader.memory_gb, or sample uniformly",
            )
        self._sampling_weights = sampling_weights
        self.bounds = bounds or Batching()
        self.sizes, self.windows = sizes, windows
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.ranks = rank, ranks
        self.prefetch = prefetch
        self._write_seconds: float | None = None
        if multiplicity is None:
            multiplicity = form.listed is not None
        if multiplicity and form.listed is None:
            raise AtomloomError("only k-nearest graphs have multiplicities", where="graph")
        if targets is not None and (targets.ndim != 2 or len(targets) != len(source)):
            raise AtomloomError(
                f"targets of shape {targets.shape} for {len(source)} structures", where="targets"
            )
        if dtype not in FLOATS:
            raise AtomloomError(f"batches are made in 32 or 64 bits, not {dtype}")
        self._collator = Collator(
            form,
            source.node_ptr,
            targets,
            dtype,
            multiplicity,
            vectors,
            torch.device(device),
            Extras.of(
                int(source.node_ptr[-1]),
                len(source),
                of_atoms or {},
                of_structures or {},
                dtype,
                with_edges is not None,
            ),
            passes,
        )
        self._with_edges = with_edges
        self._known = None if targets is None else np.isfinite(targets).sum(axis=1)
        self._plan: tuple[int, BatchPlan] | None = None

    def plan(self, epoch: int = 0) -> BatchPlan:
        """Plan of the batches of an epoch, before they are shared among ranks."""
        key = epoch if self.shuffle else 0
        if self._plan is None or self._plan[0] != key:
            rows = self.rows
            if self._sampling_weights is not None:
                rows = draw_rows(rows, self._sampling_weights(epoch), self.seed, epoch)
            plan = plan_epoch(
                rows,
                self.sizes,
                self.bounds,
                shuffle=self.shuffle,
                seed=self.seed,
                epoch=key,
                windows=self.windows,
            )
            self._plan = (key, plan)
        return self._plan[1]

    def target_counts(self, epoch: int = 0) -> np.ndarray:
        """[batches] int64, how many target values of each batch are known, over all ranks."""
        if self._known is None:
            raise AtomloomError("the loader has no targets")
        return self.plan(epoch).sums(self._known)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[GraphBatch]:
        """Iterate over this rank's part of every batch of an epoch, from batch `start` on.

        Earlier batches are not read. Until the iterator is closed or exhausted it may hold a window and
        have threads: close one before starting the next.
        """
        plan = self.plan(epoch)
        if self._with_edges is not None:
            self._collator.choose(self._with_edges(epoch))
        packed_batches = self._ahead(plan, start)
        try:
            for packed, padding in packed_batches:
                batch = self._collator.unpack(packed)
                if padding:
                    _forget_targets(batch)
                yield batch
        finally:
            packed_batches.close()

    def __iter__(self) -> Iterator[GraphBatch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self.plan())

    @property
    def oversize(self) -> np.ndarray:
        """Rows whose structures exceed a bound by themselves, and so run alone."""
        return oversize(self.rows, self.sizes, self.bounds)

    @property
    def preparation(self) -> Preparation | None:
        """Chosen preparation of batches; None before it has been measured."""
        if self.prefetch is None:
            return None
        return Preparation(self.prefetch, self._write_seconds, self._collator.pin)

    def largest_batch(self) -> np.ndarray:
        """Rows of the heaviest batch that the bounds allow: largest structures first."""
        order = np.argsort(-self.sizes.edges[self.rows], kind="stable")
        plan = plan_epoch(self.rows[order], self.sizes, self.bounds)
        heaviest = np.argmax(plan.sums(self.sizes.edges)) if len(plan) else 0
        return plan[int(heaviest)]

    @abstractmethod
    def slice(self, rows: np.ndarray) -> GraphBatch:
        """One batch of any rows of the data set."""

    @abstractmethod
    def _packed_batches(
        self, plan: BatchPlan, start: int
    ) -> Generator[tuple[PackedBatch, bool], None, None]:
        """Iterate over this rank's parts of the batches from `start` on, and whether they are only padding."""

    def _ahead(
        self, plan: BatchPlan, start: int
    ) -> Generator[tuple[PackedBatch, bool], None, None]:
        """Iterate over parts of batches, prepared ahead or not."""
        packed_batches = self._packed_batches(plan, start)
        try:
            if self.prefetch is None:
                seconds: list[float] = []
                while len(seconds) < MEASURED:
                    begun = time.perf_counter()
                    packed = next(packed_batches, None)
                    if packed is None:
                        return
                    seconds.append(time.perf_counter() - begun)
                    yield packed
                # The min: the first has to compile.
                self._write_seconds = min(seconds)
                self.prefetch = AHEAD if self._write_seconds > WORTH_A_THREAD else 0
            yield from (
                _work_ahead(packed_batches, self.prefetch) if self.prefetch else packed_batches
            )
        finally:
            packed_batches.close()

    def _part(self, plan: BatchPlan, position: int) -> tuple[np.ndarray, bool]:
        """Ascending positions of this rank's part of a batch in the plan, and whether it is padding."""
        begin, end = int(plan.ptr[position]), int(plan.ptr[position + 1])
        if self.ranks == 1:
            return np.arange(begin, end), False
        part = share(self.sizes.edges[plan.rows[begin:end]], self.rank, self.ranks)
        return begin + (part if len(part) else np.zeros(1, dtype=np.int64)), not len(part)


class GraphLoader(Loader):
    """Loader of batches from a table in memory; for its arguments see `Loader`."""

    def __init__(
        self,
        table: GraphTable,
        rows: np.ndarray,
        targets: np.ndarray | None = None,
        bounds: Batching | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(table, table, Sizes.of(table), rows, targets, bounds, **options)
        self._held = self._collator.hold(table)

    def slice(self, rows: np.ndarray) -> GraphBatch:
        """One batch of any rows of the table."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        return self._collator.unpack(self._collator.pack(self._held, rows, rows))

    def _packed_batches(
        self, plan: BatchPlan, start: int
    ) -> Generator[tuple[PackedBatch, bool], None, None]:
        for position in range(start, len(plan)):
            part, padding = self._part(plan, position)
            rows = plan.rows[part]
            yield self._collator.pack(self._held, rows, rows), padding


@dataclass(frozen=True, eq=False)
class _Window:
    """Graphs of some batches, contiguous for each batch, in the order of the plan."""

    table: GraphTable
    held: Held
    first: int
    """Index of the first batch."""
    starts: np.ndarray
    """[batches+1] int64, positions in the table where the graphs of each begin."""


class ShardLoader(Loader):
    """Loader of batches from graphs on disk, of which it holds two windows: one in use and one being
    read. For its arguments see `Loader`.

    Everything besides the graphs (targets, further values, sizes) is in memory as a whole.
    """

    def __init__(
        self,
        graphs: OnDiskGraphs,
        rows: np.ndarray,
        targets: np.ndarray | None = None,
        bounds: Batching | None = None,
        *,
        windows: Windows,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(
            graphs, graphs.form, graphs.sizes, rows, targets, bounds, windows=windows, **options
        )
        self._graphs = graphs

    def slice(self, rows: np.ndarray) -> GraphBatch:
        """One batch of any rows of the data set; reads their shards."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        held = self._collator.hold(self._graphs.read(rows))
        return self._collator.unpack(self._collator.pack(held, np.arange(len(rows)), rows))

    def _packed_batches(
        self, plan: BatchPlan, start: int
    ) -> Generator[tuple[PackedBatch, bool], None, None]:
        windows = self._read_ahead(plan, start)
        number = int(np.searchsorted(plan.stops, start, side="right")) - 1
        stop, window = start, None
        try:
            for position in range(start, len(plan)):
                while position >= stop:
                    window = None  # released before the one after next is begun
                    window = next(windows)
                    number += 1
                    stop = int(plan.stops[number])
                part, padding = self._part(plan, position)
                assert window is not None  # the first window is at or after `start`
                own = position - window.first
                places = np.arange(window.starts[own], window.starts[own + 1])
                yield self._collator.pack(window.held, places, plan.rows[part]), padding
        finally:
            windows.close()

    def _read_ahead(self, plan: BatchPlan, start: int) -> Generator[_Window, None, None]:
        """Iterate over the window with batch `start` and later ones, reading the next one meanwhile."""
        if start >= len(plan):
            return
        first = int(np.searchsorted(plan.stops, start, side="right")) - 1
        numbers = range(first, len(plan.ends))
        closed = threading.Event()

        def read(number: int, before: _Window | None) -> _Window:
            return self._read(plan, number, start, before, closed)

        with ThreadPoolExecutor(1, thread_name_prefix="atomloom-reader") as reader:
            try:
                window: _Window | None = None
                coming: Future[_Window] = reader.submit(read, first, None)
                for number in numbers:
                    window = coming.result()
                    if number + 1 < len(plan.ends):
                        coming = reader.submit(read, number + 1, window)
                    yield window
            finally:
                closed.set()

    def _read(
        self,
        plan: BatchPlan,
        number: int,
        start: int,
        before: _Window | None,
        closed: threading.Event,
    ) -> _Window:
        """Read the graphs this rank needs of a window, and of the batch continued from the one before."""
        first = max(start, int(plan.stops[number]))
        stop = int(plan.stops[number + 1])
        end = int(plan.ends[number])
        positions, starts = [], [0]
        # The batch after the last one is partly in this window, and continued in the next.
        for batch in range(first, min(stop + 1, len(plan))):
            part, _ = self._part(plan, batch)
            positions.append(part[part < end])
            starts.append(starts[-1] + len(positions[-1]))
        wanted = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
        carried = None
        if before is not None:
            count = int(np.searchsorted(wanted, plan.ends[number - 1]))
            carried = before.table.take(np.arange(len(before.table) - count, len(before.table)))
        table = self._graphs.read(plan.rows[wanted], carried, lambda: not closed.is_set())
        return _Window(table, self._collator.hold(table), first, np.array(starts))


def _forget_targets(batch: GraphBatch) -> None:
    """Set all targets of a batch to unknown, so that it does not count."""
    labels = [tensor for name, tensor in batch.extras.items() if name.startswith(LEARNT_EXTRAS)]
    for tensor in [batch.targets, *labels]:
        if tensor is not None:
            tensor.fill_(float("nan"))


class _End(Enum):
    END = "what comes behind the last item"


def _work_ahead(made: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Draw from a generator in a thread, up to `depth` items ahead; its errors are passed on."""
    ready: queue.Queue[T | BaseException | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def work() -> None:
        last: BaseException | _End = _End.END
        try:
            for item in made:
                ready.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:
            last = error
        ready.put(last)

    worker = threading.Thread(target=work, name="atomloom-loader", daemon=True)
    worker.start()
    try:
        while (item := ready.get()) is not _End.END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while worker.is_alive():
            try:
                ready.get_nowait()  # make room, so that the worker sees the flag
            except queue.Empty:
                worker.join(timeout=0.01)
