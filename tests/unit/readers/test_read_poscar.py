"""POSCAR: every dialect of it, compared with ASE and pymatgen on the same text."""

from __future__ import annotations

import io
import re

import ase.io
import numpy as np
import pytest
from pymatgen.io.vasp import Poscar

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, read
from atomloom.readers.formats import poscar
from atomloom.readers.registry import format_of
from tests.unit.structures.crystals import assert_same_arrays, atoms_with_results, parse

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


VERSION_4 = """{comment}
1.0
5.6 0 0
0 5.6 0
0 0 5.6
{counts}
Direct
0 0 0 {first}
0.25 0.25 0.25 {second}
"""


@pytest.mark.parametrize(
    ("comment", "counts", "first", "second", "expected"),
    [
        ("As grown film", "2", "Ga", "Ga", [31, 31]),
        ("In At 300K", "1 1", "Ga", "As", [31, 33]),
        ("In At 300K", "2", "Ga", "As", [31, 33]),
        (
            "No title",
            "1 1",
            "T T F Ga",
            "F F F As",
            [31, 33],
        ),  # flags are no tritium and no fluorine
        ("Ga As", "1 1", "Ga", "As", [31, 33]),
        ("Ga As ! a film", "1 1", "", "", [31, 33]),
        ("Ga1 As1", "1 1", "", "", [31, 33]),
        ("In At", "1 1", "Ga", "As", "the comment has other elements than the words after"),
        ("Ga2 As1", "1 1", "", "", "no element symbols"),  # its numbers are not those of the atoms
        ("As grown", "2", "", "", "no element symbols"),
        ("No title", "2", "", "", "no element symbols"),
        ("No title", "1 1", "T T T", "F F F", "no element symbols"),
        ("Ga As film", "1 1", "", "", "no element symbols"),
        ("Ga As film", "1 1", "Ga", "", "no element symbols"),
    ],
)
def test_words_of_a_comment_are_no_elements_where_others_stand_behind(
    comment, counts, first, second, expected
):
    text = VERSION_4.format(comment=comment, counts=counts, first=first, second=second)
    if isinstance(expected, list):
        assert parse("poscar", text).numbers.tolist() == expected
        return
    with pytest.raises(AtomloomError, match=expected):
        parse("poscar", text)


def test_words_behind_that_contradict_the_line_of_elements_are_refused():
    behind = VERSION_4.format(comment="x", counts="Ga As\n1 1", first="Ga", second="As")
    assert parse("poscar", behind).numbers.tolist() == [31, 33]
    labels = VERSION_4.format(comment="x", counts="Ga As\n1 1", first="Ga1", second="B_site")
    assert parse("poscar", labels).numbers.tolist() == [31, 33]
    with pytest.raises(AtomloomError, match="line 6 has other elements"):
        parse("poscar", behind.replace("Ga As\n", "As Ga\n"))


@pytest.mark.parametrize(
    "counts", ["Ti O\nNa Cl\n1 1 1 1", "Ti O Na Cl\n1 1\n1 1", "Ti O\nNa Cl\n1 1\n1 1", "Ti\nO Na\nCl\n1 1 1 1"]
)  # fmt: skip
def test_elements_and_numbers_of_atoms_may_go_on_over_several_lines(counts):
    rows = "".join(f"{n / 4} 0.1 0.2\n" for n in range(4))
    text = f"x\n1.0\n4 0 0\n0 5 0\n0 0 6\n{counts}\nDirect\n{rows}"
    assert parse("poscar", text).numbers.tolist() == [22, 8, 11, 17]
    if counts.startswith("Ti O\nNa Cl\n1 1\n"):  # as pymatgen reads what VASP wraps
        assert_same_arrays(parse("poscar", text), Poscar.from_str(text).structure, 1e-12)
    old = "\n".join(line for line in counts.split("\n") if line[0].isdigit())
    text = f"Ti O Na Cl\n1.0\n4 0 0\n0 5 0\n0 0 6\n{old}\nDirect\n{rows}"
    assert parse("poscar", text).numbers.tolist() == [22, 8, 11, 17]


def frames(moving_cell: bool) -> list:
    atoms = atoms_with_results(3)[np.argsort(atoms_with_results(3).numbers, kind="stable")]
    atoms.calc = None
    found = []
    for seed in range(4):
        found.append(atoms.copy())
        found[-1].rattle(0.1, seed=seed)
        if moving_cell:
            found[-1].set_cell(atoms.cell * (1 + 0.01 * seed), scale_atoms=True)
    return found


