"""CIF: symmetry however it is stated, and the file's own word on what the cell holds."""

from __future__ import annotations

import io
import re
from collections import Counter

import gemmi
import numpy as np
import pytest

from atomloom.errors import AtomloomError
from atomloom.readers import read
from atomloom.readers.formats.cif import split
from atomloom.readers.formats.cif_content import parse_formula
from atomloom.structures.elements import SYMBOLS
from tests.unit.structures.crystals import assert_same_crystal, parse

SITES = "_atom_site_label _atom_site_type_symbol _atom_site_fract_x _atom_site_fract_y _atom_site_fract_z"
NACL = "Na1 Na 0 0 0\nCl1 Cl 0.5 0.5 0.5"


def cif(head: str, sites: str, cell: str = "5.64 5.64 5.64 90 90 90", columns: str = SITES) -> str:
    tags = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"]
    lines = [f"_cell_{tag} {value}" for tag, value in zip(tags, cell.split(), strict=True)]
    return "\n".join(["data_x", head, *lines, "loop_", *columns.split(), sites, ""])


def listed(*operations: str, tag: str = "_space_group_symop_operation_xyz") -> str:
    return "\n".join(["loop_", tag, *(f"'{operation}'" for operation in operations)])


def content(text: str) -> str:
    counts = Counter(SYMBOLS[number] for number in parse("cif", text).numbers)
    return " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))


# --- settings that are named ---

SILICON = "Si1 Si {0} {0} {0}"
SPINEL = "Mg Mg .125 .125 .125\nAl Al .5 .5 .5\nO O .2624 .2624 .2624"


@pytest.mark.parametrize(
    "name",
    ["F d -3 m Z", "F d -3 m :2", "Fd-3mZ", "F d -3 m (origin choice 2)", "F 41/d -3 2/m :2"],
)
def test_the_origin_that_a_name_states_is_used(name):
    head = f"_symmetry_space_group_name_H-M '{name}'\n_symmetry_Int_Tables_number 227"
    assert content(cif(head, SPINEL, "8.09 8.09 8.09 90 90 90")) == "Al16 Mg8 O32"


@pytest.mark.parametrize(
    ("code", "expected"), [("2", "Al16 Mg8 O32"), ("1", "Al8 Mg16 O32"), ("q", None)]
)
def test_the_coordinate_system_that_a_code_states_is_used_or_refused(code, expected):
    head = f"_space_group_name_H-M_alt 'F d -3 m'\n_space_group_IT_coordinate_system_code {code}"
    text = cif(head, SPINEL, "8.09 8.09 8.09 90 90 90")
    if expected is None:
        with pytest.raises(AtomloomError, match=r"unknown space group 'F d -3 m' \(coord.* q\)"):
            parse("cif", text)
    else:
        assert content(text) == expected


def test_an_origin_that_is_left_open_is_decided_by_the_counts_of_the_file_or_refused():
    head = "_space_group_name_H-M_alt 'F d -3 m'"
    cell = "5.43 5.43 5.43 90 90 90"
    for x, z in ((0.125, "1/8"), (0, "0")):
        counted = head + "\n_chemical_formula_sum Si\n_cell_formula_units_Z 8"
        assert content(cif(counted, SILICON.format(x), cell)) == "Si8", z
        with pytest.raises(AtomloomError, match=r"F d -3 m:1 or of F d -3 m:2, and the file does"):
            parse("cif", cif(head, SILICON.format(x), cell))


@pytest.mark.parametrize(
    ("name", "gamma", "beta", "expected"),
    [("P 21/m", 112.5, 90, "K2 O2"), ("P 1 1 21/m", 112.5, 90, "K2 O2"), ("P 21/m", 90, 99, None)],
)
def test_the_unique_axis_is_that_of_the_cell(name, gamma, beta, expected):
    head = f"_symmetry_space_group_name_H-M '{name}'\n_symmetry_Int_Tables_number 11"
    text = cif(head, "K K .21 .33 .25\nO O .62 .71 .25", f"4.2 7.1 5.3 90 {beta} {gamma}")
    assert content(text) == (expected or "K4 O4")


