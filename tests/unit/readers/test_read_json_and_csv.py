"""JSON of pymatgen, Materials Project, Matbench and JARVIS, and CSV with structures in a column."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zipfile

import ase.db
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from pymatgen.core import Molecule
from pymatgen.core import Structure as Crystal
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, parse_record, read
from atomloom.readers.formats import csv_table, json_document
from atomloom.readers.ordering import ordered
from atomloom.structures import to_pymatgen
from tests.unit.structures.crystals import assert_same_arrays, parse, symmetric_crystals

CRYSTALS = [symmetric_crystals()[name] for name in ("rutile", "rock salt", "triclinic")]


def records(path, **options):
    return list(enumerate_records([path], "auto", options))


def write(path, value, **options):
    path.write_text(json.dumps(value, **options))
    return path


def jarvis(crystal: Crystal, cartesian: bool = False) -> dict:
    return {
        "lattice_mat": crystal.lattice.matrix.tolist(),
        "coords": (crystal.cart_coords if cartesian else crystal.frac_coords).tolist(),
        "elements": [site.specie.symbol for site in crystal],
        "abc": list(crystal.lattice.abc),
        "angles": list(crystal.lattice.angles),
        "cartesian": cartesian,
        "props": [""] * len(crystal),
    }


def test_a_single_structure_is_read_as_by_pymatgen(tmp_path):
    for crystal in CRYSTALS:
        (ours,) = read(write(tmp_path / "one.json", crystal.as_dict()))
        assert_same_arrays(ours, crystal, 1e-12)
        assert ours.id == "one"


def test_a_molecule_has_no_cell(tmp_path):
    molecule = Molecule(["O", "H", "H"], [[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    (ours,) = read(write(tmp_path / "water.json", molecule.as_dict()))
    assert_same_arrays(ours, molecule)


def test_site_properties_that_are_numbers_are_kept():
    crystal = CRYSTALS[0].copy(
        site_properties={"magmom": [1.0, 2, 3, 4, 5, 6], "name": list("abcdef")}
    )
    ours = parse("pymatgen", json.dumps(crystal.as_dict()))
    np.testing.assert_array_equal(ours.properties["magmom"], [1, 2, 3, 4, 5, 6])
    assert "name" not in ours.properties


def test_oxidation_states_are_no_part_of_the_element():
    crystal = CRYSTALS[1].copy()
    crystal.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert_same_arrays(parse("pymatgen", json.dumps(crystal.as_dict())), CRYSTALS[1])


def test_disorder_is_refused_unless_it_is_to_be_ordered():
    crystal = CRYSTALS[1].copy()
    crystal.replace_species({"Na": {"Na": 0.5, "K": 0.5}})
    text = json.dumps(crystal.as_dict())
    with pytest.raises(AtomloomError, match="disordered site 0"):
        parse("pymatgen", text)
    assert sorted(parse("pymatgen", text, order=True).numbers.tolist()) == [
        11,
        11,
        17,
        17,
        17,
        17,
        19,
        19,
    ]


@pytest.mark.parametrize("keep", ["abc", "xyz"])
def test_what_is_ordered_is_the_lattice_species_and_coordinates_of_the_file(keep):
    crystal = CRYSTALS[1].copy()
    crystal.replace_species({"Na": {"Na": 0.5, "K": 0.5}})
    content = crystal.as_dict()
    for site in content["sites"]:
        del site["xyz" if keep == "abc" else "abc"]
    ours = parse("pymatgen", json.dumps(content), order=True)
    assert_same_arrays(ours, to_pymatgen(ordered(crystal, {})), 1e-9)


def test_a_site_shared_by_ions_of_one_element_is_whole():
    crystal = CRYSTALS[1].copy()
    crystal.replace_species({"Na": {"Na+": 0.5, "Na2+": 0.5}})
    assert_same_arrays(
        parse("pymatgen", json.dumps(crystal.as_dict()), order=True), CRYSTALS[1], 1e-9
    )


@pytest.mark.parametrize("place", ["site", "lattice", "species", "structure"])
@pytest.mark.parametrize("order", [False, True])
def test_no_module_that_a_file_names_is_imported(tmp_path, monkeypatch, place, order):
    """pymatgen's `from_dict` would import it, and call what it finds there."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "from_a_file.py").write_text("raise SystemExit('run')")
    crystal = CRYSTALS[1].copy()
    crystal.replace_species({"Na": {"Na": 0.5, "K": 0.5}})
    content = crystal.as_dict()
    foreign = {"@module": "from_a_file", "@class": "Thing", "@version": None}
    holders = {
        "site": content["sites"][0]["properties"],
        "lattice": content["lattice"],
        "species": content["sites"][0]["species"][0],
        "structure": content["properties"],
    }
    holders[place] |= {"thing": foreign, **foreign}
    content |= foreign
    path = write(tmp_path / "x.json", [content])
    (record,) = enumerate_records([path], "auto", {"order": order})
    outcome = None
    with contextlib.suppress(AtomloomError):
        outcome = parse_record(record.format, record.payload, record.id, {"order": order})
    assert (outcome is not None) == order
    assert "from_a_file" not in sys.modules


