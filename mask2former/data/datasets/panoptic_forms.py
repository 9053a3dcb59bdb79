"""Loading and registration of panoptic datasets in the form of detectron2: files, and metadata with the id maps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from .catalog import Records, set_dataset
from .categories import Category, panoptic_metadata
from .coco_panoptic import PanopticLayout, load_panoptic, same_id


def split_metadata(classes: tuple[Category, ...], only_things_among_things: bool) -> dict[str, Any]:
    """Return class lists and id maps, without `ignore_label` and `label_divisor`; see `panoptic_metadata`."""
    metadata = panoptic_metadata(classes, only_things_among_things=only_things_among_things)
    return {key: value for key, value in metadata.items() if key not in ("ignore_label", "label_divisor")}


def load_with_metadata(
    json_file: str, image_dir: str, gt_dir: str, semseg_dir: str | None, meta: Mapping[str, Any], tree: str
) -> Records:
    """Load a panoptic dataset whose classes are the id maps of its metadata; see `load_panoptic`.

    Args:
        json_file: panoptic JSON file.
        image_dir: directory of the images.
        gt_dir: directory of the panoptic PNG files.
        semseg_dir: directory of the label maps; None for none.
        meta: "thing_dataset_id_to_contiguous_id" and "stuff_dataset_id_to_contiguous_id".
        tree: expected directories, for messages.
    """
    classes = {key: (index, False) for key, index in meta["stuff_dataset_id_to_contiguous_id"].items()}
    classes |= {key: (index, True) for key, index in meta["thing_dataset_id_to_contiguous_id"].items()}
    layout = PanopticLayout(classes, tree, image_id=same_id)
    return load_panoptic(json_file, layout, image_dir, gt_dir, json_file, semseg_dir)


def register_with_metadata(
    name: str, metadata: Mapping[str, Any], tree: str, evaluator_type: str, ignore_label: int = 255, **paths: Any
) -> None:
    """Register a panoptic dataset, or replace the one of this name, without reading any file.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        metadata: class lists and id maps; they replace the other entries of the same key.
        tree: expected directories, for messages.
        evaluator_type: says which evaluation it gets.
        ignore_label: value of pixels without a class in label maps.
        paths: "panoptic_json", "image_root", "panoptic_root", "sem_seg_root", "json_file" (of the instances).
    """
    files = (paths["panoptic_json"], paths["image_root"], paths["panoptic_root"], paths["sem_seg_root"])
    fixed = {"evaluator_type": evaluator_type, "ignore_label": ignore_label, "label_divisor": 1000}
    set_dataset(name, functools.partial(load_with_metadata, *files, metadata, tree), {**paths, **fixed, **metadata})
