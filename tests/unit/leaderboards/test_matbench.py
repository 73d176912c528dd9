"""A submission to Matbench has the form that its scorer takes, and only complete and right runs make one."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from atomloom import cli
from atomloom.commands.finished_runs import read_run
from atomloom.commands.matbench import TASKS, About, folds_of, write_submission
from atomloom.errors import AtomloomError
from atomloom.store.files import read_json, write_sealed
from tests.unit.leaderboards.finished import write_run

TASK = TASKS["matbench_jdft2d"]
ABOUT = About("ours", "A. Person")


def labels_of(task):
    """Labels whose mean absolute deviation is the task's."""
    values = np.random.default_rng(1).gamma(2.0, size=task.rows)
    return values * task.spread / np.abs(values - values.mean()).mean()


def fold_tables(task=TASK):
    """Test rows of each fold, with predictions that are 1 too large."""
    labels = labels_of(task)
    return [
        pd.DataFrame(
            {
                "id": [f"jdft2d-{row:06d}" for row in rows],
                "label": labels[rows],
                "prediction": labels[rows] + 1.0,
            }
        )
        for rows in folds_of(task)
    ]


def write_runs(folder, tables, **sections):
    """A run per fold, written in another order than that of the folds."""
    places = [place for place in (3, 0, 4, 1, 2) if place < len(tables)]
    return [write_run(folder / f"run{place}", tables[place], **sections) for place in places]


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matbench")
    runs = write_runs(folder, fold_tables())
    about = About("ours", "A. Person", "a note", "@article{x}")
    done = write_submission(TASK.name, runs, about, folder / "out")
    return folder, runs, done


def test_results_have_the_form_that_the_scorer_takes(submission):
    folder, _, done = submission
    content = json.loads(gzip.decompress((folder / "out" / "results.json.gz").read_bytes()))
    digest = content.pop("hash")
    assert digest == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert set(content) == {
        *("@module", "@class", "version", "benchmark_name", "datestamp", "user_metadata", "tasks")
    }
    task = content["tasks"][TASK.name]
    assert set(task) == {"@module", "@class", "benchmark_name", "dataset_name", "results"}
    seen = []
    for fold, rows in enumerate(folds_of(TASK)):
        result = task["results"][f"fold_{fold}"]
        assert set(result) == {"data", "parameters", "scores", "uncertainty"}
        assert list(result["data"]) == [f"mb-jdft2d-{row + 1:03d}" for row in rows]
        assert all(type(value) is float for value in result["data"].values())
        assert result["scores"]["mae"] == pytest.approx(1.0)
        assert result["scores"]["max_error"] == pytest.approx(1.0)
        seen += list(result["data"])
    assert len(set(seen)) == len(seen) == TASK.rows
    assert done["scores"]["rmse"] == pytest.approx(1.0)
    assert content["user_metadata"]["cpu_hours"] == 5 * 0.5 * 2
    assert content["user_metadata"]["gpu_hours"] == 0


def test_info_has_every_key_that_the_leaderboard_asks_for(submission):
    folder, _, _ = submission
    info = json.loads((folder / "out" / "info.json").read_text())
    asked = ("authors", "algorithm", "algorithm_long", "bibtex_refs", "notes", "requirements")
    assert tuple(info) == asked
    assert info["bibtex_refs"] == "@article{x}"
    assert info["notes"] == "a note 5 CPU hours and 0 GPU hours of training, all folds together."
    assert "torch==2.13.0" in info["requirements"]["python"]
    assert "Yan et al., ICLR 2024" in info["algorithm_long"]
    source = (folder / "out" / "run.py").read_text()
    compile(source, "run.py", "exec")
    assert (
        "fold"
        not in (folder / "out" / "config.yaml")
        .read_text()
        .split("split:")[1]
        .split("folds_file")[0]
    )


