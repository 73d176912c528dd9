"""Helpers of the rules: the validated config, paths, the plan.

Only the plan knows the chunks, so functions that need it are evaluated after the checkpoint.
"""

import asyncio
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import takewhile
from pathlib import Path
from shlex import quote

from snakemake.settings.types import DeploymentMethod

from atomloom import former
from atomloom.cli import lend_package, put_on_path
from atomloom.config import dump_config, parse_config
from atomloom.config.reading import read_config_file
from atomloom.errors import AtomloomError
from atomloom.store.files import read_plain, write_text
from atomloom.pipeline.ahead import ahead_of
from atomloom.pipeline.paths import COPIES as COPIES_VARIABLE
from atomloom.pipeline.paths import Layout, RunPaths, own_report, report_key_of
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.resources import FILE, read_resources
from atomloom.pipeline.site import read_site
from atomloom.pipeline.stage_table import STAGES
from atomloom.stages.sources import named_sources, refresh_sources
from atomloom.sweeps.rounds import (
    Slot,
    before,
    read_round,
    result_file,
    rounds,
    rungs,
    slots,
)
from atomloom.sweeps.runs import paths_of, written_config

put_on_path()

if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method:
    # Conda environments hold the packages; this atomloom, and nothing else from here, is what jobs run.
    lend_package(Path(".snakemake/atomloom"))


def local_copies():
    """Folder with the local copies of what Snakemake keeps elsewhere (`--default-storage-provider`), laid out as
    the project; the project itself where nothing is."""
    provider = workflow.storage_registry.default_storage_provider
    if provider is None:
        return Path()
    prefix = workflow.storage_settings.default_storage_prefix.rstrip("/")
    return Path(provider.object(f"{prefix}/any").local_path()).absolute().parent


COPIES = local_copies()
STORED = COPIES != Path()
if STORED:
    shell.prefix(f"export {COPIES_VARIABLE}={quote(str(COPIES))}; ")


def kept_here(files):
    """Input files that stay here where others are kept elsewhere."""
    return local(files) if STORED else files


def fetch(path):
    """Bring what is kept elsewhere here, if it is there."""
    prefix = workflow.storage_settings.default_storage_prefix.rstrip("/")
    kept = workflow.storage_registry.default_storage_provider.object(f"{prefix}/{path}")

    async def retrieve():
        if await kept.managed_exists():
            await kept.managed_retrieve()

    with ThreadPoolExecutor(1) as other:  # as one may be within another loop
        other.submit(asyncio.run, retrieve()).result()


UNDECLARED = ("state", "checkpoints")
"""Folders of a run that training keeps through a failure, so not outputs of a rule."""


def deletes_all_output(arguments):
    """Whether this call of snakemake deletes all output of the workflow."""
    dry = {"--dry-run", "--dryrun"} & {*arguments} or any(
        argument[:1] == "-" != argument[1:2] and "n" in argument
        for argument in arguments
    )
    return "--delete-all-output" in arguments and not dry


def may_plan(arguments):
    """Whether this call of snakemake may run the plan, and not only some other rules."""
    if "--allowed-rules" not in arguments:
        return True
    rest = arguments[arguments.index("--allowed-rules") + 1 :]
    return "plan" in takewhile(lambda argument: argument[:1] != "-", rest)


def tell(line):
    """Print a line once, and not in the jobs, which parse this file too."""
    if workflow.is_main_process:
        print(f"atomloom: {line}", file=sys.stderr)


