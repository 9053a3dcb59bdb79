"""`mask2former predict --save-as`: labels that tools open, that are trained on again, and that are never replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from mask2former.cli import main

from ..stub_model import StubModel
from .conftest import Load, names, write_image


def test_all_formats(use_model: Load) -> None:
    use_model(score_threshold=0.3)
    write_image("in/a.png"), write_image("in/b.jpg", 16, 24)
    assert main(["predict", "in", "--output", "out", "--save", "csv", "--save-as", "coco,labelme", "yolo"]) == 0
    assert names("out") == {
        "objects.csv",
        *("coco/annotations.json", "coco/images/a.png", "coco/images/b.jpg"),
        *("labelme/a.png", "labelme/a.json", "labelme/b.jpg", "labelme/b.json"),
        *("yolo/data.yaml", "yolo/images/a.png", "yolo/images/b.jpg", "yolo/labels/a.txt", "yolo/labels/b.txt"),
    }
    coco = COCO("out/coco/annotations.json")
    assert {image["file_name"] for image in coco.imgs.values()} == {"a.png", "b.jpg"} and len(coco.anns) == 4
    assert sorted(int(coco.annToMask(a).sum()) for a in coco.imgToAnns[1]) == [30, 300]
    record = json.loads(Path("out/labelme/b.json").read_text())
    assert record["imagePath"] == "b.jpg" and sorted(s["label"] for s in record["shapes"]) == ["cell", "sky"]
    data = yaml.safe_load(Path("out/yolo/data.yaml").read_text())
    assert data == {"train": "images", "val": "images", "names": {0: "cell", 1: "sky"}}
    lines = [line.split() for line in Path("out/yolo/labels/a.txt").read_text().splitlines()]
    assert sorted(line[0] for line in lines) == ["0", "1"]
    assert all(0 <= float(value) <= 1 for line in lines for value in line[1:])


def test_images_that_tools_cannot_show_become_png(use_model: Load) -> None:
    """16 bits, TIFF, and those that would be shown turned; others are copied bit for bit."""
    use_model()
    plain = write_image("in/plain.png")
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save("in/deep.png")
    write_image("in/stack.tif")
    turned = Image.new("RGB", (20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("in/turned.jpg", exif=exif)
    assert main(["predict", "in", "--output", "out", "--save", "json", "--save-as", "labelme"]) == 0
    images = {name for name in names("out/labelme") if not name.endswith(".json")}
    assert images == {"plain.png", "deep.png", "stack.png", "turned.png"}
    assert Path("out/labelme/plain.png").read_bytes() == plain.read_bytes()
    for name in ("deep.png", "turned.png"):
        with Image.open(f"out/labelme/{name}") as image:
            assert image.mode == "RGB" and image.size == (30, 20)


def test_corrected_labels_are_not_replaced(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """The error comes before the network runs."""
    model = StubModel()
    use_model(model)
    write_image("a.png")
    Path("out/labelme").mkdir(parents=True)
    Path("out/labelme/a.json").write_text("corrected")
    assert main(["predict", "a.png", "--output", "out", "--save-as", "labelme"]) == 2
    assert "may have been corrected by hand" in capsys.readouterr().err
    assert Path("out/labelme/a.json").read_text() == "corrected" and not model.seen


def test_a_semantic_map_has_no_objects(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    use_model(StubModel(("sem_seg",)))
    write_image("a.png")
    assert main(["predict", "a.png", "--output", "out", "--save-as", "yolo"]) == 1
    assert "--save-as needs objects" in capsys.readouterr().err
