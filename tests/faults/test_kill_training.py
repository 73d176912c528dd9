"""A training killed at random steps, again and again, ends with the same bits.

Each round is a run of its own, killed with SIGKILL at steps that are drawn, in the middle of writing
files too, and gone on with until it ends. ATOMLOOM_KILL_ROUNDS sets the number of rounds (20).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atomloom.training.trainer import train
from tests.unit.training.runs import history, small_config, small_data

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("ATOMLOOM_KILL_ROUNDS", "20"))

VARIANTS = (
    {"ema_decay": 0.9, "scheduler": "onecycle"},
    {"accumulate": 2, "clip_norm": 0.5, "scheduler": "cosine"},
    {"ema_decay": 0.8, "accumulate": 3, "scheduler": "plateau", "plateau_patience": 0},
    {"optimizer": "sgd", "learning_rate": 0.01, "keep_every": 1, "ema_decay": 0.9},
    {"precision": "bf16-mixed", "prefetch": 2},
)
STEPS = {"epochs": 3, "batch": {"structures": 8}, "checkpoint_minutes": 1e-9}

CHILD = """
import json, os, random, signal, sys, warnings
from pathlib import Path

from atomloom.training import trainer
from tests.unit.training.runs import small_config, small_data

folder, data, kills = Path(sys.argv[1]), small_data(44), []
warnings.simplefilter("ignore")  # of forks beside threads: the child has none of them
for number, options in enumerate(json.loads(sys.argv[2])):
    run, config, draw = folder / str(number), small_config(**options), random.Random(number)
    kills.append(0)
    while not (run / "state" / "finished.json").exists():
        # A run makes some 15 steps; each call goes on for 1 to 5 of them.
        last, moment = draw.randint(1, 5), draw.choice(["step", "write", "replace"])
        child = os.fork()  # the imports are paid for once
        if child == 0:
            calls = 0

            def counted(genuine, where):
                def call(*arguments, **options):
                    global calls
                    calls += where == "step"
                    if calls >= last and where == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return genuine(*arguments, **options)
                return call

            trainer._seed_noise = counted(trainer._seed_noise, "step")
            os.fsync = counted(os.fsync, "write")
            os.replace = counted(os.replace, "replace")
            trainer.train(data, config, run, lambda line: None)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills[-1] += 1
        elif os.waitstatus_to_exitcode(status):
            sys.exit("the training failed")
print(json.dumps(kills))
"""


def options_of(number: int) -> dict:
    return {**STEPS, **VARIANTS[number % len(VARIANTS)]}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, list[int]]:
    """A folder with a run a round, and how often each was killed."""
    folder = tmp_path_factory.mktemp("killed")
    every = json.dumps([options_of(number) for number in range(ROUNDS)])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), every],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "workflow"), str(ROOT)])},
        timeout=60 + 60 * ROUNDS,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_training_killed_at_random_steps_ends_with_the_same_bits(killed, tmp_path, number):
    folder, kills = killed
    run = folder / str(number)
    assert kills[number] >= 2
    train(small_data(44), small_config(**options_of(number)), tmp_path, lambda line: None)
    assert history(tmp_path) == history(run)
    for one in sorted(tmp_path.glob("**/[!.]*.safetensors")):
        expected = load_file(one)
        found = load_file(run / one.relative_to(tmp_path))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), one
