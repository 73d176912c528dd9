"""The `model` section: one class of hyper-parameters per model, selected by `name`.

The classes live here, away from torch, because the workflow reads them whenever it is parsed; each says
where its network is. A network named by `module:Class` has its section as its attribute `Config`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, TypeGuard, get_args

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from atomloom.config.base import MOST, MOST_LAYERS, MOST_WIDTH, Section, renamed, unkeyed
from atomloom.targets import KINDS, TargetSpec, kind_class, kind_named

ELEMENT = re.compile(
    "A[cglmrstu]|B[aehikr]?|C[adeflmnorsu]?|D[bsy]|E[rsu]|F[elmr]?|G[ade]|H[efgos]?|I[nr]?|Kr?|"
    "L[airuv]|M[cdgnot]|N[abdehiop]?|O[gs]?|P[abdmortu]?|R[abefghnu]|S[bcegimnr]?|T[abcehilms]|"
    "U|V|W|Xe|Yb?|Z[nr]"
)
"""Symbols of the elements."""


def _element(symbol: str) -> str:
    if not ELEMENT.fullmatch(symbol):
        raise ValueError(f"{symbol!r} is not a chemical element")
    return symbol


Element = AfterValidator(_element)
Symbol = Annotated[str, Element]
HiddenLayers = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MOST_WIDTH)], ...], Field(max_length=MOST_LAYERS)
]
Readout = Literal["mean", "sum"]
ActivationName = Literal["tanh", "sigmoid", "linear", "mtanh", "twist", "silu", "relu"]


Form = tuple[Literal["structure", "atom"], tuple[int, ...]]
"""Owner of a value (atom or structure), and the value's shape."""
ATOM_SCALAR: Form = ("atom", ())
ATOM_VECTOR: Form = ("atom", (3,))
VECTOR: Form = ("structure", (3,))


