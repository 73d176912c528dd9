"""What a CPU cannot compute is refused or told, and what a block of arithmetic sets is set back."""

from __future__ import annotations

import pytest
import torch

from atomloom.config.training import Training
from atomloom.errors import AtomloomError
from atomloom.inference.devices import arithmetic, check_precision, open_fabric


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
