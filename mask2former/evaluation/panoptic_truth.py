"""Ground truth of panoptic segmentation: COCO panoptic json and PNGs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from mask2former.files import read_json


def picture_to_ids(picture: Image.Image) -> np.ndarray:
    """An RGB or RGBA picture -> (h, w) int32 segment ids R + 256 G + 256^2 B."""
    # Four bytes a pixel are one number: faster than adding up channels.
    words = np.asarray(picture.convert("RGBA")).view("<u4")[..., 0]
    return (words & 0xFFFFFF).astype(np.int32)


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Inverse of `picture_to_ids`: (h, w) integers below 256^3 -> (h, w, 3) uint8."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


class PanopticTruth:
    """Annotations by image id; id maps are read when asked for."""

    def __init__(self, json_file: str, root: str) -> None:
        """
        Args:
            json_file: COCO panoptic annotation file.
            root: folder of the annotation PNGs.

        Raises:
            FileNotFoundError: json or folder is missing.
            ValueError: the json is not a panoptic annotation file with ground truth.
        """
        self.json_file = json_file
        self.root = root
        self.content: dict[str, Any] = read_json(json_file, "panoptic annotations")
        for key in ("annotations", "categories"):
            if key not in self.content:
                raise ValueError(
                    f"{json_file}: not a panoptic annotation file with ground truth, it has no {key}"
                )
        for annotation in self.content["annotations"]:
            if "segments_info" not in annotation or "file_name" not in annotation:
                raise ValueError(
                    f"{json_file}: image {annotation.get('image_id')!r} has no segments_info or file_name; "
                    f"is this the instance annotation file?"
                )
        if not PathManager.isdir(root):
            raise FileNotFoundError(
                f"panoptic annotations: no folder {root} with the PNGs that {json_file} names"
            )
        self.categories: dict[int, dict[str, Any]] = {c["id"]: c for c in self.content["categories"]}
        # File readers turn numeric ids into int, the json may hold text: compare as text.
        self._by_image = {str(a["image_id"]): a for a in self.content["annotations"]}

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """One dict per image: `image_id`, `file_name`, `segments_info`."""
        return list(self._by_image.values())

    def annotation(self, image_id: Any) -> dict[str, Any]:
        """Raises ValueError when the file does not list the image."""
        try:
            return self._by_image[str(image_id)]
        except KeyError:
            raise ValueError(f"{self.json_file} has no annotation for image {image_id!r}") from None

    def id_map(self, annotation: dict[str, Any]) -> np.ndarray:
        """(h, w) int32 segment ids of one annotation."""
        path = os.path.join(self.root, annotation["file_name"])
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"panoptic annotations: no file {path}, which {self.json_file} names")
        with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise ValueError(
                    f"{path}: a panoptic annotation is an RGB PNG, this one has mode {image.mode}"
                )
            return picture_to_ids(image)
