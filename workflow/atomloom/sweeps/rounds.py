"""Rounds, rungs and slots: what a sweep runs, as names that are known before any of it has run.

A round is a number of trials chosen together. In the first rung, slot n is trial n of the round; in
each further rung, a slot is what becomes of `factor` slots of the rung before: the best of them is
trained on. So every job knows its inputs from the start, nobody waits for a whole rung, and which
trials go on depends on no order in which jobs end. It knows nothing of training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from atomloom.config.sweep import Sweep
from atomloom.errors import AtomloomError
from atomloom.store.files import read_json, write_sealed
from atomloom.sweeps.space import Point

TODO = "remove it and run the sweep again: finished trials are not run again"


@dataclass(frozen=True)
class Slot:
    """One job of a sweep."""

    round: int
    rung: int
    number: int
    """Number of the slot in its rung, from 0."""
    repeat: int
    """Number of the seed and fold."""

    def __str__(self) -> str:
        return f"{self.round:04d}-{self.rung:02d}-{self.number:05d}-{self.repeat:03d}"

    @classmethod
    def named(cls, text: str) -> Slot:
        """The slot that `str` wrote.

        Raises:
            AtomloomError: when it is not one.
        """
        if not re.fullmatch(r"\d+-\d+-\d+-\d+", text):
            raise AtomloomError(
                f"`{text}` is not a slot of a sweep", todo="round-rung-number-repeat"
            )
        return cls(*map(int, text.split("-")))


@dataclass(frozen=True)
class Repeat:
    """One run of a trial."""

    values: Point
    """Its seed and fold."""
    run: str
    """Its run key."""
    dataset: str
    """Its dataset key."""
    graph: str
    """Its graph key."""
    index: str
    """Name of its index."""


@dataclass(frozen=True)
class Trial:
    """A point of the sweep, and its runs."""

    number: int
    """Number of the trial in all rounds together, from 0."""
    point: Point
    repeats: tuple[Repeat, ...] = ()
    reason: str = ""
    """Reason that it cannot be run; empty if it can."""


@dataclass(frozen=True)
class Result:
    """Outcome of one job."""

    trial: int
    """Number of the trial that was trained."""
    status: str
    """`finished`, `stopped` (at the end of a rung) or `failed`."""
    epochs: int = 0
    """Epochs trained so far."""
    value: float | None = None
    """The sweep's metric at the best epoch so far; None where it failed or was never a number."""
    best_epoch: int = 0
    reason: str = ""
    """Reason of a failure."""
    run: str = ""
    """Run key."""
    curve: list[float | None] = field(default_factory=list)
    """The validation figure of each epoch."""

    def write(self, path: Path) -> None:
        """Write it in one step."""
        write_sealed(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote.

        Raises:
            AtomloomError: when the file is missing or damaged.
        """
        content = read_json(path, *cls.__dataclass_fields__, todo=TODO)
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def rounds(sweep: Sweep) -> int:
    """Number of rounds of a sweep."""
    return math.ceil(sweep.count / sweep.round) if sweep.method == "tpe" else 1


def rungs(sweep: Sweep, epochs: int) -> tuple[int, ...]:
    """Epochs at which each rung ends; the last is all of them."""
    if sweep.halving is None:
        return (epochs,)
    found, reach = [], sweep.halving.min_epochs
    while reach < epochs:
        found.append(reach)
        reach *= sweep.halving.factor
    return (*found, epochs)


def width(sweep: Sweep, trials: int, rung: int) -> int:
    """Slots of a rung of a round of some trials."""
    for _ in range(rung):
        trials = math.ceil(trials / _factor(sweep))
    return trials


def before(sweep: Sweep, trials: int, rung: int, number: int) -> range:
    """The slots of the rung before, of which the best goes on in this one."""
    factor = _factor(sweep)
    return range(number * factor, min((number + 1) * factor, width(sweep, trials, rung - 1)))


def _factor(sweep: Sweep) -> int:
    return sweep.halving.factor if sweep.halving else 1


def slots(
    sweep: Sweep, epochs: int, round: int, trials: int, repeats: int, rung: int | None = None
) -> Iterator[Slot]:
    """The slots of a round, or of one rung of it, in order."""
    chosen = range(len(rungs(sweep, epochs))) if rung is None else [rung]
    for one in chosen:
        for number in range(width(sweep, trials, one)):
            for repeat in range(repeats):
                yield Slot(round, one, number, repeat)


def score(results: Sequence[Result]) -> float:
    """Score of a trial by its repeats: their mean; infinite if one has no value."""
    values = [math.inf if result.value is None else result.value for result in results]
    return math.fsum(values) / len(values) if values else math.inf


def best_of(candidates: Mapping[int, Sequence[Result]]) -> int:
    """Slot that goes on; of equal ones that of the first trial."""
    return min(
        candidates, key=lambda number: (score(candidates[number]), candidates[number][0].trial)
    )


def write_round(path: Path, trials: Sequence[Trial]) -> None:
    """Write the trials of a round in one step."""
    write_sealed(path, {"trials": [asdict(trial) for trial in trials]})


def read_round(path: Path) -> list[Trial]:
    """The trials of a round.

    Raises:
        AtomloomError: when the file is missing or damaged.
    """
    found = []
    for entry in read_json(path, "trials", todo=TODO)["trials"]:
        names = Repeat.__dataclass_fields__  # older files have more
        repeats = tuple(Repeat(**{name: one[name] for name in names}) for one in entry["repeats"])
        found.append(Trial(entry["number"], entry["point"], repeats, entry["reason"]))
    return found


def round_file(folder: Path, round: int) -> Path:
    """File of the trials of a round."""
    return folder / f"round-{round:04d}.json"


def result_file(folder: Path, slot: Slot) -> Path:
    """File of the result of a job."""
    return folder / "trials" / f"{slot}.json"
