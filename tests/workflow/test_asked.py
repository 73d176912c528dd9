"""Jobs ask for what `resources.yaml` says; it renames nothing and repeats nothing."""

from __future__ import annotations

import re

import pytest

from atomloom.config import load_config
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.resources import DEFAULTS, FILE, Ask, resource_text
from tests.workflow.project import Project, counts

ASKS = {"convert": Ask(701, 11), "train": Ask(3001, 400, cpus=3)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a plan, whose rules print the resources of their jobs."""
    made = Project.create(tmp_path_factory.mktemp("asked") / "project", structures=12)
    for file in (made.folder / "workflow" / "rules").glob("*.smk"):
        # A job with a message prints nothing else.
        file.write_text(re.sub(r"\n    message:\n.*", "", file.read_text()))
    made.command("plan")
    return made


def dry(project, *arguments):
    """What a dry run on a cluster prints."""
    cluster = ("--workflow-profile", "profiles/slurm", "--cores", "99")
    return project.snakemake("-n", *cluster, *arguments)


def asked(output):
    """Resources by rule."""
    found = {}
    for block in re.split(r"\n(?=rule |checkpoint )", output):
        if resources := re.search(r"\n    resources: (.*)", block):
            name = block.split(":")[0].split(" ")[1]
            found[name] = dict(item.split("=", 1) for item in resources[1].split(", "))
            threads = re.search(r"\n    threads: (\d+)", block)
            found[name]["threads"] = threads[1] if threads else "1"
    return found


def test_measured_resources_are_asked_for_and_name_no_other_job(project):
    before = dry(project)
    usual = asked(before)
    for rule in ("convert", "graphs", "index", "split", "train", "evaluate", "report"):
        ask = DEFAULTS[rule]
        assert (usual[rule]["mem_mb"], usual[rule]["runtime"]) == (
            str(ask.mem_mb),
            str(ask.runtime),
        )
    config = load_config(str(project.folder / "my.yaml"))
    file = project.folder / Layout(config).results / FILE
    file.write_text(resource_text(12, ASKS, config))
    (project.folder / "config").mkdir()
    (project.folder / "config" / "cluster.yaml").write_text("{account: me, max_runtime: 300}")
    given = ("--set-resources", "convert:mem_mb=9999")
    after = dry(project, *given)
    assert counts(after) == counts(before)
    assert re.findall("runs/(\\w+)/run.json", after) == re.findall("runs/(\\w+)/run.json", before)
    found = asked(after)
    assert found["train"].items() >= {"mem_mb": "3001", "runtime": "300", "threads": "3"}.items()
    assert found["convert"].items() >= {"mem_mb": "9999", "runtime": "11"}.items()
    assert found["graphs"]["mem_mb"] == usual["graphs"]["mem_mb"]
    assert {found[rule]["slurm_account"] for rule in found.keys() & DEFAULTS} == {"me"}
    file.write_text("records: 12\nrules: {train: {mem_mb: lots}}")
    said = project.snakemake("-n", check=False)
    assert "resources.yaml" in said
    assert "Traceback" not in said
