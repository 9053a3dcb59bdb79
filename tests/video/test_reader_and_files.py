"""Reading of all types of videos, and the result files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.segmenter import Segmenter
from mask2former.video import reader as frames_module
from mask2former.video import writer as writer_module
from mask2former.video.journal import Journal, JournalMismatch
from mask2former.video.reader import FrameFolder, FrameSource, FrameStream, VideoFile, open_frames
from mask2former.video.results import VideoResult
from mask2former.video.writer import VideoWriter

from .moving_shapes import OBJECTS, ShapeModel, image, images, truth


def gray(value: int, size: tuple[int, int] = (16, 32)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def levels(source: FrameSource, start: int = 0) -> list[tuple[int, int]]:
    """Return index and rounded brightness of each frame."""
    return [(f.index, round(float(f.image.mean()))) for f in source.read(start)]


def write_video(path: Path, count: int, size: tuple[int, int] = (16, 32)) -> Path:
    writer = VideoWriter(path, Fraction(10))
    for i in range(count):
        writer.add(gray(20 * i, size), i / 10)
    writer.close()
    return path


# ------------------------------------------------------------------ reading
@pytest.mark.parametrize("reader", ["pyav", "opencv"])
def test_video_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", 8)
    if reader == "opencv":
        monkeypatch.setattr(frames_module, "_pyav", lambda: None)
    source = open_frames(path, tmp_path)
    assert isinstance(source, VideoFile)
    assert (source.name, source.length, source.rate) == ("a", 8, Fraction(10))
    frames = levels(source)
    assert [i for i, _ in frames] == list(range(8))
    assert np.abs(np.array([v for _, v in frames]) - 20 * np.arange(8)).max() <= 2
    assert levels(source, 5) == frames[5:] and levels(source) == frames  # it can be read again
    assert np.allclose([f.seconds for f in source.read()], np.arange(8) / 10)
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be read as a video"):
        VideoFile(path)


def test_directory_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(gray(i)).save(tmp_path / (f"f{i}.png" if i else f"f{i}.PNG"))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    source = open_frames(str(tmp_path), tmp_path)
    assert isinstance(source, FrameFolder) and source.length == 12
    assert levels(source, 8) == [(i, i) for i in range(8, 12)]


def test_images_in_memory(tmp_path: Path) -> None:
    array = np.stack([gray(i) for i in range(4)])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for video in (array, tensor, list(array), [Image.fromarray(x) for x in array]):
        source = open_frames(video, tmp_path)
        assert source.length == 4 and levels(source, 1) == [(1, 1), (2, 2), (3, 3)]


def test_a_stream_is_taken_frame_by_frame_and_can_be_read_again(tmp_path: Path) -> None:
    taken = []

    def stream() -> Iterator[np.ndarray]:
        for i in range(5):
            taken.append(i)
            yield gray(i)

    source = open_frames(stream(), tmp_path / "spool")
    reading = source.read()
    next(reading), next(reading)
    assert taken == [0, 1] and source.length is None
    assert [f.index for f in reading] == [2, 3, 4] and source.length == 5
    assert levels(source, 3) == [(3, 3), (4, 4)]


def test_a_stream_that_was_left_early_resumes(tmp_path: Path) -> None:
    source = FrameStream((gray(i) for i in range(6)), tmp_path)
    for frame in source.read():
        if frame.index == 2:
            break
    first, second = source.read(1), source.read()
    assert [next(first).index, next(second).index, next(first).index] == [1, 0, 2]
    assert [f.index for f in first] == [3, 4, 5] and [f.index for f in second] == [1, 2, 3, 4, 5]
    assert source.length == 6 and levels(source, 4) == [(4, 4), (5, 5)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i:08d}.png" for i in range(6)]


def test_a_stream_that_failed_is_not_taken_for_a_short_one(tmp_path: Path) -> None:
    source = FrameStream((gray(100 // (2 - i)) for i in range(4)), tmp_path)
    with pytest.raises(ZeroDivisionError):
        list(source.read())
    with pytest.raises(ValueError, match="failed at frame 2; pass a new one"):
        list(source.read())


# ------------------------------------------------------------------ which video it is
def test_identity_of_images_in_memory(tmp_path: Path) -> None:
    clip = [gray(i) for i in range(4)]
    known = open_frames(clip, tmp_path).identity()
    same = [np.stack(clip), torch.from_numpy(np.stack(clip)).permute(0, 3, 1, 2), [Image.fromarray(x) for x in clip]]
    assert all(open_frames(video, tmp_path).identity() == known for video in same)
    assert json.loads(json.dumps(known)) == known and known[:4] == ["clip", 4, 16, 32]
    other = [clip[:3], [*clip[:3], gray(9)], clip[::-1], [x.reshape(32, 16, 3) for x in clip]]
    assert all(open_frames(video, tmp_path).identity() != known for video in other)


@pytest.mark.parametrize("listed", [False, True])
def test_identity_of_files_sees_each_file(tmp_path: Path, listed: bool) -> None:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        Image.fromarray(gray(i)).save(file)
    video: Any = files if listed else tmp_path
    known = open_frames(video, tmp_path).identity()
    assert open_frames(video, tmp_path).identity() == known
    status = files[2].stat()
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    assert open_frames(video, tmp_path).identity() != known


def test_identity_of_a_stream_is_its_first_image(tmp_path: Path) -> None:
    clip = [gray(i) for i in range(4)]
    known = FrameStream(iter(clip), tmp_path / "a")
    assert known.identity() == known.identity() == FrameStream(iter(clip), tmp_path / "b").identity()
    assert [i for i, _ in levels(known)] == [0, 1, 2, 3]  # nothing is lost
    assert FrameStream(iter(clip[1:]), tmp_path / "c").identity() != known.identity()
    assert FrameStream(iter([]), tmp_path / "d").identity() == ["clip"]


def test_results_of_other_images_are_not_taken_for_those_of_these(tmp_path: Path) -> None:
    segment = Segmenter(ShapeModel(), classes=["a", "b", "c"], min_size=0)
    segment.track(images(9), window=8, overlap=3, work_dir=tmp_path)
    segment.track(images(9), window=8, overlap=3, work_dir=tmp_path)
    with pytest.raises(JournalMismatch, match="different video"):
        segment.track(images(14)[5:], window=8, overlap=3, work_dir=tmp_path)


@pytest.mark.parametrize("change", ["other", "shorter"])
def test_another_stream_does_not_resume_the_stored_results(tmp_path: Path, change: str) -> None:
    options = {"window": 8, "overlap": 3, "work_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        Segmenter(ShapeModel(stop_at=2), classes=["a", "b", "c"], min_size=0).track(iter(images(20)), **options)
    other = images(20)[:9]
    if change == "other":
        other += images(11)
    segment = Segmenter(ShapeModel(), classes=["a", "b", "c"], min_size=0)
    message = rf"frames: stored frame 9 differs from this video.* delete the directory {tmp_path} or choose"
    with pytest.raises(ValueError, match=message):
        segment.track(iter(other), **options)
    result = segment.track(iter(images(20)), **options)
    assert len(list(result)) == 20
    finished = segment.track(iter(other), **options)  # its first image is the same: seen when images are read
    with pytest.raises(ValueError, match="stored frame 9"):
        list(finished)
    with pytest.raises(ValueError, match="stored frame 0"):
        segment.track(iter(images(20)[5:]), **options)


def test_a_truncated_image_is_written_again(tmp_path: Path) -> None:
    list(FrameStream((gray(i) for i in range(3)), tmp_path).read())
    (tmp_path / "00000001.png").write_bytes(b"")
    source = FrameStream((gray(i) for i in range(3)), tmp_path)
    assert levels(source) == levels(source) == [(0, 0), (1, 1), (2, 2)]


# ------------------------------------------------------------------ damage
def damaged_video(path: Path, packet: int) -> Path:
    """Write 40 frames of noise, with 300 bytes overwritten from the given packet on."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    writer = VideoWriter(path, Fraction(10))
    for i in range(40):
        writer.add(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), i / 10)
    writer.close()
    with av.open(str(path)) as container:
        at = [p.pos for p in container.demux(video=0) if p.size][packet]
    content = bytearray(path.read_bytes())
    content[at : at + 300] = bytes(300)
    path.write_bytes(content)
    return path


