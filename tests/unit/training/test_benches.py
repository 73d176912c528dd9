"""`atomloom bench`: batches that never run out of memory, and what each precision really does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from atomloom.api import train
from atomloom.cli import main
from atomloom.commands import bench as stage
from atomloom.commands.bench import bench_batch, bench_folder, bench_precision
from atomloom.config import dump_config, parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.training.batch_size import CAUTION, Trial, find_batch, make_trials
from atomloom.training.precision_report import compare_precisions
from tests.unit.test_api import crystals
from tests.unit.training.runs import WatchedModel, small_config, small_data, use_sum_model

ROOT = Path(__file__).resolve().parents[3]


def quiet(_):
    """Take no notice."""


# --- batch ---


def machine(fits: int, most: int):
    """Attempts on a machine where so many structures fit, one byte each; and the sizes tried."""
    seen = []

    def attempt(sizes):
        assert sizes == sorted(set(sizes))
        for size in sizes:
            seen.append(size)
            if size > fits:
                return  # killed
            yield Trial(size, size, size, 0, peak=size)

    return attempt, seen


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 63, 64, 100, 777, 999])
def test_the_search_ends_just_below_what_fits(fits):
    attempt, seen = machine(fits, 1000)
    found = find_batch(attempt, 1000, limit=10_000)
    assert found.best.structures <= fits
    assert found.best.structures >= fits * (1 - 1 / 8) - 1
    assert not found.whole
    assert len(seen) < 40


def test_a_trial_near_the_limit_does_not_count_as_fitting():
    attempt, _ = machine(1000, 1000)
    found = find_batch(attempt, 1000, limit=100)
    assert found.best.structures <= CAUTION * 100


def test_everything_or_nothing():
    assert find_batch(machine(50, 40)[0], 40, limit=1000).whole
    assert find_batch(machine(0, 40)[0], 40, limit=1000).best is None


def test_trials_take_real_steps_on_the_heaviest_batches(monkeypatch):
    built = use_sum_model(monkeypatch, WatchedModel)
    data = small_data(40)
    config = small_config(precision="bf16-mixed", ema_decay=0.9, clip_norm=1.0)
    first, second = make_trials(data, config, [2, 8])
    edges, atoms = np.diff(data.table.edge_ptr), np.diff(data.table.node_ptr)
    rows = data.split("train")
    assert (first.edges, second.edges) == tuple(
        np.sort(edges[rows])[::-1][:n].sum() for n in (2, 8)
    )
    assert second.atoms == np.sort(atoms[rows])[::-1][:8].sum()
    assert second.peak >= first.peak > 1e7
    assert {kind for _, kind in built[0].seen} == {torch.bfloat16}
    assert len(built[0].seen) == 2 * (2 * 2 + 1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A data set of crystals with its graphs, and the places of a run that is not trained."""
    folder = tmp_path_factory.mktemp("bench")
    atoms = [item * (1 + i % 3, 2, 2) for i, item in enumerate(crystals(60))]
    labels = np.arange(60.0)
    options = {"graph": {"max_neighbors": 12}, "epochs": 1, "threads": 1, "device": "cpu"}
    model = {"name": "icomformer", "width": 64, "layers": 2}
    small = {"name": "icomformer", "width": 4, "layers": 2}
    done = train(atoms, labels, folder=folder, log=quiet, model=small, **options)
    content = done.config.model_dump(mode="json") | {"model": model}
    config = parse_config(content)
    layout = Layout(config)
    return RunPaths(layout, done.places.plan)


