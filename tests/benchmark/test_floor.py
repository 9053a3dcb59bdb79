"""The physical floor of a step."""

from __future__ import annotations

import pytest
import torch

from mask2former.benchmark import floor
from mask2former.benchmark.floor import Cost, Peaks, cost
from mask2former.ops import ms_deform_attn


def test_cost_of_a_product_and_a_convolution() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    image, weight = torch.ones(1, 2, 8, 8), torch.ones(4, 2, 3, 3)

    def work() -> None:
        (a @ b).relu()
        torch.nn.functional.conv2d(image, weight, padding=1)

    found = cost(work)
    assert found.flops == 2 * 3 * 5 * 7 + 2 * 64 * 4 * 2 * 9
    assert found.bytes == 4 * (15 + 35 + 21) + 4 * (128 + 72 + 256)


def test_gradients_are_counted() -> None:
    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert cost(lambda: (a @ b).sum().backward()).flops == 3 * 2 * 3 * 5 * 7


def test_deformable_attention_moves_bytes() -> None:
    value, locations, weights = torch.ones(1, 4, 1, 8), torch.ones(1, 2, 1, 1, 4, 2), torch.ones(1, 2, 1, 1, 4)
    found = cost(lambda: ms_deform_attn(value, [(2, 2)], locations, weights))
    assert found.flops == 0
    assert found.bytes == 4 * (32 + 16 + 8 + 16)


def test_the_floor_is_the_slower_of_both() -> None:
    assert Cost(1000, 10).seconds(Peaks(100.0, 10.0, "table")) == 10
    assert Cost(1000, 1000).seconds(Peaks(100.0, 10.0, "table")) == 100


def test_peaks_of_known_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    device = torch.device("cuda")
    assert Peaks.of(device, bf16=True) == Peaks(790e12, 4.2e12, "table")
    assert Peaks.of(device, bf16=False) == Peaks(395e12, 4.2e12, "table")


def test_peaks_of_other_devices_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "_fastest", lambda work, device: 0.5)
    found = Peaks.of(torch.device("cpu"), bf16=False)
    assert found == Peaks(4 * 1024**3, 16 * 2**25, "measured")


def test_a_product_of_bf16_numbers_in_fp32() -> None:
    if "dtype" not in torch.ops.aten.bmm.overloads():
        pytest.skip("this PyTorch has none")
    a, b = (
        torch.empty(2, 3, 5, dtype=torch.bfloat16, device="meta"),
        torch.empty(2, 5, 7, dtype=torch.bfloat16, device="meta"),
    )
    found = cost(lambda: torch.bmm(a, b, torch.float32))
    assert found.flops == 2 * 2 * 3 * 5 * 7
    assert found.bytes == 2 * 2 * (3 * 5 + 5 * 7) + 4 * 2 * 3 * 7
