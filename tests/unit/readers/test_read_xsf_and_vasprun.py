"""XSF and vasprun.xml, compared with ASE and pymatgen on the same files."""

from __future__ import annotations

import gzip
import io
import re
import warnings

import ase.io
import numpy as np
import pytest

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, list_files, parse_record, read
from atomloom.readers.registry import check_options
from atomloom.structures.units import HARTREE
from tests.unit.structures.crystals import assert_same_arrays, atoms_with_results, parse

XSF = """# total energy = -123.5 eV

CRYSTAL
PRIMVEC
 4.0 0.0 0.0
 0.0 5.0 0.0
 0.5 0.0 6.0
PRIMCOORD
2 1
Ti  0.0 0.0 0.0  0.1 0.2 0.3
8   1.0 2.0 3.0 -0.1 -0.2 -0.3
"""


def test_aenet_s_energy_and_forces_are_read():
    structure = parse("xsf", XSF)
    assert structure.numbers.tolist() == [22, 8]
    assert structure.properties["energy"] == -123.5
    np.testing.assert_array_equal(structure.properties["forces"][1], [-0.1, -0.2, -0.3])
    assert structure.pbc.all()
    in_hartree = parse("xsf", XSF, xsf_forces="hartree").properties["forces"]
    np.testing.assert_allclose(in_hartree[0], np.array([0.1, 0.2, 0.3]) * HARTREE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("total energy = -10.5", -10.5),
        ("total energy = -10.5 eV", -10.5),
        ("Total Energy = -10.5 Ry", -10.5 * HARTREE / 2),
        ("total energy = -10.5 Rydberg  (converged)", -10.5 * HARTREE / 2),
        ("total energy = -10.5 Hartree", -10.5 * HARTREE),
        ("total energy = -10.5 Ha", -10.5 * HARTREE),
        ("total energy = -10.5 a.u.", -10.5 * HARTREE),
        ("total energy (Ry) = -10.5", -10.5 * HARTREE / 2),
        ("total energy [eV]: -10.5", -10.5),
        ("total energy = -10.5 (Ry)", -10.5 * HARTREE / 2),
        ("total energy = -10.5 [Ha]", -10.5 * HARTREE),
        ("total energy = -10.5 Ry.", -10.5 * HARTREE / 2),
        ("total energy = -10.5 eV (per cell)", -10.5),
        ("total energy = -10.5 furlong", "line 1: `furlong` is not a known unit of energy"),
        ("total energy = -10.5 eV/atom", "line 1: `eV/atom` is not a known unit of energy"),
        ("total energy = -10.5 eV per atom", "line 1: `eV per atom` is not a known unit of energy"),
        (
            "total energy = -10.5 eV\n# total energy = -11 eV",
            "line 2: another total energy than before",
        ),
    ],
)
def test_an_energy_is_converted_from_the_unit_it_names(text, expected):
    bare = re.sub(r"  0\.1 0\.2 0\.3| -0\.1 -0\.2 -0\.3", "", XSF)
    changed = bare.replace("total energy = -123.5 eV", text)
    if isinstance(expected, float):
        assert parse("xsf", changed).properties["energy"] == pytest.approx(expected, rel=1e-12)
        return
    with pytest.raises(AtomloomError, match=expected):
        parse("xsf", changed)


def test_forces_beside_an_energy_in_another_unit_need_one_themselves():
    text = XSF.replace("-123.5 eV", "-123.5 Ry")
    with pytest.raises(
        AtomloomError, match="nothing says what the forces are in; set the option xsf_forces"
    ):
        parse("xsf", text)
    for unit, factor in (("ev", 1.0), ("rydberg", HARTREE / 2), ("hartree", HARTREE)):
        properties = parse("xsf", text, xsf_forces=unit).properties
        assert properties["energy"] == pytest.approx(-123.5 * HARTREE / 2)
        np.testing.assert_allclose(properties["forces"][0], np.array([0.1, 0.2, 0.3]) * factor)
    without = parse("xsf", XSF.split("\n", 1)[1]).properties["forces"]
    np.testing.assert_allclose(without[0], np.array([0.1, 0.2, 0.3]) * HARTREE)
    with pytest.raises(AtomloomError, match="xsf_forces should be `ev`, `rydberg` or `hartree`"):
        check_options({"xsf_forces": "Ha"})
    with pytest.raises(AtomloomError, match="runner_units should be `bohr` or `metal`"):
        check_options({"runner_units": "real"})


