"""Runs are found by name, and listed with their true state, whatever one of them looks like."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atomloom.cli import main
from atomloom.config import dump_config, parse_config
from atomloom.errors import AtomloomError, LostProcess, StoppedRun
from atomloom.pipeline.attempt import ATTEMPT, PROGRESS, attempted, in_training
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Chunk, Plan
from atomloom.pipeline.runs import (
    MINERALS,
    all_runs,
    differences,
    find_run,
    model_file,
    read_run,
    settings_apart,
    short_name,
)
from atomloom.store.files import write_json, write_sealed, write_text

PLAN = Plan((Chunk("0" * 16, 0, 3),), 3, "m", "l", "", 0)
HISTORY = "epoch,step,val_mae\n1,1,0.5\n2,2,0.25\n3,3,0.75\n"


def config_of(results: Path, name: str = "tiny", **training):
    content = {"dataset": {"name": name, "source": "data", "target": "gap", "unit": "eV"}}
    paths = {"results": str(results), "store": str(results.parent / "store")}
    return parse_config({**content, "training": {"epochs": 3, **training}, "paths": paths})


def paths_of(results: Path, name: str = "tiny", **training) -> RunPaths:
    """Paths of a run whose plan is there."""
    paths = RunPaths(Layout(config_of(results, name, **training)), PLAN)
    PLAN.write(paths.layout.plan_folder / "plan.json")
    return paths


def finished(paths: RunPaths, mae: float = 0.1, evaluated: bool = True, **more) -> Path:
    """A finished run, as far as a listing reads it."""
    run = paths.run
    card = {
        "config": paths.config.model_dump(mode="json"),
        "keys": {"dataset": paths.dataset_key, "run": paths.run_key},
        "target": ["gap"],
        "unit": "eV",
        "epochs_run": 3,
        "best_epoch": 2,
        "seconds": 4.5,
        "finished": "2026-01-02T03:04:05+00:00",
    }
    write_sealed(run / "run.json", {**card, **more})
    write_text(run / "model.safetensors", "")
    write_text(run / "history.csv", HISTORY)
    if evaluated:
        errors = {split: {"mae": mae * factor} for factor, split in ((1, "val"), (2, "test"))}
        write_json(run / "metrics.json", {"gap": errors})
    return run


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


def test_a_name_follows_from_the_key_alone():
    assert short_name("3fa9c0de00000000") == "agate-3fa9c"
    assert short_name("3fa9c0de00000001") == "albite-3fa9c"
    assert len(set(MINERALS)) == len(MINERALS) == 114, "another list renames all runs"


def test_an_evaluated_run_is_listed_with_its_errors_and_time(results):
    run = read_run(finished(paths_of(results)))
    assert run.state == run.progress == "evaluated"
    assert run.errors == {"gap": {"val": 0.1, "test": 0.2}}
    assert (run.units, run.seconds, run.when) == (
        {"gap": "eV"},
        4.5,
        "2026-01-02T03:04:05+00:00",
    )
    assert (run.dataset, run.epoch, run.epochs, run.best_epoch) == ("tiny", 3, 3, 2)


def test_a_trained_run_has_the_validation_error_of_its_best_epoch(results):
    run = read_run(finished(paths_of(results), evaluated=False))
    assert run.state == "trained"
    assert run.errors == {"gap": {"val": 0.25}}


def attempt_of(paths: RunPaths) -> dict:
    config = paths.config.model_dump(mode="json")
    return {"config": config, "target": ["gap"], "unit": "eV"}


def test_a_run_is_in_training_as_long_as_its_process_lives(results):
    paths = paths_of(results)
    with attempted(paths.run, attempt_of(paths)):
        write_sealed(
            paths.run / PROGRESS,
            {"epoch": 1, "epochs": 3, "best_epoch": 1, "val_mae": {"gap": 0.5}},
        )
        run = read_run(paths.run)
        assert run.progress == "training 1/3"
        assert run.errors == {"gap": {"val": 0.5}}
        assert run.config == attempt_of(paths)["config"]
    assert read_run(paths.run).progress == "stopped 1/3"


def test_a_killed_run_is_not_in_training(results):
    paths = paths_of(results)
    paths.run.mkdir(parents=True)
    code = (
        "import os, pathlib, signal, sys\n"
        "from atomloom.pipeline.attempt import attempted\n"
        "with attempted(pathlib.Path(sys.argv[1]), {}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(paths.run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    assert read_run(paths.run).state == "training"
    process.kill()
    process.communicate()
    assert read_run(paths.run).state == "stopped"


def test_a_failed_run_says_why_and_where_it_was(results):
    paths = paths_of(results)
    with pytest.raises(AtomloomError), attempted(paths.run, attempt_of(paths)):
        raise AtomloomError("the loss is not a finite number", where=paths.run)
    run = read_run(paths.run)
    assert run.progress == "failed 0/3"
    assert "the loss is not a finite number" in run.reason


def test_a_run_stopped_by_a_signal_has_not_failed(results):
    paths = paths_of(results)
    with pytest.raises(StoppedRun), attempted(paths.run, {}):
        raise StoppedRun("stopped by SIGTERM")
    assert read_run(paths.run).state == "stopped"


def test_a_new_attempt_forgets_the_failure_of_the_one_before(results):
    paths = paths_of(results)
    with pytest.raises(AtomloomError), attempted(paths.run, {}):
        raise AtomloomError("no memory")
    with attempted(paths.run, {}):
        pass
    assert read_run(paths.run).state == "stopped"


def test_a_process_that_lost_another_one_leaves_the_reason_of_that_one(results):
    paths = paths_of(results)
    lost = LostProcess("process 1 of 2 has lost another one")

    def recorded() -> str:
        return json.loads((paths.run / ATTEMPT).read_text())["reason"]

    with pytest.raises(LostProcess), attempted(paths.run, {}):
        raise lost
    assert recorded() == str(lost)
    first, second = attempted(paths.run, {}), attempted(paths.run, {})
    first.__enter__()
    second.__enter__()
    for process, error in ((first, AtomloomError("the disk is full")), (second, lost)):
        assert not process.__exit__(type(error), error, None), "it goes on to be raised"
    assert recorded() == "the disk is full"


def test_a_copy_of_a_run_in_training_is_not_in_training(results, tmp_path):
    paths = paths_of(results)
    with attempted(paths.run, {}):
        shutil.copytree(results, tmp_path / "copy")
        assert in_training(paths.run)
        [copied] = [run for run in all_runs(tmp_path / "copy") if run.state != "planned"]
        assert copied.state == "stopped"


def test_a_run_that_another_version_began_is_unfinished(results):
    paths = paths_of(results)
    write_json(paths.run / "spec.json", {"training": {"epochs": 7}})
    write_text(paths.run / "history.csv", HISTORY)
    run = read_run(paths.run)
    assert run.progress == "unfinished 3/7"
    assert run.errors == {"target": {"val": 0.25}}


def test_a_merged_config_tells_what_an_unfinished_run_does_not(results):
    paths = paths_of(results)
    write_text(paths.run / "history.csv", HISTORY)
    write_text(paths.layout.merged_config, dump_config(paths.config))
    [run] = all_runs(results)
    assert run.progress == "unfinished 3/3"
    assert run.errors == {"gap": {"val": 0.25}}
    assert run.keys["dataset"] == paths.dataset_key


def test_a_config_with_a_plan_and_nothing_trained_is_planned(results):
    paths = paths_of(results)
    write_text(paths.layout.merged_config, dump_config(paths.config))
    [run] = all_runs(results)
    assert (run.key, run.state, run.epochs) == (paths.run_key, "planned", 3)
    finished(paths)
    assert [run.state for run in all_runs(results)] == ["evaluated"]


def test_a_config_without_a_plan_is_nothing_yet(results):
    layout = Layout(config_of(results))
    write_text(layout.merged_config, dump_config(layout.config))
    assert all_runs(results) == []


def test_a_job_that_was_told_its_threads_is_the_run_of_the_merged_config(results, monkeypatch):
    paths = paths_of(results)
    write_text(paths.layout.merged_config, dump_config(paths.config))
    finished(paths_of(results, threads=2))
    monkeypatch.setattr("atomloom.pipeline.runs.load_config", None)  # nothing is left to be read
    assert [run.state for run in all_runs(results)] == ["evaluated"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"config": {}, "epochs_run": 3}'),
        ("run.json", '{"config": 1, "epochs_run": 3}'),
        ("metrics.json", "\0"),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"gap": 3}'),
        ("metrics.json", '{"gap": {"val": null}}'),
    ],
    ids=["cut", "list", "no-training", "number", "zero", "numbers", "no-splits", "no-errors"],
)
def test_a_damaged_run_is_listed_as_such_beside_the_others(results, file, text):
    whole, broken = finished(paths_of(results)), finished(paths_of(results, seed=1))
    (broken / file).write_text(text)
    states = {run.key: run.state for run in all_runs(results)}
    assert states == {whole.name: "evaluated", broken.name: "damaged"}
    assert read_run(broken).reason


def test_a_flipped_digit_in_a_card_is_noticed(results):
    run = finished(paths_of(results))
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"best_epoch": 2', '"best_epoch": 1'))
    assert "differs from its seal" in read_run(run).reason


def test_a_card_that_misses_what_a_later_version_added_is_read(results):
    paths = paths_of(results)
    run = finished(paths)
    card = json.loads((run / "run.json").read_text())
    del card["seal"], card["best_epoch"], card["config"]["training"]["scheduler"]
    card["config"]["training"]["of_the_future"] = 1
    write_sealed(run / "run.json", card)
    other = finished(paths_of(results, seed=1))
    found = differences([read_run(run), read_run(other)])
    assert found == {"training.of_the_future": [1, None], "training.seed": [0, 1]}


def test_only_what_differs_and_matters_is_told(results):
    runs = [
        read_run(finished(paths_of(results))),
        read_run(finished(paths_of(results, seed=1, threads=3, device="cpu"))),
        read_run(finished(paths_of(results, seed=1, learning_rate=0.01))),
    ]
    assert differences(runs) == {
        "training.seed": [0, 1, 1],
        "training.learning_rate": [0.001, 0.001, 0.01],
    }
    assert differences(runs[:1]) == differences([]) == {}


def test_runs_of_one_config_on_other_data_differ_in_their_data(results):
    one, other = paths_of(results), paths_of(results)
    runs = [
        read_run(finished(one)),
        read_run(finished(paths_of(results, seed=1), keys={"dataset": "abcdef0123456789"})),
    ]
    assert differences(runs) == {"training.seed": [0, 1]}
    runs[1] = read_run(finished(other, keys={"dataset": "abcdef0123456789"}))
    assert differences(runs) == {"data": [one.dataset_key[:5], "abcde"]}


def test_a_run_is_found_by_name_key_beginning_and_path(results, monkeypatch):
    run = finished(paths_of(results))
    finished(paths_of(results, seed=1))
    for name in (short_name(run.name), run.name, run.name[:6], f"tiny/{run.name}", str(run)):
        assert find_run(results, name).key == run.name
    assert find_run(results / "tiny", run.name).key == run.name
    assert find_run(results, str(run / "model.safetensors")).key == run.name
    monkeypatch.chdir(run)
    assert find_run(results, ".").key == run.name
    other = next(folder.name for folder in run.parent.iterdir() if folder != run)
    assert find_run(results, short_name(other)).key == other, "wherever it is asked for"
    monkeypatch.chdir(results / "tiny")
    assert {one.dataset for one in all_runs(Path("."))} == {"tiny"}


def test_a_model_file_is_also_named_by_its_run(results, monkeypatch, capsys):
    run = finished(paths_of(results))
    monkeypatch.chdir(results.parent)
    name = short_name(run.name)
    for text in (name, run.name, f"tiny/{name}"):
        assert model_file(Path(text)).resolve() == run / "model.safetensors"
    for text in ("model.safetensors", "elsewhere/my-model", str(run)):
        assert model_file(Path(text)) == Path(text), "is a path as it stands"
    words = ["--source", "a.cif", "--output", "o.parquet"]
    assert main(["predict", "--model", "quartz-00000", *words]) == 1
    assert "there is no run `quartz-00000`" in capsys.readouterr().err
    shutil.rmtree(results)
    assert model_file(Path(name)) == Path(name)


def test_an_unknown_name_is_refused_with_the_nearest(results):
    name = short_name(finished(paths_of(results)).name)
    with pytest.raises(
        AtomloomError, match=f"no run `{name}x`.*did you mean {name}.*atomloom runs"
    ):
        find_run(results, f"{name}x")
    with pytest.raises(AtomloomError, match="no run ``"):
        find_run(results, "")
    with pytest.raises(AtomloomError, match="no such folder"):
        find_run(results / "nowhere", name)


def test_a_name_of_several_runs_is_refused_with_all_of_them(results):
    run = finished(paths_of(results))
    shutil.copytree(results / "tiny", results / "other")
    name = short_name(run.name)
    with pytest.raises(AtomloomError, match=f"may be other/{run.name}, tiny/{run.name}"):
        find_run(results, name)
    assert find_run(results, f"other/{name}").dataset == "other"


def test_runs_are_found_through_a_link_and_for_one_data_set(results, tmp_path):
    finished(paths_of(results))
    finished(paths_of(results, "runs"))
    (tmp_path / "link").symlink_to(results)
    assert [run.dataset for run in all_runs(tmp_path / "link")] == ["runs", "tiny"]
    assert [run.dataset for run in all_runs(results / "tiny")] == ["tiny"]


def test_what_is_not_a_run_is_passed_over(results):
    run = finished(paths_of(results))
    (run.parent / "notes").mkdir()
    (run.parent / "0123456789abcdef").write_text("a file")
    (results / "empty").mkdir()
    (results / "report.txt").write_text("")
    assert [found.key for found in all_runs(results)] == [run.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_results_that_cannot_be_written_to_are_listed(results):
    paths = paths_of(results)
    with attempted(paths.run, {}):
        for folder in (paths.run / "state", paths.run, results):
            folder.chmod(0o555)
        assert read_run(paths.run).state == "training"


def test_listing_writes_nothing(results):
    paths = paths_of(results)
    write_text(paths.layout.merged_config, dump_config(paths.config))
    finished(paths_of(results, seed=1))
    with attempted(paths_of(results, seed=2).run, {}):
        pass
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    assert len(all_runs(results)) == 3
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before
    assert (paths_of(results, seed=2).run / ATTEMPT).exists()


def test_what_only_one_config_has_counts_with_its_default():
    def apart(one, other):
        return [name for name, _, _ in settings_apart({"model": one}, {"model": other})]

    chebyshev = {"name": "chebyshev", "species": ["Ti"]}
    assert apart(chebyshev, {**chebyshev, "hidden": [15, 15]}) == []
    assert apart({**chebyshev, "hidden": [15, 15]}, chebyshev) == []
    assert apart(chebyshev, {**chebyshev, "hidden": [15, 16]}) == ["model.hidden"]
    assert apart(chebyshev, {**chebyshev, "species": ["O"]}) == ["model.species"]
    other = {"name": "os:system"}  # not loaded
    assert apart(other, other | {"width": 8}) == ["model.width"]
    assert [*settings_apart({}, {"training": {"accumulate": 1, "seed": 0}})] == []
    assert [*settings_apart({}, {"training": {"accumulate": 2}})] == [("training.accumulate", 1, 2)]
    assert [*settings_apart({"teacher": None}, {"teacher": {"calculator": "a:B"}})] == [
        ("teacher.calculator", None, "a:B")
    ]
