"""Whatever stands in a file, parsing it gives a structure or an AtomloomError, and soon."""

from __future__ import annotations

import io
import json
import re
import time

import ase.io
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar
from test_read_aims_and_fitsnap import CRYSTAL, MOLECULE, fitsnap
from test_read_databases import RUNNER
from test_read_extxyz import FRAME
from test_read_outcar import outcar
from test_read_xsf_and_vasprun import XSF, vasprun_text

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, parse_record
from atomloom.readers.base import UNREADABLE
from atomloom.readers.formats.vasprun import split as split_vasprun
from atomloom.readers.registry import REGISTRY, format_of
from atomloom.structures import Structure
from tests.unit.structures.crystals import atoms_with_results, symmetric_crystals


def written(format: str) -> str:
    stream = io.StringIO()
    ase.io.write(stream, atoms_with_results(1), format=format)
    return stream.getvalue()


RUTILE = symmetric_crystals()["rutile"]
SEEDS = {
    "cif": [str(CifWriter(RUTILE)), str(CifWriter(RUTILE, symprec=1e-3))],
    "poscar": [Poscar(RUTILE).get_str(), written("vasp")],
    "extxyz": [FRAME, written("extxyz"), "2\nplain\nH 0 0 0\nO 0 0 1\n"],
    "xsf": [XSF, written("xsf")],
    "runner": [RUNNER],
    "pymatgen": [json.dumps(RUTILE.as_dict())],
    "jarvis": [
        json.dumps({"lattice_mat": np.eye(3).tolist(), "coords": [[0, 0, 0]], "elements": ["H"]})
    ],
    "structure": [
        json.dumps({"numbers": [1, 8], "positions": [[0, 0, 0], [1, 1, 1]], "pbc": [0, 0, 0]})
    ],
    "vasprun": [next(split_vasprun(io.BytesIO(vasprun_text().encode()), {})).payload.decode()],
    "aims": [CRYSTAL, MOLECULE],
}
FILES = [outcar(), "# cells\n" + json.dumps(fitsnap()), vasprun_text()]
"""Of formats whose records are rewritten when the file is cut into them."""

TOKENS = st.sampled_from(
    ["nan", "inf", "-1e309", "1e308", "-1", "0", "99999999999999999999", "Xx", "D", "1_0", "*****", "'", '"',
     ";", "#", "\n", "\r", "\t", "\x00", "\xff", "é", "[", "{", "]", "}", ":", ",", "null", "true", "\ndata_y\n",
     "\nloop_\n", "1e-320", "=", '"energy"', " ", "<a>", "</set>", "&amp;", "save_", "²"]
)  # fmt: skip


