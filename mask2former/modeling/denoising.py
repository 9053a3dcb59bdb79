"""Denoising queries: objects of the ground truth, given to the decoder with noise (in training only).

Early in a training, which query an object is matched to changes from step to step. Denoising queries need no matching:
each is made of one object, and learns to give back its class and its mask (DN-DETR, arXiv 2203.01305; for masks, Mask
DINO, arXiv 2206.02777). Its content is the embedding of the class, which may be another class, and in the first layers
it attends inside the mask of the object, with flipped tokens, instead of the mask that it predicts (MP-Former, arXiv
2303.07336).

The E queries of an image are groups that have each object once. Those that are left over, because there are fewer
objects, have no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .device_transfer import to_device
from .ground_truth import GroundTruth
from .matched_pairs import Assignment

# Masks have the stride of the finest level, of whose tokens each is read at 2 x 2 points.
_STRIDE = 8
# Values of masks that are read together.
_CHUNK = 2**26


@dataclass(frozen=True)
class NoisedObjects:
    """What the decoder gets to know of the objects of B images, or clips of T frames.

    No shape depends on the number of objects: code that is compiled once fits every batch.

    Attributes:
        labels: (B, E) int64 in [0, K), with noise.
        blocked: bool (B, E, E), True where a query does not attend to another one: those of other groups, and those
            without an object.
        masks: uint8 (B, E, T, H8, W8), the mask of each query's object, empty without one.
        noise: see `Denoising`.
        mask_layers: see `Denoising`.
    """

    labels: Tensor
    blocked: Tensor
    masks: Tensor
    noise: float
    mask_layers: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, blocked and masks."""
        return self.labels, self.blocked, self.masks

    @property
    def settings(self) -> tuple[float, int]:
        """Return what is no tensor."""
        return self.noise, self.mask_layers

    def with_tensors(self, tensors: Sequence[Tensor]) -> NoisedObjects:
        """Return the same settings with other `tensors`."""
        labels, blocked, masks = tensors
        return replace(self, labels=labels, blocked=blocked, masks=masks)

    def blocked_keys(self, height: int, width: int) -> Tensor:
        """Return where queries do not attend at a level, with noise: bool (B, E, T * height * width).

        A token belongs to an object if any part of it does. As many tokens change to the object as away from it,
        in the mean, so that small objects are not lost in noise, and noise that leaves no token is left out. An object
        that has no token attends everywhere.
        """
        tokens = F.adaptive_max_pool2d(self.masks.flatten(0, 2).float(), (height, width))
        inside = tokens.view(*self.labels.shape, -1) > 0
        if self.noise:
            area = inside.sum(-1, keepdim=True)
            rate = self.noise * torch.rand(self.labels.shape, device=inside.device)[..., None]
            outside_rate = rate * area / (inside.shape[-1] - area).clamp(min=1)
            changed = torch.rand(inside.shape, device=inside.device) < torch.where(inside, rate, outside_rate)
            noised = inside ^ changed
            inside = torch.where(noised.any(-1, keepdim=True), noised, inside)
        return ~inside & inside.any(-1, keepdim=True)


@dataclass(frozen=True)
class Denoising:
    """Settings of denoising queries.

    Attributes:
        queries: E, their number in each image. There are as many groups as fit for the image of a batch with the most
            objects; of more objects than queries, some are drawn.
        label_noise: probability that the class in the content of a query is drawn from all classes.
        mask_noise: largest share of the tokens of an object that change sides in an attention mask. Each query and
            layer draws its share below it.
        mask_layers: how many layers take the mask of the object as their attention mask.
    """

    queries: int
    label_noise: float = 0.2
    mask_noise: float = 0.2
    mask_layers: int = 3

    @torch.no_grad()
    def draw(
        self, truth: GroundTruth, num_classes: int, device: torch.device
    ) -> tuple[NoisedObjects, list[Assignment]]:
        """Make the queries of a batch; waits for nothing.

        Args:
            truth: the objects of B images.
            num_classes: K.
            device: that of the masks.

        Returns:
            What the decoder takes, and the object of each query as it was before the noise: one assignment an image,
            whose `layer` is 0.
        """
        counts = truth.counts
        total = sum(counts)
        objects, group = _slots(counts, self.queries)
        used = objects >= 0
        first = (np.cumsum(counts) - counts)[:, None]
        row = to_device(torch.from_numpy(np.where(used, first + objects, total)), device)
        groups = to_device(torch.from_numpy(group), device)
        labels = torch.cat((truth.all_labels(device), row.new_zeros(1)))[row]
        drawn = torch.randint(num_classes, labels.shape, device=device)
        labels = torch.where(torch.rand(labels.shape, device=device) < self.label_noise, drawn, labels)
        seen = (groups[:, None] == groups) & (row < total)[:, None]
        seen = seen | torch.eye(self.queries, dtype=torch.bool, device=device)  # no query attends to nothing
        masks = _masks(truth, device)[row]
        noised = NoisedObjects(labels, ~seen, masks, self.mask_noise, self.mask_layers)
        queries = [np.flatnonzero(row) for row in used]
        pairs = zip(objects, queries, strict=True)
        return noised, [Assignment(np.zeros_like(query), query, of_image[query]) for of_image, query in pairs]


def _slots(counts: list[int], queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the object of each query in its image (B, E), or -1, and the group of each query (E,)."""
    width = max(1, min(max(counts), queries))
    slot = np.arange(queries)
    complete = slot < queries // width * width
    objects = np.full((len(counts), queries), -1, dtype=np.int64)
    for of_image, count in zip(objects, counts, strict=True):
        members = torch.randperm(count)[:queries].sort().values.numpy() if count > queries else np.arange(count)
        member = slot % width
        taken = complete & (member < len(members))
        of_image[taken] = members[member[taken]]
    return objects, np.where(complete, slot // width, queries + slot)


def _masks(truth: GroundTruth, device: torch.device) -> Tensor:
    """Return the masks of all M objects, then an empty one: uint8 (M + 1, T, H8, W8)."""
    height, width = (2 * -(-side // _STRIDE) for side in truth.size)
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
    points = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).view(1, -1, 2)
    count = sum(truth.counts) * truth.frames
    masks = torch.zeros(count + truth.frames, height // 2, width // 2, dtype=torch.uint8, device=device)
    for index in torch.arange(count, device=device).split(max(1, _CHUNK // (height * width))):
        inside = truth.bank.sample(index, points, truth.size).view(-1, height, width) >= 0.5
        masks[index] = F.max_pool2d(inside.float()[:, None], 2)[:, 0].to(torch.uint8)
    return masks.unflatten(0, (-1, truth.frames))
