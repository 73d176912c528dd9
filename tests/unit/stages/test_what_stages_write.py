"""What index, split and evaluate write, column by column, against the frames that were read.

Chunks of a few frames, of several sizes, with one frame in the middle of a chunk that is refused: a
value that is joined by its place, and not by its record, is then another frame's.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from atomloom.api import prepare, run_pipeline
from atomloom.config import parse_config
from atomloom.data.splits import SPLITS
from atomloom.graphs.build import build_graph
from atomloom.pipeline.plan import Plan
from atomloom.potentials.calculator import AtomloomCalculator
from atomloom.store import shards
from atomloom.store.keys import canonical, short_hash
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure

FRAMES = 26
BAD = 9
"""A frame with two atoms on one place."""
NO_FORCES, NO_STRESS, NO_ENERGY, NOTHING = 5, 12, 17, 18
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""xx, yy, zz, yz, xz, xy: the order of the components of stress, as in ASE."""


def frames() -> list[Atoms]:
    """Crystals of 1 to 4 atoms with labels drawn at random, so that each is one frame's alone."""
    rng = np.random.default_rng(3)
    made = []
    for place in range(FRAMES):
        atoms = bulk("Cu", "fcc", a=3.5 + 0.03 * place).repeat((1 + place % 4, 1, 1))
        atoms.symbols[0] = "Ag" if place % 3 else "Cu"
        atoms.rattle(0.02, seed=place)
        if place == BAD:
            atoms += Atoms("Cu", atoms.positions[:1] + 0.01)
        values = {
            "energy": rng.normal(),
            "forces": rng.normal(size=(len(atoms), 3)),
            "stress": rng.normal(size=6),
        }
        for name, without in (("forces", NO_FORCES), ("stress", NO_STRESS), ("energy", NO_ENERGY)):
            if place in (without, NOTHING):
                del values[name]
        atoms.calc = SinglePointCalculator(atoms, **values)
        made.append(atoms)
    return made


@pytest.fixture(scope="module")
def decoded():
    """How often each array of each shard was decoded: {stages: {(folder, file, array): times}}."""
    return {"until split": Counter(), "training and evaluation": Counter(), "report": Counter()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, decoded):
    folder = tmp_path_factory.mktemp("stages")
    write(folder / "f.extxyz", frames())
    config = parse_config(
        {
            "dataset": {
                "name": "d",
                "source": str(folder / "f.extxyz"),
                "target": ["energy", "forces", "stress"],
                "chunks": {"mean": 6, "min": 5, "max": 7},
                "checks": {"max_fraction": 0.2},
            },
            "split": {"duplicates": "report", "ratios": [0.6, 0.2, 0.2]},
            "graph": {"neighbors": "radius", "cutoff": 4.0},
            "model": {"name": "painn", "width": 8, "layers": 1, "cutoff": 4.0},
            "training": {"epochs": 1, "batch": {"structures": 4}, "device": "cpu", "threads": 1},
            "paths": {"store": str(folder / "store"), "results": str(folder / "results")},
        }
    )
    genuine = shards._Shard.array
    with pytest.MonkeyPatch.context() as patch:

        def counting(into: Counter) -> None:
            def array(shard, name, verify):
                into[shard.path.parent.name, shard.path.name, name] += 1
                return genuine(shard, name, verify)

            patch.setattr(shards._Shard, "array", array)

        counting(decoded["until split"])
        prepare(config, lambda line: None)
        counting(decoded["training and evaluation"])
        done = run_pipeline(config, lambda line: None)
        counting(decoded["report"])
        assert done.report.exists()
    plan: Plan = done.places.plan
    assert len(plan.chunks) > 2
    first = next(chunk for chunk in plan.chunks if chunk.first <= BAD < chunk.first + chunk.count)
    assert first.first < BAD < first.first + first.count - 1, "in the middle of a chunk"
    return done


def name(place: int) -> str:
    return f"f-{place:06d}"


def used(*without: int) -> list[int]:
    return [place for place in range(FRAMES) if place not in (BAD, NOTHING, *without)]


def built() -> list[int]:
    return sorted([*used(), NOTHING])