@pytest.mark.parametrize(
    "shape", ["list", "dict", "lines", "materials project", "records", "split"]
)
def test_many_structures_in_every_usual_shape(tmp_path, shape):
    dicts = [crystal.as_dict() for crystal in CRYSTALS]
    rows = [
        {
            "material_id": f"mp-{n}",
            "structure": d,
            "band_gap": 0.5 * n,
            "stable": n == 1,
            "formula": "X",
        }
        for n, d in enumerate(dicts)
    ]
    path = tmp_path / "many.json"
    ids = ["many-000000", "many-000001", "many-000002"]
    if shape == "list":
        write(path, dicts)
    elif shape == "dict":
        ids = ["a", "7", "c"]
        write(path, dict(zip(ids, dicts, strict=True)))
    elif shape == "lines":
        path = tmp_path / "many.jsonl"
        path.write_text("\n".join(json.dumps(d) for d in dicts))
    elif shape == "split":
        frame = pd.DataFrame(rows).drop(columns="material_id")
        write(path, json.loads(frame.to_json(orient="split")))
    else:
        ids = ["mp-0", "mp-1", "mp-2"]
        write(path, rows)
    found = records(path)
    assert [r.id for r in found] == ids
    assert [r.number for r in found] == [0, 1, 2]
    for record, crystal in zip(found, CRYSTALS, strict=True):
        # pandas writes ten digits
        tolerance = 1e-8 if shape == "split" else 1e-12
        assert_same_arrays(parse_record(record.format, record.payload), crystal, tolerance)
    if shape in ("materials project", "records", "split"):
        assert found[1].labels["band_gap"] == 0.5
        assert found[1].labels["stable"] == 1.0
        assert found[1].labels["formula"] == "X"


def test_another_label_or_layout_leaves_the_payload_as_it_was(tmp_path):
    rows = [{"id": "x", "structure": CRYSTALS[0].as_dict(), "gap": 1.0}]
    (before,) = records(write(tmp_path / "a.json", rows))
    rows[0]["gap"] = 2.0
    reordered = [dict(reversed(rows[0].items()))]
    (after,) = records(write(tmp_path / "b.json", reordered, indent=3))
    assert before.payload == after.payload
    assert (before.labels["gap"], after.labels["gap"]) == (1.0, 2.0)


@pytest.mark.parametrize("cartesian", [False, True])
def test_jarvis_entries_keep_all_digits(tmp_path, cartesian):
    rows = [
        {"jid": f"JVASP-{n}", "atoms": jarvis(crystal, cartesian), "gap": 0.1 * n, "spillage": "na"}
        for n, crystal in enumerate(CRYSTALS)
    ]
    with zipfile.ZipFile(tmp_path / "dft.json.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dft.json", json.dumps(rows))
    found = records(tmp_path / "dft.json.zip")
    assert [r.id for r in found] == ["JVASP-0", "JVASP-1", "JVASP-2"]
    assert found[2].labels == {"gap": 0.2, "spillage": "na"}
    for record, crystal in zip(found, CRYSTALS, strict=True):
        assert record.format == "jarvis"
        assert_same_arrays(parse_record(record.format, record.payload), crystal, 1e-12)
    (single,) = read(write(tmp_path / "single.json", jarvis(CRYSTALS[0], cartesian)))
    assert_same_arrays(single, CRYSTALS[0], 1e-12)


