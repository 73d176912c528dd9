"""Symmetry of a CIF as operations: those it lists, or those of the group it names.

A name may leave the origin, the axes or the unique axis open. All settings that fit the name are
then returned; the cell and the counts of the file decide among them (`cif`), never a default alone.
It knows nothing of sites or elements.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.formats.cif_tags import UNKNOWN, Tags, unquoted

MAX_OPERATIONS = 192  # max of all groups, in their conventional cells
MAX_MAGNETIC = 4096  # a magnetic cell may hold many centrings
METRIC_TOLERANCE = 0.02  # of the products of cell vectors, relative to their lengths
ROUNDED = 5e-3  # 0.33 in an operation is 1/3
_GRID = 40320  # 2^7 3^2 5 7: translations are compared in these fractions of a cell

_TODO = "list the operations (_space_group_symop_operation_xyz)"

_OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_MAGNETIC = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_centering_xyz")
_MODULATED = (
    "_space_group_ssg_name",
    "_space_group_symop_ssg_operation_algebraic",
)
_DIMENSION = "_cell_modulation_dimension"
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_HERMANN_MAUGUIN = (
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_alt",
    "_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
)
_REFERENCE = "_space_group_reference_setting"
_TRANSFORMS = ("_space_group_transform_pp_abc", "_space_group_transform_qq_xyz")
_SYMBOLS = (*_HERMANN_MAUGUIN, _REFERENCE)
_TYPE = "_space_group_name_h-m_ref"
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")
_CODE = "_space_group_it_coordinate_system_code"
_NAMES = (*_HALL, *_SYMBOLS, *_TRANSFORMS, _TYPE, *_NUMBER, _CODE)
_SYSTEM = ("_symmetry_cell_setting", "_space_group_crystal_system")
_SYMMETRY = re.compile(r"_(?:magnetic_|parent_)?(?:space_?group|sym+et+ry|symop)")
_NO_GROUP = re.compile(r"cell_setting|crystal_system|_id$|transform|patterson|wyckoff|standard")
_SAYS_P1 = frozenset(("'P 1'", "P1", "'P1'", '"P 1"'))
_P1 = frozenset(("p1", "1", "1.1", "x,y,z", "x,y,z,+1", "a1", "c1^1"))

_MARKUP = re.compile(r"</?su[bp]>|sub(?=\d)|[_~${}\\]")
_SCREW = re.compile(r"(?<=\d)\s*\(([1-5])\)")
_SAID_NUMBER = re.compile(r"\s*[(\[,]?\s*(?:#|no\.?)\s*\d+\s*[)\]]?$", re.I)
_SAID_AXIS = re.compile(r"\s*[(\[,:]?\s*unique[\s-]+axis\s*([abc])\s*[)\]]?$", re.I)
_SAID_ORIGIN = re.compile(
    r"\s*(?::|[(\[,:]?\s*origin\s*(?:choice|no\.?|at)?|[(\[,:]?\s*setting|\sO)\s*([12])\s*[)\]]?$",
    re.I,
)
_SAID_AXES = re.compile(
    r"\s*[(\[,:]?\s*(hex|rhomb)[a-z.]*(?:\s+(?:axes|setting|cell))?\s*[)\]]?$", re.I
)
_SUFFIX = re.compile(r"(?<=.)\s*:?\s*(?:(HR|RS|[HRSZ])|(?<=:)([hr]))$")
_EXTENSIONS = {"S": "1", "Z": "2", "H": "H", "HR": "H", "R": "R", "RS": "R", "h": "H", "r": "R"}


class Setting(NamedTuple):
    """M symmetry operations, x' = rotation x + translation, in fractional coordinates."""

    name: str
    """Name in the file, or in the table of settings."""
    rotations: np.ndarray
    """[M, 3, 3] rotations."""
    translations: np.ndarray
    """[M, 3] translations."""
    number: int = 0
    """Number of the group in International Tables, where known."""
    doubt: str = ""
    """Reason to accept it only where the counts of the file confirm it."""

    @property
    def key(self) -> bytes:
        """Bytes that are equal for equal sets of operations."""
        return np.unique(_grid(self.rotations, self.translations), axis=0).tobytes()


