"""`atomloom leaderboard`: results beside published ones, and submissions to leaderboards."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomloom.commands.options import Add
from atomloom.config import Config, expand_variables, load_config
from atomloom.errors import AtomloomError, again
from atomloom.pipeline.outside_data import told_of
from atomloom.pipeline.published import Verdict, verdicts
from atomloom.pipeline.run_card import require_result
from atomloom.store.files import expand_home, read_json

WHICH_DATA = ("dataset.unit", "dataset.labels", "split.folds_file")
"""Fields that are in no key and yet say whether two runs have the same data; `dataset.source` may be elsewhere."""


def add_leaderboard(add: Add) -> None:
    """Add the command's parser.

    Args:
        add: the method `add_parser` of the subcommands.
    """
    text = (
        "compare runs with published errors; write submissions to Matbench and JARVIS-Leaderboard"
    )
    parser = add("leaderboard", help=text, description=text)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(
        name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, log=None)
        return sub

    sub = action("published", _published, "say of each config with a section `published`: reached?")
    sub.add_argument("config", nargs="+", help="configs, such as config/presets/*.yaml")
    sub.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="where runs are (paths.results of the config)",
    )

    sub = action(
        "matbench", _matbench, "write a submission to Matbench from five runs, one per fold"
    )
    sub.add_argument("runs", nargs="+", type=_path, metavar="RUN", help="results/<name>/runs/<run>")
    sub.add_argument("--task", required=True, help="such as matbench_phonons")
    sub.add_argument("--algorithm", required=True, help="short name of the algorithm")
    sub.add_argument("--authors", required=True, help="who submits")
    sub.add_argument("--bibtex", type=_path, metavar="FILE", help="references to cite")
    sub.add_argument("--notes", default="", help="anything else; costs are added")
    sub.add_argument("--output", type=_path, required=True, metavar="FOLDER")

    sub = action("jarvis", _jarvis, "write a contribution to JARVIS-Leaderboard from a run")
    sub.add_argument("run_folder", type=_path, metavar="RUN", help="results/<name>/runs/<run>")
    sub.add_argument(
        "--benchmark",
        required=True,
        metavar="NAME",
        help="such as AI-SinglePropertyPrediction-formation_energy_peratom-dft_3d-test-mae",
    )
    sub.add_argument(
        "--file", type=_path, required=True, help="the benchmark's <data set>_<property>.json.zip"
    )
    sub.add_argument("--name", required=True, help="name of the model")
    sub.add_argument("--team", required=True)
    sub.add_argument("--email", required=True)
    sub.add_argument("--url", default="", help="of the paper or project")
    sub.add_argument("--output", type=_path, required=True, metavar="FOLDER")

    sub = action("split", _split, "write a benchmark of JARVIS-Leaderboard as a table of labels")
    sub.add_argument("file", type=_path, help="<data set>_<property>.json.zip")
    sub.add_argument("--target", required=True, metavar="NAME", help="column of the values")
    sub.add_argument("--output", type=_path, required=True, metavar="FILE.csv")


def _path(text: str) -> Path:
    return Path(expand_home(text))


# --- published -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A published error of a preset, and what its runs came to."""

    preset: str
    verdict: Verdict
    note: str


