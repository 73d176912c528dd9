"""Helpers of the rules: the validated config, where things are, what the plan says.

Only the plan knows the chunks, so functions that need it are evaluated after the checkpoint.
"""

import sys
from functools import cache
from pathlib import Path

from atomloom.cli import put_on_path
from atomloom.config import dump_config, parse_config
from atomloom.config.reading import read_config_file
from atomloom.errors import AtomloomError
from atomloom.files import write_text
from atomloom.layout import Layout, PlannedLayout, report_key_of
from atomloom.plan import Plan
from atomloom.stages.sources import refresh_sources

put_on_path()

try:
    for file in workflow.configfiles if workflow.is_main_process else []:
        if "__use_yte__" not in Path(file).read_text():
            # Snakemake has read it, but takes the last of two sections of one name, silently.
            read_config_file(file)
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


def labels(wildcards):
    """Input function: the labels of all chunks, where a teacher makes them."""
    return chunks(layout.labels)(wildcards) if layout.config.teacher else []


def place(name, *file):
    """Input function: a file in the folder that the planned layout calls `name`."""
    return lambda wildcards: getattr(planned(), name).joinpath(*file)


def merged_config(wildcards, output):
    """Params function: the config that a job reads.

    A function of `output`, which is not compared with the last run's: a new learning rate gives the
    merged config another name, and graphs must not care.
    """
    return CONFIG


REQUEST = layout.results / ".report-wanted"
if workflow.is_main_process and not REQUEST.exists():
    write_text(REQUEST, "")


def report_request(wildcards):
    """The file that says which run the report is wanted of; newer than a report of another run.

    The report has one fixed place, so its name cannot say what it shows. It carries the key of its
    run instead, and only where that is not the wanted one may a time stamp make it anew.
    """
    places = planned()
    if not REQUEST.exists() or REQUEST.read_text() != places.report_key:
        write_text(REQUEST, places.report_key)
    return (
        ancient(REQUEST)
        if report_key_of(layout.report) == places.report_key
        else REQUEST
    )
