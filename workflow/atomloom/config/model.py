"""The `model` section: one class of hyper-parameters a model, told apart by `name`.

The classes live here, away from torch, because the workflow reads them whenever it is parsed; the
networks themselves are in `atomloom.models`, found through its registry.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from atomloom.config.base import Section


class IComFormerConfig(Section):
    """Invariant ComFormer (Yan et al., ICLR 2024, arXiv:2403.11857)."""

    graph_needs: ClassVar[dict[str, Any]] = {
        "neighbors": "knn",
        "lattice": True,
        "lattice_edges": True,
    }

    name: Literal["icomformer"] = "icomformer"
    """Name of the model."""
    width: int = Field(default=256, ge=4)
    """Features of nodes and edges."""
    rbf_centers: int | None = Field(default=None, ge=2)
    """Gaussians for -0.75/|r| and for angles; the width unless given."""
    layers: int = Field(default=4, ge=2)
    """Node layers; the one edge layer follows the first of them."""


class EComFormerConfig(Section):
    """Equivariant ComFormer (Yan et al., ICLR 2024, arXiv:2403.11857)."""

    graph_needs: ClassVar[dict[str, Any]] = {"neighbors": "knn", "lattice_edges": True}

    name: Literal["ecomformer"] = "ecomformer"
    """Name of the model."""
    width: int = Field(default=256, ge=4)
    """Features of nodes and edges."""
    rbf_centers: int | None = Field(default=None, ge=2)
    """Gaussians for -0.75/|r|; the width unless given."""
    layers: int = Field(default=3, ge=2)
    """Node layers; the equivariant layer follows the first of them."""


ModelConfig = Annotated[IComFormerConfig | EComFormerConfig, Field(discriminator="name")]


def graph_needs(name: str) -> dict[str, Any]:
    """Graph options that the model of this name cannot do without; empty for an unknown name."""
    for section in get_args(get_args(ModelConfig)[0]):
        if section.model_fields["name"].default == name:
            return section.graph_needs
    return {}
