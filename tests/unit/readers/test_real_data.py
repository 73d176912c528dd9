"""The published data sets, read as they are shipped: counts, traps, and agreement with the libraries
that wrote them."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import lzma
import tarfile
import warnings
import zipfile

import ase.io
import numpy as np
import pytest
from pymatgen.core import Structure as Crystal
from pymatgen.io.cif import CifParser

from atomloom.config import Checks
from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, parse_record, read
from atomloom.structures import Structure, to_structure
from atomloom.structures.checks import check_structure
from tests.unit.structures.crystals import assert_same_arrays, assert_same_crystal


def parsed(records, **options) -> list[Structure]:
    structures = []
    for record in records:
        structure = parse_record(record.format, record.payload, record.id, options)
        check_structure(structure, Checks())
        structures.append(structure)
    return structures


def by_pymatgen(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = CifParser.from_str(text, frac_tolerance=0)
        return to_structure(parser.parse_structures(primitive=False)[0])


def test_alignn_sample_every_labelled_poscar_as_ase_reads_it(data_folder):
    path = data_folder / "alignn_sample" / "sample_data.tar.gz"
    structures = {s.id: s for s in read(path)}
    assert len(structures) == 70
    with tarfile.open(path) as archive:
        labels = archive.extractfile("id_prop.csv").read().decode().split()
        for name in (line.split(",")[0] for line in labels):
            text = archive.extractfile(name).read().decode()
            reference = ase.io.read(io.StringIO(text), format="vasp")
            assert_same_arrays(structures[name.removesuffix(".vasp")], reference, 1e-12)
    assert len(labels) == 50


def test_matbench_phonons_whole_as_pymatgen_reads_it(data_folder):
    path = data_folder / "matbench_phonons" / "matbench_phonons.json.gz"
    records = list(enumerate_records([path]))
    structures = parsed(records)
    assert len(structures) == 1265
    assert sum(map(len, structures)) == 9521
    labels = [record.labels["last phdos peak"] for record in records]
    assert np.median(labels) == pytest.approx(461.6, abs=0.05)
    with gzip.open(path, "rt") as file:
        table = json.load(file)
    for row in range(0, 1265, 50):
        assert_same_arrays(structures[row], Crystal.from_dict(table["data"][row][0]), 1e-12)
        assert labels[row] == table["data"][row][1]


def test_mp36k_from_its_tar_xz_as_pymatgen_reads_it(data_folder):
    path = data_folder / "mp36k_crysxpp" / "cif.tar.xz"
    records = list(itertools.islice(enumerate_records([path]), 300))
    assert [record.id for record in records[:3]] == ["0", "1", "2"]
    structures = parsed(records)
    with gzip.open(data_folder / "mp36k_crysxpp" / "id_prop.csv.gz", "rt") as file:
        volumes = {row[0]: float(row[4]) for row in csv.reader(file)}
    for structure in structures:
        assert structure.volume == pytest.approx(volumes[structure.id], rel=1e-5)
    for record, structure in itertools.islice(zip(records, structures, strict=True), 0, 300, 15):
        if len(structure) <= 40:
            assert_same_crystal(structure, by_pymatgen(record.payload.decode()), 1e-7)


def test_elastic_set_is_complete(data_folder):
    structures = parsed(enumerate_records([data_folder / "mp_elastic3k_crysxpp" / "cif.tar.xz"]))
    assert len(structures) == 3191
    assert sum(map(len, structures)) == 27735


def test_perov5_csv_of_cif_texts_with_labels(data_folder):
    path = data_folder / "perov5" / "val.csv.xz"
    records = list(enumerate_records([path]))
    assert len(records) == 3787
    with lzma.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    assert [record.id for record in records] == [row["material_id"] for row in rows]
    assert [record.labels["heat_ref"] for record in records] == [float(r["heat_ref"]) for r in rows]
    structures = parsed(records)
    assert all(len(structure) == 5 for structure in structures)
    for record, structure in itertools.islice(zip(records, structures, strict=True), 0, None, 200):
        assert_same_crystal(structure, by_pymatgen(record.payload.decode()), 1e-7)


def test_perov5_json_of_poscar_texts_with_escaped_line_ends(data_folder):
    path = data_folder / "perov5" / "perov5_heat_ref.all_structures.json.zip"
    records = list(enumerate_records([path]))
    assert len(records) == 18928
    groups = [record.labels["group"] for record in records]
    assert (groups.count("train"), groups.count("val"), groups.count("test")) == (11356, 3787, 3785)
    assert {record.format for record in records} == {"poscar"}
    with zipfile.ZipFile(path) as archive:
        texts = json.loads(archive.read("perov5_heat_ref.json"))["train"]
    structures = parsed(records)
    assert len({structure.hash for structure in structures}) > 18_000
    for record, structure in itertools.islice(zip(records, structures, strict=True), 0, 11356, 500):
        text = texts[record.id].replace("\\n", "\n")
        assert_same_arrays(structure, ase.io.read(io.StringIO(text), format="vasp"), 1e-12)


def test_qm7_molecules_have_no_cell(data_folder):
    path = data_folder / "qm7_qmlcode" / "qm7_xyz.tar.xz"
    structures = parsed(enumerate_records([path]))
    assert len(structures) == 7101
    assert not any(structure.pbc.any() for structure in structures)
    assert {structure.id for structure in structures} >= {"0001", "7101"}
    with tarfile.open(path) as archive:
        for member in list(archive)[:20]:
            text = archive.extractfile(member).read().decode()
            reference = ase.io.read(io.StringIO(text), format="xyz")
            (ours,) = (s for s in structures if s.id == member.name.removesuffix(".xyz"))
            assert_same_arrays(ours, reference, 1e-12)


def frames(path):
    with lzma.open(path, "rt") as file:
        return ase.io.read(io.StringIO(file.read()), ":", format="extxyz")


@pytest.mark.parametrize(("name", "count"), [("Cu_test", 31), ("Li_train", 241), ("Si_test", 25)])
def test_mlearn_frames_as_ase_reads_them(data_folder, name, count):
    path = data_folder / "mlearn" / f"{name}.extxyz.xz"
    structures = parsed(enumerate_records([path]))
    assert len(structures) == count
    for structure, atoms in zip(structures, frames(path), strict=True):
        assert_same_arrays(structure, atoms, 0)
        assert structure.properties["energy"] == atoms.get_potential_energy()
        np.testing.assert_array_equal(structure.properties["forces"], atoms.get_forces())


def test_rmd17_energies_have_a_capital_and_boxes_are_fake(data_folder):
    path = data_folder / "rmd17" / "ethanol_test_01.xyz.xz"
    records = list(enumerate_records([path]))
    assert len(records) == 1000
    boxed = [parse_record(r.format, r.payload, r.id) for r in records]
    with pytest.raises(
        AtomloomError, match=r"13888\.9 A\^3 per atom.*set the option `box: molecule`"
    ):
        check_structure(boxed[0], Checks())
    free = parsed(records, box="molecule")
    reference = frames(path)
    for structure, molecule, atoms in zip(boxed, free, reference, strict=True):
        assert structure.pbc.all()
        assert not molecule.pbc.any()
        assert not molecule.cell.any()
        np.testing.assert_array_equal(molecule.positions, atoms.positions)
        assert molecule.properties["energy"] == atoms.info["Energy"]
        np.testing.assert_array_equal(molecule.properties["forces"], atoms.get_forces())


def test_aenet_tio2_energies_and_forces(data_folder):
    path = data_folder / "aenet_tio2" / "dir_xsf.tar.gz"
    structures = {s.id: s for s in parsed(enumerate_records([path]))}
    assert len(structures) == 1000
    numbers = np.concatenate([s.numbers for s in structures.values()])
    assert (np.sum(numbers == 22), np.sum(numbers == 8)) == (7308, 13977)
    assert all(s.pbc.all() for s in structures.values())
    forces = np.concatenate([s.properties["forces"] for s in structures.values()])
    assert forces.std() == pytest.approx(0.80, abs=0.01)
    per_atom = [s.properties["energy"] / len(s) for s in structures.values()]
    assert -867.5 < min(per_atom) < max(per_atom) < -829.5
    with tarfile.open(path) as archive:
        for member in itertools.islice((m for m in archive if m.isfile()), 10):
            text = archive.extractfile(member).read().decode()
            reference = ase.io.read(io.StringIO(text), format="xsf")
            assert_same_arrays(structures[member.name.split("/")[-1][:-4]], reference, 1e-12)
