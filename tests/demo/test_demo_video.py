"""demo.py on videos whose objects are tracked: arguments, files, messages, and resuming after a stop."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.segmenter import Segmenter
from mask2former.utils.file_io import short_path

from ..video.moving_shapes import ShapeModel, images
from .test_demo import demo, make_video, names  # noqa: F401

Run = Callable[..., int]


@pytest.fixture
def run(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """Return a function that runs the script with the model of moving squares, or with `model`."""

    def call(*arguments: str, model: Any = None) -> int:
        def load(*_: Any, score_threshold: float = 0.5, **__: Any) -> Segmenter:
            network = model or ShapeModel()
            return Segmenter(network, classes=["a", "b", "c"], min_size=0, score_threshold=score_threshold)

        monkeypatch.setattr(demo.Segmenter, "load", load)
        return demo.main(list(arguments))

    return call


@pytest.fixture
def clip(demo: ModuleType) -> str:  # noqa: F811
    """Write a directory of frames, whose numbers are not zero-padded."""
    for i, image in enumerate(images(30)):
        path = Path("clip") / f"frame{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return "clip"


def video(path: str) -> list[np.ndarray]:
    av = pytest.importorskip("av")
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def test_a_directory_becomes_a_video_with_tracks(run: Run, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    every = ["--save", "overlay", "json", "masks", "--save-frames", "--window", "8", "--overlap", "3"]
    assert run("--video-input", clip, "--task", "video", "--output", "out", *every) == 0
    shown = capsys.readouterr()
    for part in ("30 frames of clip", "3 tracks", ": a, score 0.90, frames 0 to 29"):
        assert part in shown.out
    assert "tracking: 100%" in shown.err and "30/30" in shown.err
    frames = video("out/clip_segmented.mp4")
    assert len(frames) == 30 and frames[0].shape == (48, 96, 3)
    records = json.loads(Path("out/results.json").read_text())
    assert [(r["category_id"], len(r["segmentations"])) for r in records] == [(1, 30), (2, 30), (3, 30)]
    assert len(names(Path("out/frames"))) == 30 and len(names(Path("out/masks"))) == 31
    tracks = json.loads(Path("out/masks/tracks.json").read_text())
    assert [t["name"] for t in tracks] == ["a", "b", "c"]
    with Image.open("out/masks/000012.png") as image:
        assert set(np.unique(np.asarray(image))) == {0, *(t["id"] for t in tracks)}
    assert not [n for n in names(Path("out")) if n.startswith(".")]  # the journal is gone


def test_paths_are_readable(run: Run, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert short_path("out/a.mp4") == short_path(Path.cwd() / "out/a.mp4") == str(Path("out/a.mp4"))
    other = tmp_path.parent / f"{tmp_path.name}_other"
    run("--video-input", clip, "--output", str(other))
    assert f"  {other / 'results.json'}\n" in capsys.readouterr().out


def test_colors_stay_with_tracks(run: Run, clip: str) -> None:
    run("--video-input", clip, "--output", "out", "--save-frames", "--window", "8", "--overlap", "3", "--labels", "no")
    colors = []
    for index in (2, 13, 28):
        with Image.open(f"out/frames/{index:06d}.jpg") as image:
            pixels = np.asarray(image).astype(int)
        column = 4 * (2 * index // 4 % 20) + 8
        colors.append(pixels[8, column] - 0)
    assert np.abs(np.array(colors) - colors[0]).max() <= 12
    assert np.ptp(colors[0]) > 20  # painted: the square itself is gray


def test_a_video_file(run: Run) -> None:
    make_video(Path("clip.mp4"))
    assert run("--video-input", "clip.mp4", "--output", "o.mp4", model=ShapeModel()) == 0
    assert len(video("o.mp4")) == 6
    assert names(Path()) == {"clip.mp4", "o.mp4"}
    assert run("--video-input", "clip.mp4", "--output", "clip.mp4") == 2


def test_images_of_input_are_frames_in_their_order(run: Run, clip: str) -> None:
    files = [f"clip/frame{i}.png" for i in (3, 1, 2)]
    assert run("--input", *files, "--task", "video", "--output", "r.json") == 0
    assert len(json.loads(Path("r.json").read_text())[0]["segmentations"]) == 3


@pytest.mark.parametrize(("extra", "count"), [((), 3), (("--confidence-threshold", "0.75"), 2), (("--top-k", "1"), 1)])
def test_threshold_and_number(run: Run, clip: str, extra: tuple[str, ...], count: int) -> None:
    assert run("--video-input", clip, "--output", "r.json", *extra) == 0
    assert len(json.loads(Path("r.json").read_text())) == count


def test_online_is_one_frame_at_a_time(run: Run, clip: str) -> None:
    model = ShapeModel()
    assert run("--video-input", clip, "--output", "r.json", "--online", model=model) == 0
    assert model.lengths == [1] * 30


def test_a_result_without_objects_is_reported(run: Run, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--video-input", clip, "--output", "r.json", "--confidence-threshold", "0.95") == 0
    assert "0 tracks" in (out := capsys.readouterr().out) and "no object has a score of at least 0.95" in out
    assert json.loads(Path("r.json").read_text()) == []


def test_a_stopped_run_resumes(run: Run, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--video-input", clip, "--window", "8", "--overlap", "3", "--output"]
    run(*arguments, "complete/r.json")
    assert run(*arguments, "stopped/r.json", model=ShapeModel(stop_at=4)) == 130
    assert "the same command resumes" in capsys.readouterr().err
    model = ShapeModel()
    assert run(*arguments, "stopped/r.json", model=model) == 0
    assert len(model.lengths) == 2
    assert Path("stopped/r.json").read_bytes() == Path("complete/r.json").read_bytes()


def test_a_stopped_run_of_other_arguments_is_discarded(run: Run, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--video-input", clip, "--output", "r.json", "--overlap", "3", "--window"]
    run(*arguments, "8", model=ShapeModel(stop_at=2))
    model = ShapeModel()
    assert run(*arguments, "9", model=model) == 0
    assert sum(model.lengths) == 30 + 3 * (len(model.lengths) - 1)
    assert "different window" in capsys.readouterr().err and Path("r.json").is_file()


def test_dropping_a_journal_may_be_stopped(run: Run, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left has no results that a later run could resume."""
    arguments = ["--video-input", clip, "--output", "r.json", "--overlap", "3", "--window"]
    run(*arguments, "8", model=ShapeModel(stop_at=2))
    work = Path(".clip_tracks")
    assert (work / "state.npz").is_file()
    rmtree = shutil.rmtree

    def stopped(path: Path, *rest: Any, **options: Any) -> None:
        if Path(path) != work:
            return rmtree(path, *rest, **options)
        (work / "run.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", stopped)
        assert run(*arguments, "9") == 130
        assert not {"run.json", "finished.json", "state.npz"} & names(work)
        assert run(*arguments, "9") == 130  # the last step of a complete run
        assert not {"run.json", "finished.json", "state.npz"} & names(work)
    model = ShapeModel()
    assert run(*arguments, "10", model=model) == 0
    assert sum(model.lengths) == 30 + 3 * (len(model.lengths) - 1) and not work.exists()


