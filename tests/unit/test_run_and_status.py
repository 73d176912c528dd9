"""All stages in one call, and what would be done and why, in a folder of eight structures."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atomloom.cli import main
from atomloom.commands.run import Shown
from atomloom.commands.status import status_of
from atomloom.config import load_config, parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.chunk_jobs import run_chunks
from atomloom.pipeline.paths import Layout
from tests.unit.eight_structures import write_config, write_project


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with eight structures and a config, in which commands are called."""
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def run() -> int:
    return main(["run", "--config", "my.yaml", "--cores", "1"])


def said_by_status(capsys, *words: str) -> str:
    assert main(["status", "--config", "my.yaml", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("todo", "said_last"),
    [
        ("", "plan, convert, graphs stand, and the same command goes on from there"),
        ("make some", "make some; then the same command goes on"),
    ],
)
def test_a_failed_stage_says_what_stands_and_the_same_command_goes_on(
    project, monkeypatch, capsys, todo, said_last
):
    def fail(*_):
        raise AtomloomError("no room", where="there", todo=todo)

    with monkeypatch.context() as broken:
        broken.setattr("atomloom.stages.index.write_index", fail)
        assert run() == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"atomloom run: there: index: no room; {said_last}"
    )
    said = said_by_status(capsys)
    assert [line.split()[:2] for line in said.splitlines()[1:5]] == [
        ["plan", "done"], ["convert", "done"], ["graphs", "done"], ["index", "to"],
    ]  # fmt: skip
    assert said.splitlines()[-1] == "5 jobs to do: 1 index, 1 split, 1 train, 1 evaluate, 1 report"
    assert run() == 0
    done = capsys.readouterr().err
    assert "convert |" not in done
    layout = Layout(load_config("my.yaml"))
    assert layout.report.exists()
    (own,) = (layout.results / "reports").iterdir()
    assert own.read_text().splitlines()[-1] == layout.report.read_text().splitlines()[-1]
    assert [*layout.configs.iterdir()] == [layout.merged_config], "where the workflow keeps it"
    logs = project / "results" / "tiny" / "logs"
    assert "epoch 1/1" in next((logs / "train").iterdir()).read_text()
    assert said_by_status(capsys).splitlines()[-1] == "nothing to do"
    content = json.loads(said_by_status(capsys, "--json"))
    assert content["jobs"] == {}
    assert {one["state"] for one in content["stages"]} == {"done"}
    model = next((project / "results" / "tiny" / "runs").glob("*/model.safetensors"))
    model.unlink()
    said = said_by_status(capsys)
    assert "train     to do  missing: model.safetensors" in said
    assert main(["runs"]) == 0
    assert "is damaged: model.safetensors is missing" in capsys.readouterr().out
    assert "evaluate  to do  reads what is made again" in said


