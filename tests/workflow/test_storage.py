"""Store and results in an S3 bucket, by Snakemake's storage plugin, against a server of moto."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.workflow.project import CONFIG, Project, counts

pytest.importorskip("snakemake_storage_plugin_s3", reason="snakemake-storage-plugin-s3 is missing")
moto = pytest.importorskip("moto.server", reason="moto[server] is missing")
boto3 = pytest.importorskip("boto3")

pytestmark = pytest.mark.slow
LOCAL = {".seen.json", "sources.json"}
"""Files that stay where the workflow is started."""
NOT_KEPT = {"spec.json", "duplicates.csv", "donors.parquet", "last.safetensors"}
"""Files that no rule names, or not all of them."""


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket, the options that name it, and its content."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    options = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/lab"]
    options += ["--storage-s3-endpoint-url", f"http://{host}:{port}"]

    def content() -> dict[str, bytes]:
        found = client.list_objects_v2(Bucket="bucket").get("Contents", [])
        return {
            each["Key"].removeprefix("lab/"): client.get_object(Bucket="bucket", Key=each["Key"])[
                "Body"
            ].read()
            for each in found
        }

    yield client, options, content
    server.stop()


def test_a_workflow_on_s3_keeps_there_what_it_would_keep_here(bucket, tmp_path):
    client, options, content = bucket
    config = CONFIG | {"training": CONFIG["training"] | {"epochs": 1}}
    stored, here = (Project.create(tmp_path / name, structures=12) for name in ("s3", "here"))
    for project in (stored, here):
        project.write_config(config)
    stored.snakemake(*options)
    here.command("run", "--cores", "2")
    kept = {
        str(path.relative_to(here.folder)): path.read_bytes()
        for folder in ("store/structures", "store/graphs", "results/tiny")
        for path in (here.folder / folder).rglob("*.*")
        if path.is_file() and not {"logs", "timings", "state", "configs", "reports"} & {*path.parts}
    }
    found = content()
    names = {name for name in found if "/logs/" not in name}
    unnamed = {Path(name).name for name in kept.keys() - names}
    assert unnamed == LOCAL | NOT_KEPT
    assert names <= kept.keys()
    differing = {Path(name).name for name in names if found[name] != kept[name]}
    # Records are all in the spool, since no other job finds raw files; times differ everywhere.
    assert differing == {
        "run.json",
        "history.csv",
        "report.html",
        "records.spool",
        "members.parquet",
    }
    (card,) = (json.loads(found[name]) for name in names if name.endswith("run.json"))
    assert card["run_key"] in found["results/tiny/report.html"].decode()
    assert not (stored.folder / "store").exists()

    assert counts(stored.snakemake("-n", *options)) == {}
    (model,) = (name for name in names if name.endswith("model.safetensors"))
    client.delete_object(Bucket="bucket", Key=f"lab/{model}")
    assert counts(stored.snakemake("-n", *options)) == {"train": 1, "evaluate": 1, "report": 1}
    stored.write_config(config | {"graph": {"cutoff": 7, "max_neighbors": 6}})
    jobs = counts(stored.snakemake("-n", *options))
    assert "convert" not in jobs
    assert jobs["graphs"] == len([name for name in names if name.startswith("store/graphs")])


def test_a_place_outside_the_prefix_is_refused(bucket, tmp_path):
    _, options, _ = bucket
    project = Project.create(tmp_path / "s3", structures=4)
    project.write_config({**CONFIG, "paths": {"store": str(tmp_path / "elsewhere")}})
    output = project.snakemake("-n", *options, check=False)
    assert "below the prefix of the storage; use a relative path" in output
    assert "Traceback" not in output
