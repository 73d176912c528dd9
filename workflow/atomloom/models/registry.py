"""Registry of models: from the `model` section of a config to its network, imported on demand.

It knows nothing of training.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from atomloom.config.model import MODELS, ModelSection, is_by_class
from atomloom.errors import AtomloomError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import nn

    from atomloom.models.common.outputs import Head


def model_class(name: str) -> type[nn.Module]:
    """Class of the network of this name, or `module:Class`; AtomloomError if there is none."""
    if name not in MODELS and not is_by_class(name):
        raise AtomloomError(
            f"unknown model {name!r}",
            where="model.name",
            todo=f"choose from {sorted(MODELS)}, or give `module:Class`",
        )
    network = MODELS[name].network if name in MODELS else name
    module, _, attribute = network.partition(":")
    return getattr(import_module(module), attribute)


def require_elements(model: nn.Module, numbers: np.ndarray) -> None:
    """Raise AtomloomError where the model has no features for some element.

    A model that does not cover every element has a method of this name; others cover all.
    """
    check = getattr(model, "require_elements", None)
    if check is not None:
        check(numbers)


def require_sizes(model: nn.Module, atoms: np.ndarray) -> None:
    """Raise AtomloomError where a structure has more atoms than the model takes.

    A model with a limit has a method of this name, which takes numbers of atoms; others have none.
    """
    check = getattr(model, "require_sizes", None)
    if check is not None:
        check(atoms)


def build_model(
    config: ModelSection, outputs: int, global_features: int = 0, heads: Sequence[Head] = ()
) -> nn.Module:
    """Build the model that `config` describes, initialised from torch's current seed.

    Args:
        config: the `model` section of a config.
        outputs: number of outputs per structure; 0 with only heads.
        global_features: numbers per structure that the model gets in `batch.extras["globals"]`;
            a model that supports them has an argument of this name.
        heads: further targets, each with its own head; a model that supports them has an argument
            of this name, and then returns `Outputs`.
    """
    if outputs < 0 or not (outputs or heads):
        raise AtomloomError(f"a model needs at least one output, not {outputs}")
    found = model_class(config.name)
    known = signature(found).parameters
    options: dict[str, Any] = {}
    if global_features:
        if "global_features" not in known:
            raise AtomloomError(
                f"model {config.name} takes no global features", where="dataset.global_features"
            )
        options["global_features"] = global_features
    if heads:
        if "heads" not in known:
            names = ", ".join(head.name for head in heads)
            raise AtomloomError(
                f"model {config.name} has no heads for {names}", where="dataset.target"
            )
        options["heads"] = tuple(heads)
    return found(config, outputs, **options)
