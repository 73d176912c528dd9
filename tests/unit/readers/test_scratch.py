"""Temporary files that do not fit stop a reading with one line: the data are not damaged."""

from __future__ import annotations

import errno
import io
import tarfile
import tempfile
from pathlib import Path

import ase.db
import pytest
from ase.build import bulk

from atomloom.cli import main
from atomloom.errors import AtomloomError
from atomloom.readers.base import Piece
from atomloom.readers.formats.vasp import whole_steps
from atomloom.readers.sources import enumerate_records
from atomloom.store import files

FULL = OSError(errno.ENOSPC, "No space left on device")
LINE = r"TMPDIR=.*: temporary files cannot be written: No space left on device; set it to"


@pytest.fixture
def archive(tmp_path):
    """A database within an archive, which is read by way of a temporary file."""
    with ase.db.connect(tmp_path / "x.db") as database:
        database.write(bulk("Cu"))
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        packed.add(tmp_path / "x.db", "x.db")
    return tmp_path / "x.tar"


def fails(error):
    def call(*arguments, **options):
        raise error

    return call


def test_a_database_in_an_archive_is_read_by_way_of_a_temporary_file(archive):
    assert [record.format for record in enumerate_records([archive])] == ["structure"]


def test_an_archive_that_does_not_fit_there_is_not_called_damaged(archive, monkeypatch):
    monkeypatch.setattr("shutil.copyfileobj", fails(FULL))
    with pytest.raises(AtomloomError, match=LINE):
        list(enumerate_records([archive]))


def test_neither_is_one_for_which_there_is_no_folder(archive, monkeypatch):
    none = FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", fails(none))
    with pytest.raises(AtomloomError, match="temporary files cannot be written: No usable"):
        list(enumerate_records([archive]))


def test_steps_of_a_calculation_that_do_not_fit_there_are_not_called_broken_off(monkeypatch):
    class Full(io.BytesIO):
        write = fails(FULL)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda *given, **options: Full())
    with pytest.raises(AtomloomError, match=LINE):
        list(whole_steps(iter([Piece(b"step")]), {}))


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), files.scratch_folder() as folder:
        Path(folder / "none").read_bytes()
    assert not folder.exists()


def test_a_folder_for_temporary_files_that_is_missing_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert main(["runs", "results"]) == 0
    assert "warning: TMPDIR=" in capsys.readouterr().err
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert main(["runs", "results"]) == 0
    assert "warning" not in capsys.readouterr().err
