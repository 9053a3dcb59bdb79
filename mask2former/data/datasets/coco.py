"""COCO: the instance names of detectron2, its panoptic names, and `..._panoptic_with_sem_seg`.

detectron2 lists 133 classes as "things" of coco_2017_{train,val}_panoptic. Mask2Former needs the 80 true ones
there, so these two names carry 80 thing classes here; their records are the same.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.coco import load_coco_json, load_sem_seg
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic

from ..errors import BadRecordError
from .catalog import Records, require_files, set_dataset
from .json_file import read_json_object

# name -> picture folder, annotations
_INSTANCES = {
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
}
# name -> picture folder, end of the names of the panoptic files
_PANOPTIC = {
    "coco_2017_train": ("train2017", "train2017"),
    "coco_2017_val": ("val2017", "val2017"),
    "coco_2017_val_100": ("val2017", "val2017_100"),
}

LAYOUT = """\
<root>/coco/
  annotations/
    instances_{train,val}2017.json
    panoptic_{train,val}2017.json
  {train,val}2017/             pictures, 000000000139.jpg
  panoptic_{train,val}2017/    PNG files with segment ids (a zip file inside the annotation archive)
  panoptic_semseg_{train,val}2017/   made by datasets/prepare_coco_semantic_annos_from_panoptic_annos.py"""


@functools.cache
def coco_categories() -> tuple[dict[str, Any], ...]:
    """The 133 categories (id, name, isthing, color), in the order of the class index; things first."""
    text = Path(__file__).with_name("coco_panoptic.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["categories"])


def register_coco(root: str) -> None:
    """Register all COCO names below `root`/coco; no file is touched."""
    folder = os.path.join(root, "coco")
    for name, (images, stem) in _INSTANCES.items():
        paths = {
            "json_file": os.path.join(folder, "annotations", f"{stem}.json"),
            "image_root": os.path.join(folder, images),
        }
        load = functools.partial(_load_instances, name, **paths)
        set_dataset(name, load, {**_thing_metadata(), **paths, "evaluator_type": "coco"})
    for base, (images, suffix) in _PANOPTIC.items():
        common = {
            "image_root": os.path.join(folder, images),
            "panoptic_root": os.path.join(folder, f"panoptic_{suffix}"),
            "panoptic_json": os.path.join(folder, "annotations", f"panoptic_{suffix}.json"),
            "json_file": os.path.join(folder, "annotations", f"instances_{suffix}.json"),
        }
        _register_standard(f"{base}_panoptic", common)
        stuff_root = os.path.join(folder, f"panoptic_stuff_{suffix}")
        _register_separated(f"{base}_panoptic", common, stuff_root)
        if not suffix.endswith("_100"):
            semantic_root = os.path.join(folder, f"panoptic_semseg_{suffix}")
            _register_with_sem_seg(f"{base}_panoptic_with_sem_seg", common, semantic_root)


def load_coco_panoptic(
    name: str,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str | None = None,
    **_: Any,
) -> Records:
    """Load a dataset in the COCO panoptic format with the 133 COCO categories.

    Returns:
        Records with file_name, image_id, pan_seg_file_name, segments_info (category_id contiguous, isthing,
        iscrowd), sem_seg_file_name where a root is given, and height and width where the file has them.

    Raises:
        FileNotFoundError: files are missing; shows the expected folders.
        BadRecordError: the json file is malformed.
    """
    require_files(name, [panoptic_json], LAYOUT)
    content = read_json_object(panoptic_json, lists=("annotations",))
    categories = {
        entry["id"]: (index, bool(entry["isthing"])) for index, entry in enumerate(coco_categories())
    }
    images = content.get("images", [])
    sizes = (
        {entry.get("id"): entry for entry in images if isinstance(entry, dict)}
        if isinstance(images, list)
        else {}
    )
    records = []
    for position, annotation in enumerate(content["annotations"]):
        where = f"annotations[{position}]"
        try:
            image_id, file_name = int(annotation["image_id"]), os.fspath(annotation["file_name"])
            segments = [_convert_segment(segment, categories) for segment in annotation["segments_info"]]
        except KeyError as error:
            raise BadRecordError(
                panoptic_json, f"{error.args[0]!r} is missing or undeclared", where
            ) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise BadRecordError(panoptic_json, f"malformed: {error}", where) from error
        stem = os.path.splitext(file_name)[0]
        record: dict[str, Any] = {
            "file_name": os.path.join(image_root, f"{stem}.jpg"),
            "image_id": image_id,
            "pan_seg_file_name": os.path.join(panoptic_root, file_name),
            "segments_info": segments,
        }
        if sem_seg_root is not None:
            record["sem_seg_file_name"] = os.path.join(sem_seg_root, file_name)
        size = sizes.get(annotation["image_id"], {})
        record.update({key: size[key] for key in ("height", "width") if isinstance(size.get(key), int)})
        records.append(record)
    if not records:
        raise BadRecordError(panoptic_json, "contains no annotations")
    first = records[0]
    require_files(name, [value for key, value in first.items() if key.endswith("file_name")], LAYOUT)
    return records


def _convert_segment(segment: dict[str, Any], categories: dict[int, tuple[int, bool]]) -> dict[str, Any]:
    index, thing = categories[segment["category_id"]]
    return {**segment, "category_id": index, "isthing": thing, "iscrowd": int(segment.get("iscrowd", 0))}


def _load_instances(name: str, json_file: str, image_root: str) -> Records:
    require_files(name, [json_file, image_root], LAYOUT)
    return load_coco_json(json_file, image_root, name)


def _thing_metadata() -> dict[str, Any]:
    things = [entry for entry in coco_categories() if entry["isthing"]]
    return {
        "thing_classes": [entry["name"] for entry in things],
        "thing_colors": [entry["color"] for entry in things],
        "thing_dataset_id_to_contiguous_id": {entry["id"]: index for index, entry in enumerate(things)},
    }


def _stuff_metadata(with_things: bool) -> dict[str, Any]:
    """Stuff classes number all 133; the id map holds things too where `with_things`."""
    entries = list(enumerate(coco_categories()))
    return {
        "stuff_classes": [entry["name"] for _, entry in entries],
        "stuff_colors": [entry["color"] for _, entry in entries],
        "stuff_dataset_id_to_contiguous_id": {
            entry["id"]: index for index, entry in entries if with_things or not entry["isthing"]
        },
    }


def _panoptic_metadata(paths: dict[str, str], with_things: bool) -> dict[str, Any]:
    return {
        **_thing_metadata(),
        **_stuff_metadata(with_things),
        **paths,
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": 255,
        "label_divisor": 1000,
    }


def _register_standard(name: str, paths: dict[str, str]) -> None:
    metadata = _panoptic_metadata(paths, with_things=False)
    if name == "coco_2017_val_100_panoptic":  # a name that Mask2Former never uses keeps detectron2's lists
        metadata.update(thing_classes=metadata["stuff_classes"], thing_colors=metadata["stuff_colors"])
    set_dataset(name, functools.partial(load_coco_panoptic, name, **paths), metadata)


def _register_with_sem_seg(name: str, common: dict[str, str], sem_seg_root: str) -> None:
    paths = {**common, "sem_seg_root": sem_seg_root}
    metadata = _panoptic_metadata(paths, with_things=True)
    set_dataset(name, functools.partial(load_coco_panoptic, name, **paths), metadata)


def _register_separated(base: str, common: dict[str, str], stuff_root: str) -> None:
    """The two forms for Panoptic FPN: instances beside stuff, and stuff alone."""
    shared = {
        **_get_builtin_metadata("coco_panoptic_separated"),
        "sem_seg_root": stuff_root,
        "ignore_label": 255,
    }

    def load_stuff() -> Records:
        require_files(f"{base}_stuffonly", [stuff_root, common["image_root"]], LAYOUT)
        return load_sem_seg(stuff_root, common["image_root"])

    def load_both() -> Records:
        name = f"{base}_separated"
        instances = _load_instances(name, common["json_file"], common["image_root"])
        return merge_to_panoptic(instances, load_stuff())

    set_dataset(f"{base}_separated", load_both, {**shared, **common, "evaluator_type": "coco_panoptic_seg"})
    metadata = {**shared, "image_root": common["image_root"], "evaluator_type": "sem_seg"}
    set_dataset(f"{base}_stuffonly", load_stuff, metadata)