@pytest.mark.parametrize(
    "name", ["P 2(1)/n", "P 2_1/n", "P 2<sub>1</sub>/n", "P21/n", "P 1 21/n 1"]
)
def test_spellings_of_screw_axes_are_one_setting(name):
    head = f"_symmetry_space_group_name_H-M '{name}'\n_symmetry_Int_Tables_number 14"
    found = parse("cif", cif(head, "K K .12 .31 .19", "6 7 8 90 97 90"))
    images = [[0.12, 0.31, 0.19], [0.38, 0.81, 0.31], [0.88, 0.69, 0.81], [0.62, 0.19, 0.69]]
    fractional = found.positions @ np.linalg.inv(found.cell)
    np.testing.assert_allclose(sorted(fractional.tolist()), sorted(images), atol=1e-9)


@pytest.mark.parametrize(
    ("cell", "atoms"), [("4.99 4.99 17 90 90 120", 6), ("6.37 6.37 6.37 46.1 46.1 46.1", 2)]
)
@pytest.mark.parametrize("number", [False, True])
def test_rhombohedral_groups_have_the_axes_of_the_cell(cell, atoms, number):
    head = "_space_group_IT_number 167" if number else "_space_group_name_H-M_alt 'R -3 c'"
    assert len(parse("cif", cif(head, "Ca Ca 0 0 0", cell))) == atoms
    other = "R -3 c :R" if atoms == 6 else "R -3 c :H"
    with pytest.raises(AtomloomError, match="do not preserve the lengths and angles"):
        parse("cif", cif(f"_space_group_name_H-M_alt '{other}'", "Ca Ca 0 0 0", cell))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("_space_group_name_H-M_alt 'P 2(1)/q'\n_space_group_IT_number 14", "unknown space group"),
        ("_space_group_name_H-M_alt 'P 63 9'", "unknown space group"),
        ("_space_group_IT_number 231", "unknown space group"),
        (
            "_space_group_IT_number 14\n_space_group_IT_coordinate_system_code 7",
            "no coordinate system",
        ),
        ("_space_group_name_H-M_alt 'P m m m'\n_space_group_IT_number 123", "file does not decide"),
        ("_space_group_point_group_H-M m-3m", "not understood"),
        ("_symetry_space_group_name_H-M 'F m -3 m'", "not understood"),
        ("_space_group_magn.number_BNS 69.526", "not understood"),
    ],
)
def test_a_group_that_is_not_understood_is_refused(head, reason):
    with pytest.raises(AtomloomError, match=reason):
        parse("cif", cif(head, "Na1 Na .1 .2 .3"))


@pytest.mark.parametrize("number", range(2, 530, 23))
def test_named_settings_give_the_atoms_of_their_operations(number):
    """Settings of the table by name, by Hall symbol and by a list of operations are one crystal."""
    setting = list(gemmi.spacegroup_table())[number]
    operations = [operation.triplet() for operation in setting.operations()]
    rotations = np.array([operation.rot for operation in setting.operations()]) / gemmi.Op.DEN
    metric = np.diag([36.0, 49.0, 81.0]) + np.array([[0, 3, -4], [3, 0, 5], [-4, 5, 0]])
    metric = np.mean([rotation.T @ metric @ rotation for rotation in rotations], axis=0)
    lengths = np.sqrt(np.diag(metric))
    pairs = ((1, 2), (0, 2), (0, 1))
    angles = [np.degrees(np.arccos(metric[i, j] / lengths[i] / lengths[j])) for i, j in pairs]
    cell = " ".join(f"{value:.9f}" for value in (*lengths, *angles))
    sites = "Na Na .1234 .3456 .0612\nCl Cl 0 0 0"
    wanted = parse("cif", cif(listed(*operations), sites, cell))
    name = setting.xhm().replace(":", " :")
    for head in (f"_space_group_name_H-M_alt '{name}'", f'_space_group_name_Hall "{setting.hall}"'):
        if setting.hall.endswith('"'):
            head = head.replace(f'"{setting.hall}"', f"'{setting.hall}'")
        assert_same_crystal(parse("cif", cif(head, sites, cell)), wanted, 1e-6)


