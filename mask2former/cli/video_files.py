"""Which files of a video --output and --save select."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from ..utils.atomic_file import check_writable
from ..video.reader import FrameSource
from ..video.writer import VIDEO_SUFFIXES
from .arguments import output_target


class VideoTargets(NamedTuple):
    """The output directory, the video of overlays and the JSON file; None: not written."""

    directory: Path
    video: Path | None
    document: Path | None


def video_targets(args: argparse.Namespace, name: str, source: FrameSource | None = None) -> VideoTargets:
    """Return the files that --output and --save select.

    Args:
        args: `output`, `default_output`, `save`, `default_save`.
        name: name of the video, for names of files.
        source: the video, which must not be overwritten; None: a camera.

    Raises:
        ValueError: --output is the input, a file of another type, or contradicts --save.
        OSError: a file cannot be written; the error names it and the reason.
    """
    targets = _targets(args, name, source)
    check_writable(targets.directory, "--output", directory=True)
    for path in (targets.video, targets.document):
        if path is not None:
            check_writable(path, "--output", directory=False)
    return targets


def _targets(args: argparse.Namespace, name: str, source: FrameSource | None) -> VideoTargets:
    save = set(args.save or args.default_save)
    target, single = output_target(args, {*VIDEO_SUFFIXES, ".json"})
    if single:
        if args.save:
            raise ValueError(f"--save selects files of a directory, but --output {target} is a file; drop --save")
        path = None if source is None else source.path
        if path is not None and target.exists() and target.samefile(path):
            raise ValueError(f"--output {target} is the input itself; choose another path")
        video, document = (None, target) if target.suffix.lower() == ".json" else (target, None)
        return VideoTargets(target.parent, video, document)
    return VideoTargets(
        target,
        target / f"{name}_segmented.mp4" if "overlay" in save else None,
        target / "results.json" if "json" in save else None,
    )
