"""A comparison of recipes as a file describes it: named variants on one dataset, with the same budget and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.config_files import find_config
from mask2former.utils.hints import did_you_mean
from mask2former.utils.yaml_files import read_yaml

_MOST_RUNS = 1000
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A config file with changes.

    Attributes:
        name: small letters, digits and underscores: a directory has this name.
        config: path, or name below configs/.
        overrides: {config key: value as on the command line}, those of the matrix included.
    """

    name: str
    config: str
    overrides: Mapping[str, str]

    def pairs(self) -> list[str]:
        """Return KEY VALUE KEY VALUE ..."""
        return [word for pair in self.overrides.items() for word in pair]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the final metric of a variant must reach, where the comparison is a test.

    Attributes:
        variant: its name.
        at_least: the bound itself; None: it comes from the stored report.
        margin: by how much the metric may be below that of the stored report.
    """

    variant: str
    at_least: float | None = None
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A comparison of recipes.

    Attributes:
        path: the file.
        title: of the table.
        metric: that is compared, as metrics.json names it: "panoptic_seg/PQ".
        device: "cuda" or "cpu".
        seeds: of the runs of each variant.
        minutes: of training for each run, without evaluations; None if `iterations` is given.
        iterations: of each run; None if `minutes` is given.
        measured: iterations of the run that measures how many fit into `minutes`.
        evaluations: of each run.
        reference: variant that others are compared with; None: no one.
        make: arguments of `mask2former` that make the dataset, in the directory of the datasets; they do nothing where
            it is complete. Empty: the dataset is there already.
        needs: files that must be there, relative to DETECTRON2_DATASETS.
        variants: what is compared.
        bound: None: this comparison is no test.
    """

    path: Path
    title: str
    metric: str
    device: str
    seeds: tuple[int, ...]
    minutes: float | None
    iterations: int | None
    measured: int
    evaluations: int
    reference: str | None
    make: tuple[str, ...]
    needs: tuple[str, ...]
    variants: tuple[Variant, ...]
    bound: Bound | None

    @property
    def name(self) -> str:
        """Return the name of the file without its suffix."""
        return self.path.stem

    def variant(self, name: str) -> Variant:
        """Return the variant of a name, which exists."""
        return next(variant for variant in self.variants if variant.name == name)


def read_matrix(path: str | Path) -> Matrix:
    """Read a matrix.

    Raises:
        FileNotFoundError: no such file, or no such config file.
        ValueError: the file is not plain YAML, or a key of it is missing, unknown or wrong; the message names it.
    """
    values = _Values(Path(path), read_yaml(path), "")
    budget = values.section("budget")
    minutes, iterations = budget.number("minutes", None), budget.count("iterations", None)
    budget.end()
    if (minutes is None) is (iterations is None):
        raise ValueError(f"{path}: 'budget' must have one of 'minutes' and 'iterations'")
    common = _overrides(values.section("overrides"))
    variants = _variants(values.section("variants"), common)
    names = [variant.name for variant in variants]
    matrix = Matrix(
        path=Path(path),
        title=values.text("title"),
        metric=values.text("metric"),
        device=values.text("device", "cuda"),
        seeds=tuple(values.counts("seeds")),
        minutes=minutes,
        iterations=iterations,
        measured=values.count("measured", 200),
        evaluations=values.count("evaluations", 10),
        reference=values.text("reference", None),
        make=tuple(values.texts("make")),
        needs=tuple(values.texts("needs")),
        variants=variants,
        bound=_bound(values),
    )
    values.end()
    if matrix.device not in ("cuda", "cpu"):
        raise ValueError(f"{path}: 'device' is '{matrix.device}', but must be cuda or cpu")
    if not matrix.seeds or len(set(matrix.seeds)) < len(matrix.seeds):
        raise ValueError(f"{path}: 'seeds' must list at least one seed, each once")
    if len(matrix.seeds) * len(variants) > _MOST_RUNS:
        raise ValueError(f"{path}: {len(matrix.seeds) * len(variants)} runs are more than {_MOST_RUNS}")
    for key, name in (("reference", matrix.reference), ("bound", matrix.bound and matrix.bound.variant)):
        if name is not None and name not in names:
            raise ValueError(
                f"{path}: '{key}' names the variant '{name}', which is not there{did_you_mean(name, names)}"
            )
    return matrix


