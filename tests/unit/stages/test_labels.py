"""Label tables: every common way to write one, and a clear word about what does not fit."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atomloom.config import Labels, parse_config
from atomloom.errors import AtomloomError
from atomloom.stages.labels import (
    Named,
    is_missing,
    join_labels,
    read_labels,
    rows_of_records,
    to_number,
)

TEXT = "id,gap,note\na,1.5,x\nb,,y\nc,2,z\n"


@pytest.fixture(params=["csv", "csv.gz", "csv.xz", "csv.bz2", "parquet", "tar", "zip"])
def label_file(request, tmp_path) -> str:
    plain = tmp_path / "labels.csv"
    plain.write_text(TEXT)
    kind = request.param
    path = tmp_path / f"labels.{kind}"
    packers = {"csv.gz": gzip.compress, "csv.xz": lzma.compress, "csv.bz2": bz2.compress}
    if kind in packers:
        path.write_bytes(packers[kind](TEXT.encode()))
    elif kind == "parquet":
        pd.read_csv(plain).to_parquet(path)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(plain, "inside/labels.csv")
        return f"{path}::inside/labels.csv"
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, "inside/labels.csv")
        return f"{path}::inside/labels.csv"
    return str(path)


def table_of(tmp_path, content: str | bytes, name: str = "l.csv", **labels):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_labels(Labels(file=str(path), **labels))


def refusal(*arguments, **options) -> str:
    with pytest.raises(AtomloomError) as error:
        table_of(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def gaps(table) -> list[float | None]:
    numbers = [to_number(value) for value in table.column("gap")]
    return [None if np.isnan(number) else number for number in numbers]


def test_every_container_gives_the_same_table(label_file):
    table = read_labels(Labels(file=label_file, id_column="id"))
    assert gaps(table) == [1.5, None, 2.0]
    assert table.column("gap")[1] is None
    assert table.row_of == {"a": 0, "b": 1, "c": 2}


# --- rows and columns ---


@pytest.mark.parametrize(
    "text",
    [
        "id,gap\na,1.5,\nb,2,\n",
        "id,gap,\na,1.5\nb,2\n",
        "id,gap,,\na,1.5,,\nb,2\n",
        "id,gap\n\na,1.5\n  \nb,2\n,\n",
        "id , gap\r\n a ,1.5\r\nb, 2\r\n",
        'id,"gap"\r"a",1.5\r"b",2\r',
        "id;gap\na;1.5\nb;2\n",
        "id;gap;note, or not\na;1.5;x\nb;2;y,z\n",
        "id\tgap\na\t1.5\nb\t2\n",
        "\ufeffid,gap\na,1.5\nb,2\n",
        "sep=|\nid|gap\na|1.5\nb|2\n",
        ",gap,id\n0,1.5,a\n1,2,b\n",
    ],
)
def test_a_table_is_read_whatever_separates_its_columns(tmp_path, text):
    table = table_of(tmp_path, text, id_column="id")
    assert gaps(table) == [1.5, 2.0]
    assert list(table.row_of) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_a_table_is_read_in_whatever_encoding(tmp_path, encoding):
    text = "id,gap,à l'état solide (Å)\nü,1.5,é\n"
    table = table_of(tmp_path, text.encode(encoding), id_column="id")
    assert table.names == ("id", "gap", "à l'état solide (Å)")
    assert table.row_of == {"ü": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,parent,gap\n0,3,0.0,100\n", "line 2 has 4 columns, the header names 3"),
        ("id,gap,x\na,1,2\nb,1,2,3\n", "line 3 has 4 columns, the header names 3"),
        ("id,gap,x\na,1,2\nb,1\n", "line 3 has 2 columns, the header names 3"),
        ("gap\na,1\nb,2\n", "line 2 has 2 columns, the header names 1"),
        ("# by a program\nid,gap\na,1\n", "line 2 has 2 columns, the header names 1"),
        ("id;gap;x\na;1;2;3\n", "line 2 has 4 columns, the header names 3"),
        ('id,gap\na,"1.5\nb,2\n', "is not a table: line 3: unexpected end of data"),
        ("id,gap\n", "is not a table: it has no rows"),
        ("\n \n", "is not a table: it is empty"),
        (b"id,gap\na,1\0\n", "is neither text nor parquet"),
        (b"PK\x03\x04\0\0xl/workbook.xml", "is an archive"),
        ('[{"id": "a", "gap": 1}]', "is JSON; label tables are CSV or parquet"),
        (b"PAR1 and no more", "is not a table: "),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], "damaged: "),
    ],
)
def test_a_table_whose_values_could_shift_is_refused(tmp_path, text, says):
    assert says in refusal(tmp_path, text)


def test_a_parquet_that_breaks_off_is_named(tmp_path):
    path = tmp_path / "whole.parquet"
    pd.DataFrame({"id": ["a"], "gap": [1.5]}).to_parquet(path)
    assert "l.csv: is not a table: " in refusal(tmp_path, path.read_bytes()[:-40])


def test_of_two_columns_of_one_name_nobody_knows_which_is_meant(tmp_path):
    table = table_of(tmp_path, "id,gap,note,gap,note\na,1,x,2,y\n")
    with pytest.raises(AtomloomError, match=r"l\.csv: has several columns `gap`; rename all but"):
        table.column("gap")
    twice = pa.table([["a"], [1.0], [2.0], ["x"]], names=["id", "gap", "gap", "note"])
    pq.write_table(twice, tmp_path / "l.parquet")
    table = read_labels(Labels(file=str(tmp_path / "l.parquet")))
    assert table.column("note") == ["x"]
    with pytest.raises(AtomloomError, match="has several columns `gap`"):
        table.column("gap")
    assert "has several columns `id`" in refusal(tmp_path, "id,id\na,b\n", id_column="id")


def test_a_column_of_row_numbers_is_not_taken_for_ids_beside_one_that_is_called_so(tmp_path):
    says = refusal(tmp_path, ",id,gap\n0,4,1\n1,3,2\n")
    assert "its first column has no name and numbers the rows, and there is a column `id`" in says
    assert "`Unnamed: 0`" in says
    for of_a_table_cut_or_sorted in (",id,gap\n0,4,1\n3,3,2\n", ",id,gap\n1,4,1\n0,3,2\n"):
        assert "numbers the rows" in refusal(tmp_path, of_a_table_cut_or_sorted)
    index = table_of(tmp_path, ",id,gap\n0,4,1\n1,3,2\n", id_column="Unnamed: 0")
    assert index.row_of == {"0": 0, "1": 1}
    assert table_of(tmp_path, ",gap\nx,1\ny,2\n").row_of == {"x": 0, "y": 1}, "an index of names"


@pytest.mark.parametrize(
    ("frame", "labels"),
    [
        (pd.DataFrame({"gap": [1.5, 2.0]}, index=pd.Index(["a", "b"], name="id")), {}),
        (
            pd.DataFrame({"gap": [1.5, 2.0]}, index=pd.Index(["a", "b"], name="id")),
            {"id_column": "id"},
        ),
        (pd.DataFrame({"gap": [1.5, 2.0]}, index=["a", "b"]), {}),
        (pd.DataFrame({"gap": [1.5, 2.0]}, index=["a", "b"]), {"id_column": "index"}),
        (pd.DataFrame({"id": ["a", "x", "b"], "gap": [1.5, 9, 2.0]}).iloc[[0, 2]], {}),
        (pd.DataFrame({"id": [b"a", b"b"], "gap": [1.5, 2.0]}), {}),
        (pd.DataFrame({"id": pd.Categorical(["a", "b"]), "gap": [1.5, 2.0]}), {}),
    ],
)
def test_an_index_of_a_parquet_is_a_column(tmp_path, frame, labels):
    path = tmp_path / "l.parquet"
    frame.to_parquet(path)
    table = read_labels(Labels(file=str(path), **labels))
    assert table.row_of == {"a": 0, "b": 1}
    assert gaps(table) == [1.5, 2.0]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"id_column": "name"}, "no column `name`; columns are: id, gap, note"),
        ({"id_column": 7}, "has only 3 columns"),
        ({"columns": ["id", "gap"]}, "has 3 columns, dataset.labels.columns names 2"),
        ({"file": "nowhere.csv"}, "nowhere.csv: cannot be read"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, labels, says):
    path = tmp_path / "l.csv"
    path.write_text(TEXT)
    with pytest.raises(AtomloomError) as error:
        read_labels(Labels(**{"file": str(path), **labels}))
    assert says in str(error.value)


def test_a_missing_member_is_named(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("x", "y")
    with pytest.raises(AtomloomError, match=r"a\.zip: no member `l\.csv`"):
        read_labels(Labels(file=f"{archive}::l.csv"))


# --- cells ---


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), (" -1.50 ", -1.5), ("+.5", 0.5), ("2.", 2), ("1e5", 1e5), ("-3.2E-04", -3.2e-4),
     ("True", 1), ("false", 0), ("TRUE", 1), (True, 1), (False, 0), (1.5, 1.5)],
)  # fmt: skip
def test_a_number_is_what_everybody_writes_as_one(text, number):
    assert to_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["abc", "1_0", "1,5", "1,000", "0x10", "\uff11.\uff15", "\u0661", "1.5 eV", "5%", "inf", "-Infinity", "1e999",
     "1.5d0", "\u22121.5", "1 5", "--1", "1.2.3", "(1.5)", "1/2", "[1.0]", "T", "yes", "-", "?", ".", "e5"],
)  # fmt: skip
def test_anything_else_is_no_number_and_not_missing_either(text):
    assert np.isnan(to_number(text))
    assert not is_missing(text)


@pytest.mark.parametrize("text", [None, "", "nan", "NaN", "NA", "N/A", "#N/A", "<NA>", "None", "null", "na"])  # fmt: skip
def test_a_missing_value_is_missing(text):
    assert np.isnan(to_number(text))
    assert is_missing(text)


IDS = ["NA", "nan", "null", "None", "001", "1e5", "True", "1_0", "N/A"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "index"])
def test_an_id_is_text_in_every_format(tmp_path, kind):
    frame = pd.DataFrame({"id": IDS, "gap": np.arange(len(IDS)) / 2})
    path = tmp_path / f"l.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        (frame.set_index("id") if kind == "index" else frame).to_parquet(path)
    table = read_labels(Labels(file=str(path)))
    assert list(table.row_of) == IDS
    assert gaps(table) == frame["gap"].tolist()


def test_whole_numbers_are_ids_whatever_their_type(tmp_path):
    path = tmp_path / "l.parquet"
    for ids in ([7, 12], [7.0, 12.0], pd.array([7, 12], dtype="Int64")):
        pd.DataFrame({"id": ids, "gap": [1, 2]}).to_parquet(path)
        assert list(read_labels(Labels(file=str(path))).row_of) == ["7", "12"]


def test_missing_values_and_columns_of_lists_do_not_matter_where_nobody_asks(tmp_path):
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "gap": pd.array([1.5, None, 2], dtype="Float64"),
            "count": pd.array([1, None, 2], dtype="Int64"),
            "word": pd.array(["x", None, "y"], dtype="string"),
            "metal": pd.array([True, None, False], dtype="boolean"),
            "dos": [[1.0, 2.0], None, []],
            "more": [{"x": 1}, None, {"x": 2}],
        }
    )
    frame.to_parquet(tmp_path / "l.parquet")
    table = read_labels(Labels(file=str(tmp_path / "l.parquet")))
    assert gaps(table) == [1.5, None, 2.0]
    assert [to_number(v) for v in table.column("metal")][::2] == [1.0, 0.0]
    assert table.column("word") == ["x", None, "y"]
    assert np.isnan(to_number(table.column("dos")[0]))
    assert not table.contradictory(["gap"])


# --- rows and records ---


def test_records_are_found_by_id_or_file_name_and_unclaimed_rows_counted(tmp_path):
    table = table_of(tmp_path, "a.vasp,1\nb,2\nz,3\n,4\n", columns=["id", "y"])
    rows, unclaimed = rows_of_records(table, ["a", "b", "q"], ["a.vasp", "b.vasp", "q.vasp"])
    assert rows.tolist() == [0, 1, -1]
    assert unclaimed == 2


def test_a_file_name_that_several_records_have_is_nobody_s(tmp_path):
    table = table_of(tmp_path, "POSCAR,1\nc.cif,2\nd.cif,3\n", columns=["id", "y"])
    ids = ["x/1", "x/2", "c-000000", "c-000001", "d", "d.cif"]
    names = ["POSCAR", "POSCAR", "c.cif", "c.cif", "d.cif", "d.cif.cif"]
    assert rows_of_records(table, ids, names)[0].tolist() == [-1, -1, -1, -1, -1, 2]


def test_an_id_with_two_different_values_is_marked_and_an_equal_repeat_is_not(tmp_path):
    table = table_of(
        tmp_path, "id,y,note\na,1,p\nb,2,p\na,3,p\nb,2.0,q\nc,,p\nc,1,p\nd,,p\nd,nan,p\n"
    )
    assert table.contradictory(["y"]) == {"a", "c"}
    assert table.contradictory(["y", "note"]) == {"a", "b", "c"}


def joined(tmp_path, *tables: str, target="gap", own=None, names=None, **dataset) -> pd.DataFrame:
    """The labels of records a, b and c."""
    read = [table_of(tmp_path, text, f"{place}.csv") for place, text in enumerate(tables)]
    config = parse_config(
        {"dataset": {"name": "x", "source": "s", "target": target, **dataset}, "paths": {}}
    )
    names = names or ["a.cif", "b.cif", "c.cif"]
    records = Named(["a", "b", "c"], names, names, own or [{}, {}, {}])
    return join_labels(config, read, records).frame


def test_a_row_with_some_of_its_targets_keeps_them(tmp_path):
    frame = joined(
        tmp_path, "id,gap,bulk\na,1,\nb,NA,7\nc,nan,None\n", target=["gap", "bulk"]
    ).set_index("problem")
    assert frame.index.tolist() == ["", "", "no label: gap is 'nan', not a finite number"]
    assert frame["gap"].isna().tolist() == [False, True, True]
    assert frame["bulk"].isna().tolist() == [True, False, True]


def test_a_cell_that_holds_no_number_is_not_passed_over_beside_one_that_does(tmp_path):
    frame = joined(tmp_path, "id,gap,bulk\na,1,1_0\nb,1,2\nc,1,3\n", target=["gap", "bulk"])
    assert frame["problem"].tolist() == ["no label: bulk is '1_0', not a finite number", "", ""]


def test_a_global_feature_is_needed_of_every_record(tmp_path):
    text = "id,gap,T\na,1,300\nb,2,\nc,3,400\n"
    frame = joined(tmp_path, text, global_features=["T"])
    assert frame["problem"].tolist() == ["", "no label: T is missing", ""]


def test_targets_of_several_tables_are_put_together(tmp_path):
    frame = joined(
        tmp_path, "id,gap\na,1\nb,2\nc,3\n", "id,bulk\nb,5\nc,6\n", target=["gap", "bulk"]
    )
    assert frame["gap"].tolist() == [1, 2, 3]
    assert np.isnan(frame["bulk"][0])
    assert frame["bulk"].tolist()[1:] == [5, 6]
    assert not frame["problem"].any()


def test_a_target_in_two_tables_is_either_s_and_a_contradiction_refused(tmp_path):
    frame = joined(tmp_path, "id,gap\na,1\nb,2\n", "id,gap\nb,2.0\nc,3\na,1.5\n")
    assert frame["gap"].tolist() == [1, 2, 3]
    contradiction = f"gap is 1 in {tmp_path}/0.csv and 1.5 in {tmp_path}/1.csv"
    assert frame["problem"].tolist() == [contradiction, "", ""]


def test_a_record_that_no_table_has_is_said_to_be_in_none(tmp_path):
    frame = joined(tmp_path, "id,gap\na,1\n", "id,bulk\nb,5\n", target=["gap", "bulk"])
    assert frame["problem"].tolist() == [
        "", "", f"no label: `c` is not in {tmp_path}/0.csv or {tmp_path}/1.csv"
    ]  # fmt: skip


def test_a_row_by_the_name_of_a_file_of_several_records_says_so(tmp_path):
    frame = joined(tmp_path, "id,gap\na,1\nm.xyz,2\n", names=["a.cif", "m.xyz", "m.xyz"])
    reason = f"no label: `b` is not in {tmp_path}/0.csv (`m.xyz` is, but that file has 2 records)"
    assert frame["problem"][1] == reason


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("id,gap\nx,1\ny,2\n", "a, no label: `a` is not in"),
        ("id,gap\na,\nb,\nc,\n", "a, no label: gap is missing"),
        ('id,gap\na,"1,5"\nb,"2,5"\nc,"3,5"\n', "a, no label: gap is '1,5', not a finite number"),
    ],
)
def test_a_target_that_no_record_has_is_refused(tmp_path, text, first):
    with pytest.raises(AtomloomError) as error:
        joined(tmp_path, text)
    assert f"no record has a value of `gap` (first: {first}" in str(error.value)


def test_group_names_are_text(tmp_path):
    text = "id,gap,group\na,1,NA\nb,2,001\nc,3,True\n"
    path = tmp_path / "0.csv"
    path.write_text(text)
    config = parse_config(
        {"dataset": {"name": "x", "source": "s", "target": "gap"}, "split": {"group": "group"}}
    )
    records = Named(["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"], [{}, {}, {}])
    frame = join_labels(config, [read_labels(Labels(file=str(path)))], records).frame
    assert frame["text:group"].tolist() == ["NA", "001", "True"]


def test_rows_by_id_and_by_file_name_of_one_record_must_agree(tmp_path):
    frame = joined(tmp_path, "id,gap,note\na,1,x\na.cif,2,x\nb,1,x\nb.cif,1.0,y\nc.cif,3,x\n")
    torn = f"`a` has several different labels in {tmp_path}/0.csv"
    assert frame["problem"].tolist() == [torn, "", ""]


def test_a_row_of_another_record_is_no_second_row(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("id,gap\na,1\na.cif,2\n")
    config = parse_config({"dataset": {"name": "x", "source": "s", "target": "gap"}})
    records = Named(["a", "a.cif"], ["a.cif", "a.cif.cif"], ["a.cif", "a.cif.cif"], [{}, {}])
    frame = join_labels(config, [read_labels(Labels(file=str(path)))], records).frame
    assert frame.to_dict("list") == {"gap": [1, 2], "problem": ["", ""]}


def test_indices_of_several_levels_stay_in_order(tmp_path):
    frame = pd.DataFrame({"id": ["a"], "run": [1], "gap": [2.0]}).set_index(["id", "run"])
    frame.to_parquet(tmp_path / "l.parquet")
    assert read_labels(Labels(file=str(tmp_path / "l.parquet"))).names == ("id", "run", "gap")


def test_a_column_of_the_split_that_nothing_has_is_named(tmp_path):
    config = parse_config(
        {"dataset": {"name": "x", "source": "s", "target": "y"}, "split": {"group": "family"}}
    )
    records = Named(["a"], ["a"], ["a"], [{"y": 1.0}])
    with pytest.raises(AtomloomError, match="split: no record has a column `family` alongside it"):
        join_labels(config, [], records)


def test_labels_that_were_good_before_keep_their_digest(tmp_path):
    """The dataset key holds this text: whoever changes it trains everybody's models again."""
    path = tmp_path / "l.csv"
    path.write_text("id,gap,set\na,1.50,train\nb,,val\nc,2,test\n")
    dataset = {"name": "x", "source": "s", "target": "gap"}
    split = {"kind": "column", "column": "set"}
    config = parse_config({"dataset": dataset, "split": split})
    table = read_labels(Labels(file=str(path)))
    records = Named(["a", "b", "c", "d"], ["a", "b", "c", "d"], ["a", "b", "c", "d"], [{}] * 4)
    assert join_labels(config, [table], records).frame.to_csv(index=False) == (
        "gap,text:set,problem\n1.5,train,\n,val,no label: gap is missing\n2.0,test,\n"
        f",,no label: `d` is not in {path}\n"
    )
    beside = [{"gap": 1.5, "set": "train"}, {"gap": "na", "set": "val"}, {"gap": 2.0}, {"set": "x"}]
    assert join_labels(config, [], Named(*[["a", "b", "c", "d"]] * 3, beside)).frame.to_csv(
        index=False
    ) == (
        "gap,text:set,problem\n1.5,train,\n"
        ",val,\"no label: gap is 'na', not a finite number\"\n2.0,,\n,x,no label: gap is missing\n"
    )


def test_a_header_that_contradicts_the_columns_given_is_no_row(tmp_path):
    text = "id,note,gap\na,1,2\n"
    says = refusal(tmp_path, text, columns=["id", "gap", "note"])
    assert "l.csv: its first row names the columns id, note, gap" in says
    assert table_of(tmp_path, text, columns=["id", "note", "gap"]).column("gap")[1:] == ["2"]
