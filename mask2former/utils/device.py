"""Selection of the device and the precision of a model, and random numbers that leave those of others alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
AMP_MODES = ("off", "auto", *AMP_DTYPES)  # of `amp_dtype`
# Instructions of x86 processors that multiply numbers of a format, as Linux and `torch.cpu.get_capabilities` name them.
_CPU_UNITS = {torch.bfloat16: ("amx_bf16", "avx512_bf16"), torch.float16: ("amx_fp16", "avx512_fp16")}
_CPUINFO = Path("/proc/cpuinfo")


def select_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device; "auto": CUDA, else a working Apple GPU (mps), else CPU. Raise ValueError if it is missing."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if _mps_works() else torch.device("cpu")
    try:
        selected = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use auto, cpu, cuda, cuda:1 or mps") from error
    if selected.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (selected.index or 0) >= count:
            raise ValueError(f"device {device!r}: PyTorch finds {count} CUDA GPUs. Use device='cpu' or 'auto'.")
    if selected.type == "mps" and not _mps_works():
        raise ValueError("device 'mps': PyTorch finds no working Apple GPU. Use device='cpu' or 'auto'.")
    return selected


def model_device(device: str | torch.device, overrides: Sequence[Any]) -> torch.device:
    """Return the device for a model that is loaded from files: MODEL.DEVICE of `overrides`, else `device`.

    MODEL.DEVICE of its config file does not count: it is the device of the machine that wrote the file.

    Args:
        device: as `select_device` takes it.
        overrides: config keys and values, KEY VALUE KEY VALUE ...; the last one counts.

    Raises:
        ValueError: the device is unknown or missing; the message names MODEL.DEVICE where that asks for it.
    """
    given = dict(zip(overrides[::2], overrides[1::2])).get("MODEL.DEVICE")
    if given is None:
        return select_device(device)
    try:
        return select_device(str(given))
    except ValueError as error:
        raise ValueError(f"MODEL.DEVICE: {error}") from error


def forked_random(device: torch.device) -> AbstractContextManager[None]:
    """Return a context after which the random states of the CPU and of a CUDA device are as before.

    Other GPUs are left out, and keep seeds that are set inside: reading their states would initialize all of them, and
    PyTorch warns of that.
    """
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _mps_works() -> bool:
    """Return whether the Apple GPU supports bilinear grid sampling, which old systems lack."""
    if not torch.backends.mps.is_available():
        return False
    try:
        grid = torch.zeros(1, 2, 2, 2, device="mps")
        image = torch.ones(1, 1, 4, 4, device="mps")
        return bool(torch.isfinite(nn.functional.grid_sample(image, grid, align_corners=False)).all())
    except (RuntimeError, NotImplementedError) as error:
        logger.info("the Apple GPU is not used: %s", error)
        return False


def amp_dtype(amp: bool | str, device: torch.device) -> torch.dtype | None:
    """Return the dtype for autocast, None for fp32.

    Args:
        amp: False or "off": None. True or "auto": bfloat16, but float16 on CUDA GPUs and None on CPUs that do not
            compute bfloat16 natively. The name of a dtype: that dtype, on every device.
        device: where the model runs.

    Warns, once for each dtype, if it is asked for by name on a CPU that has no instructions for it.

    Raises:
        ValueError: unknown `amp`.
    """
    dtype = _amp_dtype(amp, device)
    if dtype is not None and device.type == "cpu":
        _warn_if_slow(dtype)
    return dtype


def _amp_dtype(amp: bool | str, device: torch.device) -> torch.dtype | None:
    if amp is False or amp == "off":
        return None
    if amp is True or amp == "auto":
        # Emulated bfloat16 (on GPUs before Ampere, on CPUs without units for it) is slower than float32.
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        if device.type == "cpu" and not cpu_multiplies(torch.bfloat16):
            logger.info('"auto" precision is fp32 on the CPU, which is not known to have bf16 instructions')
            return None
        return torch.bfloat16
    if amp not in AMP_DTYPES:
        raise ValueError(f"amp must be False, True, {', '.join(map(repr, AMP_MODES))}, not {amp!r}")
    return AMP_DTYPES[amp]


@cache
def _warn_if_slow(dtype: torch.dtype) -> None:
    """Warn if this CPU is known to have no instructions for a dtype."""
    if cpu_multiplies(dtype) is False:
        logger.warning(
            "This CPU has no instructions for %s, which can make it many times slower than fp32. For fp32: --amp off, "
            "in Python amp='off'; in configs TEST.AMP off, and for training SOLVER.AMP.DTYPE auto.",
            str(dtype).removeprefix("torch."),
        )


def cpu_multiplies(dtype: torch.dtype) -> bool | None:
    """Return whether the processor has instructions for products of bfloat16 or float16 numbers.

    None where that is not known: on processors other than x86, whose kernels depend on the build of PyTorch, and with
    PyTorch before 2.11 on systems other than Linux.
    """
    names = _cpu_instructions()
    return None if names is None else not names.isdisjoint(_CPU_UNITS[dtype])


def _cpu_instructions() -> set[str] | None:
    """Return the names of instructions that PyTorch, or else Linux, lists of an x86 processor; None without a list."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") == "x86_64":
        return {name for name, has in capabilities.items() if has is True}
    try:
        lines = _CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    # Of the first processor; those of ARM are called "Features".
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
