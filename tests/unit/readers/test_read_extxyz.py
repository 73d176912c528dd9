"""XYZ, extended and plain: compared with ASE on the same text, and the habits of real data sets."""

from __future__ import annotations

import io

import ase.io
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomloom.errors import AtomloomError
from atomloom.readers.formats import extxyz
from atomloom.structures import to_structure
from atomloom.structures.units import BOHR, HARTREE
from tests.unit.structures.crystals import assert_same_arrays, atoms_with_results, parse

FRAME = """2
Lattice="4.0 0 0 0 5.0 0 0.5 0 6.0" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T F"
Cu 0.0 0.0 0.0 0.1 0.2 0.3
O 1.0 2.0 3.0 -0.1 -0.2 -0.3
"""


def in_ase(text: str):
    return ase.io.read(io.StringIO(text), format="extxyz")


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 12))
def test_what_ase_writes_is_read_as_ase_reads_it(seed, periodic, count):
    atoms = atoms_with_results(seed, periodic, count)
    atoms.arrays["charge"] = np.linspace(-1, 1, count)
    atoms.info |= {"weight": 2.5, "name": "a b", "flag": True}
    stream = io.StringIO()
    ase.io.write(stream, atoms, format="extxyz")
    ours = parse("extxyz", stream.getvalue())
    reference = to_structure(in_ase(stream.getvalue()))
    assert_same_arrays(ours, reference, 0)
    for name in reference.properties:
        np.testing.assert_array_equal(
            ours.properties[name], reference.properties[name], err_msg=name
        )
    assert ours.properties["weight"] == 2.5
    assert ours.properties["charge"].shape == (count,)
    if periodic:
        assert ours.properties["stress"].shape == (3, 3)


@pytest.mark.parametrize(
    "name", ["energy", "Energy", "free_energy", "REF_energy", "dft_energy", "total_energy"]
)
def test_energy_is_found_under_its_usual_names(name):
    assert parse("extxyz", FRAME.replace("energy=", f"{name}=")).properties["energy"] == -1.5


@pytest.mark.parametrize("name", ["forces", "force", "REF_forces", "dft_forces"])
def test_forces_are_found_under_their_usual_names(name):
    properties = parse("extxyz", FRAME.replace("forces:R", f"{name}:R")).properties
    np.testing.assert_array_equal(properties["forces"], [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])


def test_the_first_of_several_energies_counts_unless_another_is_chosen():
    text = FRAME.replace("energy=-1.5", "REF_energy=-7 energy=-1.5 my_energy=3")
    assert parse("extxyz", text).properties["energy"] == -1.5
    assert parse("extxyz", text).properties["REF_energy"] == -7
    chosen = parse("extxyz", text, energy_key="my_energy").properties
    assert chosen["energy"] == 3
    with pytest.raises(AtomloomError, match="no `other` on the comment line"):
        parse("extxyz", text, energy_key="other")


def frame(comment: str, *columns: str) -> str:
    """Two atoms with the given vectors: x of the first atom is 1 in the first column, 2 in the next ..."""
    rows = "".join(
        f"Cu {x} 0 0 " + " ".join(f"{n} 0 0" for n in range(1, len(columns) + 1)) + "\n"
        for x in (0, 2)
    )
    names = "".join(f":{name}:R:3" for name in columns)
    return f'2\nLattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3{names} {comment}\n{rows}'


