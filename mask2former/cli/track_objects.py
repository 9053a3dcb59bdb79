"""A video through a model to tracks and their files: the work of `track`, and of the demo."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..segmenter import Segmenter
from ..utils.atomic_file import check_writable
from ..utils.file_io import is_special
from ..video.journal import JournalMismatch
from ..video.reader import FrameFolder, FrameSource, open_frames
from ..video.results import VideoResult, refuse_input
from ..video.writer import output_lock
from .arguments import DRAWING, LABELS, NOTHING_DRAWN, RULES, is_video_model
from .parser import refuse_given
from .text import plural, print_files
from .video_files import VideoTargets, video_targets


def open_video(inputs: Sequence[str]) -> FrameSource:
    """Open a video file, a directory of frames, or several images as the frames of one clip, in this order.

    Raises:
        FileNotFoundError, ValueError: a file is missing or is no video.
    """
    files = [Path(name) for name in inputs]
    if len(files) == 1:
        return open_frames(files[0], Path())
    missing = next((str(path) for path in files if not path.is_file()), None)
    if missing:
        if is_special(missing):
            raise ValueError(f"{missing} is a pipe or device, not a file")
        raise FileNotFoundError(f"{missing} does not exist")
    return FrameFolder(files[0].parent, files)


def track_objects(segment: Segmenter, source: FrameSource, args: argparse.Namespace) -> int:
    """Track objects through the video; return the exit status. The same command resumes a stopped run.

    Raises:
        FileNotFoundError, ValueError: as `Segmenter.track`, or --output or --save does not fit.
    """
    refuse_given(
        args, RULES, "on tracking; change the model's rules: --opts MODEL.MASK_FORMER.TEST.INSTANCES.MIN_AREA 25"
    )
    if args.online or not is_video_model(segment):
        refuse_given(args, ("window", "overlap"), "where objects are tracked frame by frame")
    targets = video_targets(args, source.name, source)
    if targets.video is None and not args.save_frames:
        refuse_given(args, DRAWING, NOTHING_DRAWN)
    work = targets.directory / f".{source.name}_tracks"
    masks = targets.directory / "masks" if args.save and "masks" in args.save else None
    images = targets.directory / "frames" if args.save_frames else None
    refuse_input(source, targets.video, masks, images)
    tables = {name: Path(value).expanduser() for name in ("counts", "tracks") if (value := getattr(args, name, None))}
    for name, path in tables.items():
        if path.suffix.lower() != ".csv":
            raise ValueError(f"--{name} {path} must end with .csv")
        check_writable(path, f"--{name}", directory=False)
    if len({path.resolve() for path in tables.values()}) < len(tables):
        raise ValueError(f"--counts and --tracks are the same file, {tables['counts']}")
    with output_lock(targets.video) if targets.video else contextlib.nullcontext():
        return _track_to_files(segment, source, args, _Files(targets, work, masks, images, tables))


class _Files(NamedTuple):
    """What a run writes: the targets of --output, the journal, directories of masks and frames, tables by name."""

    targets: VideoTargets
    work: Path
    masks: Path | None
    images: Path | None
    tables: dict[str, Path]


def _track_to_files(segment: Segmenter, source: FrameSource, args: argparse.Namespace, files: _Files) -> int:
    targets, work, masks, images, tables = files
    started = time.perf_counter()
    result = _track(segment, source, work, args)
    rate = len(result) / (time.perf_counter() - started)
    written = [] if targets.document is None else result.save(targets.document)
    written += [result.save_table(path, name) for name, path in tables.items()]
    if targets.video or masks or images:
        drawing = {"labels": LABELS[args.labels], "scale": args.scale or 1.0}
        written += result.save_all(video=targets.video, images=images, masks=masks, drawing=drawing, progress=True)
    _drop(work)
    print(f"{len(result)} frames of {source.name}, {rate:.2f} frames/s, {plural(len(result.tracks), 'track')}")
    for track in result.tracks[:10]:
        print(f"  {track.id}: {track.name}, score {track.score:.2f}, frames {track.first} to {track.last - 1}")
    if len(result.tracks) > 10:
        print(f"  ... and {len(result.tracks) - 10} more")
    if not result.tracks:
        print(f"  no object has a score of at least {segment.score_threshold}; a lower threshold finds more")
    print_files(written, targets.directory)
    return 1 if result.damaged else 0


def _track(segment: Segmenter, source: FrameSource, work: Path, args: argparse.Namespace) -> VideoResult:
    names = ("start", "end", "every", "window", "overlap")
    given: dict[str, Any] = {name: getattr(args, name, None) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    for _ in range(2):
        try:
            return segment.track(
                source,
                online=args.online or not is_video_model(segment),
                top_k=args.top_k,
                min_size=args.min_size,
                work_dir=work,
                progress=True,
                **given,
            )
        except JournalMismatch as error:
            print(f"discarding a stopped run with other arguments ({error})", file=sys.stderr)
            _drop(work)
        except KeyboardInterrupt:
            print("interrupted: the same command resumes from here", file=sys.stderr)
            raise
    raise AssertionError("a new journal matches its run")


def _drop(work: Path) -> None:
    """Delete a journal, the files that validate its windows first: what an interrupt leaves is not resumed."""
    for name in ("finished.json", "state.npz"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work)
