"""Units named in files, in eV and A. Constants are those of CODATA 2018.

It knows words and numbers, nothing of files.
"""

from __future__ import annotations

import re
from functools import lru_cache

HARTREE = 27.211386245988  # eV
RYDBERG = HARTREE / 2
BOHR = 0.529177210903  # A
KILOBAR = 6.241509074460763e-4  # eV/A^3: 1e8 Pa
_KJ_PER_MOL = 0.010364269656262175  # eV
_KCAL_PER_MOL = 4.184 * _KJ_PER_MOL

_ATOMIC = frozenset(("au", "a.u.", "atomic", "atomicunit", "atomicunits", "hartreeatomicunits"))
_ENERGIES = {
    1.0: "ev electronvolt electronvolts",
    1e-3: "mev",
    HARTREE: "ha hartree hartrees eh e_h au a.u.",
    1e-3 * HARTREE: "mha mhartree",
    RYDBERG: "ry ryd rydberg rydbergs",
    _KCAL_PER_MOL: "kcal/mol kcalmol",
    _KJ_PER_MOL: "kj/mol kjmol",
}
_LENGTHS = {
    1.0: "a ang angs angstrom angstroms aangstrom",
    BOHR: "bohr bohrs bohrradius a0 a_0 au a.u.",
    10.0: "nm nanometer nanometers",
    0.01: "pm picometer picometers",
}
_PRESSURES = {
    10 * KILOBAR: "gpa",
    KILOBAR: "kbar kb kilobar",
    0.01 * KILOBAR: "mpa",
    0.001 * KILOBAR: "bar",
    1e-8 * KILOBAR: "pa",
}


def _by_word(words: dict[float, str]) -> dict[str, float]:
    return {word: value for value, text in words.items() for word in text.split()}


_ENERGY, _LENGTH, _PRESSURE = map(_by_word, (_ENERGIES, _LENGTHS, _PRESSURES))


@lru_cache(maxsize=256)
def unit_factor(text: str, energy: int, length: int) -> float | None:
    """Factor from a unit to eV^energy A^length.

    Args:
        text: such as `Hartree/Bohr`, `eV/Å**3`, `kcal/mol/A` or `GPa`, in any case.
        energy: 1 for energies, forces and stresses, 0 for lengths.
        length: 1 for lengths, 0 for energies, -1 for forces, -3 for stresses.

    Returns:
        The factor, or None where the unit is unknown or not one of this quantity.
    """
    word = re.sub(r"[\s{}()\[\]]", "", text).lower()
    for old, new in (
        ("ångström", "a"), ("angström", "a"), ("ångstrom", "a"), ("å", "a"), ("\u212b", "a"), ("_per_", "/"),
        ("**", "^"), ("³", "^3"),
    ):  # fmt: skip
        word = word.replace(old, new)
    if word in _ATOMIC:
        return HARTREE**energy * BOHR**length
    if (energy, length) == (1, -3) and word in _PRESSURE:
        return _PRESSURE[word]
    if energy == 0:
        return _LENGTH.get(word)
    numerator, _, denominator = word.rpartition("/") if length else (word, "", "")
    if numerator not in _ENERGY:
        return None
    if not length:
        return _ENERGY[numerator]
    base, _, power = denominator.partition("^")
    if not power and base[-1:].isdigit() and base not in _LENGTH:
        base, power = base[:-1], base[-1]
    if base not in _LENGTH or power != ("3" if length == -3 else ""):
        return None
    return _ENERGY[numerator] / _LENGTH[base] ** -length
