"""Progress of a long stage: items done, rate and time left. It knows nothing of the items."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

EVERY = 5.0
"""Seconds between two messages."""


@dataclass
class Progress:
    """Counter of chunks and their items; logs a line every few seconds, and at the end.

    The time left follows from the rate since the start, in items, since chunks differ in size.
    """

    log: Callable[[str], None]
    chunks: int
    """Number of chunks to do."""
    items: int
    """Number of structures or records in them."""
    clock: Callable[[], float] = time.monotonic
    _chunks_done: int = 0
    _items_done: int = 0
    _started: float = field(init=False)
    _told: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self._told = self.clock()

    def add(self, items: int) -> None:
        """Count one more chunk, of this many items, as done."""
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
            f"{rate:,.0f} per second"
        )
        if finished:
            self.log(f"{line}, {in_words(seconds)} in all")
        else:
            self.log(f"{line}, {in_words((self.items - self._items_done) / rate)} left")


def in_words(seconds: float) -> str:
    """Duration in words: 42 s, 7 min 30 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
