"""Table of the stages after the plan, in the order in which they run: function, needs and outputs of each.

The commands, the Python interface and the check of calls by hand use it; the rules of the workflow state the
same as inputs and outputs. Only the presence of files is checked, not their content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from atomloom.config import Config, expand_variables
from atomloom.config.foundation import teacher_file
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths, report_key_of
from atomloom.pipeline.timing import timed

SPEC = "spec.json"
"""File in a keyed folder that says what its name stands for."""


@dataclass(frozen=True)
class Stage:
    """One stage, of a chunk at a time or of the whole data set."""

    name: str
    """Name of the stage, its command and its rule."""
    about: str
    """Help text of the command."""
    function: str
    """"module:name", imported when the stage runs."""
    takes: tuple[str, ...]
    """Arguments of the function before `log`: some of layout, plan, paths and chunk."""
    needs: tuple[str, ...]
    """Stages whose files it reads; all of them need the plan."""
    outputs: Callable[[RunPaths, str], tuple[Path, ...]]
    """Files whose presence means that the stage is done, for the key of a chunk if it is per chunk."""
    reads: Callable[[RunPaths, str], tuple[Path, ...]] = lambda paths, chunk: ()
    """Files without which it cannot run, and after whose return it runs again, as its rule does."""
    beside: Callable[[RunPaths, str], tuple[Path, ...]] = lambda paths, chunk: ()
    """Files that it reads as well; the loss of one is no reason to run it again."""
    job: Callable[[RunPaths, str], str] | None = None
    """Name of the job in the timings of the stage; None: it is not timed."""
    per_chunk: bool = False
    """Whether it runs once per chunk."""
    threads: bool = False
    """Whether its command takes a number of threads."""
    once: bool = False
    """Whether a second call returns at once, so that it must not be timed."""
    wanted: Callable[[Config], bool] = lambda config: True
    """Whether a config asks for it."""
    parts: Callable[[RunPaths], tuple[RunPaths, ...]] = lambda paths: (paths,)
    """Paths with which its jobs run: where it has several jobs for the same chunk, those of each."""

    def done(self, paths: RunPaths, chunk: str = "") -> bool:
        """Whether all its outputs exist."""
        return all(path.exists() for path in self.outputs(paths, chunk))

    def inputs_beside(self, paths: RunPaths, chunk: str = "") -> list[Path]:
        """Files of `beside` as inputs of its rule: all where it is to run, else those that are there.

        One that was lost is made again for whoever waits for it, and a job that is done is left alone.
        """
        files = [*self.beside(paths, chunk), *_of_models(paths)]
        return [path for path in files if path.exists()] if self.done(paths, chunk) else files

    def run(self, paths: RunPaths, log: Callable[[str], None], chunk: str = "") -> None:
        """Run the stage, whether it is done or not.

        Raises:
            AtomloomError: when it fails.
        """
        given = {"layout": paths.layout, "plan": paths.plan, "paths": paths, "chunk": chunk}
        module, _, name = self.function.partition(":")
        getattr(import_module(module), name)(*(given[key] for key in self.takes), log)

    def run_timed(self, paths: RunPaths, log: Callable[[str], None], chunk: str = "") -> None:
        """Run the stage and record its time and memory; errors as of `run`."""
        timing = None
        if self.job is not None and not (self.once and self.done(paths)):
            timing = paths.layout.timing(self.name, self.job(paths, chunk))
        with nullcontext() if timing is None else timed(timing):
            self.run(paths, log, chunk)


def _within(folder: Path, *names: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in names)


def _shards_with_labels(paths: RunPaths) -> tuple[Path, ...]:
    """Shards that hold structures and their labels."""
    keys = paths.plan.chunk_keys
    labels = map(paths.layout.labels, keys) if paths.config.teacher is not None else ()
    return (*map(paths.layout.structures, keys), *labels)


def _shards_of_features(paths: RunPaths, *keys: str) -> tuple[Path, ...]:
    """Shards of all features for some chunks."""
    return tuple(paths.layout.features(name, key) for name in paths.config.features for key in keys)


def _of_plan(paths: RunPaths, *names: str) -> tuple[Path, ...]:
    """The plan, and some of the tables beside it."""
    return _within(paths.layout.plan_folder, "plan.json", *names)


def _of_models(paths: RunPaths) -> list[Path]:
    """Model files of the teacher and of features, whose content is part of keys."""
    teacher, features = paths.config.teacher, paths.config.features.values()
    asked = [*([teacher] if teacher else []), *(feature.teacher for feature in features)]
    files = map(teacher_file, asked)
    return [file for file in files if file is not None]


def _of_folds(paths: RunPaths) -> tuple[Path, ...]:
    """Files that define the split, without members of archives."""
    names = map(expand_variables, paths.config.split.files)
    return tuple(Path(name.partition("::")[0]) for name in names)


def _structures(paths: RunPaths) -> tuple[Path, ...]:
    return tuple(map(paths.layout.structures, paths.plan.chunk_keys))


def _labelled_graphs(paths: RunPaths) -> tuple[Path, ...]:
    """Files with the graphs of a run, their labels, and what the run continues."""
    arrays = [paths.target_array(spec.name) for spec in paths.config.targets if not spec.is_column]
    made = all(path.exists() for path in arrays)
    parent = paths.parent
    state = ("finished.json", "last.ckpt", "loader.json")
    return (
        *_of_plan(paths, "sources.json"),
        *_within(paths.index, "index.json", "index.parquet", "quarantine.csv"),
        *map(paths.layout.graphs, paths.plan.chunk_keys),
        *_within(paths.split, "split.json", "dataset.parquet", "quarantine.csv"),
        # Where a target array is missing, it is made from the shards.
        *(arrays if made else _shards_with_labels(paths)),
        *(
            _within(parent.folder, "spec.json", *(f"state/{name}" for name in state))
            if parent
            else ()
        ),
    )


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="convert",
            about="convert raw records to structures",
            function="atomloom.stages.convert:convert_chunk",
            takes=("layout", "plan", "chunk"),
            needs=(),
            outputs=lambda paths, chunk: (paths.layout.structures(chunk),),
            beside=lambda paths, chunk: _of_plan(paths, "members.parquet", "records.spool"),
            job=lambda paths, chunk: chunk,
            per_chunk=True,
        ),
        Stage(
            name="label",
            about="let the teacher compute energies, forces and stress",
            function="atomloom.stages.label:label_chunk",
            takes=("layout", "chunk"),
            needs=("convert",),
            outputs=lambda paths, chunk: (paths.layout.labels(chunk),),
            reads=lambda paths, chunk: (paths.layout.structures(chunk),),
            beside=lambda paths, chunk: _of_plan(paths),
            job=lambda paths, chunk: f"{chunk}-{paths.layout.teacher_key}",
            per_chunk=True,
            wanted=lambda config: config.teacher is not None,
        ),
        Stage(
            name="features",
            about="compute the numbers of the section `features`",
            function="atomloom.stages.features:describe_chunk",
            takes=("layout", "chunk"),
            needs=("convert",),
            outputs=lambda paths, chunk: _shards_of_features(paths, chunk),
            reads=lambda paths, chunk: (paths.layout.structures(chunk),),
            beside=lambda paths, chunk: _of_plan(paths),
            job=lambda paths, chunk: f"{chunk}-{'-'.join(paths.layout.feature_keys.values())}",
            per_chunk=True,
            wanted=lambda config: bool(config.features),
            parts=lambda paths: tuple(map(paths.with_feature, paths.config.features)),
        ),
        Stage(
            name="graphs",
            about="build neighbour graphs",
            function="atomloom.stages.graphs:build_chunk",
            takes=("layout", "chunk"),
            needs=("convert",),
            outputs=lambda paths, chunk: (paths.layout.graphs(chunk),),
            reads=lambda paths, chunk: (paths.layout.structures(chunk),),
            beside=lambda paths, chunk: _of_plan(paths),
            job=lambda paths, chunk: f"{chunk}-{paths.layout.graph_key}",
            per_chunk=True,
        ),
        Stage(
            name="index",
            about="record the location of each graph",
            function="atomloom.stages.index:write_index",
            takes=("paths",),
            needs=("convert", "graphs"),
            outputs=lambda paths, chunk: _within(
                paths.index, "index.json", "index.parquet", "quarantine.csv", SPEC
            ),
            reads=lambda paths, chunk: tuple(map(paths.layout.graphs, paths.plan.chunk_keys)),
            beside=lambda paths, chunk: (*_of_plan(paths, "members.parquet"), *_structures(paths)),
            job=lambda paths, chunk: paths.index.name,
        ),
        Stage(
            name="split",
            about="join labels and divide into training, validation and test",
            function="atomloom.stages.split:write_split",
            takes=("paths",),
            needs=("convert", "label", "features"),
            outputs=lambda paths, chunk: _within(
                paths.split, "split.json", "dataset.parquet", "quarantine.csv", SPEC
            ),
            reads=lambda paths, chunk: (
                *_shards_with_labels(paths),
                *_shards_of_features(paths, *paths.plan.chunk_keys),
            ),
            beside=lambda paths, chunk: (
                *_of_plan(paths, "members.parquet", "labels.parquet"),
                *_of_folds(paths),
            ),
            job=lambda paths, chunk: paths.split.name,
        ),
        Stage(
            name="train",
            about="train the model, or resume its training",
            function="atomloom.stages.train:train_run",
            takes=("paths",),
            needs=("index", "split"),
            outputs=lambda paths, chunk: _within(
                paths.run, "model.safetensors", "run.json", "history.csv"
            ),
            reads=lambda paths, chunk: (paths.index / SPEC, paths.split / SPEC),
            beside=lambda paths, chunk: _labelled_graphs(paths),
            job=lambda paths, chunk: paths.run_key,
            threads=True,
            once=True,
        ),
        Stage(
            name="evaluate",
            about="predict every structure and measure errors",
            function="atomloom.stages.evaluate:evaluate_run",
            takes=("paths",),
            needs=("index", "split", "train"),
            outputs=lambda paths, chunk: _within(
                paths.run,
                *("metrics.json", "metrics.csv"),
                *("predictions.parquet", "predictions.csv", "parity.png"),
            ),
            reads=lambda paths, chunk: (
                *_within(paths.run, "run.json", "model.safetensors"),
                paths.index / SPEC,
                paths.split / SPEC,
            ),
            beside=lambda paths, chunk: (
                *_labelled_graphs(paths),
                paths.run / "history.csv",
                *map(paths.layout.labels, paths.plan.chunk_keys if paths.config.teacher else ()),
            ),
            job=lambda paths, chunk: paths.run_key,
            threads=True,
        ),
        Stage(
            name="report",
            about="write the report",
            function="atomloom.stages.report:report_run",
            takes=("paths",),
            needs=("evaluate",),
            outputs=lambda paths, chunk: (paths.layout.report,),
            reads=lambda paths, chunk: (
                *_within(
                    paths.run, "metrics.json", "predictions.parquet", "run.json", "history.csv"
                ),
                paths.split / "quarantine.csv",
                paths.index / "index.json",
            ),
            beside=lambda paths, chunk: (
                *_of_plan(paths),
                *_within(paths.run, "model.safetensors", "metrics.csv"),
                *_within(paths.run, "predictions.csv", "parity.png"),
                *_within(paths.split, "split.json", "dataset.parquet"),
                *_structures(paths),
            ),
        ),
    )
}
"""Stage by its name."""

OTHERS = {"bench": ("index", "split")}
"""Commands that are not stages -> stages whose files they read."""


def shards_per_chunk(config: Config) -> int:
    """Number of shards that the store gets for each chunk; as many jobs make them."""
    return sum(
        len(config.features) if stage.name == "features" else 1
        for stage in STAGES.values()
        if stage.per_chunk and stage.wanted(config)
    )


@dataclass(frozen=True)
class Job:
    """One call of a stage that is still to be made, and why."""

    stage: str
    chunk: str
    """Key of the chunk; empty if the stage is not per chunk."""
    missing: tuple[Path, ...]
    """Its outputs that are missing; if none is, it reads what will be made again."""
    whole: bool
    """Whether all its outputs are missing, as where it never ran."""
    part: RunPaths
    """Paths with which it runs, one of its stage's parts."""


