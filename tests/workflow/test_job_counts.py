"""Nothing is rebuilt that need not be: one change to a finished project, and the jobs it costs.

Each row is a promise of docs/design.md; the numbers are those of snakemake's own dry run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from atomloom.cli import main
from atomloom.pipeline.paths import report_key_of
from tests.workflow.project import CONFIG, ROOT, Project, counts

AFTER_PLAN = {"index": 1, "split": 1, "train": 1, "evaluate": 1, "report": 1}
NEW_RUN = {"train": 1, "evaluate": 1, "report": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """A project whose workflow has run to the end."""
    project = Project.create(tmp_path_factory.mktemp("finished") / "project")
    project.snakemake()
    assert (project.folder / "results" / "tiny" / "report.html").exists()
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished project, to be changed."""
    return finished.copy(tmp_path / "project")


def chunk_count(project: Project) -> int:
    return len(list((project.folder / "store" / "structures").glob("*.zarr.zip")))


def changed(**sections: dict) -> dict:
    return {name: {**values, **sections.get(name, {})} for name, values in CONFIG.items()}


def test_a_second_call_does_nothing(project):
    assert project.jobs() == {}


def test_a_new_process_with_another_hash_seed_does_nothing(project):
    assert project.jobs(PYTHONHASHSEED="12345") == {}


def test_touching_every_file_does_nothing(project):
    now = time.time()
    for number, path in enumerate(sorted(project.folder.rglob("*"), reverse=True)):
        if ".snakemake" not in path.parts:
            os.utime(path, (now + number, now + number))
    assert project.jobs() == {}


def test_a_copy_elsewhere_with_old_times_does_nothing(project, tmp_path):
    assert project.copy(tmp_path / "elsewhere").jobs() == {}


def test_a_copy_without_snakemake_memory_and_timings_does_nothing(project):
    shutil.rmtree(project.folder / ".snakemake")
    shutil.rmtree(project.folder / "results" / "tiny" / "timings")
    assert project.jobs() == {}


def test_commands_by_hand_and_the_workflow_do_nothing_twice(tmp_path, monkeypatch):
    """Whichever stages were called by hand, in a finished project too, the workflow goes on from there."""
    project = Project.create(tmp_path / "project", structures=12)
    monkeypatch.chdir(project.folder)
    for stage in ("plan", "convert", "graphs"):
        assert main([stage, "--config", "my.yaml"]) == 0
    assert project.jobs() == AFTER_PLAN
    project.snakemake()
    for stage in ("plan", "convert", "graphs", "index", "split", "train", "evaluate", "report"):
        assert main([stage, "--config", "my.yaml"]) == 0
    assert project.jobs() == {}


def test_a_run_without_snakemake_leaves_the_same_bytes_and_nothing_to_do(finished, tmp_path):
    """Only times, and what they are part of, differ."""
    project = Project.create(tmp_path / "project")
    command = [sys.executable, "-m", "atomloom", "run", "--config", "my.yaml", "--cores", "2"]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" epoch ") == 2, "one line per epoch where nobody watches"
    assert project.jobs() == {}
    kept, own = (
        {
            path.relative_to(one.folder): path.read_bytes()
            for folder in ("store", "results")
            for path in (one.folder / folder).rglob("*")
            if path.is_file() and not {"logs", "timings", "state"} & {*path.parts}
        }
        for one in (finished, project)
    )
    assert kept.keys() == own.keys()
    differing = {path for path in kept if kept[path] != own[path]}
    assert {path.name for path in differing if path.suffix != ".html"} == {
        "history.csv",
        "run.json",
        ".seen.json",
        ".report-wanted",  # what Snakemake was last asked for
    }
    again = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    assert "nothing to do" in again.stderr
    assert [path.stem for path in (project.folder / "results/tiny/configs").iterdir()] == [
        path.stem for path in (finished.folder / "results/tiny/configs").iterdir()
    ]


def test_status_says_where_a_training_would_resume(project):
    project.write_config(changed(training={"epochs": 3}))
    command = [sys.executable, "-m", "atomloom", "train", "--config", "my.yaml", "--until", "1"]
    subprocess.run(command, cwd=project.folder, check=True, capture_output=True)
    assert project.jobs() == NEW_RUN
    assert "resumes after epoch 1 of 3" in project.status()[1]


