"""Config files: where they are found, and how a file and those of its `_BASE_` are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadRecordError, ConfigError
from .utils.hints import did_you_mean
from .utils.text_files import read_text
from .utils.yaml_files import MAX_BYTES, parse_yaml

BASE_KEY = "_BASE_"
_ROOTS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")
_MAX_FILES = 100  # that one config is made of

# `!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]`: a list of shortest edges, the only
# expression in the reference's files. It is parsed as data.
_SIZES = re.compile(
    r"!!python/object/apply:eval\s*\[\s*"
    r'"\[int\(x \* 0\.1 \* (\d{1,6})\) for x in range\((\d{1,6}), (\d{1,6})\)\]"\s*\]'
)


def find_config(name: str | Path) -> Path:
    """Find a config file, given as a path or as a name below `configs/` (with or without `.yaml`).

    Raises:
        FileNotFoundError: no such file; the message lists the most similar names.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    relative = _below_configs(given)
    recipe = _recipe(relative)
    if recipe is not None:
        return recipe
    if given.exists():
        kind = "a directory" if given.is_dir() else "not a regular file"
        raise FileNotFoundError(f"Config file '{name}' is {kind}; name a YAML file.")
    known = sorted({str(p.relative_to(r)) for r in _ROOTS for p in r.rglob("*.yaml")})
    beside = [str(given.with_name(p.name)) for p in _yaml_files(given.parent)]
    hint = did_you_mean(str(given), beside, 1) or did_you_mean(str(relative), known, 3)
    raise FileNotFoundError(f"Config file '{name}' does not exist, neither as a path nor below configs/.{hint}")


def _below_configs(given: Path) -> Path:
    return Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given


def _recipe(relative: Path) -> Path | None:
    """Return a file below `configs/` of this package, wherever it is installed, or None."""
    candidates = (file for root in _ROOTS for file in (root / relative, root / f"{relative}.yaml"))
    return next((file for file in candidates if file.is_file()), None)


def _yaml_files(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob("*.y*ml"))
    except OSError:  # it may not be read
        return []


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file after those that its `_BASE_` names, whose values it replaces; without key VERSION.

    Raises:
        ConfigError: a file cannot be used; the message names it, and the line where that is known.
    """
    values = _Reader().read(path, ())
    version = values.pop("VERSION", 2)
    if version != 2:
        raise ConfigError(f"{path}: VERSION {version!r} is not supported, write VERSION: 2")
    return values


class _Reader:
    def __init__(self) -> None:
        self.files = 0

    def read(self, path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
        """Read a file with its bases; `below` are the files whose `_BASE_` leads here, from the first."""
        self.files += 1
        if self.files > _MAX_FILES:
            raise ConfigError(f"{below[0]}: {BASE_KEY} leads to more than {_MAX_FILES} files")
        values = _read_one(path, below)
        bases = values.pop(BASE_KEY, [])
        merged: dict[str, Any] = {}
        for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]:
            _merge(self.read(_base_path(base, path, (*below, path)), (*below, path)), merged, path)
        _merge(values, merged, path)
        return merged


def _read_one(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    origin = f" ({BASE_KEY} of {below[-1]})" if below else ""
    try:
        text = _SIZES.sub(_sizes, read_text(path, MAX_BYTES))
        values = parse_yaml(text, str(path))
    except (BadRecordError, FileNotFoundError) as error:
        raise ConfigError(f"{error}{origin}") from error
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"{path}{origin} {found}, but a config must hold keys and values, for example 'MODEL:'")
    _check_keys(values, path)
    return values


def _sizes(match: re.Match[str]) -> str:
    size, start, stop = map(int, match.groups())
    return str([int(x * 0.1 * size) for x in range(start, min(stop, start + 1000))])


def _check_keys(values: Mapping[Any, Any], path: Path) -> None:
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: the key {key!r} is no name of a setting")
        if isinstance(value, dict):
            _check_keys(value, path)


def _base_path(base: Any, path: Path, chain: tuple[Path, ...]) -> Path:
    """Return the file that an entry of `_BASE_` names.

    Relative names start at the directory of the file itself; where there is none, at `configs/` of this package, so
    that projects on top of it need no copy of its recipes.
    """
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: {BASE_KEY} must be the name of a YAML file or a list of them, not {base!r}")
    if "://" in base:
        raise ConfigError(f"{path}: {BASE_KEY} {base} is a URL; download the file and give its path")
    file = path.parent / Path(base).expanduser()
    if not file.exists() and ".." not in Path(base).parts:
        file = _recipe(_below_configs(Path(base))) or file
    if file.resolve() in [entry.resolve() for entry in chain]:
        around = " -> ".join(map(str, (*chain, file)))
        raise ConfigError(f"{path}: {BASE_KEY} leads back to a file that is being read: {around}")
    return file


def _merge(values: Mapping[str, Any], into: dict[str, Any], path: Path) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ConfigError(f"{path}: {key} is a section, but a value in a file of {BASE_KEY}")
            _merge(value, into[key], path)
        else:
            into[key] = value