# --- symmetry under other tags ---


@pytest.mark.parametrize(
    "head",
    [
        "_space_group.IT_number 225",
        "_space_group.name_H-M_alt 'F m -3 m'",
        "_space_group_name_H-M_full 'F 4/m -3 2/m'",
        "_space_group.reference_setting '225:-F 4 2 3'\n_space_group.transform_Pp_abc a,b,c;0,0,0",
        "_space_group_name_Hall '-F 4 2 3'",
        "_symmetry.Int_Tables_number 225",
    ],
)
def test_symmetry_under_tags_of_other_dictionaries_is_used(head):
    assert content(cif(head, NACL)) == "Cl4 Na4"


def test_sites_and_operations_with_dotted_tags_are_read():
    head = listed("x,y,z", "-x,-y,-z", tag="_space_group_symop.operation_xyz")
    dotted = cif(head, "K K .1 .2 .3").replace("_atom_site_", "_atom_site.")
    assert content(dotted.replace("_cell_", "_cell.")) == "K2"


def test_a_reference_setting_in_another_basis_is_refused():
    head = (
        "_space_group.reference_setting '225:-F 4 2 3'\n_space_group.transform_Pp_abc a-b,b,c;0,0,0"
    )
    with pytest.raises(AtomloomError, match="unknown space group"):
        parse("cif", cif(head, NACL))


def test_magnetic_operations_and_centrings_move_atoms():
    operations = listed("x,y,z,+1", "-x,-y,z,-1", tag="_space_group_symop_magn_operation.xyz")
    centrings = listed("x,y,z,+1", "x+1/2,y,z,-1", tag="_space_group_symop_magn_centering.xyz")
    found = parse("cif", cif(f"{operations}\n{centrings}", "Mn Mn .1 .2 .5\nAu Au 0 0 0"))
    fractional = found.positions[found.numbers == 25] @ np.linalg.inv(found.cell)
    wanted = [[0.1, 0.2, 0.5], [0.4, 0.8, 0.5], [0.6, 0.2, 0.5], [0.9, 0.8, 0.5]]
    np.testing.assert_allclose(sorted(fractional.tolist()), wanted, atol=1e-9)
    assert found.numbers.tolist().count(79) == 2


@pytest.mark.parametrize(
    "head",
    [
        "_cell_modulation_dimension 1",
        "_space_group_ssg_name 'Fm-3m(00g)'",
        listed("x1,x2,x3,x4", tag="_space_group_symop_ssg_operation_algebraic"),
    ],
)
def test_modulated_structures_are_refused(head):
    with pytest.raises(AtomloomError, match="modulated structure"):
        parse("cif", cif(head, NACL))


# --- operations ---


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (["x,y,x"], "`x,y,x` is singular"),
        (["x,y,z", "2x,y,z"], "`2x,y,z` is singular or changes the volume"),
        (["-x,-y,-z"], "without the identity"),
        (["x,y,z", "-x,-y,z", "x,-y,-z"], "not form a group"),
        (["x,y,z", "x,y,z+1/3"], "not form a group"),
        (["x,y,z", "y,x,-z"], "do not preserve the lengths and angles"),
        (["x,y,z", "-x,-y"], "cannot be read"),
        (["x,y,z", "q,y,z"], "cannot be read"),
    ],
)
def test_operations_that_are_no_group_of_the_cell_are_refused(operations, reason):
    with pytest.raises(AtomloomError, match=reason):
        parse("cif", cif(listed(*operations), "Na Na .1 .2 .3", "5 6 7 90 90 90"))


@pytest.mark.parametrize(
    "operations",
    [
        ["x,y,z", "x,y,z+.333", "x,y,z+0.667"],
        ["x,y,z", "x,y,z+0.33", "x,y,z+0.67"],
        ["x,y,z", "x,y,z+1/3", "x,y,z-1/3"],
        ["x, y, z", "x, y, 1/3+z", "x, y, 2/3+z", "x,y,z"],
    ],
)
def test_rounded_and_repeated_operations_are_understood(operations):
    found = parse("cif", cif(listed(*operations), "Na Na .1 .2 .3"))
    z = np.sort(found.positions[:, 2]) / 5.64
    np.testing.assert_allclose(z, np.sort([0.3, 0.3 + 1 / 3, 0.3 + 2 / 3]), atol=1e-12)


