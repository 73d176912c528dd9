"""A run with more epochs is a run of its own: it names its parent, whose final state is in its key."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from atomloom.errors import AtomloomError
from atomloom.pipeline.parent import begun_with_other_processes, find_parent
from atomloom.pipeline.runs import differences, read_run
from atomloom.reports.html import _facts
from atomloom.reports.tables import RunCard
from atomloom.store.files import file_digest, read_json, write_json, write_sealed
from tests.unit.provenance.conftest import Project


@pytest.fixture(scope="module")
def continued(original, tmp_path_factory) -> tuple[Project, str]:
    """Copy of the project, and the key of its first run."""
    folder = tmp_path_factory.mktemp("continued") / "project"
    project = Project(shutil.copytree(original.folder, folder))
    return project, project.run.name


def test_a_continued_run_names_its_parent_and_is_as_good_as_trained_at_once(continued):
    project, first = continued
    second = project.train(epochs=4, continue_from=first[:6])
    whole = project.train(epochs=4)
    card, spec = read_json(second / "run.json"), read_json(second / "spec.json")
    finished = read_json(second.with_name(first) / "state" / "finished.json")
    assert card["parent"] == {"run": first, "epochs": 2, "state": finished["state"]}
    assert spec["parent"] == finished["state"]
    assert "parent" not in read_json(whole / "spec.json") | read_json(whole / "run.json")
    assert second != whole
    assert card["results"] == read_json(whole / "run.json")["results"]
    assert card["epochs_run"] == 4
    facts = dict(_facts(RunCard(card)))
    assert facts["continues"] == f"run {first} after 2 epochs"
    told = differences([read_run(second), read_run(whole)])
    assert told == {"training.continue_from": [first[:6], None]}


def test_a_run_is_continued_wherever_its_parent_lies(continued, tmp_path):
    project, first = continued
    elsewhere = shutil.copytree(project.folder / "results/copper/runs" / first, tmp_path / "größer")
    runs = {project.train(epochs=4, continue_from=str(name)) for name in (elsewhere, first)}
    assert len(runs) == 1, "the state of the parent is in the key, not its folder"


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"epochs": 2}, "has 2 epochs already"),
        ({"epochs": 4, "learning_rate": 0.01, "seed": 3}, "learning_rate, training.seed differ"),
        ({"epochs": 4, "batch": {"structures": 4}}, "training.batch.structures differs"),
        ({"epochs": 4, "scheduler": "cosine"}, "training.scheduler differs"),
        ({"epochs": 4, "continue_from": "nowhere"}, "there is no run nowhere"),
        ({"epochs": 4, "continue_from": "0000"}, "there is no run .*0000"),
    ],
    ids=["no more epochs", "other rate", "other batch", "other schedule", "no folder", "no key"],
)
def test_what_is_not_the_same_run_with_more_epochs_is_refused(continued, training, reason):
    project, first = continued
    with pytest.raises(AtomloomError, match=reason):
        project.train(**{"continue_from": first, **training})


def test_an_unfinished_parent_and_an_ambiguous_name_are_refused(continued, tmp_path):
    project, first = continued
    runs = tmp_path / "runs"
    for name in ("abcd000000000000", "abcd111111111111"):
        shutil.copytree(project.folder / "results/copper/runs" / first, runs / name)
    with pytest.raises(AtomloomError, match=r"2 runs in .* begin with abcd"):
        find_parent("abcd", runs)
    parent = find_parent("calcite-abcd0", runs)
    shutil.rmtree(runs / "abcd000000000000" / "state")
    with pytest.raises(AtomloomError, match="holds no state"):
        find_parent("abcd0", runs)
    assert parent.state == find_parent("abcd1", runs).state


def unfinished(folder: Path, epoch: int = 1, **training: object) -> Path:
    """A run as a kill leaves it, as far as its files tell other runs."""
    usual = {"epochs": 2, "scheduler": "constant", "optimizer": "adamw", "devices": 2}
    write_json(folder / "spec.json", {"dataset": "d", "training": usual | training})
    write_sealed(folder / "state" / "progress.json", {"epoch": epoch})
    (folder / "state" / "last.ckpt").write_bytes(b"state")
    return folder


@pytest.mark.parametrize(
    ("own", "wanted", "reason"),
    [
        ({}, {"devices": 4}, ""),
        ({}, {"devices": 1, "nodes": 4}, ""),
        ({}, {"devices": 4, "epochs": 5}, ""),
        ({}, {}, "is not finished: it is resumed with its own config"),
        ({}, {"epochs": 5}, "is not finished"),
        ({}, {"devices": 1, "nodes": 2}, ""),
        ({}, {"devices": 4, "seed": 1}, "training.seed differs"),
        ({"scheduler": "onecycle"}, {"devices": 4}, ""),
        (
            {"scheduler": "onecycle"},
            {"devices": 4, "epochs": 5},
            "scheduler onecycle .*, which is 2",
        ),
        ({"scheduler": "cosine"}, {"devices": 4, "epochs": 1}, "scheduler cosine .* constant"),
        ({"scheduler": "cosine", "optimizer": "lbfgs"}, {"devices": 4, "epochs": 5}, ""),
    ],
)
def test_an_unfinished_run_is_continued_with_other_processes_alone(tmp_path, own, wanted, reason):
    parent = find_parent(str(unfinished(tmp_path / "run", **own)), tmp_path)
    assert (parent.key, parent.epochs, parent.processes) == (None, 1, 2)
    spec = {"training": {**parent.spec["training"], **wanted}, "dataset": "d"}
    expected = pytest.raises(AtomloomError, match=reason) if reason else nullcontext()
    with expected:
        parent.require_continued_by(spec, spec["training"]["epochs"])


@pytest.mark.slow
def test_a_run_begun_by_one_process_goes_on_by_two(project):
    begun = project.run
    for name in ("state/finished.json", "run.json", "model.safetensors"):
        (begun / name).unlink()
    run = project.train(epochs=3, devices=2, continue_from=begun.name)
    card, state = read_json(run / "run.json"), file_digest(begun / "state" / "last.ckpt")
    assert card["parent"] == {"run": begun.name, "epochs": 2, "state": state}
    assert (card["epochs_run"], card["config"]["training"]["devices"]) == (3, 2)


def test_a_run_that_was_begun_with_other_processes_is_found(tmp_path):
    begun = unfinished(tmp_path / "begun")
    unfinished(tmp_path / "with another seed", seed=1)
    (tmp_path / "no run").mkdir()
    spec = read_json(begun / "spec.json")
    spec["training"]["devices"] = 4
    (found,) = begun_with_other_processes(spec, tmp_path)
    assert (found.folder, found.processes, found.epochs) == (begun, 2, 1)
    spec["training"] |= {"devices": 1, "nodes": 2}
    assert [one.folder for one in begun_with_other_processes(spec, tmp_path)] == [begun]
    spec["training"] |= {"devices": 2, "nodes": 1}
    assert begun_with_other_processes(spec, tmp_path) == []


def test_a_parent_of_before_is_known_by_the_file_of_its_state(continued, tmp_path):
    project, first = continued
    run = shutil.copytree(project.folder / "results/copper/runs" / first, tmp_path / first)
    recorded = find_parent(str(run), tmp_path)
    path = run / "state" / "finished.json"
    content = json.loads(path.read_text())
    write_sealed(path, {name: content[name] for name in ("key", "result", "history")})
    former = find_parent(str(run), tmp_path)
    assert (former.key, former.epochs) == (recorded.key, recorded.epochs)
    assert former.state != recorded.state
    (run / "state" / "last.ckpt").write_bytes(b"another")
    assert find_parent(str(run), tmp_path).state != former.state