class ModelSection(Section):
    """Base of all model sections."""

    kind: ClassVar[Literal["property", "potential"]] = "property"
    """`property`: numbers per structure. `potential`: atomic energies, with forces and stress."""
    heads: ClassVar[frozenset[Form]] = frozenset()
    """Forms of the further targets for which the network can have heads."""
    display_name: ClassVar[str] = ""
    """Name of the model in reports; by default the name of its class."""
    network: ClassVar[str] = ""
    """"module:Class" of the network, where that is not the model's name."""
    recomputing: ClassVar[bool] = False
    """Whether its layers can be recomputed in the backward pass; of a network by its class, that says so itself."""
    usual_training: ClassVar[Mapping[str, Any]] = {}
    """Values of the section `training` for this model where the config gives none, if not the general defaults;
    not for L-BFGS."""

    name: str
    """Name of the model, or `module:Class` of its network."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_network_around_it(cls, data: Any) -> Any:
        network = cls.__qualname__.rpartition(".")[0]
        if isinstance(data, Mapping) and network and cls.model_fields["name"].is_required():
            return {"name": f"{cls.__module__}:{network}", **data}
        return data

    def usual_kind(self, target: str) -> str:
        """Kind of a target of this name, unless `dataset.target_kinds` has another."""
        return "scalar" if self.kind == "property" else kind_named(target)

    def can_learn(self, target: TargetSpec) -> bool:
        """Whether the network can be trained on such a target."""
        if target.direct:
            return (target.per, target.shape) in self.heads
        return target.of_energy == (self.kind == "potential")

    def learns(self) -> str:
        """Kinds of targets on which it can be trained, in words."""
        kinds = [kind for kind in KINDS if self.can_learn(kind_class(kind)(kind))]
        return ", ".join(kinds)

    def graph_needs(self) -> dict[str, Any]:
        """Options of the graph that this model requires."""
        return {}

    @property
    def shown_name(self) -> str:
        """Name of the model in a report."""
        return self.display_name or self.name.rpartition(":")[2]

    def key_content(self) -> dict[str, Any]:
        """Fields that determine results; for a network by `module:Class`, with the `VERSION` of its module."""
        version = module_version(self.name)
        return super().key_content() | ({} if version is None else {VERSION_KEY: version})


class IComFormerConfig(ModelSection):
    """Invariant ComFormer (Yan et al., ICLR 2024, arXiv:2403.11857)."""

    display_name: ClassVar[str] = "iComFormer"
    recomputing: ClassVar[bool] = True
    network: ClassVar[str] = "atomloom.models.comformer:IComFormer"
    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR})

    name: Literal["icomformer"] = "icomformer"
    """Name of the model."""
    width: int = Field(default=256, ge=4, le=MOST_WIDTH)
    """Features of nodes and edges."""
    rbf_centers: int | None = Field(default=None, ge=2, le=MOST_WIDTH)
    """Gaussians for -0.75/|r| and for angles; by default the width."""
    layers: int = Field(default=4, ge=2, le=MOST_LAYERS)
    """Node layers; the one edge layer follows the first of them."""
    readout: Readout = "mean"
    """Readout over the atoms. `mean`: for targets that do not grow with the cell
    (energy per atom, band gap). `sum`: for targets that do (a total energy), learnt as
    sum_i (scale e_i + shift) over the atoms i. Twice the cell has about twice the value, not exactly: the
    edges along the lattice depend on the choice of the cell. For PaiNN and Chebyshev it holds exactly."""

    def graph_needs(self) -> dict[str, Any]:
        """The lattice triad, as vectors and as edges."""
        return {"neighbors": "knn", "lattice": True, "lattice_edges": True}


class EComFormerConfig(ModelSection):
    """Equivariant ComFormer (Yan et al., ICLR 2024, arXiv:2403.11857)."""

    display_name: ClassVar[str] = "eComFormer"
    recomputing: ClassVar[bool] = True
    network: ClassVar[str] = "atomloom.models.comformer:EComFormer"
    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR})

    name: Literal["ecomformer"] = "ecomformer"
    """Name of the model."""
    width: int = Field(default=256, ge=4, le=MOST_WIDTH)
    """Features of nodes and edges."""
    rbf_centers: int | None = Field(default=None, ge=2, le=MOST_WIDTH)
    """Gaussians for -0.75/|r|; by default the width."""
    layers: int = Field(default=3, ge=2, le=MOST_LAYERS)
    """Node layers; the equivariant layer follows the first of them."""
    readout: Readout = "mean"
    """Readout over the atoms. `mean`: for targets that do not grow with the cell
    (energy per atom, band gap). `sum`: for targets that do (a total energy), learnt as
    sum_i (scale e_i + shift) over the atoms i. Twice the cell has about twice the value, not exactly: the
    edges along the lattice depend on the choice of the cell. For PaiNN and Chebyshev it holds exactly."""

    def graph_needs(self) -> dict[str, Any]:
        """The lattice triad as edges."""
        return {"neighbors": "knn", "lattice_edges": True}


class ALIGNNConfig(ModelSection):
    """ALIGNN (Choudhary and DeCost, npj Comput. Mater. 7, 185 (2021))."""

    display_name: ClassVar[str] = "ALIGNN"
    recomputing: ClassVar[bool] = True
    network: ClassVar[str] = "atomloom.models.alignn:ALIGNN"
    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR})

    name: Literal["alignn"] = "alignn"
    """Name of the model."""
    width: int = Field(default=256, ge=4, le=MOST_WIDTH)
    """Features of atoms, edges and angles."""
    alignn_layers: int = Field(default=4, ge=1, le=MOST_LAYERS)
    """Layers that update the crystal graph and its line graph."""
    gcn_layers: int = Field(default=4, ge=1, le=MOST_LAYERS)
    """Layers after them that update the crystal graph alone."""
    embedding: int = Field(default=64, ge=1, le=MOST_WIDTH)
    """Features between the Gaussians and the first layer."""
    edge_bins: int = Field(default=80, ge=2, le=MOST_WIDTH)
    """Gaussians for lengths, from 0 to 8 A."""
    angle_bins: int = Field(default=40, ge=2, le=MOST_WIDTH)
    """Gaussians for cosines of angles."""
    readout: Readout = "mean"
    """Readout over the atoms. `mean`: for targets that do not grow with the cell
    (energy per atom, band gap). `sum`: for targets that do (a total energy), learnt as
    sum_i (scale e_i + shift) over the atoms i. Twice the cell has exactly twice the value where no atom
    is its own neighbour; in smaller cells, where such edges count twice, only about twice."""
    backend: Literal["auto", "dgl", "torch"] = unkeyed("auto")
    """Kernels for sums over edges. `auto`: on a CPU DGL's kernels where DGL is installed, and blocks that
    stay in the cache for the line graph; elsewhere torch. `dgl`, `torch`: only these."""

    def graph_needs(self) -> dict[str, Any]:
        """Nearest neighbours without the lattice as edges."""
        return {"neighbors": "knn", "lattice_edges": False}


class ChebyshevConfig(ModelSection):
    """Chebyshev (aenet) potential (Artrith, Urban and Ceder, PRB 96, 014112 (2017))."""

    kind: ClassVar[Literal["property", "potential"]] = "potential"
    display_name: ClassVar[str] = "Chebyshev network"
    network: ClassVar[str] = "atomloom.models.chebyshev.network:Chebyshev"

    name: Literal["chebyshev"] = "chebyshev"
    """Name of the model."""
    species: tuple[Symbol, ...] = Field(min_length=1)
    """Elements. Their order matters: it sets their weights (..., -1, 1, ...) in the weighted
    features."""
    radial_order: int = Field(default=20, ge=0, le=100)
    """Max order of the polynomials of distances."""
    radial_cutoff: float = Field(default=6.5, ge=0.5, le=50)
    """Cutoff of the radial features in A."""
    angular_order: int = Field(default=6, ge=0, le=30)
    """Max order of the polynomials of cosines."""
    angular_cutoff: float = Field(default=5.0, ge=0.5, le=50)
    """Cutoff of the angular features in A."""
    hidden: HiddenLayers | dict[Symbol, HiddenLayers] = (15, 15)
    """Nodes of the hidden layers, for all networks or by element."""
    activation: ActivationName | dict[Symbol, ActivationName] = "tanh"
    """Activation of the hidden layers, for all networks or by element. Names are aenet's, except
    `silu` and `relu`, which aenet does not have."""
    decorrelate: bool = False
    """Mix the standardised features so that they vary independently over the training atoms. The
    networks can represent the same functions, but learn faster."""
    min_distance: float = renamed("least_distance", 0.55, gt=0, le=10)
    """Min distance in A; structures with closer atoms are refused."""

    @field_validator("species")
    @classmethod
    def _each_once(cls, species: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(species)) < len(species):
            raise ValueError("an element occurs twice")
        return species

    @model_validator(mode="after")
    def _reaches_beyond_the_min_distance(self) -> ChebyshevConfig:
        reach = min(self.radial_cutoff, self.angular_cutoff)
        if self.min_distance >= reach:
            raise ValueError(f"min_distance {self.min_distance} is not below the cutoff {reach}")
        return self

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the larger cutoff."""
        return {"neighbors": "radius", "cutoff": max(self.radial_cutoff, self.angular_cutoff)}


