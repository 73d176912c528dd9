"""Values of targets that are no column: one array each by the split, joined by record, made anew if lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from atomloom.api import prepare
from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.stages import labelled, target_arrays
from atomloom.stages.convert import read_chunk
from atomloom.stages.label import read_labels_of
from atomloom.stages.labelled import load_labelled, load_records
from atomloom.stages.labels import array_targets
from atomloom.stages.split import read_dataset, write_split
from atomloom.stages.target_arrays import (
    ChunkArrays,
    TargetArray,
    holds,
    load_target_arrays,
    read_target_array,
    values_in,
    write_target_arrays,
)
from atomloom.store.shards import read_shard, write_shard
from atomloom.structures.table import StructureTable
from atomloom.targets import spec_of

FRAMES = 20
BAD, UNLABELLED, TWIN = 7, 11, 15
"""A frame that is refused, one without any label, and one that is the frame before once more."""
FORCES, STRESS = (spec_of(name, name) for name in ("forces", "stress"))


def frames() -> list[Atoms]:
    rng = np.random.default_rng(5)
    made = []
    for place in range(FRAMES):
        atoms = bulk("Cu", "fcc", a=3.5 + 0.03 * place).repeat((1 + place % 3, 1, 1))
        atoms.rattle(0.02, seed=place)
        if place == TWIN:
            atoms = made[-1].copy()
        if place == BAD:
            atoms += Atoms("Cu", atoms.positions[:1] + 0.01)
        values = {
            "energy": rng.normal(),
            "forces": rng.normal(size=(len(atoms), 3)),
            "stress": rng.normal(size=6),
        }
        atoms.calc = SinglePointCalculator(atoms, **({} if place == UNLABELLED else values))
        made.append(atoms)
    return made


def content(folder, **sections) -> dict:
    dataset = {
        "name": "d",
        "source": str(folder / "f.extxyz"),
        "target": ["energy", "forces", "stress"],
        "chunks": {"mean": 6, "min": 5, "max": 7},
        "checks": {"max_fraction": 0.2},
    }
    whole = {
        "dataset": dataset | sections.pop("dataset", {}),
        "split": {"duplicates": "remove", "ratios": [0.6, 0.2, 0.2]},
        "graph": {"neighbors": "radius", "cutoff": 4.0},
        "model": {"name": "painn", "width": 8, "layers": 1, "cutoff": 4.0},
        "training": {"batch": {"structures": 2}, "device": "cpu", "threads": 1},
        "paths": {"store": str(folder / "store"), "results": str(folder / "results")},
    }
    return whole | sections


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> RunPaths:
    folder = tmp_path_factory.mktemp("arrays")
    write(folder / "f.extxyz", frames())
    places = prepare(parse_config(content(folder)), lambda line: None)
    assert len(places.plan.chunks) > 2
    return places


@pytest.fixture
def places(made):
    """Puts the arrays back."""
    files = {path: path.read_bytes() for path in made.split.iterdir()}
    yield made
    for path, data in files.items():
        path.write_bytes(data)


def stored(places: RunPaths) -> dict[int, dict[str, np.ndarray]]:
    """Values of every converted record, out of the shards of structures."""
    found = {}
    for chunk in places.plan.chunks:
        own = read_chunk(places.layout.structures(chunk.key))
        for row, place in enumerate(own.record):
            atoms = slice(*own.table.node_ptr[row : row + 2])
            values = own.table.properties
            found[chunk.first + int(place)] = {
                "forces": values["forces"][atoms],
                "stress": values["stress"][row],
            }
    return found


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Bit for bit."""
    return found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


def test_the_split_writes_every_value_as_it_is_stored_under_its_record(places):
    wanted = stored(places)
    assert sorted(wanted) == [place for place in range(FRAMES) if place != BAD]
    for spec in (FORCES, STRESS):
        array = read_target_array(places, spec)
        assert array.record.tolist() == sorted(wanted)
        for row, record in enumerate(array.record):
            own = slice(*array.node_ptr[row : row + 2]) if spec is FORCES else row
            assert same(array.values[own], wanted[record][spec.name])
    assert np.isnan(wanted[UNLABELLED]["forces"]).all()


