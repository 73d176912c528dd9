"""How far a long stage is: items done, rate and time left, now and then. It knows nothing of the items."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

EVERY = 5.0
"""Seconds between two messages."""


@dataclass
class Progress:
    """Counts chunks and what is in them; logs a line every few seconds, and at the end.

    The time left follows from the rate since the start: chunks differ in size, so items are what is
    counted.
    """

    log: Callable[[str], None]
    chunks: int
    """How many there are to do."""
    items: int
    """How many structures or records they hold."""
    clock: Callable[[], float] = time.monotonic
    _chunks_done: int = 0
    _items_done: int = 0
    _started: float = field(init=False)
    _told: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self._told = self.clock()

    def add(self, items: int) -> None:
        """One more chunk of so many items is done."""
        self._chunks_done += 1
        self._items_done += items
        now = self.clock()
        finished = self._chunks_done == self.chunks
        if now - self._told < EVERY and not finished:
            return
        self._told = now
        seconds = max(now - self._started, 1e-9)
        rate = self._items_done / seconds
        line = (
            f"{self._chunks_done:,}/{self.chunks:,} chunks, {self._items_done:,} structures, "
            f"{rate:,.0f} a second"
        )
        if finished:
            self.log(f"{line}, {in_words(seconds)} in all")
        else:
            self.log(f"{line}, {in_words((self.items - self._items_done) / rate)} left")


def in_words(seconds: float) -> str:
    """A time as people say it: 42 s, 7 min 30 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
