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

import copy
import inspect
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from .checkpoint import load_into
from .config import load_config
from .config_validation import validate_config
from .data import register_from_config
from .data.image_io import ImageSource, load_image
from .maskformer_model import MaskFormer
from .model_source import dataset_classes, locate_model, stored_classes
from .modeling.postprocess import Settings
from .results import Result
from .structures.classes import ClassTable
from .structures.task import IMAGE_TASKS, Task, tasks_of
from .utils.device import amp_dtype, select_device
from .video.reader import FrameSource, Video
from .video.results import VideoResult
from .video.tracking import track_video
from .video.windows import WindowSettings, config_digest

logger = logging.getLogger(__name__)

DEFAULT_SCORE_THRESHOLD = 0.5


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
        score_threshold: float = DEFAULT_SCORE_THRESHOLD,
        batch_size: int = 1,
        amp: bool | str = False,
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
            score_threshold: objects and segments with a lower score are dropped; 0 keeps all.
            batch_size: images in one forward pass when a list is given. They are padded to one size, and padding
                changes results a little; 1 reproduces the evaluation.
            amp: run in lower precision: True or "auto" (bfloat16 where the GPU supports it, else float16),
                "bfloat16", "float16".

        Raises:
            ValueError: an invalid argument, or neither `cfg` nor `classes`.
        """
        if task not in ("auto", *Task):
            raise ValueError(f"task must be auto, {', '.join(Task)}, not {task!r}")
        self.task = task
        self.score_threshold = _checked_threshold(score_threshold)
        self.batch_size = batch_size
        first = next(model.parameters(), None)
        self.device = (
            torch.device(device) if device is not None else first.device if first is not None else torch.device("cpu")
        )
        self.model = _ready(model, self.device)
        # Settings are passed with each call, because other segmenters may use the same model with other settings.
        arguments = inspect.signature(model.forward).parameters
        self._takes_settings = isinstance(model, MaskFormer) and "settings" in arguments
        self.cfg = cfg
        self.classes = _class_table(cfg, classes)
        self._amp_dtype = amp_dtype(amp, self.device)
        self._bgr = cfg is not None and cfg.INPUT.FORMAT == "BGR"
        if cfg is not None:
            min_size, max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._resize = T.ResizeShortestEdge(min_size, max_size, "choice")

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
            device: "auto" takes a CUDA GPU, else a working Apple GPU, else the CPU.
            overrides: config keys and values, KEY VALUE KEY VALUE ...
            task: which results to compute, see `Segmenter`; "auto": those the config turns on.
            classes: class names, if neither the test dataset nor the model's directory has them.
            options: `score_threshold`, `batch_size`, `amp` of `Segmenter`.

        Raises:
            ValueError: unknown model or config key, contradictory arguments, no weights or incomplete ones.
            FileNotFoundError: a missing file (of the zoo: the message gives the URL and where to put the file).
        """
        if name is not None and config is not None:
            raise ValueError(f"give a model name ({name!r}) or a config ({str(config)!r}), not both")
        selected = select_device(device)
        overrides = [str(item) for item in overrides]
        if weights is None:
            weights = dict(zip(overrides[::2], overrides[1::2])).get("MODEL.WEIGHTS")
        config, weights = locate_model(name, config, weights)
        cfg = load_config(config, overrides)
        if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer" and task not in ("auto", Task.VIDEO):
            raise ValueError(f"{config} is a video model: its task is video, not {task}")
        if not weights:
            raise ValueError(
                f"no weights for {config}: without them results would be random. Pass weights=FILE "
                "(demo: --weights FILE, or --opts MODEL.WEIGHTS FILE)."
            )
        cfg.MODEL.DEVICE = str(selected)
        cfg.MODEL.WEIGHTS = str(weights)
        _turn_on(cfg, task)
        if classes is None:
            classes = stored_classes(Path(config), Path(str(weights)))
        if classes is None:
            _register_custom_datasets(cfg)
        table = _class_table(cfg, classes)
        model = _build(cfg, table)
        _load_weights(model, weights)
        return cls(model.eval(), cfg, classes=table, device=selected, task=task, **options)

    # ---- calling
    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        score_threshold: float | None = None,
        batch_size: int | None = None,
        min_size: int | None = None,
    ) -> Any:
        """Segment one image (returns a `Result`) or a list or tuple of them (returns a list of `Result`).

        An image is: a path; a PIL image; a numpy array uint8 (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray
        (uint16 too); a tensor uint8 (3, H, W) RGB. OpenCV gives BGR: pass `array[..., ::-1]`. The EXIF
        orientation of files and PIL images is applied.

        Args:
            score_threshold, batch_size: for this call instead of those of the constructor.
            min_size: shortest edge, in pixels, at which the network sees the images of this call; larger for
                smaller objects.

        Raises:
            FileNotFoundError, ValueError: an image that is missing, unreadable or of another type or shape.
        """
        if isinstance(images, (list, tuple)):
            options = {"score_threshold": score_threshold, "batch_size": batch_size, "min_size": min_size}
            return list(self.stream(images, **options))  # type: ignore[arg-type]
        image: Any = images  # a str is a Sequence too, so mypy does not see that this is one image
        return next(self.stream([image], score_threshold=score_threshold, min_size=min_size))

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        score_threshold: float | None = None,
        batch_size: int | None = None,
        min_size: int | None = None,
    ) -> Iterator[Result]:
        """Yield results one by one, for more images than fit into memory (a generator is fine)."""
        threshold = self.score_threshold if score_threshold is None else _checked_threshold(score_threshold)
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, not {size}")
        if hasattr(self.model, "clip_outputs"):
            raise ValueError("this is a video model, which takes clips, not images: use track(video)")
        resize = self._resize_to(min_size)
        source = iter(images)
        while batch := list(islice(source, size)):
            arrays = [load_image(image) for image in batch]
            paths = [Path(p) if isinstance(p, str | os.PathLike) else None for p in batch]
            yield from self._run(arrays, paths, threshold, resize)

    def track(
        self,
        video: Video | FrameSource,
        *,
        online: bool = False,
        window: int = 24,
        overlap: int = 6,
        top_k: int | None = None,
        score_threshold: float | None = None,
        min_size: int | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> VideoResult:
        """Track the objects of a video. Memory does not depend on its length. Returns when the complete video is done.

        A video model sees overlapping windows, whose tracks are linked; for a video that fits into one window the
        result is that of the model on the complete clip. `online` goes frame by frame, which image models can do too.

        Args:
            video: a video file, a directory of frames, a list or array of images, or an iterable of them.
            online: use windows of one frame, so that a frame's masks do not depend on later frames.
            window, overlap: frames that the network sees together, and how many neighboring windows share. Memory
                grows with `window`.
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
        threshold = self.score_threshold if score_threshold is None else _checked_threshold(score_threshold)
        unit = "VIDEO" if hasattr(self.model, "clip_outputs") else "IMAGE"
        if top_k is None:
            top_k = 10 if self.cfg is None else int(self.cfg.TEST[f"DETECTIONS_PER_{unit}"])
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        candidates = WindowSettings.candidates_for(top_k)
        if online:
            settings = WindowSettings.online(candidates=candidates)
        else:
            settings = WindowSettings(window, overlap, candidates)
        resize = self._resize_to(min_size)
        return track_video(
            self.model,
            video,
            self.classes,
            settings,
            prepare=lambda image: self._prepare(image, resize)["image"],
            autocast=self._autocast,
            work_dir=None if work_dir is None else Path(work_dir),
            progress=progress,
            facts={
                "size": [resize.short_edge_length, resize.max_size],
                "amp": str(self._amp_dtype),
                "bgr": self._bgr,
                "config": config_digest(self.cfg),
            },
            top_k=top_k,
            score_threshold=threshold,
        )

    def _resize_to(self, min_size: int | None) -> T.ResizeShortestEdge:
        """Return the resizing of the evaluation, or one to another shortest edge."""
        if min_size is None:
            return self._resize
        if min_size < 1:
            raise ValueError(f"min_size must be at least 1, not {min_size}")
        return T.ResizeShortestEdge(min_size, max(self._resize.max_size, 2 * min_size), "choice")

    def _run(
        self, arrays: list[np.ndarray], paths: list[Path | None], threshold: float, resize: T.ResizeShortestEdge
    ) -> list[Result]:
        start = time.perf_counter()
        options = self._options(threshold)
        with torch.inference_mode(), self._autocast():
            outputs = self.model([self._prepare(array, resize) for array in arrays], **options)
            results = [
                Result.from_output(array, self._requested(output), self.classes, score_threshold=threshold, path=path)
                for array, output, path in zip(arrays, outputs, paths, strict=True)
            ]
        seconds = (time.perf_counter() - start) / len(arrays)
        return [replace(result, seconds=seconds) for result in results]

    def _options(self, threshold: float) -> dict[str, Any]:
        """Return settings that make the model drop objects below the threshold before their masks are resized."""
        if not self._takes_settings:
            return {}
        settings: Settings = self.model.settings  # type: ignore[assignment]
        return {"settings": replace(settings, score_threshold=max(threshold, settings.score_threshold))}

    def _prepare(self, array: np.ndarray, resize: T.ResizeShortestEdge) -> dict[str, Any]:
        """Convert (H, W, 3) uint8 RGB to detectron2's input: resized (3, h, w) uint8, and the size of the results."""
        height, width = array.shape[:2]
        if self._bgr:
            array = array[:, :, ::-1]
        resized = resize.get_transform(array).apply_image(array)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor.to(self.device), "height": height, "width": width}

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
        return f"Segmenter({name}, {size:.1f} M parameters, {len(self.classes)} classes, {self.device})"


