"""Files of a video's tracks: numbers in label maps, cost of the JSON file, leftovers of longer videos, limits."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from mask2former.segmenter import Segmenter
from mask2former.video import results
from mask2former.video.results import VideoResult

from .moving_shapes import ShapeModel, image, images


def segmenter() -> Segmenter:
    return Segmenter(ShapeModel(), classes=["a", "b", "c"], min_size=0)


def track(video: Any, **options: Any) -> VideoResult:
    return segmenter().track(video, **{"window": 8, "overlap": 3, **options})


def tracked(count: int = 15) -> VideoResult:
    return track(images(count))


def late(result: VideoResult, shift: int) -> VideoResult:
    """Return the result as if `shift` other tracks had started before its own."""
    windows = [
        window | {"tracks": {str(int(number) + shift): masks for number, masks in window["tracks"].items()}}
        for window in result.journal.windows()
    ]
    moved = result.filter()
    moved.tracks = tuple(dataclasses.replace(row, id=row.id + shift) for row in result.tracks)
    moved.journal = copy.copy(result.journal)
    moved.journal.windows = lambda: iter(windows)  # type: ignore[method-assign]
    moved.journal.state = result.journal.state | {"count": result.journal.state["count"] + shift}
    return moved


def label_map(directory: Path, index: int) -> np.ndarray:
    with Image.open(directory / f"{index:06d}.png") as saved:
        assert saved.mode.startswith("I;16")
        return np.asarray(saved)


# ------------------------------------------------------------------ numbers above 16 bits
def test_label_map_of_late_tracks_does_not_wrap() -> None:
    frame = list(tracked(4))[3]
    assert frame.label_map().dtype == np.uint16
    late_frame = dataclasses.replace(frame, ids=np.array([65_536, 65_537]))
    assert np.unique(late_frame.label_map()).tolist() == [0, 65_536, 65_537]
    edge = dataclasses.replace(frame, ids=np.array([65_534, 65_535])).label_map()
    assert edge.dtype == np.uint16 and np.unique(edge).tolist() == [0, 65_534, 65_535]
    nothing = dataclasses.replace(frame, ids=frame.ids[:0], result=list(tracked(4).filter(1.0))[3].result)
    assert not nothing.label_map().any()


def test_pngs_renumber_late_tracks_and_list_them(tmp_path: Path) -> None:
    early = tracked()
    early.save(tmp_path / "early")
    late(early, 65_535).save(tmp_path / "late")
    entries = {name: json.loads((tmp_path / name / "tracks.json").read_text()) for name in ("early", "late")}
    assert [(e["id"], e["track"]) for e in entries["early"]] == [(t.id, t.id) for t in early.tracks]
    assert [e["id"] for e in entries["late"]] == [1, 2, 3]
    assert [e["track"] for e in entries["late"]] == [t.id + 65_535 for t in early.tracks]
    assert [e["name"] for e in entries["late"]] == ["a", "b", "c"]
    for index in range(15):
        before, after = label_map(tmp_path / "early", index), label_map(tmp_path / "late", index)
        for old, new in zip(entries["early"], entries["late"], strict=True):
            assert ((before == old["id"]) == (after == new["id"])).all()


def test_a_track_of_several_classes_has_one_number(tmp_path: Path) -> None:
    late(tracked().filter(0.0, one_class=False, top_k=20), 70_000).save(tmp_path)
    entries = json.loads((tmp_path / "tracks.json").read_text())
    assert len(entries) > len({e["track"] for e in entries})
    assert {e["id"]: e["track"] for e in entries}.keys() == set(range(1, len({e["track"] for e in entries}) + 1))
    assert all(a["id"] == b["id"] for a in entries for b in entries if a["track"] == b["track"])


def test_more_tracks_than_pixel_values(tmp_path: Path) -> None:
    result = tracked(4)
    result.tracks = tuple(dataclasses.replace(result.tracks[0], id=i) for i in range(1, 65_537))
    with pytest.raises(ValueError, match="65536 tracks .* filter"):
        result.save(tmp_path / "masks")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ the JSON file
def test_json_writes_only_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames without a track are not encoded one by one, and its file is not opened for them."""
    result = track(images(200))
    expected = result.to_ytvis(3)
    shown = sum(rle is not None for record in expected for rle in record["segmentations"])
    assert [len(record["segmentations"]) for record in expected] == [200] * 3 and shown < 450
    dumps, opens = Mock(wraps=json.dumps), Mock(wraps=Path.open)
    monkeypatch.setattr(results.json, "dumps", dumps)
    monkeypatch.setattr(Path, "open", lambda *args, **options: opens(*args, **options))
    result.save(tmp_path / "r.json", video_id=3)
    monkeypatch.undo()
    assert json.loads((tmp_path / "r.json").read_text()) == expected
    assert dumps.call_count == shown + 3  # and the head of each record
    # Object b is there in the first 14 frames only: one block, the padding and the joining.
    assert sum(call.args[0].name == str(result.tracks[1].id) for call in opens.call_args_list) == 3


