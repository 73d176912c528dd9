"""Other people's files are read, never written, never waited for, and never read without end."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import socket
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import ase.db
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from atomloom.commands.inspection import inspect_path
from atomloom.config import Labels, load_config
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model
from atomloom.readers import base, enumerate_records, list_files, parse_record, read, sources
from atomloom.readers.formats import csv_table, extxyz, json_document, poscar, runner
from atomloom.stages import labels as label_tables
from atomloom.stages.labels import read_labels
from tests.workflow.project import cif_text

ENDLESS = (
    "CREATE VIEW systems AS WITH RECURSIVE t(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM t) "
    "SELECT id, x'' numbers, x'' positions, x'' cell, 0 pbc, '{}' key_value_pairs FROM t"
)
BOMB = 2 << 20  # bytes of zeros, where the limits are set to less


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time stamp of each file."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
    }


def refusals(path: Path) -> list[str]:
    """Why the records of a file are no structures."""
    reasons = []
    for record in enumerate_records(list_files(path)):
        with pytest.raises(AtomloomError) as caught:
            parse_record(record.format, record.payload, record.id)
        reasons.append(str(caught.value))
    return reasons


def database(path: Path, rows: int = 2) -> Path:
    with ase.db.connect(path) as connection:
        for number in range(rows):
            atoms = bulk("Cu") * (2, 1, 1)
            atoms.calc = SinglePointCalculator(atoms, energy=-number, forces=np.ones((2, 3)))
            connection.write(atoms, gap=0.5 * number, data={"blob": np.arange(3)})
    return path


def sqlite(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


# --- databases ---


@pytest.mark.parametrize(
    ("name", "statements", "reason"),
    [
        (
            "notes.db",
            ("CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')"),
            "not an ASE",
        ),
        ("empty.db", ("CREATE TABLE t (x)", "DROP TABLE t"), "not an ASE database"),
        ("view.db", (ENDLESS,), "tables are views"),
        ("other.db", ("CREATE TABLE systems (id INTEGER, host TEXT)",), "not an ASE database"),
        ("places.sqlite", ("CREATE TABLE moz_places (url)",), "not an ASE database"),
        ("virtual.db", ("CREATE VIRTUAL TABLE systems USING fts5(id, numbers)",), "views"),
    ],
)
def test_a_database_that_is_not_ases_is_refused_and_stays_as_it_is(
    tmp_path, name, statements, reason
):
    path = sqlite(tmp_path / name, *statements)
    before = contents(tmp_path)
    (found,) = refusals(path)
    assert reason in found
    assert any(reason in line for line in inspect_path(path))
    assert contents(tmp_path) == before


def test_an_ase_database_is_read_without_a_trace_beside_it(tmp_path):
    path = database(tmp_path / "a b#c?d%20{e}.db")
    sqlite(path, "PRAGMA journal_mode = WAL")
    before = contents(tmp_path)
    assert [s.properties["energy"] for s in read(path)] == [0, -1]
    list(inspect_path(path))
    assert contents(tmp_path) == before


def test_rows_that_a_killed_writer_left_beside_the_database_count(tmp_path):
    """Kept in `-wal` until somebody opens the database to write, which is not for us to do."""
    path = database(tmp_path / "rows.db")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE systems SET energy = 7 WHERE id = 1")
        writer.commit()
        before = contents(tmp_path)
        assert [s.properties["energy"] for s in read(path)] == [7, -1]
        assert contents(tmp_path) == before
        files = list_files(tmp_path, "*")
        assert [file.name for file in files] == ["rows.db", "rows.db-wal"], "the plan watches both"
        assert len(list(enumerate_records(files, pattern="*"))) == 2


def test_no_object_is_made_of_what_a_row_says(tmp_path):
    path = database(tmp_path / "rows.db")
    pairs = '{"gap": 1.5, "cell": {"__ase_objtype__": "bandstructure", "path": 1}}'
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE systems SET key_value_pairs = ?", (pairs,))
        connection.execute("UPDATE systems SET constraints = 'x', calculator_parameters = 'x'")
        connection.execute("UPDATE systems SET data = x'80049500'")
        connection.commit()
    found = list(enumerate_records([path]))
    assert [record.labels for record in found] == [{"gap": 1.5}] * 2
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE systems SET numbers = 'text' WHERE id = 1", "row 1: "),
        ("UPDATE systems SET positions = x'00' WHERE id = 1", "row 1: "),
        ("UPDATE systems SET key_value_pairs = '[' WHERE id = 1", "row 1: "),
        ("UPDATE systems SET pbc = 'T' WHERE id = 1", "row 1: "),
    ],
)
def test_a_bad_row_spoils_no_other(tmp_path, change, reason):
    path = sqlite(database(tmp_path / "rows.db"), change)
    first, second = enumerate_records([path])
    with pytest.raises(AtomloomError, match=reason):
        parse_record(first.format, first.payload)
    assert parse_record(second.format, second.payload).properties["energy"] == -1


@pytest.mark.parametrize(("version", "reason"), [("10", "newer"), ("4", "ase.db.convert")])
def test_a_database_of_another_version_says_so(tmp_path, version, reason):
    change = f"UPDATE information SET value = '{version}' WHERE name = 'version'"
    path = sqlite(database(tmp_path / "rows.db"), change)
    assert reason in refusals(path)[0]


# --- what is no plain file ---


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def linked_fifo(path: Path) -> None:
    os.mkfifo(path.with_name(".pipe"))
    path.symlink_to(".pipe")


SPECIAL = [fifo, device, listening, linked_fifo]
READERS = {
    "source": lambda path: list(enumerate_records(list_files(path))),
    "folder": lambda path: list(enumerate_records(list_files(path.parent))),
    "inspect": lambda path: list(inspect_path(path)),
    "labels": lambda path: read_labels(Labels(file=str(path))),
    "config": lambda path: load_config(path),
    "model": lambda path: read_model(path),
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of a short path, which a socket's name needs."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_plain_file_is_refused_in_one_line(here, make, reader):
    path = Path("data") / "x.cif"
    path.parent.mkdir()
    make(path)
    with pytest.raises(AtomloomError, match="not a plain file"):
        READERS[reader](path)


@pytest.mark.parametrize("make", SPECIAL)
def test_what_is_no_plain_file_is_left_out_of_a_folder_where_no_name_asks_for_it(here, make):
    (here / "a.cif").write_text(cif_text("Na", "Cl", 5.64))
    make(here / "control")
    assert [file.name for file in list_files(here)] == ["a.cif"]


def test_a_view_of_the_system_is_empty_whatever_it_gives():
    assert refusals(Path("/proc/self/status")) == ["empty file"]


def test_links_that_lead_nowhere_or_to_each_other_are_one_line(tmp_path):
    (tmp_path / "a.cif").symlink_to("b.cif")
    (tmp_path / "b.cif").symlink_to("a.cif")
    for source in (tmp_path, tmp_path / "a.cif"):
        with pytest.raises(AtomloomError, match="symbolic links"):
            list(enumerate_records(list_files(source)))
    (tmp_path / "b.cif").unlink()
    with pytest.raises(AtomloomError, match="No such file"):
        list(enumerate_records(list_files(tmp_path)))


def test_a_folder_that_holds_itself_is_read_once(tmp_path):
    (tmp_path / "a.cif").write_text(cif_text("Na", "Cl", 5.64))
    (tmp_path / "again").symlink_to(".")
    assert len(read(tmp_path)) == 1


# --- bombs ---


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(sources, "LEAST_BOMB", 1 << 20)
    monkeypatch.setattr(sources, "MAX_EXPANSION", 100)
    monkeypatch.setattr(sources, "MAX_TABLE_BYTES", 1 << 20)
    monkeypatch.setattr(label_tables, "MAX_TABLE_BYTES", 1 << 20)


@pytest.mark.parametrize("name", ["labels.csv.gz", "labels.csv.xz", "labels.csv"])
def test_a_table_of_labels_that_unpacks_without_end_is_one_line(tmp_path, small_limits, name):
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(packed(b"id,gap\n" + b"\n" * BOMB))
    with pytest.raises(AtomloomError, match=r"unpacks to more|a table of more") as caught:
        read_labels(Labels(file=str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)


def test_a_table_packed_inside_an_archive_meets_the_same_limit(tmp_path, small_limits):
    inner = gzip.compress(b"id,gap\n" + b"\n" * BOMB)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        entry = tarfile.TarInfo("labels.csv.gz")
        entry.size = len(inner)
        archive.addfile(entry, io.BytesIO(inner))
    with pytest.raises(AtomloomError, match=r"unpacks to more|a table of more"):
        read_labels(Labels(file=f"{tmp_path}/all.tar::labels.csv.gz"))


def test_a_parquet_table_that_repeats_one_value_without_end_is_one_line(tmp_path, small_limits):
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"id": "a", "gap": np.zeros(200_000)}).to_parquet(path)
    assert path.stat().st_size < 10_000
    with pytest.raises(AtomloomError, match="a table of more than"):
        read_labels(Labels(file=str(path)))


@pytest.mark.parametrize("name", ["labels.csv.gz", "labels.csv", "all.tar.gz::labels.csv"])
def test_packed_tables_are_read_whatever_their_name_says(tmp_path, name):
    file, _, member = name.partition("::")
    text = b"id,gap\na,1.5\n"
    if member:
        with tarfile.open(tmp_path / file, "w:gz") as archive:
            entry = tarfile.TarInfo(member)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    else:
        (tmp_path / file).write_bytes(gzip.compress(text))
    assert read_labels(Labels(file=f"{tmp_path}/{name}")).column("gap") == ["1.5"]


ENDLESS_TEXTS = {
    "x.xyz": b"3\n" + b" " * BOMB,
    "y.xyz": b"3\n\n" + b"H 0 0 0\n" + b" " * BOMB,
    "z.xyz": b"%d\n\n" % (BOMB // 8) + b"H 0 0 0\n" * (BOMB // 8),
    "input.data": b"begin\n" + b" " * BOMB,
    "rows.csv": b"cif,gap\n" + b" " * BOMB,
    "x.cif": b"data_x\n" + b" " * BOMB,
    "x.json": b'[{"lattice_mat": "' + b" " * BOMB,
    "x.vasp": b"title\n" + b" " * BOMB,
}


@pytest.mark.parametrize("name", ENDLESS_TEXTS)
def test_a_record_without_end_is_one_line(tmp_path, monkeypatch, name):
    for reader in (extxyz, runner, csv_table, json_document, poscar, base):
        monkeypatch.setattr(reader, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr(extxyz, "_LINE", 1 << 20)
    monkeypatch.setattr(json_document, "_FIRST_READ", 1 << 16)
    monkeypatch.setattr(base.read_limited, "__defaults__", (1 << 20,))
    (tmp_path / name).write_bytes(ENDLESS_TEXTS[name])
    (reason,) = refusals(tmp_path / name)
    assert "more than 1 MiB" in reason or "within 1 MiB" in reason or "too large" in reason


def test_entities_that_stand_for_others_without_end_are_no_xml(tmp_path):
    entities = ['<!ENTITY e0 "lol">']
    entities += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12)]
    text = f"<!DOCTYPE m [{''.join(entities)}]><modeling><a>&e11;</a></modeling>"
    (tmp_path / "vasprun.xml").write_text(text)
    assert "not valid XML" in refusals(tmp_path / "vasprun.xml")[0]


def test_an_outcar_of_more_atoms_than_fit_is_one_line(tmp_path):
    text = " vasp.6.3\n   ions per type =  900000000\n POSITION   TOTAL-FORCE (eV/Angst)\n ---\n"
    (tmp_path / "OUTCAR").write_text(text)
    assert "900000000 atoms" in refusals(tmp_path / "OUTCAR")[0]


@pytest.mark.parametrize("array", ["coord", "energy"])
def test_arrays_of_objects_are_not_unpickled(tmp_path, array):
    class Runs:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = tmp_path / "set.000"
    folder.mkdir()
    (tmp_path / "type.raw").write_text("0")
    (tmp_path / "type_map.raw").write_text("Cu")
    arrays = {"coord": np.zeros((1, 3)), "box": np.eye(3).reshape(1, 9), "energy": np.zeros(1)}
    arrays[array] = np.array([Runs()], dtype=object)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=True)
    assert refusals(tmp_path / "type.raw")
    assert not (tmp_path / "ran").exists()