@st.composite
def mutations(draw, seeds):
    """A text cut, doubled, and with odd tokens put into it or in place of its words."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20, 200])))
        kind = draw(st.sampled_from(["put", "cut", "double", "end", "character", "word"]))
        if kind == "put":
            text = text[:start] + draw(TOKENS) + text[end:]
        elif kind == "cut":
            text = text[:start] + text[end:]
        elif kind == "double":
            text = text[:end] + text[start:end] * draw(st.integers(1, 3)) + text[end:]
        elif kind == "end":
            text = text[:start]
        elif kind == "character":
            text = text[:start] + draw(st.characters(codec="utf-8")) + text[start + 1 :]
        else:
            words = text.split(" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(TOKENS)
            text = " ".join(words)
    return text.encode()


def structure_or_error(format: str, payload: bytes) -> None:
    try:
        structure = parse_record(format, payload, "x", {})
    except AtomloomError:
        return
    assert isinstance(structure, Structure)
    assert np.isfinite(structure.positions).all()
    assert np.isfinite(structure.cell).all()
    assert len(structure) > 0


@pytest.mark.parametrize("format", SEEDS)
def test_mutated_text_never_raises_anything_else(format):
    @settings(
        max_examples=300,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        database=None,
        derandomize=True,
    )
    @given(mutations(SEEDS[format]))
    def check(payload):
        structure_or_error(format, payload)

    for seed in SEEDS[format]:
        parse_record(format, seed.encode(), "x", {})
    check()


@pytest.mark.parametrize("format", REGISTRY)
@settings(max_examples=50)
@given(payload=st.binary(max_size=2000))
@example(payload=b"")
@example(payload=b"\x00" * 1000)
@example(payload=b"{" * 100_000)
@example(payload=b"[" * 100_000)
@example(payload=b"{}")
@example(payload=b"null")
@example(payload=b"1\n" * 10)
@example(payload=b"<step>" + b"<a>" * 1000)
@example(payload=b'{"sites": [{}]}')
@example(payload=b'{"sites": []}')
@example(payload=b'{"sites": [1], "lattice": 3}')
@example(payload=b'{"numbers": "x", "positions": {}}')
@example(payload=b'{"numbers": [300], "positions": [[0, 0, 0]]}')
@example(payload=b'{"numbers": [1.5], "positions": [[0, 0, 0]]}')
@example(payload=b'{"lattice_mat": 1, "coords": 2, "elements": 3}')
def test_any_bytes_give_a_structure_or_an_error(format, payload):
    structure_or_error(format, payload)


@settings(max_examples=150)
@given(
    payload=st.one_of(
        st.binary(max_size=3000), *(mutations(seeds) for seeds in (*SEEDS.values(), FILES))
    )
)
def test_any_file_is_at_least_one_record_or_an_error(tmp_path_factory, payload):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(payload)
    try:
        records = list(enumerate_records([path]))
    except AtomloomError:
        return
    assert records
    for record in records:
        assert record.format in (*REGISTRY, UNREADABLE)
        structure_or_error(record.format, record.payload)


def test_a_symmetric_cif_of_absurd_size_is_refused_soon():
    text = str(CifWriter(RUTILE, symprec=1e-3))
    operations = "\n".join(f"  {n}  'x+1/{n}, y, z'" for n in range(1, 4000))
    first = text.index("  1  'x, y, z'")
    last = text.index("loop_", first)
    with pytest.raises(AtomloomError, match="3999 symmetry operations"):
        parse_record("cif", (text[:first] + operations + "\n" + text[last:]).encode(), "x", {})


def assert_time_grows_no_faster_than_length(work):
    """`work(n)` on eight times the length may take eight times as long, but not sixty-four."""
    short, long = (min(_seconds(work, length) for _ in range(5)) for length in (8_000, 64_000))
    assert long < 30 * max(short, 1e-3)


def _seconds(work, length):
    start = time.process_time()
    work(length)
    return time.process_time() - start


@pytest.mark.parametrize(
    "pattern",
    ["{a}=", "{a={}", "{a=[}", '{"}', "{ }=", "{=}", "a ={ }", "Properties={a:}", "{a=' }"],
)
def test_the_time_for_a_comment_line_grows_with_its_length(pattern):
    before, filler, after = pattern[: pattern.index("{")], pattern[pattern.index("{") + 1 :], ""
    filler, after = filler[: filler.rindex("}")], filler[filler.rindex("}") + 1 :]

    def work(length):
        comment = before + filler * (length // len(filler)) + after
        structure_or_error("extxyz", f"1\n{comment}\nH 0 0 0\n".encode())

    assert_time_grows_no_faster_than_length(work)


@pytest.mark.parametrize(
    "filler", [b"1", b" ", b"\n", b"#", b"-", b";\n", b"data_\n", b"{", b'"', b"a,", b"# \n"]
)
@pytest.mark.parametrize("start", [b"", b"a\n", b"1\n1\n1 "])
def test_the_time_to_recognise_a_format_grows_with_the_length(start, filler):
    assert_time_grows_no_faster_than_length(
        lambda length: format_of("name", start + filler * (length // len(filler)))
    )


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_results_that_are_not_finite_are_refused(name):
    text = written("extxyz")
    if name == "energy":
        text = re.sub(r"energy=\S+", "energy=nan", text)
    elif name == "stress":
        text = re.sub(r'stress="\S+', 'stress="inf', text)
    else:
        lines = text.splitlines()
        lines[3] = " ".join([*lines[3].split()[:-1], "NaN"])
        text = "\n".join(lines)
    with pytest.raises(AtomloomError, match=f"{name} is not finite"):
        parse_record("extxyz", text.encode())


def test_an_exception_without_a_message_is_named(monkeypatch):
    class Silent(Exception):
        pass

    def fail(*_):
        raise Silent

    monkeypatch.setattr(REGISTRY["extxyz"], "parse", fail)
    with pytest.raises(AtomloomError, match=r"cannot be parsed: Silent$"):
        parse_record("extxyz", b"1")
