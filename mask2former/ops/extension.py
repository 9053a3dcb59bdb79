"""Loading of the compiled kernels, once, with the reason where one is missing."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from . import registration

logger = logging.getLogger(__name__)

# First version with the stable ABI that the extension is built for.
MINIMUM_TORCH = (2, 10)
_DIRECTORY = Path(__file__).parent


@dataclass(frozen=True)
class Extension:
    """A compiled library for one device type.

    Attributes:
        device_type: "cpu" or "cuda".
        path: file of the library, or None if it is not built.
        problem: reason why it cannot be used, "" if it can.
    """

    device_type: str
    path: Path | None
    problem: str


# Device type -> library; filled once, when `mask2former.ops` is imported. A plain dict, which torch.compile can trace.
EXTENSIONS: dict[str, Extension] = {}


def load_all() -> None:
    """Load the libraries that are built."""
    for device_type in ("cpu", "cuda"):
        if device_type not in EXTENSIONS:
            EXTENSIONS[device_type] = _load(device_type)


def loaded(device_type: str) -> bool:
    """Return whether compiled kernels for `device_type` are loaded in this process."""
    return device_type in EXTENSIONS and not EXTENSIONS[device_type].problem


def _load(device_type: str) -> Extension:
    path = next(
        iter(sorted(_DIRECTORY.glob(f"_{device_type}*.so")) + sorted(_DIRECTORY.glob(f"_{device_type}*.pyd"))), None
    )
    if path is None:
        return Extension(device_type, None, "not built; see INSTALL.md, 'The compiled op'")
    if _torch_version() < MINIMUM_TORCH:
        required = ".".join(map(str, MINIMUM_TORCH))
        return Extension(device_type, path, f"needs torch {required} or newer, this is {torch.__version__}")
    if device_type == "cuda" and torch.version.cuda is None:
        return Extension(device_type, path, f"this torch ({torch.__version__}) has no CUDA")
    if registration.FROM_OTHER_COPY and _has_kernel(device_type):
        return Extension(device_type, path, "")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        # The import does not fail, because the PyTorch code is used instead; but a built extension should load.
        reason = error.__cause__ or error  # newer versions of torch give the reason in the cause only
        logger.warning("%s does not load (%s); deformable attention on %s runs in PyTorch", path, reason, device_type)
        return Extension(device_type, path, f"does not load: {reason}")
    return Extension(device_type, path, "")


def _has_kernel(device_type: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("mask2former::ms_deform_attn", device_type.upper())


def _torch_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(match[1]), int(match[2])) if match else (0, 0)
