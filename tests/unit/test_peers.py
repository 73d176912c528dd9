"""The table of peers is what was measured, all programs are in it, and their scripts and environments do as they say."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.io import write

from benchmarks.common import environment as environments
from benchmarks.common.peer import PEERS
from benchmarks.common.results import read_result
from benchmarks.speed import peers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "measured.md").read_text()
RESULT = read_result("peers")


def test_the_table_of_the_page_is_that_of_the_result():
    assert peers.table(RESULT) in PAGE


def test_every_program_was_measured_or_it_is_said_what_failed():
    assert set(RESULT) == {entry.name for entry in peers.ENTRIES}
    for entry in peers.ENTRIES:
        found = RESULT[entry.name]
        if "failed" in found:
            continue
        assert found["models"] == {"ours": entry.ours, "theirs": entry.theirs}
        assert found["same_architecture"] == entry.same
        assert {row["case"] for row in found["rows"]} == set(entry.cases)
        assert found["rounds"] >= 5
        assert found["machine"]["threads"] == 1
        assert min(found["parameters"].values()) > 0
        assert found["note"] == entry.note


def test_a_ratio_is_theirs_by_ours():
    for found in RESULT.values():
        for row in found.get("rows", ()):
            assert row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"], rel=0.5)


def test_comparisons_of_one_architecture_come_first_and_others_are_marked():
    part = {
        "program": "some",
        "versions": {"some": "1.0"},
        "models": {"ours": "A", "theirs": "B"},
        "parameters": {"ours": 1000, "theirs": 2},
        "note": "",
        "rows": [{"request": "step", "case": "x", "ours_ms": 1.5, "theirs_ms": 3.0, "ratio": 2.0}],
    }
    lines = peers.table(
        {
            "other": part | {"same_architecture": False, "note": "not quite"},
            "failed": {"program": "none", "failed": "why"},
            "same": part | {"same_architecture": True},
        }
    ).splitlines()[2:]
    assert lines == [
        "| some 1.0 | B (2) | A (1,000) | training step, x | 3 | 1.5 | 2 |",
        "| some 1.0 | B (2) | other architecture: A (1,000) | training step, x | 3 | 1.5 | 2 |",
        "",
        "- some, B: not quite.",
        "- none: not measured, why",
    ]


def test_every_script_has_its_entry():
    scripts = {path.name for path in PEERS.glob("*_steps.py")}
    assert scripts == {entry.script for entry in peers.ENTRIES}


# --- environments ---------------------------------------------------------------------------------


def test_an_environment_keeps_our_torch_and_is_removed(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(list(map(str, command)))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    with environments.environment(["some==1"], alone=["other==2"]) as python:
        folder = python.parent.parent
        own = f"torch=={torch.__version__.partition('+')[0]}"
        assert (folder / "constraint.txt").read_text() == f"{own}\n"
        assert folder.exists()
    made, first, second, third = commands
    assert made[1:] == ["-m", "venv", str(folder)]
    assert first[-1] == own
    assert second[-3:] == ["-c", str(folder / "constraint.txt"), "some==1"]
    assert third[-2:] == ["--no-deps", "other==2"]
    assert not folder.exists()


def test_a_package_that_cannot_be_installed_is_one_line(monkeypatch):
    said = "WARNING: x\nERROR: No matching distribution found for some==1\n"

    def run(command, **_):
        return subprocess.CompletedProcess(command, int("some==1" in command), "", said)

    monkeypatch.setattr(environments.subprocess, "run", run)
    with (
        pytest.raises(SystemExit, match=r"^ERROR: No matching distribution found for some==1$"),
        environments.environment(["some==1"]),
    ):
        pass


# --- scripts --------------------------------------------------------------------------------------


@pytest.fixture
def serving(monkeypatch):
    """The module that all scripts share."""
    monkeypatch.syspath_prepend(str(PEERS))
    monkeypatch.delitem(sys.modules, "serving", raising=False)
    import serving

    yield serving
    sys.modules.pop("serving", None)


def test_a_script_trains_evaluates_and_calculates_as_it_is_asked(serving, tmp_path, monkeypatch):
    frames = [Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.5 + x]]) for x in (0.0, 0.3)]
    for place, atoms in enumerate(frames):
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = float(place), np.ones((2, 3))
    write(tmp_path / "pairs.extxyz", frames)
    write(tmp_path / "one.extxyz", frames[:1])
    (tmp_path / "options.json").write_text("{}")
    done = []

    class Toy(serving.Potential):
        def build(self):
            return torch.nn.Linear(3, 1)

        def collate(self, frames):
            done.append("collate")
            return torch.tensor(
                np.array([atoms.positions for atoms in frames]), dtype=torch.float32
            )

        def predict(self, batch, training):
            done.append((self.model.training, training))
            positions = batch.clone().requires_grad_(True)
            energy = self.model(positions).sum(dim=(1, 2))
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=training)
            return energy, -slope.view(-1, 3)

        def calculator(self):
            return LennardJones()

    answers = io.StringIO()
    requests = "step pairs\nstep pairs\nevaluate pairs\ncalculate one\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(requests))
    monkeypatch.setattr(sys, "stdout", answers)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path)])
    threads = torch.get_num_threads()
    serving.serve(Toy, "numpy")
    torch.set_num_threads(threads)
    greeting, *times = map(json.loads, answers.getvalue().splitlines())
    assert greeting["parameters"] == 4
    assert set(greeting["versions"]) == {"numpy", "torch"}
    assert len(times) == 4
    assert all(wall > 0 for wall, _ in times)
    assert done == ["collate", (True, True), (True, True), (False, False)]
