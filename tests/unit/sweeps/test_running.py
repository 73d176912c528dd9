"""What a sweep does: trials trained as runs, halved, failed, killed, and compared."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from ase.build import bulk

from atomloom.api import prepare, run_pipeline, train
from atomloom.commands import sweep as command
from atomloom.commands import trials
from atomloom.commands.committee import members_of
from atomloom.config import load_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.reports import formats
from atomloom.reports.files import SweepLink, sweeps_of
from atomloom.store.files import write_sealed
from atomloom.sweeps.progress import read_progress
from atomloom.sweeps.rounds import (
    Result,
    Slot,
    Trial,
    read_round,
    result_file,
    round_file,
    write_round,
)
from atomloom.training.run_lock import WAITING
from tests.unit.sweeps.cells import paths_in


@pytest.fixture
def in_process(monkeypatch):
    """Trials are trained here, not by a process each; a list of the calls."""
    calls = []

    def run(arguments, environment):
        from atomloom.cli import main

        options = list(arguments)[4:]  # after `python -P -m atomloom`
        calls.append(options)
        return main(options), "the training said no"

    monkeypatch.setattr(trials, "_run", run)
    return calls


RATES = {"training.learning_rate": [1e-4, 1e-3, 1e-2, 3e-2]}
HALVED = {"parameters": RATES, "halving": {"min_epochs": 1, "factor": 2}}


def epochs_of(calls: list[list[str]]) -> list[str]:
    return [call[call.index("--until") + 1] for call in calls]


def test_halving_trains_the_better_half_on_and_keeps_the_curves_of_the_others(tmp_path, in_process):
    paths = paths_in(tmp_path, HALVED)
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    assert sorted(epochs_of(in_process)) == ["1"] * 4 + ["2"] * 2 + ["4"]
    table = pd.read_csv(folder / "sweep.csv")
    assert sorted(table["epochs"]) == [1, 1, 2, 4]
    first = [Result.read(result_file(folder, Slot(0, 0, number, 0))) for number in range(4)]
    second = [Result.read(result_file(folder, Slot(0, 1, number, 0))) for number in range(2)]
    for number, result in enumerate(second):
        pair = first[2 * number : 2 * number + 2]
        assert result.trial == min(pair, key=lambda one: one.value).trial
        assert result.curve[:1] == first[result.trial].curve
    assert (
        json.loads((folder / "sweep.json").read_text())["best"]["trial"]
        == min(second, key=lambda one: one.value).trial
    )


def test_the_winner_has_the_weights_of_a_run_by_hand(tmp_path, in_process):
    folder = command.run_sweep(paths_in(tmp_path, HALVED), 1, lambda line: None, prepare)
    best = json.loads((folder / "sweep.json").read_text())["best"]
    swept = folder.parents[1] / "runs" / best["runs"][0] / "model.safetensors"
    kept = swept.read_bytes()
    shutil.rmtree(swept.parent)
    run = run_pipeline(load_config(folder / "best.yaml"), lambda line: None)
    page = run.report.read_text()
    assert f'trial {best["trial"]} of <a href="sweeps/{folder.name}/sweep.html">' in page
    assert run.folder == swept.parent
    assert swept.read_bytes() == kept


def test_a_sweep_that_was_finished_trains_nothing_and_says_the_same(tmp_path, in_process):
    paths = paths_in(tmp_path, HALVED)
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    in_process.clear()
    for path in (folder / "trials").iterdir():
        path.unlink()
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert not in_process, "what the runs left says it all"
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before


def test_a_trial_that_fails_fails_alone(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2], "model.width": [8, 1]}}
    folder = command.run_sweep(paths_in(tmp_path, sweep, epochs=1), 1, lambda line: None, prepare)
    table = pd.read_csv(folder / "sweep.csv").sort_values("model.width")
    assert list(table["status"]) == ["failed", "failed", "finished", "finished"]
    assert table["reason"].iloc[0].count("model.width") >= 1


def test_a_run_that_dies_is_begun_again_and_then_counts_as_failed(tmp_path, monkeypatch):
    starts = []
    monkeypatch.setattr(trials, "_run", lambda arguments, _: starts.append(arguments) or (-9, ""))
    sweep = {"parameters": {"training.learning_rate": [1e-3]}, "retries": 2}
    paths = paths_in(tmp_path, sweep)
    with pytest.raises(AtomloomError, match="killed by signal 9, 3 times"):
        command.run_sweep(paths, 1, lambda line: None, prepare)
    assert len(starts) == 3
    assert "killed by signal 9" in (paths.sweep / command.FAILED).read_text()


def test_a_sweep_that_is_mended_keeps_no_table_of_failures(tmp_path, in_process):
    paths = paths_in(tmp_path, {"parameters": {"training.learning_rate": [1e-3]}}, epochs=1)
    trials.suggest_round(paths, 0, lambda line: None)
    Result(0, "failed", reason="no memory").write(result_file(paths.sweep, Slot(0, 0, 0, 0)))
    with pytest.raises(AtomloomError, match="the first says: no memory"):
        command.run_sweep(paths, 1, lambda line: None, prepare)
    assert (paths.sweep / command.FAILED).exists()
    shutil.rmtree(paths.sweep / "trials")
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert not (paths.sweep / command.FAILED).exists()


def test_repeats_count_by_their_mean(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2]}, "seeds": [0, 1]}
    folder = command.run_sweep(paths_in(tmp_path, sweep, epochs=1), 1, lambda line: None, prepare)
    table = pd.read_csv(folder / "sweep.csv")
    assert len(in_process) == 4
    for row in table.itertuples():
        values = [
            Result.read(result_file(folder, Slot(0, 0, row.trial, repeat))).value
            for repeat in range(2)
        ]
        assert row.value == pytest.approx(np.mean(values))
        assert row.std == pytest.approx(np.std(values, ddof=1))


def test_rounds_of_tpe_follow_from_the_results_before(tmp_path, in_process):
    axes = {"training.learning_rate": {"min": 1e-4, "max": 1e-1, "log": True}}
    sweep = {"method": "tpe", "count": 3, "round": 2, "parameters": axes}
    paths = paths_in(tmp_path, sweep, epochs=1)
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    second = round_file(folder, 1).read_bytes()
    round_file(folder, 1).unlink()
    trials.suggest_round(paths, 1, lambda line: None)
    assert round_file(folder, 1).read_bytes() == second
    assert list(pd.read_csv(folder / "sweep.csv")["trial"]) == [0, 1, 2]
    journal = folder / "journal.log"
    before = journal.read_bytes()
    command.write_sweep(paths, lambda line: None)
    assert journal.read_bytes() == before
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    values = pd.read_csv(folder / "sweep.csv")["value"]
    assert [trial.value for trial in study.trials] == pytest.approx(list(values), rel=1e-12)


def test_two_points_of_one_run_are_one_trial(tmp_path):
    sweep = {"parameters": {"training.threads": [1, 2], "training.learning_rate": [1e-3]}}
    paths = paths_in(tmp_path, sweep)
    lines: list[str] = []
    trials.suggest_round(paths, 0, lines.append)
    assert lines == [
        "1 trial, 1 run each; 1 fewer than wanted, whose runs would be those of other trials"
    ]


def test_a_trial_of_a_later_round_is_none_of_those_before_and_a_lack_of_others_is_said(
    tmp_path, in_process
):
    axes = {"training.threads": [1, 2], "training.learning_rate": [1e-4, 1e-3, 1e-2, 3e-2]}
    sweep = {"method": "tpe", "count": 6, "round": 3, "parameters": axes}
    paths = paths_in(tmp_path, sweep, epochs=1)
    lines: list[str] = []
    folder = command.run_sweep(paths, 1, lines.append, prepare)
    said = [line for line in lines if "run each" in line]
    found = [read_round(round_file(folder, round)) for round in (0, 1)]
    assert [[trial.number for trial in trials] for trials in found] == [[0, 1, 2], [3]]
    assert len(in_process) == len({t.repeats[0].run for trials in found for t in trials}) == 4
    assert list(pd.read_csv(folder / "sweep.csv")["trial"]) == [0, 1, 2, 3]
    assert "3 fewer" not in said[0]
    assert "2 fewer than wanted" in said[1]
    assert "further points would have been runs of these" in (folder / "sweep.html").read_text()


def test_another_value_trains_its_trials_alone(tmp_path, in_process):
    few, more = (
        {"parameters": {"training.learning_rate": rates}} for rates in ([1e-3], [1e-3, 1e-2])
    )
    command.run_sweep(paths_in(tmp_path, few, epochs=1), 1, lambda line: None, prepare)
    in_process.clear()
    folder = command.run_sweep(paths_in(tmp_path, more, epochs=1), 1, lambda line: None, prepare)
    assert len(in_process) == 1
    assert len(pd.read_csv(folder / "sweep.csv")) == 2


def test_a_sweep_of_which_no_trial_can_run_stops_before_it_begins(tmp_path):
    paths = paths_in(tmp_path, {"parameters": {"training.lr": [1, 2]}})
    with pytest.raises(AtomloomError, match=r"training\.lr: unknown key"):
        trials.suggest_round(paths, 0, lambda line: None)


def test_a_training_that_waits_for_another_is_seen_to_wait(capfd):
    said = f"print('ready', file=sys.stderr); sys.exit('atomloom train: x: {WAITING}')"
    status, last = trials._run([sys.executable, "-c", f"import sys; {said}"], dict(os.environ))
    assert (status, last) == (1, f"x: {WAITING}")
    assert capfd.readouterr().err == f"atomloom train: x: {WAITING}\n"


def test_a_metric_that_there_will_not_be_is_refused_before_training(tmp_path):
    paths = paths_in(tmp_path, {"parameters": RATES, "metric": "val_mae_band_gap"})
    with pytest.raises(AtomloomError, match="no `val_mae_band_gap`; choose from val_loss, val_mae"):
        trials.suggest_round(paths, 0, lambda line: None)


def test_a_committee_whose_model_was_removed_says_which(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3]}, "ensemble": 1}
    paths = paths_in(tmp_path, sweep, epochs=1)
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    shutil.rmtree(folder.parents[1] / "runs" / table_row(folder)["run"])
    with pytest.raises(AtomloomError, match="no model file any more"):
        command.run_sweep(paths, 1, lambda line: None, prepare)
    shutil.rmtree(folder / "trials")
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert len(in_process) == 2


def test_a_config_without_a_sweep_says_so(tmp_path):
    paths = paths_in(tmp_path, HALVED)
    plain = replace(paths.layout, config=paths.config.model_copy(update={"sweep": None}))
    with pytest.raises(AtomloomError, match="no section `sweep`"):
        command.run_sweep(RunPaths(plain, paths.plan), 1, lambda line: None, prepare)


def test_the_committee_holds_the_models_of_the_best(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2, 3e-2]}, "ensemble": 2}
    folder = command.run_sweep(paths_in(tmp_path, sweep, epochs=1), 1, lambda line: None, prepare)
    table = pd.read_csv(folder / "sweep.csv").sort_values("value")
    for place in range(2):
        model = folder.parents[1] / "runs" / table["run"].iloc[place] / "model.safetensors"
        copied = folder / "committee" / f"{place}.safetensors"
        assert copied.read_bytes() == model.read_bytes()
    assert len(list((folder / "committee").iterdir())) == 2
    runs = [folder.parents[1] / "runs" / key for key in table["run"].iloc[:2]]
    own = [pd.read_parquet(run / "predictions.parquet").set_index("id") for run in runs]
    joined = pd.read_parquet(folder / "committee.parquet").set_index("id")
    assert len(joined) == len(own[0]) == 24
    one, other = (frame.loc[joined.index, "volume_predicted"] for frame in own)
    np.testing.assert_allclose(joined["volume_predicted"], (one + other) / 2)
    np.testing.assert_allclose(joined["volume_std"], (one - other).abs() / 2**0.5)
    assert (joined["split"] == own[0].loc[joined.index, "split"]).all()
    page = (folder / "sweep.html").read_text()
    mae = (joined["volume_predicted"] - joined["volume"]).abs()[joined["split"] == "test"].mean()
    assert f"MAE of volume {formats.number(mae)}" in page
    assert (folder / "calibration.svg").exists()
    calls = len(in_process)
    command.write_sweep(paths_in(tmp_path, sweep, epochs=1), lambda line: None)
    assert len(in_process) == calls, "a member is evaluated once"
    for number in range(2):  # fewer members, as of trials that were made again and failed
        failed = Result(number, "failed", reason="died", run=str(table.loc[number, "run"]))
        failed.write(result_file(folder, Slot(0, 0, number, 0)))
    command.write_sweep(paths_in(tmp_path, sweep, epochs=1), lambda line: None)
    assert [file.name for file in (folder / "committee").iterdir()] == ["0.safetensors"]
    assert not (folder / "committee.parquet").exists()


def test_the_best_trial_is_trained_once_more_on_training_and_validation(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2]}, "folds": 2, "refit": "best"}
    paths = paths_in(tmp_path, sweep, epochs=2, scheduler="plateau")
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    (refit,) = json.loads((folder / "sweep.json").read_text())["refit"]
    run = folder.parents[1] / "runs" / refit["run"]
    card = json.loads((run / "run.json").read_text())
    trial = json.loads(
        (
            folder.parents[1] / "runs" / table_row(folder)["run"].split(",")[0] / "run.json"
        ).read_text()
    )
    rows, before = card["dataset"], trial["dataset"]
    assert (rows["train"], rows["val"]) == (before["train"] + before["val"], 0)
    assert rows["test"] == before["test"] > 0
    assert card["epochs_run"] == card["best_epoch"] == refit["epochs"] == min(refit["best_epochs"])
    errors = json.loads((run / "metrics.json").read_text())["volume"]
    assert refit["errors"] == {"volume": {"test": errors["test"]}}
    assert table_row(folder)["refit"] == refit["run"]
    assert f"runs/{refit['run']}/" in (folder / "sweep.html").read_text()
    assert RunPaths(
        replace(paths.layout, config=load_config(folder / "refit.yaml")), paths.plan
    ).run.samefile(run)
    address = f"sweeps/{folder.name}/sweep.html"
    assert sweeps_of(refit["run"], folder.parent, folder.parents[1]) == [
        SweepLink(str(refit["trial"]), address, "the refit of trial")
    ]
    in_process.clear()
    kept = (folder / "refit.json").read_bytes()
    (folder / "refit.json").unlink()
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert not in_process
    assert (folder / "refit.json").read_bytes() == kept


def table_row(folder: Path) -> pd.Series:
    """The best trial's row."""
    table = pd.read_csv(folder / "sweep.csv")
    return table.loc[table["value"].idxmin()]


