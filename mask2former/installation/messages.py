"""What the installation says, and the error that ends it."""

from __future__ import annotations

from .project import this_project

OWN_ENVIRONMENT = this_project().own_environment()


class InstallError(Exception):
    """Something that the user has to decide or repair. The message says what to do."""


def say(text: str) -> None:
    """Print a line at once, so that it stands before what pip prints next."""
    print(text, flush=True)
