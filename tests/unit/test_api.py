"""`atomloom.train`: from lists of structures to a model that predicts, over one store."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from jarvis.core.atoms import Atoms as JarvisAtoms
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal

import atomloom
from atomloom.api import _frame, _placed
from atomloom.errors import AtomloomError
from atomloom.graphs import build
from atomloom.readers.formats.extxyz import parse
from atomloom.stages import graphs as graph_stage
from atomloom.structures.adapters import to_structure

SMALL = {"model": {"name": "icomformer", "width": 8, "layers": 2}, "graph": {"max_neighbors": 6}}
QUICK = {"epochs": 2, "batch": {"structures": 8}, "threads": 1, "device": "cpu"}
RATIOS = {"split": {"ratios": [0.6, 0.2, 0.2]}}


def quiet(_):
    """Take no notice."""


def crystals(count: int = 30) -> list[Atoms]:
    """Rocksalt cells of different lengths."""
    pairs = [("Na", "Cl"), ("Mg", "O"), ("Li", "F"), ("K", "Br"), ("Ca", "O")]
    return [
        bulk("".join(pairs[i % 5]), "rocksalt", a=4.2 + 0.05 * i, cubic=i % 2 == 0)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A first run of lengths that are to be told."""
    folder = tmp_path_factory.mktemp("notebook")
    atoms = crystals()
    labels = np.array([item.cell.lengths().mean() for item in atoms])
    options = {"folder": folder, "target": "length", "log": quiet, **SMALL, **QUICK, **RATIOS}
    return atoms, labels, options, atomloom.train(atoms, labels, **options)