def test_each_fold_validates_its_own_structures_and_none_that_are_trained_on(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3]}, "folds": 3}
    folder = command.run_sweep(paths_in(tmp_path, sweep, epochs=1), 1, lambda line: None, prepare)
    seen: list[bytes] = []
    for fold in table_row(folder)["run"].split(","):
        card = json.loads((folder.parents[1] / "runs" / fold / "run.json").read_text())
        split = folder.parents[1] / "split" / card["keys"]["dataset"] / "dataset.parquet"
        rows = pd.read_parquet(split)
        val = set(rows.loc[rows["split"] == "val", "hash"])
        assert not val & set(rows.loc[rows["split"] == "train", "hash"])
        seen += val
        others = set(rows.loc[rows["split"] != "test", "hash"])
    assert len(seen) == len(set(seen)) == len(others)


def test_loggers_keep_the_trials_of_a_sweep_under_one_name(tmp_path, in_process, monkeypatch):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    seen, inner = [], trials._run
    monkeypatch.setattr(trials, "_run", lambda c, e: seen.append(dict(e)) or inner(c, e))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2]}}
    paths = paths_in(tmp_path, sweep, epochs=2, loggers=["tensorboard"])
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    names = {(env["WANDB_RUN_GROUP"], env["MLFLOW_EXPERIMENT_NAME"]) for env in seen}
    assert names == {(f"d-{folder.name}", "mine")}
    events = EventMultiplexer().AddRunsFromDirectory(str(folder / "tensorboard")).Reload()
    assert set(events.Runs()) == {"trial-00000-0", "trial-00001-0"}
    assert len(events.Tensors("trial-00001-0", "error/val_mae")) == 2


