"""COCO instance JSON: a file, a directory with annotations/*.json, or Roboflow's _annotations.coco.json per split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRecordError, first_few
from ...structures.masks import boxes_from_patches, segmentation_to_patch
from ...utils.file_io import check_lists, read_json_object
from ..datasets.coco_annotations import check_annotation, check_class_and_crowd, check_id, is_id, read_categories
from .coco_data import CocoData, Context
from .files import SPLITS, Tree, check_side, image_size, is_file, split_of
from .sniffing import json_kind

NAME = "coco"
LOOKED_FOR = "COCO: a .json with images, annotations and categories (also annotations/*.json, _annotations.coco.json)"

ROOT_KEY = "image_root"  # in "info" of the files that `write_coco` writes


def find(tree: Tree) -> list[Path]:
    """Return the annotation files in COCO's format."""
    files = [path for path in tree.with_suffix(".json") if json_kind(path) == NAME]
    # Beside COCO's instances lie the files of its other tasks.
    instances = [path for path in files if path.name.lower().startswith("instances")]
    return instances or [path for path in files if not path.name.lower().startswith(("panoptic", "captions"))]


def load(files: Sequence[Path], context: Context) -> dict[str, CocoData]:
    """Read annotation files, one for each split."""
    by_split = _splits(files, context.tree)
    contents, roots = {}, {}
    for split, file in by_split.items():
        content = read_json_object(str(file))
        if "videos" in content and "images" not in content:
            raise BadRecordError(
                str(file),
                "holds videos (YouTube-VIS), not images; train on them with --config-file, as in configs/own-videos",
            )
        check_lists(str(file), content, ("images", "categories"))
        read_categories(str(file), content, None)
        contents[split] = content
        roots[split] = _image_bases(file, content, context)
    categories, id_maps = _merge_categories(list(contents.values()), context)
    loaded = {}
    for (split, file), id_map in zip(by_split.items(), id_maps, strict=True):
        image_root, tree, bases = roots[split]
        reader = _FileReader(file, context, tree, bases, image_root)
        loaded[split] = (image_root, reader.read(contents[split], id_map, categories, split))
    return {split: CocoData(root, content, NAME, tuple(context.notes)) for split, (root, content) in loaded.items()}


def _splits(files: Sequence[Path], tree: Tree) -> dict[str, Path]:
    if len(files) == 1:
        name = split_of([*tree.parts(files[0]), files[0].stem]) if files[0].parent != tree.root else None
        return {name or split_of([files[0].stem]) or "all": files[0]}
    found: dict[str, Path] = {}
    for file in files:
        split = split_of([*tree.parts(file), file.stem])
        if split is None:
            raise ValueError(
                f"{file}: its name does not tell whether it is train, val or test, and there are {len(files)} COCO "
                "files; rename it, or pass one file"
            )
        if split in found:
            raise ValueError(f"{file} and {found[split]} are both {split!r}; remove one, or pass one file")
        found[split] = file
    return {split: found[split] for split in SPLITS if split in found}


def _image_bases(file: Path, content: dict[str, Any], context: Context) -> tuple[Path, Tree, list[Path]]:
    """Return the root of the file names to write, the files below it, and where the names may start."""
    tree = context.tree
    info = content.get("info")
    declared = info.get(ROOT_KEY) if isinstance(info, dict) else None
    given = context.options.get("image_root") or declared
    if isinstance(given, (str, os.PathLike)) and os.fspath(given):
        root = Path(os.path.abspath(file.parent / given))
        if not root.is_dir():
            raise FileNotFoundError(f"{file}: its images should be in {root}, which is not a directory")
        if not root.is_relative_to(tree.root):
            context.note(f"images are read from {root}")
        return root, Tree(root), [root]
    names = [image.get("file_name") for image in content["images"][:20] if isinstance(image, dict)]
    split = split_of([*tree.parts(file), file.stem])
    near = [file.parent, file.parent / "images", file.parent.parent, file.parent.parent / "images"]
    if split is not None:
        near += [base / name for base in near[:4] for name in _directories(base) if split_of([name]) == split]
    near += [file.parent.parent / "JPEGImages", file.parent / "JPEGImages"]
    inside = [base for base in near if base.is_relative_to(tree.root) and base.is_dir()]
    best = max(inside, key=lambda base: sum(isinstance(n, str) and is_file(base / n) for n in names), default=None)
    return tree.root, tree, [best] if best is not None else []


def _directories(base: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(base) if entry.is_dir()) if base.is_dir() else []


def _used_categories(annotations: Any) -> set[int | str]:
    """Return the category ids of annotations that may be malformed, which their reader tells later."""
    entries = annotations if isinstance(annotations, list) else []
    ids = (entry.get("category_id") for entry in entries if isinstance(entry, dict))
    return {number for number in ids if isinstance(number, (int, str))}


