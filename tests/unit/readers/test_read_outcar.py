"""OUTCAR of VASP, compared with ASE on the same text."""

from __future__ import annotations

import warnings

import ase.io
import numpy as np
import pytest

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, list_files, parse_record, read

HEAD = """ vasp.6.3.0 20Jan22 (build Apr 09 2022 18:33:31) complex

 INCAR:
 POTCAR:    PAW_PBE Ti_sv 26Sep2005
 POTCAR:    PAW_PBE O 08Apr2002
 POTCAR:    PAW_PBE Ti_sv 26Sep2005
   VRHFIN =Ti: 3p6 3d3 4s1
   TITEL  = PAW_PBE Ti_sv 26Sep2005
 POTCAR:    PAW_PBE O 08Apr2002
   VRHFIN =O: s2p4
   TITEL  = PAW_PBE O 08Apr2002
 direct lattice vectors                 reciprocal lattice vectors
     9.000000000  0.000000000  0.000000000     0.100000000  0.000000000  0.000000000
     0.000000000  9.000000000  0.000000000     0.000000000  0.100000000  0.000000000
     0.000000000  0.000000000  9.000000000     0.000000000  0.000000000  0.100000000
   ions per type =               1   2
   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps
   EDIFF  = 0.1E-05   stopping-criterion for ELM
   IALGO  =     38    algorithm
"""
TAIL = """
 General timing and accounting informations for this job:
 ========================================================
                   Total CPU time used (sec):       65.430
"""
REACHED = " aborting loop because EDIFF is reached "


def ionic_step(step: int, verdict: str = REACHED, loops: int = 2) -> str:
    """The lines of an ionic step as VASP writes them."""
    rng = np.random.default_rng(step)
    cell = np.array([[4.0, 0, 0], [-0.3, -15.0, 0], [0, 0.2, 6.0]]) * (1 + 0.01 * step)
    inverse = np.linalg.inv(cell).T
    stress = rng.normal(0, 100, 6)
    free, zero = -10.6 - step, -10.5 - step

    def row(numbers, width=16, digits=8):
        return "".join(f"{x:{width}.{digits}f}" for x in numbers)

    electronic = "".join(
        f"{'-' * 39} Iteration {step + 1:6d}({loop + 1:4d})  {'-' * 39}\n"
        f"  free energy    TOTEN  =       {free + 1:.8f} eV\n\n"
        f"  energy without entropy =      {free + 1:.8f}  energy(sigma->0) =      {zero + 1:.8f}\n"
        for loop in range(loops)
    )
    lattice = "".join(
        f" {row(a, 13, 9)} {row(b, 13, 9)}\n" for a, b in zip(cell, inverse, strict=True)
    )
    atoms = "".join(
        f" {row(place, 13, 5)}    {row(force, 14, 6)}\n"
        for place, force in zip(rng.random((3, 3)) @ cell, rng.normal(size=(3, 3)), strict=True)
    )
    return (
        electronic
        + (f"------------------------{verdict}----------------------------------------\n" if verdict else "")
        + "  FORCE on cell =-STRESS in cart. coord.  units (eV):\n"
        + f"  in kB  {row(stress, 12, 5)}\n  external pressure =       55.42 kB  Pullay stress =        0.00 kB\n"
        + " VOLUME and BASIS-vectors are now :\n"
        + "      direct lattice vectors                 reciprocal lattice vectors\n" + lattice
        + " POSITION                                       TOTAL-FORCE (eV/Angst)\n"
        + f" {'-' * 83}\n" + atoms + f" {'-' * 83}\n    total drift:   0.0 0.0 0.0\n\n"
        + "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ------\n"
        + f"  free  energy   TOTEN  =       {free:.8f} eV\n\n"
        + f"  energy  without entropy=      {free - 1:.8f}  energy(sigma->0) =      {zero:.8f}\n\n"
    )  # fmt: skip


def outcar(*steps: str, head: str = HEAD, tail: str = TAIL) -> str:
    return head + "".join(steps or map(ionic_step, range(3))) + tail


def outcomes(path, **options):
    """Of each record: "", or why it cannot be read."""
    found = []
    for record in enumerate_records(list_files(path), options=options):
        try:
            parse_record(record.format, record.payload, "", options)
            found.append("")
        except AtomloomError as error:
            found.append(str(error))
    return found


def test_every_ionic_step_is_read_as_by_ase(tmp_path):
    path = tmp_path / "relax" / "OUTCAR"
    path.parent.mkdir()
    path.write_text(outcar())
    ours = read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        references = ase.io.read(path, ":", format="vasp-out")
    assert [s.id for s in ours] == [f"relax-{step:06d}" for step in range(3)]
    assert len(references) == 3
    for structure, atoms in zip(ours, references, strict=True):
        assert structure.numbers.tolist() == [22, 8, 8]
        assert structure.pbc.all()
        np.testing.assert_array_equal(structure.cell, atoms.cell.array)
        np.testing.assert_array_equal(structure.positions, atoms.positions)
        np.testing.assert_array_equal(structure.properties["forces"], atoms.get_forces())
        np.testing.assert_allclose(
            structure.properties["stress"], atoms.get_stress(voigt=False), atol=1e-9
        )
        assert structure.properties["energy"] == atoms.get_potential_energy()
        free = atoms.get_potential_energy(force_consistent=True)
        assert structure.properties["free_energy"] == free != structure.properties["energy"]


@pytest.mark.parametrize("name", ["OUTCAR", "OUTCAR.relax1", "x.OUTCAR", "calc.txt", "calc.out"])
def test_an_outcar_is_known_by_its_name_or_its_first_line(tmp_path, name):
    text = outcar() if name.startswith("calc") else outcar().partition("\n")[2]
    (tmp_path / name).write_text(text)
    assert len(read(tmp_path)) == 3