@pytest.mark.parametrize(
    ("comment", "columns", "energy", "forces"),
    [
        ("energy=-1 REF_energy=-10", ["REF_forces"], -10, 1),
        ("energy=-1 REF_energy=-10", ["forces"], -1, 1),
        ("REF_energy=-10 DFT_energy=-20", ["magnetic_forces", "DFT_forces"], -20, 2),
        ("energy=-3 energy_dft=-10", ["forces_dft"], -10, 1),
        ("energy=-1 mace_energy=-10", ["mace_forces", "forces"], -1, 2),
        ("REF_energy=-1 MACE_energy=-10", ["MACE_forces", "REF_forces"], -1, 2),
        ("mace_energy=-10", ["mace_forces"], -10, 1),  # nothing else is there
        ("energy=-10 REF_energy=-10", ["forces", "REF_forces"], -10, 1),
        ("energy=-10 energy_std=0.1", ["forces", "forces_std"], -10, 1),
        ("energy=-10 formation_energy=-1 energy_per_atom=-5", ["forces"], -10, 1),
        ("potential_energy=-10.5 kinetic_energy=0.5 total_energy=-10.0", ["forces"], -10.5, 1),
        ("total_energy=-10 kinetic_energy=0", ["forces"], -10, 1),
        ("energy=-10.5 kinetic_energy=0.5 total_energy=-10.0", ["forces"], -10.5, 1),
        ("energy=-10 free_energy=-9", ["forces"], -10, 1),
        ("free_energy=-9", ["force"], -9, 1),
        ("energy=-10", ["REF_forces"], -10, 1),  # the only ones there are
        ("energy=-10 REF_energy=-10", [], -10, None),
        ("energy=-10", ["mace_forces"], -10, None),
    ],
)
def test_energy_and_forces_are_of_one_level_of_theory(comment, columns, energy, forces):
    properties = parse("extxyz", frame(comment, *columns)).properties
    assert properties["energy"] == energy
    assert (properties["forces"][0, 0] if forces else properties.get("forces")) == forces


@pytest.mark.parametrize(
    ("comment", "columns", "message"),
    [
        ("energy=-1 REF_energy=-10", ["forces", "REF_forces"], "`energy` and `REF_energy` differ, -1 and -10"),
        ("energy=-1 REF_energy=-10", [], "`energy` and `REF_energy` differ"),
        ("energy=-1 mace_energy=-10", ["mace_forces"], "several levels of theory: energy, mace_energy, mace"),
        ("pbe_energy=-1 hse_energy=-10", ["pbe_forces", "hse_forces"], "several levels of theory"),
        ("", ["REF_forces", "DFT_forces"], "forces of several levels of theory: REF_forces, DFT_forces"),
        ("energy=-1 Energy=-2", ["forces"], "`energy` and `Energy` differ"),
        ("energy=-1 energy=-2", ["forces"], "`energy` occurs twice"),
        ("total_energy=-1 TotEnergy=-2", ["forces"], "`total_energy` and `TotEnergy` differ"),
        ("total_energy=-1 Ekin=2", ["forces"], "`total_energy` may include `Ekin`"),
        ("energy=-1 potential_energy=-2", ["forces"], "`energy` and `potential_energy` differ"),
        ("energy=-1 total_energy=-2", ["forces"], "`energy` and `total_energy` differ"),
        ("total_energy=-10 kinetic_energy=0.5", ["forces"], "`total_energy` may include `kinetic_energy`"),
        ("energy=-1", ["forces", "forces"], "two columns `forces`"),
    ],
)  # fmt: skip
def test_it_is_refused_where_it_is_not_known_which_level_is_meant(comment, columns, message):
    with pytest.raises(AtomloomError, match=message):
        parse("extxyz", frame(comment, *columns))


def test_a_unit_in_a_name_is_no_level_of_theory():
    properties = parse("extxyz", frame("energy_Ha=-0.5", "forces_Ha")).properties
    assert set(properties) == {"energy_Ha", "forces_Ha"}


@pytest.mark.parametrize(
    ("options", "energy", "forces"),
    [
        ({"energy_key": "REF_energy"}, -10, 2),
        ({"forces_key": "REF_forces"}, -10, 2),
        ({"energy_key": "energy"}, -1, 1),
        ({"energy_key": "energy", "forces_key": "REF_forces"}, -1, 2),
    ],
)
def test_an_option_says_which_level_is_meant(options, energy, forces):
    text = frame("energy=-1 REF_energy=-10", "forces", "REF_forces")
    properties = parse("extxyz", text, **options).properties
    assert (properties["energy"], properties["forces"][0, 0]) == (energy, forces)


