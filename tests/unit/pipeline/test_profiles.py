"""Profiles of clusters: keys that exist, each with its reason; scripts that talk to Slurm, PBS and LSF."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from ast import literal_eval
from dataclasses import fields
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.cli import get_argument_parser
from snakemake.resources import GroupResources

from atomloom.commands.init import init_project
from atomloom.pipeline.site import Site

ROOT = Path(__file__).resolve().parents[3]
PROFILES = ROOT / "profiles"
SCRIPTS = PROFILES / "cluster-generic"
OWN = {
    "slurm": {"status-command", "init-seconds-before-status-checks", "status-attempts", "requeue"},
    "cluster-generic": {"submit-cmd", "status-cmd", "cancel-cmd", "cancel-nargs"},
    "sge": {
        *("pe", "init-seconds-before-status-checks", "status-attempts"),
        "disable-group-jobs-as-array",
    },
    "lsf": set(),
    "kubernetes": {"namespace"},
}
"""Executor -> the options that its profile uses, without the name of the plugin."""
OFTEN = {"jobs", "cores", "local-cores", "retries", "latency-wait", "default-resources"}


def read(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def test_every_folder_is_one_of_these():
    assert {path.name for path in PROFILES.iterdir()} == {"default", *OWN}


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_profile_has_keys_that_exist_and_all_that_every_cluster_needs(name):
    profile, usual = read(name), read("default")
    del usual["cores"]
    assert profile["executor"] == name
    assert usual.items() <= profile.items()
    assert profile.keys() >= OFTEN
    options = {
        option.removeprefix("--")
        for action in get_argument_parser()._actions
        for option in action.option_strings
    }
    own = {key.removeprefix(f"{name}-") for key in profile if key.startswith(f"{name}-")}
    assert own == OWN[name]
    assert profile.keys() - {f"{name}-{key}" for key in own} <= options


@pytest.mark.parametrize("name", sorted(OWN))
def test_options_of_a_plugin_are_those_of_the_installed_one(name):
    try:
        plugin = importlib.import_module(f"snakemake_executor_plugin_{name.replace('-', '_')}")
    except ImportError:
        pytest.skip("the plugin is not installed")
    known = getattr(plugin, "ExecutorSettings", None)
    assert (
        OWN[name] <= {one.name.replace("_", "-") for one in fields(known)}
        if known
        else not OWN[name]
    )


@pytest.mark.parametrize("name", sorted(OWN))
def test_each_key_of_a_profile_has_its_reason(name):
    lines = (PROFILES / name / "config.yaml").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if (key := re.match(r"([a-z-]+):", line)) and key[1] not in read("default").keys() - {
            "cores"
        }:
            follows = (
                before.startswith("#") or key[1].startswith("max-") or key[1].endswith("nargs")
            )
            assert follows, f"{key[1]} of {name}"


def test_grouped_jobs_are_on_one_node_however_many_they_are():
    """Snakemake adds up what jobs of a group ask for, as far as it is a number."""
    defaults = read("cluster-generic")["default-resources"]
    asked = {name: literal_eval(str(value)) for name, value in defaults.items()}
    jobs = [SimpleNamespace(resources=asked, pipe_group=None) for _ in range(10)]
    unlimited = SimpleNamespace(get=lambda name: SimpleNamespace(value=None))
    group = GroupResources.basic_layered([jobs], unlimited, run_local=False)
    assert group["mem_mb"] == 10 * asked["mem_mb"]
    assert (int(group["nodes"]), int(group["tasks_per_node"])) == (1, 1)


# --- scripts ---


def test_scripts_may_be_executed_in_a_project_of_an_installed_package(tmp_path):
    init_project(tmp_path / "project")
    made = tmp_path / "project" / "profiles" / "cluster-generic"
    for name in ("submit", "status", "cancel"):
        assert os.access(SCRIPTS / name, os.X_OK)
        assert os.access(made / name, os.X_OK)
        assert (made / name).read_bytes() == (SCRIPTS / name).read_bytes()


@pytest.fixture
def cluster(tmp_path):
    """A folder with stand-ins for commands of batch systems, which say what a file tells them to."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "config").mkdir()

    def stand_in(name, answer="", status=0):
        text = f"#!/bin/sh\nprintf '%s\\n' {name} \"$@\" >> '{tmp_path}/called'\n"
        text += f"cat <<'END'\n{answer}\nEND\nexit {status}\n" if answer else f"exit {status}\n"
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*command):
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )

    stand_in.run, stand_in.folder = run, tmp_path
    return stand_in


