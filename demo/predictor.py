"""Predictions and drawings of detectron2's form, for programs that import them from the demo.

    from demo.predictor import VisualizationDemo

    demo = VisualizationDemo(cfg)
    predictions, drawn = demo.run_on_image(cv2.imread("photo.jpg"))
    drawn.save("drawn.png")

New programs are shorter with `mask2former.Segmenter`; `demo/demo.py` uses it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine.defaults import DefaultPredictor
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

from mask2former.engine.predictors import AsyncPredictor

__all__ = ["AsyncPredictor", "VisualizationDemo"]


class VisualizationDemo:
    """A model, and the drawing of what it predicts.

    Args:
        cfg: config with MODEL.WEIGHTS; DATASETS.TEST names the dataset whose classes and colors are drawn.
        instance_mode: how detectron2 chooses the colors of instances.
        parallel: predict in processes of their own, one for each GPU; for videos.

    Attributes:
        predictor: maps an image (H, W, 3) uint8 BGR to predictions, a `DefaultPredictor` or `AsyncPredictor`.
    """

    def __init__(self, cfg: CfgNode, instance_mode: ColorMode = ColorMode.IMAGE, parallel: bool = False) -> None:
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else "__unused")
        self.cpu_device = torch.device("cpu")
        self.instance_mode = instance_mode
        self.parallel = parallel
        self.predictor: Any = (
            AsyncPredictor(cfg, num_gpus=torch.cuda.device_count()) if parallel else DefaultPredictor(cfg)
        )

    def run_on_image(self, image: np.ndarray) -> tuple[dict[str, Any], VisImage]:
        """Segment an image (H, W, 3) uint8 BGR; return the predictions of the model, and the drawing of them."""
        predictions = self.predictor(image)
        visualizer = Visualizer(image[:, :, ::-1], self.metadata, instance_mode=self.instance_mode)
        drawn = visualizer.output
        for part in self._parts(predictions):
            if part == "panoptic_seg":
                segments, info = predictions[part]
                drawn = visualizer.draw_panoptic_seg_predictions(segments.to(self.cpu_device), info)
            elif part == "sem_seg":
                drawn = visualizer.draw_sem_seg(predictions[part].argmax(dim=0).to(self.cpu_device))
            else:
                drawn = visualizer.draw_instance_predictions(predictions[part].to(self.cpu_device))
        return predictions, drawn

    def run_on_video(self, video: cv2.VideoCapture) -> Iterator[np.ndarray]:
        """Yield the frames of a video, drawn, as (H, W, 3) uint8 BGR."""
        visualizer = VideoVisualizer(self.metadata, self.instance_mode)
        for frame, predictions in self._predicted(self._frame_from_video(video)):
            drawn = self._draw_frame(visualizer, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), predictions)
            yield cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)

    def _predicted(self, frames: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield frames with their predictions, in order; in parallel some frames are ahead of those that are drawn."""
        if not self.parallel:
            for frame in frames:
                yield frame, self.predictor(frame)
            return
        waiting: deque[np.ndarray] = deque()
        for frame in frames:
            waiting.append(frame)
            self.predictor.put(frame)
            if len(waiting) > self.predictor.default_buffer_size:
                yield waiting.popleft(), self.predictor.get()
        while waiting:
            yield waiting.popleft(), self.predictor.get()

    def _draw_frame(self, visualizer: VideoVisualizer, frame: np.ndarray, predictions: dict[str, Any]) -> np.ndarray:
        for part in self._parts(predictions):
            if part == "panoptic_seg":
                segments, info = predictions[part]
                drawn = visualizer.draw_panoptic_seg_predictions(frame, segments.to(self.cpu_device), info)
            elif part == "sem_seg":
                drawn = visualizer.draw_sem_seg(frame, predictions[part].argmax(dim=0).to(self.cpu_device))
            else:
                drawn = visualizer.draw_instance_predictions(frame, predictions[part].to(self.cpu_device))
            frame = drawn.get_image()
        return frame

    @staticmethod
    def _parts(predictions: dict[str, Any]) -> list[str]:
        """Return which parts are drawn: the panoptic one shows all, else semantic below instances."""
        if "panoptic_seg" in predictions:
            return ["panoptic_seg"]
        return [part for part in ("sem_seg", "instances") if part in predictions]

    @staticmethod
    def _frame_from_video(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
        while video.isOpened():
            success, frame = video.read()
            if not success:
                return
            yield frame
