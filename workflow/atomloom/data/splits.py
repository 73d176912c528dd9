"""Division of structures into training, validation and test, and into test sets with names.

There is one class per kind: the options it needs, its inputs from files before there are structures, and how
it divides what is in no named set. It knows labels and ids as columns of a table, and nothing of graphs or torch.

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
from atomloom.config.dataset import SPLIT_WORDS, SPLITS
from atomloom.errors import AtomloomError
from atomloom.store.files import file_digest
from atomloom.store.keys import chain_hash

TRUTHS = {True: ("true", "yes", "on", "t", "1"), False: ("false", "no", "off", "f", "0")}
"""Cells, in lower case, that mean true and false: YAML takes the first words for a boolean; `T` is that of extxyz, and
readers write numbers."""


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
        """[S] `train`, `val` or `test`; arguments are those of the function `divide`, without the structures of
        named test sets.

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
            [SPLIT_WORDS.get(str(value).strip().lower()) for value in values], dtype=object
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


def fixed_digest(split: Split, sources: Sequence[str]) -> str:
    """Digest of everything besides structures and labels that says which of them are test sets; empty without.

    Args:
        split: the config's section.
        sources: [R] the file of each record.
    """
    if not split.test:
        return kind_of(split).digest(sources)
    named = _sets_by_source(split, sources)
    rest = [source for source, name in zip(sources, named, strict=True) if not name]
    return chain_hash([kind_of(split).digest(rest), *named])


def divide(split: Split, frame: pd.DataFrame, columns: pd.DataFrame, records: int) -> np.ndarray:
    """[S] `train`, `val`, `test` or the name of a test set for each structure.

    Args:
        split: the config's section.
        frame: structures with columns record (row of the plan), id and source.
        columns: the text columns that the section names, and `formula`, row by row as `frame`.
        records: number of records of the data set, used or not.

    Raises:
        AtomloomError: when the column or the folds file does not say what is needed, a named test set has no
            structure, or two have one in common.
    """
    kind, result = kind_of(split), _named_sets(split, frame, columns)
    rest = np.flatnonzero(result == "")
    others = columns.iloc[rest]
    groups = _groups(split, others)
    divided = kind.divide(frame.iloc[rest], others, groups, records)
    outside = np.flatnonzero(divided != "test")
    if split.val_folds:
        codes = pd.factorize(groups[outside])[0]
        folds = _dealt_out([1 / split.val_folds] * split.val_folds, codes, split.seed)
        divided[outside] = np.where(folds == split.val_fold, "val", "train")
    if not split.validation:
        divided[outside] = "train"
    result[rest] = divided
    return result


def _named_sets(split: Split, frame: pd.DataFrame, columns: pd.DataFrame) -> np.ndarray:
    """[S] name of the test set that a structure belongs to; empty for none."""
    result = np.full(len(frame), "", dtype=object)
    for name, own in split.test.items():
        if own.source:
            found = np.any([_from_file(glob, frame["source"]) for glob in own.source], axis=0)
        else:
            found = _has_value(columns[own.column], own.equals)
        if not found.any():
            values = " or ".join(str(v).lower() if isinstance(v, bool) else v for v in own.equals)
            wanted = ", ".join(own.source or [f"{own.column} = {values}"])
            raise AtomloomError(
                f"no structure is in the test set {name} ({wanted})", where="split.test"
            )
        if (twice := np.flatnonzero(found & (result != ""))).size:
            raise AtomloomError(
                f"{frame['id'].iloc[twice[0]]} is in two test sets, {result[twice[0]]} and {name}",
                where="split.test",
                todo="define them so that each structure is in one",
            )
        result[found] = name
    return result


def _has_value(cells: pd.Series, wanted: Sequence[str | bool]) -> np.ndarray:
    """[S] bool, whether a cell is one of some values: the same text, an equal number, or as true."""
    texts = cells.map(lambda cell: "" if pd.isna(cell) else str(cell).strip())
    words = [value for value in wanted if isinstance(value, str)]
    truths = [word for value in wanted if isinstance(value, bool) for word in TRUTHS[value]]
    numbers = pd.to_numeric(pd.Series([*words, *truths]), errors="coerce").dropna()
    equal = pd.to_numeric(texts, errors="coerce").isin(numbers)
    return (texts.isin(words) | texts.str.lower().isin(truths) | equal).to_numpy(bool)


def _sets_by_source(split: Split, sources: Sequence[str]) -> list[str]:
    """[R] names of the sets that are defined by files, empty for a record in none.

    Raises:
        AtomloomError: when a glob matches no record's file, or a file is of two sets.
    """
    result = np.full(len(sources), "", dtype=object)
    for name, own in split.test.items():
        for glob in own.source:
            found = _from_file(glob, sources)
            if not found.any():
                raise AtomloomError(
                    f"no record is from a file like {glob!r}", where=f"split.test.{name}"
                )
            if (twice := np.flatnonzero(found & (result != "") & (result != name))).size:
                raise AtomloomError(
                    f"{sources[twice[0]]} is in two test sets, {result[twice[0]]} and {name}",
                    where="split.test",
                )
            result[found] = name
    return result.tolist()


def torn_groups(groups: Sequence[str], sets: Sequence[str]) -> list[str]:
    """Groups that are both in a test set and outside all, in order of first appearance.

    If a column, folds, sources or names define the test sets, they take precedence over `split.group`.
    """
    tested = ~np.isin(np.asarray(sets, dtype=object), ("train", "val"))
    inside = pd.Series(tested).groupby(np.asarray(groups), sort=False)
    some = inside.any() & ~inside.all()
    return [str(name) for name in some.index[some]]


def _from_file(glob: str, sources: Sequence[str]) -> np.ndarray:
    """[R] bool, whether records are from files like this."""
    # From the start of a folder or file name: `1.cif` is not `11.cif`.
    own = fnmatch.translate(expand_variables(glob).removeprefix("./"))
    pattern = re.compile(f"(?s:.*(?:/|::))?{own}")
    return np.array([pattern.match(path) is not None for path in sources], dtype=bool)


def names_by_source(split: Split, sources: Sequence[str]) -> np.ndarray:
    """[R] `train`, `val` or `test` for records by the files they are read from.

    Raises:
        AtomloomError: when a glob matches no record's file.
    """
    result = np.full(len(sources), "train", dtype=object)
    for name, globs in (("val", split.val_sources), ("test", split.test_sources)):
        for glob in globs:
            found = _from_file(glob, sources)
            if not found.any():
                others = " outside the sets of split.test" if split.test else ""
                raise AtomloomError(
                    f"no record{others} is from a file like {glob!r}",
                    where=f"split.{name}_sources",
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
    """Shuffle the groups and assign them to the splits."""
    return np.array(SPLITS, dtype=object)[_dealt_out(ratios, groups, seed)]


def _dealt_out(shares: Sequence[float], groups: np.ndarray, seed: int) -> np.ndarray:
    """[S] index of a share for each structure: groups in random order, by cumulative size."""
    if not len(groups):
        return np.zeros(0, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    of_group = np.empty(len(order), dtype=np.int64)
    of_group[order] = np.searchsorted(np.cumsum(shares)[:-1], middle)
    return of_group[groups]
