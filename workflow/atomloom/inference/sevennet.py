"""SevenNet checkpoints as potentials of atomloom (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)).

They are read without running code: PyTorch's restricted reader is allowed numpy's arrays and nothing
else. `config.foundation` names those that come with the Python package `sevenn`.

The weights follow e3nn's conventions, where a linear map is divided by the root of its number of inputs and
an activation by its root mean square, drawn at random once; both are folded into ours. Where a
checkpoint has more than one modality (levels of theory), one is chosen: to a scalar, its indicator is a bias.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomloom.config.graph import GraphSpec
from atomloom.config.model import NequIPConfig
from atomloom.errors import AtomloomError
from atomloom.inference.foreign import read_torch_file
from atomloom.inference.model_file import ModelCard
from atomloom.inference.scalers.atomic_energies import ELEMENTS, AtomicEnergies
from atomloom.models.nequip.network import SILU, Mix, NequIP
from atomloom.models.nequip.tables import EVEN_SCALAR, Paths, coupling
from atomloom.structures.elements import SYMBOLS

E3NN_SILU = 1.6791767923989418
"""Factor by which e3nn normalises SiLU, from a million random numbers."""

State = Mapping[str, Tensor]


def read_sevennet(path: Path, modality: str | None = None) -> tuple[dict[str, Tensor], ModelCard]:
    """Read a checkpoint as tensors and card of a potential.

    Args:
        path: of the file.
        modality: the level of theory where a checkpoint has several; None for its default.

    Raises:
        AtomloomError: when the file cannot be read without running code, is not a checkpoint of SevenNet
            or one of a kind that is not known here.
    """
    content = _load(path)
    try:
        given, state = content["config"], _renamed(content["model_state_dict"])
        return _Reader(path, given, state, modality).read()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise AtomloomError(
            f"is not a checkpoint of SevenNet that is known here: {error!r}", where=path
        ) from None


def _load(path: Path) -> Mapping[str, Any]:
    """Content of a file, by the reader that runs no code."""
    reconstruct = np.zeros(1).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float32))]
    allowed.append((reconstruct, "numpy.core.multiarray._reconstruct"))
    return read_torch_file(path, "SevenNet", allowed)


def _renamed(state: State) -> dict[str, Tensor]:
    """State under the names since April 2024."""
    names = {
        "EdgeEmbedding": "edge_embedding",
        "reducing nn input to hidden": "reduce_input_to_hidden",
        "reducing nn hidden to energy": "reduce_hidden_to_energy",
        "rescale atomic energy": "rescale_atomic_energy",
    }
    found = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        module = names.get(module, re.sub(r"^(\d+) ", r"\1_", module).replace(" ", "_"))
        found[f"{module}.{rest.replace('denumerator', 'denominator')}"] = value
    return found


class _Reader:
    """One checkpoint.

    Args:
        path: of the file, for messages.
        given: its config.
        state: its weights.
        modality: the one wanted.
    """

    def __init__(
        self, path: Path, given: Mapping[str, Any], state: State, modality: str | None
    ) -> None:
        self.path, self.given, self.state = path, given, state
        known = given.get("_modal_map") if given.get("use_modality") else None
        self.modalities = dict(known or {})
        wanted = modality or given.get("default_modal") if self.modalities else modality
        if wanted is not None and wanted not in self.modalities:
            raise AtomloomError(
                f"has no modality {wanted}",
                where=path,
                todo=f"choose from {', '.join(self.modalities)}"
                if self.modalities
                else "name none",
            )
        self.modality = wanted
        self.config = self._config()

    def read(self) -> tuple[dict[str, Tensor], ModelCard]:
        """Tensors and card."""
        elements = {SYMBOLS[number]: place for number, place in self.given["_type_map"].items()}
        card = ModelCard(
            self.config,
            GraphSpec(**self.config.graph_needs()),
            ("energy", "forces", "stress"),
            {"energy": "eV", "forces": "eV/A", "stress": "eV/A^3"},
            self._energies(),
            {"from": "SevenNet", **({"modality": self.modality} if self.modality else {})},
            elements=tuple(elements),
        )
        return self._tensors(), card

    def _config(self) -> NequIPConfig:
        given, state = self.given, self.state
        sizes = [[_irrep(part) for part in text.split("+")] for text in given["irreps_manual"]]
        features = tuple(copies for copies, _ in sizes[1])
        middle = [[(count, degree) for degree, count in enumerate(features)]] * (len(sizes) - 2)
        ends = [[(features[0], 0)]]
        expected = [*ends, *middle, *ends]
        layers = given["num_convolution_layer"]
        divisors = {round(float(state[f"{i}_convolution.denominator"]), 6) for i in range(layers)}
        unknown = [
            given["is_parity"],
            sizes != expected,
            given["self_connection_type"] != "linear",
            given["interaction_type"] != "nequip" if "interaction_type" in given else False,
            given.get("readout_as_fcn", False),
            given["act_radial"] != "silu",
            given["act_gate"]["e"] != "silu",
            given["act_scalar"]["e"] != "silu",
            len(divisors) > 1,
            tuple(int(part) for part in given["version"].split(".")[:2]) > (0, 10),
        ]
        if any(unknown):
            raise ValueError("another architecture, or one written by SevenNet 0.11 or newer")
        envelope = given["cutoff_function"]
        options: dict[str, Any] = {"envelope": "polynomial"}
        if envelope["cutoff_function_name"] == "XPLOR":
            options = {"envelope": "xplor", "envelope_start": envelope["cutoff_on"]}
        elif "poly_cut_p_value" in envelope:
            options["envelope_power"] = envelope["poly_cut_p_value"]
        return NequIPConfig(
            features=features,
            parity=False,
            layers=layers,
            rbf=given["radial_basis"]["bessel_basis_num"],
            filter_hidden=tuple(given["weight_nn_hidden_neurons"]),
            cutoff=given["cutoff"],
            neighbors=divisors.pop(),
            bias=bool(self.modalities),
            unit_directions=given.get("_normalize_sph", False),
            **options,
        )

    def _energies(self) -> AtomicEnergies:
        shift, scale = (
            self.state[f"rescale_atomic_energy.{name}"].double() for name in ("shift", "scale")
        )
        if shift.ndim == 2:
            shift = shift[self.modalities[self.modality]]
        if scale.unique().numel() != 1:
            raise ValueError("an own scale for each element")
        energies = np.full(ELEMENTS, np.nan)
        for number, place in self.given["_type_map"].items():
            energies[number] = shift[place]
        return AtomicEnergies(energies, 0.0, float(scale[0]))

    def _tensors(self) -> dict[str, Tensor]:
        model = NequIP(self.config)
        found = model.state_dict()
        found["radial.frequencies"] = self.state["edge_embedding.basis_function.coeffs"]
        elements = self.given["_type_map"]
        rows = self.state["onehot_to_feature_x.linear.weight"].view(len(elements), -1)
        table = torch.zeros_like(found["embedding.weight"])
        for number, place in elements.items():
            table[number] = rows[place] / math.sqrt(len(elements))
        found["embedding.weight"] = table

        ratio = E3NN_SILU / SILU
        """Factor of features after a gate."""
        scale = 1.0
        for place, interaction in enumerate(model.interactions):
            own = f"interactions.{place}."
            mixes = (
                ("before", f"{place}_self_interaction_1", interaction.before, scale),
                ("connection", f"{place}_self_connection_intro", interaction.connection, scale),
                ("after", f"{place}_self_interaction_2", interaction.after, 1.0),
            )
            for name, theirs, mix, factor in mixes:
                found |= self._mixed(own + name, theirs, mix, factor)
            for layer in range(len(self.config.filter_hidden) + 1):
                weight = self.state[f"{place}_convolution.weight_nn.layer{layer}.weight"]
                found[f"{own}filters.weights.{layer}"] = weight * (ratio if layer else 1.0)
            last = f"{own}filters.weights.{len(self.config.filter_hidden)}"
            found[last] = found[last] * self._signs(place, interaction.convolution.paths)
            scale = ratio
        assert model.hidden is not None
        assert model.output is not None
        found |= self._mixed("hidden", "reduce_input_to_hidden", model.hidden, scale)
        found |= self._mixed("output", "reduce_hidden_to_energy", model.output, 1.0)
        model.load_state_dict(found)
        return dict(model.state_dict())

    def _mixed(self, own: str, theirs: str, mix: Mix, factor: float) -> dict[str, Tensor]:
        """Weights of a linear map, by our names."""
        flat = self.state[f"{theirs}.linear.weight"]
        found: dict[str, Tensor] = {}
        start = 0
        scalars = mix.target.copies(EVEN_SCALAR)
        size = sum(weight.numel() for weight in mix.weights)
        rows = flat[size:].view(-1, scalars) if scalars else flat[size:]
        if len(rows) not in (0, len(self.modalities)):
            raise ValueError(f"{theirs} has {flat.numel()} weights")
        for place, block in enumerate(mix.mixed):
            copies = mix.source.copies(block.irrep)
            weight = flat[start : start + copies * block.copies].view(copies, block.copies)
            start += weight.numel()
            inputs = copies + (len(rows) if block.irrep == EVEN_SCALAR else 0)
            found[f"{own}.weights.{place}"] = weight * (factor * math.sqrt(copies / inputs))
        if mix.bias is not None:
            inputs = mix.source.copies(EVEN_SCALAR) + len(rows)
            chosen = rows[self.modalities[self.modality]] if len(rows) else torch.zeros(scalars)
            found[f"{own}.bias"] = chosen / math.sqrt(inputs)
        return found

    def _signs(self, place: int, paths: Paths) -> Tensor:
        """[W] sign of each filter: some versions of e3nn had other signs of the coupling coefficients."""
        signs = []
        for path in paths.paths:
            degrees = (path.source.irrep.degree, path.degree, path.target.irrep.degree)
            sign = 1.0
            if min(degrees) > 0:
                name = "_".join(str(degree) for degree in degrees)
                key = f"{place}_convolution.convolution._compiled_main_left_right._w3j_{name}"
                stored = self.state[key].double().numpy()
                sign = float(np.sign((stored * coupling(*degrees)).sum()))
            signs += [sign] * path.source.copies
        return torch.tensor(signs)


def _irrep(text: str) -> tuple[int, int]:
    """Copies and degree of a part like `64x1e`."""
    matched = re.fullmatch(r"(\d+)x(\d+)e", text.strip())
    if matched is None:
        raise ValueError(f"features {text}")
    return int(matched[1]), int(matched[2])
