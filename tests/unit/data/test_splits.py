"""Splits: every structure is in one, groups stay together, predefined rows are kept to the letter."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from atomloom.config import Split
from atomloom.data.splits import (
    KINDS,
    divide,
    fixed_digest,
    kind_of,
    names_by_source,
    torn_groups,
)
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


@pytest.mark.parametrize(
    "section",
    [
        {"ratios": (0.8, 0.1, 0.1)},
        {"kind": "column", "column": "set"},
        {"kind": "sources", "test_sources": ["t*"]},
    ],
    ids=lambda section: section.get("kind", "ratio"),
)
def test_every_row_outside_the_test_set_is_validated_exactly_once(section):
    groups = [f"g{i // 3}" for i in range(90)]
    sets = ["test" if i < 9 else "train" for i in range(90)]
    table = frame(90)
    table["source"] = ["t.xyz" if i < 9 else "a.xyz" for i in range(90)]
    texts = columns(90, parent=groups, set=sets)
    plain = divide(Split(group="parent", **section), table, texts, 90)
    validated = np.zeros(90, dtype=int)
    for fold in range(5):
        split = Split(group="parent", val_folds=5, val_fold=fold, **section)
        result = divide(split, table, texts, 90)
        assert ((result == "test") == (plain == "test")).all()
        held = pd.DataFrame({"g": groups, "s": result}).groupby("g")["s"].nunique()
        assert held.max() == 1
        assert 12 <= (result == "val").sum() <= 21
        validated += result == "val"
    assert (validated == (plain != "test")).all()


def test_folds_are_drawn_by_the_seed():
    first, again, other = (
        divide(Split(val_folds=3, seed=seed, ratios=(0.9, 0.1, 0.0)), frame(60), columns(60), 60)
        for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_without_validation_its_rows_are_training_rows_and_the_test_set_stays():
    apart, together = (
        divide(Split(validation=wanted), frame(60), columns(60), 60) for wanted in (True, False)
    )
    assert (apart == "val").any()
    assert ((apart == "test") == (together == "test")).all()
    assert set(together) == {"train", "test"}


def test_a_fold_that_is_not_there_is_refused():
    for given in ({"val_folds": 3, "val_fold": 3}, {"val_fold": 1}):
        with pytest.raises(ValueError, match="there is no val_fold"):
            Split(**given)
    with pytest.raises(ValueError, match="exclude each other"):
        Split(val_folds=3, validation=False)


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


NAMED = {"300K": {"source": "*300K.xyz"}, "600K": {"column": "T", "equals": 600}}


def files(*names: str) -> pd.DataFrame:
    return frame(len(names)).assign(source=[f"data/{name}" for name in names])


def test_named_test_sets_are_set_aside_and_the_rest_is_divided():
    names = ["300K.xyz"] * 4 + ["all.xyz"] * 96
    heat = [None] * 4 + ["600.0"] * 6 + ["599"] * 90
    result = divide(Split(test=NAMED), files(*names), columns(100, T=heat), 100)
    assert (result[:4] == "300K").all()
    assert (result[4:10] == "600K").all()
    counts = pd.Series(result[10:]).value_counts().to_dict()
    assert counts == {"train": 81, "val": 9}  # nothing is lost to a test set that nobody asked for
    own = Split(test=NAMED, ratios=(0.5, 0.25, 0.25))
    assert (divide(own, files(*names), columns(100, T=heat), 100) == "test").sum() > 15


def test_without_named_test_sets_nothing_about_a_split_is_different():
    content = Split().key_content()
    assert "test" not in content
    assert content["ratios"] == [0.8, 0.1, 0.1]
    assert "test" not in Split().plan_content()
    assert fixed_digest(Split(), ["a"]) == ""


def test_a_set_may_be_defined_by_what_is_true():
    given = {"a": {"column": "T", "equals": True}, "b": {"column": "T", "equals": [False, "odd"]}}
    cells = ["True", "yes", "1.0", "false", "NO", "0", "odd", "2", None, "T"]
    result = divide(Split(test=given), files(*["x"] * 10), columns(10, T=cells), 10)
    assert result[:7].tolist() == ["a"] * 3 + ["b"] * 4
    assert set(result[7:9]) <= {"train", "val"}
    assert result[9] == "a"
    quoted = Split(test={"a": {"column": "T", "equals": "true"}})
    with pytest.raises(AtomloomError, match=r"no structure is in the test set a \(T = true\)"):
        divide(quoted, files("x", "y"), columns(2, T=["True", "1"]), 2)
    assert quoted.key_content() != Split(test={"a": given["a"]}).key_content()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a": {"source": "x.xyz"}, "b": {"column": "T", "equals": "1"}}, "s0 is in two test sets, a and b"),
        ({"a": {"column": "T", "equals": "7"}}, r"no structure is in the test set a \(T = 7\)"),
        ({"a": {"source": "other.xyz"}}, r"no structure is in the test set a \(other.xyz\)"),
    ],
    ids=["overlap", "no value", "no file"],
)  # fmt: skip
def test_sets_that_overlap_or_are_empty_are_refused(sets, message):
    with pytest.raises(AtomloomError, match=message):
        divide(Split(test=sets), files("x.xyz", "y.xyz"), columns(2, T=["1", "1"]), 2)


def test_the_plan_refuses_files_that_are_missing_or_of_two_sets():
    sources = ["d/a.xyz", "d/b.xyz"]
    with pytest.raises(AtomloomError, match=r"split\.test\.hot: no record is from a file like 'c"):
        fixed_digest(Split(test={"hot": {"source": "c.xyz"}}), sources)
    two = Split(test={"hot": {"source": "a.xyz"}, "all": {"source": ["*.xyz"]}})
    with pytest.raises(AtomloomError, match=r"d/a\.xyz is in two test sets, hot and all"):
        fixed_digest(two, sources)
    both = Split(kind="sources", test_sources=["a.xyz"], test={"hot": {"source": "a.xyz"}})
    with pytest.raises(AtomloomError, match=r"no record outside the sets of split\.test is from"):
        fixed_digest(both, sources)


def test_another_file_in_a_named_set_is_another_split():
    sources = ["d/a.xyz", "d/b.xyz"]
    digests = {
        fixed_digest(Split(test={"hot": {"source": glob}}), sources) for glob in ("a.xyz", "b.xyz")
    }
    assert len(digests) == 2


def test_a_fold_is_divided_without_the_rows_of_named_sets(tmp_path):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"fold_0": [0, 1, 2, 3]}))
    split = Split(kind="folds", folds_file=str(path), test={"hot": {"source": "h.xyz"}})
    names = ["h.xyz"] * 2 + ["c.xyz"] * 18
    result = divide(split, files(*names), columns(20), 20)
    assert result[:4].tolist() == ["hot", "hot", "test", "test"]
    assert set(result[4:]) == {"train", "val"}


def test_records_of_a_named_set_need_no_group_and_a_group_across_its_border_is_told():
    split = Split(group="parent", test={"hot": {"source": "h.xyz"}})
    names = ["h.xyz"] * 2 + ["c.xyz"] * 20
    parents = [None, "g0", *(f"g{i // 2}" for i in range(20))]
    result = divide(split, files(*names), columns(22, parent=parents), 22)
    assert pd.DataFrame({"g": parents[2:], "s": result[2:]}).groupby("g")["s"].nunique().max() == 1
    assert torn_groups(parents, result) == ["g0"]


@pytest.mark.parametrize("name", ["train", "VAL", "Validation", "test", "", " a", "a\nb", "x" * 61])
def test_a_set_has_a_name_of_its_own(name):
    with pytest.raises(ValueError, match="name of a test set"):
        Split(test={name: {"source": "x"}})


def test_cross_validation_is_of_the_rows_outside_named_sets():
    names = ["h.xyz"] * 10 + ["c.xyz"] * 20
    found = []
    for fold in range(4):
        split = Split(test={"hot": {"source": "h.xyz"}}, val_folds=4, val_fold=fold)
        found.append(divide(split, files(*names), columns(30), 30))
        assert (found[-1][:10] == "hot").all()
    assert (sum((one == "val").astype(int) for one in found)[10:] == 1).all()
