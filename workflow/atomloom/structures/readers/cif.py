"""CIF: cell, sites and symmetry, read by gemmi and expanded here; pymatgen where gemmi gives up.

Files in P1 take a short path. Otherwise each site is moved onto its special position (the mean of
the images that its stabiliser maps onto it) and every image is kept once, so that coordinates
rounded to a few decimals never double an atom. Coordinates keep all the digits of the file.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import NUMBERS, SYMBOLS, atomic_number
from atomloom.structures.readers.base import Piece, decode, read_limited
from atomloom.structures.readers.ordering import OPTIONS as ORDERING
from atomloom.structures.readers.ordering import TODO, ordered
from atomloom.structures.structure import Structure

NAME = "cif"
ABOUT = "Crystallographic Information File, with or without symmetry"
PATTERNS = ("*.cif",)
HINTS = ("*.mcif",)
OPTIONS = {
    **ORDERING,
    "site_tolerance": "images of a site closer than this (A) are one atom, 0.05 unless given",
}

SITE_TOLERANCE = 0.05  # A; far above the rounding of three decimals, far below any bond
FULL_OCCUPANCY = 1e-3
MAX_OPERATIONS = 192  # of the groups with the most, in their conventional cells
MAX_PYMATGEN_BYTES = 1 << 20  # pymatgen's parser is slow; a crystal that needs it is small

_OPERATIONS = (
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv.pos_as_xyz",
)
_NAMES = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_space_group_name_H-M_ref",
    "_space_group_name_H-M",
    "_symmetry_space_group_name_Hall",
    "_space_group_name_Hall",
    "_symmetry_Int_Tables_number",
    "_space_group_IT_number",
)
_CELL = tuple(f"_cell_length_{axis}" for axis in "abc") + tuple(
    f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")
)
_FRACT = tuple(f"_atom_site_fract_{axis}" for axis in "xyz")
_COLUMNS = ("_atom_site_type_symbol", "_atom_site_label", "_atom_site_occupancy")
_BLOCK = re.compile(rb"^data_\S*", re.MULTILINE | re.IGNORECASE)
_HEAD = re.compile(rb"\A(?:\xef\xbb\xbf)?(?:\s*#[^\n]*\n)*\s*data_", re.IGNORECASE)
_EVALUATED = re.compile(rb"transform_\w*_pp", re.IGNORECASE)
"""A tag whose value pymatgen evaluates as a formula, however long that takes."""
_INTEGERS = re.compile("[0-9]+")
_UNKNOWN = frozenset((None, "?", "."))


def sniff(head: bytes) -> bool:
    """A `data_` block first, but for comments."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record a data block with atom sites; the whole file where there is one block or none."""
    payload = read_limited(stream)
    if payload.count(b"data_") < 2 and b"DATA_" not in payload and b"Data_" not in payload:
        yield Piece(payload, 0)
        return
    starts = [match.start() for match in _BLOCK.finditer(payload)]
    blocks = [
        (start, end)
        for start, end in zip(starts, [*starts, len(payload)][1:], strict=True)
        if payload.find(b"_atom_site", start, end) >= 0
    ]
    # a text field that quotes `data_` would cut a file in the wrong place
    if len(starts) < 2 or len(blocks) < 2 or re.search(rb"^;[^;]*^data_[^;]*^;", payload, re.M):
        yield Piece(payload, 0)
        return
    for start, end in blocks:
        yield Piece(payload[start:end], start)


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """The crystal of the first data block that has atom sites."""
    import gemmi

    if options.get("order"):
        return _by_pymatgen(payload, options)
    try:
        document = gemmi.cif.read_string(payload)
    except (ValueError, RuntimeError) as error:
        return _where_gemmi_gives_up(payload, error)
    for block in document:
        sites = _sites(block)
        if sites:
            break
    else:
        if any(block.find_values("_atom_site_Cartn_x") for block in document):
            raise AtomloomError("only Cartesian sites (_atom_site_Cartn_x), no fractional ones")
        raise AtomloomError(
            "no atom sites (_atom_site_fract_x)" if len(document) else "no data block"
        )
    cell = _cell_matrix(*[_number(block.find_value(tag), tag) for tag in _CELL])
    fractional = _fractional(sites)
    numbers = _elements(sites, block, len(fractional))
    _refuse_disorder(sites, len(fractional))
    operations = _operations(block)
    if operations is not None:
        tolerance = float(options.get("site_tolerance", SITE_TOLERANCE))
        numbers, fractional = _expand(numbers, fractional, cell, *operations, tolerance)
    if payload.startswith(b"# generated using pymatgen"):
        _check_count(block, len(numbers))
    return Structure(numbers, fractional @ cell, cell, np.ones(3, dtype=bool))


