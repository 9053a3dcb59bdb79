"""What figures belong to: device, threads and versions."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..ops import backend

_LIBRARIES = ("detectron2", "sal-detectron2", "transformers", "deformops", "triton", "numpy", "pycocotools")
_PACKAGE = __name__.rpartition(".benchmark.")[0]


def hardware(device: torch.device) -> dict[str, Any]:
    """Return name and memory of the device, and the processor, its cores and the threads that PyTorch uses."""
    found: dict[str, Any] = {"device": _cpu_name(), "processor": _cpu_name()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = round(properties.total_memory / 2**30, 1)
        found |= {"device": properties.name, "memory_gib": memory, "multiprocessors": properties.multi_processor_count}
    elif device.type != "cpu":
        found["device"] = device.type
    return found | {"cores": os.cpu_count(), "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the libraries that are installed."""
    found = {
        "mask2former": sys.modules[_PACKAGE].__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "deformable attention": backend("cuda" if torch.cuda.is_available() else "cpu"),
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def describe(device: torch.device) -> str:
    """Return one line with device, threads and the most important versions."""
    name = hardware(device)["device"]
    if device.type != "cuda":
        name = f"{name}, {torch.get_num_threads()} threads"
    package = f"mask2former {sys.modules[_PACKAGE].__version__}"
    libraries = f"torch {torch.__version__}, Python {platform.python_version()}, {package}"
    return f"{name}; {libraries}; deformable attention: {backend(device.type)}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())
