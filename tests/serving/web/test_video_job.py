from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mask2former.serving.engine import Engine, ModelSource
from mask2former.serving.errors import ServingError, TooLargeError, UnreadableImageError, UnsupportedTypeError
from mask2former.serving.limits import Limits
from mask2former.serving.web import video_job
from mask2former.serving.web.video_job import LimitedVideo, TrackingJob
from mask2former.video.frame_source import UnreadFrame
from mask2former.video.reader import VideoFile

from ..conftest import png
from .conftest import write_video

pytest.importorskip("av")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "walk.mp4", seconds=0.5)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine({"nuclei": ModelSource.named("nuclei")}, device="cpu") as engine:
        yield engine


def test_what_is_no_video(tmp_path: Path) -> None:
    for content in (b"", b"#EXTM3U\nfile:///etc/passwd", png(), b"ffconcat version 1.0\nfile /etc/passwd"):
        file = tmp_path / "x.mp4"
        file.write_bytes(content)
        with pytest.raises(UnsupportedTypeError, match="MP4"):
            LimitedVideo(file, Limits())
    file.write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 200)
    with pytest.raises(UnreadableImageError, match="damaged") as caught:
        LimitedVideo(file, Limits())
    assert str(tmp_path) not in str(caught.value)


def test_limits(video: Path) -> None:
    assert LimitedVideo(video, Limits()).length == 2
    for limits in (Limits(max_video_bytes=100), Limits(max_video_pixels=96 * 95), Limits(max_video_seconds=0.3)):
        with pytest.raises(TooLargeError):
            LimitedVideo(video, limits)


def test_a_header_that_lies_is_found_out_while_frames_are_read(video: Path) -> None:
    source = LimitedVideo(video, Limits())
    source._limits = Limits(max_video_seconds=0.2)  # as if the header had said less
    with pytest.raises(TooLargeError):
        list(source.read())


def test_sizes_of_frames_are_checked_as_they_are_read(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([(8, 8), (8, 6)])

    def read(self: VideoFile, start: int) -> Iterator[UnreadFrame]:
        for i, size in enumerate(sizes):
            yield UnreadFrame(i, i / 4, partial(np.zeros, (*size, 3), np.uint8))

    source = LimitedVideo(video, Limits(max_video_pixels=96 * 96))
    monkeypatch.setattr(VideoFile, "_read", read)
    with pytest.raises(UnreadableImageError, match="different sizes"):
        list(source.read())
    sizes = iter([(96, 97)])
    with pytest.raises(TooLargeError, match="97x96 pixels"):
        list(source.read())


@pytest.mark.slow
def test_a_video_is_tracked_and_written(video: Path, engine: Engine, tmp_path: Path) -> None:
    job = TrackingJob(engine, LimitedVideo(video, Limits()), "nuclei", 0.5)
    result = job.future.result(300)
    assert job.started and job.frames == 2 and job.fraction == 1.0
    target = tmp_path / "out"
    target.mkdir()
    job.write(target).result(300)
    assert job.fraction == 1.0
    assert {file.name for file in target.iterdir()} == {"overlay.mp4", "tracks.json", "tracks.csv", "counts.csv"}
    with (target / "tracks.csv").open(encoding="utf-8-sig") as file:
        assert len(list(csv.DictReader(file))) == len(result.tracks) > 0


def test_a_job_can_be_stopped(video: Path, engine: Engine) -> None:
    source = LimitedVideo(video, Limits())
    job = TrackingJob(engine, source, "nuclei", 0.5)
    job.stop()
    with pytest.raises(CancelledError):
        job.future.result(300)
    assert source.turn is None


@pytest.fixture
def tracked(video: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> TrackingJob:
    """Return a job whose tracking is over, with a result that takes nothing to make."""
    monkeypatch.setattr(TrackingJob, "_run", lambda *_: None)
    job = TrackingJob(engine, LimitedVideo(video, Limits()), "nuclei", 0.5)
    job.future.result(300)
    return job


def test_drawing_can_be_stopped(tracked: TrackingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(result: None, directory: Path) -> None:
        for _ in tracked._video.read():
            (directory / "overlay.mp4").write_bytes(b"a part")
            tracked.stop()  # as its owner does between two frames

    monkeypatch.setattr(video_job, "write_files", draw)
    for name in ("first", "second"):  # the second one is stopped before it begins, while another video is drawn
        directory = tmp_path / name
        directory.mkdir()
        with pytest.raises(CancelledError):
            tracked.write(directory).result(300)
        assert not directory.exists()
        if name == "first":
            assert video_job._DRAWING.acquire(timeout=300)
    video_job._DRAWING.release()


def test_drawing_has_a_time_limit_and_explains_failures(
    tracked: TrackingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(result: None, directory: Path) -> None:
        raise OSError(f"no space left in {directory}")

    monkeypatch.setattr(video_job, "write_files", draw)
    with pytest.raises(ServingError, match="cannot be drawn") as caught:
        tracked.write(tmp_path / "out").result(300)
    assert str(tmp_path) not in str(caught.value)
    monkeypatch.setattr(video_job, "write_files", lambda *_: list(tracked._video.read()))
    tracked._seconds = -1.0
    with pytest.raises(ServingError, match="not drawn in time"):
        tracked.write(tmp_path / "out").result(300)
