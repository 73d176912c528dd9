"""Several processes take the same steps as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atomloom.store.files import file_digest
from atomloom.training import trainer
from atomloom.training.trainer import Start, train
from tests.unit.training.runs import history, small_config, small_data, use_sum_model
from tests.unit.training.test_resume import Killed, kill_at

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import json, os, signal, sys

from atomloom.training import trainer
from tests.unit.training.runs import SumModel, small_config, small_data
from tests.unit.training.test_processes import start_of

run, options, kill_at = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
own = os.environ.get("LOCAL_RANK", "0") == sys.argv[4]
calls = 0


def seed_noise(*arguments, genuine=trainer._seed_noise):
    global calls
    calls += 1
    if calls == kill_at and own:
        os.kill(os.getpid(), signal.SIGKILL)
    genuine(*arguments)


trainer._seed_noise = seed_noise
trainer.AGREE_STEPS = 1
if options.pop("sums"):
    trainer.build_model = lambda config, outputs: SumModel(outputs)
start = start_of(sys.argv[5]) if sys.argv[5] else None
trainer.train(small_data(60, targets=2), small_config(targets=2, **options), run, start=start)
"""


def launch(
    folder: Path, options: dict, kill_at: int = 0, rank: int = 0, start: str = ""
) -> subprocess.CompletedProcess:
    """Train in a process of its own, whose process of one rank is killed where it draws noise."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder / "run"), json.dumps(options)]
    command += [str(kill_at), str(rank), start]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "workflow"), str(ROOT)])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "devices"), [("ddp", 2), ("fsdp", 2), ("ddp", 3)])
def test_several_processes_equal_one(tmp_path, monkeypatch, strategy, devices):
    """Batches of 3 shared by all, the last of one structure: some process then has nothing to do."""
    options = {"precision": "64", "batch": {"structures": 3}, "accumulate": 2, "clip_norm": 0.5}
    options |= {"ema_decay": 0.9, "epochs": 2}
    done = launch(tmp_path, {**options, "devices": devices, "strategy": strategy, "sums": True})
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("epoch") for line in done.stdout.splitlines()) == 2
    use_sum_model(monkeypatch)
    train(small_data(60, targets=2), small_config(targets=2, **options), tmp_path / "one", print)
    for one, other in zip(history(tmp_path / "one"), history(tmp_path / "run"), strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "run"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-11)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "killed"), [("ddp", 1), ("fsdp", 0)])
def test_two_processes_end_when_one_is_killed_and_resume_to_the_same_bits(
    tmp_path, strategy, killed
):
    options = {"devices": 2, "sums": False, "epochs": 2, "checkpoint_minutes": 1e-9}
    options |= {"strategy": strategy, "ema_decay": 0.9, "accumulate": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    done = launch(whole, options)
    assert done.returncode == 0, done.stderr
    done = launch(parts, options, kill_at=4, rank=killed)
    assert done.returncode != 0
    # The second line is of a launcher that was faster than the exchange.
    assert "has lost another one" in done.stderr or "terminated with code -9" in done.stderr
    done = launch(parts, options)
    assert done.returncode == 0, done.stderr
    assert "resuming at epoch 1, batch 3" in done.stdout
    assert history(whole / "run") == history(parts / "run")
    one, other = (load_file(folder / "run" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def start_of(run: str) -> Start:
    """State of an unfinished run, for one that continues it."""
    path = Path(run) / "state" / "last.ckpt"
    return Start(path, None, file_digest(path), processes=0)


@pytest.mark.alone
@pytest.mark.slow
def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """One, then two, then one: together the steps of one alone."""
    options = {"precision": "64", "batch": {"structures": 3}, "accumulate": 2, "ema_decay": 0.9}
    options |= {"epochs": 3, "checkpoint_minutes": 1e-9}
    data, config = small_data(60, targets=2), small_config(targets=2, **options)
    use_sum_model(monkeypatch)
    monkeypatch.setattr(trainer, "AGREE_STEPS", 1)
    train(data, config, tmp_path / "whole", print)
    with monkeypatch.context() as patch:
        kill_at(patch, "_seed_noise", 8)
        with pytest.raises(Killed):
            train(data, config, tmp_path / "one", print)
    two = tmp_path / "two"
    two.mkdir()
    options |= {"devices": 2, "sums": True}
    done = launch(two, options, kill_at=20, start=str(tmp_path / "one"))
    assert (
        "after epoch 0\nnumber of processes: 2 instead of 0: the same steps to rounding\n"
        in done.stdout
    )
    assert done.returncode != 0
    lines = []
    start = start_of(str(two / "run"))
    train(data, config, tmp_path / "again", lines.append, start=start)
    assert lines[0].endswith("after epoch 1")
    for one, other in zip(history(tmp_path / "whole"), history(tmp_path / "again"), strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-11)


HEADS = """
import json, sys

from atomloom.training.trainer import train
from tests.unit.training.direct import config_of, data_of, ionic_molecules

config = config_of(sys.argv[3].split(","), **json.loads(sys.argv[2]))
hidden = {"dipole": [2], "charges": [3, 4]}
train(data_of(ionic_molecules(13), config, hidden), config, sys.argv[1])
"""


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "targets"),
    [("ddp", "energy,forces,dipole,charges"), ("fsdp", "dipole,charges")],
)
def test_two_processes_learn_what_heads_give_as_one_does(tmp_path, strategy, targets):
    options = {"precision": "64", "batch": {"structures": 3}, "epochs": 2, "clip_norm": 0.5}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "workflow"), str(ROOT)])}
    for name, more in (("one", {}), ("two", {"devices": 2, "strategy": strategy})):
        script = tmp_path / f"{name}.py"
        script.write_text(HEADS)
        command = [
            sys.executable,
            str(script),
            str(tmp_path / name),
            json.dumps(options | more),
            targets,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-8)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-8, atol=1e-10)