# ------------------------------------------------------------------ helpers of load
def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model if it is on the device in evaluation mode, else a copy that is; it shares weights there."""
    tensors = [*model.parameters(), *model.buffers()]
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    there = [t for t in tensors if t.device.type == device.type and t.device.index in (None, device.index)]
    if len(there) == len(tensors) and not any(part.training for part in model.modules()):
        return model
    try:
        # deepcopy takes over what its memo holds.
        return copy.deepcopy(model, {id(t): t for t in there}).to(device).eval()
    except (RuntimeError, TypeError) as error:  # of tensors inside a graph, locks, process groups
        raise ValueError(
            f"this {type(model).__name__} cannot be copied ({error}). Call model.to({str(device)!r}).eval() first: "
            "a model that is on the device and in evaluation mode is used as it is."
        ) from error


def _checked_threshold(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"score_threshold must lie between 0 and 1, not {value}")
    return float(value)


def _class_table(cfg: CfgNode | None, classes: ClassTable | Sequence[str] | None) -> ClassTable:
    """Return the given classes, or those of the config's datasets, or numbered ones."""
    if classes is not None:
        table = classes if isinstance(classes, ClassTable) else ClassTable(tuple(classes))
        if cfg is not None and len(table) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            raise ValueError(
                f"{len(table)} class names for a model with MODEL.SEM_SEG_HEAD.NUM_CLASSES = "
                f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}"
            )
        return table
    if cfg is None:
        raise ValueError("a model without config needs classes=[...], the names of its classes")
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    known = dataset_classes(cfg)
    if known is not None:
        return known
    logger.warning("the names of the %d classes are unknown and replaced by numbers; pass classes=[...]", count)
    return ClassTable.numbered(count)