def test_fifths_of_a_cell_are_understood():
    operations = ["x,y,z", *(f"x+{n}/5,y,z" for n in range(1, 5))]
    assert content(cif(listed(*operations), "Na Na 0 .2 .3")) == "Na5"


IDENTITY = listed("x,y,z") + "\n_space_group_name_H-M_alt 'F m -3 m'\n"


def test_the_identity_alone_under_a_named_group_is_decided_by_the_file():
    counted = IDENTITY + "_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z {}"
    assert content(cif(counted.format(4), NACL)) == "Cl4 Na4"
    assert content(cif(counted.format(1), NACL, "3.9 3.9 3.9 60 60 60")) == "Cl1 Na1"
    with pytest.raises(AtomloomError, match="P 1 or of F m -3 m, and the file does not decide"):
        parse("cif", cif(IDENTITY, NACL))
    columns = f"{SITES} _atom_site_symmetry_multiplicity"
    multiplied = NACL.replace("0 0 0", "0 0 0 4").replace(".5 0.5 0.5", ".5 0.5 0.5 4")
    assert content(cif(IDENTITY, multiplied, columns=columns)) == "Cl4 Na4"


def test_all_atoms_listed_under_a_named_group_are_all_atoms():
    centrings = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
    sites = [
        f"{symbol} {symbol} {x + shift} {y + shift} {z + shift}"
        for symbol, shift in (("Na", 0), ("Cl", 0.5))
        for x, y, z in centrings
    ]
    assert content(cif(IDENTITY, "\n".join(sites))) == "Cl4 Na4"


def test_listed_images_of_a_site_are_one_atom_if_the_list_or_the_formula_is_whole():
    inversion = listed("x,y,z", "-x,-y,-z")
    pair = "K1 K .1 .2 .3\nK2 K .9 .8 .7"
    assert content(cif(inversion, pair)) == "K2"
    with pytest.raises(AtomloomError, match="images of each other"):
        parse("cif", cif(inversion, pair + "\nO1 O .4 .1 .1"))
    formula = inversion + "\n_chemical_formula_sum 'K O'\n_cell_formula_units_Z 2"
    assert content(cif(formula, pair + "\nO1 O .4 .1 .1")) == "K2 O2"
    with pytest.raises(AtomloomError, match="sites K1 and Na1 are at the same position"):
        parse("cif", cif(inversion, "K1 K .1 .2 .3\nNa1 Na .9 .8 .7"))


# --- the file's own word ---


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("_chemical_formula_sum 'Cl Na'\n_cell_formula_units_Z 4", True),
        ("_chemical_formula_sum 'Na4 Cl4'\n_cell_formula_units_Z 4", True),
        ("_chemical_formula_sum 'Na4 Cl4'", True),
        ("_chemical_formula_sum 'NaCl'", True),
        ("_chemical_formula_sum ?\n_cell_formula_units_Z ?", True),
        ("_chemical_formula_sum 'something else'", True),
        ("_chemical_formula_structural 'Na Cl'\n_cell_formula_units_Z 4", True),
        ("_chemical_formula_sum 'Cl Na'\n_cell_formula_units_Z 8", False),
        ("_chemical_formula_sum 'Cl Na2'", False),
        ("_chemical_formula_sum 'Cl Na O'", False),
        ("_chemical_formula_sum 'Na8 Cl8'", False),
        ("_chemical_formula_sum 'Cl Na0.95'", False),
        ("_chemical_formula_structural 'Na Cl O4'", False),
    ],
)
def test_atoms_that_contradict_the_formula_are_refused(said, right):
    text = cif("_space_group_name_H-M_alt 'F m -3 m'\n" + said, NACL)
    if right:
        assert content(text) == "Cl4 Na4"
    else:
        with pytest.raises(AtomloomError, match=r"Cl4 Na4 read, .*formula"):
            parse("cif", text)


