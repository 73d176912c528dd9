"""A run that starts from another model is known by that model's weights, and needs its file only to train."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from atomloom.commands.export_run import export_run
from atomloom.commands.reproduce import Request, reproduce_run
from atomloom.config.start_model import MODEL
from atomloom.errors import AtomloomError
from atomloom.pipeline.outside_data import ENTRY, overlap_lines, told_of, training_overlap
from atomloom.reports.html import _facts
from atomloom.reports.tables import RunCard
from atomloom.store.files import read_json
from tests.unit.provenance.conftest import Project
from tests.unit.provenance.test_reproduce import prepare, quiet


@pytest.fixture(scope="module")
def started(original, tmp_path_factory):
    """Copy of the project, its first run, and one that starts from that by name."""
    folder = tmp_path_factory.mktemp("started") / "project"
    project = Project(shutil.copytree(original.folder, folder))
    first = project.run
    return project, first, project.train(epochs=1, start_from=first.name[:8])


def test_the_parents_weights_are_in_key_card_and_report(started):
    project, first, second = started
    weights = read_json(first / "run.json")["results"]["weights"]
    card, spec = read_json(second / "run.json"), read_json(second / "spec.json")
    assert card["start_from"] == spec["start_from"]
    assert spec["start_from"]["weights"] == weights
    assert (
        dict(_facts(RunCard(card)))["started from"] == f"{first.name[:8]}, weights {weights[:16]}"
    )
    assert "start_from" not in read_json(first / "spec.json") | read_json(first / "run.json")
    elsewhere = shutil.copy(first / "model.safetensors", project.folder / "größer.safetensors")
    assert project.train(epochs=1, start_from=str(elsewhere)) == second, "not the file's name"


def test_what_the_parent_was_trained_on_is_on_the_card(started):
    project, first, second = started
    counts = read_json(first / "run.json")["dataset"]
    seen = f"{counts['name']} ({counts['train'] + counts['val']:,} structures)"
    assert ENTRY not in read_json(first / "run.json")
    entry = read_json(second / "run.json")[ENTRY]
    (one,) = entry["seen"]
    assert one == {"through": "training.start_from", "model": first.name[:8], "data": [seen]}
    assert entry["overlap"] == {"val": 0, "test": 0}, "both have the same splits"
    third = project.train(epochs=1, start_from=second.name[:8])
    (one,) = read_json(third / "run.json")[ENTRY]["seen"]
    assert one["data"] == [seen, seen]
    assert dict(_facts(RunCard(read_json(third / "run.json"))))["outside data"].endswith(seen)


def test_structures_of_the_test_that_the_parent_was_trained_on_are_counted(started):
    project, first, _ = started
    card = read_json(first / "run.json")
    table = first.parents[1] / "split" / card["keys"]["dataset"] / "dataset.parquet"
    frame = pd.read_parquet(table)
    other = frame.assign(split=frame["split"].map({"train": "test", "val": "val", "test": "train"}))
    counts = training_overlap(first / MODEL, other)
    assert counts == {"test": (frame["split"] == "train").sum(), "val": 0}
    lines = overlap_lines({ENTRY: {"overlap": counts}})
    assert len(lines) == 1
    assert lines[0].startswith(f"{counts['test']:,} structures of split test were in the training")
    named = frame.assign(hash=[bytes([i]) * 32 for i in range(len(frame))], split="test")
    assert training_overlap(first / MODEL, named) == {"test": 0}, "ids of no database"
    assert training_overlap(project.folder / MODEL, other) is None, "a file without its run"


def test_damaged_cards_tell_of_no_outside_data():
    for entry in (None, [], {"seen": {}}, {"seen": [1, None]}, {"overlap": [3]}):
        assert told_of({ENTRY: entry}) == []


def test_reproduced_and_exported(started, tmp_path, monkeypatch):
    project, first, second = started
    monkeypatch.chdir(project.folder)
    for from_raw in (False, True):
        request = Request(str(second), tmp_path / f"{from_raw}", from_raw=from_raw)
        assert reproduce_run(request, prepare, quiet).outcome == "bit-equal", from_raw
    archive = export_run(str(second), tmp_path / "run.zip", project.folder / "results", quiet)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (readme,) = (tmp_path / "unpacked").rglob("README.txt")
    assert f"started from the model {first.name[:8]} (weights " in readme.read_text()


def test_a_missing_parent_matters_only_where_there_is_something_to_train(original, tmp_path):
    project = Project(shutil.copytree(original.folder, tmp_path / "project"))
    moved = project.folder / "parent.safetensors"
    shutil.copy(project.run / "model.safetensors", moved)
    second = project.train(epochs=1, start_from="parent.safetensors")
    moved.unlink()
    assert project.train(epochs=1, start_from="parent.safetensors") == second
    with pytest.raises(AtomloomError, match=r"no model file or run parent.* needed to train"):
        project.train(epochs=2, start_from="parent.safetensors")


def test_the_model_of_a_run_in_training_is_refused(original, tmp_path):
    project = Project(shutil.copytree(original.folder, tmp_path / "project"))
    (project.run / "run.json").unlink()
    with pytest.raises(AtomloomError, match=r"is not finished: its weights still change"):
        project.train(epochs=1, start_from=project.run.name)
