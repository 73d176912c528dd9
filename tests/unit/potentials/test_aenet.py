"""Files of aenet: what they say to aenet, and what comes back from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config.graph import GraphSpec
from atomloom.config.model import ChebyshevConfig
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.models.chebyshev.network import Chebyshev
from atomloom.potentials.aenet import (
    AenetEnergies,
    TrainingSummary,
    read_aenet,
    write_aenet,
)
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

ENERGIES = AenetEnergies({"Ti": -1604.604515075, "O": -432.503149303}, shift=-7.78, scale=0.785)
HIDDEN = {"Ti": (5, 4), "O": (3,)}
ACTIVATION = {"Ti": "twist", "O": "sigmoid"}


@pytest.fixture
def batch():
    """Two crystals of titanium and oxygen."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(2.0)] * 3), axis=-1).reshape(-1, 3)
    structures = []
    for length in (4.4, 4.8):
        positions = grid * length / 2 + rng.normal(scale=0.1, size=(8, 3))
        structures.append(
            Structure(
                rng.permutation([22, 22, 22, 8, 8, 8, 8, 8]),
                positions,
                np.eye(3) * length,
                [True] * 3,
            )
        )
    table = StructureTable.from_structures(structures)
    graphs = build_graphs(table, GraphSpec(neighbors="radius", cutoff=4.0))
    (batch,) = list(GraphLoader(graphs, np.arange(2), dtype=torch.float64, prefetch=0))
    return batch


def trained(batch, **changes) -> Chebyshev:
    torch.manual_seed(0)
    options = {
        "species": ("Ti", "O"),
        "radial_order": 6,
        "radial_cutoff": 4.0,
        "angular_order": 3,
        "angular_cutoff": 3.5,
        "hidden": HIDDEN,
        "activation": ACTIVATION,
    }
    model = Chebyshev(ChebyshevConfig(**{**options, **changes})).double()
    with torch.no_grad():
        features = model.features(batch)
        features[:, 4] = 2.5  # a feature that does not vary is left out
        model.fit_features(features, batch.numbers)
        for bias in model.networks.biases:
            bias.normal_()
    return model


def test_what_is_written_is_read(tmp_path, batch):
    model = trained(batch)
    paths = write_aenet(model, ENERGIES, tmp_path / "new", summary=TrainingSummary(2, 16, -1, 1, 0))
    assert [path.name for path in paths] == ["atomloom.Ti.nn.ascii", "atomloom.O.nn.ascii"]
    twin, energies = read_aenet(paths[::-1])
    assert energies == ENERGIES
    assert twin.species == model.species
    assert twin.basis == model.basis
    assert twin.networks.sizes == model.networks.sizes
    assert twin.networks.activations == model.networks.activations
    torch.testing.assert_close(twin(batch), model(batch), rtol=0, atol=1e-11)
    torch.testing.assert_close(twin.feature_least, model.feature_least)
    torch.testing.assert_close(twin.feature_atoms, model.feature_atoms)


@pytest.mark.parametrize("changes", [{}, {"hidden": (4, 4), "activation": "tanh"}])
def test_decorrelated_features_are_written_into_the_first_layer(tmp_path, batch, changes):
    model = trained(batch, decorrelate=True, **changes)
    paths = write_aenet(model, ENERGIES, tmp_path / "new")
    again, _ = read_aenet(paths)
    torch.testing.assert_close(again(batch), model(batch), rtol=1e-9, atol=1e-9)


def test_networks_of_one_shape_and_single_precision(tmp_path, batch):
    model = trained(batch, hidden=(5, 5), activation="tanh")
    single = Chebyshev(
        ChebyshevConfig(
            species=("Ti", "O"),
            radial_order=6,
            radial_cutoff=4.0,
            angular_order=3,
            angular_cutoff=3.5,
            hidden=(5, 5),
        )
    )
    single.load_state_dict(model.float().state_dict())
    twin, _ = read_aenet(write_aenet(single, ENERGIES, tmp_path))
    torch.testing.assert_close(twin(batch), single.double()(batch), rtol=0, atol=1e-11)