class PaiNNConfig(ModelSection):
    """PaiNN, a potential (Schuett et al., ICML 2021, arXiv:2102.03150)."""

    kind: ClassVar[Literal["property", "potential"]] = "potential"
    display_name: ClassVar[str] = "PaiNN"
    network: ClassVar[str] = "atomloom.models.painn.network:PaiNN"
    usual_training: ClassVar[Mapping[str, Any]] = {"batch": {"structures": 8}}
    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR, ATOM_VECTOR, VECTOR})

    name: Literal["painn"] = "painn"
    """Name of the model."""
    width: int = Field(default=128, ge=2, le=MOST_WIDTH)
    """Features per atom: this many scalars and as many vectors."""
    layers: int = Field(default=3, ge=1, le=MOST_LAYERS)
    """Interactions, each a message and an update."""
    rbf: int = Field(default=20, ge=2, le=MOST_WIDTH)
    """Gaussians of the distance, from 0 to the cutoff."""
    cutoff: float = Field(default=5.0, ge=0.5, le=50)
    """Cutoff of messages in A."""
    shared_filters: bool = False
    """Use the same filters of the distance in all interactions."""

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the cutoff."""
        return {"neighbors": "radius", "cutoff": self.cutoff}


class TensorNetSection(ModelSection):
    """Hyper-parameters of both uses of TensorNet."""

    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR, ATOM_VECTOR, VECTOR})

    width: int = Field(default=128, ge=2, le=MOST_WIDTH)
    """Features per atom: this many 3 x 3 matrices."""
    layers: int = Field(default=2, ge=0, le=MOST_LAYERS)
    """Interactions after the embedding, which is one exchange with neighbours already."""
    rbf: int = Field(default=32, ge=2, le=MOST_WIDTH)
    """Radial functions."""
    cutoff: float = Field(default=5.0, ge=0.5, le=50)
    """Cutoff of messages in A."""
    variant: Literal["paper", "matgl"] = "paper"
    """`paper`: radial functions that are narrow at short distances, and two layers after the scalars of an atom.
    `matgl`: those of matgl's implementation: equal Gaussians, and for energies two networks of four layers, of
    which one gates the other."""

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the cutoff."""
        return {"neighbors": "radius", "cutoff": self.cutoff}


