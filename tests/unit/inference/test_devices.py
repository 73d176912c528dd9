"""What a CPU cannot compute is refused or told, and what a block of arithmetic sets is set back."""

from __future__ import annotations

import pytest
import torch

from atomloom.config.training import Training
from atomloom.errors import AtomloomError
from atomloom.inference import devices
from atomloom.inference.devices import arithmetic, choose_device
from atomloom.training.fabric import check_precision, open_fabric


@pytest.mark.parametrize("precision", ["tf32", "fp16-mixed"])
def test_a_precision_of_gpus_is_refused_on_a_cpu(precision):
    settings = Training(precision=precision, device="cpu")
    with pytest.raises(AtomloomError, match=f"{precision} needs"):
        open_fabric(settings, print)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_slow_bf16_is_told_where_a_cpu_has_no_instructions_for_it(monkeypatch, has_instructions):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    lines: list[str] = []
    check_precision("bf16-mixed", "cpu", lines.append)
    assert [line.partition(";")[0] for line in lines] == (
        [] if has_instructions else ["warning: this CPU has no bf16 instructions"]
    )
    lines.clear()
    for precision in ("32", "64"):
        check_precision(precision, "cpu", lines.append)
    assert lines == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sums_are_in_one_order_on_a_cpu_and_everything_is_set_back(device):
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    settings = Training(threads=4, devices=2, precision="tf32" if device == "cuda" else "32")
    try:
        torch.set_num_threads(1)
        with arithmetic(settings, device):
            assert torch.are_deterministic_algorithms_enabled() == (device == "cpu")
            assert torch.get_num_threads() == 2
            matmul = torch.get_float32_matmul_precision()
            assert matmul == ("high" if device == "cuda" else before[1])
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        assert torch.get_float32_matmul_precision() == before[1]
    finally:
        torch.set_num_threads(before[0])


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A node whose torch sees no GPU; `node(driver=..., SLURM_JOB_GPUS=...)` says what else there is."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._driver.cache_clear()

    def furnish(driver=None, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if driver is not None:
            program = tmp_path / "nvidia-smi"
            program.write_text(f"#!/bin/sh\n{driver}\n")
            program.chmod(0o755)

    yield furnish
    devices._driver.cache_clear()


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("there", "named"),
    [
        ({"driver": "echo 470.57.02; echo 470.57.02"}, r"driver 470\.57\.02\)"),
        ({"SLURM_JOB_GPUS": "0,1"}, "SLURM_JOB_GPUS=0,1, driver not found"),
        ({"SLURM_STEP_GPUS": "3", "driver": "echo 535.1"}, "SLURM_STEP_GPUS=3, driver 535.1"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told_with_driver_and_wheel(node, wanted, there, named):
    node(**there)
    with pytest.raises(AtomloomError, match=named) as told:
        choose_device(wanted)
    assert torch.__version__ in str(told.value)
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    "there",
    [
        {},
        {"driver": "exit 9"},
        {"driver": "exit 0"},
        {"driver": "echo 535.1", "CUDA_VISIBLE_DEVICES": ""},
        {"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"},
    ],
)
def test_without_a_gpu_or_with_a_hidden_one_auto_is_the_cpu(node, there):
    node(**there)
    assert choose_device("auto") == "cpu"
    with pytest.raises(AtomloomError, match="sees no CUDA device"):
        choose_device("cuda")
