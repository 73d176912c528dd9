"""The `model` section: one class of hyper-parameters a model, told apart by `name`.

The classes live here, away from torch, because the workflow reads them whenever it is parsed; the
networks themselves are in `atomloom.models`, found through its registry.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from atomloom.config.base import Section


class ModelSection(Section):
    """What the sections of all models have in common."""

    kind: ClassVar[Literal["property", "potential"]] = "property"
    """`property`: numbers a structure. `potential`: energies of atoms, with forces and stress."""

    def graph_needs(self) -> dict[str, Any]:
        """Options of the graph that this model cannot do without."""
        return {}


class IComFormerConfig(ModelSection):
    """Invariant ComFormer (Yan et al., ICLR 2024, arXiv:2403.11857)."""

    name: Literal["icomformer"] = "icomformer"
    """Name of the model."""
    width: int = Field(default=256, ge=4)
    """Features of nodes and edges."""
    rbf_centers: int | None = Field(default=None, ge=2)
    """Gaussians for -0.75/|r| and for angles; the width unless given."""
    layers: int = Field(default=4, ge=2)
    """Node layers; the one edge layer follows the first of them."""

    def graph_needs(self) -> dict[str, Any]:
        """The lattice triad, as vectors and as edges."""
        return {"neighbors": "knn", "lattice": True, "lattice_edges": True}


class EComFormerConfig(ModelSection):
    """Equivariant ComFormer (Yan et al., ICLR 2024, arXiv:2403.11857)."""

    name: Literal["ecomformer"] = "ecomformer"
    """Name of the model."""
    width: int = Field(default=256, ge=4)
    """Features of nodes and edges."""
    rbf_centers: int | None = Field(default=None, ge=2)
    """Gaussians for -0.75/|r|; the width unless given."""
    layers: int = Field(default=3, ge=2)
    """Node layers; the equivariant layer follows the first of them."""

    def graph_needs(self) -> dict[str, Any]:
        """The lattice triad as edges."""
        return {"neighbors": "knn", "lattice_edges": True}


ModelConfig = Annotated[IComFormerConfig | EComFormerConfig, Field(discriminator="name")]
