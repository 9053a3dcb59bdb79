"""A dictionary of values that are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """A value that is not computed yet.

    Args:
        compute: returns the value; called at most once.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self.compute = compute
        self._values: list[T] = []

    @property
    def is_read(self) -> bool:
        """Return whether the value was computed."""
        return bool(self._values)

    def value(self) -> T:
        """Return the value; all dictionaries that hold this object get the same one."""
        if not self._values:
            self._values.append(self.compute())
        return self._values[0]


class LazyDict(dict[str, Any]):
    """Dictionary that computes values given as `Later` at their first read, and holds the result from then on.

    Every way to read sees values: indexing, `get`, `items`, `values`, `pop`, `dict(x)`, `{**x}`, `copy`, comparison,
    pickling. Keys and length are known without computing. `unread` returns what is not computed yet to code that can do
    without the value; a value that was read once, and may have been changed in place, is not offered there.
    """

    def unread(self, key: str) -> Any:
        """Return the `Later` of a key that nobody has read, or None."""
        value = super().get(key)
        return value if isinstance(value, Later) and not value.is_read else None

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, Later):
            value = value.value()
            super().__setitem__(key, value)
        return value

    def __iter__(self) -> Iterator[str]:  # with an own __iter__, dict(x) and {**x} read through keys and __getitem__
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default`."""
        return self[key] if key in self else default  # noqa: SIM401 (that would be this method)

    def items(self) -> Any:
        """Return the items, all computed."""
        self.compute_all()
        return super().items()

    def values(self) -> Any:
        """Return the values, all computed."""
        self.compute_all()
        return super().values()

    def pop(self, key: str, *default: Any) -> Any:
        """Remove `key` and return its value, or `default`."""
        if key in self:
            self[key]
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the last item."""
        self.compute_all()
        return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, which is `default` from now on if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def copy(self) -> dict[str, Any]:
        """Return a plain dictionary of the values."""
        return dict(self)

    def compute_all(self) -> None:
        """Compute every value."""
        for key in self:
            self[key]

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        return self.copy() == (other.copy() if isinstance(other, LazyDict) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)
