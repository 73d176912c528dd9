"""Potentials that several tests share."""

from __future__ import annotations

import pytest

from tests.unit.potentials.models import fit_copper, write_potential


@pytest.fixture(scope="session")
def copper(tmp_path_factory):
    """A potential of copper."""
    return write_potential(tmp_path_factory.mktemp("models") / "copper.safetensors")


@pytest.fixture(scope="session")
def committee(tmp_path_factory, copper):
    """Three potentials of copper."""
    folder = copper.parent
    return [copper, *(write_potential(folder / f"{s}.safetensors", seed=s) for s in (1, 2))]


@pytest.fixture(scope="session")
def oxide(tmp_path_factory):
    """A potential of titanium and oxygen."""
    folder = tmp_path_factory.mktemp("models")
    return write_potential(folder / "oxide.safetensors", ("Ti", "O"))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """A potential of copper that was fitted to EMT, in float64."""
    return fit_copper(tmp_path_factory.mktemp("models") / "fitted.safetensors")


@pytest.fixture(scope="session")
def organic(tmp_path_factory):
    """A PaiNN of hydrogen, carbon, nitrogen and oxygen."""
    folder = tmp_path_factory.mktemp("models")
    return write_potential(folder / "organic.safetensors", ("H", "C", "N", "O"), kind="painn")