def test_a_damaged_packet_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = VideoFile(damaged_video(tmp_path / "a.mp4", 12))
    frames = [(f.index, round(10 * f.seconds)) for f in source.read()]
    assert source.damaged and 36 <= len(frames) < 40
    assert [i for i, _ in frames] == list(range(len(frames)))
    assert frames[-1][1] == 39 and len({t for _, t in frames}) == len(frames)  # times are those of the file
    assert caplog.text.count("packets and their frames are skipped") == 1
    assert [(f.index, round(10 * f.seconds)) for f in source.read(20)] == frames[20:] and source.damaged


def test_without_a_valid_packet_reading_ends(tmp_path: Path) -> None:
    path = damaged_video(tmp_path / "a.mp4", 0)
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    source = VideoFile(path)
    assert list(source.read()) == [] and source.damaged


@pytest.mark.parametrize("reader", ["pyav", "opencv"])
def test_a_truncated_video_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reader: str
) -> None:
    pytest.importorskip("av")
    path = damaged_video(tmp_path / "a.mp4", 39)
    if reader == "opencv":
        monkeypatch.setattr(frames_module, "_pyav", lambda: None)
    source = VideoFile(path)
    assert 36 <= len(list(source.read())) < 41
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = VideoFile(path)
    assert 0 < len(list(source.read())) < 30 and source.damaged
    assert "of about 40 frames could be read" in caplog.text


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("nothing.mp4", "does not exist"),
        ([], "empty list"),
        (np.zeros((4, 8, 3), np.uint8), "4 dimensions"),
        (5, "not int"),
    ],
)
def test_invalid_videos_are_explained(tmp_path: Path, video: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_frames(video, tmp_path)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    source = open_frames([gray(0), gray(1, (16, 30))], tmp_path)
    with pytest.raises(ValueError, match="frame 1 is 30x16, but earlier frames are 32x16"):
        list(source.read())


# ------------------------------------------------------------------ writing
def test_a_video_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, Fraction(10))
    writer.add(gray(50, (17, 33)), 0.0)
    assert not path.exists()
    writer.close(keep=False)
    assert list(tmp_path.iterdir()) == []
    VideoWriter(path, Fraction(10)).close()
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_opencv_writes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "_has_h264", lambda: False)
    path = write_video(tmp_path / "a.mp4", 5, (17, 33))
    assert "pip install av" in caplog.text
    monkeypatch.setattr(frames_module, "_pyav", lambda: None)
    frames = list(VideoFile(path).read())
    assert len(frames) == 5 and frames[0].image.shape == (16, 32, 3)
    assert abs(float(frames[4].image.mean()) - 80) < 4


