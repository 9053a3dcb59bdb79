"""Large images in tiles: where the tiles lie, and how their results become one.

Neighboring tiles share a margin. What two tiles saw there tells which of their objects are one: objects of the same
class whose masks agree where both tiles look. An object that a tile's border cuts off gives way to the complete one of
the neighbor; two that are both cut off are joined. Memory is that of one tile and of the results.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .result_parts import InstanceResult, PanopticResult, Segment
from .structures.classes import VOID
from .structures.mask_list import MaskList, intersection_area
from .structures.masks import Patch, clip_patch

_SAME = 0.5  # fraction of the shared margin's pixels of two objects from which on they are one


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, rows [top, bottom) and columns [left, right).

    `core` is the part of it, in the same order, that no other tile is responsible for: cores partition the image.
    """

    top: int
    bottom: int
    left: int
    right: int
    core: tuple[int, int, int, int]

    @property
    def window(self) -> tuple[slice, slice]:
        """Return rows and columns of the tile."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def core_window(self) -> tuple[slice, slice]:
        """Return rows and columns of the core."""
        return slice(self.core[0], self.core[1]), slice(self.core[2], self.core[3])

    def inside(self, array: np.ndarray) -> np.ndarray:
        """Return the core's part of an array (h, w) of the tile's size."""
        top, bottom, left, right = self.core
        return array[top - self.top : bottom - self.top, left - self.left : right - self.left]

    def shared(self, other: Tile) -> tuple[int, int, int, int] | None:
        """Return top, bottom, left, right of what both tiles cover; None if there is nothing."""
        top, bottom = max(self.top, other.top), min(self.bottom, other.bottom)
        left, right = max(self.left, other.left), min(self.right, other.right)
        return (top, bottom, left, right) if top < bottom and left < right else None


def plan_tiles(size: tuple[int, int], tile: int, overlap: float = 0.25) -> list[Tile]:
    """Cover an image with tiles of `tile` x `tile` pixels that share at least `overlap` of their edge.

    Args:
        size: height and width of the image.
        tile: edge in pixels; tiles are smaller only where the image is.
        overlap: fraction of the edge, at least 0 and below 0.9.

    Raises:
        ValueError: an argument out of range.
    """
    if tile < 16:
        raise ValueError(f"tile must be at least 16 pixels, not {tile}")
    if not 0.0 <= overlap < 0.9:
        raise ValueError(f"overlap must be at least 0 and below 0.9 (of the tile's edge), not {overlap}")
    rows, columns = (_intervals(length, tile, overlap) for length in size)
    return [Tile(a, b, c, d, (*core_y, *core_x)) for (a, b, core_y), (c, d, core_x) in itertools.product(rows, columns)]


def _intervals(length: int, tile: int, overlap: float) -> list[tuple[int, int, tuple[int, int]]]:
    """Return start, stop and core of the tiles along one axis."""
    if length <= tile:
        return [(0, length, (0, length))]
    step = max(1, int(tile * (1 - overlap)))
    count = 1 + -(-(length - tile) // step)
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    middles = [(a + tile + b) // 2 for a, b in itertools.pairwise(starts)]
    bounds = [0, *middles, length]
    return [(start, start + tile, (bounds[i], bounds[i + 1])) for i, start in enumerate(starts)]


def _groups(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each of `count` items the first item of its set; chains of pairs join sets."""
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(rows), bool), (rows[:, 0], rows[:, 1])), shape=(count, count))
    _, sets = connected_components(graph, directed=False)
    _, first, inverse = np.unique(sets, return_index=True, return_inverse=True)
    return [int(first[k]) for k in inverse]