def test_stress_is_that_of_the_level_too():
    text = frame('REF_energy=-1 stress="1 1 1 0 0 0" REF_stress="2 2 2 0 0 0"', "REF_forces")
    assert parse("extxyz", text).properties["stress"][0, 0] == 2
    assert parse("extxyz", text, stress_key="stress").properties["stress"][0, 0] == 1
    text = frame('REF_energy=-1 REF_virials="120 0 0 0 120 0 0 0 120"', "REF_forces")
    for options in ({}, {"stress_key": "REF_virials"}):
        assert parse("extxyz", text, **options).properties["stress"][0, 0] == pytest.approx(-1)


def test_a_stress_that_contradicts_the_virial_is_refused():
    text = frame(
        'energy=-1 virial="120 0 0 0 120 0 0 0 120" stress="{} 0 0 0 -1 0 0 0 -1"', "forces"
    )
    assert parse("extxyz", text.replace("{}", "-1.001")).properties["stress"][0, 0] == -1.001
    with pytest.raises(AtomloomError, match="`stress` is not -`virial` / volume"):
        parse("extxyz", text.replace("{} 0 0 0 -1 0 0 0 -1", "1 0 0 0 1 0 0 0 1"))
    other = text.replace("{} 0 0 0 -1 0 0 0 -1", "1 0 0 0 1 0 0 0 1")
    assert parse("extxyz", other, stress_key="virial").properties["stress"][0, 0] == pytest.approx(
        -1
    )


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("energy=-0.5 energy-unit=hartree force-unit=hartree/bohr", {"energy": -0.5 * HARTREE, "forces": HARTREE / BOHR}),
        ("energy=-0.5 energy_units=Ry forces_unit=Ry/Bohr", {"energy": -0.25 * HARTREE, "forces": HARTREE / BOHR / 2}),
        ('energy=-1 energy_unit="kcal/mol" force_unit=kcal/mol/Å', {"energy": -0.0433641, "forces": 0.0433641}),
        ("energy=-1 energy_unit=kJ/mol force_unit=kJ/mol/nm", {"energy": -0.0103643, "forces": 0.00103643}),
        ("energy=-1 energy_unit=meV force_unit=meV/Angstrom", {"energy": -0.001, "forces": 0.001}),
        ("energy=-0.5 energy_unit=eV/atom force_unit=eV/A", {"energy": -1.0, "forces": 1.0}),
        ("energy=-0.5 units=metal", {"energy": -0.5, "forces": 1.0}),
        ("energy=-0.5 eV", {"energy": -0.5}),
        ("energy=-0.5 Ha force_unit=Ha/Bohr", {"energy": -0.5 * HARTREE, "forces": HARTREE / BOHR}),
        ("energy=-0.5 eV/atom", {"energy": -1.0}),
        ('energy=-1 "energy-unit"=meV force-unit=eV/A', {"energy": -0.001}),
        ('energy=-1 stress="1 1 1 0 0 0" stress_unit=GPa', {"energy": -1.0, "stress": 0.00624151}),
        ('energy=-1 stress="1 1 1 0 0 0" stress_unit=kbar', {"stress": 0.000624151}),
        ('energy=-1 energy_unit=eV stress="1 1 1 0 0 0" stress_unit=au/bohr^3 force_unit=eV/A', {"stress": HARTREE / BOHR**3}),
        ('energy=-1 energy-unit=Ha virial="1 1 1 0 0 0" force-unit=Ha/Bohr', {"stress": -HARTREE / 120}),
        ('energy=-1 stress="1 1 1 0 0 0" stress_unit=eV/Å**3', {"stress": 1.0}),
        ('energy=-1 energy_unit=Ha virial="1 1 1 0 0 0" virial_unit=Ha force_unit=Ha/Bohr', {"stress": -HARTREE / 120}),
        ("energy=-1 charge_unit=e time_units=fs formula_units=4 unit_cell=primitive", {"energy": -1.0, "forces": 1.0}),
    ],
)  # fmt: skip
def test_units_of_the_comment_line_are_converted(comment, expected):
    properties = parse("extxyz", frame(comment, "forces")).properties
    for name, value in expected.items():
        assert np.ravel(properties[name])[0] == pytest.approx(value, rel=1e-5), name


