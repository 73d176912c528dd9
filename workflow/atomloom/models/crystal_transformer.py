"""Crystal transformer: dense attention of all atoms of a structure to each other and to their near images.

The form is Crystalformer's (Taniai et al., ICLR 2024, arXiv:2403.11686). An atom i attends to every image of
every atom j, with a weight exp(q_i . k_j / sqrt(C)) w(d) that falls off with distance d, and gets their values
and an encoding of their distances:

    y_i = sum_j sum_n a_ijn (v_j + W b(d_ijn)) + far,    a_ijn = exp(q_i . k_j / sqrt(C)) w(d_ijn) / Z_i

Images share queries, keys and values, so their weights add up to one bias per pair of atoms, log sum_n w, and
the sum over v_j is torch's scaled_dot_product_attention of the atoms of a cell. It differs from the paper where
this lets a fused kernel compute it, and where crystals need it:

- The widths of w are fixed, one per head from narrow to wide, where the paper computes them from queries. So the
  bias needs no gradient, without which no fused kernel of a CPU takes it, and is the same in all layers.
- w vanishes smoothly at the cutoff. What lies beyond it is seen on average: every atom of the cell adds 1/N to the
  weight of its pairs. So all atoms attend to each other, and a supercell gives the same numbers.
- A row of the softmax has an entry of weight 1 and no value (a sink). Hence Z_i is not only a divisor: an atom
  feels how densely it is surrounded. And its weight is 1/Z_i, which no fused kernel returns, by which the encodings
  of distances are summed edge by edge: they cost as much as there are near pairs, not N^2.
- Layer norms come before attention and feed-forward layers; the paper has none.

It knows nothing of training.

Legend: B structures, N atoms, E edges, P pairs of atoms with edges, D = width, H heads, C = D / H, K radial
functions, L places of a padded structure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomloom.compiled import njit
from atomloom.config.model import CrystalTransformerConfig
from atomloom.data.batch import SLOTS, GraphBatch
from atomloom.data.collate import Pass
from atomloom.errors import AtomloomError
from atomloom.models.common.features import (
    CGCNN_FEATURES,
    cgcnn_features,
    require_cgcnn_features,
)
from atomloom.models.common.heads import AtomFeatures, Heads
from atomloom.models.common.layers import (
    EdgeBlocks,
    FunctionContext,
    GaussianBasis,
    Layers,
    Recomputing,
    at_least_single,
    full_precision,
    gather,
    joined,
    product,
    product_dtype,
    read_out,
    rounded,
    segment_sum,
)
from atomloom.models.common.outputs import Head, Outputs

NARROWEST = 0.7
"""Standard deviation in A of the weight of the first head; that of the last is half the cutoff."""
UNIT_DISTANCE = 2.5
"""Distance in A at which weights are 1, before the envelope: about that of neighbours, so that no head is empty."""
SHORTEST = 1e-6
"""Distance in A below which the derivative of a length is zero instead of NaN."""
LARGEST = 60.0
"""Max logarithm of the weight of an image relative to that of its distance: beyond it single precision ends."""
CALL = 20_000
"""Number of pairs of places that cost as much as one more call of attention."""
LITTLE = 2_000_000
"""Number of pairs of places up to which padding all structures of a batch to the largest does no harm."""
PAIR_DST, PAIR_SRC, EDGE_PAIR = "near pair dst", "near pair src", "near pair of edge"
"""Names in `extras` of the ends of pairs of atoms, [P], and of the pair of each edge, [E]."""


# --- layout of a batch ----------------------------------------------------------------------------


def places_of(batch: GraphBatch) -> Mapping[str, Tensor]:
    """Places of atoms with all structures padded to the largest, so that recorded and compiled steps see few shapes;
    in groups where a few large structures would take too much memory that way."""
    ptr = batch.node_ptr.numpy()
    atoms = np.diff(ptr)
    padded = len(atoms) * (int(max(atoms, default=0)) + 1) ** 2
    together = padded <= max(LITTLE, 2 * int(np.sum(np.square(atoms + 1))))
    return _slots([np.arange(len(atoms))] if together else _groups(atoms), ptr)


def groups_and_pairs_of(batch: GraphBatch) -> Mapping[str, Tensor]:
    """Places of atoms in groups of structures of similar size, and pairs of atoms with edges: least work."""
    ptr = batch.node_ptr.numpy()
    pair, dst, src = _near_pairs(batch.src.numpy(), batch.dst_ptr.numpy())
    made = {EDGE_PAIR: pair, PAIR_DST: dst, PAIR_SRC: src}
    found = {name: torch.from_numpy(array) for name, array in made.items()}
    return _slots(_groups(np.diff(ptr)), ptr) | found


def _slots(groups: Sequence[np.ndarray], node_ptr: np.ndarray) -> dict[str, Tensor]:
    return {
        f"{SLOTS}{index}": torch.from_numpy(_places(group, node_ptr))
        for index, group in enumerate(groups)
    }


def _groups(atoms: np.ndarray) -> list[np.ndarray]:
    """Structures by group: a group ends where a smaller size saves the rest more than another call costs."""
    order = np.argsort(-atoms, kind="stable")
    starts, most = [0], 0
    for place, size in enumerate(atoms[order] + 1):
        most = most or size
        if (len(order) - place) * (most**2 - size**2) > CALL:
            starts.append(place)
            most = size
    return np.split(order, starts[1:])


def _places(structures: np.ndarray, node_ptr: np.ndarray) -> np.ndarray:
    """[structures, L] int64 atoms of each structure, after one place for the sink; -1 where there is none."""
    first, counts = node_ptr[structures], node_ptr[structures + 1] - node_ptr[structures]
    place = np.arange(-1, max(counts, default=0))
    inside = (place >= 0) & (place < counts[:, None])
    return np.where(inside, first[:, None] + place, -1).astype(np.int64)


@njit(nogil=True, cache=True)
def _near_pairs(src: np.ndarray, dst_ptr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    atoms = len(dst_ptr) - 1
    pair = np.empty(len(src), dtype=np.int64)
    dst_of, src_of = np.empty(len(src), dtype=np.int64), np.empty(len(src), dtype=np.int64)
    found = np.full(atoms, -1, dtype=np.int64)
    pairs = 0
    for dst in range(atoms):
        first = pairs
        for edge in range(dst_ptr[dst], dst_ptr[dst + 1]):
            other = src[edge]
            if found[other] < first:
                found[other] = pairs
                dst_of[pairs], src_of[pairs] = dst, other
                pairs += 1
            pair[edge] = found[other]
    return pair, dst_of[:pairs].copy(), src_of[:pairs].copy()


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Geometry of a batch as attention sees it, the same in all layers."""

    slots: tuple[Tensor, ...]
    """[structures, L] int64 per group, atoms by place; N where there is none."""
    bias: tuple[Tensor, ...]
    """[structures, H, L, L] per group, log of the summed weights of all images; -inf where there is no atom."""
    places: Tensor
    """[N] int64, place of each atom in the places of all groups, one after the other."""
    pair_dst: Tensor
    """[P] int64."""
    pair_src: Tensor
    """[P] int64."""
    blocks: EdgeBlocks
    """Edges by their central atom."""
    block_pair: Tensor
    """[blocks x length] int64, pair of each edge in blocks; P where there is none."""
    weights: Tensor
    """[blocks, length, H] weight of each edge; 0 where there is none."""
    radial: Tensor
    """[blocks, length, K] radial functions of each edge's length."""


