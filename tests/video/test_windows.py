"""Long clips: windows, tracks across them, equality with the complete clip, and resuming after a stop."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from mask2former import load_config
from mask2former.modeling.runtime import Runtime
from mask2former.segmenter import Segmenter
from mask2former.video.reader import Frame
from mask2former.video.results import VideoResult, choose_tracks
from mask2former.video.windows import LongClip, WindowSettings, windows

from ..modeling.tiny_models import tiny
from .moving_shapes import OBJECTS, ShapeModel, image, images, truth

R50 = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
IMAGES = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"


def segmenter(model: Any = None, **options: Any) -> Segmenter:
    return Segmenter(model or ShapeModel(), classes=["a", "b", "c"], min_size=0, **options)


def frames(count: int) -> Any:
    return (Frame(i, i / 25, np.zeros((2, 2, 3), np.uint8)) for i in range(count))


def test_overlaps_of_windows_do_not_depend_on_autocast() -> None:
    """They are counts of pixels, which numbers of 16 bits would round."""
    logits = torch.randn(5, 2, 37, 41, generator=torch.Generator().manual_seed(0))
    before = np.random.default_rng(0).random((3, 37 * 41)) < 0.5
    clip = object.__new__(LongClip)
    clip.journal = SimpleNamespace(  # type: ignore[assignment]
        state={"shared_ids": np.array([4, 5, 6]), "shared_bits": np.packbits(before, axis=1)}
    )
    with torch.autocast("cpu", torch.bfloat16):
        overlaps = clip._shared_iou(logits, shared=1)
    now = (logits[:, 0] > 0).flatten(1).numpy()
    for row, values in zip(before, overlaps.values(), strict=True):
        assert values == pytest.approx((row & now).sum(1) / (row | now).sum(1), abs=1e-6)


def check_tracks(result: VideoResult, count: int) -> None:
    """Check that each object has one track with its ground-truth masks."""
    by_class = {track.label: track for track in result.tracks}
    assert sorted(by_class) == [0, 1, 2] and len(result.tracks) == 3
    seen = 0
    for index, _, rles in result.masks():
        assert index == seen
        seen += 1
        for number in range(len(OBJECTS)):
            rle = rles.get(by_class[number].id)
            mask = np.zeros(truth(0, 0).shape, bool) if rle is None else mask_util.decode(rle).astype(bool)
            # The mask comes from stride 4, where bilinear resizing rounds the corners.
            assert np.count_nonzero(mask != truth(number, index)) <= 8, (index, number)
    assert seen == count == len(result)


# ------------------------------------------------------------------ windows
@pytest.mark.parametrize(
    ("length", "overlap"), [(n, o) for n in (1, 2, 5, 6, 7, 9, 10, 11, 30) for o in (0, 1, 2, 3, 5)]
)
def test_windows_cover_each_frame_once(length: int, overlap: int) -> None:
    cut = list(windows(frames(length), 6, overlap))
    own = [w.frames[t].index for w in cut for t in w.own(overlap)]
    assert own == list(range(length))
    assert all(len(w.frames) <= 6 for w in cut) and [w.last for w in cut] == [False] * (len(cut) - 1) + [True]
    for a, b in itertools.pairwise(cut):
        assert b.span[0] == a.span[1] - overlap and b.shared == overlap


def test_the_shared_frames_come_from_the_window_that_has_them_inside() -> None:
    first, second = windows(frames(10), 6, 2)
    assert (first.own(2), second.own(2)) == (range(5), range(1, 6))


def test_frames_are_read_one_window_at_a_time() -> None:
    read = []
    source = (read.append(f.index) or f for f in frames(100))
    cut = windows(source, 6, 2)
    next(cut), next(cut)
    assert len(read) == 11  # two windows, and one frame to know whether another follows


def test_windows_are_those_of_the_model_unless_others_are_given() -> None:
    def selected(window: int | None = None, overlap: int | None = None, *, opts: Sequence[Any] = ()) -> tuple[int, int]:
        settings = WindowSettings.selected(load_config(R50, opts), window, overlap, 20)
        return settings.window, settings.overlap

    of_model = ["TEST.WINDOW_FRAMES", 4, "TEST.WINDOW_OVERLAP", 2]
    assert selected() == (24, 6)  # published models have none
    assert selected(opts=of_model) == (4, 2)
    assert selected(overlap=1, opts=of_model) == (4, 1)
    assert selected(12, opts=of_model) == (12, 2)
    assert selected(2, opts=of_model) == (2, 1) and selected(4) == (4, 3) and selected(1) == (1, 0)
    assert WindowSettings.selected(None, None, None, 20).window == 24
    foreign = load_config(R50)
    del foreign.TEST["WINDOW_FRAMES"], foreign.TEST["WINDOW_OVERLAP"]
    assert WindowSettings.selected(foreign, None, None, 20).overlap == 6


def test_tracks_are_made_in_the_windows_of_the_model(tmp_path: Path) -> None:
    cfg = load_config(R50, ["TEST.WINDOW_FRAMES", 4, "TEST.WINDOW_OVERLAP", 2, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3])
    segmenter(cfg=cfg).track(images(6), work_dir=tmp_path)
    assert len(list(tmp_path.glob("window_*.json"))) == 2


@pytest.mark.parametrize("options", [{"window": 0}, {"window": 4, "overlap": 4}, {"overlap": -1}, {"candidates": 0}])
def test_impossible_settings_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(reversed(options)))):
        WindowSettings(**options)


# ------------------------------------------------------------------ tracks through windows
@pytest.mark.parametrize(("window", "overlap"), [(30, 0), (8, 3), (8, 0), (5, 4)])
def test_objects_keep_their_tracks_through_windows(window: int, overlap: int) -> None:
    result = segmenter().track(images(30), window=window, overlap=overlap)
    check_tracks(result, 30)
    assert [round(track.score, 3) for track in result.tracks] == [0.9, 0.8, 0.7]
    assert [track.first for track in result.tracks][:2] == [0, 0]


def test_online() -> None:
    model = ShapeModel()
    result = segmenter(model).track(images(30), online=True)
    check_tracks(result, 30)
    assert model.lengths == [1] * 30
    born = {track.label: (track.first, track.last) for track in result.tracks}
    assert born == {0: (0, 30), 1: (0, 14), 2: (11, 30)}


def test_masks_on_shared_frames_tell_objects_of_one_look_apart() -> None:
    check_tracks(segmenter(ShapeModel(alike=True)).track(images(30), window=8, overlap=3), 30)


# ------------------------------------------------------------------ one window is the complete clip
@pytest.mark.parametrize("config", [R50, IMAGES])
def test_the_network_runs_as_segmenter_or_model_say(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of the segmenter comes before that of the model; frames are told to both."""
    runs: list[tuple[Runtime, int | None]] = []
    call = Runtime.__call__

    def run(self: Runtime, *args: Any, frames: int | None = None) -> Any:
        runs.append((self, frames))
        return call(self, *args, frames=frames)

    monkeypatch.setattr(Runtime, "__call__", run)
    model = tiny(config, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3).eval()
    options: dict[str, Any] = {"online": True} if config == IMAGES else {"window": 2, "overlap": 1}
    for compile in (None, "off"):
        runs.clear()
        segment = segmenter(model, compile=compile, score_threshold=0.0)
        segment.track(images(3), **options)
        assert [frames for _, frames in runs] == ([1, 1, 1] if config == IMAGES else [2, 2])
        assert all((runtime is model.runtime.of_prediction) is (compile is None) for runtime, _ in runs)


