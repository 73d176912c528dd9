"""Formatting of numbers: sensible digits, thousands separators, units, blanks for absent values.

It knows nothing of the meaning of numbers; the rest of the report formats none by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime

NONE = "\u2013"
"""Text in place of a value that is absent or not a number."""
MINUS, TIMES = "\u2212", "\u00d7"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SECONDS_A_MINUTE, _SECONDS_AN_HOUR, _SECONDS_A_DAY = 60, 3600, 86400


TOO_LONG = 1e7
"""Numbers beyond it are given as powers of ten, whatever their decimals."""


def finite(value: object) -> float | None:
    """Value as a float, or None if it is absent, not a number, or not finite."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)  # type: ignore[arg-type] # other values are handled below
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def number(value: object, digits: int = 3) -> str:
    """Value to `digits` significant digits, never dropping digits before the point.

    Integers keep all their digits; below 1e-4 and from 1e7 powers of ten are used.
    """
    found = finite(value)
    if found is None:
        return NONE
    if isinstance(value, int) or (found.is_integer() and not isinstance(value, float)):
        return f"{int(found):,}".replace("-", MINUS)
    if found == 0:
        return "0"
    mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
    power = int(exponent)
    if power < -4 or power >= 7:
        return f"{mantissa} {TIMES} {ten_to(power)}".replace("-", MINUS)
    return fixed(found, max(0, digits - 1 - power))


def numbers_apart(values: Sequence[float]) -> list[str]:
    """Numbers with as few significant digits, 3 or more, as tell different ones apart."""
    for digits in range(3, 10):
        texts = [number(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def brief(value: object, digits: int = 3) -> str:
    """Number without trailing zeros: for numbers that were chosen, not measured."""
    text = number(value, digits)
    return re.sub(rf"(\.\d*?)0+(?=$| {TIMES})", r"\1", text).replace(". ", " ").rstrip(".")


def ten_to(power: int) -> str:
    """Power of 10 with a superscript, in plain characters."""
    return "10" + str(power).translate(_SUPERSCRIPTS)


def fixed(value: object, decimals: int, *, sign: bool = False) -> str:
    """Value with this many decimals; with `sign`, positive values carry a plus."""
    found = finite(value)
    if found is None:
        return NONE
    if abs(found) >= TOO_LONG:
        return f"{'+' if sign and found > 0 else ''}{number(float(found))}"
    text = f"{found:{'+' if sign else ''},.{decimals}f}"
    return re.sub(r"^-(?=[0.,]*$)", "", text).replace("-", MINUS)


def decimals_for(scale: object, digits: int = 3) -> int:
    """Number of decimals that show `scale` to `digits` significant digits (between 0 and 8)."""
    found = finite(scale)
    if not found:
        return digits
    return min(8, max(0, digits - 1 - math.floor(math.log10(abs(found)))))


def with_unit(text: str, unit: str) -> str:
    """Formatted number with its unit; a blank gets none."""
    return f"{text} {unit}" if unit and text != NONE else text


def unit_name(unit: str) -> str:
    """Unit in the usual notation: eV/A as eV/Å, cm^-1 as cm⁻¹, eV/A^3 as eV/Å³.

    An A counts as angstrom where it is alone or in the denominator; A/m keeps its ampere.
    """
    unit = re.sub(r"\bAng(strom)?s?\b", "Å", unit)
    unit = re.sub(r"(?<=/)A(?![\w/])|^A(?=$|\^[23]|\*\*[23])", "Å", unit)
    return re.sub(r"(?:\^|\*\*)(-?\d+)", lambda match: match[1].translate(_SUPERSCRIPTS), unit)


def measured(value: object, unit: str, digits: int = 3) -> tuple[str, str]:
    """Number and its unit; errors of energies per atom below 0.1 eV are given in meV."""
    found = finite(value)
    if unit == "eV/atom" and found is not None and 0 < abs(found) < 0.1:
        return number(1000 * found, digits), "meV/atom"
    return number(value, digits), unit


def percent(share: object) -> str:
    """Share (0 to 1) as a percentage."""
    found = finite(share)
    if found is None:
        return NONE
    value = 100 * found
    if abs(value) >= TOO_LONG:
        return f"{number(value)} %"
    if value == 0 or abs(value) >= 9.95:
        return f"{value:.0f} %"
    return f"{number(value, 2)} %"


def duration(seconds: object) -> str:
    """Duration from seconds, in ms, s, min, h or days."""
    found = finite(seconds)
    if found is None:
        return NONE
    if found < 0.9995:
        return f"{number(1000 * found, 2)} ms" if found else "0 s"
    if found < 59.95:
        return f"{found:.1f} s"
    total = round(found)
    if total < _SECONDS_AN_HOUR:
        return f"{total // _SECONDS_A_MINUTE} min {total % _SECONDS_A_MINUTE:02d} s"
    if total < _SECONDS_A_DAY:
        minutes = total % _SECONDS_AN_HOUR // _SECONDS_A_MINUTE
        return f"{total // _SECONDS_AN_HOUR} h {minutes:02d} min"
    return f"{total // _SECONDS_A_DAY} d {total % _SECONDS_A_DAY // _SECONDS_AN_HOUR:02d} h"


def byte_size(count: object) -> str:
    """Size from bytes, in kB, MB, GB or TB (decimal)."""
    found = finite(count)
    if found is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < 999.5:
            return f"{found:.0f} {unit}" if unit == "B" else f"{number(found)} {unit}"
        found /= 1000
    return f"{number(found)} TB"


def moment(iso: object) -> str:
    """ISO time as `2026-11-20 14:03 UTC`; any other text is not changed."""
    if not isinstance(iso, str) or not iso:
        return NONE
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = time.strftime("%Z")
    return time.strftime("%Y-%m-%d %H:%M") + (f" {zone}" if zone else "")


def plural(count: int, singular: str, many: str = "") -> str:
    """Count with its noun: `1 record`, `2 records`."""
    return f"{number(int(count))} {singular if count == 1 else many or singular + 's'}"
