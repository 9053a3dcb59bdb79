from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data import BadRecordError
from mask2former.data.datasets.coco_semantic import write_semantic_maps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/panoptic_val2017").mkdir()
    ids = np.zeros((3, 4, 3), np.uint8)
    ids[0, :, 1], ids[1, :, 0] = 2, 9
    Image.fromarray(ids).save(tmp_path / "coco/panoptic_val2017/1.png")
    segments = [{"id": 512, "category_id": 200}, {"id": 9, "category_id": 1}]
    content = {"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]}
    (tmp_path / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_script_writes_classes_and_runs_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "datasets" / "prepare_coco_semantic_annos_from_panoptic_annos.py"

    def run(split: str) -> None:
        arguments = [str(script), "--root", str(root), "--splits", split, "--workers", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(script), run_name="__main__")

    run("val")
    assert "val2017: 1 label maps written" in capsys.readouterr().out
    labels = np.asarray(Image.open(root / "coco/panoptic_semseg_val2017/1.png"))
    assert labels.tolist() == [[132] * 4, [0] * 4, [255] * 4]
    run("val")
    assert "val2017: 0 label maps written" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        run("train")
    assert "panoptic_train2017.json does not exist" in capsys.readouterr().err


def test_unknown_category(root: Path) -> None:
    path = root / "coco/annotations/panoptic_val2017.json"
    path.write_text(path.read_text().replace("200", "201"))
    with pytest.raises(BadRecordError, match=r"1\.png: 201 is missing or undeclared"):
        write_semantic_maps(str(root), "val")