try:
    for file in workflow.configfiles if workflow.is_main_process else []:
        if b"__use_yte__" not in read_plain(file, 1 << 30):
            # Snakemake has read it, but silently takes the last of two sections of the same name.
            read_config_file(file)
    with former.told_by(tell):
        layout = Layout(parse_config(config))
    FEATURE_KEYS = set(layout.feature_keys.values())
    for key, folder in (("results", layout.results), ("store", layout.store)):
        if "{" in str(folder) or "}" in str(folder):
            raise AtomloomError(
                "Snakemake takes text in braces for a wildcard",
                where=f"paths.{key}: {folder}",
                todo="use another folder; if it is below this one, give the relative path",
            )
        if STORED and folder.is_absolute():
            raise AtomloomError(
                "what is kept elsewhere has its place below the prefix of the storage",
                where=f"paths.{key}: {folder}",
                todo="use a relative path",
            )
    SITE = read_site(Path("config/cluster.yaml"))
    # Jobs on other machines parse this file too; raw files are checked once, where the workflow starts, and
    # where a single job is run by itself (`--allowed-rules`), only if it is the one that they are for.
    if workflow.is_main_process and may_plan(sys.argv[1:]):
        refresh_sources(layout)
    if not layout.merged_config.exists():
        write_text(layout.merged_config, dump_config(layout.config))
except AtomloomError as error:
    sys.exit(f"atomloom: {error}")

PLAN = layout.plan_folder / "plan.json"
PLAN_HERE = COPIES / PLAN
SOURCES = layout.plan_folder / "sources.json"
OWN = {layout.results.parts[:1], layout.store.parts[:1]}
"""First folders of the paths of results and store."""
if STORED:
    fetch(PLAN)
CONFIG = layout.merged_config

RECORDS = None
if workflow.is_main_process and PLAN_HERE.exists():
    try:
        known = RunPaths(layout, Plan.read(PLAN_HERE))
        RECORDS = known.plan.records
    except AtomloomError as error:
        print(f"atomloom: {PLAN}: {error.what}; it is made again", file=sys.stderr)
        PLAN_HERE.unlink()
    else:
        # The state a training resumes from is not an output, since a job that starts again would lose it.
        for folder in UNDECLARED if deletes_all_output(sys.argv[1:]) else ():
            shutil.rmtree(known.run / folder, ignore_errors=True)
        if deletes_all_output(sys.argv[1:]):
            own_report(layout.results, known.run_key).unlink(missing_ok=True)

try:
    ASKS = read_resources(layout.results / FILE, layout.config, RECORDS, tell)
except AtomloomError as error:
    sys.exit(f"atomloom: {error}")

RULES = workflow.current_basedir.get_path_or_uri(secret_free=True)


def environment(name):
    """Path of a conda environment, relative to the rules.

    Snakemake makes it absolute and takes text in braces for a wildcard; doubled braces stand for braces.
    """
    path = f"../../envs/{name}"
    if "{" not in RULES and "}" not in RULES:
        return path
    return (
        os.path.normpath(os.path.join(RULES, path))
        .replace("{", "{{")
        .replace("}", "}}")
    )


@cache
def _read_plan(path: str, time_stamp: int) -> RunPaths:
    return RunPaths(layout, Plan.read(path))


def planned() -> RunPaths:
    """Paths that depend on the plan; waits for the plan."""
    path = checkpoints.plan.get().output.plan
    return _read_plan(str(path), Path(path).stat().st_mtime_ns)


@cache
def _chunks_of(path: str, time_stamp: int) -> frozenset:
    return frozenset(_read_plan(path, time_stamp).plan.chunk_keys)


def planned_here(wildcards):
    """Input function of `convert`: raw files, or an impossible file for a chunk that is not in this plan.

    With two modules on one store, each has a rule for any chunk, but only one may know its records.
    """
    if PLAN_HERE.exists():
        known = _chunks_of(str(PLAN_HERE), PLAN_HERE.stat().st_mtime_ns)
        if wildcards.chunk in known:
            return [] if STORED else raw_files(wildcards)
    return [PLAN.with_name(f"no chunk {wildcards.chunk}")]


def raw_files(wildcards):
    """Input function: files and folders of the config that records and labels are read from.

    Folders as such: of a data set in one file per structure, a list of them would be long for each chunk.
    """
    return ancient(kept_here([str(path) for path in named_sources(layout)]))


def beside(stage):
    """Input function: files that a job reads but that are no reason to run it again."""

    def files(wildcards):
        chunk = getattr(wildcards, "chunk", "")
        if chunk and not PLAN_HERE.exists():
            return []  # another module may have one with this chunk
        found = STAGES[stage].inputs_beside(paths_for(wildcards), chunk)
        if not STORED:
            return ancient(found)
        # Files of the config are the user's; the list of raw files stays with them.
        ours = [f for f in found if f.parts[:1] in OWN and f != SOURCES]
        others = [str(f) for f in found if f.parts[:1] not in OWN]
        return ancient(ours) + ancient(kept_here(others))

    return files