def as_read(place: int) -> Structure:
    return to_structure(frames()[place])


def test_a_shard_of_structures_is_decoded_for_graphs_for_the_split_and_for_the_report_alone(
    run, decoded
):
    before, training, report = (
        {key[1:]: times for key, times in counts.items() if key[0] == "structures"}
        for counts in decoded.values()
    )
    assert training == {}, "train and evaluate"
    assert set(report.values()) == {1}, "the worst of all targets are drawn"
    files = {f"{key}.zarr.zip" for key in run.places.plan.chunk_keys}
    assert {file for file, _ in before} == files
    index = {"record": 1, "hash": 1}  # it knows which records there are, and no structure
    for (_, array), times in before.items():
        assert times == 2 + index.get(array, 0), array


def test_the_index_says_of_each_record_where_its_graph_is_and_how_large(run):
    folder = run.places.index
    index = pd.read_parquet(folder / "index.parquet")
    content = json.loads((folder / "index.json").read_text())
    graphs = {place: build_graph(as_read(place), run.places.config.graph) for place in built()}
    assert list(index) == ["record", "id", "hash", "shard", "row", "n_atoms", "n_edges", "n_triplets"]  # fmt: skip
    assert index["record"].tolist() == built()
    assert index["id"].tolist() == [name(place) for place in built()]
    assert index["hash"].tolist() == [as_read(place).hash for place in built()]
    assert index["n_atoms"].tolist() == [len(graph.numbers) for graph in graphs.values()]
    assert index["n_edges"].tolist() == [len(graph.src) for graph in graphs.values()]
    assert (index["n_triplets"] == 0).all()
    for chunk in run.places.plan.chunks:
        own = index[index["record"].between(chunk.first, chunk.first + chunk.count - 1)]
        assert set(own["shard"]) == {f"{chunk.key}.zarr.zip"}
        assert own["row"].tolist() == list(range(len(own)))
    degrees = [np.bincount(graph.dst, minlength=len(graph.numbers)) for graph in graphs.values()]
    histogram = np.bincount(np.concatenate(degrees))
    assert content["neighbors_histogram"] == histogram.tolist()
    assert (content["records"], content["structures"], content["quarantined"]) == (26, 25, 1)
    assert content["atoms"] == histogram.sum() == index["n_atoms"].sum()
    assert content["edges"] == index["n_edges"].sum()
    assert pd.read_csv(folder / "quarantine.csv")["id"].tolist() == [name(BAD)]


def test_the_split_says_of_each_record_what_it_is_and_on_which_side(run):
    folder = run.places.split
    dataset = pd.read_parquet(folder / "dataset.parquet")
    content = json.loads((folder / "split.json").read_text())
    places = used()
    assert {"record", "id", "hash", "split", "energy", "formula", "elements", "n_atoms"} <= {
        *dataset
    }
    assert dataset["record"].tolist() == places
    assert dataset["id"].tolist() == [name(place) for place in places]
    assert dataset["hash"].tolist() == [as_read(place).hash for place in places]
    read = [frames()[place] for place in places]
    energies = [a.calc.results.get("energy", np.nan) for a in read]
    assert dataset["energy"].tolist() == pytest.approx(energies, nan_ok=True)
    assert dataset["n_atoms"].tolist() == [len(atoms) for atoms in read]
    assert [set(text.split(",")) for text in dataset["elements"]] == [{*a.symbols} for a in read]
    counts = dataset["split"].value_counts()
    assert {split: content[split] for split in SPLITS} == counts.to_dict()
    side = dataset.set_index("id")["split"][name(NO_ENERGY)]
    assert content["known"] == {"energy": {n: c - (n == side) for n, c in counts.to_dict().items()}}
    refused = pd.read_csv(folder / "quarantine.csv").set_index("id")["reason"]
    assert refused.index.tolist() == [name(BAD), name(NOTHING)]
    assert (
        refused[name(NOTHING)] == "no label: the record has no energy and no forces and no stress"
    )


