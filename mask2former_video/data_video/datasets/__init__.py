"""The datasets of videos; importing it registers YouTube-VIS."""

from . import builtin, ytvis

__all__ = ["builtin", "ytvis"]
