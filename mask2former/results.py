"""The segmentation result of one image: instances, panoptic map and semantic map; to draw, filter and save.

Arrays are NumPy arrays at the size of the image. N objects, H W of the original image (after its EXIF orientation
was applied). Boxes are XYXY in pixels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import result_files, visualization
from .result_exports import ResultExports
from .result_objects import ObjectList, objects_of_map
from .result_parts import InstanceResult, PanopticResult, instances_from_output, panoptic_from_output
from .result_shapes import with_polygons
from .structures.classes import VOID, ClassTable
from .structures.colors import Color, color_of, shade_of
from .structures.rle import Rle, encode_label_map, encode_masks
from .structures.task import IMAGE_TASKS, Task


# ------------------------------------------------------------------ the result
@dataclass(frozen=True)
class Result(ResultExports):
    """The segmentation of one image. Parts that the model does not predict are None.

    `image` (H, W, 3) uint8 RGB, `semantic` (H, W) integer class indices (K or more, for example 255: no class).
    """

    image: np.ndarray
    classes: ClassTable
    instances: InstanceResult | None = None
    panoptic: PanopticResult | None = None
    semantic: np.ndarray | None = None
    path: Path | None = None  # file the image came from
    page: int | None = None  # of a file with several pages, from 0
    seconds: float | None = field(default=None, compare=False)  # inference time, without reading the file

    @classmethod
    def from_output(
        cls,
        image: np.ndarray,
        output: Mapping[str, Any],
        classes: ClassTable,
        *,
        score_threshold: float = 0.0,
        **extra: Any,
    ) -> Result:
        """Build a result from one element of a detectron2 segmentation model's output list.

        Objects and segments below the threshold are dropped before their masks are copied from the device.
        `extra` sets further fields (`path`, `seconds`).

        Raises:
            ValueError: the output has none of the keys "instances", "panoptic_seg", "sem_seg".
        """
        instances = panoptic = semantic = None
        if Task.INSTANCE.output in output:
            instances = instances_from_output(output[Task.INSTANCE.output], classes, score_threshold)
        if Task.PANOPTIC.output in output:
            id_map, info = output[Task.PANOPTIC.output]
            panoptic = panoptic_from_output(id_map, info, classes)
            kept = [s for s in panoptic.segments if s.score is None or s.score >= score_threshold]
            if len(kept) < len(panoptic):
                panoptic = panoptic.select(kept)
        if Task.SEMANTIC.output in output:
            scores = output[Task.SEMANTIC.output]  # (K, h, w), or the best classes already
            count, best = (len(scores), scores.argmax(dim=0)) if scores.dim() == 3 else (len(classes), scores)
            semantic = best.to(torch.uint8 if count <= VOID else torch.int32).cpu().numpy()
        if instances is None and panoptic is None and semantic is None:
            raise ValueError(
                f"the model's output has only the keys {sorted(output)}; expected one of "
                f"{', '.join(task.output for task in IMAGE_TASKS)}. Turn on one of MODEL.MASK_FORMER.TEST."
                f"{{{', '.join(task.switch for task in IMAGE_TASKS)}}}."
            )
        return cls(image, classes, instances, panoptic, semantic, **extra)

    # ---- reading
    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the image."""
        return self.image.shape[:2]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks this result has, of instance, panoptic and semantic."""
        parts = {Task.INSTANCE: self.instances, Task.PANOPTIC: self.panoptic, Task.SEMANTIC: self.semantic}
        return tuple(task.value for task, part in parts.items() if part is not None)

    def _task(self, task: str) -> Task:
        if task == "auto":
            order = (Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC)
            return next(part for part in order if part in self.tasks)
        if task not in IMAGE_TASKS:
            raise ValueError(f"task must be auto, {', '.join(IMAGE_TASKS)}, not {task!r}")
        if task not in self.tasks:
            raise ValueError(f"this result has no {task} part, only: {', '.join(self.tasks)}")
        return Task(task)

    def counts(self, task: str = "auto") -> dict[str, int]:
        """Count objects or segments of each class (1 for each class in a semantic map), most frequent first."""
        task = self._task(task)
        if task is Task.INSTANCE:
            assert self.instances is not None
            names: Iterable[str] = self.instances.names
        elif task is Task.PANOPTIC:
            assert self.panoptic is not None
            names = [segment.name for segment in self.panoptic.segments]
        else:
            names = [self.classes.names[k] for k in self.present_classes()]
        return dict(Counter(names).most_common())

    def present_classes(self) -> list[int]:
        """Return the class indices that occur in the semantic map."""
        assert self.semantic is not None
        return [int(k) for k in np.unique(self.semantic) if k < len(self.classes)]

    def objects(self, task: str = "auto") -> ObjectList:
        """Return the objects of a task in one form: masks, ids, class indices, names, scores.

        "auto" is the first of panoptic, instance, semantic that the result has, as for `counts` and `draw`. The ids are
        1, 2, ... for instances, those of the panoptic map for segments, and class index + 1 for the classes that a
        semantic map shows.
        """
        task = self._task(task)
        if task is Task.INSTANCE:
            found = self.instances
            assert found is not None
            ids = np.arange(1, len(found) + 1)
            return ObjectList(found.patches, ids, found.labels, found.names, tuple(found.scores.tolist()))
        if task is Task.PANOPTIC:
            assert self.panoptic is not None
            segments, numbers = self.panoptic.segments, [s.id for s in self.panoptic.segments]
            return objects_of_map(
                self.panoptic.map,
                numbers,
                ids=numbers,
                labels=[s.label for s in segments],
                names=[s.name for s in segments],
                scores=[s.score for s in segments],
            )
        assert self.semantic is not None
        present = self.present_classes()
        return objects_of_map(
            self.semantic,
            present,
            ids=[k + 1 for k in present],
            labels=present,
            names=[self.classes.names[k] for k in present],
            scores=[None] * len(present),
        )

    def __len__(self) -> int:
        return sum(self.counts().values())

    def __bool__(self) -> bool:
        return True  # a result without objects is still a result

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        parts = [self.path.name] if self.path else []
        parts.append(f"{width}x{height}")
        for task in self.tasks:
            counts = self.counts(task)
            noun = {Task.INSTANCE: "instances", Task.PANOPTIC: "segments", Task.SEMANTIC: "classes"}[Task(task)]
            listed = ", ".join(f"{n} {name}" if task != Task.SEMANTIC else name for name, n in list(counts.items())[:5])
            more = ", ..." if len(counts) > 5 else ""
            parts.append(f"{sum(counts.values())} {noun}" + (f" ({listed}{more})" if counts else ""))
        if self.instances is not None and len(self.instances):
            parts.append(f"scores {self.instances.scores.min():.2f}-{self.instances.scores.max():.2f}")
        return f"Result({', '.join(parts)})"

    # ---- filtering
    def filter(
        self,
        score_threshold: float = 0.0,
        *,
        classes: Iterable[str | int] | None = None,
        min_area: int = 0,
        non_overlapping: bool = False,
        max_overlap: float = 0.5,
    ) -> Result:
        """Return the objects and segments with at least this score and area (pixels), of these classes.

        Args:
            classes: names or indices to keep; None keeps all. Pixels of other classes in the semantic map
                become void (255, or the largest value of its type).
            non_overlapping: see `InstanceResult.without_overlap`; a panoptic map never overlaps.
        """
        allowed = set(range(len(self.classes))) if classes is None else self.classes.indices(classes)
        instances, panoptic, semantic = self.instances, self.panoptic, self.semantic
        if instances is not None:
            keep = (instances.scores >= score_threshold) & np.isin(instances.labels, list(allowed))
            if min_area > 0:
                keep &= instances.areas >= min_area
            instances = instances.select(keep)
            if non_overlapping:
                instances = instances.without_overlap(max_overlap)
        if panoptic is not None:
            panoptic = panoptic.select(
                s
                for s in panoptic.segments
                if s.label in allowed and s.area >= min_area and (s.score is None or s.score >= score_threshold)
            )
        if semantic is not None and classes is not None:
            void = VOID if semantic.dtype == np.uint8 else np.iinfo(semantic.dtype).max
            semantic = np.where(np.isin(semantic, list(allowed)), semantic, void).astype(semantic.dtype)
        return replace(self, instances=instances, panoptic=panoptic, semantic=semantic)

    # ---- drawing
    def draw(
        self,
        task: str = "auto",
        *,
        alpha: float | None = None,
        labels: bool | None = None,
        line_width: float | None = None,
        scale: float = 1.0,
        legend: bool = False,
        caption: str = "",
        color_ids: Sequence[int] | None = None,
    ) -> Image.Image:
        """Draw the segmentation over the image.

        Args:
            task: the part to draw; "auto": the first that the result has of panoptic, instance, semantic.
            alpha: opacity of the fill, 0 (contours only) to 1.
            labels: write class names; None: where they fit, if there are few objects.
            line_width: of contours, in output pixels; None: by the size of image and objects; 0: none.
            scale: size of the output relative to the image; see `visualization.comfortable_scale`.
            legend: add a panel with the classes at the right (makes the image wider).
            caption: text to write below the image (makes it higher).
            color_ids: for each instance the index of its color (video: its track).
        """
        part = self._task(task)
        regions = self._regions(part, color_ids)
        if alpha is None:
            alpha = {Task.INSTANCE: 0.3, Task.PANOPTIC: 0.5, Task.SEMANTIC: 0.55}[part]
        image = visualization.draw_regions(
            self.image, regions, alpha=alpha, line_width=line_width, labels=labels, scale=scale
        )
        if legend:
            image = visualization.add_legend(image, self._legend(part))
        return visualization.add_caption(image, caption) if caption else image

    def _regions(self, task: Task, color_ids: Sequence[int] | None) -> list[visualization.Region]:
        if task is Task.INSTANCE:
            return self._instance_regions(color_ids)
        return self._panoptic_regions() if task is Task.PANOPTIC else self._semantic_regions()

    def _instance_regions(self, color_ids: Sequence[int] | None) -> list[visualization.Region]:
        instances = self.instances
        assert instances is not None
        colors = [color_of(int(i)) for i in (range(len(instances)) if color_ids is None else color_ids)]
        if len(colors) != len(instances):
            raise ValueError(f"{len(colors)} color_ids for {len(instances)} instances")
        names = [f"{name} " for name in instances.names] if len(self.classes) > 1 else [""] * len(instances)
        texts = [f"{name}{score:.2f}" for name, score in zip(names, instances.scores, strict=True)]
        return visualization.regions_from_patches(instances.patches, colors, texts)

    def _panoptic_regions(self) -> list[visualization.Region]:
        assert self.panoptic is not None
        colors, texts, seen = {}, {}, Counter[int]()
        for segment in self.panoptic.segments:
            base = self.classes.colors[segment.label]
            colors[segment.id] = shade_of(base, seen[segment.label]) if segment.is_thing else base
            seen[segment.label] += 1
            texts[segment.id] = segment.name
        return visualization.regions_from_map(self.panoptic.map, colors, texts)

    def _semantic_regions(self) -> list[visualization.Region]:
        assert self.semantic is not None
        present = self.present_classes()
        colors = {k: self.classes.colors[k] for k in present}
        return visualization.regions_from_map(self.semantic, colors, {k: self.classes.names[k] for k in present})

    def _legend(self, task: Task) -> list[tuple[str, Color]]:
        by_name = {name: color for name, color in zip(self.classes.names, self.classes.colors, strict=True)}
        counts = self.counts(task)
        show = {name: f"{name} ({n})" if task is not Task.SEMANTIC and n > 1 else name for name, n in counts.items()}
        if task is Task.INSTANCE:  # each object has its own color, so only the counts matter
            return [(text, (150, 150, 150)) for text in show.values()]
        return [(text, by_name[name]) for name, text in show.items()]

    def _repr_png_(self) -> bytes:  # shown by Jupyter notebooks
        return result_files.encode_image(self.draw())

    # ---- saving
    def to_coco(
        self, image_id: int = 1, task: str = "auto", *, polygons: bool = False, tolerance: float = 0.0
    ) -> list[dict[str, Any]]:
        """Return COCO result records: image_id, category_id, bbox (XYWH), area, score, segmentation.

        They are ready for `json.dump`: segmentations are compressed RLE with text counts. "auto" is that of `counts`
        and `draw`, so that all show the same. A panoptic segment without a score, and a semantic class, gets 1.0.

        `polygons` gives polygons instead, exact ones or simplified by `tolerance` pixels; COCO's have no holes:
        `result_shapes.with_polygons` says what becomes of them.
        """
        rows, rles = self._encoded(self._task(task))
        records = result_files.coco_records(image_id, rows, rles)
        return with_polygons(records, self.objects(task), tolerance) if polygons else records

    def _encoded(self, task: Task) -> tuple[list[tuple[int, float]], list[Rle]]:
        """Return category id and score, and the mask, of each object, segment or class."""
        ids = self.classes.dataset_ids
        if task is Task.INSTANCE:
            instances = self.instances
            assert instances is not None
            rows = [(ids[k], float(s)) for k, s in zip(instances.labels, instances.scores, strict=True)]
            return rows, instances.patches.encode()
        if task is Task.PANOPTIC:
            assert self.panoptic is not None
            rows = [(ids[s.label], 1.0 if s.score is None else float(s.score)) for s in self.panoptic.segments]
            label_map, keys = self.panoptic.map, [segment.id for segment in self.panoptic.segments]
        else:
            assert self.semantic is not None
            label_map, keys = self.semantic, self.present_classes()
            rows = [(ids[k], 1.0) for k in keys]
        regions = encode_label_map(label_map)
        empty = encode_masks(torch.zeros(1, *label_map.shape, dtype=torch.bool))[0]
        return rows, [regions.get(key, empty) for key in keys]

    def save_masks(self, directory: str | os.PathLike[str], stem: str | None = None) -> list[Path]:
        """Write label maps into a directory, one for each part of the result:

        - `<stem>_instances.png`: 16-bit, 0 background, i + 1 for object i (`.tif` of 32 bits beyond 65,535 objects);
        - `<stem>_panoptic.png` and `.json`: COCO panoptic format (id = R + 256 G + 65536 B, segments_info);
        - `<stem>_semantic.png`: class indices, 255 (65535 beyond 255 classes) for no class; up to 255 classes
          with the class colors as palette, so that an image viewer shows them.
        """
        directory, stem = Path(directory).expanduser(), stem or (self.path.stem if self.path else "result")
        written = []
        if self.instances is not None:
            suffix = ".png" if len(self.instances) < 1 << 16 else ".tif"
            path = directory / f"{stem}_instances{suffix}"
            written.append(result_files.write_label_map(path, self.instances.label_map()))
        if self.panoptic is not None:
            info = []
            for segment, record in zip(self.panoptic.segments, self.to_coco(1, Task.PANOPTIC), strict=True):
                entry = {"id": segment.id, "isthing": int(segment.is_thing), "iscrowd": 0}
                info.append(entry | {key: record[key] for key in ("category_id", "bbox", "area", "score")})
            image_entry = result_files.image_record(1, self.path.name if self.path else None, self.size)
            path = directory / f"{stem}_panoptic.png"
            written += result_files.write_panoptic(path, self.panoptic.map, info, image_entry, self.classes)
        if self.semantic is not None:
            image = result_files.semantic_image(self.semantic, self.classes)
            written.append(result_files.write_image(directory / f"{stem}_semantic.png", image))
        return written
