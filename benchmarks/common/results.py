"""Results, data sets and options of the benchmarks: one place for each.

A result is `benchmarks/results/<name>.json`, which docs/measured.md takes its figures from. Data sets are
found in the folder that `--data` or ATOMLOOM_DATA names, and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from atomloom.pipeline.run_card import processor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DATA = "ATOMLOOM_DATA"


# --- options --------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Options of a benchmark, which shows its own docstring as help.

    Args:
        doc: of the module.
        parts: names that `--only` takes.
        peer: what the interpreter `--peer` has to have; without it there is no such option.
    """

    def __init__(self, doc: str | None, parts: Sequence[str] = (), peer: str = "") -> None:
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if parts:
            self.add_argument("--only", choices=parts, help="one part alone")
        if peer:
            self.add_argument("--peer", metavar="PYTHON", help=f"interpreter that has {peer}")
        self.add_argument("--data", metavar="FOLDER", help=f"of the data sets, for {DATA}")
        self.add_argument(
            "--no-write",
            dest="write",
            action="store_false",
            help="print, but leave the result file",
        )

    def parse_args(self, *arguments: Any, **named: Any) -> argparse.Namespace:  # type: ignore[override]
        """Options; the folder of the data sets is then known here and to child processes."""
        options = super().parse_args(*arguments, **named)
        if options.data:
            os.environ[DATA] = options.data
        return options


# --- data -----------------------------------------------------------------------------------------


def find_data(path: str) -> Path | None:
    """File or folder of the data sets; None where there is none."""
    folder = os.environ.get(DATA)
    if not folder:
        return None
    found = Path(folder) / path
    return found if found.exists() else None


def data_path(path: str) -> Path:
    """File or folder of the data sets, without which a benchmark ends with one line."""
    found = find_data(path)
    if found is None:
        raise SystemExit(f"no {path}: name the folder of the data sets by --data or {DATA}")
    return found


# --- results --------------------------------------------------------------------------------------


def result_path(name: str) -> Path:
    """The file of a result."""
    return RESULTS / f"{name}.json"


def read_result(name: str | Path) -> dict[str, Any]:
    """Result of before, by name or in another file; empty where nothing was."""
    path = name if isinstance(name, Path) else result_path(name)
    return json.loads(path.read_text()) if path.exists() else {}


def write_result(name: str | Path, content: dict[str, Any]) -> None:
    """Write a result, by name or into another file."""
    path = name if isinstance(name, Path) else result_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def machine(*packages: str, **more: Any) -> dict[str, Any]:
    """Processor, cores and versions that go with figures, and more that they depend on."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in packages}
    return {"processor": processor(), "cores": os.cpu_count(), "versions": versions, **more}


def rounded(value: Any) -> Any:
    """Four digits: more than any measured time or size holds."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
