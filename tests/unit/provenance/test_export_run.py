"""`atomloom export-run` packs a run as one archive that says what it holds and what it was made from."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
import zipfile

import pandas as pd
import pytest
import yaml

from atomloom.api import prepare
from atomloom.cli import main
from atomloom.commands.compare import compare_runs
from atomloom.commands.export_run import export_run
from atomloom.commands.reproduce import Request, reproduce_run
from atomloom.config import load_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.evidence import opened
from atomloom.store.files import file_digest, read_json, write_sealed
from atomloom.store.parquet import write_table


def quiet(_):
    """Take no notice."""


@pytest.fixture(scope="module")
def archive(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "kupfer ü.zip"
    return export_run(str(original.run), path, original.run, quiet)


@pytest.fixture(scope="module")
def members(archive) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as content:
        return {name: content.read(name) for name in content.namelist()}


def test_the_archive_holds_card_config_model_results_report_and_digests_of_inputs(
    original, members, tmp_path
):
    copied = ("run.json", "model.safetensors", "metrics.json", "metrics.csv", "history.csv")
    for name in (*copied, "predictions.parquet", "predictions.csv"):
        assert members[name] == (original.run / name).read_bytes(), name
    (tmp_path / "config.yaml").write_bytes(members["config.yaml"])
    card = json.loads(members["run.json"])
    assert load_config(tmp_path / "config.yaml").model_dump(mode="json") == card["config"]
    source = original.folder / "data" / "cells.extxyz"
    inputs = json.loads(members["inputs.json"])
    assert inputs["sources"]["files"] == [["data/cells.extxyz", file_digest(source)]]
    assert inputs["members"] == card["data"]["members"]
    assert len(members["records.csv"].splitlines()) == 1 + 24
    assert b"<h1" in members["report.html"]
    assert not any(name.startswith(("state", "checkpoints")) for name in members)


def test_the_metadata_name_every_file_with_size_and_digest(members):
    crate = json.loads(members["ro-crate-metadata.json"])
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    assert entities["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert entities["ro-crate-metadata.json"]["conformsTo"]["@id"].endswith("/ro/crate/1.1")
    parts = {part["@id"] for part in entities["./"]["hasPart"]}
    assert parts == set(members) - {"ro-crate-metadata.json"}
    for name in parts:
        entity = entities[name]
        assert entity["@type"] == "File"
        assert entity["contentSize"] == str(len(members[name]))
        assert entity["sha256"] == hashlib.sha256(members[name]).hexdigest()
    assert entities["./"]["datePublished"] == json.loads(members["run.json"])["finished"][:10]
    named = [entities["#training"][key] for key in ("instrument", "object", "result")]
    for found in named:
        for one in found if isinstance(found, list) else [found]:
            assert one["@id"] in entities


def test_the_same_run_gives_the_same_bytes_whenever_and_wherever(original, archive, tmp_path):
    copied = shutil.copytree(original.folder, tmp_path / "elsewhere")
    run = copied / original.run.relative_to(original.folder)
    for file in run.iterdir():
        os.utime(file, (time.time() + 5000,) * 2)
    again = export_run(str(run), tmp_path / archive.name, tmp_path, quiet)
    assert again.read_bytes() == archive.read_bytes()


def test_an_archive_alone_can_be_compared_and_made_again(original, archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = shutil.copy(archive, tmp_path / "got.zip")
    with opened(str(moved), tmp_path) as one, opened(str(original.run), tmp_path) as other:
        assert all(item.equal for item in compare_runs(one, other).agreements)
    with pytest.raises(AtomloomError, match=r"raw data are not here.*cells\.extxyz"):
        reproduce_run(Request(str(moved), tmp_path / "out"), prepare, quiet)
    source = str(original.folder / "data" / "cells.extxyz")
    (tmp_path / "here.yaml").write_text(yaml.safe_dump({"dataset": {"source": source}}))
    request = Request(str(moved), tmp_path / "out", config=["here.yaml"])
    verdict = reproduce_run(request, prepare, quiet)
    assert verdict.outcome == "bit-equal"
    assert all(item.count for item in verdict.agreements if item.kind != "predictions")
    text = zipfile.ZipFile(archive).read("README.txt").decode()
    named = {line.split()[0] for line in text.splitlines()[2:] if "." in line.split("  ")[0]}
    assert set(zipfile.ZipFile(archive).namelist()) <= named
    assert f"atomloom reproduce {archive.name}" in text
    assert "data/cells.extxyz" in text


def test_a_run_that_was_not_evaluated_is_packed_without_report(project, tmp_path, capsys):
    for name in ("metrics.json", "predictions.parquet", "predictions.csv", "parity.png"):
        (project.run / name).unlink()
    card = read_json(project.run / "run.json")
    del card["evaluated"]
    card["results"] = {name: card["results"][name] for name in ("weights", "history")}
    write_sealed(project.run / "run.json", card)
    output = str(tmp_path / "a.zip")
    assert main(["export-run", str(project.run), "-o", output]) == 0
    assert "was not evaluated" in capsys.readouterr().err
    names = zipfile.ZipFile(output).namelist()
    assert "model.safetensors" in names
    assert not {"report.html", "metrics.json"} & set(names)


def test_recorded_files_that_are_missing_are_refused_and_foreign_tables_left_out(project, tmp_path):
    write_table(project.run / "forces.parquet", pd.DataFrame({"id": ["a"]}))
    said: list[str] = []
    path = export_run(str(project.run), tmp_path / "a.zip", tmp_path, said.append)
    assert said == ["forces.parquet is left out: the card does not record it"]
    assert "forces.parquet" not in zipfile.ZipFile(path).namelist()
    (project.run / "predictions.parquet").unlink()
    with pytest.raises(
        AtomloomError, match=r"without predictions\.parquet, which the card records"
    ):
        export_run(str(project.run), tmp_path / "b.zip", tmp_path, quiet)
    assert not (tmp_path / "b.zip").exists()


def test_a_run_folder_elsewhere_is_packed_without_its_records(original, tmp_path):
    lone, said = shutil.copytree(original.run, tmp_path / "a" / "b" / "lone"), []
    path = export_run(str(lone), tmp_path / "a.zip", tmp_path, said.append)
    assert any("the plan is not here" in line for line in said)
    inputs = json.loads(zipfile.ZipFile(path).read("inputs.json"))
    assert inputs["members"]
    assert "records.csv" not in zipfile.ZipFile(path).namelist()


def test_the_archive_is_named_after_the_run_and_what_cannot_be_packed_is_refused(
    project, archive, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = export_run(str(project.run), None, tmp_path, quiet)
    assert str(path) == f"copper-{project.run.name[:8]}.zip"
    (tmp_path / "into").mkdir()
    assert export_run(str(project.run), tmp_path / "into", tmp_path, quiet).parent.name == "into"
    with pytest.raises(AtomloomError, match="is not a run's folder"):
        export_run(str(archive), None, tmp_path, quiet)
    (project.run / "model.safetensors").unlink()
    with pytest.raises(AtomloomError, match="no model here"):
        export_run(str(project.run), None, tmp_path, quiet)


def packed(path, content: dict[str, bytes], compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"notes.txt": b"x"}, "is not an archive of a run"),
        ({"run.json": b"{}", "../out.txt": b"x"}, "leads out of it"),
        ({"run.json": b"{}", "/tmp/out.txt": b"x"}, "leads out of it"),
        ({"run.json": b"{}"}, "has no config, run_key"),
        ({"run.json": b"{}", "zeros": bytes(10_000_000)}, "holds more than an archive of a run"),
    ],
    ids=["another archive", "upwards", "absolute", "empty card", "bomb"],
)
def test_other_archives_are_refused(tmp_path, content, reason):
    path = packed(tmp_path / "a.zip", content, zipfile.ZIP_DEFLATED)
    with pytest.raises(AtomloomError, match=reason), opened(str(path), tmp_path):
        pass
    assert not (tmp_path / "out.txt").exists()


def test_a_damaged_archive_is_refused(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        place = whole.getinfo("model.safetensors").header_offset
    content[place + 200] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with (
        pytest.raises(AtomloomError, match="damaged archive"),
        opened(str(tmp_path / "a.zip"), tmp_path),
    ):
        pass


def refusal(path) -> str:
    with pytest.raises(AtomloomError) as error, opened(str(path), path.parent):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metrics.csv": b"edited"}, "metrics.csv was edited"),
        ({"records.csv": b""}, "records.csv was edited"),
        ({"quarantine.csv": None}, "quarantine.csv is missing"),
        ({"notes.txt": b"x"}, "notes.txt is not in its metadata"),
        (
            {"model.safetensors": None, "x/y": b"x"},
            "model.safetensors is missing, x/y is not in its",
        ),
        ({"ro-crate-metadata.json": None}, "no ro-crate-metadata.json in it"),
        ({"ro-crate-metadata.json": b"{}"}, "is a damaged archive: ro-crate-metadata.json"),
    ],
    ids=["edited", "emptied", "missing", "extra", "both", "no metadata", "empty metadata"],
)
def test_members_are_held_against_the_digests_in_the_metadata(members, tmp_path, change, reason):
    kept = {name: value for name, value in {**members, **change}.items() if value is not None}
    assert reason in refusal(packed(tmp_path / "a.zip", kept))


def test_a_truncated_or_empty_archive_is_damaged_and_no_card(archive, tmp_path):
    content = archive.read_bytes()
    for length in (0, 1, 10, 1000, len(content) // 2, len(content) - 30, len(content) - 1):
        (tmp_path / "a.zip").write_bytes(content[:length])
        assert "is a damaged archive" in refusal(tmp_path / "a.zip"), length
    (tmp_path / "renamed").write_bytes(content[:1000])
    assert "is a damaged archive" in refusal(tmp_path / "renamed")


@pytest.mark.parametrize(
    "name", ["run.json/x", "a" * 300, "."], ids=["below a file", "long", "the folder"]
)
def test_an_archive_with_a_name_that_no_file_can_have_is_damaged(tmp_path, name):
    path = packed(tmp_path / "a.zip", {"run.json": b"{}", name: b"x"})
    assert "is a damaged archive" in refusal(path)


def test_an_archive_whose_members_lie_nowhere_is_damaged(tmp_path):
    path = packed(tmp_path / "a.zip", {"run.json": b"{}"})
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 45] = 0xFF  # the place of the first member
    path.write_bytes(content)
    assert "is a damaged archive" in refusal(path)
