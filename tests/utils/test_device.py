"""Tests of the choice of the device, of the format for autocast, and of random states."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch

from mask2former.config import load_config
from mask2former.engine.train_step import select_precision
from mask2former.utils import device
from mask2former.utils.device import amp_dtype, forked_random, model_device


@pytest.mark.parametrize(
    ("supported", "dtype"),
    [
        (lambda including_emulation=True: including_emulation, torch.float16),  # a T4: only emulated
        (lambda including_emulation=True: True, torch.bfloat16),
        (lambda including_emulation=True: False, torch.float16),
    ],
)
def test_auto_takes_native_bfloat16_only(
    monkeypatch: pytest.MonkeyPatch, supported: object, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    cuda = torch.device("cuda")
    assert amp_dtype(True, cuda) is amp_dtype("auto", cuda) is dtype
    cfg = load_config(None, ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cuda"])
    assert select_precision(cfg).dtype is dtype
    assert amp_dtype("bfloat16", cuda) is torch.bfloat16  # what is asked for by name is taken


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, None), (None, None)])
def test_auto_on_a_cpu_takes_native_bfloat16_or_float32(
    monkeypatch: pytest.MonkeyPatch, native: bool | None, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(device, "cpu_multiplies", lambda dtype: native)
    cpu = torch.device("cpu")
    assert amp_dtype(True, cpu) is amp_dtype("auto", cpu) is dtype
    assert amp_dtype("bfloat16", cpu) is torch.bfloat16  # what is asked for by name is taken
    assert amp_dtype(True, torch.device("mps")) is torch.bfloat16
    cfg = load_config(None, ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"])
    assert select_precision(cfg).dtype is None  # of a training, on every CPU


@pytest.mark.parametrize(
    ("capabilities", "cpuinfo", "bf16", "fp16"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "flags : avx512_bf16", False, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, None, True, False),  # PyTorch knows
        ({"architecture": "x86_64", "amx_bf16": True, "amx_fp16": True}, None, True, True),
        (None, "processor : 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\nbugs :\n", True, False),
        (None, "flags : fpu avx512f avx512_bf16 avx512_fp16\n", True, True),
        (None, "flags : fpu avx512f avx512_bf16x amx_tile\n", False, False),
        ({"architecture": "aarch64", "bf16": True}, "Features : fp asimd bf16 svebf16\n", None, None),
        (None, None, None, None),  # neither Linux nor PyTorch 2.11
        (None, "", None, None),
    ],
)
def test_what_a_cpu_multiplies(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capabilities: dict[str, object] | None,
    cpuinfo: str | None,
    bf16: bool | None,
    fp16: bool | None,
) -> None:
    set_capabilities(monkeypatch, capabilities)
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(device, "_CPUINFO", tmp_path / "cpuinfo")
    assert device.cpu_multiplies(torch.bfloat16) is bf16
    assert device.cpu_multiplies(torch.float16) is fp16


def set_capabilities(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object] | None) -> None:
    if capabilities is None:  # PyTorch before 2.11
        monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    else:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)


def test_other_formats() -> None:
    cpu = torch.device("cpu")
    assert amp_dtype(False, cpu) is amp_dtype("off", cpu) is None
    with pytest.raises(ValueError, match="not 'fp8'"):
        amp_dtype("fp8", cpu)


@pytest.mark.parametrize(
    ("native", "messages"),
    [(False, 1), (True, 0), (None, 0)],
)
def test_a_cpu_without_bfloat16_is_named_once(
    native: bool | None, messages: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mask2former")  # of "auto", a log that records more has a line too
    device._warn_if_slow.cache_clear()
    monkeypatch.setattr(device, "cpu_multiplies", lambda dtype: native)
    for mode in ("off", "auto", True):
        assert amp_dtype(mode, torch.device("cpu")) is (torch.bfloat16 if native and mode != "off" else None)
    assert not caplog.text
    for _ in range(2):
        assert amp_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert caplog.text.count("no instructions for bfloat16") == messages
    device._warn_if_slow.cache_clear()


def test_the_device_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(model_device("auto", ())) == str(model_device("auto", ["SEED", 3])) == "cuda"
    assert str(model_device("cuda", ["MODEL.DEVICE", "cuda:1", "SEED", 3])) == "cuda:1"
    assert str(model_device("auto", ["MODEL.DEVICE", "cuda", "MODEL.DEVICE", "cpu"])) == "cpu"
    with pytest.raises(ValueError, match=r"^MODEL\.DEVICE: device 'cuda:2'"):
        model_device("auto", ["MODEL.DEVICE", "cuda:2"])


@pytest.mark.parametrize(("name", "asked"), [("cpu", []), ("cuda:1", ["cuda:1"]), ("cuda", ["cuda"]), ("mps", [])])
def test_random_numbers_of_other_gpus_are_not_asked_for(
    name: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: states.append(str(device)))
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: states.append(str(device)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = torch.get_rng_state()
        with forked_random(torch.device(name)):
            torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert states == asked * 2
