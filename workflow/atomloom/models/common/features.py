"""Element features: the 92 of CGCNN, looked up by atomic number.

It knows only elements, nothing of networks or graphs.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

import numpy as np

from atomloom.errors import AtomloomError

ELEMENTS = 119
"""Number of rows of the table: atomic numbers 0 (no element) to 118."""
CGCNN_FEATURES = 92
"""Number of columns of the table."""


@lru_cache(maxsize=1)
def cgcnn_features() -> np.ndarray:
    """[119, 92] float64 CGCNN features of each atomic number, as shipped with jarvis-tools.

    One-hot group, period, electronegativity, radius, valence, ionisation energy, affinity, block and
    volume (Xie and Grossman, PRL 120, 145301 (2018)). Rows of elements without features (0 and
    those beyond fermium) are NaN: a structure that escaped `require_cgcnn_features` must not
    get a plausible number.
    """
    table = np.full((ELEMENTS, CGCNN_FEATURES), np.nan)
    text = files("jarvis").joinpath("core", "atom_init.json").read_text(encoding="utf-8")
    for number, row in json.loads(text).items():
        table[int(number)] = row
    table.setflags(write=False)
    return table


def require_cgcnn_features(numbers: np.ndarray, where: object = "") -> None:
    """Raise AtomloomError unless every atomic number in `numbers` has CGCNN features."""
    numbers = np.unique(numbers)
    inside = (numbers >= 0) & (numbers < ELEMENTS)
    unknown = numbers[~inside].tolist()
    unknown += [int(z) for z in numbers[inside] if np.isnan(cgcnn_features()[z, 0])]
    if unknown:
        raise AtomloomError(
            f"no CGCNN features for atomic numbers {sorted(unknown)}",
            where=where,
            todo="remove these structures or choose a model with learned element embeddings",
        )
