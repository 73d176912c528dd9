"""Common parts of the readers of VASP's outputs: options, units, and the handling of killed runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.readers.base import Piece, unreadable
from atomloom.store.files import scratch_is_full

OPTIONS = {
    "unconverged": "true: accept ionic steps whose electronic loop did not converge",
    "truncated": "true: accept the complete ionic steps of a file that breaks off (a killed job)",
}

_HELD = 64 << 20
"""Max bytes of a file's steps held in memory until its end is seen; the rest is on disk."""


def refuse_unconverged(reason: str, options: Mapping[str, Any]) -> None:
    """Refuse an ionic step whose electronic loop did not converge.

    Raises:
        AtomloomError: unless the option `unconverged` accepts such steps.
    """
    if not options.get("unconverged"):
        raise AtomloomError(
            f"the electronic loop did not converge: {reason}",
            todo="set the option `unconverged: true` to accept such steps",
        )


def at_limit(steps: int) -> str:
    """Reason why a loop that took all its steps counts as not converged."""
    return f"it took all NELM = {steps} steps"


def whole_steps(steps: Iterator[Piece], options: Mapping[str, Any]) -> Iterator[Piece]:
    """Records of the ionic steps of a file, held back until its end is seen.

    The file of a killed job breaks off: all its steps are refused, unless the option `truncated`
    accepts the complete ones.

    Args:
        steps: complete steps, without ids; an AtomloomError says where the file breaks off.
        options: options of the readers.

    Raises:
        AtomloomError: when there is no step.
    """
    count, reason = 0, ""
    with scratch_is_full(), tempfile.SpooledTemporaryFile(_HELD, prefix="atomloom-") as held:
        try:
            for step in steps:
                held.write(f"{len(step.payload)} {step.format}\n".encode() + step.payload)
                count += 1
        except AtomloomError as error:
            reason = str(error)
        if count == 0:
            raise AtomloomError(reason or "no ionic step")
        if reason and not options.get("truncated"):
            text = f"breaks off after {count} complete ionic step{'s' * (count > 1)}: {reason}"
            todo = "set the option `truncated: true` to accept the complete ones"
            for _ in range(count):
                yield unreadable(f"{text}; {todo}")
            return
        held.seek(0)
        for _ in range(count):
            size, _, format = held.readline().decode().rstrip("\n").partition(" ")
            yield Piece(held.read(int(size)), format=format)
