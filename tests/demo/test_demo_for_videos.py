"""demo_video/demo.py takes the reference implementation's arguments and does what demo/demo.py does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from mask2former.segmenter import Segmenter

from ..video.moving_shapes import ShapeModel, images

SCRIPT = Path(__file__).parents[2] / "demo_video" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Load the script in a directory with the frames of a clip, with the model of moving squares."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("demo_video_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for i, image in enumerate(images(4)):
        path = Path("frames") / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    loaded: list[dict[str, Any]] = []

    def load(*_: Any, **options: Any) -> Segmenter:
        loaded.append(options)
        return Segmenter(ShapeModel(), classes=["a", "b", "c"], min_size=0)

    monkeypatch.setattr(Segmenter, "load", load)
    module.loaded = loaded  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("inputs", [["frames"], ["frames/*.jpg"], [f"frames/{i}.jpg" for i in range(4)]])
def test_the_arguments_of_the_reference(demo: ModuleType, inputs: list[str]) -> None:
    command = ["--config-file", "c.yaml", "--input", *inputs, "--output", "out/", "--save-frames", "True"]
    assert demo.main([*command, "--confidence-threshold", "0.4", "--opts", "MODEL.WEIGHTS", "w.pkl"]) == 0
    (options,) = demo.loaded
    assert options["config"] == "c.yaml" and options["overrides"] == ["MODEL.WEIGHTS", "w.pkl"]
    assert options["score_threshold"] == 0.4 and options["task"] == "video"
    assert {path.suffix for path in Path("out").iterdir()} >= {".mp4", ".json"}
    assert len(list(Path("out/frames").iterdir())) == 4


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (["--save-frames", "False", "--output", "o"], ["--output", "o"]),
        (["--save-frames=no"], []),
        (["--save-frames=1"], ["--save-frames"]),
        (["--save-frames", "--output", "o"], ["--save-frames", "--output", "o"]),
        (["--input", "no/such/*.png", "--amp"], ["--input", "no/such/*.png", "--amp"]),
        (["--video-input", "a.mp4"], ["--video-input", "a.mp4"]),
        (["--task=instance"], ["--task=instance"]),
    ],
)
def test_values_that_the_other_demo_does_not_take(demo: ModuleType, given: list[str], result: list[str]) -> None:
    task = [] if "--task=instance" in given else ["--task", "video"]
    opts = ["--opts", "A.B", "--save-frames"]
    assert demo.translated([*given, *opts]) == [*result, *task, *opts]


def test_a_wrong_value(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(["--save-frames=maybe"])
    assert stop.value.code == 2
    assert "--save-frames maybe: give True or False" in capsys.readouterr().err
