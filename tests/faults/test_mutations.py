"""Mutated files of every text format: a structure or a reason, never a crash, a hang or a lie.

Each file is cut into records and parsed as the workflow does it. Where another library reads the same
bytes too, its structure must be ours, unless it is one of the ways in which that library is known to
look away (`EXCUSES`). `ATOMLOOM_MUTATIONS` sets how many mutations a format gets; the default takes
seconds.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal
from pymatgen.io.cif import CifParser, CifWriter
from pymatgen.io.vasp import Poscar

from atomloom.config.dataset import Checks
from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, parse_record
from atomloom.structures import Structure, to_structure
from atomloom.structures.checks import check_structure

COUNT = int(os.environ.get("ATOMLOOM_MUTATIONS", "200"))
SECONDS = 120
TOLERANCE = 1e-4


# --- seeds ----------------------------------------------------------------------------------------


def rutile() -> Crystal:
    cell = Lattice.tetragonal(4.5937, 2.9587)
    sites = [[0, 0, 0], [0.30478, 0.30478, 0]]
    return Crystal.from_spacegroup("P4_2/mnm", cell, ["Ti", "O"], sites)


def triclinic() -> Crystal:
    cell = Lattice.from_parameters(4.1, 5.2, 6.3, 77.7, 81.3, 68.9)
    places = [[0.013, 0.21, 0.33], [0.51, 0.49, 0.87], [0.71, 0.11, 0.63]]
    return Crystal(cell, ["Cu", "O", "S"], places)


def frames(count: int = 2) -> list[ase.Atoms]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        atoms = ase.Atoms("TiO2", positions=rng.uniform(0, 4, (3, 3)), pbc=True)
        atoms.cell = np.diag([4.0, 5.0, 6.0]) + rng.normal(scale=0.2, size=(3, 3))
        results = {"energy": -1.5, "forces": rng.normal(size=(3, 3)), "stress": rng.normal(size=6)}
        atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(atoms, **results)
        made.append(atoms)
    return made


def written(format: str, count: int = 1) -> str:
    stream = io.BytesIO() if format == "cif" else io.StringIO()
    made = frames(count)
    ase.io.write(stream, made if count > 1 else made[0], format=format)
    text = stream.getvalue()
    return text.decode() if isinstance(text, bytes) else text


XSF = """# total energy = -123.5 eV

CRYSTAL
PRIMVEC
 4.0 0.0 0.0
 0.0 5.0 0.0
 0.5 0.0 6.0
