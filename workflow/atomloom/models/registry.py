"""Where the models are: config name -> module and class, imported when one is asked for.

To add a model, write its config class into `atomloom.config.model` and its line into `MODELS`. It
knows nothing of training.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING

from atomloom.config.base import Section
from atomloom.errors import AtomloomError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

MODELS: dict[str, str] = {
    "icomformer": "atomloom.models.comformer:IComFormer",
    "ecomformer": "atomloom.models.comformer:EComFormer",
    "alignn": "atomloom.models.alignn:ALIGNN",
    "chebyshev": "atomloom.models.chebyshev.network:Chebyshev",
    "painn": "atomloom.models.painn.network:PaiNN",
}
"""Config name -> "module:Class"."""


def model_class(name: str) -> type[nn.Module]:
    """The class of the model called `name`; AtomloomError if there is none."""
    if name not in MODELS:
        raise AtomloomError(
            f"unknown model {name!r}", where="model.name", todo=f"choose from {sorted(MODELS)}"
        )
    module, _, attribute = MODELS[name].partition(":")
    return getattr(import_module(module), attribute)


def require_elements(model: nn.Module, numbers: np.ndarray) -> None:
    """Raise AtomloomError where the model has no features for some element.

    A model that cannot take every element has a method of this name; others know them all.
    """
    check = getattr(model, "require_elements", None)
    if check is not None:
        check(numbers)


def build_model(config: Section, outputs: int, global_features: int = 0) -> nn.Module:
    """The model that `config` describes, initialised from torch's current seed.

    Args:
        config: one of the classes of `atomloom.config.model`.
        outputs: numbers to predict for each structure.
        global_features: numbers a structure that the model is given in `batch.extras["globals"]`;
            a model that can be has a third argument.
    """
    if outputs < 1:
        raise AtomloomError(f"a model needs at least one output, not {outputs}")
    found = model_class(config.name)
    if not global_features:
        return found(config, outputs)
    if "global_features" not in signature(found).parameters:
        raise AtomloomError(
            f"model {config.name} takes no global features", where="dataset.global_features"
        )
    return found(config, outputs, global_features)
