"""Matched pairs of queries and objects: as they are found on the CPU, and as the losses index with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .device_transfer import to_device, to_device_together


@dataclass
class Assignment:
    """Matched pairs of one image: `layer`, `query` and `target` are (M,) int64 arrays on the CPU."""

    layer: np.ndarray
    query: np.ndarray
    target: np.ndarray

    def repeated(self, layers: int) -> Assignment:
        """Return the pairs of one prediction as those of each of `layers` predictions."""
        layer = np.repeat(np.arange(layers), len(self.query))
        return Assignment(layer, np.tile(self.query, layers), np.tile(self.target, layers))


@dataclass
class Pairs:
    """The M matched pairs of L predictions of B images: image by image, layer by layer, in the order of the queries.

    Attributes:
        layer: (M,) int64, on the device of the predictions, as all tensors here.
        position: (M,) int64 indices of the queries in the predictions (L, B, Q), flattened.
        object: (M,) int64 indices of the objects among those of all images.
        sizes: number of pairs of each image.
    """

    layer: Tensor
    position: Tensor
    object: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, assignments: Sequence[Assignment], counts: Sequence[int], queries: int, device: torch.device) -> Pairs:
        """Build from assignments on the CPU.

        Args:
            assignments: one for each image.
            counts: number of objects of each image.
            queries: Q.
            device: that of the predictions.
        """
        sizes = [len(pairs.query) for pairs in assignments]
        image = np.repeat(np.arange(len(sizes)), sizes)
        layer, query, target = (
            np.concatenate([getattr(pairs, name) for pairs in assignments]) for name in ("layer", "query", "target")
        )
        table = np.stack(((layer * len(sizes) + image) * queries + query, _first(counts)[image] + target, layer))
        position, objects, layers = to_device(torch.from_numpy(table.astype(np.int64)), device)
        return cls(layers, position, objects, sizes)

    @classmethod
    def of_solution(cls, solution: Tensor, counts: Sequence[int], queries: int) -> Pairs:
        """Build from an assignment on a device, without waiting for it.

        Args:
            solution: (B, L, N) int64, the query of each object, or -1, as `ops.linear_assignment` gives it: where an
                image has more objects than queries, each query has one.
            counts: number of objects of each image, at most N.
            queries: Q.
        """
        images, layers, width = solution.shape
        matched = np.minimum(counts, queries)
        # The matched objects of a prediction come first, in the order of their queries, as SciPy gives them.
        query, target = solution.masked_fill(solution < 0, queries).sort(-1)
        each = np.repeat(matched, layers)
        prediction = np.repeat(np.arange(images * layers), each)  # image by image, layer by layer
        rank = np.arange(len(prediction)) - np.repeat(np.cumsum(each) - each, each)
        image, layer = prediction // layers, prediction % layers
        columns = (prediction * width + rank, (layer * images + image) * queries, _first(counts)[image], layer)
        index, start, first, layer_of = to_device_together([torch.from_numpy(c) for c in columns], solution.device)
        return cls(
            layer_of,
            start + query.flatten().index_select(0, index),
            first + target.flatten().index_select(0, index),
            (matched * layers).tolist(),
        )


def _first(counts: Sequence[int]) -> np.ndarray:
    """Return the index of the first object of each image."""
    return np.cumsum(counts, dtype=np.int64) - counts
