"""Batches arrive as they were sent, in one buffer."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.data.batch_transport import PackedBatch
from mask2former.errors import BadRecordError

DTYPES = (torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.float32, torch.int64, torch.complex128)


def sent(samples: list[Any]) -> list[Any]:
    """Return the samples as the other process gets them."""
    return pickle.loads(pickle.dumps(PackedBatch.of(samples))).samples


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)), max_size=9), st.booleans())
def test_tensors_of_any_type_and_shape(parts: list[tuple[torch.dtype, list[int]]], transposed: bool) -> None:
    tensors = [torch.randint(0, 2, shape).to(dtype) for dtype, shape in parts]
    if transposed:
        tensors = [tensor.movedim(0, -1) if tensor.dim() else tensor for tensor in tensors]
    found = sent([{"tensors": tensors}])[0]["tensors"]
    for ours, theirs in zip(found, tensors, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_all_tensors_are_in_one_buffer_and_each_is_copied_by_itself() -> None:
    sample = {"image": torch.rand(3, 40, 50), "mask": torch.rand(40, 50) > 0.5, "again": torch.arange(3)}
    batch = pickle.loads(pickle.dumps(PackedBatch.of([sample, sample | {"image": torch.rand(3, 4, 5)}])))
    start, end = batch._buffer.data_ptr(), batch._buffer.data_ptr() + batch._buffer.nbytes
    found = batch.samples
    assert all(start <= tensor.data_ptr() < end for each in found for tensor in each.values())
    assert copy.deepcopy(found[1]["image"]).untyped_storage().nbytes() == 3 * 4 * 5 * 4
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    for again, each in zip(torch.load(file), found, strict=True):
        assert all(torch.equal(again[name], tensor) for name, tensor in each.items())


def test_what_samples_are_made_of() -> None:
    masks = torch.rand(2, 3, 5) > 0.5
    instances = Instances((3, 5), gt_boxes=Boxes(torch.rand(2, 4)), gt_masks=masks)
    samples = [{"image": masks[0], "instances": instances, "again": masks, "map": np.arange(3), "name": "a"}, None]
    first, second = sent(samples)
    assert second is None and first["name"] == "a" and first["map"].tolist() == [0, 1, 2]
    assert torch.equal(first["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert first["instances"].image_size == (3, 5) and torch.equal(first["image"], masks[0])
    assert first["again"].data_ptr() == first["instances"].gt_masks.data_ptr()  # once in the buffer


def test_errors_of_records_arrive() -> None:
    (error,) = sent([BadRecordError("a.json", "is wrong", "annotation 3")])
    assert isinstance(error, BadRecordError) and str(error) == str(BadRecordError("a.json", "is wrong", "annotation 3"))


@pytest.mark.parametrize("kind", ["gradient", "parameter", "sparse"])
def test_tensors_that_are_more_than_their_elements(kind: str) -> None:
    value: Any = torch.arange(4.0)
    if kind == "gradient":
        value = value.requires_grad_()
    elif kind == "parameter":
        value = torch.nn.Parameter(value)
    else:
        value = value.to_sparse()
    (found,) = sent([value])
    assert type(found) is type(value) and found.requires_grad == value.requires_grad
    assert torch.equal(found.to_dense().detach(), torch.arange(4.0))


def test_an_expanded_tensor_does_not_grow() -> None:
    wide = torch.rand(1, 4, 5).expand(1000, -1, -1)
    assert PackedBatch.of([wide])._buffer.nbytes == 0
    assert torch.equal(sent([wide])[0], wide)


def test_numbers_cost_no_call_each() -> None:
    calls = 0

    def count(frame: Any, event: str, value: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sample = {"image": torch.rand(3, 4, 5), "annotations": [{"segmentation": [float(i) for i in range(10_000)]}]}
    sys.setprofile(count)
    try:
        PackedBatch.of([sample])
    finally:
        sys.setprofile(None)
    assert calls < 1000


@pytest.mark.parametrize("for_model", [True, False])
def test_only_batches_for_a_model_are_pinned_in_one_piece(monkeypatch: pytest.MonkeyPatch, for_model: bool) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    sample = {"image": torch.rand(3, 4, 5), "count": torch.tensor(3)}
    batch = pickle.loads(pickle.dumps(PackedBatch.of([sample], for_model))).pin_memory()
    assert all(torch.equal(tensor, sample[name]) for name, tensor in batch[0].items())
    assert len(pinned) == (1 if for_model else 2)
    assert {tensor.untyped_storage().data_ptr() for tensor in batch[0].values()} == {
        tensor.data_ptr() for tensor in pinned
    }


@pytest.mark.gpu
@pytest.mark.parametrize("for_model", [True, False])
def test_a_pinned_batch(for_model: bool) -> None:
    samples = [{"image": torch.rand(3, 4, 5), "count": torch.tensor(3)}]
    batch = PackedBatch.of(samples, for_model).pin_memory()
    assert all(tensor.is_pinned() and torch.equal(tensor, samples[0][name]) for name, tensor in batch[0].items())
