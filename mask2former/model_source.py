"""Config, weights and class names of a model, found by its name, directory or files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from . import zoo
from .checkpoint.directory import read_tag
from .config import find_config
from .errors import BadRecordError
from .structures.classes import ClassTable
from .structures.colors import Color
from .utils.file_io import is_special, parse_json, write_json

DEFAULT_MODEL = "nuclei"
SHAPES_MODEL = "shapes"
"""The bundled model that knows the shapes world, whose examples are drawn where they are shown."""


def locate_model(
    name: str | None, config: str | os.PathLike[str] | None, weights: str | os.PathLike[str] | None
) -> tuple[Path, str | os.PathLike[str] | None]:
    """Return the config and weights files of the requested model. Weights are None if only a config was given."""
    if config is None and name is None and weights is not None:
        raise ValueError(f"weights {str(weights)!r} need config=FILE or the name of the model they belong to")
    if config is not None:
        return find_config(Path(config)), weights
    name = name or DEFAULT_MODEL
    directory = Path(name).expanduser()
    # A directory of images may have the name of a model; only one with a config is a model.
    if directory.is_dir() and ((directory / "config.yaml").is_file() or name not in zoo.list_models()):
        return _in_directory(directory, weights)
    try:
        entry = zoo.lookup(name)
    except ValueError:
        if not directory.is_file():
            raise
        raise ValueError(
            f"{name} is a file, but a model is a name of the zoo, or a directory with config.yaml and weights. A file "
            "of weights needs its config, too: --config-file FILE --weights FILE (in Python config=FILE, weights=FILE)"
        ) from None
    return find_config(entry.config_file), weights or zoo.resolve_weights(entry)


def _in_directory(directory: Path, weights: str | os.PathLike[str] | None) -> tuple[Path, str | os.PathLike[str]]:
    """Return config and weights in a training output directory, or one with model.safetensors and config.yaml."""
    config = directory / "config.yaml"
    if is_special(config):
        raise ValueError(f"{config} is a pipe or device, not a file")
    if not config.is_file():
        raise FileNotFoundError(f"{directory} is not a training output or model directory: it has no config.yaml")
    if weights is not None:
        return config, weights
    names = ["model.safetensors", "model_best.safetensors", "model_final.safetensors", "model_final.pth"]
    checkpoint, _ = read_tag(directory)
    if checkpoint is not None:
        names.append(checkpoint.name)
    for name in names:
        if (directory / name).is_file():
            return config, directory / name
    raise FileNotFoundError(f"{directory} has no weights ({', '.join(names)}); pass weights=FILE")


def dataset_classes(cfg: CfgNode) -> ClassTable | None:
    """Return the classes of the config's first registered dataset that lists them; None: unknown."""
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if dataset in MetadataCatalog:
            metadata = MetadataCatalog.get(dataset).as_dict()
            table = ClassTable.from_metadata(metadata, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
            if table is not None:
                return table
    return None


def store_classes(table: ClassTable, directory: Path) -> Path:
    """Write `classes.json` into a model's directory, for machines where the dataset is not registered."""
    return write_json(directory / "classes.json", table.categories())


def stored_classes(config: Path, weights: Path) -> ClassTable | None:
    """Load the class names stored beside a model: `classes.json`, a list of names or of COCO categories."""
    for directory in dict.fromkeys((weights.parent, config.parent)):
        path = directory / "classes.json"
        if path.exists():
            return _read_classes(path)
    return None


def _read_classes(path: Path) -> ClassTable:
    rows = parse_json(str(path))
    try:
        if not isinstance(rows, list) or not rows:
            raise TypeError("it is no list, or empty")
        if all(isinstance(row, str) for row in rows):
            return ClassTable(tuple(_name(row) for row in rows))
        ids = tuple(_whole(row["id"], "id") for row in rows)
        if len(set(ids)) < len(ids):
            raise ValueError("two classes have the same id")
        return ClassTable(
            names=tuple(_name(row["name"]) for row in rows),
            is_thing=tuple(bool(_whole(row.get("isthing", 1), "isthing", 1)) for row in rows),
            colors=_colors(rows),
            dataset_ids=ids,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecordError(path, f"must be a JSON list of names or of {{id, name}} ({error!r})") from error


def _name(name: Any) -> str:
    name = name.replace("\ufeff", "") if isinstance(name, str) else name  # a byte order mark that an editor has left
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"the name {name!r:.40} is no text")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"the name {name!a:.40} has half a character")
    return name


def _whole(value: Any, key: str, highest: int | None = None) -> int:
    if not isinstance(value, int) or value < 0 or (highest is not None and value > highest):
        raise TypeError(f"the {key} {value!r:.40} is no whole number" + (f" of 0 to {highest}" if highest else ""))
    return int(value)


def _colors(rows: list[dict[str, Any]]) -> tuple[Color, ...]:
    """Return the colors of COCO categories; empty if a category has none."""
    if any(row.get("color") is None for row in rows):
        return ()
    return tuple((r, g, b) for r, g, b in ([_whole(v, "color", 255) for v in row["color"]] for row in rows))