def test_the_same_runs_give_the_same_bytes(submission):
    folder, runs, _ = submission
    write_submission(
        TASK.name, runs[::-1], About("ours", "A. Person", "a note", "@article{x}"), folder / "again"
    )
    for name in ("results.json.gz", "info.json", "config.yaml", "run.py"):
        assert (folder / "again" / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_the_scorer_of_the_package_accepts_the_submission(submission, tmp_path):
    bench = pytest.importorskip("matbench.bench", reason="the package matbench is not installed")
    folder, _, done = submission
    plain = tmp_path / "results.json"
    plain.write_bytes(gzip.decompress((folder / "out" / "results.json.gz").read_bytes()))
    found = bench.MatbenchBenchmark.from_file(str(plain))
    assert found.validate() == {}
    assert found.scores[TASK.name].mae.mean == pytest.approx(done["scores"]["mae"])


def test_ids_of_matbench_itself_are_known(tmp_path):
    tables = [
        table.assign(id=[f"mb-jdft2d-{int(name[-6:]) + 1:03d}" for name in table["id"]])
        for table in fold_tables()
    ]
    done = write_submission(TASK.name, write_runs(tmp_path, tables), ABOUT, tmp_path / "out")
    assert done["scores"]["mae"] == pytest.approx(1.0)


def with_row(tables, place, **values):
    """The tables with other values in the first row of one."""
    changed = [table.copy() for table in tables]
    for name, value in values.items():
        changed[place].loc[0, name] = value
    return changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[:4], "4 of 5 folds: there is no run of fold 4"),
        (lambda t: [t[0], t[1], t[2], t[3], t[3]], "is of fold 3, as is"),
        (lambda t: [*t[:4], t[4][1:]], "of fold 4, 1 are missing and 0 are not its own, such as mb-jdft2d-"),
        (lambda t: with_row(t, 2, prediction=np.nan), "1 predictions are not finite numbers"),
        (lambda t: with_row(t, 2, label=np.nan), "a test row has no label"),
        (lambda t: with_row(t, 2, id="jdft2d-000636"), "jdft2d-000636 is not the id of one of the 636 rows"),
        (lambda t: with_row(t, 2, id="silicon"), "silicon is not the id of one of the 636 rows"),
        (lambda t: with_row(t, 2, id="mb-phonons-001"), "mb-phonons-001 is not the id of one of"),
        (lambda t: with_row(t, 2, id=t[2].loc[1, "id"]), "1 ids occur twice"),
        (lambda t: [x.assign(label=x["label"] / 1000) for x in t], "another data set, target or unit"),
    ],
    ids=["fold-missing", "fold-twice", "row-missing", "nan", "no-label", "row-too-large", "no-row",
         "other-task", "id-twice", "unit"],
)  # fmt: skip
def test_what_is_not_five_folds_of_the_task_is_refused_in_one_line(change, says, tmp_path):
    tables = change(fold_tables())
    with pytest.raises(AtomloomError, match=re.escape(says)) as error:
        write_submission(TASK.name, write_runs(tmp_path, tables), ABOUT, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_runs_of_several_recipes_or_targets_are_refused(tmp_path):
    tables = fold_tables()
    runs = write_runs(tmp_path / "a", tables)
    other = write_run(tmp_path / "b", tables[0], training={"learning_rate": 0.5})
    with pytest.raises(AtomloomError, match=r"training\.learning_rate: 0\.5, not 0\.001"):
        write_submission(TASK.name, [*runs[:1], other, *runs[2:]], ABOUT, tmp_path / "out")
    other = write_run(tmp_path / "c", tables[0], target="z")
    with pytest.raises(AtomloomError, match="runs of different tasks"):
        write_submission(TASK.name, [*runs[:1], other, *runs[2:]], ABOUT, tmp_path / "out")
    dataset = {"name": "x", "source": "x", "target": "y"}
    for place, sections, named in (
        ("e", {"split": {"duplicates": "report"}}, "split.duplicates: report, not remove"),
        ("f", {"split": {"seed": 3}}, "split.seed: 3, not 0"),
        ("g", {"dataset": dataset | {"chunks": {"mean": 7}}}, "dataset.chunks.mean: 7, not 1000"),
        ("h", {"dataset": dataset | {"checks": {"min_distance": 0.1}}}, "dataset.checks.min_dist"),
        ("i", {"training": {"loss_weights": {"y": 2.0}}}, "training.loss_weights"),
    ):
        other = write_run(tmp_path / place, tables[0], **sections)
        with pytest.raises(AtomloomError, match=re.escape(named)):
            write_submission(TASK.name, [*runs[:1], other, *runs[2:]], ABOUT, tmp_path / "out")
    other = write_run(
        tmp_path / "d",
        tables[0],
        training={"threads": 7, "checkpoint_minutes": 1},
        dataset=dataset | {"source": "/elsewhere"},
    )
    write_submission(TASK.name, [runs[0], other, *runs[2:]], ABOUT, tmp_path / "out")


@pytest.mark.parametrize(
    ("device", "training", "hours"),
    [
        ("cpu", {}, (1.0, 0.0)),
        ("cpu", {"devices": 3}, (3.0, 0.0)),
        ("cpu", {"devices": 3, "nodes": 2}, (6.0, 0.0)),
        ("NVIDIA H100 80GB HBM3", {}, (0.0, 0.5)),
        ("NVIDIA H100 80GB HBM3", {"devices": 4, "nodes": 2}, (0.0, 4.0)),
    ],
)
def test_hours_are_those_of_all_devices_and_nodes(device, training, hours, tmp_path):
    run = write_run(tmp_path / "a", fold_tables()[0], training=training)
    card = read_json(run / "run.json")
    card["environment"]["device"] = device
    write_sealed(run / "run.json", card)
    cost = read_run(run).cost
    assert (cost.cpu_hours, cost.gpu_hours) == hours


def test_the_source_writes_notes_and_references_again(tmp_path, monkeypatch):
    runs, notes, bibtex = write_runs(tmp_path, fold_tables()), "it's {new}", '@article{x, a="é"}\n'
    about = About("ours", "A. Person", notes, bibtex)
    write_submission(TASK.name, runs, about, tmp_path / "out")
    in_order = iter(sorted(runs))
    monkeypatch.setattr(
        "atomloom.api.run_pipeline", lambda config: SimpleNamespace(folder=next(in_order))
    )
    monkeypatch.setattr("subprocess.run", lambda command, check: cli.main(command[1:]))
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(Path("run.py").read_text(encoding="utf-8"), "run.py", "exec"), {})
    for name in ("results.json.gz", "info.json", "config.yaml", "run.py"):
        assert Path("submission", name).read_bytes() == Path(name).read_bytes(), name


