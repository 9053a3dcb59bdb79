"""Class tables: one JSON file per dataset in this directory; the position in its list is the class index."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Category = dict[str, Any]


@functools.cache
def class_table(dataset: str) -> tuple[Category, ...]:
    """Load the categories (id, name and, if the dataset has them, isthing and color) in the order of the class index.

    Args:
        dataset: name of the JSON file without extension, for example "ade20k".
    """
    text = Path(__file__).with_name(f"{dataset}.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["categories"])


def column(entries: Iterable[Category], key: str) -> list[Any]:
    """Return one value of every category, as a new list."""
    return [entry[key] for entry in entries]


def things(entries: Iterable[Category]) -> list[Category]:
    """Return the categories with countable objects."""
    return [entry for entry in entries if entry["isthing"]]


def index_by_id(entries: Sequence[Category], thing: bool | None = None) -> dict[int, int]:
    """Map dataset ids to class indices, for all categories or only for things (True) or stuff (False)."""
    return {
        entry["id"]: index for index, entry in enumerate(entries) if thing is None or bool(entry["isthing"]) == thing
    }


def panoptic_classes(entries: Sequence[Category]) -> dict[int, tuple[int, bool]]:
    """Map dataset ids to the class index and whether it is a thing."""
    return {entry["id"]: (index, bool(entry["isthing"])) for index, entry in enumerate(entries)}


def panoptic_metadata(
    entries: Sequence[Category],
    *,
    ignore_label: int = 255,
    only_things_among_things: bool = False,
    things_among_stuff: bool = True,
) -> dict[str, Any]:
    """Return class lists and id maps of a panoptic dataset; `stuff_classes` always lists all K classes.

    Args:
        entries: categories with id, name, isthing and color.
        ignore_label: value of pixels without a class in label maps.
        only_things_among_things: `thing_classes` lists only the things, in the order of their index; otherwise all K
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
    """Return class list and id map of an instance dataset whose classes are `entries`."""
    metadata = {"thing_classes": column(entries, "name"), "thing_dataset_id_to_contiguous_id": index_by_id(entries)}
    if all("color" in entry for entry in entries):
        metadata["thing_colors"] = column(entries, "color")
    return metadata
