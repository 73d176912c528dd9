"""Features that a trained model needs, computed for new structures as they were in training.

A model file is data: it names the calculators of its features, but no code of others that is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atomloom.config.features import OPTIONS, Feature, feature_spec
from atomloom.errors import AtomloomError
from atomloom.features.base import Source
from atomloom.features.registry import open_source
from atomloom.inference.model_file import CardFeature, ModelCard
from atomloom.store.keys import short_hash
from atomloom.structures.table import StructureTable


@dataclass(frozen=True, eq=False)
class Computed:
    """Features of S structures."""

    columns: Mapping[str, np.ndarray]
    """[S] numbers by `feature.column`, NaN where a source failed."""
    reasons: Mapping[int, str]
    """Reasons why structures lack some, by row."""


@dataclass(frozen=True, eq=False)
class FeatureComputer:
    """Sources of a model's features, ready to compute them."""

    sources: Mapping[str, Source]

    @classmethod
    def of(cls, card: ModelCard, trust: Sequence[str] = ()) -> FeatureComputer:
        """Open the sources of a model.

        Args:
            card: of the model.
            trust: modules, or packages of modules, that its calculators may be from.

        Raises:
            AtomloomError: when one cannot be opened here, or would give other numbers than in training.
        """
        return cls(
            {
                name: open_source(name, trusted_feature(name, one, trust))
                for name, one in sorted(card.features.items())
            }
        )

    def compute(self, table: StructureTable) -> Computed:
        """Compute the features of structures."""
        columns: dict[str, np.ndarray] = {}
        reasons: dict[int, str] = {}
        for name, source in self.sources.items():
            values = np.full((len(table), len(source.columns)), np.nan)
            for row, one in enumerate(source.describe(table)):
                if one.values is None:
                    reasons.setdefault(row, f"{name}: {one.failure}")
                else:
                    values[row] = one.values
            columns |= {f"{name}.{c}": values[:, i] for i, c in enumerate(source.columns)}
        return Computed(columns, reasons)


def trusted_feature(name: str, one: CardFeature, trust: Sequence[str]) -> Feature:
    """Section of a feature of a model, with the code that the user trusts and no other.

    Raises:
        AtomloomError: when it names the code of others, or gives other numbers here than in training.
    """
    section, where = one.section, f"the feature {name}"
    if "calculator" in OPTIONS[section.source]:
        _require_trust(where, section.calculator, trust)
    if short_hash(feature_spec(name, section)) != one.key:
        told = f"{section.model} or the version" if section.model else "the version"
        raise AtomloomError(
            f"{told} of its source here is not that of the training: the numbers would be others",
            where=where,
            todo="put the file of the training there, or use the atomloom that trained the model",
        )
    if not section.of_a_model or not (trust or "trust" in section.options):
        return section
    return section.model_copy(update={"options": section.options | {"trust": list(trust)}})


def _require_trust(where: str, calculator: str, trust: Sequence[str]) -> None:
    """Raise AtomloomError if a calculator is a class that the user has not asked for, imported or not: it may run a
    command that its options name."""
    module = calculator.partition(":")[0]
    if ":" in calculator and not {module, module.partition(".")[0]} & set(trust):
        raise AtomloomError(
            f"asks a calculator of the module {module[:100]}, whose code would be run",
            where=where,
            todo=f"if you trust it: --trust {module.partition('.')[0][:100]}, or trust=... of load_model",
        )