@pytest.mark.parametrize("online", [False, True])
def test_one_window_equals_the_model_itself(online: bool) -> None:
    model: Any = tiny(R50, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3).eval()
    count = 1 if online else 3
    images = [torch.randint(0, 256, (3, 52, 70), dtype=torch.uint8) for _ in range(count)]
    with torch.inference_mode():
        expected = model([{"image": images, "height": 52, "width": 70}])
    result = segmenter(model, score_threshold=0.0).track(images, online=online).filter(one_class=False)
    assert [t.score for t in result.tracks] == expected["pred_scores"]
    assert [t.label for t in result.tracks] == expected["pred_labels"]
    assert len(result.tracks) == 10
    for record, masks in zip(result.to_ytvis(), expected["pred_masks"], strict=True):
        for rle, mask in zip(record["segmentations"], masks, strict=True):
            decoded = np.zeros((52, 70), bool) if rle is None else mask_util.decode(rle).astype(bool)
            assert (decoded == mask.numpy()).all()
    assert any(mask.any() for mask in expected["pred_masks"])


def test_image_models_follow_objects_frame_by_frame() -> None:
    model = tiny(IMAGES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3).eval()
    segment = segmenter(model, score_threshold=0.0)
    with pytest.raises(ValueError, match="online=True"):
        segment.track(images(3))
    # The same image again: the same objects, in the same tracks.
    result = segment.track([image(0)] * 3, online=True, top_k=5)
    assert len(result.tracks) == 5 and all((t.first, t.last) == (0, 3) for t in result.tracks)


