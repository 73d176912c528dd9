"""Chunks are cut by content: a change moves the boundaries beside it and no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomloom.pipeline.plan import Chunk, Plan, cut_chunks
from atomloom.store.keys import fingerprint


def prints(count: int, seed: int = 0) -> list[bytes]:
    return [fingerprint(f"{seed}-{number}".encode()) for number in range(count)]


def pieces(records: list[bytes], mean=50, smallest=12, largest=200) -> list[tuple[bytes, ...]]:
    return [
        tuple(records[first : first + count])
        for first, count in cut_chunks(records, mean, smallest, largest)
    ]


@given(st.integers(0, 400), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=60)
def test_chunks_cover_every_record_once_in_order(count, mean, seed):
    least = max(1, mean // 4)
    records = prints(count, seed)
    chunks = list(cut_chunks(records, mean, least, 4 * mean))
    assert [i for first, size in chunks for i in range(first, first + size)] == list(range(count))
    assert all(size <= 4 * mean for _, size in chunks)
    assert all(size >= least for _, size in chunks[:-1])


@pytest.mark.parametrize("position", [0, 1, 700, 1999])
@pytest.mark.parametrize("change", ["insert", "remove", "edit"])
def test_one_changed_record_changes_at_most_a_few_chunks(position, change):
    records = prints(2000)
    changed = list(records)
    if change == "insert":
        changed.insert(position, fingerprint(b"new"))
    elif change == "remove":
        del changed[position]
    else:
        changed[position] = fingerprint(b"other")
    old, new = set(pieces(records)), set(pieces(changed))
    # Boundaries fall back into step at the first record that closes a chunk in both sequences.
    assert len(new - old) <= 3
    assert len(old) > 20


def test_mean_size_is_about_the_one_asked_for():
    sizes = [len(piece) for piece in pieces(prints(40_000))]
    assert 40 < np.mean(sizes) < 60


def test_plan_reads_back_what_it_wrote(tmp_path):
    one, other = "a" * 16, "b" * 16
    plan = Plan((Chunk(one, 0, 3), Chunk(other, 3, 2), Chunk(one, 5, 3)), 8, "m", "l", "", 1)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    assert plan.chunk_keys == [one, other]


def test_a_record_closes_a_chunk_that_holds_the_min_and_the_max_closes_any():
    """In chunks of 3 to 6, records that may close one are marked by 1: at 3, at 4, and none in time."""
    marks = "".join(["001", "0001", "110000", "10"])
    records = [(0 if mark == "1" else 1).to_bytes(8, "little") for mark in marks]
    assert list(cut_chunks(records, 5, 3, 6)) == [(0, 3), (3, 4), (7, 6), (13, 2)]


def test_fingerprints_are_cut_where_they_always_were():
    """Golden: other places would be other chunks, and everything would be converted and built again."""
    sizes = [count for _, count in cut_chunks(prints(400), 50, 12, 200)]
    assert sizes == [32, 46, 26, 68, 81, 51, 96]
    sizes = [count for _, count in cut_chunks(prints(400), 50, 12, 60)]
    assert sizes == [32, 46, 26, 60, 60, 29, 51, 60, 36]
