"""What `mask2former --version` shows: this package, PyTorch, detectron2, the op and the devices."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = {"detectron2": ("detectron2", "sal_detectron2")}
_SETUP = "not installed: run 'mask2former setup'"


def version_report() -> str:
    """Return one line for each part; what is missing is named with its remedy."""
    package = __name__.rpartition(".cli")[0]
    lines = [f"mask2former {sys.modules[package].__version__}", f"Python {platform.python_version()}"]
    for name in ("torch", "torchvision", "detectron2"):
        lines.append(f"{name} {_installed(name) or _SETUP}")
    if _installed("torch"):
        lines += _devices_and_op()
    return "\n".join(lines)


def _installed(name: str) -> str:
    """Return the version of a package that can be imported, "" if there is none."""
    if importlib.util.find_spec(name) is None:
        return ""
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        with contextlib.suppress(PackageNotFoundError):
            return version(distribution)
    return "of unknown version"


def _devices_and_op() -> list[str]:
    try:
        import torch

        from ..ops import extension
    except (ImportError, OSError, RuntimeError) as error:
        return [f"torch cannot be imported: {error}"]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [f"GPU: {', '.join(gpus) or 'none that PyTorch sees'}"]
    for device, found in extension.EXTENSIONS.items():
        state = f"compiled, {found.path}" if extension.loaded(device) else f"PyTorch code ({found.problem})"
        lines.append(f"deformable attention on {device}: {state}")
    return lines
