"""Files are opened as seldom as can be, and wait for a slow file system together, with results in order."""

from __future__ import annotations

import builtins
import os
from collections import Counter
from pathlib import Path
from threading import Event

import pytest

from atomloom.config import load_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.stages import sources
from atomloom.stages.convert import convert_chunk
from atomloom.stages.plan import make_plan
from atomloom.store.files import AT_ONCE, TOGETHER, open_plain, overlapped, read_ahead
from tests.unit.eight_structures import write_project

LONG = 60
"""Seconds after which a test fails that would otherwise wait for ever."""


@pytest.mark.parametrize("count", [0, 1, 5, AT_ONCE + 1, 3 * AT_ONCE * TOGETHER + 1])
def test_results_are_in_order(count):
    assert list(overlapped(lambda item: item * item, range(count))) == [n * n for n in range(count)]


def test_calls_wait_together():
    met = [Event() for _ in range(AT_ONCE)]

    def meet(place):
        met[place].set()
        return all(event.wait(LONG) for event in met)

    assert all(overlapped(meet, range(AT_ONCE)))


def test_only_some_are_begun_ahead_of_what_is_asked_for():
    begun = []
    results = overlapped(begun.append, range(10 * AT_ONCE * TOGETHER))
    next(results)
    results.close()
    assert len(begun) <= (2 * AT_ONCE + 1) * TOGETHER


def test_an_error_is_raised_in_its_turn():
    with pytest.raises(ZeroDivisionError):
        list(overlapped(lambda item: 1 // (item - 3), range(5)))


def test_what_is_read_ahead_is_what_the_files_hold(tmp_path):
    contents = [b"", b"small", b"x" * 100_000]
    paths = [tmp_path / str(n) for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    for some in (slice(None), slice(2, 3)):
        for opens, content in zip(read_ahead(paths[some]), contents[some], strict=True):
            with opens() as file:
                assert file.read() == content


def test_a_file_that_cannot_be_read_is_an_error_where_it_is_opened(tmp_path):
    (tmp_path / "good").write_bytes(b"good")
    os.mkfifo(tmp_path / "pipe")
    names = ("good", "none", "pipe", "good")
    first, missing, pipe, last = read_ahead([tmp_path / name for name in names])
    assert first().read() == last().read() == b"good"
    with pytest.raises(FileNotFoundError):
        missing()
    with pytest.raises(AtomloomError, match="is a FIFO, not a plain file"):
        pipe()


def test_what_is_not_a_plain_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a FIFO"),
        (tmp_path, "a folder"),
        ("/dev/null", "a dev"),
    ):
        with pytest.raises(AtomloomError, match=f"is {kind}"):
            open_plain(path)


@pytest.fixture
def looks(monkeypatch):
    """Numbers of calls that open or look at a path of `data/cif`, by path."""
    found: Counter[str] = Counter()

    def counted(call):
        def look(path, *arguments, **options):
            if "data/cif/" in str(path):
                found[Path(path).name] += 1
            return call(path, *arguments, **options)

        return look

    for module, name in ((builtins, "open"), (os, "stat"), (os, "lstat")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return found


def test_a_raw_file_is_opened_for_its_digest_for_its_records_and_for_its_structure(
    tmp_path, monkeypatch, looks
):
    monkeypatch.chdir(write_project(tmp_path))
    files = {f"s{n}.cif" for n in range(8)}
    layout = Layout(load_config(Path("my.yaml")))
    plan = make_plan(layout, lambda _: None)
    assert looks == dict.fromkeys(files, 2), "digest, records"
    looks.clear()
    sources.refresh_sources(layout)
    assert looks == dict.fromkeys(files, 1), "time stamp"
    looks.clear()
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, lambda _: None)
    assert looks == dict.fromkeys(files, 1), "structure"
