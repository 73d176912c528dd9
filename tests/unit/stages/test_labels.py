"""Label tables: every common way to write one, and a clear word about what does not fit."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest

from atomloom.config import Labels
from atomloom.errors import AtomloomError
from atomloom.stages.labels import read_labels, rows_of_records, to_number

TEXT = "id,gap,note\na,1.5,x\nb,,y\nc,2,z\n"


@pytest.fixture(params=["csv", "csv.gz", "csv.xz", "parquet", "tar", "zip"])
def label_file(request, tmp_path) -> str:
    plain = tmp_path / "labels.csv"
    plain.write_text(TEXT)
    kind = request.param
    path = tmp_path / f"labels.{kind}"
    if kind == "csv.gz":
        path.write_bytes(gzip.compress(TEXT.encode()))
    elif kind == "csv.xz":
        path.write_bytes(lzma.compress(TEXT.encode()))
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


def test_every_container_gives_the_same_table(label_file):
    table = read_labels(Labels(file=label_file, id_column="id"))
    assert [to_number(value) for value in table.column("gap")][::2] == [1.5, 2.0]
    assert table.column("gap")[1] is None
    assert table.row_of == {"a": 0, "b": 1, "c": 2}


def test_records_are_found_by_id_or_file_name_and_unclaimed_rows_counted(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("a.vasp,1\nb,2\nz,3\n")
    table = read_labels(Labels(file=str(path), columns=["id", "y"]))
    rows, unclaimed = rows_of_records(table, ["a", "b", "q"], ["a.vasp", "b.vasp", "q.vasp"])
    assert rows.tolist() == [0, 1, -1]
    assert unclaimed == 1


def test_an_id_with_two_different_rows_is_marked_and_an_equal_repeat_is_not(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("id,y\na,1\nb,2\na,3\nb,2\n")
    assert read_labels(Labels(file=str(path))).repeated == {"a"}


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


def test_an_empty_file_and_a_missing_member_are_named(tmp_path):
    empty = tmp_path / "e.csv"
    empty.write_text("")
    with pytest.raises(AtomloomError, match=r"e.csv: is no table"):
        read_labels(Labels(file=str(empty)))
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("x", "y")
    with pytest.raises(AtomloomError, match=r"a\.zip: no member `l\.csv`"):
        read_labels(Labels(file=f"{archive}::l.csv"))


@pytest.mark.parametrize("text", [None, "abc", "nan", "inf", ""])
def test_what_is_no_finite_number_is_missing(text):
    assert np.isnan(to_number(text))
