"""The command line itself, whatever the stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from atomloom.cli import main
from atomloom.config import load_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from tests.unit.eight_structures import write_project
from tests.workflow.project import CONFIG

CODE = """
import os, sys
from atomloom.cli import main
assert "torch" not in sys.modules, "too late to tell its threads how to wait"
main(["plan", "--config", "there-is-none.yaml"])
print(os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize(("given", "expected"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_leave_the_processor_to_others_unless_told_otherwise(given, expected):
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | given
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == expected


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with eight structures and a config, in which commands are called."""
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def call(*words: str) -> int:
    return main([*words, "--config", "my.yaml"])


def test_each_stage_says_which_command_comes_first(project, capsys):
    """Walked through from the last stage to the first, whatever has been done so far."""
    stages = ("convert", "graphs", "index", "split", "train", "evaluate", "report", "bench")
    for stage in stages:
        assert call(stage, *(["batch"] if stage == "bench" else [])) == 1
        assert "run `atomloom plan` with the same config first" in capsys.readouterr().err
    first = {
        "plan": {stage: "convert" for stage in stages[1:]},
        "convert": {"index": "graphs", "train": "graphs", "evaluate": "graphs", "report": "graphs"},
        "graphs": {"train": "index", "evaluate": "index", "report": "index", "bench": "index"},
        "index": {"train": "split", "evaluate": "split", "report": "split", "bench": "split"},
        "split": {"evaluate": "train", "report": "train"},
        "train": {"report": "evaluate"},
        "evaluate": {},
        "report": {},
    }
    for done, wanted in first.items():
        assert call(done) == 0, capsys.readouterr().err
        capsys.readouterr()
        for stage, before in wanted.items():
            assert call(stage, *(["batch"] if stage == "bench" else [])) == 1
            said = capsys.readouterr().err
            assert f"run `atomloom {before}` with the same config first" in said, (done, stage)
            assert said.count("\n") == 1
            assert "repair" not in said
    assert (project / "results" / "tiny" / "report.html").exists()
    timings = (project / "results" / "tiny" / "timings").glob("*/*.tsv")
    assert {path.parent.name for path in timings} == {
        *("plan", "convert", "graphs", "index", "split", "train", "evaluate")
    }


def test_labels_of_a_teacher_come_before_the_split(project, capsys):
    config = {**CONFIG, "teacher": {"calculator": "emt"}}
    config["dataset"] = {"name": "tiny", "source": "data/cif", "target": "energy"}
    config |= {"model": {"name": "painn"}, "graph": {}}
    (project / "my.yaml").write_text(yaml.safe_dump(config))
    assert call("plan") == call("convert") == 0
    assert call("split") == 1
    assert "run `atomloom label` with the same config first" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["convert", "graphs"])
def test_a_chunk_that_the_plan_does_not_have_is_named(project, capsys, stage):
    call("plan")
    assert call(stage, "--chunk", "0123") == 1
    assert "the plan has no chunk 0123" in capsys.readouterr().err


def test_a_lost_shard_is_said_to_be_missing(project, capsys):
    for stage in ("plan", "convert"):
        call(stage)
    layout = Layout(load_config("my.yaml"))
    plan = Plan.read(layout.plan_folder / "plan.json")
    layout.structures(plan.chunk_keys[0]).unlink()
    capsys.readouterr()
    assert call("graphs") == 1
    assert "needs what `convert` makes; run `atomloom convert`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(["convert", "--workers", n] for n in ("0", "-1", "1e3", "99999999999")),
        ["train", "--threads", "-2"],
        ["train", "--threads", "100000"],
        ["bench", "batch", "--memory", "nan"],
        ["bench", "precision", "--steps", "0"],
        ["predict", "--model", "m", "--source", "s", "--output", "o", "--chunk", "0"],
        ["predict", "--model", "m", "--source", "s", "--output", "o", "--batch-edges", "-1"],
    ],
)
def test_numbers_of_options_are_checked(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, *([] if words[0] == "predict" else ["--config", "my.yaml"])])
    said = capsys.readouterr().err
    assert f"argument {words[-2]}: " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "option", ["order=[1", "box=!!python/object:os.system {}", "order=2020-01-01", "order=.nan"]
)
def test_values_of_reader_options_are_plain(tmp_path, capsys, option):
    words = [
        "--model",
        "m.safetensors",
        "--source",
        "a.cif",
        "--output",
        str(tmp_path / "o.parquet"),
    ]
    assert main(["predict", *words, "--option", option]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"atomloom predict: --option: `{option}`: ")


def test_gc_wants_an_age():
    with pytest.raises(SystemExit):
        main(["gc", "store", "--results", "results", "--min-age", "nan"])


@pytest.mark.parametrize("command", ["verify", "repair", "gc"])
def test_care_of_what_is_no_store_is_refused(project, capsys, command):
    more = ["--results", "results"] if command == "gc" else []
    call("plan")
    capsys.readouterr()
    for path in ("data", "my.yaml", "nowhere"):
        assert main([command, path, *more]) == 1
        said = capsys.readouterr().err
        assert "is not a store" in said or "no such store" in said
        assert said.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(project):
    """`atomloom inspect data | head -1`: nothing is said, whichever line is the last that is read."""
    command = [sys.executable, "-m", "atomloom", "inspect", "data/cif"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert said == b""
    assert process.returncode == 141


def test_a_job_goes_on_when_nobody_reads_its_messages(project):
    command = [sys.executable, "-m", "atomloom", "plan", "--config", "my.yaml", "--log", "plan.log"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        process.stderr.close()
    assert process.returncode == 0
    assert "8 records" in (project / "plan.log").read_text()


def test_ctrl_c_in_training_saves_and_the_next_call_goes_on(project, capsys):
    config = yaml.safe_load((project / "my.yaml").read_text())
    config["training"] = {"epochs": 100_000, "checkpoint_minutes": 60}
    (project / "my.yaml").write_text(yaml.safe_dump(config))
    for stage in ("plan", "convert", "graphs", "index", "split"):
        assert call(stage) == 0
    layout = Layout(load_config("my.yaml"))
    places = RunPaths(layout, Plan.read(layout.plan_folder / "plan.json"))
    command = [sys.executable, "-m", "atomloom", "train", "--config", "my.yaml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "epoch " in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "stopped by Ctrl-C; the state is saved" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert (places.run / "state" / "last.ckpt").exists()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        going_on = any("resuming at epoch" in line for line in process.stderr)
        process.kill()
    assert going_on


def test_ctrl_c_in_other_stages_is_one_line(project):
    """Workers, too, end without a word."""
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored behind a shell
        "from atomloom import cli\n"
        "from atomloom.stages import convert\n"
        "def slow(layout, plan, key, log):\n"
        "    open(f'begun-{key}', 'w').close()\n"
        "    time.sleep(600)\n"
        "convert.convert_chunk = slow\n"
        "raise SystemExit(cli.main(['convert', '--config', 'my.yaml', '--workers', '2']))\n"
    )
    config = yaml.safe_load((project / "my.yaml").read_text())
    config["dataset"]["chunks"] = {"mean": 1, "min": 1, "max": 1}
    (project / "my.yaml").write_text(yaml.safe_dump(config))
    assert call("plan") == 0
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(list(project.glob("begun-*"))) < 2:
            time.sleep(0.02)
            assert process.poll() is None
        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert time.monotonic() - begun < 300  # the workers would sleep for 600
    assert said.splitlines()[-1] == "atomloom convert: interrupted; what is finished stays"
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["SLURM_PROCID", "RANK"])
def test_a_rank_that_is_no_number_is_one_line(project, capsys, monkeypatch, name):
    monkeypatch.setenv(name, "x")
    assert main(["train", "--config", str(project)]) == 1
    told = capsys.readouterr().err
    assert told == f"atomloom train: {name}: is 'x', not the number of a process; unset it\n"
