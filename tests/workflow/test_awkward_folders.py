"""A project may lie, and put its results, in folders whose names mean something to a shell or to Snakemake."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.workflow.project import CONFIG, ROOT, Project

SHELL = "a b $HOME `id` 'q' \"d\"  & ; # *%é"
BRACES = "\n{chunk} {{run}} }{"


def test_a_project_in_such_a_folder_runs(tmp_path):
    project = Project.create(tmp_path / f"{SHELL}{BRACES}", structures=8)
    outside = tmp_path / SHELL
    paths = {"results": str(outside / "results"), "store": str(outside / "store")}
    source = str(outside / "data")
    shutil.move(project.folder / "data" / "cif", source)
    project.write_config(
        {**CONFIG, "dataset": {**CONFIG["dataset"], "source": source}, "paths": paths}
    )
    project.snakemake("prepare")
    assert len(list(outside.glob("store/graphs/*/*.zarr.zip"))) == 1
    assert [path.name for path in (outside / "results/tiny/logs").iterdir()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [project.folder.name, outside.name]
    ), "nothing went astray"


@pytest.mark.parametrize("key", ["results", "store"])
def test_braces_in_the_name_of_an_output_folder_are_one_line(tmp_path, key):
    project = Project.create(tmp_path / "project", structures=4)
    project.write_config({**CONFIG, "paths": {key: "my {chunk}"}})
    output = project.snakemake("-n", check=False)
    assert f"paths.{key}: my {{chunk}}: Snakemake takes text in braces" in output.replace(
        "/tiny", ""
    )
    assert "Traceback" not in output


def test_every_path_in_a_shell_command_is_quoted():
    commands = [
        line.strip()
        for file in sorted((ROOT / "workflow" / "rules").glob("*.smk"))
        for line in file.read_text().splitlines()
        if line.strip().startswith('"') and "atomloom " in line
    ]
    assert len(commands) == 13
    for command in commands:
        bare = re.findall(r"\{([^}]*)\}", command)
        assert {name for name in bare if not name.endswith(":q")} <= {
            "threads",
            "wildcards.chunk",
            "wildcards.round",
            "wildcards.slot",
        }, command
