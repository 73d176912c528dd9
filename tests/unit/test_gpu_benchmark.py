"""The GPU benchmark at small size on the CPU: no part may be found broken on the day there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_gives_results_at_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ATOMLOOM_DATA", raising=False)  # parts that need data sets say so
    parts = [name for name in gpu.PARTS if name != "right"]  # by itself below
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
    assert [*found["memory"]] == ["icomformer", "painn"]
    for row in found["memory"].values():
        assert 0 < row["mib"]["4"] < row["mib"]["16"]
        assert 0.2 < row["foretold"] < 5  # the structures are not all of one size
    assert found["loader"]["delivered_per_second"]["64"] > 0
    assert found["batched"]["ms_per_molecule"]["8"] > 0
    assert found["tio2"]["metrics"]["forces"]["test"]["mae"] > 0
    assert found["phonons"] == "no matbench_phonons"
    assert found["recorded"] == "no GPU"


@pytest.mark.slow
def test_the_comparison_of_devices_finds_a_device_equal_to_itself(tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    arguments = ["--device", "cpu", "--parts", "right", "--models", "icomformer,chebyshev"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--out", str(out)])
    gpu.main()
    for row in json.loads(out.read_text())["right"].values():
        assert max(row["float64"].values()) < 1e-9
        assert 0 < max(row["float32"].values()) < 1e-2


def test_it_starts_from_a_bare_checkout_without_anything_installed(tmp_path):
    command = [sys.executable, "-S", "-c", "import runpy, sys; sys.argv = ['gpu.py', '--help']"]
    command[-1] += f"; runpy.run_path({str(ROOT / 'benchmarks' / 'gpu.py')!r})"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr  # nothing is imported but by a call
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--help"]
    assert "--parts" in subprocess.run(script, cwd=tmp_path, capture_output=True, text=True).stdout


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
