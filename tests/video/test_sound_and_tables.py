"""Sound of written videos, their speed, and the tables of counts and tracks."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.segmenter import Segmenter
from mask2former.structures.classes import ClassTable
from mask2former.video import writer as writer_module
from mask2former.video.reader import VideoFile, open_frames
from mask2former.video.results import VideoResult
from mask2former.video.selection import select_frames
from mask2former.video.tables import count_columns
from mask2former.video.writer import VideoWriter

from .moving_shapes import ShapeModel, images, truth
from .sound_videos import pitch, sound_of, write


def track(video: Any, names: tuple[str, ...] = ("a", "b", "c"), **options: Any) -> VideoResult:
    segment = Segmenter(ShapeModel(), classes=list(names), min_size=0)
    return segment.track(video, **{"window": 8, "overlap": 3, **options})


def rewrite(path: Path, target: Path, *, audio: bool = True, **selection: Any) -> Path:
    """Write the frames of a file into another one, as results do."""
    source = select_frames(VideoFile(path), **selection)
    writer = VideoWriter(target, source.rate, audio=source if audio else None)
    for frame in source.read():
        writer.add(frame.image, frame.seconds)
    writer.close()
    return target


def first_time(path: Path) -> float:
    """Return the time of the first frame in the file."""
    source = VideoFile(path)
    next(iter(source.read()))
    return source.zero


def frame_times(path: Path) -> list[float]:
    return [round(frame.seconds, 3) for frame in VideoFile(path).read()]


# ------------------------------------------------------------------ sound
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mov", "aac"), (".mkv", "aac"), (".mkv", "pcm_s16le")]
)
def test_sound_of_the_complete_video(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write(tmp_path / f"a{suffix}", 75, sound=codec)
    sound = sound_of(rewrite(path, tmp_path / f"b{suffix}"))
    assert sound is not None
    start, seconds, samples = sound
    assert abs(start) < 0.08 and abs(seconds - 3.0) < 0.1
    for second in (0, 1, 2):
        at = round((second + 0.2 - start) * 16_000)
        assert abs(pitch(samples[at : at + 8000]) - 400 * (second + 1)) < 5


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_sound_of_a_part_is_in_step(tmp_path: Path, shift: float) -> None:
    """The second from 1 to 2 has 800 Hz, the next one 1200 Hz; times of the file may begin anywhere."""
    path = write(tmp_path / "a.mp4", 100, sound="aac", shift=shift)
    target = rewrite(path, tmp_path / "b.mp4", start=1.5, end="75f")
    sound = sound_of(target)
    assert sound is not None
    start, seconds, samples = sound
    assert 0 <= start < 0.07 and abs(start + seconds - 1.5) < 0.07
    change = round((0.5 - start) * 16_000)
    assert abs(pitch(samples[change - 6000 : change - 1000]) - 800) < 8
    assert abs(pitch(samples[change + 1000 : change + 9000]) - 1200) < 8
    assert frame_times(target)[:3] == [0.0, 0.04, 0.08] and len(frame_times(target)) in (37, 38)


def test_video_without_sound_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.mp4", 20, sound="aac")
    assert sound_of(rewrite(path, tmp_path / "b.mp4", audio=False)) is None
    assert sound_of(rewrite(write(tmp_path / "c.mp4", 20), tmp_path / "d.mp4")) is None
    assert not caplog.records


def test_what_cannot_be_kept_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.mp4", 20, sound="aac")
    assert sound_of(rewrite(path, tmp_path / "b.mp4", every=2)) is None
    assert caplog.messages == ["a: written without sound (every=2)"]
    caplog.clear()
    other = write(tmp_path / "p.mkv", 20, sound="pcm_u8")
    assert sound_of(rewrite(other, tmp_path / "q.mp4")) is None
    assert caplog.messages == ["p: written without sound (a mp4 file cannot hold pcm_u8; .mkv holds more)"]
    assert sound_of(rewrite(other, tmp_path / "r.mkv")) is not None


def test_tracked_videos_have_sound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 50, sound="aac")
    result = track(path, start="25f", score_threshold=0.0)
    result.save(tmp_path / "b.mp4")
    sound = sound_of(tmp_path / "b.mp4")
    assert sound is not None and abs(sound[1] - 1.0) < 0.1 and abs(pitch(sound[2][1000:]) - 800) < 8
    result.save(tmp_path / "c.mp4", audio=False)
    assert sound_of(tmp_path / "c.mp4") is None


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    source = VideoFile(write(tmp_path / "a.mp4", 20, sound="aac"))
    writer = VideoWriter(tmp_path / "b.mp4", source.rate, audio=source)
    writer.add(next(iter(source.read())).image, 0.0)
    writer.close(keep=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


# ------------------------------------------------------------------ speed
@pytest.mark.parametrize("encoder", ["h264", "mpeg4"])
def test_every_second_frame_plays_at_the_same_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    if encoder == "mpeg4":
        monkeypatch.setattr(writer_module, "_has_h264", lambda: False)
    path = write(tmp_path / "a.mp4", 50)
    target = rewrite(path, tmp_path / "b.mp4", start="10f", every=2)
    assert frame_times(target) == [round(0.08 * i, 3) for i in range(20)]
    assert first_time(target) == 0
    assert VideoFile(target).rate == pytest.approx(Fraction(25, 2), rel=0.06)


def test_uneven_times_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 30, gaps=True)
    target = rewrite(path, tmp_path / "b.mp4", start="7f")
    times = frame_times(path)[7:]
    assert frame_times(target) == pytest.approx([t - times[0] for t in times], abs=0.002)


# ------------------------------------------------------------------ tables
def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_counts_per_frame(tmp_path: Path) -> None:
    result = track(images(30), start="5f", every=2)
    rows = result.counts()
    assert list(rows[0]) == ["frame", "seconds", "a", "b", "c", "total", "tracks"]
    for row in rows:
        shown = [int(truth(n, row["frame"]).any()) for n in range(3)]
        assert [row["a"], row["b"], row["c"]] == shown and row["total"] == sum(shown)
        assert row["seconds"] == row["frame"] / 25
        assert row["tracks"] == sum(any(truth(n, f).any() for f in range(5, row["frame"] + 1, 2)) for n in range(3))
    assert result.save(tmp_path / "counts.csv") == [tmp_path / "counts.csv"]
    written = read(tmp_path / "counts.csv")
    assert [{k: float(v) for k, v in row.items()} for row in written] == rows
    assert [row["total"] for row in result.filter(0.75).counts()] == [row["a"] + row["b"] for row in rows]


def test_a_track_of_several_classes_is_one_object() -> None:
    rows = track(images(6)).filter(0.0, one_class=False, top_k=20).counts()
    assert all(row["total"] == row["tracks"] <= 4 for row in rows) and rows[0]["a"] > 1


def test_table_of_tracks(tmp_path: Path) -> None:
    result = track(images(30), start="5f", every=2)
    result.save(tmp_path / "my_tracks.csv")
    rows = read(tmp_path / "my_tracks.csv")
    assert [(int(r["id"]), r["class"], float(r["score"])) for r in rows] == [
        (t.id, t.name, pytest.approx(t.score)) for t in result.tracks
    ]
    b = rows[1]
    assert (b["class"], b["first"], b["last"], b["frames"]) == ("b", "5", "13", "5")
    assert float(b["seconds"]) == pytest.approx((13 - 5) / 25 + 2 / 25) and 240 <= float(b["mean_area"]) <= 256
    nothing = track([np.zeros((48, 96, 3), np.uint8)] * 3, online=True, score_threshold=0.0)
    nothing.save(tmp_path / "tracks.csv")
    assert {(r["first"], r["frames"], r["mean_area"]) for r in read(tmp_path / "tracks.csv")} <= {("", "0", "")}


def test_class_names_are_no_formulas_and_no_columns(tmp_path: Path) -> None:
    result = track(images(3), names=("=cmd|'/c calc'!A1", "total", "frame"))
    result.save(tmp_path / "counts.csv")
    result.save(tmp_path / "tracks.csv")
    header = (tmp_path / "counts.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "frame,seconds,'=cmd|'/c calc'!A1,total (2),frame (2),total,tracks"
    assert read(tmp_path / "tracks.csv")[0]["class"].startswith("'=")
    assert count_columns(ClassTable(("a", "a")).names) == ["frame", "seconds", "a", "a (2)", "total", "tracks"]


@pytest.mark.parametrize("name", ["result.csv", "counts.tsv", "counts.csv.txt"])
def test_names_of_tables(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"counts\.csv"):
        track(images(2)).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_images_have_no_sound(tmp_path: Path) -> None:
    track(open_frames(images(4), tmp_path)).save(tmp_path / "a.mp4")
    assert sound_of(tmp_path / "a.mp4") is None
