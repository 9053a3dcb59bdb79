"""How the tools tell the user's mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_status(work: Callable[[], None]) -> int:
    """Run `work`; an error that a user can cause becomes one line and status 1, otherwise the status is 0."""
    try:
        work()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