class TensorNetConfig(TensorNetSection):
    """TensorNet, a potential (Simeon and De Fabritiis, NeurIPS 2023, arXiv:2306.06482)."""

    kind: ClassVar[Literal["property", "potential"]] = "potential"
    display_name: ClassVar[str] = "TensorNet"
    network: ClassVar[str] = "atomloom.models.tensornet.network:TensorNet"
    usual_training: ClassVar[Mapping[str, Any]] = {"batch": {"structures": 8}}

    name: Literal["tensornet"] = "tensornet"
    """Name of the model."""


class TensorNetPropertyConfig(TensorNetSection):
    """TensorNet for properties of structures (Simeon and De Fabritiis, NeurIPS 2023, arXiv:2306.06482)."""

    display_name: ClassVar[str] = "TensorNet"
    network: ClassVar[str] = "atomloom.models.tensornet.network:TensorNetProperty"

    name: Literal["tensornet_property"] = "tensornet_property"
    """Name of the model."""
    readout: Readout = "mean"
    """Readout over the atoms. `mean`: for targets that do not grow with the cell
    (energy per atom, band gap). `sum`: for targets that do (a total energy), learnt as
    sum_i (scale e_i + shift) over the atoms i. Twice the cell has exactly twice the value."""


class NequIPConfig(ModelSection):
    """NequIP, a potential (Batzner et al., Nat. Commun. 13, 2453 (2022)), with the linear self-connections
    of SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857 (2024))."""

    kind: ClassVar[Literal["property", "potential"]] = "potential"
    display_name: ClassVar[str] = "NequIP"
    network: ClassVar[str] = "atomloom.models.nequip.network:NequIP"
    usual_training: ClassVar[Mapping[str, Any]] = {"batch": {"structures": 8}}
    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR})

    name: Literal["nequip"] = "nequip"
    """Name of the model."""
    features: tuple[Annotated[int, Field(ge=1, le=MOST_WIDTH)], ...] = Field(
        default=(64, 64, 64), min_length=1, max_length=7
    )
    """Features per atom of degree 0, 1, 2, ..: scalars, vectors and so on. Harmonics of directions go up to
    the same degree."""
    parity: bool = True
    """Tell even from odd features, with as many of each. Without it, energies may change in a mirror."""
    layers: int = Field(default=4, ge=1, le=MOST_LAYERS)
    """Interactions."""
    rbf: int = Field(default=8, ge=1, le=MOST_WIDTH)
    """Bessel functions of the distance, whose frequencies are learnt."""
    filter_hidden: tuple[Annotated[int, Field(ge=1, le=MOST_WIDTH)], ...] = (64, 64)
    """Nodes of the hidden layers of the networks that make filters of the distance."""
    cutoff: float = Field(default=5.0, ge=0.5, le=50)
    """Cutoff of messages in A."""
    envelope: Literal["polynomial", "xplor"] = "polynomial"
    """Envelope that takes filters to zero at the cutoff: the polynomial of degree `envelope_power + 2`, or
    a switch that begins at `envelope_start`."""
    envelope_power: int = Field(default=6, ge=2, le=50)
    """Power p of the polynomial envelope."""
    envelope_start: float = Field(default=4.5, ge=0, le=50)
    """Distance in A at which the envelope `xplor` begins."""
    neighbors: float = Field(default=36.0, gt=0, le=10_000)
    """Divisor of sums over neighbours: about their mean number."""
    bias: bool = False
    """Add a bias to scalars wherever features are mixed."""
    unit_directions: bool = True
    """Harmonics of unit vectors. Without it, those of degree l grow as the distance to the power of l."""

    @model_validator(mode="after")
    def _switches_before_the_cutoff(self) -> NequIPConfig:
        if self.envelope == "xplor" and self.envelope_start >= self.cutoff:
            raise ValueError(
                f"envelope_start {self.envelope_start} is not below the cutoff {self.cutoff}"
            )
        return self

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the cutoff."""
        return {"neighbors": "radius", "cutoff": self.cutoff}


class CrystalTransformerConfig(ModelSection):
    """Transformer with dense attention over the atoms of a structure and their images, after Crystalformer
    (Taniai et al., ICLR 2024, arXiv:2403.11686)."""

    display_name: ClassVar[str] = "Crystal transformer"
    recomputing: ClassVar[bool] = True
    network: ClassVar[str] = "atomloom.models.crystal_transformer:CrystalTransformer"
    usual_training: ClassVar[Mapping[str, Any]] = {"batch": {"atom_pairs": 1_000_000}}
    heads: ClassVar[frozenset[Form]] = frozenset({ATOM_SCALAR})

    name: Literal["crystal_transformer"] = "crystal_transformer"
    """Name of the model."""
    width: int = Field(default=128, ge=4, le=MOST_WIDTH)
    """Features per atom."""
    attention_heads: int = Field(default=8, ge=1, le=256)
    """Heads, among which the features are divided evenly. Each has a reach of its own, from 0.7 A to half the
    cutoff."""
    layers: int = Field(default=4, ge=1, le=MOST_LAYERS)
    """Layers of attention."""
    rbf: int = Field(default=32, ge=2, le=MOST_WIDTH)
    """Gaussians of the distance, from 0 to the cutoff."""
    cutoff: float = Field(default=6.0, ge=1.5, le=50)
    """Distance in A up to which images are seen one by one; beyond it, all atoms of the cell on average."""
    readout: Readout = "mean"
    """Readout over the atoms. `mean`: for targets that do not grow with the cell
    (energy per atom, band gap). `sum`: for targets that do (a total energy), learnt as
    sum_i (scale e_i + shift) over the atoms i. Twice the cell has exactly twice the value."""
    max_atoms: int = unkeyed(2000, ge=1, le=100_000)
    """Max atoms per structure; larger ones are refused, since memory grows with the square of their number. A
    trained model keeps its limit, the attribute `max_atoms` of its network."""

    @model_validator(mode="after")
    def _divides_the_width(self) -> CrystalTransformerConfig:
        if self.width % self.attention_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of attention_heads {self.attention_heads}"
            )
        return self

    def graph_needs(self) -> dict[str, Any]:
        """All neighbours within the cutoff."""
        return {"neighbors": "radius", "cutoff": self.cutoff}


class TabularSection(ModelSection):
    """Base of the sections of tabular models, which see no graph: scikit-learn fits them at once to standardised
    global features and targets."""

    usual_training: ClassVar[Mapping[str, Any]] = {"epochs": 1}
    losses: ClassVar[tuple[str, ...]] = ("mse",)
    """Values of `training.loss` that it can minimise; the first is the usual one."""

    def graph_needs(self) -> dict[str, Any]:
        """Atoms alone."""
        return {"neighbors": "none"}


class SVRConfig(TabularSection):
    """Support vector regression (Smola and Schoelkopf, Stat. Comput. 14, 199 (2004)), by scikit-learn."""

    display_name: ClassVar[str] = "SVR"
    network: ClassVar[str] = "atomloom.models.tabular.kernels:SVR"

    name: Literal["svr"] = "svr"
    """Name of the model."""
    kernel: Literal["rbf", "linear"] = "rbf"
    """Kernel of two rows: exp(-gamma d^2) of their distance d, or their inner product."""
    C: float = Field(default=1.0, gt=0, le=1e6)
    """Weight of errors beyond `epsilon` against the smoothness of the function."""
    epsilon: float = Field(default=0.1, ge=0, le=100)
    """Errors up to this many standard deviations of the target cost nothing."""
    gamma: Literal["scale"] | Annotated[float, Field(gt=0, le=1e6)] = "scale"
    """Kernel `rbf`: one over the square of its range, in standard deviations of the features; `scale`: one over
    the number of features and their variance."""


class ExtraTreesConfig(TabularSection):
    """Extremely randomised trees (Geurts, Ernst and Wehenkel, Mach. Learn. 63, 3 (2006)), by scikit-learn."""

    display_name: ClassVar[str] = "ExtraTrees"
    network: ClassVar[str] = "atomloom.models.tabular.trees:ExtraTrees"
    losses: ClassVar[tuple[str, ...]] = ("mse", "mae", "bce", "cross_entropy")

    name: Literal["extra_trees"] = "extra_trees"
    """Name of the model."""
    n_estimators: int = Field(default=300, ge=1, le=100_000)
    """Trees, whose mean is the prediction."""
    max_features: Literal["sqrt", "log2"] | Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the features that are looked at for each division of a node, or a function of their number."""
    min_samples_leaf: int = Field(default=1, ge=1, le=MOST)
    """Min number of training rows in a leaf."""
    max_depth: int | None = Field(default=None, ge=1, le=1000)
    """Max number of divisions above a leaf."""


