"""Dividing structures into training, validation and test.

Knows labels and ids as columns of a table; knows nothing of graphs and of torch.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.config import Split, expand_variables
from atomloom.errors import AtomloomError

SPLITS = ("train", "val", "test")

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def divide(split: Split, frame: pd.DataFrame, columns: pd.DataFrame, records: int) -> np.ndarray:
    """[S] `train`, `val` or `test` for each structure.

    Args:
        split: the config's section.
        frame: structures with columns record (row of the plan), id and source.
        columns: the text columns that the section names, and `formula`, row by row as `frame`.
        records: number of records of the data set, used or not.

    Raises:
        AtomloomError: when the column or the folds file does not say what is needed.
    """
    groups = _groups(split, columns)
    if split.kind == "column":
        return _by_column(split, frame, columns, groups)
    if split.kind == "folds":
        return _by_fold(split, frame, groups, records)
    if split.kind == "sources":
        return _by_sources(split, frame, groups)
    return _by_ratio(split.ratios, groups, split.seed)


def torn_groups(groups: Sequence[str], sets: Sequence[str]) -> list[str]:
    """Groups that stand in the test set and outside it, in order of first appearance.

    Where a column, folds or sources say what the test set is, they go before `split.group`.
    """
    inside = pd.Series(np.asarray(sets) == "test").groupby(np.asarray(groups), sort=False)
    some = inside.any() & ~inside.all()
    return [str(name) for name in some.index[some]]


def _groups(split: Split, columns: pd.DataFrame) -> np.ndarray:
    """[S] integers: structures of one group stay together; by default each is its own group."""
    if split.group is None:
        return np.arange(len(columns))
    values = columns[split.group]
    if values.isna().any():
        raise AtomloomError(
            f"{int(values.isna().sum())} structures have no `{split.group}`", where="split.group"
        )
    return pd.factorize(values)[0]


def _by_ratio(ratios: tuple[float, float, float], groups: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle the groups and deal them out by cumulated size."""
    if not len(groups):
        return np.zeros(0, dtype=object)
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    bounds = np.cumsum(ratios)[:2]
    names = np.array(SPLITS, dtype=object)[np.searchsorted(bounds, middle)]
    of_group = np.empty(len(order), dtype=object)
    of_group[order] = names
    return of_group[groups]


def _hold_out(result: np.ndarray, groups: np.ndarray, split: Split) -> np.ndarray:
    """Turn a share of the training groups into validation."""
    train = np.flatnonzero(result == "train")
    codes = pd.factorize(groups[train])[0]
    share = split.val_fraction
    result[train] = _by_ratio((1 - share, share, 0.0), codes, split.seed)
    return result


def _by_column(
    split: Split, frame: pd.DataFrame, columns: pd.DataFrame, groups: np.ndarray
) -> np.ndarray:
    values = columns[split.column]
    result = np.array([_NAMES.get(str(value).strip().lower()) for value in values], dtype=object)
    unknown = np.flatnonzero(result == None)  # noqa: E711 - element-wise
    if len(unknown):
        first = unknown[0]
        value = "empty" if pd.isna(values.iloc[first]) else repr(values.iloc[first])
        raise AtomloomError(
            f"`{split.column}` of {frame['id'].iloc[first]} is {value}",
            where="split.column",
            todo="it must be train, val or test",
        )
    return result if (result == "val").any() else _hold_out(result, groups, split)


def names_by_source(split: Split, sources: Sequence[str]) -> np.ndarray:
    """[R] `train`, `val` or `test` for records by the files they are read from.

    Raises:
        AtomloomError: when a glob matches no record's file.
    """
    result = np.full(len(sources), "train", dtype=object)
    for name, globs in (("val", split.val_sources), ("test", split.test_sources)):
        for glob in globs:
            # From a folder's beginning on: `1.cif` is not `11.cif`.
            own = fnmatch.translate(expand_variables(glob).removeprefix("./"))
            pattern = re.compile(f"(?s:.*(?:/|::))?{own}")
            found = np.array([pattern.match(path) is not None for path in sources], dtype=bool)
            if not found.any():
                raise AtomloomError(
                    f"no record is from a file like {glob!r}", where=f"split.{name}_sources"
                )
            result[found] = name
    return result


def _by_sources(split: Split, frame: pd.DataFrame, groups: np.ndarray) -> np.ndarray:
    result = names_by_source(split, frame["source"].tolist())
    return result if split.val_sources else _hold_out(result, groups, split)


def _by_fold(split: Split, frame: pd.DataFrame, groups: np.ndarray, records: int) -> np.ndarray:
    path = Path(expand_variables(str(split.folds_file)))
    try:
        folds = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise AtomloomError(f"cannot be read: {error}", where=path) from None
    rows = folds.get(f"fold_{split.fold}") if isinstance(folds, dict) else None
    if not isinstance(rows, list) or not all(type(row) is int for row in rows):
        raise AtomloomError(f"has no list of rows `fold_{split.fold}`", where=path)
    if rows and not 0 <= min(rows) <= max(rows) < records:
        row = max(rows) if min(rows) >= 0 else min(rows)
        raise AtomloomError(f"names row {row} of {records} records", where=path)
    result = np.where(frame["record"].isin(rows), "test", "train").astype(object)
    return _hold_out(result, groups, split)