P1 = Setting("P 1", np.eye(3)[None], np.zeros((1, 3)), 1)

Ranks = tuple[tuple[Setting, ...], ...]


def settings(tags: Tags) -> Ranks:
    """Settings that fit the symmetry of a file, in ranks: a later rank counts only where the file
    contradicts the earlier ones, and within a rank the file must tell them apart.

    Raises:
        AtomloomError: when symmetry is stated in a way that cannot be used.
    """
    listed = _listed(tags)
    if listed is not None:
        if len(listed.rotations) > 1:
            return ((listed,),)
        if tags.first(_HERMANN_MAUGUIN[0]) in _SAYS_P1:
            return ((P1,),)
    if names := _names(tags):
        return _named(names) if listed is None else _named_beside_identity(names)
    if listed is None:
        _refuse_unread(tags.every)
        for tag in _SYSTEM:
            if (system := tags.text(tag)) and system.lower() not in ("triclinic", "anorthic"):
                return ((P1._replace(doubt=f"{system} without a space group or operations"),),)
    return ((P1,),)


def larger_settings(tags: Tags, listed: Setting) -> tuple[Setting, ...]:
    """Settings of the named group that include all listed operations and more: the list may lack centrings
    or hold only generators."""
    names = _names(tags) if len(listed.rotations) > 1 and not tags.column(_MAGNETIC[0]) else ()
    if not names:
        return ()
    try:
        ranks = _named(names)
    except AtomloomError:
        return ()
    known = {row.tobytes() for row in _grid(listed.rotations, listed.translations)}
    return tuple(
        setting
        for rank in ranks
        for setting in rank
        if len(setting.rotations) > len(known)
        and known <= {row.tobytes() for row in _grid(setting.rotations, setting.translations)}
    )


def _names(tags: Tags) -> tuple[tuple[str, str], ...]:
    found = {tag: tags.text(tag) for tag in _NAMES}
    return tuple((tag, text) for tag, text in found.items() if text is not None)


def check_metric(setting: Setting, cell: np.ndarray) -> None:
    """Refuse operations that do not preserve lengths and angles of a cell.

    Args:
        cell: [3, 3] rows a, b, c in A.

    Raises:
        AtomloomError: naming the setting.
    """
    metric = cell @ cell.T
    lengths = np.sqrt(np.diag(metric))
    moved = np.einsum("mji,jk,mkl->mil", setting.rotations, metric, setting.rotations)
    if (np.abs(moved - metric) > METRIC_TOLERANCE * np.outer(lengths, lengths)).any():
        raise AtomloomError(
            f"the operations of {setting.name} do not preserve the lengths and angles of the cell"
        )


def _listed(tags: Tags) -> Setting | None:
    """Setting of the operations listed in the file; None without a list."""
    for tag in _MODULATED:
        if tags.first(tag) is not None:
            raise AtomloomError(f"a modulated structure ({tag}), which no single cell holds")
    if tags.first(_DIMENSION) not in (None, "0"):
        raise AtomloomError(f"a modulated structure ({_DIMENSION}), which no single cell holds")
    if magnetic := tags.column(_MAGNETIC[0]):
        return _of_magnetic(tuple(magnetic), tuple(tags.column(_MAGNETIC[1]) or ["x,y,z,+1"]))
    for tag in _OPERATIONS:
        if texts := tags.column(tag):
            return _of_texts(tuple(texts))
    return None


def _refuse_unread(values: Mapping[str, list[str]]) -> None:
    """Refuse symmetry given by tags that are not read, which must not be taken for P1."""
    for tag, column in values.items():
        if not _SYMMETRY.match(tag) or _NO_GROUP.search(tag):
            continue
        value = unquoted(column[0])
        if column[0] not in UNKNOWN and value.replace(" ", "").lower() not in _P1:
            raise AtomloomError(
                f"symmetry is given by {tag} ({value[:40]}), which is not understood", todo=_TODO
            )


@lru_cache(maxsize=512)
def _of_texts(texts: tuple[str, ...]) -> Setting:
    if len(texts) > MAX_OPERATIONS:
        raise AtomloomError(f"{len(texts)} symmetry operations, more than any space group has")
    return _group("the file", [_operation(unquoted(text)) for text in texts])


