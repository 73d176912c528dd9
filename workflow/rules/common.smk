"""Helpers of the rules: the validated config, where things are, what the plan says.

Only the plan knows the chunks, so functions that need it are evaluated after the checkpoint.
"""

import os
import sys
from functools import cache
from pathlib import Path

from atomloom.config import dump_config, parse_config
from atomloom.errors import AtomloomError
from atomloom.files import write_text
from atomloom.layout import Layout, PlannedLayout, report_key_of
from atomloom.plan import Plan
from atomloom.stages.sources import refresh_sources

# Jobs find the `atomloom` command of the environment that runs the workflow.
os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
)

try:
    layout = Layout(parse_config(config))
    # Jobs on other machines parse this file too; raw files are looked at once, where it starts.
    if workflow.is_main_process:
        refresh_sources(layout)
        if not layout.merged_config.exists():
            write_text(layout.merged_config, dump_config(layout.config))
except AtomloomError as error:
    sys.exit(f"atomloom: {error}")

PLAN = layout.plan_folder / "plan.json"
CONFIG = layout.merged_config


@cache
def _read_plan(path: str, time_stamp: int) -> PlannedLayout:
    return PlannedLayout(layout, Plan.read(path))


def planned() -> PlannedLayout:
    """Where things are, as far as the plan decides; waits for the plan."""
    path = checkpoints.plan.get().output.plan
    return _read_plan(str(path), Path(path).stat().st_mtime_ns)


def chunks(of):
    """Input function: the shards `of(key)` of all chunks."""
    return lambda wildcards: [of(key) for key in planned().plan.chunk_keys]


def place(name, *file):
    """Input function: a file in the folder that the planned layout calls `name`."""
    return lambda wildcards: getattr(planned(), name).joinpath(*file)
