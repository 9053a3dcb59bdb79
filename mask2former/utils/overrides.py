"""Whether a subclass, or an assignment to an object, replaced methods: then the plain way of calling them is used."""

from __future__ import annotations


def unchanged(instance: object, cls: type, *methods: str) -> bool:
    """Return whether `instance` is a `cls` with the methods of `cls`, none replaced in a subclass or on the object."""
    return isinstance(instance, cls) and all(
        getattr(type(instance), name) is getattr(cls, name) and name not in vars(instance) for name in methods
    )
