"""Labels that a model made, as a dataset of a labeling tool: correct them there, then train on the directory.

Each format is a directory below the output, with a copy of the images:

- `coco/`: images/ and annotations.json, with polygons;
- `labelme/`: each image beside its .json;
- `yolo/`: images/, labels/ with polygons, data.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..result_files import CocoDocument
from ..result_labels import LabelMeDirectory, YoloDirectory, store_image
from ..results import Result
from ..structures.task import Task

FORMATS = ("coco", "labelme", "yolo")


@dataclass
class LabelFiles:
    """Writer of the formats of --save-as below a directory.

    Raises:
        FileExistsError: there is such a directory, in which labels may have been corrected by hand.
    """

    directory: Path
    formats: Sequence[str]
    written: list[Path] = field(default_factory=list)
    _document: CocoDocument | None = None
    _labelme: LabelMeDirectory | None = None
    _yolo: YoloDirectory | None = None

    def __post_init__(self) -> None:
        for path in (self.directory / name for name in self.formats):  # before the network runs
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise FileExistsError(
                    f"{path} exists, and its labels may have been corrected by hand; delete it, or choose another "
                    "--output"
                )
        self._labelme = LabelMeDirectory(self.directory / "labelme") if "labelme" in self.formats else None
        self._yolo = YoloDirectory(self.directory / "yolo") if "yolo" in self.formats else None

    def add(self, result: Result, task: str, name: str, stem: str) -> None:
        """Write the labels of an image.

        Args:
            result: the result.
            task: its part that is written.
            name: name of the image, for messages.
            stem: name of the files, without suffix.

        Raises:
            ValueError: the result has no objects to outline, only a semantic map.
        """
        if task == Task.SEMANTIC:
            raise ValueError(f"{name}: --save-as needs objects, but this model gives a semantic map; use --save masks")
        if self._labelme is not None:
            self.written.append(self._labelme.add(result, task, stem))
        if self._yolo is not None:
            self.written.append(self._yolo.add(result, task, stem))
        if "coco" in self.formats:
            image = store_image(result, self.directory / "coco" / "images", stem)
            self._document = self._document or CocoDocument(result.classes)
            self._document.add(result.to_coco(task=task, polygons=True), result.size, image.name)

    def finish(self) -> list[Path]:
        """Write the files that hold all images; return all that were written."""
        if self._document is not None:
            self.written.append(self._document.save(self.directory / "coco" / "annotations.json"))
        if self._yolo is not None:
            self.written += self._yolo.finish()
        return self.written
