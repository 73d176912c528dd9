"""The `dataset` section: where structures come from, what is predicted, how sources are cut up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from atomloom.config.base import MOST, MOST_SEED, Options, Section, keyed_when_set, renamed, unkeyed
from atomloom.targets import KINDS, kind_class

Share = Annotated[float, Field(ge=0, le=1)]


class Labels(Section):
    """Table of labels, by record."""

    file: str | None = unkeyed(None)
    """CSV (plain, .gz, .xz, .bz2) or parquet table, or `archive::member` for one inside an archive.
    Without one, targets are read from the records themselves (`energy` of an extxyz frame, a
    column next to the structure)."""
    id_column: str | Annotated[int, Field(ge=0, le=9999)] = 0
    """Column that holds the record id, by name or position."""
    columns: list[str] | None = None
    """Names of the columns of a CSV that has no header line."""


RESERVED = frozenset((
    "record", "id", "source", "hash", "formula", "elements", "n_atoms", "chunk", "row", "split", "problem",
))  # fmt: skip
"""Columns of atomloom's own tables, which also hold targets and global features."""


def _one_or_several(value: Any) -> str:
    return "(several)" if isinstance(value, (list, tuple)) else "(one)"


class Chunks(Section):
    """Chunks are cut where a record's fingerprint says so: one changed record changes one chunk."""

    mean: int = Field(default=1000, ge=1, le=MOST)
    """Approximate mean number of records per chunk."""
    min: int | None = renamed("least", None, ge=1, le=MOST)
    """Min number of records per chunk; by default a quarter of the mean."""
    max: int | None = renamed("greatest", None, ge=1, le=MOST)
    """Max number of records per chunk; by default four times the mean."""

    @property
    def bounds(self) -> tuple[int, int, int]:
        """(mean, min, max) with the defaults filled in."""
        return self.mean, self.min or max(1, self.mean // 4), self.max or 4 * self.mean

    @model_validator(mode="after")
    def _in_order(self) -> Chunks:
        if (self.min or 1) > self.mean:
            raise ValueError(f"min {self.min} is above the mean, {self.mean}: give both")
        if self.max is not None and self.max < self.mean:
            raise ValueError(f"max {self.max} is below the mean, {self.mean}: give both")
        return self


class Checks(Section):
    """Conditions that send a structure to quarantine, and how much quarantine is too much."""

    min_distance: float = Field(default=0.4, ge=0, le=10)
    """Atoms closer than this (A, periodic images included) count as overlapping. 0 switches this off."""
    max_volume_per_atom: float = Field(default=10_000.0, gt=0, le=1e9)
    """A three-dimensional cell with more A^3 per atom than this is taken for a mistake."""
    max_fraction: float = unkeyed(0.05, ge=0, le=1)
    """The run stops when more than this fraction of the records is in quarantine."""


NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Pattern of a name that is a folder's on all systems."""


class Dataset(Section):
    """Raw structures and labels."""

    name: Annotated[str, Field(pattern=NAME, max_length=100)]
    """Name of the data set; results go to `results/<name>/`."""
    source: list[str] = Field(min_length=1)
    """Files, folders or archives with structures, in this order; a single path needs no list.
    `jarvis:NAME` (a data set of JARVIS, such as `jarvis:dft_3d`) and `mp:IDS` or `mp:FILTERS` (Materials
    Project) are downloaded once."""
    format: str = "auto"
    """Format of the records (see docs/reading-data.md), or `auto` to recognise it by name and content."""
    pattern: str | None = None
    """In folders and archives, read only members whose name matches this glob."""
    options: Options = {}
    """Options of the format's reader, such as `structure_column` for a CSV or `box: molecule`."""
    labels: Annotated[
        Annotated[Labels, Tag("(one)")] | Annotated[list[Labels], Tag("(several)")],
        Discriminator(_one_or_several),
    ] = Labels()
    """Location of the labels, if not in the records themselves. Several tables may be given as a list: a target
    is looked for in each, and where two contradict each other the record is refused."""
    target: list[str] = Field(min_length=1)
    """Targets of the prediction: column names of the label table, or property names of the records."""
    unit: str | dict[str, str] = ""
    """Unit of the targets, for tables and figures; `{name: unit}` where they differ."""
    target_kinds: dict[str, str] = keyed_when_set({})
    """Kinds of targets by name, if not the usual ones: `scalar` (a number per structure),
    `vector` (a vector per structure, such as a dipole moment), `per_atom` (a number per atom, such as a
    magnetic moment or a charge). Usual kinds are scalars; for a potential, energy, forces and stress, `dipole`
    as a vector, `magmoms` and `charges` per atom."""
    global_features: list[str] = []
    """Further inputs of the model, numbers per structure such as temperature and pressure: columns of the
    label table or properties of the records, like targets. Standardised over the training rows."""
    chunks: Chunks = Chunks()
    """Cutting of records into chunks: one chunk is one job."""
    checks: Checks = Checks()
    """Conditions for quarantine."""

    @field_validator("name", mode="before")
    @classmethod
    def _name_is_a_folders(cls, value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(NAME, value):
            raise ValueError(
                "Input should have letters of a to z, digits, `_`, `.` and `-` alone, a letter or digit first"
            )
        return value

    @field_validator("source", "target", "global_features", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, (str, int)) else value

    @field_validator("target", mode="before")
    @classmethod
    def _columns_by_number(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [str(n) if isinstance(n, int) and 0 <= n < 10_000 else n for n in value]

    @model_validator(mode="after")
    def _targets_differ(self) -> Dataset:
        if len(set(self.target)) != len(self.target):
            raise ValueError("target names a column twice")
        if len(set(self.global_features)) != len(self.global_features):
            raise ValueError("global_features names a column twice")
        if set(self.global_features) & set(self.target):
            raise ValueError("a target cannot be one of the global_features")
        return self

    @model_validator(mode="after")
    def _names_can_be_columns(self) -> Dataset:
        for name in [*self.target, *self.global_features]:
            if name in RESERVED or name.startswith(("own:", "text:")):
                raise ValueError(
                    f"a target or global feature cannot be called `{name}`, which is a column of "
                    "atomloom's own tables: rename it in the data"
                )
            if f"{name}_predicted" in self.target:
                raise ValueError(
                    f"{name}_predicted cannot be a target alongside {name}, whose predictions have that name: "
                    "rename it in the data"
                )
        return self

    @model_validator(mode="after")
    def _kinds_are_known(self) -> Dataset:
        for name, kind in self.target_kinds.items():
            if name not in self.target:
                raise ValueError(
                    f"target_kinds names {name}, which is not a target ({', '.join(self.target)})"
                )
            if kind not in KINDS:
                raise ValueError(
                    f"target_kinds: {kind} is not a kind of targets; there are {', '.join(KINDS)}"
                )
            if kind_class(kind)(name).of_energy and name not in kind_class(kind).names:
                raise ValueError(f"target_kinds: {kind} is only the kind of the target `{kind}`")
        return self

    @model_validator(mode="after")
    def _each_table_and_unit_has_its_place(self) -> Dataset:
        if isinstance(self.labels, list) and not all(table.file for table in self.labels):
            raise ValueError("each of several label tables needs a `file`")
        others = set(self.unit) - set(self.target) if isinstance(self.unit, dict) else set()
        if others:
            raise ValueError(
                f"unit names {min(others)}, which is not a target ({', '.join(self.target)})"
            )
        return self

    @property
    def label_tables(self) -> list[Labels]:
        """The label tables, if any."""
        tables = self.labels if isinstance(self.labels, list) else [self.labels]
        return [table for table in tables if table.file is not None]

    def unit_of(self, target: str) -> str:
        """Unit of one target; empty where it has none."""
        return self.unit.get(target, "") if isinstance(self.unit, dict) else self.unit


SPLITS = ("train", "val", "test")
"""Splits of a data set, besides named test sets."""
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val"} | {n: n for n in SPLITS}
"""Word for a split, in lower case -> the split."""


class TestSet(Section):
    """A test set with its own name: records of some files, or with some value in a column."""

    __test__ = False  # for pytest, whose test classes have such names

    source: list[str] = []
    """Records of files whose path, or its end from some folder on, matches one of these globs."""
    column: str | None = None
    """Records with one of the values `equals` in this column: of a label table, alongside the structures
    or on the comment line of an extxyz frame; or `formula` (reduced)."""
    equals: list[str | bool] = []
    """Values of `column`; numbers are compared as numbers. `true` and `false` are found as yes and no, on and off,
    T and F, 1 and 0 as well, in upper or lower case; in quotes they are texts."""

    @field_validator("source", "equals", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        several = value if isinstance(value, list) else [value]
        return [_as_cell(one) for one in several]

    @model_validator(mode="after")
    def _one_definition(self) -> TestSet:
        if bool(self.source) == (self.column is not None):
            raise ValueError("a test set is defined by `source`, or by `column` and `equals`")
        if (self.column is None) != (not self.equals):
            raise ValueError("`column` and `equals` go together")
        return self


def _as_cell(value: object) -> object:
    """Value of the config as a table would have it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else value


class Split(Section):
    """Division of records into training, validation and test.

    A kind is a class of `atomloom.data.splits`. Its inputs besides structures are named here: options
    that name a file are in `files`, those that name a column of the label tables in `columns`, and all
    that the plan needs in `plan_content`.
    """

    kind: Literal["ratio", "column", "folds", "sources"] = "ratio"
    """`ratio`: at random by `ratios`. `column`: as a column of the label table says (train, val,
    test). `folds`: the test rows are those of `fold` in the file `folds_file`. `sources`: by the
    files that records are read from."""
    ratios: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    """For `ratio`: shares of training, validation and test. Two shares are for training and validation:
    there is no test set then."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the random division."""
    column: str | None = None
    """For `column`: the column of the label table that says train, val or test."""
    folds_file: str | None = unkeyed(None)
    """For `folds`: a JSON file {"fold_0": [row, ...], ...} of test rows, counted from 0 in the order
    of the records."""
    fold: int = Field(default=0, ge=0, le=MOST)
    """For `folds`: which fold is the test set."""
    test_sources: list[str] = []
    """For `sources`: records of files whose path, or its end from some folder on, matches one of these
    globs are the test set."""
    val_sources: list[str] = []
    """For `sources`: globs of the validation set, in the same way."""
    test: dict[str, TestSet] = keyed_when_set({})
    """Test sets with names, such as `{300K: {source: md_300K.xyz}, 600K: {column: temperature, equals: 600}}`:
    each has its own errors. Their records are set aside first, and `kind` divides the rest; `ratios` are then
    by default 0.9 and 0.1."""
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """For `folds`, and for a column or sources without validation: share of the training rows
    held out for validation."""
    val_folds: int | None = keyed_when_set(None, ge=2, le=MOST)
    """Cross-validation, for any kind: the rows outside the test set are divided at random, by `seed` and
    with groups kept together, into so many folds, and `val_fold` is the validation set."""
    val_fold: int = keyed_when_set(0, ge=0, le=MOST)
    """For `val_folds`: which fold is the validation set, from 0."""
    validation: bool = keyed_when_set(True)
    """false: the rows of the validation set are training rows, too, and there is no validation set: for a
    last training with settings that were chosen before."""
    group: str | None = None
    """Records that share this stay together: a column of the label table, or `formula` (reduced)."""
    duplicates: Literal["remove", "stop", "report"] = "remove"
    """Action on a training or validation structure that is also in a split nearer to the
    test, whatever its labels: remove it, stop, or only report it. The test set is never changed."""
    duplicate_tolerance: float = Field(default=1e-3, ge=0, le=0.1)
    """Structures are near duplicates when a rotation, mirror image or translation of one lays its
    atoms over those of the other, element by element, within this tolerance in A (root mean square;
    3 times this for any single atom), whatever their cells. 0: only exact duplicates count."""

    @model_validator(mode="before")
    @classmethod
    def _named_sets_are_the_test(cls, data: Any) -> Any:
        """Name test sets by text, and by default leave the rest to training and validation."""
        if not isinstance(data, Mapping) or not isinstance(data.get("test"), Mapping):
            return data
        own = {_as_cell(name): one for name, one in data["test"].items()}
        return {**({"ratios": [0.9, 0.1]} if own else {}), **data, "test": own}

    @field_validator("test")
    @classmethod
    def _names_are_new(cls, value: dict[str, TestSet]) -> dict[str, TestSet]:
        for name in value:
            if name.strip().lower() in SPLIT_WORDS:
                raise ValueError(f"`{name}` cannot be the name of a test set: it is a split")
            if name != name.strip() or not name or not name.isprintable() or len(name) > 60:
                raise ValueError(
                    f"the name of a test set is up to 60 printable characters, not {name[:80]!r}"
                )
        return value

    @field_validator("ratios", mode="before")
    @classmethod
    def _two_leave_no_test(cls, value: object) -> object:
        return [*value, 0.0] if isinstance(value, (list, tuple)) and len(value) == 2 else value

    @field_validator("test_sources", "val_sources", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def files(self) -> list[str]:
        """Files that options name."""
        return [self.folds_file] if self.folds_file else []

    @property
    def columns(self) -> list[str]:
        """Text columns of the label tables, or `formula`, that options name."""
        own = [self.column, self.group, *(one.column for one in self.test.values())]
        return list(dict.fromkeys(name for name in own if name))

    @property
    def names(self) -> tuple[str, ...]:
        """All splits, the named test sets last."""
        return (*SPLITS, *self.test)

    def plan_content(self) -> dict[str, Any]:
        """Options on which the plan depends, since it reads and digests what they name."""
        named = {name: [one.column, *one.source] for name, one in self.test.items()}
        return {
            "columns": [self.column, self.group],
            "fixed": [self.folds_file, self.test_sources, self.val_sources],
        } | ({"test": named} if named else {})

    @model_validator(mode="after")
    def _complete(self) -> Split:
        needed = {"column": "column", "folds": "folds_file", "sources": "test_sources"}.get(
            self.kind
        )
        if needed == "test_sources" and self.test:
            needed = None
        if needed and not getattr(self, needed):
            raise ValueError(f"kind: {self.kind} needs `{needed}`")
        if self.val_fold >= (self.val_folds or 1):
            counted = self.val_folds or "no"
            raise ValueError(f"there is no val_fold {self.val_fold} of {counted} val_folds")
        if self.val_folds and not self.validation:
            raise ValueError("val_folds and validation: false exclude each other")
        if self.kind == "ratio" and (abs(sum(self.ratios) - 1) > 1e-6 or self.ratios[0] <= 0):
            raise ValueError(
                "ratios must be three shares that add up to 1, the first above 0 (or two: no test)"
            )
        return self
