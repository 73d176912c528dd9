"""Estimates grow with the data set, follow finished jobs, and promise nothing that was not measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from atomloom.api import train
from atomloom.commands.cost import Cost
from atomloom.commands.estimates import (
    asked,
    estimate_jobs,
    preview,
    table,
    threads_that_pay,
    training_seconds,
)
from atomloom.commands.rehearsal import Rehearsal, Trained, Used, sample_content, share_of_batch
from atomloom.config import Batching, parse_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Chunk, Plan
from atomloom.pipeline.resources import DEFAULTS
from atomloom.pipeline.timing import read_timing, timed
from atomloom.store.files import SEAL
from tests.unit.test_api import crystals

BASE = {"dataset": {"name": "x", "source": "data", "target": "energy"}}
TRAINED = Trained(5.0, 0.01, 0.002, 0.08, 500.0, 2, "cpu", 10_000)
COST = Cost(0, 0, 0, 100, 0, 2.0, 3.0, 100.0, 1000.0, 50.0)
STAGES = ("convert", "graphs", "index", "split", "train", "evaluate")


def rehearsed(**changed):
    used = {name: Used(10.0, 300.0, 3, 1000) for name in STAGES}
    whole = {"structures": 100, "structure_bytes": 1e3, "graph_bytes": 1e5, "used": used}
    return Rehearsal(100, **{**whole, "trained": TRAINED, **changed})


def places(tmp_path, records=100, chunk=50, **sections):
    """Paths of a run with a plan, of which nothing is done."""
    folders = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    config = parse_config({**BASE, "paths": folders, **sections})
    chunks = tuple(
        Chunk(f"{first:016x}", first, min(chunk, records - first))
        for first in range(0, records, chunk)
    )
    paths = RunPaths(Layout(config), Plan(chunks, records, "m", "l", "", 0))
    paths.layout.plan_folder.mkdir(parents=True)
    return paths


def test_more_records_take_more_memory_where_all_are_held_and_more_time_where_one_job_reads_all(
    tmp_path,
):
    few, many = (
        estimate_jobs(places(tmp_path / str(count), count), COST, rehearsed())
        for count in (100, 10_000)
    )
    for rule in ("split", "train", "evaluate"):
        assert many[rule].megabytes > few[rule].megabytes
        assert many[rule].seconds > 10 * few[rule].seconds
    graphs = 9900 * 1e5 / 2**20
    assert many["train"].megabytes - few["train"].megabytes > 2 * graphs
    assert many["graphs"].megabytes == few["graphs"].megabytes, "chunks are of the same size"
    assert many["graphs"].seconds == few["graphs"].seconds
    assert (few["graphs"].jobs, many["graphs"].jobs) == (2, 200)
    assert many["graphs"].files == 600
    assert few["train"].megabytes == pytest.approx(300), "the sample was everything"


def test_a_budget_of_the_loader_bounds_what_training_takes(tmp_path):
    bound = {"training": {"loader": {"memory_gb": 0.1}}}
    free, bounded = (
        estimate_jobs(places(tmp_path / name, 10_000, **sections), COST, rehearsed())
        for name, sections in (("free", {}), ("bounded", bound))
    )
    assert bounded["train"].megabytes < 300 + 150
    assert free["train"].megabytes > 2000


def test_time_of_training_is_that_of_all_epochs(tmp_path):
    config = parse_config({**BASE, "training": {"epochs": 7}})
    assert training_seconds(config, TRAINED, (1000, 100)) == pytest.approx(5 + 7 * (10 + 0.2))
    shared = parse_config({**BASE, "training": {"epochs": 7, "devices": 2}})
    assert training_seconds(shared, TRAINED, (1000, 100)) == pytest.approx(5 + 7 * (5 + 0.1))
    found = rehearsed()
    one, two = (
        estimate_jobs(places(tmp_path / str(n), training={"devices": n}), COST, found)["train"]
        for n in (1, 2)
    )
    assert two.megabytes == 2 * one.megabytes, "each process holds the graphs"


def test_finished_jobs_are_better_than_a_rehearsal(tmp_path):
    paths = places(tmp_path)
    for number, key in enumerate(paths.plan.chunk_keys):
        file = paths.layout.timing("convert", key)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"s\tmax_rss\n{40 + number}.5\t{800 - number}.25\n")
    found = estimate_jobs(paths, COST, rehearsed())
    assert (found["convert"].seconds, found["convert"].megabytes) == (41.5, 800.25)
    assert found["convert"].seen == 2
    assert found["graphs"].seen == 0
    assert "from 2 finished" in "\n".join(table(found))


def test_other_runs_of_the_same_work_tell_the_time_of_training(tmp_path, monkeypatch):
    options = {"graph": {"max_neighbors": 6}, "epochs": 1, "threads": 1, "device": "cpu"}
    model = {"name": "icomformer", "width": 4, "layers": 2}
    atoms = crystals(12)
    done = train(
        atoms, [float(n) for n in range(12)], folder=tmp_path, log=str, model=model, **options
    )
    layout, plan = done.places.layout, done.places.plan
    file = layout.timing("train", done.places.run_key)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("s\tmax_rss\n1234.5\t777.0\n")

    def again(**training):
        content = done.config.model_dump(mode="json")
        content["training"] |= training
        return estimate_jobs(RunPaths(Layout(parse_config(content)), plan), COST, rehearsed())[
            "train"
        ]

    assert (again(learning_rate=1e-5).seconds, again(learning_rate=1e-5).megabytes) == (1234.5, 777)
    assert again(epochs=9).seen == 0
    assert again(batch={"structures": 2}).seen == 0
    (tmp_path / "intruder.py").write_text("raise SystemExit('code of a card was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    card = json.loads((done.folder / "run.json").read_text())
    del card[SEAL]
    card["config"]["model"] = {"name": "intruder:Model"}
    (done.folder / "run.json").write_text(json.dumps(card))
    assert again(learning_rate=1e-5).seen == 0
    (done.folder / "run.json").write_text("{}")
    assert again(learning_rate=1e-5).seen == 0


def test_a_gpu_that_is_not_here_leaves_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr("atomloom.commands.estimates.without_its_gpu", lambda config: True)
    paths = places(tmp_path, training={"device": "cuda"})
    found = estimate_jobs(paths, COST, rehearsed())
    assert {"train", "evaluate"}.isdisjoint(asked(paths.config, found))
    assert {"convert", "graphs"} <= asked(paths.config, found).keys()
    assert f"{DEFAULTS['train'].runtime:,} min" in "\n".join(table(found))


def test_trials_ask_for_training_and_evaluation_and_no_less_than_usual_where_models_differ(
    tmp_path,
):
    same, other = (
        {"parameters": {key: values}}
        for key, values in (("training.learning_rate", [1e-3, 1e-4]), ("model.width", [8, 4096]))
    )
    asks = {}
    for name, sweep in (("same", same), ("other", other)):
        paths = places(tmp_path / name, sweep={**sweep, "refit": "best"})
        asks[name] = asked(paths.config, estimate_jobs(paths, COST, rehearsed()))
    one = asks["same"]
    assert one["trial"].runtime == one["train"].runtime + one["evaluate"].runtime
    assert one["trial"] == one["refit"]
    assert asks["other"]["trial"].runtime == DEFAULTS["trial"].runtime


@pytest.mark.parametrize(("alone", "cores"), [(0.02, 2), (0.011, 1), (0.009, 1)])
def test_cores_are_those_that_pay(alone, cores):
    found = rehearsed(one_thread=replace(TRAINED, per_structure=alone, threads=1))
    assert threads_that_pay(parse_config(BASE), found) == cores
    assert threads_that_pay(parse_config(BASE), rehearsed()) is None


def test_a_preview_names_what_it_did_not_measure(tmp_path):
    paths = places(tmp_path, training={"batch": {"structures": 64}})
    shares = {
        1: TRAINED,
        2: replace(TRAINED, per_structure=0.012),
        4: replace(TRAINED, per_structure=0.02),
    }
    found = rehearsed(shares=shares)
    lines = list(preview(paths, found, estimate_jobs(paths, COST, found)["train"]))
    rows = [line.split() for line in lines[1:4]]
    assert [row[:2] for row in rows] == [["1", "64"], ["2", "32"], ["4", "16"]]
    assert [float(row[4]) for row in rows] == pytest.approx([1, 1.67, 2.02], abs=0.01)
    assert "not measured" in lines[-2]
    assert "0.1 MB per process and step" in lines[-2]


def test_shares_of_a_batch_are_rounded_up():
    shared = share_of_batch(Batching(structures=9, atoms=100), 4)
    assert shared == {
        "structures": 3,
        "atoms": 25,
        "edges": None,
        "triplets": None,
        "atom_pairs": None,
    }
    assert share_of_batch(Batching(structures=2), 8)["structures"] == 1


@pytest.mark.parametrize("records", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("structures", [1, 64, 100_000])
def test_every_sample_has_a_split(tmp_path, records, structures):
    config = parse_config(
        {
            **BASE,
            "split": {"kind": "column", "column": "s", "group": "g"},
            "training": {
                "batch": {"structures": structures},
                "scheduler": "constant",
                "continue_from": "abc",
                "devices": 4,
                "strategy": "fsdp",
                "keep_every": 3,
                "early_stopping": 2,
            },
        }
    )
    own = parse_config(sample_content(config, records, tmp_path))
    train_share, val_share, test_share = own.split.ratios
    assert 0 < train_share <= 1
    assert val_share > 0
    assert train_share + val_share + test_share == pytest.approx(1)
    assert own.training.processes == 1
    assert own.paths.store == str(tmp_path / "store")
    assert own.graph == config.graph


def test_a_timing_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "t.tsv"
    with timed(file):
        pass
    seconds, mebibytes = read_timing(file)
    assert 0 <= seconds < 60
    assert 10 < mebibytes < 100_000
    for text in ("", "s\n", "s\tmax_rss\n1.0\t-\n"):
        file.write_text(text)
        assert read_timing(file) is None
    assert read_timing(tmp_path / "none.tsv") is None


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells")
def test_memory_of_a_job_is_not_that_of_the_process_that_started_it(tmp_path):
    import subprocess
    import sys

    code = "from pathlib import Path; from atomloom.pipeline.timing import timed\nwith timed(Path('t.tsv')): pass"
    whole = f"b = bytearray(400 << 20)\nimport subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)"
    subprocess.run([sys.executable, "-c", whole], cwd=tmp_path, check=True)
    assert read_timing(tmp_path / "t.tsv")[1] < 300
