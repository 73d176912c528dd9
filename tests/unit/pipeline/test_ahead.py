"""Work ahead: jobs of chunks do each other's work, each chunk once, and what is fetched is what would be made."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from atomloom.cli import main
from atomloom.config import load_config
from atomloom.pipeline.ahead import ahead_of, run_with_others
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.stage_table import STAGES
from atomloom.stages import convert as convert_module
from tests.workflow.project import CONFIG, Project

CONVERT, GRAPHS = STAGES["convert"], STAGES["graphs"]
FOREVER = 1e9


def silent(key: str):
    return lambda message: None


@pytest.fixture
def paths(tmp_path, monkeypatch) -> RunPaths:
    """A planned project of several chunks."""
    project = Project.create(tmp_path / "project", structures=30)
    project.write_config(
        CONFIG | {"dataset": CONFIG["dataset"] | {"chunks": {"mean": 6, "min": 4}}}
    )
    monkeypatch.chdir(project.folder)
    assert main(["plan", "--config", "my.yaml"]) == 0
    layout = Layout(load_config("my.yaml"))
    return RunPaths(layout, Plan.read(layout.plan_folder / "plan.json"))


def files_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).rglob("*") if path.is_file()}


def test_one_job_makes_all_chunks_and_the_others_fetch_theirs(paths, capsys):
    first, *others = paths.plan.chunk_keys
    assert len(others) > 2
    run_with_others(CONVERT, paths, first, FOREVER, silent)
    hidden = {ahead_of(paths.layout.structures(key)).name for key in others}
    assert files_in("store") == {f"{first}.zarr.zip", *hidden}
    made = {key: ahead_of(paths.layout.structures(key)).read_bytes() for key in others}
    for key in others:
        run_with_others(CONVERT, paths, key, 0, silent)
    assert files_in("store") == {f"{key}.zarr.zip" for key in paths.plan.chunk_keys}
    for key in others:
        shard = paths.layout.structures(key)
        assert shard.read_bytes() == made[key]
        shard.unlink()
        CONVERT.run(paths, print, key)
        assert shard.read_bytes() == made[key], "as its own job makes it"


def test_graphs_are_made_ahead_of_chunks_that_are_converted_and_are_the_same(paths):
    first, second, *rest = paths.plan.chunk_keys
    for key in (first, second):
        CONVERT.run(paths, print, key)
    run_with_others(GRAPHS, paths, first, FOREVER, silent)
    hidden = ahead_of(paths.layout.graphs(second))
    assert hidden.exists()
    assert not any(ahead_of(paths.layout.graphs(key)).exists() for key in rest)
    content = hidden.read_bytes()
    GRAPHS.run(paths, print, second)
    assert paths.layout.graphs(second).read_bytes() == content


def test_no_time_is_no_work_ahead(paths):
    run_with_others(CONVERT, paths, paths.plan.chunk_keys[1], 0, silent)
    assert files_in("store") == {f"{paths.plan.chunk_keys[1]}.zarr.zip"}


def test_a_chunk_that_another_process_makes_is_left_to_it(paths):
    first, second, *_ = paths.plan.chunk_keys
    shard = paths.layout.structures(second)
    shard.parent.mkdir(parents=True)
    with open(shard.with_name(f".{shard.name}.lock.part"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_with_others(CONVERT, paths, first, FOREVER, silent)
    assert not ahead_of(shard).exists()
    assert ahead_of(paths.layout.structures(paths.plan.chunk_keys[2])).exists()


def test_a_chunk_that_cannot_be_made_is_told_by_its_own_job_alone(paths):
    """Its raw file changed since the plan."""
    keys = paths.plan.chunk_keys
    changed = sum(chunk.count for chunk in paths.plan.chunks[:2])
    path = sorted(Path("data/cif").glob("*.cif"))[changed]
    path.write_text("#" + path.read_text())
    run_with_others(CONVERT, paths, keys[0], FOREVER, silent)
    assert not ahead_of(paths.layout.structures(keys[2])).exists()
    assert ahead_of(paths.layout.structures(keys[3])).exists()
    command = ["convert", "--config", "my.yaml", "--ahead", "9", "--chunk", keys[2]]
    assert main(command) == 1


def break_over(monkeypatch, chunk, what):
    """Let the job of a chunk call something instead of converting it."""
    convert = convert_module.convert_chunk
    monkeypatch.setattr(
        convert_module,
        "convert_chunk",
        lambda layout, plan, key, log: what() if key == chunk else convert(layout, plan, key, log),
    )


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(28, "disk full"), ValueError()])
def test_a_job_that_made_its_chunk_survives_any_error_over_another(paths, monkeypatch, error):
    def fail():
        raise error

    first, second, third, *_ = paths.plan.chunk_keys
    break_over(monkeypatch, second, fail)
    run_with_others(CONVERT, paths, first, FOREVER, silent)
    assert CONVERT.done(paths, first)
    assert ahead_of(paths.layout.structures(third)).exists()
    with pytest.raises(type(error)):
        run_with_others(CONVERT, paths, second, FOREVER, silent)


def test_a_chunk_over_which_a_job_was_killed_is_left_to_its_own_job(paths, monkeypatch):
    """Else its job, and with it the chunk that was made before, would be killed at each try."""
    first, second, third, *_ = paths.plan.chunk_keys
    with monkeypatch.context() as patch:
        break_over(patch, second, lambda: os._exit(9))
        if not (child := os.fork()):
            run_with_others(CONVERT, paths, first, FOREVER, silent)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    run_with_others(CONVERT, paths, first, FOREVER, silent)
    assert not ahead_of(paths.layout.structures(second)).exists()
    assert ahead_of(paths.layout.structures(third)).exists()
    run_with_others(CONVERT, paths, second, 0, silent)
    left = {name for name in files_in("store") if second in name}
    assert left == {f"{second}.zarr.zip"}


def test_a_store_without_room_for_locks_makes_each_chunk_by_itself(paths, monkeypatch):
    def refuse(*arguments):
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_with_others(CONVERT, paths, paths.plan.chunk_keys[0], FOREVER, silent)
    assert CONVERT.done(paths, paths.plan.chunk_keys[0])
    assert not any(ahead_of(paths.layout.structures(k)).exists() for k in paths.plan.chunk_keys)


def test_what_nobody_fetched_is_cleared_away_by_gc(paths, capsys):
    run_with_others(CONVERT, paths, paths.plan.chunk_keys[0], FOREVER, silent)
    hidden = ahead_of(paths.layout.structures(paths.plan.chunk_keys[1]))
    os.utime(hidden, (0, 0))
    assert main(["gc", "store", "--results", "results", "--delete"]) == 0
    assert not hidden.exists()
    assert ahead_of(paths.layout.structures(paths.plan.chunk_keys[2])).exists(), "it is new"


def test_each_chunk_has_its_own_log_and_times(paths):
    first, second, *_ = paths.plan.chunk_keys
    command = ["convert", "--config", "my.yaml", "--chunk", first, "--ahead", "1e9"]
    assert main([*command, "--log", "first.log"]) == 0
    assert "structures" in Path("first.log").read_text()
    assert "structures" in Path(f"results/tiny/logs/convert/{second}.log").read_text()
    assert paths.layout.timing("convert", second).exists()
