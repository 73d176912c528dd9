"""Layouts that people have and nobody documents: pandas' default JSON, ASE's JSON database, archives
of DeePMD folders, LMDB without its library; and stress, which every format writes another way."""

from __future__ import annotations

import inspect
import io
import json
import tarfile

import ase.db
import ase.io
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from test_read_databases import deepmd_folder

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, list_files, parse_record, read
from atomloom.readers.formats import plain_json
from atomloom.readers.registry import REGISTRY
from tests.unit.structures.crystals import (
    assert_same_arrays,
    atoms_with_results,
    symmetric_crystals,
)

CRYSTALS = [symmetric_crystals()[name] for name in ("rutile", "triclinic")]


def table() -> pd.DataFrame:
    structures = [crystal.as_dict() for crystal in CRYSTALS]
    return pd.DataFrame({"material_id": ["a", "b"], "structure": structures, "gap": [1.5, -2.0]})


@pytest.mark.parametrize("orient", ["columns", "records", "index", "split", "table"])
def test_every_orientation_of_pandas_gives_the_same_records(tmp_path, orient):
    path = tmp_path / "table.json"
    table().to_json(path, orient=orient)
    records = list(enumerate_records([path]))
    assert [record.id for record in records] == ["a", "b"]
    assert [record.labels["gap"] for record in records] == [1.5, -2.0]
    for record, crystal in zip(records, CRYSTALS, strict=True):
        assert_same_arrays(parse_record(record.format, record.payload), crystal)


def test_columns_are_found_whatever_their_order_index_or_name(tmp_path):
    path = tmp_path / "table.json"
    frame = table()
    for changed, options, ids in (
        (frame[["gap", "structure"]], {}, ["table-000000", "table-000001"]),
        (frame.set_index("material_id"), {}, ["a", "b"]),
        (frame.rename(columns={"structure": "final"}), {"structure_column": "final"}, ["a", "b"]),
    ):
        changed.to_json(path)
        records = list(enumerate_records([path], options=options))
        assert [record.id for record in records] == ids
        assert [record.labels["gap"] for record in records] == [1.5, -2.0]
        assert [len(parse_record(r.format, r.payload)) for r in records] == [6, 3]


def test_a_missing_structure_in_a_column_is_one_bad_record(tmp_path):
    content = json.loads(table().to_json())
    content["structure"]["1"] = None
    path = tmp_path / "table.json"
    path.write_text(json.dumps(content))
    good, bad = enumerate_records([path])
    assert len(parse_record(good.format, good.payload)) == 6
    with pytest.raises(AtomloomError, match="holds no structure"):
        parse_record(bad.format, bad.payload)


def test_entries_by_name_with_one_that_is_none_keep_it_as_a_bad_record(tmp_path):
    path = tmp_path / "named.json"
    path.write_text(json.dumps({"x": {"y": 1}, "a": CRYSTALS[0].as_dict()}))
    records = {record.id: record for record in enumerate_records([path])}
    assert set(records) == {"x", "a"}
    with pytest.raises(AtomloomError, match="no structure in this entry"):
        parse_record(records["x"].format, records["x"].payload)


def test_an_ase_database_in_json_gives_the_records_of_one_in_sqlite(tmp_path):
    for name in ("rows.db", "rows.json"):
        with ase.db.connect(tmp_path / name) as database:
            for n in range(3):
                database.write(atoms_with_results(n, periodic=n != 1), gap=0.5 * n, kind="train")
            del database[2]
    sqlite, as_json = (list(enumerate_records([tmp_path / n])) for n in ("rows.db", "rows.json"))
    assert [r.id for r in as_json] == [r.id for r in sqlite] == ["rows-000001", "rows-000003"]
    for one, other in zip(sqlite, as_json, strict=True):
        assert one.labels == other.labels
        a, b = parse_record(one.format, one.payload), parse_record(other.format, other.payload)
        assert a.hash == b.hash
        assert a.properties.keys() == b.properties.keys()
        for name in a.properties:
            np.testing.assert_array_equal(a.properties[name], b.properties[name])


