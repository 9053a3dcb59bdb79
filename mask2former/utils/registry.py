"""Registration that tolerates a second import and other projects with the same component names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from fvcore.common.registry import Registry

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type)


def register(registry: Registry) -> Callable[[C], C]:
    """Return a class decorator that registers a class under its name, unless another project has registered it."""

    def add(cls: C) -> C:
        if cls.__name__ not in registry:
            registry.register(cls)
            return cls
        holder = registry.get(cls.__name__)
        if holder.__module__ != cls.__module__:
            logger.warning(
                "'%s' is already registered by %s; configs that name it will use that class. "
                "Import each project in a separate process.",
                cls.__name__,
                holder.__module__,
            )
        return cls

    return add
