"""Shapes of objects: round trips through pycocotools, shapely, supervision and the readers of each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import shapely
import supervision
import yaml
from PIL import Image
from pycocotools.coco import COCO
from shapely.geometry import shape as from_geojson

from mask2former import result_shapes
from mask2former.result_objects import ObjectList
from mask2former.result_shapes import labelme_record, save_labelme, save_yolo, yolo_lines
from mask2former.result_tables import rows
from mask2former.results import InstanceResult, Result
from mask2former.structures.classes import ClassTable
from mask2former.structures.mask_list import MaskList
from mask2former.structures.masks import Patch

from .stub_model import ALL_PARTS, StubModel

CLASSES = ClassTable(("cell", "sky: =1"), is_thing=(True, False), dataset_ids=(3, 40))
H, W = 40, 60


def stub(parts: tuple[str, ...] = ALL_PARTS, **extra: Any) -> Result:
    return Result.from_output(np.full((6, 10, 3), 50, np.uint8), StubModel(parts).answer(6, 10), CLASSES, **extra)


def shapes(**extra: Any) -> Result:
    """Return a disk, a ring, an object of two parts, one pixel, and an object without pixels."""
    y, x = np.indices((H, W))
    masks = np.zeros((5, H, W), bool)
    masks[0] = (x - 12) ** 2 + (y - 12) ** 2 < 100
    masks[1] = ((x - 40) ** 2 + (y - 15) ** 2 < 150) & ((x - 40) ** 2 + (y - 15) ** 2 > 30)
    masks[2, 30:38, 3:20] = masks[2, 32:39, 30:50] = True
    masks[3, 39, 59] = True
    labels = np.array([0, 1, 0, 1, 0])
    names = tuple(CLASSES.names[k] for k in labels)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Result(image, CLASSES, InstanceResult.from_masks(masks, scores, labels, names), **extra)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def rasterized(polygons: list[list[float]]) -> np.ndarray:
    codes = coco_mask.frPyObjects([[float(v) for v in polygon] for polygon in polygons], H, W)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


# ------------------------------------------------------------------ COCO
def test_coco_polygons_give_the_masks_back(tmp_path: Path) -> None:
    result = shapes(path=Path("x.png"))
    (path,) = result.save(tmp_path / "r.json", polygons=True)
    coco = COCO(str(path))
    for i, mask in enumerate(result.instances.masks):
        (annotation,) = coco.loadAnns([i + 1])
        np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
    kinds = [annotation["segmentation"] for annotation in coco.loadAnns(range(1, 6))]
    assert [len(k) for k in kinds[:4]] == [1, 1, 2, 1] and "counts" in kinds[4]  # no polygon without pixels
    for task in ("panoptic", "semantic"):
        assert all(isinstance(r["segmentation"], list) for r in stub().to_coco(task=task, polygons=True))


def test_simplified_polygons_stay_near() -> None:
    exact, simple = (shapes().to_coco(polygons=True, tolerance=t) for t in (0.0, 1.0))
    for mask, a, b in zip(shapes().instances.masks[:3], exact, simple):
        assert iou(rasterized(b["segmentation"]), mask) > 0.9
        assert sum(map(len, b["segmentation"])) <= sum(map(len, a["segmentation"]))


# ------------------------------------------------------------------ GeoJSON, shapely
def test_geojson_in_shapely_and_for_qupath(tmp_path: Path) -> None:
    result = shapes()
    (path,) = result.save(tmp_path / "r.geojson")
    content = json.loads(path.read_text())
    assert content == result.to_geojson() and content["type"] == "FeatureCollection"
    for feature, mask in zip(content["features"], result.instances.masks[:4], strict=True):
        geometry = from_geojson(feature["geometry"])
        assert geometry.is_valid and geometry.area == mask.sum() == feature["properties"]["area"]
        y, x = np.indices((H, W)) + 0.5
        np.testing.assert_array_equal(shapely.contains_xy(geometry, x, y), mask)
    properties = content["features"][1]["properties"]
    assert properties["objectType"] == "detection" and properties["id"] == 2
    assert properties["classification"] == {"name": "sky: =1", "color": list(CLASSES.colors[1])}
    assert properties["measurements"]["score"] == pytest.approx(0.8)
    assert [f["geometry"]["type"] for f in content["features"]] == ["Polygon", "Polygon", "MultiPolygon", "Polygon"]


def test_geojson_in_coordinates_of_a_map() -> None:
    north_up = (0.5, 0.0, 1000.0, 0.0, -0.5, 2000.0)
    for transform in (north_up, (*north_up, 0.0, 0.0, 1.0)):  # affine.Affine is a tuple of 9
        features = shapes().to_geojson(transform=transform)["features"]
        for feature, mask in zip(features, shapes().instances.masks):
            geometry = from_geojson(feature["geometry"])
            assert geometry.is_valid and geometry.area == mask.sum() / 4
            parts = getattr(geometry, "geoms", [geometry])
            assert all(part.exterior.is_ccw and not any(hole.is_ccw for hole in part.interiors) for part in parts)
        assert from_geojson(features[3]["geometry"]).bounds == (1029.5, 1980.0, 1030.0, 1980.5)
    for wrong in ((1, 2, 3), (1, 0, 0, 0, float("nan"), 0)):
        with pytest.raises(ValueError, match="six numbers"):
            shapes().to_geojson(transform=wrong)


def test_shapely() -> None:
    result = shapes()
    polygons = result.to_shapely()
    assert [p.geom_type for p in polygons] == ["Polygon", "Polygon", "MultiPolygon", "Polygon", "Polygon"]
    assert [p.area for p in polygons] == [m.sum() for m in result.instances.masks] and polygons[4].is_empty
    assert all(p.is_valid for p in polygons)
    assert polygons[1].bounds == tuple(result.instances.boxes[1])


# ------------------------------------------------------------------ supervision
@pytest.mark.parametrize("compact", [False, True, None])
def test_supervision(compact: bool | None) -> None:
    result = shapes()
    detections = result.to_supervision(compact=compact)
    assert len(detections) == 5 and detections.class_id.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(np.asarray(detections.mask), result.instances.masks)
    np.testing.assert_array_equal(detections.xyxy, result.instances.boxes)
    assert detections.confidence == pytest.approx(result.instances.scores)
    assert detections["class_name"].tolist() == list(result.instances.names)
    best = detections[detections.confidence > 0.75]
    assert len(best) == 2 and np.asarray(best.mask)[1].sum() == result.instances.masks[1].sum()
    annotated = supervision.MaskAnnotator().annotate(result.image.copy(), detections)
    assert (annotated != result.image).any()
    assert len(result.filter(1.0).to_supervision(compact=compact)) == 0
    assert stub().to_supervision("semantic").confidence.tolist() == [1, 1]


@pytest.mark.parametrize(("name", "method"), [("shapely", "to_shapely"), ("supervision", "to_supervision")])
def test_missing_packages_are_explained(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install \"{name}"):
        getattr(shapes(), method)()


# ------------------------------------------------------------------ LabelMe, YOLO
def test_labelme_record() -> None:
    record = labelme_record(shapes(path=Path("dir/x.tif")), tolerance=0)
    assert (record["imagePath"], record["imageData"], record["imageHeight"], record["imageWidth"]) == (
        "x.tif",
        None,
        H,
        W,
    )
    assert [s["label"] for s in record["shapes"]] == ["cell", "sky: =1", "cell", "cell", "sky: =1"]
    assert [s["group_id"] for s in record["shapes"]] == [None, None, 3, 3, None]
    assert {s["shape_type"] for s in record["shapes"]} == {"polygon"} and record["shapes"][0][
        "description"
    ] == "score 0.900"
    np.testing.assert_array_equal(rasterized([np.ravel(record["shapes"][1]["points"])]), shapes().instances.masks[1])
    few = labelme_record(shapes())["shapes"]
    assert len(few[0]["points"]) < len(record["shapes"][0]["points"]) / 2


def test_labelme_directory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(shapes().image).save(tmp_path / "images" / "x.png")
    results = [shapes(path=tmp_path / "images" / "x.png"), shapes(path=Path("gone/X.npy")), shapes()]
    directory = tmp_path / "out"
    written = save_labelme(iter(results), directory)
    assert [path.name for path in written] == ["x.json", "X_2.json", "image.json"]
    for path, image_path in zip(written, ["../images/x.png", "X_2.png", "image.png"], strict=True):
        record = json.loads(path.read_text())
        assert record["imagePath"] == image_path
        np.testing.assert_array_equal(np.asarray(Image.open(directory / image_path)), shapes().image)
    written[0].write_text("corrected")
    with pytest.raises(FileExistsError, match=r"x\.json exists.*overwrite=True"):
        save_labelme(results, directory)
    assert written[0].read_text() == "corrected"
    assert save_labelme(results, directory, overwrite=True) == written


@pytest.mark.parametrize("save", [save_labelme, save_yolo])
def test_pages_become_images_of_their_own(tmp_path: Path, save: Any) -> None:
    stack = tmp_path / "stack.tif"
    Image.new("L", (W, H)).save(stack, save_all=True, append_images=[Image.new("L", (W, H), 9)])
    save([shapes(path=stack, page=k) for k in (0, 1)], tmp_path / "out")
    images = {path.name for path in (tmp_path / "out").rglob("*.png")}
    assert images == {"stack.png", "stack_2.png"} and not list((tmp_path / "out").rglob("*.tif"))


def test_labelme_never_replaces_another_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"another image")
    (tmp_path / "x.npy").touch()
    with pytest.raises(FileExistsError, match="may be another image"):
        save_labelme([shapes(path=tmp_path / "x.npy")], tmp_path)
    assert (tmp_path / "x.png").read_bytes() == b"another image"


@pytest.mark.parametrize("save", [save_labelme, save_yolo])
def test_images_that_tools_would_show_in_another_way_become_png(tmp_path: Path, save: Any) -> None:
    """One that EXIF turns would lie under polygons of the image that the model saw."""
    turned, deep = Image.new("RGB", (H, W)), Image.fromarray(np.zeros((H, W), np.uint16))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    deep.save(tmp_path / "deep.png")
    (tmp_path / "broken.jpg").write_bytes(b"")
    names = ("turned.jpg", "deep.png", "broken.jpg")
    save([shapes(path=tmp_path / name) for name in names], tmp_path / "out")
    images = sorted(path for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".jpg", ".png"))
    assert [path.name for path in images] == ["broken.png", "deep.png", "turned.png"]
    for path in images:
        np.testing.assert_array_equal(np.asarray(Image.open(path)), shapes().image)


def test_yolo_never_replaces_another_image(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (W, H), (value, 0, 0)).save(tmp_path / name / "x.png")
    result = shapes(path=tmp_path / "one/x.png")
    save_yolo([result], tmp_path / "out")
    (tmp_path / "out/labels/x.txt").unlink()
    save_yolo([result], tmp_path / "out")  # the same image
    (tmp_path / "out/labels/x.txt").unlink()
    with pytest.raises(FileExistsError, match="may be another image"):
        save_yolo([shapes(path=tmp_path / "two/x.png")], tmp_path / "out")
    assert (tmp_path / "out/images/x.png").read_bytes() == (tmp_path / "one/x.png").read_bytes()


def test_yolo_lines_give_the_masks_back() -> None:
    result = shapes()
    lines = yolo_lines(result)
    assert [line.split()[0] for line in lines] == ["0", "1", "0", "1"]  # one for each object that has pixels
    for line, mask in zip(lines, result.instances.masks):
        values = np.array(line.split()[1:], float).reshape(-1, 2)
        assert values.min() >= 0 and values.max() <= 1
        np.testing.assert_array_equal(rasterized([(values * (W, H)).ravel()]), mask)


def test_yolo_directory(tmp_path: Path) -> None:
    Image.fromarray(shapes().image).save(tmp_path / "x.bmp")
    results = [shapes(path=tmp_path / "x.bmp"), shapes(path=Path("gone/x.png")), shapes().filter(1.0)]
    written = save_yolo(iter(results), tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert names == ["labels/x.txt", "labels/x_2.txt", "labels/image.txt", "data.yaml"]
    images = {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert images == {"x.bmp", "x_2.png", "image.png"}
    assert written[2].read_text() == ""
    content = yaml.safe_load(written[3].read_text())
    assert content == {"train": "images", "val": "images", "names": {0: "cell", 1: "sky: =1"}}
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "out" / "images"), str(tmp_path / "out" / "labels"), str(written[3]), force_masks=True
    )
    by_name = {Path(name).name: detections for name, _, detections in dataset}
    assert len(by_name["x_2.png"]) == 4 and len(by_name["image.png"]) == 0
    assert iou(np.asarray(by_name["x.bmp"].mask)[0], shapes().instances.masks[0]) > 0.85  # it fills the edge, too
    with pytest.raises(FileExistsError, match=r"x\.txt exists"):
        save_yolo(results, tmp_path / "out")
    other = Result(shapes().image, ClassTable(("other",)), shapes().instances.select(np.zeros(5, bool)))
    with pytest.raises(ValueError, match="different classes"):
        save_yolo([shapes(), other], tmp_path / "mixed")
    assert save_yolo([], tmp_path / "none") == []


# ------------------------------------------------------------------ many objects
class Crowd:
    """2,000 disks in an image of 2,000 x 2,000 pixels: 8 GB as dense masks."""

    size = (2000, 2000)
    image = np.zeros((*size, 3), np.uint8)
    classes = CLASSES
    path = None

    def objects(self, task: str = "auto") -> ObjectList:
        y, x = np.indices((41, 41)) - 20
        bits = x**2 + y**2 < 400
        patches = [Patch(40 * (i // 48) + 5, 40 * (i % 48) + 3, bits) for i in range(2000)]
        ids, labels = np.arange(1, 2001), np.zeros(2000, np.int64)
        return ObjectList(MaskList(patches, self.size), ids, labels, ("cell",) * 2000, (0.5,) * 2000)


@pytest.mark.slow
def test_many_objects_need_no_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MaskList, "dense")
    crowd = Crowd()
    assert len(rows(crowd, intensity=True)) == 2000
    assert len(result_shapes.geojson(crowd)["features"]) == 2000
    assert len(result_shapes.supervision_detections(crowd)) == 2000
    assert len(result_shapes.shapely_polygons(crowd)) == 2000
    assert len(yolo_lines(crowd)) == 2000
    assert len(labelme_record(crowd)["shapes"]) == 2000
    assert crowd.objects().label_map().max() == 2000
