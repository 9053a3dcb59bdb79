"""Whether the data that a user gives to a resumed training is that of its first start, of which it keeps a copy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..data.formats import CocoData, load_data

Images = dict[str, list[str]]  # file name below the image root -> its objects: class and segmentation


def compare_data(data: str | os.PathLike[str], stored: Path) -> str:
    """Return how training data differs from the copy of a training; empty if it does not.

    Args:
        data: directory or annotation file of any format.
        stored: directory of train.json and val.json.

    Raises:
        ValueError: they have no image in common, or `data` cannot be read.
        FileNotFoundError: no such `data`.
    """
    parts = load_data(data, "auto")
    given = _images(part for name, part in parts.items() if name != "test")
    used = _images(part for name in ("train", "val") for part in load_data(stored / f"{name}.json", "coco").values())
    if not set(given) & set(used):
        raise ValueError(
            f"--data {data} is not the data of this training, whose {len(used)} images it does not have. To resume, "
            "drop --data; for other data start a new training with another --output."
        )
    counts = {
        "are new": len(set(given) - set(used)),
        "are gone": len(set(used) - set(given)),
        "have other annotations": sum(given[name] != used[name] for name in set(given) & set(used)),
    }
    listed = [f"{count} {what}" for what, count in counts.items() if count]
    if not listed:
        return ""
    return (
        f"--data {data} has changed since the first start of this training: of its {len(given)} images "
        f"{', '.join(listed)}. The training goes on with the data of its first start ({stored}); for the new data "
        "start one with another --output."
    )


def _images(parts: Iterable[CocoData]) -> Images:
    images: Images = {}
    for part in parts:
        content = part.content
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        files = {entry["id"]: entry["file_name"] for entry in content["images"]}
        for file in files.values():
            images.setdefault(file, [])
        for entry in content["annotations"]:
            facts = [names[entry["category_id"]], entry.get("iscrowd", 0), entry["segmentation"]]
            images[files[entry["image_id"]]].append(json.dumps(facts, sort_keys=True))
    return {name: sorted(objects) for name, objects in images.items()}