# ------------------------------------------------------------------ instances
def merge_instances(tiles: Sequence[Tile], parts: Sequence[InstanceResult], size: tuple[int, int]) -> InstanceResult:
    """Join the instances of overlapping tiles, best first.

    Args:
        tiles: of `plan_tiles`.
        parts: the instances of each tile, with masks of the tile's size.
        size: height and width of the image.
    """
    patches = [
        Patch(patch.top + tile.top, patch.left + tile.left, patch.bits)
        for tile, part in zip(tiles, parts, strict=True)
        for patch in part.patches
    ]
    owners = np.repeat(np.arange(len(tiles)), [len(part) for part in parts])
    labels = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
    scores = np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)])
    names = [name for part in parts for name in part.names]
    cut = [_is_cut(patch, tiles[k], size) for patch, k in zip(patches, owners.tolist(), strict=True)]

    members: dict[int, list[int]] = {}
    for i, root in enumerate(_groups(len(patches), _same_objects(tiles, patches, owners, labels))):
        members.setdefault(root, []).append(i)
    merged = [_merge(group, patches, scores, cut) for group in members.values()]
    order = sorted(range(len(merged)), key=lambda k: -float(scores[merged[k][0]]))
    best = np.array([merged[k][0] for k in order], dtype=np.int64)
    result = MaskList((merged[k][1] for k in order), size)
    return InstanceResult(result, scores[best], labels[best], tuple(names[i] for i in best))


def _is_cut(patch: Patch, tile: Tile, size: tuple[int, int]) -> bool:
    """Return whether a mask reaches a border of its tile that is not one of the image."""
    height, width = patch.bits.shape
    bottom, right = patch.top + height, patch.left + width
    return bool(patch.bits.size) and (
        (patch.top <= tile.top and tile.top > 0)
        or (patch.left <= tile.left and tile.left > 0)
        or (bottom >= tile.bottom and tile.bottom < size[0])
        or (right >= tile.right and tile.right < size[1])
    )


def _same_objects(
    tiles: Sequence[Tile], patches: Sequence[Patch], owners: np.ndarray, labels: np.ndarray
) -> list[tuple[int, int]]:
    """Return the pairs of instances of different tiles that are one object."""
    by_tile = [np.flatnonzero(owners == k) for k in range(len(tiles))]
    boxes = MaskList(patches, (0, 0)).boxes
    pairs = []
    for a, b in itertools.combinations(range(len(tiles)), 2):
        shared = tiles[a].shared(tiles[b])
        if shared is None:
            continue
        top, bottom, left, right = shared
        seen = {}
        for k in (a, b):
            box = boxes[by_tile[k]]
            near = (box[:, 0] < right) & (box[:, 2] > left) & (box[:, 1] < bottom) & (box[:, 3] > top)
            clipped = {i: clip_patch(patches[i], top, bottom, left, right) for i in by_tile[k][near].tolist()}
            seen[k] = {i: (patch, np.count_nonzero(patch.bits)) for i, patch in clipped.items() if patch.bits.size}
        for i, (first, first_area) in seen[a].items():
            for j, (second, second_area) in seen[b].items():
                common = intersection_area(first, second) if labels[i] == labels[j] else 0
                if common > _SAME * min(first_area, second_area) and common > _SAME**2 * max(first_area, second_area):
                    pairs.append((i, j))
    return pairs


def _merge(
    group: Sequence[int], patches: Sequence[Patch], scores: np.ndarray, cut: Sequence[bool]
) -> tuple[int, Patch]:
    """Return the instance that gives score and class of an object, and the object's mask."""
    complete = [i for i in group if not cut[i]]
    if complete:
        best = max(complete, key=lambda i: float(scores[i]))
        return best, patches[best]
    best = max(group, key=lambda i: float(scores[i]))
    if len(group) == 1:
        return best, patches[best]
    top, left = min(patches[i].top for i in group), min(patches[i].left for i in group)
    bottom = max(patches[i].top + patches[i].bits.shape[0] for i in group)
    right = max(patches[i].left + patches[i].bits.shape[1] for i in group)
    bits = np.zeros((bottom - top, right - left), dtype=bool)
    for i in group:
        patch = patches[i]
        rows, columns = patch.top - top, patch.left - left
        bits[rows : rows + patch.bits.shape[0], columns : columns + patch.bits.shape[1]] |= patch.bits
    return best, Patch(top, left, bits)


