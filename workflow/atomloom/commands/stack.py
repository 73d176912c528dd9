"""Command `stack`, as it is called: one model of several finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from atomloom.commands.options import Add
from atomloom.pipeline.runs import find_run
from atomloom.store.files import expand_home


def add_stack(add: Add) -> None:
    """Add the command's parser."""
    text = "make one model of finished runs, weighted by their errors on validation rows"
    sub = add("stack", help=text, description=text)
    sub.add_argument("runs", nargs="+", metavar="RUN", help="short name, key or folder of a run")
    sub.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="where runs are (results)",
    )
    sub.add_argument("--output", type=Path, required=True, metavar="FILE", help="NAME.safetensors")
    sub.add_argument(
        "--weights",
        choices=("fit", "mean"),
        default="fit",
        help="fit: least squares on held-out rows, not below zero, with the sum 1 (default); mean: equal ones",
    )
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_called, log=None)


def _called(options: argparse.Namespace) -> None:
    from atomloom.commands.stacking import stack_runs  # pandas takes half a second

    folders = [find_run(options.results, name).folder for name in options.runs]
    stack_runs(folders, Path(expand_home(options.output)), options.weights == "fit", print)
