"""The GPU benchmark at small size on the CPU: no part may be found broken on the day there is a GPU."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.speed import gpu


@pytest.mark.slow
def test_every_part_gives_results_at_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ATOMLOOM_DATA", raising=False)  # parts that need data sets say so
    parts = [name for name in gpu.PARTS if name != "right"]  # compiles passes for a minute
    out = tmp_path / "found.json"
    arguments = ["--device", "cpu", "--small", "--parts", ",".join(parts), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--models", "icomformer,painn"])
    gpu.main()
    found = json.loads(out.read_text())
    assert "Traceback" not in capsys.readouterr().out
    assert set(parts) < set(found)
    assert set(found["waiting"].values()) == {"does not wait"}
    assert [row["model"] for row in found["steps"]] == ["icomformer", "painn"]
    assert all(row["ms"] > 0 and "error" not in row for row in found["steps"])
    assert found["loader"]["delivered_per_second"]["64"] > 0
    assert found["batched"]["ms_per_molecule"]["8"] > 0
    assert found["tio2"]["metrics"]["forces"]["test"]["mae"] > 0
    assert found["phonons"] == "no matbench_phonons"
    assert found["recorded"] == "no GPU"


def test_a_part_that_fails_loses_no_other(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "first", lambda options: 1 / 0)
    monkeypatch.setitem(gpu.PARTS, "second", lambda options: {"found": 1})
    out = tmp_path / "found.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--parts", "first,second", "--out", str(out)]
    )
    gpu.main()
    found = json.loads(out.read_text())
    assert "ZeroDivisionError" in found["first"]
    assert found["second"] == {"found": 1}
