"""XYZ, extended and plain: compared with ASE on the same text, and the habits of real data sets."""

from __future__ import annotations

import io

import ase.io
import numpy as np
import pytest
from crystals import assert_same_arrays, atoms_with_results, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from atomloom.errors import AtomloomError
from atomloom.structures import to_structure
from atomloom.structures.readers import extxyz

FRAME = """2
Lattice="4.0 0 0 0 5.0 0 0.5 0 6.0" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T F"
Cu 0.0 0.0 0.0 0.1 0.2 0.3
O 1.0 2.0 3.0 -0.1 -0.2 -0.3
"""


def in_ase(text: str):
    return ase.io.read(io.StringIO(text), format="extxyz")


@settings(max_examples=20, deadline=None)
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
     ('pbc="F F F"', [0, 0, 0])],
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
