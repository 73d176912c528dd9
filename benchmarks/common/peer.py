"""Other programs in interpreters of their own: scripts of `benchmarks/peers`, asked line by line.

They import nothing of atomloom. The first line that a script writes is JSON of its versions; each line
that it reads after that is a request, and each answer is one line.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.results import ROOT

PEERS = ROOT / "benchmarks" / "peers"


class Answering:
    """A process that answers each line with one line of JSON, and says one by itself when it is ready.

    Args:
        name: of what runs, for the message when it ends too soon.
        command: program and arguments.
        options: of `subprocess.Popen`.
    """

    def __init__(self, name: str, command: Sequence[str], **options: Any) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        self.greeting = self._answer()

    def ask(self, request: str) -> Any:
        """The answer to a request, decoded from JSON."""
        assert self.process.stdin
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended: see what it wrote above")
        return json.loads(line)


class Peer(Answering):
    """A running script.

    Args:
        python: the interpreter.
        script: file name in `benchmarks/peers`.
        arguments: of the script.
    """

    def __init__(self, python: str | Path, script: str, *arguments: object) -> None:
        super().__init__(script, [str(python), str(PEERS / script), *map(str, arguments)])
        self.versions: dict[str, str] = self.greeting
