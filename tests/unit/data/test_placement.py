"""The graphs are held where they fit, what was chosen is written down, and a run keeps to it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from atomloom.config.training import Batching
from atomloom.data import placement
from atomloom.data.loader import GraphLoader, ShardLoader
from atomloom.data.memory import FreeMemory, free_memory
from atomloom.data.placement import Placement, choose_loader, load_graphs, open_loader
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable
from tests.unit.data.shards import on_disk
from tests.unit.data.tables import random_table

BOUNDS = Batching(structures=4)


@pytest.fixture
def graphs(tmp_path):
    return on_disk(tmp_path, random_table(200, seed=2), list(range(10, 200, 10)))


@pytest.fixture
def free(monkeypatch):
    """`free(size)` sets how much memory is free."""

    def set_size(size):
        monkeypatch.setattr(placement, "free_memory", lambda: FreeMemory(size, "free memory"))

    return set_size


def whole(graphs):
    return int(graphs.weights.sum()) + graphs.reading


def test_graphs_that_fit_into_half_of_the_free_memory_are_held_in_memory(graphs, free):
    free(2 * whole(graphs))
    choice = choose_loader(graphs, BOUNDS)
    assert choice.window is None
    assert "graphs in memory: " in choice.text
    assert "half of the free memory" in choice.text
    table = load_graphs(graphs, choice)
    assert isinstance(table, GraphTable)
    assert isinstance(open_loader(table, np.arange(200), choice=choice), GraphLoader)


def test_graphs_that_do_not_fit_stay_on_disk(graphs, free):
    free(2 * whole(graphs) - 2)
    choice = choose_loader(graphs, BOUNDS)
    assert "graphs on disk: " in choice.text
    assert load_graphs(graphs, choice) is graphs
    loader = open_loader(graphs, np.arange(200), bounds=BOUNDS, choice=choice, shuffle=True)
    assert isinstance(loader, ShardLoader)
    assert sorted(row for batch in loader for row in batch.rows.tolist()) == list(range(200))


def test_processes_on_one_machine_share_its_memory(graphs, free):
    free(2 * whole(graphs))
    assert choose_loader(graphs, BOUNDS, processes=1).window is None
    assert choose_loader(graphs, BOUNDS, processes=2).window is not None


def test_a_given_budget_is_kept_to_whatever_is_free(graphs, free):
    free(1 << 40)
    budget = whole(graphs) // 2
    choice = choose_loader(graphs, BOUNDS, budget=budget)
    assert choice.budget == budget
    assert graphs.reading < 2 * choice.window + graphs.reading < budget
    assert choice.text.endswith("as set")


def test_a_mode_leaves_no_choice(graphs, free):
    free(20 * whole(graphs))
    assert choose_loader(graphs, BOUNDS, mode="disk").window is not None
    free(whole(graphs))
    assert choose_loader(graphs, BOUNDS, mode="memory").window is None


def test_a_budget_below_two_shards_is_refused_with_what_is_needed(graphs):
    with pytest.raises(AtomloomError, match=r"two shards and two batches take .* kB"):
        choose_loader(graphs, BOUNDS, budget=graphs.reading)


def test_a_run_goes_on_as_it_began(graphs, free):
    """What is free changes from call to call; the order of batches must not."""
    free(whole(graphs))
    begun = choose_loader(graphs, BOUNDS)
    assert begun.window is not None
    free(100 * whole(graphs))
    saved = Placement(**json.loads(json.dumps(asdict(begun))))
    again = choose_loader(graphs, BOUNDS, begun=saved)
    assert again.window == begun.window
    loaders = [
        open_loader(graphs, np.arange(200), bounds=BOUNDS, choice=choice, shuffle=True)
        for choice in (begun, again)
    ]
    assert loaders[0].plan(3).rows.tolist() == loaders[1].plan(3).rows.tolist()
    free(2 * begun.window)
    with pytest.raises(AtomloomError, match="the run began with windows of"):
        choose_loader(graphs, BOUNDS, begun=begun)


def test_a_run_that_began_in_memory_stays_there_or_says_that_it_cannot(graphs, free):
    free(2 * whole(graphs))
    begun = choose_loader(graphs, BOUNDS)
    free(whole(graphs))
    assert choose_loader(graphs, BOUNDS).window is not None
    assert choose_loader(graphs, BOUNDS, begun=begun).window is None
    free(whole(graphs) - 1)
    with pytest.raises(AtomloomError, match="the run began with all graphs in memory"):
        choose_loader(graphs, BOUNDS, begun=begun)


def test_a_table_is_in_memory_already(graphs):
    table = random_table(5)
    choice = choose_loader(table, BOUNDS)
    assert choice.text.endswith("given in memory")
    begun = choose_loader(graphs, BOUNDS, mode="disk", budget=whole(graphs) // 2)
    with pytest.raises(AtomloomError, match="the run began with graphs on disk"):
        choose_loader(table, BOUNDS, begun=begun)


# --- free memory ----------------------------------------------------------------------------------


def system(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n"}


def test_free_memory_is_that_of_the_machine_where_nothing_else_limits(tmp_path):
    found = free_memory(system(tmp_path, MACHINE))
    assert (found.size, found.limit) == (3000 * 1024, "free memory of the machine")


@pytest.mark.parametrize("place", ["slurm/job_1/step_0", "slurm", ""])
def test_a_limit_of_a_control_group_or_one_above_it_counts(tmp_path, place):
    group = f"sys/fs/cgroup/{place}/"
    files = {
        "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
        group + "memory.max": "1000000\n",
        group + "memory.current": "400000\n",
        group + "memory.stat": "anon 1\ninactive_file 100000\n",
    }
    found = free_memory(system(tmp_path, MACHINE | files))
    assert (found.size, found.limit) == (700_000, "memory limit of the control group")


def test_control_groups_of_version_1_count_too(tmp_path):
    group = "sys/fs/cgroup/memory/job/"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/elsewhere\n4:memory:/job\n",
        group + "memory.limit_in_bytes": "1000000\n",
        group + "memory.usage_in_bytes": "400000\n",
        group + "memory.stat": "total_inactive_file 1000\n",
    }
    assert free_memory(system(tmp_path, MACHINE | files)).size == 601_000


def test_groups_without_a_limit_do_not_count(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/job\n0::/job\n",
        "sys/fs/cgroup/job/memory.max": "max\n",
        "sys/fs/cgroup/job/memory.current": "5\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "5\n",
    }
    assert free_memory(system(tmp_path, MACHINE | files)).size == 3000 * 1024


def test_a_limit_of_the_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda which: (10_000_000 if which == 9 else -1, -1))
    monkeypatch.setattr("resource.RLIMIT_AS", 9)
    monkeypatch.setattr("os.sysconf", lambda name: 4096)
    files = {
        "proc/meminfo": "MemAvailable: 30000 kB\n",
        "proc/self/statm": "1000 200 50 1 0 300 0\n",
    }
    found = free_memory(system(tmp_path, files))
    assert (found.size, found.limit) == (10_000_000 - 4_096_000, "memory limit of the process")


def test_this_machine_has_some_memory_free():
    assert free_memory().size > 0


def test_there_is_room_for_two_windows_and_two_batches(graphs, free):
    """One window is read while the other is trained on; the limits are exact to the byte."""
    batch = int(np.sort(graphs.weights)[-BOUNDS.structures :].sum())
    shard = int(np.bincount(graphs.shard, graphs.weights).max())
    least = 2 * (shard + batch) + graphs.reading
    choice = choose_loader(graphs, BOUNDS, mode="disk", budget=least)
    assert choice.window == shard
    with pytest.raises(AtomloomError, match="two shards and two batches"):
        choose_loader(graphs, BOUNDS, mode="disk", budget=least - 1)
    larger = choose_loader(graphs, BOUNDS, mode="disk", budget=least + 1000)
    assert larger.window == shard + 500
    free(least)
    assert choose_loader(graphs, BOUNDS, begun=choice).window == shard
    free(least - 1)
    with pytest.raises(AtomloomError, match="the run began with windows of"):
        choose_loader(graphs, BOUNDS, begun=choice)