# ------------------------------------------------------------------ maps
def merge_panoptic(tiles: Sequence[Tile], parts: Sequence[PanopticResult], size: tuple[int, int]) -> PanopticResult:
    """Join panoptic maps: each pixel comes from the tile whose core has it, things that agree in a margin are one."""
    keys = [(k, segment.id) for k, part in enumerate(parts) for segment in part.segments]
    number = {key: i for i, key in enumerate(keys)}
    segments = [segment for part in parts for segment in part.segments]
    first_stuff: dict[int, int] = {}
    stuff = [(i, segment.label) for i, segment in enumerate(segments) if not segment.is_thing]
    pairs = [(i, first_stuff.setdefault(label, i)) for i, label in stuff]
    for a, b in itertools.combinations(range(len(tiles)), 2):
        shared = tiles[a].shared(tiles[b])
        if shared is not None:
            for x, y in _same_segments(tiles[a], tiles[b], parts[a].map, parts[b].map, shared):
                one, other = number.get((a, x)), number.get((b, y))
                if one is not None and other is not None and segments[one].label == segments[other].label:
                    pairs.append((one, other))
    root_of = _groups(len(keys), pairs)
    roots = sorted(set(root_of))
    new_id = {root: position for position, root in enumerate(roots, 1)}
    ids = np.zeros(size, dtype=np.int32)
    for k, (tile, part) in enumerate(zip(tiles, parts, strict=True)):
        table = np.zeros(max([int(part.map.max(initial=0)), *(s.id for s in part.segments)]) + 1, dtype=np.int32)
        for segment in part.segments:
            table[segment.id] = new_id[root_of[number[k, segment.id]]]
        ids[tile.core_window] = tile.inside(table[part.map])
    return PanopticResult(ids, _segments(ids, new_id, segments, root_of))


def _same_segments(
    a: Tile, b: Tile, map_a: np.ndarray, map_b: np.ndarray, shared: tuple[int, int, int, int]
) -> list[tuple[int, int]]:
    """Return the pairs of ids that agree where both tiles look."""
    top, bottom, left, right = shared
    first = map_a[top - a.top : bottom - a.top, left - a.left : right - a.left].ravel().astype(np.int64)
    second = map_b[top - b.top : bottom - b.top, left - b.left : right - b.left].ravel().astype(np.int64)
    base = int(second.max()) + 1
    both, counts = np.unique(first * base + second, return_counts=True)
    area_a, area_b = np.bincount(first), np.bincount(second)
    pairs = []
    for code, count in zip(both.tolist(), counts.tolist(), strict=True):
        x, y = divmod(code, base)
        areas = int(area_a[x]), int(area_b[y])
        if x and y and count > _SAME * min(areas) and count > _SAME**2 * max(areas):
            pairs.append((x, y))
    return pairs


def _segments(
    ids: np.ndarray, new_id: dict[int, int], segments: Sequence[Segment], root_of: Sequence[int]
) -> tuple[Segment, ...]:
    """Return the segments that have pixels in the merged map; the score is the best of those that were joined."""
    areas = np.bincount(ids.ravel())
    best: dict[int, float] = {}
    for i, segment in enumerate(segments):
        if segment.score is not None:
            best[root_of[i]] = max(best.get(root_of[i], 0.0), segment.score)
    return tuple(
        replace(segments[root], id=number, area=int(areas[number]), score=best.get(root))
        for root, number in new_id.items()
        if number < len(areas) and areas[number]
    )


def merge_semantic(tiles: Sequence[Tile], parts: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Join label maps: each pixel comes from the tile whose core has it."""
    merged = np.full(size, VOID, dtype=parts[0].dtype)
    for tile, part in zip(tiles, parts, strict=True):
        merged[tile.core_window] = tile.inside(part)
    return merged