class GaussianProcessConfig(TabularSection):
    """Gaussian process regression (Rasmussen and Williams, 2006), by scikit-learn."""

    display_name: ClassVar[str] = "Gaussian process"
    network: ClassVar[str] = "atomloom.models.tabular.kernels:GaussianProcess"

    name: Literal["gaussian_process"] = "gaussian_process"
    """Name of the model."""
    kernel: Literal["rbf", "matern"] = "matern"
    """Covariance of two rows by their distance: a Gaussian, or Matern's function."""
    nu: float = Field(default=2.5, ge=0.5, le=2.5)
    """Kernel `matern`: its smoothness, 0.5, 1.5 or 2.5."""
    anisotropic: bool = False
    """Fit a length scale for each feature, rather than one for all."""
    noise: Literal["fit"] | Annotated[float, Field(gt=0, le=100)] = "fit"
    """Variance of the noise of the standardised targets; `fit`: that of the highest likelihood."""
    n_restarts_optimizer: int = Field(default=0, ge=0, le=1000)
    """Further starting points from which variance, length scales and noise are fitted."""

    @field_validator("nu")
    @classmethod
    def _smoothness_has_a_short_formula(cls, nu: float) -> float:
        if nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu is 0.5, 1.5 or 2.5, not {nu:g}")
        return nu


