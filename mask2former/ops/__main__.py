"""`python -m mask2former.ops`: list the available back ends of deformable attention, and why one is missing."""

from __future__ import annotations

import sys

import torch

from .extension import EXTENSIONS, loaded


def main() -> int:
    """Print one line per back end; return the exit code 0."""
    lines = [f"torch {torch.__version__}, Python {sys.version.split()[0]}", "pytorch  everywhere  yes"]
    for device_type, extension in EXTENSIONS.items():
        state = f"yes, {extension.path}" if loaded(device_type) else f"no: {extension.problem}"
        if loaded(device_type) and device_type == "cuda" and not torch.cuda.is_available():
            state += " (loaded, but torch sees no CUDA device)"
        lines.append(f"compiled {device_type:10s} {state}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