def jobs_to_do(paths: RunPaths) -> list[Job]:
    """Jobs that the workflow would run with this plan, in order: their outputs, or files they read, are missing.

    The report is also one where it is of another run or unit, or its copy for links was lost. A spec explains the name of its folder and is
    waited for where it is made; one that was lost alone is missed by nobody.
    """
    jobs: list[Job] = []
    lost: set[Path] = set()
    for stage in STAGES.values():
        if not stage.wanted(paths.config):
            continue
        chunks = paths.plan.chunk_keys if stage.per_chunk else [""]
        for own, chunk in ((part, chunk) for part in stage.parts(paths) for chunk in chunks):
            outputs = stage.outputs(own, chunk)
            missing = tuple(path for path in outputs if not path.exists())
            again = any(
                path in lost or not (path.name == SPEC or path.exists())
                for path in stage.reads(own, chunk)
            )
            if stage.name == "report" and not missing:
                again = again or report_key_of(outputs[0]) != paths.report_key
                again = again or not paths.own_report.exists()
            if again or any(path.name != SPEC for path in missing):
                jobs.append(Job(stage.name, chunk, missing, len(missing) == len(outputs), own))
                lost.update(missing)
    return jobs


def require_earlier(paths: RunPaths, command: str, chunks: Sequence[str]) -> None:
    """Check that the files a command reads have been made.

    Args:
        paths: the paths of the run.
        command: the stage, or other command, that is about to run.
        chunks: keys of the chunks concerned.

    Raises:
        AtomloomError: when something is missing; it names the command that comes first.
    """
    unknown = [key for key in chunks if key not in paths.plan.chunk_keys]
    if unknown:
        raise AtomloomError(
            f"the plan has no chunk {unknown[0]}", where=paths.layout.plan_folder / "plan.json"
        )
    needs = OTHERS[command] if command in OTHERS else STAGES[command].needs
    earlier = _first_undone(paths, needs, chunks)
    if earlier is not None:
        stage, missing = earlier
        raise AtomloomError(
            f"`{command}` needs what `{stage.name}` makes",
            where=f"{missing[0]} is missing" + (f" ({len(missing)} files)" * (len(missing) > 1)),
            todo=f"run `atomloom {stage.name}` with the same config first",
        )


def _first_undone(
    paths: RunPaths, needs: Sequence[str], chunks: Sequence[str]
) -> tuple[Stage, list[Path]] | None:
    """First stage that is not done, and its missing outputs."""
    for stage in (STAGES[name] for name in needs):
        if not stage.wanted(paths.config):
            continue
        keys = chunks if stage.per_chunk else [""]
        outputs = [path for key in keys for path in stage.outputs(paths, key)]
        missing = [path for path in outputs if not path.exists()]
        if missing:
            return _first_undone(paths, stage.needs, chunks) or (stage, missing)
    return None
