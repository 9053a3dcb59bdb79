"""Weights that only a training uses: inference and other programs need none of them."""

from __future__ import annotations

# Queries of MODEL.MASK_FORMER.QUERY_GROUPS and DENOISING.
_PREFIX = "sem_seg_head.predictor.training_queries."


def is_training_only(key: str) -> bool:
    """Return whether a key of a state dict names a weight that only a training uses."""
    return key.startswith(_PREFIX)
