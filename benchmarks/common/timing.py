"""Times of variants that take turns, so that all of them meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Seconds:
    """Time that one call took."""

    clock: float
    processor: float
    """Time of all threads of the process: that on one core that has nothing else to do."""


def timed(work: Callable[[], object]) -> Seconds:
    """Time of one call; work that returns `Seconds` was done by another process, which measured it."""
    clock, processor = time.perf_counter(), time.process_time()
    told = work()
    spent = Seconds(time.perf_counter() - clock, time.process_time() - processor)
    return told if isinstance(told, Seconds) else spent


def in_turns(
    variants: Mapping[Name, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[Name, list[Seconds]]:
    """Times of each variant, each called once a round; the first rounds warm up and do not count."""
    times: dict[Name, list[Seconds]] = {name: [] for name in variants}
    for turn in range(warm_up + rounds):
        for name, work in variants.items():
            spent = timed(work)
            if turn >= warm_up:
                times[name].append(spent)
    return times


def clock(times: Sequence[Seconds]) -> float:
    """Median seconds by the clock."""
    return statistics.median(each.clock for each in times)


def processor(times: Sequence[Seconds]) -> float:
    """Median seconds of the processor, which other work on the machine does not enter."""
    return statistics.median(each.processor for each in times)