# --- layers ---------------------------------------------------------------------------------------


class _PairScores(torch.autograd.Function):
    """Products of queries and keys of pairs; keeps those of atoms, where autograd would keep those of pairs, which
    take most memory of a layer."""

    @staticmethod
    def forward(
        ctx: FunctionContext, query: Tensor, key: Tensor, dst: Tensor, src: Tensor
    ) -> Tensor:
        ctx.save_for_backward(query, key, dst, src)
        return (gather(query, dst) * gather(key, src)).sum(dim=2)

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, dst, src = ctx.saved_tensors
        grad, atoms = grad.unsqueeze(2), len(query)
        of_query = segment_sum(grad * gather(key, src), dst, atoms)
        return of_query, segment_sum(grad * gather(query, dst), src, atoms), None, None


class Attention(nn.Module):
    """Attention of atoms to all atoms of their structure and their images, with encodings of distances."""

    def __init__(self, width: int, heads: int, radial: int) -> None:
        super().__init__()
        self.heads, self.channels = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.encoding = nn.Parameter(torch.randn(heads, radial, self.channels) / math.sqrt(radial))
        self.out = nn.Linear(width, width)

    def forward(self, nodes: Tensor, near: Surroundings, dtype: torch.dtype | None) -> Tensor:
        """Update [N, D] of features [N, D]; dense attention in `dtype`."""
        atoms = nodes.shape[0]
        qkv = F.linear(nodes, self.qkv.weight, self.qkv.bias)
        qkv = qkv.view(atoms, 3, self.heads, self.channels)
        found = at_least_single(self._dense(rounded(qkv, dtype), near))
        values, sink = found.split((self.channels, 1), dim=2)
        query, key, _ = qkv.unbind(dim=1)
        encoded = self._encodings(query, key, sink.squeeze(2), near)
        return self.out((values + encoded).flatten(1))

    def _dense(self, qkv: Tensor, near: Surroundings) -> Tensor:
        """[N, H, C + 1] sums of values by attention, and the weight of the sink as one value more."""
        sink = qkv.new_zeros((1, 3, self.heads, self.channels + 1))
        sink[:, 2, :, -1] = 1.0
        padded = torch.cat((F.pad(qkv, (0, 1)), sink))
        found = []
        for slots, bias in zip(near.slots, near.bias, strict=True):
            group = gather(padded, slots.flatten()).view(*slots.shape, *padded.shape[1:])
            query, key, value = group.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias.to(qkv.dtype), scale=1 / math.sqrt(self.channels)
            )
            found.append(attended.transpose(1, 2).flatten(0, 1))
        return gather(torch.cat(found), near.places)

    def _encodings(self, query: Tensor, key: Tensor, sink: Tensor, near: Surroundings) -> Tensor:
        """[N, H, C] encodings of distances, summed over edges by the weights of the same attention.

        Args:
            query: [N, H, C].
            key: [N, H, C].
            sink: [N, H], weight of the sink, 1/Z.
            near: of the batch.
        """
        if torch.compiler.is_compiling():  # which decides itself what is kept
            scores = (gather(query, near.pair_dst) * gather(key, near.pair_src)).sum(dim=2)
        else:
            scores = _PairScores.apply(query, key, near.pair_dst, near.pair_src)
        norm = sink.clamp(min=torch.finfo(sink.dtype).tiny).log()
        scores = scores / math.sqrt(self.channels) + gather(norm, near.pair_dst)
        by_pair = F.pad(scores.clamp(max=LARGEST).exp(), (0, 0, 0, 1))
        by_edge = gather(by_pair, near.block_pair).view(near.weights.shape) * near.weights
        by_edge = by_edge.clamp(max=1.0)  # as it is unless the weight of the sink underflows
        summed = near.blocks.collect(torch.bmm(by_edge.transpose(1, 2), near.radial))
        return torch.bmm(summed.transpose(0, 1), self.encoding).transpose(0, 1)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each added to its input."""

    def __init__(self, width: int, heads: int, radial: int) -> None:
        super().__init__()
        self.norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, radial)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, nodes: Tensor, near: Surroundings, dtype: torch.dtype | None) -> Tensor:
        """New features [N, D]."""
        nodes = nodes + self.attention(self.norm(nodes), near, dtype)
        hidden = F.silu(product(self.feed_norm(nodes), self.widen.weight, self.widen.bias, dtype))
        return nodes + at_least_single(product(hidden, self.narrow.weight, self.narrow.bias, dtype))


class CrystalTransformer(Recomputing):
    """Dense attention over the atoms of a structure.

    Under autocast, dense attention and the feed-forward layers run in the lower precision.

    Args:
        config: hyper-parameters.
        outputs: number of outputs per structure.
        global_features: numbers per structure in `batch.extras["globals"]`.
        heads: further targets, scalars of atoms.
    """

    elements: Tensor
    sigmas: Tensor

    def __init__(
        self,
        config: CrystalTransformerConfig,
        outputs: int,
        global_features: int = 0,
        heads: Sequence[Head] = (),
    ) -> None:
        super().__init__()
        width = config.width
        self.cutoff, self.max_atoms = config.cutoff, config.max_atoms
        self.readout, self.global_features = config.readout, global_features
        self.atom_embedding = nn.Linear(CGCNN_FEATURES, width)
        self.rbf = GaussianBasis(0.0, config.cutoff, config.rbf)
        self.layers = Layers(
            TransformerLayer(width, config.attention_heads, config.rbf)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        if outputs:
            self.fc = nn.Sequential(nn.Linear(width + global_features, width), nn.SiLU())
            self.fc_out = nn.Linear(width, outputs)
        self.outputs, self.heads = outputs, Heads(heads, width + global_features)
        elements = torch.tensor(cgcnn_features(), dtype=torch.float32)
        self.register_buffer("elements", elements, persistent=False)
        sigmas = np.geomspace(NARROWEST, config.cutoff / 2, config.attention_heads)
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float32), persistent=False)

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Predictions [B, outputs], and values of heads."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            near = self.surroundings(batch)
            nodes = self.atom_embedding(gather(self.elements, batch.numbers))
            for layer in self.layers:
                nodes = self.over_edges(layer, nodes, near, dtype)
            return self.read_out(self.norm(nodes), batch)

    def read_out(self, nodes: Tensor, batch: GraphBatch) -> Tensor | Outputs:
        """Outputs of the network from features [N, D]."""
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
        features = AtomFeatures(joined(nodes, given, batch.node_graph))
        return self.heads.with_main(main, features, batch)

    def require_elements(self, numbers: np.ndarray) -> None:
        """Raise AtomloomError unless the model knows every atomic number in `numbers`."""
        require_cgcnn_features(numbers, where="model")

    def require_sizes(self, atoms: np.ndarray) -> None:
        """Raise AtomloomError where a structure has more atoms than dense attention may take."""
        largest = int(max(atoms, default=0))
        if largest > self.max_atoms:
            raise AtomloomError(
                f"a structure has {largest} atoms, and dense attention takes at most {self.max_atoms}: memory "
                "grows with the square",
                where="model.max_atoms",
                todo="raise `max_atoms`, remove these structures, or choose another model",
            )

    def passes(self, device: str, compiled: bool) -> tuple[Pass, ...]:
        """Places of atoms in padded structures, whose shapes a GPU must not be asked for."""
        return (groups_and_pairs_of if device == "cpu" and not compiled else places_of,)

    def _laid_out(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Results of `passes` for a batch whose loader had none; asks a device for numbers of atoms."""
        kind = batch.node_ptr.device
        ends = replace(batch, node_ptr=batch.node_ptr.cpu())
        (work,) = self.passes(kind.type, torch.compiler.is_compiling())
        return {name: tensor.to(kind) for name, tensor in work(ends).items()}

    def surroundings(self, batch: GraphBatch) -> Surroundings:
        """Biases of pairs, and weights and radial functions of edges."""
        given = batch.extras
        if f"{SLOTS}0" not in given:
            given = given | self._laid_out(batch)
        atoms = batch.numbers.shape[0]
        vectors = batch.edge_vectors()
        lengths = vectors.square().sum(dim=1).clamp(min=SHORTEST**2).sqrt()
        weights = self._weights(lengths)
        if batch.multiplicity is not None:
            weights = weights * batch.multiplicity.unsqueeze(1)
        found: list[Tensor] = []
        while (name := f"{SLOTS}{len(found)}") in given:
            found.append(given[name])
        places, bias = _biases(found, weights, batch)
        pairs = EDGE_PAIR in given
        edge_pair = (
            given[EDGE_PAIR] if pairs else torch.arange(lengths.shape[0], device=lengths.device)
        )
        pair_dst, pair_src = (given[PAIR_DST], given[PAIR_SRC]) if pairs else (batch.dst, batch.src)
        blocks = EdgeBlocks(batch.dst, atoms)
        block_pair = edge_pair.new_full((blocks.blocks * blocks.LENGTH,), pair_dst.shape[0])
        return Surroundings(
            slots=tuple(torch.where(slots < 0, atoms, slots) for slots in found),
            bias=bias,
            places=places,
            pair_dst=pair_dst,
            pair_src=pair_src,
            blocks=blocks,
            block_pair=block_pair.index_copy(0, blocks.slot, edge_pair),
            weights=blocks.pack(weights),
            radial=blocks.pack(self.rbf(lengths)),
        )

    def _weights(self, lengths: Tensor) -> Tensor:
        """[E, H] weights of distances [E]: a Gaussian per head, times an envelope that is smooth at the cutoff."""
        x = (lengths / self.cutoff).clamp(max=1.0)
        # That of DimeNet (Gasteiger et al., ICLR 2020) with p = 6.
        envelope = 1.0 - x**6 * (28.0 - x * (48.0 - 21.0 * x))
        slopes = 0.5 / self.sigmas.to(lengths.dtype).square()
        powers = (UNIT_DISTANCE**2 - lengths.square()).unsqueeze(1) * slopes
        return powers.exp() * envelope.unsqueeze(1)