def settings_of(matrix: Matrix) -> dict[str, Any]:
    """Return what the results depend on beside the variants, as reports hold it."""
    return {
        "metric": matrix.metric,
        "reference": matrix.reference,
        "budget": {"minutes": matrix.minutes, "iterations": matrix.iterations},
        "dataset": list(matrix.make or matrix.needs),
    }


def _variants(section: _Values, common: Mapping[str, str]) -> tuple[Variant, ...]:
    variants = []
    for name in section:
        if not name or not set(name) <= _NAME:
            raise ValueError(f"{section.path}: the variant '{name}' must be named by small letters, digits and _")
        values = section.section(name)
        config = values.text("config")
        find_config(config)  # raises
        variants.append(
            Variant(name=name, config=config, overrides={**common, **_overrides(values.section("overrides"))})
        )
        values.end()
    if not variants:
        raise ValueError(
            f"{section.path}: 'variants' is missing: {{name: {{config: FILE, overrides: {{KEY: value}}}}}}"
        )
    return tuple(variants)


def _overrides(section: _Values) -> dict[str, str]:
    """Return {KEY: value as on the command line}."""
    return {key: _word(section.take(key)) for key in section}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _bound(values: _Values) -> Bound | None:
    section = values.section("bound")
    if not list(section):
        return None
    name, least, margin = section.text("variant"), section.number("at_least", None), section.number("margin", None)
    section.end()
    if (least is None) is (margin is None):
        raise ValueError(f"{section.path}: 'bound' must have one of 'at_least' and 'margin'")
    return Bound(variant=name, at_least=least, margin=margin or 0.0)


_MISSING = object()


class _Values:
    """A mapping of the file, whose entries are taken once and checked.

    Args:
        where: keys that lead to it, for messages.
    """

    def __init__(self, path: Path, values: Any, where: str) -> None:
        self.path, self._where = path, where
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {where or 'the file'} must be a mapping of keys to values")
        self._values = {str(key): value for key, value in values.items()}
        self._known: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def take(self, key: str, default: Any = _MISSING) -> Any:
        self._known.append(key)
        if key not in self._values and default is _MISSING:
            raise ValueError(f"{self.path}: '{self._name(key)}' is missing")
        return self._values.get(key, default)

    def section(self, key: str) -> _Values:
        return _Values(self.path, self.take(key, {}), self._name(key))

    def text(self, key: str, default: Any = _MISSING) -> Any:
        value = self.take(key, default)
        if value is not default and (not isinstance(value, str) or not value):
            raise self._error(key, value, "text")
        return value

    def texts(self, key: str) -> list[str]:
        values = self.take(key, [])
        if not isinstance(values, list):
            raise self._error(key, values, "a list")
        return [_word(value) for value in values]

    def number(self, key: str, default: Any = _MISSING) -> Any:
        value = self.take(key, default)
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not default and not (right and math.isfinite(value) and value > 0):
            raise self._error(key, value, "a number above 0")
        return value

    def count(self, key: str, default: Any = _MISSING) -> Any:
        value = self.number(key, default)
        if value is not default and not isinstance(value, int):
            raise self._error(key, value, "a whole number above 0")
        return value

    def counts(self, key: str) -> list[int]:
        values = self.take(key)
        if not isinstance(values, list) or any(type(value) is not int or value < 0 for value in values):
            raise self._error(key, values, "a list of whole numbers")
        return values

    def end(self) -> None:
        """Refuse keys that nobody has taken."""
        unknown = next((key for key in self._values if key not in self._known), None)
        if unknown is not None:
            raise ValueError(f"{self.path}: unknown key '{self._name(unknown)}'.{did_you_mean(unknown, self._known)}")

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def _error(self, key: str, value: Any, kind: str) -> ValueError:
        return ValueError(f"{self.path}: '{self._name(key)}' is {str(value)[:40]!r}, but must be {kind}")