def test_evaluation_holds_every_value_against_that_of_its_own_record(run):
    dataset = pd.read_parquet(run.places.split / "dataset.parquet").set_index("id")
    tables = {
        target: pd.read_parquet(run.folder / f"{target}.parquet")
        for target in ("predictions", "forces", "stress")
    }
    for table in tables.values():
        assert table["split"].tolist() == dataset["split"].loc[table["id"]].tolist()
    energies = tables["predictions"].set_index("id")
    assert energies.index.tolist() == [name(place) for place in used()]
    for place in used():
        atoms, own = frames()[place], energies.loc[name(place)]
        energy = atoms.calc.results.get("energy", np.nan)
        assert own["energy"] == pytest.approx(energy, nan_ok=True)
        assert own["energy_per_atom"] == pytest.approx(energy / len(atoms), nan_ok=True)
        ours = own["energy_per_atom_predicted"] * len(atoms)
        assert ours == pytest.approx(own["energy_predicted"])
    forces = dict(tuple(tables["forces"].groupby("id")))
    assert sorted(forces) == [name(place) for place in used(NO_FORCES)]
    for place in used(NO_FORCES):
        atoms, own = frames()[place], forces[name(place)]
        assert own["atom"].tolist() == np.repeat(np.arange(len(atoms)), 3).tolist()
        found = own.pivot(index="atom", columns="component", values="forces").to_numpy()
        np.testing.assert_allclose(found, atoms.get_forces(), atol=1e-7)
        assert own["elements"].tolist() == np.repeat(atoms.get_chemical_symbols(), 3).tolist()
    stress = dict(tuple(tables["stress"].groupby("id")))
    assert sorted(stress) == [name(place) for place in used(NO_STRESS)]
    for place in used(NO_STRESS):
        own = stress[name(place)].sort_values("component")["stress"]
        np.testing.assert_allclose(own, frames()[place].get_stress(), atol=1e-7)


def test_predictions_are_of_the_record_and_component_they_stand_beside(run):
    potential = AtomloomCalculator(run.folder / "model.safetensors")
    energies = run.predictions.set_index("id")["energy_predicted"]
    forces, stress = (pd.read_parquet(run.folder / f"{n}.parquet") for n in ("forces", "stress"))
    for place in (BAD - 1, BAD + 1, FRAMES - 1):
        atoms = frames()[place]
        atoms.calc = potential
        own = forces[forces["id"] == name(place)]["forces_predicted"].to_numpy().reshape(-1, 3)
        np.testing.assert_allclose(own, atoms.get_forces(), rtol=1e-4, atol=1e-5)
        own = stress[stress["id"] == name(place)].sort_values("component")["stress_predicted"]
        np.testing.assert_allclose(own, atoms.get_stress(), rtol=1e-4, atol=1e-6)
        assert energies[name(place)] == pytest.approx(atoms.get_potential_energy(), rel=1e-5)


def test_errors_are_counted_by_target_and_split(run):
    tables = {
        "energy": run.predictions,
        "energy_per_atom": run.predictions,
        "forces": pd.read_parquet(run.folder / "forces.parquet"),
        "stress": pd.read_parquet(run.folder / "stress.parquet"),
    }
    sides = run.predictions.set_index("id")
    for target, own in run.metrics.items():
        for split, values in own.items():
            part = tables[target][tables[target]["split"] == split]
            errors = (part[f"{target}_predicted"] - part[target]).abs()
            assert values["mae"] == pytest.approx(errors.mean())
            there = sides[sides["split"] == split]
            expected = {
                "forces": 3 * there["n_atoms"].drop(name(NO_FORCES), errors="ignore").sum(),
                "stress": 6 * len(there.drop(name(NO_STRESS), errors="ignore")),
            }
            known = len(there.drop(name(NO_ENERGY), errors="ignore"))
            assert values["count"] == expected.get(target, known)


def test_every_keyed_folder_says_what_its_name_stands_for(run):
    places, layout = run.places, run.places.layout
    folders = {
        layout.plan_folder: layout.plan_spec,
        layout.graph_folder: layout.graph_spec,
        places.index: places.index_spec,
        places.split: places.dataset_spec,
        places.run: places.run_spec,
    }
    for folder, spec in folders.items():
        kept = json.loads((folder / "spec.json").read_text())
        assert kept == canonical(spec), folder
        assert short_hash(kept) == folder.name
