"""Files of results: which name gives which content, and label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from mask2former.result_files import write_label_map
from mask2former.result_objects import ObjectList
from mask2former.results import InstanceResult, Result
from mask2former.structures.classes import ClassTable
from mask2former.structures.mask_list import MaskList
from mask2former.structures.masks import Patch

from .stub_model import ALL_PARTS, StubModel

CLASSES = ClassTable(("cell", "sky"), is_thing=(True, False))


def stub(parts: tuple[str, ...] = ALL_PARTS, **extra: Any) -> Result:
    return Result.from_output(np.full((6, 10, 3), 50, np.uint8), StubModel(parts).answer(6, 10), CLASSES, **extra)


@pytest.mark.parametrize("name", ["labels.tif", "a_labels.tif", "A_Labels.TIFF", "labels.png", "a_labels.png"])
def test_names_of_label_maps(tmp_path: Path, name: str) -> None:
    result = stub(("instances",))
    assert result.save(tmp_path / name) == [tmp_path / name]
    image = np.array(Image.open(tmp_path / name))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, result.instances.label_map())


@pytest.mark.parametrize("name", ["cells.tif", "mylabels.tif", "labels_overlay.png", "labels.jpg", "labels.bmp"])
def test_other_names_are_overlays_as_before(tmp_path: Path, name: str) -> None:
    result = stub(("instances",))
    result.save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == "RGB"
    assert (
        result.save(tmp_path / "labels.tif", kind="image", alpha=0.5)
        and Image.open(tmp_path / "labels.tif").mode == "RGB"
    )


def test_kind_decides(tmp_path: Path) -> None:
    result = stub()
    result.save(tmp_path / "cells.tif", kind="labels")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "cells.tif"), result.panoptic.map)
    result.save(tmp_path / "table.txt", kind="table")
    assert (tmp_path / "table.txt").read_text().startswith("image,id,class")
    assert len(result.save(tmp_path / "a.b", kind="masks")) == 4
    for name, kind in (("x.jpg", "labels"), ("x.csv", "image"), ("x.tif", "label")):
        with pytest.raises(ValueError, match=kind if kind == "label" else name):
            result.save(tmp_path / name, kind=kind)
        assert not (tmp_path / name).exists()


def test_label_maps_of_every_task_hold_the_ids_of_the_table(tmp_path: Path) -> None:
    result = stub()
    for task in ("instance", "panoptic", "semantic"):
        result.save(tmp_path / "labels.tif", task=task)
        read = tifffile.imread(tmp_path / "labels.tif")
        ids = {row["id"] for row in result.to_rows(task) if row["area"]}
        assert set(np.unique(read)) - {0} == ids
        if task != "instance":  # there, objects overlap
            assert all(np.count_nonzero(read == row["id"]) == row["area"] for row in result.to_rows(task))
    np.testing.assert_array_equal(read, result.semantic + 1)


def test_void_is_background(tmp_path: Path) -> None:
    result = stub(("sem_seg",)).filter(classes=["sky"])
    result.save(tmp_path / "labels.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels.tif"), np.where(result.semantic == 1, 2, 0))


def test_more_than_65535_objects_do_not_wrap(tmp_path: Path) -> None:
    size, n = (270, 250), 270 * 250
    pixel = np.ones((1, 1), bool)
    masks = MaskList((Patch(*divmod(i, size[1]), pixel) for i in range(n)), size)
    ids = np.arange(1, n + 1)
    label_map = ObjectList(masks, ids, ids, ("a",) * n, (1.0,) * n).label_map()
    assert label_map.dtype == np.uint32
    np.testing.assert_array_equal(label_map.ravel(), ids)
    write_label_map(tmp_path / "labels.tif", label_map)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels.tif"), label_map)
    with pytest.raises(ValueError, match=r"labels\.png: 67500 is too large.*\.tif"):
        write_label_map(tmp_path / "labels.png", label_map)


def test_label_map_of_instances_is_wide_enough() -> None:
    n = 65_537
    masks = np.zeros((n, 1, 1), bool)
    masks[-1] = True
    instances = InstanceResult.from_masks(masks, np.ones(n, np.float32), np.zeros(n, np.int64), ("a",) * n)
    assert instances.label_map().tolist() == [[n]]


def test_label_map_agrees_with_that_of_instances() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 9, 9)) < 0.4
    scores = np.array([0.5, 0.9, 0.5, 0.1, 0.9, 0.5], np.float32)
    instances = InstanceResult.from_masks(masks, scores, np.zeros(6, np.int64), ("cell",) * 6)
    result = Result(np.zeros((9, 9, 3), np.uint8), CLASSES, instances)
    np.testing.assert_array_equal(result.objects().label_map(), instances.label_map())