def test_lengths_in_bohr_are_converted():
    read = parse("extxyz", frame("length_unit=bohr"))
    assert read.positions[1, 0] == pytest.approx(2 * BOHR)
    assert read.cell[2, 2] == pytest.approx(6 * BOHR)
    assert parse("extxyz", frame("energy=-0.5 Ha")).properties["energy"] == -0.5 * HARTREE
    assert parse("extxyz", frame('energy="-0.5 Ry"')).properties["energy"] == -0.25 * HARTREE
    assert parse("extxyz", frame("energy=-0.5 converged")).properties["energy"] == -0.5


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        (
            "energy=-0.5 energy-unit=furlong",
            "`energy-unit` is furlong, which is not a known unit of energy",
        ),
        ("energy=-0.5 energy-unit=hartree/bohr", "not a known unit of energy"),
        ("force-unit=eV", "not a known unit of force"),
        ('units={"energy": "Ha"}', "`units` is a table, which is not read"),
        ("energy=-0.5 energy-unit=hartree", "not that of forces; name it by force-unit"),
        ("energy=-0.5 Ha", "not that of forces; name it by force-unit"),
        (
            "energy=-0.5 Ha energy-unit=Ry force-unit=eV/A",
            "`energy` is in Ha, but `energy-unit` is Ry",
        ),
        (
            'energy=-0.5 stress="1 1 1 0 0 0" stress-unit=Ha/bohr^3 force-unit=eV/A',
            "not that of energy",
        ),
        ("energy=-0.5 length-unit=bohr", "not that of energy"),
        ("energy=-0.5 unit=hartree", "`unit` is hartree: its quantity is not known"),
        ("energy=-0.5 energy_unit=eV energy-units=Ry", "`energy-units` and `energy_unit` differ"),
        ("pos_unit=bohr cell_unit=A", "`cell_unit` and `pos_unit` differ"),
        ('stress="1 1 1 0 0 0" stress_unit=eV', "not a known unit of stress"),
    ],
)
def test_units_that_are_not_known_are_refused(comment, message):
    with pytest.raises(AtomloomError, match=message):
        parse("extxyz", frame(comment, "forces"))


@pytest.mark.parametrize(
    "comment",
    ["# CELL(abcH): 5 5 5 90 90 90 Step: 1 positions{angstrom} cell{angstrom}", "coordinates in Bohr",
     "units: a.u. energy=-1"],
)  # fmt: skip
def test_plain_coordinates_that_may_be_in_bohr_are_refused(comment):
    with pytest.raises(AtomloomError, match="lengths that may not be in A"):
        parse("extxyz", f"1\n{comment}\nH 0 0 0\n")


@pytest.mark.parametrize(
    "text",
    ['gap="1.5"', "gap='1.5'", "gap=[1.5]", "gap={1.5}", 'gap="{1.5}"', 'gap="[1.5]"', "gap = 1.5", 'gap="1.5 "',
     'gap="_JSON 1.5"', "name= gap=1.5", 'name="a \\"gap=7\\" b" gap=1.5', "gap=1.5 gap=1.5"],
)  # fmt: skip
def test_numbers_are_read_however_they_are_quoted(text):
    assert parse("extxyz", frame(text)).properties == {"gap": 1.5}


@pytest.mark.parametrize(
    "text", ['"1 2 3"', "[1, 2, 3]", '"[1, 2, 3]"', "{1 2 3}", '"{1 2 3}"', '"_JSON [1, 2, 3]"', "'1 2 3'"]
)  # fmt: skip
def test_lists_are_read_in_styles_old_and_new(text):
    assert parse("extxyz", frame(f"dipole={text}")).properties["dipole"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["1_0", '"1_0"', "abc", '"T T F"', '""', "1.2.3", '"1 x"'])
def test_what_is_no_number_is_no_property(text):
    assert parse("extxyz", frame(f"gap={text}")).properties == {}


@pytest.mark.parametrize(("text", "number"), [("T", 1), ("F", 0), ("True", 1), ('"false"', 0)])
def test_truth_is_a_number_as_in_every_format(text, number):
    assert parse("extxyz", frame(f"metal={text}")).properties == {"metal": number}