def share_store():
    """Let two modules of one workflow share a store: a file that both can make, either makes.

    It has the same bytes. Other files have separate paths, as long as the results do.
    """
    for name in ("convert", "label", "features", "graphs", "report"):
        if not rules.has(name):
            continue
        own = getattr(rules, name).rule
        for other in workflow.rules:
            if other is own or list(map(str, other.output)) != list(
                map(str, own.output)
            ):
                continue
            if name == "report":
                sys.exit(
                    f"atomloom: {layout.report}: the rules {other.name} and {own.name} both write it; give "
                    "each module its own dataset.name or paths.results"
                )
            # not workflow.ruleorder(...), which takes both names for rules of this module
            workflow._ruleorder.add(other.name, own.name)


def chunks(of):
    """Input function: the shards `of(key)` of all chunks."""
    return lambda wildcards: [of(key) for key in planned().plan.chunk_keys]


def labels(wildcards):
    """Input function: the labels of all chunks, if there is a teacher."""
    return chunks(layout.labels)(wildcards) if layout.config.teacher else []


def features(wildcards):
    """Input function: the derived features of all chunks."""
    return [
        layout.features(name, key)
        for name in layout.config.features
        for key in planned().plan.chunk_keys
    ]


def place(name, *file):
    """Input function: a file in the folder `name` of the planned paths."""
    return lambda wildcards: getattr(planned(), name).joinpath(*file)


def prepared(wildcards):
    """Input function: the index and the divided data set."""
    paths, quarantine = planned(), "quarantine.csv"
    index = [paths.index / name for name in ("index.json", "index.parquet", quarantine)]
    return index + [
        paths.split / name for name in ("dataset.parquet", "split.json", quarantine)
    ]


def trained(wildcards):
    """Input function: the files of a finished run, its model first."""
    names = ("model.safetensors", "run.json", "history.csv", "metrics.json")
    tables = ("metrics.csv", "predictions.parquet", "predictions.csv", "parity.png")
    return [planned().run / name for name in names + tables]


TABLES = [
    layout.results / "runs" / "{run}" / f"{spec.name}.parquet"
    for spec in layout.config.targets
    if STORED and not spec.is_column
]
"""Tables of evaluation beside those that its rule names, where only files that a rule names are kept."""


def tables(wildcards):
    """Input function: these tables, of the run."""
    return [planned().run / path.name for path in TABLES]


def merged_config(wildcards, output):
    """Params function: the config that a job reads, of a trial of the sweep where the job is one's.

    A function of `output` is not compared with that of the last run: a new learning rate renames the
    merged config, which must not affect graphs.
    """
    found = trial_of(wildcards)
    return CONFIG if found is None else _config_of_a_trial(*found)


def paths_for(wildcards) -> RunPaths:
    """Paths by the config that a job reads; waits for the plan."""
    made, found = planned(), trial_of(wildcards)
    if getattr(wildcards, "feature", "") in FEATURE_KEYS:
        return made.with_feature(wildcards.feature)
    return made if found is None else _paths_of_a_trial(*found)


def trial_of(wildcards):
    """A trial of the sweep, and its run, that a job is for; None where it is for the config itself."""
    for kind in ("graph", "index", "dataset"):
        if hasattr(wildcards, kind):
            return run_of_a_trial(kind, getattr(wildcards, kind))
    return None


def run_of_a_trial(kind, key):
    """A trial of the sweep, and its run that has this graph, index or data set; None where there is none."""
    if layout.config.sweep is None or not PLAN_HERE.exists():
        return None
    for file in sorted(
        _read_plan(str(PLAN_HERE), PLAN_HERE.stat().st_mtime_ns).sweep.glob(
            "round-*.json"
        )
    ):
        for trial in _round(str(file), file.stat().st_mtime_ns):
            for run in trial.repeats:
                if getattr(run, kind) == key:
                    return trial, run
    return None