# ------------------------------------------------------------------ stop and resume
@pytest.mark.parametrize("stop_at", [0, 1, 3, 5])
def test_a_killed_run_resumes_after_its_last_window(tmp_path: Path, stop_at: int) -> None:
    options = {"window": 8, "overlap": 3}
    complete = segmenter().track(images(30), work_dir=tmp_path / "complete", **options)
    with pytest.raises(KeyboardInterrupt):
        segmenter(ShapeModel(stop_at=stop_at)).track(images(30), work_dir=tmp_path / "stopped", **options)
    model = ShapeModel()
    result = segmenter(model).track(images(30), work_dir=tmp_path / "stopped", **options)
    total = len(list((tmp_path / "complete").glob("window_*")))
    assert total == 6 and len(model.lengths) == total - stop_at
    assert result.tracks == complete.tracks and result.to_ytvis() == complete.to_ytvis()
    for name in ("state.npz", "finished.json", "window_000005.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "complete" / name).read_bytes(), name


# A process that hangs in its third window and reports it by a file.
HANGING = """
import sys, time
from pathlib import Path
from tests.video.moving_shapes import ShapeModel, images
from mask2former.segmenter import Segmenter

class Hanging(ShapeModel):
    def clip_outputs(self, images):
        if len(self.lengths) == 2:
            Path(sys.argv[2]).touch()
            time.sleep(600)
        return super().clip_outputs(images)

segment = Segmenter(Hanging(), classes=["a", "b", "c"], min_size=0, score_threshold=0.0)
segment.track(images(30), window=8, overlap=3, work_dir=sys.argv[1])
"""


@pytest.mark.slow
def test_kill_minus_9(tmp_path: Path) -> None:
    directory, reached = tmp_path / "stopped", tmp_path / "reached"
    arguments = [sys.executable, "-c", HANGING, str(directory), str(reached)]
    with subprocess.Popen(arguments, cwd=Path(__file__).parents[2]) as process:
        try:
            while not reached.exists():
                assert process.poll() is None, "the process has ended by itself"
                time.sleep(0.05)
        finally:
            process.kill()
    model = ShapeModel()
    result = segmenter(model).track(images(30), window=8, overlap=3, work_dir=directory)
    assert len(model.lengths) == 4  # of 6
    assert result.to_ytvis() == segmenter().track(images(30), window=8, overlap=3).to_ytvis()


@pytest.mark.parametrize("lost", ["finished.json", "state.npz"])
def test_a_stop_between_two_files_is_harmless(tmp_path: Path, lost: str) -> None:
    options = {"window": 8, "overlap": 3, "work_dir": tmp_path}
    complete = segmenter().track(images(30), **options).to_ytvis()
    (tmp_path / lost).unlink()
    (tmp_path / "finished.json").unlink(missing_ok=True)
    model = ShapeModel()
    assert segmenter(model).track(images(30), **options).to_ytvis() == complete
    assert len(model.lengths) == (0 if lost == "finished.json" else 6)


def test_a_clip_shorter_than_the_overlap_is_finished_too(tmp_path: Path) -> None:
    options = {"window": 8, "overlap": 6, "work_dir": tmp_path}
    first = segmenter().track(images(4), **options).to_ytvis()
    (tmp_path / "finished.json").unlink()
    assert segmenter().track(images(4), **options).to_ytvis() == first


def test_a_finished_run_is_read_and_another_one_refused(tmp_path: Path) -> None:
    segmenter().track(images(9), window=8, overlap=3, work_dir=tmp_path)
    model = ShapeModel()
    segmenter(model).track(images(9), window=8, overlap=3, work_dir=tmp_path)
    assert model.lengths == []
    with pytest.raises(ValueError, match="different overlap, window"):
        segmenter().track(images(9), window=7, overlap=2, work_dir=tmp_path)
    with torch.no_grad():
        model.weight += 1
    with pytest.raises(ValueError, match="different weights"):
        segmenter(model).track(images(9), window=8, overlap=3, work_dir=tmp_path)


def test_frames_of_a_generator_are_kept_for_the_images(tmp_path: Path) -> None:
    options = {"window": 8, "overlap": 3, "work_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        segmenter(ShapeModel(stop_at=2)).track(iter(images(30)), **options)
    result = segmenter().track(iter(images(30)), **options)
    check_tracks(result, 30)
    for frame in result:
        assert (frame.result.image == image(frame.index)).all()


def test_temporary_files_go_with_the_result() -> None:
    result = segmenter().track(images(9), window=4, overlap=1)
    part = result.filter(0.85)
    directory = result.journal.directory
    del result
    assert directory.is_dir() and len(part.tracks) == 1
    del part
    assert not directory.exists()


# ------------------------------------------------------------------ choosing tracks
def test_top_k_counts_tracks_of_one_window() -> None:
    scores = np.array([[0.9, 0.05], [0.2, 0.7], [0.6, 0.1]], dtype=np.float32)
    present = np.array([[0, 1], [0, 2], [1, 3]])
    pick = {"top_k": 1, "score_threshold": 0.0, "one_class": True}
    assert [row[:2] for row in choose_tracks(scores, present, **pick)] == [(1, 0), (3, 0)]
    pick["top_k"] = 3
    assert [row[:2] for row in choose_tracks(scores, present, **pick)] == [(1, 0), (2, 1), (3, 0)]
    pick["one_class"] = False
    pairs = choose_tracks(scores, present, **pick)
    assert [row[:2] for row in pairs] == [(1, 0), (2, 1), (3, 0), (2, 0), (3, 1)]
    pick["score_threshold"] = 0.65
    assert [row[:2] for row in choose_tracks(scores, present, **pick)] == [(1, 0), (2, 1)]
    assert choose_tracks(np.zeros((0, 0)), np.zeros((0, 2), int), **pick) == []


def test_json_file_is_the_list_of_records(tmp_path: Path) -> None:
    result = segmenter().track(images(70), window=8, overlap=3)
    (path,) = result.save(tmp_path / "r.json", video_id=5)
    records = json.loads(path.read_text())
    assert records == result.to_ytvis(5)
    assert [r["category_id"] for r in records] == [1, 2, 3] and {r["video_id"] for r in records} == {5}
    assert records[1]["segmentations"][13] and records[1]["segmentations"][14] is None
    assert list(tmp_path.iterdir()) == [path]
    result.filter(1.0).save(path)
    assert json.loads(path.read_text()) == []
