from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from mask2former.serving.engine import Engine, ModelSource
from mask2former.serving.errors import TooLargeError, UnreadableImageError, UnsupportedTypeError
from mask2former.serving.limits import Limits
from mask2former.serving.web.video_job import LimitedVideo, TrackingJob, write_files

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


@pytest.mark.slow
def test_a_video_is_tracked_and_written(video: Path, engine: Engine, tmp_path: Path) -> None:
    job = TrackingJob(engine, LimitedVideo(video, Limits()), "nuclei", 0.5)
    result = job.future.result(300)
    assert job.started and job.frames == 2 and job.fraction == 1.0
    target = tmp_path / "out"
    target.mkdir()
    write_files(result, target)
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