@pytest.mark.parametrize(
    ("text", "pbc"),
    [
        ("3 1", [1, 1, 1]),
        ("2 1", [1, 1, 0]),
        ("1", [1, 0, 0]),
        ("0 1", [0, 0, 0]),
        ("4 1", None),
        ("", None),
    ],
)
def test_dim_group_says_in_how_many_directions_it_is_periodic(text, pbc):
    changed = XSF.replace("CRYSTAL\n", f"DIM-GROUP\n {text}\n")
    if pbc is not None:
        assert parse("xsf", changed).pbc.tolist() == [bool(x) for x in pbc]
        both = {3: "CRYSTAL", 2: "SLAB", 1: "POLYMER", 0: "MOLECULE"}[sum(pbc)]
        assert len(parse("xsf", XSF.replace("CRYSTAL\n", f"{both}\nDIM-GROUP\n {text}\n"))) == 2
        other = "SLAB" if both == "CRYSTAL" else "CRYSTAL"
        with pytest.raises(AtomloomError, match="before"):
            parse("xsf", XSF.replace("CRYSTAL\n", f"{other}\nDIM-GROUP\n {text}\n"))
        return
    with pytest.raises(AtomloomError, match="is not a number of directions"):
        parse("xsf", changed)


def test_notes_of_xcrysden_are_passed_over():
    assert len(parse("xsf", "INFO\nmade by hand\nEND_INFO\n" + XSF)) == 2


ANIMATION = """ANIMSTEPS 2
CRYSTAL
PRIMVEC
 4 0 0
 0 5 0
 0 0 6
# total energy = -1 eV
PRIMCOORD 1
1 1
H 0 0 0 0 0 1
# total energy = -2 eV
PRIMCOORD 2
1 1
H 0 0 1 0 0 2
"""


def test_energies_of_an_animation_go_with_their_steps(tmp_path):
    path = tmp_path / "a.axsf"
    path.write_text(ANIMATION)
    assert [s.properties["energy"] for s in read(path)] == [-1, -2]
    assert [s.properties["forces"][0, 2] for s in read(path)] == [1, 2]
    moving = ANIMATION.replace("PRIMVEC\n", "PRIMVEC 1\n").replace(
        "# total energy = -2 eV", "PRIMVEC 2\n 4 0 0\n 0 5 0\n 0 0 7\n# total energy = -2 eV"
    )
    path.write_text(moving)
    assert [(s.cell[2, 2], s.properties["energy"]) for s in read(path)] == [(6, -1), (7, -2)]
    path.write_text("# total energy = -3 eV\n" + ANIMATION)
    with pytest.raises(AtomloomError, match="one total energy for 2 steps"):
        read(path)
    path.write_text(ANIMATION.replace("ANIMSTEPS 2", "ANIMSTEPS 3"))
    with pytest.raises(AtomloomError, match="ANIMSTEPS 3, but 2 steps"):
        read(path)


def test_what_ase_writes_is_read_as_ase_reads_it():
    atoms = atoms_with_results(5)
    stream = io.StringIO()
    ase.io.write(stream, atoms, format="xsf")
    reference = ase.io.read(io.StringIO(stream.getvalue()), format="xsf")
    ours = parse("xsf", stream.getvalue())
    assert_same_arrays(ours, reference, 1e-12)
    np.testing.assert_allclose(ours.properties["forces"], reference.get_forces(), rtol=1e-6)


@pytest.mark.parametrize(
    ("word", "pbc"), [("SLAB", [1, 1, 0]), ("POLYMER", [1, 0, 0]), ("MOLECULE", [0, 0, 0])]
)
def test_periodicity_is_that_of_the_keyword(word, pbc):
    assert parse("xsf", XSF.replace("CRYSTAL", word)).pbc.tolist() == [bool(x) for x in pbc]


def test_atoms_alone_are_a_molecule():
    structure = parse("xsf", "ATOMS\n O 0 0 0\n H 0 0 1\n H 0 1 0\n")
    assert structure.numbers.tolist() == [8, 1, 1]
    assert not structure.pbc.any()


def test_grids_behind_the_structure_are_no_matter():
    assert len(parse("xsf", XSF + "BEGIN_BLOCK_DATAGRID_3D\n 1 2 3\nEND_BLOCK\n")) == 2


