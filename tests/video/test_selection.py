"""Parts of videos: how points are written, exact frames, times and numbers, resuming, and where tracks are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mask2former.segmenter import Segmenter
from mask2former.video import reader, seeking
from mask2former.video.journal import JournalMismatch
from mask2former.video.reader import FrameSource, VideoFile, open_frames
from mask2former.video.results import VideoResult
from mask2former.video.selection import Selection, select_frames
from mask2former.video.time_points import Point, parse_point

from .moving_shapes import ShapeModel, images, truth
from .sound_videos import write


def track(video: Any, **options: Any) -> VideoResult:
    segment = Segmenter(ShapeModel(stop_at=options.pop("stop_at", None)), classes=["a", "b", "c"], min_size=0)
    return segment.track(video, **{"window": 8, "overlap": 3, **options})


def content(source: FrameSource, start: int = 0) -> list[tuple[int, int, float, bytes]]:
    """Return position, index, time and pixels of each frame."""
    return [(f.position, f.index, round(f.seconds, 4), f.image.tobytes()) for f in source.read(start)]


# ------------------------------------------------------------------ how points are written
@pytest.mark.parametrize(
    ("text", "point"),
    [
        (0, Point(seconds=0.0)),
        (12.5, Point(seconds=12.5)),
        (np.float32(0.5), Point(seconds=0.5)),
        ("12.5", Point(seconds=12.5)),
        (" .5 ", Point(seconds=0.5)),
        ("1:30", Point(seconds=90.0)),
        ("90:00", Point(seconds=5400.0)),
        ("01:02:03.5", Point(seconds=3723.5)),
        ("120f", Point(frame=120)),
        ("0f", Point(frame=0)),
    ],
)
def test_points(text: Any, point: Point) -> None:
    assert parse_point(text, "start") == point


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", -1, "1:75", "1:60:00", "1:2:3:4", "1,5", "120", "12.5f", "f", True, None, [1], "1e999"]
    + [float("nan"), float("inf"), "9" * 5000 + "f", "9" * 5000, "1:", "\u0661f"],
)
def test_unreadable_points_are_explained(text: Any) -> None:
    if text == "120":
        assert parse_point(text, "start") == Point(seconds=120.0)
        return
    with pytest.raises(ValueError, match=r'start=.* give seconds \(12\.5\), a time \("1:30"'):
        parse_point(text, "start")


@given(st.floats(0, 1e6), st.integers(0, 10**9))
def test_points_are_read_as_written(seconds: float, frame: int) -> None:
    for point in (Point(seconds=seconds), Point(frame=frame)):
        written = str(point) if "e" not in str(point) else f"{seconds:.12f}"
        again = parse_point(written, "end")
        assert again.frame == point.frame and again.seconds == pytest.approx(point.seconds, abs=1e-9)


@pytest.mark.parametrize("end", ["1:00", 60, "0f", 0, "59.9"])
def test_the_end_lies_behind_the_start(end: Any) -> None:
    with pytest.raises(ValueError, match="must lie behind start='1:00'"):
        select_frames(open_frames(images(2), Path()), "1:00", end)


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", True, None])
def test_invalid_steps(every: Any) -> None:
    with pytest.raises(ValueError, match=r"every=.*: give a number of frames, at least 1"):
        track(images(2), every=every)


def test_all_frames_are_the_video_itself() -> None:
    source = open_frames(images(3), Path())
    assert select_frames(source) is select_frames(source, 0, None, 1) is select_frames(source, "0f") is source
    with pytest.raises(ValueError, match=r"only a part of this video is selected already \(every=2\)"):
        select_frames(select_frames(source, every=2), 1)


# ------------------------------------------------------------------ which frames
@pytest.mark.parametrize(
    ("start", "end", "every", "selected"),
    [
        ("3f", "6f", 1, [3, 4, 5]),
        (0.12, 0.24, 1, [3, 4, 5]),  # of 25 frames per second
        (0.13, 0.21, 1, [4, 5]),
        (None, "00:00:00.08", 1, [0, 1]),
        ("8f", None, 1, [8, 9]),
        (None, None, 4, [0, 4, 8]),
        ("1f", "9f", 4, [1, 5]),
        ("1f", "10f", 4, [1, 5, 9]),
        ("7f", 99, 2, [7, 9]),
    ],
)
@pytest.mark.parametrize("kind", ["list", "directory", "stream"])
def test_frames_of_images(tmp_path: Path, kind: str, start: Any, end: Any, every: int, selected: list[int]) -> None:
    clip: Any = [np.full((4, 6, 3), i, np.uint8) for i in range(10)]
    if kind == "directory":
        for i, pixels in enumerate(clip):
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        clip = tmp_path
    source = select_frames(open_frames(iter(clip) if kind == "stream" else clip, tmp_path / "spool"), start, end, every)
    frames = list(source.read())
    assert [f.index for f in frames] == [int(f.image.max()) for f in frames] == selected
    assert [f.position for f in frames] == list(range(len(selected)))
    assert [f.seconds for f in frames] == [i / 25 for i in selected]
    assert source.first == selected[0] and source.rate == Fraction(25, every)
    assert kind == "stream" or source.length == len(selected)
    assert [f.index for f in source.read(1)] == selected[1:]


def test_a_stream_is_not_read_beyond_the_end(tmp_path: Path) -> None:
    def stream() -> Iterator[np.ndarray]:
        for i in range(9):
            yield np.full((4, 6, 3), i, np.uint8)
        raise AssertionError("nobody needs this frame")

    source = select_frames(open_frames(stream(), tmp_path), "1f", 0.4, 4)  # 1, 5 (and 9 would be the end)
    assert [f.index for f in select_frames(open_frames(stream(), tmp_path / "b"), "1f", "9f", 4).read()] == [1, 5]
    with pytest.raises(AssertionError):
        list(source.read())


def test_only_the_selected_images_are_read(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "2.png")
    assert len(list(select_frames(open_frames(tmp_path, tmp_path), "2f", None, 4).read())) == 1


@pytest.mark.parametrize("kind", ["pyav", "opencv", "list"])
def test_an_empty_selection_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "opencv":
        monkeypatch.setattr(reader, "_pyav", lambda: None)
    video: Any = images(10) if kind == "list" else write(tmp_path / "a.mp4", 10)
    message = "no frame lies in the selection start=7.0; the (video has 10 frames|last frame of the video is 9f)"
    with pytest.raises(ValueError, match=message):
        list(select_frames(open_frames(video, tmp_path), 7).read())
    if kind == "pyav":
        with pytest.raises(ValueError, match=r"end=0\.03; the next frame is 1f, at 0\.040 seconds"):
            list(select_frames(open_frames(video, tmp_path), 0.01, 0.03).read())


# ------------------------------------------------------------------ exact frames of files
VARIANTS: dict[str, dict[str, Any]] = {
    "h264": {},
    "open groups": {"options": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}},
    "gradual refresh": {"options": {"x264-params": "intra-refresh=1:keyint=12", "bf": "0"}},
    "uneven times": {"gaps": True},
    "late start": {"shift": 1.5, "sound": "aac"},
    "all key frames": {"options": {"g": "1", "bf": "0"}},
    "mpeg4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1"}},
}


NOT_IN_AVI = ("late start", "uneven times", "open groups")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_are_those_of_the_complete_video(tmp_path: Path, variant: str, suffix: str) -> None:
    """However a frame is reached, it has the number, the time and the pixels of one pass through the file."""
    if (suffix == ".ts" and variant == "vp9") or (suffix == ".avi" and variant in NOT_IN_AVI):
        pytest.skip("such a file has no times")
    path = write(tmp_path / f"a{suffix}", 70, **VARIANTS[variant])
    complete = content(VideoFile(path))
    assert len(complete) == 70
    if suffix in (".mp4", ".mkv") and variant in ("h264", "open groups", "late start", "uneven times"):
        with VideoFile(path)._open() as container:
            assert seeking.find_target(container, container.streams.video[0], Point(frame=60)) is not None
    for start in ("5f", "43f", "44f", "60f"):
        number = int(start[:-1])
        assert content(select_frames(VideoFile(path), start)) == [
            (i, *frame[1:]) for i, frame in enumerate(complete[number:])
        ]
        seconds = complete[number][2]
        selected = select_frames(VideoFile(path), seconds, seconds + 0.3, 3)
        expected = [frame for frame in complete[number:] if frame[2] < seconds + 0.3 - 1e-5][::3]
        assert content(selected) == [(i, *frame[1:]) for i, frame in enumerate(expected)]
        assert content(selected, 1) == content(selected)[1:] and selected.first == number


@pytest.mark.parametrize("start", ["60f", 2.4])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_before_the_start_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, start: Any
) -> None:
    source = VideoFile(write(tmp_path / f"a{suffix}", 70))
    decoded = []
    original = VideoFile._decoded

    def count(self: VideoFile, packets: Iterator[Any]) -> Iterator[Any]:
        for frame in original(self, packets):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(VideoFile, "_decoded", count)
    assert [f.index for f in select_frames(source, start, None, 5).read()] == [60, 65]
    assert len(decoded) <= 10 + 36  # from up to three key frames before
    monkeypatch.setattr(seeking, "_CODECS", frozenset())  # as of a codec that is not known to be exact
    assert [f.index for f in select_frames(source, start, None, 5).read()] == [60, 65]
    assert len(decoded) > 70


def test_a_seek_that_misses_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = VideoFile(write(tmp_path / "a.mp4", 70))
    expected = content(source)[50:]
    wrong = seeking.SeekTarget(50, 10**12, 0, 0.0)  # a time that no frame has
    monkeypatch.setattr(reader, "find_target", lambda *args: wrong)
    assert [row[1:] for row in content(select_frames(source, "50f"))] == [row[1:] for row in expected]


def test_opencv_selects_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", 30)
    monkeypatch.setattr(reader, "_pyav", lambda: None)
    complete = content(VideoFile(path))
    assert [row[1:] for row in content(select_frames(VideoFile(path), 0.4, "20f", 4))] == [
        row[1:] for row in complete[10:20:4]
    ]


# ------------------------------------------------------------------ tracks
def test_tracks_have_the_numbers_of_the_complete_video() -> None:
    result = track(images(40), start="4f", end=1.2, every=2)  # frames 4, 6, ... 28
    assert len(result) == 13 and list(result.frames) == list(range(4, 30, 2))
    assert [index for index, _, _ in result.masks()] == list(range(4, 30, 2))
    assert [seconds for _, seconds, _ in result.masks()] == [i / 25 for i in range(4, 30, 2)]
    by_class = {t.label: t for t in result.tracks}
    assert (by_class[0].first, by_class[0].last) == (4, 29)
    shown = [frame.index for frame in result if by_class[1].id in frame.ids]
    assert shown == [4, 6, 8, 10, 12]  # the object is there up to frame 13
    for frame in result:
        assert frame.seconds == frame.index / 25
        labels = frame.label_map()
        assert np.count_nonzero((labels == by_class[0].id) != truth(0, frame.index)) <= 8
    assert [len(r["segmentations"]) for r in result.to_ytvis()] == [13] * 3


def test_files_have_the_numbers_of_the_complete_video(tmp_path: Path) -> None:
    track(images(12)).save(tmp_path)
    result = track(images(40), start="4f", every=3)
    result.save(tmp_path)
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == [f"{i:06d}" for i in range(4, 40, 3)]
    assert json.loads((tmp_path / "tracks.json").read_text())[0]["first"] == 4
    assert len(result.filter(0.75).tracks) == 2 and result.filter(0.75).frames == result.frames


@pytest.mark.parametrize("other", [{"start": "2f"}, {"start": "1f", "end": "30f"}, {"start": "1f", "every": 2}, {}])
def test_another_selection_does_not_resume(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        track(images(40), start="1f", stop_at=2, work_dir=tmp_path)
    with pytest.raises(JournalMismatch, match="different video"):
        track(images(40), work_dir=tmp_path, **other)


@pytest.mark.parametrize("options", [{"start": "3f", "every": 2}, {"start": 0.12, "end": 1.5}])
def test_a_stopped_run_continues(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "video"
    path.mkdir()
    for i, pixels in enumerate(images(60)):
        Image.fromarray(pixels).save(path / f"{i}.png")
    with pytest.raises(KeyboardInterrupt):
        track(path, stop_at=2, work_dir=tmp_path / "work", **options)
    result = track(path, work_dir=tmp_path / "work", **options)
    expected = track(path, **options)
    assert list(result.masks()) == list(expected.masks()) and result.tracks == expected.tracks
    finished = track(path, work_dir=tmp_path / "work", **options)  # nothing is read again
    assert finished.frames == expected.frames and finished.tracks == expected.tracks


def test_selections_are_equal_however_they_are_written() -> None:
    assert Selection.parse("1:30", "2:00").facts() == Selection.parse(90, 120.0, 1).facts()
    assert Selection.parse(0.1234567, None).facts() != Selection.parse(0.1234568, None).facts()