def test_trials_at_the_same_time_are_given_gpus_of_their_own(tmp_path, in_process, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    seen, both = [], threading.Barrier(2, timeout=300)

    def run(arguments, environment):
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        both.wait()  # each of two holds its own
        return 1, "there is no such GPU"

    monkeypatch.setattr(trials, "_run", run)
    paths = paths_in(tmp_path, {"parameters": RATES}, device="auto")
    with pytest.raises(AtomloomError, match="no such GPU"):
        command.run_sweep(paths, 2, lambda line: None, prepare)
    assert sorted(seen) == ["4", "4", "5", "5"]


def test_progress_of_a_finished_run_is_that_of_the_rung_where_it_would_have_stopped(tmp_path):
    cells = [bulk("Cu", a=3.4 + 0.02 * place) for place in range(12)]
    run = train(
        cells,
        [float(place) for place in range(12)],
        folder=tmp_path,
        epochs=3,
        model={"name": "icomformer", "width": 8, "layers": 2},
        split={"duplicates": "report"},
        log=lambda line: None,
    )
    half, whole = (read_progress(run.folder, epochs, 3) for epochs in (2, 3))
    assert half.best_epoch is None
    assert half.history["val_mae"] == whole.history["val_mae"][:2]
    assert whole.best_epoch is not None
    (run.folder / "run.json").unlink()
    assert read_progress(run.folder, 2, 3) == half
    assert read_progress(run.folder, 3, 3) is None


def test_a_trial_has_the_settings_of_now_also_by_a_round_of_an_older_version(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3]}}
    paths = paths_in(tmp_path, sweep, epochs=1)
    file = trials.suggest_round(paths, 0, lambda line: None)
    entries = json.loads(file.read_text())["trials"]
    for entry in entries:
        for repeat in entry["repeats"]:
            repeat["config"] = str(tmp_path / "elsewhere.yaml")
    write_sealed(file, {"trials": entries})
    shutil.rmtree(paths.layout.configs, ignore_errors=True)
    paths = paths_in(tmp_path, sweep, epochs=1, loggers=["tensorboard"])
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    assert len(in_process) == 1
    assert list((folder.parents[1] / "runs" / table_row(folder)["run"] / "tensorboard").iterdir())


