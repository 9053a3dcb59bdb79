"""A predictor for Replicate and its tool cog (https://cog.run): `cog predict -i image=@photo.jpg`.

The image comes back with its panoptic, instance and semantic segmentation, one below the other, or the objects as JSON.
The environment variable MASK2FORMER_MODEL chooses the model: a name of the model zoo, or a training output directory.
"""

from __future__ import annotations

import os
import pathlib
import tempfile

from cog import BasePredictor, Input, Path
from PIL import Image

from mask2former import Result, Segmenter

VARIABLE = "MASK2FORMER_MODEL"
MODEL = "coco-panoptic-swin-l"  # without the variable
TASKS = ("panoptic", "instance", "semantic")  # from top to bottom


class Predictor(BasePredictor):
    """Segments an image."""

    def setup(self) -> None:
        """Load the model; its weights are downloaded where they are not on this machine."""
        self.segment = Segmenter.load(os.environ.get(VARIABLE) or MODEL)

    # `cog build` reads inputs from this source without running it: calls of Input with literals, and no others.
    def predict(
        self,
        image: Path = Input(description="Input image: JPEG, PNG, WebP, TIFF, ..."),  # noqa: B008
        task: str = Input(
            default="all",
            choices=["all", "panoptic", "instance", "semantic"],
            description="Segmentation to return; all: those that the model computes, from top to bottom in this order",
        ),
        score_threshold: float | None = Input(
            default=None,
            ge=0.0,
            le=1.0,
            description="Objects and segments with a lower score are left out. Default: the threshold of the model",
        ),
        output: str = Input(
            default="overlay",
            choices=["overlay", "json"],
            description="overlay: PNG, drawn over the image. json: objects as COCO results, of the first task for all",
        ),
    ) -> Path:
        """Segment an image file.

        Returns:
            A PNG file with the segmentations from top to bottom, those that the model computes; or a JSON file.

        Raises:
            FileNotFoundError, ValueError: no image, or one that cannot be read; a task that the model does not compute.
        """
        if image is None:
            raise ValueError("image: no file was given")
        result = self.segment(str(image), score_threshold=score_threshold)
        if task not in ("all", *result.tasks):
            raise ValueError(f"task: this model computes {', '.join(result.tasks)}, not {task}")
        directory = pathlib.Path(tempfile.mkdtemp())
        if output == "json":
            (file,) = result.save(directory / "out.json", task="auto" if task == "all" else task)
            return Path(file)
        file = directory / "out.png"
        drawn(result, [name for name in TASKS if name in result.tasks and task in ("all", name)]).save(file)
        return Path(file)


def drawn(result: Result, tasks: list[str]) -> Image.Image:
    """Return the segmentations of some tasks, drawn over the image, one below the other."""
    parts = [result.draw(task) for task in tasks]
    stacked = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        stacked.paste(part, (0, top))
        top += part.height
    return stacked
