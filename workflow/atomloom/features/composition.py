"""Source `composition`: statistics of tabulated properties of the elements, weighted by their shares.

The idea is Magpie's (Ward et al., npj Comput. Mater. 2, 16028 (2016)), the list of properties our own: those
that the tables of pymatgen and ASE have for nearly all elements. A change of the list or of a rule below is
a new version in `store/keys.py`.

Legend: P properties, K elements of one structure.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from atomloom.config.features import Feature
from atomloom.features.base import Described
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.table import StructureTable

if TYPE_CHECKING:
    from pymatgen.core import Element

PROPERTIES = {
    "number": "atomic number",
    "mass": "atomic mass in u",
    "period": "period of the periodic table",
    "group": "group of the periodic table",
    "mendeleev": "Mendeleev number (Pettifor's order by chemical likeness)",
    "electronegativity": "electronegativity after Pauling",
    "covalent_radius": "covalent radius in A",
    "ionic_radius": "mean ionic radius in A",
    "ionization_energy": "first ionisation energy in eV",
    "electron_affinity": "electron affinity in eV",
    "melting_point": "melting point of the element in K",
    "molar_volume": "molar volume of the element in cm^3/mol",
    "s_electrons": "s electrons outside the noble gas core",
    "p_electrons": "p electrons outside it",
    "d_electrons": "d electrons outside it",
    "f_electrons": "f electrons outside it",
}
"""Properties of the elements, with their meanings."""
STATISTICS = {
    "mean": "mean over the atoms",
    "spread": "mean absolute deviation of the atoms from it",
    "min": "smallest of the elements",
    "max": "largest of the elements",
    "range": "largest less smallest",
}
"""Statistics of each property, with their meanings."""
_OF_SHARES = ("elements", "evenness")
"""Number of elements, and root of the sum of their squared shares."""
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)


class Composition:
    """Statistics of the elements of a structure."""

    columns = (
        *_OF_SHARES,
        *(f"{name}_{statistic}" for name in PROPERTIES for statistic in STATISTICS),
    )
    costly = False

    def __init__(self, feature: Feature) -> None:
        """Args:
        feature: of the config; it has no options.
        """

    def describe(self, table: StructureTable) -> Iterator[Described]:
        """Iterate over the statistics of structures."""
        for row in range(len(table)):
            begun = time.perf_counter()
            numbers, counts = np.unique(table[row].numbers, return_counts=True)
            values = statistics_of(numbers, counts / counts.sum())
            yield Described(values, time.perf_counter() - begun)


def statistics_of(numbers: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """[C] statistics of a composition.

    Args:
        numbers: [K] atomic numbers.
        shares: [K] shares of the atoms, with the sum 1.
    """
    own = element_properties()[numbers]
    mean = (shares[:, None] * own).sum(axis=0)
    spread = (shares[:, None] * np.abs(own - mean)).sum(axis=0)
    low, high = own.min(axis=0), own.max(axis=0)
    of_properties = np.stack([mean, spread, low, high, high - low], axis=1)
    return np.concatenate([[len(numbers), np.sqrt((shares**2).sum())], of_properties.ravel()])


@cache
def element_properties() -> np.ndarray:
    """[119, P] properties by atomic number; row 0 is no element.

    A value that no table has is the mean over the elements that have one, so that it says nothing.
    """
    from ase.data import atomic_masses, covalent_radii
    from pymatgen.core import Element

    found = np.full((len(SYMBOLS), len(PROPERTIES)), np.nan)
    for number, symbol in enumerate(SYMBOLS):
        if number:
            element = Element(symbol)
            found[number] = [
                number,
                atomic_masses[number],
                element.row,
                element.group,
                _tabulated(element, "mendeleev_no"),
                _tabulated(element, "X"),
                # 0.2 stands for an unknown radius in ASE.
                covalent_radii[number] if covalent_radii[number] > 0.2 else np.nan,
                _tabulated(element, "average_ionic_radius") or np.nan,
                _tabulated(element, "ionization_energy"),
                _tabulated(element, "electron_affinity"),
                _tabulated(element, "melting_point"),
                _tabulated(element, "molar_volume"),
                *_electrons(element, number),
            ]
    missing = np.isnan(found)
    return np.where(missing, np.nanmean(found, axis=0), found)


def _tabulated(element: Element, name: str) -> float:
    """Value of pymatgen's table; NaN where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of values that it does not have
        try:
            value = getattr(element, name)
        except (AttributeError, KeyError, ValueError):
            return np.nan
    return np.nan if value is None else float(value)


def _electrons(element: Element, number: int) -> list[float]:
    """Electrons outside the noble gas core of an element, by their angular momentum."""
    try:
        shells = element.full_electronic_structure
    except KeyError:  # beyond lawrencium the table has none
        return [np.nan] * 4
    inner = _filled(max((noble for noble in _NOBLE_GASES if noble < number), default=0))
    counts = dict.fromkeys("spdf", 0.0)
    for principal, letter, occupied in shells:
        if (principal, letter) not in inner:
            counts[letter] += occupied
    return list(counts.values())


@cache
def _filled(noble_gas: int) -> frozenset[tuple[int, str]]:
    """Shells of a noble gas, by atomic number."""
    from pymatgen.core import Element

    if not noble_gas:
        return frozenset()
    shells = Element(SYMBOLS[noble_gas]).full_electronic_structure
    return frozenset((principal, letter) for principal, letter, _ in shells)
