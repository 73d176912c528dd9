"""The workflow on a cluster: the same files as on one machine, and nothing twice."""

from __future__ import annotations

from pathlib import Path


def products(folder: Path) -> dict[str, bytes]:
    """Files that do not depend on when and where they were made."""
    kinds = ("*.zarr.zip", "model.safetensors", "predictions.parquet", "split.json", "index.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in kinds
        for path in sorted(folder.rglob(kind))
    }


def test_a_cluster_makes_what_one_machine_makes_and_neither_makes_it_again(project, tmp_path):
    local = type(project)(project.copy(tmp_path / "local").folder, project.cluster)
    project.on_cluster()
    local.snakemake()
    made = products(project.folder)
    assert any("model.safetensors" in name for name in made)
    assert made == products(local.folder)
    assert project.jobs() == {}
    assert "Nothing to be done" in local.on_cluster()
