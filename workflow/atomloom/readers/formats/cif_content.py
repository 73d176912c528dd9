"""Elements of a CIF's sites, and the stated content of its cell: formula, Z, multiplicities.

The formula reveals a misread file: hydrogens without coordinates, symmetry not applied, a label
taken for another element. It knows nothing of operations or coordinates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.formats.cif_tags import UNKNOWN, Tags
from atomloom.structures.elements import NUMBERS, SYMBOLS

_SUM = "_chemical_formula_sum"
_OTHER_FORMULAS = ("_chemical_formula_structural", "_chemical_formula_moiety")
_Z = "_cell_formula_units_z"
_MULTIPLICITIES = (
    "_atom_site_symmetry_multiplicity",
    "_atom_site_site_symmetry_multiplicity",
    "_atom_site_wyckoff_symbol",
)

_NUMERAL = r"([0-9]+\.?[0-9]*|\.[0-9]+|)(?:\([0-9]+\))?"
_PART = re.compile(rf"([A-Z][a-z]?)\s?{_NUMERAL}")
_SHOUTED = re.compile(rf"([A-Z]+){_NUMERAL}")
_BRACKET = re.compile(
    r"(?:(?<![A-Za-z0-9.])([0-9]+\.?[0-9]*|\.[0-9]+))?\s*[(\[{]"
    rf"([^()\[\]{{}}]*[A-Za-z][^()\[\]{{}}]*)[)\]}}]\s*{_NUMERAL}"
)
_CHARGE = re.compile(r"(?<![A-Za-z])[0-9]*[+-]|[+-][0-9]*(?![A-Za-z0-9])")
_TYPE = re.compile(
    r"([A-Za-z]{1,2})(?:val|va)?"  # Cval and Siva are scattering factors
    r"(?:[0-9]?(?:\.[0-9]*)?[+-]+\.?|[+-]+[0-9]*\.?[0-9]*|\((?:[IVX]+|[0-9]*[+-])\)|_[0-9]+)?"
)
_MIXED = re.compile(r"([A-Z][a-z]?)[0-9.+-]*\s*[,/&+|:;]\s*[0-9.]*([A-Z][a-z]?)(?![a-z])")
_SHARES = re.compile(r"([A-Z][a-z]?)[0-9]*\.[0-9]+\s*([A-Z][a-z]?)(?![a-z])")
_TOGETHER = re.compile(r"([A-Z][a-z])([A-Z][a-z])")
_SITE_OF_TWO = re.compile(r"([A-GI-Z][a-z]?)[0-9]+([A-Z][a-z])[0-9]")
_SHARE = re.compile(r"[A-Z][a-z]?0?\.[0-9]+")
_WATER = re.compile(r"H[23]O[0-9]*[+-]?")
_GROUPS = frozenset(("H", "AT", "AC"))  # OH, NH and CH; WAT and VAC
_IONS = frozenset(("NH", "NO", "CN"))  # NH4+, NO3- and CN- are not nihonium, nobelium, copernicium
_SURE = {symbol: number for symbol, number in NUMBERS.items() if symbol not in ("D", "T")}
_RATIO_TOLERANCE = 1e-3
_UNITS_TOLERANCE = 0.02
_ROUNDED = 0.05
"""Max error, as a share of an atom or of atoms, due to rounded occupancies."""


class Formula(NamedTuple):
    """Formula stated in a file."""

    text: str
    """Text in the file."""
    counts: Mapping[int, float]
    """Number of atoms by atomic number."""
    errors: Mapping[int, float]
    """Max error of rounded counts."""
    units: float | None
    """Formula units in the cell, where given."""


class Evidence(NamedTuple):
    """Extent to which a file confirms what was read."""

    composition: bool
    """Whether its formula has the same elements in the same proportions."""
    counted: bool
    """Whether the number of atoms in the cell is the stated one."""


def formula_of(tags: Tags) -> Formula | None:
    """Formula of a file, if there is one that can be read with certainty."""
    for tag in (_SUM, *_OTHER_FORMULAS):
        text = tags.text(tag)
        if text is not None:
            formula = parse_formula(text, tags.first(_Z))
            if formula is not None:
                return formula
    return None


def parse_formula(text: str, units: str | None = None) -> Formula | None:
    """Parse a formula such as `C4 H4 O`, `NaCl`, `(Mg0.9 Fe0.1)2 Si O4` or `C2 H4, 2(H2 O)`.

    Args:
        text: value of a `_chemical_formula_` tag, without quotes.
        units: value of `_cell_formula_units_Z`.

    Returns:
        None where it cannot be read with certainty.
    """
    counts: dict[int, float] = {}
    errors: dict[int, float] = {}
    for symbol, count, error in _plain_parts(text) or _parts(text) or [("?", 0, 0)]:
        number = NUMBERS.get(symbol)
        if number is None or count <= 0:
            return None
        counts[number] = counts.get(number, 0) + count
        if error:
            errors[number] = errors.get(number, 0.0) + error
    try:
        z = float(units) if units is not None else None
    except ValueError:
        z = None
    return Formula(text, counts, errors, z if z and z > 0 else None)


def _plain_parts(text: str) -> list[tuple[str, float, float]] | None:
    """Parts of a formula such as `C4 H4 O`, the usual form; None for any other."""
    found = [_plain_part(part) for part in text.split()]
    known = [part for part in found if part is not None]
    return known if len(known) == len(found) else None


@lru_cache(maxsize=4096)
def _plain_part(part: str) -> tuple[str, float, float] | None:
    symbol = part.rstrip("0123456789")
    return (symbol, int(part[len(symbol) :] or 1), 0.0) if symbol in NUMBERS else None


def _parts(text: str, factor: float = 1.0) -> list[tuple[str, float, float]] | None:
    """(symbol, count, rounding error) of each part, brackets multiplied out; None if unreadable."""
    text = _CHARGE.sub(" ", text)
    found: list[tuple[str, float, float]] = []
    bracket = _BRACKET.search(text)
    while bracket is not None:
        before, inner, after = bracket.groups()
        inside = _parts(inner, factor * float(before or 1) * float(after or 1))
        if inside is None:
            return None
        found += inside
        text = text[: bracket.start()] + " , " + text[bracket.end() :]
        bracket = _BRACKET.search(text)
    shouted = text.upper() == text
    end = 0
    for part in (_SHOUTED if shouted else _PART).finditer(text):
        if text[end : part.start()].strip(" ,"):
            return None
        end = part.end()
        symbol, digits = part.groups()
        if shouted and len(symbol) > 1:
            letters = all(letter in NUMBERS for letter in symbol)
            if letters and symbol.capitalize() in NUMBERS:
                return None  # CO is ambiguous
            if letters:
                found += [(letter, factor, 0.0) for letter in symbol[:-1]]
            symbol = symbol[-1] if letters else symbol.capitalize()
        rounding = 0.5 * 10.0 ** -len(digits.partition(".")[2]) if "." in digits else 0.0
        found.append((symbol, factor * float(digits or 1), factor * rounding))
    return None if text[end:].strip(" ,") else found


def elements_of(sites: Mapping[str, list[str]], count: int, formula: Formula | None) -> np.ndarray:
    """[N] uint8 atomic numbers, by type symbol, else by label.

    Raises:
        AtomloomError: for a site that is not a single element, or not one of the formula where only
            that decides.
    """
    made_of = frozenset(formula.counts) if formula else None
    symbols = sites.get("_atom_site_type_symbol", [])
    labels = sites.get("_atom_site_label", [])
    if len(symbols) == count:
        if labels and not "".join(labels).isalnum():
            for label in labels:
                _refuse_mixture(label, made_of)
        try:
            kinds = {
                symbol: _SURE.get(symbol) or _of_type(symbol, made_of)
                for symbol in dict.fromkeys(symbols)
            }
            # much faster than an array from a list
            return np.frombuffer(bytearray(map(kinds.__getitem__, symbols)), dtype=np.uint8)
        except AtomloomError:
            if UNKNOWN.isdisjoint(symbols):
                raise
    if len(labels) != count:
        raise AtomloomError("atom sites without element symbols")
    return np.array([_of_label(label, made_of) for label in labels], dtype=np.uint8)


@lru_cache(maxsize=4096)
def _of_type(symbol: str, made_of: frozenset[int] | None) -> int:
    """Atomic number of a type symbol such as Fe, Fe3+ or 'O2-'."""
    text = symbol.strip("'\" ")
    found = _TYPE.fullmatch(text)
    if found is None:
        _refuse_mixture(text, made_of)
        if re.fullmatch(r"[A-Za-z]{1,2}[0-9]+[A-Za-z]?'*", text) and not _WATER.fullmatch(text):
            return _of_label(text, made_of)  # labels are in the column of types
        raise AtomloomError(f"unknown element `{text[:20]}`")
    name = found.group(1)
    number = NUMBERS.get(name) or NUMBERS.get(name.capitalize())
    isotope = name in ("D", "T")
    if number is None or name in _IONS or (isotope and not _hydrogen(name, made_of)):
        raise AtomloomError(f"unknown element `{text[:20]}`")
    return number


def _hydrogen(name: str, made_of: frozenset[int] | None) -> bool:
    """Whether D or T is an isotope: D unless the formula has no hydrogen, T (also a tetrahedral
    site) only if it has."""
    return 1 in made_of if made_of is not None else name == "D"


@lru_cache(maxsize=4096)
def _of_label(label: str, made_of: frozenset[int] | None) -> int:
    """Atomic number of a site label such as Fe1, O2A or CL1, by the formula where it is ambiguous."""
    text = label.strip("'\" ")
    _refuse_mixture(text, made_of, _SITE_OF_TWO)
    if _SHARE.fullmatch(text):
        raise AtomloomError(f"disordered site: `{text[:40]}` is a share of an atom, or a mixture")
    found = re.match(r"[A-Za-z]+", text)
    if made_of is None and _WATER.fullmatch(text):
        found = None
    if found is None:
        raise AtomloomError(f"unknown element in site label `{text[:20]}`")
    letters = found.group()
    long, short = NUMBERS.get(letters[:2].capitalize()), NUMBERS.get(letters[0].upper())
    if len(letters) == 1:
        long = None
        if letters in ("D", "T") and not _hydrogen(letters, made_of):
            short = None
    elif letters[:2].istitle():  # Fe1; Ow is oxygen unless the formula contradicts
        short = short if long is None and made_of is not None else None
    if made_of is None:
        if letters[1:].upper() in _GROUPS or len(letters) > 2:
            plain = letters[:2].istitle() and letters[2:].isupper() and len(letters) == 3
            plain = plain or letters in ("Rh", "Th")
            long, short = (long, None) if plain else (None, None)
        possible = {number for number in (long, short) if number}
    else:
        possible = {number for number in (long, short) if number} & made_of
    if len(possible) != 1:
        names = " or ".join(SYMBOLS[number] for number in sorted(possible))
        if possible:
            raise AtomloomError(f"site label `{text[:20]}` may be {names}: no type symbols")
        known = "" if made_of is None else f": not one of the formula's ({_names(made_of)})"
        raise AtomloomError(f"unknown element in site label `{text[:20]}`{known}")
    return possible.pop()


def _refuse_mixture(text: str, made_of: frozenset[int] | None, *more: re.Pattern[str]) -> None:
    """Refuse two elements on one site, as in Nb,Zr or Fe/Mn or Nb0.8Zr0.2."""
    for pattern in (_MIXED, _SHARES, _TOGETHER, *more):
        found = pattern.match(text.strip("'\""))
        if found is None:
            continue
        pair = {NUMBERS.get(symbol) for symbol in found.groups()}
        if None not in pair and len(pair) == 2 and (made_of is None or pair <= made_of):
            raise AtomloomError(f"disordered site: `{text[:40]}` is a mixture")


def check_content(
    numbers: np.ndarray,
    formula: Formula | None,
    listed: Sequence[int] | None = None,
    read: Sequence[int] = (),
    operations: int = 1,
) -> Evidence:
    """Compare the atoms read with the content that the file states.

    Args:
        numbers: [N] atomic numbers of all atoms of the cell.
        formula: of the file.
        listed: multiplicity of each site, as stated in the file.
        read: number of atoms read for each site.
        operations: number of symmetry operations.

    Raises:
        AtomloomError: where they disagree.
    """
    telling = operations > 1 and listed is not None and list(listed) == list(read)
    counted = False
    if formula is not None:
        ratio = _formula_units(numbers, formula)
        counted = _is_count(ratio, formula)
        if not (counted or telling):
            _check_units(ratio, numbers, formula, operations)
    if listed is not None and not (telling or counted):
        _check_multiplicities(listed, read, operations)
    return Evidence(formula is not None, counted or telling)


def check_amounts(amounts: Mapping[int, float], formula: Formula) -> None:
    """Compare the content of a cell of partially occupied sites with that stated in the file.

    Args:
        amounts: number of atoms by atomic number, fractions included.
        formula: of the file.

    Raises:
        AtomloomError: where they disagree beyond the rounding of occupancies.
    """
    whole = sum(amounts.values()) / sum(formula.counts.values())
    candidates = [whole] if formula.units is None else [formula.units, 1.0]
    if any(_holds(amounts, formula, units) for units in candidates):
        return
    read = " ".join(f"{SYMBOLS[z]}{amount:.4g}" for z, amount in sorted(amounts.items()))
    given = "" if formula.units is None else f" with Z = {formula.units:g}"
    missing = formula.counts.keys() - amounts.keys()
    hint = f": no {_names(missing)} among the sites" if missing else ""
    raise AtomloomError(f"{read} read, but the formula is {formula.text}{given}{hint}")


def _holds(amounts: Mapping[int, float], formula: Formula, units: float) -> bool:
    """Whether a cell holds this many formula units, within rounding of occupancies."""
    return all(
        abs(amounts.get(z, 0.0) / units - count)
        <= _ROUNDED * max(count, 1.0) + formula.errors.get(z, 0.0)
        for z, count in ({z: 0.0 for z in amounts} | dict(formula.counts)).items()
    )


def _check_units(ratio: float, numbers: np.ndarray, formula: Formula, operations: int) -> None:
    units = formula.units
    whole = abs(ratio - max(1, round(ratio))) < _UNITS_TOLERANCE * ratio
    stale = units is None or abs(units - len(numbers) / len(formula.counts)) < 1e-3  # as in OQMD
    larger = (
        operations == 1 and units is not None and ratio > units
    )  # a supercell of the stated cell
    if not whole or not (stale or larger):
        z = "" if units is None else f" with Z = {units:g}"
        raise AtomloomError(
            f"{_counts(numbers)} read, which is not what the formula {formula.text}{z} says"
        )


def _check_multiplicities(listed: Sequence[int], read: Sequence[int], operations: int) -> None:
    pairs = list(zip(listed, read, strict=True))
    if all(m * n == operations for m, n in pairs):
        return  # some files give the order of the site symmetry instead
    for site, (m, n) in enumerate(pairs):
        if m != n:
            raise AtomloomError(
                f"site {site} has the multiplicity {m} in the file, but gives {n} atoms"
            )


def _formula_units(numbers: np.ndarray, formula: Formula) -> float:
    """Number of formula units read.

    Raises:
        AtomloomError: when the composition differs.
    """
    given, errors = formula.counts, formula.errors
    content = numbers.tobytes()
    if all(content.count(z) == n for z, n in given.items()) and sum(given.values()) == len(content):
        return 1.0
    read = Counter(content)
    if read.keys() == given.keys():
        low = max(n / (given[z] + errors.get(z, 0.0)) for z, n in read.items())
        high = min(n / max(given[z] - errors.get(z, 0.0), 1e-9) for z, n in read.items())
        if low <= high * (1 + _RATIO_TOLERANCE):
            return len(numbers) / sum(given.values())
    missing = formula.counts.keys() - read.keys()
    hint = f": no {_names(missing)} among the sites" if missing else ""
    raise AtomloomError(f"{_counts(numbers)} read, but the formula is {formula.text}{hint}")


def _is_count(ratio: float, formula: Formula) -> bool:
    """Whether the formula accounts for the cell: times Z, or as the whole cell where Z divides it."""
    units = formula.units
    if units is None:
        return False
    tolerance = _UNITS_TOLERANCE * ratio
    if abs(ratio - units) < tolerance:
        return True
    whole = all(abs(n / units - round(n / units)) < 1e-6 for n in formula.counts.values())
    return whole and abs(ratio - 1) < tolerance


def multiplicities_of(sites: Mapping[str, list[str]], count: int) -> list[int] | None:
    """Multiplicity of each site, where the file gives all of them."""
    for tag in _MULTIPLICITIES:
        texts = sites.get(tag, [])
        if len(texts) != count:
            continue
        if texts.count("1") == count:
            return [1] * count
        found = [re.match(r"['\"]?([0-9]+)", text) for text in texts]
        if all(found):
            return [int(match.group(1)) for match in found if match]
    return None


def _counts(numbers: np.ndarray) -> str:
    counts = Counter(SYMBOLS[number] for number in numbers.tolist())
    return " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))


def _names(numbers: Iterable[int]) -> str:
    return ", ".join(SYMBOLS[number] for number in sorted(numbers))