@pytest.mark.parametrize(
    "lattice",
    ['Lattice="[[4, 0, 0], [0, 5, 0], [0, 0, 6]]"', "LATTICE=[[4,0,0],[0,5,0],[0,0,6]]", 'lattice="{4 0 0 0 5 0 0 0 6} "'],
)  # fmt: skip
def test_names_in_any_case_and_lists_in_any_style_make_the_cell(lattice):
    text = frame("PBC=[T,T,F] energy=-1", "forces")
    text = text.replace('Lattice="4 0 0 0 5 0 0 0 6"', lattice)
    text = text.replace(
        "Properties=species:S:1:pos:R:3:forces:R:3", 'PROPERTIES="Species:S:1:Pos:R:3:forces:R:3 "'
    )
    read = parse("extxyz", text)
    assert read.cell.diagonal().tolist() == [4, 5, 6]
    assert read.pbc.tolist() == [True, True, False]
    assert read.properties["forces"].shape == (2, 3)


def test_names_that_differ_in_a_sign_are_two_properties():
    assert parse("extxyz", frame("U/eV=1 U_eV=2")).properties == {"U/eV": 1.0, "U_eV": 2.0}


def test_a_number_and_a_column_of_one_name_are_both_kept():
    text = (
        frame("charge=1").replace(":pos:R:3", ":pos:R:3:charge:R:1").replace("0 0 \n", "0 0 0.5\n")
    )
    properties = parse("extxyz", text).properties
    assert properties["charge"].tolist() == [0.5, 0.5]
    assert properties["charge_in_comment"] == 1


def test_stress_and_virial_have_the_sign_and_order_of_ase():
    six = "1 2 3 4 5 6"
    expected = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3.0]])
    text = FRAME.replace("energy=-1.5", f'stress="{six}"')
    np.testing.assert_array_equal(parse("extxyz", text).properties["stress"], expected)
    nine = " ".join(str(x) for x in expected.ravel())
    text = FRAME.replace("energy=-1.5", f'virial="{nine}"')
    np.testing.assert_allclose(parse("extxyz", text).properties["stress"], -expected / 120.0)
    # as ASE has them from the same text
    text = FRAME.replace("energy=-1.5", f'stress="{nine}"')
    np.testing.assert_allclose(
        in_ase(text).get_stress(voigt=False), parse("extxyz", text).properties["stress"]
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [('pbc="T T F"', [1, 1, 0]), ("pbc='1 0 1'", [1, 0, 1]), ("pbc=[T,F,F]", [1, 0, 0]), ("", [1, 1, 1]),
     ('pbc="F F F"', [0, 0, 0]), ("pbc=T T F", [1, 1, 0]), ("pbc=F F T weight=1", [0, 0, 1]), ("pbc=T", [1, 1, 1]),
     ("pbc=T F F flag", [1, 0, 0]), ('pbc="T T F "', [1, 1, 0])],
)  # fmt: skip
def test_pbc_is_as_it_says_and_follows_the_lattice_where_it_says_nothing(flags, expected):
    assert parse("extxyz", FRAME.replace('pbc="T T F"', flags)).pbc.tolist() == [
        bool(x) for x in expected
    ]


def test_without_lattice_it_is_a_molecule():
    frame = FRAME.replace('Lattice="4.0 0 0 0 5.0 0 0.5 0 6.0" ', "").replace('pbc="T T F"', "")
    read = parse("extxyz", frame)
    assert not read.pbc.any()
    assert not read.cell.any()