def test_json_of_tracks_with_gaps(tmp_path: Path) -> None:
    """Shown late, seen again after a long gap, or nowhere."""
    away = np.zeros_like(image(0))
    video = [away] * 3 + images(2) + [away] * 70 + images(2) + [away] * 70
    result = track(video, window=1, overlap=0, online=True, score_threshold=0.0)
    result.save(tmp_path / "r.json")
    records = json.loads((tmp_path / "r.json").read_text())
    assert records == result.to_ytvis() and {len(r["segmentations"]) for r in records} == {147}
    assert all(r["segmentations"][0] is None for r in records)
    assert any(all(entry is None for entry in r["segmentations"]) for r in records)


# ------------------------------------------------------------------ old files
def test_frames_of_a_longer_video_are_deleted(tmp_path: Path) -> None:
    kept = ["notes.png", "00005.png", "0000012.png", "000012.txt", "000012.jpg", "x000012.png", "000013_a.png"]
    (tmp_path / "masks").mkdir()
    for name in kept:
        (tmp_path / "masks" / name).touch()
    (tmp_path / "masks" / "000020.png").mkdir()
    (tmp_path / "masks" / "1234567.png").touch()
    for count in (12, 5):
        tracked(count).save_all(masks=tmp_path / "masks", images=tmp_path / "frames")
    numbers = [f"{i:06d}" for i in range(5)]
    pngs = [f"{n}.png" for n in numbers]
    assert {p.name for p in (tmp_path / "masks").iterdir()} == {*pngs, *kept, "000020.png", "tracks.json"}
    assert {p.name for p in (tmp_path / "frames").iterdir()} == {f"{n}.jpg" for n in numbers}


def test_a_failed_run_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked(12).save(tmp_path)
    monkeypatch.setattr(results, "write_image", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tracked(5).save(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 12


def test_the_directory_of_the_video_is_not_written_into(tmp_path: Path) -> None:
    for i, pixels in enumerate(images(3)):
        Image.fromarray(pixels).save(tmp_path / f"{i:06d}.png")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    result = track(tmp_path)
    with pytest.raises(ValueError, match="is the input itself"):
        result.save_all(masks=tmp_path)
    with pytest.raises(ValueError, match="is the input itself"):
        result.save_all(images=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ------------------------------------------------------------------ limits
def test_filter_says_when_objects_were_not_kept() -> None:
    result = tracked(4)
    assert result.filter(top_k=20).tracks == result.tracks
    with pytest.raises(ValueError, match="the 20 best .* again with top_k=21"):
        result.filter(top_k=21)
    larger = track(images(4), top_k=30)
    assert larger.filter(top_k=60).tracks == larger.tracks
    del result.journal.run["candidates"]  # as of a run without Segmenter
    assert result.filter(top_k=21).tracks == result.tracks