_of_trials: dict = {}
_configs: dict = {}


def _paths_of_a_trial(trial, run):
    """Paths of a run of a trial; made once, as many chunks have the same."""
    if run.run not in _of_trials:
        known = _read_plan(str(PLAN_HERE), PLAN_HERE.stat().st_mtime_ns)
        _of_trials[run.run] = paths_of(known, trial, run)
    return _of_trials[run.run]


def _config_of_a_trial(trial, run):
    """File of the merged config of a run of a trial; written once, for the same reason."""
    if run.run not in _configs:
        _configs[run.run] = written_config(_paths_of_a_trial(trial, run).layout)
    return _configs[run.run]


@cache
def _round(path: str, time_stamp: int) -> list:
    return read_round(Path(path))


def graph_here(wildcards):
    """Input function of `graphs`: nothing, or what nobody can make for graphs that are not of this config.

    Of two modules on one store, each has a rule for any graphs, but only one may know their spec.
    """
    own = wildcards.graph == layout.graph_key
    if own or run_of_a_trial("graph", wildcards.graph) is not None:
        return []
    return [layout.graph_folder.with_name(f"no graphs {wildcards.graph}")]


def feature_here(wildcards):
    """Input function of `features`: nothing, or what nobody can make for features that are not of this config."""
    if wildcards.feature in FEATURE_KEYS:
        return []
    return [layout.features_folder / f"no features {wildcards.feature}"]


def graphs_of_index(wildcards):
    """Input function: the shards of graphs of all chunks that an index is of."""
    found = run_of_a_trial("index", wildcards.index)
    graph = layout.graph_key if found is None else found[1].graph
    return [
        layout.graph_folder.with_name(graph) / layout.graphs(key).name
        for key in planned().plan.chunk_keys
    ]


REQUEST = layout.results / ".report-wanted"
if workflow.is_main_process and not REQUEST.exists():
    write_text(REQUEST, "")


def report_request(wildcards):
    """File that names the run whose report is requested; newer than a report of another run.

    The report has one fixed path, so its name cannot identify its content. It carries the key of its
    run instead, and only if that is not the wanted one may a time stamp trigger it.
    """
    paths = planned()
    # What no rule names is not fetched from where others are kept, so it is not missed there.
    linked = STORED or paths.own_report.exists()
    if linked and report_key_of(layout.report) == paths.report_key:
        return ancient(kept_here(str(REQUEST)))
    # Whatever wrote the report that stands: Snakemake looks at the content, too, so each is asked once.
    over = layout.report.stat().st_mtime_ns if layout.report.exists() else "none"
    request = f"{paths.report_key} over {over}"
    if not REQUEST.exists() or REQUEST.read_text() != request:
        write_text(REQUEST, request)
    return kept_here(str(REQUEST))


TRAINING = layout.config.training
CORES_ELSEWHERE = 4
"""Cores of a training whose config names none, where jobs run on other machines than this."""


def cores_of_training(wildcards):
    """Threads function: as configured, else all of this machine; for a job elsewhere what was measured.

    Never the number of this machine's cores for a job elsewhere.
    """
    if TRAINING.threads:
        return TRAINING.threads
    elsewhere = workflow.remote_exec or not workflow.local_exec
    # A dry run has an executor of this machine; a cluster has a number of jobs.
    if workflow.dryrun:
        elsewhere = workflow.resource_settings.nodes is not None
    measured = ASKS["train"].cpus or CORES_ELSEWHERE
    return measured if elsewhere else workflow.cores


AHEAD_SECONDS = 10
"""Processor time for which a job goes on with other chunks: far longer than a process takes to start."""


def hidden(wildcards, output):
    """Params function: place of a shard that another job has made ahead. Of `output`, as `merged_config` is."""
    return str(ahead_of(Path(str(output[0]))))


def ahead(wildcards, output):
    """Params function: seconds for which a job of one chunk does others; none but where all is on this machine."""
    here = workflow.local_exec and not workflow.remote_exec and not STORED
    return str(AHEAD_SECONDS if here else 0)


