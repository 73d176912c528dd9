"""State of an unfinished run: one file, replaced in one step, read without pickled classes.

A state holds only tensors, numbers, strings, lists and dicts, so it is loaded with
`weights_only=True`. It knows nothing of their meaning.
"""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomloom.errors import AtomloomError
from atomloom.store.files import write_atomically
from atomloom.store.keys import FINGERPRINT_BYTES, fingerprint

FORMAT = 1
SHARE = 0.02  # max share of the time for saving at ends of epochs


def save_state(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write a state atomically; a kill at any moment leaves the old one or the new one.

    Torch does not notice flipped bits in tensors: a digest is appended after the end of its file, where it
    does not look.
    """
    buffer = io.BytesIO()  # torch raises its own error for a full disk
    torch.save({"format": FORMAT, "key": key, **_plain(content)}, buffer)
    buffer.write(fingerprint(buffer.getbuffer()))
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_state(path: Path, key: str | None) -> dict[str, Any] | None:
    """Load the state of the run with this `key`, or of any run if that is None; None if there is none yet.

    Raises:
        AtomloomError: when the file is damaged, of another run or of another version.
    """
    if not path.exists():
        return None
    todo = f"remove {path.parent} to start this run from the beginning"
    try:
        whole = path.read_bytes()
        written, digest = whole[:-FINGERPRINT_BYTES], whole[-FINGERPRINT_BYTES:]
        if fingerprint(written) != digest:
            raise ValueError("its digest differs")
        content = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise almost anything
        raise AtomloomError(f"cannot be read: {error}", where=path, todo=todo) from None
    if content.get("format") != FORMAT:
        raise AtomloomError(
            f"has format {content.get('format')}, this atomloom reads {FORMAT}",
            where=path,
            todo=todo,
        )
    if key is not None and content["key"] != key:
        raise AtomloomError(
            "is the state of a run with other data or settings", where=path, todo=todo
        )
    return content


class CheckpointTimer:
    """Timer that says when a state is due.

    Between steps, when `minutes` have passed; at the end of an epoch also when saving, if it takes as long
    as last time, is a small share of the time since.
    """

    def __init__(self, minutes: float) -> None:
        self._limit = 60.0 * minutes
        self._last = time.monotonic()
        self._cost = 0.0

    def due(self, end_of_epoch: bool = False) -> bool:
        """Whether to save now."""
        passed = time.monotonic() - self._last
        return passed >= self._limit or (end_of_epoch and self._cost <= SHARE * passed)

    def saved(self, started: float) -> None:
        """Record that a state was saved, starting at `started` (time.monotonic)."""
        self._last = time.monotonic()
        self._cost = self._last - started


@contextmanager
def termination_noticed() -> Iterator[Callable[[], int]]:
    """Catch SIGTERM and Ctrl-C inside the block; yields a function that returns the signal received.

    Schedulers send SIGTERM some time before they kill. A second Ctrl-C interrupts at once. Outside the
    main thread, where Python cannot handle signals, the function always returns 0.
    """
    came = 0

    def note(number: int, _: object) -> None:
        nonlocal came
        if came == number == signal.SIGINT:
            raise KeyboardInterrupt
        came = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(value: Any) -> Any:
    """Content in types that can be loaded without running code; tensors on the CPU."""
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    raise TypeError(f"a state cannot hold a {type(value).__name__}")