class GradientBoostingConfig(TabularSection):
    """Gradient boosting of trees on histograms (Ke et al., NeurIPS 2017), by scikit-learn."""

    display_name: ClassVar[str] = "Gradient boosting"
    network: ClassVar[str] = "atomloom.models.tabular.trees:GradientBoosting"
    losses: ClassVar[tuple[str, ...]] = ("mse", "mae", "bce", "cross_entropy")

    name: Literal["gradient_boosting"] = "gradient_boosting"
    """Name of the model."""
    learning_rate: float = Field(default=0.1, gt=0, le=10)
    """Factor of what each tree adds."""
    max_iter: int = Field(default=100, ge=1, le=100_000)
    """Trees; of several classes, trees for each."""
    max_leaf_nodes: int | None = Field(default=31, ge=2, le=MOST)
    """Max number of leaves of a tree."""
    max_depth: int | None = Field(default=None, ge=1, le=1000)
    """Max number of divisions above a leaf."""
    min_samples_leaf: int = Field(default=20, ge=1, le=MOST)
    """Min number of training rows in a leaf."""
    l2_regularization: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the squares of what leaves add."""
    max_features: float = Field(default=1.0, gt=0, le=1)
    """Share of the features that are looked at for each division of a node."""


_BY_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
VERSION_KEY = "module VERSION"
"""Entry of a key for the `VERSION` of a network's module; no field can have this name."""


