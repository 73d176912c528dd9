"""Every graph of a real data set, edge by edge, beside ASE and jarvis-tools (k-nearest, radius)."""

from __future__ import annotations

import numpy as np
import pytest

from atomloom.config.graph import GraphSpec
from atomloom.graphs.build import build_graph
from benchmarks.agreement import graph_agreement
from tests.unit.graphs.samples import nacl_cubic


@pytest.fixture(scope="module")
def tallies(data_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATOMLOOM_DATA", str(data_folder))
        return graph_agreement.agreement("alignn_sample")


@pytest.mark.parametrize("radius", graph_agreement.RADII)
def test_radius_graphs_of_all_real_crystals_equal_the_neighbour_lists_of_ase(tallies, radius):
    tally = tallies[f"ase, radius {radius:g} A"]
    assert tally["structures"] == tally["identical"] == 70


def test_nearest_graphs_of_all_real_crystals_equal_jarvis_tools_but_for_shells_it_cuts(tallies):
    tally = tallies["jarvis-tools, k = 12"]
    assert tally["structures"] == 70
    assert tally["unexplained"] == 0
    assert tally["edges_only_there"] == 0, "whatever jarvis-tools has, we have"
    assert tally["edges_only_here"] < 0.05 * tally["edges"]


def test_the_comparison_notices_one_wrong_edge(monkeypatch):
    """Were a graph wrong by one cell of one edge, the tallies above would say so."""

    def wrong(structure, spec):
        graph = build_graph(structure, spec)
        shift = graph.shift.copy()
        shift[0] += [1, 0, 0]
        object.__setattr__(graph, "shift", shift)
        return graph

    monkeypatch.setattr(graph_agreement, "build_graph", wrong)
    tally = graph_agreement.Tally()
    graph_agreement.compare_radius("NaCl", nacl_cubic(), 5.0, tally)
    assert tally.unexplained == ["NaCl: 1 edges"] or tally.unexplained == ["NaCl: 2 edges"]
    tally = graph_agreement.Tally()
    graph_agreement.compare_nearest("NaCl", nacl_cubic(), tally)
    assert len(tally.unexplained) == 1


def test_kth_distance_is_that_of_the_last_neighbour_of_the_list():
    graph = build_graph(nacl_cubic(), GraphSpec(cutoff=8.0, max_neighbors=12))
    expected = 5.64 / np.sqrt(2)  # 6 nearest, then 12 at half the diagonal of a face
    assert graph_agreement.kth_distances(graph) == pytest.approx(np.full(8, expected))
