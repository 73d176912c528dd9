"""Recorded steps without a GPU: a stand-in records by taking the step again at each replay."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from atomloom.config.model import IComFormerConfig
from atomloom.models import build_model
from atomloom.training import cuda_graphs
from atomloom.training.cuda_graphs import RecordedSteps, records_steps
from atomloom.training.objectives.losses import loss_sum
from tests.unit.models.batches import batch_from_graphs, random_crystal


class Graph:
    """Takes the step again, and leaves what it gives where the recording left it."""

    current = None

    def __init__(self):
        self.take = None

    def pool(self):
        return object()

    def replay(self):
        self.take()


@pytest.fixture
def stand_in(monkeypatch):
    """CUDA's part of a recording, on the CPU."""

    @contextmanager
    def graph(recording, pool=None, capture_error_mode="global"):
        assert capture_error_mode == "thread_local"
        Graph.current = recording
        yield
        Graph.current = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda which: nullcontext(),
        "synchronize": lambda: None,
    }
    for name, thing in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, thing)


class Network:
    """A model with its micro step, which a stand-in can record."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = build_model(IComFormerConfig(width=32), 1).double().train()
        self.weights = list(self.model.parameters())
        self.taken = 0
        self.marks = []

    def step(self, batch, share, mark=None):
        self.taken += 1
        sums = loss_sum("mse", self.model(batch), batch.targets).reshape(1)
        (sums * share).sum().backward(inputs=self.weights)
        if Graph.current is not None:
            self._recorded(Graph.current, batch, share, sums := sums.detach().clone())
        return sums.detach()

    def _recorded(self, recording, batch, share, sums):
        gradients = [weight.grad for weight in self.weights]

        def take():
            for weight in self.weights:
                weight.grad = None
            sums.copy_(self.step(batch, share))
            for weight, gradient in zip(self.weights, gradients, strict=True):
                gradient.copy_(weight.grad)

        recording.take = take


def batch_of(seed, structures=4):
    draw = np.random.default_rng(seed)
    batch = batch_from_graphs([random_crystal(draw, 4, 8) for _ in range(structures)])
    batch.targets = torch.tensor(draw.normal(size=(structures, 1)))
    return batch


def test_replayed_steps_train_as_the_steps_themselves(stand_in):
    plain, recorded = Network(), Network()
    log = []
    steps = RecordedSteps(recorded.step, recorded.model, True, log.append)
    share = torch.tensor([0.25], dtype=torch.float64)
    for seed in range(6):
        batch = batch_of(seed, 4 + seed % 2)
        wanted = plain.step(batch, share)
        found = steps(batch, share)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
        largest = max(float(weight.grad.abs().max()) for weight in plain.weights)
        for one, two in zip(plain.weights, recorded.weights, strict=True):
            assert float((one.grad - two.grad).abs().max()) < 1e-9 * largest
        for one, two in zip(plain.model.buffers(), recorded.model.buffers(), strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12, equal_nan=True)
        for network in (plain, recorded):
            with torch.no_grad():
                for weight in network.weights:
                    weight.sub_(0.01 * weight.grad)
                    weight.grad = None
    assert len(log) == 1
    assert log[0].startswith("CUDA graphs on: a step takes")


def test_a_replay_is_marked_once(stand_in):
    network, marks = Network(), []
    steps = RecordedSteps(network.step, network.model, True, lambda line: None)
    steps(batch_of(0), torch.ones(1, dtype=torch.float64), marks.append)
    assert marks == ["backward"]


@pytest.mark.parametrize(("plain", "replayed", "kept"), [(1.0, 0.95, False), (1.0, 0.5, True)])
def test_recording_is_kept_where_it_pays(stand_in, monkeypatch, plain, replayed, kept):
    network, log = Network(), []
    seconds = iter([plain, replayed])
    monkeypatch.setattr(cuda_graphs, "_seconds", lambda work: next(seconds))
    steps = RecordedSteps(network.step, network.model, False, log.append)
    for _ in range(2):
        steps(batch_of(0), torch.ones(1, dtype=torch.float64))
    assert steps._on == kept
    assert bool(steps._recordings) == kept
    assert len(log) == 1
    assert log[0].startswith(f"CUDA graphs {'on' if kept else 'off'}")


def test_recording_that_fails_leaves_the_step_as_it_is(stand_in, monkeypatch):
    network, plain, log = Network(), Network(), []

    def refuse(*arguments, **options):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    steps = RecordedSteps(network.step, network.model, True, log.append)
    share = torch.ones(1, dtype=torch.float64)
    found, wanted = steps(batch_of(0), share), plain.step(batch_of(0), share)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for one, two in zip(network.model.buffers(), plain.model.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    assert log == [
        "warning: training steps are not recorded as CUDA graphs: operation not permitted when "
        "stream is capturing"
    ]


@pytest.mark.parametrize(
    ("change", "recorded"),
    [
        ({}, True),
        ({"precision": "bf16-mixed"}, True),
        ({"cuda_graphs": False}, False),
        ({"accumulate": 2}, False),
        ({"precision": "fp16-mixed"}, False),
        ({"potential": {"force_fraction": 0.5}}, False),
        ({"potential": {"sampling": "error"}}, False),
    ],
)
def test_steps_are_recorded_where_every_step_is_alike(change, recorded):
    from atomloom.config.training import Training

    settings = Training(**change)
    assert records_steps(settings, cuda=True, ranks=1) is recorded
    assert not records_steps(settings, cuda=False, ranks=1)
    assert not records_steps(settings, cuda=True, ranks=2)
