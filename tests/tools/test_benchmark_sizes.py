"""`tools/benchmark.py sizes`: sizes, counts, rows, and the comparison of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark
import numpy as np
import pytest
import torch
from benchmark_sizes import Counts, Side, difference_rows, draw, labels_of, padded, rows_of

from mask2former.config import load_config
from mask2former.result_parts import InstanceResult, PanopticResult, Segment
from mask2former.results import Result
from mask2former.structures.classes import ClassTable

from ..modeling.tiny_models import TINY

CONFIG = "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
PARTS = ["start", "first pass", "second pass", "after both passes"]


def report_of(tmp_path: Path, *arguments: str, device: str = "cpu") -> dict[str, Any]:
    """Run four sizes through a tiny model; return the report."""
    command = ["sizes", "--device", device, "--size", "64", "96", "--images", "4", "--config-file", CONFIG, *arguments]
    file = tmp_path / "sizes.json"
    command += ["--json", str(file), "--opts", *map(str, TINY), "MODEL.DEVICE", device]
    if device == "cuda":  # in a process of its own: others have reserved memory of the GPU, which could be used again
        assert subprocess.run([sys.executable, benchmark.__file__, *command], check=False).returncode == 0
    else:
        assert benchmark.main(command) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def figures_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures by row and name."""
    return {row["name"]: {f["name"]: f for f in row["figures"]} for row in report["rows"]}


def test_four_sizes_beside_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(tmp_path, "--dense")
    rows = figures_of(report)
    tasks = [f"{task} results, beside off" for task in ("instance", "panoptic", "semantic")]
    assert list(rows) == [*PARTS, *(f"off, {name}" for name in PARTS[1:]), *tasks]
    assert set(rows["start"]) == {"building", "first image"}  # without a GPU and a compiler there is nothing to count
    assert set(rows["second pass"]) == {"time", "images", "slowest"}
    assert rows["first pass"]["time"]["samples"] == 3 and rows["second pass"]["time"]["samples"] == 4
    assert set(rows["after both passes"]) == {"padded shapes", "peak memory of the process"}
    here, off = rows["second pass"]["time"]["value"], rows["off, second pass"]
    assert off["ratio"]["value"] == pytest.approx(off["time"]["value"] / here)
    # On a CPU "auto" runs the same operations.
    assert all(rows[task]["images that differ"]["value"] == 0 for task in tasks)
    assert rows[tasks[0]]["objects of an image"]["value"] > 0
    assert report["settings"]["images"] == 4 and report["settings"]["compile"] == "auto"
    assert report["title"].endswith("4 sizes up to 64 x 96, fp32, dense, compile auto")
    progress = capsys.readouterr().err
    assert "compile auto, first pass: image 1 of 4 (" in progress
    assert "compile off, second pass: image 4 of 4 (" in progress


def test_off_is_compared_with_nothing(tmp_path: Path) -> None:
    assert list(figures_of(report_of(tmp_path, "--compile", "off"))) == PARTS


@pytest.mark.gpu
def test_graphs_of_four_sizes(tmp_path: Path) -> None:
    rows = figures_of(report_of(tmp_path, "--compile", "graph", "--bf16", device="cuda"))
    end = rows["after both passes"]
    assert end["graphs held"]["value"] == end["padded shapes"]["value"]
    assert end["graphs dropped"]["value"] == 0 and end["memory of graphs"]["value"] > 0
    assert end["peak memory reserved"]["value"] > end["memory of graphs"]["value"]
    assert rows["start"]["captures"]["value"] == 1 and rows["second pass"]["captures"]["value"] == 0
    assert "captures" not in rows["off, first pass"]
    assert rows["semantic results, beside off"]["images that differ"]["value"] == 0


def test_sizes_are_different_and_fit() -> None:
    found = draw(300, (800, 1333))
    assert len(set(found)) == 300 and found == draw(300, (1333, 800))
    ratios = np.array([width / height for height, width in found])
    assert 0.49 < ratios.min() < 0.6 and 1.7 < ratios.max() < 2.01 and 0.4 < (ratios > 1).mean() < 0.6
    assert max(min(size) for size in found) <= 800 and 1300 < max(map(max, found)) <= 1333


def test_more_images_than_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"1000 different sizes \(--images\) up to 8 x 8"):
        draw(1000, (8, 8))
    assert benchmark.main(["sizes", "--device", "cpu", "--images", "1"]) == 2
    assert "--images must be at least 2" in capsys.readouterr().err


