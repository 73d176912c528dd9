"""Batch plans: the structures of each batch of an epoch.

A plan is arithmetic on counts of atoms, edges and triplets; no graph is opened for it. It is a
function of rows, bounds, seed and epoch only, so that a run resumed anywhere, on any number of
ranks, sees the same batches. This module knows nothing of torch, models or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomloom.compiled import njit
from atomloom.config.training import Batching
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import Graphs

UNBOUNDED = np.iinfo(np.int64).max
CHANCE_STREAM = 0x6472617773
EPOCH_STREAM = 0x65706F63  # keeps the draws for orders apart from other uses of the same seed


@dataclass(frozen=True, eq=False)
class Sizes:
    """Counts of each structure of a table; [S] int64 each."""

    atoms: np.ndarray
    edges: np.ndarray
    triplets: np.ndarray

    @property
    def atom_pairs(self) -> np.ndarray:
        """[S] int64, pairs of atoms of each structure."""
        return self.atoms**2

    @classmethod
    def of(cls, graphs: Graphs) -> Sizes:
        """Compute the sizes from the pointers."""
        triplets = graphs.triplet_ptr
        return cls(
            atoms=np.diff(graphs.node_ptr).astype(np.int64),
            edges=np.diff(graphs.edge_ptr).astype(np.int64),
            triplets=(
                np.zeros(len(graphs), dtype=np.int64)
                if triplets is None
                else np.diff(triplets).astype(np.int64)
            ),
        )


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows: bounded parts of the data within which rows are shuffled.

    Structures are stored in shards. A window is a run of shards, in random order if the epoch is
    shuffled, of weight at most `most` (or a single shard); rows are shuffled only within it.
    """

    shard: np.ndarray
    """[S] integer, shard of each structure."""
    weights: np.ndarray
    """[S] int64, weight of each structure in bytes."""
    most: int
    """Max weight of a window."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Batches of one epoch: batch b holds rows[ptr[b]:ptr[b+1]].

    Window w ends before rows[ends[w]]; the batches that are complete by then, and were not before,
    are stops[w] to stops[w+1]. Without windows there is one, the whole.
    """

    rows: np.ndarray
    """[R] int64, every row once, in the order of the epoch."""
    ptr: np.ndarray
    """[batches+1] int64."""
    ends: np.ndarray
    """[windows] int64."""
    stops: np.ndarray
    """[windows+1] int64."""

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, batch: int) -> np.ndarray:
        """Rows of one batch."""
        return self.rows[self.ptr[batch] : self.ptr[batch + 1]]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[batches] sums over each batch of a value per row of the data set."""
        if not len(self):
            return np.zeros(0, dtype=values.dtype)
        return np.add.reduceat(values[self.rows], self.ptr[:-1])


def plan_epoch(
    rows: np.ndarray,
    sizes: Sizes,
    bounds: Batching,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    windows: Windows | None = None,
) -> BatchPlan:
    """Order the rows and cut them into batches; nothing is dropped or repeated.

    A batch is closed when the next structure would exceed any bound; a structure that exceeds one
    by itself gets its own batch. Batches continue across the ends of windows.

    Args:
        rows: rows of the data set.
        sizes: sizes of all its structures.
        bounds: max structures, atoms, edges, triplets and pairs of atoms per batch.
        shuffle: draw the order from (seed, epoch); otherwise it is that of `rows`.
        seed: seed of the run.
        epoch: number of the epoch.
        windows: shuffle only within windows; None: the whole is one.
    """
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    draw = np.random.Generator(np.random.PCG64([EPOCH_STREAM, seed, epoch])) if shuffle else None
    ends = np.array([len(rows)])
    if windows is not None:
        rows, ends = _by_windows(rows, windows, draw)
    elif draw is not None:
        rows = draw.permutation(rows)
    ptr = _cut(
        sizes.atoms[rows],
        sizes.edges[rows],
        sizes.triplets[rows],
        sizes.atom_pairs[rows],
        bounds.structures,
        bounds.atoms or UNBOUNDED,
        bounds.edges or UNBOUNDED,
        bounds.triplets or UNBOUNDED,
        bounds.atom_pairs or UNBOUNDED,
    )
    stops = np.searchsorted(ptr, ends, side="right") - 1
    return BatchPlan(rows, ptr, ends, np.concatenate([[0], stops]))


def draw_rows(rows: np.ndarray, weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw as many rows as there are, with replacement, in proportion to their weights [S].

    Systematic sampling: a row of chance p is drawn n p times, rounded up or down, so that an epoch
    deviates from its expectation as little as possible (Madow, Ann. Math. Stat. 20, 333 (1949)).
    """
    draw = np.random.Generator(np.random.PCG64([CHANCE_STREAM, seed, epoch]))
    order = draw.permutation(rows)
    ends = np.cumsum(weights[order])
    places = (np.arange(len(rows)) + draw.random()) * (ends[-1] / max(1, len(rows)))
    return order[np.minimum(np.searchsorted(ends, places, side="right"), len(rows) - 1)]


