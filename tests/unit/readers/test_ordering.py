"""Partially occupied crystals under `order: true`: whole atoms, in time, and named while it takes long."""

from __future__ import annotations

import json
import logging
import math
import threading

import numpy as np
import pytest
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal
from pymatgen.transformations.standard_transformations import (
    OrderDisorderedStructureTransformation,
    OxidationStateDecorationTransformation,
)

from atomloom.errors import AtomloomError
from atomloom.readers import ordering
from atomloom.readers.registry import check_options, parse_record
from atomloom.structures.elements import SYMBOLS
from tests.unit.structures.crystals import parse


def chain(shares: dict[str, float], count: int) -> Crystal:
    """Sites of these occupancies in a row, each beside a chlorine."""
    places = [[n / count, 0, 0] for n in range(count)]
    beside = [[(n + 0.5) / count, 0.5, 0.5] for n in range(count)]
    lattice = Lattice.orthorhombic(4.0 * count, 5, 6)
    return Crystal(lattice, [shares] * count + ["Cl"] * count, places + beside)


def text(crystal: Crystal) -> str:
    return json.dumps(crystal.as_dict())


def elements(structure) -> str:
    return "".join(sorted(SYMBOLS[number] for number in structure.numbers))


def test_a_process_that_ended_is_started_anew():
    process = ordering._WORKER._running()
    process.kill()
    process.wait()
    assert elements(parse("pymatgen", text(chain({"Na": 0.5}, 2)), order=True)) == "ClClNa"


def test_the_arrangement_is_that_of_pymatgen_s_transformation():
    crystal = chain({"Na": 0.5, "K": 0.25}, 4)
    charged = OxidationStateDecorationTransformation({"Na": 1, "K": 1, "Cl": -1})
    charged = charged.apply_transformation(crystal)
    reference = OrderDisorderedStructureTransformation().apply_transformation(charged)
    ours = parse("pymatgen", text(crystal), order=True)
    assert [SYMBOLS[z] for z in ours.numbers] == [site.specie.symbol for site in reference]
    np.testing.assert_allclose(ours.positions, reference.cart_coords, atol=1e-9)


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ({"Na": 1 / 3, "K": 2 / 3}, 3, "ClClClKKNa"),
        ({"Na": 0.33, "K": 0.67}, 3, "ClClClKKNa"),  # rounded by whoever wrote the file
        ({"Na": 0.999}, 2, "ClClNaNa"),
    ],
)
def test_occupancies_that_were_rounded_give_whole_atoms(shares, count, expected):
    assert elements(parse("pymatgen", text(chain(shares, count)), order=True)) == expected


def test_a_sum_that_is_whole_but_for_the_last_digits_balances():
    sites = [{"Na": 0.333333333333333}] * 39  # not 1 / 3, whose sum Python 3.12 rounds to 13
    assert sum(site["Na"] for site in sites) != 13
    assert ordering._oxidation_states([*sites, *[{"Cl": 1.0}] * 13]) == {"Na": 1, "Cl": -1}


@pytest.mark.parametrize(
    ("shares", "count", "message"),
    [
        ({"Na": 0.5}, 1, "a fraction of an atom: 0.5 Na on 1 site; give a supercell"),
        ({"Na": 0.5, "K": 0.5}, 3, "a fraction of an atom: 1.5 Na on 3 sites"),
        ({"Na": 0.9}, 2, "a fraction of an atom: 1.8 Na on 2 sites"),
    ],
)
def test_a_cell_that_holds_a_fraction_of_an_atom_is_refused_in_plain_words(shares, count, message):
    with pytest.raises(AtomloomError, match=message):
        parse("pymatgen", text(chain(shares, count)), order=True)


def test_ordering_that_takes_long_is_interrupted_and_named_and_spoils_no_other(caplog, monkeypatch):
    monkeypatch.setattr(ordering, "_SILENT", 0.0)
    hopeless = text(chain({"Na": 0.5, "K": 0.5}, 40)).encode()
    assert math.comb(40, 20) > 1e11
    outcome = []

    def work() -> None:  # readers run in threads, where no signal comes
        with caplog.at_level(logging.WARNING):
            try:
                parse_record("pymatgen", hopeless, "x/slow", {"order": True, "order_seconds": 0.2})
            except AtomloomError as error:
                outcome.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [
        "disordered, and ordering it takes more than 0.2 s; set the option `order_seconds` to give it more"
    ]
    assert "x/slow: is being ordered" in caplog.text
    assert elements(parse("pymatgen", text(chain({"Na": 0.5}, 2)), order=True)) == "ClClNa"


def test_after_an_interruption_no_crystal_gets_the_answer_of_another(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ordering.select, "select", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parse("pymatgen", text(chain({"Na": 0.5}, 2)), order=True)
    assert ordering._WORKER._process is None


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "10", True])
def test_the_time_is_a_positive_number(value):
    with pytest.raises(AtomloomError, match="order_seconds should be a number of seconds"):
        check_options({"order_seconds": value})
