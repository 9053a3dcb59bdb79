"""demo.py from its arguments to its files, messages and exit status."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from mask2former.cli.text import describe_counts, describe_scores, table
from mask2former.cli.track_colors import TrackColors
from mask2former.segmenter import Segmenter

from ..stub_model import ALL_PARTS, StubModel

SCRIPT = Path(__file__).parents[2] / "demo" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Load the script in an empty working directory, with a stub model; `loaded` lists the arguments of `load`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("demo_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo_script", module)
    spec.loader.exec_module(module)
    module.loaded = []

    def load(name: str | None = None, **options: Any) -> Segmenter:
        module.loaded.append({"name": name, **options})
        threshold = options.get("score_threshold", 0.5)
        return Segmenter(StubModel(), classes=["cell", "sky"], min_size=0, score_threshold=threshold)

    monkeypatch.setattr(module.Segmenter, "load", load)
    return module


def image(path: Path, height: int = 20, width: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


# ------------------------------------------------------------------ images
def test_without_arguments_the_example_images(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr(demo.zoo, "list_bundled", lambda: ["nuclei"])
    assert demo.main([]) == 0
    assert names(Path("output/demo")) == {"cells.png", "ihc.png", "cell.png", "coins.png", "results.json"}
    coco = COCO("output/demo/results.json")
    assert [i["file_name"] for i in coco.imgs.values()] == ["cells.png", "ihc.png", "cell.png", "coins.png"]
    assert len(coco.anns) == 4 and coco.cats[1]["name"] == "cell"
    out = capsys.readouterr().out
    assert "coins.png" in out and "1 cell" in out and "0.90" in out and "not nuclei" in out
    assert "output/demo/results.json" in out
    (loaded,) = demo.loaded
    assert loaded["name"] is None and "score_threshold" not in loaded  # what the config says


def test_scenes_come_before_what_no_bundled_model_knows(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr(demo.zoo, "list_bundled", lambda: ["nuclei", "shapes"])
    assert demo.main(["--output", "out"]) == 0
    assert [loaded["name"] for loaded in demo.loaded] == ["shapes", None]
    scenes = {f"shapes_{number}.png" for number in (1, 2, 3, 4)}
    assert names(Path("out/shapes")) == scenes | {f"images/{name}" for name in scenes} | {"results.json"}
    assert {path.name for path in Path("out").iterdir()} == {
        *("shapes", "cells.png", "ihc.png", "cell.png", "coins.png", "results.json"),
    }
    out = capsys.readouterr().out
    order = [out.index(text) for text in ("shapes_1.png", "cells.png", "not nuclei", "Photos are outside the domain")]
    assert order == sorted(order)
    demo.loaded.clear()
    assert demo.main(["--opts", "TEST.DETECTIONS_PER_IMAGE", "5"]) == 0  # overrides are those of the default model
    assert [loaded["name"] for loaded in demo.loaded] == [None]


def test_the_model_of_shapes_has_its_own_examples(demo: ModuleType) -> None:
    assert demo.main(["--model", "shapes"]) == 0
    assert demo.loaded[0]["name"] == "shapes"
    drawn = Path("output/demo")
    assert {path.name for path in drawn.glob("*.png")} == {f"shapes_{number}.png" for number in (1, 2, 3, 4)}
    first = (drawn / "shapes/images/shapes_1.png").read_bytes()
    assert demo.main(["--model", "shapes"]) == 0
    assert (drawn / "shapes/images/shapes_1.png").read_bytes() == first  # the same scenes in each run


def test_missing_scikit_image_is_explained(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert demo.main([]) == 2
    assert "pip install scikit-image" in capsys.readouterr().err


def test_files_directories_and_patterns(demo: ModuleType) -> None:
    for name in (
        "one.png",
        "cells/a.png",
        "cells/b.JPG",
        "cells/notes.png.txt",
        "more/c1.png",
        "more/c2.png",
    ):
        image(Path(name).with_suffix(".png")).rename(name)
    files, problems = demo.collect(["one.png", "cells", "more/c*.png", "one.png"])
    assert [p.name for p in files] == ["one.png", "a.png", "b.JPG", "c1.png", "c2.png"] and not problems


def test_bad_inputs_are_named_and_others_are_segmented(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    image(Path("good.png"))
    Path("broken.png").write_bytes(b"no image")
    Path("empty").mkdir()
    inputs = ["goood.png", "broken.png", "x*.png", "empty", "nowhere/a.png", "good.png"]
    assert demo.main(["--input", *inputs, "--output", "out"]) == 1
    errors = capsys.readouterr().err
    for part in (
        "goood.png: does not exist. Did you mean 'good.png'?",
        "broken.png",
        "x*.png: this pattern",
        "empty: no images",
    ):
        assert part in errors
    assert "directory nowhere does not exist" in errors and "5 of the inputs" in errors
    assert names(Path("out")) == {"good.png", "results.json"}


def test_threshold_works(demo: ModuleType) -> None:
    image(Path("p.png"))
    for threshold, count in (("0", 3), ("0.3", 2), ("0.5", 1), ("0.95", 0)):
        run = ["--input", "p.png", "--output", "r.json", "--no-non-overlapping"]
        assert demo.main([*run, "--confidence-threshold", threshold]) == 0
        assert len(json.loads(Path("r.json").read_text())["annotations"]) == count
    with pytest.raises(SystemExit):
        demo.main(["--confidence-threshold", "50"])


def test_output_file_directory_and_what_is_saved(demo: ModuleType) -> None:
    image(Path("p.png"))
    run = ["--input", "p.png", "--output"]
    assert demo.main([*run, "one.jpg", "--scale", "1"]) == 0
    with Image.open("one.jpg") as drawn:
        assert drawn.size == (30, 20)
    assert demo.main([*run, "all", "--save", "overlay", "json", "masks"]) == 0
    assert names(Path("all")) == {"p.png", "results.json", "masks/p_instances.png"}
    with Image.open("all/p.png") as drawn:
        assert drawn.size == (120, 80)  # small images are enlarged
    assert demo.main([*run, "masks_only", "--save", "masks"]) == 0
    assert names(Path("masks_only")) == {"masks/p_instances.png"}


def test_same_names_from_two_directories_do_not_collide(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    image(Path("a/p.png")), image(Path("b/p.png"))
    assert demo.main(["--input", "a", "b", "--output", "out"]) == 0
    assert names(Path("out")) == {"p.png", "p_2.png", "results.json"}
    images = json.loads(Path("out/results.json").read_text())["images"]
    assert [entry["file_name"] for entry in images] == ["a/p.png", "b/p.png"]
    assert "b/p.png: p_2" in capsys.readouterr().err
    Path("a/p.png").write_bytes(b"no image")  # the other keeps its name
    assert demo.main(["--input", "a", "b", "--output", "again"]) == 1
    assert names(Path("again")) == {"p_2.png", "results.json"}


def test_pages_that_are_not_used_are_named(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    page = Image.open(image(Path("one.png")), formats=("PNG",))
    page.save("stack.tif", save_all=True, append_images=[page, page])
    assert demo.main(["--input", "stack.tif", "one.png", "--output", "out"]) == 0
    assert "stack.tif (2 of 3); mask2former predict --page all segments all" in capsys.readouterr().err


def test_an_input_is_never_overwritten(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = image(Path("p.png")).read_bytes()
    assert demo.main(["--input", "p.png", "--output", "."]) == 1
    assert Path("p.png").read_bytes() == before and "overwrite its input" in capsys.readouterr().err


def test_non_overlapping(demo: ModuleType) -> None:
    image(Path("p.png"))
    areas = []
    for extra in (["--no-non-overlapping"], ["--non-overlapping"], []):
        demo.main(["--input", "p.png", "--output", "r.json", "--confidence-threshold", "0.3", *extra])
        areas.append(sorted(a["area"] for a in json.loads(Path("r.json").read_text())["annotations"]))
    assert areas == [[30, 300], [15, 300], [30, 300]]  # the default is what the model's config says


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "p.png", "q.png", "--output", "one.png"], "give a directory"),
        (["--input", "p.png", "--output", "one.png", "--save", "json"], "is a file; drop --save"),
        (["--input", "p.png", "--webcam"], "choose only one of --input, --webcam"),
        (["--video-input", "nix.mp4"], "nix.mp4 does not exist"),
    ],
)
def test_contradictions_are_refused(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    image(Path("p.png")), image(Path("q.png"))
    assert demo.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_model_arguments_reach_the_loader(demo: ModuleType) -> None:
    image(Path("p.png"))
    demo.main(
        [
            "--config-file",
            "c.yaml",
            "--weights",
            "w.pth",
            "--device",
            "cpu",
            "--task",
            "panoptic",
            "--input",
            "p.png",
        ]
        + ["--opts", "MODEL.WEIGHTS", "x.pkl", "TEST.DETECTIONS_PER_IMAGE", "5"]
    )
    options = demo.loaded[0]
    assert (options["config"], options["weights"], options["device"], options["task"]) == (
        "c.yaml",
        "w.pth",
        "cpu",
        "panoptic",
    )
    assert options["overrides"] == ["MODEL.WEIGHTS", "x.pkl", "TEST.DETECTIONS_PER_IMAGE", "5"]


def test_loading_errors_have_no_traceback(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("get it at URL")

    monkeypatch.setattr(demo.Segmenter, "load", fail)
    assert demo.main(["--input", "p.png"]) == 2
    assert capsys.readouterr().err == "error: get it at URL (--debug shows where it arose)\n"


def test_table_lists_the_objects() -> None:
    segment = Segmenter(StubModel(ALL_PARTS), classes=["cell", "sky"], score_threshold=0.0)
    result = segment(torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert describe_counts(result) == "2: 1 cell, 1 sky" and describe_scores(result) == "0.80 0.30"
    semantic = Segmenter(StubModel(("sem_seg",)), classes=["cell", "sky"])(torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert describe_counts(semantic) == "2 classes: cell, sky" and describe_scores(semantic) == "-"
    assert table(["a", "b", "c"], [["1", "", "xyz"], ["22", "", "w"]]).splitlines() == [
        "a   c",
        "--  ---",
        "1   xyz",
        "22  w",
    ]


# ------------------------------------------------------------------ videos
def make_video(path: Path, frames: int = 6, size: tuple[int, int] = (31, 46)) -> Path:
    """Write a short clip whose frames get brighter."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = size[0] // 2 * 2, size[1], "yuv420p"
        for i in range(frames):
            pixels = np.full((stream.height, stream.width, 3), 20 * i % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_video_becomes_a_video_of_the_same_length(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    make_video(Path("clip.mp4"))
    assert demo.main(["--video-input", "clip.mp4", "--output", "out", "--save", "overlay", "json", "masks"]) == 0
    assert "6 frames of clip" in capsys.readouterr().out
    with av.open("out/clip_segmented.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        times = [frame.time for frame in container.decode(stream)]
    assert np.allclose(times, np.arange(6) / 10, atol=1e-3)
    content = json.loads(Path("out/results.json").read_text())
    assert [i["file_name"] for i in content["images"]][:2] == ["clip#000000", "clip#000001"]
    assert len(names(Path("out/masks"))) == 6 and not [n for n in names(Path("out")) if "part" in n]


def test_video_to_one_file_and_odd_sizes(demo: ModuleType) -> None:
    av = pytest.importorskip("av")
    make_video(Path("clip.mp4"))
    assert demo.main(["--video-input", "clip.mp4", "--output", "small.mp4", "--scale", "0.5"]) == 0
    with av.open("small.mp4") as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width) == (14, 22)  # 15 x 23 without the odd row and column
    assert demo.main(["--video-input", "clip.mp4", "--output", "clip.mp4"]) == 2
    assert demo.main(["--video-input", "clip.mp4", "--output", "clip.avi"]) == 2


def test_unreadable_video_is_named(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.mp4").write_bytes(b"nothing")
    assert demo.main(["--video-input", "bad.mp4"]) == 2
    assert "bad.mp4: cannot be read as a video" in capsys.readouterr().err


def test_damaged_video_keeps_what_was_read(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    video = make_video(Path("clip.mpg"), frames=60, size=(240, 320)).read_bytes()
    Path("clip.mpg").write_bytes(video[: len(video) // 2])
    assert demo.main(["--video-input", "clip.mpg", "--output", "o.mp4"]) in (0, 1)
    frames = int(capsys.readouterr().out.split(" frames of clip")[0].split()[-1])
    assert 0 < frames < 60 and Path("o.mp4").stat().st_size > 0


class FakeCapture:
    """cv2.VideoCapture with two BGR frames, or none when the number is not 0."""

    def __init__(self, number: int) -> None:
        self.frames = [np.full((20, 30, 3), (255, 0, 0), np.uint8)] * 2 if number == 0 else []

    def isOpened(self) -> bool:
        return bool(self.frames)

    def read(self) -> tuple[bool, Any]:
        return (True, self.frames.pop()) if self.frames else (False, None)

    def release(self) -> None:
        pass


def test_webcam(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    monkeypatch.setattr("cv2.VideoCapture", FakeCapture)
    assert demo.main(["--webcam", "3"]) == 2
    assert "camera 3 cannot be opened" in capsys.readouterr().err
    assert demo.main(["--webcam", "--output", "cam.mp4"]) == 0
    with av.open("cam.mp4") as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame[15, 25].argmax() == 2  # OpenCV's BGR arrived as blue


def test_webcam_without_windows_asks_for_a_file(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    def no_windows(*_: Any) -> None:
        raise cv2.error("headless")

    monkeypatch.setattr("cv2.VideoCapture", FakeCapture)
    monkeypatch.setattr("cv2.namedWindow", no_windows)
    assert demo.main(["--webcam"]) == 2
    assert "--output FILE.mp4" in capsys.readouterr().err


def test_colors_follow_objects_through_frames() -> None:
    from mask2former.results import InstanceResult, Result
    from mask2former.structures.classes import ClassTable

    def frame(boxes: list[tuple[int, int]]) -> Result:
        masks = np.zeros((len(boxes), 40, 40), dtype=bool)
        for mask, (y, x) in zip(masks, boxes):
            mask[y : y + 10, x : x + 10] = True
        n = len(boxes)
        instances = InstanceResult.from_masks(masks, np.ones(n, np.float32), np.zeros(n, np.int64), ("a",) * n)
        return Result(np.zeros((40, 40, 3), np.uint8), ClassTable(("a",)), instances)

    colors = TrackColors()
    assert colors.update(frame([(0, 0), (20, 20)])).tolist() == [0, 1]
    assert colors.update(frame([(21, 22), (1, 1)])).tolist() == [1, 0]  # other order, moved a little
    assert colors.update(frame([(0, 25), (2, 2)])).tolist() == [2, 0]  # one is new
    assert colors.update(frame([])).tolist() == []