def test_a_trial_that_is_another_run_by_now_is_refused(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3]}}
    paths = paths_in(tmp_path, sweep, epochs=1)
    file = trials.suggest_round(paths, 0, lambda line: None)
    (trial,) = read_round(file)
    other = replace(trial.repeats[0], run="0" * 16)
    write_round(file, [replace(trial, repeats=(other,))])
    with pytest.raises(AtomloomError, match=r"trial 0 was run 0{16} when it was chosen"):
        trials.run_slot(paths, Slot(0, 0, 0, 0), 1, lambda line: None)
    assert not in_process


@pytest.mark.parametrize("scheduler", ["constant", "plateau"])
def test_a_refit_needs_the_run_of_its_trial_where_the_schedule_does(
    tmp_path, in_process, scheduler
):
    sweep = {"parameters": {"training.learning_rate": [1e-3]}, "refit": "best"}
    paths = paths_in(tmp_path, sweep, epochs=1, scheduler=scheduler)
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    kept = (folder / "refit.json").read_bytes()
    (folder / "refit.json").unlink()
    shutil.rmtree(folder.parents[1] / "runs" / table_row(folder)["run"])
    if scheduler == "plateau":
        with pytest.raises(AtomloomError, match="the run of the best trial is not there any more"):
            command.run_sweep(paths, 1, lambda line: None, prepare)
        shutil.rmtree(folder / "trials")
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert (folder / "refit.json").read_bytes() == kept