def asks(rule, devices=0):
    """Resources of a rule's jobs: memory and time, twice as much at each attempt, GPUs, and what the cluster
    wants to be told (`config/cluster.yaml`).

    GPUs are asked for only if the config says that it wants them: `auto` takes what there is.
    """
    ask, count = ASKS[rule], devices if TRAINING.device == "cuda" else 0
    measured = {
        "mem_mb": lambda wildcards, attempt: ask.memory(attempt),
        "runtime": lambda wildcards, attempt: ask.minutes(attempt, SITE.max_runtime),
    }
    return {"gpu": count} | measured | SITE.resources(count)


def on_nodes():
    """Resources of a training on several nodes, where the executor leaves it to the rule to call srun."""
    if TRAINING.nodes == 1:
        return {}
    tasks = (
        {"tasks": TRAINING.nodes}
        if TRAINING.devices == 1
        else {"tasks_per_node": TRAINING.devices}
    )
    each = lambda wildcards, threads: max(1, threads // TRAINING.devices)
    # tasks_per_gpu 0: the tasks are those of the nodes, and not so many per GPU
    return tasks | dict(
        nodes=TRAINING.nodes, mpi="srun", tasks_per_gpu=0, cpus_per_task=each
    )


def launched():
    """Start of a shell command: srun for several nodes inside an allocation, else nothing."""
    if TRAINING.nodes == 1:
        return ""
    shape = f"--nodes={TRAINING.nodes} --ntasks-per-node={TRAINING.devices}"
    # Processes that wait for one that has ended would hold their GPUs for half an hour.
    return f"${{{{SLURM_JOB_ID:+srun --mpi=none --kill-on-bad-exit=1 {shape}}}}} "


SWEEP = layout.config.sweep
EPOCHS = TRAINING.epochs

# What a cluster is asked for. On one machine the jobs themselves share its GPUs.
TRIAL_GPUS = math.ceil(SWEEP.gpus or TRAINING.devices) if SWEEP else 0


def trials_of(round):
    """The trials of a round; waits for it."""
    file = checkpoints.suggest.get(
        sweep=planned().sweep.name, round=f"{round:04d}"
    ).output[0]
    return _round(str(file), Path(file).stat().st_mtime_ns)


def results_of(rounds, rung=None):
    """The files of the results of some rounds, at one rung (all unless given)."""
    return [
        result_file(planned().sweep, slot)
        for round in rounds
        for slot in slots(
            SWEEP,
            EPOCHS,
            round,
            len(trials_of(round)),
            len(SWEEP.repeats),
            rung,
        )
    ]


def last_results_of(rounds):
    """The files of the results of some rounds at the last rung."""
    return results_of(rounds, len(rungs(SWEEP, EPOCHS)) - 1)


def swept(wildcards):
    """Input function: all results of the sweep, and its tables.

    They are named here and not by the rules before alone, since Snakemake looks again only at the inputs of
    a job that waits for a checkpoint, not at those of the jobs that are added for it then; and since a result
    that is missing is made again for this target, though the tables are there.
    """
    results = results_of(range(rounds(SWEEP))) if SWEEP else []
    return [*results, planned().sweep / "sweep.json"]


def refit_of(wildcards):
    """Input function: the refit of the best trial, if there is to be one."""
    return [planned().sweep / "refit.json"] if SWEEP.refit else []


def needed_by_slot(wildcards):
    """Input function: the results that a slot chooses by; in the first rung, index and split of its run."""
    slot = Slot.named(wildcards.slot)
    trials = trials_of(slot.round)
    if slot.rung:
        chosen = before(SWEEP, len(trials), slot.rung, slot.number)
        return [
            result_file(
                planned().sweep, Slot(slot.round, slot.rung - 1, number, repeat)
            )
            for number in chosen
            for repeat in range(len(SWEEP.repeats))
        ]
    if trials[slot.number].reason:
        return []
    run = trials[slot.number].repeats[slot.repeat]
    return [
        layout.results / "index" / run.index / "spec.json",
        layout.results / "split" / run.dataset / "spec.json",
    ]
