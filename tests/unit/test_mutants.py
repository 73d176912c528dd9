"""The mutation tester finds what tests would miss, and blames no test that fails by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.mutants import PACKAGE, ROOT, Verdict, mutated, named, outcome, sample, surviving

TOY = """
def share(done, count):
    if count < 1:
        raise ValueError(f"{count + 1} is none")
    return done / count
"""
TEST = """
from atomloom.structures.toy import share

def test_a_share_is_a_fraction():
    assert share(1, 4) == 0.25
"""
BROKEN = """
def test_what_fails_by_itself():
    import atomloom.structures.toy
    assert not "right"
"""
RUN = """
import sys
from pathlib import Path
from tests.mutants import PACKAGE, attempt_all, sites

root = Path(sys.argv[1])
file = "structures/toy.py"
found = sites(file, (root / PACKAGE / file).read_bytes())
for mutation, verdict in attempt_all(root, found):
    print(mutation.before, "->", mutation.after, verdict.killed, verdict.by)
"""


def attempt(root: Path, **tests: str) -> subprocess.CompletedProcess:
    """Run all mutations of a package of one module against these tests."""
    room, where = root / PACKAGE / "structures", root / "tests" / "unit" / "structures"
    room.mkdir(parents=True)
    where.mkdir(parents=True)
    for folder in (room, room.parent):
        (folder / "__init__.py").touch()
    (room / "toy.py").write_text(TOY)
    for name, text in tests.items():
        (where / f"test_{name}.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(root)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_mutation_dies_of_the_test_that_sees_it_and_survives_where_none_does(tmp_path):
    done = attempt(tmp_path, toy=TEST)
    assert done.returncode == 0, done.stderr
    killer = "tests/unit/structures/test_toy.py::test_a_share_is_a_fraction"
    assert done.stdout.splitlines() == [
        "count < 1 -> (count <= 1) False ",
        "1 -> 2 False ",
        f"done / count -> (done * count) True {killer}",
    ]


def test_a_test_that_fails_without_a_mutation_is_told(tmp_path):
    done = attempt(tmp_path, toy=BROKEN)
    assert done.returncode != 0
    assert "tests fail without any error: " in done.stderr
    assert "test_what_fails_by_itself" in done.stderr.splitlines()[-1]


def test_named_errors_stand_where_they_are_looked_for():
    assert len(named(ROOT / PACKAGE)) >= 10


def test_the_same_seed_draws_the_same_errors():
    drawn = sample(ROOT / PACKAGE, "structures", 6, seed=5)
    assert drawn == sample(ROOT / PACKAGE, "structures", 6, seed=5)
    for mutation in drawn:
        source = (ROOT / PACKAGE / mutation.file).read_bytes()
        assert source[mutation.start : mutation.end].decode() == mutation.before
        assert mutated(source, mutation) != source


def test_a_survivor_keeps_its_reason_until_it_is_killed():
    room = "structures"
    one, other = sample(ROOT / PACKAGE, room, 2, seed=5)
    alive, dead = Verdict(False, "", 0.0), Verdict(True, "test", 0.0)
    before = outcome({}, [(room, one, alive), (room, other, alive)], 5, again=False)
    assert (before["tried"], before["killed"]) == (2, 0)
    first = next(own for own in before["survivors"] if own["before"] == one.before)
    first["reason"] = "both are 1"
    assert [m for _, m in surviving(ROOT / PACKAGE, before["survivors"])] == [other]
    after = outcome(before, [(room, other, dead)], 5, again=True)
    assert (after["tried"], after["killed"]) == (2, 1)
    assert after["survivors"] == [first]
    anew = outcome(after, [(room, one, alive)], 5, again=False)
    assert (anew["tried"], anew["survivors"]) == (1, [first])