@lru_cache(maxsize=64)
def _of_magnetic(texts: tuple[str, ...], centrings: tuple[str, ...]) -> Setting:
    """Setting of all products of a centring and an operation, without time reversal."""
    moves = [
        [_operation(unquoted(text).rpartition(",")[0]) for text in column]
        for column in (texts, centrings)
    ]
    if len(moves[0]) * len(moves[1]) > MAX_MAGNETIC:
        raise AtomloomError(f"{len(moves[0])} operations and {len(moves[1])} centrings")
    products = [
        (np.array(outer) @ inner, np.array(outer) @ shift + offset)
        for outer, offset in moves[1]
        for inner, shift in moves[0]
    ]
    return _group("the file", products)


def _operation(text: str) -> tuple[Any, Any]:
    """Rotation [3, 3] and translation [3] of an operation such as `-x,1/2+y,z` or `x-y,x,z+0.333`.

    Raises:
        AtomloomError: when it cannot be read, or does not preserve volumes.
    """
    import gemmi

    plain = "".join(text.split())
    try:
        operation = gemmi.Op(plain)
    except (RuntimeError, ValueError):
        rotation, translation = _algebra(plain.lower(), text)
    else:
        rotation = np.array(operation.rot) / operation.DEN
        translation = np.array(operation.tran) / operation.DEN
    if abs(abs(np.linalg.det(rotation)) - 1) > 1e-6:
        raise AtomloomError(f"symmetry operation `{text[:60]}` is singular or changes the volume")
    return rotation, translation


