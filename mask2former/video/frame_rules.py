"""The rules that make objects of instances, for tracking frame by frame: which candidates of a frame are followed.

Without them several queries of one object become several tracks, although the same model finds it once in an image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..modeling.device_transfer import to_cpu, to_device
from ..modeling.mask_resizing import Size, resize_masks
from ..objects import ObjectRules
from ..result_parts import InstanceResult
from ..structures.mask_list import MaskList
from ..structures.masks import Patch

# Masks that are resized together hold about this many pixels.
_CHUNK = 2**23


class FrameObjects(NamedTuple):
    """The M objects of a frame.

    Attributes:
        rows: (M,) int64, the candidates that they come from, ascending.
        masks: M masks at the size of the results.
    """

    rows: np.ndarray
    masks: MaskList

    def counts(self) -> list[str]:
        """Return the COCO RLE counts of each mask, "" for an empty one."""
        return [rle["counts"] if area else "" for rle, area in zip(self.masks.encode(), self.masks.areas, strict=True)]


def tracking_rules(rules: ObjectRules) -> ObjectRules | None:
    """Return the rules as tracking follows them, None if they leave all masks as they are.

    The score threshold is that of tracks, whose scores are means over frames. The parts of a mask are never split: they
    have one embedding, so that later frames could not tell them apart.
    """
    components = "all" if rules.components == "split" else rules.components
    changed = replace(rules, score_threshold=0.0, components=components)
    return None if changed == ObjectRules(score_threshold=0.0, max_overlap=changed.max_overlap) else changed


def objects_of_frame(
    scores: np.ndarray,
    logits: Tensor,
    used: np.ndarray,
    rules: ObjectRules,
    padded: Size,
    image: Size,
    output: Size,
) -> FrameObjects:
    """Apply rules to the candidates of one frame.

    Args:
        scores: (N, K) class scores. As in images, the best class x the mean mask probability says which of two
            candidates is the better one.
        logits: (N, H4, W4), before the sigmoid.
        used: (N,) bool, the candidates to look at.
        rules: those of `tracking_rules`.
        padded, image, output: sizes (h, w) of the network's input, of the image in it, and of the results.
    """
    rows = np.flatnonzero(used)
    index = to_device(torch.from_numpy(rows), logits.device)
    chunk = max(1, _CHUNK // max(padded[0] * padded[1], output[0] * output[1]))
    patches: list[Patch] = []
    qualities = [np.zeros(0, np.float32)]
    for start in range(0, len(rows), chunk):
        resized = resize_masks(logits[index[start : start + chunk]].float(), padded, image, output)
        masks = resized > 0
        inside = (resized.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
        qualities.append(to_cpu(inside).numpy())
        patches += MaskList.from_dense(to_cpu(masks).numpy()).patches
    found = InstanceResult(
        MaskList(patches, output),
        scores[rows].max(axis=1, initial=0.0) * np.concatenate(qualities),
        scores[rows].argmax(axis=1),
        tuple(map(str, rows)),  # names go with the objects through all rules, and so tell where they come from
    )
    objects = rules.apply(found)
    return FrameObjects(np.array([int(name) for name in objects.names], dtype=np.int64), objects.patches)
