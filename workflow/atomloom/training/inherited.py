"""Inheritance of a new training from the model that it starts from: weights, scales, atomic energies.

Weights belong to the scale that they were trained with, so what is kept of the outputs keeps its scale. Outputs of
targets that the parent does not have start anew. It knows nothing of the loop.

Legend: S structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from atomloom.config.features import feature_spec
from atomloom.config.root import Config
from atomloom.config.start_model import WHERE
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.inference.global_features import GlobalFeatures
from atomloom.inference.model_file import ModelCard
from atomloom.inference.predict import LoadedModel, load_model, predict_all
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.inference.scalers.direct_scaler import DirectScaler
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models.registry import build_model
from atomloom.store.keys import short_hash
from atomloom.training.distributed import full_state, load_weights


@dataclass(frozen=True, eq=False)
class Inherited:
    """Scales of the outputs that a training keeps of another model."""

    scaler: TargetScaler | AtomicEnergies | None = None
    """Scaler of the scalars; None if they are others."""
    head_scalers: Mapping[str, DirectScaler] = field(default_factory=dict)
    """Scalers of the heads that are kept, by name."""
    global_features: GlobalFeatures | None = None
    """Scales of the global features; None if they are others."""
    energies: np.ndarray | None = None
    """[S] eV, what the network of a potential adds to the energies of training structures; NaN for others."""


class ParentModel:
    """Model that a training starts from.

    Args:
        config: the whole config of the training.

    Raises:
        AtomloomError: when the model is missing, damaged or of another network, or has a target in another
            unit.
    """

    def __init__(self, config: Config) -> None:
        found, self._config = config.start_model, config
        assert found is not None
        self.named = str(config.training.start_from)
        self.facts = {"named": self.named, **found.spec}
        """Content of cards on it."""
        self.trained_on = found.trained_on
        """Data that it was trained on."""
        if found.path is None:
            raise AtomloomError(
                f"there is no model file or run {self.named}, which is needed to train", where=WHERE
            )
        self._loaded = load_model(found.path)
        again = config.start_model
        if again is None or again.spec != found.spec:
            raise AtomloomError("has changed meanwhile", where=found.path, todo="start again")
        self._require_units()

    @property
    def card(self) -> ModelCard:
        """Card of the model."""
        return self._loaded.card

    def _require_units(self) -> None:
        """Raise AtomloomError if labels of a target that is kept are in another unit than the model's."""
        theirs = {spec.name: spec for spec in self.card.specs}
        for spec in self._config.targets:
            other = theirs.get(spec.name)
            if other is None or spec.of_energy or not spec.unit or not other.unit:
                continue
            if spec.unit != other.unit:
                raise AtomloomError(
                    f"{spec.name} is in {other.unit} in {self.named}, and in {spec.unit} here",
                    where=WHERE,
                    todo="convert the labels, or give the target another name: its output then starts anew",
                )

    # --- scales ---

    @property
    def keeps_scalars(self) -> bool:
        """Whether the outputs for scalars mean the same in both."""
        config, card = self._config, self.card
        own = tuple(spec for spec in config.targets if spec.is_column)
        if not own or not card.scalars:
            return False
        if isinstance(card.scaler, AtomicEnergies):
            return True
        assert isinstance(card.scaler, TargetScaler)
        training, scaler = config.training, card.scaler
        names = tuple(spec.name for spec in own)
        return (
            names == card.scalars
            and [name in training.log_targets for name in names] == scaler.log.tolist()
            and scaler.classes == training.classes
            and (scaler.class_count > 0) == (training.loss == "cross_entropy")
        )

    @property
    def kept_heads(self) -> dict[str, DirectScaler]:
        """Scalers of the heads for targets that are of one kind in both, by name."""
        theirs = {spec.name: spec.kind for spec in self.card.direct}
        own = {spec.name: spec.kind for spec in self._config.targets if spec.direct}
        same = own.items() & theirs.items()
        return {name: self.card.head_scalers[name] for name, _ in same}

    @property
    def keeps_globals(self) -> bool:
        """Whether both have the same global features."""
        keys = {
            name: short_hash(feature_spec(name, one)) for name, one in self._config.features.items()
        }
        same = keys == {name: one.key for name, one in self.card.features.items()}
        return same and tuple(self._config.dataset.global_features) == self.card.told

    def inherited(self, data: LabelledGraphs, rows: np.ndarray, fabric: Fabric) -> Inherited:
        """Scales that are kept, and energies by the network; to be called by all processes.

        Args:
            data: graphs with labels.
            rows: rows of the training set.
            fabric: processes and device; the first computes energies for all.
        """
        scaler = self.card.scaler if self.keeps_scalars else None
        energies = None
        if isinstance(scaler, AtomicEnergies):
            energies = np.full(len(data.table), np.nan)
            if fabric.is_global_zero:
                energies[rows] = self._energies(data, rows, scaler, fabric)
            energies = fabric.broadcast(energies)
        given = self.card.global_features if self.keeps_globals else None
        return Inherited(scaler, self.kept_heads, given, energies)

    def _energies(
        self, data: LabelledGraphs, rows: np.ndarray, scaler: AtomicEnergies, fabric: Fabric
    ) -> np.ndarray:
        """[rows] eV, sums of what the network gives for atoms."""
        bare = AtomicEnergies(np.zeros_like(scaler.element_energies), 0.0, scaler.scale)
        loaded = LoadedModel(
            self._loaded.model, replace(self.card, scaler=bare), self._loaded.dtype
        )
        bounds = self._config.training.batch
        device = fabric.device.type
        found = predict_all(loaded, data.table, rows, bounds, device, choice=data.choice)
        return found.scalars[:, 0]

    # --- weights ---

    def fill(
        self,
        model: nn.Module,
        outputs: int,
        options: Mapping[str, Any],
        elements: Sequence[str],
    ) -> list[str]:
        """Give a new network the weights, except for outputs that start anew; to be called by all processes.

        Args:
            model: new network, on its device.
            outputs: its number of outputs for scalars.
            options: arguments that it was built with, besides its config and `outputs`.
            elements: those of the training structures.

        Returns:
            Lines for the log.
        """
        own, theirs = full_state(model.state_dict()), self._loaded.model.state_dict()
        anew = self._others(outputs, options)
        anew |= {n for n in own if n not in theirs or theirs[n].shape != own[n].shape}
        kept = {name: theirs[name] for name in own if name not in anew}
        load_weights(model, {**own, **kept})
        lines = [f"starting from {self.named} ({self.card.model.shown_name}): {_told(own, anew)}"]
        unseen = [one for one in elements if one not in (self.card.elements or elements)]
        if unseen:
            lines.append(f"note: {self.named} has not seen {', '.join(unseen)}")
        graph, theirs_of = self._config.graph.key_content(), self.card.graph.key_content()
        other = [name for name in graph if graph[name] != theirs_of.get(name)]
        if other:
            lines.append(
                f"note: graphs differ from those of {self.named} in {', '.join(other)}: its predictions do, too"
            )
        return lines

    def _others(self, outputs: int, options: Mapping[str, Any]) -> set[str]:
        """Names of the tensors that belong to outputs or inputs that the parent does not have.

        They are found by building the network with one more or less of them.
        """
        with torch.random.fork_rng(devices=[]):
            shapes = self._shapes(outputs, options)
            changed: list[dict[str, torch.Size]] = []
            if outputs and not self.keeps_scalars and not self.card.is_potential:
                changed.append(self._shapes(outputs + 1, options))
            if (count := options.get("global_features")) and not self.keeps_globals:
                more = {**options, "global_features": count + 1}
                changed.append(self._shapes(outputs, more))
            heads = tuple(options.get("heads", ()))
            kept = tuple(head for head in heads if head.name in self.kept_heads)
            if kept != heads and (outputs or kept):
                changed.append(self._shapes(outputs, {**options, "heads": kept}))
        return {n for other in changed for n in shapes if other.get(n) != shapes[n]}

    def _shapes(self, outputs: int, options: Mapping[str, Any]) -> dict[str, torch.Size]:
        model = build_model(self._config.model, outputs, **options)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _told(own: Mapping[str, Tensor], anew: set[str]) -> str:
    """Tensors that start anew, in words."""
    if not anew:
        return "all weights"
    names = sorted(anew)
    shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    return f"{len(own) - len(anew)} of {len(own)} tensors; anew: {shown}"
