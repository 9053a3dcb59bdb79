"""Evaluation of clips that are too long for one run of the network: TEST.WINDOW_FRAMES."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..video_maskformer_model import VideoMaskFormer
from .journal import Journal
from .reader import FrameList
from .results import choose_tracks
from .windows import LongClip, WindowSettings, tracks_of


class WindowedClips(nn.Module):
    """A video model that runs inference on long clips window by window, as `Segmenter.track` does.

    Args:
        model: the video model; clips that fit one window are passed to it unchanged.
        settings: length, overlap and matching of the windows.
    """

    def __init__(self, model: VideoMaskFormer, settings: WindowSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return results with the inputs and outputs of `VideoMaskFormer.forward`: a dict of one clip, a list of more.

        A clip longer than a window has "pred_rles" instead of "pred_masks": for each instance T COCO RLEs, None in
        frames that do not show it. The best TEST.DETECTIONS_PER_VIDEO instances of every window are kept.
        """
        results = [self._result(clip) for clip in batched_inputs]
        return results[0] if len(results) == 1 else results

    def _result(self, clip: Mapping[str, Any]) -> dict[str, Any]:
        if len(clip["image"]) > self.settings.window:
            return self._long(clip)
        result = self.model([clip])
        return result if isinstance(result, dict) else result[0]

    def _long(self, clip: Mapping[str, Any]) -> dict[str, Any]:
        frames: Sequence[Tensor] = clip["image"]
        size = (int(clip.get("height", frames[0].shape[-2])), int(clip.get("width", frames[0].shape[-1])))
        source = FrameList([frame.permute(1, 2, 0).cpu().numpy() for frame in frames])
        with tempfile.TemporaryDirectory(prefix="mask2former_windows_") as directory:
            journal = Journal(Path(directory), {})
            LongClip(self.model, source, journal, self.settings, _as_tensor, output=size).run()
            scores, _, present = tracks_of(journal)
            selected = choose_tracks(
                scores,
                present,
                top_k=self.model.test_topk_per_video,
                score_threshold=self.model.score_threshold,
                one_class=False,
            )
            masks = _masks(journal, {number for number, _, _ in selected}, len(frames), size)
        return {
            "image_size": size,
            "pred_scores": [score for _, _, score in selected],
            "pred_labels": [label for _, label, _ in selected],
            "pred_rles": [masks[number] for number, _, _ in selected],
        }


def windowed(cfg: Any, model: nn.Module) -> nn.Module:
    """Wrap a video model for windowed evaluation; return it unchanged if TEST.WINDOW_FRAMES is 0 or it takes images."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(inner, VideoMaskFormer) or not cfg.TEST.WINDOW_FRAMES:
        return model
    candidates = WindowSettings.candidates_for(inner.test_topk_per_video)
    return WindowedClips(inner, WindowSettings(cfg.TEST.WINDOW_FRAMES, cfg.TEST.WINDOW_OVERLAP, candidates))


def _as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def _masks(journal: Journal, tracks: set[int], length: int, size: tuple[int, int]) -> dict[int, list[Any]]:
    """Return for each track the RLEs of its masks in all frames, None where it is not visible."""
    masks: dict[int, list[Any]] = {number: [None] * length for number in tracks}
    for window in journal.windows():
        for number in tracks & {int(name) for name in window["tracks"]}:
            for t, counts in enumerate(window["tracks"][str(number)], start=window["start"]):
                if counts:
                    masks[number][t] = {"size": list(size), "counts": counts}
    return masks
