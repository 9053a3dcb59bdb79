"""The Python API: load a model, call it on images, and draw, save or read the results.

```python
from mask2former import Segmenter

segment = Segmenter.load("nuclei")
result = segment("cells.png")
print(result, result.instances.boxes)
result.save("overlay.png")
```

A video model (or, frame by frame, an image model) tracks objects: `Segmenter.load(...).track("clip.mp4")`.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import nn
from tqdm import tqdm

from .data.image_sources import Channels, ImageSource, iter_pages
from .data.transforms import ResizeShortestEdge
from .data.window_resize import resize_images
from .maskformer_model import MaskFormer
from .model_loading import class_table, load_model, ready_model
from .modeling.device_transfer import to_device
from .modeling.postprocess import Settings
from .modeling.runtime import Runtime
from .objects import ObjectRules
from .results import Result
from .structures.classes import ClassTable
from .structures.task import IMAGE_TASKS, Task
from .tile_settings import TileSettings, merge_results
from .tiling import plan_tiles
from .utils.device import amp_dtype, model_device
from .video.reader import FrameSource, Video
from .video.results import VideoResult
from .video.time_points import TimePoint
from .video.tracking import track_video
from .video.windows import WindowSettings, config_digest

logger = logging.getLogger(__name__)

_CROWDED = 0.9  # fraction of the queries that found objects, from which on others may be missed


@dataclass(frozen=True)
class _Call:
    """The settings of one call. They are handed on, never stored: other threads may use the segmenter."""

    rules: ObjectRules
    resize: ResizeShortestEdge
    batch_size: int
    tiles: TileSettings
    progress: bool


class Segmenter:
    """A segmentation model ready to be called on images.

    Images are resized as in evaluation (INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST); results have the size of
    the image. The model is not changed, so several segmenters, also in several threads, may share one.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode | None = None,
        *,
        classes: ClassTable | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        task: str = "auto",
        score_threshold: float | None = None,
        rules: ObjectRules | None = None,
        batch_size: int = 1,
        amp: bool | str = False,
        compile: str | None = None,
        min_size: int = 800,
        max_size: int = 1333,
    ) -> None:
        """Wrap a model.

        Args:
            model: takes list[dict] with "image" uint8 (3, H, W), "height", "width" and returns detectron2's
                segmentation outputs, as all models of this package do. A model in training mode or on another device
                is copied (`model` of the segmenter); the copy shares the weights that are on `device`.
            cfg: defines test sizes, channel order and classes; without it `min_size`, `max_size` (shortest and
                longest edge in pixels; 0: keep the size), RGB and `classes` apply.
            classes: names of the model's classes, if the config's test dataset is not registered.
            device: default: the device of the model's parameters.
            task: "auto" keeps all results of the model; "instance", "panoptic" or "semantic" only that one;
                "video" is for `track`.
            score_threshold: objects and segments with a lower score are dropped; 0 keeps all. Default: that of `rules`.
            rules: how instances become objects. Default: MODEL.MASK_FORMER.TEST.INSTANCES, which is saved with a model.
            batch_size: images in one forward pass when a list is given. They are padded to one size, and padding
                changes results a little; 1 reproduces the evaluation, on a CPU to rounding.
            amp: run in lower precision: True or "auto" (bfloat16 where the device computes it natively, else float16
                on a CUDA GPU and fp32 on a CPU), "bfloat16", "float16".
            compile: how the network is run, "auto", "off", "graph" or "compile"; default: MODEL.COMPILE. On x86 CPUs
                "auto" prepares the weights for large images, see `Runtime`: faster, with other rounding.

        Raises:
            ValueError: an invalid argument, or neither `cfg` nor `classes`.
        """
        if task not in ("auto", *Task):
            raise ValueError(f"task must be auto, {', '.join(Task)}, not {task!r}")
        self.task = task
        if rules is None:
            rules = ObjectRules() if cfg is None else ObjectRules.from_config(cfg)
        self.rules = rules.changed(score_threshold=score_threshold)
        self.batch_size = batch_size
        first = next(model.parameters(), None)
        self.device = (
            torch.device(device) if device is not None else first.device if first is not None else torch.device("cpu")
        )
        self.model = ready_model(model, self.device)
        # Settings are passed with each call, because other segmenters may use the same model with other settings.
        self._takes_settings = isinstance(model, MaskFormer) and _takes(model.forward, "settings")
        run = getattr(model, "clip_outputs", model.forward if isinstance(model, MaskFormer) else None)
        self._takes_runtime = _takes(run, "runtime")
        self._own_runtime = None if compile is None else Runtime(compile, predicts=True)
        if compile not in (None, "auto") and not self._takes_runtime:
            logger.warning("compile=%r has no effect on this %s", compile, type(model).__name__)
        self.cfg = cfg
        self.classes = class_table(cfg, classes)
        self._amp_dtype = amp_dtype(amp, self.device)
        self._bgr = cfg is not None and cfg.INPUT.FORMAT == "BGR"
        if cfg is not None:
            min_size, max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._resize = ResizeShortestEdge(min_size, max_size, "choice")

    # ---- loading
    @classmethod
    def load(
        cls,
        name: str | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device = "auto",
        overrides: Sequence[str] = (),
        task: str = "auto",
        classes: ClassTable | Sequence[str] | None = None,
        **options: Any,
    ) -> Segmenter:
        """Load a model by name, or from a config file and its weights.

        Args:
            name: name of a model of the zoo (`mask2former.zoo.list_models()`), or a training output directory
                (config.yaml and weights). Without name and config: "nuclei", which comes with the package.
            config: a YAML file, or its name below configs/; instead of a name.
            weights: file or URL (.safetensors, .pth, .pkl, a Hugging Face directory); default: the named
                model's, or MODEL.WEIGHTS of `overrides`.
            device: "auto" takes a CUDA GPU, else a working Apple GPU, else the CPU, whatever the config file says;
                MODEL.DEVICE of `overrides` counts more.
            overrides: config keys and values, KEY VALUE KEY VALUE ...
            task: which results to compute, see `Segmenter`; "auto": those the config turns on.
            classes: class names, if neither the test dataset nor the model's directory has them.
            options: `score_threshold`, `rules`, `batch_size`, `amp`, `compile` of `Segmenter`.

        Raises:
            ValueError: unknown model or config key, contradictory arguments, no weights or incomplete ones.
            FileNotFoundError: a missing file (of the zoo: the message gives the URL and where to put the file).
        """
        selected = model_device(device, overrides)
        model, cfg, table = load_model(name, config, weights, selected, overrides, task, classes)
        return cls(model, cfg, classes=table, device=selected, task=task, **options)

    @property
    def score_threshold(self) -> float:
        """Return the score that objects and segments must reach."""
        return self.rules.score_threshold

    # ---- calling
    def __call__(self, images: ImageSource | Sequence[ImageSource], **options: Any) -> Any:
        """Segment one image (returns a `Result`) or a list or tuple of them (returns a list of `Result`).

        An image is: a path; bytes or a binary file object; a PIL image; a numpy array (H, W, 3) RGB, (H, W, 4) RGBA
        or (H, W) gray; a tensor (3, H, W) RGB; uint8, uint16, or floating point in [0, 1]. OpenCV gives BGR: pass
        `array[..., ::-1]`. The EXIF orientation of files and PIL images is applied.

        Args:
            options: those of `stream`, for this call only. Calls do not change the segmenter, so several threads may
                call it at once. With `page="all"` an image gives a list of `Result`, one for each page.

        Raises:
            FileNotFoundError, ValueError: an image that is missing, unreadable or of another type or shape; an invalid
                option.
        """
        if isinstance(images, (list, tuple)):
            if options.get("page") == "all":
                return [list(self.stream([image], **options)) for image in images]
            return list(self.stream(images, **options))
        image: Any = images  # a str is a Sequence too, so mypy does not see that this is one image
        results = self.stream([image], **options)
        return list(results) if options.get("page") == "all" else next(results)

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        score_threshold: float | None = None,
        rules: ObjectRules | None = None,
        batch_size: int | None = None,
        min_size: int | None = None,
        tile: int | str | None = None,
        overlap: float | None = None,
        page: int | str | None = None,
        channels: Channels = None,
        stretch: Any = None,
        progress: bool = False,
    ) -> Iterator[Result]:
        """Yield results one by one, for more images than fit into memory (a generator is fine).

        Args:
            images: see `__call__`.
            score_threshold, rules, batch_size: instead of those of the constructor.
            min_size: shortest edge, in pixels, at which the network sees the images (or tiles); larger for smaller
                objects.
            tile: edge, in pixels of the image, of square tiles that are segmented one by one and merged: for images
                that are large compared to their objects. "off": never; "auto": where the complete image would be
                shrunk to less than half of the tiles' scale, or where nearly all queries find an object. Default:
                "auto" for models with MODEL.MASK_FORMER.TEST.TILES.SIZE above 0, else "off".
            overlap: fraction of a tile's edge that neighbors share; default MODEL.MASK_FORMER.TEST.TILES.OVERLAP.
            page, channels, stretch: of stacks, images with many channels, 16 bits or floating point values, see
                `data.image_sources.load_image`. With `page="all"` there is a result for each page of each image.
            progress: show a bar while an image in tiles is segmented.

        Raises:
            FileNotFoundError, ValueError: as `__call__`.
        """
        if hasattr(self.model, "clip_outputs"):
            raise ValueError("this is a video model, which takes clips, not images: use track(video)")
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, not {size}")
        resize = self._resize_to(min_size)
        rules = (self.rules if rules is None else rules).changed(score_threshold=score_threshold)
        call = _Call(rules, resize, size, TileSettings.choose(self.cfg, tile, overlap, resize), progress)
        source = self._pages(images, page, channels, stretch)
        while batch := list(islice(source, size)):
            found = self._segment([array for array, _, _ in batch], call)
            for result, (_, path, number) in zip(found, batch, strict=True):
                yield replace(result, path=path, page=number)

    @staticmethod
    def _pages(
        images: Iterable[ImageSource], page: int | str | None, channels: Channels, stretch: Any
    ) -> Iterator[tuple[np.ndarray, Path | None, int | None]]:
        """Yield each image, or each page of it, with its file and page."""
        for image in images:
            path = Path(image) if isinstance(image, str | os.PathLike) else None
            for i, array in enumerate(iter_pages(image, page=page, channels=channels, stretch=stretch)):
                yield array, path, i if page == "all" else page if isinstance(page, int) else None

    def track(
        self,
        video: Video | FrameSource,
        *,
        start: TimePoint | None = None,
        end: TimePoint | None = None,
        every: int = 1,
        online: bool = False,
        window: int | None = None,
        overlap: int | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
        min_size: int | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> VideoResult:
        """Track the objects of a video. Memory does not depend on its length. Returns when the complete video is done.

        A video model sees overlapping windows, whose tracks are linked; for a video that fits into one window the
        result is that of the model on the complete clip. `online` goes frame by frame, which image models can do too;
        the rules that make objects of instances then apply to each frame, before its objects are matched to tracks.
        (The parts of an object stay together, and the score threshold is that of tracks.)

        Args:
            video: a video file, a directory of frames, a list or array of images, or an iterable of them.
            start, end: track only a part: from the frame at `start` to the last one before `end`. Each is a number of
                seconds, a time "mm:ss" or "hh:mm:ss" ("1:30", "00:01:30.5"), or a frame number with an f ("120f").
                Results keep the frame numbers and times of the complete video.
            every: N: track in each N-th frame only.
            online: use windows of one frame, so that a frame's masks do not depend on later frames.
            window, overlap: frames that the network sees together, and how many neighboring windows share. Memory
                grows with `window`. Default: TEST.WINDOW_FRAMES and TEST.WINDOW_OVERLAP of the model; 24 and 6
                where the former is 0. In a smaller `window` the default overlap is one frame less than that.
            top_k: largest number of objects in one window; default: TEST.DETECTIONS_PER_VIDEO of a video model,
                TEST.DETECTIONS_PER_IMAGE of an image model.
            score_threshold: tracks with a lower score are left out (`VideoResult.filter` can lower it later).
            min_size: shortest edge, in pixels, at which the network sees the frames.
            work_dir: directory for the masks, which is kept. An interrupted run continues there after its last
                finished window. Default: a temporary directory.
            progress: show a progress bar.

        Raises:
            FileNotFoundError, ValueError: no video, no frames, an unreadable frame, an invalid setting, a model
                that cannot track objects, or a `work_dir` with the results of another run.
        """
        threshold = self.rules.changed(score_threshold=score_threshold).score_threshold
        unit = "VIDEO" if hasattr(self.model, "clip_outputs") else "IMAGE"
        if top_k is None:
            top_k = 10 if self.cfg is None else int(self.cfg.TEST[f"DETECTIONS_PER_{unit}"])
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        candidates = WindowSettings.candidates_for(top_k)
        if online:
            settings = WindowSettings.online(candidates=candidates)
        else:
            settings = WindowSettings.selected(self.cfg, window, overlap, candidates)
        resize = self._resize_to(min_size)
        return track_video(
            self.model,
            video,
            self.classes,
            settings,
            {"start": start, "end": end, "every": every},
            prepare=lambda image: self._prepare([image], resize)[0]["image"],
            autocast=self._autocast,
            work_dir=None if work_dir is None else Path(work_dir).expanduser(),
            progress=progress,
            facts={
                "size": [resize.short_edge_length, resize.max_size],
                "amp": str(self._amp_dtype),
                "bgr": self._bgr,
                "config": config_digest(self.cfg),
            },
            rules=self.rules,
            top_k=top_k,
            score_threshold=threshold,
            **self._runtime(),
        )

    def _resize_to(self, min_size: int | None) -> ResizeShortestEdge:
        """Return the resizing of the evaluation, or one to another shortest edge."""
        if min_size is None:
            return self._resize
        if min_size < 1:
            raise ValueError(f"min_size must be at least 1, not {min_size}")
        return ResizeShortestEdge(min_size, max(self._resize.max_size, 2 * min_size), "choice")

    # ---- tiles
    def _segment(self, arrays: list[np.ndarray], call: _Call) -> list[Result]:
        """Return the results of some images; those that need tiles are taken one by one."""
        results: list[Result | None] = [None] * len(arrays)
        complete = [i for i, array in enumerate(arrays) if not call.tiles.needed(array.shape[:2])]
        if complete:
            found = self._run([arrays[i] for i in complete], call)
            for i, result in zip(complete, found, strict=True):
                if not self._is_crowded(result):
                    results[i] = self._finished(result, call)
                elif not call.tiles.possible(result.size):
                    logger.warning(
                        "%d of the %d queries found an object, so others may be missed; %s",
                        len(result.instances or ()),
                        self._queries,
                        "use tiles: tile='auto' (--tile auto)"
                        if call.tiles.mode == "never"
                        else f"use tiles smaller than {call.tiles.edge} pixels",
                    )
                    results[i] = self._finished(result, call)
        return [self._tiled(arrays[i], call) if result is None else result for i, result in enumerate(results)]

    @property
    def _queries(self) -> int:
        return 0 if self.cfg is None else int(self.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES)

    def _is_crowded(self, result: Result) -> bool:
        """Return whether nearly all queries found an object, by the threshold that the model is made for."""
        if result.instances is None or self.cfg is None:
            return False
        usual = self.cfg.MODEL.MASK_FORMER.TEST.INSTANCES.SCORE_THRESHOLD
        most = min(self._queries, int(self.cfg.TEST.DETECTIONS_PER_IMAGE))
        return bool(np.count_nonzero(result.instances.scores >= usual) >= _CROWDED * most)

    def _tiled(self, array: np.ndarray, call: _Call) -> Result:
        """Segment an image tile by tile; the tiles' results become one before the rules are applied."""
        start = time.perf_counter()
        size = array.shape[:2]
        tiles = plan_tiles(size, call.tiles.edge, call.tiles.overlap)
        parts: list[Result] = []
        batches = range(0, len(tiles), call.batch_size)
        bar = tqdm(batches, "tiles", unit="batch", leave=False, mininterval=0.5, disable=not call.progress)
        for first in bar:
            batch = tiles[first : first + call.batch_size]
            parts += self._run([array[tile.window] for tile in batch], call, scale=call.tiles.scale)
        crowded = sum(map(self._is_crowded, parts))
        if crowded:
            logger.warning(
                "in %d of %d tiles nearly all queries found an object, so others may be missed; use tiles smaller than "
                "%d pixels",
                crowded,
                len(tiles),
                call.tiles.edge,
            )
        result = self._finished(merge_results(array, tiles, parts), call)
        return replace(result, seconds=time.perf_counter() - start)

    def _finished(self, result: Result, call: _Call) -> Result:
        if result.instances is None:
            return result
        return replace(result, instances=call.rules.apply(result.instances))

    # ---- one forward pass
    def _run(self, arrays: list[np.ndarray], call: _Call, scale: float | None = None) -> list[Result]:
        """Return what the model says of images, resized by `scale` or else to the call's shortest edge."""
        start = time.perf_counter()
        threshold = call.rules.score_threshold
        options = self._options(threshold) | self._runtime()
        with torch.inference_mode(), self._autocast():
            outputs = self.model(self._prepare(arrays, call.resize, scale), **options)
            results = [
                Result.from_output(array, self._requested(output), self.classes, score_threshold=threshold)
                for array, output in zip(arrays, outputs, strict=True)
            ]
        seconds = (time.perf_counter() - start) / len(arrays)
        return [replace(result, seconds=seconds) for result in results]

    def _runtime(self) -> dict[str, Runtime]:
        """Return what runs the network, where it is not the runtime of the model."""
        if not self._takes_runtime:
            return {}
        if self._own_runtime is not None:
            return {"runtime": self._own_runtime}
        runtime = getattr(self.model, "runtime", None)
        if self.device.type != "cpu" or not isinstance(runtime, Runtime):
            return {}
        return {"runtime": runtime.of_prediction}

    def _options(self, threshold: float) -> dict[str, Any]:
        """Return settings of results that are small, and without what is below the threshold."""
        if not self._takes_settings:
            return {}
        settings: Settings = self.model.settings  # type: ignore[assignment]
        small = replace(settings, patches=True, semantic_scores=False, segment_threshold=threshold)
        return {"settings": replace(small, score_threshold=max(threshold, settings.score_threshold))}

    def _prepare(
        self, arrays: Sequence[np.ndarray], resize: ResizeShortestEdge, scale: float | None = None
    ) -> list[dict[str, Any]]:
        """Convert (H, W, 3) uint8 RGB to detectron2's input: resized (3, h, w) uint8, and the size of the results."""
        transforms = [self._transform(array, resize, scale) for array in arrays]
        # The device, which is fast at it, puts channels in order. All images are resized before the first is sent.
        inputs = []
        for array, resized in zip(arrays, resize_images(arrays, transforms, self.device.type == "cuda"), strict=True):
            image = to_device(resized, self.device)
            image = image.flip(0) if self._bgr else image.contiguous()
            inputs.append({"image": image, "height": array.shape[0], "width": array.shape[1]})
        return inputs

    @staticmethod
    def _transform(array: np.ndarray, resize: ResizeShortestEdge, scale: float | None) -> T.Transform:
        if scale is None:
            return resize.get_transform(array)
        # Tiles: all at one scale, also those of an image that is narrower than a tile.
        height, width = array.shape[:2]
        return T.ResizeTransform(height, width, max(1, round(height * scale)), max(1, round(width * scale)))

    def _requested(self, output: dict[str, Any]) -> dict[str, Any]:
        if self.task not in IMAGE_TASKS:
            return output
        key = Task(self.task).output
        if key not in output:
            raise ValueError(f"the model returns no {self.task} result, only: {', '.join(sorted(output))}")
        return {key: output[key]}

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._amp_dtype)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        name = type(self.model).__name__
        precision = "" if self._amp_dtype is None else f", {str(self._amp_dtype).removeprefix('torch.')} autocast"
        return f"Segmenter({name}, {size:.1f} M parameters, {len(self.classes)} classes, {self.device}{precision})"


def _takes(function: Any, name: str) -> bool:
    """Return whether a method takes an argument of this name, not only any (`**kwargs`)."""
    return callable(function) and name in inspect.signature(function).parameters
