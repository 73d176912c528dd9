"""Ordering of partially occupied crystals with pymatgen, for readers whose option `order` is true."""

from __future__ import annotations

import warnings
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.structures.structure import Structure

TODO = "set the option `order: true` to order it with pymatgen"


def ordered(structure: Any) -> Structure:
    """The arrangement of lowest electrostatic energy, as pymatgen's transformation finds it.

    Args:
        structure: a pymatgen Structure, disordered or not.

    Raises:
        AtomloomError: when pymatgen finds no ordering in this cell.
    """
    from atomloom.structures.adapters import to_structure

    if structure.is_ordered:
        return to_structure(structure)
    from pymatgen.transformations.standard_transformations import (
        OrderDisorderedStructureTransformation,
        OxidationStateDecorationTransformation,
    )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = structure.copy()
            plain.remove_oxidation_states()
            guesses = plain.composition.oxi_state_guesses()
            states = guesses[0] if guesses else {str(e): 0 for e in plain.composition}
            charged = OxidationStateDecorationTransformation(states).apply_transformation(plain)
            found = OrderDisorderedStructureTransformation().apply_transformation(charged)
    except Exception as error:  # whatever pymatgen raises, the record is one nobody can order
        reason = str(error) or type(error).__name__
        raise AtomloomError(f"disordered, and pymatgen cannot order it: {reason}") from None
    return to_structure(found)