def test_an_array_of_objects_in_an_ase_json_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    with ase.db.connect(path) as database:
        database.write(atoms_with_results(0))
    path.write_text(path.read_text().replace('"int64"', '"object"'))
    (record,) = enumerate_records([path])
    with pytest.raises(AtomloomError, match="array of type object"):
        parse_record(record.format, record.payload)


def test_deepmd_folders_in_an_archive_say_that_they_must_be_unpacked(tmp_path):
    deepmd_folder(tmp_path / "water", [atoms_with_results(0)] * 3)
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "water", "water")
    with pytest.raises(
        AtomloomError, match=r"DeePMD folder cannot be read inside.*unpack it first"
    ):
        list(enumerate_records([tmp_path / "all.tar.gz"]))


def test_an_lmdb_of_ase_says_what_to_install(tmp_path):
    pytest.importorskip("ase")
    try:
        import ase_db_backends  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("ase-db-backends is here")
    (tmp_path / "x.aselmdb").write_bytes(bytes(4096))
    with pytest.raises(AtomloomError, match="pip install ase-db-backends"):
        list(enumerate_records(list_files(tmp_path / "x.aselmdb")))


# --- stress ---


@pytest.fixture(scope="module")
def strained():
    """A sheared copper-gold cell whose six stresses all differ, and the stress as it is defined:
    dE/dstrain divided by the volume, by central differences of the energy."""
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[0] = "Au"
    strain = np.array([[0.03, 0.01, 0.02], [0, -0.02, 0.015], [0, 0, 0.01]])
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EMT()
    atoms.get_stress()  # files hold what has been asked for
    step, expected = 1e-5, np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[i, j] += sign * step / 2
                strain[j, i] += sign * step / 2
                moved = atoms.copy()
                moved.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
                moved.calc = EMT()
                energies.append(moved.get_potential_energy())
            expected[i, j] = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    assert len({f"{x:.4f}" for x in expected[np.triu_indices(3)]}) == 6
    return atoms, expected


def as_extxyz(atoms, folder, name=None):
    stream = io.StringIO()
    ase.io.write(stream, atoms, format="extxyz")
    (folder / "x.extxyz").write_text(stream.getvalue())
    return folder / "x.extxyz"


def as_extxyz_voigt(atoms, folder):
    text = as_extxyz(atoms, folder).read_text()
    nine = text[text.index('stress="') :].split('"')[1]
    six = " ".join(repr(float(x)) for x in atoms.get_stress(voigt=True))
    (folder / "x.extxyz").write_text(text.replace(nine, six))
    return folder / "x.extxyz"


def as_extxyz_virial(atoms, folder):
    text = as_extxyz(atoms, folder).read_text()
    nine = text[text.index('stress="') :].split('"')[1]
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    numbers = " ".join(repr(float(x)) for x in virial.ravel())
    (folder / "x.extxyz").write_text(text.replace(f'stress="{nine}"', f'virial="{numbers}"'))
    return folder / "x.extxyz"


def as_database(atoms, folder):
    with ase.db.connect(folder / "x.db") as database:
        database.write(atoms)
    return folder / "x.db"


def as_json_database(atoms, folder):
    with ase.db.connect(folder / "x.json") as database:
        database.write(atoms)
    return folder / "x.json"


def as_deepmd(atoms, folder):
    names = ["Cu", "Au"]
    system = folder / "system"
    (system / "set.000").mkdir(parents=True)
    (system / "type_map.raw").write_text("\n".join(names))
    (system / "type.raw").write_text("\n".join(str(names.index(s)) for s in atoms.symbols))
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    for name, array in (
        ("coord", atoms.positions),
        ("box", atoms.cell.array),
        ("energy", atoms.get_potential_energy()),
        ("force", atoms.get_forces()),
        ("virial", virial),
    ):
        np.save(system / "set.000" / f"{name}.npy", np.reshape(array, (1, -1)))
    return system


