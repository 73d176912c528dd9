"""Compiled kernels are kept where there is a place for it, and work where there is none."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest

import atomloom
from atomloom import compiled
from atomloom.compiled import Kernel
from atomloom.graphs import search

KERNEL = """
from atomloom.compiled import njit

@njit(cache=True, nogil=True)
def twice(x):
    return 2 * x
"""

PAIR = """

@njit()
def four_times(x):
    return twice(twice(x))
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import a kernel of a folder in which nothing can be kept, by somebody without a home."""
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    compiled._own_temporary_folder.cache_clear()
    package = tmp_path / "package"
    package.mkdir()
    (package / "kernel.py").write_text(KERNEL)
    (package / "__pycache__").write_text("where a folder should be")

    def load():
        spec = importlib.util.spec_from_file_location("kernel", package / "kernel.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.twice(21) == 42
        return module.twice

    yield load
    compiled._own_temporary_folder.cache_clear()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_a_read_only_installation_keeps_kernels_among_the_temporary_files(tmp_path, load):
    (tmp_path / "temporary").mkdir()
    load()
    assert len(kept(tmp_path / "temporary")) == 1
    assert load().stats.cache_hits, "the second process need not compile"


def test_without_any_place_kernels_are_compiled_and_not_kept(tmp_path, load):
    assert not load().stats.cache_hits
    assert not (tmp_path / "temporary").exists()


@pytest.mark.parametrize("kind", ["open to all", "link", "file"])
def test_no_kernel_is_loaded_from_where_others_may_write(tmp_path, load, kind):
    folder = tmp_path / "temporary" / f"atomloom-kernels-{os.getuid()}"
    folder.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        folder.symlink_to(elsewhere)
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    load()
    assert not kept(tmp_path)


def test_a_full_disk_keeps_no_kernel_and_stops_nobody(tmp_path, load, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    load()
    assert not kept(tmp_path)


def test_a_kernel_is_given_away_by_its_name():
    before = dict(vars(search.search_chunk))
    assert pickle.loads(pickle.dumps(search.search_chunk)) is search.search_chunk
    assert copy.deepcopy([search.search_chunk]) == [search.search_chunk]
    assert vars(search.search_chunk) == before


def test_a_kernel_calls_another_that_was_not_called_before(tmp_path):
    (tmp_path / "pair.py").write_text(KERNEL + PAIR)
    spec = importlib.util.spec_from_file_location("pair", tmp_path / "pair.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.four_times(3) == 12
    assert module.twice.signatures == [(numba.int64,)]


def test_threads_that_call_first_have_one_kernel():
    kernel = Kernel(lambda x: x + 1, {})
    with ThreadPoolExecutor(4) as pool:
        assert len({id(one) for one in pool.map(lambda _: kernel.compiled(), range(16))}) == 1


def test_every_kernel_goes_this_way():
    package = Path(atomloom.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "compiled.py":
            assert "import njit" not in path.read_text().replace(
                "from atomloom.compiled import njit", ""
            ), path
