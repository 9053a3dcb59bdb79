"""Whether methods were replaced in a subclass, on an object or on a class: then the plain form of a call is used."""

from __future__ import annotations

from types import FunctionType
from typing import Any, TypeVar

from torch import nn

C = TypeVar("C", bound=type)

# The methods that classes were defined with: programs assign other ones to the class itself, too.
_DEFINED: dict[type, dict[str, Any]] = {}


def extensible(cls: C) -> C:
    """Decorate a class whose methods `unchanged` is asked about."""
    _DEFINED[cls] = {name: value for name in dir(cls) if isinstance(value := getattr(cls, name), FunctionType)}
    return cls


extensible(nn.Linear)


def unchanged(instance: object, cls: type, *methods: str) -> bool:
    """Return whether `instance` is a `cls` and has the methods that `cls`, which is `extensible`, was defined with.

    They may be replaced in a subclass, on the object, or by an assignment to the class.
    """
    return isinstance(instance, cls) and all(
        getattr(type(instance), name) is _DEFINED[cls][name] and name not in vars(instance) for name in methods
    )


def as_written(module: nn.Module, cls: type, *methods: str) -> bool:
    """Return whether a module is `unchanged`, and no forward hook is registered on it."""
    return not (module._forward_hooks or module._forward_pre_hooks) and unchanged(module, cls, *methods)
