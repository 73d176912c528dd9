"""Python environments of other programs, made for one measurement and removed after it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path


@contextmanager
def environment(requirements: Sequence[str], alone: Sequence[str] = ()) -> Iterator[Path]:
    """Interpreter of a new environment with our torch and these packages; the folder is removed at the end.

    torch is installed first, and what follows may not change it, so that all programs compute by the same one.

    Args:
        requirements: as for pip.
        alone: packages that are then installed without what they require, where that excludes this torch.

    Raises:
        SystemExit: when a package cannot be installed, with pip's last line.
    """
    torch = f"torch=={version('torch').partition('+')[0]}"
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        constraint = Path(folder) / "constraint.txt"
        constraint.write_text(f"{torch}\n")
        python = Path(folder) / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _pip([*install, torch])
        _pip([*install, "-c", str(constraint), *requirements])
        if alone:
            _pip([*install, "--no-deps", *alone])
        yield python


def _pip(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise SystemExit((lines or done.stderr.splitlines() or ["pip failed"])[-1][:300])
