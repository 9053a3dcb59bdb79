"""Class tables: one JSON file per dataset beside this module; position in the list is the class index."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Category = dict[str, Any]


@functools.cache
def class_table(dataset: str) -> tuple[Category, ...]:
    """The categories (id, name and where the dataset has them isthing, color) in the order of the class index.

    Args:
        dataset: name of the JSON file without extension, for example "ade20k".
    """
    text = Path(__file__).with_name(f"{dataset}.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["categories"])


def column(entries: Iterable[Category], key: str) -> list[Any]:
    """One value of every category, as a new list."""
    return [entry[key] for entry in entries]


def things(entries: Iterable[Category]) -> list[Category]:
    """The categories whose objects are counted."""
    return [entry for entry in entries if entry["isthing"]]


def index_by_id(entries: Sequence[Category], thing: bool | None = None) -> dict[int, int]:
    """Class index of each dataset id, of all categories or only of things (True) or stuff (False)."""
    return {
        entry["id"]: index for index, entry in enumerate(entries) if thing is None or bool(entry["isthing"]) == thing
    }


def panoptic_classes(entries: Sequence[Category]) -> dict[int, tuple[int, bool]]:
    """Dataset id -> class index and whether it is a thing."""
    return {entry["id"]: (index, bool(entry["isthing"])) for index, entry in enumerate(entries)}


def panoptic_metadata(
    entries: Sequence[Category],
    *,
    ignore_label: int = 255,
    only_things_among_things: bool = False,
    things_among_stuff: bool = True,
) -> dict[str, Any]:
    """Class lists and id maps of a panoptic dataset; `stuff_classes` always number all K classes.

    Args:
        entries: categories with id, name, isthing and color.
        ignore_label: "no class" in semantic label maps.
        only_things_among_things: `thing_classes` lists the things alone, in the order of their index; otherwise all K
            classes, so that entry k is class k.
        things_among_stuff: `stuff_dataset_id_to_contiguous_id` holds the ids of things too.
    """
    listed = things(entries) if only_things_among_things else entries
    return {
        "thing_classes": column(listed, "name"),
        "thing_colors": column(listed, "color"),
        "thing_dataset_id_to_contiguous_id": index_by_id(entries, thing=True),
        "stuff_classes": column(entries, "name"),
        "stuff_colors": column(entries, "color"),
        "stuff_dataset_id_to_contiguous_id": index_by_id(entries, None if things_among_stuff else False),
        "ignore_label": ignore_label,
        "label_divisor": 1000,
    }


def instance_metadata(entries: Sequence[Category]) -> dict[str, Any]:
    """Class list and id map of an instance dataset whose classes are `entries`."""
    metadata = {"thing_classes": column(entries, "name"), "thing_dataset_id_to_contiguous_id": index_by_id(entries)}
    if all("color" in entry for entry in entries):
        metadata["thing_colors"] = column(entries, "color")
    return metadata
