"""Losses of clips: the criterion of `mask2former.modeling.criterion`, which takes masks (B, Q, T, H, W) too."""

from typing import Any

from .._sibling import core

_criterion = core("modeling.criterion")

VideoSetCriterion = _criterion.SetCriterion


def __getattr__(name: str) -> Any:
    """Return a loss function of `mask2former.modeling.criterion`."""
    return getattr(_criterion, name)
