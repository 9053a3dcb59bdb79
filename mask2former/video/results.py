"""Tracks of a video: iterated frame by frame, filtered, drawn and saved, with one window of masks in memory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .. import visualization
from ..result_files import write_image
from ..result_parts import InstanceResult
from ..results import Result
from ..structures.classes import ClassTable
from ..structures.colors import color_of
from ..structures.mask_list import MaskList
from ..utils.atomic_file import atomic_write
from ..utils.csv_files import write_csv
from ..utils.file_io import write_json
from .journal import Journal
from .journal_checks import checked_facts, checked_windows
from .reader import FrameSource
from .tables import TRACK_COLUMNS, count_columns, count_rows, track_rows
from .windows import tracks_of
from .writer import VIDEO_SUFFIXES, VideoWriter

_LARGEST = 65_535  # largest value of a 16-bit pixel


@dataclass(frozen=True)
class Track:
    """One object of a video: its number (from 1), class, score, and the frames [first, last) of the track.

    Frames have the numbers of the complete video, also if only a part of it was tracked.
    """

    id: int
    label: int
    name: str
    score: float
    first: int
    last: int


@dataclass(frozen=True)
class TrackedFrame:
    """One frame of a result: `result` holds its N objects, `ids` (N,) their track numbers."""

    index: int
    seconds: float
    ids: np.ndarray
    result: Result

    @property
    def instances(self) -> InstanceResult:
        """Return the objects; scores and labels are those of the tracks."""
        assert self.result.instances is not None
        return self.result.instances

    def label_map(self) -> np.ndarray:
        """Return the label map (H, W): 0 background, otherwise the track number; the highest score wins.

        uint16, or uint32 if the frame shows a track number above 65,535: numbers count all tracks of the video.
        `VideoResult.save` writes 16-bit PNGs of any video.
        """
        dtype = np.uint16 if self.ids.max(initial=0) <= _LARGEST else np.uint32
        return np.concatenate([[0], self.ids]).astype(dtype)[self.instances.label_map()]

    def draw(self, *, alpha: float = 0.35, labels: bool | None = None, scale: float = 1.0) -> Image.Image:
        """Draw the objects over the frame, in the colors of their tracks; see `Result.draw`."""
        instances = self.instances
        rows = zip(instances.names, self.ids, instances.scores, strict=True)
        texts = [f"{name} {number} {score:.2f}" for name, number, score in rows]
        colors = [color_of(int(i)) for i in self.ids]
        regions = visualization.regions_from_patches(instances.patches, colors, texts)
        return visualization.draw_regions(self.result.image, regions, alpha=alpha, labels=labels, scale=scale)


def choose_tracks(
    scores: np.ndarray, present: np.ndarray, *, top_k: int, score_threshold: float, one_class: bool
) -> list[tuple[int, int, float]]:
    """Select the pairs of track and class that make up a result.

    Args:
        scores: (N, K) class scores of tracks 1 ... N.
        present: (M, 2) window and track number of each appearance.
        top_k: a pair is kept if it is among the `top_k` best of at least one window.
        score_threshold: pairs with a lower score are dropped.
        one_class: consider only the best class of each track.

    Returns:
        Tuples (track number, class, score), best first.
    """
    kept: dict[tuple[int, int], float] = {}
    classes = scores.shape[1] if scores.ndim == 2 else 0
    order = np.argsort(present[:, 0], kind="stable")
    for block in np.split(order, np.flatnonzero(np.diff(present[order, 0])) + 1):
        numbers = present[block, 1]
        if not len(numbers):
            continue
        block_scores = scores[numbers - 1]
        if one_class:
            best = block_scores == block_scores.max(axis=1, keepdims=True)
            best &= best.cumsum(axis=1) == 1
            block_scores = np.where(best, block_scores, -1.0)
        flat = block_scores.ravel()
        for i in np.argsort(-flat, kind="stable")[:top_k]:
            if flat[i] >= score_threshold:
                kept[int(numbers[i // classes]), int(i % classes)] = float(flat[i])
    return [(*pair, score) for pair, score in sorted(kept.items(), key=lambda item: -item[1])]


class VideoResult:
    """Tracks of a video. Iterate over it for the frames; masks are read from disk, window by window.

    Returned by `Segmenter.track`. `tracks` lists the objects, best first. Without a `work_dir` the masks are in a
    temporary directory, which is deleted with the result.
    """

    def __init__(
        self,
        source: FrameSource,
        journal: Journal,
        classes: ClassTable,
        *,
        top_k: int = 10,
        score_threshold: float = 0.0,
        one_class: bool = True,
        keep_alive: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        facts = checked_facts(journal)
        self.source, self.journal, self.classes = source, journal, classes
        self.size: tuple[int, int] = (facts["height"], facts["width"])
        self.damaged: bool = facts["damaged"]  # parts of the video could not be read
        first, every = facts["first"], facts["every"]
        self.frames = range(first, first + every * facts["frames"], every)  # numbers of the tracked frames
        self._keep_alive = keep_alive
        self._selection = {"top_k": top_k, "score_threshold": score_threshold, "one_class": one_class}
        scores, spans, present = tracks_of(journal)
        if scores.shape[1] > len(classes.names):
            raise journal.damage("state.npz", f"it has scores of {scores.shape[1]} classes, not {len(classes.names)}")
        selected = choose_tracks(
            scores,
            present,
            top_k=top_k,
            score_threshold=score_threshold,
            one_class=one_class,
        )
        self.tracks = tuple(
            Track(number, label, classes.names[label], score, *self._span(spans[number - 1]))
            for number, label, score in selected
        )

    def __len__(self) -> int:
        """Return the number of tracked frames."""
        return len(self.frames)

    def _span(self, row: np.ndarray) -> tuple[int, int]:
        """Return first frame and end of the frames of a track, of its row of `tracks_of`."""
        return self.frames[int(row[1])], self.frames[int(row[2]) - 1] + 1

    def __repr__(self) -> str:
        height, width = self.size
        return f"VideoResult({self.source.name}, {len(self)} frames {width}x{height}, {len(self.tracks)} tracks)"

    def filter(
        self, score_threshold: float | None = None, *, top_k: int | None = None, one_class: bool | None = None
    ) -> VideoResult:
        """Return the tracks of the same run with other limits; nothing is computed again.

        Args:
            score_threshold: tracks with a lower score are left out.
            top_k: number of tracks per window.
            one_class: one class per track; False: a track is listed once for each class whose score is among the
                best, as in the evaluation of YouTube-VIS.

        Raises:
            ValueError: `top_k` is larger than the number of objects that the run kept of each window.
        """
        kept = self.journal.run.get("candidates")
        if top_k is not None and kept is not None and top_k > kept:
            raise ValueError(
                f"top_k={top_k}: this run kept only the masks of the {kept} best objects of each window; track the "
                f"video again with top_k={top_k}"
            )
        changed = {"score_threshold": score_threshold, "top_k": top_k, "one_class": one_class}
        options: dict[str, Any] = self._selection | {k: v for k, v in changed.items() if v is not None}
        return VideoResult(self.source, self.journal, self.classes, **options, keep_alive=self._keep_alive)

    # ---- reading
    def masks(self) -> Iterator[tuple[int, float, dict[int, dict[str, Any]]]]:
        """Yield for each frame its number, its time in seconds, and the RLE of each selected track that it shows."""
        for position, seconds, shown in self._masks():
            yield self.frames[position], seconds, shown

    def counts(self) -> list[dict[str, Any]]:
        """Return for each tracked frame how many objects of each class it shows.

        Keys are "frame", "seconds", the names of all classes, "total", and "tracks", the number of tracks that were
        visible in this frame or before it. A class with one of these names gets " (2)" behind it.
        """
        names = count_columns(self.classes.names)
        return [dict(zip(names, row, strict=True)) for row in count_rows(self.masks(), self.tracks, self.classes)]

    def _masks(self) -> Iterator[tuple[int, float, dict[int, dict[str, Any]]]]:
        """Yield what `masks` does, with positions (0, 1, 2 ...) in place of frame numbers."""
        selected = {track.id for track in self.tracks}
        size = list(self.size)
        for window in checked_windows(self.journal, self.size):
            rles = {int(i): counts for i, counts in window["tracks"].items() if int(i) in selected}
            for t, seconds in enumerate(window["seconds"]):
                shown = {i: {"size": size, "counts": counts[t]} for i, counts in rles.items() if counts[t]}
                yield window["start"] + t, seconds, shown

    def __iter__(self) -> Iterator[TrackedFrame]:
        for frame, (index, seconds, rles) in zip(self.source.read(), self.masks(), strict=False):
            if frame.index != index:
                raise self.journal.damage("finished.json", f"frame {frame.index} of the video is frame {index} in it")
            yield TrackedFrame(index, seconds, *self._frame(frame.image, rles))

    def _frame(self, image: np.ndarray, rles: Mapping[int, dict[str, Any]]) -> tuple[np.ndarray, Result]:
        shown = [track for track in self.tracks if track.id in rles]
        patches = MaskList.from_rles((rles[track.id] for track in shown), self.size)
        scores = np.array([track.score for track in shown], dtype=np.float32)
        labels = np.array([track.label for track in shown], dtype=np.int64)
        names = tuple(track.name for track in shown)
        instances = InstanceResult(patches, scores, labels, names)
        ids = np.array([track.id for track in shown], dtype=np.int64)
        return ids, Result(image, self.classes, instances)

    # ---- saving
    def save(
        self, path: str | os.PathLike[str], *, video_id: int = 1, audio: bool = True, **drawing: Any
    ) -> list[Path]:
        """Write the result in the format that the suffix of `path` selects. Files are written atomically.

        - `.json`: the result format of YouTube-VIS (`video_id`), with one entry for each tracked frame;
        - `.mp4`, `.mov`, `.mkv`: the video with its tracks drawn in (`drawing`: arguments of `TrackedFrame.draw`), and
          with its sound (`audio`) where PyAV can copy it and no frames were left out;
        - `counts.csv` (or a name that ends so): a table of `counts`, one row for each tracked frame;
        - `tracks.csv`: a table of the tracks: id, class, score, first and last frame that show it, number of these
          frames, seconds from the first to the end of the last, and mean area in pixels;
        - a directory: for each frame a 16-bit PNG, 0 background, otherwise the track number; and `tracks.json` with
          "id", the value in the PNGs, and "track", the track number, which differ only if a track has a number above
          65,535. Numbered PNGs of frames beyond the last one, left by a longer video, are deleted.

        Returns:
            The files written.

        Raises:
            ValueError: the suffix is unknown, or `path` is the video itself.
        """
        path = Path(path).expanduser()
        suffix = path.suffix.lower()
        if path.is_dir() or not suffix:
            return self.save_all(masks=path)
        if suffix == ".csv":
            return [self._save_table(path)]
        if suffix != ".json" and suffix not in VIDEO_SUFFIXES:
            formats = f"{' '.join(VIDEO_SUFFIXES)}, .json, counts.csv, tracks.csv or a directory"
            raise ValueError(f"{path}: unknown output format; use {formats}")
        if suffix == ".json":
            return [self._save_json(path, video_id)]
        return self.save_all(video=path, audio=audio, drawing=drawing)

    def save_all(
        self,
        *,
        video: Path | None = None,
        images: Path | None = None,
        masks: Path | None = None,
        audio: bool = True,
        drawing: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> list[Path]:
        """Write a drawn video, a directory of drawn frames, and a directory of label maps, in one pass over the frames.

        See `save` for the formats.

        Raises:
            ValueError: a target is the video itself, or label maps are requested of more than 65,535 tracks.
        """
        refuse_input(self.source, video, images, masks)
        values = self._pixel_values() if masks is not None else {}
        sound = self.source if audio else None
        writer = None if video is None else VideoWriter(video, self.source.rate, audio=sound)
        finished = False
        try:
            for frame in tqdm(self, total=len(self), unit="frame", desc="writing", disable=not progress):
                if masks is not None:
                    labels = replace(frame, ids=np.array([values[i] for i in frame.ids.tolist()], dtype=np.int64))
                    write_image(masks / f"{frame.index:06d}.png", Image.fromarray(labels.label_map()))
                if video is None and images is None:
                    continue
                image = frame.draw(**(drawing or {}))
                if images is not None:
                    write_image(images / f"{frame.index:06d}.jpg", image)
                if writer is not None:
                    writer.add(np.asarray(image), frame.seconds)
            finished = True
        finally:
            if writer is not None:
                writer.close(keep=finished)
        if images is not None:
            _remove_frames(images, ".jpg", self.frames)
        if masks is not None:
            _remove_frames(masks, ".png", self.frames)
            entries = [vars(track) | {"id": values[track.id], "track": track.id} for track in self.tracks]
            write_json(masks / "tracks.json", entries)
        return [path for path in (video, images, masks) if path is not None]

    def _pixel_values(self) -> dict[int, int]:
        """Return track number -> value in 16-bit label maps: the number itself if all of them fit."""
        numbers = list(dict.fromkeys(track.id for track in self.tracks))
        if max(numbers, default=0) <= _LARGEST:
            return {number: number for number in numbers}
        if len(numbers) > _LARGEST:
            raise ValueError(
                f"{self.source.name}: {len(numbers)} tracks exceed the {_LARGEST} values of a 16-bit PNG; drop some "
                "with filter(score_threshold=...)"
            )
        return {number: value for value, number in enumerate(numbers, start=1)}

    def to_ytvis(self, video_id: int = 1) -> list[dict[str, Any]]:
        """Return the records of the YouTube-VIS result format: video_id, category_id, score, an RLE or None per frame.

        All masks are held in memory; for long videos `save("result.json")` writes the same content incrementally.
        """
        segmentations: dict[int, list[Any]] = {track.id: [None] * len(self) for track in self.tracks}
        for index, _, rles in self._masks():
            for number, rle in rles.items():
                segmentations[number][index] = rle
        return [self._record(track, video_id) | {"segmentations": segmentations[track.id]} for track in self.tracks]

    def _record(self, track: Track, video_id: int) -> dict[str, Any]:
        return {"video_id": video_id, "category_id": self.classes.dataset_ids[track.label], "score": track.score}

    def save_table(self, path: str | os.PathLike[str], table: str) -> Path:
        """Write a table as CSV, whatever the name of the file is.

        Args:
            path: the file.
            table: "counts" (objects of each class, a row for each tracked frame) or "tracks" (a row for each track).

        Raises:
            ValueError: another table.
        """
        if table == "counts":
            rows = count_rows(self.masks(), self.tracks, self.classes)
            return write_csv(path, count_columns(self.classes.names), rows)
        if table == "tracks":
            return write_csv(path, TRACK_COLUMNS, track_rows(self.masks(), self.tracks, self.source.rate))
        raise ValueError(f"table must be counts or tracks, not {table!r}")

    def _save_table(self, path: Path) -> Path:
        """Write the table that the end of the file's name selects."""
        for table in ("counts", "tracks"):
            if path.name.lower().endswith(f"{table}.csv"):
                return self.save_table(path, table)
        raise ValueError(
            f"{path}: which table? A name that ends in counts.csv gets objects per frame, in tracks.csv the tracks; "
            "save_table(path, 'counts') takes any name"
        )

    def _save_json(self, path: Path, video_id: int) -> Path:
        """Write the records of `to_ytvis`: the masks of each track go to a temporary file, then all are joined."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            parts = {track.id: Path(directory) / str(track.id) for track in self.tracks}
            self._write_parts(parts)
            with atomic_write(path) as out:
                out.write(b"[")
                for i, track in enumerate(self.tracks):
                    head = json.dumps(self._record(track, video_id))[:-1]
                    out.write(f'{", " if i else ""}{head}, "segmentations": ['.encode())
                    with parts[track.id].open("rb") as file:
                        file.seek(2)  # without the first comma
                        shutil.copyfileobj(file, out)
                    out.write(b"]}")
                out.write(b"]")
        return path

    def _write_parts(self, parts: Mapping[int, Path]) -> None:
        """Write each track's entries for all frames, each after a comma. Only frames that show a track cost time."""
        written = dict.fromkeys(parts, 0)  # entries in each file
        for block in _blocks(self._masks(), 64):
            shown: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
            for index, _, rles in block:
                for number, rle in rles.items():
                    shown.setdefault(number, []).append((index, rle))
            for number, entries in shown.items():
                with parts[number].open("a", encoding="ascii") as file:
                    for index, rle in entries:
                        file.write(", null" * (index - written[number]) + f", {json.dumps(rle)}")
                        written[number] = index + 1
        for number, part in parts.items():
            with part.open("a", encoding="ascii") as file:
                file.write(", null" * (len(self) - written[number]))


def refuse_input(source: FrameSource, *targets: Path | None) -> None:
    """Raise ValueError if a file or directory to be written is the video itself."""
    for target in targets:
        if target is not None and source.path is not None and target.exists() and target.samefile(source.path):
            raise ValueError(f"{target} is the input itself; choose another output path")


def _remove_frames(directory: Path, suffix: str, kept: range) -> None:
    """Delete other frames that were written there before, of a longer video: those whose number is not in `kept`."""
    for path in directory.glob(f"*{suffix}"):
        name = path.stem
        if not (name.isascii() and name.isdigit() and path.is_file()):
            continue
        if name == f"{int(name):06d}" and int(name) not in kept:
            path.unlink()


def _blocks(items: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    block: list[Any] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
