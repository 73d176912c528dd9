"""ASE databases, DeePMD folders and RuNNer's input.data."""

from __future__ import annotations

import shutil

import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, list_files, parse_record, read
from atomloom.structures.units import BOHR, HARTREE
from tests.unit.structures.crystals import assert_same_arrays, atoms_with_results, parse


def test_rows_of_an_ase_database_with_results_and_labels(tmp_path):
    path = tmp_path / "rows.db"
    frames = [atoms_with_results(seed, periodic=seed != 2) for seed in range(3)]
    with ase.db.connect(path) as database:
        for n, atoms in enumerate(frames):
            database.write(atoms, gap=0.5 * n, kind="train")
        del database[2]
    found = list(enumerate_records([path]))
    assert [r.id for r in found] == ["rows-000001", "rows-000003"]
    assert found[1].labels == {"gap": 1.0, "kind": "train"}
    for record, atoms in zip(found, (frames[0], frames[2]), strict=True):
        structure = parse_record(record.format, record.payload, record.id)
        assert_same_arrays(structure, atoms, 0)
        assert structure.properties["energy"] == atoms.get_potential_energy()
        np.testing.assert_array_equal(structure.properties["forces"], atoms.get_forces())
        if atoms.pbc.any():
            np.testing.assert_array_equal(
                structure.properties["stress"], atoms.get_stress(voigt=False)
            )


def test_a_database_inside_an_archive_and_a_damaged_one(tmp_path):
    import tarfile

    with ase.db.connect(tmp_path / "rows.db") as database:
        database.write(atoms_with_results(0))
        database.write(atoms_with_results(1))
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "rows.db", "rows.db")
    assert [s.id for s in read(tmp_path / "all.tar.gz")] == ["rows-000001", "rows-000002"]
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    (record,) = enumerate_records([tmp_path / "bad.db"])
    with pytest.raises(AtomloomError, match="damaged: SQLite says"):
        parse_record(record.format, record.payload)


def deepmd_folder(folder, frames, precision=np.float64):
    """The frames as DeePMD-kit's arrays; all have the elements of the first."""
    names = ["H", "C", "O", "Si", "Fe", "Au"]
    folder.mkdir(parents=True)
    (folder / "type_map.raw").write_text("\n".join(names) + "\n")
    symbols = frames[0].get_chemical_symbols()
    (folder / "type.raw").write_text("\n".join(str(names.index(s)) for s in symbols))
    for part, chunk in enumerate((frames[:2], frames[2:])):
        path = folder / f"set.{part:03d}"
        path.mkdir()
        volumes = np.array([atoms.get_volume() for atoms in chunk])
        stresses = np.array([atoms.get_stress(voigt=False) for atoms in chunk])
        arrays = {
            "coord": np.array([atoms.positions.ravel() for atoms in chunk]),
            "box": np.array([np.array(atoms.cell).ravel() for atoms in chunk]),
            "energy": np.array([atoms.get_potential_energy() for atoms in chunk]),
            "force": np.array([atoms.get_forces().ravel() for atoms in chunk]),
            "virial": (-stresses * volumes[:, None, None]).reshape(len(chunk), 9),
        }
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array.astype(precision))


def frames_of_one_composition(count):
    frames = []
    for seed in range(count):
        atoms = atoms_with_results(seed)
        results = atoms.calc.results
        atoms.numbers = atoms_with_results(0).numbers
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def test_deepmd_frames_have_energies_forces_and_the_stress_of_ase(tmp_path):
    frames = frames_of_one_composition(3)
    deepmd_folder(tmp_path / "data" / "water", frames)
    files = list_files(tmp_path / "data")
    assert files[0].name == "type.raw"
    assert {f.name for f in files} >= {"type_map.raw", "coord.npy", "virial.npy"}, (
        "the plan watches them all"
    )
    ours = read(tmp_path / "data")
    assert [s.id for s in ours] == ["water-000000", "water-000001", "water-000002"]
    for structure, atoms in zip(ours, frames, strict=True):
        assert_same_arrays(structure, atoms, 1e-12)
        assert structure.properties["energy"] == atoms.get_potential_energy()
        np.testing.assert_allclose(structure.properties["forces"], atoms.get_forces())
        np.testing.assert_allclose(structure.properties["stress"], atoms.get_stress(voigt=False))


def test_deepmd_without_box_and_in_single_precision(tmp_path):
    frames = frames_of_one_composition(3)
    deepmd_folder(tmp_path / "s", frames, np.float32)
    (tmp_path / "s" / "nopbc").touch()
    ours = read(tmp_path / "s")
    assert not ours[0].pbc.any()
    assert "stress" not in ours[0].properties
    np.testing.assert_allclose(ours[2].positions, frames[2].positions, atol=1e-5)


