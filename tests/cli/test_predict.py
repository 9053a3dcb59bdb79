"""`mask2former predict`: what is printed and written shows the same objects; errors and exit status."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former import visualization
from mask2former.cli import main
from mask2former.segmenter import Segmenter

from ..stub_model import ALL_PARTS, StubModel
from .conftest import Load, names, write_image


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Regions(list[int]):
    """The number of regions of each overlay that is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = visualization.draw_regions

        def counted(image: np.ndarray, regions: Any, **options: Any) -> Image.Image:
            regions = list(regions)
            self.append(len(regions))
            return draw(image, regions, **options)

        monkeypatch.setattr(visualization, "draw_regions", counted)


CASES = [
    ([], {}, 1),
    (["--score-threshold", "0.3"], {}, 2),
    (["--score-threshold", "0.3", "--non-overlapping"], {}, 2),
    (["--score-threshold", "0.3", "--min-area", "100"], {}, 1),
    ([], {"score_threshold": 0.3, "min_area": 100}, 1),  # as saved with the model
    (["--min-area", "0"], {"score_threshold": 0.3, "min_area": 100}, 2),
    (["--score-threshold", "0.95"], {}, 0),
]


@pytest.mark.parametrize(("arguments", "rules", "count"), CASES)
def test_every_output_shows_the_same_objects(
    use_model: Load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    rules: dict[str, Any],
    count: int,
) -> None:
    use_model(**rules)
    drawn = Regions(monkeypatch)
    write_image("in/a.png"), write_image("in/b.png", 16, 24)
    every = ["--save", "overlay", "json", "csv", "masks"]
    assert main(["predict", "in", "--output", "out", *every, *arguments]) == 0
    assert names("out") == {
        *("a.png", "b.png", "results.json", "objects.csv"),
        *("masks/a_instances.png", "masks/b_instances.png"),
    }
    content, rows = json.loads(Path("out/results.json").read_text()), rows_of("out/objects.csv")
    printed = capsys.readouterr().out
    assert drawn == [count, count]
    for number, name in enumerate(("a.png", "b.png"), start=1):
        records = [a for a in content["annotations"] if a["image_id"] == number]
        here = [row for row in rows if row["image"] == name]
        with Image.open(f"out/masks/{name[0]}_instances.png") as image:
            label_map = np.asarray(image)
        ids = set(np.unique(label_map)) - {0}
        assert len(records) == len(here) == len(ids) == count
        assert {int(row["id"]) for row in here} == ids
        assert [float(row["area"]) for row in here] == [a["area"] for a in records]
        counted = re.search(rf"^{name} +(\d+)", printed, re.MULTILINE)
        assert counted is not None and int(counted[1]) == count
    total = re.search(r"^total +(\d+)", printed, re.MULTILINE)
    assert total is not None and int(total[1]) == 2 * count


@pytest.mark.parametrize("parts", [ALL_PARTS, ("panoptic_seg",), ("sem_seg",), ("panoptic_seg", "sem_seg")])
def test_models_of_several_tasks_agree_too(
    use_model: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parts: tuple[str, ...]
) -> None:
    """With panoptic results these are listed everywhere, although instances are there too."""
    use_model(StubModel(parts), score_threshold=0.0)
    drawn = Regions(monkeypatch)
    write_image("a.png")
    assert main(["predict", "a.png", "--output", "out"]) == 0
    assert drawn == [2] and len(rows_of("out/objects.csv")) == 2
    assert len(json.loads(Path("out/results.json").read_text())["annotations"]) == 2
    assert re.search(r"^a.png +2", capsys.readouterr().out, re.MULTILINE)


def test_a_row_has_class_place_and_size(use_model: Load) -> None:
    use_model()
    write_image("a.png")
    assert main(["predict", "a.png", "--output", "o.csv"]) == 0
    (row,) = rows_of("o.csv")
    assert (row["image"], row["id"], row["class"]) == ("a.png", "1", "cell")
    assert (float(row["score"]), float(row["area"])) == (pytest.approx(0.9), 300)
    assert (float(row["centroid_x"]), float(row["centroid_y"])) == (7, 9.5)  # the left half of 30 x 20


def test_the_default_output(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    asked = use_model()
    write_image("a.jpg")
    assert main(["predict", "a.jpg"]) == 0
    assert names("output/predict") == {"a.jpg", "results.json", "objects.csv"}
    assert "score_threshold" not in asked[0] and asked[0]["name"] is None
    assert "3 files written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [
        (["a.jpg"], "off"),
        (["a.jpg", "--amp"], "auto"),
        (["--amp", "a.jpg"], "auto"),  # the image is no precision
        (["--amp", "bfloat16", "a.jpg"], "bfloat16"),
        (["a.jpg", "--amp=float16", "--min-size", "64"], "float16"),
        (["a.jpg", "--amp", "--min-size", "64"], "auto"),
        (["--amp", "off", "a.jpg"], "off"),
    ],
)
def test_precision(use_model: Load, arguments: list[str], precision: str) -> None:
    asked = use_model()
    write_image("a.jpg")
    assert main(["predict", *arguments]) == 0
    assert asked[0]["amp"] == precision
    assert names("output/predict") == {"a.jpg", "results.json", "objects.csv"}


