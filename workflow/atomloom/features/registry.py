"""Sources of derived features by name; their modules are imported when they are used."""

from __future__ import annotations

from importlib import import_module

from atomloom.config.features import Feature
from atomloom.features.base import Source

SOURCES = {
    "composition": "atomloom.features.composition:Composition",
    "gamma_frequencies": "atomloom.features.gamma_frequencies:GammaFrequencies",
    "embedding": "atomloom.features.embedding:Embedding",
}
"""Source -> its class, which is made with a `Feature` of the config."""


def open_source(feature: Feature) -> Source:
    """Open a source, with its calculator or network if it has one.

    Raises:
        AtomloomError: when a model file or a package is missing, or options are wrong.
    """
    module, _, name = SOURCES[feature.source].partition(":")
    source: Source = getattr(import_module(module), name)(feature)
    return source
