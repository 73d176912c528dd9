"""Paths of all files: where each stage reads and writes, for one config.

The only module that composes paths. Paths that depend on the records themselves (runs, splits,
the index) also need the plan. It knows nothing of what the files hold.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atomloom.config import Config, expand_variables
from atomloom.config.features import content_of, feature_spec
from atomloom.config.root import direct_kinds
from atomloom.errors import AtomloomError
from atomloom.pipeline.parent import Parent, find_parent
from atomloom.pipeline.plan import Plan
from atomloom.store.keys import (
    BUILDER,
    CONVERTER,
    GUARD,
    LABELLER,
    PLANNER,
    TRAINER,
    canonical,
    short_hash,
)

COPIES = "ATOMLOOM_COPIES"
"""Environment variable: folder with the local copies of files that Snakemake keeps elsewhere, laid out as in the project. Jobs
of such a workflow are told of it, and read and write there."""


@dataclass(frozen=True)
class Layout:
    """Paths that follow from the config alone."""

    config: Config

    @property
    def results(self) -> Path:
        """Folder of this data set's results."""
        return _place_of(self.config.paths.results) / self.config.dataset.name

    @property
    def store(self) -> Path:
        """Folder of keyed shards; may be shared."""
        return _place_of(self.config.paths.store)

    @property
    def downloads(self) -> Path:
        """Folder of downloaded data sets, kept as they came."""
        return self.store / "downloads"

    # --- plan ---
    @property
    def plan_spec(self) -> dict[str, Any]:
        """Everything that determines the plan, besides the files themselves."""
        dataset = self.config.dataset
        content = dataset.key_content()
        del content["unit"], content["name"]
        labels = dataset.labels
        table = (
            [one.model_dump() for one in labels]
            if isinstance(labels, list)
            else labels.model_dump()
        )
        own = self.config.split.plan_content() | {"table": table, "versions": [PLANNER, CONVERTER]}
        return (
            content | own
        )  # chunk keys include the converter version too: a new one needs a new plan

    @property
    def plan_folder(self) -> Path:
        """Folder of `sources.json`, `plan.json`, `members.parquet`, `labels.parquet`, `records.spool`."""
        return self.results / "plan" / short_hash(self.plan_spec)

    # --- structures ---
    @property
    def reader_spec(self) -> dict[str, Any]:
        """Everything that determines a converted structure, besides the record's bytes."""
        dataset = self.config.dataset
        return {
            "options": dataset.options,
            "checks": dataset.checks.key_content(),
            "converter": CONVERTER,
        }

    def structures(self, chunk_key: str) -> Path:
        """Shard of converted structures of one chunk."""
        return self.store / "structures" / f"{chunk_key}.zarr.zip"

    # --- labels of a teacher ---
    @property
    def teacher_spec(self) -> dict[str, Any]:
        """Everything that determines a teacher's labels, besides the structure.

        Raises:
            AtomloomError: when the teacher's model file is missing.
        """
        teacher = self.config.teacher
        if teacher is None:
            return {}
        spec = {"calculator": teacher.calculator, "options": teacher.options, "labeller": LABELLER}
        return spec | content_of(teacher, "teacher.model")

    @property
    def teacher_key(self) -> str:
        """Key that names the folder of a teacher's labels; empty without a teacher."""
        return short_hash(self.teacher_spec) if self.config.teacher else ""

    @property
    def label_folder(self) -> Path:
        """Folder of all labels of one teacher, of any data set."""
        return self.store / "labels" / self.teacher_key

    def labels(self, chunk_key: str) -> Path:
        """Shard of labels of one chunk."""
        return self.label_folder / f"{chunk_key}.zarr.zip"

    # --- derived features ---
    def feature_spec(self, name: str) -> dict[str, Any]:
        """Everything that determines the numbers of one of `features`, besides the structure.

        Raises:
            AtomloomError: when its model file is missing.
        """
        return feature_spec(name, self.config.features[name])

    def feature_key(self, name: str) -> str:
        """Key that names the folder of one of `features`."""
        return short_hash(self.feature_spec(name))

    @property
    def feature_keys(self) -> dict[str, str]:
        """Key of each of `features`."""
        return {name: self.feature_key(name) for name in self.config.features}

    @property
    def features_folder(self) -> Path:
        """Folder of the folders of features, of any data set."""
        return self.store / "features"

    def features(self, name: str, chunk_key: str) -> Path:
        """Shard of one of `features` for one chunk."""
        return self.features_folder / self.feature_key(name) / f"{chunk_key}.zarr.zip"

    def with_feature(self, asked: str) -> Layout:
        """Layout with one of `features` alone, by its name or key.

        Raises:
            AtomloomError: when the config has no such feature.
        """
        features = self.config.features
        for name, key in self.feature_keys.items():
            if asked in (name, key):
                one = {"features": {name: features[name]}}
                return replace(self, config=self.config.model_copy(update=one))
        raise AtomloomError(
            f"there is no feature {asked}",
            where="features",
            todo=f"there are {', '.join(features) or 'none'}",
        )

    # --- graphs ---
    @property
    def graph_spec(self) -> dict[str, Any]:
        """Everything that determines a graph, besides the structure."""
        return self.config.graph.key_content() | {"builder": BUILDER}

    @property
    def graph_key(self) -> str:
        """Key that names the folder of graphs of one spec."""
        return short_hash(self.graph_spec)

    @property
    def graph_folder(self) -> Path:
        """Folder of all shards of one graph spec, of any data set."""
        return self.store / "graphs" / self.graph_key

    def graphs(self, chunk_key: str) -> Path:
        """Shard of graphs of one chunk."""
        return self.graph_folder / f"{chunk_key}.zarr.zip"

    # --- fixed paths for users ---
    @property
    def configs(self) -> Path:
        """Folder of the merged configs of the runs, one file each, named by content."""
        return self.results / "configs"

    @property
    def merged_config(self) -> Path:
        """Merged config that the stages of this workflow read."""
        key = short_hash(self.config.model_dump(mode="json"))
        return self.configs / f"{key}.yaml"

    @property
    def report(self) -> Path:
        """Report of the last run requested."""
        return self.results / "report.html"

    @property
    def logs(self) -> Path:
        """Logs of jobs, one folder per stage."""
        return self.results / "logs"

    @property
    def timings(self) -> Path:
        """Time and memory of jobs, one folder per stage."""
        return self.results / "timings"

    def timing(self, stage: str, job: str) -> Path:
        """Time and memory of one job."""
        return self.timings / stage / f"{job}.tsv"


