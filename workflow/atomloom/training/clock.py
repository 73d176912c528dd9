"""Clock: time spent in each part of an epoch, measured without synchronising the device.

On a GPU the marks are events in its stream, read when the epoch is over.
"""

from __future__ import annotations

import time

import torch

PARTS = ("data", "forward", "backward", "optimizer")


class Clock:
    """Clock that sums the time between marks by name."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Reset and start measuring."""
        self._sums = dict.fromkeys(PARTS, 0.0)
        self._events = [("", self._event())] if self._cuda else []
        self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        """Attribute the time since the last mark to this part."""
        if self._cuda:
            self._events.append((part, self._event()))
            return
        now = time.perf_counter()
        self._sums[part] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the start."""
        if self._events:
            torch.cuda.synchronize()
            pairs = zip(self._events, self._events[1:], strict=False)
            for (_, begin), (part, end) in pairs:
                self._sums[part] += begin.elapsed_time(end) / 1e3
            self._events = self._events[-1:]
        return dict(self._sums)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
