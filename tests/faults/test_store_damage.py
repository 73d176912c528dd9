"""A damaged, foreign or unused file of a store is named, removed on request, and made again alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from tests.workflow.project import CONFIG, Project


def atomloom(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "atomloom", *arguments],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )


def through_index(project: Project) -> None:
    for stage in ("plan", "convert", "graphs", "index", "split"):
        done = atomloom(project, stage, "--config", "my.yaml")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("damage") / "project", structures=60)
    through_index(project)
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    return finished.copy(tmp_path / "project")


def cut(path: Path, finished: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, finished: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(bytes(content))


def empty(path: Path, finished: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path, finished: Path) -> None:
    path.write_bytes(b"PK\x03\x04 something else")


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign])
@pytest.mark.parametrize("kind", ["structures", "graphs"])
def test_damage_is_named_repaired_and_only_it_is_rebuilt(project, finished, damage, kind):
    shards = sorted((project.folder / "store" / kind).rglob("*.zarr.zip"))
    victim = shards[len(shards) // 2]
    whole = victim.read_bytes()
    damage(victim, finished.folder)

    verified = atomloom(project, "verify", "store")
    assert verified.returncode == 1
    assert [line for line in verified.stdout.splitlines() if victim.name in line]
    assert len(verified.stdout.strip().splitlines()) == 1

    reader = "graphs" if kind == "structures" else "index"
    chunk = ["--chunk", victim.name.split(".")[0]] if reader == "graphs" else []
    read = atomloom(project, reader, "--config", "my.yaml", *chunk)
    assert read.returncode == 1, "a reader that meets it stops"
    assert victim.name in read.stderr

    repaired = atomloom(project, "repair", "store")
    assert repaired.returncode == 0
    assert not victim.exists()
    assert "1 files removed" in repaired.stdout
    stage = {"structures": "convert", "graphs": "graphs"}[kind]
    again = atomloom(project, stage, "--config", "my.yaml")
    assert f"1 of {len(shards)} chunks" in again.stderr
    assert victim.read_bytes() == whole
    assert atomloom(project, "verify", "store").returncode == 0


def test_a_spec_that_is_not_its_folders_is_named(project):
    (spec,) = (project.folder / "store" / "graphs").glob("*/spec.json")
    spec.write_text(spec.read_text().replace("8", "9", 1))
    verified = atomloom(project, "verify", "store")
    assert verified.returncode == 1
    assert "spec.json" in verified.stdout
    chunk = next((project.folder / "store" / "structures").iterdir()).name.split(".")[0]
    built = atomloom(project, "graphs", "--config", "my.yaml", "--chunk", chunk)
    assert built.returncode == 1
    assert "another spec" in built.stderr


def test_gc_lists_only_what_nothing_names_and_removes_it_only_when_told(project):
    config = {**CONFIG, "graph": {"cutoff": 6, "max_neighbors": 5}}
    project.write_config(config)
    assert atomloom(project, "graphs", "--config", "my.yaml").returncode == 0
    store = project.folder / "store"
    named = {p for p in store.rglob("*.zarr.zip") if "structures" in p.parts}
    old_folder = next(
        iter((project.folder / "results/tiny/index").glob("*/index.json"))
    ).read_text()
    named |= {p for p in store.rglob("*.zarr.zip") if p.parent.name in old_folder}
    unused = set(store.rglob("*.zarr.zip")) - named
    assert unused

    listed = atomloom(project, "gc", "store", "--results", "results", "--min-age", "0")
    assert {project.folder / line for line in listed.stdout.splitlines()[:-1]} == unused
    assert all(path.exists() for path in unused)
    young = atomloom(project, "gc", "store", "--results", "results", "--delete")
    assert "0 files" in young.stdout, "what a running workflow may be building is left alone"
    atomloom(project, "gc", "store", "--results", "results", "--min-age", "0", "--delete")
    assert set(store.rglob("*.zarr.zip")) == named


def test_gc_without_any_data_set_refuses(project, tmp_path):
    (tmp_path / "empty").mkdir()
    done = atomloom(project, "gc", "store", "--results", str(tmp_path / "empty"), "--delete")
    assert done.returncode == 1
    assert "holds no data set" in done.stderr


def test_a_read_only_store_with_everything_present_just_works(project):
    """Root writes everywhere, so where root runs the tests, the stages run without that right."""
    bound = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    store = project.folder / "store"
    shutil.rmtree(project.folder / "results")
    before = {path: path.stat().st_mtime_ns for path in [store, *store.rglob("*")]}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        try:
            refused = subprocess.run([*bound, "touch", str(store / "x")], capture_output=True)
        except FileNotFoundError:
            pytest.skip("no setpriv here to take root's rights away")
        if refused.returncode == 0:
            pytest.skip("nothing here keeps root from writing")
        for stage in ("plan", "convert", "graphs", "index", "split"):
            done = subprocess.run(
                [*bound, sys.executable, "-m", "atomloom", stage, "--config", "my.yaml"],
                cwd=project.folder,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        assert {path: path.stat().st_mtime_ns for path in [store, *store.rglob("*")]} == before
    finally:
        for path in before:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_two_calls_on_one_store_at_once_give_what_one_gives(finished, tmp_path):
    store = tmp_path / "shared-store"
    projects = [finished.copy(tmp_path / name) for name in ("one", "two")]
    for project in projects:
        for folder in ("results", "store"):
            shutil.rmtree(project.folder / folder)
        project.write_config({**CONFIG, "paths": {"store": str(store)}})
    threads = [threading.Thread(target=through_index, args=(project,)) for project in projects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {
        p.relative_to(finished.folder / "store"): p.read_bytes()
        for p in (finished.folder / "store").rglob("*.zarr.zip")
    }
    assert {p.relative_to(store): p.read_bytes() for p in store.rglob("*.zarr.zip")} == expected


def test_donors_give_the_same_bytes(project):
    """A chunk built from known graphs is the chunk built from nothing."""
    before = {p.name: p.read_bytes() for p in (project.folder / "store/graphs").rglob("*.zarr.zip")}
    for path in (project.folder / "store/graphs").rglob("*.zarr.zip"):
        path.rename(path.with_name("donor-" + path.name))
    donors = next(iter((project.folder / "store/graphs").rglob("donors.parquet")))
    frame = pd.read_parquet(donors)
    frame["shard"] = "donor-" + frame["shard"]
    frame.to_parquet(donors, index=False)
    done = atomloom(project, "graphs", "--config", "my.yaml", "--workers", "1")
    assert "known graphs copied" in done.stderr
    after = {
        p.name: p.read_bytes()
        for p in (project.folder / "store/graphs").rglob("*.zarr.zip")
        if not p.name.startswith("donor-")
    }
    assert after == before
