"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return " Did you mean 'x'?" (or " ... 'x', 'y' or 'z'?") with the most similar names, "" if none is similar.

    Args:
        name: the unknown name.
        known: the known names.
        count: largest number of suggestions, best first.
    """
    near = [f"'{match}'" for match in difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)]
    if not near:
        return ""
    return f" Did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"
