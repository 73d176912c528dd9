"""Sources of derived features by name; their modules are imported when they are used."""

from __future__ import annotations

from importlib import import_module

from atomloom.config.features import Feature
from atomloom.errors import AtomloomError
from atomloom.features.base import Source

SOURCES = {
    "composition": "atomloom.features.composition:Composition",
    "gamma_frequencies": "atomloom.features.gamma_frequencies:GammaFrequencies",
    "embedding": "atomloom.features.embedding:Embedding",
}
"""Source -> its class, which is made with a `Feature` of the config."""


def open_source(name: str, feature: Feature) -> Source:
    """Open the source of a feature, with its calculator or network if it has one.

    Raises:
        AtomloomError: when a model file or a package is missing, or options are wrong.
    """
    module, _, own = SOURCES[feature.source].partition(":")
    try:
        source: Source = getattr(import_module(module), own)(feature)
    except AtomloomError as error:
        where = str(error.where).replace("teacher.", f"features.{name}.")
        raise AtomloomError(error.what, where=where, todo=error.todo) from None
    return source
