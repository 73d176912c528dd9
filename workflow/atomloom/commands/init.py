"""Command `atomloom init`: a folder in which `snakemake` runs the workflow of the installed package."""

from __future__ import annotations

import argparse
from pathlib import Path

from atomloom.commands.options import Add
from atomloom.errors import AtomloomError
from atomloom.pipeline.project_files import SNAKEFILE, project_folder
from atomloom.store.files import write_text

EDITED = ("config", "profiles")
"""Folders that users edit, so that each project has its own."""
DEMO = "resources/demo_crystals"
"""Data that config/config.yaml reads as it stands."""

PROJECT_SNAKEFILE = f'''"""The workflow of the installed atomloom; rules of your own may follow."""

from atomloom.pipeline.project_files import project_folder

include: str(project_folder() / "{SNAKEFILE}")


# What an included file aims at is not what a call without a target makes: say it again here.
rule default:
    default_target: True
    input:
        rules.all.input,
'''


def add_init(add: Add) -> None:
    """Add the command `init`."""
    text = "write what snakemake needs to run this package's workflow in a folder"
    sub = add("init", help=text, description=text)
    sub.add_argument("output", type=Path, nargs="?", default=Path("."), metavar="FOLDER")
    sub.add_argument("--demo", action="store_true", help="with the data of the demo")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_init, log=None)


def _init(options: argparse.Namespace) -> None:
    written = init_project(options.output, options.demo)
    print(f"{len(written)} files written to {options.output}")
    if not options.demo:
        print("say in config/config.yaml where the data are, or write a config of your own")
    print("then run `snakemake` there, or `snakemake -n` to see what it would do")


def init_project(folder: Path, demo: bool = False) -> list[Path]:
    """Write Snakefile, config and profiles into a folder; return the files written.

    Files that are there with the same content stay.

    Args:
        folder: of the project; made if it is not there.
        demo: whether the data of the demo are copied, too.

    Raises:
        AtomloomError: when a file with other content is there; then nothing is written.
    """
    source = project_folder()
    wanted = {folder / "Snakefile": PROJECT_SNAKEFILE}
    for name in (*EDITED, DEMO) if demo else EDITED:
        for path in sorted((source / name).rglob("*")):
            if path.is_file() and path.suffix != ".py":
                wanted[folder / path.relative_to(source)] = path.read_text()
    missing = []
    for path, text in wanted.items():
        if not path.exists():
            missing.append(path)
        elif not path.is_file() or path.read_bytes() != text.encode():
            raise AtomloomError(
                "is there already, with other content", where=path, todo="name another folder"
            )
    for path in missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, wanted[path])
        if wanted[path].startswith("#!"):  # a wheel does not always keep what may be executed
            path.chmod(0o755)
    return missing
