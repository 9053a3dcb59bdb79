"""A predictor for Replicate (https://replicate.com): `cog predict -i image=@photo.jpg`.

The image comes back with the panoptic, instance and semantic segmentation of a Swin-L model for COCO, one below the
other. Without cog installed the class works too: `Predictor().setup()`, `.predict(image)`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from mask2former import Segmenter

try:
    from cog import BasePredictor, Input
    from cog import Path as OutputPath
except ImportError:
    BasePredictor, OutputPath = object, Path

    def Input(default: Any = None, **_: Any) -> Any:
        """Stand for cog's description of an argument."""
        return default


MODEL = "coco-panoptic-swin-l"
_IMAGE = Input(description="Input image")


class Predictor(BasePredictor):  # type: ignore[misc]
    """Draws the segmentation of an image."""

    def setup(self) -> None:
        """Load the model; its weights are downloaded where they are not on this machine."""
        self.segment = Segmenter.load(MODEL)

    def predict(self, image: OutputPath = _IMAGE) -> OutputPath:  # type: ignore[valid-type]
        """Segment an image file.

        Returns:
            A PNG file with the panoptic, instance and semantic segmentation, from top to bottom: those that the model
            gives.
        """
        result = self.segment(str(image))
        drawn = [result.draw(task) for task in ("panoptic", "instance", "semantic") if task in result.tasks]
        stacked = Image.new("RGB", (drawn[0].width, sum(part.height for part in drawn)))
        top = 0
        for part in drawn:
            stacked.paste(part, (0, top))
            top += part.height
        file = Path(tempfile.mkdtemp()) / "out.png"
        stacked.save(file)
        return OutputPath(file)
