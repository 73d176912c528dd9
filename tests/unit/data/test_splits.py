"""Splits: every structure is in one, groups stay together, predefined rows are kept to the letter."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from atomloom.config import Split
from atomloom.data.splits import KINDS, divide, kind_of, names_by_source
from atomloom.errors import AtomloomError


def frame(count: int) -> pd.DataFrame:
    return pd.DataFrame({"record": np.arange(count), "id": [f"s{i}" for i in range(count)]})


def columns(count: int, **more) -> pd.DataFrame:
    return pd.DataFrame({"formula": ["NaCl"] * count, **more})


def test_ratios_are_met_and_the_seed_decides():
    first = divide(Split(ratios=(0.7, 0.2, 0.1)), frame(1000), columns(1000), 1000)
    again = divide(Split(ratios=(0.7, 0.2, 0.1)), frame(1000), columns(1000), 1000)
    other = divide(Split(ratios=(0.7, 0.2, 0.1), seed=1), frame(1000), columns(1000), 1000)
    assert {name: int((first == name).sum()) for name in ("train", "val", "test")} == {
        "train": 700,
        "val": 200,
        "test": 100,
    }
    assert (first == again).all()
    assert (first != other).any()


def test_groups_stay_together():
    groups = [f"g{i // 7}" for i in range(700)]
    result = divide(Split(group="parent"), frame(700), columns(700, parent=groups), 700)
    assert pd.DataFrame({"g": groups, "s": result}).groupby("g")["s"].nunique().max() == 1
    assert abs((result == "train").mean() - 0.8) < 0.03


def test_a_structure_without_its_group_is_named():
    with pytest.raises(AtomloomError, match="1 structures have no `parent`"):
        divide(Split(group="parent"), frame(3), columns(3, parent=["a", None, "b"]), 3)


def test_a_column_is_taken_as_it_is():
    names = ["train", "Test", "validation", "train"]
    result = divide(Split(kind="column", column="set"), frame(4), columns(4, set=names), 4)
    assert result.tolist() == ["train", "test", "val", "train"]


def test_a_column_without_validation_gives_some_of_its_training_rows():
    names = ["train"] * 90 + ["test"] * 10
    result = divide(
        Split(kind="column", column="set", val_fraction=0.2),
        frame(100),
        columns(100, set=names),
        100,
    )
    assert (result[90:] == "test").all()
    assert (result == "val").sum() == 18


@pytest.mark.parametrize(("word", "said"), [("tset", "'tset'"), (None, "empty"), (np.nan, "empty")])
def test_an_unknown_word_in_the_column_is_named(word, said):
    with pytest.raises(
        AtomloomError, match=f"`set` of s1 is {said}; it must be train, val or test"
    ):
        divide(Split(kind="column", column="set"), frame(2), columns(2, set=["train", word]), 2)


def test_folds_take_rows_of_the_plan_even_where_records_are_missing(tmp_path):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"fold_0": [1, 3], "fold_1": [0, 2]}))
    split = Split(kind="folds", folds_file=str(path), val_fraction=0.0)
    used = frame(5).drop(index=2).reset_index(drop=True)  # record 2 is in quarantine
    assert divide(split, used, columns(4), 5).tolist() == ["train", "test", "test", "train"]
    with pytest.raises(AtomloomError, match="fold_7"):
        divide(Split(kind="folds", folds_file=str(path), fold=7), used, columns(4), 5)
    for rows, says in (
        ([1, 9], "names row 9 of 5 records"),
        ([-1, 3], "names row -1 of 5 records"),
        ([True], "no list of rows `fold_0`"),
    ):
        path.write_text(json.dumps({"fold_0": rows}))
        with pytest.raises(AtomloomError, match=says):
            divide(split, used, columns(4), 5)
    path.write_text("[" * 100_000)
    with pytest.raises(AtomloomError, match="cannot be read"):
        divide(split, used, columns(4), 5)


def test_every_kind_of_the_config_is_a_class():
    assert tuple(KINDS) == get_args(Split.model_fields["kind"].annotation)


def test_what_a_kind_reads_from_outside_is_in_its_digest(tmp_path):
    path = tmp_path / "folds.json"
    split = Split(kind="folds", folds_file=str(path))
    digests = []
    for row in (1, 2):
        path.write_text(json.dumps({"fold_0": [row]}))
        digests.append(kind_of(split).digest(["a", "b"]))
    assert digests[0] != digests[1]
    sources = kind_of(Split(kind="sources", test_sources=["a*"]))
    assert sources.digest(["x/a1", "b"]) == sources.digest(["y/a2", "c"])
    assert sources.digest(["a", "b"]) != sources.digest(["b", "a"])
    assert (
        kind_of(Split()).digest(["a"]) == kind_of(Split(kind="column", column="c")).digest([]) == ""
    )


def test_files_can_be_the_test_set():
    table = frame(60)
    table["source"] = [
        f"/data/{'Cu_test' if i % 3 == 0 else 'Cu_train'}.extxyz.xz" for i in range(60)
    ]
    split = Split(kind="sources", test_sources=["Cu_test*"], val_fraction=0.25)
    result = divide(split, table, columns(60), 60)
    assert ((result == "test") == (np.arange(60) % 3 == 0)).all()
    assert (result == "val").sum() == 10
    whole = Split(kind="sources", test_sources=["*_test.*"], val_sources=["*_train.*"])
    assert "train" not in divide(whole, table, columns(60), 60)
    with pytest.raises(AtomloomError, match="no record is from a file like 'Ni"):
        divide(Split(kind="sources", test_sources=["Ni*"]), table, columns(60), 60)


def test_a_glob_of_files_begins_where_a_name_or_a_folder_does():
    files = [
        "d/1.cif",
        "d/11.cif",
        "/a/contest/2.cif",
        "/a/test/3.cif",
        "z.zip::4.cif",
        "z.zip::x/14.cif",
    ]

    def among(*globs: str) -> list[str]:
        split = Split(kind="sources", test_sources=list(globs))
        found = names_by_source(split, files) == "test"
        return [file for file, inside in zip(files, found, strict=True) if inside]

    assert among("1.cif") == ["d/1.cif"]
    assert among("./d/1.cif") == ["d/1.cif"]
    assert among("test/*") == among("/a/test/*") == ["/a/test/3.cif"]
    assert among("4.cif") == ["z.zip::4.cif"]
    assert among("z.zip*") == ["z.zip::4.cif", "z.zip::x/14.cif"]
    assert among("*1.cif") == ["d/1.cif", "d/11.cif"]
    with pytest.raises(AtomloomError, match="no record is from a file like 'est/"):
        among("est/*")