def compare_published(config: Config, preset: str, results: Path | None = None) -> list[Row]:
    """Compare the runs of a config with its published errors; empty without such a section.

    Only runs with all settings of the config count. Of others, the number and what they differ in is said. If the
    published errors are means over folds, the fold is no setting.
    """
    from atomloom.pipeline.runs import changes_nothing, settings_apart

    if config.published is None:
        return []
    folder = results or Path(expand_variables(config.paths.results))
    wanted, folds = config.model_dump(mode="json"), config.published.folds
    same: dict[int, list[Mapping[str, Any]]] = {}
    others: dict[str, int] = {}
    seen: dict[str, None] = {}  # lines, each once
    for card in sorted(folder.glob(f"{config.dataset.name}/runs/*/run.json")):
        metrics = card.with_name("metrics.json")
        if not metrics.exists():
            continue  # not evaluated yet
        try:
            content = read_json(card, "config")
            measured = read_json(metrics)
            require_result(content, metrics, again("evaluate"))
        except AtomloomError as error:
            others[str(error)] = 1
            continue
        found = content["config"]
        differ = [
            name
            for name, _, _ in settings_apart(wanted, found)
            if (name.startswith(WHICH_DATA) or not changes_nothing(name))
            and not (name == "split.fold" and folds > 1)
        ]
        if differ:
            others[differ[0]] = others.get(differ[0], 0) + 1
        else:
            same.setdefault(found["split"].get("fold", 0), []).append(measured)
            seen |= dict.fromkeys(told_of(content))
    used = [_whole(same[fold], config) for fold in sorted(same) if folds == 1 or fold < folds]
    units = {spec.reported: spec.reported_unit for spec in config.targets}
    notes = [f"{count} run(s) with another {key}" for key, count in others.items()]
    note = ", ".join([*seen, *notes])
    return [Row(preset, found, note) for found in verdicts(config.published, used, units)]


def _whole(runs: Sequence[Mapping[str, Any]], config: Config) -> Mapping[str, Any]:
    """The metrics of the run with most test values, of runs that differ in their data alone."""
    first = config.targets[0].reported
    return max(runs, key=lambda one: one.get(first, {}).get("test", {}).get("count", 0))


def table_of(rows: Sequence[Row]) -> list[str]:
    """Lines of a table in plain text."""
    head = ("preset", "error", "theirs", "ours", "allowed", "state", "")
    cells = [head]
    for row in rows:
        error, found = row.verdict.published, row.verdict
        unit = f" {found.unit}" if found.unit else ""
        cells.append(
            (
                row.preset,
                f"{error.metric.upper()} of {error.target}",
                f"{error.value:.4g}{unit}",
                "-" if found.ours is None else f"{found.ours:.4g}{unit}",
                f"{error.limit:.4g}{unit}",
                f"{found.state}{found.reason}",
                f"({row.note})" if row.note else "",
            )
        )
    widths = [max(len(line[place]) for line in cells) for place in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _published(options: argparse.Namespace) -> None:
    results = None if options.results is None else _path(options.results)
    rows: list[Row] = []
    for name in map(expand_home, options.config):
        config = load_config(name)
        rows += compare_published(config, Path(name).stem, results)
    if not rows:
        raise AtomloomError(
            "no section `published` here", where=", ".join(map(str, options.config))
        )
    for line in table_of(rows):
        print(line)


# --- submissions -----------------------------------------------------------------------------------


def _matbench(options: argparse.Namespace) -> None:
    from atomloom.commands.matbench import About, write_submission

    bibtex = ""
    if options.bibtex is not None:
        try:
            bibtex = options.bibtex.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise AtomloomError(f"cannot be read: {error}", where=options.bibtex) from None
    about = About(options.algorithm, options.authors, options.notes, bibtex)
    done = write_submission(options.task, options.runs, about, options.output)
    scores = ", ".join(f"{name} {value:.6g}" for name, value in done["scores"].items())
    print(f"{options.task}, mean of the folds: {scores}; {done['cost'].text}")
    print(f"{options.output}: results.json.gz, info.json, config.yaml, run.py")
    if not bibtex:
        print("info.json has no references: --bibtex FILE adds them")


def _jarvis(options: argparse.Namespace) -> None:
    from atomloom.commands.jarvis import About, write_contribution

    about = About(options.name, options.team, options.email, options.url)
    score, cost = write_contribution(
        options.run_folder, options.benchmark, options.file, about, options.output
    )
    print(f"{options.benchmark}: {score:.6g}; {cost.text}")
    print(f"{options.output}: {options.benchmark}.csv.zip, metadata.json, run.sh, config.yaml")


def _split(options: argparse.Namespace) -> None:
    from atomloom.commands.jarvis import write_split

    counts = write_split(options.file, options.target, options.output)
    rows = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"{options.output}: {rows}; split: {{kind: column, column: split}}")
