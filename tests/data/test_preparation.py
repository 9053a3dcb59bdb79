from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

from mask2former.data import BadRecordError
from mask2former.data.datasets.coco_panoptic import Object
from mask2former.data.image_io import read_panoptic_png
from mask2former.data.preparation.segments import SegmentIds, instance_records, relabel
from mask2former.data.preparation.work import Outcome, Report, Stage, build_annotation_file, ensure_image, is_complete

from ..panoptic_sample import PanopticSample


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


def test_relabel() -> None:
    values = np.array([[0, 3, 70000]])
    assert relabel(values, {3: 0, 70000: 7, 80000: 1}, 255).tolist() == [[255, 0, 7]]
    assert relabel(values, {0: 846}, 65535, np.uint16).dtype == np.uint16


@pytest.mark.parametrize("name, mode", [("a.png", "L"), ("a.tif", "I;16")])
def test_every_truncation_is_noticed(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8 if mode == "L" else np.uint16)
    assert ensure_image(path, pixels, False) is Stage.WRITTEN
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert is_complete(path, mode, (40, 30))
    assert not is_complete(path, mode, (30, 40)) and not is_complete(path, "RGB", (40, 30))
    content = path.read_bytes()
    noticed = 0
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        if is_complete(path, mode, (40, 30)):  # only the very end is lost, behind the last pixel
            assert np.array_equal(np.asarray(Image.open(path)), pixels), length
        else:
            noticed += 1
    assert noticed > len(content) // 5 * 0.9
    path.write_bytes(content[: len(content) // 2])
    assert ensure_image(path, pixels, False) is Stage.REPAIRED


def test_only_the_same_image_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    ensure_image(path, pixels, False)
    first = path.stat()
    assert ensure_image(path, pixels, False) is Stage.KEPT
    assert path.stat().st_ino == first.st_ino and path.stat().st_mtime_ns == first.st_mtime_ns
    assert ensure_image(path, pixels, True) is Stage.WRITTEN
    for other in (pixels + 1, pixels.T.copy(), np.dstack([pixels] * 3)):
        assert ensure_image(path, other, False) is Stage.REPAIRED
        assert np.array_equal(np.asarray(Image.open(path)), other)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    ensure_image(path, np.zeros((3, 4), np.uint8), False)
    content = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_image(path, np.ones((3, 4), np.uint8), False)
    assert path.read_bytes() == content and [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_changed_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_complete(path, "L", (40, 30))


def square(value: int) -> Outcome:
    if value < 0:
        raise BadRecordError("source", f"{value} is negative")
    return Outcome(Stage.WRITTEN, {"id": value, "square": value**2})


def build(target: Path, *values: int, overwrite: bool = False) -> Report:
    tasks = {str(value): value for value in values}
    return build_annotation_file(target, tasks, square, lambda rows: {"images": rows}, workers=1, overwrite=overwrite)


def squares(target: Path) -> list[int]:
    return [row["square"] for row in json.loads(target.read_text())["images"]]


def test_annotation_file_is_made_again_for_other_images(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    assert build(target, 3, 2).counts[Stage.WRITTEN] == 2 and squares(target) == [9, 4]
    before = target.stat().st_ino
    assert build(target, 3, 2).counts[Stage.KEPT] == 2 and target.stat().st_ino == before
    for values in ((1, 2, 3), (1, 2)):  # added, removed
        build(target, *values)
        assert squares(target) == [value**2 for value in values]
    target.write_text(target.read_text()[:-5])
    assert build(target, 1, 2).counts[Stage.WRITTEN] == 2 and squares(target) == [1, 4]
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_annotation_file_needs_all_images(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    report = build(target, 3, -2, 1)
    assert report.counts[Stage.WRITTEN] == 2 and report.failures == ["source: -2 is negative"]
    assert not list(tmp_path.iterdir())
    build(target, 3, 1)
    assert len(build(target, 3, -2, 1).failures) == 1
    assert squares(target) == [9, 1]  # complete as it was; the next run finds that an image is missing
    with pytest.raises(TypeError):
        build(target, 3, "1", overwrite=True)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())  # what was to be made again does not pass for finished


def test_files_of_single_images_are_made_beside_a_finished_annotation_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    build(target, 1, 2, 3)
    before = target.stat().st_ino
    tasks = {str(value): value for value in (1, 2, 3)}
    report = build_annotation_file(
        target, tasks, square, dict, workers=1, overwrite=False, is_finished=(1, 3).__contains__
    )
    assert (report.counts[Stage.WRITTEN], report.counts[Stage.KEPT]) == (1, 2)
    assert target.stat().st_ino == before


def test_instances_of_panoptic_annotations(panoptic_sample: PanopticSample) -> None:
    ours = []
    for annotation in panoptic_sample.content["annotations"]:
        ids = read_panoptic_png(str(panoptic_sample.panoptic_dir / annotation["file_name"]))
        objects = {s["id"]: Object(s["category_id"], bool(s["iscrowd"])) for s in annotation["segments_info"]}
        ours += instance_records(annotation["image_id"], ids, objects)
    expected = [
        (int(name[:-4]), s["category_id"], s["iscrowd"], s["area"], s["bbox"], mask.tolist())
        for name, s, mask in panoptic_sample.truths()
    ]
    found = [
        (
            *(record[key] for key in ("image_id", "category_id", "iscrowd", "area", "bbox")),
            coco_mask.decode(record["segmentation"]).astype(bool).tolist(),
        )
        for record in ours
    ]
    assert len(expected) == 12 and sorted(found) == sorted(expected)