@pytest.mark.parametrize("loader", [{"mode": "memory"}, {"mode": "disk", "memory_gb": 0.0003}])
def test_each_graph_has_the_values_of_its_record_wherever_graphs_are_held(places, loader):
    """On disk, graphs that are not in the data set have theirs too, as they have had before."""
    training = places.config.training.model_copy(
        update={
            "seed": len(loader),
            "loader": places.config.training.loader.model_copy(update=loader),
        }
    )
    config = places.config.model_copy(update={"training": training})
    own = RunPaths(replace(places.layout, config=config), places.plan)
    labelled = load_records(own)
    data, wanted = labelled.data, stored(places)
    used = pd.read_parquet(places.split / "dataset.parquet")["record"].tolist()
    assert (data.choice.window is None) == (loader["mode"] == "memory")
    assert UNLABELLED not in used
    records = used if data.choice.window is None else sorted(wanted)
    assert len(data.table) == len(records)
    for row, record in enumerate(records):
        atoms = slice(*data.table.node_ptr[row : row + 2])
        assert same(data.arrays["forces"][atoms], wanted[record]["forces"])
        assert same(data.arrays["stress"][row], wanted[record]["stress"])
    assert labelled.frame["record"].tolist() == [records[row] for row in labelled.rows]
    energies = data.targets[labelled.rows, 0]
    assert np.array_equal(energies, labelled.frame["energy"], equal_nan=True)


def test_training_reads_the_columns_that_it_needs_and_has_the_data_of_evaluation(
    places, monkeypatch
):
    described = load_records(places).data
    asked = []

    def read(paths, columns=None):
        asked.append(columns)
        return read_dataset(paths, columns)

    monkeypatch.setattr(labelled, "read_dataset", read)
    assert load_labelled(places).digest() == described.digest()
    assert asked == [["record", "split", "energy"]]


@pytest.mark.parametrize("lost", [["forces"], ["stress"], ["forces", "stress"]])
def test_an_array_that_is_missing_is_made_from_the_shards_and_the_split_stays(places, lost):
    """As in the results of a version that wrote none."""
    before = {path: path.read_bytes() for path in places.split.iterdir()}
    digest = load_labelled(places).digest()
    for name in lost:
        places.target_array(name).unlink()
    times = {path: path.stat().st_mtime_ns for path in places.split.iterdir()}
    assert load_labelled(places).digest() == digest
    assert {path: path.read_bytes() for path in places.split.iterdir()} == before
    assert times.items() <= {p: p.stat().st_mtime_ns for p in places.split.iterdir()}.items()


def test_arrays_that_are_there_need_no_shard_of_structures(places, monkeypatch):
    monkeypatch.setattr(target_arrays, "labelled_chunk", None)
    assert set(load_labelled(places).arrays) == {"forces", "stress"}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("name", ["forces", "stress"])
