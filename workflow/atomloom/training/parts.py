"""Parts of a network by name: those that are not trained, and those with their own learning rate.

A part is named by its parameters: `embedding` and `interactions.0` are all whose names begin so, `*.weight` is a
pattern. It knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from atomloom.errors import AtomloomError

NEAREST = 5
"""Max number of parts that a message names."""


def belongs(name: str, part: str) -> bool:
    """Whether a parameter or buffer belongs to a part of a network."""
    return name == part or name.startswith(f"{part.rstrip('.')}.") or fnmatchcase(name, part)


def require_parts(model: nn.Module, parts: Iterable[str], where: str) -> None:
    """Raise AtomloomError if a network has no parameters of some part."""
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(belongs(name, part) for name in names):
            known = [*dict.fromkeys(_part_of(one) for one in names)]
            near = get_close_matches(part, [*dict.fromkeys([*known, *names])], n=NEAREST)
            shown = near or known[:NEAREST]
            more = " ..." if len(known) > len(shown) else ""
            raise AtomloomError(
                f"the network has no parameters `{part}`",
                where=where,
                todo=f"{'the nearest' if near else 'its first'} parts: {', '.join(shown)}{more}",
            )


def freeze(model: nn.Module, parts: Iterable[str]) -> list[nn.Module]:
    """Exclude parts of a network from training; return its batch norms that thereby keep their statistics.

    Raises:
        AtomloomError: when there is no such part, or nothing is left to train.
    """
    parts = tuple(parts)
    require_parts(model, parts, "training.freeze")
    for name, parameter in model.named_parameters():
        if any(belongs(name, part) for part in parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AtomloomError("nothing is left to train", where="training.freeze")
    return [
        module
        for prefix, module in model.named_modules()
        if getattr(module, "running_mean", None) is not None and _is_frozen(prefix, module, parts)
    ]


def _is_frozen(prefix: str, norm: nn.Module, parts: tuple[str, ...]) -> bool:
    own = list(norm.parameters(recurse=False))
    if own:
        return not any(parameter.requires_grad for parameter in own)
    return any(belongs(f"{prefix}.running_mean", part) for part in parts)


def _part_of(name: str) -> str:
    """Module of a parameter, of at most three words or to the number of a layer."""
    words = name.split(".")
    layer = next((place for place, word in enumerate(words) if word.isdigit()), 2)
    return ".".join(words[: min(layer + 1, max(1, len(words) - 1))])
