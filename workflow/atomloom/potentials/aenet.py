"""Chebyshev potentials as aenet files, one text file per element, and back.

The format is `.nn.ascii`, as written by aenet-PyTorch (2024) and aenet-python. `nnASCII2bin.x`
of aenet-PyTorch converts it to the binary file that predict.x and the library of aenet 2.0.4 read.
Three parts follow each other: the network, the descriptor with statistics of its features, and
statistics of the training energies. It knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from atomloom.config.model import ActivationName, ChebyshevConfig
from atomloom.errors import AtomloomError
from atomloom.models.chebyshev.network import Chebyshev
from atomloom.store.files import expand_home, write_text

CODES: dict[ActivationName, int] = {"linear": 0, "tanh": 1, "sigmoid": 2, "mtanh": 3, "twist": 4}
"""aenet's numbers of activation functions."""
LEAST_VARIANCE = 1e-20
"""Min variance of features that aenet uses."""


@dataclass(frozen=True)
class AenetEnergies:
    """Atomic energy in eV: element_energies[symbol] + shift + scale * network."""

    element_energies: Mapping[str, float]
    """Energies of single atoms in eV."""
    shift: float = 0.0
    """eV."""
    scale: float = 1.0
    """Energy scale in eV; aenet writes its inverse."""


@dataclass(frozen=True)
class TrainingSummary:
    """Statistics of the training set in aenet's files, for information."""

    structures: int = 0
    atoms: int = 0
    least: float = 0.0
    """Energies in eV per atom, without those of single atoms, here and below."""
    most: float = 0.0
    mean: float = 0.0


def write_aenet(
    model: Chebyshev,
    energies: AenetEnergies,
    folder: str | Path,
    prefix: str = "atomloom",
    summary: TrainingSummary | None = None,
) -> list[Path]:
    """Write `folder`/`prefix`.SYMBOL.nn.ascii for each element; returns the paths.

    Raises:
        AtomloomError: for activation functions that aenet does not have, and for elements without
            an energy.
    """
    missing = [symbol for symbol in model.species if symbol not in energies.element_energies]
    if missing:
        raise AtomloomError(f"no energy of a single atom of {', '.join(missing)}")
    foreign = {name for names in model.networks.activations for name in names} - set(CODES)
    if foreign:
        raise AtomloomError(
            f"aenet has no activation function {', '.join(sorted(foreign))}",
            where="model.activation",
            todo=f"train a model with one of {', '.join(CODES)}",
        )
    folder = Path(expand_home(folder))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, symbol in enumerate(model.species):
        lines = [
            *_network_lines(model, index),
            *_descriptor_lines(model, index),
            *_energy_lines(model.species, energies, summary or TrainingSummary()),
        ]
        path = folder / f"{prefix}.{symbol}.nn.ascii"
        write_text(path, "\n".join(lines) + "\n")
        paths.append(path)
    return paths


def read_aenet(paths: Sequence[str | Path]) -> tuple[Chebyshev, AenetEnergies]:
    """Read a potential in float64 from the files of all its elements, in any order.

    Raises:
        AtomloomError: when a file is not of this format or holds another descriptor, when files
            disagree, or when an element has no file.
    """
    files = {}
    for path in paths:
        try:
            file = _File.parse(Path(expand_home(path)).read_text().split("\n"))
        except (OSError, ValueError, IndexError) as error:
            raise AtomloomError(
                "cannot be read as an aenet network", where=path, todo=str(error)
            ) from None
        if not file.config:
            raise AtomloomError(f"descriptor {file.kind} instead of Chebyshev", where=path)
        files[file.symbol] = file
    first = next(iter(files.values()), None)
    if first is None:
        raise AtomloomError("no files of networks")
    for symbol, file in files.items():
        if file.config != first.config or file.energies != first.energies:
            raise AtomloomError(f"{symbol} and {first.symbol} are of different potentials")
    species = first.config["species"]
    if set(files) != set(species):
        raise AtomloomError(
            f"files of {', '.join(sorted(files))}, but the elements are {', '.join(species)}"
        )
    config = ChebyshevConfig(
        **first.config,
        hidden={symbol: file.hidden for symbol, file in files.items()},
        activation={symbol: file.activation for symbol, file in files.items()},
    )
    model = Chebyshev(config).double()
    with torch.no_grad():
        for index, symbol in enumerate(species):
            file = files[symbol]
            for pair, (weight, bias) in zip(model.networks.layers(index), file.layers, strict=True):
                pair[0].copy_(torch.from_numpy(weight))
                pair[1].copy_(torch.from_numpy(bias))
            least, most, mean, square = (torch.from_numpy(row) for row in file.statistics)
            variance = square - mean * mean
            scale = torch.where(variance > LEAST_VARIANCE, variance.rsqrt(), 0.0)
            model.feature_atoms[index] = file.atoms
            model.feature_least[index], model.feature_most[index] = least, most
            model.feature_mean[index], model.feature_scale[index] = mean, scale
    return model, first.energies


# --- writing ---


def _network_lines(model: Chebyshev, index: int) -> list[str]:
    sizes = model.networks.sizes[index]
    layers = [
        (weight.detach().double().numpy(force=True), bias.detach().double().numpy(force=True))
        for weight, bias in model.networks.layers(index)
    ]
    # Features that are left out here are left out by their weights: aenet warns at every atom of
    # features that do not vary.
    used = (model.feature_scale[index] > 0).numpy(force=True)
    layers[0] = (layers[0][0] * used, layers[0][1])
    blocks = [np.column_stack(layer).ravel(order="F") for layer in layers]
    weight_ends = np.cumsum([0, *(len(block) for block in blocks)])
    value_ends = np.cumsum([0, *(size + 1 for size in sizes[:-1])])
    codes = [*(CODES[name] for name in model.networks.activations[index]), CODES["linear"]]
    return [
        str(len(sizes)),
        str(max(sizes)),
        str(weight_ends[-1]),
        str(value_ends[-1] + sizes[-1]),
        _row(sizes),
        _row(codes),
        _row(weight_ends),
        _row(value_ends),
        _row(np.concatenate(blocks)),
    ]


