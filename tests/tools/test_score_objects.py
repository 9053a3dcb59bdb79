"""Counted objects against ground truth, and the mosaic of the benchmark of tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import benchmark_tiles
import numpy as np
import pytest
import score_objects
from PIL import Image


def square(x: int, y: int, edge: int) -> list[list[float]]:
    return [[x, y, x + edge, y, x + edge, y + edge, x, y + edge]]


def document(objects: dict[str, list[Any]]) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"d/{name}", "width": 60, "height": 40} for i, name in enumerate(objects)]
    annotations = [
        {
            "id": len(objects) * k + i,
            "image_id": i,
            "category_id": 1,
            "segmentation": segmentation,
            "score": 0.9 - k / 10,
        }
        for i, rows in enumerate(objects.values())
        for k, segmentation in enumerate(rows)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}


def test_matches_doubles_misses_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = document({"a.png": [square(0, 0, 10), square(20, 0, 10)], "b.png": [square(5, 5, 10)], "c.png": []})
    found = document({"a.png": [square(0, 0, 10), square(1, 0, 10), square(40, 20, 8)], "b.png": []})
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps(found))
    assert score_objects.main([str(tmp_path / "r.json"), str(tmp_path / "t.json")]) == 0
    printed = capsys.readouterr().out
    assert "2 images, 3 objects, 3 found (+0%), F1 at IoU 0.5 0.333, median error of an image's count 75%" in printed
    (tmp_path / "r.json").write_text(json.dumps(document({"x.png": []})))
    assert score_objects.main([str(tmp_path / "r.json"), str(tmp_path / "t.json")]) == 2
    assert "has no image 'x.png'" in capsys.readouterr().err


def test_mosaic_holds_complete_images_and_their_objects(tmp_path: Path) -> None:
    content = document({"a.png": [square(0, 0, 10)], "b.png": [square(0, 0, 10), square(20, 0, 9)], "c.png": []})
    (tmp_path / "d").mkdir()
    for number, image in enumerate(content["images"], 1):
        Image.fromarray(np.full((40, 60, 3), number, np.uint8)).save(tmp_path / image["file_name"])
    pixels, count = benchmark_tiles.mosaic(content, tmp_path, 130, [40])
    assert pixels.shape == (80, 130, 3) and count == 3
    assert pixels[::40, ::60, 0].tolist() == [[1, 2, 0], [3, 0, 0]]
    assert benchmark_tiles.mosaic(content, tmp_path, 130)[1] == 0  # higher than a quarter of the mosaic


def test_bad_files_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = document({"a.png": [square(0, 0, 10)]})
    (tmp_path / "t.json").write_text(json.dumps(truth))
    same = document({"a.png": [], "e/a.png": []})
    endless, unknown = document({"a.png": [square(0, 0, 10)]}), document({"a.png": [square(0, 0, 10)]})
    endless["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": [10**36]}
    unknown["annotations"][0]["score"] = None
    for content, message in ((endless, "longer"), (unknown, "'score'"), (same, "the name 'a.png'"), ([], "JSON list")):
        (tmp_path / "r.json").write_text(json.dumps(content))
        assert score_objects.main([str(tmp_path / "r.json"), str(tmp_path / "t.json")]) == 2
        assert "r.json: " in (told := capsys.readouterr().err) and message in told
