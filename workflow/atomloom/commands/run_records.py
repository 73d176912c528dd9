"""Commands on finished runs, as they are called: `runs`, `reproduce`, `diff` and `export-run`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from atomloom.commands.options import Add, Prepare, add_trust, few, log_to
from atomloom.config import load_config
from atomloom.errors import AtomloomError

RUN_HELP = "a run's folder, card or archive, or its short name or key"


def add_provenance(add: Add, prepare: Prepare) -> None:
    """Add the parsers of `reproduce`, `diff` and `export-run`.

    Args:
        add: the method `add_parser` of the subcommands.
        prepare: makes what the training of a config needs, such as `atomloom.api.prepare`.
    """

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, *runs: str
    ) -> argparse.ArgumentParser:
        sub = add(name, help=text, description=text)
        for each in runs:
            sub.add_argument(each, metavar=each.upper(), help=RUN_HELP)
        sub.add_argument(
            "--results",
            type=Path,
            default=Path("results"),
            metavar="FOLDER",
            help="where names and keys are looked for (results)",
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, log=None)
        return sub

    text = "train a run again from its card, and say how close it comes"
    sub = command("reproduce", partial(_reproduce, prepare=prepare), text, "run_name")
    sub.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of the repetition (reproduced/KEY)"
    )
    sub.add_argument(
        "--from-raw",
        action="store_true",
        help="make everything anew from the raw files, in a store of its own",
    )
    sub.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="FILE",
        help="config that says where the data are here",
    )
    sub.add_argument(
        "--threads", type=few, metavar="N", help="CPU threads (as many as the run had)"
    )
    add_trust(sub)
    sub.add_argument("--json", action="store_true", help="the verdict as JSON")
    text = "what differs between two runs: config, data, code, environment, results"
    sub = command("diff", _diff, text, "a", "b")
    sub.add_argument("--json", action="store_true", help="as JSON")
    text = "pack a run as one archive: card, config, model, results, report, digests of its inputs"
    sub = command("export-run", _export_run, text, "run_name")
    sub.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the archive (DATASET-KEY.zip)"
    )


def add_runs(add: Add) -> None:
    """Add the parser of `runs`."""
    text = "list all runs: what differs between them, their states, errors and times"
    sub = add("runs", help=text, description=text)
    sub.add_argument(
        "results",
        type=Path,
        nargs="?",
        metavar="RESULTS",
        help="results folder of a project, or of one data set (results)",
    )
    sub.add_argument(
        "--config", nargs="+", metavar="FILE", help="only runs of the data set of this config"
    )
    sub.add_argument(
        "--sort",
        default="val",
        metavar="COLUMN",
        help="val, test, time, when, state, name or a field of the config (val)",
    )
    sub.add_argument("--reverse", action="store_true", help="the greatest first")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all columns as CSV")
    form.add_argument("--json", action="store_true", help="everything as JSON")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_runs, log=None)


def _runs(options: argparse.Namespace) -> None:
    from atomloom.commands.runs import Listing, as_csv, as_json, as_text, shown

    if options.config and options.results:
        raise AtomloomError("give a results folder or --config, not both", where=options.results)
    config = load_config(*options.config) if options.config else None
    request = Listing(options.results or Path("results"), config, options.sort, options.reverse)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if options.csv:
        print(shown([as_csv(request)], encoding), end="")
    elif options.json:
        print(shown([as_json(request)], encoding))
    else:
        terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
        width = shutil.get_terminal_size().columns if terminal else None
        print(shown(list(as_text(request, width)), encoding))


def _reproduce(options: argparse.Namespace, prepare: Prepare) -> None:
    from atomloom.commands.reproduce import Request, reproduce_run

    request = Request(
        run=options.run_name,
        output=options.output,
        results=options.results,
        from_raw=options.from_raw,
        config=options.config,
        threads=options.threads,
        trust=options.trust,
    )
    verdict = reproduce_run(request, prepare, log_to(options))
    if options.json:
        print(json.dumps(verdict.to_dict(), indent=1))
    else:
        print("\n".join(verdict.lines()))
    if not verdict.success:
        raise AtomloomError(f"was not reproduced: {verdict.outcome}", where=options.run_name)


def _diff(options: argparse.Namespace) -> None:
    from atomloom.commands.compare import compare_runs
    from atomloom.pipeline.evidence import opened

    with opened(options.a, options.results) as one, opened(options.b, options.results) as other:
        comparison = compare_runs(one, other)
    if options.json:
        print(json.dumps(comparison.to_dict(), indent=1))
    else:
        print("\n".join(comparison.lines(options.a, options.b)))


def _export_run(options: argparse.Namespace) -> None:
    from atomloom.commands.export_run import export_run

    path = export_run(options.run_name, options.output, options.results, log_to(options))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
