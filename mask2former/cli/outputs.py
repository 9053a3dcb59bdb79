"""Files of a run on images: overlays, one COCO file, one table of objects, label maps, labels to correct.

All of one image come from one result, so that they agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.image_io import WRITABLE_SUFFIXES
from ..result_files import CocoDocument, UniqueNames
from ..result_tables import columns_of, write_table
from ..results import Result
from ..structures.task import Task
from ..utils.atomic_file import check_writable
from ..visualization import comfortable_scale
from .arguments import DRAWING, LABELS, NOTHING_DRAWN, output_target
from .label_files import LabelFiles
from .parser import refuse_given

KINDS = ("overlay", "json", "csv", "masks")  # of --save
_FILES = {".json": "json", ".csv": "csv"}  # of one file that is neither image nor directory


def main_task(result: Result) -> str:
    """Return the task that is counted, drawn and listed: the first of panoptic, instance, semantic that it has."""
    return next(str(task) for task in (Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC) if task in result.tasks)


@dataclass
class Writer:
    """Writer of the results that --output, --save and --save-as select; keeps a list of the files written."""

    target: Path
    save: frozenset[str]
    labels: bool | None = None
    scale: float | None = None
    single: bool = False  # target is one file
    label_files: LabelFiles | None = None
    written: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a user should know about the files
    _document: CocoDocument | None = None
    intensity: bool = False  # columns of the table
    pixel_size: float | None = None
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _names: UniqueNames = field(default_factory=UniqueNames)
    _inputs: frozenset[Path] = frozenset()  # resolved

    @classmethod
    def create(cls, args: argparse.Namespace, files: Sequence[Path]) -> Writer:
        """Build the writer for these inputs.

        Raises:
            ValueError: --output, --save and --save-as do not fit them.
            OSError: --output cannot be written; the error names it and the reason.
        """
        writer = cls._create(args, len(files))
        if "overlay" not in writer.save:
            refuse_given(args, DRAWING, NOTHING_DRAWN)
        if "csv" not in writer.save:
            refuse_given(args, ("intensity", "pixel_size"), "because no table is written; add csv to --save")
        check_writable(writer.target, "--output", directory=not writer.single)
        writer._inputs = frozenset(path.resolve() for path in files)
        writer._check_inputs()
        return writer

    def _check_inputs(self) -> None:
        """Check, before the network runs, that no input would be replaced; of overlays in a directory `_draw` does so.

        Raises:
            ValueError: one would be.
        """
        if self.single and self.target.resolve() in self._inputs:
            raise ValueError(f"--output {self.target} is the input itself; choose another path")
        masks = (self.target / "masks").resolve()
        if "masks" in self.save and any(masks == path.parent for path in self._inputs):
            raise ValueError(f"label maps would be written to {masks}, where inputs are; choose another --output")

    @classmethod
    def _create(cls, args: argparse.Namespace, count: int) -> Writer:
        target, single = output_target(args, WRITABLE_SUFFIXES | set(_FILES))
        labels = LABELS[args.labels]
        columns: dict[str, Any] = {"intensity": args.intensity, "pixel_size": args.pixel_size}
        if not single:
            writer = cls(target, frozenset(args.save or args.default_save), labels, args.scale, **columns)
            if args.save_as:
                writer.label_files = LabelFiles(target, tuple(args.save_as))
            return writer
        for name, value in (("save", args.save), ("save-as", args.save_as)):
            if value:
                raise ValueError(
                    f"--{name} selects files of a directory, but --output {target} is a file; drop --{name}"
                )
        suffix = target.suffix.lower()
        if suffix in _FILES:
            return cls(target, frozenset({_FILES[suffix]}), labels, args.scale, single=True, **columns)
        if count > 1:
            raise ValueError(f"--output {target} is a single image, but there are {count} inputs; give a directory")
        if getattr(args, "page", None) == "all":
            raise ValueError(f"--output {target} is a single image, but --page all makes one of each page")
        return cls(target, frozenset({"overlay"}), labels, args.scale, single=True)

    def add(self, result: Result, name: str, stem: str, caption: str = "") -> None:
        """Write the files of one image.

        Args:
            result: the result, as it is counted.
            name: name of the image in JSON and table.
            stem: name of its files, without suffix.
            caption: text below the overlay.

        Raises:
            ValueError: the overlay would overwrite an input.
        """
        task = main_task(result)
        stem = self._names.unique(stem)
        if "overlay" in self.save:
            self._draw(result, task, stem, caption)
        if "masks" in self.save:
            self.written += result.save_masks(self.target / "masks", stem)
            self._note_hidden(result, name)
        if "json" in self.save:
            self._document = self._document or CocoDocument(result.classes)
            self._document.add(result.to_coco(task=task), result.size, name)
        if "csv" in self.save:
            self._rows += result.to_rows(task, image=name, intensity=self.intensity, pixel_size=self.pixel_size)
        if self.label_files is not None:
            self.label_files.add(result, task, name, stem)

    def finish(self) -> None:
        """Write the files that hold all images."""
        if self._document is not None:
            self.written.append(self._document.save(self.target if self.single else self.target / "results.json"))
        if "csv" in self.save:
            path = self.target if self.single else self.target / "objects.csv"
            self.written.append(write_table(path, self._rows, columns_of(self.intensity, self.pixel_size)))
        if self.label_files is not None:
            self.written += self.label_files.finish()

    def _draw(self, result: Result, task: str, stem: str, caption: str) -> None:
        suffix = ".png"
        if result.path is not None and result.path.suffix.lower() in (".jpg", ".jpeg"):
            suffix = ".jpg"
        path = self.target if self.single else self.target / f"{stem}{suffix}"
        if path.resolve() in self._inputs:
            own = result.path is not None and path.resolve() == result.path.resolve()
            which = "its input" if own else "another input"
            raise ValueError(f"{path}: the overlay would overwrite {which}; choose another --output")
        scale = self.scale or comfortable_scale(*result.image.shape[:2])
        self.written += result.save(path, task=task, scale=scale, labels=self.labels, caption=caption)

    def _note_hidden(self, result: Result, name: str) -> None:
        """Note objects that have no pixel in the label map, because others cover them."""
        if result.instances is None:
            return
        hidden = len(result.instances) - np.count_nonzero(np.unique(result.instances.label_map()))
        if hidden:
            # Overlay and table of a panoptic result have its segments.
            what = "objects" if main_task(result) == str(Task.INSTANCE) else "instances"
            self.notes.append(
                f"{name}: {hidden} of {len(result.instances)} {what} are covered by others and have no pixel in the "
                f"label map of {what}; --non-overlapping drops them everywhere"
            )
