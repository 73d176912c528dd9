"""docs/potentials.md to the letter: every block runs, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from atomloom.cli import main
from atomloom.inference.predict import load_model
from tests.unit.potentials.models import write_potential

PAGE = Path(__file__).resolve().parents[3] / "docs" / "potentials.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```|^    (\w+ [^\n]*)$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning")
def test_the_page_can_be_followed_to_the_letter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    commands = []
    for language, block, command in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)
        elif language == "yaml":
            Path("copper.yaml").write_text(block)
        else:
            words = shlex.split(command)
            commands.append(words[:2])
            if words[0] == "snakemake":
                # The rules call these, one after the other (tests/workflow runs Snakemake itself).
                assert words[-1] == "copper.yaml"
                for stage in ("plan", "convert", "graphs", "index", "split", "train", "evaluate"):
                    assert main([stage, "--config", "copper.yaml"]) == 0, stage
                (model,) = Path("results/copper/runs").glob("*/model.safetensors")
                Path("model.safetensors").write_bytes(model.read_bytes())
                write_potential(Path("other.safetensors"), cutoff=5.0)
            else:
                assert words[0] == "atomloom"
                assert main(words[1:]) == 0, command
    assert commands == [
        ["snakemake", "--cores"],
        ["atomloom", "predict"],
        ["atomloom", "import"],
        ["atomloom", "predict"],
        ["atomloom", "evaluate"],
        ["atomloom", "export"],
    ]
    assert names["atoms"].get_volume() / 8 == pytest.approx(11.56, rel=0.05)  # EMT: 11.56 A^3
    assert len(names["results"]) == len(names["energies"]) == 3
    assert Path("runs/3.xyz").stat().st_size
    assert Path("out/sevennet.forces.parquet").exists()
    assert load_model("r2scan.safetensors").card.facts["modality"] == "R2SCAN"
    assert Path("out/table.forces.parquet").exists()
    assert Path("out/errors.forces.parquet").exists()