def test_deepmd_mixed_types_with_padding(tmp_path):
    frames = frames_of_one_composition(3)
    deepmd_folder(tmp_path / "s", frames)
    for part, count in (("set.000", 2), ("set.001", 1)):
        types = np.tile([0, 1, 2, 3, 4, 5, -1], (count, 1))
        np.save(tmp_path / "s" / part / "real_atom_types.npy", types)
    ours = read(tmp_path / "s")
    assert ours[0].numbers.tolist() == [1, 6, 8, 14, 26, 79]
    np.testing.assert_allclose(ours[0].positions, frames[0].positions[:6])


def as_text(folder):
    """The arrays of a DeePMD folder as .raw, as raw_to_set.sh had them before."""
    for name in ("coord", "box", "energy", "force", "virial"):
        parts = [np.load(p).reshape(-1, 1) if name == "energy" else np.load(p)
                 for p in sorted(folder.glob(f"set.*/{name}.npy"))]  # fmt: skip
        np.savetxt(folder / f"{name}.raw", np.concatenate(parts), fmt="%.18e")
    for part in folder.glob("set.*"):
        shutil.rmtree(part)


def test_a_deepmd_folder_of_texts_alone_is_read(tmp_path):
    frames = frames_of_one_composition(3)
    deepmd_folder(tmp_path / "binary", frames)
    shutil.copytree(tmp_path / "binary", tmp_path / "text")
    as_text(tmp_path / "text")
    names = {path.name for path in list_files(tmp_path / "text")}
    assert names == {"type.raw", "type_map.raw", "coord.raw", "box.raw", "energy.raw", "force.raw", "virial.raw"}  # fmt: skip
    for ours, reference in zip(read(tmp_path / "text"), read(tmp_path / "binary"), strict=True):
        assert ours.hash == reference.hash
        for name in ("energy", "forces", "stress"):
            np.testing.assert_array_equal(ours.properties[name], reference.properties[name])


def reasons(source):
    """Why each record cannot be read; empty where it can."""
    found = []
    for record in enumerate_records(list_files(source)):
        try:
            parse_record(record.format, record.payload)
            found.append("")
        except AtomloomError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("name", ["box", "energy", "force", "virial", "real_atom_types"])
@pytest.mark.parametrize("change", ["longer", "shorter"])
def test_deepmd_arrays_of_unequal_length_are_refused_and_both_named(tmp_path, name, change):
    deepmd_folder(tmp_path / "s", frames_of_one_composition(3))
    path = tmp_path / "s" / "set.000" / f"{name}.npy"
    values = np.load(path) if path.exists() else np.tile(np.arange(7) % 6, (2, 1))
    values = np.concatenate([values, values[:1]]) if change == "longer" else values[:1]
    np.save(path, values)
    wrong = f"set.000: coord.npy has 2 frames, {name}.npy {len(values)}"
    assert reasons(tmp_path / "s") == [wrong, wrong, ""]


def test_deepmd_texts_of_unequal_length_are_refused_and_a_bad_line_spoils_its_frame(tmp_path):
    deepmd_folder(tmp_path / "s", frames_of_one_composition(3))
    as_text(tmp_path / "s")
    good = (tmp_path / "s/energy.raw").read_text().splitlines()
    (tmp_path / "s/energy.raw").write_text("\n".join(["# eV", good[0], "abc", good[2]]))
    assert reasons(tmp_path / "s") == ["", "frame 1: energy.raw, line 3: not a number: `abc`", ""]
    (tmp_path / "s/energy.raw").write_text("\n".join(good[:2]))
    assert reasons(tmp_path / "s") == ["coord.raw has 3 frames, energy.raw 2"] * 3


def test_deepmd_coordinates_of_another_number_of_atoms_are_refused(tmp_path):
    deepmd_folder(tmp_path / "s", frames_of_one_composition(3))
    (tmp_path / "s/type.raw").write_text(
        "0 1 2 3 4 5 0 0 0 0 0 0 0 0"
    )  # twice as many as there are
    assert (
        "coord.npy: shape (2, 21) of float64, not 42 numbers per frame"
        in reasons(tmp_path / "s")[0]
    )


