"""The ops from mask logits to results: PyTorch code against definitions, kernels of a GPU against PyTorch code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.ops import mask_reference, mask_results
from mask2former.ops.mask_results import UNIT, best_classes, binary_masks, panoptic_argmax, resize_masks, resize_rows
from mask2former.structures.masks import boxes_from_masks

Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@st.composite
def sizes(draw: st.DrawFn) -> tuple[tuple[int, int], Sizes]:
    """Draw the size of the logits, and sizes padded, image, output."""
    edges = st.integers(1, 40)
    logits = draw(edges), draw(edges)
    padded = (4 * logits[0], 4 * logits[1]) if draw(st.booleans()) else (draw(edges), draw(edges))
    image = draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))
    output = image if draw(st.booleans()) else (draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    return logits, (padded, image, output)


def random_logits(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = 5 * torch.randn(1, count, 4, 4, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear")[0] + 0.1 * torch.randn(count, *size, generator=generator)


def fraction_changed(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found != expected).double().mean().item()


@given(sizes(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_binary_masks_by_their_definition(shape: Any, seed: int) -> None:
    logits = random_logits(4, shape[0], seed)
    queries = torch.tensor([2, -1, 0, 2])
    values = resize_masks(logits[queries.clamp(min=0)], *shape[1])
    expected = (values > 0) & (queries >= 0)[:, None, None]
    masks, numbers = binary_masks(logits, queries, *shape[1], packed=False)
    packed, again = binary_masks(logits, queries, *shape[1], packed=True)
    assert torch.equal(masks, expected) and torch.equal(numbers, again)
    width = shape[1][2][1]
    assert np.array_equal(np.unpackbits(packed.numpy(), axis=2, count=width, bitorder="little"), expected.numpy())
    assert torch.equal(numbers[:, 0], expected.sum((1, 2)))
    torch.testing.assert_close((numbers[:, 1] / UNIT).float(), (values.sigmoid() * expected).sum((1, 2)))
    filled = numbers[:, 0] > 0
    assert torch.equal(numbers[filled, 2:].float(), boxes_from_masks(expected)[filled])
    assert (numbers[~filled, 2:] == torch.tensor([width, shape[1][2][0], 0, 0])).all()


@given(sizes(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_panoptic_argmax_by_its_definition(shape: Any, seed: int) -> None:
    logits = random_logits(5, shape[0], seed)
    weights = torch.tensor([0.5, -1.0, 0.75, 0.25, 0.0])
    probability = resize_masks(logits, *shape[1]).sigmoid()
    winner = (probability * weights[:, None, None]).argmax(0)
    inside = probability.gather(0, winner[None])[0] >= 0.5
    ids, numbers = panoptic_argmax(logits, weights, *shape[1])
    assert ids.dtype == torch.int32 and torch.equal(ids.long(), torch.where(inside, winner, -1))
    expected = torch.stack([(winner == q).sum() for q in range(5)])
    assert torch.equal(numbers[:, 1], expected)
    assert torch.equal(numbers[:, 2], torch.stack([((winner == q) & inside).sum() for q in range(5)]))
    assert torch.equal(numbers[:, 0], (probability >= 0.5).sum((1, 2)) * (weights >= 0))


@given(sizes(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_best_classes_by_their_definition(shape: Any, seed: int) -> None:
    logits = random_logits(5, shape[0], seed)
    scores = torch.rand(7, 5, generator=torch.Generator().manual_seed(seed))
    sums = torch.einsum("kq,qhw->khw", scores, resize_masks(logits, *shape[1]).sigmoid())
    labels = best_classes(logits, scores, *shape[1])
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(sums.gather(0, labels[None].long())[0], sums.amax(0), atol=1e-5, rtol=0)


@given(sizes(), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60)
def test_rows_are_those_of_the_resized_masks(shape: Any, seed: int, as_probability: bool) -> None:
    logits = random_logits(2, shape[0], seed)
    expected = resize_masks(logits, *shape[1])
    expected = expected.sigmoid() if as_probability else expected
    height = shape[1][2][0]
    step = 1 + seed % height
    bands = [
        resize_rows(logits, *shape[1], begin, min(begin + step, height), as_probability)
        for begin in range(0, height, step)
    ]
    torch.testing.assert_close(torch.cat(bands, 1), expected, atol=1e-5, rtol=1e-5)


def test_chunks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, shape = random_logits(5, (8, 12), 0), ((32, 48), (30, 41), (23, 37))
    weights, queries = torch.tensor([0.5, 0.5, -1.0, 0.7, 0.1]), torch.arange(5)
    whole = *binary_masks(logits, queries, *shape, packed=True), *panoptic_argmax(logits, weights, *shape)
    monkeypatch.setattr(mask_reference, "_CHUNK", 1)
    parts = *binary_masks(logits, queries, *shape, packed=True), *panoptic_argmax(logits, weights, *shape)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_of_equal_queries_the_first_wins_and_half_is_inside() -> None:
    size = (3, 5)
    ids, numbers = panoptic_argmax(torch.zeros(3, *size), torch.tensor([0.25, 0.5, 0.5]), size, size, size)
    assert (ids == 1).all() and numbers.tolist() == [[15, 0, 0], [15, 15, 15], [15, 0, 0]]
    masks, _ = binary_masks(torch.zeros(1, *size), torch.tensor([0]), size, size, size, packed=False)
    assert not masks.any()  # a logit of zero is outside


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 4)}, "logits must be float"),
        ({"logits": torch.zeros(2, 4, 4, dtype=torch.int64)}, "logits must be float"),
        ({"padded": (0, 4)}, "padded must be a size"),
        ({"image": (17, 16)}, r"image \(17, 16\) must lie inside padded"),
        ({"output": (2**17 + 1, 4)}, "at most 4000 masks with edges of at most 131072 pixels"),
        ({"queries": torch.zeros(2)}, "queries must be int64"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 4, 4), "queries": torch.zeros(2, dtype=torch.int64)}
    arguments |= dict.fromkeys(("padded", "image", "output"), (16, 16)) | change
    with pytest.raises(ValueError, match=message):
        binary_masks(**arguments, packed=True)


def test_weights_and_rows_must_fit() -> None:
    size = (4, 4)
    with pytest.raises(ValueError, match="weights must be"):
        panoptic_argmax(torch.zeros(2, *size), torch.zeros(3), size, size, size)
    for scores in (torch.zeros(3), torch.zeros(5, 3), torch.zeros(161, 2), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match=r"scores must be \(K, 2\), of 1 to 160 classes"):
            best_classes(torch.zeros(2, *size), scores, size, size, size)
    with pytest.raises(ValueError, match=r"rows \[2, 5\)"):
        resize_rows(torch.zeros(2, *size), size, size, size, 2, 5)


def test_registration() -> None:
    """Schemas, and shapes of graphs."""
    logits, shape = random_logits(3, (4, 6), 0), ([16, 24], [15, 20], [9, 13])
    ops, tests = torch.ops.mask2former, ("test_schema", "test_faketensor")
    queries = torch.tensor([1, -1])
    for packed in (False, True):
        torch.library.opcheck(ops.binary_masks.default, (logits, queries, *shape, packed), test_utils=tests)
    torch.library.opcheck(ops.panoptic_argmax.default, (logits, torch.ones(3), *shape), test_utils=tests)
    torch.library.opcheck(ops.best_classes.default, (logits, torch.rand(5, 3), *shape), test_utils=tests)
    torch.library.opcheck(ops.resize_rows.default, (logits, *shape, 2, 7, True), test_utils=tests)


# ------------------------------------------------------------------ kernels of a GPU
GPU_SIZES = [
    ((200, 334), ((800, 1336), (800, 1333), (427, 640))),
    ((200, 334), ((800, 1336), (800, 1333), (800, 1333))),
    ((64, 96), ((256, 384), (250, 380), (1500, 2281))),
    ((1, 1), ((4, 4), (3, 1), (77, 300))),
    ((8, 12), ((32, 48), (30, 41), (1, 1))),
    ((40, 7), ((160, 28), (160, 28), (9, 33))),
    ((7, 40), ((7, 40), (7, 40), (7, 40))),
    ((20, 33), ((40, 66), (37, 65), (37, 65))),
    ((30, 50), ((120, 200), (117, 200), (61, 104))),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GPU_SIZES)
def test_kernels_equal_pytorch(shape: Any, dtype: torch.dtype, cuda: str) -> None:
    logits = random_logits(12, shape[0], 3).to(cuda, dtype)
    queries = torch.tensor([3, -1, 0, 11, 3], device=cuda)
    for packed in (False, True):
        masks, numbers = binary_masks(logits, queries, *shape[1], packed=packed)
        expected, counts = mask_reference.binary_masks(logits, queries, *shape[1], packed)
        assert masks.dtype == expected.dtype and fraction_changed(masks, expected) <= 1e-5
        torch.testing.assert_close(numbers[:, 0], counts[:, 0], atol=2, rtol=1e-5)
        torch.testing.assert_close(numbers[:, 1] / UNIT, counts[:, 1] / UNIT, atol=2, rtol=1e-5)
        torch.testing.assert_close(numbers[:, 2:], counts[:, 2:], atol=1, rtol=0)
    weights = torch.linspace(1, -0.2, 12, device=cuda)
    ids, numbers = panoptic_argmax(logits, weights, *shape[1])
    expected, counts = mask_reference.panoptic_argmax(logits, weights, *shape[1])
    assert fraction_changed(ids, expected) <= 1e-5
    torch.testing.assert_close(numbers, counts, atol=2, rtol=1e-5)
    height = shape[1][2][0]
    begin, end = height // 3, height - height // 4
    for as_probability in (False, True):
        rows = resize_rows(logits, *shape[1], begin, end, as_probability)
        expected = mask_reference.resize_rows(logits, *shape[1], begin, end, as_probability)
        torch.testing.assert_close(rows, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [1, 16, 65, 100])
@pytest.mark.parametrize("classes", [1, 19, 80, 133, 160])
@pytest.mark.parametrize("shape", GPU_SIZES)
def test_best_classes_equal_pytorch(shape: Any, classes: int, queries: int, cuda: str) -> None:
    """Where two sums are nearer than rounding either class is right."""
    logits = random_logits(queries, shape[0], 5).to(cuda)
    scores = (3 * torch.randn(queries, classes + 1, generator=torch.Generator().manual_seed(6))).softmax(1)
    scores = scores[:, :-1].T.to(cuda)
    labels = best_classes(logits, scores, *shape[1])
    expected = mask_reference.best_classes(logits, scores, *shape[1])
    assert labels.dtype == expected.dtype and fraction_changed(labels, expected) <= 1e-5
    sums = torch.einsum("kq,qhw->khw", scores.double(), resize_masks(logits.double(), *shape[1]).sigmoid())
    missed = sums.amax(0) - sums.gather(0, labels[None].long())[0]
    assert float(missed.max()) < 1e-5 * max(1.0, float(sums.max()))


@pytest.mark.gpu
def test_best_of_equal_classes_is_the_first(cuda: str) -> None:
    size = (5, 40)
    scores = torch.zeros(133, 3, device=cuda)
    scores[[9, 17, 70]] = 0.5
    labels = best_classes(torch.ones(3, *size, device=cuda), scores, size, size, size)
    assert (labels == 9).all()
    scores[[9, 17]] = 0.25
    assert (best_classes(torch.ones(3, *size, device=cuda), scores, size, size, size) == 70).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*GPU_SIZES[:3], *GPU_SIZES[-2:]])
def test_queries_without_a_finite_logit_add_nothing_to_classes(shape: Any, cuda: str) -> None:
    """Where interpolation meets a weight of zero, too."""
    logits = random_logits(5, shape[0], 7).to(cuda)
    scores = torch.rand(9, 5, generator=torch.Generator().manual_seed(8)).to(cuda)
    expected = best_classes(logits[:4], scores[:, :4], *shape[1])
    logits[4] = -torch.inf
    assert torch.equal(best_classes(logits, scores, *shape[1]), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SIZES)
def test_best_classes_repeat_to_the_last_bit(shape: Any, cuda: str) -> None:
    logits = random_logits(70, shape[0], 9).to(cuda)
    scores = torch.rand(133, 70, generator=torch.Generator().manual_seed(10)).to(cuda)
    assert torch.equal(best_classes(logits, scores, *shape[1]), best_classes(logits, scores, *shape[1]))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SIZES)
def test_kernels_repeat_to_the_last_bit(shape: Any, cuda: str) -> None:
    logits, queries = random_logits(12, shape[0], 4).to(cuda), torch.arange(12, device=cuda)
    first = *binary_masks(logits, queries, *shape[1], packed=True), *panoptic_argmax(logits, queries / 12, *shape[1])
    again = *binary_masks(logits, queries, *shape[1], packed=True), *panoptic_argmax(logits, queries / 12, *shape[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_kernels_of_many_and_of_no_masks(cuda: str) -> None:
    size = (4, 4)
    most = mask_results.MAX_MASKS
    ids, numbers = panoptic_argmax(torch.ones(most, *size, device=cuda), torch.ones(most, device=cuda), *3 * [size])
    assert not ids.any() and numbers[0].tolist() == [16, 16, 16] and numbers[-1].tolist() == [16, 0, 0]
    none = torch.zeros(0, *size, device=cuda)
    ids, numbers = panoptic_argmax(none, none[:, 0, 0], *3 * [size])
    assert (ids == -1).all() and numbers.shape == (0, 3)
    masks, numbers = binary_masks(none, torch.zeros(0, dtype=torch.int64, device=cuda), *3 * [size], packed=True)
    assert masks.shape == (0, 4, 1) and numbers.shape == (0, 6)


@pytest.mark.gpu
def test_offsets_beyond_two_billion_pixels(cuda: str) -> None:
    logits = torch.full((9, 2, 2), -1.0, device=cuda)
    logits[-1] = 1.0
    size = (16000, 16001)
    masks, numbers = binary_masks(logits, torch.arange(9, device=cuda), (8, 8), (8, 8), size, packed=False)
    assert masks[-1, -1, -1] and not masks[0].any() and numbers[:, 0].tolist() == [*8 * [0], size[0] * size[1]]
