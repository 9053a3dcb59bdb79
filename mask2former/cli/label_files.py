"""Labels that a model made, as a dataset of a labeling tool: correct them there, then train on the directory.

Each format is a directory below the output, with a copy of the images:

- `coco/`: images/ and annotations.json, with polygons;
- `labelme/`: each image beside its .json;
- `yolo/`: images/, labels/ with polygons, data.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from PIL import Image

from ..data.image_files import opened_image
from ..result_files import CocoDocument, write_image
from ..results import Result
from ..structures.classes import ClassTable
from ..structures.task import Task
from ..utils.file_io import write_bytes, write_json

FORMATS = ("coco", "labelme", "yolo")
_VIEWABLE = frozenset({".jpg", ".jpeg", ".png"})  # what every labeling tool opens
_ORIENTATION = 0x0112  # of EXIF


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
    _classes: ClassTable | None = None

    def __post_init__(self) -> None:
        for path in (self.directory / name for name in self.formats):  # before the network runs
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise FileExistsError(
                    f"{path} exists, and its labels may have been corrected by hand; delete it, or choose another "
                    "--output"
                )

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
        self._classes = result.classes
        writers: dict[str, Callable[[Result, str, str], None]] = {
            "coco": self._add_coco,
            "labelme": self._add_labelme,
            "yolo": self._add_yolo,
        }
        for label_format in self.formats:
            writers[label_format](result, task, stem)

    def finish(self) -> list[Path]:
        """Write the files that hold all images; return all that were written."""
        if self._document is not None:
            self.written.append(self._document.save(self.directory / "coco" / "annotations.json"))
        if "yolo" in self.formats and self._classes is not None:
            # Without "path", which Ultralytics takes as relative to the working directory and not to this file.
            content = {"train": "images", "val": "images", "names": dict(enumerate(self._classes.names))}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            self.written.append(write_bytes(self.directory / "yolo" / "data.yaml", text.encode()))
        return self.written

    def _add_coco(self, result: Result, task: str, stem: str) -> None:
        image = _store_image(result, self.directory / "coco" / "images", stem)
        self._document = self._document or CocoDocument(result.classes)
        self._document.add(result.to_coco(task=task, polygons=True), result.size, image.name)

    def _add_labelme(self, result: Result, task: str, stem: str) -> None:
        from ..result_shapes import labelme_record

        directory = self.directory / "labelme"
        image = _store_image(result, directory, stem)
        record = {**labelme_record(result, task=task), "imagePath": image.name}
        self.written.append(write_json(directory / f"{stem}.json", record))

    def _add_yolo(self, result: Result, task: str, stem: str) -> None:
        from ..result_shapes import yolo_lines

        _store_image(result, self.directory / "yolo" / "images", stem)
        text = "".join(f"{line}\n" for line in yolo_lines(result, task=task))
        self.written.append(write_bytes(self.directory / "yolo" / "labels" / f"{stem}.txt", text.encode()))


def _store_image(result: Result, directory: Path, stem: str) -> Path:
    """Copy the image into a directory; as PNG where a labeling tool could not show it, or would show it turned."""
    path = result.path
    if path is not None and path.suffix.lower() in _VIEWABLE and _is_plain(path, result):
        return write_bytes(directory / f"{stem}{path.suffix.lower()}", path.read_bytes())
    return write_image(directory / f"{stem}.png", Image.fromarray(result.image))


def _is_plain(path: Path, result: Result) -> bool:
    with opened_image(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return image.mode in ("RGB", "RGBA", "L", "P") and not turned and image.size == result.size[::-1]
