"""Levels of theory: which energy, forces and stress of a record belong together.

Files name them `energy`, `REF_energy`, `DFT-forces` or `forces_mace`; the part before or after
the quantity is the level, which is empty where the name is the quantity alone. It knows names, and
which values must agree for a choice to be sound, nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from atomloom.errors import AtomloomError
from atomloom.structures.units import unit_factor

REFERENCE = ("", "ref", "dft", "reference", "qm")
"""Levels of the reference values of a record, the usual one first; others are predictions."""
_PREDICTED = frozenset((
    "mace", "gap", "ace", "nequip", "allegro", "chgnet", "m3gnet", "schnet", "painn", "orb", "mattersim",
    "sevennet", "eam", "meam", "lj", "dftb", "xtb", "gfn1", "gfn2", "gfn1_xtb", "gfn2_xtb", "mp2", "ccsd",
    "ccsdt", "ccsd(t)", "hf", "lda", "pbe", "pbe0", "pbesol", "rpbe", "revpbe", "blyp", "b3lyp", "wb97x",
    "scan", "r2scan", "hse", "hse06", "ml", "mlp", "mlip", "nn", "nnp", "mm", "pred", "predicted",
    "prediction", "model", "calc",
))  # fmt: skip
_ENERGIES = ("energy", "potential_energy", "total_energy", "totenergy", "free_energy")
"""Energies; first the one whose derivative the forces are."""
_TOTAL = ("total_energy", "totenergy")
_KINETIC = re.compile("kinetic|e_?kin", re.IGNORECASE)
_FORCES = ("forces", "force")
_STRESS = ("stress",)
_VIRIAL = ("virial", "virials")
TODO = "say which by the options energy_key, forces_key and stress_key"

_Named = dict[str, list[tuple[str, str]]]
"""(quantity, name) by level, in the order of the quantities."""


@dataclass(frozen=True)
class Choice:
    """Names of the quantities of one level; None where one is missing."""

    energy: str | None
    forces: str | None
    stress: str | None
    virial: str | None
    same: tuple[str, ...]
    """Other energies, which must have the same value, or it is unknown which is meant."""
    kinetic: str | None
    """Kinetic energy that this energy may include."""


@lru_cache(maxsize=1024)
def choose(
    names: tuple[str, ...],
    columns: tuple[str, ...],
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
) -> Choice:
    """Choose the quantities of one level of theory.

    Args:
        names: of the values that belong to a record as a whole.
        columns: of the vectors that belong to its atoms.
        energy_key, forces_key, stress_key: options that name them.

    Raises:
        AtomloomError: when one of these is missing, or there are several levels and nothing says
            which is meant.
    """
    for key in (energy_key, stress_key):
        if key is not None and key not in names:
            raise AtomloomError(f"no `{key}` on the comment line")
    if forces_key is not None and forces_key not in columns:
        raise AtomloomError(f"no column `{forces_key}` of three numbers in Properties")
    energies, forces = _by_level(names, _ENERGIES), _by_level(columns, _FORCES)
    known = {*REFERENCE, *_PREDICTED, *energies}
    forces = {level: found for level, found in forces.items() if level in known}
    energies = {k: found for k, found in energies.items() if k in REFERENCE or k in forces}
    if energy_key is not None or forces_key is not None:
        of_energy, of_forces = _given(energies, forces, energy_key, forces_key)
    else:
        of_energy, of_forces = _levels(energies, forces)
    energy = energy_key or _first(energies, of_energy)
    same: list[str] = []
    kinetic = next((name for name in names if _KINETIC.search(name)), None)
    if energy is not None and energy_key is None:
        others = REFERENCE if forces_key is None or of_energy != of_forces else ()
        same = _rivals(energies, of_energy, forces, others, kinetic is not None)
        kinetic = kinetic if _parts(energy, _ENERGIES)[1] in _TOTAL else None
    return Choice(
        energy,
        forces_key or _first(forces, of_forces),
        *_stress((of_forces, of_energy), names, stress_key),
        tuple(same),
        None if energy is None or energy == energy_key else kinetic,
    )


def _levels(energies: _Named, forces: _Named) -> tuple[str | None, str | None]:
    """Levels of energy and forces: one that has both, or else the only ones."""
    whole = [level for level in energies if level in forces]
    usual = [level for level in REFERENCE if level in whole]
    if usual:
        return usual[0], usual[0]
    if whole and len(energies) == 1:
        return whole[0], whole[0]
    of_energy = [level for level in REFERENCE if level in energies]
    of_forces = [level for level in REFERENCE if level in forces]
    if whole or (of_energy and of_forces and max(len(of_energy), len(of_forces)) > 1):
        listed = [str(_first(found, level)) for found in (energies, forces) for level in found]
        raise AtomloomError(
            f"energies and forces of several levels of theory: {', '.join(listed)}", todo=TODO
        )
    if not energies and len(of_forces) > 1 and of_forces[0]:
        raise AtomloomError(
            f"forces of several levels of theory: {', '.join(str(_first(forces, k)) for k in of_forces)}",
            todo=TODO,
        )
    if not energies and not of_forces and len(forces) == 1:
        of_forces = list(forces)
    return next(iter(of_energy), None), next(iter(of_forces), None)


def _given(
    energies: _Named, forces: _Named, energy_key: str | None, forces_key: str | None
) -> tuple[str | None, str | None]:
    """Levels of energy and forces where an option names one of the two: those of one level, else the only
    ones that do not belong to others."""
    if energy_key is not None:
        level = _parts(energy_key, _ENERGIES)[0]
        alone = [k for k in forces if k not in energies]
        return level, level if level in forces or len(alone) != 1 else alone[0]
    level = _parts(forces_key or "", _FORCES)[0]
    return level if level in energies else next(
        (k for k in REFERENCE if k in energies), None
    ), level


def _rivals(
    energies: _Named, level: str | None, forces: _Named, levels: tuple[str, ...], kinetic: bool
) -> list[str]:
    """Energies that might be meant instead of the first one of a level: those of other levels that have
    all that this one has, and others of this level that should be the same."""
    (quantity, _), *others = energies[level or ""]
    rivals = [
        str(_first(energies, other))
        for other in levels
        if other in energies and other != level and (other in forces or level not in forces)
    ]
    for other, name in others:
        total = other in _TOTAL and (quantity in _TOTAL or not kinetic)
        if (
            other == quantity
            or (total and quantity in ("energy", *_TOTAL))
            or (quantity == "energy" and other == "potential_energy")
        ):
            rivals.append(name)
    return rivals


def _stress(
    levels: tuple[str | None, str | None], names: tuple[str, ...], key: str | None
) -> tuple[str | None, str | None]:
    """Names of stress and virial."""
    if key is not None:
        return (None, key) if "virial" in key.lower() else (key, None)
    stress, virial = _by_level(names, _STRESS), _by_level(names, _VIRIAL)
    if levels == (None, None):
        levels = (next((k for k in REFERENCE if k in stress or k in virial), None), None)
    level = next((k for k in levels if k in stress or k in virial), None)
    return _first(stress, level), _first(virial, level)


def _by_level(names: Iterable[str], quantities: tuple[str, ...]) -> _Named:
    found: _Named = {}
    for name in names:
        level, quantity = _parts(name, quantities)
        if quantity:
            found.setdefault(level, []).append((quantity, name))
    for listed in found.values():
        listed.sort(key=lambda pair: quantities.index(pair[0]))
    return found


def _parts(name: str, quantities: tuple[str, ...]) -> tuple[str, str]:
    """Level and quantity of a name; an empty quantity where it is none of these."""
    lower = name.lower().replace("-", "_").replace(".", "_")
    for quantity in sorted(quantities, key=len, reverse=True):
        if lower == quantity:
            return "", quantity
        if lower.endswith(f"_{quantity}") or lower.startswith(f"{quantity}_"):
            level = lower.removesuffix(f"_{quantity}").removeprefix(f"{quantity}_")
            # `energy_ha` is not the energy of a level, and not in eV
            return ("", "") if unit_factor(level, 1, 0) is not None else (level, quantity)
    return "", ""


def _first(named: _Named, level: str | None) -> str | None:
    return None if level is None or level not in named else named[level][0][1]
