"""Error reporting of the tools."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_status(work: Callable[[], None]) -> int:
    """Run `work` and return 0; print an error that a user can cause in one line and return 1."""
    try:
        work()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
