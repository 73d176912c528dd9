"""CIF: symmetry, special positions, precision, disorder, labels, and files that gemmi gives up on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal
from pymatgen.io.cif import CifParser, CifWriter

from atomloom.errors import AtomloomError
from atomloom.structures import to_structure
from tests.unit.structures.crystals import (
    assert_same_arrays,
    assert_same_crystal,
    parse,
    symmetric_crystals,
)

P1 = """data_test
_cell_length_a 4.0
_cell_length_b 5.0
_cell_length_c 6.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_type_symbol
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
"""


def by_pymatgen(text: str) -> Crystal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CifParser.from_str(text, frac_tolerance=0).parse_structures(primitive=False)[0]


@pytest.mark.parametrize("name", symmetric_crystals())
def test_symmetric_and_p1_cif_give_the_crystal_that_pymatgen_wrote(name):
    crystal = symmetric_crystals()[name]
    plain = parse("cif", str(CifWriter(crystal)))
    symmetric_text = str(CifWriter(crystal, symprec=1e-3))
    symmetric = parse("cif", symmetric_text)
    assert len(plain) == len(symmetric) == len(crystal)
    reference = to_structure(by_pymatgen(str(CifWriter(crystal))))
    np.testing.assert_allclose(plain.cell, reference.cell, atol=1e-12)
    assert_same_crystal(plain, reference, 1e-9)
    assert_same_crystal(plain, to_structure(crystal), 1e-6)
    assert_same_crystal(symmetric, to_structure(by_pymatgen(symmetric_text)), 2e-5)
    assert_same_crystal(symmetric, to_structure(crystal), 2e-5)


@pytest.mark.parametrize("digits", [3, 4, 5])
@pytest.mark.parametrize("name", ["magnesium", "corundum", "quartz", "diamond"])
def test_rounded_special_positions_are_not_doubled(name, digits):
    crystal = symmetric_crystals()[name]
    lines = []
    for line in str(CifWriter(crystal, symprec=1e-3)).splitlines():
        words = line.split()
        if len(words) == 7 and words[2].isdigit():
            words[3:6] = [f"{float(word):.{digits}f}" for word in words[3:6]]
            line = " ".join(words)
        lines.append(line)
    read = parse("cif", "\n".join(lines))
    assert len(read) == len(crystal)
    # the mean over the stabiliser puts atoms on the special position, not merely near it
    if name in ("magnesium", "diamond"):
        assert_same_crystal(read, to_structure(crystal), 1e-6)


def test_symmetry_by_name_alone_is_that_of_the_operations():
    text = str(CifWriter(symmetric_crystals()["rutile"], symprec=1e-3))
    lines = text.splitlines()
    first = lines.index(" _symmetry_equiv_pos_site_id") - 1
    last = next(n for n in range(first + 3, len(lines)) if lines[n] == "loop_")
    named = "\n".join(lines[:first] + lines[last:])
    assert "P4_2/mnm" in named
    assert_same_crystal(parse("cif", named), parse("cif", text), 1e-9)


def test_unknown_space_group_without_operations_is_refused():
    text = P1.format(sites="Cu Cu1 0 0 0 1").replace("'P 1'", "'Q 7 7 7'")
    with pytest.raises(AtomloomError, match="unknown space group 'Q 7 7 7'"):
        parse("cif", text)


def test_every_digit_of_coordinates_and_cell_is_kept():
    x = 0.123456789012345
    text = P1.format(sites=f"Cu Cu1 {x!r} 0 0 1").replace("_a 4.0", "_a 4.000000000123456")
    read = parse("cif", text)
    assert read.cell[0, 0] == 4.000000000123456
    assert read.positions[0, 0] == x * 4.000000000123456


def test_uncertainties_charges_isotopes_and_quotes_are_understood():
    sites = "Fe3+ 'Fe 1' 0.1234(5) 0.5 -0.25 1\nO2- O1 .5 0 0 1.\nD D1 0 0 5.0E-1 ?"
    read = parse("cif", P1.format(sites=sites))
    assert read.numbers.tolist() == [26, 8, 1]
    np.testing.assert_allclose(
        read.positions / [4, 5, 6], [[0.1234, 0.5, -0.25], [0.5, 0, 0], [0, 0, 0.5]]
    )


@pytest.mark.parametrize(
    ("label", "formula", "number"),
    [
        ("Cl1", "", 17),
        ("O2A", "", 8),
        ("CL1", "'C2 Cl4'", None),
        ("CL1", "Cl", 17),
        ("OW", "", 8),
    ],
)
def test_labels_stand_in_for_type_symbols(label, formula, number):
    text = P1.format(sites=f"{label} 0 0 0 1").replace("_atom_site_type_symbol\n", "")
    text = text.replace("loop_", f"_chemical_formula_sum {formula or '?'}\nloop_", 1)
    if number is None:
        with pytest.raises(AtomloomError, match="may be C or Cl"):
            parse("cif", text)
    else:
        assert parse("cif", text).numbers.tolist() == [number]


def test_disorder_is_refused_unless_it_is_to_be_ordered():
    crystal = Crystal.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.3), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    text = str(CifWriter(crystal))
    with pytest.raises(AtomloomError, match=r"disordered site .*occupancy 0.5.*order: true"):
        parse("cif", text)
    ordered = parse("cif", text, order=True)
    assert sorted(ordered.numbers.tolist()) == [11] * 2 + [17] * 4 + [19] * 2


def test_what_is_ordered_already_is_read_alike_with_and_without_the_option():
    rutile = str(CifWriter(symmetric_crystals()["rutile"], symprec=1e-3))
    assert parse("cif", rutile, order=True).hash == parse("cif", rutile).hash
    wrong = rutile.replace("Ti  Ti0", "O  Ti0")
    assert wrong != rutile
    with pytest.raises(AtomloomError, match="the formula is"):
        parse("cif", wrong, order=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'K2 Na2 Cl4'", "'K2 Na2 Cl4 H8'", "but the formula is K2 Na2 Cl4 H8.*: no H among the sites"),
        ("'K2 Na2 Cl4'", "'K4 Na4 Cl8'", "read, but the formula is K4 Na4 Cl8 with Z = 2"),
        ("'K2 Na2 Cl4'", "'K3 Na1 Cl4'", "read, but the formula is K3 Na1 Cl4"),
    ],
)  # fmt: skip
def test_partially_occupied_sites_that_contradict_the_formula_are_not_ordered(old, new, message):
    crystal = Crystal.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.3), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    text = str(CifWriter(crystal))
    assert old in text, text
    with pytest.raises(AtomloomError, match=message):
        parse("cif", text.replace(old, new), order=True)


def test_no_formula_in_a_file_is_evaluated():
    """pymatgen computes what stands in this tag: these powers of nine would keep it for ever."""
    text = str(CifWriter(Crystal(Lattice.cubic(4), [{"Fe": 0.5}], [[0, 0, 0]]))).replace(
        "_cell_length_a",
        "_space_group_magn.number_BNS 1.1\n"
        "_space_group_magn.transform_BNS_Pp_abc '9**9**9**9*a,b,c;0,0,0'\n_cell_length_a",
        1,
    )
    with pytest.raises(AtomloomError, match="is not read by pymatgen"):
        parse("cif", text, order=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("_cell_length_a 4.0\n", ""), "_cell_length_a is missing"),
        (("_cell_length_a 4.0", "_cell_length_a nan"), "impossible cell"),
        (("_cell_angle_alpha 90", "_cell_angle_alpha 200"), "impossible cell"),
        (
            ("alpha 90\n_cell_angle_beta 90", "alpha 30\n_cell_angle_beta 30"),
            "impossible cell angles",
        ),
        (("Cu Cu1", "Xx Xx1"), "unknown element `Xx`"),
        (("0.25 0.5", "nan 0.5"), "not a finite number"),
        (("0.25 0.5", "? 0.5"), "_atom_site_fract_x of site 0 is missing"),
        (("0.25 0.5", "abc 0.5"), "_atom_site_fract_x of site 0 is abc"),
        (("0.75 1\n", "0.75\n"), "Wrong number of values"),
        (("loop_\n", ""), "not valid CIF: line"),
        (("_atom_site_fract_x", "_atom_site_Cartn_x"), "only Cartesian sites"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    text = P1.format(sites="Cu Cu1 0.25 0.5 0.75 1")
    assert change[0] in text
    with pytest.raises(AtomloomError, match=message):
        parse("cif", text.replace(*change))


def test_a_cif_of_pymatgen_cut_short_between_atoms_is_noticed():
    text = str(CifWriter(symmetric_crystals()["perovskite"]))
    lines = text.rstrip().splitlines()
    with pytest.raises(AtomloomError, match="O2 Sr1 Ti1 read, but the formula"):
        parse("cif", "\n".join(lines[:-1]) + "\n")


def test_duplicate_tags_are_left_to_pymatgen_if_the_formula_agrees():
    text = str(CifWriter(symmetric_crystals()["rutile"]))
    doubled = text.replace("_cell_length_a", "_cell_volume 1.0\n_cell_length_a", 1)
    assert_same_arrays(parse("cif", doubled), by_pymatgen(text), 1e-10)
    with pytest.raises(AtomloomError, match="duplicate tag"):
        parse("cif", doubled.replace("'Ti2 O4'", "'Ti2 O5'"))


def test_several_blocks_are_several_records(tmp_path):
    from atomloom.readers import read

    crystals = symmetric_crystals()
    texts = [str(CifWriter(crystals[name])) for name in ("rutile", "rock salt")]
    (tmp_path / "two.cif").write_text("data_global\n_journal_name 'x'\n" + "\n".join(texts))
    found = read(tmp_path / "two.cif")
    assert [len(s) for s in found] == [6, 8]
    assert [s.id for s in found] == ["two-000000", "two-000001"]


@settings(max_examples=30)
@given(st.floats(-0.7, 0.7), st.floats(50, 130), st.floats(60, 120), st.integers(0, 1000))
def test_cells_have_the_lengths_and_angles_of_the_file(shift, alpha, beta, seed):
    gamma = 95.0
    lattice = None
    try:
        lattice = Lattice.from_parameters(4.0, 5.0, 6.0, alpha, beta, gamma)
    except ValueError:
        return
    if not np.isfinite(lattice.matrix).all() or lattice.volume < 1:
        return
    text = P1.format(sites=f"Cu Cu1 {shift} 0.5 0.25 1")
    for name, angle in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        text = text.replace(f"_cell_angle_{name} 90", f"_cell_angle_{name} {angle!r}")
    read = parse("cif", text)
    np.testing.assert_allclose(read.cell, lattice.matrix, atol=1e-9)
    np.testing.assert_allclose(read.positions, [[shift, 0.5, 0.25]] @ lattice.matrix, atol=1e-9)
