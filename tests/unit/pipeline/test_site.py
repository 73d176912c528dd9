"""A cluster is told what `config/cluster.yaml` says, and nothing where it says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from atomloom.errors import AtomloomError
from atomloom.pipeline.site import Site, read_site

ROOT = Path(__file__).resolve().parents[3]


def test_the_file_as_it_comes_says_nothing_and_names_every_key():
    path = ROOT / "config" / "cluster.yaml"
    assert list(yaml.safe_load(path.read_text())) == list(Site.model_fields)
    assert read_site(path).resources(0) == read_site(path).resources(2) == {}


def test_the_profile_of_a_cluster_holds_what_that_of_one_machine_does():
    own, other = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        for name in ("slurm", "default")
    )
    assert other.pop("cores") == "all"
    assert own["cores"] > 1000
    assert other.items() <= own.items()


def test_jobs_with_gpus_go_elsewhere(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("{account: a-1, partition: cpu, gpu_partition: big, gpu_model: h100.80}")
    site = read_site(path)
    assert site.resources(0) == {"slurm_account": "a-1", "slurm_partition": "cpu"}
    assert site.resources(4) == {
        "slurm_account": "a-1",
        "slurm_partition": "big",
        "gpu_model": "h100.80",
    }


def test_without_a_file_nothing_is_said(tmp_path):
    assert read_site(tmp_path / "none.yaml").resources(1) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acount: x", "acount"),
        ("account: 'x; rm -rf /'", "account"),
        ("gpu_model: 'a 100'", "gpu_model"),
        ("- account", "mapping"),
    ],
)
def test_a_mistake_is_one_line_with_the_file(tmp_path, text, said):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(AtomloomError, match=said) as told:
        read_site(path)
    assert "cluster.yaml" in str(told.value)
    assert "\n" not in str(told.value)
