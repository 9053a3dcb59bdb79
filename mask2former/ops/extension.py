"""Finds and loads the compiled kernels, once, and remembers why one is missing."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# The stable ABI that the extension is built for exists since this version.
MINIMUM_TORCH = (2, 10)
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Extension:
    """A compiled library for one device type.

    Attributes:
        device_type: "cpu" or "cuda".
        path: its file, or None where it was not built.
        problem: why it does not run, "" where it does.
    """

    device_type: str
    path: Path | None
    problem: str


# Device type -> its library; filled once, when `mask2former.ops` is imported. A plain dict, so that
# torch.compile can look into it.
EXTENSIONS: dict[str, Extension] = {}


def load_all() -> None:
    """Load the libraries that are there."""
    for kind in ("cpu", "cuda"):
        if kind not in EXTENSIONS:
            EXTENSIONS[kind] = _load(kind)


def loaded(device_type: str) -> bool:
    """Whether compiled kernels for `device_type` run in this process."""
    return device_type in EXTENSIONS and not EXTENSIONS[device_type].problem


def _load(device_type: str) -> Extension:
    path = next(iter(sorted(_FOLDER.glob(f"_{device_type}*.so")) + sorted(_FOLDER.glob(f"_{device_type}*.pyd"))), None)
    if path is None:
        return Extension(device_type, None, "not built; see INSTALL.md, 'The compiled op'")
    if _torch_version() < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        return Extension(device_type, path, f"needs torch {needed} or newer, this is {torch.__version__}")
    if device_type == "cuda" and torch.version.cuda is None:
        return Extension(device_type, path, f"this torch ({torch.__version__}) has no CUDA")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        # Not an error of the import: the PyTorch code serves. But whoever built an extension wants to know.
        why = error.__cause__ or error  # newer versions of torch name the file only, and the reason there
        logger.warning("%s does not load (%s); deformable attention on %s runs in PyTorch", path, why, device_type)
        return Extension(device_type, path, f"does not load: {why}")
    return Extension(device_type, path, "")


def _torch_version() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)
