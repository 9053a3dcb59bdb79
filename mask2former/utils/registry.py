"""Registration of defaults: any other registration of the same name wins, made before or after."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import fvcore.common.registry
from fvcore.common.registry import Registry

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type)
T = TypeVar("T")

_ATTRIBUTE = "_mask2former_defaults"


class Defaults:
    """The names that this package holds in a registry.

    Args:
        entries: the names and objects of the registry itself.
    """

    def __init__(self, entries: MutableMapping[str, Any]) -> None:
        self.entries = entries
        self.ours: dict[str, Any] = {}
        self.waiting: dict[str, Waiting] = {}

    def holds(self, name: str) -> bool:
        """Return whether the entry of a name is the default."""
        return name in self.ours and self.entries.get(name) is self.ours[name]

    def set(self, name: str, value: Any) -> None:
        """Make `value` the entry and the default of a name."""
        self.entries[name] = self.ours[name] = value

    def give_way(self, name: str) -> bool:
        """Remove a default for another registration of its name; return whether there was one."""
        if not self.holds(name):
            return False
        logger.info("'%s' is registered by other code, which replaces the default of this package", name)
        del self.entries[name], self.ours[name]
        return True


def defaults_of(
    registry: Any, entries: str, method: str | None = None, replaced: Callable[..., None] | None = None
) -> Defaults:
    """Return the defaults in a registry; the first call lets later registrations replace them.

    They are kept at the registry, so that copies of this package (one of them inside another project) share them.

    Args:
        registry: detectron2's or fvcore's.
        entries: attribute with the dictionary of its entries.
        method: name of its method that registers and refuses names that exist; None: it refuses nothing.
        replaced: called instead of that method, with the registry and the method's arguments.
    """
    if _ATTRIBUTE not in vars(registry):
        setattr(registry, _ATTRIBUTE, Defaults(getattr(registry, entries)))
        if method is not None and replaced is not None:
            setattr(registry, method, functools.partial(replaced, registry))
    found: Defaults = vars(registry)[_ATTRIBUTE]
    return found


def _do_register(registry: Registry, name: str, obj: Any) -> None:
    _components(registry).give_way(name)
    type(registry)._do_register(registry, name, obj)


def _get(registry: Registry, name: str) -> Any:
    """Return an entry; a name that waits, and that nobody else has registered, is needed now."""
    defaults = _components(registry)
    if name not in defaults.entries and name in defaults.waiting:
        defaults.waiting[name].activate()
    return type(registry).get(registry, name)


def _components(registry: Registry) -> Defaults:
    if _ATTRIBUTE not in vars(registry):
        registry.get = functools.partial(_get, registry)  # type: ignore[method-assign]
    return defaults_of(registry, "_obj_map", "_do_register", _do_register)


def shared(name: str, make: Callable[[], T]) -> T:
    """Return the object of this name that all copies of this package in the process share; `make` makes the first.

    A component that a project registers in one copy is then known to the other. The components of a model are those of
    the copy that loaded the last config, see `claim`; before that, of the first that was imported.
    """
    shelf: dict[str, Any] = vars(fvcore.common.registry).setdefault(_ATTRIBUTE, {})
    if name not in shelf:
        shelf[name] = make()
    found: T = shelf[name]
    return found


class Waiting:
    """Registrations that wait until something needs their names.

    Attributes:
        active: whether they were made; later ones are then made at once.
    """

    def __init__(self) -> None:
        self.active = False
        self._calls: list[Callable[[], None]] = []

    def add(self, call: Callable[[], None]) -> None:
        """Add a registration, which can be repeated."""
        self._calls.append(call)
        if self.active:
            call()

    def activate(self) -> None:
        """Make all registrations that have not been made."""
        if not self.active:
            self.active = True
            self.repeat()

    def repeat(self) -> None:
        """Make all registrations again, in their order, if they were made once."""
        for call in self._calls if self.active else ():
            call()


def register(registry: Registry, when: Waiting | None = None) -> Callable[[C], C]:
    """Return a class decorator that registers a class under its name, as a default.

    Args:
        registry: other registrations of the name in it win: an earlier one stays, a later one replaces the class.
        when: the class is registered together with these.
    """

    def add(cls: C) -> C:
        _OWN.append((registry, cls))
        call = functools.partial(_add, registry, cls)
        if when is None:
            call()
        else:
            when.add(call)
            _components(registry).waiting[cls.__name__] = when
        return cls

    return add


_OWN: list[tuple[Registry, type]] = []  # what this copy of the package registers


def claim() -> None:
    """Make the components of this copy of the package the defaults, where another copy has set its own."""
    for registry, cls in _OWN:
        defaults = _components(registry)
        if defaults.holds(cls.__name__):
            defaults.set(cls.__name__, cls)


def _add(registry: Registry, cls: type) -> None:
    defaults, name = _components(registry), cls.__name__
    holder = defaults.entries.get(name)
    # A second copy of the package leaves the first; a module that is imported again replaces its own class.
    if holder is None or (defaults.holds(name) and holder.__module__ == cls.__module__):
        defaults.set(name, cls)
    elif holder is not cls:
        logger.info("'%s' of %s stays registered; configs that name it use that class", name, holder.__module__)
