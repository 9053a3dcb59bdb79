"""Batches on their way from a data worker: all tensors in one buffer.

PyTorch sends each tensor in shared memory of its own, which costs a connection between the processes: 80 of them, of a
batch of 16 samples, take the receiving process longer than their bytes.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor
from torch.utils.data import get_worker_info

from ..structures.mask_bits import MaskBits

_ALIGNMENT = 64  # bytes; at least the size of any element, so that a part of the buffer can be viewed as its type


class _Place(NamedTuple):
    """Where a tensor is in the buffer."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.dtype.itemsize * math.prod(self.shape)


Part = Callable[[Tensor, _Place], Tensor]  # what makes the tensor at a place of the buffer


class PackedBatch:
    """A list of samples, taken apart into a pickle and a buffer with the elements of all CPU tensors.

    Other tensors, those that require a gradient and expanded ones are pickled as PyTorch does between processes. It is
    read like the list, for programs that give `collate` to a loader of their own.

    Args:
        content: the pickle.
        buffer: uint8 (bytes,).
        for_model: whether only a model reads the samples: then the buffer is pinned in one piece, and they are views of
            it. Whoever copies or saves a view gets all of the buffer.
        pinned: whether the buffer is pinned.
    """

    def __init__(self, content: bytes, buffer: Tensor, for_model: bool = False, pinned: bool = False) -> None:
        self._content = content
        self._buffer = buffer
        self._for_model = for_model
        self._pinned = pinned

    @classmethod
    def of(cls, samples: list[Any], for_model: bool = False) -> PackedBatch:
        """Take samples apart."""
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(samples)
        buffer = _shared(pickler.end)
        for place, tensor in pickler.tensors:
            _view(buffer, place).copy_(tensor)
        return cls(file.getvalue(), buffer, for_model)

    @functools.cached_property  # what PyTorch has pickled can be received once
    def samples(self) -> list[Any]:
        """Return the samples; their tensors are in the buffer."""
        # Not for pinned memory: PyTorch knows by the storage which memory a copy to a GPU still reads.
        return self._unpickled(_view if self._pinned else _own)

    def _unpickled(self, part: Part) -> list[Any]:
        samples: list[Any] = _Unpickler(self._content, self._buffer, part).load()
        return samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "samples"}

    def pin_memory(self, device: Any = None) -> list[Any] | PackedBatch:
        """Return the batch in pinned memory, as a DataLoader asks for it: each tensor by itself, but for a model."""
        if self._for_model:
            return PackedBatch(self._content, self._buffer.pin_memory(), for_model=True, pinned=True)
        return self._unpickled(lambda buffer, place: _view(buffer, place).pin_memory())


def collate(samples: list[Any], for_model: bool = False) -> list[Any] | PackedBatch:
    """Return what leaves a worker of a loader, or, without workers, the samples."""
    return samples if get_worker_info() is None else PackedBatch.of(samples, for_model)


def collate_with_bits(samples: list[Any]) -> list[Any] | PackedBatch:
    """Do what `collate` does for a model, with `MaskBits` for the masks of the ground truth."""
    return collate(with_bits(samples), for_model=True)


def with_bits(samples: list[Any]) -> list[Any]:
    """Return samples with `MaskBits` for the masks of the ground truth, as a model with `reads_mask_bits` gets them."""
    return [_with_mask_bits(sample) for sample in samples]


def _with_mask_bits(sample: Any) -> Any:
    """Return the sample with bits for bool masks (N, H, W); those of the frames of a clip may be `BitMasks`.

    Samples and instances of derived classes stay as they are: a copy could lose what they add.
    """
    instances = sample.get("instances") if type(sample) is dict else None
    if isinstance(instances, Instances):
        return {**sample, "instances": _with_bits(instances)}
    if isinstance(instances, (list, tuple)) and all(isinstance(each, Instances) for each in instances):
        return {**sample, "instances": [_with_bits(each, in_clip=True) for each in instances]}
    return sample


def _with_bits(instances: Instances, in_clip: bool = False) -> Instances:
    masks, kind = instances.get_fields().get("gt_masks"), MaskBits
    if in_clip and type(masks) is BitMasks:
        masks, kind = masks.tensor, _BitsOfBitMasks
    if type(instances) is not Instances or not _is_plain(masks) or masks.dtype != torch.bool or masks.dim() != 3:
        return instances
    return _with_masks(instances, kind.of(masks))


def _with_masks(instances: Instances, masks: Any) -> Instances:
    return Instances(instances.image_size, **(instances.get_fields() | {"gt_masks": masks}))


class _BitsOfBitMasks(MaskBits):
    """Bits of `BitMasks`, which `BitBatches` makes of them again."""


class BitBatches:
    """Iterator of batches as the mapper made them, over one whose masks are bits.

    Attributes:
        packed: the iterator whose masks are bits, for the model.
    """

    def __init__(self, packed: Iterator[list[Any]]) -> None:
        self.packed = packed

    def __iter__(self) -> BitBatches:
        return self

    def __next__(self) -> list[Any]:
        return [_without_mask_bits(sample) for sample in next(self.packed)]


def _without_mask_bits(sample: Any) -> Any:
    instances = sample.get("instances") if type(sample) is dict else None
    if isinstance(instances, Instances):
        return {**sample, "instances": _without_bits(instances)}
    if isinstance(instances, list):
        return {**sample, "instances": [_without_bits(each) for each in instances]}
    return sample


def _without_bits(instances: Any) -> Any:
    bits = instances.get_fields().get("gt_masks") if type(instances) is Instances else None
    if not isinstance(bits, MaskBits):
        return instances
    masks = bits.unpacked().contiguous()
    return _with_masks(instances, BitMasks(masks) if isinstance(bits, _BitsOfBitMasks) else masks)


def _shared(size: int) -> Tensor:
    """Return `size` bytes of shared memory, which the other process gets without a copy."""
    # What the default collation of PyTorch takes, for the same reason.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


class _Pickler(ForkingPickler):
    """Leaves CPU tensors out, and plans the places of their elements: `tensors` with theirs, up to byte `end`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[_Place, Tensor]] = []
        self.end = 0

    # Not `persistent_id`, which is asked about every number of an annotation, too.
    def reducer_override(self, value: Any) -> Any:
        if not _is_plain(value):
            return NotImplemented
        place = _Place(self.end, value.dtype, tuple(value.shape))
        self.tensors.append((place, value))
        self.end = -(-(self.end + value.nbytes) // _ALIGNMENT) * _ALIGNMENT
        return _Place, tuple(place)


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, buffer: Tensor, part: Part) -> None:
        super().__init__(io.BytesIO(content))
        self._buffer = buffer
        self._part = part

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self._tensor if found is _Place else found

    def _tensor(self, *place: Any) -> Tensor:
        return self._part(self._buffer, _Place(*place))


def _view(buffer: Tensor, place: _Place) -> Tensor:
    return buffer[place.start : place.end].view(place.dtype).view(place.shape)


def _own(buffer: Tensor, place: _Place) -> Tensor:
    """Return the part of the buffer as a storage of its own, so that copying and saving it takes its bytes alone.

    `torch.save` would refuse views of one storage that have several types.
    """
    storage = buffer.untyped_storage()[place.start : place.end]
    return torch.empty(0, dtype=place.dtype).set_(storage).view(place.shape)


def _is_plain(value: Any) -> bool:
    return (
        type(value) is Tensor
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not (value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg())
        and value.nbytes <= value.untyped_storage().nbytes()  # an expanded one would grow
    )
