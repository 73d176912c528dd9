"""The `model` section: one class of hyper-parameters a model, told apart by `name`.

The classes live here, away from torch, because the workflow reads them whenever it is parsed; the
networks themselves are in `atomloom.models`, found through its registry.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from atomloom.config.base import Section, unkeyed

Symbol = Annotated[str, Field(pattern="^[A-Z][a-z]?$")]
HiddenLayers = tuple[Annotated[int, Field(ge=1)], ...]
Readout = Literal["mean", "sum"]
ActivationName = Literal["tanh", "sigmoid", "linear", "mtanh", "twist", "silu", "relu"]


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
    readout: Readout = "mean"
    """What makes a structure's value of its atoms'. `mean`: for targets that do not grow with the cell
    (an energy an atom, a band gap). `sum`: for targets that do (a total energy), exactly twice as much
    for twice the cell; they are learnt as sum_i (scale e_i + shift) over the atoms i."""

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
    readout: Readout = "mean"
    """What makes a structure's value of its atoms'. `mean`: for targets that do not grow with the cell
    (an energy an atom, a band gap). `sum`: for targets that do (a total energy), exactly twice as much
    for twice the cell; they are learnt as sum_i (scale e_i + shift) over the atoms i."""

    def graph_needs(self) -> dict[str, Any]:
        """The lattice triad as edges."""
        return {"neighbors": "knn", "lattice_edges": True}


class ALIGNNConfig(ModelSection):
    """ALIGNN (Choudhary and DeCost, npj Comput. Mater. 7, 185 (2021))."""

    name: Literal["alignn"] = "alignn"
    """Name of the model."""
    width: int = Field(default=256, ge=4)
    """Features of atoms, edges and angles."""
    alignn_layers: int = Field(default=4, ge=1)
    """Layers that update the crystal graph and its line graph."""
    gcn_layers: int = Field(default=4, ge=1)
    """Layers after them that update the crystal graph alone."""
    embedding: int = Field(default=64, ge=1)
    """Features between the Gaussians and the first layer."""
    edge_bins: int = Field(default=80, ge=2)
    """Gaussians for lengths, from 0 to 8 A."""
    angle_bins: int = Field(default=40, ge=2)
    """Gaussians for cosines of angles."""
    readout: Readout = "mean"
    """What makes a structure's value of its atoms'. `mean`: for targets that do not grow with the cell
    (an energy an atom, a band gap). `sum`: for targets that do (a total energy), exactly twice as much
    for twice the cell; they are learnt as sum_i (scale e_i + shift) over the atoms i."""
    backend: Literal["auto", "dgl", "torch"] = unkeyed("auto")
    """What sums over edges. `auto`: on a CPU DGL's kernels where DGL is installed, and blocks that
    stay in the cache for the line graph; elsewhere torch. `dgl`, `torch`: that alone."""

    def graph_needs(self) -> dict[str, Any]:
        """Nearest neighbours without the lattice as edges."""
        return {"neighbors": "knn", "lattice_edges": False}


class ChebyshevConfig(ModelSection):
    """Chebyshev (aenet) potential (Artrith, Urban and Ceder, PRB 96, 014112 (2017))."""

    kind: ClassVar[Literal["property", "potential"]] = "potential"

    name: Literal["chebyshev"] = "chebyshev"
    """Name of the model."""
    species: tuple[Symbol, ...] = Field(min_length=1)
    """Elements. Their order matters: it gives them their weights (..., -1, 1, ...) in the weighted
    features."""
    radial_order: int = Field(default=20, ge=0, le=100)
    """Highest order of the polynomials of distances."""
    radial_cutoff: float = Field(default=6.5, gt=0, le=50)
    """Reach of the radial features in A."""
    angular_order: int = Field(default=6, ge=0, le=30)
    """Highest order of the polynomials of cosines."""
    angular_cutoff: float = Field(default=5.0, gt=0, le=50)
    """Reach of the angular features in A."""
    hidden: HiddenLayers | dict[Symbol, HiddenLayers] = (15, 15)
    """Nodes of the hidden layers: of all networks, or by element."""
    activation: ActivationName | dict[Symbol, ActivationName] = "tanh"
    """Of the hidden layers, for all networks or by element. Names are aenet's; it does not have
    `silu` and `relu`."""
    decorrelate: bool = False
    """Mix the standardised features so that they vary independently over the training atoms. The
    networks can say no more and no less, but are learnt faster."""
    least_distance: float = Field(default=0.55, gt=0)
    """A; structures with atoms closer than this are refused."""

    @field_validator("species")
    @classmethod
    def _each_once(cls, species: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(species)) < len(species):
            raise ValueError("an element is named twice")
        return species

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the larger cutoff."""
        return {"neighbors": "radius", "cutoff": max(self.radial_cutoff, self.angular_cutoff)}


class PaiNNConfig(ModelSection):
    """PaiNN, a potential (Schuett et al., ICML 2021, arXiv:2102.03150)."""

    kind: ClassVar[Literal["property", "potential"]] = "potential"
    name: Literal["painn"] = "painn"
    """Name of the model."""
    width: int = Field(default=128, ge=2)
    """Features of an atom: scalars, and as many vectors."""
    layers: int = Field(default=3, ge=1)
    """Interactions, each a message and an update."""
    rbf: int = Field(default=20, ge=2)
    """Gaussians of the distance, from 0 to the cutoff."""
    cutoff: float = Field(default=5.0, gt=0, le=50)
    """Reach of messages in A."""
    shared_filters: bool = False
    """Use the same filters of the distance in all interactions."""

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the cutoff."""
        return {"neighbors": "radius", "cutoff": self.cutoff}


ModelConfig = Annotated[
    IComFormerConfig | EComFormerConfig | ALIGNNConfig | ChebyshevConfig | PaiNNConfig,
    Field(discriminator="name"),
]
