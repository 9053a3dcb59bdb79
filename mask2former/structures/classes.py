"""Names, colors and dataset ids of a model's classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .colors import Color, color_of

VOID = 255  # "no class" in 8-bit semantic maps


@dataclass(frozen=True)
class _Columns:
    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[Color, ...]
    dataset_ids: tuple[int, ...]


class ClassTable(_Columns):
    """Names, colors and ids of the K classes of a model; class k is entry k of each tuple.

    `dataset_ids` are the category ids written to COCO files; k + 1 where the dataset has none.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        is_thing: tuple[bool, ...] = (),
        colors: tuple[Color, ...] = (),
        dataset_ids: tuple[int, ...] = (),
    ) -> None:
        count = len(names)
        for column, entries in (("is_thing", is_thing), ("colors", colors), ("dataset_ids", dataset_ids)):
            if len(entries) not in (0, count):
                raise ValueError(f"{count} class names but {len(entries)} entries in {column}")
        super().__init__(
            names,
            is_thing or (True,) * count,
            colors or tuple(color_of(k) for k in range(count)),
            dataset_ids or tuple(range(1, count + 1)),
        )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def numbered(cls, count: int) -> ClassTable:
        """Build a table for unknown class names: "class 0", "class 1", ..."""
        return cls(tuple(f"class {k}" for k in range(count)))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], count: int) -> ClassTable | None:
        """Build a table from a detectron2 `Metadata.as_dict()`; None if it has no list of exactly `count` names.

        Panoptic datasets list all classes under `stuff_classes`, instance datasets under `thing_classes`.
        """
        tables = [key for key in ("stuff", "thing") if len(metadata.get(f"{key}_classes") or ()) == count]
        if not tables:
            return None
        prefix = tables[0]
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        dataset_id = {k: d for d, k in stuff.items()} if prefix == "stuff" else {}
        dataset_id.update({k: d for d, k in things.items()})
        thing_ids = set(things.values()) if things else set(range(count if prefix == "thing" else 0))
        colors = metadata.get(f"{prefix}_colors") or ()
        return cls(
            names=tuple(str(name) for name in metadata[f"{prefix}_classes"]),
            is_thing=tuple(k in thing_ids for k in range(count)),
            colors=tuple((int(c[0]), int(c[1]), int(c[2])) for c in colors) if len(colors) == count else (),
            dataset_ids=tuple(int(dataset_id[k]) for k in range(count)) if set(range(count)) <= set(dataset_id) else (),
        )

    def indices(self, classes: Iterable[str | int]) -> set[int]:
        """Return the class indices of names or indices; raise ValueError for one that the model does not have."""
        indices = set()
        for item in classes:
            if isinstance(item, str) and item in self.names:
                indices.add(self.names.index(item))
            elif not isinstance(item, str) and 0 <= int(item) < len(self):
                indices.add(int(item))
            else:
                known = ", ".join(self.names[:20]) + (", ..." if len(self) > 20 else "")
                raise ValueError(f"this model has no class {item!r}; its {len(self)} classes are: {known}")
        return indices

    def categories(self) -> list[dict[str, Any]]:
        """Return the `categories` list of a COCO file."""
        rows = zip(self.dataset_ids, self.names, self.is_thing, self.colors, strict=True)
        return [
            {"id": i, "name": name, "supercategory": "", "isthing": int(thing), "color": list(color)}
            for i, name, thing, color in rows
        ]
