"""CIF: cell, sites and symmetry, read by gemmi and expanded here; read by pymatgen where gemmi fails.

Files in P1 take a short path. Otherwise each site is moved onto its special position (the mean of
the images that its stabiliser maps onto it) and every image is kept once, so that coordinates
rounded to a few decimals never double an atom. Coordinates keep all the digits of the file. The
result is compared with the file's formula, Z and multiplicities (`cif_content`), which also decide
where the name of the symmetry (`cif_symmetry`) leaves a choice.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import BYTE_ORDER_MARK, Piece, decode, read_limited
from atomloom.readers.formats.cif_content import (
    Evidence,
    Formula,
    check_amounts,
    check_content,
    elements_of,
    formula_of,
    multiplicities_of,
    parse_formula,
)
from atomloom.readers.formats.cif_symmetry import (
    Ranks,
    Setting,
    check_metric,
    larger_settings,
    settings,
)
from atomloom.readers.formats.cif_tags import UNKNOWN, Tags
from atomloom.readers.ordering import OPTIONS as ORDERING
from atomloom.readers.ordering import TODO, ordered
from atomloom.structures.adapters import to_structure
from atomloom.structures.structure import Structure

NAME = "cif"
ABOUT = "Crystallographic Information File, with or without symmetry"
PATTERNS = ("*.cif",)
HINTS = ("*.mcif",)
OPTIONS = {
    **ORDERING,
    "site_tolerance": "images of a site closer than this (A) are one atom; default 0.05",
}

SITE_TOLERANCE = 0.05  # A; far above the rounding of three decimals, far below any bond
OVERLAP = 0.5  # A; atoms this close are never real
FULL_OCCUPANCY = 1e-3
MAX_PYMATGEN_BYTES = 1 << 20  # pymatgen's parser is slow; a crystal that needs it is small

_CELL = tuple(f"_cell_length_{axis}" for axis in "abc") + tuple(
    f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")
)
_PERIODIC = np.ones(3, dtype=bool)
_FRACT = tuple(f"_atom_site_fract_{axis}" for axis in "xyz")
_HEAD = re.compile(rb"\A(?:\xef\xbb\xbf)?(?:\s*#[^\n]*\n)*\s*data_", re.IGNORECASE)
_EVALUATED = re.compile(rb"transform_\w*_pp", re.IGNORECASE)
"""Tag whose value pymatgen evaluates as a formula, however long that takes."""
# what may contain `data_` without starting a block, and the start of a block
_TOKEN = re.compile(
    rb"""^;.*?(?:^;|\Z) | (?<!\S)(?: \#[^\n]* | '[^\n]*?'(?!\S) | "[^\n]*?"(?!\S) | (data_\S+) )""",
    re.MULTILINE | re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_SITES = re.compile(rb"^\s*(?:loop_\s+)?_atom_site[_.](?!aniso|type)", re.MULTILINE | re.IGNORECASE)


def sniff(head: bytes) -> bool:
    """Whether a `data_` block comes first, apart from comments."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per data block with atom sites; the whole file where there is one block or none."""
    payload = read_limited(stream)
    if payload.count(b"data_") < 2 and b"DATA_" not in payload and b"Data_" not in payload:
        yield Piece(payload, 0)
        return
    lines = payload if b"\n" in payload else payload.replace(b"\r", b"\n")
    starts = [found.start() for found in _TOKEN.finditer(lines) if found.group(1)]
    blocks = [
        (start, end)
        for start, end in zip(starts, [*starts, len(payload)][1:], strict=True)
        if _SITES.search(lines, start, end)
    ]
    if len(blocks) < 2:
        yield Piece(payload, 0)
        return
    for start, end in blocks:
        yield Piece(payload[start:end], start)


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Crystal of the first data block that has atom sites."""
    payload = _plain(payload)
    try:
        return _read(payload, options)
    except AtomloomError as error:
        if error.todo != TODO or not options.get("order"):
            raise
    return _by_pymatgen(payload, options)


def _read(payload: bytes, options: Mapping[str, Any]) -> Structure:
    import gemmi

    try:
        document = gemmi.cif.read_string(payload)
    except (ValueError, RuntimeError) as error:
        return _where_gemmi_gives_up(payload, error)
    for place, block in enumerate(document, start=1):
        tags = Tags(block)
        sites = tags.sites
        if _FRACT[0] in sites:
            if place < len(document) and _has_sites([*document][place:]):
                raise AtomloomError("several data blocks with atom sites in one record")
            return _of_block(tags, sites, float(options.get("site_tolerance", SITE_TOLERANCE)))
    if any(Tags(block).column("_atom_site_cartn_x") for block in document):
        raise AtomloomError("only Cartesian sites (_atom_site_Cartn_x), no fractional ones")
    raise AtomloomError("no atom sites (_atom_site_fract_x)" if len(document) else "no data block")


def _has_sites(blocks: list[Any]) -> bool:
    return any(_FRACT[0] in Tags(block).sites for block in blocks)


def _plain(payload: bytes) -> bytes:
    """Text in ASCII, the only encoding of CIF; other characters (names, dashes) become `?`."""
    if payload.isascii():
        return payload
    return decode(payload.removeprefix(BYTE_ORDER_MARK)).encode("ascii", "replace")


class _Sites(NamedTuple):
    """N sites as listed in a file, and data common to all of them."""

    numbers: np.ndarray
    """[N] atomic numbers."""
    fractional: np.ndarray
    """[N, 3] fractional coordinates."""
    names: list[str]
    """Labels, or numbers where there are none."""
    multiplicities: list[int] | None
    """Multiplicities, where the file gives them."""
    formula: Formula | None
    """Formula of the file."""
    doubt: str
    """Reason to consider the sites incomplete, unless the formula says otherwise."""


class _Atoms(NamedTuple):
    """All atoms of the cell, by one setting."""

    setting: Setting
    numbers: np.ndarray
    fractional: np.ndarray
    evidence: Evidence


def _of_block(tags: Tags, columns: Mapping[str, list[str]], tolerance: float) -> Structure:
    texts = list(map(tags.first, _CELL))
    try:
        cell = _cell_matrix(*map(float, texts))  # type: ignore[arg-type] # None is reported below
    except (TypeError, ValueError):  # unknown, or with a standard uncertainty
        cell = _cell_matrix(*map(_number, texts, _CELL))
    sites = _sites(columns, formula_of(tags))
    ranks = settings(tags)
    if len(ranks) == len(ranks[0]) == 1:
        atoms = _atoms(sites, cell, ranks[0][0], tolerance)
        if not atoms.evidence.counted and (larger := larger_settings(tags, ranks[0][0])):
            atoms = _fitting(sites, cell, ((atoms.setting, *larger),), tolerance)
    else:
        atoms = _fitting(sites, cell, ranks, tolerance)
    return Structure(atoms.numbers, atoms.fractional @ cell, cell, _PERIODIC.copy())


def _fitting(sites: _Sites, cell: np.ndarray, ranks: Ranks, tolerance: float) -> _Atoms:
    """Atoms by the one setting that the cell and the counts of the file allow.

    Raises:
        AtomloomError: when they allow none, or several that give other crystals.
    """
    refusals = []
    for rank in ranks:
        allowed = []
        for setting in rank:
            try:
                allowed.append(_atoms(sites, cell, setting, tolerance))
            except AtomloomError as error:
                refusals.append(error)
        allowed = [atoms for atoms in allowed if atoms.evidence.counted] or allowed
        if len(allowed) > 1:
            allowed = [atoms for atoms in allowed if not _overlap(atoms, cell)]
        if not allowed:
            continue
        first, *others = allowed
        for other in others:
            if not _same(first, other, cell, tolerance):
                raise AtomloomError(
                    f"the symmetry may be that of {first.setting.name} or of {other.setting.name}, "
                    "and the file does not decide",
                    todo="list the operations (_space_group_symop_operation_xyz)",
                )
        return first
    raise refusals[0] if refusals else AtomloomError("atoms overlap in every setting of the group")


def _overlap(atoms: _Atoms, cell: np.ndarray) -> bool:
    from atomloom.structures.checks import closest_pair  # imports numba

    structure = Structure(atoms.numbers, atoms.fractional @ cell, cell, np.ones(3, dtype=bool))
    return closest_pair(structure, OVERLAP)[0] >= 0


def _same(one: _Atoms, other: _Atoms, cell: np.ndarray, tolerance: float) -> bool:
    """Whether both are the same atoms at the same positions, in any order."""
    if len(one.numbers) != len(other.numbers):
        return False
    for number, site in zip(one.numbers, one.fractional, strict=True):
        apart = other.fractional[other.numbers == number] - site
        apart -= np.rint(apart)
        if not (np.linalg.norm(apart @ cell, axis=1) < tolerance).any():
            return False
    return True


def _atoms(sites: _Sites, cell: np.ndarray, setting: Setting, tolerance: float) -> _Atoms:
    """Atoms of the cell by one setting.

    Raises:
        AtomloomError: when the cell, or what the file says of its content, contradicts it.
    """
    numbers, fractional = sites.numbers, sites.fractional
    images, repeats = [1] * len(numbers), 0
    operations = len(setting.rotations)
    if operations > 1:
        check_metric(setting, cell)
        fractional, images = _expand(fractional, cell, setting, tolerance)
        numbers = np.repeat(numbers, images)
        kept = _first_of_repeated(sites, numbers, fractional, images, cell, tolerance)
        repeats = len(numbers) - int(kept.sum())
        if repeats:
            numbers, fractional = numbers[kept], fractional[kept]
    evidence = check_content(numbers, sites.formula, sites.multiplicities, images, operations)
    if repeats and not (evidence.composition or len(numbers) == len(sites.numbers)):
        raise AtomloomError("some of the sites are images of each other under the operations")
    if sites.doubt and not evidence.composition:
        raise AtomloomError(sites.doubt)
    if setting.doubt and not evidence.counted:
        raise AtomloomError(setting.doubt)
    return _Atoms(setting, numbers, fractional, evidence)


def _expand(
    fractional: np.ndarray, cell: np.ndarray, setting: Setting, tolerance: float
) -> tuple[np.ndarray, list[int]]:
    """[K, 3] images of all sites, each once and on its special position, and their number per site."""
    found = []
    for site in fractional:
        moved = setting.rotations @ site + setting.translations - site
        moved -= np.rint(moved)
        fixed = np.linalg.norm(moved @ cell, axis=1) < tolerance
        special = site + moved[fixed].mean(axis=0) if fixed.any() else site
        images = setting.rotations @ special + setting.translations
        images -= np.floor(images)
        found.append(_distinct(images, cell, tolerance))
    return np.concatenate(found), [len(images) for images in found]


def _distinct(images: np.ndarray, cell: np.ndarray, tolerance: float) -> np.ndarray:
    """Images that do not coincide with an earlier one."""
    apart = images[:, None] - images[None]
    apart -= np.rint(apart)
    same = np.einsum("ijk,kl->ijl", apart, cell, optimize=True)
    close = np.einsum("ijk,ijk->ij", same, same) < tolerance * tolerance
    first = np.argmax(close, axis=1)  # for each image, the earliest one at the same position
    return images[first == np.arange(len(images))]


def _first_of_repeated(
    sites: _Sites,
    numbers: np.ndarray,
    fractional: np.ndarray,
    images: list[int],
    cell: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """[K] bool, whether an image belongs to a site that is not an image of an earlier site.

    Raises:
        AtomloomError: when such a site is of another element.
    """
    ends = np.cumsum(images)
    kept = np.ones(len(numbers), dtype=bool)
    for site, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        apart = fractional[:start] - fractional[start]
        apart -= np.rint(apart)
        apart = apart @ cell
        close = np.einsum("ij,ij->i", apart, apart) < tolerance * tolerance
        if not close.any():
            continue
        place = int(np.argmax(close))
        if numbers[place] != numbers[start]:
            before = int(np.searchsorted(ends, place, side="right"))
            raise AtomloomError(
                f"sites {sites.names[before]} and {sites.names[site]} are at the same position"
            )
        kept[start:end] = False
    return kept


def _sites(columns: Mapping[str, list[str]], formula: Formula | None) -> _Sites:
    dummies = columns.get("_atom_site_calc_flag", [])
    doubt = ""
    if "dum" in dummies:
        columns = {
            tag: [value for value, flag in zip(values, dummies, strict=True) if flag != "dum"]
            for tag, values in columns.items()
            if len(values) == len(dummies)
        }
        doubt = "a dummy site (_atom_site_calc_flag dum), whose atom has no position"
    fractional = _fractional(columns)
    count = len(fractional)
    if not count:
        raise AtomloomError("no atom sites but dummies (_atom_site_calc_flag dum)")
    numbers = elements_of(columns, count, formula)
    labels = columns.get("_atom_site_label", [])
    names = labels if len(labels) == count else [str(site) for site in range(count)]
    _refuse_partial(columns, names)
    doubt = doubt or _attached_hydrogens(columns, names) or _alternatives(columns)
    return _Sites(numbers, fractional, names, multiplicities_of(columns, count), formula, doubt)


def _refuse_partial(columns: Mapping[str, list[str]], names: list[str]) -> None:
    occupancy = columns.get("_atom_site_occupancy", [])
    if occupancy.count("1") == len(occupancy):
        return
    for site, text in enumerate(occupancy):
        if text == "1" or text in UNKNOWN:
            continue
        value = _number(text, f"_atom_site_occupancy of site {site}")
        if not abs(value - 1) <= FULL_OCCUPANCY:
            name = names[site] if site < len(names) else site
            raise AtomloomError(f"disordered site {name} (occupancy {value:g})", todo=TODO)


def _attached_hydrogens(columns: Mapping[str, list[str]], names: list[str]) -> str:
    for site, text in enumerate(columns.get("_atom_site_attached_hydrogens", [])):
        if text not in UNKNOWN and _number(text, f"attached hydrogens of site {site}") > 0:
            return f"hydrogens attached to site {names[site]} have no coordinates"
    return ""


def _alternatives(columns: Mapping[str, list[str]]) -> str:
    groups = (
        columns.get("_atom_site_disorder_group") or columns.get("_atom_site_label_alt_id") or []
    )
    named = {*groups} - {".", "?", "0", "''"}
    if not named:
        return ""
    assemblies = columns.get("_atom_site_disorder_assembly", [""] * len(groups))
    pairs = {pair for pair in zip(assemblies, groups, strict=True) if pair[1] in named}
    several = len(pairs) > len({assembly for assembly, _ in pairs})
    if several or any(group.startswith("-") for group in named):
        return "disordered: sites that are alternatives of each other (_atom_site_disorder_group)"
    return ""


def _number(text: str | None, tag: str) -> float:
    try:
        return float(text)  # type: ignore[arg-type] # None is reported below
    except (TypeError, ValueError):
        import gemmi

        value = math.nan if text is None else gemmi.cif.as_number(text)
        if math.isnan(value):
            raise AtomloomError(
                f"{tag} is {'missing' if text is None or text in UNKNOWN else text}"
            ) from None
        return value


def _cell_matrix(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> np.ndarray:
    """[3, 3] rows a, b, c in pymatgen's orientation: c along z, a in the xz plane."""
    if not (min(a, b, c) > 0 and 0 < alpha < 180 and 0 < beta < 180 and 0 < gamma < 180):
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


def _fractional(columns: Mapping[str, list[str]]) -> np.ndarray:
    """[N, 3] fractional coordinates of the sites listed."""
    texts = [columns.get(tag, []) for tag in _FRACT]
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


def _where_gemmi_gives_up(payload: bytes, error: Exception) -> Structure:
    """Structure by pymatgen's more lenient reading, used only where the formula in the file confirms it."""
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
    """Whether formula and Z agree with what was read."""
    formula = _formula_by_tags(payload)
    if formula is None:
        return False
    try:
        return check_content(numbers, formula).composition
    except AtomloomError:
        return False


def _formula_by_tags(payload: bytes) -> Formula | None:
    """Formula and Z, found by their tags alone, in a file that need not be valid CIF."""
    text, units = (
        re.search(rf"^\s*{tag}\s+(?:'([^'\n]*)'|\"([^\"\n]*)\"|(\S+))", decode(payload), re.M)
        for tag in ("_chemical_formula_sum", "_cell_formula_units_Z")
    )
    if text is None:
        return None
    return parse_formula(text[text.lastindex or 0], units[units.lastindex or 0] if units else None)


def _by_pymatgen(payload: bytes, options: Mapping[str, Any]) -> Structure:
    from pymatgen.io.cif import CifParser

    if _EVALUATED.search(payload):
        raise AtomloomError(
            "a magnetic space group given by a transformation is not read by pymatgen"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = CifParser.from_str(decode(payload), frac_tolerance=0)
            (structure, *_) = parser.parse_structures(primitive=False)
    except (
        Exception
    ) as error:  # pymatgen raises a dozen kinds of exceptions for files it cannot read
        raise AtomloomError(
            f"pymatgen cannot read it: {str(error) or type(error).__name__}"
        ) from None
    if not options.get("order"):
        return to_structure(structure)
    formula = _formula_by_tags(payload)
    if formula is not None:
        content = structure.composition.element_composition
        check_amounts({kind.Z: amount for kind, amount in content.items()}, formula)
    return ordered(structure, options)
