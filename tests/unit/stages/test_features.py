"""Features are computed once for each structure and source, and become columns of the data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from atomloom.commands.maintenance import named_shards, problems_of, unused_files
from atomloom.config import parse_config
from atomloom.config.features import OPTIONS, Feature, SourceName
from atomloom.errors import AtomloomError
from atomloom.features.composition import Composition
from atomloom.features.gamma_frequencies import GammaFrequencies
from atomloom.features.registry import SOURCES
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.stage_table import jobs_to_do
from atomloom.stages import features as stage
from atomloom.stages.convert import convert_chunk
from atomloom.stages.features import describe_chunk, features_of_chunk, read_features
from atomloom.stages.plan import make_plan
from atomloom.stages.split import global_names, read_dataset, write_split
from atomloom.store.keys import FEATURES
from atomloom.store.shards import read_shard, write_shard
from tests.unit.potentials.models import write_potential

SECTION = {"composition": {}, "phonons": {"source": "gamma_frequencies", "calculator": "emt"}}


def quiet(_):
    """Take no notice."""


def crystals(count: int) -> list:
    """Different cells, each with a number of its own."""
    made = []
    for number in range(count):
        atoms = bulk("Cu" if number % 3 else "Ag", a=3.6 + 0.05 * number)
        atoms.info["gap"] = float(number)
        made.append(atoms)
    return made


def project(folder: Path, structures: list, features=SECTION, name: str = "cu") -> RunPaths:
    write(folder / f"{name}.extxyz", structures)
    content = {
        "dataset": {
            "name": name,
            "source": str(folder / f"{name}.extxyz"),
            "target": "gap",
            "chunks": {"mean": 4},
            "checks": {"max_fraction": 0.5},
        },
        "features": features,
        "model": {"name": "icomformer", "width": 8, "layers": 2},
        "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
    }
    layout = Layout(parse_config(content))
    make_plan(layout, quiet)
    paths = RunPaths(layout, Plan.read(layout.plan_folder / "plan.json"))
    for key in paths.plan.chunk_keys:
        convert_chunk(layout, paths.plan, key, quiet)
    return paths


def describe(paths: RunPaths, log=quiet) -> None:
    for key in paths.plan.chunk_keys:
        describe_chunk(paths.layout, key, log)


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many structures frequencies were computed of, call by call."""
    calls: list[int] = []
    genuine = GammaFrequencies.describe

    def counting(self, table):
        calls.append(len(table))
        return genuine(self, table)

    monkeypatch.setattr(GammaFrequencies, "describe", counting)
    return calls


def test_numbers_become_columns_by_structure_and_failures_go_to_quarantine(tmp_path):
    frames = crystals(12)
    frames[5].numbers[:] = 26  # EMT knows no iron
    paths = project(tmp_path, frames)
    describe(paths)
    folder = write_split(paths, quiet)
    (refused,) = (folder / "quarantine.csv").read_text().splitlines()[1:]
    assert refused.startswith("cu-000005,")
    assert refused.endswith("cu.extxyz,5,phonons: No EMT-potential for Fe")
    frame = read_dataset(paths)
    names = global_names(paths)
    assert names[:2] == ["composition.elements", "composition.evenness"]
    assert names[-9:] == [f"phonons.{column}" for column in GammaFrequencies.columns]
    assert np.isfinite(frame[names]).all(axis=None)
    assert frame["record"].tolist() == [n for n in range(12) if n != 5]
    # A wider crystal is softer: each row has the numbers of its own structure.
    silver = frame[frame["formula"] == "Ag"]
    assert silver["composition.number_mean"].eq(47).all()
    assert silver["phonons.max"].is_monotonic_decreasing


def test_a_structure_more_is_one_computation_and_the_other_projects_of_a_store_have_none(
    tmp_path, asked
):
    describe(project(tmp_path, crystals(10)))
    assert sum(asked) == 10
    asked.clear()
    describe(project(tmp_path, crystals(11)))
    assert sum(asked) == 1
    asked.clear()
    other = {"frequencies": SECTION["phonons"]}
    describe(project(tmp_path, [*crystals(11)[::-1]], other, name="other"))
    assert sum(asked) == 0


def test_equal_structures_of_a_chunk_are_computed_once(tmp_path, asked):
    paths = project(tmp_path, [*crystals(3), *crystals(3)], SECTION)
    describe(paths)
    assert sum(asked) == 3
    found = [
        features_of_chunk(
            paths.layout, key, read_features(paths.layout.features("phonons", key)).hash
        )
        for key in paths.plan.chunk_keys
    ]
    values = np.concatenate([one.columns["phonons.max"] for one in found])
    assert np.array_equal(values[:3], values[3:])


