"""evaluate_coco_boundary_ap.py and evaluate_pq_for_semantic_segmentation.py against metrics computed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import evaluate_coco_boundary_ap as boundary_tool
import evaluate_pq_for_semantic_segmentation as pq_tool
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

SIDE = 200


def rle(mask: np.ndarray) -> dict[str, object]:
    code = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def ring(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of the mask within `width` pixels of the background (the mask does not touch the border)."""
    inner = mask.copy()
    for _ in range(width):
        grown = ~inner
        outside = grown.copy()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                outside |= np.roll(grown, (dy, dx), (0, 1))
        inner = ~outside
    return mask & ~inner


def percent_of_thresholds(overlap: float) -> float:
    """Compute the AP of one object with one detection of this IoU."""
    return 100 * float(np.mean([overlap >= 0.5 + 0.05 * i for i in range(10)]))


@pytest.fixture
def coco_files(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    truth, found = rectangle(30, 30, 100, 100), rectangle(30, 36, 100, 100)
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "area": 10000, "bbox": [30, 30, 100, 100]}
    gt = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": SIDE, "width": SIDE}],
        "categories": [{"id": 3, "name": "box"}, {"id": 4, "name": "absent"}],
        "annotations": [{**annotation, "segmentation": rle(truth)}],
    }
    dt = [{"image_id": 7, "category_id": 3, "score": 0.9, "segmentation": rle(found), "bbox": [36, 30, 100, 100]}]
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    (tmp_path / "dt.json").write_text(json.dumps(dt))
    return tmp_path / "gt.json", tmp_path / "dt.json", truth, found


def boundary_numbers(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, float]:
    assert boundary_tool.main([str(arg) for arg in args]) == 0
    table, summary = re.split(r"\n.* AP of .*\n", capsys.readouterr().out)
    numbers = {name: float(value) for name, value in (line.split() for line in summary.splitlines())}
    of_class = re.search(r"\| box +\| ([\d.]+)", table)
    assert of_class is not None and float(of_class[1]) == numbers["AP"]  # the only class with ground truth
    assert re.search(r"\| absent +\| nan", table)
    return numbers