def _descriptor_lines(model: Chebyshev, index: int) -> list[str]:
    basis = model.basis
    parameters = np.zeros((basis.features, 4))
    parameters[0] = (
        basis.radial_cutoff,
        basis.radial_order,
        basis.angular_cutoff,
        basis.angular_order,
    )
    mean, scale, least, most = (
        values[index].double().numpy(force=True)
        for values in (
            model.feature_mean,
            model.feature_scale,
            model.feature_least,
            model.feature_most,
        )
    )
    deviation = 1.0 / np.where(scale > 0, scale, 1.0)
    return [
        "atomloom",
        model.species[index],
        str(len(model.species)),
        " ".join(model.species),
        _number(model.min_distance),
        _number(basis.cutoff),
        "Chebyshev",
        str(basis.features),
        str(parameters.shape[1]),
        _row([0] * basis.features),  # kinds of symmetry functions, and below their elements
        _row(parameters.ravel()),
        _row([0] * (2 * basis.features)),
        str(int(model.feature_atoms[index])),
        _row(least),
        _row(most),
        _row(mean),
        _row(deviation**2 + mean**2),
    ]


def _energy_lines(
    species: Sequence[str], energies: AenetEnergies, summary: TrainingSummary
) -> list[str]:
    return [
        "atomloom",
        "T",
        _number(1.0 / energies.scale),
        _number(energies.shift),
        str(len(species)),
        " ".join(species),
        _row([float(energies.element_energies[symbol]) for symbol in species]),
        str(summary.atoms),
        str(summary.structures),
        _row([summary.least, summary.most, summary.mean]),
    ]


def _number(value: float) -> str:
    return f"{float(value):24.17E}"


def _row(values: ArrayLike) -> str:
    """Line with the values of an array: aenet-PyTorch reads arrays by lines, Fortran by counts."""
    array = np.asarray(values)
    if array.dtype.kind == "i":
        return " ".join(str(value) for value in array)
    return " ".join(_number(value) for value in array)


# --- reading ---


@dataclass(frozen=True)
class _File:
    """The content of one file."""

    symbol: str
    kind: str
    """Name of the descriptor."""
    config: dict[str, Any]
    """Keys of `ChebyshevConfig` for a Chebyshev descriptor; empty for another one."""
    hidden: tuple[int, ...]
    activation: ActivationName
    layers: list[tuple[np.ndarray, np.ndarray]]
    """Weight [out, in] and bias [out]."""
    statistics: np.ndarray
    """[4, F]: min, max, mean, mean of squares."""
    atoms: int
    energies: AenetEnergies

    @classmethod
    def parse(cls, lines: list[str]) -> _File:
        """Parse lines; ValueError or IndexError where they are not of this format."""
        reader = _Reader(lines)
        depth, _, weights, _ = (int(reader.line()) for _ in range(4))
        sizes = reader.integers(depth)
        codes = reader.integers(depth - 1)
        ends = reader.integers(depth)
        reader.integers(depth)
        values = np.array(reader.numbers(weights))
        layers = []
        for place, (width, out) in enumerate(pairwise(sizes)):
            block = values[ends[place] : ends[place + 1]].reshape(out, width + 1, order="F")
            layers.append((block[:, :-1].copy(), block[:, -1].copy()))
        names = {list(CODES)[code] for code in codes[:-1]}
        if len(names) > 1 or codes[-1] != CODES["linear"]:
            raise ValueError(f"activation functions {codes} differ among the layers")

        reader.line()
        symbol = reader.line()
        elements = reader.words(int(reader.line()))
        min_distance = float(reader.line())
        reader.line()
        kind = reader.line()
        features, width = int(reader.line()), int(reader.line())
        reader.integers(features)
        parameters = reader.numbers(features * width)
        reader.integers(2 * features)
        atoms = int(reader.line())
        statistics = np.array([reader.numbers(features) for _ in range(4)])
        config: dict[str, Any] = {}
        if kind.lower() == "chebyshev":
            config = {
                "species": tuple(elements),
                "radial_cutoff": parameters[0],
                "radial_order": round(parameters[1]),
                "angular_cutoff": parameters[2],
                "angular_order": round(parameters[3]),
                "min_distance": min_distance,
            }

        reader.line()
        normalised = reader.line().strip(".").upper().startswith("T")
        scale, shift = float(reader.line()), float(reader.line())
        symbols = reader.words(int(reader.line()))
        singles = reader.numbers(len(symbols))
        energies = AenetEnergies(
            dict(zip(symbols, singles, strict=True)),
            shift if normalised else 0.0,
            1.0 / scale if normalised else 1.0,
        )
        activation: ActivationName = next(iter(names), "linear")
        return cls(
            symbol,
            kind,
            config,
            tuple(sizes[1:-1]),
            activation,
            layers,
            statistics,
            atoms,
            energies,
        )


class _Reader:
    """Reader of lines, and of numbers that continue over several lines."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = iter(lines)

    def line(self) -> str:
        text = next(self.lines, None)
        if text is None:
            raise ValueError("the file ends early")
        return text.strip()

    def words(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            found += self.line().split()
        if len(found) > count:
            raise ValueError(f"{len(found)} entries instead of {count}")
        return found

    def numbers(self, count: int) -> list[float]:
        return [float(word) for word in self.words(count)]

    def integers(self, count: int) -> list[int]:
        return [int(word) for word in self.words(count)]
