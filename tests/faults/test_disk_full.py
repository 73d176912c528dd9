"""A full disk: one clear line, nothing half-written, and with room the next call goes on to the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.project import CONFIG, Project
from tests.workflow.test_bad_input import stage

STAGES = ("plan", "convert", "graphs", "index")


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        done = self._mount("-t", "tmpfs", "-o", "size=64m,mode=0777", "tmpfs", str(folder))
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def leave_free(self, pages: int) -> None:
        """Let no more than so many pages be free."""
        room = os.statvfs(self.folder)
        used = room.f_blocks - room.f_bfree
        done = self._mount("-o", f"remount,size={(used + pages) * room.f_frsize}", str(self.folder))
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    @staticmethod
    def _mount(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Project:
    """A project of an archive, so that its plan has records to spool, and all its files."""
    project = Project.create(tmp_path_factory.mktemp("full") / "undisturbed", structures=60)
    with tarfile.open(project.folder / "data" / "cif.tar.gz", "w:gz") as archive:
        archive.add(project.folder / "data" / "cif", "cif")
    shutil.rmtree(project.folder / "data" / "cif")
    configure(project, "store", "results")
    for name in STAGES:
        done = stage(project, name)
        assert done.returncode == 0, done.stderr
    return project


def configure(project: Project, store: str, results: str) -> None:
    dataset = {**CONFIG["dataset"], "source": "data/cif.tar.gz"}
    dataset["chunks"] = {"mean": 6, "min": 2, "max": 12}
    paths = {"store": store, "results": results}
    project.write_config({**CONFIG, "dataset": dataset, "paths": paths})


def content(folder: Path) -> dict[str, bytes]:
    """Finished files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix == ".zip" or path.parent.parent.name == "plan")
    }


@pytest.mark.parametrize(
    ("name", "arguments", "free"),
    [
        ("plan", (), 1),
        ("plan", (), 4),
        ("convert", ("--workers", "2"), 4),
        ("graphs", ("--workers", "1"), 4),
    ],
)
def test_a_full_disk_is_one_line_and_the_next_call_finishes(
    undisturbed, tmp_path, disk, name, arguments, free
):
    project = undisturbed.copy(tmp_path / "project")
    part = "results" if name == "plan" else "store"
    whole = content(project.folder / part)
    place = disk.folder / part
    configure(project, *(["store", str(place)] if part == "results" else [str(place), "results"]))
    if part == "store":
        shutil.copytree(project.folder / part, place)
        victims = place / {"convert": "structures"}.get(name, name)
        shutil.rmtree(victims)
        victims.mkdir()
    disk.leave_free(free)
    done = stage(project, name, *arguments)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("atomloom ")]
    assert "No space left on device" in line
    assert "cannot be written" in line
    assert "Traceback" not in done.stderr
    assert not list(disk.folder.rglob("*.part")), "what was begun is cleared away"
    finished = content(place)
    assert finished.items() <= whole.items(), "whatever has its name is whole"
    assert len(finished) < len(whole)
    disk.leave_free(10_000)
    assert stage(project, name, *arguments).returncode == 0
    assert content(place) == whole