def test_a_damaged_array_is_one_line_and_the_split_makes_it_anew(places, name, share):
    path = places.target_array(name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(AtomloomError) as found:
        load_labelled(places)
    assert str(found.value).startswith(f"{path}: ")
    assert "`atomloom split`, or `snakemake --forcerun split`" in str(found.value)
    assert len(str(found.value).splitlines()) == 1
    write_split(places, lambda line: None)
    assert path.read_bytes() == whole


def rewritten(change):
    def spoil(places, path):
        arrays, attributes = read_shard(path)
        change(arrays, attributes)
        write_shard(path, arrays, attributes)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, path: path.write_bytes(p.target_array("stress").read_bytes()), "`target` is stress, not forces"),
        (rewritten(lambda a, own: own.update(dataset="0" * 16)), "`dataset` is 0000000000000000, not"),
        (lambda p, path: path.write_bytes(p.layout.structures(p.plan.chunks[0].key).read_bytes()), "`kind` is structures"),
        (rewritten(lambda a, own: a.update(record=a["record"] // 2)), "a record occurs twice"),
        (rewritten(lambda a, own: a.update(values=a["values"].astype(np.float32))), "`values` has type float32"),
        (rewritten(lambda a, own: a.update(values=a["values"][:-1])), "`node_ptr` does not cut"),
        (rewritten(lambda a, own: a.update(record=a["record"] + 1)), "has no record 0"),
        (rewritten(lambda a, own: a.update(record=a["record"][::-1].copy())), "other numbers of atoms than the graphs"),
    ],
)  # fmt: skip
def test_an_array_of_something_else_is_refused(places, spoil, message):
    path = places.target_array("forces")
    spoil(places, path)
    with pytest.raises(AtomloomError, match=message) as found:
        load_labelled(places)
    assert str(found.value).startswith(f"{path}: ")
    assert "`atomloom split`" in str(found.value)


def test_values_are_found_by_record_in_whatever_order_they_are_asked_for():
    rng = np.random.default_rng(0)
    record, counts = np.array([4, 0, 9, 2]), np.array([1, 3, 2, 4])
    node_ptr = np.concatenate([[0], np.cumsum(counts)])
    values = {"atom": rng.normal(size=(10, 3)), "structure": rng.normal(size=(4, 3, 3))}
    atoms = dict(zip(record, np.split(values["atom"], node_ptr[1:-1]), strict=True))
    for asked in ([0, 2, 4, 9], [9, 0], [2], [4, 0, 9, 2], []):
        wanted = np.array(asked, dtype=np.int64)
        rows = [record.tolist().index(one) for one in asked]
        own_ptr = np.concatenate([[0], np.cumsum(counts[rows])]).astype(np.int64)
        per_structure = TargetArray("f", record, None, values["structure"]).of(wanted, own_ptr)
        assert same(per_structure, values["structure"][rows])
        per_atom = TargetArray("f", record, node_ptr, values["atom"]).of(wanted, own_ptr)
        expected = [atoms[one] for one in asked]
        assert same(per_atom, np.concatenate([np.zeros((0, 3)), *expected]))


def test_targets_of_every_shape_come_back_from_their_file(places, monkeypatch):
    """A scalar per atom, a vector per structure; a name that is no name of a file."""

    class Moment(type(FORCES)):
        shape = ()

    class Dipole(type(STRESS)):
        shape = (3,)

    rng = np.random.default_rng(1)
    specs = [Moment("moment/atom", "mu_B"), Dipole("dipole%", "eA")]
    chunks, first = [], 0
    for counts in ([2, 1], [3]):
        atoms = np.array(counts)
        values = {
            spec.name: rng.normal(size=spec.array_shape(len(atoms), atoms.sum())) for spec in specs
        }
        chunks.append(ChunkArrays(first + np.arange(len(atoms)), atoms, values))
        first += 10
    write_target_arrays(places, specs, chunks)
    records, node_ptr = np.array([0, 1, 10]), np.array([0, 2, 3, 6])
    for spec in specs:
        found = read_target_array(places, spec).of(records, node_ptr)
        assert same(found, np.concatenate([chunk.values[spec.name] for chunk in chunks]))
        places.target_array(spec.name).unlink()


def table(**properties) -> StructureTable:
    """Two structures of one and two atoms."""
    atoms = {name: np.asarray(v, dtype=np.float64) for name, v in properties.items()}
    return StructureTable(
        hash=np.zeros((2, 32), dtype=np.uint8),
        node_ptr=np.array([0, 1, 3]),
        numbers=np.ones(3, dtype=np.uint8),
        positions=np.zeros((3, 3)),
        cell=np.zeros((2, 3, 3)),
        pbc=np.zeros((2, 3), dtype=bool),
        properties=atoms,
        per_atom=frozenset(name for name, values in atoms.items() if len(values) == 3),
    )


@pytest.mark.parametrize(
    ("spec", "properties", "fits"),
    [
        (STRESS, {"stress": np.arange(18.0).reshape(2, 3, 3)}, True),
        (STRESS, {"stress": np.arange(18.0).reshape(2, 9)}, True),
        (STRESS, {"stress": np.arange(12.0).reshape(2, 6)}, False),
        (STRESS, {"stress": np.arange(2.0)}, False),
        (STRESS, {}, False),
        (FORCES, {"forces": np.arange(9.0).reshape(3, 3)}, True),
        (FORCES, {"forces": np.arange(3.0)}, False),
        (FORCES, {"forces": np.arange(6.0).reshape(2, 3)}, False),
        (STRESS, {"stress": np.arange(27.0).reshape(3, 3, 3)}, False),
    ],
)
def test_a_property_of_another_shape_is_not_the_target(spec, properties, fits):
    own = table(**properties)
    assert holds(own, spec) == fits
    values = values_in(own, spec)
    assert values.shape == spec.array_shape(2, 3)
    assert np.isfinite(values).all() == fits
    if fits:
        assert np.array_equal(values.ravel(), properties[spec.name].ravel())


def test_a_structure_is_known_by_any_finite_number_of_its_own():
    node_ptr = np.array([0, 1, 3])
    forces = np.full((3, 3), np.nan)
    forces[2, 1] = 0.0
    assert FORCES.known(forces, node_ptr).tolist() == [False, True]
    stress = np.full((2, 3, 3), np.nan)
    stress[0, 2, 2] = 1.0
    stress[1, 0, 0] = np.inf
    assert STRESS.known(stress, node_ptr).tolist() == [True, False]
    assert FORCES.known(np.zeros((0, 3)), np.zeros(1, dtype=np.int64)).tolist() == []


def test_a_target_that_no_record_has_in_its_shape_stops_the_split(places):
    shards = [places.layout.structures(chunk.key) for chunk in places.plan.chunks]
    whole = [path.read_bytes() for path in shards]
    for path in shards:
        arrays, attributes = read_shard(path)
        arrays["property:stress"] = arrays["property:stress"].reshape(-1, 9)[:, :6].copy()
        write_shard(path, arrays, attributes)
    with pytest.raises(
        AtomloomError, match="no record has `stress` as 3 x 3 numbers per structure"
    ):
        write_split(places, lambda line: None)
    for path, data in zip(shards, whole, strict=True):
        path.write_bytes(data)


def test_labels_of_a_teacher_are_those_of_the_record(tmp_path, monkeypatch):
    """One frame is refused in the middle of a chunk, one the teacher does not know."""
    monkeypatch.setattr("atomloom.stages.label.read_chunk_records", None)  # the split has them
    teacher = {"calculator": "emt"}
    odd = frames()
    odd[UNLABELLED] = bulk("Fe", cubic=True)
    for atoms in odd:
        atoms.calc = None
    write(tmp_path / "f.extxyz", odd)
    config = parse_config(content(tmp_path, teacher=teacher))
    places = prepare(config, lambda line: None)
    monkeypatch.undo()
    layout = places.layout
    data = load_records(places)
    rows = dict(zip(data.frame["record"], data.rows, strict=True))
    assert not {BAD, UNLABELLED} & {*rows}
    seen = 0
    for chunk in places.plan.chunks:
        labels = read_labels_of(layout, chunk.key)
        own = read_chunk(layout.structures(chunk.key)).record
        for place, record in enumerate(chunk.first + own.astype(int)):
            if record not in rows:
                continue
            row, node_ptr = rows[record], data.data.table.node_ptr
            atoms = slice(*labels.node_ptr[place : place + 2])
            forces = data.data.arrays["forces"][node_ptr[row] : node_ptr[row + 1]]
            assert same(forces, labels.forces[atoms])
            assert same(data.data.arrays["stress"][row], labels.stress[place])
            seen += 1
    assert seen == len(rows) > 10


def test_energies_of_several_tables_stand_beside_the_forces_of_the_same_record(tmp_path):
    own = frames()
    write(tmp_path / "f.extxyz", own)
    names = [f"f-{place:06d}" for place in range(FRAMES)]
    energies = np.arange(FRAMES) + 0.5
    left_out = 3
    for file, chosen in (("a.csv", slice(0, None, 2)), ("b.csv", slice(1, None, 2))):
        rows = pd.DataFrame({"id": names, "energy": energies})[chosen]
        rows.loc[rows["id"] == names[left_out], "energy"] = np.nan
        rows[::-1].to_csv(tmp_path / file, index=False)
    labels = [{"file": str(tmp_path / file)} for file in ("a.csv", "b.csv")]
    places = prepare(parse_config(content(tmp_path, dataset={"labels": labels})), lambda line: None)
    found = load_records(places)
    wanted = stored(places)
    records = found.frame["record"].tolist()
    assert UNLABELLED in records, "its energy stands in a table"
    assert left_out in records, "its forces are known"
    for row, record in zip(found.rows, records, strict=True):
        expected = np.nan if record == left_out else energies[record]
        assert found.data.targets[row, 0] == pytest.approx(expected, nan_ok=True)
        atoms = slice(*found.data.table.node_ptr[row : row + 2])
        assert same(found.data.arrays["forces"][atoms], wanted[record]["forces"])


def test_missing_arrays_are_made_where_a_shard_is_whole_alone(places):
    places.target_array("forces").unlink()
    victim = places.layout.structures(places.plan.chunks[1].key)
    data = victim.read_bytes()
    victim.unlink()
    try:
        with pytest.raises(AtomloomError, match="no such shard"):
            load_target_arrays(places, np.arange(1), np.arange(2))
        assert not places.target_array("forces").exists()
    finally:
        victim.write_bytes(data)


def test_only_targets_that_are_no_column_have_an_array(places):
    assert array_targets(places.config) == (FORCES, STRESS)
    assert sorted(path.name for path in places.split.glob("*.zarr.zip")) == [
        "forces.zarr.zip",
        "stress.zarr.zip",
    ]