def test_an_element_that_only_unused_types_have_does_not_matter(tmp_path):
    deepmd_folder(tmp_path / "s", frames_of_one_composition(3))
    with open(tmp_path / "s/type_map.raw", "a") as file:
        file.write("Type_6\n")
    assert reasons(tmp_path / "s") == [""] * 3
    (tmp_path / "s/type.raw").write_text("6 " * 7)
    assert reasons(tmp_path / "s")[0] == "set.000: frame 0: unknown element `Type_6`"
    names = (tmp_path / "s/type_map.raw").read_text()
    (tmp_path / "s/type_map.raw").write_text(names.replace("Type_6", "Fe2 Fe_up H2O"))
    (tmp_path / "s/type.raw").write_text("6 " * 6 + "7")
    assert read(tmp_path / "s")[0].numbers.tolist() == [26] * 7
    (tmp_path / "s/type.raw").write_text("8 " * 7)
    assert reasons(tmp_path / "s")[0] == "set.000: frame 0: unknown element `H2O`"
    (tmp_path / "s/type.raw").write_text("-1 " * 7)
    assert "type.raw: a type is not a count: `-1`" in reasons(tmp_path / "s")[0]


def test_what_is_wrong_with_a_deepmd_folder_is_said(tmp_path):
    deepmd_folder(tmp_path / "s", frames_of_one_composition(3))
    np.save(tmp_path / "s/set.000/coord.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "s/set.001/box.npy").write_bytes(b"rubbish")
    first, second = reasons(tmp_path / "s")
    assert "Python objects" in first
    assert second.startswith("set.001: box.npy: ")
    (tmp_path / "s/type_map.raw").unlink()
    assert "no type_map.raw" in reasons(tmp_path / "s")[0]


RUNNER = """begin
comment a frame
lattice 10.0 0.0 0.0
lattice 0.0 11.0 0.0
lattice 0.5 0.0 12.0
atom 0.0 0.0 0.0 Cu 0.0 0.0 0.01 0.02 0.03
atom 1.0 2.0 3.0 O  0.5 0.0 -0.01 -0.02 -0.03
energy -1.5
charge 0.0
end
"""


def test_runner_is_converted_from_bohr_and_hartree(tmp_path):
    from ase.units import Bohr, Hartree

    assert pytest.approx(Bohr, rel=1e-8) == BOHR
    assert pytest.approx(Hartree, rel=1e-8) == HARTREE
    (tmp_path / "input.data").write_text(RUNNER * 3)
    ours = read(tmp_path / "input.data")
    assert len(ours) == 3
    frame = ours[1]
    np.testing.assert_allclose(
        frame.cell, np.array([[10, 0, 0], [0, 11, 0], [0.5, 0, 12]]) * Bohr, rtol=1e-8
    )
    np.testing.assert_allclose(frame.positions[1], np.array([1, 2, 3]) * Bohr, rtol=1e-8)
    assert frame.properties["energy"] == pytest.approx(-1.5 * Hartree, rel=1e-8)
    np.testing.assert_allclose(
        frame.properties["forces"][0], np.array([0.01, 0.02, 0.03]) * Hartree / Bohr, rtol=1e-8
    )
    np.testing.assert_array_equal(frame.properties["charges"], [0, 0.5])
    metal = read(tmp_path / "input.data", runner_units="metal")[0]
    assert metal.properties["energy"] == -1.5
    molecule = parse("runner", "\n".join(x for x in RUNNER.splitlines() if "lattice" not in x))
    assert not molecule.pbc.any()


def test_a_runner_frame_cut_short_spoils_no_other(tmp_path):
    (tmp_path / "input.data").write_text(RUNNER + RUNNER[:150] + "\n" + RUNNER)
    outcomes = []
    for record in enumerate_records([tmp_path / "input.data"]):
        try:
            outcomes.append(len(parse_record(record.format, record.payload)))
        except AtomloomError:
            outcomes.append(None)
    assert outcomes == [2, None, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "atom 1.0 2.0 3.0 O  0.5 0.0 -0.01 -0.02 -0.03",
            "atom 1 2 3 O",
            "line 7: an atom of 4 values",
        ),
        ("lattice 0.5 0.0 12.0\n", "", "2 lattice vectors, not 3"),
        ("energy", "energie", "line 8: `energie` is none of RuNNer's keywords"),
        ("energy -1.5", "energy x", "line 8: not a number"),
        ("Cu", "Xx", "unknown element"),
        ("end\n", "", "does not go from `begin` to `end`"),
    ],
)
def test_what_is_wrong_with_a_runner_frame_is_said(old, new, message):
    with pytest.raises(AtomloomError, match=message):
        parse("runner", RUNNER.replace(old, new))