def as_vasprun(atoms, folder):
    def rows(array):
        return "".join("<v>" + " ".join(f"{x:.10f}" for x in row) + "</v>" for row in array)

    kilobar = -atoms.get_stress(voigt=False) * 1602.1766208  # VASP: positive when compressed
    sites = "".join(f"<rc><c>{s} </c><c>1</c></rc>" for s in atoms.symbols)
    energy = f'<energy><i name="e_fr_energy">{atoms.get_potential_energy():.10f}</i></energy>'
    (folder / "vasprun.xml").write_text(
        f'<modeling><atominfo><array name="atoms"><set>{sites}</set></array></atominfo><calculation>'
        f'<structure><crystal><varray name="basis">{rows(atoms.cell.array)}</varray></crystal>'
        f'<varray name="positions">{rows(atoms.get_scaled_positions())}</varray></structure>'
        f'<varray name="forces">{rows(atoms.get_forces())}</varray>'
        f'<varray name="stress">{rows(kilobar)}</varray>{energy}</calculation></modeling>'
    )
    return folder / "vasprun.xml"


def as_plain_json(atoms, folder):
    properties = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(voigt=False),
    }
    payload = plain_json.dump(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, properties
    )
    (folder / "x.json").write_bytes(payload)
    return folder / "x.json"


def as_outcar(atoms, folder):
    kilobar = -atoms.get_stress(voigt=False) * 1602.1766208  # VASP: positive when compressed
    xx, xy, xz, _, yy, yz, _, _, zz = kilobar.ravel()

    def rows(array):
        return "".join(" ".join(f"{x:.10f}" for x in row) + "\n" for row in array)

    table = np.concatenate([atoms.positions, atoms.get_forces()], axis=1)
    potentials = "".join(f" POTCAR:    PAW_PBE {s} 22Jun2005\n" for s in atoms.symbols)
    energy = f"{atoms.get_potential_energy():.10f}"
    (folder / "OUTCAR").write_text(
        f"{potentials}   ions per type =   {' '.join('1' for _ in atoms)}\n"
        f"  FORCE on cell\n  in kB {xx} {yy} {zz} {xy} {yz} {xz}\n direct lattice vectors\n{rows(atoms.cell)}"
        f" POSITION  TOTAL-FORCE (eV/Angst)\n ----\n{rows(table)} ----\n"
        f" FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  free  energy   TOTEN  = {energy} eV\n\n"
        f"  energy  without entropy= {energy}  energy(sigma->0) = {energy}\n"
    )
    return folder / "OUTCAR"


def as_fitsnap(atoms, folder):
    entry = {
        "AtomTypes": list(atoms.symbols),
        "Energy": atoms.get_potential_energy(),
        "Forces": atoms.get_forces().tolist(),
        "Lattice": atoms.cell.tolist(),
        "Positions": atoms.positions.tolist(),
        "Stress": (-atoms.get_stress(voigt=False) / ase.units.bar).tolist(),
    }
    document = {"Dataset": {"Data": [entry], "StressStyle": "bar"}}
    (folder / "x.json").write_text("# a cell\n" + json.dumps(document))
    return folder / "x.json"


WRITERS = {
    "extxyz, nine numbers": as_extxyz,
    "extxyz, six numbers": as_extxyz_voigt,
    "extxyz, virial": as_extxyz_virial,
    "ase-db": as_database,
    "ase-db in JSON": as_json_database,
    "deepmd": as_deepmd,
    "vasprun": as_vasprun,
    "outcar": as_outcar,
    "fitsnap": as_fitsnap,
    "structure": as_plain_json,
}


@pytest.mark.parametrize("name", WRITERS)
def test_stress_is_the_derivative_of_the_energy_whatever_format_it_comes_in(
    strained, tmp_path, name
):
    atoms, expected = strained
    (structure,) = read(WRITERS[name](atoms, tmp_path))
    np.testing.assert_allclose(structure.properties["stress"], expected, atol=1e-6)
    assert structure.properties["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(structure.properties["forces"], atoms.get_forces(), atol=1e-8)


def test_every_format_that_carries_stress_is_among_them():
    """Readers that speak of stress in their text are tested above."""
    speaking = {
        reader.NAME
        for reader in REGISTRY.values()
        if 'properties["stress"]' in inspect.getsource(reader)
    }
    assert "vasprun" in speaking
    assert speaking <= {name.split(",")[0].split(" ")[0] for name in WRITERS}
