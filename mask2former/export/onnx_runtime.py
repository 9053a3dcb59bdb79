"""Run a model that `mask2former export --format onnx` wrote, with onnxruntime, NumPy and Pillow only: copy this file.

```python
from onnx_runtime import OnnxModel

model = OnnxModel("model.onnx")                      # reads model.json beside it
result = model("photo.jpg", score_threshold=0.5)     # {"scores", "classes", "names", "boxes", "masks"}
```

From the command line: `python onnx_runtime.py model.onnx photo.jpg`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows others, of which one starts a program


class OnnxModel:
    """An exported model of images.

    Args:
        path: the .onnx file; the .json file of the same name lies beside it.
        providers: of onnxruntime, such as ["CUDAExecutionProvider"]; default: the CPU.
        threads: of the CPU; 0: as many as onnxruntime takes.

    Attributes:
        info: the content of the .json file.
    """

    def __init__(self, path: str | Path, providers: list[str] | None = None, threads: int = 0) -> None:
        self.info: dict[str, Any] = json.loads(Path(path).with_suffix(".json").read_text("utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers or ["CPUExecutionProvider"])
        shape = self.info["input"]
        self.size, self.batch, self.frames = (shape["height"], shape["width"]), shape["batch"], shape["frames"]
        self.classes: list[dict[str, Any]] = self.info["classes"]
        self.outputs: list[str] = self.info["outputs"][self.info["post"]]

    def __call__(self, image: Any, **thresholds: float) -> dict[str, Any]:
        """Segment one image.

        Args:
            image: file, PIL image, or array uint8 (h, w, 3) RGB; a list of T of them, of one size, for a video model.
            thresholds: instead of those of the .json file, by their names there.

        Returns:
            Arrays at the size of the image. instance: "scores" (N,), "classes" (N,), "names", "boxes" (N, 4) XYXY,
            "masks" bool (N, h, w), or (N, T, h, w). panoptic: "segment_map" int32 (h, w), "segments" (list of dict).
            semantic: "labels" (h, w), class indices. none: the two logits.
        """
        arrays = [to_array(one) for one in (image if self.frames else [image])]
        if self.frames and (len(arrays) != self.frames or len({array.shape for array in arrays}) > 1):
            raise ValueError(f"this model takes {self.frames} frames of one size, not {len(arrays)}")
        prepared = [self.prepare(array) for array in arrays]
        inside = prepared[0][1]
        stacked = np.stack([pixels for pixels, _ in prepared]) if self.frames else prepared[0][0]
        images = np.zeros((self.batch, *stacked.shape), np.float32)
        images[0] = stacked
        return self.finish(self.run(images, [inside] * self.batch, thresholds), 0, inside, arrays[0].shape[:2])

    def prepare(self, array: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Resize (h, w, 3) RGB to fit the input, normalize, pad right and below; return it and the size inside."""
        spec, (height, width) = self.info["input"], array.shape[:2]
        scale = min(self.size[0] / height, self.size[1] / width)
        inside = tuple(max(1, min(int(n * scale + 0.5), most)) for n, most in zip((height, width), self.size))
        if inside != (height, width):
            array = np.asarray(Image.fromarray(array).resize(inside[::-1], Image.Resampling.BILINEAR))
        if spec["channel_order"] == "BGR":
            array = array[..., ::-1]
        pixels = (array.astype(np.float32) - np.float32(spec["mean"])) / np.float32(spec["std"])
        padded = np.zeros((3, *self.size), np.float32)
        padded[:, : inside[0], : inside[1]] = pixels.transpose(2, 0, 1)
        return padded, (inside[0], inside[1])

    def run(self, images: np.ndarray, inside: Any, thresholds: dict[str, float] | None = None) -> dict[str, np.ndarray]:
        """Run the network on prepared images (B, 3, H, W); `inside` are their sizes (B, 2). Returns its outputs."""
        unknown = set(thresholds or {}) - set(self.info["thresholds"])
        if unknown:
            raise ValueError(f"no threshold {sorted(unknown)}; this model has {sorted(self.info['thresholds'])}")
        values = self.info["thresholds"] | (thresholds or {})
        feeds: dict[str, np.ndarray] = {name: np.asarray(value, np.float32) for name, value in values.items()}
        if self.info["post"] != "none":
            feeds["valid_size"] = np.asarray(inside, np.int64)
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds | {"images": images})))

    def finish(
        self, outputs: dict[str, np.ndarray], row: int, inside: tuple[int, int], size: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return the results of one image of a batch at its own `size` (h, w); see `__call__`."""
        own = {name: value[row] for name, value in outputs.items()}
        if self.info["post"] == "none":
            return own
        if self.info["post"] == "semantic":
            return {"labels": _resized_labels(own["labels"], inside, size)}
        if self.info["post"] == "panoptic":
            found = [i for i, label in enumerate(own["segment_classes"]) if label >= 0]
            segment_map = _resized_labels(own["segment_map"], inside, size)
            areas = np.bincount(segment_map.ravel(), minlength=len(found) + 1)
            segments = [
                {
                    "id": i + 1,
                    "category_id": int(own["segment_classes"][i]),
                    "name": self.classes[own["segment_classes"][i]]["name"],
                    "isthing": bool(self.classes[own["segment_classes"][i]]["isthing"]),
                    "score": float(own["segment_scores"][i]),
                    "area": int(areas[i + 1]),
                }
                for i in found
            ]
            return {"segment_map": segment_map, "segments": segments}
        rows = np.flatnonzero(own["classes"] >= 0)
        rows = rows[np.argsort(-own["scores"][rows], kind="stable")]
        shape = own["masks"].shape[1:-2]
        flat = own["masks"][rows].reshape(-1, *self.size)
        masks = np.zeros((len(flat), *size), bool)
        for i, mask in enumerate(flat):
            masks[i] = _resized_mask(mask, inside, size)
        masks, labels = masks.reshape(len(rows), *shape, *size), own["classes"][rows]
        names = [self.classes[label]["name"] for label in labels]
        boxes = np.array([_box(mask.any(0) if shape else mask) for mask in masks])
        boxes = boxes.reshape(-1, 4).astype(np.float32)
        return {"scores": own["scores"][rows], "classes": labels, "names": names, "boxes": boxes, "masks": masks}


def to_array(image: Any) -> np.ndarray:
    """Return uint8 (h, w, 3) RGB of a file, a PIL image or an array; the EXIF orientation is applied."""
    if isinstance(image, np.ndarray):
        return image
    opened = image if isinstance(image, Image.Image) else Image.open(image, formats=FORMATS)
    return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def _resized_labels(labels: np.ndarray, inside: tuple[int, int], size: tuple[int, ...]) -> np.ndarray:
    own = Image.fromarray(labels[: inside[0], : inside[1]].astype(np.int32))
    return np.asarray(own.resize((size[1], size[0]), Image.Resampling.NEAREST), dtype=np.int32)


def _resized_mask(mask: np.ndarray, inside: tuple[int, int], size: tuple[int, ...]) -> np.ndarray:
    own = mask[: inside[0], : inside[1]]
    if inside == tuple(size):
        return own
    image = Image.fromarray(own.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image) >= 128


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


if __name__ == "__main__":
    print(OnnxModel(sys.argv[1])(sys.argv[2]))