def test_a_refit_of_another_trial_is_not_shown_as_that_of_the_best(tmp_path, in_process):
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2]}, "refit": "best"}
    paths = paths_in(tmp_path, sweep, epochs=1)
    folder = command.run_sweep(paths, 1, lambda line: None, prepare)
    best = table_row(folder)["trial"]
    file = result_file(folder, Slot(0, 0, best, 0))
    replace(Result.read(file), value=1e9).write(file)
    with pytest.raises(AtomloomError, match="is not of the best trial"):
        command.write_sweep(paths, lambda line: None)
    command.run_sweep(paths, 1, lambda line: None, prepare)
    (refit,) = json.loads((folder / "sweep.json").read_text())["refit"]
    assert refit["trial"] == table_row(folder)["trial"] != best


def test_failed_trials_are_tried_again_once_their_results_are_removed(
    tmp_path, in_process, monkeypatch
):
    sweep = {"parameters": {"training.learning_rate": [1e-3, 1e-2]}}
    paths = paths_in(tmp_path, sweep, epochs=1)
    works = trials._run
    with monkeypatch.context() as patch:
        patch.setattr(
            trials,
            "_run",
            lambda command, env: works(command, env) if not in_process else (1, "no memory left"),
        )
        lines: list[str] = []
        folder = command.run_sweep(paths, 1, lines.append, prepare)
    assert list(pd.read_csv(folder / "sweep.csv")["status"]) == ["finished", "failed"]
    assert any(f"1 trial failed, see {folder / 'sweep.csv'}; to try" in line for line in lines)
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert len(in_process) == 1
    shutil.rmtree(folder / "trials")
    command.run_sweep(paths, 1, lambda line: None, prepare)
    assert len(in_process) == 2
    assert list(pd.read_csv(folder / "sweep.csv")["status"]) == ["finished"] * 2


def test_a_committee_has_each_model_once(tmp_path):
    trial = Trial(0, {}, ())
    runs = [("a", 0.1), ("a", 0.1), ("b", 0.2), ("c", 0.3)]
    done = [
        (replace(trial, number=n), [Result(n, "finished", value=value, run=run)], value)
        for n, (run, value) in enumerate(runs)
    ]
    assert [trial.number for trial, _, _ in members_of(3, done)] == [0, 2, 3]
