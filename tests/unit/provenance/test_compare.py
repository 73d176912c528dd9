"""`atomloom diff` says what differs between two runs and nothing else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from atomloom.cli import main
from atomloom.commands.compare import compare_runs
from atomloom.pipeline.evidence import opened
from atomloom.store.files import file_digest, read_json, write_sealed
from atomloom.store.parquet import write_table
from tests.unit.provenance.conftest import Project


@pytest.fixture(scope="module")
def two(original, tmp_path_factory) -> tuple:
    """Two runs that differ in the learning rate, in one project."""
    project = Project(shutil.copytree(original.folder, tmp_path_factory.mktemp("two") / "p"))
    first = project.run
    return project, first, project.train(learning_rate=0.01)


def compared(one, other):
    with opened(str(one), one) as first, opened(str(other), one) as second:
        return compare_runs(first, second)


def names(changes) -> set[str]:
    return {change.name for change in changes}


def test_a_run_does_not_differ_from_its_copy(original, tmp_path):
    found = compared(original.run, shutil.copytree(original.run, tmp_path / "kopie é"))
    for section in ("config", "data", "code", "environment", "results"):
        assert getattr(found, section) == [], section
    assert [(item.kind, item.equal) for item in found.agreements] == [
        ("weights", True),
        ("errors", True),
        ("predictions", True),
    ]


def test_only_what_differs_is_told_with_both_values(two, capsys):
    project, first, second = two
    found = compared(first, second)
    assert [(c.name, c.one, c.other) for c in found.config] == [
        ("training.learning_rate", 0.001, 0.01)
    ]
    assert found.data == found.code == found.environment == []
    assert {"volume.test.mae", "volume.val.mae"} <= names(found.results)
    assert not any(item.equal for item in found.agreements)
    assert (
        main(["diff", first.name, second.name[:8], "--results", str(project.folder / "results")])
        == 0
    )
    text = capsys.readouterr().out
    assert "training.learning_rate  0.001  0.01" in text
    assert "data: no difference" in text
    assert "cutoff" not in text
    assert "the histories differ from epoch 1 on" in text


def test_everything_is_there_as_json(two, capsys):
    _, first, second = two
    assert main(["diff", str(first), str(second / "run.json"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["config"] == {"training.learning_rate": [0.001, 0.01]}
    assert content["comparison"]["weights"]["max_difference"] > 0
    mae = [read_json(run / "metrics.json")["volume"]["test"]["mae"] for run in (first, second)]
    assert content["results"]["volume.test.mae"] == mae


def test_other_data_are_told_by_digest_and_by_file(two, tmp_path):
    _, first, _ = two
    other = shutil.copytree(first, tmp_path / "other")
    card = read_json(other / "run.json")
    card["data"]["members"] = "0" * 16
    card["data"]["files"]["listed"][0][1] = "1" * 32
    write_sealed(other / "run.json", card)
    assert {"members", "raw file cells.extxyz"} <= names(compared(first, other).data)


def test_a_card_of_before_differs_in_nothing_that_it_does_not_record(two, tmp_path):
    _, first, _ = two
    other = shutil.copytree(first, tmp_path / "other")
    card = read_json(other / "run.json")
    for name in ("data", "results", "determinism", "evaluated"):
        del card[name]
    for name in ("scipy", "lock"):
        del card["environment"][name]
    del card["config"]["training"]["continue_from"]
    (other / "run.json").write_text(json.dumps(card))
    found = compared(first, other)
    assert found.config == found.data == found.environment == []
    assert all(item.equal for item in found.agreements)


def test_where_results_are_missing_digests_and_cards_still_tell(two, tmp_path):
    _, first, second = two
    bare = []
    for run in (first, second, first):
        folder = tmp_path / f"{len(bare)}"
        folder.mkdir()
        bare.append(shutil.copy(run / "run.json", folder / "card.json"))
    found = {item.kind: item for item in compared(bare[0], bare[1]).agreements}
    assert {kind: item.worst for kind, item in found.items()} == {
        "weights": None,
        "errors": None,
        "predictions": None,
    }
    assert "no model.safetensors" in found["weights"].text
    assert all(item.equal for item in compared(bare[0], bare[2]).agreements)


def test_missing_files_are_said_and_compared_by_digest(two, tmp_path):
    _, first, second = two
    bare = shutil.copytree(first, tmp_path / "bare")
    for name in ("predictions.parquet", "metrics.json"):
        (bare / name).unlink()
    found = {item.kind: item for item in compared(first, bare).agreements}
    assert (
        found["errors"].text == "errors: equal to the bit (by digest: one run has no metrics.json)"
    )
    assert "one run has no predictions.parquet" in found["predictions"].text
    told = {item.kind: item.text for item in compared(second, bare).agreements}
    assert told["errors"] == ("errors: differ, how far is not known: one run has no metrics.json")
    forget(bare)
    told = {item.kind: item.text for item in compared(first, bare).agreements}
    assert told["predictions"] == (
        "predictions: cannot be compared: one run has no predictions.parquet, and a card has no digest of it"
    )


def forget(run, *names):
    """Take digests of results from a card: all, as in cards of before, or those of some files."""
    card = read_json(run / "run.json")
    for name in names or list(card["results"]):
        del card["results"][name]
    if not names:
        del card["results"], card["digests"]
    write_sealed(run / "run.json", card)


def record(run, *names):
    """Write the digests of files as they are now into the card."""
    card = read_json(run / "run.json")
    card["results"] |= {name: file_digest(run / name) for name in names}
    write_sealed(run / "run.json", card)


def test_tables_are_compared_row_by_row_where_there_are_no_digests(two, tmp_path):
    _, first, _ = two
    other = shutil.copytree(first, tmp_path / "other")
    forget(other)
    assert all(item.equal for item in compared(first, other).agreements)
    for change, where in (
        (lambda frame: frame.loc[3, "volume_predicted"] * 1.5, "volume_predicted of "),
        (lambda frame: np.nan, "volume_predicted of "),
        (lambda frame: None, "columns that the other has not"),
    ):
        frame = pd.read_parquet(first / "predictions.parquet")
        value = change(frame)
        if value is None:
            frame = frame.drop(columns="volume_predicted")
        else:
            frame.loc[3, "volume_predicted"] = value
        write_table(other / "predictions.parquet", frame)
        (found,) = [c for c in compared(first, other).agreements if c.kind == "predictions"]
        assert not found.equal
        told = "\n".join([found.text, *(item.name for item in found.changes)])
        assert where in told
        assert len(found.changes) == (value is not None)


def test_tables_of_every_target_are_compared(two, tmp_path):
    _, first, _ = two
    runs = [shutil.copytree(first, tmp_path / name) for name in ("one", "same", "other")]
    for run, value in zip(runs, (1.0, 1.0, 1.25), strict=True):
        frame = pd.DataFrame({"id": ["a"] * 4, "atom": [0, 0, 1, 1], "component": [0, 1, 0, 1]})
        forces = frame.assign(forces=[0.5] * 4, forces_predicted=[2.0, 1.0, -0.5, value])
        write_table(run / "forces.parquet", forces)
        record(run, "forces.parquet")
    one, same, other = runs
    assert all(item.equal for item in compared(one, same).agreements)
    found = compared(one, other).agreements[-1]
    assert [(c.name, c.one, c.other) for c in found.changes] == [
        ("forces_predicted of a, atom 1, component 1", 1.0, 1.25)
    ]
    assert found.worst == 0.125
    (other / "forces.parquet").unlink()
    (told,) = [c.text for c in compared(one, other).agreements if c.kind == "predictions"]
    assert told == "predictions: differ, how far is not known: one run has no forces.parquet"


def test_other_networks_and_other_structures_are_not_compared_number_by_number(two, tmp_path):
    project, first, _ = two
    wide = project.train(seed=1)
    other = shutil.copytree(first, tmp_path / "other")
    card = read_json(other / "run.json")
    del card["results"]
    write_sealed(other / "run.json", card)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file({n: t for n, t in weights.items() if n != name}, other / "model.safetensors")
    frame = pd.read_parquet(other / "predictions.parquet")
    write_table(other / "predictions.parquet", frame.iloc[:-1].reset_index(drop=True))
    found = {item.kind: item.text for item in compared(wide, other).agreements}
    assert found["weights"] == "weights: cannot be compared: the networks differ"
    assert found["predictions"] == "predictions: cannot be compared: they are of other structures"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: "nothing-here", "there is no run"),
        (lambda folder: str(folder), "no trained run"),
        (lambda folder: str(folder / "notes.txt"), "is not valid JSON"),
        (lambda folder: str(folder / "edited.json"), "edited by hand"),
        (lambda folder: str(folder / "other.json"), "has no config, run_key"),
    ],
    ids=["no run", "empty folder", "text", "edited", "another json"],
)
def test_what_is_no_run_is_refused_in_one_line(original, tmp_path, capsys, make, reason):
    (tmp_path / "runs").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    text = (original.run / "run.json").read_text()
    (tmp_path / "edited.json").write_text(text.replace('"epochs": 2', '"epochs": 3'))
    (tmp_path / "other.json").write_text("{}")
    results = str(original.folder / "results")
    assert main(["diff", make(tmp_path), str(original.run), "--results", results]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
