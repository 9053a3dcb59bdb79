"""`python -m mask2former.ops`: which back ends of deformable attention are there, and why one is not."""

from __future__ import annotations

import sys

import torch

from .extension import EXTENSIONS, loaded


def main() -> int:
    """Print one line per back end; returns 0."""
    lines = [f"torch {torch.__version__}, Python {sys.version.split()[0]}", "pytorch  everywhere  yes"]
    for kind, found in EXTENSIONS.items():
        state = f"yes, {found.path}" if loaded(kind) else f"no: {found.problem}"
        if loaded(kind) and kind == "cuda" and not torch.cuda.is_available():
            state += " (loaded, but torch sees no CUDA device)"
        lines.append(f"compiled {kind:10s} {state}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