def _turn_on(cfg: CfgNode, task: str) -> None:
    """Make the model compute only the requested task, as far as that does not change its results."""
    if task not in IMAGE_TASKS:
        return
    enabled = {Task(task)}
    if task == Task.INSTANCE:  # with PANOPTIC_ON the instances are things only
        enabled |= tasks_of(cfg) & {Task.PANOPTIC}
    for each in IMAGE_TASKS:
        cfg.MODEL.MASK_FORMER.TEST[each.switch] = each in enabled


def _register_custom_datasets(cfg: CfgNode) -> None:
    """Register the custom datasets of the config, for their class names, if their files are on this machine."""
    try:
        register_from_config(cfg)
    except (OSError, ValueError) as error:
        logger.info("class names are not taken from the datasets of the config: %s", error)


def _build(cfg: CfgNode, table: ClassTable) -> nn.Module:
    """Build the model. Inference needs no dataset; which classes are things comes from its metadata or the table."""
    cfg.DATASETS.TEST = ()
    known = any(name in MetadataCatalog for name in cfg.DATASETS.TRAIN[:1])
    if not known:
        cfg.DATASETS.TRAIN = ()
    validate_config(cfg, training=False)
    model = build_model(cfg)
    if isinstance(model, MaskFormer) and not known:
        things = frozenset(k for k, thing in enumerate(table.is_thing) if thing)
        model.settings = replace(model.settings, things=things)
    return model


def _load_weights(model: nn.Module, weights: str | os.PathLike[str]) -> None:
    """Load all weights; raise ValueError if some are missing, because results would be random."""
    report = load_into(model, weights)
    if report.missing or report.reinitialized:
        first = report.missing[0] if report.missing else report.reinitialized[0][0]
        raise ValueError(
            f"{weights}: these weights do not fit the model, so its results would be random: {len(report.missing)} are "
            f"missing from the file and {len(report.reinitialized)} have another shape, for example {first}. "
            "Use the config that they were trained with, or train first."
        )
