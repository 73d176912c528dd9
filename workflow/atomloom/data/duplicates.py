"""The leak guard: structures that are in two splits, exactly or nearly, found before training.

Exact duplicates have the same content hash. Near duplicates are found in two steps. Candidates have
the same reduced composition and, element by element, the same mean distances to their nearest neighbours of
each element: a description that no rotation, translation, permutation or choice of cell changes.
Different structures may share it (fcc and hcp crystals, orderings of an alloy), so each candidate
is confirmed: an isometry must lay its atoms over the other's (`congruence.py`). Mirror images are
duplicates, as energies and gaps do not tell them apart; labels play no part, so that two magnetic
states of the same geometry are duplicates too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import pandas as pd

from atomloom.data.congruence import FARTHEST_ATOM, Motif, congruent
from atomloom.data.environments import Environments
from atomloom.structures.table import StructureTable

ATOMS_AT_A_TIME = 50_000
"""Approximate number of atoms described together."""
MOTIFS = 512
"""Number of structures cached for comparison."""
_RANK = {"train": 0, "val": 1}


class HasTable(Protocol):
    """Object that holds a table of structures."""

    @property
    def table(self) -> StructureTable: ...


def find_duplicates(
    chunks: Sequence[HasTable], frame: pd.DataFrame, tolerance: float
) -> pd.DataFrame:
    """Find structures of training and validation that are also in a split nearer to the test.

    The result depends only on the structures and their splits, not on any order. Each is compared with
    the structures of the other splits themselves: a structure like a second one that is like a third
    is not for that reason a duplicate of the third.

    Args:
        chunks: tables of structures.
        frame: columns record, id, hash, split, formula, chunk and row (position in `chunks`).
        tolerance: max distance between atoms of near duplicates, A, see `congruent`; 0 for exact
            duplicates only.

    Returns:
        One row per duplicate, in the order of `frame`: columns record, id, split, other_id,
        other_split (its first partner in the split nearest to the test), kind (`exact` or `near`).
    """
    rank = _rank(frame)
    group = pd.factorize(frame["hash"])[0]
    # One structure represents all of its hash: the one nearest to the test, the first of several.
    order = np.lexsort((np.arange(len(frame)), -rank, group))
    nearest = order[np.flatnonzero(np.diff(group[order], prepend=-1))]
    exact = rank < rank[nearest][group]
    partner = np.where(exact, nearest[group], -1)
    if tolerance > 0:
        near = np.full(len(nearest), -1)
        for one, other in _near(chunks, frame.iloc[nearest], tolerance):
            near[one] = nearest[other]
        partner[~exact] = near[group[~exact]]
    rows = np.flatnonzero(partner >= 0)
    own, others = frame.iloc[rows], frame.iloc[partner[rows]]
    return pd.DataFrame(
        {
            "record": own["record"].to_numpy(np.int64),
            "id": own["id"].to_numpy(),
            "split": own["split"].to_numpy(),
            "other_id": others["id"].to_numpy(),
            "other_split": others["split"].to_numpy(),
            "kind": np.where(exact[rows], "exact", "near"),
        }
    )


def _rank(frame: pd.DataFrame) -> np.ndarray:
    """[S] nearness to the test: 2 in any test set."""
    return frame["split"].map(_RANK).fillna(2).to_numpy(np.int64)


def _near(
    chunks: Sequence[HasTable], frame: pd.DataFrame, tolerance: float
) -> Iterator[tuple[int, int]]:
    """Iterate over rows of `frame`: a structure and the first of its near duplicates."""
    chunk, row = frame["chunk"].to_numpy(), frame["row"].to_numpy()

    @lru_cache(MOTIFS)
    def motif(place: int) -> Motif:
        return Motif.of(chunks[chunk[place]].table, int(row[place]))

    for one, others in find_candidates(chunks, frame, tolerance):
        for other in others:
            if congruent(motif(one), motif(other), tolerance):
                yield one, other
                break


def find_candidates(
    chunks: Sequence[HasTable], frame: pd.DataFrame, tolerance: float
) -> Iterator[tuple[int, list[int]]]:
    """Iterate over rows of `frame` with the same description in different splits.

    Yields:
        A row, and those like it in splits nearer to the test: the nearest split first, then in
        the order of `frame`.
    """
    from scipy.spatial import cKDTree  # as long as all the rest that the split imports

    apart = 2 * FARTHEST_ATOM * tolerance  # both ends of a distance may be displaced by this
    rank = _rank(frame)
    splits = frame.groupby("formula")["split"].nunique()
    wanted = np.flatnonzero(frame["formula"].isin(splits.index[splits > 1]).to_numpy())
    for points, places in _described(chunks, frame, wanted):
        own = rank[places]
        if own.min() == own.max():
            continue
        ahead = np.flatnonzero(own > own.min())
        ahead = ahead[np.lexsort((places[ahead], -own[ahead]))]
        tree = cKDTree(points[ahead])
        for place in np.flatnonzero(own < own.max()):
            hits = tree.query_ball_point(points[place], apart, p=np.inf)
            others = ahead[np.sort(hits).astype(np.int64)]
            others = others[own[others] > own[place]]
            if len(others):
                yield int(places[place]), places[others].tolist()


def _described(
    chunks: Sequence[HasTable], frame: pd.DataFrame, wanted: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over groups that can be compared: descriptions [n, D] and rows [n] of each.

    Structures are compared if they have the same formula and are periodic in as many directions;
    molecules also need as many atoms.
    """
    if not len(wanted):
        return
    values, parts = [], []
    for chunk, rows in frame.iloc[wanted].assign(place=wanted).groupby("chunk"):
        counts = np.diff(chunks[chunk].table.node_ptr)[rows["row"].to_numpy(np.int64)]
        for _, part in rows.groupby(np.cumsum(counts) // ATOMS_AT_A_TIME):
            table = chunks[chunk].table.take(part["row"].to_numpy(np.int64))
            described, length = Environments.of(table).means()
            values.append(described)
            periodic = table.pbc.sum(axis=1)
            atoms = np.where(periodic == 0, np.diff(table.node_ptr), 0)
            parts.append(
                part[["place", "formula"]].assign(periodic=periodic, atoms=atoms, length=length)
            )
    whole = np.concatenate(values)
    lots = pd.concat(parts, ignore_index=True)
    lots["first"] = np.cumsum(lots["length"]) - lots["length"]
    for (*_, length), lot in lots.groupby(["formula", "periodic", "atoms", "length"]):
        yield whole[lot["first"].to_numpy()[:, None] + np.arange(length)], lot["place"].to_numpy()
