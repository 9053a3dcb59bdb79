"""Predictions and drawings of clips, for programs that import them from the demo.

    from demo_video.predictor import VisualizationDemo

    predictions, drawn = VisualizationDemo(cfg).run_on_video([cv2.imread(name) for name in names])
    drawn[0].save("first.png")

The model sees all frames at once; for long videos, `mask2former.Segmenter.track` goes window by window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, VisImage

from mask2former.engine import predictors as images
from mask2former.engine.predictors import TrackVisualizer, VideoPredictor

__all__ = ["AsyncPredictor", "VideoPredictor", "VisualizationDemo"]


class VisualizationDemo:
    """A video model, and the drawing of the tracks that it predicts.

    Args:
        cfg: config with MODEL.WEIGHTS; DATASETS.TEST names the dataset whose classes are drawn.
        instance_mode: how detectron2 draws instances.
        parallel: predict in processes of their own, one for each GPU.
        score_threshold: tracks with a lower score are not drawn.
    """

    def __init__(
        self,
        cfg: CfgNode,
        instance_mode: ColorMode = ColorMode.IMAGE,
        parallel: bool = False,
        score_threshold: float = 0.0,
    ) -> None:
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else "__unused")
        self.cpu_device = torch.device("cpu")
        self.instance_mode = instance_mode
        self.parallel = parallel
        self.score_threshold = score_threshold
        self.predictor: Any = (
            AsyncPredictor(cfg, num_gpus=torch.cuda.device_count()) if parallel else VideoPredictor(cfg)
        )

    def run_on_video(self, frames: Sequence[np.ndarray]) -> tuple[dict[str, Any], list[VisImage]]:
        """Segment a clip of T images (H, W, 3) uint8 BGR; return the predictions, and the drawing of each frame."""
        predictions = self.predictor(frames)
        drawn = []
        for number, frame in enumerate(frames):
            visualizer = TrackVisualizer(frame[:, :, ::-1], self.metadata, instance_mode=self.instance_mode)
            drawn.append(visualizer.draw_instance_predictions(self._of_frame(predictions, number)))
        return predictions, drawn

    def _of_frame(self, predictions: dict[str, Any], frame: int) -> Instances:
        """Return what a frame shows of the tracks whose score reaches the threshold."""
        scores = predictions["pred_scores"]
        kept = [number for number, score in enumerate(scores) if score >= self.score_threshold]
        instances = Instances(predictions["image_size"])
        if kept:
            instances.scores = torch.as_tensor([float(scores[number]) for number in kept])
            instances.pred_classes = torch.as_tensor([int(predictions["pred_labels"][number]) for number in kept])
            masks = [torch.as_tensor(predictions["pred_masks"][number][frame]).cpu() for number in kept]
            instances.pred_masks = torch.stack(masks)
        return instances


class AsyncPredictor(images.AsyncPredictor):
    """Predictor of clips in processes of their own: `put` and `get` take and return what `VideoPredictor` does."""

    build_predictor = staticmethod(VideoPredictor)