@dataclass(frozen=True)
class RunPaths:
    """Paths that follow from the config and the plan."""

    layout: Layout
    plan: Plan

    @property
    def config(self) -> Config:
        """Config that these paths belong to."""
        return self.layout.config

    def with_feature(self, asked: str) -> RunPaths:
        """Paths with one of `features` alone, by its name or key; errors as of `Layout.with_feature`."""
        return replace(self, layout=self.layout.with_feature(asked))

    # --- index ---
    @property
    def index_spec(self) -> dict[str, Any]:
        """Everything that determines the index."""
        return {
            "members": self.plan.members_digest,
            "chunks": [chunk.key for chunk in self.plan.chunks],
            "graph": self.layout.graph_key,
        }

    @property
    def index(self) -> Path:
        """Folder of `index.json`, `index.parquet`, `quarantine.csv`."""
        return self.layout.results / "index" / short_hash(self.index_spec)

    # --- split ---
    @property
    def dataset_spec(self) -> dict[str, Any]:
        """Everything that determines labels and split: records, label values, targets, split."""
        # Exact duplicates are equal hashes, whatever the version of the guard.
        guard = {"guard": GUARD} if self.config.split.duplicate_tolerance > 0 else {}
        return {
            "members": self.plan.members_digest,
            "chunks": [chunk.key for chunk in self.plan.chunks],
            "labels": self.plan.labels_digest,
            "fixed": self.plan.fixed_digest,
            "teacher": self.layout.teacher_key,
            "target": self.config.dataset.target,
            "globals": self.config.dataset.global_features,
            **({"features": self.layout.feature_keys} if self.config.features else {}),
            "split": self.config.split.key_content() | guard,
            **({"isolated_atoms": True} if self.config.uses_isolated_atoms else {}),
            **direct_kinds(self.config),
        }

    @property
    def dataset_key(self) -> str:
        """Key that names the labelled and divided data set."""
        return short_hash(self.dataset_spec)

    @property
    def split(self) -> Path:
        """Folder of `dataset.parquet`, target arrays, `split.json`, `quarantine.csv`."""
        return self.layout.results / "split" / self.dataset_key

    def target_array(self, name: str) -> Path:
        """Values of one target that is not a column of `dataset.parquet`."""
        return self.split / f"{name.replace('%', '%25').replace('/', '%2F')}.zarr.zip"

    # --- run ---
    @property
    def run_spec(self) -> dict[str, Any]:
        """Everything that determines a trained model.

        Raises:
            AtomloomError: when the run that it continues is missing, or is not such a run, or the model that it starts
                from is missing or another network.
        """
        spec = {
            "dataset": self.dataset_key,
            "graph": self.layout.graph_key,
            "model": self.config.model.key_content(),
            "training": self.config.training.key_content(),
            "trainer": TRAINER,
        }
        if (start := self.config.start_model) is not None:
            spec["start_from"] = start.spec
        parent = self.parent
        if parent is None:
            return spec
        parent.require_continued_by(canonical(spec), self.config.training.epochs)
        return spec | {"parent": parent.state}

    @property
    def parent(self) -> Parent | None:
        """Run that this one continues; None if it starts anew."""
        named = self.config.training.continue_from
        return find_parent(expand_variables(named), self.layout.results / "runs") if named else None

    @property
    def run_key(self) -> str:
        """Key that names the training run."""
        return short_hash(self.run_spec)

    @property
    def run(self) -> Path:
        """Folder of the run: run card, metrics, predictions, history, model, state."""
        return self.layout.results / "runs" / self.run_key

    # --- sweep ---
    @property
    def sweep_spec(self) -> dict[str, Any]:
        """Content of the sweep key: the run that its trials differ from, and the section `sweep`."""
        sweep = self.config.sweep
        return {"base": self.run_spec, "sweep": sweep.key_content() if sweep else None}

    @property
    def sweep(self) -> Path:
        """Folder of a sweep: its rounds, results, tables, figures and page."""
        return self.layout.results / "sweeps" / short_hash(self.sweep_spec)

    # --- report ---
    @property
    def report_key(self) -> str:
        """Key that names the content of the report: the run, its index and split, the unit, and what is published."""
        unit, published = self.config.dataset.unit, self.config.published
        beside = [published.model_dump(mode="json")] if published else []
        return short_hash([self.run_key, self.index.name, self.split.name, unit, *beside])

    @property
    def own_report(self) -> Path:
        """Report that stays when that of another run is requested; reports of other runs link to it."""
        return own_report(self.layout.results, self.run_key)


def _place_of(path: str) -> Path:
    """Folder of the config, or its local copy."""
    return Path(os.environ.get(COPIES, ""), expand_variables(path))


def without_copies(path: Path) -> Path:
    """Path in the project, of one that may be a local copy."""
    copies = os.environ.get(COPIES)
    return path.relative_to(copies) if copies and path.is_relative_to(copies) else path


def own_report(results: Path, run_key: str) -> Path:
    """Report of one run that stays when that of another is requested, in the results of a data set."""
    return results / "reports" / f"{run_key}.html"


REPORT_MARK = "<!-- atomloom report "
"""Start of the last line of a report, which holds its key."""


def report_mark(key: str) -> str:
    """Last line of a report."""
    return f"{REPORT_MARK}{key} -->\n"


def report_key_of(path: Path) -> str | None:
    """Key of the report at this path; None where there is none or it is truncated."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 100))
        last = file.read().decode(errors="replace").rpartition(REPORT_MARK)
    return last[2].split(" ")[0] if last[1] else None
