"""Energies, forces and stress of a potential, from one derivative by the edge vectors.

A potential is a model whose `forward(batch)` gives atomic energies [N] and which sees positions
and cells only through `batch.vectors`. With g_e = dE/dr_e, where r_e points from dst to src's
image, the force on an atom is the sum of g over edges that end there minus that over edges that
start there, and the stress is the sum of r_e g_e over the cell's volume; neither positions nor a
strain need be differentiated. It knows nothing of particular potentials or of training.

Legend: B structures, N atoms, E edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from atomloom.data.batch import GraphBatch
from atomloom.models.common.layers import full_precision, segment_sum
from atomloom.models.common.outputs import Outputs


@dataclass(frozen=True, eq=False)
class PotentialOutput:
    """Output of a potential for a batch, in its own unit of energy U."""

    atom_energies: Tensor
    """[N] atomic energies, U."""
    energy: Tensor
    """[B], U, sums of the atomic energies."""
    forces: Tensor | None = None
    """[N, 3], U/A; None unless requested."""
    stress: Tensor | None = None
    """[B, 3, 3], U/A^3, dE/dstrain / volume, symmetric; zeros where the cell has no volume."""
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """Values of heads of further targets, by name."""

    def tensors(self) -> list[Tensor]:
        """Evaluate energies, and values of heads."""
        return [self.energy, *self.heads.values()]


def evaluate_potential(
    model: Callable[[GraphBatch], Tensor | Outputs],
    batch: GraphBatch,
    *,
    forces: bool = True,
    stress: bool = False,
    create_graph: bool = False,
) -> PotentialOutput:
    """Evaluate energies of a batch, their derivatives on request, and values of heads.

    Args:
        model: returns atomic energies [N], perhaps as `Outputs`.
        batch: with `vectors`; it is not changed.
        forces: whether to compute forces.
        stress: whether to compute stresses.
        create_graph: whether the derivatives can be differentiated again, as training on them does.
    """
    if not (forces or stress):
        said = Outputs.of(model(batch))
        energy = _per_structure(said.required, batch)
        return PotentialOutput(said.required, energy, heads=said.heads)
    with torch.enable_grad():
        vectors = batch.edge_vectors().detach().requires_grad_()
        said = Outputs.of(model(replace(batch, vectors=vectors)))
        atom_energies, heads = said.required, said.heads
        (gradient,) = torch.autograd.grad(
            atom_energies.sum(), vectors, create_graph=create_graph, materialize_grads=True
        )
    if not create_graph:
        atom_energies = atom_energies.detach()
        heads = {name: values.detach() for name, values in heads.items()}
    return PotentialOutput(
        atom_energies,
        _per_structure(atom_energies, batch),
        _forces(gradient, batch) if forces else None,
        _stress(gradient, vectors.detach(), batch) if stress else None,
        heads,
    )


def _per_structure(values: Tensor, batch: GraphBatch) -> Tensor:
    with full_precision(values):
        return segment_sum(values, batch.node_graph, batch.size)


def _forces(gradient: Tensor, batch: GraphBatch) -> Tensor:
    atoms = batch.numbers.shape[0]
    with full_precision(gradient):
        return segment_sum(gradient, batch.dst, atoms) - segment_sum(gradient, batch.src, atoms)


def _stress(gradient: Tensor, vectors: Tensor, batch: GraphBatch) -> Tensor:
    with full_precision(gradient):
        of_edges = vectors.unsqueeze(2) * gradient.unsqueeze(1)
        structure = batch.node_graph.index_select(0, batch.dst)
        virial = segment_sum(of_edges, structure, batch.size)
        virial = 0.5 * (virial + virial.transpose(1, 2))
        volume = torch.linalg.det(batch.cell.to(virial.dtype)).abs().view(-1, 1, 1)
        return torch.where(volume > 0, virial / volume.clamp(min=1e-12), 0.0)
