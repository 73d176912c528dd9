"""A parquet table is what was written or one line, whichever bit of it flipped and wherever it ends."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from atomloom.errors import AtomloomError
from atomloom.store.parquet import read_rows, read_table, write_table


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(12)],
            "hash": [rng.bytes(32) for _ in range(12)],
            "energy": rng.normal(size=12),
            "row": np.arange(12, dtype=np.int32),
            "text:split": [None if i % 3 else "train" for i in range(12)],
            "unknown": np.full(12, np.nan),
        }
    )


@pytest.fixture
def path(tmp_path, table):
    write_table(tmp_path / "x.parquet", table)
    return tmp_path / "x.parquet"


def test_tables_come_back_as_they_were(path, table):
    pd.testing.assert_frame_equal(read_table(path, todo="again"), table)
    part = read_table(path, ["row", "id"], todo="again")
    assert part.iloc[10:].to_dict("list") == {"row": [10, 11], "id": ["s10", "s11"]}


@pytest.mark.parametrize(("first", "count"), [(0, 12), (0, 5), (3, 4), (5, 5), (9, 30), (12, 1)])
def test_some_rows_are_those_of_the_whole_table_wherever_its_groups_end(
    tmp_path, table, first, count
):
    write_table(tmp_path / "groups.parquet", table, row_group_size=5)
    rows = read_rows(tmp_path / "groups.parquet", ["row", "hash"], first, count, todo="again")
    wanted = table.iloc[first : first + count]
    assert rows == list(zip(wanted["row"], wanted["hash"], strict=True))


def test_rows_of_a_missing_damaged_or_other_table_are_one_line(tmp_path, path):
    with pytest.raises(AtomloomError, match="no such table; again"):
        read_rows(tmp_path / "none.parquet", ["row"], 0, 1, todo="again")
    with pytest.raises(AtomloomError, match=r"cannot be read as a table: .*; again"):
        read_rows(path, ["row", "other"], 0, 1, todo="again")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AtomloomError, match=r"cannot be read as a table: .*; again"):
        read_rows(path, ["row"], 0, 1, todo="again")


def test_no_flipped_bit_goes_unnoticed(path, table):
    whole = path.read_bytes()
    lines = []
    for place in range(0, len(whole), 11):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        try:
            pd.testing.assert_frame_equal(read_table(path, todo="index again"), table)
        except AtomloomError as error:
            lines.append(str(error))
    assert len(lines) > len(whole) / 11 / 2
    assert all(line.startswith(str(path)) and line.endswith("; index again") for line in lines)
    assert not [line for line in lines if len(line.splitlines()) > 1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_cut_table_is_one_line(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(AtomloomError, match=r"x\.parquet: cannot be read as a table: .*; again$"):
        read_table(path, ["id"], todo="again")


def test_a_table_that_is_no_more_or_another_is_one_line(path, table):
    with pytest.raises(AtomloomError, match=r"x\.parquet: .*forces.*; again"):
        read_table(path, ["id", "forces"], todo="again")
    path.write_text("id,energy\n")
    with pytest.raises(AtomloomError, match="cannot be read as a table"):
        read_table(path, todo="again")
    path.unlink()
    with pytest.raises(AtomloomError, match="no such table; again"):
        read_table(path, todo="again")


def test_values_that_are_not_those_that_were_written_are_noticed(path):
    """Sound pages, made by others out of ours."""
    arrow = pq.read_table(path)
    pq.write_table(arrow.set_column(2, "energy", arrow["unknown"]), path)
    with pytest.raises(AtomloomError, match="its digest differs"):
        read_table(path, ["energy"], todo="again")
    assert len(read_table(path, ["id"], todo="again")) == 12
    pq.write_table(arrow.slice(0, 6), path)
    with pytest.raises(AtomloomError, match="its digest differs"):
        read_table(path, ["id"], todo="again")


def test_tables_of_other_hands_are_read_as_they_are(tmp_path, table):
    table.set_index("id").to_parquet(tmp_path / "x.parquet")
    found = read_table(tmp_path / "x.parquet", ["energy", "id"], todo="again")
    assert found["id"].tolist() == table["id"].tolist()


def test_page_checksums_are_written(path):
    """A flipped byte of a page is found by any reader that is asked to look."""
    metadata = pq.read_metadata(path)
    start = metadata.row_group(0).column(2).dictionary_page_offset
    broken = bytearray(path.read_bytes())
    broken[start + 60] ^= 1
    path.write_bytes(broken)
    with pytest.raises((OSError, ValueError), match=r"(?i)crc"):
        pq.read_table(path, columns=["energy"], page_checksum_verification=True)
