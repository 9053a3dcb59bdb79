"""What PyTorch does with the code that runs."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Return whether `torch.export` traces this code; False with PyTorch 2.6, which cannot tell."""
    exporting = getattr(torch.compiler, "is_exporting", None)
    return exporting is not None and exporting()
