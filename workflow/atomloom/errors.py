"""The one exception that users are meant to read.

`AtomloomError` carries what is wrong, where, and what to do about it; the command line prints it as
one line and exits with status 1. Anything else that escapes is a defect of atomloom.
"""

from __future__ import annotations

from collections.abc import Callable


class AtomloomError(Exception):
    """Problem that the user can act on.

    Args:
        what: what is wrong, in one clause.
        where: the file, record or config key, if there is one.
        todo: what to do about it, if that is not obvious.
    """

    def __init__(self, what: str, *, where: object = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, str(where), todo
        line = f"{self.where}: {what}" if self.where else what
        super().__init__(legible(" ".join((f"{line}; {todo}" if todo else line).split())))

    def __reduce__(self) -> tuple[Callable[[str, str, str], AtomloomError], tuple[str, str, str]]:
        # Exceptions travel between worker processes; keyword-only arguments need help to do so.
        return (_rebuild, (self.what, self.where, self.todo))


class StoppedRun(AtomloomError):
    """Run stopped by a signal, with its state saved."""


class InterruptedRun(StoppedRun):
    """Run stopped by Ctrl-C, with its state saved."""


class LostProcess(AtomloomError):
    """Run of several processes, another of which has ended; if that one gave a reason, it is the better one."""


def legible(text: str) -> str:
    """Text with characters that no file can hold written out: `\\udcff` for a byte that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def again(stage: str) -> str:
    """Advice on how to make a stage's file again: by hand, or in the workflow."""
    return f"{stage} again: `atomloom {stage}`, or `snakemake --forcerun {stage}`"


def _rebuild(what: str, where: str, todo: str) -> AtomloomError:
    return AtomloomError(what, where=where, todo=todo)
