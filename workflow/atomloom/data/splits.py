"""Division of structures into training, validation and test.

There is one class per kind: the options it needs, its inputs from files before there are structures, and how
it divides. It knows labels and ids as columns of a table, and nothing of graphs or torch.

Legend: S structures, R records.
"""

from __future__ import annotations

import fnmatch
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from atomloom.config import Split, expand_variables
from atomloom.errors import AtomloomError
from atomloom.store.files import file_digest
from atomloom.store.keys import chain_hash

SPLITS = ("train", "val", "test")

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class SplitKind(ABC):
    """Kind of split.

    Args:
        split: the config's section, whose options are also those of the kind.
    """

    name: ClassVar[str]
    """`split.kind` of the config."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def digest(self, sources: Sequence[str]) -> str:
        """Digest of external definitions of the test set; empty without.

        It is part of the dataset key, and must cover everything that `divide` reads besides its arguments.

        Args:
            sources: [R] the file of each record.
        """
        files = [file_digest(Path(expand_variables(file))) for file in self.split.files]
        return files[0] if len(files) == 1 else chain_hash(files) if files else ""

    @abstractmethod
    def divide(
        self, frame: pd.DataFrame, columns: pd.DataFrame, groups: np.ndarray, records: int
    ) -> np.ndarray:
        """[S] `train`, `val` or `test`; arguments are those of the function `divide`.

        Args:
            groups: [S] integers: structures of one group stay together, if the kind has a choice.
        """

    def _hold_out(self, result: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Hold out a share of the training groups for validation."""
        train = np.flatnonzero(result == "train")
        codes = pd.factorize(groups[train])[0]
        share = self.split.val_fraction
        result[train] = _deal_out((1 - share, share, 0.0), codes, self.split.seed)
        return result


class ByRatio(SplitKind):
    """Random split, by shares."""

    name = "ratio"

    def divide(
        self, frame: pd.DataFrame, columns: pd.DataFrame, groups: np.ndarray, records: int
    ) -> np.ndarray:
        """Assign groups in random order, the first of them to training."""
        return _deal_out(self.split.ratios, groups, self.split.seed)


class ByColumn(SplitKind):
    """Split by a column of the label table."""

    name = "column"

    def divide(
        self, frame: pd.DataFrame, columns: pd.DataFrame, groups: np.ndarray, records: int
    ) -> np.ndarray:
        """Take the words of the column, which must be known ones."""
        column = self.split.column
        values = columns[column]
        result = np.array(
            [_NAMES.get(str(value).strip().lower()) for value in values], dtype=object
        )
        unknown = np.flatnonzero(result == None)  # noqa: E711 - element-wise
        if len(unknown):
            first = unknown[0]
            value = "empty" if pd.isna(values.iloc[first]) else repr(values.iloc[first])
            raise AtomloomError(
                f"`{column}` of {frame['id'].iloc[first]} is {value}",
                where="split.column",
                todo="it must be train, val or test",
            )
        return result if (result == "val").any() else self._hold_out(result, groups)


class ByFold(SplitKind):
    """Split by a fold of a file, whose rows are the test set."""

    name = "folds"

    def divide(
        self, frame: pd.DataFrame, columns: pd.DataFrame, groups: np.ndarray, records: int
    ) -> np.ndarray:
        """Take the fold as the test set, and a share of the rest for validation."""
        result = np.where(frame["record"].isin(self._rows(records)), "test", "train")
        return self._hold_out(result.astype(object), groups)

    def _rows(self, records: int) -> list[int]:
        path = Path(expand_variables(str(self.split.folds_file)))
        try:
            folds = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise AtomloomError(f"cannot be read: {error}", where=path) from None
        name = f"fold_{self.split.fold}"
        rows = folds.get(name) if isinstance(folds, dict) else None
        if not isinstance(rows, list) or not all(type(row) is int for row in rows):
            raise AtomloomError(f"has no list of rows `{name}`", where=path)
        if rows and not 0 <= min(rows) <= max(rows) < records:
            row = max(rows) if min(rows) >= 0 else min(rows)
            raise AtomloomError(f"names row {row} of {records} records", where=path)
        return rows


class BySources(SplitKind):
    """Split by the files from which records are read."""

    name = "sources"

    def digest(self, sources: Sequence[str]) -> str:
        """Digest of the splits of all records: the location of files does not matter."""
        return chain_hash(names_by_source(self.split, sources))

    def divide(
        self, frame: pd.DataFrame, columns: pd.DataFrame, groups: np.ndarray, records: int
    ) -> np.ndarray:
        """Assign files that match globs; without a glob for validation, a share of the others is held out."""
        result = names_by_source(self.split, frame["source"].tolist())
        return result if self.split.val_sources else self._hold_out(result, groups)


KINDS: dict[str, type[SplitKind]] = {
    kind.name: kind for kind in (ByRatio, ByColumn, ByFold, BySources)
}
"""Kind by `split.kind`."""


def kind_of(split: Split) -> SplitKind:
    """Kind that a section names."""
    return KINDS[split.kind](split)


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
    return kind_of(split).divide(frame, columns, _groups(split, columns), records)


def torn_groups(groups: Sequence[str], sets: Sequence[str]) -> list[str]:
    """Groups that are both in the test set and outside it, in order of first appearance.

    If a column, folds or sources define the test set, they take precedence over `split.group`.
    """
    inside = pd.Series(np.asarray(sets) == "test").groupby(np.asarray(groups), sort=False)
    some = inside.any() & ~inside.all()
    return [str(name) for name in some.index[some]]


def names_by_source(split: Split, sources: Sequence[str]) -> np.ndarray:
    """[R] `train`, `val` or `test` for records by the files they are read from.

    Raises:
        AtomloomError: when a glob matches no record's file.
    """
    result = np.full(len(sources), "train", dtype=object)
    for name, globs in (("val", split.val_sources), ("test", split.test_sources)):
        for glob in globs:
            # From the start of a folder or file name: `1.cif` is not `11.cif`.
            own = fnmatch.translate(expand_variables(glob).removeprefix("./"))
            pattern = re.compile(f"(?s:.*(?:/|::))?{own}")
            found = np.array([pattern.match(path) is not None for path in sources], dtype=bool)
            if not found.any():
                raise AtomloomError(
                    f"no record is from a file like {glob!r}", where=f"split.{name}_sources"
                )
            result[found] = name
    return result


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


def _deal_out(ratios: tuple[float, float, float], groups: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle the groups and assign them by cumulative size."""
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
