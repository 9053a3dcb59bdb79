"""New training images made of those of the dataset, before any augmentation: copy-paste, and images without objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ...structures.rle import encode_patches
from ..copy_paste import Scene, paste_objects, random_empty_image
from ..image_io import check_image_size, read_image
from .targets import AugmentedImage, InstanceTargets, Record


class SceneComposer:
    """Pastes objects into the image of a record, or replaces it by an image without objects.

    Args:
        empty_prob: probability that an image without objects takes the place of the image, in its size.
        paste_prob: probability that objects are pasted into the others.
        objects: largest number of pasted objects.
        same_image: they are copied from the image itself instead of another one of the dataset.
        scale: smallest and largest factor of their size.
    """

    def __init__(
        self,
        empty_prob: float = 0.0,
        paste_prob: float = 0.0,
        objects: int = 20,
        same_image: bool = False,
        scale: tuple[float, float] = (0.8, 1.25),
    ) -> None:
        self.empty_prob, self.paste_prob = empty_prob, paste_prob
        self.objects, self.same_image, self.scale = objects, same_image, scale
        self.records: Sequence[Record] = ()  # of the dataset, for `same_image` False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SceneComposer | None:
        """Build the composer that INPUT.EMPTY_PROB and INPUT.COPY_PASTE ask for; None where both are off."""
        node = cfg.INPUT.COPY_PASTE
        if not cfg.INPUT.EMPTY_PROB and not node.PROB:
            return None
        scale = node.MIN_SCALE, node.MAX_SCALE
        return cls(cfg.INPUT.EMPTY_PROB, node.PROB, node.OBJECTS, node.SOURCE == "same", scale)

    def __call__(self, record: Record, targets: InstanceTargets, image_format: str) -> tuple[Record, np.ndarray | None]:
        """Draw what becomes of a record, from NumPy's global state.

        Args:
            record: in detectron2's format, with "annotations"; not changed.
            targets: reads the objects.
            image_format: order of the channels, "RGB" or "BGR".

        Returns:
            The record with the new "annotations" and the pixels uint8 (H, W, 3); the record itself and None where
            nothing was drawn for it.

        Raises:
            BadRecordError: the image or the annotations of the record, or of the one that objects are copied from,
                cannot be used.
        """
        chance, pastes = np.random.random(), np.random.random()
        if chance < self.empty_prob:
            size = read_image(record["file_name"], image_format).shape[:2]
            rng = np.random.default_rng(np.random.randint(2**31))
            pixels = random_empty_image(size, rng)
            pixels = pixels if image_format == "RGB" else np.ascontiguousarray(pixels[..., ::-1])
            return {**record, "annotations": []}, pixels
        if pastes >= self.paste_prob:
            return record, None
        scene = _scene(record, targets, image_format)
        source = scene
        if not self.same_image:
            if not self.records:
                raise ValueError("INPUT.COPY_PASTE.SOURCE 'other' needs the records: call use_records of the mapper")
            source = _scene(self.records[np.random.randint(len(self.records))], targets, image_format)
        made = paste_objects(scene, source, self.objects, self.scale)
        rles = encode_patches(made.patches, made.pixels.shape[:2])
        annotations = [
            {"category_id": label, "segmentation": rle} for label, rle in zip(made.classes, rles, strict=True)
        ]
        return {**record, "annotations": annotations}, made.pixels


def _scene(record: Record, targets: InstanceTargets, image_format: str) -> Scene:
    """Read image and objects of a record; crowd regions are left out."""
    pixels = read_image(record["file_name"], image_format)
    size = pixels.shape[:2]
    check_image_size(dict(record), size, record["file_name"])
    classes, patches = targets.objects(record, AugmentedImage(pixels, size, T.TransformList([])))
    return Scene(pixels, classes, patches)
