"""A cut or damaged table or JSON stops a stage with one line: the file, and what makes it anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomloom.commands.cost import estimate_cost
from atomloom.commands.maintenance import named_shards, verify_store
from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.quarantine import Quarantine
from atomloom.stages.convert import convert_chunk
from atomloom.stages.graphs import build_chunk
from atomloom.stages.index import read_indexed_records, write_index
from atomloom.stages.labelled import load_labelled
from atomloom.stages.plan import make_plan
from atomloom.stages.split import read_dataset, read_split, write_split
from atomloom.store.parquet import write_table

ROWS = "".join(
    f'2\nLattice="{5 + 0.1 * n} 0 0 0 5 0 0 0 5" energy={-n}.5 pbc="T T T"\nNa 0 0 0\nCl 2.5 0 0\n'
    for n in range(20)
)


def quiet(_):
    """Take no notice."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> RunPaths:
    """A small project that is ready to be trained."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "salt.extxyz").write_text(ROWS)
    labels = "".join(f"salt-{n:06d},{n}.5\n" for n in range(20))
    (folder / "labels.csv").write_text(f"id,gap\n{labels}")
    layout = Layout(
        parse_config(
            {
                "dataset": {
                    "name": "salt",
                    "source": str(folder / "salt.extxyz"),
                    "labels": {"file": str(folder / "labels.csv")},
                    "target": "gap",
                    "chunks": {"mean": 8},
                },
                "graph": {"cutoff": 4, "max_neighbors": 4},
                "split": {"duplicates": "report"},
                "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
            }
        )
    )
    plan = make_plan(layout, quiet)
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, quiet)
        build_chunk(layout, key, quiet)
    places = RunPaths(layout, plan)
    write_index(places, quiet)
    write_split(places, quiet)
    return places


def plan_folder(places: RunPaths) -> Path:
    return places.layout.plan_folder


def first_chunk(places: RunPaths) -> None:
    convert_chunk(places.layout, places.plan, places.plan.chunk_keys[0], quiet)


READERS: dict[str, list[tuple[Callable, Callable, str]]] = {
    # file -> (its folder, what reads it, the stage that makes it)
    "members.parquet": [
        (plan_folder, first_chunk, "plan"),
        (plan_folder, lambda p: write_index(p, quiet), "plan"),
        (plan_folder, lambda p: write_split(p, quiet), "plan"),
        (plan_folder, lambda p: estimate_cost(p.layout, p.plan), "plan"),
    ],
    "labels.parquet": [(plan_folder, lambda p: write_split(p, quiet), "plan")],
    "plan.json": [
        (plan_folder, lambda p: Plan.read(plan_folder(p) / "plan.json"), "plan"),
        (plan_folder, lambda p: named_shards([p.layout.results.parent]), "plan"),
    ],
    "index.parquet": [
        (lambda p: p.index, read_indexed_records, "index"),
        (lambda p: p.index, load_labelled, "index"),
    ],
    "index.json": [
        (lambda p: p.index, lambda p: named_shards([p.layout.results.parent]), "index"),
        (lambda p: p.index, load_labelled, "index"),
    ],
    "dataset.parquet": [
        (lambda p: p.split, read_dataset, "split"),
        (lambda p: p.split, load_labelled, "split"),
    ],
    "split.json": [(lambda p: p.split, read_split, "split")],
}
CASES = [(name, *case) for name, cases in READERS.items() for case in cases]


@pytest.fixture
def kept(places):
    """Puts every file of the results back."""
    files = {p: p.read_bytes() for p in places.layout.results.rglob("*") if p.is_file()}
    yield
    for path, content in files.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
@pytest.mark.parametrize(
    ("name", "folder", "use", "stage"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_a_cut_file_is_named_with_what_makes_it_anew(places, kept, name, folder, use, stage, share):
    path = folder(places) / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(AtomloomError) as found:
        use(places)
    assert str(found.value).startswith(f"{path}: ")
    assert f"`atomloom {stage}`, or `snakemake --forcerun {stage}`" in str(found.value)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "folder", "use", "stage"),
    [case for case in CASES if case[0].endswith(".json")],
)
def test_a_digit_or_letter_that_flips_in_a_json_is_seen(places, kept, name, folder, use, stage):
    path = folder(places) / name
    whole = path.read_bytes()
    for old, new in ((b'"records": 20', b'"records": 28'), (b'": ', b'x": ')):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(AtomloomError, match=rf"{name}: .*{stage} again"):
            use(places)


@pytest.mark.parametrize("name", ["members.parquet", "labels.parquet"])
def test_a_table_of_another_plan_is_not_taken_for_this_ones(places, kept, name):
    """As a plan leaves it that is killed before it writes plan.json."""
    path = plan_folder(places) / name
    frame = pd.read_parquet(path)
    write_table(path, frame.iloc[::-1].reset_index(drop=True))
    with pytest.raises(AtomloomError, match="than the plan; plan again"):
        write_split(places, quiet)
    write_table(path, frame.iloc[:-1])
    with pytest.raises(AtomloomError, match="than the plan; plan again"):
        write_split(places, quiet)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["chunks"].pop(),
        lambda c: c["chunks"].reverse(),
        lambda c: c["chunks"][0].__setitem__(2, -1),
        lambda c: c["chunks"][0].__setitem__(0, "../../elsewhere"),
        lambda c: c["chunks"][0].pop(),
        lambda c: c.pop("members_digest"),
        lambda c: c.update(records="many"),
        lambda c: c.update(more=1),
    ],
)
def test_a_plan_that_does_not_cover_its_records_is_refused(places, kept, change):
    path = plan_folder(places) / "plan.json"
    content = json.loads(path.read_text())
    del content["seal"]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(AtomloomError, match=r"plan\.json: .*plan again"):
        Plan.read(path)


@pytest.mark.parametrize("name", ["sources.json", ".seen.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"files": 1}', "null"])
def test_what_was_seen_of_raw_files_is_looked_at_again_where_it_is_damaged(
    places, kept, name, content
):
    path = plan_folder(places) / name
    before = path.read_text()
    path.write_text(content)
    make_plan(places.layout, quiet)
    assert path.read_text() == before


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_damaged_donors_are_searched_anew_and_named_by_verify(places, share):
    (path,) = places.layout.graph_folder.glob("donors.parquet")
    whole, shard = path.read_bytes(), places.layout.graphs(places.plan.chunk_keys[0])
    before = shard.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    build_chunk(places.layout, places.plan.chunk_keys[0], quiet)
    assert shard.read_bytes() == before
    assert [item.path for item in verify_store(places.layout.store)] == [path]
    path.write_bytes(whole)


def test_spec_files_that_are_cut_are_named(places, kept):
    path = places.index / "spec.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(AtomloomError, match=r"spec\.json: is not valid JSON.*remove it"):
        write_index(places, quiet)


def test_the_table_that_stops_a_stage_is_no_file_that_the_workflow_removes(tmp_path):
    """What a job was to make goes when it fails: `quarantine.csv`, but not what the error names."""
    names = np.array([f"s{n}" for n in range(4)], dtype=object)
    quarantine = Quarantine(names, names, np.arange(4))
    for record in (1, 2):
        quarantine.add(record, "no label")
    with pytest.raises(AtomloomError, match="2 of 4 records are in quarantine") as found:
        quarantine.close(tmp_path, 0.25)
    named = Path(found.value.where)
    assert named.name != "quarantine.csv"
    assert pd.read_csv(named)["id"].tolist() == ["s1", "s2"]
    assert (tmp_path / "quarantine.csv").read_bytes() == named.read_bytes()
    quarantine.close(tmp_path, 0.5)
    assert not named.exists(), "it is no longer too much"