def test_centrings_left_out_of_the_list_are_noticed():
    head = listed("x,y,z", "-x,-y,-z") + "\n_chemical_formula_sum K\n_cell_formula_units_Z 4"
    with pytest.raises(AtomloomError, match=r"K2 read, .*Z = 4"):
        parse("cif", cif(head, "K K .1 .2 .3"))


def test_operations_that_are_not_all_of_the_group_named_are_noticed_without_a_formula():
    """Generators, or a list without the centrings; where the file counts its atoms, the list is right."""
    name = "_symmetry_space_group_name_H-M 'I m m m'\n"
    plain = [f"{x},{y},{z}" for x in ("x", "-x") for y in ("y", "-y") for z in ("z", "-z")]
    cell, site = "3 4 5 90 90 90", "K K 0 0 0"
    for operations in (["x,y,z", "-x,-y,-z"], plain):
        head = name + listed(*operations)
        with pytest.raises(AtomloomError, match="of the file or of I m m m, and the file does not"):
            parse("cif", cif(head, site, cell))
        counted = head + "\n_chemical_formula_sum K\n_cell_formula_units_Z 1"
        assert content(cif(counted, site, cell)) == "K1"
    whole = [*plain, *(re.sub(r"([xyz])", r"\1+1/2", operation) for operation in plain)]
    assert content(cif(name + listed(*whole), site, cell)) == "K2"
    # the operations of a primitive cell are no part of those of the larger one
    assert content(cif(name + listed("x,y,z", "-x,-y,-z"), site, "3 3 3 70 80 100")) == "K1"


@pytest.mark.parametrize(
    "said",
    [
        "_symmetry_cell_setting cubic",
        "_space_group_crystal_system orthorhombic",
        "_parent_space_group.name_H-M_alt 'F m -3 m'",
    ],
)
def test_symmetry_of_which_only_the_kind_or_the_parent_is_said_is_no_p1(said):
    with pytest.raises(AtomloomError, match=r"without a space group|which is not understood"):
        parse("cif", cif(said, NACL))
    whole = "\n_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 1"
    if "parent" not in said:
        assert content(cif(said + whole, NACL)) == "Cl1 Na1"
        assert content(cif("_symmetry_cell_setting triclinic", NACL)) == "Cl1 Na1"


def test_all_atoms_in_p1_may_be_more_units_than_they_were():
    """A supercell that keeps Z, and OQMD's Z, which is atoms over elements."""
    head = "_symmetry_space_group_name_H-M 'P 1'\n" + listed("x,y,z")
    four = "\n".join(f"Ti Ti 0 0 .{n}" for n in (0, 3)) + "\n"
    four += "\n".join(f"O O .5 0 .{n}" for n in (0, 3, 5, 8))
    for z in (1, 3):
        said = f"{head}\n_chemical_formula_sum 'Ti O2'\n_cell_formula_units_Z {z}"
        assert content(cif(said, four)) == "O4 Ti2"
    with pytest.raises(AtomloomError, match=r"O4 Ti2 read, .*Z = 8"):
        parse("cif", cif(said.replace("_Z 3", "_Z 8"), four))


@pytest.mark.parametrize(
    ("first", "second", "right"), [(4, 4, True), (48, 48, True), (8, 4, False)]
)
def test_multiplicities_are_those_of_the_operations_or_orders_of_the_sites(first, second, right):
    columns = f"{SITES} _atom_site_symmetry_multiplicity"
    sites = f"Na1 Na 0 0 0 {first}\nCl1 Cl .5 .5 .5 {second}"
    text = cif("_space_group_name_H-M_alt 'F m -3 m'", sites, columns=columns)
    if right:
        assert content(text) == "Cl4 Na4"
    else:
        with pytest.raises(AtomloomError, match="multiplicity 8 in the file, but gives 4 atoms"):
            parse("cif", text)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("C4 H4 O", {6: 4, 1: 4, 8: 1}),
        ("(Mg0.9 Fe0.1)2 Si O4", {12: 1.8, 26: 0.2, 14: 1, 8: 4}),
        ("Ca5 (P O4)3 (O H)", {20: 5, 15: 3, 8: 13, 1: 1}),
        ("C6 H16 N2 2+, 2(H2 O)", {6: 6, 1: 20, 7: 2, 8: 2}),
        ("D2 O", {1: 2, 8: 1}),
        ("FE2 O3", {26: 2, 8: 3}),
        ("CH4", {6: 1, 1: 4}),
        ("CO", None),
        ("n(C H2)", None),
        ("Wat", None),
        ("", None),
    ],
)
def test_formulas_are_read_for_sure_or_not_at_all(text, counts):
    formula = parse_formula(text)
    assert (formula and formula.counts) == (counts and pytest.approx(counts))