@pytest.mark.parametrize(
    "arguments", [["--amp", "fp32", "a.jpg"], ["a.jpg", "--amp", "fp32"], ["--amp", "bfloat", "a.jpg"]]
)
def test_a_wrong_precision_is_no_image(
    use_model: Load, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    use_model()
    write_image("a.jpg")
    assert main(["predict", *arguments]) == 2
    assert "argument --amp: invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--compile", "graph", "--opts", "MODEL.COMPILE", "off"],
            "--compile has no effect with MODEL.COMPILE in --opts",
        ),
        (["--opts", "TEST.AMP", "bfloat16"], "TEST.AMP in --opts is for evaluations; give --amp bfloat16"),
    ],
)
def test_run_modes_without_effect_are_refused(
    use_model: Load, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    asked = use_model()
    write_image("a.jpg")
    assert main(["predict", "a.jpg", *arguments]) == 2
    assert message in capsys.readouterr().err and not asked


def test_an_image_may_be_named_like_a_precision(use_model: Load) -> None:
    asked = use_model()
    write_image("fp32/a.jpg")
    assert main(["predict", "--amp", "fp32"]) == 0
    assert asked[0]["amp"] == "auto" and "a.jpg" in names("output/predict")


@pytest.mark.parametrize(("mode", "told"), [("compile", True), ("graph", False)])
def test_the_wait_for_the_compiler_is_told(
    use_model: Load, capsys: pytest.CaptureFixture[str], mode: str, told: bool
) -> None:
    use_model()
    write_image("a.jpg")
    assert main(["predict", "a.jpg", "--compile", mode]) == 0
    assert ("the first image waits until the network is compiled" in capsys.readouterr().out) is told


def test_an_overlay_never_replaces_another_input(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    use_model()
    write_image("in/a.bmp")
    other = write_image("in/a.png", 16, 24)
    before = other.read_bytes()
    assert main(["predict", "in", "--output", "in", "--save", "overlay"]) == 1
    assert other.read_bytes() == before
    assert "the overlay would overwrite another input" in capsys.readouterr().err


def test_covered_objects_are_noted(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """A label map cannot show them; the third object of the stub has no pixels at all."""
    use_model(score_threshold=0.0)
    write_image("a.png")
    assert main(["predict", "a.png", "--save", "masks", "--output", "out"]) == 0
    assert "note: a.png: 1 of 3 objects are covered" in capsys.readouterr().err


def test_covered_instances_of_a_panoptic_result_are_not_called_objects(
    use_model: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    use_model(StubModel(ALL_PARTS), score_threshold=0.0)
    write_image("a.png")
    assert main(["predict", "a.png", "--save", "masks", "--output", "out"]) == 0
    assert "1 of 3 instances are covered by others and have no pixel in the label map of instances" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_an_unreadable_image_is_named_and_the_others_are_written(
    use_model: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    use_model()
    write_image("in/good.png")
    Path("in/bad.png").write_bytes(b"nothing")
    assert main(["predict", "in", "gone.png", "--output", "out"]) == 1
    err = capsys.readouterr().err
    assert "error: gone.png: does not exist." in err and "bad.png" in err and "2 of the inputs gave no result" in err
    assert names("out") == {"good.png", "results.json", "objects.csv"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give images, directories or patterns"),
        (["gone.png"], "gone.png: does not exist"),
        (["a.png", "--webcam"], "not both"),
        (["a.png", "b.png", "--output", "o.png"], "give a directory"),
        (["a.png", "--output", "o.csv", "--save", "json"], "drop --save"),
        (["a.png", "--output", "o.json", "--save-as", "coco"], "drop --save-as"),
        (["a.png", "clip.mp4"], "give one video, or images"),
        (["a.png", "--output", "o.jpgg"], "o.jpgg: a file cannot end with .jpgg"),
        (["a.png", "--output", "o.jpgg"], "Did you mean '.jpg'?"),
        (["a.png", "--output", "o.xyz"], ".webp, or a directory. To make a directory of this name, write o.xyz/"),
        (["a.png", "--output", "o.mp4"], "cannot end with .mp4"),
        (["a.png", "--output", "a.png"], "is the input itself"),
        (["link.png", "--output", "a.png"], "is the input itself"),
        (["a.csv", "--output", "a.csv"], "is the input itself"),
        (["a.png", "--output", "notes.txt"], "notes.txt is a file of unknown type"),
        (["a.png", "--output", "notes"], "notes is a file of unknown type"),
        (["masks/a.png", "--output", ".", "--save", "masks"], "where inputs are"),
        (["a.png", "--output", "o.png", "--page", "all"], "one of each page"),
        (["clip.mp4", "--save", "csv"], "--save csv is for images"),
        (["clip.mp4", "--save-as", "yolo"], "labels of images"),
    ],
)
def test_mistakes_are_explained(
    use_model: Load, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = StubModel()
    use_model(model)
    write_image("a.png"), write_image("b.png"), write_image("masks/a.png")
    Path("link.png").symlink_to("a.png")
    for name in ("clip.mp4", "a.csv", "notes", "notes.txt"):
        Path(name).write_bytes(b"")
    before = names(".")
    assert main(["predict", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err
    assert names(".") == before and not model.seen


@pytest.mark.parametrize("output", ["new.xyz/", "old.jpgg", "cells.v2", "run.2024"])
def test_directories_may_have_a_point_in_their_name(use_model: Load, output: str) -> None:
    use_model()
    write_image("a.png")
    Path("old.jpgg").mkdir()
    assert main(["predict", "a.png", "--output", output]) == 0
    assert names(output) == {"a.png", "results.json", "objects.csv"}


def test_a_video_model_is_sent_to_track(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    model = StubModel()
    model.clip_outputs = None  # type: ignore[assignment]
    use_model(model)
    write_image("a.png")
    assert main(["predict", "a.png", "--model", "m"]) == 2
    assert "m is a video model: use mask2former track VIDEO" in capsys.readouterr().err


def test_arguments_reach_the_call(use_model: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that are given, so that the others are what the model's config says."""
    use_model()
    write_image("a.png")
    calls: list[dict[str, Any]] = []
    segment = Segmenter.__call__

    def called(self: Segmenter, images: Any, **options: Any) -> Any:
        calls.append(options)
        return segment(self, images)

    monkeypatch.setattr(Segmenter, "__call__", called)
    assert main(["predict", "a.png"]) == 0
    assert calls.pop() == {"min_size": None, "progress": True}
    tiles = ["--tile", "512", "--tile-overlap", "0.3", "--page", "2", "--channels", "1,0", "--stretch", "100,4000"]
    rules = ["--nms", "0.6", "--components", "largest", "--fill-holes", "--no-non-overlapping", "--min-area", "9"]
    assert main(["predict", "a.png", "--min-size", "64", *tiles, *rules]) == 0
    options = calls.pop()
    changed = options.pop("rules")
    assert options == {
        "min_size": 64,
        "tile": 512,
        "overlap": 0.3,
        "page": 2,
        "channels": (1, 0),
        "stretch": (100.0, 4000.0),
        "progress": True,
    }
    assert (changed.nms_iou, changed.components, changed.fill_holes, changed.min_area) == (0.6, "largest", True, 9)
    assert not changed.non_overlapping
    assert main(["predict", "a.png", "--tile", "auto", "--channels", "3", "--stretch"]) == 0
    options = calls.pop()
    assert (options["tile"], options["channels"]) == ("auto", 3)
    assert options["stretch"] == "percentile"


def test_pages_of_a_stack_are_results_of_their_own(use_model: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model()
    write_image("s.png")
    stream = Segmenter.stream
    monkeypatch.setattr(Segmenter, "stream", lambda self, images, page, **_: stream(self, images * 3))
    assert main(["predict", "s.png", "--page", "all", "--output", "out"]) == 0
    assert names("out") == {*(f"s_page000{i}.png" for i in range(3)), "results.json", "objects.csv"}
    assert [row["image"] for row in rows_of("out/objects.csv")] == ["s.png#0", "s.png#1", "s.png#2"]


def test_a_video_is_segmented_frame_by_frame(use_model: Load, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    use_model()
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for i in range(4):
            pixels = np.full((32, 48, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert main(["predict", "clip.mp4", "--output", "out", "--save", "overlay", "json"]) == 0
    assert names("out") == {"clip_segmented.mp4", "results.json"}
    assert len(json.loads(Path("out/results.json").read_text())["annotations"]) == 4
    assert "4 frames of clip" in capsys.readouterr().out


def test_table_with_intensity_and_micrometers(use_model: Load, tmp_path: Path) -> None:
    use_model(StubModel())
    image = write_image(tmp_path / "a.png")
    assert main(["predict", str(image), "--output", str(tmp_path / "t.csv"), "--intensity", "--pixel-size", "0.5"]) == 0
    (row,) = rows_of(str(tmp_path / "t.csv"))
    assert float(row["area_um2"]) == float(row["area"]) * 0.25
    assert float(row["intensity_min"]) <= float(row["intensity_mean"]) <= float(row["intensity_max"])
    assert main(["predict", str(image), "--pixel-size", "0"]) == 2
