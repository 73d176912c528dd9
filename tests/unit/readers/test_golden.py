"""Golden digests: what readers make of fixed texts. A change here changes converted structures, so
`keys.CONVERTER` must be raised with it."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from test_read_aims_and_fitsnap import CRYSTAL, fitsnap
from test_read_databases import RUNNER
from test_read_extxyz import FRAME
from test_read_outcar import outcar
from test_read_poscar import TEXT
from test_read_xsf_and_vasprun import XSF, vasprun_text

from atomloom.readers.formats.vasprun import split as split_vasprun
from atomloom.readers.registry import REGISTRY
from atomloom.store.keys import CONVERTER
from tests.unit.structures.crystals import parse

RUTILE = """data_rutile
_cell_length_a 4.5937
_cell_length_b 4.5937
_cell_length_c 2.9587
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 42/m n m'
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Ti 0 0 0
O 0.30478(6) 0.30478(6) 0
"""
PYMATGEN = json.dumps(
    {
        "lattice": {"matrix": [[3.1, 0, 0.1], [0, 4.2, 0], [0, 0, 5.3]]},
        "sites": [{"species": [{"element": "Cu", "occu": 1}], "abc": [0.1, 0.2, 0.3]}],
    }
)
JARVIS = json.dumps({"lattice_mat": [[3, 0, 0], [0, 4, 0], [1, 0, 5]], "coords": [[0.5, 0.1, 0.2]],
                     "elements": ["Ti"], "cartesian": False})  # fmt: skip

RECORDS = {
    "cif": RUTILE,
    "poscar": TEXT,
    "extxyz": FRAME,
    "xsf": XSF,
    "runner": RUNNER,
    "pymatgen": PYMATGEN,
    "jarvis": JARVIS,
    "vasprun": next(split_vasprun(io.BytesIO(vasprun_text().encode()), {})).payload,
    "aims": CRYSTAL,
}
FILES = {"outcar": outcar(), "fitsnap": json.dumps(fitsnap())}
"""Of formats whose records are rewritten as atomloom's plain JSON."""

GOLDEN = {
    2: {
        "cif": "f21fd246b2582abc",
        "poscar": "2ac8323ac17f6f58",
        "extxyz": "afed4ecaea140c25",
        "xsf": "e4ee59d11f2b7184",
        "runner": "c0f144de592180f4",
        "pymatgen": "7bff8ff5bc172e89",
        "jarvis": "ec573079fac9dee3",
        "vasprun": "823903b18c95d15f",
        "aims": "4f1800526d326af0",
        "outcar": "dd9cb10fa92561a1",
        "fitsnap": "3abb21be8ae39755",
    }
}


def digest(format: str) -> str:
    if format in FILES:
        piece = next(REGISTRY[format].split(io.BytesIO(FILES[format].encode()), {}))
        structure = parse(piece.format, piece.payload)
    else:
        structure = parse(format, RECORDS[format])
    content = hashlib.blake2b(structure.hash, digest_size=8)
    for name in sorted(structure.properties):
        quanta = np.rint(np.asarray(structure.properties[name]) / 1e-8).astype("<i8")
        content.update(name.encode() + quanta.tobytes())
    return content.hexdigest()


@pytest.mark.parametrize("format", [*RECORDS, *FILES])
def test_a_changed_reader_raises_the_converter_version(format):
    assert CONVERTER in GOLDEN, "add the digests of the new CONVERTER"
    assert digest(format) == GOLDEN[CONVERTER][format]