def test_classes_are_divided_evenly_and_scored_as_the_package_scores_them():
    from atomloom.commands.matbench import Task, _scores

    task = Task("matbench_mp_is_metal", 100, 0.3, classes=True)
    labels = np.arange(100) % 10 < 3
    folds = folds_of(task, labels)
    assert sorted(np.concatenate(folds)) == list(range(100))
    assert {labels[rows].sum() for rows in folds} == {6}
    test = pd.DataFrame({"label": [1.0, 1, 0, 0], "prediction": [0.9, 0.2, 0.1, 0.2]})
    assert _scores(task, test) == {
        "accuracy": 0.75,
        "balanced_accuracy": 0.75,
        "f1": pytest.approx(2 / 3),
        "rocauc": 0.75,
    }
    with pytest.raises(AtomloomError, match="probabilities"):
        _scores(task, test.assign(prediction=2.0))


def test_the_command_tells_scores_and_hours(submission, tmp_path, capsys):
    _, runs, _ = submission
    arguments = [
        "--task",
        TASK.name,
        "--algorithm",
        "é",
        "--authors",
        "B",
        "--output",
        str(tmp_path),
    ]
    assert cli.main(["leaderboard", "matbench", *map(str, runs), *arguments]) == 0
    out = capsys.readouterr().out
    assert "mae 1, rmse 1" in out
    assert "5 CPU hours and 0 GPU hours" in out
    assert cli.main(["leaderboard", "matbench", str(tmp_path), *arguments]) == 1
    assert "this is not the folder of a trained run" in capsys.readouterr().err
    assert cli.main(["leaderboard", "matbench", str(runs[0]), "--task", "x", *arguments[2:]]) == 1
    assert "there are matbench_dielectric" in capsys.readouterr().err