def test_columns_in_any_order_and_elements_by_number_are_read():
    text = "2\nProperties=pos:R:3:tag:I:1:label:S:1:Z:I:1 x=1\n1 2 3 5 abc 29\n4 5 6 7 d 8\n"
    read = parse("extxyz", text)
    assert read.numbers.tolist() == [29, 8]
    np.testing.assert_array_equal(read.positions, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(read.properties["tag"], [5, 7])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2\nAtoms. Timestep: 0\n3 0 0 0\n5 0 0 2\n", "`3` for an element: type numbers"),
        ("2\n\n1 0 0 0\n2 0 0 2\n", "`1` for an element: type numbers"),
        ("1\nProperties=species:S:1:pos:R:3\n1 0 0 0\n", "`1` for an element: type numbers"),
        ("1\nProperties=species:S:1:pos:R:3:Z:I:1\nSi 0 0 0 14\n", None),
        ("1\nProperties=Z:I:1:pos:R:3\n1 0 0 0\n", None),
        ("2\n\n8 0 0 0\n1 0 0 2\n", None),
    ],
)
def test_numbers_for_elements_are_atomic_numbers_and_no_types(text, message):
    if message is None:
        assert parse("extxyz", text).numbers[0] in (1, 8, 14)
        return
    with pytest.raises(AtomloomError, match=message):
        parse("extxyz", text)


def test_plain_xyz_ignores_the_comment_and_further_columns():
    read = parse("extxyz", "2\nmade by hand\n C 0 0 0 9 9\n8 0 0 1.2 9 9")
    assert read.numbers.tolist() == [6, 8]
    assert read.properties == {}
    assert parse("extxyz", "1\ncharge = -1\nH 0 0 0").properties == {"charge": -1.0}


def test_frames_are_byte_ranges_and_join_to_the_file():
    text = FRAME * 3 + "\n\n" + FRAME
    pieces = list(extxyz.split(io.BytesIO(text.encode()), {}))
    assert len(pieces) == 4
    for piece in pieces:
        assert text.encode()[piece.offset : piece.offset + len(piece.payload)] == piece.payload
        assert len(parse("extxyz", piece.payload)) == 2


def test_a_wrong_count_spoils_its_frame_and_no_later_one():
    frames = [
        FRAME,
        FRAME.replace("2\n", "two\n", 1),
        FRAME,
        FRAME.replace("2\n", "3\n", 1),
        FRAME,
        FRAME,
    ]
    outcomes = []
    for piece in extxyz.split(io.BytesIO("".join(frames).encode()), {}):
        try:
            outcomes.append(len(parse("extxyz", piece.payload)))
        except AtomloomError:
            outcomes.append(None)
    assert outcomes[:3] == [2, None, 2]
    assert outcomes[3] is None
    assert outcomes[-1] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\nL", "3\nL", "2 of 3 atoms"),
        ("2\nL", "0\nL", "number of atoms is not a count"),
        ("O 1.0 2.0 3.0 -0.1 -0.2 -0.3", "O 1.0 2.0 3.0", "line 4: 4 columns, not 7"),
        ("1.0 2.0", "1.0 abc", "not a number: `abc`"),
        ("1.0 2.0", "1_0 2.0", "not a number: `1_0`"),
        ("1.0 2.0", "nan 2.0", "coordinate of atom 1 is not a finite number"),
        ("Cu 0.0", "Xx 0.0", "unknown element `Xx`"),
        ("species:S:1:", "", "has no species:S:1"),
        ("pos:R:3:", "", "has no pos:R:3"),
        ("pos:R:3", "pos:R:x", "columns of `pos` in Properties is not a count"),
        ("4.0 0 0 0 5.0 0 0.5 0 6.0", "4.0 0 0", "pbc|columns"),
        ("4.0 0 0 0 5.0 0 0.5 0 6.0", "4.0 0 0 0", "Lattice of 4 numbers"),
        ("T T F", "T X F", "pbc is"),
        ('"T T F"', "T T", "pbc is T T, not three"),
        ('"T T F"', "T F X", "pbc is T F, not three"),
        ("energy=-1.5", 'energy="1 2"', "energy has 2 values"),
        ("energy=-1.5", "energy=abc", "energy: not a number: `abc`"),
        ("energy=-1.5", "stress='1 2 3'", "a stress of 3 numbers"),
    ],
)
def test_what_is_wrong_is_said(old, new, message):
    assert old in FRAME
    if message == "pbc|columns":  # three numbers are the lengths of a box
        assert parse("extxyz", FRAME.replace(old, "4 5 6")).volume == pytest.approx(120)
        return
    with pytest.raises(AtomloomError, match=message):
        parse("extxyz", FRAME.replace(old, new))