REAL = """
import sys
from atomloom.config import load_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.stages.labelled import load_labelled
from atomloom.training.batch_size import peak_memory
from atomloom.training.trainer import train
import torch

layout = Layout(load_config(sys.argv[1]))
places = RunPaths(layout, Plan.read(layout.plan_folder / "plan.json"))
train(load_labelled(places), places.config, sys.argv[2], lambda line: None)
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.slow
def test_the_batch_that_was_found_never_exceeds_the_limit(project, tmp_path):
    """Real epochs, shuffled, with validation and saving, by the bounds that came out."""
    limit = int(0.8e9)
    lines = []
    found = bench_batch(project, limit, lines.append)
    assert not found.whole, "everything fits: the limit was none"
    written = json.loads((bench_folder(project) / "batch.json").read_text())
    assert written["batch"] == {"structures": found.best.structures, "edges": found.best.edges}
    assert f"structures: {found.best.structures}" in lines[-1]
    content = project.config.model_dump(mode="json")
    content["training"] |= {"batch": written["batch"], "epochs": 2, "checkpoint_minutes": 1e-9}
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(parse_config(content)))
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(file), str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= limit
    content["training"] |= {"batch": {"structures": 60}, "epochs": 1}
    file.write_text(dump_config(parse_config(content)))
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(file), str(tmp_path / "whole")],
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) > limit, "or the limit would not have mattered"


@pytest.mark.slow
def test_a_limit_that_nothing_fits_is_said_so(project, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(project.config))
    assert main(["bench", "batch", "--config", str(file), "--memory", "0.05"]) == 1
    assert "not one structure can be trained on within 50 MB" in capsys.readouterr().err


# --- precision ---


def test_each_precision_is_compared_with_64_bits():
    config = small_config(model={"name": "icomformer", "width": 16, "layers": 2})
    modes = {mode.precision: mode for mode in compare_precisions(small_data(60), config, 12, quiet)}
    assert list(modes) == ["64", "32", "tf32", "bf16-mixed", "fp16-mixed"]
    exact, plain, half = modes["64"], modes["32"], modes["bf16-mixed"]
    assert exact.output_error == exact.gradient_error == 0
    assert 0 < plain.gradient_error < 1e-4 < half.gradient_error < 0.2
    assert 0 < plain.output_error < 1e-5 < half.output_error < 0.1
    assert all(mode.used for mode in (exact, plain, half))
    assert len(exact.losses) == 12
    np.testing.assert_allclose(plain.losses[:3], exact.losses[:3], rtol=1e-3)
    assert plain.speed == 1.0
    assert plain.validation["target0"] == pytest.approx(exact.validation["target0"], rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_precisions_that_are_not_there_are_named(monkeypatch):
    """tf32 and fp16 on a CPU; and a network that takes no notice of bf16."""

    class Stubborn(WatchedModel):
        def forward(self, batch):
            with torch.autocast("cpu", enabled=False):
                return super().forward(batch)

    use_sum_model(monkeypatch, Stubborn)
    modes = {
        mode.precision: mode for mode in compare_precisions(small_data(), small_config(), 3, quiet)
    }
    for name, reason in (("tf32", "NVIDIA GPU"), ("fp16-mixed", "CUDA device")):
        assert not modes[name].used
        assert modes[name].note.startswith("not available: ")
        assert reason in modes[name].note
        assert modes[name].losses == []
    assert not modes["bf16-mixed"].used
    assert "not in use: same results as 32" in modes["bf16-mixed"].note
    assert modes["bf16-mixed"].losses


def test_an_optimizer_that_takes_no_steps_on_batches_is_named():
    data, config = small_data(), small_config(optimizer="lbfgs")
    for measure in (
        lambda: compare_precisions(data, config, 2, quiet),
        lambda: list(make_trials(data, config, [2])),
    ):
        with pytest.raises(
            AtomloomError, match="steps on single batches are measured, which lbfgs does not take"
        ):
            measure()


def test_the_precision_report_is_written_and_printed(project):
    lines = []
    model = project.config.model.model_copy(update={"width": 4})
    config = project.config.model_copy(update={"model": model})
    places = RunPaths(Layout(config), project.plan)
    bench_precision(places, 4, lines.append)
    folder = bench_folder(places)
    written = json.loads((folder / "precision.json").read_text())
    assert [mode["precision"] for mode in written["modes"]] == [
        "64", "32", "tf32", "bf16-mixed", "fp16-mixed",
    ]  # fmt: skip
    table = np.genfromtxt(folder / "precision.csv", delimiter=",", names=True)
    assert len(table) == 4
    assert (folder / "precision.png").stat().st_size > 1000
    shown = [line for line in lines if line.startswith(("64", "32", "tf32", "bf16", "fp16"))]
    assert [line.split()[1] for line in shown][:2] == ["yes", "yes"]
    assert stage.precision_table([])