def _merge_categories(
    contents: Sequence[dict[str, Any]], context: Context
) -> tuple[list[dict[str, Any]], list[dict[int, int]]]:
    """Return the categories of all files, and for each file its category ids -> those of the result."""
    used = [_used_categories(content.get("annotations")) for content in contents]
    tables = [{entry["id"]: entry["name"] for entry in content["categories"]} for content in contents]
    parents = {str(entry.get("supercategory")) for content in contents for entry in content["categories"]}
    for content, table in zip(contents, tables, strict=True):
        for entry in content["categories"]:
            # Roboflow lists the project as category 0 and the real classes below it.
            unused = not any(entry["id"] in ids and t.get(entry["id"]) == entry["name"] for ids, t in zip(used, tables))
            if unused and entry.get("supercategory") in ("none", "") and entry["name"] in parents and len(table) > 1:
                table.pop(entry["id"])
                context.note(f"category {entry['name']!r} only groups the others and is left out")
    if all(table == tables[0] for table in tables):
        order = sorted(tables[0].items())
        return [{"id": key, "name": name} for key, name in order], [{key: key for key in table} for table in tables]
    names = list(dict.fromkeys(name for table in tables for _, name in sorted(table.items())))
    context.note(f"the splits list different categories; together they have {len(names)}: {first_few(names, 20)}")
    ids = {name: number for number, name in enumerate(names, start=1)}
    return (
        [{"id": number, "name": name} for name, number in ids.items()],
        [{key: ids[name] for key, name in table.items()} for table in tables],
    )


class _FileReader:
    """Checks one file and makes a dictionary that needs no further repair."""

    def __init__(self, file: Path, context: Context, tree: Tree, bases: list[Path], image_root: Path) -> None:
        self.file, self.context, self.tree, self.bases, self.image_root = file, context, tree, bases, image_root
        self.images: dict[int, dict[str, Any]] = {}
        self.annotations: list[dict[str, Any]] = []
        self.seen: set[int] = set()
        self.boxes_only = self.degenerate = 0

    def read(
        self, content: dict[str, Any], ids: dict[int, int], categories: list[dict[str, Any]], split: str
    ) -> dict[str, Any]:
        """Return the checked content, with category ids changed by `ids`."""
        annotations = content.get("annotations", [])
        if not isinstance(annotations, list):
            raise BadRecordError(self.file, "needs a list 'annotations'")
        for position, image in enumerate(content["images"]):
            with self.context.guard():
                self._add_image(image, position)
        for position, annotation in enumerate(annotations):
            with self.context.guard():
                self._add_annotation(annotation, position, ids)
        self._report(split)
        shown = {entry["image_id"] for entry in self.annotations}
        images = [image for key, image in self.images.items() if self.context.negatives or key in shown]
        return {"images": images, "annotations": self.annotations, "categories": categories}

    def _add_image(self, image: Any, position: int) -> None:
        where = check_id(str(self.file), image, f"images[{position}]", "image", self.images)
        path = self.tree.find_image(image.get("file_name"), self.file, self.bases, where)
        if image.get("height") is None or image.get("width") is None:
            height, width = image_size(path)
        else:
            height, width = (check_side(image[key], key, self.file, where) for key in ("height", "width"))
        name = path.relative_to(self.image_root).as_posix()
        self.images[image["id"]] = {"id": image["id"], "file_name": name, "height": height, "width": width}

    def _add_annotation(self, annotation: Any, position: int, ids: dict[int, int]) -> None:
        file = str(self.file)
        where = check_id(file, annotation, f"annotations[{position}]", "annotation", self.seen)
        self.seen.add(annotation["id"])
        image = self.images.get(annotation["image_id"]) if is_id(annotation.get("image_id")) else None
        if image is None:
            raise BadRecordError(
                self.file, f"belongs to image {annotation.get('image_id')!r}, which is not read", where
            )
        given = annotation.get("segmentation")
        if given is None or given == [] or given == {}:
            check_class_and_crowd(file, annotation, where, ids)
            self.boxes_only += 1
            return
        box = annotation.get("bbox")
        entry = check_annotation(file, {**annotation, "bbox": box if _is_box(box) else None}, image, where, ids)
        if not entry["segmentation"]:
            self.degenerate += 1
            return
        entry["category_id"] = ids[entry["category_id"]]
        ignore = entry.pop("ignore")
        entry["iscrowd"] = int(entry["iscrowd"] or ignore)
        entry.pop("score", None)
        if "area" not in entry or "bbox" not in entry:
            patch = segmentation_to_patch(entry["segmentation"], (image["height"], image["width"]))
            left, top, right, bottom = boxes_from_patches([patch])[0].tolist()
            entry["area"] = int(np.count_nonzero(patch.bits))
            entry["bbox"] = [left, top, right - left, bottom - top]
        self.annotations.append(entry)

    def _report(self, split: str) -> None:
        if self.boxes_only and not self.annotations:
            raise BadRecordError(
                self.file,
                f"its {self.boxes_only} annotations are boxes without 'segmentation'. Training needs masks: export "
                "instance segmentation, or make masks of the boxes with a tool such as SAM",
            )
        if self.boxes_only:
            self.context.note(f"{self.file.name}: {self.boxes_only} objects without 'segmentation' are left out")
        if self.degenerate:
            self.context.note(
                f"{self.file.name}: {self.degenerate} objects without a polygon of at least three points are left out"
            )
        empty = len(self.images) - len({entry["image_id"] for entry in self.annotations})
        if empty:
            what = "kept as negatives" if self.context.negatives else "left out"
            self.context.note(f"{split}: {empty} of {len(self.images)} images have no objects and are {what}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(x) for x in value)