PRIMCOORD
3 1
Ti  0.0 0.0 0.0  0.1 0.2 0.3
O   1.0 2.0 3.0 -0.1 -0.2 -0.3
O   2.5 0.5 1.0  0.2 -0.1 0.1
"""


def vasprun() -> str:
    def rows(array: np.ndarray) -> str:
        return "".join("<v> " + " ".join(f"{x:.8f}" for x in row) + " </v>\n" for row in array)

    rng = np.random.default_rng(1)
    cell = np.array([[4.0, 0, 0], [0.3, 5.0, 0], [0, 0.2, 6.0]])
    energies = (
        '<energy><i name="e_fr_energy"> -10.6 </i><i name="e_wo_entrp"> -10.4 </i>'
        '<i name="e_0_energy"> -10.5 </i></energy>\n'
    )
    structure = (
        '<structure><crystal><varray name="basis">' + rows(cell) + '</varray><i name="volume"> 120 '
        '</i><varray name="rec_basis">' + rows(np.linalg.inv(cell).T) + "</varray></crystal>"
        '<varray name="positions">' + rows(rng.random((3, 3))) + "</varray></structure>\n"
    )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator><i name="version" '
        'type="string">6.3.0 </i></generator><incar></incar><kpoints><generation param="Gamma">'
        '<v type="int" name="divisions">1 1 1</v></generation><varray name="kpointlist"><v>0 0 0</v>'
        '</varray><varray name="weights"><v>1</v></varray></kpoints><parameters><i type="int" '
        'name="NELM"> 60 </i></parameters>\n<atominfo><atoms> 3 </atoms><types> 2 </types>'
        '<array name="atoms"><dimension dim="1">ion</dimension><field type="string">element</field>'
        '<field type="int">atomtype</field><set><rc><c>Ti</c><c> 1</c></rc><rc><c>O </c><c> 2</c></rc>'
        "<rc><c>O </c><c> 2</c></rc></set></array>\n"
        '<array name="atomtypes"><dimension dim="1">type</dimension><field type="int">atomspertype'
        '</field><field type="string">element</field><field>mass</field><field>valence</field>'
        '<field type="string">pseudopotential</field><set><rc><c> 1</c><c>Ti</c><c>47</c><c>4</c>'
        "<c> PAW_PBE Ti 08Apr2002 </c></rc><rc><c> 2</c><c>O </c><c>16</c><c>6</c>"
        "<c> PAW_PBE O 08Apr2002 </c></rc></set></array></atominfo>\n"
        + structure.replace("<structure>", '<structure name="initialpos">')
        + "<calculation><scstep>" + energies + "</scstep>" + structure + '<varray name="forces">'
        + rows(rng.normal(size=(3, 3))) + '</varray><varray name="stress">' + rows(np.eye(3))
        + "</varray>" + energies + "</calculation>\n"
        + structure.replace("<structure>", '<structure name="finalpos">')
        + "</modeling>\n"
    )  # fmt: skip


def jarvis_entry(crystal: Crystal) -> dict:
    return {
        "jid": "JVASP-1",
        "atoms": {
            "lattice_mat": crystal.lattice.matrix.round(8).tolist(),
            "coords": crystal.frac_coords.round(8).tolist(),
            "elements": [site.species_string for site in crystal],
            "abc": list(crystal.lattice.abc),
            "angles": list(crystal.lattice.angles),
            "props": [""] * len(crystal),
            "cartesian": False,
        },
        "gap": 1.5,
    }


def csv_text() -> str:
    stream = io.StringIO()
    import csv

    writer = csv.writer(stream)
    writer.writerow(["material_id", "cif", "energy"])
    writer.writerow(["a", str(CifWriter(rutile())), 1.5])
    writer.writerow(["b", str(CifWriter(triclinic())), -2])
    return stream.getvalue()


# --- what others read -----------------------------------------------------------------------------

Read = Callable[[Path], list[Structure]]


def by_ase(format: str) -> Read:
    def read(path: Path) -> list[Structure]:
        found = [to_structure(atoms) for atoms in ase.io.read(path, index=":", format=format)]
        if format == "xsf":  # ASE takes forces for hartree/A, ours are eV/A unless told
            for structure in found:
                structure.properties.pop("forces", None)
        return found

    return read


def cif_by_pymatgen(path: Path) -> list[Structure]:
    return [to_structure(c) for c in CifParser(path).parse_structures(primitive=False)]


def poscar_by_pymatgen(path: Path) -> list[Structure]:
    return [to_structure(Poscar.from_file(path).structure)]


def jarvis_by_jarvis(path: Path) -> list[Structure]:
    from jarvis.core.atoms import Atoms

    return [to_structure(Atoms.from_dict(e["atoms"])) for e in json.loads(path.read_text())]


def pymatgen_by_pymatgen(path: Path) -> list[Structure]:
    return [to_structure(Crystal.from_dict(e)) for e in json.loads(path.read_text())]


def csv_by_pandas(path: Path) -> list[Structure]:
    import pandas as pd

    texts = pd.read_csv(path, dtype=str, keep_default_na=False)["cif"]
    return [
        to_structure(CifParser.from_str(text).parse_structures(primitive=False)[0])
        for text in texts
    ]


@dataclass(frozen=True)
class Format:
    """A text format: the name of a file, texts to start from, and who else reads it."""

    file: str
    seeds: tuple[str, ...]
    peers: tuple[Read, ...]


def formats() -> dict[str, Format]:
    entries = json.dumps([jarvis_entry(rutile()), jarvis_entry(triclinic())], indent=1)
    crystals = json.dumps([rutile().as_dict(), triclinic().as_dict()], indent=1)
    cifs = (str(CifWriter(rutile())), str(CifWriter(rutile(), symprec=1e-3)), written("cif"))
    poscars = (Poscar(rutile()).get_str(), Poscar(triclinic()).get_str(), written("vasp"))
    return {
        "cif": Format("x.cif", cifs, (cif_by_pymatgen, by_ase("cif"))),
        "poscar": Format("POSCAR", poscars, (poscar_by_pymatgen, by_ase("vasp"))),
        "extxyz": Format("x.extxyz", (written("extxyz", 2),), (by_ase("extxyz"),)),
        "xsf": Format("x.xsf", (XSF,), (by_ase("xsf"),)),
        "vasprun": Format("vasprun.xml", (vasprun(),), (by_ase("vasp-xml"),)),
        "jarvis": Format("x.json", (entries,), (jarvis_by_jarvis,)),
        "pymatgen": Format("x.json", (crystals,), (pymatgen_by_pymatgen,)),
        "csv": Format("x.csv", (csv_text(),), (csv_by_pandas,)),
    }


FORMATS = formats()


# --- mutations ------------------------------------------------------------------------------------

TOKENS = (
    "nan", "inf", "-1e309", "1e308", "-1", "0", "99999999999999999999", "Xx", "H", "1_0", "*****", "'", '"', ";",
    "#", "\n", "\r\n", "\t", "\x00", "é", "[", "{", "]", "}", ":", ",", "null", "true", "\ndata_y\n", "\nloop_\n",
    "1e-320", "=", "<a>", "</set>", "&amp;", "?", ".", "1.0(3)", "2", "0.5D0", "\ufeff", "²", "-", "+", "1/3",
)  # fmt: skip


def mutate(text: str, moves: random.Random) -> str:
    """One to three small changes, of the kinds that editors, disks and people make."""
    for _ in range(moves.randint(1, 3)):
        text = moves.choice(CHANGES)(text, moves)
    return text


def _span(text: str, moves: random.Random) -> tuple[int, int]:
    start = moves.randint(0, len(text))
    return start, min(len(text), start + moves.choice([0, 1, 1, 2, 5, 20, 200]))


def put(text: str, moves: random.Random) -> str:
    start, end = _span(text, moves)
    return text[:start] + moves.choice(TOKENS) + text[end:]


def cut(text: str, moves: random.Random) -> str:
    start, end = _span(text, moves)
    return text[:start] + text[end:]


def double(text: str, moves: random.Random) -> str:
    start, end = _span(text, moves)
    return text[:end] + text[start:end] + text[end:]


def break_off(text: str, moves: random.Random) -> str:
    return text[: moves.randint(0, len(text))]


def digit(text: str, moves: random.Random) -> str:
    places = [i for i, c in enumerate(text) if c.isdigit()]
    if not places:
        return text
    at = moves.choice(places)
    return text[:at] + moves.choice("0123456789") + text[at + 1 :]


def word(text: str, moves: random.Random) -> str:
    words = text.split(" ")
    words[moves.randrange(len(words))] = moves.choice(TOKENS)
    return " ".join(words)


def swap_words(text: str, moves: random.Random) -> str:
    words = text.split(" ")
    a, b = moves.randrange(len(words)), moves.randrange(len(words))
    words[a], words[b] = words[b], words[a]
    return " ".join(words)


def drop_line(text: str, moves: random.Random) -> str:
    lines = text.split("\n")
    del lines[moves.randrange(len(lines))]
    return "\n".join(lines)


def double_line(text: str, moves: random.Random) -> str:
    lines = text.split("\n")
    at = moves.randrange(len(lines))
    lines.insert(at, lines[at])
    return "\n".join(lines)


def swap_lines(text: str, moves: random.Random) -> str:
    lines = text.split("\n")
    a, b = moves.randrange(len(lines)), moves.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def other_ends(text: str, moves: random.Random) -> str:
    return text.replace("\n", moves.choice(["\r\n", "\n\n", " \n"]))


def case(text: str, moves: random.Random) -> str:
    start, end = _span(text, moves)
    return text[:start] + text[start:end].swapcase() + text[end:]


CHANGES = (put, cut, double, break_off, digit, digit, word, swap_words, drop_line, double_line,
           swap_lines, other_ends, case)  # fmt: skip


# --- judging --------------------------------------------------------------------------------------


@contextmanager
def at_most(seconds: int):
    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_by_us(path: Path, **options: float) -> list[Structure | AtomloomError]:
    """Every record of the file, checked as by `convert`, or why it is refused."""
    try:
        records = list(enumerate_records([path], options=options))
    except AtomloomError as error:
        return [error]
    outcome: list[Structure | AtomloomError] = []
    for record in records:
        try:
            structure = parse_record(record.format, record.payload or b"", record.id, options)
            check_structure(structure, Checks())
        except AtomloomError as error:
            outcome.append(error)
            continue
        assert np.isfinite(structure.positions).all()
        assert np.isfinite(structure.cell).all()
        assert len(structure)
        outcome.append(structure)
    assert outcome, "no record and no reason"
    return outcome


def read_by_peer(peer: Read, path: Path) -> list[Structure] | None:
    """What a peer makes of the file; None where it refuses, crashes or takes forever."""
    try:
        with at_most(SECONDS), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return peer(path)
    except Exception:
        return None


def difference(ours: list[Structure | AtomloomError], theirs: list[Structure]) -> str:
    """What is in one and not in the other; nothing where they agree. A refusal of ours is no lie."""
    if any(isinstance(one, AtomloomError) for one in ours):
        return ""
    if len(ours) != len(theirs):
        return f"{len(ours)} records, not {len(theirs)}"
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if sorted(a.numbers.tolist()) != sorted(b.numbers.tolist()):
            return f"record {number}: elements {a.numbers.tolist()}, not {b.numbers.tolist()}"
        if not np.allclose(a.cell @ a.cell.T, b.cell @ b.cell.T, atol=TOLERANCE, rtol=TOLERANCE):
            return f"record {number}: cell {a.cell.tolist()}, not {b.cell.tolist()}"
        if not np.allclose(spectrum(a), spectrum(b), atol=TOLERANCE, rtol=TOLERANCE):
            return f"record {number}: positions"
        for name in ("energy", "forces", "stress"):
            x, y = a.properties.get(name), b.properties.get(name)
            if x is None or y is None or np.allclose(x, y, atol=1e-6, rtol=1e-6):
                continue
            if name != "stress" or not one_half_of(x, y):
                return f"record {number}: {name} {x}, not {y}"
    return ""


def one_half_of(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether ASE, which keeps six numbers of a stress, took them from a matrix that is not symmetric."""
    near = np.isclose(ours, theirs, atol=1e-6) | np.isclose(ours.T, theirs, atol=1e-6)
    return bool(near.all() and not np.array_equal(ours, ours.T))


