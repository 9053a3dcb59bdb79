"""When an image is cut into tiles, and at which scale the network sees them; the results of tiles as one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from .results import Result
from .tiling import Tile, merge_instances, merge_panoptic, merge_semantic, plan_tiles

_SHRUNK = 0.5  # tiles are chosen where the complete image would be seen at less than this fraction of their scale
_DEFAULT_OVERLAP = 0.25
_DEFAULT_EDGE = 1024  # of "auto" with a model that sees images at their own size


@dataclass(frozen=True)
class TileSettings:
    """The tiles of one call.

    Attributes:
        edge: of a tile, in pixels of the image.
        mode: "never", "auto" (where an image needs it) or "always".
        overlap: fraction of the edge that neighbors share.
        resize: of complete images for the network; a tile's edge becomes as long as their shortest edge.
    """

    edge: int
    mode: str
    overlap: float
    resize: T.ResizeShortestEdge

    @classmethod
    def choose(
        cls, cfg: CfgNode | None, tile: int | str | None, overlap: float | None, resize: T.ResizeShortestEdge
    ) -> TileSettings:
        """Take the arguments of `Segmenter.stream`, or those that are saved with the model.

        Raises:
            ValueError: an argument out of range.
        """
        saved = None if cfg is None else cfg.MODEL.MASK_FORMER.TEST.TILES
        edge, share = (0, _DEFAULT_OVERLAP) if saved is None else (int(saved.SIZE), float(saved.OVERLAP))
        if overlap is not None:
            share = overlap
        if tile is None:
            tile = "auto" if edge > 0 else "off"
        if tile == "off":
            mode = "never"
        elif tile == "auto":
            mode, edge = "auto", edge or _network_edge(resize) or _DEFAULT_EDGE
        elif isinstance(tile, int) and not isinstance(tile, bool):
            mode, edge = "always", tile
        else:
            raise ValueError(f"tile must be 'auto', 'off' or a number of pixels, not {tile!r}")
        if mode != "never":
            plan_tiles((edge, edge), edge, share)  # raises for values out of range
        return cls(edge, mode, share, resize)

    @property
    def scale(self) -> float:
        """Return by how much tiles are resized for the network."""
        return _network_edge(self.resize) / self.edge or 1.0

    def possible(self, size: tuple[int, int]) -> bool:
        """Return whether an image (height, width) may be cut and is larger than a tile."""
        return self.mode != "never" and max(size) > self.edge

    def needed(self, size: tuple[int, int]) -> bool:
        """Return whether an image (height, width) is cut without a look at the complete one first."""
        edge = _network_edge(self.resize)
        if not self.possible(size):
            return False
        if self.mode == "always" or not edge:
            return self.mode == "always"
        new_height, _ = self.resize.get_output_shape(*size, edge, self.resize.max_size)
        return bool(new_height / size[0] < _SHRUNK * self.scale)


def _network_edge(resize: T.ResizeShortestEdge) -> int:
    """Return the shortest edge, in pixels, at which the network sees images; 0: they keep their size."""
    return int(np.max(resize.short_edge_length))


def merge_results(array: np.ndarray, tiles: Sequence[Tile], parts: Sequence[Result]) -> Result:
    """Join the results of tiles to that of the image `array` (H, W, 3)."""
    size = (array.shape[0], array.shape[1])
    first = parts[0]
    instances = panoptic = semantic = None
    if first.instances is not None:
        instances = merge_instances(tiles, [part.instances for part in parts if part.instances is not None], size)
    if first.panoptic is not None:
        panoptic = merge_panoptic(tiles, [part.panoptic for part in parts if part.panoptic is not None], size)
    if first.semantic is not None:
        semantic = merge_semantic(tiles, [part.semantic for part in parts if part.semantic is not None], size)
    return Result(array, first.classes, instances, panoptic, semantic)
