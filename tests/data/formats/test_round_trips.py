"""What is written in a format comes back: the same masks and classes, whatever the format."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.data.formats import CocoData, detect_format, load_data, write_coco
from mask2former.structures.masks import segmentation_to_mask
from tests.data.formats import samples
from tests.data.formats.samples import Sample

# Writer -> format that must be found, whether it keeps classes, and their order.
WRITERS: dict[str, tuple[Callable[[Path, Sample], None], str, list[str] | None]] = {
    "coco polygons": (samples.write_coco, "coco", ["cell", "debris"]),
    "coco rle": (functools.partial(samples.write_coco, rle=True), "coco", ["cell", "debris"]),
    "roboflow": (samples.write_roboflow, "coco", ["cell", "debris"]),
    "label maps png": (samples.write_label_maps, "label_maps", None),
    "label maps tif": (
        functools.partial(samples.write_label_maps, suffix=".tif", directory="masks"),
        "label_maps",
        None,
    ),
    "label maps npy": (functools.partial(samples.write_label_maps, suffix=".npy"), "label_maps", None),
    "name_mask": (samples.write_beside, "label_maps", None),
    "cellpose": (functools.partial(samples.write_beside, ending="_masks", image_ending="_img"), "label_maps", None),
    "binary masks": (samples.write_binary, "label_maps", None),
    "object masks": (samples.write_object_masks, "object_masks", None),
    "yolo": (samples.write_yolo, "yolo", ["debris", "cell"]),
    "voc colors": (samples.write_voc_colors, "voc", ["cell", "debris"]),
    "labelme": (samples.write_labelme, "labelme", ["cell", "debris"]),
    "labelme masks": (samples.write_labelme_masks, "labelme", ["cell", "debris"]),
    "cvat polygons": (samples.write_cvat, "cvat", ["debris", "cell"]),
    "cvat masks": (functools.partial(samples.write_cvat, shape=samples.cvat_mask), "cvat", ["debris", "cell"]),
    "label studio": (samples.write_label_studio, "label_studio", ["cell", "debris"]),
    "label studio brush": (
        functools.partial(samples.write_label_studio, brush=True),
        "label_studio",
        ["cell", "debris"],
    ),
}


def masks_of(data: CocoData) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Return class and mask of every object, by the stem of the image."""
    names = {entry["id"]: entry["name"] for entry in data.content["categories"]}
    result: dict[str, list[tuple[str, np.ndarray]]] = {}
    for image in data.content["images"]:
        size = (image["height"], image["width"])
        result[Path(image["file_name"]).stem.removesuffix("_img")] = [
            (names[entry["category_id"]], segmentation_to_mask(entry["segmentation"], size))
            for entry in data.content["annotations"]
            if entry["image_id"] == image["id"]
        ]
    return result


def assert_same(data: CocoData, expected: Sample, with_classes: bool) -> None:
    found = masks_of(data)
    assert found.keys() == expected.keys()
    for stem, things in expected.items():
        assert len(found[stem]) == len(things)
        for thing in things:
            mask = thing.mask()
            overlaps = [(m & mask).sum() / (m | mask).sum() for _, m in found[stem]]
            best = int(np.argmax(overlaps))
            assert overlaps[best] >= 0.95
            assert not with_classes or found[stem][best][0] == thing.name


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_objects_come_back(name: str, seed: int) -> None:
    write, kind, order = WRITERS[name]
    data = samples.sample(seed)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "données ü"
        write(root, data)
        assert detect_format(root) == kind
        loaded = load_data(root)
        assert len(loaded) == 1
        part = next(iter(loaded.values()))
        assert part.names == (order or ["object"]) and part.format == kind
        assert_same(part, data, order is not None)
        for image in part.content["images"]:
            assert (part.image_root / image["file_name"]).is_file()
        # What is read can be written for DATASETS.COCO_JSON, and read again.
        again = load_data(write_coco(part, Path(directory) / "out" / "all.json"))["all"]
        assert again.content["annotations"] == part.content["annotations"] and again.names == part.names
        assert again.content["images"] == part.content["images"] and again.image_root == part.image_root


def test_voc_palettes_with_void(tmp_path: Path) -> None:
    data = samples.sample(3)
    samples.write_voc(tmp_path, data)
    assert detect_format(tmp_path) == "voc"
    loaded = load_data(tmp_path)
    assert list(loaded) == ["train"] and len(loaded["train"].names) == 20  # the classes of Pascal VOC
    renamed = {"cell": "cat", "debris": "person"}
    expected = {s: [t._replace(name=renamed[t.name]) for t in things] for s, things in data.items()}
    found = masks_of(loaded["train"])
    for stem, things in expected.items():
        for thing in things:
            mask = thing.mask()
            mask[:2] = False  # void
            assert any(n == thing.name and (m == mask).all() for n, m in found[stem])
