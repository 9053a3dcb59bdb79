"""Results that pages show and offer for download, for as long as someone looks at them."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ...result_files import encode_image
from ...results import Result
from ...visualization import comfortable_scale

_SHOWN_SIDE = 1600  # pixels: the longest edge of images in pages
_DRAWING = threading.BoundedSemaphore(2)  # images that are drawn at once: each takes several times its pixels


@dataclass(frozen=True)
class Download:
    """A file of a result.

    Attributes:
        label: of the button.
        suffix: what the name of the file ends with.
        media_type: of the HTTP answer.
    """

    label: str
    suffix: str
    media_type: str


# By the name in the address. `Result.save` writes all of them.
IMAGE_DOWNLOADS = {
    "overlay.png": Download("Overlay (PNG)", "_overlay.png", "image/png"),
    "labels.png": Download("Label map (PNG)", "_labels.png", "image/png"),
    "labels.tif": Download("Label map (TIFF)", "_labels.tif", "image/tiff"),
    "coco.json": Download("COCO (JSON)", "_coco.json", "application/json"),
    "objects.csv": Download("Table (CSV)", "_objects.csv", "text/csv"),
    "objects.geojson": Download("Polygons (GeoJSON)", ".geojson", "application/geo+json"),
}
VIDEO_DOWNLOADS = {
    "overlay.mp4": Download("Video (MP4)", "_segmented.mp4", "video/mp4"),
    "tracks.csv": Download("Tracks (CSV)", "_tracks.csv", "text/csv"),
    "counts.csv": Download("Objects per frame (CSV)", "_counts.csv", "text/csv"),
    "tracks.json": Download("Masks (YouTube-VIS JSON)", "_tracks.json", "application/json"),
}
VIEWS = {"view.webp": True, "image.webp": False}  # in pages: whether the result is drawn


@dataclass
class Entry:
    """A result in the store: of an image in memory, of a video a directory of files.

    Attributes:
        key: its part of the address; cannot be guessed.
        stem: of the names of its files.
        task: what views and files show.
        scores: whether objects have scores, as those of a model; the ground truth of a dataset has none.
    """

    key: str
    stem: str
    result: Result | None = None
    task: str = "auto"
    scores: bool = True
    directory: Path | None = None
    seen: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Return the memory that it takes, about."""
        if self.result is None:
            return 0
        semantic = self.result.semantic
        return 2 * self.result.image.nbytes + (0 if semantic is None else semantic.nbytes)

    def downloads(self) -> dict[str, Download]:
        """Return the files that it can give, by name."""
        if self.result is None:
            return VIDEO_DOWNLOADS
        largest = int(self.result.objects(self.task).ids.max(initial=0))
        unfit = "labels.png" if largest >= 1 << 16 else "labels.tif"  # more than 16 bits go into a TIFF only
        return {name: download for name, download in IMAGE_DOWNLOADS.items() if name != unfit}

    def file(self, name: str) -> bytes:
        """Return the content of a file of an image's result.

        Args:
            name: a key of `downloads()` or `VIEWS`.
        """
        assert self.result is not None
        with _DRAWING:
            if name in VIEWS:
                return encode_image(self._view(VIEWS[name]), ".webp")
            with tempfile.TemporaryDirectory(prefix="mask2former_file_") as directory:
                path = Path(directory) / name
                drawing: dict[str, Any] = (
                    {"scale": comfortable_scale(*self.result.size)} if name == "overlay.png" else {}
                )
                (written,) = self.result.save(path, task=self.task, **drawing)
                return written.read_bytes()

    def _view(self, drawn: bool) -> Image.Image:
        """Return the image, drawn or as it is, at the size of the page."""
        assert self.result is not None
        height, width = self.result.size
        scale = min(comfortable_scale(height, width), _SHOWN_SIDE / max(height, width))
        if drawn:
            return self.result.draw(self.task, scale=scale, labels=None if self.scores else False)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = Image.fromarray(np.ascontiguousarray(self.result.image))
        return image.resize(size, Image.Resampling.BICUBIC)


class ResultStore:
    """Keeps the results that were used last.

    Args:
        max_entries, max_bytes: bounds; the results that were not asked for longest make room.
        max_age: seconds without a request after which `sweep` drops a result.
    """

    def __init__(self, max_entries: int = 200, max_bytes: int = 1 << 30, max_age: float = 1800.0) -> None:
        self._max_entries, self._max_bytes, self._max_age = max_entries, max_bytes, max_age
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def add_image(self, result: Result, task: str, name: str, *, scores: bool = True) -> Entry:
        """Keep the result of an image.

        Args:
            result: the result.
            task: "auto" or one that it has: what views and files show.
            name: of the image file.
            scores: whether its objects have scores.
        """
        result = replace(result, path=Path(_plain(PurePath(name).name)))
        return self._add(Entry(secrets.token_urlsafe(24), _stem(name), result, task, scores))

    def add_video(self, directory: Path, name: str) -> Entry:
        """Keep the files of a video, which the directory holds under the names of `VIDEO_DOWNLOADS`."""
        return self._add(Entry(secrets.token_urlsafe(24), _stem(name), directory=directory))

    def get(self, key: str) -> Entry | None:
        """Return a result, None if there is none (any more)."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.seen = time.monotonic()
            return entry

    def sweep(self) -> None:
        """Drop the results that nobody asked for."""
        self._drop(lambda entry: entry.seen < time.monotonic() - self._max_age)

    def close(self) -> None:
        """Drop all results."""
        self._drop(lambda entry: True)

    def __len__(self) -> int:
        return len(self._entries)

    def _add(self, entry: Entry) -> Entry:
        with self._lock:
            self._entries[entry.key] = entry
            dropped = list(self._surplus())
        _delete(dropped)
        return entry

    def _surplus(self) -> Iterator[Entry]:
        """Remove and yield the oldest entries beyond the bounds; the newest one stays."""
        total = sum(entry.size for entry in self._entries.values())
        while len(self._entries) > 1 and (len(self._entries) > self._max_entries or total > self._max_bytes):
            _, entry = self._entries.popitem(last=False)
            total -= entry.size
            yield entry

    def _drop(self, condition: Callable[[Entry], bool]) -> None:
        with self._lock:
            dropped = [entry for entry in self._entries.values() if condition(entry)]
            for entry in dropped:
                del self._entries[entry.key]
        _delete(dropped)


def _delete(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.directory is not None:
            shutil.rmtree(entry.directory, ignore_errors=True)


def _stem(name: str) -> str:
    return _plain(PurePath(name).stem)[:80] or "result"


def _plain(name: str) -> str:
    """Return a name without what a header or a file system may not hold."""
    return "".join(c if c.isalnum() or c in "-_. ()" else "_" for c in name)
