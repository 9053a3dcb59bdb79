"""Predictors in the form of detectron2's `DefaultPredictor`, for clips in their own processes; drawings of tracks."""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.engine.defaults import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

from ..structures.colors import color_of


class VideoPredictor(DefaultPredictor):
    """Predictor for clips: `predictor(frames)`."""

    def __call__(self, frames: Sequence[np.ndarray]) -> dict[str, Any]:
        """Predict the objects of a clip.

        Args:
            frames: T images (H, W, 3) uint8 BGR, of one size.

        Returns:
            {"image_size": (H, W), "pred_scores", "pred_labels", "pred_masks": list of bool (T, H, W)}.
        """
        height, width = frames[0].shape[:2]
        images = []
        for frame in frames:
            pixels = frame[:, :, ::-1] if self.input_format == "RGB" else frame
            resized = self.aug.get_transform(pixels).apply_image(pixels)
            images.append(torch.as_tensor(resized.astype("float32").transpose(2, 0, 1)))
        with torch.no_grad():
            outputs = self.model([{"image": images, "height": height, "width": width}])
        return outputs[0] if isinstance(outputs, list) else outputs


class TrackVisualizer(Visualizer):
    """Drawing of one frame of a clip, in which each track has one color in all frames.

    Args:
        img_rgb: the frame (H, W, 3) uint8 RGB.
        metadata: of the dataset; `thing_classes` are written.
        scale: size of the drawing, relative to the frame.
        instance_mode: how detectron2 draws instances.
    """

    def __init__(
        self, img_rgb: np.ndarray, metadata: Any = None, scale: float = 1.0, instance_mode: ColorMode = ColorMode.IMAGE
    ) -> None:
        super().__init__(img_rgb, metadata=metadata, scale=scale, instance_mode=instance_mode)

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draw the tracks that are in this frame, with class names and scores.

        Args:
            predictions: of all tracks, in the same order for all frames: `pred_masks` (N, H, W), `pred_classes` and
                `scores` (N,); without fields nothing is drawn.
        """
        if not predictions.has("pred_masks"):
            return self.output
        masks = np.asarray(torch.as_tensor(predictions.pred_masks).cpu(), dtype=bool)
        names = self.metadata.get("thing_classes")
        visible = [number for number, mask in enumerate(masks) if mask.any()]
        if not visible:
            return self.output
        classes, scores = predictions.pred_classes, predictions.scores
        return self.overlay_instances(
            masks=masks[visible],
            labels=[f"{names[int(classes[n])] if names else int(classes[n])} {float(scores[n]):.0%}" for n in visible],
            assigned_colors=[tuple(value / 255 for value in color_of(n)) for n in visible],
        )


class AsyncPredictor:
    """Predictor in processes of their own, one for each GPU, or one for the CPU; predictions come in their order.

    Use `put` and `get`, or call it with one image. A process that fails raises its error in `get`.
    """

    def __init__(self, cfg: CfgNode, num_gpus: int = 1) -> None:
        """
        Args:
            cfg: config with MODEL.WEIGHTS.
            num_gpus: GPUs to use; 0 predicts in one process on MODEL.DEVICE.
        """
        context = mp.get_context("spawn")
        devices = context.SimpleQueue()
        for device in [f"cuda:{number}" for number in range(num_gpus)] or [cfg.MODEL.DEVICE]:
            devices.put(device)
        self._workers = max(num_gpus, 1)
        self._pool = concurrent.futures.ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_start_worker, initargs=(cfg, devices, self.build_predictor)
        )
        self._results: deque[concurrent.futures.Future[dict[str, Any]]] = deque()

    build_predictor: Callable[[CfgNode], Any] = staticmethod(DefaultPredictor)
    """Builds the predictor of a process; a subclass may name another one, of a module that can be imported."""

    def put(self, image: Any) -> None:
        """Give the next image (H, W, 3) uint8 BGR."""
        self._results.append(self._pool.submit(_predict, image))

    def get(self) -> dict[str, Any]:
        """Return the predictions, on the CPU, for the first image that has none yet; wait for them.

        Raises:
            IndexError: no image was given.
        """
        return self._results.popleft().result()

    def __len__(self) -> int:
        """Return how many predictions can be taken."""
        return len(self._results)

    def __call__(self, image: Any) -> dict[str, Any]:
        """Predict one image; for use without other images on their way."""
        self.put(image)
        return self.get()

    def shutdown(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def default_buffer_size(self) -> int:
        """Return how many images should be on their way, so that no process waits."""
        return self._workers * 5


_worker: Any = None  # the predictor of this process


def _start_worker(cfg: CfgNode, devices: Any, build: Callable[[CfgNode], Any]) -> None:
    global _worker
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = devices.get()
    _worker = build(cfg)


def _predict(image: Any) -> dict[str, Any]:
    return _on_cpu(_worker(image))


def _on_cpu(value: Any) -> Any:
    """Move tensors, and what holds them, to main memory."""
    if hasattr(value, "to"):
        return value.to("cpu")
    if isinstance(value, dict):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(entry) for entry in value)
    return value