def test_groups_of_poscar_texts_are_read_and_the_group_is_a_label(tmp_path):
    texts = [Poscar(crystal).get_str().replace("\n", "\\n") for crystal in CRYSTALS]
    found = records(
        write(
            tmp_path / "a.json", {"train": {"6": texts[0], "12": texts[1]}, "test": {"7": texts[2]}}
        )
    )
    assert [(r.id, r.labels["group"], r.format) for r in found] == [
        ("6", "train", "poscar"), ("12", "train", "poscar"), ("7", "test", "poscar")
    ]  # fmt: skip
    assert len(parse_record("poscar", found[0].payload)) == 6


def test_what_is_no_structure_among_entries_becomes_a_record_that_fails(tmp_path):
    path = write(
        tmp_path / "a.json", [CRYSTALS[0].as_dict(), 7, {"a": 1}, None, "abc", {"structure": 5}]
    )
    outcomes = []
    for record in records(path):
        try:
            outcomes.append(len(parse_record(record.format, record.payload)))
        except AtomloomError as error:
            outcomes.append(str(error))
    assert outcomes[0] == 6
    assert outcomes[1] == "an entry that is not a structure but a int"
    assert "no structure in this entry (keys: a)" in outcomes
    assert len(outcomes) == 6


@pytest.mark.parametrize("cut", [10, 400, -1])
def test_json_cut_short_or_damaged_is_never_passed_over(tmp_path, cut):
    text = json.dumps([crystal.as_dict() for crystal in CRYSTALS])
    (tmp_path / "a.json").write_text(text[:cut])
    with pytest.raises(AtomloomError, match=r"not valid JSON|ends too early"):
        read(tmp_path / "a.json")


def test_the_stream_never_holds_more_than_an_entry():
    entry = json.dumps(CRYSTALS[0].as_dict()).encode()

    class Endless(io.RawIOBase):
        """A list without end."""

        read_so_far = 0
        rest = b""

        def readable(self):
            return True

        def readinto(self, buffer):
            text = b"[" + entry if not self.read_so_far else b"," + entry
            while len(self.rest) < len(buffer):
                self.rest += text
                text = b"," + entry
            buffer[:] = self.rest[: len(buffer)]
            self.rest = self.rest[len(buffer) :]
            self.read_so_far += len(buffer)
            return len(buffer)

    endless = Endless()
    pieces = json_document.split(io.BufferedReader(endless, 1 << 16), {})
    for _ in range(2000):
        assert next(pieces).format == "pymatgen"
    assert endless.read_so_far < 2000 * (len(entry) + 1) + (4 << 20)


def table(crystals, **columns) -> pd.DataFrame:
    texts = [str(CifWriter(crystal)) for crystal in crystals]
    return pd.DataFrame({"cif": texts} | columns)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".bz2"])
def test_cif_in_a_column_of_a_csv_is_a_record_with_the_others_as_labels(tmp_path, ending):
    path = tmp_path / f"table.csv{ending}"
    table(
        CRYSTALS,
        material_id=["007", "8", "mp-9"],
        gap=[0.0, 1.5, None],
        split=["train", "val", "test"],
    ).to_csv(path)
    found = records(path)
    assert [r.id for r in found] == ["007", "8", "mp-9"]
    assert found[1].labels["gap"] == 1.5
    assert found[2].labels["split"] == "test"
    for record, crystal in zip(found, CRYSTALS, strict=True):
        assert record.format == "cif"
        assert len(parse_record(record.format, record.payload)) == len(crystal)


def test_columns_of_unusual_names_are_named_by_options(tmp_path):
    path = tmp_path / "table.csv"
    table(CRYSTALS[:2], key=["a", "b"]).rename(columns={"cif": "geometry"}).to_csv(
        path, index=False
    )
    with pytest.raises(
        AtomloomError, match=r"no column of structures among geometry, key.*structure_column"
    ):
        records(path)
    found = records(path, structure_column="geometry", id_column="key")
    assert [r.id for r in found] == ["a", "b"]
    with pytest.raises(AtomloomError, match="no column `other`; columns are: geometry, key"):
        records(path, structure_column="other")