# ------------------------------------------------------------------ results
@pytest.fixture
def result() -> VideoResult:
    segment = Segmenter(ShapeModel(), classes=["a", "b", "c"], min_size=0)
    return segment.track(images(30), window=8, overlap=3)


def test_frames_of_a_result(result: VideoResult) -> None:
    assert "30 frames 96x48, 3 tracks" in repr(result)
    seen = 0
    for frame in result:
        assert (frame.result.image == image(frame.index)).all()
        there = [n for n in range(3) if truth(n, frame.index).any()]
        assert frame.instances.labels.tolist() == there and len(frame.ids) == len(there)
        labels = frame.label_map()
        for number, track in zip(there, frame.ids, strict=True):
            assert np.count_nonzero((labels == track) != truth(number, frame.index)) <= 8
        seen += 1
    assert seen == 30


def test_filter_computes_nothing_again(result: VideoResult) -> None:
    assert [t.name for t in result.filter(0.75).tracks] == ["a", "b"]
    assert [t.name for t in result.filter(0.75).filter(0.0).tracks][:3] == ["a", "b", "c"]
    assert [t.name for t in result.filter(top_k=1).tracks] == ["a"]
    assert len(result.tracks) == 3


def test_directory_and_video(result: VideoResult, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    result.save(tmp_path / "masks")
    assert len(list((tmp_path / "masks").glob("*.png"))) == 30
    tracks = json.loads((tmp_path / "masks" / "tracks.json").read_text())
    assert [(t["name"], t["id"]) for t in tracks] == [(t.name, t.id) for t in result.tracks]
    with Image.open(tmp_path / "masks" / "000020.png") as saved:
        ids = {t.id for t in result.tracks if t.label != 1}
        assert set(np.unique(np.asarray(saved)).tolist()) == {0, *ids}
    assert result.save(tmp_path / "o.mp4", scale=2.0) == [tmp_path / "o.mp4"]
    with av.open(str(tmp_path / "o.mp4")) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(96, 192, 3)] * 30
    with pytest.raises(ValueError, match="unknown output format"):
        result.save(tmp_path / "o.gif")


def test_drawing_paints_objects_in_the_color_of_their_track(result: VideoResult) -> None:
    first = next(iter(result))
    drawn = np.asarray(first.draw(labels=False)).astype(int)
    difference = np.abs(drawn - first.result.image).sum(axis=2)
    assert difference[truth(0, 0)].min() > 0 and difference[:, 60:].max() == 0
    assert len(OBJECTS) == 3


# ------------------------------------------------------------------ the journal
def test_journal(tmp_path: Path) -> None:
    run = {"video": ["a", 1], "window": 3}
    journal = Journal(tmp_path, run)
    assert (journal.done, journal.state, journal.facts()) == (0, {}, None)
    journal.append({"start": 0}, {"x": np.arange(3)})
    (tmp_path / "window_000001.json").write_text("trunca")  # a window without its state does not count
    again = Journal(tmp_path, run)
    assert again.done == 1 and again.state["x"].tolist() == [0, 1, 2]
    assert list(again.windows()) == [{"start": 0}]
    again.append({"start": 3}, {"x": np.arange(2)})
    again.finish({"frames": 6})
    assert [w["start"] for w in Journal(tmp_path, run).windows()] == [0, 3]
    assert Journal(tmp_path, run).facts() == {"frames": 6}
    with pytest.raises(JournalMismatch, match="different top, window;"):
        Journal(tmp_path, {"video": ["a", 1], "window": 4, "top": 1})


def test_the_names_of_many_frames_are_compared_once(tmp_path: Path) -> None:
    hashed = []

    class Counted(type(Path())):  # type: ignore[misc]
        def __hash__(self) -> int:
            hashed.append(self)
            return super().__hash__()

    files = [Counted(tmp_path / f"{number}.png") for number in range(50)]
    FrameFolder(tmp_path, files)
    assert len(hashed) < 200  # not the square of the number
