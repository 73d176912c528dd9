"""Element symbols and atomic numbers, without the start-up cost of a chemistry library.

It knows nothing of files or structures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from atomloom.errors import AtomloomError

SYMBOLS = (  # noqa: SIM905 - a list would take 120 lines
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf "
    "Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
).split()
"""Symbol by atomic number; 0 is a placeholder, not an element."""

NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}
NUMBERS |= {"D": 1, "T": 1}  # isotopes of hydrogen, the same element to every model here
_SPECIES = re.compile(r"([A-Z][a-z]?)(?:[0-9]+|_.+)?")


def atomic_number(symbol: str) -> int:
    """Atomic number of a symbol in any case, deuterium and tritium included.

    Raises:
        AtomloomError: when there is no such element.
    """
    number = NUMBERS.get(symbol) or NUMBERS.get(symbol.strip().capitalize())
    if number is None:
        raise AtomloomError(f"unknown element `{symbol[:20]}`")
    return number


def atomic_numbers(symbols: Iterable[str]) -> np.ndarray:
    """[N] uint8 atomic numbers of symbols, or of atomic numbers written as text.

    Raises:
        AtomloomError: when one of them is not an element.
    """
    symbols = list(symbols)
    try:
        return np.array([NUMBERS[symbol] for symbol in symbols], dtype=np.uint8)
    except KeyError:
        return np.array([_number_of(symbol) for symbol in symbols], dtype=np.uint8)


def species_number(species: str) -> int:
    """Atomic number of a species that may have a label after its element: Fe, Fe1, Fe_up.

    Raises:
        AtomloomError: when there is no such element, or the label after it is of no known form.
    """
    found = _SPECIES.fullmatch(species)
    if found is None or found[1] not in NUMBERS:
        raise AtomloomError(f"unknown element `{species[:20]}`")
    return NUMBERS[found[1]]


def _number_of(symbol: str) -> int:
    if symbol.isdecimal() and 0 < int(symbol[:9]) < len(SYMBOLS):
        return int(symbol)
    return atomic_number(symbol)