def energies_as_aenet_has_them(path, features: np.ndarray) -> np.ndarray:
    """Energies of atoms in eV by aenet's own steps, on the stream of words that Fortran sees."""
    words = iter(path.read_text().split())

    def take(kind, count):
        return np.array([kind(next(words)) for _ in range(count)])

    depth, most, total, values_total = take(int, 4)
    nodes, codes = take(int, depth), take(int, depth - 1)
    weight_ends, value_ends, weights = take(int, depth), take(int, depth), take(float, total)
    assert most == nodes.max()
    assert values_total == value_ends[-1] + 1 == sum(nodes) + depth - 1
    description, symbol = next(words), next(words)
    assert description == "atomloom"
    environment = take(str, int(next(words)))
    assert environment.tolist() == ["Ti", "O"]
    nearest, farthest = take(float, 2)
    assert (nearest, farthest, next(words)) == (0.55, 4.0, "Chebyshev")
    count, width = take(int, 2)
    assert (count, width) == (features.shape[1], 4)
    assert not take(int, count).any()
    parameters = take(float, 4 * count)
    assert parameters[:4].tolist() == [4.0, 6, 3.5, 3]
    assert not parameters[4:].any()
    assert not take(int, 2 * count).any()
    assert int(next(words)) == len(features)
    least, greatest, mean, square = take(float, 4 * count).reshape(4, count)
    assert (least <= greatest).all()
    assert next(words) == "atomloom"
    assert next(words) == "T"
    inverse, shift = take(float, 2)
    symbols = take(str, int(next(words))).tolist()
    single = take(float, len(symbols))[symbols.index(symbol)]
    atoms, structures = take(int, 2)
    assert (atoms, structures, *take(float, 3)) == (16, 2, -1.0, 1.0, 0.5)
    assert next(words, None) is None

    def activate(code, x):
        twisted = 1.7159 * np.tanh(0.666666666666667 * x)
        return [x, np.tanh(x), 1 / (1 + np.exp(-x)), twisted, twisted + 0.1 * x][code]

    result = []
    for row in features:
        value = (row - mean) / np.sqrt(square - mean**2)
        for layer in range(depth - 1):
            block = weights[weight_ends[layer] : weight_ends[layer + 1]]
            matrix = block.reshape(nodes[layer + 1], nodes[layer] + 1, order="F")
            value = activate(codes[layer], matrix @ np.append(value, 1.0))
        result.append(value[0] / inverse + shift + single)
    return np.array(result)


def test_files_follow_the_conventions_of_aenet(tmp_path, batch):
    model = trained(batch)
    paths = write_aenet(model, ENERGIES, tmp_path, summary=TrainingSummary(2, 16, -1.0, 1.0, 0.5))
    features, network = model.features(batch), model(batch).detach().numpy()
    for index, (path, symbol) in enumerate(zip(paths, ("Ti", "O"), strict=True)):
        own = (batch.numbers == model.numbers[index]).numpy()
        expected = (
            ENERGIES.element_energies[symbol] + ENERGIES.shift + ENERGIES.scale * network[own]
        )
        found = energies_as_aenet_has_them(path, features[own].numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_a_reader_takes_arrays_over_many_lines(tmp_path, batch):
    model = trained(batch)
    paths = write_aenet(model, ENERGIES, tmp_path)
    for path in paths:
        broken = []
        for line in path.read_text().split("\n"):
            words = line.split()
            broken += [" ".join(words[k : k + 3]) for k in range(0, max(len(words), 1), 3)]
        path.write_text("\n".join(broken))
    torch.testing.assert_close(read_aenet(paths)[0](batch), model(batch), rtol=0, atol=1e-11)


def test_what_aenet_cannot_say_is_refused(tmp_path, batch):
    with pytest.raises(AtomloomError, match=r"no activation function silu.*tanh"):
        write_aenet(trained(batch, activation="silu"), ENERGIES, tmp_path)
    with pytest.raises(AtomloomError, match="single atom of O"):
        write_aenet(trained(batch), AenetEnergies({"Ti": 0.0}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_refused(tmp_path, batch):
    titanium, oxygen = write_aenet(trained(batch), ENERGIES, tmp_path)
    with pytest.raises(AtomloomError, match="files of Ti, but the elements are Ti, O"):
        read_aenet([titanium])
    other = AenetEnergies(ENERGIES.element_energies, shift=0.0, scale=2.0)
    _, foreign = write_aenet(trained(batch), other, tmp_path, prefix="other")
    with pytest.raises(AtomloomError, match="of different potentials"):
        read_aenet([titanium, foreign])
    text = oxygen.read_text()
    oxygen.write_text(text[: len(text) // 2])
    with pytest.raises(AtomloomError, match=r"atomloom\.O\.nn\.ascii: cannot be read"):
        read_aenet([titanium, oxygen])
    oxygen.write_text(text.replace("Chebyshev", "Behler2011"))
    with pytest.raises(AtomloomError, match="Behler2011 instead of Chebyshev"):
        read_aenet([oxygen])
    with pytest.raises(AtomloomError, match="no files"):
        read_aenet([])
