"""The command line: `atomloom STAGE --config FILE ...`, one subcommand per rule of the workflow.

Every stage works without Snakemake; `convert` and `graphs` without `--chunk` do all chunks that are
missing. Errors that a user can act on are printed as one line.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from atomloom import __version__, former
from atomloom.commands.init import add_init
from atomloom.commands.leaderboard import add_leaderboard
from atomloom.commands.model_files import (
    add_comparison,
    add_export,
    add_import,
    add_predict,
    compare,
)
from atomloom.commands.options import Log, amount, count, few, log_to, say
from atomloom.commands.run_records import add_provenance, add_runs
from atomloom.commands.stack import add_stack
from atomloom.config import Config, load_config
from atomloom.errors import AtomloomError, InterruptedRun
from atomloom.pipeline.ahead import AHEAD, run_with_others
from atomloom.pipeline.chunk_jobs import run_chunks
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.progress import Progress
from atomloom.pipeline.resources import FILE
from atomloom.pipeline.runs import model_file
from atomloom.pipeline.stage_table import STAGES, require_earlier
from atomloom.pipeline.timing import timed
from atomloom.store.files import expand_home

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the signal's number."""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables of which Lightning, while it is imported, takes the first that is set for the rank of this process."""
DEFAULT_FILE = Path()
"""Value of `--write` without a file."""
NOBODY_READS = 141
"""Exit status when the reader of the output has gone (SIGPIPE), by the same convention."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Before torch is imported. Threads that spin for milliseconds, as they do by default, take 20 times
    # as long on a machine with other work; on an idle machine this changes nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        _require_rank()
        if (scratch := os.environ.get("TMPDIR")) and not os.access(scratch, os.W_OK | os.X_OK):
            say(
                f"atomloom {options.command}: warning: TMPDIR={scratch} is no folder that can be written to: "
                "temporary files go to one of the system"
            )
        _expand_homes(options)
        _find_models(options)
        with former.told_by(lambda line: say(f"atomloom {options.command}: {line}")):
            options.run(options)
        sys.stdout.flush()
    except InterruptedRun as error:
        say(f"atomloom {options.command}: {error}")
        log_to(options)(str(error), quiet=True)
        return INTERRUPTED
    except AtomloomError as error:
        if options.debug:
            raise
        say(f"atomloom {options.command}: {error}")
        with suppress(AtomloomError):  # a log on a full disk is what it may be about
            log_to(options)(f"error: {error}", quiet=True)
        return 1
    except KeyboardInterrupt:
        say(f"atomloom {options.command}: interrupted; what is finished stays")
        return INTERRUPTED
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return NOBODY_READS
    except OSError as error:  # a full disk, a folder's mode: where it was raised does not matter
        if options.debug or not error.strerror:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        say(f"atomloom {options.command}: {place}{error.strerror}")
        return 1
    return 0


def _require_rank() -> None:
    """Refuse a rank that is not a number."""
    name = next((name for name in RANKS if name in os.environ), None)
    if name is not None and not os.environ[name].strip().lstrip("+-").isdigit():
        raise AtomloomError(
            f"is {os.environ[name]!r}, not the number of a process", where=name, todo="unset it"
        )


def _expand_homes(options: argparse.Namespace) -> None:
    """Replace `~` by the home folder; shells leave it as it is in `--output=~/x`."""
    for name in (
        "config",
        "labels",
        "log",
        "model",
        "output",
        "path",
        "results",
        "source",
        "store",
    ):
        given = getattr(options, name, None)
        if isinstance(given, list):
            setattr(options, name, [type(item)(expand_home(item)) for item in given])
        elif given is not None:
            setattr(options, name, type(given)(expand_home(given)))


def _find_models(options: argparse.Namespace) -> None:
    """Replace names of runs, where model files are asked for, by the files of their models."""
    given = getattr(options, "model", None)
    if isinstance(given, list):
        options.model = list(map(model_file, given))
    elif given is not None:
        options.model = model_file(given)


def _nobody_reads() -> bool:
    """Whether standard output was closed by its reader (`| head`); from now on nothing goes there."""
    output = sys.__stdout__
    if output is None or sys.stdout is not output:
        return False
    pipe = select.poll()
    pipe.register(output.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLNVAL) for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return True


def put_on_path() -> None:
    """Let child processes find the `atomloom` command of the environment that runs this one."""
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])


