"""Fixtures of the tests of models."""

from __future__ import annotations

import pytest

from atomloom.models.common import passes


@pytest.fixture(params=["compiled passes", "plain operations"])
def way(request, monkeypatch):
    """Both ways to compute: the one of CPUs, and that of other devices and torch.compile."""
    if request.param == "plain operations":
        monkeypatch.setattr(passes, "by_passes", lambda values: False)
    return request.param
