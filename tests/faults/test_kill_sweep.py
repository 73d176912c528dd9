"""A sweep killed again and again, at random moments, ends with the same bytes.

It is killed with SIGKILL, and its trainings with it, as the n-th file is about to be replaced or has been
written; n is drawn. ATOMLOOM_KILLS sets how often (12).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("ATOMLOOM_KILLS", "12"))

CHILD = """
import json, mmap, os, random, signal, sys, warnings
from pathlib import Path

import optuna
from atomloom.api import prepare
from atomloom.cli import main
from atomloom.commands import sweep, trials
from atomloom.training import trainer
from tests.unit.sweeps.cells import config_in

warnings.simplefilter("ignore")  # of forks beside threads: the child has none of them
SWEEP = {
    "method": "tpe", "count": 4, "round": 2, "refit": "best", "ensemble": 1,
    "parameters": {"training.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True}},
    "halving": {"min_epochs": 1, "factor": 2},
}
writes, trainings = (mmap.mmap(-1, 8) for _ in range(2))  # shared with forks


def count(where):
    where[:8] = (int.from_bytes(where[:8], "big") + 1).to_bytes(8, "big")
    return int.from_bytes(where[:8], "big")


def fork(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def swept(folder, last):
    # One call of the sweep, which dies with the last file that it may write.
    def counted(genuine):
        def call(*arguments):
            if count(writes) >= last:
                os.killpg(0, signal.SIGKILL)
            return genuine(*arguments)
        return call

    def run(command, environment):
        count(trainings)
        return fork(lambda: main(list(command)[4:])), "it failed"

    def work():
        os.setsid()
        os.chdir(folder)
        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        trials._run = run
        config = config_in(Path("."), SWEEP, epochs=2, checkpoint_minutes=1e-9)
        sweep.run_sweep(prepare(config, str), 1, str, prepare)

    writes[:8] = trainings[:8] = bytes(8)
    return fork(work)


whole, killed = Path(sys.argv[1]), Path(sys.argv[2])
assert swept(whole, 10**9) == 0
total, draw, kills = int.from_bytes(writes[:8], "big"), random.Random(7), 0
while (status := swept(killed, draw.randint(2, total // 4) if kills < int(sys.argv[3]) else 10**9)):
    assert status == -signal.SIGKILL, status
    kills += 1
assert swept(killed, 10**9) == 0
print(json.dumps([kills, int.from_bytes(trainings[:8], "big")]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, Path, int, int]:
    """Folders of an undisturbed and a killed sweep, how often it was killed, and trainings of one more call."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(whole), str(killed), str(KILLS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "workflow"), str(ROOT)])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return whole, killed, *json.loads(done.stdout.splitlines()[-1])


def files(folder: Path) -> dict[str, bytes]:
    """Content of a sweep's finished files, by path."""
    (swept,) = (folder / "results" / "d" / "sweeps").iterdir()
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(swept.rglob("[!.]*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_bytes(killed):
    whole, disturbed, kills, _ = killed
    assert kills >= KILLS // 2, "too few kills to mean anything"
    found, expected = files(disturbed), files(whole)
    assert found.keys() == expected.keys()
    names = {Path(path).name for path in expected}
    assert names >= {"sweep.csv", "sweep.parquet", "best.yaml", "journal.log", "refit.json"}
    assert [path for path in expected if found[path] != expected[path]] == []


@pytest.mark.slow
def test_the_next_call_trains_nothing(killed):
    assert killed[3] == 0
