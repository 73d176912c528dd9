"""ComFormer equals its reference numbers, and keeps to them where arithmetic is rougher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config.model import EComFormerConfig, IComFormerConfig
from atomloom.models import build_model

from .batches import batch_from_graphs, oracle_graphs

FAMILIES = {
    "icomformer": ("iComformer_width32", IComFormerConfig),
    "ecomformer": ("eComformer_width32", EComFormerConfig),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def reference(oracle, family):
    """The reference arrays, the model with their weights in float64, and their batch."""
    file, config = FAMILIES[family]
    content = oracle(file)
    model = build_model(config(width=32), outputs=1).double()
    weights = {
        key[2:]: torch.tensor(value) for key, value in content.items() if key.startswith("w:")
    }
    model.load_state_dict(weights)
    return content, model, batch_from_graphs(oracle_graphs(content))


def test_oracle_evaluation_output(reference):
    content, model, batch = reference
    output = model.eval()(batch)
    np.testing.assert_allclose(
        output.detach().numpy()[:, 0], content["eval_output"], rtol=0, atol=1e-10
    )


def test_oracle_training_output_and_gradients(reference):
    content, model, batch = reference
    output = model.train()(batch)
    np.testing.assert_allclose(
        output.detach().numpy()[:, 0], content["train_output"], rtol=0, atol=1e-10
    )
    output.square().mean().backward()
    norms = {
        key.removeprefix("gradnorm:"): float(value)
        for key, value in content.items()
        if key.startswith("gradnorm:")
    }
    gradients = dict(model.named_parameters())
    assert norms
    for name, norm in norms.items():
        assert float(gradients[name].grad.norm()) == pytest.approx(norm, rel=1e-8, abs=1e-14), name