def test_frames_of_a_longer_video_are_deleted(run: Run, clip: str) -> None:
    every = ["--task", "video", "--output", "out", "--save", "masks", "json", "overlay", "--save-frames"]
    assert run("--video-input", clip, *every) == 0
    assert run("--input", *(f"clip/frame{i}.png" for i in range(5)), *every) == 0
    assert names(Path("out/frames")) == {f"{i:06d}.jpg" for i in range(5)}
    assert names(Path("out/masks")) == {"tracks.json", *(f"{i:06d}.png" for i in range(5))}


def test_the_directory_of_the_frames_is_not_overwritten(
    run: Run, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Report the error before the network runs."""
    model = ShapeModel()
    Path(clip).rename("frames")
    assert run("--video-input", "frames", "--output", ".", "--save-frames", model=model) == 2
    assert "frames is the input itself" in capsys.readouterr().err and model.lengths == []


def test_a_failed_run_leaves_the_video_before(demo: ModuleType, clip: str) -> None:  # noqa: F811
    arguments = ["--video-input", clip, "--output", "o.mp4"]
    assert demo.main(arguments) == 0
    before = Path("o.mp4").read_bytes()
    Path(clip, "frame3.png").write_bytes(b"no image")
    assert demo.main(arguments) != 0
    assert Path("o.mp4").read_bytes() == before and not list(Path().glob(".o*"))


def test_a_stopped_run_of_single_images_keeps_its_part(
    demo: ModuleType,  # noqa: F811
    clip: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, segment = itertools.count(), Segmenter.__call__

    def stopping(self: Segmenter, image: Any) -> Any:
        if next(count) == 4:
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Segmenter, "__call__", stopping)
    demo.main(["--video-input", clip, "--output", "o.mp4"])
    assert len(video("o.mp4")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "video"], "--task video needs --video-input"),
        ([], "this is a video model: give --video-input"),
        (["--video-input", "clip.mpp"], "clip.mpp does not exist"),
        (["--video-input", "empty"], "no frames in this directory"),
        (["--video-input", "clip", "--window", "0"], "window must be at least 1 frame"),
        (["--video-input", "clip", "--overlap", "24"], "overlap must lie between 0 and window - 1 = 23"),
        (["--video-input", "clip", "--top-k", "0"], "top_k must be at least 1"),
        (
            ["--video-input", "clip", "--output", "x.avi"],
            "cannot end with .avi; give .json, .mkv, .mov, .mp4, or a directory",
        ),
        (["--webcam", "--task", "video"], "image by image"),
        (["--input", "clip/frame1.png", "nothing.png"], "nothing.png does not exist"),
        (["--video-input", "mixed"], "frame 1 is 96x48, but earlier frames are 10x8"),
    ],
)
def test_errors_name_the_remedy(
    run: Run, clip: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    Path("mixed").mkdir()
    Image.new("RGB", (10, 8)).save("mixed/1.png")
    Image.new("RGB", (96, 48)).save("mixed/2.png")
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_image_models_segment_each_image_of_a_directory(demo: ModuleType, clip: str) -> None:  # noqa: F811
    """The stub of the image demo cannot track objects: each image is segmented by itself."""
    assert demo.main(["--video-input", clip, "--output", "o.mp4"]) == 0
    assert len(video("o.mp4")) == 30


def test_a_model_that_cannot_track_objects(
    demo: ModuleType,  # noqa: F811
    clip: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert demo.main(["--video-input", clip, "--task", "video"]) == 2
    assert "youtubevis_2019" in capsys.readouterr().err


def test_a_real_model_in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete demo with a small network of random weights and the config of a training output directory."""
    import importlib.util
    import sys

    from mask2former.checkpoint import save_safetensors
    from mask2former.config import load_config

    from ..modeling.tiny_models import TINY, tiny
    from .test_demo import SCRIPT

    small = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "INPUT.MIN_SIZE_TEST", 48, "DATASETS.TRAIN", (), "DATASETS.TEST", ()]
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    name = "youtubevis_2019/swin/video_maskformer2_swin_tiny_bs16_8ep.yaml"
    Path("model/config.yaml").write_text(load_config(name, [*TINY, *small]).dump())
    Path("model/classes.json").write_text(json.dumps(["a", "b", "c"]))
    save_safetensors(tiny(name, *small), Path("model/model.safetensors"))
    for i, image in enumerate(images(7)):
        Path("clip").mkdir(exist_ok=True)
        Image.fromarray(image).save(f"clip/{i}.png")

    monkeypatch.setattr(sys, "path", [*sys.path, str(SCRIPT.parent)])
    spec = importlib.util.spec_from_file_location("real_demo", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "real_demo", script)
    spec.loader.exec_module(script)
    common = ["--model", "model", "--device", "cpu", "--video-input", "clip", "--confidence-threshold", "0"]
    assert script.main([*common, "--output", "r.json"]) == 0
    records = json.loads(Path("r.json").read_text())
    assert 1 <= len(records) <= 10 and all(len(r["segmentations"]) == 7 for r in records)
    assert all(0 < r["score"] < 1 and r["category_id"] in (1, 2, 3) for r in records)
    assert any(rle is not None for r in records for rle in r["segmentations"])
    assert script.main([*common, "--online", "--output", "out"]) == 0
    assert len(video("out/clip_segmented.mp4")) == 7
    assert script.main(["--model", "model", "--task", "instance", "--video-input", "clip"]) == 2
