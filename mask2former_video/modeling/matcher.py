"""Matching in clips: the matcher of `mask2former.modeling.matcher`, which takes masks (B, Q, T, H, W) too."""

from typing import Any

from .._sibling import core

_matcher = core("modeling.matcher")

VideoHungarianMatcher = _matcher.HungarianMatcher


def __getattr__(name: str) -> Any:
    """Return a cost function of `mask2former.modeling.matcher`."""
    return getattr(_matcher, name)