PBS = "Job Id: 7.pbs\n    Job_Name = train\n    job_state = {}\n    Exit_status = {}"


@pytest.mark.parametrize(
    ("command", "answer", "status", "state"),
    [
        ("squeue", "PENDING", 0, "running"),
        ("squeue", "RUNNING", 0, "running"),
        ("squeue", "COMPLETING", 0, "running"),
        ("squeue", "COMPLETED", 0, "success"),
        ("squeue", "CANCELLED by 0", 0, "failed"),
        ("squeue", "OUT_OF_MEMORY", 0, "failed"),
        ("squeue", "TIMEOUT", 0, "failed"),
        ("squeue", "slurm_load_jobs error: Invalid job id specified", 1, "success"),
        ("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1, "running"),
        ("squeue", "", 0, "success"),
        ("qstat", PBS.format("Q", ""), 0, "running"),
        ("qstat", PBS.format("R", ""), 0, "running"),
        ("qstat", PBS.format("H", ""), 0, "running"),
        ("qstat", PBS.format("F", 0), 0, "success"),
        ("qstat", PBS.format("F", 271), 0, "failed"),
        ("qstat", PBS.format("C", 0).replace("Exit", "exit"), 0, "success"),
        ("qstat", PBS.format("F", "").replace("    Exit_status = ", ""), 0, "failed"),
        ("qstat", "qstat: Unknown Job Id 7.pbs", 153, "success"),
        ("qstat", "qstat: cannot connect to server pbs (errno=111)", 1, "running"),
        ("bjobs", "PEND", 0, "running"),
        ("bjobs", "RUN", 0, "running"),
        ("bjobs", "UNKWN", 0, "running"),
        ("bjobs", "DONE", 0, "success"),
        ("bjobs", "EXIT", 0, "failed"),
        ("bjobs", "Job <7> is not found", 255, "success"),
        ("bjobs", "LSF is down. Please wait ...", 255, "running"),
    ],
)
def test_states_of_jobs_are_told_in_the_words_of_snakemake(cluster, command, answer, status, state):
    cluster(command, answer, status)
    system = {"squeue": "slurm", "qstat": "pbs", "bjobs": "lsf"}[command]
    told = cluster.run(SCRIPTS / "status", f"{system}:7")
    assert (told.stdout, told.returncode) == (f"{state}\n", 0), told.stderr
    assert "7" in (cluster.folder / "called").read_text()


def test_the_history_of_pbs_is_asked_for_jobs_that_have_ended(cluster):
    script = f"#!/bin/sh\n[ \"$1\" = -x ] && printf '%s\\n' '{PBS.format('F', 1)}' && exit\n"
    script += "echo 'qstat: 7.pbs Job has finished, use -x or -H to obtain historical job information'; exit 35\n"
    cluster("qstat")
    (cluster.folder / "bin" / "qstat").write_text(script)
    assert cluster.run(SCRIPTS / "status", "pbs:7.pbs").stdout == "failed\n"


def test_ids_without_a_system_are_refused(cluster):
    for script in ("status", "cancel"):
        done = cluster.run(SCRIPTS / script, "123")
        assert done.returncode == 1
        assert "SYSTEM:ID" in done.stderr
        assert not done.stdout


@pytest.mark.parametrize(
    ("system", "command"), [("slurm", "scancel"), ("pbs", "qdel"), ("lsf", "bkill")]
)
def test_jobs_are_cancelled_together(cluster, system, command):
    cluster(command)
    assert cluster.run(SCRIPTS / "cancel", f"{system}:1", f"{system}:2.host").returncode == 0
    assert (cluster.folder / "called").read_text().split() == [command, "1", "2.host"]


JOB = {"name": "train", "threads": 4, "mem-mb": 3000, "minutes": 90}
SITE = "account: chem\npartition: cpu\ngpu_partition: big\ngpu_model: a100\n"


def submitted(cluster, system, site="", **job):
    """Submit a job; what was called, and the result."""
    (cluster.folder / "config" / "cluster.yaml").write_text(f"batch_system: {system}\n{site}")
    given = {**JOB, "gpus": 0, "nodes": 1, "tasks-per-node": 1, **job}
    options = [f"--{name}={value}" for name, value in given.items()]
    done = cluster.run(sys.executable, SCRIPTS / "submit", *options, "job.sh")
    called = cluster.folder / "called"
    return called.read_text().splitlines() if called.exists() else [], done


def test_slurm_is_asked_for_what_a_job_asks_for(cluster):
    cluster("sbatch", "42;cluster")
    call, done = submitted(cluster, "slurm", SITE + "extra: '--constraint=\"a b\" --nice'")
    assert done.stdout == "slurm:42\n"
    wanted = {"--mem=3000M", "--time=90", "--cpus-per-task=4", "--nodes=1", "--parsable"}
    assert wanted | {"--account=chem", "--partition=cpu", "--constraint=a b", "--nice"} <= {*call}
    assert call[-1] == "job.sh"
    assert not any("gpu" in word for word in call)


def test_slurm_gives_each_node_its_gpus_and_each_task_its_cores(cluster):
    cluster("sbatch", "42")
    more = {"gpus": 8, "nodes": 2, "tasks-per-node": 4, "threads": 8}
    call, _ = submitted(cluster, "slurm", SITE, **more)
    wanted = {"--gres=gpu:a100:4", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=2"}
    assert wanted | {"--partition=big"} <= {*call}


def test_pbs_and_lsf_are_asked_for_what_a_job_asks_for(cluster):
    cluster("qsub", "42.host")
    call, done = submitted(cluster, "pbs", SITE, gpus=2, name="a_rule_of_a_long_name")
    assert done.stdout == "pbs:42.host\n"
    assert "select=1:ncpus=4:mem=3000mb:ngpus=2:gpu_model=a100" in call
    assert "walltime=01:30:00" in call
    assert call[call.index("-q") + 1] == "big"
    assert len(call[call.index("-N") + 1]) == 15
    (cluster.folder / "called").unlink()
    cluster("bsub", "Job <42> is submitted to queue <normal>.")
    call, done = submitted(cluster, "lsf", SITE)
    assert done.stdout == "lsf:42\n"
    assert {"rusage[mem=3000MB/job]", "span[hosts=1]", "3000MB", "cpu", "chem"} <= {*call}
    assert call[call.index("-W") + 1] == "90"
    assert "-gpu" not in call


def test_what_cannot_be_submitted_is_one_line(cluster):
    cluster("sbatch", "error: nobody knows why")
    _, done = submitted(cluster, "slurm")
    assert "no id" in done.stderr
    cluster("sbatch", "", 1)
    assert "status 1" in submitted(cluster, "slurm")[1].stderr
    assert "needs Slurm" in submitted(cluster, "pbs", nodes=2)[1].stderr
    assert "batch_system" in submitted(cluster, "condor")[1].stderr
    for case in (submitted(cluster, "lsf", nodes=2), submitted(cluster, "slurm", 'extra: "\'"')):
        assert case[1].returncode == 1
        assert case[1].stderr.count("\n") == 1
        assert not case[1].stdout


def test_every_system_that_may_be_named_has_its_scripts():
    submit = run_path(str(SCRIPTS / "submit"))
    named = set(Site.model_fields["batch_system"].annotation.__args__)
    assert named == submit["COMMANDS"].keys() == submit["IDS"].keys()