def lend_package(folder: Path) -> None:
    """Let jobs in conda environments import this package, but nothing else of this environment.

    Args:
        folder: gets a link to the package; the command `atomloom` of these environments
            (envs/*.post-deploy.sh) finds it by a variable.
    """
    link, package = folder.absolute() / "atomloom", Path(__file__).resolve().parent
    if not link.exists() or link.resolve() != package:
        link.parent.mkdir(parents=True, exist_ok=True)
        new = link.with_name(f"{link.name}.{os.getpid()}")
        new.symlink_to(package)
        new.replace(link)
    # Not PYTHONPATH, which Snakemake takes away from jobs in conda environments: their command sets it.
    os.environ["ATOMLOOM_LENT"] = str(link.parent)


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists all options\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="atomloom", description="Atomic structures to graphs, graphs to models.")
    parser.add_argument("--version", action="version", version=f"atomloom {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "--config",
            nargs="+",
            required=name != "evaluate",
            metavar="FILE",
            help="config; each file overrides the one before",
        )
        sub.add_argument(
            "--log", type=Path, metavar="FILE", help="also append messages to this file"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    sub = command("plan", _plan, "enumerate raw records, fingerprint them, cut chunks")
    sub.add_argument(
        "--cost",
        action="store_true",
        help="then run all stages on a sample and estimate what all jobs will take",
    )
    sub.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=DEFAULT_FILE,
        metavar="FILE",
        help="with --cost: write what jobs should ask a cluster for (where the workflow reads it)",
    )
    sub.add_argument(
        "--devices",
        type=few,
        metavar="N",
        help="with --cost: preview training by up to N processes, one per GPU",
    )
    sub.add_argument(
        "--spool",
        action="store_true",
        help="copy all records, so that only the plan reads raw files",
    )
    for stage in STAGES.values():
        sub = command(stage.name, _each_chunk if stage.per_chunk else _whole_stage, stage.about)
        if stage.per_chunk:
            sub.add_argument(
                "--chunk", metavar="KEY", help="only this chunk, even if it exists already"
            )
            sub.add_argument(
                "--workers",
                type=few,
                default=os.cpu_count() or 1,
                metavar="N",
                help="processes (all cores)",
            )
        if stage.name in AHEAD:
            sub.add_argument(
                "--ahead",
                type=amount,
                metavar="SECONDS",
                help="after --chunk, do others for jobs to come",
            )
        if stage.name == "features":
            sub.add_argument(
                "--feature", metavar="NAME", help="only this one of `features`, by name or key"
            )
        if stage.threads:
            sub.add_argument("--threads", type=few, metavar="N", help="CPU threads")
        if stage.name == "train":
            sub.add_argument(
                "--until", type=count, metavar="EPOCH", help="stop after this epoch; resume later"
            )
        if stage.name == "evaluate":
            add_comparison(sub)
            sub.set_defaults(run=_evaluate)
    sub = command("run", _run, "run all stages of a config, as the workflow would")
    sub.add_argument(
        "--cores",
        type=few,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes of a stage, threads of training (all cores)",
    )
    sub.add_argument(
        "--sweep", action="store_true", help="all trials of the section `sweep` instead of one run"
    )
    sub = command("status", _status, "say what would be done for a config, and why")
    sub.add_argument("--dry", action="store_true", help="write nothing, not even a plan")
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = command("sweep", _sweep, "train the trials of the section `sweep`, and compare them")
    sub.add_argument("--jobs", type=few, default=1, metavar="N", help="trials at a time (1)")
    sub = command("suggest", _suggest, "choose the trials of one round of a sweep")
    sub.add_argument("--round", type=int, default=0, metavar="N", help="which round (0)")
    sub = command("trial", _trial, "train one run of a trial of a sweep, to the end of a rung")
    sub.add_argument("--slot", required=True, help="ROUND-RUNG-NUMBER-REPEAT, as files are named")
    sub.add_argument("--threads", type=few, default=1, metavar="N", help="CPU threads (1)")
    sub = command(
        "refit", _refit, "train the best trial of a sweep on training and validation rows"
    )
    sub.add_argument("--threads", type=few, default=1, metavar="N", help="CPU threads (1)")
    sub = command("bench", _bench, "measure training on this data and machine")
    sub.add_argument(
        "what",
        choices=("batch", "precision"),
        help="batch: the largest that fits in memory. precision: errors, losses and speed of each precision",
    )
    sub.add_argument("--memory", type=amount, metavar="GB", help="batch: limit (the free memory)")
    sub.add_argument(
        "--steps",
        type=count,
        default=300,
        metavar="N",
        help="precision: steps in each precision (300)",
    )
    sub.add_argument("--threads", type=few, metavar="N", help="CPU threads")
    sub.add_argument("--trials", help=argparse.SUPPRESS)

    add_predict(commands.add_parser)
    add_export(commands.add_parser)
    add_import(commands.add_parser)
    add_runs(commands.add_parser)
    add_provenance(commands.add_parser, _prepare)
    add_leaderboard(commands.add_parser)
    add_stack(commands.add_parser)
    add_init(commands.add_parser)

    sub = commands.add_parser("inspect", help="show what is in a shard, an index or raw files")
    sub.add_argument("path", type=Path, help="a shard, a folder of graphs, an index or raw files")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=_inspect, log=None)

    def care(
        name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("store", type=Path, help="the store's folder")
        sub.add_argument(
            "--workers",
            type=few,
            default=os.cpu_count() or 1,
            metavar="N",
            help="processes (all cores)",
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, log=None)
        return sub

    care("verify", _verify, "recompute the digests of a store and name what is damaged")
    care("repair", _repair, "remove what is damaged, so that the next run makes it again")
    sub = care("gc", _gc, "list shards that no index or plan refers to; remove them with --delete")
    sub.add_argument(
        "--results",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="results folders of all projects that use the store",
    )
    sub.add_argument(
        "--min-age",
        type=amount,
        default=24.0,
        metavar="HOURS",
        help="leave younger files alone (24)",
    )
    sub.add_argument(
        "--delete", action="store_true", help="remove them; without it, only list them"
    )
    return parser


# --- stages: modules are imported where they are used, so that a command starts fast ---


def _plan(options: argparse.Namespace) -> None:
    from atomloom.stages.plan import make_plan

    for name in ("write", "devices"):
        if getattr(options, name) is not None and not options.cost:
            raise AtomloomError("goes with --cost", where=f"--{name}")
    layout = Layout(_config(options))
    with timed(layout.timing("plan", "plan")):
        plan = make_plan(layout, log_to(options), options.spool)
    if options.cost:
        from atomloom.commands.estimates import print_costs

        file = options.write
        if file == DEFAULT_FILE:
            file = layout.results / FILE
        print_costs(RunPaths(layout, plan), file, options.devices or 0, log_to(options))


def _each_chunk(options: argparse.Namespace) -> None:
    paths, stage = _planned(options), STAGES[options.command]
    if getattr(options, "feature", None) is not None:
        paths = paths.with_feature(options.feature)
    plan, log = paths.plan, log_to(options)
    chunks = [options.chunk] if options.chunk else plan.chunk_keys
    require_earlier(paths, stage.name, chunks)
    alone = bool(options.chunk) and len(stage.outputs(paths, options.chunk)) == 1
    if alone and getattr(options, "ahead", None):

        def log_of(key: str) -> Log:
            job = key if stage.job is None else stage.job(paths, key)
            file = paths.layout.logs / stage.name / f"{job}.log"
            own = {**vars(options), "log": file}
            return log if key == options.chunk else log_to(argparse.Namespace(**own))

        run_with_others(stage, paths, options.chunk, options.ahead, log_of)
        return
    if options.chunk:
        stage.run_timed(paths, log, options.chunk)
        return
    size = {chunk.key: chunk.count for chunk in plan.chunks}
    for part in stage.parts(paths):
        missing = [key for key in plan.chunk_keys if not stage.done(part, key)]
        of = f" of {', '.join(part.config.features)}" if stage.name == "features" else ""
        log(f"{len(missing)} of {len(plan.chunk_keys)} chunks to do{of}")
        progress = Progress(log, len(missing), sum(size[key] for key in missing))

        def done(key: str, progress: Progress = progress) -> None:
            progress.add(size[key])

        run_chunks(stage, part, missing, options.workers, log, done)


def _whole_stage(options: argparse.Namespace) -> None:
    paths, log = _ready(options), log_to(options)
    if getattr(options, "until", None) is None:
        STAGES[options.command].run_timed(paths, log)
        return
    from atomloom.stages.train import train_run

    train_run(paths, log, options.until)


def _run(options: argparse.Namespace) -> None:
    from atomloom.commands.run import run_all, run_all_trials

    def log_of(stage: str, file: Path) -> Log:
        own = {**vars(options), "command": stage, "log": options.log or file}
        return log_to(argparse.Namespace(**own))

    layout = Layout(_config(options))
    if options.sweep:
        run_all_trials(layout, options.cores, log_of, _prepare)
    else:
        run_all(layout, options.cores, log_of)


def _status(options: argparse.Namespace) -> None:
    from atomloom.commands.status import status_of

    status = status_of(Layout(_config(options)), log_to(options), options.dry)
    if options.json:
        print(json.dumps(status.content(), indent=1))
    else:
        print("\n".join(status.lines()))


def _sweep(options: argparse.Namespace) -> None:
    from atomloom.commands.sweep import run_sweep

    run_sweep(_planned(options), options.jobs, log_to(options), _prepare)


def _suggest(options: argparse.Namespace) -> None:
    from atomloom.commands.trials import suggest_round

    suggest_round(_planned(options), options.round, log_to(options))


def _trial(options: argparse.Namespace) -> None:
    from atomloom.commands.trials import run_slot
    from atomloom.sweeps.rounds import Slot

    paths = _planned(options)
    run_slot(paths, Slot.named(options.slot), options.threads, log_to(options))


def _refit(options: argparse.Namespace) -> None:
    from atomloom.commands.refit import refit_best

    refit_best(_planned(options), options.threads, log_to(options), _prepare)


def _bench(options: argparse.Namespace) -> None:
    from atomloom.commands.bench import bench_batch, bench_precision, run_trials

    paths = _ready(options)
    if options.trials:
        run_trials(paths, [int(size) for size in options.trials.split(",")])
    elif options.what == "batch":
        limit = None if options.memory is None else int(options.memory * 1e9)
        bench_batch(paths, limit, log_to(options))
    else:
        bench_precision(paths, options.steps, log_to(options))


def _evaluate(options: argparse.Namespace) -> None:
    """Measure errors: of a run, or of a model file on labelled data."""
    given = (options.config, options.model or options.source)
    if (
        all(given)
        or not any(given)
        or (not options.config and not (options.model and options.source))
    ):
        raise AtomloomError(
            "give either --config, for a run, or --model and --source, for a model file on new data"
        )
    if options.config:
        usual = vars(_parser().parse_args(["evaluate", "--config", "any"]))
        own = {"config", "threads", "log", "debug"}
        stray = [name for name, value in usual.items() if vars(options)[name] != value]
        if others := [f"--{name.replace('_', '-')}" for name in stray if name not in own]:
            raise AtomloomError("is only for a model file, with --model", where=others[0])
        _whole_stage(options)
        return
    compare(options)


def _inspect(options: argparse.Namespace) -> None:
    from atomloom.commands.inspection import inspect_path

    for line in inspect_path(options.path):
        print(line)


def _verify(options: argparse.Namespace) -> None:
    from atomloom.commands.maintenance import shards_in, verify_store

    damaged = 0
    for item in verify_store(options.store, options.workers):
        damaged += 1
        print(f"{item.path}: {item.problem}")
    total = len(shards_in(options.store))
    if damaged:
        raise AtomloomError(
            f"{damaged} damaged files", where=options.store, todo="`atomloom repair` removes them"
        )
    print(f"{total} shards, all sound")


def _repair(options: argparse.Namespace) -> None:
    from atomloom.commands.maintenance import repair_store

    print(f"{repair_store(options.store, options.workers, print)} files removed")


def _gc(options: argparse.Namespace) -> None:
    from atomloom.commands.maintenance import unused_files

    unused = unused_files(options.store, options.results, options.min_age * 3600)
    size = sum(path.stat().st_size for path in unused)
    for path in unused:
        print(path)
        if options.delete:
            path.unlink()
    print(
        f"{len(unused)} files, {size / 1e6:.1f} MB {'removed' if options.delete else 'unused: repeat with --delete to remove them'}"
    )


def _prepare(config: Config, log: Callable[[str], None]) -> RunPaths:
    from atomloom.api import prepare

    return prepare(config, log)


def _config(options: argparse.Namespace) -> Config:
    config = load_config(*options.config)
    threads = getattr(options, "threads", None)
    if threads and not config.training.threads:
        training = config.training.model_copy(update={"threads": threads})
        config = config.model_copy(update={"training": training})
    return config


def _planned(options: argparse.Namespace) -> RunPaths:
    layout = Layout(_config(options))
    path = layout.plan_folder / "plan.json"
    if not path.exists():
        raise AtomloomError(
            "no plan yet", where=path, todo="run `atomloom plan` with the same config first"
        )
    return RunPaths(layout, Plan.read(path))


def _ready(options: argparse.Namespace) -> RunPaths:
    """Paths of the run, once all stages before this one are done."""
    paths = _planned(options)
    require_earlier(paths, options.command, paths.plan.chunk_keys)
    return paths


if __name__ == "__main__":
    sys.exit(main())