def is_by_class(name: Any) -> TypeGuard[str]:
    """Whether a model is named by `module:Class`."""
    return isinstance(name, str) and ":" in name


def section_by_class(name: str) -> type[ModelSection]:
    """Section of a network named by `module:Class`; imports the module, which runs its code.

    Raises:
        ValueError: when there is no such network, or it has no section.
    """
    if not _BY_CLASS.fullmatch(name):
        raise ValueError(f"{name!r} is not `module:Class`")
    module, _, attribute = name.partition(":")
    try:
        import_module(module)
    except Exception as error:  # a module that is imported may raise anything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"the module {module} cannot be imported: {said}") from None
    # Not getattr: a module that creates names on demand could import others.
    found = vars(sys.modules[module]).get(attribute)
    if not isinstance(found, type):
        raise ValueError(f"the module {module} has no class {attribute}")
    section = getattr(found, "Config", None)
    if not (isinstance(section, type) and issubclass(section, ModelSection)):
        raise ValueError(f"{name} has no attribute `Config` that is a subclass of ModelSection")
    module_version(name)
    return section


def module_version(name: str) -> int | None:
    """`VERSION` of the imported module of a network named by `module:Class`; None if it has none.

    Raises:
        ValueError: when it is not an integer.
    """
    if not is_by_class(name):
        return None
    module = name.partition(":")[0]
    version = vars(sys.modules[module]).get("VERSION") if module in sys.modules else None
    if version is not None and (not isinstance(version, int) or isinstance(version, bool)):
        raise ValueError(f"VERSION of {module} is not a whole number")
    return version


class _OrByClass:
    """Validator of the sections of a union, and of that of a network named by `module:Class`."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._validate,
            handler(source),
            serialization=core_schema.simple_ser_schema("any"),  # by the class of the value itself
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        name = {"type": "string", "pattern": f"^{_BY_CLASS.pattern}$"}
        by_class = {"type": "object", "properties": {"name": name}, "required": ["name"]}
        return {"anyOf": [handler(schema), by_class]}

    @staticmethod
    def _validate(value: Any, known: core_schema.ValidatorFunctionWrapHandler) -> Any:
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        return section_by_class(name).model_validate(value) if is_by_class(name) else known(value)


ModelConfig = Annotated[
    IComFormerConfig
    | EComFormerConfig
    | ALIGNNConfig
    | ChebyshevConfig
    | PaiNNConfig
    | TensorNetConfig
    | TensorNetPropertyConfig
    | NequIPConfig
    | CrystalTransformerConfig
    | SVRConfig
    | ExtraTreesConfig
    | GaussianProcessConfig
    | GradientBoostingConfig,
    Discriminator("name"),
    _OrByClass(),
]

MODELS: dict[str, type[ModelSection]] = {
    section.model_fields["name"].default: section for section in get_args(get_args(ModelConfig)[0])
}
"""Sections of the models with their own names."""


def section_named(name: str) -> type[ModelSection] | None:
    """Section of a model named in either way; None if there is no such model.

    Raises:
        ValueError: as `section_by_class`.
    """
    return section_by_class(name) if is_by_class(name) else MODELS.get(name)
