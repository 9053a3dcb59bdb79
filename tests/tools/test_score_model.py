"""Scores of a model by kind of image, with a model that finds what is bright."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import score_model
import torch
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from mask2former import Segmenter


class BrightParts(nn.Module):
    """Finds the connected parts above 100 gray levels, if they are not the complete image."""

    def forward(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": self.parts(sample)} for sample in samples]

    def parts(self, sample: dict[str, Any]) -> Instances:
        bright = (sample["image"][0].numpy() > 100).astype(np.uint8)
        count, labels = cv2.connectedComponents(bright)
        masks = [labels == k for k in range(1, count) if not bright.all()]
        found = Instances((sample["height"], sample["width"]))
        found.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *bright.shape))
        found.scores = torch.linspace(0.9, 0.6, len(masks))
        found.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
        return found


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two dark images with bright squares, of which one is not in the ground truth, and a bright empty one."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, background) in enumerate((("a.png", 10), ("b.png", 10), ("c.png", 200))):
        pixels = np.full((40, 60, 3), background, np.uint8)
        for k, x in enumerate((2, 20, 40) if background < 100 else ()):
            pixels[5:15, x : x + 10] = 220
            if (number, k) == (1, 2):
                continue
            polygon = [x, 5, x + 10, 5, x + 10, 15, x, 15]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "segmentation": [polygon]}
            annotations.append({**entry, "area": 100, "iscrowd": 0, "bbox": [x, 5, 10, 10]})
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": 60, "height": 40})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    segment = Segmenter(BrightParts(), classes=["cell"], min_size=0, max_size=0, device="cpu")
    monkeypatch.setattr(Segmenter, "load", lambda *args, **options: segment)
    return tmp_path / "truth.json", tmp_path


def test_tables_by_modality(dataset: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    truth, images = dataset
    out = images / "scores.json"
    assert score_model.main([str(truth), str(images), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads(out.read_text())
    assert set(scores["groups"]) == {"fluorescence", "gray tissue", "all"}
    dark = scores["groups"]["fluorescence"]
    assert (dark["images"], dark["objects"], dark["found"]) == (2, 5, 6)
    assert dark["F1"] == pytest.approx(10 / 11) and dark["precision"] == pytest.approx(5 / 6) and dark["recall"] == 1
    assert dark["count_error"] == pytest.approx(0.2) and dark["median_count_error"] == pytest.approx(0.25)
    assert 80 < dark["AP"] <= 100 and scores["groups"]["all"]["objects"] == 5
    assert scores["groups"]["gray tissue"]["AP"] is None and "gray tissue" in printed  # no ground truth, no AP
    assert scores["empty"]["black"] == scores["empty"]["white"] == 0 and "black 0, white 0" in printed


def test_groups_of_a_file_and_of_sizes(dataset: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    truth, images = dataset
    groups = images / "groups.csv"
    groups.write_text("a.png,first\nb.png,second\n\nd/c.png,first\n")
    assert score_model.main([str(truth), str(images), "--groups", str(groups), "--no-ap"]) == 0
    printed = capsys.readouterr().out
    assert "| first " in printed and "| second " in printed and "0.800" in printed  # of the second: 2 of 3 are right
    assert score_model.main([str(truth), str(images), "--groups", "size", "--limit", "1", "--no-ap"]) == 0
    assert "fluorescence, 40 x 60" in capsys.readouterr().out
    groups.write_text("a.png,first\n")
    assert score_model.main([str(truth), str(images), "--groups", str(groups)]) == 2
    assert "has no group for 'b.png'" in capsys.readouterr().err
    groups.write_text("a.png\n")
    assert score_model.main([str(truth), str(images), "--groups", str(groups)]) == 2
    assert "line 1 needs a file name and a group" in capsys.readouterr().err


def test_modality_by_brightness_and_colors() -> None:
    stained = np.full((4, 4, 3), (200, 150, 190), np.uint8)
    assert score_model.modality(stained) == "stained tissue"
    assert score_model.modality(np.full((4, 4, 3), 200, np.uint8)) == "gray tissue"
    assert score_model.modality(np.full((4, 4, 3), (5, 90, 5), np.uint8)) == "fluorescence"