def _algebra(plain: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Operation in a rarer notation: fifths, 1/2*x, rounded decimals."""
    parts = plain.split(",")
    rotation, translation = np.zeros((3, 3)), np.zeros(3)
    term = r"([+-]?)(\d+/\d+|\d*\.?\d*)\*?([xyz]?)"
    for row, part in enumerate(parts if len(parts) == 3 else ["?"]):
        found = [m for m in re.finditer(term, part) if m.group()]
        if "".join(m.group() for m in found) != part or not found:
            raise AtomloomError(f"symmetry operation `{text[:60]}` cannot be read")
        for sign, number, axis in (m.groups() for m in found):
            try:
                value = float(Fraction(number or "1")) * (-1 if sign == "-" else 1)
            except (ValueError, ZeroDivisionError):
                raise AtomloomError(f"symmetry operation `{text[:60]}` cannot be read") from None
            if "." in number and abs(round(value * 24) / 24 - value) < ROUNDED:
                value = round(value * 24) / 24
            if axis:
                rotation[row, "xyz".index(axis)] += value
            else:
                translation[row] += value
    return rotation, translation


def _group(name: str, pairs: list[tuple[Any, Any]]) -> Setting:
    """Setting, after checking that its operations form a group.

    Raises:
        AtomloomError: when they do not: the identity or products of two are missing.
    """
    rotations = np.array([rotation for rotation, _ in pairs])
    translations = np.array([translation for _, translation in pairs])
    grid, kept = np.unique(_grid(rotations, translations), axis=0, return_index=True)
    kept.sort()
    rotations, translations = rotations[kept], translations[kept]
    if not (grid == _grid(P1.rotations, P1.translations)).all(axis=1).any():
        raise AtomloomError("symmetry operations without the identity x,y,z")
    mixing = np.random.default_rng(0).integers(1 << 62, size=grid.shape[1])
    known = np.sort(grid @ mixing)
    for rotation, translation in zip(rotations, translations, strict=True):
        products = _grid(rotation @ rotations, translations @ rotation.T + translation) @ mixing
        place = np.minimum(np.searchsorted(known, products), len(known) - 1)
        if (known[place] != products).any():
            raise AtomloomError(
                f"{len(kept)} symmetry operations that do not form a group: products of two are missing"
            )
    return Setting(name, rotations, translations)


def _grid(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """[M, 12] integers that are equal for equal operations."""
    turned = np.rint(rotations.reshape(-1, 9) * _GRID)
    return np.hstack([turned, np.rint(translations * _GRID) % _GRID]).astype(np.int64)


# --- groups that are only named ---


@lru_cache(maxsize=512)
def _named_beside_identity(names: tuple[tuple[str, str], ...]) -> Ranks:
    """Settings where only x,y,z is listed: all atoms may be there, or the operations were left out."""
    try:
        first, *others = _named(names)
    except AtomloomError as error:
        return ((P1._replace(doubt=f"only x,y,z is listed, and {error.what}"),),)
    if any(len(setting.rotations) == 1 for setting in first):
        return ((P1,),)
    return ((P1, *first), *others)


@lru_cache(maxsize=512)
def _named(names: tuple[tuple[str, str], ...]) -> Ranks:
    """Settings that fit all given names; where these contradict each other, those of either.

    Raises:
        AtomloomError: when no name can be read, or only the number of the group, which does not
            tell the setting that the others may have named.
    """
    stated = dict(names)
    code = stated.get(_CODE, "").lower()
    symbols = [(tag, text) for tag, text in stated.items() if tag in (*_HALL, *_SYMBOLS)]
    numbers = [
        number
        for tag, text in stated.items()
        if tag in (_TYPE, *_NUMBER) and (number := _number_of(tag, text))
    ]
    read = [ranks for tag, text in symbols if (ranks := _of_symbol(tag, text, code, stated))]
    if not read and (symbols or not numbers):
        unread = symbols[0][1] if symbols else next(iter(stated.values()))
        system = f" (coordinate system {code})" if code else ""
        raise AtomloomError(
            f"unknown space group {unread!r}{system} and no symmetry operations", todo=_TODO
        )
    ranks = read[0] if read else _of_number(numbers[0], code)
    for others in read[1:]:
        keys = {setting.key for rank in others for setting in rank}
        agreeing = _filled(tuple(s for s in rank if s.key in keys) for rank in ranks)
        ranks = agreeing or ((*ranks[0], *others[0]),)
    for number in numbers:
        agreeing = _filled(tuple(s for s in rank if s.number == number) for rank in ranks)
        ranks = agreeing or ((*ranks[0], *_of_number(number, "")[0]),)
    return ranks


def _filled(ranks: Iterable[tuple[Setting, ...]]) -> Ranks:
    return tuple(rank for rank in ranks if rank)


def _of_symbol(tag: str, text: str, code: str, stated: Mapping[str, str]) -> Ranks | None:
    """Settings that a symbol allows; None where it cannot be read."""
    if tag in _HALL:
        return _of_hall(text)
    if tag == _REFERENCE:
        moved = any(
            re.sub(r"\s", "", stated.get(name, plain)) != plain
            for name, plain in zip(_TRANSFORMS, ("a,b,c;0,0,0", "x,y,z;0,0,0"), strict=True)
        )
        return None if moved else _of_hall(text.partition(":")[2] or text)
    return _by_unique_axis(_in_coordinate_system(_rows_by_name(text), code)) or None


def _number_of(tag: str, text: str) -> int:
    """Number of a group type, from its number or the name of its reference setting; 0 if unreadable."""
    if tag == _TYPE:
        return next((row.number for row in _rows_by_name(text)), 0)
    return int(text) if re.fullmatch(r"0*[1-9][0-9]{0,2}", text) and int(text) <= 230 else 0


def _of_number(number: int, code: str) -> Ranks:
    """Standard setting of a group, in which the origin or the axes may be open.

    Raises:
        AtomloomError: when the group has no coordinate system of this code.
    """
    rows = _rows_by_number(number)
    coded = _in_coordinate_system(rows, code)
    if not coded:
        raise AtomloomError(f"space group {number} has no coordinate system {code}", todo=_TODO)
    if len(coded) < len(rows):
        return _by_unique_axis(coded)
    standard = tuple(_of_row(row) for row in rows if row.hm == rows[0].hm)
    return (standard, *_by_unique_axis(rows)[1:])


def _by_unique_axis(rows: Iterable[Any]) -> Ranks:
    """Ranks of settings: unique axis b is assumed where the file does not exclude it."""
    ranks = [[row for row in rows if row.monoclinic_unique_axis() == axis] for axis in "bca\0"]
    return tuple(tuple(map(_of_row, rank)) for rank in ranks if rank)


def _of_hall(text: str) -> Ranks | None:
    import gemmi
    import spglib

    try:
        setting = _of_operations(f"Hall symbol {text}", gemmi.symops_from_hall(text))
    except (RuntimeError, ValueError):
        return None
    rotations = setting.rotations.astype(int)
    kind = _quietly(spglib.get_spacegroup_type_from_symmetry, rotations, setting.translations)
    return ((setting._replace(number=kind.number if kind else 0),),)


@lru_cache(maxsize=1024)
def _of_row(row: Any) -> Setting:
    return _of_operations(row.xhm(), row.operations())._replace(number=row.number)


def _of_operations(name: str, operations: Any) -> Setting:
    found = list(operations)
    scale = float(found[0].DEN)
    rotations = np.array([operation.rot for operation in found]) / scale
    translations = np.array([operation.tran for operation in found]) / scale
    return Setting(name, rotations, translations)


def _in_coordinate_system(rows: list[Any], code: str) -> list[Any]:
    """Settings with a code such as 1, 2, h, r, b1, cab or 2cab; the code of a group with a single
    setting is ignored."""
    if (
        not code
        or len({row.number for row in rows}) != 1
        or len(_rows_by_number(rows[0].number)) == 1
    ):
        return rows
    codes = {"abc": "", "1abc": "1", "2abc": "2"}
    code = codes.get(code, code)
    return [
        row
        for row in rows
        if code
        in (_extension(row) + row.qualifier, _extension(row) or row.qualifier, row.qualifier)
    ]


def _extension(row: Any) -> str:
    return str(row.ext).strip("\0").lower()


def _rows_by_number(number: int) -> list[Any]:
    import gemmi

    return [row for row in gemmi.spacegroup_table() if row.number == number]


def _rows_by_name(text: str) -> list[Any]:
    """Settings that a Hermann-Mauguin name may mean, with or without its origin or axes."""
    import gemmi

    name = _SCREW.sub(r"\1", _MARKUP.sub("", text)).strip()
    name = _SAID_NUMBER.sub("", name)
    axis = _SAID_AXIS.search(name)
    name = _SAID_AXIS.sub("", name)
    extension = ""
    for pattern in (_SAID_ORIGIN, _SAID_AXES, _SUFFIX):
        if extension:
            break
        if found := pattern.search(name):
            word = next(group for group in found.groups() if group)
            extension = _EXTENSIONS.get(word, word[0].upper())
            name = name[: found.start()]
    short = "".join(name.split()).lower()
    rows = _short_names().get(short)
    if rows is None:
        group = gemmi.find_spacegroup_by_name(name)
        groups = [group] if group is not None else _by_full_name(short)
        rows = [
            row for group in groups for row in _short_names()["".join(group.hm.split()).lower()]
        ]
    if axis:
        rows = [row for row in rows if row.monoclinic_unique_axis() == axis.group(1).lower()]
    told = [row for row in rows if _extension(row).upper() == extension]
    if extension and (told or extension == "R" or any(_extension(row) for row in rows)):
        return told
    return rows


@lru_cache(maxsize=1)
def _short_names() -> dict[str, list[Any]]:
    """Settings by name without blanks, monoclinic ones also without the 1 of the other axes."""
    import gemmi

    names: dict[str, list[Any]] = {}
    for row in gemmi.spacegroup_table():
        words = row.hm.lower().split()
        keys = {"".join(words)}
        if row.monoclinic_unique_axis() != "\0":
            keys.add("".join(word for word in words if word != "1"))
        for key in keys:
            names.setdefault(key, []).append(row)
    return names


@lru_cache(maxsize=64)
def _by_full_name(short: str) -> list[Any]:
    """Groups of a full symbol such as F 4/m -3 2/m; those with an e-glide may mean two settings."""
    import gemmi
    import spglib

    found = {}
    for hall_number in range(1, 531):
        kind = _quietly(spglib.get_spacegroup_type, hall_number)
        if kind.international_full.replace("_", "").replace(" ", "").lower() == short:
            group = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(kind.hall_symbol))
            found[group.hm] = group
    return list(found.values())


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of spglib, without its notice of a future change in error reporting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return function(*arguments)
