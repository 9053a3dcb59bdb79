"""An argument that a branch of a command would ignore is refused, with its name, before any work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from PIL import Image

from mask2former.cli import main

from ..video.moving_shapes import ShapeModel
from .conftest import Load, names, write_image

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("demo_of_unused_arguments", DEMO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def inputs(use_model: Load) -> None:
    """Make the commands load a stub, and write an image and a directory of frames."""
    use_model()
    write_image("a.png")
    write_image("frames/0.png")


FRAME_BY_FRAME = ["--video-input", "frames", "--output", "o"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([*FRAME_BY_FRAME, "--top-k", "1"], "--top-k"),
        ([*FRAME_BY_FRAME, "--window", "9"], "--window"),
        ([*FRAME_BY_FRAME, "--overlap", "0"], "--overlap"),
        ([*FRAME_BY_FRAME, "--online"], "--online"),
        ([*FRAME_BY_FRAME, "--save", "json", "--labels", "yes"], "--labels"),
        ([*FRAME_BY_FRAME, "--save", "masks", "--scale", "2"], "--scale"),
        (["--input", "a.png", "--save-frames"], "--save-frames"),
        (["--input", "a.png", "--top-k", "3"], "--top-k"),
        (["--input", "a.png", "--window", "24"], "--window"),
        (["--input", "a.png", "--online"], "--online"),
        (["--input", "a.png", "--output", "r.json", "--scale", "2"], "--scale"),
    ],
)
@pytest.mark.usefixtures("inputs")
def test_demo(demo: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], name: str) -> None:
    before = names(".")
    assert demo.main(arguments) == 2
    told = capsys.readouterr().err
    assert f"error: {name} has no effect" in told
    assert names(".") == before


@pytest.mark.usefixtures("inputs")
def test_demo_writes_the_frames_of_a_video(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    assert demo.main([*FRAME_BY_FRAME, "--save-frames", "--min-size", "40"]) == 0
    assert names("o") == {"frames_segmented.mp4", "frames/000000.jpg"}
    assert demo.main(["--video-input", "frames", "--output", ".", "--save-frames"]) == 2
    assert "frames is the input itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--video-input", "frames", "--online", "--window", "5"], "--window"),
        (["--video-input", "frames", "--online", "--overlap", "0"], "--overlap"),
        (["--video-input", "frames", "--non-overlapping"], "--non-overlapping"),
        (["--video-input", "frames", "--output", "r.json", "--labels", "no"], "--labels"),
    ],
)
def test_demo_with_a_video_model(
    demo: ModuleType, use_model: Load, capsys: pytest.CaptureFixture[str], arguments: list[str], name: str
) -> None:
    use_model(ShapeModel())
    write_image("frames/0.png")
    assert demo.main(arguments) == 2
    assert f"error: {name} has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["predict", "a.png", "--save", "json", "--scale", "2"], "--scale"),
        (["predict", "a.png", "--output", "o.csv", "--labels", "yes"], "--labels"),
        (["predict", "a.png", "--save", "json", "--intensity"], "--intensity"),
        (["predict", "a.png", "--output", "o.png", "--pixel-size", "2"], "--pixel-size"),
        (["predict", "a.png", "--tile", "off", "--tile-overlap", "0.2"], "--tile-overlap"),
        (["predict", "clip.mp4", "--page", "0"], "--page"),
        (["track", "frames", "--window", "5"], "--window"),
        (["benchmark", "--objects", "3"], "--objects"),
        (["benchmark", "--config-file", "x.yaml", "--model", "nuclei"], "--model"),
        (["check", ".", "--samples", "3"], "--samples"),
        (["models", "nuclei", "--task", "panoptic"], "--task"),
        (["models", "nuclei", "--here"], "--here"),
        (["models", "nuclei", "--filter", "x"], "--filter"),
        (["eval", "--model", "nuclei", "--weights", "w.pth", "--opts", "MODEL.WEIGHTS", "x.pth"], "--weights"),
        (["eval", "--model", "nuclei", "--output", "o", "--opts", "OUTPUT_DIR", "p"], "--output"),
        (["train", "--config-file", "x.yaml", "--val", "0.2"], "--val"),
    ],
)
@pytest.mark.usefixtures("inputs")
def test_commands(capsys: pytest.CaptureFixture[str], arguments: list[str], name: str) -> None:
    Path("clip.mp4").touch()
    before = names(".")
    assert main(arguments) == 2
    assert f"error: {name} has no effect" in capsys.readouterr().err
    assert names(".") == before


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.usefixtures("inputs")
def test_videos_given_as_images(demo: ModuleType, capsys: pytest.CaptureFixture[str], directory: bool) -> None:
    Path("clips").mkdir()
    writer = cv2.VideoWriter("clips/a.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    assert demo.main(["--input", "clips" if directory else "clips/a.mp4"]) == 2
    assert "use --video-input clips/a.mp4" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save("clips/b.png")  # then the directory is one of images
    assert demo.main(["--input", "clips", "--output", "o"]) == 0
