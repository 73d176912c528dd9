"""ComFormer: complete and efficient crystal transformers (Yan et al., ICLR 2024).

iComFormer sees the lengths of edges and their angles with three lattice vectors; eComFormer sees the
edges' directions through tensor products. The numbers are those of the published models
(arXiv:2403.11857), whose parameter names this module keeps so that their checkpoints load; the
algebra is rearranged:

- An edge that the published graph holds twice is stored once here and counts twice, in sums and in
  batch statistics.
- A Linear over concatenated inputs is a sum of Linears: the atoms' part is computed once per atom,
  the lattice's once per structure, and the edges' is folded into one product.
- Functions of one length or one angle alone are interpolated from a table (see BasisTable).
- Edges of equal geometry, of which crystals have many, are computed once on a CPU (see Distinct).
- Weights of the tensor products, linear in radial features, are contracted with atoms, not edges.

It knows nothing of training.

Legend: B structures, N atoms, E edges, L distinct lengths, U distinct edges, R rows, D = width, V = 64 scalars of the equivariant layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomloom.config.model import EComFormerConfig, IComFormerConfig
from atomloom.data.batch import GraphBatch
from atomloom.data.collate import Pass
from atomloom.errors import AtomloomError
from atomloom.models.comformer.distinct import Distinct, chosen, counted, distinct_of
from atomloom.models.common.features import (
    CGCNN_FEATURES,
    cgcnn_features,
    require_cgcnn_features,
)
from atomloom.models.common.heads import AtomFeatures, Heads
from atomloom.models.common.layers import (
    BasisTable,
    EdgeBlocks,
    GaussianBasis,
    Layers,
    Recomputing,
    WeightedBatchNorm,
    centred_product,
    full_precision,
    gather,
    joined,
    linear,
    product,
    product_dtype,
    read_out,
    rounded,
    segment_sum,
    tabulated,
    tabulated_parts,
)
from atomloom.models.common.outputs import Head, Outputs

LENGTH_SCALE = -0.75
"""Lengths enter as -0.75/|r| (A^-1), the shape of a screened attraction."""
SHORTEST = 1e-6
"""Norm in A of a missing lattice vector, for which its features vanish."""


def _embedding_mlp(basis: GaussianBasis, width: int) -> nn.Sequential:
    return nn.Sequential(basis, nn.Linear(len(basis.centers), width), nn.Softplus())


def _update_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, width))


class _Gate(nn.Module):
    """Common part of the node layer and the edge layer: keys, messages and the gate between them.

    message = MLP[v_i, v_j, e'] * sigmoid(BN(q_i * MLP[k_i, k_j, e'] / sqrt(D))), element-wise
    as in the paper. The two MLPs run side by side, as 2 D columns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.lin_key = nn.Linear(width, width)
        self.lin_query = nn.Linear(width, width)
        self.lin_value = nn.Linear(width, width)
        self.lin_concate = nn.Linear(width, width)
        self.lin_msg_update = _update_mlp(width)
        self.key_update = _update_mlp(width)
        self.bn = WeightedBatchNorm(width)
        self.bn_att = WeightedBatchNorm(width)

    def fold(
        self, part: int, key: nn.Linear, message: nn.Linear, bias: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Fold two Linears and the MLPs' first products on input `part` into one weight [2 D, D].

        Args:
            part: index of the three concatenated inputs.
            key: the Linear whose output enters the key MLP.
            message: the Linear whose output enters the message MLP.
            bias: add the MLPs' first bias, which one of the three parts must have.

        Returns:
            weight [2 D, D] and bias [2 D].
        """
        weights, biases = [], []
        for before, mlp in ((key, self.key_update), (message, self.lin_msg_update)):
            own = linear(mlp, 0)
            first = own.weight[:, part * self.width : (part + 1) * self.width]
            weights.append(first @ before.weight)
            carried = own.bias if bias else torch.zeros_like(own.bias)
            biases.append(carried if before.bias is None else carried + first @ before.bias)
        return torch.cat(weights), torch.cat(biases)

    def query(self, values: Tensor) -> Tensor:
        """Query, scaled by 1/sqrt(D)."""
        return self.lin_query(values) / math.sqrt(self.width)

    def gated(
        self, query: Tensor, hidden: Tensor, weights: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        """Gated messages.

        Args:
            query: [R, D] or broadcastable to it.
            hidden: [R, 2 D], the MLPs before their activation.
            weights: [rows], multiplicity of each row in the batch statistics.
            dtype: see `product_dtype`.

        Returns:
            messages [R, D], in at least float32; R may be several dimensions.
        """
        key, message = F.silu(rounded(hidden, dtype)).split(self.width, dim=-1)
        last, last_message = linear(self.key_update, 2), linear(self.lin_msg_update, 2)
        alpha = query * product(key, last.weight, last.bias, dtype)
        gate = torch.sigmoid(self.bn_att(alpha.reshape(-1, self.width), weights))
        message = product(message, last_message.weight, last_message.bias, dtype)
        return message * gate.view(alpha.shape)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of messages in a node layer, each of one edge or of several equal ones."""

    src: Tensor
    """[R] int64."""
    dst: Tensor
    """[R] int64."""
    part: Tensor | None
    """[R] int64, the row of the edges' part that belongs to each; None: they are in this order."""
    weights: Tensor | None
    """[R], multiplicity of each row in batch statistics."""
    of: Tensor | None
    """[E] int64, the row of each edge; None: each has its own."""


class NodeLayer(_Gate):
    """Attention of atoms to their neighbours: softplus(x + BN(W sum message))."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.lin_edge = nn.Linear(width, width)

    def edge_part(self, edges: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[S, 2 D] contribution of edge features [S, D] to the MLPs' first layers."""
        return product(edges, *self.fold(2, self.lin_edge, self.lin_edge, bias=True), dtype)

    def forward(
        self,
        nodes: Tensor,
        edge_part: Tensor,
        rows: Rows,
        batch: GraphBatch,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """New features [N, D] from [N, D] and `edge_part` [S, 2 D]."""
        centre = F.linear(nodes, *self.fold(0, self.lin_key, self.lin_value))
        neighbour = F.linear(nodes, *self.fold(1, self.lin_key, self.lin_value))
        hidden = (
            chosen(rounded(edge_part, dtype), rows.part)
            + gather(rounded(centre, dtype), rows.dst)
            + gather(rounded(neighbour, dtype), rows.src)
        )
        query = gather(self.query(nodes), rows.dst)
        messages = chosen(self.gated(query, hidden, rows.weights, dtype), rows.of)
        if batch.multiplicity is not None:
            messages = messages * batch.multiplicity.unsqueeze(1)
        summed = segment_sum(messages, batch.dst, nodes.shape[0])
        return F.softplus(nodes + self.bn(self.lin_concate(summed), batch.node_weight))


class EdgeLayer(_Gate):
    """Attention of edges to the three lattice vectors: softplus(e + BN(sum W message)).

    `lemb` and `lin_edge_len` are unused; published checkpoints hold them. See `carried`.
    """

    EMBEDDING = 32

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.lin_edge = nn.Linear(width, width, bias=False)
        for axis in (1, 2, 3):
            setattr(self, f"lin_key_e{axis}", nn.Linear(width, width))
            setattr(self, f"lin_value_e{axis}", nn.Linear(width, width))
        self.lemb = nn.Embedding(3, self.EMBEDDING)
        self.lin_edge_len = nn.Linear(width + self.EMBEDDING, width)

    def carried(self) -> Tensor:
        """Zero, as a function of the unused weights.

        Added to the output it gives them a zero gradient, without which data-parallel training
        waits for one or refuses to run.
        """
        unused = self.lin_edge_len
        return 0.0 * (self.lemb.weight.sum() + unused.weight.sum() + unused.bias.sum())

    def own_part(self, edges: Tensor) -> Tensor:
        """[R, 3 D]: query and first products of edge features [R, D]."""
        weight, bias = self.fold(0, self.lin_key, self.lin_value, bias=True)
        return torch.cat((self.query(edges), F.linear(edges, weight, bias)), dim=1)

    def angle_part(self, angles: Tensor) -> Tensor:
        """[R, 2 D] contribution of angle features [R, D] to the first layers."""
        return F.linear(angles, *self.fold(2, self.lin_edge, self.lin_edge))

    def lattice_part(self, lengths: Tensor) -> Tensor:
        """[B, 3, 2 D] contribution of features of the lattice vectors' lengths [B, 3, D]."""
        parts = []
        for axis in range(3):
            key = getattr(self, f"lin_key_e{axis + 1}")
            value = getattr(self, f"lin_value_e{axis + 1}")
            parts.append(F.linear(lengths[:, axis], *self.fold(1, key, value)))
        return torch.stack(parts, dim=1)

    def forward(
        self,
        edges: Tensor,
        query: Tensor,
        hidden: Tensor,
        weights: Tensor | None,
        angle_of: Tensor | None,
        multiplicity: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """New edge features [U, D] from [U, D].

        Args:
            edges: [U, D].
            query: [R, D], see `own_part`.
            hidden: [R, 2 D], sum of the parts of edges, angles and lattice vectors.
            weights: [R], multiplicity of each row in batch statistics.
            angle_of: [3 U], the row of each (edge, axis); None: they are in this order.
            multiplicity: [U], of each edge.
            dtype: see `product_dtype`.
        """
        messages = chosen(self.gated(query, hidden, weights, dtype), angle_of)
        # The published code applies W, and so its bias, to each of the three before adding them.
        update = centred_product(
            messages.view(-1, 3, self.width).sum(dim=1),
            self.lin_concate.weight,
            3.0 * self.lin_concate.bias,
            dtype,
        )
        return F.softplus(edges + self.bn(update, multiplicity))


class _ComFormer(Recomputing):
    """Embeddings and readout, common to both models.

    Under autocast, only products over edges run in the lower precision.
    """

    elements: Tensor

    def __init__(
        self,
        width: int,
        centers: int,
        layers: int,
        outputs: int,
        readout: str,
        global_features: int,
        heads: Sequence[Head],
    ) -> None:
        super().__init__()
        self.width, self.readout, self.global_features = width, readout, global_features
        self.atom_embedding = nn.Linear(CGCNN_FEATURES, width)
        lengths = GaussianBasis(-4.0, 0.0, centers)
        self.rbf = _embedding_mlp(lengths, width)
        reach = BasisTable.REACH * lengths.width
        self.length_table = BasisTable(lengths, -4.0 - reach, 0.0)
        self.att_layers = Layers(NodeLayer(width) for _ in range(layers))
        if outputs:
            self.fc = nn.Sequential(nn.Linear(width + global_features, width), nn.SiLU())
            self.fc_out = nn.Linear(width, outputs)
        self.outputs, self.heads = outputs, Heads(heads, width + global_features)
        elements = torch.tensor(cgcnn_features(), dtype=torch.float32)
        self.register_buffer("elements", elements, persistent=False)

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Predictions [B, outputs], and values of heads; AtomloomError if the batch lacks a needed input."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            return self.predict(batch, dtype)

    def predict(self, batch: GraphBatch, dtype: torch.dtype | None) -> Tensor | Outputs:
        """Predictions; products over edges in `dtype`."""
        raise NotImplementedError

    def require_elements(self, numbers: np.ndarray) -> None:
        """Raise AtomloomError unless the model knows every atomic number in `numbers`."""
        require_cgcnn_features(numbers, where="model")

    def embed_atoms(self, batch: GraphBatch) -> Tensor:
        return self.atom_embedding(gather(self.elements, batch.numbers))

    def read_out(
        self, nodes: Tensor, batch: GraphBatch, carried: Tensor | None = None
    ) -> Tensor | Outputs:
        """Outputs of the network, with `carried`, zero, added."""
        given = batch.extras["globals"] if self.global_features else None
        main = None
        if self.outputs:
            main = read_out(
                nodes,
                batch.node_graph,
                batch.node_ptr,
                self.readout,
                lambda values: self.fc_out(self.fc(values)),
                given,
            )
            main = main if carried is None else main + carried
        elif carried is not None:
            nodes = nodes + carried
        return self.heads.with_main(
            main, AtomFeatures(joined(nodes, given, batch.node_graph)), batch
        )

    def node_layer(
        self,
        place: int,
        nodes: Tensor,
        part: Callable[[], Tensor],
        rows: Rows,
        batch: GraphBatch,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Apply a node layer; `part` gives its [S, 2 D] of edges."""
        layer = self.att_layers[place]
        return self.over_edges(lambda values: layer(values, part(), rows, batch, dtype), nodes)


class IComFormer(_ComFormer):
    """Invariant ComFormer: lengths, and angles with the lattice.

    Args:
        config: hyper-parameters.
        outputs: number of outputs per structure.
        global_features: numbers per structure in `batch.extras["globals"]`.
        heads: further targets, scalars of atoms.
    """

    def __init__(
        self,
        config: IComFormerConfig,
        outputs: int,
        global_features: int = 0,
        heads: Sequence[Head] = (),
    ) -> None:
        centers = config.rbf_centers or config.width
        super().__init__(
            config.width, centers, config.layers, outputs, config.readout, global_features, heads
        )
        angles = GaussianBasis(-1.0, 1.0, centers)
        self.rbf_angle = _embedding_mlp(angles, config.width)
        self.angle_table = BasisTable(angles, -1.0, 1.0)
        self.edge_update_layer = EdgeLayer(config.width)

    def _of_length(self, x: Tensor) -> Tensor:
        """[R, 6 D] functions of -0.75/|r| [R], the parts that depend only on an edge's length."""
        edges = self.rbf(x)
        first, update = self.att_layers[0], self.edge_update_layer
        return torch.cat((edges, first.edge_part(edges), update.own_part(edges)), dim=1)

    def _of_angle(self, cosine: Tensor) -> Tensor:
        """[R, 2 D] functions of the cosine [R] between an edge and a lattice vector."""
        return self.edge_update_layer.angle_part(self.rbf_angle(cosine))

    def _update_edges(
        self,
        edges: Tensor,
        own_part: Callable[[], Tensor],
        cosines: Tensor,
        lattice_part: Tensor,
        batch: GraphBatch,
        distinct: Distinct,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """New features [U, D] of distinct edges from [L, D] of their lengths."""
        start = gather(batch.node_graph, chosen(batch.dst, distinct.edges))
        length = (
            chosen(distinct.length_of, distinct.edges) if distinct.length_of is not None else None
        )
        axis = torch.arange(3, device=start.device)
        lattice_row = (3 * start.unsqueeze(1) + axis).flatten()
        # Not len(), of which tracing makes a constant.
        own_row = torch.arange(start.shape[0], device=start.device) if length is None else length
        own_row = own_row.repeat_interleave(3)
        cosines = chosen(cosines, distinct.edges).flatten()
        copies = counted(batch.multiplicity, distinct.edge_of, distinct.edges)
        weights = None if copies is None else copies.repeat_interleave(3)
        weights = counted(weights, distinct.angle_of, distinct.angles)
        own = gather(own_part(), chosen(own_row, distinct.angles))
        query, hidden = own.split((self.width, 2 * self.width), dim=1)
        hidden = (
            hidden
            + tabulated(self._of_angle, self.angle_table, chosen(cosines, distinct.angles))
            + gather(lattice_part.flatten(0, 1), chosen(lattice_row, distinct.angles))
        )
        edges = chosen(edges, length)
        return self.edge_update_layer(
            edges, query, hidden, weights, distinct.angle_of, copies, dtype
        )

    def predict(self, batch: GraphBatch, dtype: torch.dtype | None) -> Tensor | Outputs:
        """Predictions; products over edges in `dtype`."""
        if batch.lattice is None:
            raise AtomloomError(
                "iComFormer needs the lattice triad of every structure",
                where="graph.lattice",
                todo="set graph.lattice: true",
            )
        lengths, lattice_lengths, cosines = _geometry(batch)
        distinct = Distinct.of(batch, lengths, cosines)
        lattice_part = self.edge_update_layer.lattice_part(self.rbf(LENGTH_SCALE / lattice_lengths))
        edges, first_part, own_part = tabulated_parts(
            self._of_length,
            self.length_table,
            LENGTH_SCALE / chosen(lengths, distinct.lengths),
            (self.width, 2 * self.width, 3 * self.width),
            keep=not self.recomputes,
        )

        rows = first_rows(batch, distinct)
        nodes = self.node_layer(0, self.embed_atoms(batch), first_part, rows, batch, dtype)
        edges = self.over_edges(
            self._update_edges,
            edges(),
            own_part,
            cosines,
            lattice_part,
            batch,
            distinct,
            dtype,
        )
        rows = Rows(batch.src, batch.dst, distinct.edge_of, batch.multiplicity, None)
        for place, layer in enumerate(self.att_layers[1:], start=1):
            part = partial(layer.edge_part, edges, dtype)
            nodes = self.node_layer(place, nodes, part, rows, batch, dtype)
        return self.read_out(nodes, batch, self.edge_update_layer.carried())

    def passes(self, device: str, compiled: bool) -> tuple[Pass, ...]:
        """Tensors that a loader may compute for each batch: see `Distinct`."""
        return (_distinct_by_angles,) if device == "cpu" else ()


def first_rows(batch: GraphBatch, distinct: Distinct) -> Rows:
    """Rows of the first node layer, whose atoms are elements, and whose edges lengths."""
    return Rows(
        chosen(batch.src, distinct.pairs),
        chosen(batch.dst, distinct.pairs),
        None if distinct.length_of is None else chosen(distinct.length_of, distinct.pairs),
        counted(batch.multiplicity, distinct.pair_of, distinct.pairs),
        distinct.pair_of,
    )


def _geometry(batch: GraphBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths [E] of edges and [B, 3] of lattice vectors, A, and cosines [E, 3] between them."""
    assert batch.lattice is not None
    vectors, edge_graph = batch.edge_vectors(), gather(batch.node_graph, batch.dst)
    lengths, lattice_lengths = _norm(vectors), _norm(batch.lattice)
    triads = gather(batch.lattice / lattice_lengths.unsqueeze(-1), edge_graph)
    # The published vectors point from the neighbour to the receiving atom; those here point back.
    cosines = -(triads * (vectors / lengths.unsqueeze(1)).unsqueeze(1)).sum(dim=-1)
    return lengths, lattice_lengths, cosines.clamp(-1.0, 1.0)


def _distinct_by_angles(batch: GraphBatch) -> Mapping[str, Tensor]:
    if batch.lattice is None:  # which the model refuses
        return {}
    lengths, _, cosines = _geometry(batch)
    return distinct_of(batch, lengths, cosines)


def _distinct_by_lengths(batch: GraphBatch) -> Mapping[str, Tensor]:
    return distinct_of(batch, _norm(batch.edge_vectors()), None)


def _norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, A, at least SHORTEST; its gradient is never NaN."""
    return vectors.square().sum(dim=-1).clamp(min=SHORTEST**2).sqrt()


class _Irreps(nn.Module):
    """Placeholder for the buffers of e3nn's tensor product in published checkpoints, which are constants."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0))
        self.register_buffer("output_mask", torch.ones(outputs))

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any
    ) -> None:
        # Some versions of e3nn also save their Clebsch-Gordan coefficients.
        for key in [key for key in state_dict if key.startswith(prefix + "_compiled")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _RadialWeights(nn.Module):
    """Radial network of one tensor product; its last layer is applied to atoms instead."""

    def __init__(self, width: int, weights: int, irreps: int) -> None:
        super().__init__()
        self.tp = _Irreps(irreps)
        self.fc = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, weights))

    def radial(self, edges: Tensor) -> Tensor:
        """[R, D] radial features, in which the tensor product's weights are linear."""
        return self.fc[1](self.fc[0](edges))


class EquivariantLayer(nn.Module):
    """Two tensor products with spherical harmonics Y of the edges' directions, to l = 2 and back.

    x: V scalars. First product, a mean over neighbours: scalars x' and, for l = 1 and 2, 8 vectors
    of 2 l + 1 components; x' + x stays. Second product, again a mean: scalars from
    [x', v1 . Y1, v2 . Y2]. Weights w(r) = W h(r) + b are linear in D radial features h. Written out,
    the first is

        t[e, o] = sum_h h[e, h] (sum_u x[src, u] W[u, o, h])     the bracket once per atom,
        x' = mean t, v1 = mean t Y1, v2 = mean t Y2

    and the second, with z[e] = [x', v1 . Y1, v2 . Y2],

        out[o] = sum_{u, h} W[u, o, h] (sum_e z[e, u] h[e, h])   the bracket a sum, then one product

    in place of V V + 2 x 8 V weights per edge. The factors are e3nn's: path weights normalised by the
    number of paths, harmonics normalised by component, Clebsch-Gordan coefficients 1/sqrt(2 l + 1)
    for scalars in products; no result depends on the order of components or the sign of directions.
    """

    SCALARS = 64
    VECTORS = 8
    CHANNELS = SCALARS + 2 * VECTORS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        irreps = self.SCALARS + self.VECTORS * (3 + 5)
        self.node_linear = nn.Linear(width, self.SCALARS)
        self.skip_linear = nn.Linear(width, width)
        self.nlayer_1 = _RadialWeights(width, self.SCALARS * self.CHANNELS, irreps)
        self.nlayer_2 = _RadialWeights(width, self.CHANNELS * self.SCALARS, self.SCALARS)
        self.bn = WeightedBatchNorm(self.SCALARS)
        self.node_linear_2 = nn.Linear(self.SCALARS, width)

    def forward(
        self,
        nodes: Tensor,
        radial_1: Tensor,
        radial_2: Tensor,
        vectors: Tensor,
        batch: GraphBatch,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """New features [N, D] from [N, D], radial features [E, D] of both products, edge vectors [E, 3]."""
        atoms = nodes.shape[0]
        weights = batch.multiplicity
        if weights is None:
            weights = torch.ones_like(vectors[:, 0])
        degree = segment_sum(weights, batch.dst, atoms).clamp(min=1.0)
        # Weights that turn a sum into a mean.
        weights = (weights / gather(degree, batch.dst)).unsqueeze(1)
        harmonics = _harmonics(vectors)
        scalars = self.node_linear(nodes)
        raised = self._raise(scalars, rounded(radial_1, dtype), weights, harmonics, batch)
        lowered = self._lower(raised, rounded(radial_2, dtype), weights, harmonics, batch)
        update = self.node_linear_2(F.softplus(self.bn(lowered, batch.node_weight)))
        return F.softplus(update) + self.skip_linear(nodes)

    def _raise(
        self,
        scalars: Tensor,
        radial: Tensor,
        weights: Tensor,
        harmonics: tuple[Tensor, Tensor],
        batch: GraphBatch,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """First product: scalars [N, V], vectors [N, 8, 3] and [N, 8, 5] from scalars [N, V]."""
        atoms = scalars.shape[0]
        weight, bias = self._first_weights()
        contracted = (scalars @ weight).view(atoms, self.CHANNELS, self.width).to(radial.dtype)
        blocks = EdgeBlocks(batch.src, atoms)
        products = torch.bmm(blocks.pack(radial), blocks.spread(contracted).transpose(1, 2))
        products = blocks.unpack(products) + gather(scalars @ bias, batch.src)
        products = products * (weights / math.sqrt(self.SCALARS))
        scalar, first, second = products.split((self.SCALARS, self.VECTORS, self.VECTORS), dim=1)
        terms = (
            scalar,
            (first.unsqueeze(2) * harmonics[0].unsqueeze(1)).flatten(1),
            (second.unsqueeze(2) * harmonics[1].unsqueeze(1)).flatten(1),
        )
        summed = segment_sum(torch.cat(terms, dim=1), batch.dst, atoms)
        scalar, first, second = summed.split(
            (self.SCALARS, 3 * self.VECTORS, 5 * self.VECTORS), dim=1
        )
        return scalar + scalars, first.unflatten(1, (-1, 3)), second.unflatten(1, (-1, 5))

    def _lower(
        self,
        raised: tuple[Tensor, Tensor, Tensor],
        radial: Tensor,
        weights: Tensor,
        harmonics: tuple[Tensor, Tensor],
        batch: GraphBatch,
    ) -> Tensor:
        """Second product: scalars [N, V] from scalars and vectors."""
        scalars, vectors_1, vectors_2 = raised
        atoms = scalars.shape[0]
        first = (gather(vectors_1, batch.src) * harmonics[0].unsqueeze(1)).sum(dim=2)
        second = (gather(vectors_2, batch.src) * harmonics[1].unsqueeze(1)).sum(dim=2)
        parts = (gather(scalars, batch.src), first / math.sqrt(3), second / math.sqrt(5))
        inputs = torch.cat(parts, dim=1) * (weights / math.sqrt(self.CHANNELS))
        blocks = EdgeBlocks(batch.dst, atoms)
        packed = blocks.pack(inputs.to(radial.dtype))
        outer = torch.bmm(packed.transpose(1, 2), blocks.pack(radial))
        outer = blocks.collect(outer).view(atoms, self.CHANNELS * self.width)
        last = linear(self.nlayer_2.fc, 2)
        weight = last.weight.view(self.CHANNELS, self.SCALARS, self.width)
        weight = weight.transpose(1, 2).reshape(self.CHANNELS * self.width, self.SCALARS)
        bias = last.bias.view(self.CHANNELS, self.SCALARS)
        return outer @ weight + segment_sum(inputs, batch.dst, atoms) @ bias

    def _first_weights(self) -> tuple[Tensor, Tensor]:
        """Weights W [V, 80 D] and b [V, 80], from e3nn's order: path by path, each [V, outputs]."""
        last = linear(self.nlayer_1.fc, 2)
        sizes = [self.SCALARS * self.SCALARS] + [self.SCALARS * self.VECTORS] * 2
        weight = torch.cat(
            [part.view(self.SCALARS, -1, self.width) for part in last.weight.split(sizes)], dim=1
        )
        bias = torch.cat([part.view(self.SCALARS, -1) for part in last.bias.split(sizes)], dim=1)
        return weight.reshape(self.SCALARS, -1), bias


class EComFormer(_ComFormer):
    """Equivariant ComFormer: lengths and directions; the output is invariant.

    Args:
        config: hyper-parameters.
        outputs: number of outputs per structure.
        global_features: numbers per structure in `batch.extras["globals"]`.
        heads: further targets, scalars of atoms.
    """

    def __init__(
        self,
        config: EComFormerConfig,
        outputs: int,
        global_features: int = 0,
        heads: Sequence[Head] = (),
    ) -> None:
        centers = config.rbf_centers or config.width
        super().__init__(
            config.width, centers, config.layers, outputs, config.readout, global_features, heads
        )
        self.equi_update = EquivariantLayer(config.width)

    def _of_length(self, x: Tensor) -> Tensor:
        """[R, (2 + 2 layers) D] functions of -0.75/|r| [R], the parts that depend on an edge's length."""
        edges, update = self.rbf(x), self.equi_update
        parts = [update.nlayer_1.radial(edges), update.nlayer_2.radial(edges)]
        parts += [layer.edge_part(edges) for layer in self.att_layers]
        return torch.cat(parts, dim=1)

    def predict(self, batch: GraphBatch, dtype: torch.dtype | None) -> Tensor | Outputs:
        """Predictions; products over edges in `dtype`."""
        vectors = batch.edge_vectors()
        lengths = _norm(vectors)
        distinct = Distinct.of(batch, lengths)
        widths = [self.width] * 2 + [2 * self.width] * len(self.att_layers)
        radial_1, radial_2, *parts = tabulated_parts(
            self._of_length,
            self.length_table,
            LENGTH_SCALE / chosen(lengths, distinct.lengths),
            widths,
            keep=not self.recomputes,
        )
        of = distinct.length_of
        rows = first_rows(batch, distinct)
        nodes = self.node_layer(0, self.embed_atoms(batch), parts[0], rows, batch, dtype)
        nodes = self.over_edges(
            lambda values: self.equi_update(
                values, chosen(radial_1(), of), chosen(radial_2(), of), vectors, batch, dtype
            ),
            nodes,
        )
        rows = Rows(batch.src, batch.dst, of, batch.multiplicity, None)
        for place, part in enumerate(parts[1:], start=1):
            nodes = self.node_layer(place, nodes, part, rows, batch, dtype)
        return self.read_out(nodes, batch)

    def passes(self, device: str, compiled: bool) -> tuple[Pass, ...]:
        """Tensors that a loader may compute for each batch: see `Distinct`."""
        return (_distinct_by_lengths,) if device == "cpu" else ()


def _harmonics(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Real spherical harmonics of [E, 3] for l = 1 [E, 3] and 2 [E, 5]; squares sum to 2 l + 1."""
    directions = vectors / _norm(vectors).unsqueeze(1)
    x, y, z = directions.unbind(dim=1)
    first = math.sqrt(3) * directions
    mixed = math.sqrt(15) * torch.stack((x * y, y * z, z * x, (x * x - y * y) / 2), dim=1)
    axial = math.sqrt(5) / 2 * (3 * z * z - 1)
    return first, torch.cat((mixed, axial.unsqueeze(1)), dim=1)