def test_status_names_what_changed(project):
    project.write_config(changed(graph={"cutoff": 7}))
    assert "graph.cutoff 8 -> 7 (since" in project.status()[1]
    project.cifs[3].write_text(project.cifs[3].read_text() + "# seen\n")
    said = project.status()[1]
    assert "data/cif/s003.cif changed" in said
    project.cifs[5].unlink()
    assert "data/cif/s003.cif changed, data/cif/s005.cif gone" in project.status()[1]


def test_reordering_and_reformatting_the_yaml_does_nothing(project):
    text = "# a comment\n" + yaml.safe_dump(
        {name: dict(reversed(list(CONFIG[name].items()))) for name in reversed(list(CONFIG))},
        sort_keys=False,
        default_flow_style=True,
    ).replace("cutoff: 8", "cutoff: 8.0")
    project.write_config({}, text)
    assert project.jobs() == {}


def test_a_change_of_training_or_model_rebuilds_no_graph(project):
    project.write_config(changed(training={"learning_rate": 0.002, "seed": 1}, model={"width": 16}))
    assert project.jobs() == NEW_RUN


def test_another_seed_of_the_split_divides_and_trains_anew(project):
    project.write_config(CONFIG | {"split": {"seed": 1}})
    assert project.jobs() == {"split": 1, **NEW_RUN}


def test_a_model_that_wants_other_graphs_rebuilds_them(project):
    project.write_config(changed(model={"name": "ecomformer"}))
    assert project.jobs() == {"graphs": chunk_count(project), "index": 1, **NEW_RUN}


def test_going_back_to_a_known_run_only_rewrites_the_report(project):
    project.write_config(changed(training={"learning_rate": 0.002}))
    project.snakemake()
    project.write_config(CONFIG)
    assert project.jobs() == {"report": 1}
    shutil.rmtree(project.folder / ".snakemake")
    assert project.jobs() == {"report": 1}, "even where snakemake remembers nothing"


def test_a_report_that_was_written_without_snakemake_is_replaced_by_the_wanted_one(project):
    """By the commands, or cut short by whatever; the request of the wanted one is older than it."""
    report = project.folder / "results" / "tiny" / "report.html"
    wanted = report_key_of(report)
    project.write_config(changed(training={"learning_rate": 0.002}))
    project.command("run")
    assert report_key_of(report) != wanted
    project.write_config(CONFIG)
    assert project.jobs() == {"report": 1}
    project.snakemake()
    assert report_key_of(report) == wanted
    report.write_bytes(report.read_bytes()[:50_000])
    assert project.jobs() == {"report": 1}


def test_cutoff_change_rebuilds_graphs_and_nothing_before_them(project):
    project.write_config(changed(graph={"cutoff": 7}))
    assert project.jobs() == {"graphs": chunk_count(project), "index": 1, **NEW_RUN}


def test_swapping_cutoff_and_max_neighbors_rebuilds_graphs(project):
    project.write_config(changed(graph={"cutoff": 6, "max_neighbors": 8}))
    assert project.jobs() == {"graphs": chunk_count(project), "index": 1, **NEW_RUN}


def test_appending_6_structures_rebuilds_at_most_the_last_chunks(project):
    project.append(6)
    jobs = project.jobs()
    assert jobs.pop("convert") == jobs.pop("graphs") <= 2
    assert jobs == {"plan": 1, **AFTER_PLAN}


