"""Statistics of compositions are what tables and shares say, whatever the order and number of atoms."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from atomloom.config.features import Feature
from atomloom.features.composition import (
    PROPERTIES,
    Composition,
    element_properties,
    statistics_of,
)
from atomloom.store.keys import FEATURES, chain_hash
from atomloom.structures.adapters import to_structure
from atomloom.structures.table import StructureTable

SOURCE = Composition(Feature(source="composition"))


def described(*crystals) -> list[dict[str, float]]:
    table = StructureTable.from_structures([to_structure(atoms) for atoms in crystals])
    return [dict(zip(SOURCE.columns, one.values, strict=True)) for one in SOURCE.describe(table)]


def test_statistics_are_those_of_the_elements_weighted_by_their_shares():
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    crystal.append("Cl")
    (found,) = described(crystal)
    assert found["elements"] == 2
    assert found["evenness"] == pytest.approx(np.sqrt(5) / 3)
    assert found["number_mean"] == pytest.approx((11 + 2 * 17) / 3)
    assert found["number_spread"] == pytest.approx((4 + 2 * 2) / 3)
    assert (found["number_min"], found["number_max"], found["number_range"]) == (11, 17, 6)
    assert found["electronegativity_range"] == pytest.approx(3.16 - 0.93)
    assert (found["p_electrons_min"], found["p_electrons_max"]) == (0, 5)


def test_a_larger_cell_and_another_order_of_atoms_change_nothing():
    cell = bulk("NaCl", "rocksalt", a=5.64)
    turned = cell[::-1]
    one, twice, other = described(cell, cell * (2, 1, 1), turned)
    assert one == twice == other


def test_every_element_has_every_property():
    properties = element_properties()[1:]
    assert properties.shape == (118, len(PROPERTIES))
    assert np.isfinite(properties).all()
    assert len(set(SOURCE.columns)) == len(SOURCE.columns)


GOLDEN = {1: "4bdb09231149af88"}
"""Version of the source -> digest of the numbers below."""


def test_numbers_change_only_with_the_version_of_the_source():
    elements = np.arange(1, 104)
    whole = [statistics_of(elements, np.full(103, 1 / 103))]
    whole += [statistics_of(np.array([8, z]), np.array([0.6, 0.4])) for z in range(9, 104)]
    digest = chain_hash([np.rint(np.array(whole) * 1e6).astype(np.int64).tobytes()])
    assert digest == GOLDEN[FEATURES["composition"]]