def _sites(block: Any) -> dict[str, list[str]]:
    """Columns of the table of atom sites by their tags in lower case; empty where there is none."""
    loop = block.find_loop(_FRACT[0]).get_loop()
    if loop is not None:
        # all values at once, then every n-th: much quicker than asking for column after column
        values, tags = loop.values, loop.tags
        width = len(tags)
        return {tag.lower(): values[place::width] for place, tag in enumerate(tags)}
    if not block.find_values(_FRACT[0]):
        return {}
    return {tag: list(block.find_values(tag)) for tag in (*_FRACT, *_COLUMNS)}  # a single site


def _number(text: str | None, tag: str) -> float:
    try:
        return float(text)  # type: ignore[arg-type] # None is reported below
    except (TypeError, ValueError):
        import gemmi

        value = math.nan if text is None else gemmi.cif.as_number(text)
        if math.isnan(value):
            raise AtomloomError(f"{tag} is {'missing' if text in _UNKNOWN else text}") from None
        return value


def _cell_matrix(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> np.ndarray:
    """[3, 3] rows a, b, c in pymatgen's orientation: c along z, a in the xz plane."""
    if not (min(a, b, c) > 0 and all(0 < angle < 180 for angle in (alpha, beta, gamma))):
        raise AtomloomError(
            f"impossible cell {a:g} {b:g} {c:g} A, {alpha:g} {beta:g} {gamma:g} degrees"
        )
    (cos_a, sin_a), (cos_b, sin_b), (cos_g, _) = map(_cosine_sine, (alpha, beta, gamma))
    cos_star = (cos_a * cos_b - cos_g) / (sin_a * sin_b)
    if abs(cos_star) >= 1:
        raise AtomloomError(f"impossible cell angles {alpha:g} {beta:g} {gamma:g} degrees")
    sin_star = math.sqrt(1 - cos_star * cos_star)
    return np.array(
        [
            [a * sin_b, 0.0, a * cos_b],
            [-b * sin_a * cos_star, b * sin_a * sin_star, b * cos_a],
            [0.0, 0.0, c],
        ]
    )


def _cosine_sine(degrees: float) -> tuple[float, float]:
    if degrees == 90:
        return 0.0, 1.0
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _fractional(sites: Mapping[str, list[str]]) -> np.ndarray:
    """[N, 3] fractional coordinates of the sites listed."""
    texts = [sites.get(tag, []) for tag in _FRACT]
    count = len(texts[0])
    if not count == len(texts[1]) == len(texts[2]):
        missing = next(
            tag for tag, column in zip(_FRACT, texts, strict=True) if len(column) != count
        )
        raise AtomloomError(f"atom sites without {missing}")
    try:
        values = [*map(float, texts[0]), *map(float, texts[1]), *map(float, texts[2])]
    except ValueError:  # with a standard uncertainty, as in 0.1234(5)
        values = [
            _number(text, f"{tag} of site {site}")
            for tag, column in zip(_FRACT, texts, strict=True)
            for site, text in enumerate(column)
        ]
    return np.array(values).reshape(3, count).T


def _elements(sites: Mapping[str, list[str]], block: Any, count: int) -> np.ndarray:
    """[N] uint8 atomic numbers, by type symbol, else by label."""
    symbols = sites.get("_atom_site_type_symbol", [])
    if len(symbols) == count:
        try:
            return np.array([_of_type(symbol) for symbol in symbols], dtype=np.uint8)
        except AtomloomError:
            if not any(symbol in _UNKNOWN for symbol in symbols):
                raise
    labels = sites.get("_atom_site_label", [])
    if len(labels) != count:
        raise AtomloomError("atom sites without element symbols")
    formula = _formula(block) or Counter[int]()
    return np.array([_of_label(label, frozenset(formula)) for label in labels], dtype=np.uint8)


@lru_cache(maxsize=4096)
def _of_type(symbol: str) -> int:
    """Atomic number of a type symbol such as Fe, Fe3+ or 'O2-'."""
    found = re.match(r"[A-Za-z]+", symbol.strip("'\""))
    if found is None:
        raise AtomloomError(f"unknown element `{symbol[:20]}`")
    return atomic_number(found.group())


@lru_cache(maxsize=4096)
def _of_label(label: str, formula: frozenset[int]) -> int:
    """Atomic number of a site label such as Fe1, O2A or CL1, by the formula where it is ambiguous."""
    letters = re.match(r"[A-Za-z]{1,2}", label.strip("'\""))
    if letters is None:
        raise AtomloomError(f"unknown element in site label `{label[:20]}`")
    text = letters.group()
    long, short = NUMBERS.get(text.capitalize()), NUMBERS.get(text[0].upper())
    if len(text) == 2 and text[1].islower() and text[0].isupper():
        short = None
    possible = {number for number in (long, short) if number}
    if len(possible) > 1:
        possible = possible & formula or possible
    if len(possible) != 1:
        names = " or ".join(SYMBOLS[number] for number in sorted(possible))
        raise AtomloomError(
            f"site label `{label[:20]}` may be {names}: no type symbols"
            if possible
            else f"unknown element in site label `{label[:20]}`"
        )
    return possible.pop()


def _refuse_disorder(sites: Mapping[str, list[str]], count: int) -> None:
    occupancy = sites.get("_atom_site_occupancy", [])
    if occupancy.count("1") == len(occupancy):
        return
    for site, text in enumerate(occupancy):
        if text == "1" or text in _UNKNOWN:
            continue
        value = _number(text, f"_atom_site_occupancy of site {site}")
        if not abs(value - 1) <= FULL_OCCUPANCY:
            labels = sites.get("_atom_site_label", [])
            name = f" {labels[site]}" if len(labels) == count else ""
            raise AtomloomError(f"disordered site{name} (occupancy {value:g})", todo=TODO)


def _operations(block: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """([M, 3, 3] rotations, [M, 3] translations) of the space group; None for P1."""
    for tag in _OPERATIONS:
        texts = list(block.find_values(tag))
        if texts:
            return _operation_matrices(tuple(texts))
    names = {tag: block.find_value(tag) for tag in _NAMES}
    names = {tag: value for tag, value in names.items() if value not in _UNKNOWN}
    return _operations_by_name(
        tuple(names.items()),
        *(
            _number(block.find_value(tag), tag)
            for tag in ("_cell_angle_alpha", "_cell_angle_gamma")
        ),
    )


@lru_cache(maxsize=512)
def _operation_matrices(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    import gemmi

    if len(texts) > MAX_OPERATIONS:
        raise AtomloomError(f"{len(texts)} symmetry operations, more than any space group has")
    operations = []
    for text in texts:
        try:
            operations.append(gemmi.Op(gemmi.cif.as_string(text).replace(" ", "")))
        except (RuntimeError, ValueError):
            raise AtomloomError(f"symmetry operation `{text[:60]}` cannot be read") from None
    return _matrices(operations)


@lru_cache(maxsize=512)
def _operations_by_name(
    names: tuple[tuple[str, str], ...], alpha: float, gamma: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Operations of a group that the file only names; None where it names none (taken as P1)."""
    import gemmi

    if not names:
        return None
    for tag, value in names:
        text = gemmi.cif.as_string(value).strip()
        try:
            if "number" in tag:
                group = gemmi.find_spacegroup_by_number(int(text))
            elif "Hall" in tag:
                return _matrices(list(gemmi.symops_from_hall(text)))
            else:
                group = gemmi.find_spacegroup_by_name(text, alpha, gamma)
        except (RuntimeError, ValueError):
            continue
        if group is not None:
            return _matrices(list(group.operations()))
    raise AtomloomError(f"unknown space group {names[0][1]} and no symmetry operations")


def _matrices(operations: list[Any]) -> tuple[np.ndarray, np.ndarray] | None:
    if len(operations) == 1 and operations[0].triplet() == "x,y,z":
        return None
    scale = float(operations[0].DEN)
    rotations = np.array([operation.rot for operation in operations]) / scale
    return rotations, np.array([operation.tran for operation in operations]) / scale


def _expand(
    numbers: np.ndarray,
    fractional: np.ndarray,
    cell: np.ndarray,
    rotations: np.ndarray,
    translations: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """All atoms of the cell from the sites listed: every image once, special positions exact.

    Raises:
        AtomloomError: when two listed sites are images of each other.
    """
    all_numbers: list[int] = []
    all_images: list[np.ndarray] = []
    for number, site in zip(numbers.tolist(), fractional, strict=True):
        moved = rotations @ site + translations - site
        moved -= np.rint(moved)
        fixed = np.linalg.norm(moved @ cell, axis=1) < tolerance
        special = site + moved[fixed].mean(axis=0) if fixed.any() else site
        images = rotations @ special + translations
        images -= np.floor(images)
        kept = _distinct(images, cell, tolerance)
        all_numbers += [number] * len(kept)
        all_images.append(kept)
    stacked = np.concatenate(all_images) if all_images else np.zeros((0, 3))
    return np.array(all_numbers, dtype=np.uint8), stacked


def _distinct(images: np.ndarray, cell: np.ndarray, tolerance: float) -> np.ndarray:
    """The images that are apart from every one before them."""
    apart = images[:, None] - images[None]
    apart -= np.rint(apart)
    same = np.einsum("ijk,kl->ijl", apart, cell, optimize=True)
    close = np.einsum("ijk,ijk->ij", same, same) < tolerance * tolerance
    first = np.argmax(close, axis=1)  # of each image, the earliest one in the same place
    return images[first == np.arange(len(images))]


def _formula(block: Any) -> Counter[int] | None:
    """Atomic numbers and counts of _chemical_formula_sum, if it is given and can be read."""
    import gemmi

    text = block.find_value("_chemical_formula_sum")
    if text in _UNKNOWN:
        return None
    counts: Counter[int] = Counter()
    for part in re.findall(r"([A-Za-z]+)([0-9.]*)", gemmi.cif.as_string(text)):
        number = NUMBERS.get(part[0])
        if number is None:
            return None
        try:
            counts[number] += float(part[1] or 1)  # type: ignore[assignment]
        except ValueError:
            return None
    return counts


def _check_count(block: Any, count: int) -> None:
    """pymatgen writes the formula of the whole cell: a file cut short betrays itself by it."""
    text = block.find_value("_chemical_formula_sum") or ""
    expected = sum(map(int, _INTEGERS.findall(text)))
    if expected != count and expected and "." not in text:
        raise AtomloomError(f"{count} atoms read, but the formula {text} has {expected}")


def _where_gemmi_gives_up(payload: bytes, error: Exception) -> Structure:
    """pymatgen's more lenient reading, taken only where the formula in the file confirms it."""
    message = str(error).replace("data:", "line ", 1)
    lenient = None
    if len(payload) <= MAX_PYMATGEN_BYTES and b"_atom_site_fract_x" in payload:
        try:
            lenient = _by_pymatgen(payload, {})
        except AtomloomError:
            lenient = None
    if lenient is not None and _confirms(payload, lenient.numbers):
        return lenient
    raise AtomloomError(f"not valid CIF: {message}")


def _confirms(payload: bytes, numbers: np.ndarray) -> bool:
    found = re.search(
        rb"^_chemical_formula_sum\s+(?:'([^'\n]*)'|\"([^\"\n]*)\"|(\S+))", payload, re.M
    )
    if found is None:
        return False
    text = next(group for group in found.groups() if group is not None).decode("latin-1")
    parts = re.findall(r"([A-Z][a-z]?)([0-9.]*)", text)
    try:
        formula = {NUMBERS[symbol]: float(count or 1) for symbol, count in parts}
    except (KeyError, ValueError):
        return False
    read = Counter(numbers.tolist())
    if set(read) != set(formula):
        return False
    ratios = [read[number] / formula[number] for number in read if formula[number] > 0]
    return len(ratios) == len(read) and max(ratios) - min(ratios) < 1e-3


def _by_pymatgen(payload: bytes, options: Mapping[str, Any]) -> Structure:
    from pymatgen.io.cif import CifParser

    from atomloom.structures.adapters import to_structure

    if _EVALUATED.search(payload):
        raise AtomloomError(
            "a magnetic space group given by a transformation is not read by pymatgen"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = CifParser.from_str(decode(payload), frac_tolerance=0)
            (structure, *_) = parser.parse_structures(primitive=False)
    except Exception as error:  # pymatgen raises a dozen kinds for files it cannot make sense of
        raise AtomloomError(f"pymatgen cannot read it: {error or type(error).__name__}") from None
    return ordered(structure, options) if options.get("order") else to_structure(structure)
