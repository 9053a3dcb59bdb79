"""Which keywords a function or a constructor of another project takes."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)


def accepted(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a callable takes by name; all of them if it takes any (`**kwargs`).

    For a module the signature of its `forward` counts, because its call hands everything on.
    """
    called = getattr(function, "forward", function) if not inspect.isroutine(function) else function
    # PyTorch's compiler looks into the function behind a cache, and warns of it.
    keywords_of = _keywords.__wrapped__ if torch.compiler.is_compiling() else _keywords
    named = keywords_of(getattr(called, "__func__", called))
    return dict(keywords) if named is None else {name: value for name, value in keywords.items() if name in named}


@functools.lru_cache(maxsize=256)
def _keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names that a function takes as keywords; None for all."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def fitting(cls: type, arguments: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the optional arguments that the constructor of a subclass with a narrower signature does not take.

    For `from_config`: subclasses in other projects list the keywords that the reference implementation has, and ours
    has a few more.

    Args:
        cls: the class that is built.
        arguments: of its constructor, from the config.
        optional: name -> default of the arguments that may be left out; a warning names those with another value.
    """
    taken = accepted(cls.__init__, optional)  # type: ignore[misc]
    dropped = {name: arguments[name] for name in optional if name in arguments and name not in taken}
    for name, value in dropped.items():
        if value != optional[name]:
            logger.warning("%s takes no %s: its value %r has no effect", cls.__name__, name, value)
    return {name: value for name, value in arguments.items() if name not in dropped}