# --- elements ---

P1 = "_symmetry_space_group_name_H-M 'P 1'\n"
LABELS = SITES.replace("_atom_site_type_symbol", "")


@pytest.mark.parametrize(
    ("label", "formula", "element"),
    [
        ("WAT1", "Ca O4 H8", None),
        ("WAT1", None, None),
        ("VAC1", None, None),
        ("Vac", None, None),
        ("OH1", None, None),
        ("Oh1", None, None),
        ("Rh1", None, "Rh"),
        ("Wat1", None, None),
        ("T1", "Al Si O2", None),
        ("T1", None, None),
        ("D1", "Al Si O2", None),
        ("D1", "D", "H"),
        ("D1", None, "H"),
        ("OH1", "O", "O"),
        ("Ow1", "O", "O"),
        ("HO1", "Ho", "Ho"),
        ("HO1", "H", "H"),
        ("HO1", None, None),
        ("Fe3+", None, "Fe"),
        ("Cu1A", None, "Cu"),
        ("Si(1)", None, "Si"),
        ("O1W", None, "O"),
        ("OW", None, "O"),
        ("FeM1", None, "Fe"),
        ("C1'", None, "C"),
        ("O2-", None, "O"),
        ("Nb0.8Zr0.2", None, None),
        ("Fe/Mn1", None, None),
        ("Fe,Mn", None, None),
        ("FeMn1", None, None),
        ("Nb1Zr1", None, None),
        ("Nb0.8", None, None),
        ("H2O1", None, None),
        ("H2O", "H", "H"),
        ("X1", None, None),
        ("M1", None, None),
    ],
)
def test_labels_are_one_element_of_the_formula_or_refused(label, formula, element):
    said = f"_chemical_formula_sum '{formula}'\n" if formula else ""
    text = cif(P1 + said, f'"{label}" .1 .2 .3', columns=LABELS)
    if element is None:
        with pytest.raises(AtomloomError, match=r"site label|mixture"):
            parse("cif", text)
    else:
        assert content(text) == f"{element}1"


@pytest.mark.parametrize(
    ("symbol", "element"),
    [
        ("Fe3+", "Fe"),
        ("O2-", "O"),
        ("Si0+", "Si"),
        ("FE+3", "Fe"),
        ("Fe(III)", "Fe"),
        ("Fe2.5+", "Fe"),
        ("Siva", "Si"),
        ("Li_7", "Li"),
        ("H1A", "H"),
        ("D", "H"),
        ("Nb,Zr", None),
        ("Fe/Mn", None),
        ("Fe+Mn", None),
        ("Nb0.8Zr0.2", None),
        ("0.8Nb + 0.2Zr", None),
        ("Fe3+, Mn2+", None),
        ("FeMn", None),
        ("OH", None),
        ("OH2", None),
        ("H2O", None),
        ("NH4+", None),
        ("NO3-", None),
        ("CN-", None),
        ("CO32-", None),
        ("PO43-", None),
        ("T", None),
        ("M", None),
    ],
)
def test_type_symbols_are_one_element_or_refused(symbol, element):
    text = cif(P1, f"M1 '{symbol}' .1 .2 .3")
    if element is None:
        with pytest.raises(AtomloomError, match=r"unknown element|mixture"):
            parse("cif", text)
    else:
        assert content(text) == f"{element}1"


