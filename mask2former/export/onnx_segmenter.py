"""An exported ONNX model in the form of `Segmenter`, for the command line."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.image_sources import Channels, ImageSource, iter_pages
from ..errors import BadRecordError
from ..objects import ObjectRules
from ..result_parts import InstanceResult, PanopticResult, Segment
from ..results import Result
from ..structures.classes import VOID, ClassTable
from ..structures.task import Task

if TYPE_CHECKING:
    from .onnx_runtime import OnnxModel

_PROVIDERS = {"auto": None, "cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class OnnxSegmenter:
    """A model that `mask2former export --format onnx` wrote, run by onnxruntime.

    Args:
        path: the .onnx file; its .json file lies beside it.
        device: "auto" (the CPU), "cpu" or "cuda".
        score_threshold: instead of that of the .json file.

    Attributes:
        model: what runs the file.
        classes: the classes of the model.
        rules: how instances become objects.

    Raises:
        FileNotFoundError: one of the files is missing.
        ImportError: onnxruntime is missing.
        ValueError: the model is not one of images with post-processing, or the .json file is damaged.
    """

    def __init__(self, path: str | Path, device: str = "auto", score_threshold: float | None = None) -> None:
        path = Path(path).expanduser()
        self.path = path
        self.model = _load(path, device)
        info = self.model.info
        try:
            rules = ObjectRules(**info["rules"])
            rows = info["classes"]
            self.classes = ClassTable(
                names=tuple(row["name"] for row in rows),
                is_thing=tuple(bool(row["isthing"]) for row in rows),
                colors=tuple((int(r), int(g), int(b)) for r, g, b in (row["color"] for row in rows)),
                dataset_ids=tuple(int(row["id"]) for row in rows),
            )
            self.task = str(info["post"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecordError(path.with_suffix(".json"), f"is no description of an export ({error!r})") from error
        if self.task == "none" or self.model.frames:
            raise ValueError(f"{path} has no results of images: export with --post instance, panoptic or semantic")
        self.rules = rules.changed(score_threshold=score_threshold)

    def __call__(self, image: ImageSource, **options: Any) -> Any:
        """Segment one image, or (`page="all"`) its pages; arguments and results as for `Segmenter.__call__`."""
        results = self.stream([image], **options)
        return list(results) if options.get("page") == "all" else next(results)

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        rules: ObjectRules | None = None,
        min_size: int | None = None,
        page: int | str | None = None,
        channels: Channels = None,
        stretch: Any = None,
        tile: int | str | None = None,
        overlap: float | None = None,
        progress: bool = False,
    ) -> Iterator[Result]:
        """Yield the result of each image, or of each page of it; arguments as for `Segmenter.stream`.

        Raises:
            ValueError: `min_size` or tiles, which a model of fixed size does not have.
        """
        if min_size is not None or tile not in (None, "off") or overlap is not None:
            raise ValueError(f"{self.path} has an input of fixed size: no --min-size, --tile or --tile-overlap")
        for image in images:
            source = Path(image) if isinstance(image, str | Path) else None
            for number, array in enumerate(iter_pages(image, page=page, channels=channels, stretch=stretch)):
                shown = number if page == "all" else page if isinstance(page, int) else None
                yield self._segment(array, rules or self.rules, source, shown)

    def _segment(self, array: np.ndarray, rules: ObjectRules, path: Path | None, page: int | None) -> Result:
        start = time.perf_counter()
        thresholds = {"score_threshold": rules.score_threshold} if self.task == Task.INSTANCE else {}
        found = self.model(array, **thresholds)
        seconds = time.perf_counter() - start
        extra: dict[str, Any] = {"path": path, "page": page, "seconds": seconds}
        if self.task == Task.INSTANCE:
            labels = found["classes"].astype(np.int64)
            instances = InstanceResult.from_masks(found["masks"], found["scores"], labels, found["names"])
            return Result(array, self.classes, instances=rules.apply(instances), **extra)
        if self.task == Task.PANOPTIC:
            segments = tuple(
                Segment(s["id"], s["category_id"], s["name"], s["isthing"], s["area"], s["score"])
                for s in found["segments"]
            )
            panoptic = PanopticResult(found["segment_map"], segments)
            kept = [s for s in segments if (s.score or 0.0) >= rules.score_threshold and s.area]
            return Result(array, self.classes, panoptic=panoptic.select(kept), **extra)
        kind = np.uint8 if len(self.classes) <= VOID else np.int32
        return Result(array, self.classes, semantic=found["labels"].astype(kind), **extra)

    def __repr__(self) -> str:
        height, width = self.model.size
        return f"OnnxSegmenter({self.path.name}, {self.task}, {width}x{height}, {len(self.classes)} classes)"


def _load(path: Path, device: str) -> OnnxModel:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ImportError("running an ONNX file needs onnxruntime: pip install 'mask2former[export]'")
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; mask2former export writes both files")
    if device not in _PROVIDERS:
        raise ValueError(f"--device {device}: an ONNX file runs on {', '.join(_PROVIDERS)}")
    import onnxruntime

    from .onnx_runtime import OnnxModel

    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ValueError("--device cuda: this onnxruntime has no CUDA; install onnxruntime-gpu instead")
    try:
        return OnnxModel(path, _PROVIDERS[device])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecordError(path.with_suffix(".json"), f"is no description of an export ({error!r})") from error
    except Exception as error:  # onnxruntime has a type of its own for each reason
        if type(error).__module__.startswith("onnxruntime"):
            raise ValueError(f"{path} is not an ONNX model that onnxruntime can run: {error}") from error
        raise