def test_deleting_1_structure_rebuilds_at_most_2_chunks(project):
    project.cifs[len(project.cifs) // 2].unlink()
    jobs = project.jobs()
    assert jobs.pop("convert") == jobs.pop("graphs") <= 2
    assert jobs == {"plan": 1, **AFTER_PLAN}


def test_editing_one_coordinate_of_a_middle_structure_rebuilds_its_chunk(project):
    path = project.cifs[len(project.cifs) // 2]
    path.write_text(path.read_text().replace("0.50000000 0.00000000", "0.50010000 0.00000000", 1))
    jobs = project.jobs()
    # Another fingerprint may also cut elsewhere, which changes the chunk beside it.
    assert jobs.pop("convert") == jobs.pop("graphs") <= 2
    assert jobs == {"plan": 1, **AFTER_PLAN}


def test_a_comment_in_a_file_of_structures_is_another_record(project):
    """Records are known by their bytes; the graph itself is taken from the one that stands."""
    path = project.cifs[5]
    path.write_text("# a comment\n" + path.read_text())
    jobs = project.jobs()
    assert jobs.pop("convert") == jobs.pop("graphs") <= 2
    assert jobs == {"plan": 1, **AFTER_PLAN}


def test_editing_one_label_trains_anew_and_rebuilds_no_graph(project):
    labels = project.folder / "data" / "labels.csv"
    labels.write_text(labels.read_text().replace("s020,", "s020,1", 1))
    assert project.jobs() == {"plan": 1, "split": 1, **NEW_RUN}


def test_editing_a_column_that_is_no_target_only_repeats_the_plan(project):
    labels = project.folder / "data" / "labels.csv"
    labels.write_text(labels.read_text().replace(",x\n", ",y\n", 1))
    assert project.jobs() == {"plan": 1}


def test_renaming_the_folder_of_raw_files_only_repeats_the_plan(project):
    (project.folder / "data" / "cif").rename(project.folder / "data" / "moved")
    project.write_config(changed(dataset={"source": "data/moved"}))
    assert project.jobs() == {"plan": 1}


def test_an_empty_work_folder_with_the_same_store_converts_and_builds_nothing(project):
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / ".snakemake")
    assert project.jobs() == {"plan": 1, **AFTER_PLAN}


@pytest.mark.parametrize(
    ("kind", "jobs"),
    [
        ("graphs", {"graphs": 1, "index": 1}),
        ("structures", {"convert": 1, "graphs": 1, "split": 1}),
    ],
)
def test_a_lost_shard_is_made_again_and_nothing_is_trained(project, kind, jobs):
    """Its readers look at it again; what they write stays as it is."""
    store = project.folder / "store"
    content = {path: path.read_bytes() for path in store.rglob("*.zarr.zip")}
    min((store / kind).rglob("*.zarr.zip")).unlink()
    assert project.jobs() == jobs
    project.snakemake()
    assert {path: path.read_bytes() for path in store.rglob("*.zarr.zip")} == content
    assert project.jobs() == {}


@pytest.mark.parametrize(
    ("lost", "jobs"),
    [
        ("runs/*/model.safetensors", {"train": 1, "evaluate": 1}),
        ("runs/*/predictions.parquet", {"evaluate": 1, "report": 1}),
        ("runs/*/metrics.csv", {"evaluate": 1}),
        ("split/*/spec.json", {}),
        ("index/*/spec.json", {}),
        ("index/*/index.parquet", {"index": 1}),
        ("split/*/dataset.parquet", {"split": 1}),
        ("reports/*.html", {"report": 1}),
    ],
)
def test_what_the_workflow_is_for_is_made_again_where_it_is_lost(project, lost, jobs):
    (path,) = (project.folder / "results" / "tiny").glob(lost)
    path.unlink()
    assert project.jobs() == jobs


def test_a_page_that_other_reports_link_to_is_made_again_each_time_it_is_lost(project):
    (page,) = (project.folder / "results" / "tiny" / "reports").glob("*.html")
    content = page.read_bytes()
    for _ in range(2):
        page.unlink()
        project.snakemake()
        assert page.read_bytes() == content
    assert project.jobs() == {}


def test_another_unit_reaches_cards_and_report_and_trains_nothing(project):
    project.write_config(changed(dataset={"unit": "kcal/mol"}))
    assert project.jobs() == {"report": 1}
    project.snakemake()
    results = project.folder / "results" / "tiny"
    (card,) = results.glob("runs/*/run.json")
    assert json.loads(card.read_text())["unit"] == "kcal/mol"
    assert "kcal/mol" in (results / "report.html").read_text()
    assert b"kcal/mol" in card.with_name("model.safetensors").read_bytes()
    assert project.jobs() == {}


def test_a_training_that_is_asked_for_trains_and_what_is_deleted_leaves_no_state(project):
    (run,) = (project.folder / "results" / "tiny" / "runs").iterdir()
    model = (run / "model.safetensors").read_bytes()
    project.snakemake("--forcerun", "train", "--until", "train")
    (log,) = (project.folder / "results" / "tiny" / "logs" / "train").iterdir()
    assert "epoch 2/2" in log.read_text()
    assert "already trained" not in log.read_text()
    assert (run / "model.safetensors").read_bytes() == model
    project.snakemake("--delete-all-output", "--dry-run")
    assert (run / "state").exists()
    project.snakemake("--delete-all-output")
    left = {path.name for path in run.rglob("*") if path.is_file()}
    assert left == {"spec.json"}, "only what explains the folder's name"


def test_unused_training_options_do_not_enter_the_key(project):
    project.write_config(changed(training={"threads": 1, "compile": False, "device": "cpu"}))
    assert project.jobs() == {}


def test_the_report_that_stands_shows_the_run_that_is_configured(finished):
    report = (finished.folder / "results" / "tiny" / "report.html").read_text()
    (run,) = (finished.folder / "results" / "tiny" / "runs").iterdir()
    assert run.name in report


def test_a_job_needs_nothing_but_its_declared_inputs(project, tmp_path, monkeypatch):
    """As on a machine that shares no file system: in a folder with what a rule declares, and the config."""
    project.snakemake("--generate-unit-tests", "jobs")
    jobs = {path.name: path for path in (project.folder / "jobs").iterdir() if path.is_dir()}
    assert jobs.keys() == {"plan", "convert", "graphs", *AFTER_PLAN}
    with_times = {"run.json", "history.csv", "report.html"}
    for rule, job in jobs.items():
        alone = Project(tmp_path / rule)
        shutil.copytree(job / "data", alone.folder)
        alone.write_config(CONFIG)
        monkeypatch.chdir(alone.folder)
        expected = {path: path.read_bytes() for path in (job / "expected").rglob("*.*")}
        chunk = min(expected).name.partition(".")[0]
        which = ["--chunk", chunk] if rule in ("convert", "graphs") else []
        assert main([rule, "--config", "my.yaml", *which]) == 0
        for path, content in expected.items():
            made = (alone.folder / path.relative_to(job / "expected")).read_bytes()
            assert made == content or path.name in with_times, path


def test_snakemake_runs_one_rule_where_raw_files_are_not(project):
    """As an executor does on another machine, and the tests that snakemake generates."""
    shutil.rmtree(project.folder / "data")
    (index,) = project.folder.glob("results/tiny/index/*/index.json")
    content = index.read_bytes()
    index.unlink()
    named = str(index.relative_to(project.folder))
    assert "check dataset.source" in project.snakemake(named, check=False)
    project.snakemake("--allowed-rules", "index", "--", named)
    assert index.read_bytes() == content


def test_snakemakes_own_report_holds_the_results(finished, tmp_path):
    finished.snakemake("--report", str(tmp_path / "whole.zip"))
    results = finished.folder / "results" / "tiny"
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        held = {
            Path(name).name: archive.read(name) for name in archive.namelist() if "/data/" in name
        }
        page = archive.read("whole/report.html").decode()
    for path in (
        results / "report.html",
        *(next(results.glob(f"runs/*/{name}")) for name in ("metrics.json", "parity.png")),
        next(results.glob("runs/*/history.csv")),
        next(results.glob("split/*/quarantine.csv")),
    ):
        assert held[path.name] == path.read_bytes()
    (run,) = (results / "runs").iterdir()
    assert f"Errors of run {run.name} by target and split." in page
    assert finished.jobs() == {}


def test_each_row_of_the_readmes_table_of_changes_is_tested_here():
    """Who changes a row changes the test that is named beside it."""
    rows = {
        "learning rate, width of the model": "a_change_of_training_or_model_rebuilds_no_graph",
        "cutoff, number of neighbours": "swapping_cutoff_and_max_neighbors_rebuilds_graphs",
        "the model, to one that needs": "a_model_that_wants_other_graphs_rebuilds_them",
        "the split, its seed": "another_seed_of_the_split_divides_and_trains_anew",
        "one label": "editing_one_label_trains_anew_and_rebuilds_no_graph",
        "one structure (or a comment": "a_comment_in_a_file_of_structures_is_another_record",
        "files touched or copied": "a_copy_without_snakemake_memory_and_timings_does_nothing",
        "the folder of raw files, moved": "renaming_the_folder_of_raw_files_only_repeats_the_plan",
        "back to an earlier setting": "going_back_to_a_known_run_only_rewrites_the_report",
    }
    table = (ROOT / "README.md").read_text().split("| change |")[1].split("\n\n")[0]
    shown = [line.removeprefix("| ") for line in table.splitlines()[2:]]
    assert len(shown) == len(rows)
    for (start, test), row in zip(rows.items(), shown, strict=True):
        assert row.startswith(start)
        assert f"test_{test}" in globals()


def test_lint_and_rulegraph_work(finished):
    assert "digraph" in finished.snakemake("--rulegraph")
    assert "Congratulations" in finished.snakemake("--lint")


def test_counting_reads_snakemakes_table():
    table = "Job stats:\njob       count\n------  -------\nall           1\ntrain         2\ntotal         3\n"
    assert counts(table) == {"train": 2}