@pytest.mark.parametrize("ending", ["", ".relax1.gz"])
def test_the_steps_of_a_run_are_read_once_where_its_vasprun_xml_is_there_too(tmp_path, ending):
    (tmp_path / f"OUTCAR{ending}").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "OUTCAR").touch()
    (tmp_path / f"vasprun.xml{ending}").touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)]
    assert names == ["other/OUTCAR", f"vasprun.xml{ending}"]
    assert len(list_files(tmp_path, format="outcar")) == 2
    assert len(list_files(tmp_path, pattern="OUTCAR*")) == 2


@pytest.mark.parametrize(
    ("verdict", "loops", "reason"),
    [
        (REACHED, 60, "it took all NELM = 60 steps"),  # VASP 5 says so at the limit as well
        ("", 60, "it took all NELM = 60 steps"),
        ("", 59, ""),
        (" aborting loop EDIFF was not reached (unconverged) ", 3, "EDIFF was not reached"),
        (" aborting loop because hard stop was set ", 3, "hard stop was set"),
    ],
)
def test_a_step_whose_electronic_loop_did_not_converge_is_refused_or_taken_by_option(
    tmp_path, verdict, loops, reason
):
    text = outcar(ionic_step(0), ionic_step(1, verdict, loops), ionic_step(2))
    (tmp_path / "OUTCAR").write_text(text)
    first, second, third = outcomes(tmp_path)
    assert (first, third) == ("", "")
    assert bool(second) == bool(reason)
    assert reason in second
    assert not reason or "set the option `unconverged: true`" in second
    assert outcomes(tmp_path, unconverged=True) == ["", "", ""]


def test_steps_of_exact_diagonalisation_and_of_the_linear_response_are_no_sign_of_trouble(tmp_path):
    exact = HEAD.replace("NELM   =     60", "NELM   =      1").replace(
        "IALGO  =     38", "IALGO  =     90"
    )
    (tmp_path / "OUTCAR").write_text(outcar(ionic_step(0, loops=1), head=exact))
    assert outcomes(tmp_path) == [""]
    response = "".join(f"---- Iteration      1({n:4d})  ----\n" for n in range(70))
    scf, forces, rest = ionic_step(0).partition("  FORCE on cell")
    for text in (scf + response + forces + rest, scf + forces + rest + response):
        (tmp_path / "OUTCAR").write_text(outcar(text))
        assert outcomes(tmp_path) == [""]


def test_a_killed_job_s_steps_are_refused_or_taken_by_option(tmp_path):
    text = outcar(tail="")
    assert len(text) > 5000
    energy = text.rindex("-12.5")
    for place in (text.rindex("TOTAL-FORCE") + 200, text.rindex("FREE ENERGIE"), energy + 3):
        (tmp_path / "OUTCAR").write_text(text[:place])
        assert outcomes(tmp_path, truncated=True) == ["", ""]
        reason = "breaks off after 2 complete ionic steps: the file ends within a step; set the option `truncated: true`"
        first, second = outcomes(tmp_path)
        assert first == second
        assert first.startswith(reason)
    (tmp_path / "OUTCAR").write_text(text)  # between two steps nothing is missing
    assert outcomes(tmp_path) == [""] * 3
    (tmp_path / "OUTCAR").write_text(HEAD)
    assert outcomes(tmp_path, truncated=True) == ["no ionic step"]


def test_what_a_force_field_learned_on_the_fly_says_is_left_behind(tmp_path):
    learned = (
        "  ML FORCE on cell =-STRESS in cart. coord. units (eV):\n  in kB     1.0 2.0 3.0 4.0 5.0 6.0\n"
        " POSITION                                       TOTAL-FORCE (eV/Angst) (ML)\n ------\n"
        + "   0.0 0.0 0.0 9.0 9.0 9.0\n"
        * 3
        + "  ML FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ----\n"
        "  free  energy ML TOTEN  =       -99.0 eV\n\n"
        "  ML energy  without entropy=      -99.0  ML energy(sigma->0) =      -99.0\n\n"
    )
    (tmp_path / "plain").mkdir()
    (tmp_path / "OUTCAR").write_text(
        outcar(learned, ionic_step(0), learned, ionic_step(1), learned)
    )
    (tmp_path / "plain" / "OUTCAR").write_text(outcar(ionic_step(0), ionic_step(1)))
    for ours, reference in zip(read(tmp_path / "OUTCAR"), read(tmp_path / "plain"), strict=True):
        assert ours.hash == reference.hash
        for name, value in reference.properties.items():
            np.testing.assert_array_equal(ours.properties[name], value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ions per type =               1   2", "ions per type =   1   1   1", "elements of 2 POTCARs for 3"),
        ("TITEL  = PAW_PBE Ti_sv", "TITEL  = PAW_PBE Q_sv", "unknown element `Q`"),
        ("ions per type =               1   2", "ions per type =   1   1", "more positions than 2 ions"),
        ("TITEL", "TITLE", ""),  # then by the lines POTCAR
        ("  in kB", "  in kB **********", r"stress: not a number: `\*+`"),
        ("TOTAL-FORCE (eV/Angst)", "", "no positions and forces"),
        ("  free  energy   TOTEN  =", "  free  energy   TOTEN  = *", r"free energy: not a number: `\*`"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_step_is_said(tmp_path, old, new, message):
    text = outcar()
    assert old in text
    (tmp_path / "OUTCAR").write_text(text.replace(old, new))
    if not message:
        assert read(tmp_path / "OUTCAR")[0].numbers.tolist() == [22, 8, 8]
        return
    with pytest.raises(AtomloomError, match=message):
        read(tmp_path / "OUTCAR")