@pytest.mark.parametrize("moving_cell", [True, False])
def test_every_step_of_an_animation_is_a_record(tmp_path, moving_cell):
    frames = []
    for seed in range(3):
        atoms = atoms_with_results(1)
        atoms.calc = None
        atoms.positions += np.random.default_rng(seed).normal(0, 0.1, atoms.positions.shape)
        if moving_cell:
            atoms.set_cell(atoms.cell * (1 + 0.01 * seed))
        frames.append(atoms)
    path = tmp_path / "movie.xsf"
    ase.io.write(path, frames, format="xsf")
    assert "ANIMSTEPS" in path.read_text()
    ours = read(path)
    assert [s.id for s in ours] == ["movie-000000", "movie-000001", "movie-000002"]
    for structure, atoms in zip(ours, ase.io.read(path, ":"), strict=True):
        assert_same_arrays(structure, atoms, 1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2 1\n", "3 1\n", "2 of 3 atoms"),
        ("2 1\n", "x 1\n", "line 9: number of atoms is not a count"),
        (" 4.0 0.0 0.0\n", " 4.0 0.0\n", "PRIMVEC is not followed by three vectors"),
        (" 4.0 0.0 0.0\n", " 4.0 0.0 a\n", "lines 5 to 7: not a number: `a`"),
        ("1.0 2.0 3.0", "1.0 nan 3.0", "coordinate of atom 1"),
        ("1.0 2.0 3.0 -0.1 -0.2 -0.3", "1.0 2.0 3.0", "forces of some atoms only"),
        ("8   1.0 2.0 3.0 -0.1 -0.2 -0.3", "8 1.0 2.0", "line 11: not an element and three"),
        ("Ti ", "Xx ", "unknown element `Xx`"),
        ("PRIMCOORD", "PRIMCOORDS", "none of XSF's keywords"),
        ("= -123.5", "= abc", "not a number: `abc`"),
        (XSF, "CRYSTAL\n", "neither PRIMCOORD nor ATOMS"),
        (XSF, "", "empty file"),
    ],
)
def test_what_is_wrong_with_an_xsf_is_said(old, new, message):
    assert old in XSF
    with pytest.raises(AtomloomError, match=message):
        parse("xsf", XSF.replace(old, new))


def vasprun_text() -> str:
    """A vasprun.xml as VASP writes one, cut down to what readers of structures look at."""
    steps = []
    for step in range(3):
        rng = np.random.default_rng(step)
        cell = np.array([[4.0, 0, 0], [0.3, 5.0, 0], [0, 0.2, 6.0]]) * (1 + 0.01 * step)
        stress = rng.normal(0, 100, (3, 3))
        stress = stress + stress.T
        zero, free, entropy = -10.5 - step, -10.6 - step, -10.4 - step

        def rows(array):
            return "".join("<v> " + " ".join(f"{x:.8f}" for x in row) + " </v>" for row in array)

        def energies(shift, free=free, entropy=entropy, zero=zero):
            return (
                f'<energy><i name="e_fr_energy"> {free + shift:.8f} </i>'
                f'<i name="e_wo_entrp"> {entropy + shift:.8f} </i>'
                f'<i name="e_0_energy"> {zero + shift:.8f} </i></energy>'
            )

        volume = np.linalg.det(cell)
        steps.append(
            "<calculation>"
            + "<scstep>" + energies(1.0) + "</scstep><scstep>" + energies(0.0) + "</scstep>"
            + '<structure><crystal><varray name="basis">' + rows(cell) + "</varray>"
            + f'<i name="volume"> {volume:.8f} </i><varray name="rec_basis">'
            + rows(np.linalg.inv(cell).T) + '</varray></crystal><varray name="positions">'
            + rows(rng.random((3, 3))) + "</varray></structure>"
            + '<varray name="forces">' + rows(rng.normal(size=(3, 3))) + "</varray>"
            + '<varray name="stress">' + rows(stress) + "</varray>"
            + energies(-0.25)  # van der Waals terms, in the ionic step alone
            + "</calculation>"
        )  # fmt: skip
    first = (
        steps[0][steps[0].index("<structure>") : steps[0].index("</structure>")] + "</structure>"
    )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n'
        '<generator><i name="program" type="string">vasp </i>'
        '<i name="version" type="string">6.3.0 </i></generator><incar></incar>'
        '<kpoints><generation param="Gamma"><v type="int" name="divisions">1 1 1</v></generation>'
        '<varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray>'
        '</kpoints><parameters><i type="int" name="NELM"> 60 </i></parameters>'
        "<atominfo><atoms> 3 </atoms><types> 2 </types>"
        '<array name="atoms"><dimension dim="1">ion</dimension><field type="string">element</field>'
        '<field type="int">atomtype</field><set><rc><c>Ti</c><c> 1</c></rc><rc><c>O </c><c> 2</c></rc>'
        "<rc><c>O </c><c> 2</c></rc></set></array>"
        '<array name="atomtypes"><dimension dim="1">type</dimension><field type="int">atomspertype'
        '</field><field type="string">element</field><field>mass</field><field>valence</field>'
        '<field type="string">pseudopotential</field><set><rc><c> 1</c><c>Ti</c><c>47</c><c>4</c>'
        "<c> PAW_PBE Ti 08Apr2002 </c></rc><rc><c> 2</c><c>O </c><c>16</c><c>6</c>"
        "<c> PAW_PBE O 08Apr2002 </c></rc></set></array></atominfo>"
        + first.replace("<structure>", '<structure name="initialpos">', 1)
        + "\n".join(steps)
        + first.replace("<structure>", '<structure name="finalpos">', 1)
        + "\n</modeling>\n"
    )