def test_ctrl_c_in_training_is_one_line_and_the_same_command_resumes(project, capsys):
    write_config(project, epochs=100_000, checkpoint_minutes=60)
    command = [sys.executable, "-m", "atomloom", "run", "--config", "my.yaml", "--cores", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "epoch " in line:
                break
        assert main(["runs", "--json"]) == 0
        (listed,) = json.loads(capsys.readouterr().out)
        assert listed["state"] == "training"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "stopped by Ctrl-C; the state is saved" in said.splitlines()[-1]
    assert "plan, convert, graphs, index, split stand" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "train     to do  resumes after epoch" in said_by_status(capsys)
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "stopped"


def test_a_failed_training_is_told_by_status_and_tried_again(project, monkeypatch, capsys):
    def fail(*_, **__):
        raise AtomloomError("the loss is not a finite number")

    with monkeypatch.context() as broken:
        broken.setattr("atomloom.stages.train.train", fail)
        assert run() == 1
    capsys.readouterr()
    assert "failed after epoch 0 of 1: the loss is not a finite number" in said_by_status(capsys)
    assert main(["runs"]) == 0
    listed = capsys.readouterr().out
    assert "failed 0/1" in listed
    assert listed.splitlines()[-1].endswith(" failed: the loss is not a finite number")


def test_a_status_that_writes_nothing_plans_elsewhere(project, capsys):
    before = sorted(project.rglob("*"))
    said = said_by_status(capsys, "--dry")
    assert sorted(project.rglob("*")) == before
    assert "8 records in 2 chunks; there is no plan" in said
    assert said.splitlines()[-1].startswith("10 jobs to do: 1 plan, 2 convert")
    assert said_by_status(capsys).splitlines()[-1].startswith("9 jobs to do: 2 convert")
    assert said_by_status(capsys, "--dry").splitlines()[1].split()[:2] == ["plan", "done"]


def test_a_download_that_is_missing_is_not_fetched_to_say_what_would_be_done(tmp_path):
    content = {
        "dataset": {"name": "tiny", "source": "jarvis:dft_3d", "target": "gap"},
        "paths": {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")},
    }
    status = status_of(Layout(parse_config(content)), print, dry=True)
    assert status.jobs == {"plan": 1}
    assert "what follows is known once" in status.note
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_planned_where_raw_files_are_missing(project, capsys):
    for path in (project / "data" / "cif").iterdir():
        path.unlink()
    assert main(["status", "--config", "my.yaml"]) == 1
    assert "atomloom status: data/cif: " in capsys.readouterr().err


def test_trials_of_a_sweep_share_the_cores(project, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(
        "atomloom.commands.sweep.run_sweep", lambda paths, jobs, *_: called.append((paths, jobs))
    )
    assert main(["run", "--sweep", "--config", "my.yaml"]) == 1
    assert "the config has no section `sweep`" in capsys.readouterr().err
    (project / "sweep.yaml").write_text(
        "sweep: {parameters: {training.seed: [1, 2]}, threads: 2, method: grid}"
    )
    words = ["--config", "my.yaml", "sweep.yaml", "--cores"]
    for cores in ("5", "1"):
        assert main(["run", "--sweep", *words, cores]) == 0
    assert [jobs for _, jobs in called] == [2, 1]
    assert (called[0][0].layout.plan_folder / "plan.json").exists()


def test_calculators_have_one_thread_each(monkeypatch, tmp_path):
    class Labelling:
        name = "label"

    seen = tmp_path / "threads"
    monkeypatch.setattr(
        "atomloom.pipeline.chunk_jobs._one_chunk",
        lambda *_: seen.write_text(os.environ["OMP_NUM_THREADS"]),
    )
    monkeypatch.setattr("atomloom.pipeline.chunk_jobs.ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("atomloom.pipeline.chunk_jobs.signal.signal", lambda *_: None)
    run_chunks(Labelling, None, ["chunk"], 1, print, print, 3)
    assert seen.read_text() == "3"


# --- the terminal ---


class Terminal(io.StringIO):
    """What was written, as a terminal shows it."""

    def lines(self) -> list[str]:
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


@pytest.fixture
def wide(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_epochs_move_a_bar_in_a_terminal(wide):
    terminal, kept = Terminal(), []
    shown = Shown("train", kept.append, terminal)
    shown.line("icomformer: 3 parameters")
    shown.line("epoch  9/20  train 0.5  ETA 0:05")
    shown.line("epoch 10/20  train 0.4  ETA 0:04")
    assert terminal.lines() == ["   train | [##########----------] 10/20  train 0.4  ETA 0:04"]
    shown.line("epoch 20/20  train 0.3  ETA 0:00")
    assert terminal.lines()[0].startswith("   train | [####################] 20/20  train 0.3")
    assert terminal.lines()[1:] == [""]
    shown.line("that was all")
    assert kept == ["icomformer: 3 parameters", "that was all"]


def test_a_message_in_between_ends_the_line_of_the_bar(wide):
    terminal, kept = Terminal(), []
    shown = Shown("train", kept.append, terminal)
    shown.line("epoch 1/2  train 0.5")
    shown.line("warning: hot")
    shown.line("epoch 2/2  train 0.4")
    assert len(terminal.lines()) == 3
    assert kept == ["warning: hot"]


def test_a_bar_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    Shown("train", print, terminal).line(f"epoch 1/2  {'x' * 100}")
    assert max(map(len, terminal.lines())) == 39


def test_every_epoch_is_a_line_where_there_is_no_terminal():
    kept = []
    shown = Shown("train", kept.append)
    shown.line("epoch 1/2  train 0.5")
    shown.draw(1, 2, "chunks")
    shown.clear()
    assert kept == ["epoch 1/2  train 0.5"]


def test_what_is_finished_needs_no_place_to_write(project, capsys):
    assert run() == 0
    for log in (project / "results" / "tiny" / "logs").glob("*.log"):
        log.unlink()
        log.mkdir()  # nothing can be appended to it
    assert run() == 0
    assert "nothing to do" in capsys.readouterr().err


def test_of_equally_near_runs_one_of_the_same_config_explains_other_labels(project, capsys):
    for rate in (0.001, 0.002):
        write_config(project, learning_rate=rate)
        assert run() == 0
    write_config(project, learning_rate=0.001)
    labels = project / "data" / "labels.csv"
    labels.write_text(labels.read_text().replace("s3,3.5", "s3,4.5"))
    said = said_by_status(capsys)
    (train,) = (line for line in said.splitlines() if line.startswith("train "))
    assert "records or labels changed" in train


def test_a_report_whose_files_were_lost_is_not_said_to_be_of_another_run(project, capsys):
    assert run() == 0
    (table,) = (project / "results" / "tiny" / "runs").glob("*/predictions.parquet")
    table.unlink()
    (report,) = (line for line in said_by_status(capsys).splitlines() if line.startswith("report "))
    assert "another run" not in report
    assert "reads what is made again" in report
