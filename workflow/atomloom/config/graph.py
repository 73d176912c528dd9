"""The `graph` section: which atoms are neighbours, and what is stored about them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from atomloom.config.base import Section


class GraphSpec(Section):
    """Specification of neighbour graphs. Every field is part of the graph key."""

    neighbors: Literal["knn", "radius", "none"] = "knn"
    """`knn`: the nearest `max_neighbors` of each atom with their whole shell, as in CGCNN, ALIGNN and
    ComFormer. `radius`: every pair within `cutoff`, as in PaiNN, TensorNet, NequIP, the
    crystal transformer and the Chebyshev potential. `none`: atoms alone, for tabular models; nothing is searched,
    and other keys mean nothing."""
    cutoff: float = Field(default=8.0, ge=0.5, le=50)
    """Cutoff radius in A."""
    max_neighbors: int = Field(default=12, ge=1, le=512)
    """k-nearest only: number of neighbours of each atom; ties at the k-th distance are all kept."""
    short: Literal["enlarge", "keep"] = "enlarge"
    """k-nearest only: an atom with fewer neighbours than `max_neighbors` within the cutoff takes the
    nearest ones beyond it (`enlarge`) or keeps those it has (`keep`)."""
    shell_tolerance: float = Field(default=1e-5, ge=0, le=0.1)
    """k-nearest only: neighbours within this distance (A) of the k-th belong to its shell. Without
    it rounding noise cuts shells; 0 reproduces published graphs for old checkpoints."""
    lattice: bool = False
    """Store the lattice triad of each crystal (needed by iComFormer)."""
    lattice_edges: bool = False
    """Add each atom's edges to its own images along the lattice triad, as ComFormer does."""
    triplets: float | None = Field(default=None, ge=0.5, le=50)
    """Store pairs of edges that meet at an atom, for edges up to this length in A."""
    primitive: bool = False
    """Reduce each crystal to its primitive cell (spglib) before building."""

    @model_validator(mode="before")
    @classmethod
    def _ignore_knn_options_of_radius_graphs(cls, data: object) -> object:
        # A radius graph does not depend on the k-nearest options: leave them out of its key.
        if isinstance(data, dict) and data.get("neighbors") == "radius":
            return {k: v for k, v in data.items() if k not in KNN_OPTIONS}
        return data

    @model_validator(mode="after")
    def _nothing_is_asked_of_no_neighbors(self) -> GraphSpec:
        if self.neighbors != "none":
            return self
        for name, field in type(self).model_fields.items():
            if name != "neighbors" and getattr(self, name) != field.get_default():
                raise ValueError(f"{name} means nothing for neighbors: none")
        return self


KNN_OPTIONS = ("max_neighbors", "short", "shell_tolerance")
