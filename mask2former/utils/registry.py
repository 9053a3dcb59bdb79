"""Registration that survives a second import and other projects with the same component names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from fvcore.common.registry import Registry

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type)


def register(registry: Registry) -> Callable[[C], C]:
    """Class decorator: add the class under its own name; a name that another project holds stays with that project."""

    def add(cls: C) -> C:
        if cls.__name__ not in registry:
            registry.register(cls)
            return cls
        holder = registry.get(cls.__name__)
        if holder.__module__ != cls.__module__:
            logger.warning(
                "'%s' is already registered by %s; configs that name it will use that one. "
                "Use a process of its own for each project.",
                cls.__name__,
                holder.__module__,
            )
        return cls

    return add