@pytest.mark.parametrize(("ratio", "width"), [(None, 6), (0.05, 14)])  # of the diagonal 282.8
def test_boundary_ap_by_hand(
    coco_files: tuple[Path, Path, np.ndarray, np.ndarray],
    ratio: float | None,
    width: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gt, dt, truth, found = coco_files
    overlap = min(iou(truth, found), iou(ring(truth, width), ring(found, width)))
    assert 0.5 < iou(truth, found) - 0.2 < 1 and overlap < iou(truth, found) - 0.1
    extra = [] if ratio is None else ["--dilation-ratio", ratio]
    numbers = boundary_numbers(capsys, "--gt-json-file", gt, "--dt-json-file", dt, *extra)
    assert numbers["AP"] == pytest.approx(percent_of_thresholds(overlap), abs=1e-3)
    assert numbers["AP50"] == (100 if overlap >= 0.5 else 0)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_other_iou_types(
    coco_files: tuple[Path, Path, np.ndarray, np.ndarray], iou_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gt, dt, truth, found = coco_files
    numbers = boundary_numbers(capsys, "--gt-json-file", gt, "--dt-json-file", dt, "--iou-type", iou_type)
    assert numbers["AP"] == pytest.approx(percent_of_thresholds(iou(truth, found)), abs=1e-3)
    assert numbers["AP"] == 80  # IoU 94 / 106 = 0.887


def test_no_predictions_are_zero(
    coco_files: tuple[Path, Path, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    gt, dt, _, _ = coco_files
    dt.write_text("[]")
    numbers = boundary_numbers(capsys, "--gt-json-file", gt, "--dt-json-file", dt)
    assert numbers["AP"] == 0 and np.isnan(numbers["APs"])


def test_boundary_mistakes_are_explained(
    coco_files: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gt, dt, _, _ = coco_files

    def message(*args: object) -> str:
        assert boundary_tool.main([str(arg) for arg in args]) == 1
        return capsys.readouterr().err

    assert "nowhere.json" in message("--gt-json-file", tmp_path / "nowhere.json", "--dt-json-file", dt)
    assert "nowhere.json" in message("--gt-json-file", gt, "--dt-json-file", tmp_path / "nowhere.json")
    both = ("--gt-json-file", gt, "--dt-json-file", dt)
    assert "dilation-ratio must lie between 0 and 1" in message(*both, "--dilation-ratio", "2")
    swapped = message("--gt-json-file", dt, "--dt-json-file", gt)
    assert str(dt) in swapped and "list, but must contain an object" in swapped
    wrong = message("--gt-json-file", gt, "--dt-json-file", gt)
    assert str(gt) in wrong and "list" in wrong
    dt.write_text(json.dumps([{"image_id": 7, "category_id": 3}]))
    assert str(dt) in (missing := message(*both)) and "score" in missing


@pytest.fixture
def semantic_dataset(tmp_path: Path) -> Iterator[str]:
    """Register two images of 4 x 10 with the classes sky, road, car; label 255 is void; dataset ids 11, 12, 13."""
    label_maps = {"a": np.zeros((4, 10), np.uint8), "b": np.ones((4, 10), np.uint8)}
    label_maps["a"][2:] = 1  # half sky, half road
    label_maps["b"][:, 8:] = 255  # road and void
    records = []
    for name, labels in label_maps.items():
        Image.fromarray(labels).save(tmp_path / f"{name}.png")
        record = {"file_name": f"{name}.jpg", "sem_seg_file_name": str(tmp_path / f"{name}.png")}
        records.append({**record, "height": 4, "width": 10})
    name = f"pq_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    ids = {11: 0, 12: 1, 13: 2}
    MetadataCatalog.get(name).set(
        stuff_classes=["sky", "road", "car"], ignore_label=255, stuff_dataset_id_to_contiguous_id=ids
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def predictions(**images: np.ndarray) -> list[dict[str, object]]:
    return [
        {"file_name": f"{name}.jpg", "category_id": int(label), "segmentation": rle(labels == label)}
        for name, labels in images.items()
        for label in np.unique(labels)
    ]


def test_semantic_pq_by_hand(semantic_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = np.full((4, 10), 11), np.full((4, 10), 12)
    a[1:] = 12  # sky: 10 of 20 pixels, IoU 0.5, not above: a false negative and a false positive; road: 20 / 30
    b[0, :8] = 13  # a car that is not there; road: 24 of 32 pixels, void does not count
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(predictions(a=a, b=b)))
    assert pq_tool.main(["--dataset-name", semantic_dataset, "--json-file", str(file)]) == 0
    out = capsys.readouterr().out
    numbers = {name: float(value) for name, value in re.findall(r"(PQ|SQ|RQ) ([\d.]+|nan)", out.splitlines()[-1])}
    road = (20 / 30 + 24 / 32) / 2
    assert numbers["PQ"] == pytest.approx(100 * road / 3, abs=1e-3)  # sky 0, road, car 0
    assert numbers["RQ"] == pytest.approx(100 / 3, abs=1e-3)
    assert numbers["SQ"] == pytest.approx(100 * road / 3, abs=1e-3)
    for name, value in (("sky", 0), ("road", 100 * road), ("car", 0)):
        assert re.search(rf"\| {name} +\| {value:.3f}", out), (name, out)


def test_perfect_prediction_and_absent_class(
    semantic_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = np.full((4, 10), 11), np.full((4, 10), 12)
    a[2:] = 12
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(predictions(a=a, b=b)))
    assert pq_tool.main(["--dataset-name", semantic_dataset, "--json-file", str(file)]) == 0
    out = capsys.readouterr().out
    assert "PQ 100.000  SQ 100.000  RQ 100.000" in out and re.search(r"\| car +\| nan", out)


def test_pq_mistakes_are_explained(semantic_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps([{"file_name": "a.jpg", "category_id": 99, "segmentation": rle(np.ones((4, 10)))}]))

    def message(*args: str) -> str:
        assert pq_tool.main(["--json-file", str(file), *args]) == 1
        return capsys.readouterr().err

    assert "99" in message("--dataset-name", semantic_dataset)
    assert "Did you mean" in (text := message("--dataset-name", "ade20k_sem_seg_va")) and "ade20k_sem_seg_val" in text
    file.unlink()
    assert "predictions.json" in message("--dataset-name", semantic_dataset)


def test_dataset_that_a_config_registers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "pq_cells"
    for sub in ("images", "labels"):
        (directory / sub).mkdir(parents=True)
    Image.fromarray(np.zeros((4, 10, 3), np.uint8)).save(directory / "images" / "a.png")
    Image.fromarray(np.ones((4, 10), np.uint8)).save(directory / "labels" / "a.png")
    name = f"pq_folder_{tmp_path.name}"
    config = tmp_path / "config.yaml"
    entry = [name, str(directory / "images"), str(directory / "labels"), ["ground", "cell"]]
    config.write_text(json.dumps({"DATASETS": {"SEMANTIC_FOLDER": [entry]}}))
    record = {"file_name": str(directory / "images" / "a.png"), "category_id": 1, "segmentation": rle(np.ones((4, 10)))}
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps([record]))
    args = ["--dataset-name", name, "--json-file", str(file)]
    assert pq_tool.main(args) == 1 and "--config-file" in capsys.readouterr().err
    assert pq_tool.main([*args, "--config-file", str(config)]) == 0
    assert "PQ 100.000" in capsys.readouterr().out