def test_a_killed_job_resumes_and_a_failure_is_tried_again(tmp_path, monkeypatch, asked):
    frames = crystals(8)
    frames[2].numbers[:] = 26
    features = {"phonons": SECTION["phonons"]}
    paths = project(tmp_path, frames, features)
    key = max(paths.plan.chunks, key=lambda chunk: chunk.count).key
    genuine, written = stage._write, []

    def dying(path, table, done, columns):
        genuine(path, table, done, columns)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "KEEP_EVERY", 0.0)
        patch.setattr(stage, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            describe_chunk(paths.layout, key, quiet)
    whole = asked[0]
    assert not paths.layout.features("phonons", key).exists()
    lines: list[str] = []
    describe_chunk(paths.layout, key, lines.append)
    failed = len(read_features(paths.layout.features("phonons", key)).failures)
    assert asked[1] == whole - 3 + min(failed, 1)
    assert not list(tmp_path.glob("store/features/*/partial/*"))


def test_jobs_are_per_chunk_and_feature_and_a_key_has_what_decides_its_numbers(tmp_path):
    paths = project(tmp_path, crystals(9))
    chunks = len(paths.plan.chunk_keys)
    assert [job.stage for job in jobs_to_do(paths)].count("features") == 2 * chunks
    describe_chunk(paths.layout.with_feature("composition"), paths.plan.chunk_keys[0], quiet)
    assert [job.stage for job in jobs_to_do(paths)].count("features") == 2 * chunks - 1

    def keys(**phonons) -> dict[str, str]:
        section = {**SECTION, "phonons": {**SECTION["phonons"], **phonons}}
        content = paths.config.model_dump(mode="json")
        return Layout(parse_config(content | {"features": section})).feature_keys

    other = keys(displacement=0.03)
    assert other["composition"] == paths.layout.feature_keys["composition"]
    assert other["phonons"] != paths.layout.feature_keys["phonons"]
    assert keys() == paths.layout.feature_keys
    without = Layout(parse_config(paths.config.model_dump(mode="json") | {"features": {}}))
    assert "features" not in RunPaths(without, paths.plan).dataset_spec


def test_the_key_of_a_potential_is_that_of_its_content(tmp_path):
    def key(path: Path) -> str:
        section = {"phonons": {"source": "gamma_frequencies", "model": str(path)}}
        content = {"dataset": {"name": "a", "source": "a", "target": "b"}, "features": section}
        return Layout(parse_config(content)).feature_key("phonons")

    one = write_potential(tmp_path / "one.safetensors")
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(one.read_bytes())
    other = write_potential(tmp_path / "other.safetensors", seed=1)
    assert key(one) == key(copied) != key(other)
    with pytest.raises(AtomloomError, match=r"no model file here.*features\.phonons\.model"):
        key(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a, b: a["values"].__setitem__((0, 0), np.nan), "missing without a reason"),
        (lambda a, b: b.update(columns=["max"]), "not names of its numbers"),
        (lambda a, b: b.update(columns=["max"] * 9), "not names of its numbers"),
        (lambda a, b: b.update(failures=[[99, "why"]]), "rows that do not exist"),
        (lambda a, b: b.update(kind="labels"), "not a shard of features"),
        (lambda a, b: a["hash"].__setitem__((0, 0), a["hash"][0, 0] ^ 1), "other structures"),
    ],
    ids=["unknown", "few names", "one name", "no such row", "labels", "structures"],
)
def test_a_shard_that_makes_no_sense_is_refused_and_verify_names_it(tmp_path, spoil, said):
    paths = project(tmp_path, crystals(3), {"phonons": SECTION["phonons"]})
    describe(paths)
    key = paths.plan.chunk_keys[0]
    path = paths.layout.features("phonons", key)
    arrays, attributes = read_shard(path)
    hashes = arrays["hash"].copy()
    assert problems_of(tmp_path / "store", path) == []
    spoil(arrays, attributes)
    write_shard(path, arrays, attributes)
    with pytest.raises(AtomloomError, match=said):
        features_of_chunk(paths.layout, key, hashes)
    assert said in problems_of(tmp_path / "store", path)[0]


def test_every_source_has_a_class_keys_a_version_and_a_line_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "features.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (\w+)", page, re.M))
    assert set(SOURCES) == set(OPTIONS) == set(FEATURES) == set(told) == set(get_args(SourceName))
    assert told["composition"] == str(len(Composition.columns))
    assert told["gamma_frequencies"] == str(len(GammaFrequencies.columns))
    for keys in OPTIONS.values():
        assert set(keys) <= set(Feature.model_fields)


def test_features_of_chunks_that_no_plan_has_are_unused(tmp_path):
    paths = project(tmp_path, crystals(9))
    describe(paths)
    kept = paths.layout.features("phonons", paths.plan.chunk_keys[0])
    stray = kept.with_name("0123456789abcdef.zarr.zip")
    stray.write_bytes(kept.read_bytes())
    assert f"features/{kept.name}" in named_shards([tmp_path / "results"])
    assert unused_files(tmp_path / "store", [tmp_path / "results"], -1) == [stray]
