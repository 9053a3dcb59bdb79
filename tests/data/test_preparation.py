from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

from mask2former.data.datasets.coco_panoptic import Object
from mask2former.data.image_io import read_panoptic_png
from mask2former.data.preparation import (
    Outcome,
    SegmentIds,
    Stage,
    build_document,
    ensure_picture,
    instance_records,
    is_whole,
    panoptic_picture,
    relabel,
)


def test_ids_are_new_near_their_class_and_the_same_in_every_run() -> None:
    colors = {0: (0, 0, 0), 1: (255, 128, 0), 2: (255, 128, 0)}
    order = [1, 2, 0, 1, 1, 0] * 20
    runs = []
    for _ in range(2):
        ids = SegmentIds(colors)
        runs.append([ids.take(category) for category in order])
    assert runs[0] == runs[1] and len(set(runs[0])) == len(order)
    assert runs[0][0] == 255 + 256 * 128 and 0 not in runs[0]
    for category, segment in zip(order, runs[0]):
        color = np.array([segment % 256, segment // 256 % 256, segment // 65536])
        assert np.abs(color - colors[category]).max() <= 30


def test_panoptic_picture_is_read_back(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 256], [65535, 65536, 0xFFFFFF]])
    Image.fromarray(panoptic_picture(ids)).save(tmp_path / "a.png")
    assert np.array_equal(read_panoptic_png(str(tmp_path / "a.png")), ids)


def test_relabel() -> None:
    values = np.array([[0, 3, 70000]])
    assert relabel(values, {3: 0, 70000: 7, 80000: 1}, 255).tolist() == [[255, 0, 7]]
    assert relabel(values, {0: 846}, 65535, np.uint16).dtype == np.uint16


@pytest.mark.parametrize("name, mode", [("a.png", "L"), ("a.tif", "I;16")])
def test_every_cut_is_noticed(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8 if mode == "L" else np.uint16)
    assert ensure_picture(path, mode, (40, 30), lambda: pixels, False) is Stage.WRITTEN
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert is_whole(path, mode, (40, 30)) and not is_whole(path, mode, (30, 40)) and not is_whole(path, "RGB", (40, 30))
    whole = path.read_bytes()
    noticed = 0
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        if is_whole(path, mode, (40, 30)):  # only the very end is lost, behind the last pixel
            assert np.array_equal(np.asarray(Image.open(path)), pixels), length
        else:
            noticed += 1
    assert noticed > len(whole) // 5 * 0.9
    path.write_bytes(whole[: len(whole) // 2])
    assert ensure_picture(path, mode, (40, 30), lambda: pixels, False) is Stage.REPAIRED
    assert ensure_picture(path, mode, (40, 30), lambda: 1 / 0, False) is Stage.KEPT  # type: ignore[arg-type,return-value]


def test_a_changed_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_whole(path, "L", (40, 30))


def square(value: int, wanted: bool) -> Outcome:
    return Outcome(Stage.WRITTEN, {"id": value, "square": value**2} if wanted else None)


def test_document_is_made_anew_when_pictures_are_added(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"

    def build(*values: int) -> list[int]:
        tasks = {str(value): value for value in values}
        build_document(target, tasks, square, lambda rows: {"images": rows}, workers=1, overwrite=False)
        return [row["square"] for row in json.loads(target.read_text())["images"]]

    assert build(3, 2) == [9, 4]
    assert build(1, 2, 3) == [1, 4, 9]
    target.write_text(target.read_text()[:-5])
    assert build(1, 2, 3) == [1, 4, 9]
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_instances_of_real_panoptic_annotations(shared_dir: Path) -> None:
    """COCO published two pictures in both formats."""
    sample = shared_dir / "data/panoptic_sample/sample_data"
    panoptic = json.loads((sample / "panoptic_examples.json").read_text())
    truth = json.loads((sample / "panoptic_coco_detection_format.json").read_text())["annotations"]
    ours = []
    for annotation in panoptic["annotations"]:
        ids = read_panoptic_png(str(sample / "panoptic_examples" / annotation["file_name"]))
        objects = {s["id"]: Object(s["category_id"], bool(s["iscrowd"])) for s in annotation["segments_info"]}
        ours += instance_records(annotation["image_id"], ids, objects)

    def key(record: dict) -> tuple:
        values = (record[name] for name in ("image_id", "category_id", "iscrowd", "area"))
        return (*values, *map(int, record["bbox"]), coco_mask.decode(record["segmentation"]).tobytes())

    assert len(truth) == 50 and sorted(map(key, ours)) == sorted(map(key, truth))
