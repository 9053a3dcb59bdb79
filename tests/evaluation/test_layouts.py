"""build_evaluator end to end on tiny datasets in the original layouts of ADE20K, Mapillary Vistas and LVIS."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask2former.config import add_maskformer2_config
from mask2former.evaluation import build_evaluator, encode_label_map
from mask2former.structures.panoptic_ids import id_to_rgb

HEIGHT, WIDTH = 12, 24


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.INSTANCE_ON = test.PANOPTIC_ON = True
    return cfg


# (segment id, class index, thing, columns): wall | bed | bed | door, and void
SEGMENTS = ((5, 0, False, (0, 6)), (300, 1, True, (6, 12)), (301, 1, True, (12, 18)), (70000, 2, True, (18, 22)))


def id_map() -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    for segment, _, _, (left, right) in SEGMENTS:
        ids[:, left:right] = segment
    return ids


def panoptic_files(directory: Path, images: list[Any], dataset_ids: list[int], extension: str) -> tuple[Path, Path]:
    """Write the JSON and PNGs; `dataset_ids` by class index."""
    (directory / "panoptic").mkdir(parents=True)
    annotations = []
    for image in images:
        Image.fromarray(id_to_rgb(id_map())).save(directory / "panoptic" / f"{image}.png")
        segments = [
            {"id": i, "category_id": dataset_ids[c], "area": HEIGHT * (b - a), "iscrowd": 0}
            for i, c, _, (a, b) in SEGMENTS
        ]
        annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": segments})
    content = {
        "images": [{"id": i, "file_name": f"{i}{extension}", "height": HEIGHT, "width": WIDTH} for i in images],
        "categories": [
            {"id": dataset_ids[c], "name": name, "isthing": int(c > 0)}
            for c, name in enumerate(("wall", "bed", "door"))
        ],
        "annotations": annotations,
    }
    (directory / "panoptic.json").write_text(json.dumps(content))
    return directory / "panoptic.json", directory / "panoptic"


def label_files(directory: Path, images: list[Any], ignore: int) -> None:
    directory.mkdir(parents=True)
    labels = np.full((HEIGHT, WIDTH), ignore, np.uint8)
    for _, index, _, (left, right) in SEGMENTS:
        labels[:, left:right] = index
    for image in images:
        Image.fromarray(labels).save(directory / f"{image}.png")


class Guess(torch.nn.Module):
    """Return the ground truth as predictions, in the second image shifted by two columns."""

    def __init__(self, classes: tuple[int, int, int]) -> None:
        super().__init__()
        self.classes = classes  # contiguous ids of wall, bed, door

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.output(2 * image["second"]) for image in inputs]

    def output(self, shift: int) -> dict[str, Any]:
        ids = np.roll(id_map(), shift, axis=1)
        panoptic, segments, masks, labels = np.zeros_like(ids), [], [], []
        scores = torch.zeros(max(self.classes) + 1, HEIGHT, WIDTH)
        for number, (segment, index, thing, _) in enumerate(SEGMENTS, start=1):
            mask = ids == segment
            panoptic[mask] = number
            segments.append({"id": number, "category_id": self.classes[index], "isthing": thing})
            scores[self.classes[index]] += torch.from_numpy(mask)
            if thing:
                masks.append(torch.from_numpy(mask))
                labels.append(self.classes[index])
        found = Instances((HEIGHT, WIDTH))
        found.pred_masks, found.pred_classes = torch.stack(masks), torch.tensor(labels)
        found.scores, found.pred_boxes = torch.full((len(masks),), 0.9), Boxes(torch.zeros(len(masks), 4))
        return {"panoptic_seg": (torch.from_numpy(panoptic), segments), "instances": found, "sem_seg": scores}


def check_numbers(results: dict[str, Any]) -> None:
    """Second image: wall and beds moved by two of six columns have IoU 4/8, no match; the door's four, two of them on
    void, 2/4 without void, no match either. So everything is found in one image of two."""
    panoptic = results["panoptic_seg"]
    assert (panoptic["SQ"], panoptic["RQ_st"]) == (100, 50)
    assert panoptic["PQ_th"] == pytest.approx(50)
    # IoU of exactly 0.5 counts in AP50: both beds; the door's is 1/3
    assert results["segm"]["AP50"] == pytest.approx((100 + 100 * 51 / 101) / 2)
    assert results["segm"]["AP-bed"] == pytest.approx((100 + 9 * 100 * 51 / 101) / 10)
    # 22 labeled columns each; in the second 6 of the wall (void gives class 0), 10 of the beds and 2 of the door
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * (22 + 18) / 44)


def records_of(images: list[Any], extension: str, labels: Path | None = None) -> list[dict[str, Any]]:
    result = []
    for number, image in enumerate(images):
        record = {"file_name": f"{image}{extension}", "image_id": image, "second": int(number == 1)}
        if labels is not None:
            record["sem_seg_file_name"] = str(labels / f"{image}.png")
        result.append(record)
    return result


def run(cfg: CfgNode, name: str, model: Guess, records: list[dict[str, Any]]) -> dict[str, Any]:
    return inference_on_dataset(model, [[r] for r in records], build_evaluator(cfg, name))


def test_ade20k_panoptic(cfg: CfgNode, register: Callable[..., str], tmp_path: Path) -> None:
    """Things keep their indices among all classes (7 and 14 of 150); the instance JSON names images by file name."""
    root = tmp_path / "ADEChallengeData2016"
    images = ["ADE_val_00000001", "ADE_val_00000002"]
    panoptic_json, panoptic_root = panoptic_files(root / "ade20k_panoptic_val", images, [0, 7, 14], ".jpg")
    label_files(root / "annotations_detectron2/validation", images, 255)
    for image in images:  # the label maps hold class indices of the 150
        path = root / f"annotations_detectron2/validation/{image}.png"
        table = np.full(256, 255, np.uint8)
        table[[0, 1, 2]] = 0, 7, 14
        Image.fromarray(table[np.array(Image.open(path))]).save(path)
    codes, annotations = encode_label_map(id_map()), []
    for image in images:
        for segment, index, thing, (left, right) in SEGMENTS:
            if thing:
                own = {"id": len(annotations) + 1, "image_id": image, "category_id": [0, 7, 14][index], "iscrowd": 0}
                annotations.append({**own, "area": HEIGHT * (right - left), "segmentation": codes[segment]})
    instance_json = root / "ade20k_instance_val.json"
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in images],
        "categories": [{"id": 7, "name": "bed"}, {"id": 14, "name": "door"}],
        "annotations": annotations,
    }
    instance_json.write_text(json.dumps(content))
    records = records_of(images, ".jpg", root / "annotations_detectron2/validation")
    name = register(
        "test_ade20k_panoptic",
        records,
        evaluator_type="ade20k_panoptic_seg",
        panoptic_json=str(panoptic_json),
        panoptic_root=str(panoptic_root),
        json_file=str(instance_json),
        ignore_label=255,
        label_divisor=1000,
        thing_classes=["bed", "door"],
        stuff_classes=[
            "wall",
            *(f"class {i}" for i in range(1, 7)),
            "bed",
            *(f"class {i}" for i in range(8, 14)),
            "door",
        ],
        thing_dataset_id_to_contiguous_id={7: 7, 14: 14},
        stuff_dataset_id_to_contiguous_id={i: i for i in range(15)},
    )
    results = run(cfg, name, Guess((0, 7, 14)), records)
    check_numbers(results)
    assert math.isnan(results["sem_seg"]["IoU-class 3"])


@pytest.mark.parametrize("with_json", [False, True])
def test_mapillary_panoptic(cfg: CfgNode, register: Callable[..., str], tmp_path: Path, with_json: bool) -> None:
    """Image ids are names, classes count from 1, the ignored label is the last; instances from the panoptic files."""
    root = tmp_path / "mapillary_vistas/validation"
    images = ["-3QvNSV1", "_a9_d"]
    panoptic_json, panoptic_root = panoptic_files(root, images, [1, 2, 3], ".jpg")
    label_files(root / "labels", images, 3)
    records = records_of(images, ".jpg", root / "labels")
    name = register(
        "test_mapillary_panoptic",
        records,
        evaluator_type="mapillary_vistas_panoptic_seg",
        panoptic_json=str(panoptic_json),
        panoptic_root=str(panoptic_root),
        json_file=None,
        ignore_label=3,
        label_divisor=1000,
        thing_classes=["wall", "bed", "door"],
        stuff_classes=["wall", "bed", "door"],
        thing_dataset_id_to_contiguous_id={2: 1, 3: 2},
        stuff_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2},
    )
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR if with_json else ""
    results = run(cfg, name, Guess((0, 1, 2)), records)
    check_numbers(results)
    assert results["segm"]["AP-door"] == pytest.approx(100 * 51 / 101)
    written = {p.name for p in Path(tmp_path / "out").rglob("*.json")}
    expected = {"coco_instances_results.json", "sem_seg_predictions.json", "predictions.json"}
    assert written == (expected if with_json else set())


def test_crowds_of_panoptic_annotations_stay_crowds(register: Callable[..., str], tmp_path: Path, cfg: CfgNode) -> None:
    panoptic_json, panoptic_root = panoptic_files(tmp_path / "p", ["a", "b"], [1, 2, 3], ".jpg")
    content = json.loads(panoptic_json.read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"][3]["iscrowd"] = 1  # the door
    panoptic_json.write_text(json.dumps(content))
    name = register(
        "test_crowds",
        evaluator_type="mapillary_vistas_panoptic_seg",
        panoptic_json=str(panoptic_json),
        panoptic_root=str(panoptic_root),
        thing_dataset_id_to_contiguous_id={2: 1, 3: 2},
    )
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.PANOPTIC_ON = False
    segm = run(cfg, name, Guess((0, 1, 2)), records_of(["a", "b"], ".jpg"))["segm"]
    assert math.isnan(segm["AP-door"])
    assert segm["AP"] == segm["AP-bed"] > 0


def test_full_ade20k_semantic(cfg: CfgNode, register: Callable[..., str], tmp_path: Path) -> None:
    """847 classes in 16-bit TIFF files, 65535 ignored."""
    root = tmp_path / "ADE20K_2021_17_01/annotations_detectron2/validation"
    root.mkdir(parents=True)
    labels = np.full((HEIGHT, WIDTH), 65535, np.uint16)
    labels[:, :10], labels[:, 10:20] = 300, 846
    Image.fromarray(labels).save(root / "ADE_val_00000001.tif")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(root / "ADE_val_00000001.tif")}
    name = register(
        "test_ade20k_full",
        [record],
        evaluator_type="sem_seg",
        ignore_label=65535,
        stuff_classes=[f"class {i}" for i in range(847)],
    )
    scores = torch.zeros(847, HEIGHT, WIDTH)
    scores[300, :, :12], scores[846, :, 12:] = 1, 1
    cfg.TEST.SEMANTIC_PQ = cfg.TEST.BOUNDARY_IOU = True
    evaluator = build_evaluator(cfg, name)
    evaluator.process([record], [{"sem_seg": scores}])
    metrics = evaluator.evaluate()["sem_seg"]
    assert metrics["IoU-class 300"] == pytest.approx(100 * 10 / 12)
    assert metrics["IoU-class 846"] == pytest.approx(100 * 8 / 10)
    assert metrics["mIoU"] == pytest.approx(100 * (10 / 12 + 8 / 10) / 2)
    assert metrics["PQ"] == pytest.approx(metrics["mIoU"])
    assert 0 < metrics["mBIoU"] < metrics["mIoU"]


def test_lvis_without_its_package(cfg: CfgNode, register: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(ValueError, match="pip install lvis"):
        build_evaluator(cfg, register("test_lvis", evaluator_type="lvis", json_file="unused.json"))


def test_lvis(cfg: CfgNode, register: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("lvis")
    codes = encode_label_map(id_map())
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "area": 72, "bbox": [left, 0, right - left, HEIGHT]}
        | {"segmentation": {**codes[segment], "counts": codes[segment]["counts"]}}
        for n, (i, (segment, c, thing, (left, right))) in enumerate(
            ((i, s) for i in (1, 2) for s in SEGMENTS if s[2]), start=1
        )
    ]
    content = {
        "images": [
            {"id": i, "height": HEIGHT, "width": WIDTH, "neg_category_ids": [], "not_exhaustive_category_ids": []}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "bed", "frequency": "f"}, {"id": 2, "name": "door", "frequency": "r"}],
        "annotations": annotations,
    }
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
    name = register(
        "test_lvis",
        evaluator_type="lvis",
        json_file=str(tmp_path / "lvis_v1_val.json"),
        thing_dataset_id_to_contiguous_id={1: 1, 2: 2},
        thing_classes=["", "bed", "door"],
    )
    segm = run(cfg, name, Guess((0, 1, 2)), records_of([1, 2], ".jpg"))["segm"]
    assert segm["APf"] == pytest.approx((100 + 9 * 100 * 51 / 101) / 10)
    assert segm["APr"] == pytest.approx(100 * 51 / 101)