def spectrum(structure: Structure) -> np.ndarray:
    """Something of the positions that knows no order, origin, rotation or wrapping: sums over pairs
    of products of elements and of cosines of the phase between them, for a few small waves."""
    if not structure.pbc.any():
        r = structure.positions
        d = np.linalg.norm(r[:, None] - r[None], axis=-1)
        return np.sort(d.ravel())
    f = np.linalg.solve(structure.cell.T, structure.positions.T).T
    waves = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (2, 1, 3)])
    phase = np.exp(2j * np.pi * (f @ waves.T)) * structure.numbers[:, None]
    return np.abs(phase.sum(axis=0))


def merges_close_images(path: Path, text: str, peer: Read) -> bool:
    """Ours takes images of a site nearer than 0.05 A for one atom (option `site_tolerance`), as the
    multiplicity beside them says; others stop at less."""
    theirs = read_by_peer(peer, path)
    return bool(theirs) and any(
        not difference(read_by_us(path, site_tolerance=tolerance), theirs)
        for tolerance in (1e-2, 1e-3, 1e-4, 1e-6)
    )


def odd_case(path: Path, text: str, peer: Read) -> bool:
    """`tI` is titanium to us, and iodine to those who look at capitals alone."""
    return re.search(r"\b[a-z][A-Z]", text) is not None


