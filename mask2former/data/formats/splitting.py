"""Splits by ratio: seeded, by group, with every class in about the same proportion."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import BadRecordError
from .coco_data import CocoData

Group = str | Callable[[str], str] | None


def split(
    data: CocoData, fractions: Mapping[str, float] | None = None, seed: int = 0, group: Group = None
) -> dict[str, CocoData]:
    """Divide data by chance.

    Images of one group, and identical images, stay in one part. Rare classes are dealt first, so that each part has
    about its share of every class. The same data and seed give the same parts.

    Args:
        data: images are not moved; the parts refer to the same files.
        fractions: split -> its part of the images, for example {"val": 0.1, "test": 0.1}. "train" gets the rest, or is
            given too, and then all add up to 1. None: {"val": 0.1}.
        seed: of the random order.
        group: what images have in common that must not be in two parts (a patient, a slide, a video): "parent" for
            their directory, a regular expression whose first group (or whole match) in the file name counts, or a
            function of the file name.

    Returns:
        The parts, "train" first; each has one image or more.

    Raises:
        ValueError: fractions that are not between 0 and 1, more parts than groups, or a bad regular expression.
    """
    shares = _shares(fractions)
    groups = _groups(data, _key(group))
    if len(groups) < len(shares):
        what = "different image" if group is None else "group"
        raise ValueError(
            f"{data.image_root}: {len(groups)} {what}{'s' * (len(groups) != 1)} cannot make {len(shares)} parts; "
            f"{'annotate more images' if group is None else f'use other groups than {group!r}'} or fewer parts"
        )
    dealt = _deal(groups, shares, seed)
    return {name: _part(data, {image_id for ids in dealt[name] for image_id in ids}) for name in shares}


def _shares(fractions: Mapping[str, float] | None) -> dict[str, float]:
    given = dict(fractions if fractions is not None else {"val": 0.1})
    if not all(isinstance(value, (int, float)) and 0 < value < 1 for value in given.values()):
        raise ValueError(f"fractions of a split lie between 0 and 1 (exclusive), got {given}")
    rest = 1 - sum(given.values())
    if "train" not in given:
        if rest <= 1e-9:
            raise ValueError(f"the fractions {given} leave nothing for train")
        given["train"] = rest
    elif abs(rest) > 1e-6:
        raise ValueError(f"the fractions {given} must add up to 1, or leave out train")
    return {"train": given.pop("train"), **given}


def _key(group: Group) -> Callable[[str], str]:
    if group is None:
        return lambda name: name
    if callable(group):
        return group
    if group == "parent":
        return lambda name: str(PurePosixPath(name).parent)
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"group {group!r} is neither 'parent' nor a regular expression: {error}") from error

    def key(name: str) -> str:
        match = pattern.search(name)
        if match is None:
            raise ValueError(f"group {group!r} does not match the file name {name!r}; every image needs a group")
        return match.group(1) or "" if pattern.groups else match.group(0)

    return key


def _groups(data: CocoData, key: Callable[[str], str]) -> list[tuple[list[int], Counter[Any]]]:
    """Return for each group the ids of its images, and how many objects of each class they have."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    keys = {image["id"]: f"group {key(image['file_name'])}" for image in data.content["images"]}
    for copies in identical_images(data):
        for image_id in copies[1:]:
            parent[find(keys[image_id])] = find(keys[copies[0]])
    members: dict[str, list[int]] = defaultdict(list)
    for image in sorted(data.content["images"], key=lambda image: image["file_name"]):
        members[find(keys[image["id"]])].append(image["id"])
    classes: dict[int, Counter[Any]] = defaultdict(Counter)
    for annotation in data.content["annotations"]:
        classes[annotation["image_id"]][annotation["category_id"]] += 1
    return [(ids, sum((classes[i] for i in ids), Counter())) for ids in members.values()]


def identical_images(data: CocoData) -> list[list[int]]:
    """Return the ids of images whose files have the same bytes, a list for each set of two or more."""
    by_size: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for image in data.content["images"]:
        path = data.image_root / image["file_name"]
        if path.is_file():
            by_size[path.stat().st_size].append((image["id"], path))
    by_hash: dict[str, list[int]] = defaultdict(list)
    for entries in by_size.values():
        for image_id, path in entries if len(entries) > 1 else []:
            by_hash[content_hash(path)].append(image_id)
    return [ids for ids in by_hash.values() if len(ids) > 1]


def content_hash(path: Path) -> str:
    """Return a hash of the bytes of a file.

    Raises:
        BadRecordError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BadRecordError(path, f"cannot be read: {error}") from error
    return digest.hexdigest()


def _deal(
    groups: list[tuple[list[int], Counter[Any]]], shares: Mapping[str, float], seed: int
) -> dict[str, list[list[int]]]:
    """Deal the groups out, those with the rarest class first (Sechidis et al. 2011, iterative stratification)."""
    random.Random(seed).shuffle(groups)
    images = sum(len(ids) for ids, _ in groups)
    classes = Counter(label for _, counts in groups for label in counts)  # in how many groups each class occurs
    sizes = {name: max(1.0, share * images) for name, share in shares.items()}
    for name in shares:
        if name != "train":
            sizes[name] = float(max(1, round(sizes[name])))
    sizes["train"] = max(1.0, images - sum(sizes[name] for name in shares if name != "train"))
    total = sum((counts for _, counts in groups), Counter())
    missing = {name: {label: shares[name] * count for label, count in total.items()} for name in shares}
    order = sorted(
        range(len(groups)), key=lambda i: (min((classes[x] for x in groups[i][1]), default=1 << 60), -len(groups[i][0]))
    )
    dealt: dict[str, list[list[int]]] = {name: [] for name in shares}
    left = dict(sizes)
    for done, index in enumerate(order):
        ids, counts = groups[index]
        empty = [name for name in shares if not dealt[name]]
        room = [name for name in shares if left[name] >= len(ids)] or list(shares)
        if len(empty) >= len(order) - done:  # the last groups go to parts that have none
            room = empty
        rarest = min(counts, key=lambda label: (classes[label], str(label)), default=None)

        def need(name: str, rarest: Any = rarest) -> tuple[float, float]:
            return (missing[name].get(rarest, 0.0) if rarest is not None else 0.0, left[name] / sizes[name])

        best = max(room, key=need)
        dealt[best].append(ids)
        left[best] -= len(ids)
        for label, count in counts.items():
            missing[best][label] -= count
    return dealt


def _part(data: CocoData, ids: set[int]) -> CocoData:
    content = {
        **{key: value for key, value in data.content.items() if key not in ("images", "annotations")},
        "images": [image for image in data.content["images"] if image["id"] in ids],
        "annotations": [entry for entry in data.content["annotations"] if entry["image_id"] in ids],
    }
    return CocoData(data.image_root, content, data.format, data.notes)