def _by_windows(
    rows: np.ndarray, windows: Windows, draw: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in their order (as given, unless shuffled), and the ends of the windows."""
    if draw is not None:
        rows = rows[np.argsort(windows.shard[rows], kind="stable")]
    shard = windows.shard[rows]
    borders = np.concatenate([[0], np.flatnonzero(np.diff(shard)) + 1, [len(rows)]])
    runs = np.arange(len(borders) - 1 if len(rows) else 0)
    if draw is not None:
        runs = draw.permutation(runs)
    weight = np.diff(np.concatenate([[0], np.cumsum(windows.weights[rows])])[borders])
    parts: list[list[np.ndarray]] = []
    held = 0
    for run in runs:
        if not parts or held + weight[run] > windows.most:
            parts.append([])
            held = 0
        held += weight[run]
        parts[-1].append(rows[borders[run] : borders[run + 1]])
    mixed = [np.concatenate(part) for part in parts]
    if draw is not None:
        mixed = [draw.permutation(part) for part in mixed]
    if not mixed:
        return rows, np.array([0])
    return np.concatenate(mixed), np.cumsum([len(part) for part in mixed])


def oversize(rows: np.ndarray, sizes: Sizes, bounds: Batching) -> np.ndarray:
    """Rows whose structures exceed a bound by themselves, and so run alone."""
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    return rows[
        (sizes.atoms[rows] > (bounds.atoms or UNBOUNDED))
        | (sizes.edges[rows] > (bounds.edges or UNBOUNDED))
        | (sizes.triplets[rows] > (bounds.triplets or UNBOUNDED))
        | (sizes.atom_pairs[rows] > (bounds.atom_pairs or UNBOUNDED))
    ]


def share(weights: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Part of a batch for one rank, of about 1/ranks of the weight.

    The heaviest structure goes first, each to the rank with the smallest weight so far (Graham, 1969). The
    parts of all ranks are the batch; a part may be empty where there are few structures.

    Args:
        weights: [B] cost of each structure of the batch, usually its edges.
        rank: index of the part, from 0.
        ranks: number of parts.

    Returns:
        Ascending int64 positions in the batch.
    """
    if ranks == 1:
        return np.arange(len(weights))
    return np.flatnonzero(deal(weights, ranks) == rank)


def deal(weights: np.ndarray, ranks: int) -> np.ndarray:
    """[B] int64, the rank of each structure of a batch; for the arguments see `share`."""
    # One unit more per structure, so that structures without edges are spread too.
    weights = np.ascontiguousarray(weights, dtype=np.int64) + 1
    return _deal(weights, np.argsort(-weights, kind="stable"), ranks)


def check_rows(rows: np.ndarray, count: int, name: str) -> np.ndarray:
    """Rows as int64, checked to be within a data set of `count` structures and unique.

    Raises:
        AtomloomError: when they are not.
    """
    rows = np.ascontiguousarray(rows, dtype=np.int64).reshape(-1)
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise AtomloomError(f"rows reach beyond the {count} structures of the data set", where=name)
    if len(np.unique(rows)) != len(rows):
        raise AtomloomError("a row occurs twice in the list", where=name)
    return rows


@njit(nogil=True, cache=True)
def _deal(weights: np.ndarray, order: np.ndarray, ranks: int) -> np.ndarray:
    loads = np.zeros(ranks, dtype=np.int64)
    part = np.empty(len(weights), dtype=np.int64)
    for place in order:
        least = np.argmin(loads)
        part[place] = least
        loads[least] += weights[place]
    return part


@njit(nogil=True, cache=True)
def _cut(
    atoms: np.ndarray,
    edges: np.ndarray,
    triplets: np.ndarray,
    atom_pairs: np.ndarray,
    most_structures: int,
    most_atoms: int,
    most_edges: int,
    most_triplets: int,
    most_atom_pairs: int,
) -> np.ndarray:
    ptr = np.empty(len(atoms) + 1, dtype=np.int64)
    ptr[0] = 0
    closed = 0
    first = 0
    sum_atoms = sum_edges = sum_triplets = sum_atom_pairs = 0
    for row in range(len(atoms)):
        full = (
            row - first + 1 > most_structures
            or sum_atoms + atoms[row] > most_atoms
            or sum_edges + edges[row] > most_edges
            or sum_triplets + triplets[row] > most_triplets
            or sum_atom_pairs + atom_pairs[row] > most_atom_pairs
        )
        if full and row > first:
            closed += 1
            ptr[closed] = row
            first = row
            sum_atoms = sum_edges = sum_triplets = sum_atom_pairs = 0
        sum_atoms += atoms[row]
        sum_edges += edges[row]
        sum_triplets += triplets[row]
        sum_atom_pairs += atom_pairs[row]
    if len(atoms):
        closed += 1
        ptr[closed] = len(atoms)
    return ptr[: closed + 1].copy()
