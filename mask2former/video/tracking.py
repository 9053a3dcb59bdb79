"""Tracking of the objects of a video, the implementation of `Segmenter.track`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from ..maskformer_model import MaskFormer
from ..modeling.runtime import Runtime
from ..objects import ObjectRules
from ..structures.classes import ClassTable
from .frame_rules import tracking_rules
from .journal import Journal
from .reader import FrameSource, Video, open_frames
from .results import VideoResult
from .selection import Selection, select_frames
from .windows import ClipModel, ImageClips, LongClip, VideoClips, WindowSettings, run_facts


def clip_model(model: nn.Module, settings: WindowSettings, runtime: Runtime | None = None) -> ClipModel:
    """Return the model, or an adapter for it, with the interface `ClipModel`.

    Args:
        model: a video model, or an image model for windows of one frame.
        settings: of the windows.
        runtime: runs the network; None: that of the model.

    Raises:
        ValueError: the model cannot track objects, or not with windows of this length.
    """
    if hasattr(model, "clip_outputs"):
        return model if runtime is None else VideoClips(model, runtime)  # type: ignore[return-value]
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"{type(model).__name__} cannot track objects through a video; use a video model, for example "
            "config youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
        )
    if settings.window > 1:
        raise ValueError(
            "an image model processes one frame at a time: use online=True (windows of one frame), or a video model, "
            "for example config youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
        )
    return ImageClips(model, runtime)


def track_video(
    model: nn.Module,
    video: Video | FrameSource,
    classes: ClassTable,
    settings: WindowSettings,
    selection: Mapping[str, Any],
    *,
    prepare: Callable[[np.ndarray], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
    work_dir: Path | None,
    progress: bool,
    facts: dict[str, Any],
    rules: ObjectRules | None = None,
    runtime: Runtime | None = None,
    **choice: Any,
) -> VideoResult:
    """Track the objects of a video (see `LongClip`), with the journal in `work_dir` or a temporary directory.

    Args:
        selection: `start`, `end` and `every` of `select_frames`.
        facts: what the results depend on besides video, model, settings and rules (JSON content).
        rules: how candidates of a frame become objects; read for windows of one frame only. None: all are objects.
        runtime: see `clip_model`.
        choice: keyword arguments of `VideoResult`.

    Raises:
        JournalMismatch: `work_dir` holds the journal of a run with another video, model, settings or `facts`.
    """
    clips = clip_model(model, settings, runtime)
    temporary = None if work_dir else tempfile.TemporaryDirectory(prefix="mask2former_tracks_")
    directory = work_dir or Path(temporary.name if temporary else ".")
    Selection.parse(**selection)  # before anything is read or written
    source = select_frames(open_frames(video, directory / "frames"), **selection)
    followed = tracking_rules(rules) if rules is not None and settings.window == 1 else None
    if followed is not None:
        facts = {**facts, "rules": asdict(followed)}
    # A temporary journal is never resumed, so the weights need no fingerprint.
    run = run_facts(source, model, settings, **facts) if work_dir else asdict(settings)
    journal = Journal(directory, run)
    with tqdm(total=source.length, unit="frame", desc="tracking", disable=not progress) as bar:
        clip = LongClip(clips, source, journal, settings, prepare, autocast, rules=followed)
        clip.run(lambda done: bar.update(done - bar.n))
    return VideoResult(source, journal, classes, **choice, keep_alive=temporary)
