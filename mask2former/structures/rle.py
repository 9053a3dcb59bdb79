"""Masks to COCO run-length encoding, many at a time, equal to pycocotools' to the last character.

COCO counts runs down the columns. Where a run starts can be seen without turning a mask on its side: a pixel
that differs from the one above it, or, in the first row, from the last of the column before. Masks are smooth, so
almost all pixels equal the one above, and whole machine words of equal pixels are skipped. All codes of a batch
are then compressed in one go. On a GPU only the few places travel to the host, not the masks.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

Rle = dict[str, Any]  # {"size": [h, w], "counts": str}

_CHUNK_PIXELS = 1 << 26  # 64 MiB of masks at a time bounds memory for hundreds of masks of large images
_WORD = 8  # pixels of one byte in a machine word


def encode_masks(masks: Tensor) -> list[Rle]:
    """Encode binary masks.

    Args:
        masks: (N, h, w), on any device; bool, or numbers of which those above 0.5 count as inside.

    Returns:
        N dicts `{"size": [h, w], "counts": str}`, ready for JSON and for pycocotools.
    """
    if masks.dim() != 3:
        raise ValueError(f"masks must be (N, h, w), got shape {tuple(masks.shape)}")
    if masks.dtype != torch.bool:
        masks = masks > 0.5
    height, width = masks.shape[1:]
    step = max(1, _CHUNK_PIXELS // max(1, height * width))
    rles: list[Rle] = []
    for chunk in masks.split(step) if len(masks) else ():
        changes = _changes_on_host if chunk.device.type == "cpu" else _changes_on_device
        rles.extend(_compress(*_sorted_runs(*changes(chunk), len(chunk), height * width), (height, width)))
    return rles


def _changes_on_host(masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where runs start: (mask, place), both (M,) int64, a place counted down the columns; in no order."""
    pixels = np.ascontiguousarray(masks.numpy()).view(np.uint8)
    count, height, width = pixels.shape
    if not height * width:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    owners, places = [], []
    size = (height - 1) * width
    buffer = np.zeros(-(-size // _WORD) * _WORD, dtype=np.uint8)  # of one mask: it stays in the cache
    words = buffer.view(np.uint64)
    offsets = np.arange(_WORD)
    for number, mask in enumerate(pixels.reshape(count, -1)):
        np.bitwise_xor(mask[width:], mask[:size], out=buffer[:size])
        changed = np.flatnonzero(words != 0)  # five times faster on bool than on words
        near = (changed[:, None] * _WORD + offsets).ravel()
        flat = near[buffer[near] != 0] + width
        row, column = np.divmod(flat, width)
        places.append(column * height + row)
        owners.append(np.full(len(flat), number))
    first = pixels[:, 0].copy()  # of each column: differs from the last pixel of the column before
    first[:, 1:] ^= pixels[:, -1, :-1]
    owner, column = np.nonzero(first)  # before the first column all is outside
    return np.concatenate([*owners, owner]), np.concatenate([*places, column * height])


def _changes_on_device(masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """As `_changes_on_host`, for masks on a GPU: one copy of the places."""
    height = masks.shape[1]
    changed = torch.empty_like(masks)
    changed[:, 1:] = masks[:, 1:] ^ masks[:, :-1]
    changed[:, 0, 1:] = masks[:, 0, 1:] ^ masks[:, -1, :-1]
    changed[:, 0, 0] = masks[:, 0, 0]
    owner, row, column = changed.nonzero().cpu().numpy().T
    return owner, column * height + row


def _sorted_runs(owners: np.ndarray, places: np.ndarray, count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the runs of `count` masks one after the other, and (count + 1,) where each mask's begin."""
    order = np.argsort(owners * pixels + places)
    owners, places = owners[order], places[order]
    number = np.bincount(owners, minlength=count)
    begin = np.concatenate([[0], np.cumsum(number + 1)])  # a mask with M starts has M + 1 runs
    ends = np.full(begin[-1], pixels, dtype=np.int64)
    ends[np.arange(len(places)) + owners] = places
    runs = np.diff(ends, prepend=0)
    runs[begin[1:-1]] = ends[begin[1:-1]]  # the first run of a mask starts at 0
    return runs, begin


def _compress(runs: np.ndarray, begin: np.ndarray, size: tuple[int, int]) -> list[Rle]:
    """COCO's text for runs: 5 bits a character, from the 4th run on the difference to the run before the last.

    Args:
        runs: (R,) int64, runs of all masks one after the other.
        begin: (N + 1,) where the runs of each mask begin, then R.
        size: height and width of the masks.
    """
    values = runs.copy()
    position = np.arange(len(runs)) - np.repeat(begin[:-1], np.diff(begin))
    values[2:] -= np.where(position[2:] > 2, runs[:-2], 0)
    magnitude = np.where(values < 0, ~values, values)
    lengths = np.ones(len(values), dtype=np.int64)
    for bits in range(4, 35, 5):  # n characters hold 5 n bits, the highest of them the sign
        lengths += magnitude >> bits != 0
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(values)), lengths)
    place = np.arange(len(owner)) - np.repeat(ends - lengths, lengths)
    symbols = (values[owner] >> (5 * place)) & 31
    symbols |= np.where(place < lengths[owner] - 1, 32, 0)  # more to come
    text = (symbols + 48).astype(np.uint8).tobytes().decode("ascii")
    cuts = np.concatenate([[0], ends])[begin].tolist()
    return [{"size": list(size), "counts": text[a:b]} for a, b in itertools.pairwise(cuts)]


def encode_label_map(label_map: np.ndarray) -> dict[int, Rle]:
    """Encode each region of equal label of label_map (h, w), integers: label -> RLE, by rising label.

    One pass over the pixels, however many labels there are.
    """
    columns = np.ascontiguousarray(label_map.T).ravel()
    if not columns.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    stops = np.concatenate([starts[1:], [columns.size]])
    labels, owners = np.unique(columns[starts], return_inverse=True)
    inside = stops < columns.size  # a run that reaches the end has nothing behind it
    owners, places = np.concatenate([owners, owners[inside]]), np.concatenate([starts, stops[inside]])
    rles = _compress(*_sorted_runs(owners, places, len(labels), columns.size), label_map.shape)
    return dict(zip(labels.tolist(), rles, strict=True))