# --- atoms that are not all there, or not all true ---


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("attached_hydrogens", "0 1", "hydrogens attached to site O1 have no coordinates"),
        ("disorder_group", "1 2", "alternatives of each other"),
        ("disorder_group", ". -1", "alternatives of each other"),
        ("calc_flag", "d dum", "dummy site"),
        ("attached_hydrogens", "0 0", ""),
        ("disorder_group", "1 1", ""),
        ("disorder_group", ". ?", ""),
    ],
)
def test_missing_hydrogens_alternatives_and_dummies_are_refused(column, values, reason):
    first, second = values.split()
    sites = f"Ca1 Ca 0 0 0 {first}\nO1 O .4 .1 .2 {second}"
    text = cif(P1, sites, columns=f"{SITES} _atom_site_{column}")
    if reason:
        with pytest.raises(AtomloomError, match=reason):
            parse("cif", text)
    else:
        assert content(text) == "Ca1 O1"


def test_a_formula_that_agrees_lifts_what_only_looked_incomplete():
    columns = f"{SITES} _atom_site_attached_hydrogens _atom_site_disorder_group"
    sites = "O1 O .4 .1 .2 1 1\nH1 H .5 .1 .2 0 2"
    assert content(cif(P1 + "_chemical_formula_sum 'H O'", sites, columns=columns)) == "H1 O1"
    columns = f"{SITES} _atom_site_calc_flag"
    sites = "O1 O .4 .1 .2 d\nCp1 C . . . dum"
    assert content(cif(P1 + "_chemical_formula_sum O", sites, columns=columns)) == "O1"
    with pytest.raises(AtomloomError, match="no atom sites but dummies"):
        parse("cif", cif(P1, "Cp1 C 0 0 0 dum", columns=columns))


def test_alternatives_of_different_assemblies_are_none_of_each_other():
    columns = f"{SITES} _atom_site_disorder_assembly _atom_site_disorder_group"
    assert content(cif(P1, "Ca Ca 0 0 0 A 1\nO O .4 .1 .2 B 2", columns=columns)) == "Ca1 O1"


# --- blocks and encodings ---


FIELD = "_publ_section_comment\n;\n {}\n;\n"


@pytest.mark.parametrize(
    "text",
    [
        "data_one\n" + FIELD.format("a comment") + "{}" + "data_two\n" + FIELD.format("b") + "{}",
        "data_one\n{}data_two\n{}\n" + FIELD.format("\ndata_three\n_atom_site_fract_x 1\n"),
        "DATA_one\n{}  Data_two\n{}",
        "data_one\n_title 'data_ quoted'\n# data_three\n{}data_two\n{}",
        "data_global\n_x 'y'\ndata_one\n{}data_refln\n_y 1\ndata_two\n{}",
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_block_with_sites_is_a_record(tmp_path, text, line_end):
    body = [cif(P1, f"{s} {s} 0 0 0").removeprefix("data_x\n") for s in ("Na", "K")]
    path = tmp_path / "two.cif"
    path.write_bytes(text.format(*body).replace("\n", line_end).encode())
    assert [structure.numbers.tolist() for structure in read(path)] == [[11], [19]]


def test_a_text_of_several_structures_is_no_single_record():
    two = cif(P1, NACL) + cif(P1, NACL).replace("data_x", "data_y")
    with pytest.raises(AtomloomError, match="several data blocks with atom sites in one record"):
        parse("cif", two)


def test_a_block_quoted_in_a_text_field_is_no_record():
    quoted = FIELD.format("x\n" + cif(P1, "K K 0 0 0"))
    text = cif(P1 + quoted, "Na Na 0 0 0")
    (piece,) = split(io.BytesIO(text.encode()), {})
    assert parse("cif", piece.payload).numbers.tolist() == [11]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_byte_order_mark_and_names_in_latin_are_no_hindrance(tmp_path, encoding):
    path = tmp_path / "x.cif"
    path.write_bytes(cif(P1 + "_author 'Åse'\n_pages 3·8\n", "Na Na 0 0 0").encode(encoding))
    assert [structure.numbers.tolist() for structure in read(path)] == [[11]]
