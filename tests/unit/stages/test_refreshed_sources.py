"""The list of raw files changes with their content, names and order, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.stages import sources
from atomloom.stages.sources import label_members, refresh_sources, source_files
from atomloom.store.files import file_digest, stat_and_digest

HYDROGEN = "1\n\nH 0 0 0\n"


@pytest.fixture
def raw(tmp_path) -> Path:
    """A folder of two structures and a label table."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a.xyz", "b.xyz"):
        (folder / name).write_text(HYDROGEN)
    (folder / "labels.csv").write_text("id,gap\na,1\nb,2\n")
    return folder


def layout_of(folder: Path, **dataset) -> Layout:
    content = {"name": "d", "source": str(folder), "target": "gap"}
    content["labels"] = {"file": str(folder / "labels.csv")}
    paths = {"results": str(folder.parent / "results"), "store": str(folder.parent / "store")}
    return Layout(parse_config({"dataset": content | dataset, "paths": paths}))


def test_files_stand_with_their_digests_and_tables_are_no_structures(raw):
    content = json.loads(refresh_sources(layout_of(raw)).read_text())
    files = [raw / "a.xyz", raw / "b.xyz"]
    assert content["files"] == [[str(path), file_digest(path)] for path in files]
    assert content["tables"] == [[str(raw / "labels.csv"), file_digest(raw / "labels.csv")]]


def test_a_file_of_the_same_size_and_name_with_other_content_is_another(raw):
    layout = layout_of(raw)
    before = refresh_sources(layout).read_text()
    (raw / "b.xyz").write_text(HYDROGEN.replace("0 0 0", "0 0 1"))
    os.utime(raw / "b.xyz", (1, 1))
    after = json.loads(refresh_sources(layout).read_text())
    assert after["files"][0] == json.loads(before)["files"][0]
    assert after["files"][1] == [str(raw / "b.xyz"), file_digest(raw / "b.xyz")]
    assert after["files"][1] != json.loads(before)["files"][1]


def test_a_touched_file_leaves_the_list_as_it_is(raw):
    layout = layout_of(raw)
    manifest = refresh_sources(layout)
    os.utime(manifest, (1, 1))
    os.utime(raw / "a.xyz", (2, 2))
    refresh_sources(layout)
    assert manifest.stat().st_mtime == 1


def test_only_a_file_with_another_time_stamp_is_read_again(raw, monkeypatch):
    layout = layout_of(raw)
    refresh_sources(layout)
    looked = []

    def read(path: str, limit: float) -> tuple[os.stat_result, str]:
        looked.append(Path(path).name)
        return stat_and_digest(path, limit)

    monkeypatch.setattr(sources, "stat_and_digest", read)
    refresh_sources(layout)
    assert looked == []
    os.utime(raw / "b.xyz", (3, 3))
    refresh_sources(layout)
    assert looked == ["b.xyz"]
    refresh_sources(layout)
    assert looked == ["b.xyz"], "what was seen is kept"


def test_a_large_file_is_known_by_size_and_time_stamp(raw, monkeypatch):
    monkeypatch.setattr(sources, "HASHED_UP_TO", len(HYDROGEN) - 1)
    os.utime(raw / "a.xyz", ns=(5, 7))
    content = json.loads(refresh_sources(layout_of(raw)).read_text())
    assert content["files"][0] == [str(raw / "a.xyz"), f"{len(HYDROGEN)}@7"]
    monkeypatch.setattr(sources, "HASHED_UP_TO", len(HYDROGEN))
    shutil.rmtree(raw.parent / "results")
    content = json.loads(refresh_sources(layout_of(raw)).read_text())
    assert content["files"][0] == [str(raw / "a.xyz"), file_digest(raw / "a.xyz")]


def test_tables_within_archives_are_told_by_archive_and_member(raw):
    layout = layout_of(raw, labels={"file": f"{raw}/all.zip::./tables/labels.csv"})
    assert label_members(layout) == {(f"{raw}/all.zip", "tables/labels.csv")}
    assert label_members(layout_of(raw)) == set()


def test_a_source_that_is_a_table_by_name_alone_is_read(raw, tmp_path):
    """Another file of the name of the label table, in a folder of structures."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "labels.csv").write_text("id,gap\na,1\n")
    (raw / "labels.csv").unlink()
    (raw / "labels.xyz").write_text(HYDROGEN)
    layout = layout_of(raw, labels={"file": str(other / "labels.csv")})
    assert [path.name for path in source_files(layout)] == ["a.xyz", "b.xyz", "labels.xyz"]


def test_a_missing_table_is_named(raw):
    layout = layout_of(raw, labels={"file": str(raw / "none.csv")})
    with pytest.raises(AtomloomError, match=r"none\.csv: no such file"):
        refresh_sources(layout)