def test_shapes_that_the_network_sees() -> None:
    cfg = load_config(CONFIG, ["INPUT.MIN_SIZE_TEST", "800", "INPUT.MAX_SIZE_TEST", "1333"])
    sizes = [(480, 640), (479, 640), (640, 480), (300, 600)]  # the second becomes 800 x 1069
    assert padded(cfg, sizes, 32) == {(800, 1088), (1088, 800), (672, 1344)}
    assert padded(cfg, sizes[:2], 1) == {(800, 1067), (800, 1069)}


def segmenter(captured: int = 0) -> Any:
    return SimpleNamespace(model=SimpleNamespace(runtime=SimpleNamespace(captured=captured)))


def test_compilations_for_other_sizes_are_counted() -> None:
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    before = Counts.now(segmenter(3))
    for width in (2, 3, 2):
        double(torch.ones(width))
    assert Counts.now(segmenter(8)) - before == Counts(captures=5, compilations=2)


def test_without_a_compiler_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert Counts.now(segmenter()) == Counts()


def test_rows_of_a_gpu() -> None:
    counts = [Counts(1, 3), Counts(40, 2), Counts(9, 0)]
    side = Side(2.5, 44, [[60.0, 0.5, 0.1, 0.3], [0.1, 0.1, 0.2, 0.2]], counts, held=32, graphs=2**30, memory=3 * 2**30)
    rows = {row.name: row for row in rows_of(side, "compile")}
    assert rows["start"].value("first image") == 60 and rows["start"].value("building") == 2.5
    first, end = rows["first pass"], rows["after both passes"]
    assert first.value("time") == 300 and first.value("slowest") == 500  # without the first image
    assert first.value("images") == pytest.approx(3 / 0.9)
    assert (first.value("captures"), first.value("compilations")) == (40, 2)
    assert (end.value("graphs held"), end.value("graphs dropped")) == (32, 18)
    assert (end.value("memory of graphs"), end.value("peak memory reserved")) == (1, 3)
    assert {f.name for f in rows_of(side, "off")[3].figures} == {"peak memory reserved"}


def result(semantic: int = 2, score: float = 0.9) -> Result:
    """Return a result of 2 x 3 pixels: two instances, one of which covers the other in part, a segment and a class."""
    masks = np.array([[[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]]], dtype=bool)
    scores, labels = np.array([score, 0.8], dtype=np.float32), np.array([4, 1])
    return Result(
        image=np.zeros((2, 3, 3), dtype=np.uint8),
        classes=ClassTable.numbered(5),
        instances=InstanceResult.from_masks(masks, scores, labels, ("a", "b")),
        panoptic=PanopticResult(np.array([[7, 7, 0], [0, 0, 0]], dtype=np.int32), (Segment(7, 3, "c", True, 2),)),
        semantic=np.full((2, 3), semantic, dtype=np.uint8),
    )


def test_labels_of_all_tasks() -> None:
    found = {task: (labels.tolist(), classes.tolist()) for task, (labels, classes) in labels_of(result()).items()}
    assert found == {
        "instance": ([1, 4], [[5, 5, 2], [0, 0, 0]]),
        "panoptic": ([3], [[4, 4, 0], [0, 0, 0]]),
        "semantic": ([], [[3, 3, 3], [3, 3, 3]]),
    }


def test_results_that_differ_are_counted() -> None:
    here = {0: labels_of(result()), 1: labels_of(result()), 2: labels_of(result())}
    lost = labels_of(result())
    lost["panoptic"] = np.array([3, 3]), lost["panoptic"][1]  # the same map, but of two segments
    off = {2: labels_of(result(semantic=1)), 1: lost, 0: labels_of(result(score=0.7))}
    rows = {row.name.partition(" ")[0]: {f.name: f.value for f in row.figures} for row in difference_rows(here, off)}
    assert rows["instance"] == {
        "images that differ": 1,  # the other instance lies on top
        "pixels that differ": pytest.approx(100 / 18),
        "objects of an image": 2,
    }
    assert rows["panoptic"] == {"images that differ": 1, "pixels that differ": 0, "objects of an image": 1}
    assert rows["semantic"] == {"images that differ": 1, "pixels that differ": pytest.approx(100 / 3)}