def test_a_run_has_its_model_metrics_and_report(first):
    atoms, labels, _, run = first
    assert (run.folder / "run.json").exists()
    assert len(run.history) == 2
    test = run.predictions[run.predictions["split"] == "test"]
    assert run.metrics["length"]["test"]["count"] == len(test) == 6
    predicted = run.predict(atoms)
    number = run.predictions["id"].str.rpartition("-")[2].astype(int)
    np.testing.assert_allclose(run.predictions["length"], labels[number], rtol=0)
    np.testing.assert_allclose(
        run.predictions["length_predicted"], predicted[number, 0], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(run.predict(atoms[0]), predicted[:1], rtol=1e-4)
    assert run.report.read_text().startswith("<!DOCTYPE html>")


def test_another_learning_rate_or_label_builds_no_graph(first, monkeypatch):
    atoms, labels, options, run = first
    built = []
    genuine = build.build_graphs
    monkeypatch.setattr(
        graph_stage, "build_graphs", lambda *a, **o: built.append(a) or genuine(*a, **o)
    )
    files = {path: path.stat().st_mtime_ns for path in options["folder"].glob("store/**/*.zip")}
    other = atomloom.train(atoms, labels, **options, learning_rate=3e-3)
    relabelled = atomloom.train(atoms, labels + 1.0, **options)
    assert len({run.folder, other.folder, relabelled.folder}) == 3
    assert not built
    assert files == {p: p.stat().st_mtime_ns for p in options["folder"].glob("store/**/*.zip")}
    atomloom.train(atoms, labels, **{**options, "graph": {"max_neighbors": 7}})
    assert built, "or nothing would have been counted"


def test_the_same_call_does_nothing(first):
    atoms, labels, options, run = first
    lines = []
    again = atomloom.train(atoms, labels, **{**options, "log": lines.append})
    assert again.folder == run.folder
    assert lines == []


def test_structures_of_all_libraries_are_one_data_set(first, tmp_path):
    """Mixed objects give the data set that ASE's give, to the bit."""
    atoms, labels, options, run = first
    mixed = []
    for place, item in enumerate(atoms):
        structure = to_structure(item)
        lattice, species = structure.cell, item.get_chemical_symbols()
        kinds = (
            lambda item=item: item,
            lambda s=structure: s,
            lambda lattice=lattice, species=species, item=item: Crystal(
                Lattice(lattice), species, item.positions, coords_are_cartesian=True
            ),
            lambda lattice=lattice, species=species, item=item: JarvisAtoms(
                lattice_mat=lattice, coords=item.positions, elements=species, cartesian=True
            ),
        )
        mixed.append(kinds[place % 4]())
    found = atomloom.train(mixed, labels, **{**options, "folder": tmp_path})
    np.testing.assert_array_equal(
        np.sort(found.predictions["length"]), np.sort(run.predictions["length"])
    )
    assert set(found.predictions["split"]) == {"train", "val", "test"}


def test_unknown_labels_several_targets_classes_and_temperatures(tmp_path):
    atoms = crystals()
    lengths = np.array([item.cell.lengths().mean() for item in atoms])
    lengths[3] = np.nan
    options = {"folder": tmp_path, "log": quiet, **SMALL, **QUICK, **RATIOS}
    square = lengths**2
    square[5] = np.nan  # which leaves the length of this one
    labels = {"length": lengths, "square": square}
    run = atomloom.train(atoms, labels, global_features={"t": np.arange(30.0)}, **options)
    assert run.predictions.count()[["length", "square"]].tolist() == [29, 28]
    assert run.predict(atoms[:4], global_features={"t": 300.0}).shape == (4, 2)
    classes = np.arange(30) % 3
    run = atomloom.train(atoms, classes, loss="cross_entropy", **options)
    assert set(run.metrics["target"]["test"]) >= {"accuracy", "f1", "auc", "calibration"}
    table = run.predictions
    np.testing.assert_allclose(table[["target_p0", "target_p1", "target_p2"]].sum(axis=1), 1)
    assert set(table["target_predicted"]) <= {0, 1, 2}
    assert run.predict(atoms).shape == (30, 3)
    assert run.report.exists()


def test_a_file_and_the_name_of_a_property(tmp_path):
    atoms = crystals()
    for item in atoms:
        item.calc = SinglePointCalculator(item, energy=float(item.get_volume()))
    write(tmp_path / "frames.extxyz", atoms)
    options = {"folder": tmp_path, "log": quiet, **SMALL, **QUICK, **RATIOS}
    from_file = atomloom.train(tmp_path / "frames.extxyz", "energy", **options)
    from_list = atomloom.train(atoms, "energy", **options)
    volumes = sorted(item.get_volume() for item in atoms)
    for run in (from_file, from_list):
        np.testing.assert_allclose(np.sort(run.predictions["energy"]), volumes, rtol=1e-8)


def test_a_frame_keeps_every_digit_and_what_is_wanted():
    rng = np.random.default_rng(0)
    slab = Atoms("OH2", rng.normal(size=(3, 3)), cell=rng.normal(size=(3, 3)), pbc=[1, 1, 0])
    lone = Atoms("He", rng.normal(size=(1, 3)))
    for item in (slab, lone):
        item.calc = SinglePointCalculator(
            item, energy=rng.normal(), forces=rng.normal(size=(len(item), 3)),
            stress=rng.normal(size=6),
        )  # fmt: skip
        wanted = ["energy", "forces", "stress"]
        expected = to_structure(item)
        found = parse(_frame(expected, wanted).encode(), {})
        assert atomloom.structure_hash(found) == atomloom.structure_hash(expected)
        np.testing.assert_array_equal(found.positions, expected.positions)
        assert found.properties.keys() == set(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found.properties[name], expected.properties[name])
        assert not parse(_frame(expected, []).encode(), {}).properties


def test_keys_find_their_sections():
    placed = _placed(
        {"epochs": 5, "cutoff": 4.0, "model": "ecomformer", "width": 8, "split": {"seed": 1}}, {}
    )
    assert placed == {
        "training": {"epochs": 5},
        "graph": {"cutoff": 4.0},
        "model": {"name": "ecomformer", "width": 8},
        "split": {"seed": 1},
    }


def test_a_former_name_finds_its_section_too(tmp_path):
    assert _placed({"least_distance": 0.2, "model": "chebyshev"}, {})["model"] == {
        "name": "chebyshev",
        "least_distance": 0.2,
    }
    with (
        pytest.warns(FutureWarning, match=r"model\.least_distance is now model\.min_distance"),
        pytest.raises(AtomloomError, match="learns the targets energy"),
    ):
        atomloom.train(
            *(crystals(3), [1, 2, 3], {"model": {"name": "chebyshev", "species": ["Cu"]}}),
            folder=tmp_path,
            least_distance=0.2,
        )


def test_a_key_counts_wherever_it_stands_beside_the_name_of_the_model():
    before, behind = {"width": 8, "model": "ecomformer"}, {"model": "ecomformer", "width": 8}
    assert _placed(before, {}) == _placed(behind, {})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 5}, "no key epoch, did you mean epochs"),
        ({"seed": 5}, "seed is a key of the sections training and split"),
        ({"alignn_layers": 2}, "no key alignn_layers"),
    ],
)
def test_keys_that_have_no_one_section_are_refused(overrides, message):
    with pytest.raises(AtomloomError, match=message):
        _placed(overrides, {})


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (None, {"epochs": float("nan")}, "training.epochs: .*finite"),
        (None, {"epochs": np.int64(10**9)}, "training.epochs: .*not 1000000000"),
        (None, {"model": ""}, "model.name: .*not ''"),
        ({"training": 5}, {}, "training: .*mapping of keys"),
        ({"dataset": "x"}, {}, "dataset: should be a mapping of keys"),
        ({"dataset": {"options": {"a": np.nan}}}, {}, "options: a should be a finite number"),
        ({"model": "painn"}, {"width": 64}, "model painn learns the targets energy"),
    ],
)
def test_bad_values_are_refused_as_in_a_file(tmp_path, config, overrides, message):
    with pytest.raises(AtomloomError, match=message) as error:
        atomloom.train(crystals(3), [1, 2, 3], config, folder=tmp_path, log=quiet, **overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("structures", "labels", "message"),
    [
        (crystals(3), [1.0, 2.0], r"target has shape \(2,\) for 3 structures"),
        ([], [], "no structure with labels"),
        ("frames.extxyz", [1.0], "are given by name"),
        ([1], [1.0], "is not a structure"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, structures, labels, message):
    with pytest.raises(AtomloomError, match=message):
        atomloom.train(structures, labels, folder=tmp_path, log=quiet)


def test_every_public_name_is_there():
    for name in atomloom.__all__:
        assert getattr(atomloom, name) is not None
    item = crystals(1)[0]
    assert atomloom.structure_hash(item) == to_structure(item).hash