def unknown_type(path: Path, text: str, peer: Read) -> bool:
    """Of a site of type `?` we take the element of its label; pymatgen leaves the site out."""
    return re.search(r"\n\s+[?.] +[A-Z]", text) is not None


def no_positions(path: Path, text: str, peer: Read) -> bool:
    """Where a comment line says `Properties` twice, ASE puts all atoms at zero."""
    return text.count("Properties=") > len(read_by_us(path)) and any(
        not structure.positions.any() for structure in read_by_peer(peer, path) or ()
    )


EXCUSES: dict[str, tuple[Callable[[Path, str, Read], bool], ...]] = {
    "cif": (merges_close_images, odd_case, unknown_type),
    "csv": (merges_close_images, odd_case, unknown_type),
    "extxyz": (no_positions,),
}


def judge(name: str, count: int, folder: Path, seed: int = 0) -> tuple[Counter, list[str]]:
    """Mutate, read, compare; what came out, and the texts that ours alone reads so."""
    format = FORMATS[name]
    moves = random.Random(f"{name} {seed}")
    path = folder / format.file
    outcome: Counter[str] = Counter()
    lies = []
    for number in range(count):
        text = mutate(moves.choice(format.seeds), moves)
        path.write_bytes(text.encode())
        with at_most(SECONDS):
            ours = read_by_us(path)
        refused = sum(isinstance(one, AtomloomError) for one in ours)
        outcome["refused" if refused else "read"] += 1
        if refused:
            continue
        found = [read_by_peer(peer, path) for peer in format.peers]
        differences = [difference(ours, theirs) for theirs in found if theirs is not None]
        if differences and all(differences):
            excuses = EXCUSES.get(name, ())
            if any(excuse(path, text, peer) for excuse in excuses for peer in format.peers):
                outcome["excused"] += 1
                continue
            outcome["differs"] += 1
            lies.append(f"{number}: {differences[0][:300]}\n{text}")
        elif differences:
            outcome["confirmed"] += 1
    return outcome, lies


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_a_structure_or_a_reason_and_what_others_read(name, tmp_path):
    outcome, lies = judge(name, COUNT, tmp_path)
    assert outcome["read"] > 0.1 * COUNT, "mutations that leave nothing to read test nothing"
    assert outcome["refused"] > 0.1 * COUNT
    assert outcome["confirmed"] > 0.5 * outcome["read"]
    assert not lies, "\n\n".join(lies[:3])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_mutated_is_read_as_others_read_it(name, tmp_path):
    format = FORMATS[name]
    path = tmp_path / format.file
    for seed in format.seeds:
        path.write_text(seed)
        ours = read_by_us(path)
        assert all(isinstance(one, Structure) for one in ours)
        for peer in format.peers:
            theirs = read_by_peer(peer, path)
            assert theirs is not None
            assert difference(ours, theirs) == ""


def test_a_lie_would_be_noticed(tmp_path):
    """An atom moved by a thousandth of the cell, another element, another energy."""
    path = tmp_path / "x.extxyz"
    path.write_text(FORMATS["extxyz"].seeds[0])
    theirs = read_by_peer(by_ase("extxyz"), path)
    text = path.read_text()
    for wrong in (
        text.replace("O  ", "S  ", 1),
        text.replace("-1.5", "-1.6", 1),
        text.replace("2.5478", "2.5528"),
    ):
        assert wrong != text
        path.write_text(wrong)
        assert difference(read_by_us(path), theirs) != ""