def test_every_ionic_step_is_read_as_by_ase(tmp_path):
    path = tmp_path / "relax" / "vasprun.xml"
    path.parent.mkdir()
    path.write_text(vasprun_text())
    ours = read(path)
    references = ase.io.read(path, ":", format="vasp-xml")
    assert [s.id for s in ours] == [f"relax-{step:06d}" for step in range(3)]
    assert len(references) == 3
    for structure, atoms in zip(ours, references, strict=True):
        assert_same_arrays(structure, atoms, 1e-10)
        assert structure.properties["energy"] == pytest.approx(
            atoms.get_potential_energy(), abs=1e-9
        )
        assert structure.properties["free_energy"] == pytest.approx(
            atoms.get_potential_energy(force_consistent=True), abs=1e-9
        )
        np.testing.assert_allclose(structure.properties["forces"], atoms.get_forces(), atol=1e-12)
        # kB with VASP's sign and order of components, against ASE's reading of the same file
        np.testing.assert_allclose(
            structure.properties["stress"], atoms.get_stress(voigt=False), atol=1e-9
        )


def test_every_ionic_step_is_read_as_by_pymatgen(tmp_path):
    from pymatgen.io.vasp import Vasprun

    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun_text())
    ours = read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Vasprun(path, parse_dos=False, parse_eigen=False, parse_potcar_file=False)
    for structure, step in zip(ours, run.ionic_steps, strict=True):
        assert_same_arrays(structure, step["structure"], 1e-10)
        np.testing.assert_allclose(structure.properties["forces"], step["forces"])
        np.testing.assert_allclose(
            structure.properties["stress"],
            -0.1 * np.array(step["stress"]) / 160.21766208,
            rtol=1e-6,
        )


