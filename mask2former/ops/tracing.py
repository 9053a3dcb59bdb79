"""What PyTorch does with the code that runs."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Return whether `torch.export` traces this code; False with PyTorch 2.6, which cannot tell.

    `torch.compiler.is_exporting()` says so too, but `torch.compile` takes it for true wherever it meets it.
    """
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))