@pytest.mark.parametrize("moving_cell", [True, False])
def test_every_frame_of_an_xdatcar_is_a_record(tmp_path, moving_cell):
    path = tmp_path / "run" / "XDATCAR"
    path.parent.mkdir()
    ase.io.write(path, frames(moving_cell), format="vasp-xdatcar")
    ours = read(path)
    assert [s.id for s in ours] == [f"run-{n:06d}" for n in range(4)]
    for structure, reference in zip(ours, frames(moving_cell), strict=True):
        assert_same_arrays(structure, reference, 1e-5)  # six digits are written
    if not moving_cell:
        text = path.read_text()
        path.write_text(text[: text.rindex("\n", 0, -1)])  # the last coordinate is gone
        with pytest.raises(AtomloomError, match=r"of \d+ coordinate lines"):
            read(path)
        assert [len(s) for s in map(outcome, records(path))][:3] == [len(ours[0])] * 3


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("moving_cell", [True, False])
def test_frames_of_an_xdatcar_that_blank_lines_begin_are_records(tmp_path, count, moving_cell):
    path = tmp_path / "XDATCAR"
    ase.io.write(path, frames(moving_cell)[:count], format="vasp-xdatcar")
    named = read(path)
    unnamed = re.sub(r"Direct configuration=.*", "", path.read_text())
    if not moving_cell:  # the header stands once
        header = unnamed[: unnamed.index("\n\n") + 1]
        unnamed = header + unnamed.replace(header, "")
    path.write_text(unnamed + "\n\n")
    ours = read(path)
    assert len(ours) == count
    for structure, reference in zip(ours, named, strict=True):
        np.testing.assert_array_equal(structure.positions, reference.positions)


@pytest.mark.parametrize("velocities", [True, False])
@pytest.mark.parametrize("between", ["", "\n", " \n\n"])
def test_poscars_put_behind_one_another_are_records(tmp_path, velocities, between):
    path, texts = tmp_path / "gathered", []
    for seed, atoms in enumerate(frames(True)):
        if velocities:
            atoms.set_velocities(np.random.default_rng(seed).normal(size=(len(atoms), 3)))
        stream = io.StringIO()
        ase.io.write(stream, atoms, format="vasp")
        texts.append(stream.getvalue())
    path.write_text(between.join(texts))
    for structure, text in zip(read(path), texts, strict=True):
        assert_same_arrays(structure, in_ase(text), 1e-12)
    for record in records(path):
        assert path.read_bytes()[record.offset :][: record.length] == record.payload


def records(path):
    return list(enumerate_records([path]))


def outcome(record):
    try:
        return parse("poscar", record.payload)
    except AtomloomError as error:
        return str(error)


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (" 0.1 0.1 0.1\n", "line 13: more coordinates than atoms"),
        ("another\n0.1 0.1 0.1\n", "line 13: `another`, and the numbers after it, are not velocities"),
        ("\n 0.1 0.1 0.1\n 0.2 0.2 0.2\n 0.3 0.3 0.3\n" * 2, "several times 3 rows after the coordinates"),
        ("\n 0.1 0.1 0.1\n 0.2 0.2 0.2\n 0.3 0.3 0.3\n", None),
        ("# made by hand\n\nsee the paper\n", None),
        ("Direct\n 0.1 0.1 0.1\n" * 3 + "\n1\n 0.5\n 0 0 0 0\n", None),
        ("Lattice velocities and vectors\n 1\n 0 0 0\n 0 0 0\n 0 0 0\n\n 0 0 0\n", None),
        ("\n 24 24 24\n 0.1E+02 0.2E+02 0.3E+02 0.4E+02 0.5E+02\naugmentation occupancies 1 2\n 0.1\n", None),
    ],
)  # fmt: skip
def test_what_stands_behind_the_coordinates_is_no_matter_unless_it_may_be_atoms(behind, message):
    text = TEXT[: TEXT.index("\n\n") + 1]
    if message is None:
        assert_same_arrays(parse("poscar", text + behind), parse("poscar", text))
        return
    with pytest.raises(AtomloomError, match=message):
        parse("poscar", text + behind)


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
