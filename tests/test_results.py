"""Results: conversion from a model's output, filtering, saving, COCO records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from mask2former.result_files import CocoDocument
from mask2former.results import InstanceResult, Result
from mask2former.structures.classes import ClassTable

from .stub_model import ALL_PARTS, StubModel

CLASSES = ClassTable(("cell", "sky"), is_thing=(True, False), dataset_ids=(3, 40))
H, W = 6, 10


def result(parts: tuple[str, ...] = ALL_PARTS, **extra: Any) -> Result:
    image = np.full((H, W, 3), 50, dtype=np.uint8)
    return Result.from_output(image, StubModel(parts).answer(H, W), CLASSES, **extra)


def instances(masks: np.ndarray, scores: list[float]) -> InstanceResult:
    n = len(scores)
    labels = np.zeros(n, dtype=np.int64)
    return InstanceResult.from_masks(masks, np.array(scores, np.float32), labels, ("cell",) * n)


def test_instances_come_sorted_with_names_and_boxes_of_their_masks() -> None:
    found = result().instances
    assert found is not None
    np.testing.assert_allclose(found.scores, [0.9, 0.4, 0.0])
    assert found.names == ("cell", "sky", "sky") and found.labels.tolist() == [0, 1, 1]
    assert found.boxes.tolist() == [[0, 0, 5, 6], [0, 0, 10, 1], [0, 0, 0, 0]]
    assert found.masks.dtype == bool and found.masks.shape == (3, H, W)


def test_threshold_drops_instances_and_segments() -> None:
    actual = result(score_threshold=0.5)
    assert actual.instances is not None and actual.instances.names == ("cell",)
    assert actual.panoptic is not None and [s.id for s in actual.panoptic.segments] == [7]
    assert set(np.unique(actual.panoptic.map)) == {0, 7}
    everything = result()
    assert everything.panoptic is not None
    assert [(s.name, s.area, s.is_thing) for s in everything.panoptic.segments] == [
        ("cell", 30, True),
        ("sky", 1, False),
    ]


def test_classes_instead_of_scores_give_the_same_result() -> None:
    output = StubModel(ALL_PARTS).answer(H, W)
    image, classes = np.zeros((H, W, 3), np.uint8), output | {"sem_seg": output["sem_seg"].argmax(0).to(torch.uint8)}
    for labels in (classes, output | {"sem_seg": classes["sem_seg"].int()}):
        found = Result.from_output(image, labels, CLASSES).semantic
        assert found is not None and found.dtype == np.uint8
        np.testing.assert_array_equal(found, Result.from_output(image, output, CLASSES).semantic)


def test_areas_of_segments_are_those_of_the_model_or_counted() -> None:
    ids, segments = StubModel(ALL_PARTS).answer(H, W)["panoptic_seg"]
    assert not any("area" in segment for segment in segments)
    said = [segment | {"area": 100 + i} for i, segment in enumerate(segments)]
    for info, areas in ((segments, [30, 1]), (said, [100, 101]), ([said[0], segments[1]], [30, 1])):
        found = Result.from_output(np.zeros((H, W, 3), np.uint8), {"panoptic_seg": (ids, info)}, CLASSES).panoptic
        assert found is not None and [segment.area for segment in found.segments] == areas


def test_output_without_results_is_explained() -> None:
    with pytest.raises(ValueError, match="PANOPTIC"):
        Result.from_output(np.zeros((2, 2, 3), np.uint8), {"other": 1}, CLASSES)


def test_length_counts_truth_value_and_repr() -> None:
    actual = result(("instances",), path=Path("a/b.png"))
    assert len(actual) == 3 and actual.counts() == {"sky": 2, "cell": 1}
    assert repr(actual) == "Result(b.png, 10x6, 3 instances (2 sky, 1 cell), scores 0.00-0.90)"
    none = actual.filter(0.95)
    assert len(none) == 0 and bool(none) and repr(none) == "Result(b.png, 10x6, 0 instances)"
    assert result().tasks == ("instance", "panoptic", "semantic")
    assert "2 classes (cell, sky)" in repr(result(("sem_seg",)))


def test_filter_by_score_class_and_area() -> None:
    actual = result()
    assert actual.filter(0.3).instances.scores.tolist() == pytest.approx([0.9, 0.4])
    by_name, by_index = actual.filter(classes=["sky"]), actual.filter(classes=[1])
    for selected in (by_name, by_index):
        assert set(selected.instances.names) == {"sky"}
        assert [s.name for s in selected.panoptic.segments] == ["sky"]
        assert set(np.unique(selected.semantic)) == {1, 255}
    assert actual.filter(min_area=11).counts("instance") == {"cell": 1}
    assert len(actual.instances) == 3  # the original stays
    with pytest.raises(ValueError, match=r"no class 'dog'.*cell, sky"):
        actual.filter(classes=["dog"])


def test_overlap_goes_to_the_best_and_duplicates_vanish() -> None:
    masks = np.zeros((4, 8, 8), dtype=bool)
    masks[0, 0:4] = True  # 0.6, half of it is under the next
    masks[1, 2:6] = True  # 0.9
    masks[2, 2:6, 1:] = True  # 0.8, a near-duplicate of it
    masks[3, 7] = True  # 0.1, alone
    kept = instances(masks, [0.6, 0.9, 0.8, 0.1]).without_overlap()
    assert kept.scores.tolist() == pytest.approx([0.6, 0.9, 0.1])
    assert kept.masks.sum(axis=0).max() == 1
    assert [m.sum() for m in kept.masks] == [16, 32, 8]
    assert kept.boxes[0].tolist() == [0, 0, 8, 2]
    assert len(instances(masks, [0.6, 0.9, 0.8, 0.1]).without_overlap(0.1)) == 2


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_without_overlap_never_overlaps_nor_invents_pixels(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 7, 9)) < rng.random((count, 1, 1))
    before = instances(masks, rng.random(count).tolist())
    after = before.without_overlap(1.0)
    if count:
        assert after.masks.sum(axis=0).max(initial=0) <= 1
    np.testing.assert_array_equal(after.masks.any(axis=0), masks.any(axis=0))
    owner = before.label_map()
    np.testing.assert_array_equal(owner > 0, masks.any(axis=0))


def test_boxes_agree_with_pycocotools() -> None:
    masks = np.random.default_rng(0).random((20, 13, 17)) < 0.02
    for mask, (x0, y0, x1, y1) in zip(masks, instances(masks, [0.5] * 20).boxes):
        x, y, w, h = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask.astype(np.uint8))))
        assert (x, y, w, h) == (x0, y0, x1 - x0, y1 - y0)


def test_coco_records_are_json_and_decode_to_the_masks() -> None:
    actual = result().filter(0.1)
    assert actual.to_coco() == actual.to_coco(task="panoptic")  # what counts and draw show
    records = json.loads(json.dumps(actual.to_coco(image_id=5, task="instance")))
    assert [(r["image_id"], r["category_id"]) for r in records] == [(5, 3), (5, 40)]
    for record, mask in zip(records, actual.instances.masks):
        np.testing.assert_array_equal(mask_util.decode(record["segmentation"]), mask)
        assert record["area"] == mask.sum()
    assert records[0]["bbox"] == [0, 0, 5, 6] and records[0]["score"] == pytest.approx(0.9)
    panoptic, semantic = actual.to_coco(task="panoptic"), actual.to_coco(task="semantic")
    assert [(r["category_id"], r["area"]) for r in panoptic] == [(3, 30), (40, 1)]
    assert [(r["category_id"], r["area"], r["score"]) for r in semantic] == [(3, 30, 1.0), (40, 30, 1.0)]


def test_coco_document_is_one_that_pycocotools_loads(tmp_path: Path) -> None:
    coco_file = CocoDocument(CLASSES)
    for name in ("a.png", "b.png"):
        coco_file.add(result(("instances",)).to_coco(), (H, W), name)
    coco = COCO(str(coco_file.save(tmp_path / "out" / "r.json")))
    assert coco.getCatIds() == [3, 40] and [i["file_name"] for i in coco.loadImgs([1, 2])] == [
        "a.png",
        "b.png",
    ]
    assert len(coco.getAnnIds()) == 6 and coco.annToMask(coco.loadAnns(1)[0]).sum() == 30


def test_save_chooses_by_the_ending(tmp_path: Path) -> None:
    actual = result(("instances",))
    for name in ("o.png", "o.jpg", "sub/o.webp"):
        assert actual.save(tmp_path / name, scale=2.0) == [tmp_path / name]
        with Image.open(tmp_path / name) as image:
            assert image.size == (2 * W, 2 * H)
    actual.save(tmp_path / "o.json")
    assert len(json.loads((tmp_path / "o.json").read_text())["annotations"]) == 3
    with pytest.raises(ValueError, match=r"o\.xyz.*\.png"):
        actual.save(tmp_path / "o.xyz")
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".jpg", ".json", ""}


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "o.json"
    target.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        result().save(target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_label_maps_come_back_as_they_were(tmp_path: Path) -> None:
    actual = result(path=Path("x/pic.tif"))
    names = {p.name for p in actual.save(tmp_path / "masks")}
    assert names == {"pic_instances.png", "pic_panoptic.png", "pic_panoptic.json", "pic_semantic.png"}
    read = {name: np.array(Image.open(tmp_path / "masks" / name)) for name in names if name.endswith("png")}
    ids = read["pic_instances.png"]
    assert ids.dtype == np.uint16 and ids[3, 0] == 1 and ids[0, 9] == 2 and ids[5, 9] == 0
    assert ids[0, 0] == 1  # both objects are here, the first has the higher score
    np.testing.assert_array_equal(read["pic_panoptic.png"] @ [1, 256, 65536], actual.panoptic.map)
    np.testing.assert_array_equal(read["pic_semantic.png"], actual.semantic)
    info = json.loads((tmp_path / "masks" / "pic_panoptic.json").read_text())["annotations"][0]
    assert info["file_name"] == "pic_panoptic.png"
    assert [(s["id"], s["category_id"], s["area"]) for s in info["segments_info"]] == [(7, 3, 30), (9, 40, 1)]


def test_more_than_255_classes_are_saved_with_16_bits(tmp_path: Path) -> None:
    table = ClassTable.numbered(300)
    scores = torch.zeros(300, 2, 3)
    scores[299] = 1.0
    actual = Result.from_output(np.zeros((2, 3, 3), np.uint8), {"sem_seg": scores}, table)
    (path,) = actual.save_masks(tmp_path, "s")
    assert (np.array(Image.open(path)) == 299).all()


@pytest.mark.parametrize("task", ["auto", "instance", "panoptic", "semantic"])
def test_every_part_can_be_drawn(task: str) -> None:
    actual = result()
    image = actual.draw(task)
    assert image.size == (W, H) and (np.asarray(image) != 50).any()
    assert actual.draw(task, legend=True).width > W and actual.draw(task, caption="c").height > H


def test_empty_results_can_be_drawn_and_saved(tmp_path: Path) -> None:
    none = result().filter(1.0)
    np.testing.assert_array_equal(np.asarray(none.draw("instance")), none.image)
    np.testing.assert_array_equal(np.asarray(none.draw("panoptic", legend=True)), none.image)
    assert none.to_coco() == [] and len(none.save(tmp_path)) == 4


def test_color_ids_decide_colors_and_asking_for_a_missing_part_is_an_error() -> None:
    actual = result(("instances",)).filter(0.1)
    plain, same, other = (np.asarray(actual.draw(color_ids=c)) for c in (None, [0, 1], [5, 6]))
    np.testing.assert_array_equal(plain, same)
    assert (plain != other).any()
    with pytest.raises(ValueError, match="2 instances"):
        actual.draw(color_ids=[1])
    with pytest.raises(ValueError, match="no panoptic part, only: instance"):
        actual.draw("panoptic")
    assert actual._repr_png_().startswith(b"\x89PNG")


def test_class_table_reads_metadata_of_each_type_of_dataset() -> None:
    panoptic = {
        "thing_classes": ["a"],
        "stuff_classes": ["a", "b", "c"],
        "stuff_colors": [[1, 2, 3]] * 3,
        "thing_dataset_id_to_contiguous_id": {11: 0},
        "stuff_dataset_id_to_contiguous_id": {11: 0, 12: 1, 20: 2},
    }
    table = ClassTable.from_metadata(panoptic, 3)
    assert table is not None
    assert (table.names, table.is_thing, table.dataset_ids) == (
        ("a", "b", "c"),
        (True, False, False),
        (11, 12, 20),
    )
    instance = ClassTable.from_metadata(panoptic, 1)
    assert instance is not None and instance.names == ("a",) and instance.dataset_ids == (11,)
    semantic = ClassTable.from_metadata({"stuff_classes": ["x", "y"]}, 2)
    assert semantic is not None and semantic.is_thing == (False, False) and semantic.dataset_ids == (1, 2)
    assert ClassTable.from_metadata(panoptic, 7) is None
    with pytest.raises(ValueError, match="2 class names but 1"):
        ClassTable(("a", "b"), is_thing=(True,))