def test_rows_without_a_structure_fail_alone(tmp_path):
    path = tmp_path / "table.csv"
    frame = table(CRYSTALS, id=["a", "b", "c"])
    frame.loc[1, "cif"] = ""
    frame.to_csv(path, index=False)
    with open(path, "a") as file:
        file.write("short row\n")
    outcomes = {}
    for record in records(path):
        try:
            outcomes[record.id] = len(parse_record(record.format, record.payload))
        except AtomloomError as error:
            outcomes[record.id] = str(error)
    assert outcomes["a"] == 6
    assert outcomes["b"] == "empty"
    assert outcomes["c"] == 3
    assert "1 columns, not 2" in outcomes["table-000003"]


def test_gzipped_json_is_read(tmp_path):
    with gzip.open(tmp_path / "a.json.gz", "wt") as file:
        json.dump([c.as_dict() for c in CRYSTALS], file)
    assert [len(s) for s in read(tmp_path / "a.json.gz")] == [6, 8, 3]


@pytest.mark.parametrize(
    ("text", "structures"),
    [
        ("id,crystal,gap\na,cubic,1\nb,hexagonal,2\n", False),
        ("cif,gap\na.cif,1\n", False),
        ("id,structure,gap\na,,1\nb,fcc,2\n", False),
        ('id,structure\na,\nb,"data_b\n_cell_length_a 3"\n', True),
        ('id,crystal\na,"{""sites"": []}"\n', True),
        ('id,cif\na,"data_a\n' + 70_000 * " ", True),
    ],
)
def test_a_column_named_as_structures_are_may_be_one_of_labels(text, structures):
    assert csv_table.sniff(text.encode()[: 1 << 16]) == structures


def test_names_in_latin_1_stay_different(tmp_path):
    path = tmp_path / "s.csv"
    text = "id,cif,group\nü,data_a,é\nö,data_b,è\n"
    for encoding in ("latin-1", "utf-8", "utf-8-sig"):
        path.write_bytes(text.encode(encoding))
        assert [r.id for r in records(path)] == ["ü", "ö"]
        assert [r.labels["group"] for r in records(path)] == ["é", "è"]


def test_two_columns_of_one_name_that_differ_are_no_number(tmp_path):
    cif = CifWriter(CRYSTALS[0])
    path = tmp_path / "s.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "cif", "gap", "gap", "note", "note"])
        writer.writerow(["a", str(cif), "1", "2", "x", "x"])
        writer.writerow(["b", str(cif), "1_0", "1_0", "True", "True"])
    first, second = records(path)
    assert first.labels == {"gap": "1 and 2", "note": "x"}
    assert second.labels == {"gap": "1_0", "note": "True"}


def ase_rows(path, count: int) -> dict:
    """A JSON database as ASE writes it, with what it says of the whole."""
    with ase.db.connect(path, type="json", append=False) as database:
        for number in range(count):
            database.write(bulk("NaCl", "rocksalt", a=5 + number))
        database.metadata = {"title": "salt", "default_columns": ["id"]}
    return json.loads(path.read_text())


def test_rows_that_an_ase_database_lists_and_does_not_hold_are_not_passed_over(tmp_path):
    path = tmp_path / "salt.json"
    whole = ase_rows(path, 3)
    assert [r.id for r in records(path)] == ["salt-000001", "salt-000002", "salt-000003"]
    write(path, whole | {"ids": [1, 3, 2]})
    assert len(records(path)) == 3
    for damaged, says in [
        ({k: v for k, v in whole.items() if k != "2"}, "lists 3 rows, there is no row 2"),
        (whole | {"2": None}, "lists 3 rows, there is no row 2"),
        (whole | {"ids": [1, 2]}, "lists 2 rows, there is row 3 besides"),
    ]:
        with pytest.raises(AtomloomError, match=says):
            records(write(path, damaged))
    found = records(write(path, whole | {"2": {"numbers": 3}}))
    assert len(found) == 3
    with pytest.raises(AtomloomError, match="no structure in this entry"):
        parse_record(found[2].format, found[2].payload)


def test_an_entry_by_name_that_is_null_becomes_a_record_that_fails(tmp_path):
    first, *_, last = CRYSTALS
    path = write(tmp_path / "a.json", {"a": first.as_dict(), "b": None, "c": last.as_dict()})
    found = {record.id: record for record in records(path)}
    assert found.keys() == {"a", "b", "c"}
    with pytest.raises(AtomloomError, match="not a structure but a NoneType"):
        parse_record(found["b"].format, found["b"].payload)
