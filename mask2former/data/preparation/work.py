"""Process many files in parallel: keep complete ones, write the others atomically, report failures.

There is no state between runs. A file is renamed to its final name when it is completely written, and it is checked
before it is kept: an image for damage and pixels, an annotation file for its list of images. An interrupted script can
therefore be run again; it writes only missing images, and the annotation file at which it was interrupted.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ...errors import BadRecordError
from ...utils.file_io import parse_json, write_bytes, write_json
from ...utils.parallel import map_parallel
from ..image_files import opened_image

Task = TypeVar("Task")

_FORMATS = {".png": ("PNG", {}), ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"})}


# ------------------------------------------------------------------ results of tasks
class Stage(Enum):
    """Status of one file after a task."""

    WRITTEN = "written"
    KEPT = "already there"
    REPAIRED = "repaired"  # existed, but was damaged or had other content


@dataclass(frozen=True)
class Outcome:
    """Result of one task: stage, entry of the annotation file, and a note for the user."""

    stage: Stage
    entry: Any = None
    note: str | None = None


@dataclass
class Report:
    """Counts, failures and notes of one step of a script."""

    title: str
    target: str
    counts: dict[Stage, int] = field(default_factory=lambda: dict.fromkeys(Stage, 0))
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome | str) -> None:
        """Count a result; a string is the reason of a failure."""
        if isinstance(outcome, str):
            self.failures.append(outcome)
            return
        self.counts[outcome.stage] += 1
        if outcome.note:
            self.notes.append(outcome.note)

    def summary(self) -> str:
        """Return the counts in one line, and a second line if there are notes."""
        parts = [f"{number} {stage.value}" for stage, number in self.counts.items()]
        parts.append(f"{len(self.failures)} failed")
        text = f"{self.title}: {', '.join(parts)}, {time.monotonic() - self.started:.1f} s -> {self.target}"
        if self.notes:
            text += f"\n  {len(self.notes)} notes, the first: {self.notes[0]}"
        return text


# ------------------------------------------------------------------ tasks in worker processes
def convert_all(
    convert: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int, title: str, target: object
) -> Report:
    """Run `convert` on all tasks, with a progress bar; each task writes its own files.

    Args:
        convert: function of a module (worker processes import it by name); a `BadRecordError` or `FileNotFoundError`
            fails only its task, any other error ends the run.
        tasks: arguments of `convert`.
        workers: worker processes; 1 runs in this process.
        title: for the progress bar and the summary.
        target: output directory, for the summary.
    """
    report = Report(title, str(target))
    for outcome in _run_tasks(convert, tasks, workers, title):
        report.add(outcome)
    return report


def build_annotation_file(
    target: Path,
    tasks: Mapping[str, Any],
    convert: Callable[[Any], Outcome],
    assemble: Callable[[list[Any]], dict[str, Any]],
    *,
    workers: int,
    overwrite: bool,
    is_finished: Callable[[Any], bool] | None = None,
) -> Report:
    """Write an annotation file with an entry per image; `convert` returns the entry and writes the files of the image.

    The annotation file is kept if it lists exactly the images of `tasks`; `convert` is then called only for images
    whose files are not finished. Otherwise all entries are built, and the file is written unless an image failed.

    Args:
        target: the JSON file, an object with `images`.
        tasks: image id in `images` -> argument of `convert`.
        convert: function of a module that returns the entry of an image; failures as in `convert_all`.
        assemble: builds the content of the file from all entries, which are in the order of `tasks`.
        workers: worker processes; 1 runs in this process.
        overwrite: write all files again.
        is_finished: function of a module that returns whether the files of an image are complete; None if images have
            no files.
    """
    report = Report(target.stem, str(target))
    if overwrite:
        target.unlink(missing_ok=True)  # an interrupted run must not leave an old file with new images
    kept = _image_ids(target) == set(tasks)
    run_task = partial(_unless_finished, is_finished, convert) if kept else convert
    entries = []
    for outcome in _run_tasks(run_task, list(tasks.values()), workers, report.title):
        report.add(outcome)
        if isinstance(outcome, Outcome):
            entries.append(outcome.entry)
    if not kept and not report.failures:
        write_json(target, assemble(entries))
    return report


def _run_tasks(
    convert: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int, title: str
) -> Iterator[Outcome | str]:
    """Yield the outcome of each task, or the reason why it failed, in the order of the tasks."""
    yield from map_parallel(partial(_guarded, convert), tasks, title, workers)


def _guarded(convert: Callable[[Task], Outcome], task: Task) -> Outcome | str:
    try:
        return convert(task)
    except (BadRecordError, FileNotFoundError) as error:
        return str(error)


def _unless_finished(
    is_finished: Callable[[Any], bool] | None, convert: Callable[[Any], Outcome], task: Any
) -> Outcome:
    return Outcome(Stage.KEPT) if is_finished is None or is_finished(task) else convert(task)


def _image_ids(path: Path) -> set[str] | None:
    """Return the image ids of an annotation file as text; None where it cannot be read."""
    try:
        content = parse_json(str(path))
        return {str(image["id"]) for image in content["images"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


# ------------------------------------------------------------------ complete files
def is_complete(path: Path, mode: str, size: tuple[int, int]) -> bool:
    """Return whether a file is an undamaged image of this mode and size (height, width)."""
    try:
        with opened_image(path) as image:
            if image.format == "PNG":
                image.verify()  # checks the checksums of all chunks; decoding accepts a truncated file
            else:
                image.load()
            return image.mode == mode and image.size == (size[1], size[0])
    except MemoryError:
        raise
    except Exception:  # Pillow's plug-ins raise many types on a broken file
        return False


def ensure_image(path: Path, pixels: np.ndarray, overwrite: bool) -> Stage:
    """Write an image unless it exists, complete and with the same pixels.

    Args:
        path: file name with the extension .png or .tif (lossless compression).
        pixels: uint8 or uint16 (H, W), or uint8 (H, W, 3).
        overwrite: write it in any case.

    Returns:
        Whether it was written, kept or repaired.
    """
    image = Image.fromarray(pixels)
    present = path.exists()
    if present and not overwrite and is_complete(path, image.mode, pixels.shape[:2]) and _holds(path, pixels):
        return Stage.KEPT
    name, options = _FORMATS[path.suffix]
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)
    write_bytes(path, buffer.getvalue())
    return Stage.REPAIRED if present and not overwrite else Stage.WRITTEN


def _holds(path: Path, pixels: np.ndarray) -> bool:
    with opened_image(path) as image:
        return np.array_equal(np.asarray(image), pixels)


def place_image(source: Path, target: Path, overwrite: bool) -> None:
    """Link an image to another path, or copy it if the file system has no hard links."""
    if target.exists() and not overwrite and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_bytes(target, source.read_bytes())
