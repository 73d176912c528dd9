"""POSCAR: every dialect of it, compared with ASE and pymatgen on the same text."""

from __future__ import annotations

import io

import ase.io
import numpy as np
import pytest
from crystals import assert_same_arrays, atoms_with_results, parse
from pymatgen.io.vasp import Poscar

from atomloom.errors import AtomloomError
from atomloom.structures.readers import format_of, poscar

TEXT = """Ti O
  1.5
 3.0 0.0 0.1
 0.0 3.5 0.0
 -0.2 0.0 2.0
 Ti O
 1 2
Selective dynamics
Direct
 0.0 0.1 0.2 T F T
 0.3 0.3 0.0 F F F
 -0.7 1.7 0.5 T T T

 0.0 0.0 0.0
"""


def in_ase(text: str):
    return ase.io.read(io.StringIO(text), format="vasp")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("selective", [True, False])
def test_what_ase_and_pymatgen_write_is_read_as_they_read_it(direct, selective):
    from ase.constraints import FixAtoms

    atoms = atoms_with_results(3)[np.argsort(atoms_with_results(3).numbers, kind="stable")]
    if selective:
        atoms.set_constraint(FixAtoms([0]))
    stream = io.StringIO()
    ase.io.write(stream, atoms, format="vasp", direct=direct)
    assert_same_arrays(parse("poscar", stream.getvalue()), in_ase(stream.getvalue()), 1e-12)

    from atomloom.structures import to_pymatgen, to_structure

    crystal = to_pymatgen(to_structure(atoms))
    text = Poscar(crystal).get_str(direct=direct, significant_figures=16)
    assert_same_arrays(parse("poscar", text), Poscar.from_str(text).structure, 1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("  1.5\n", " -120.0\n"),),  # the volume of the cell
        (("  1.5\n", " 1.0 1.1 0.9\n"),),
        (("Selective dynamics\n", ""),),
        (("Direct", "cartesian"),),
        (("Direct", "Kartesisch"),),
        (("Selective dynamics\nDirect", "selective\nfractional"),),
    ],
)
def test_dialects_are_read_as_by_ase(changes):
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    reference = in_ase(text[: text.index("\n\n") + 1])  # ASE stumbles over half of the velocities
    assert_same_arrays(parse("poscar", text), reference, 1e-12)


def test_version_4_takes_symbols_from_the_comment_or_behind_the_coordinates():
    old = TEXT.replace(" Ti O\n 1 2", " 1 2")
    assert parse("poscar", old).numbers.tolist() == [22, 8, 8]
    behind = old.replace("Ti O\n", "a comment\n", 1)
    behind = behind.replace("T F T", "T F T Ti").replace("F F F", "F F F O")
    assert parse("poscar", behind).numbers.tolist() == [22, 8, 8]
    with pytest.raises(AtomloomError, match="no element symbols"):
        parse("poscar", old.replace("Ti O\n", "a comment\n", 1))


def test_flavours_and_hashes_behind_symbols_are_cut_off():
    text = TEXT.replace(" Ti O\n 1", " Ti_pv O/b5c0ffee\n 1")
    assert parse("poscar", text).numbers.tolist() == [22, 8, 8]


def test_literal_line_ends_of_a_twice_escaped_text_are_line_ends():
    assert_same_arrays(parse("poscar", TEXT.replace("\n", "\\n")), parse("poscar", TEXT))


def test_fortran_exponents_and_windows_line_ends_are_numbers_and_line_ends():
    text = TEXT.replace(" 3.0 0.0 0.1", " 0.3D+01 0.0d0 1.0E-1").replace("\n", "\r\n")
    assert_same_arrays(parse("poscar", text), parse("poscar", TEXT))


@pytest.mark.parametrize(
    "name", ["POSCAR", "CONTCAR", "POSCAR-JVASP-10.vasp", "a.vasp", "x.poscar", "POSCAR_3"]
)
def test_names_tell_the_format(name):
    assert format_of(name) == "poscar"


def test_content_tells_the_format():
    assert poscar.sniff(TEXT.encode())
    assert format_of("17.txt", TEXT.encode()) == "poscar"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (TEXT, "", "empty file"),
        ("  1.5\n", "  0\n", "line 2: scaling factor is zero"),
        ("  1.5\n", "  x\n", "line 2: not a number: `x`"),
        (" 3.0 0.0 0.1", " 3.0 0.0", "line 3: not a lattice vector"),
        (" 3.0 0.0 0.1", " 0.0 3.5 0.0", "linearly dependent"),
        (" 1 2\n", " 1 2 3\n", "line 6: 2 elements but 3 numbers"),
        (" 1 2\n", " 1 x\n", "line 7: number of atoms is not a count: `x`"),
        (" 1 2\n", " 0 0\n", "line 7: 0 atoms"),
        (" Ti O\n 1", " Xx O\n 1", "unknown element `Xx`"),
        ("0.0 0.1 0.2", "0.0 nan 0.2", "coordinate of atom 0 is not a finite number"),
        ("0.3 0.3 0.0", "0.3 *** 0.0", r"lines 10 to 12: not a number: `\*\*\*`"),
        ("0.3 0.3 0.0 F F F", "0.3", "line 11: not three coordinates"),
        (TEXT[TEXT.index(" -0.7") :], "", "2 of 3 coordinate lines"),
    ],
)
def test_what_is_wrong_is_said(old, new, message):
    assert old in TEXT
    with pytest.raises(AtomloomError, match=message):
        parse("poscar", TEXT.replace(old, new))
