"""Run over many files in parallel: keep what is complete, write the rest atomically, report what failed.

No state is kept between runs. A file takes its name only when all of it is written, and it is checked before it is
kept: an image for damage and pixels, an annotation file for its list of images. An interrupted script is therefore run
again, and writes only the images that are missing, and the annotation file that it was at.
"""

from __future__ import annotations

import io
import json
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
from ...utils.file_io import write_bytes, write_json
from ...utils.parallel import map_parallel

Task = TypeVar("Task")

_FORMATS = {".png": ("PNG", {}), ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"})}


# ------------------------------------------------------------------ results of tasks
class Stage(Enum):
    """What became of one file."""

    WRITTEN = "written"
    KEPT = "already there"
    REPAIRED = "repaired"  # was there, but damaged or with other content


@dataclass(frozen=True)
class Outcome:
    """Result of one task: stage, entry of the annotation file, and what the user should know."""

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
        """Count a result; text is the reason of a failure."""
        if isinstance(outcome, str):
            self.failures.append(outcome)
            return
        self.counts[outcome.stage] += 1
        if outcome.note:
            self.notes.append(outcome.note)

    def summary(self) -> str:
        """Return one line, and a second one where there are notes."""
        parts = [f"{number} {stage.value}" for stage, number in self.counts.items()]
        parts.append(f"{len(self.failures)} failed")
        text = f"{self.title}: {', '.join(parts)}, {time.monotonic() - self.started:.1f} s -> {self.target}"
        if self.notes:
            text += f"\n  {len(self.notes)} notes, the first: {self.notes[0]}"
        return text


# ------------------------------------------------------------------ tasks in processes
def convert_all(
    convert: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int, title: str, target: object
) -> Report:
    """Run `convert` on all tasks, with a progress bar, where each task makes files of its own.

    Args:
        convert: function of a module (processes find it by name); a `BadRecordError` or `FileNotFoundError` that
            it raises fails this task only, anything else ends the work.
        tasks: what it is called with.
        workers: processes; 1 works in this one.
        title: for the progress bar and the summary.
        target: output directory, for the summary.
    """
    report = Report(title, str(target))
    for outcome in _run_tasks(convert, tasks, workers, title):
        report.add(outcome)
    return report


def build_document(
    target: Path,
    tasks: Mapping[str, Any],
    convert: Callable[[Any], Outcome],
    assemble: Callable[[list[Any]], dict[str, Any]],
    *,
    workers: int,
    overwrite: bool,
    is_finished: Callable[[Any], bool] | None = None,
) -> Report:
    """Make an annotation file with an entry per image, and let `convert` make the files that belong to the image.

    The file is kept where it lists exactly the images of `tasks`; then `convert` is called only for images whose own
    files are not finished. Otherwise all entries are made, and the file is written unless an image failed.

    Args:
        target: the JSON file, an object with `images`.
        tasks: per image its id in `images` and what `convert` is called with.
        convert: function of a module that gives the entry of an image; failures as in `convert_all`.
        assemble: gives the document of all entries, which are in the order of `tasks`.
        workers: processes; 1 works in this one.
        overwrite: make everything again.
        is_finished: function of a module that says whether the files of an image are complete; None: it has none.
    """
    report = Report(target.stem, str(target))
    if overwrite:
        target.unlink(missing_ok=True)  # an interrupted run must not leave it beside new files of its images
    kept = _image_ids(target) == set(tasks)
    step = partial(_unless_finished, is_finished, convert) if kept else convert
    entries = []
    for outcome in _run_tasks(step, list(tasks.values()), workers, report.title):
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
        content = json.loads(path.read_bytes())
        return {str(image["id"]) for image in content["images"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


# ------------------------------------------------------------------ complete files
def is_complete(path: Path, mode: str, size: tuple[int, int]) -> bool:
    """Return whether a file is an undamaged image of this mode and size (height, width)."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()  # the checksums of all parts up to the last; decoding forgives a lost end
            else:
                image.load()
            return image.mode == mode and image.size == (size[1], size[0])
    except MemoryError:
        raise
    except Exception:  # Pillow's plug-ins raise many kinds on a broken file, and all mean the same here
        return False


def ensure_image(path: Path, pixels: np.ndarray, overwrite: bool) -> Stage:
    """Write an image unless it is there, complete and with the same pixels.

    Args:
        path: ends with .png or .tif (compressed without loss).
        pixels: uint8 or uint16 (H, W), or uint8 (H, W, 3).
        overwrite: write it in any case.
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
    with Image.open(path) as image:
        return np.array_equal(np.asarray(image), pixels)


def place_image(source: Path, target: Path, overwrite: bool) -> None:
    """Put an image under another name: a hard link where the file system allows, else a copy."""
    if target.exists() and not overwrite and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_bytes(target, source.read_bytes())