def _biases(
    groups: Sequence[Tensor], weights: Tensor, batch: GraphBatch
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Place of each atom, [N] int64, and the bias of each group, [structures, H, L, L].

    Args:
        groups: slots by group, with -1.
        weights: [E, H].
        batch: the batch.
    """
    atoms, heads = batch.numbers.shape[0], weights.shape[1]
    places = batch.src.new_zeros(atoms + 1)
    rows = batch.src.new_zeros(atoms + 1)
    columns = batch.src.new_zeros(atoms + 1)
    before = pairs = 0
    for slots in groups:
        structures, length = slots.shape
        count = torch.arange(structures * length, device=slots.device)
        atom = torch.where(slots < 0, atoms, slots).flatten()
        places = places.index_copy(0, atom, count + before)
        rows = rows.index_copy(0, atom, count * length + pairs)
        columns = columns.index_copy(0, atom, count % length)
        before += structures * length
        pairs += structures * length**2
    # Sums over images, pair by pair: every image of an atom has the same query, key and value.
    pair = gather(rows, batch.dst) + gather(columns, batch.src)
    near = weights.new_zeros((heads, pairs)).scatter_add(1, pair.expand(heads, -1), weights.t())
    bias, start = [], 0
    for slots in groups:
        structures, length = slots.shape
        own = near.narrow(1, start, structures * length**2)
        own = own.view(heads, structures, length, length)
        start += structures * length**2
        inside = slots >= 0
        number = inside.sum(dim=1, keepdim=True).clamp(min=1).to(weights.dtype)
        # The sink has weight 1, and what is beyond the cutoff 1 altogether.
        far = torch.where(inside, 1.0 / number, 1.0).unsqueeze(1)
        absent = ~inside
        absent[:, 0] = False
        # In place: nothing else in a step is as large.
        own.add_(far).log_().masked_fill_(absent.unsqueeze(1), -math.inf)
        bias.append(own.transpose(0, 1))
    return places[:atoms], tuple(bias)