def test_a_killed_job_s_steps_are_refused_beside_good_files_or_taken_by_option(tmp_path):
    text = vasprun_text()
    for name, content in (("good", text), ("killed", text[: text.rindex("<calculation>") + 300])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vasprun.xml").write_text(content)
    reasons = {}
    for record in enumerate_records(list_files(tmp_path)):
        reasons[record.id] = "" if record.format == "vasprun" else record.payload.decode()
    assert [name for name, reason in reasons.items() if not reason] == [
        f"good-00000{n}" for n in range(3)
    ]
    assert list(reasons)[3:] == ["killed-000000", "killed-000001"]
    assert "breaks off after 2 complete ionic steps: not valid XML" in reasons["killed-000001"]
    assert "set the option `truncated: true`" in reasons["killed-000001"]
    assert len(read(tmp_path, truncated=True)) == 5
    (tmp_path / "killed" / "vasprun.xml").write_text(text[:200])
    for options in ({}, {"truncated": True}):
        with pytest.raises(AtomloomError, match="killed: not valid XML"):
            read(tmp_path, **options)


def test_a_vasprun_cut_short_inside_a_packed_file_stops_nothing(tmp_path):
    (tmp_path / "vasprun.xml.gz").write_bytes(gzip.compress(vasprun_text().encode())[:-300])
    (record,) = enumerate_records([tmp_path / "vasprun.xml.gz"])
    with pytest.raises(AtomloomError, match="damaged"):
        parse_record(record.format, record.payload)


NELM = '<i type="int" name="NELM"> 60 </i>'
SHORT = NELM.replace("60", "2")  # as many as there are


@pytest.mark.parametrize(
    ("old", "new", "converged"),
    [
        (NELM, NELM.replace("60", "3"), True),
        (NELM, SHORT, False),
        (NELM, f'<separator name="electronic"><separator name="electronic convergence">{SHORT}</separator></separator>', False),
        (NELM, f'{NELM}<separator name="response functions">{SHORT}</separator>', True),
        (NELM, "", True),
        ("<incar></incar>", f"<incar>{SHORT}</incar>", True),  # <parameters> is what VASP made of it
        (NELM, NELM.replace("60", "1") + '<i type="string" name="ALGO"> Exact </i>', True),
        (NELM, NELM.replace("60", "1"), False),
    ],
)  # fmt: skip
def test_a_step_whose_electronic_loop_took_all_steps_is_refused_or_taken_by_option(
    tmp_path, old, new, converged
):
    path = tmp_path / "vasprun.xml"
    text = vasprun_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    assert len(read(path, unconverged=True)) == 3
    if converged:
        assert len(read(path)) == 3
    else:
        with pytest.raises(AtomloomError, match=r"did not converge: it took all NELM = [12] steps; set the option `unconverged: true`"):  # fmt: skip
            read(path)


@pytest.mark.parametrize("pressure", [0.0, 250.0, -12.5])
def test_the_work_of_an_external_pressure_is_no_part_of_the_energy(tmp_path, pressure):
    path = tmp_path / "vasprun.xml"
    text = vasprun_text().replace(NELM, f'{NELM}<i name="PSTRESS"> {pressure:.8f} </i>')
    path.write_text(text)
    references = ase.io.read(path, ":", format="vasp-xml")
    for structure, atoms in zip(reversed(read(path)), reversed(references), strict=True):
        assert structure.properties["energy"] == pytest.approx(atoms.get_potential_energy())
        assert structure.properties["free_energy"] == pytest.approx(
            atoms.get_potential_energy(force_consistent=True)
        )
    path.write_text(vasprun_text())
    without = read(path)[0].properties["free_energy"]
    assert (structure.properties["free_energy"] == without) == (pressure == 0)


@pytest.mark.parametrize("setting", ['"LEPSILON"> T', '"LCALCEPS"> T', '"IBRION"> 8'])
@pytest.mark.parametrize(("loop", "converged"), [(2, True), (3, False)])
def test_steps_of_the_linear_response_are_none_of_the_electronic_loop(
    tmp_path, loop, converged, setting
):
    short = '<energy><i name="e_fr_energy">-1</i><i name="e_wo_entrp">-1</i><i name="e_0_energy">-1</i></energy>'
    full = short.replace("<energy>", '<energy><i name="alphaZ">1</i>')
    steps = [full, *[short] * (loop - 2), full, short, short]
    text = vasprun_text().replace(NELM, f"{NELM.replace('60', '3')}<i name={setting} </i>")
    ours = "".join(f"<scstep>{step}</scstep>" for step in steps)
    text = re.sub("<scstep>.*?</scstep>(?=<structure>)", ours, text)
    assert text.count("<scstep>") == 3 * len(steps)
    (tmp_path / "vasprun.xml").write_text(text)
    if converged:
        assert len(read(tmp_path / "vasprun.xml")) == 3
    else:
        with pytest.raises(AtomloomError, match="did not converge"):
            read(tmp_path / "vasprun.xml")


@pytest.mark.parametrize(
    ("cut", "potential", "number"),
    [("X ", "PAW_PBE Xe 07Sep2000", 54), ("r ", "PAW_PBE Zr_sv 04Jan2005", 40), ("X ", "", 54), ("r ", "?", 40)],
)  # fmt: skip
def test_a_symbol_that_vasp_cuts_short_is_that_of_the_pseudopotential(
    tmp_path, cut, potential, number
):
    text = vasprun_text().replace("PAW_PBE Ti 08Apr2002", potential).replace("<c>Ti</c><c> 1</c>", f"<c>{cut}</c><c> 1</c>")  # fmt: skip
    (tmp_path / "vasprun.xml").write_text(text)
    assert read(tmp_path / "vasprun.xml")[0].numbers.tolist() == [number, 8, 8]
    (tmp_path / "vasprun.xml").write_text(text.replace(f"<c>{cut}</c>", "<c>Q </c>"))
    with pytest.raises(AtomloomError, match="unknown element `Q`"):
        read(tmp_path / "vasprun.xml")


def test_a_byte_order_mark_before_the_xml_is_no_matter(tmp_path):
    (tmp_path / "vasprun.xml").write_bytes(b"\xef\xbb\xbf" + vasprun_text().encode())
    assert len(read(tmp_path / "vasprun.xml")) == 3


def test_stars_for_forces_and_missing_parts_are_said(tmp_path):
    path = tmp_path / "vasprun.xml"
    text = vasprun_text()
    path.write_text(re.sub(r'(<varray name="forces"><v> )\S+', r"\1****", text, count=1))
    with pytest.raises(AtomloomError, match=r"forces: not a number: `\*\*\*\*"):
        read(path)
    path.write_text("<modeling></modeling>")
    with pytest.raises(AtomloomError, match="no ionic step"):
        read(path)
