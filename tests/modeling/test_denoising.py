"""Denoising queries: which object each one has, the noise, their losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.denoising import Denoising, NoisedObjects
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.outputs import mask_logits
from mask2former.modeling.point_sampling import sample_maps, uncertain_points

from .tiny_models import NoHostReads

CPU, K, SIZE = torch.device("cpu"), 4, (32, 64)


def make_targets(*counts: int, frames: int | None = None) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    shape = SIZE if frames is None else (frames, *SIZE)
    return [
        {"labels": torch.randint(K, (n,), generator=g), "masks": torch.rand(n, *shape, generator=g) > 0.5}
        for n in counts
    ]


def draw(targets: list[dict[str, Any]], *settings: Any) -> tuple[NoisedObjects, list[Any]]:
    return Denoising(*settings).draw(GroundTruth.of(targets, CPU), K, CPU)


def test_groups_have_each_object_once() -> None:
    targets = make_targets(3, 1, 0)
    noised, queries = draw(targets, 7, 0.0, 0.0)
    assert [q.query.tolist() for q in queries] == [[0, 1, 2, 3, 4, 5], [0, 3], []]
    assert [q.target.tolist() for q in queries] == [[0, 1, 2, 0, 1, 2], [0, 0], []]
    assert (noised.masks.flatten(2).sum(2) > 0).tolist() == [
        [True] * 6 + [False],
        [True, False, False] * 2 + [False],
        [False] * 7,
    ]
    assert torch.equal(noised.masks[0, :3], noised.masks[0, 3:6])
    assert torch.equal(noised.labels[0, :6], targets[0]["labels"].repeat(2))
    assert torch.equal(noised.labels[1, [0, 3]], targets[1]["labels"].repeat(2))
    seen = (~noised.blocked).int()
    group = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.ones(1, 1)).int()
    assert torch.equal(seen[0], group)
    assert torch.equal(
        seen[1] - torch.eye(7).int(),
        group * torch.tensor([1, 0, 0, 1, 0, 0, 0]) - torch.diag(torch.tensor([1, 0, 0, 1, 0, 0, 0])).int(),
    )
    assert torch.equal(seen[2], torch.eye(7).int())


def test_of_more_objects_than_queries_some_are_drawn() -> None:
    targets = make_targets(9, 2)
    torch.manual_seed(0)
    drawn = [draw(targets, 4, 0.0, 0.0) for _ in range(30)]
    chosen = [queries[0].target.tolist() for _, queries in drawn]
    assert all(len(set(c)) == 4 and c == sorted(c) for c in chosen)
    assert {i for c in chosen for i in c} == set(range(9))
    assert all(queries[1].target.tolist() == [0, 1] for _, queries in drawn)
    torch.manual_seed(0)
    assert draw(targets, 4, 0.0, 0.0)[1][0].target.tolist() == chosen[0]


def test_nothing_waits_for_the_device() -> None:
    truth = GroundTruth.of(make_targets(9, 2, 0), CPU)
    with NoHostReads():
        noised, _ = Denoising(4, 0.5, 0.5).draw(truth, K, CPU)
        noised.blocked_keys(2, 4)


def test_classes_are_replaced_with_the_given_probability() -> None:
    targets = make_targets(50)
    torch.manual_seed(0)
    before = targets[0]["labels"].repeat(40)
    after = draw(targets, 2000, 0.4, 0.0)[0].labels[0]
    changed = float((before != after).float().mean())
    assert changed == pytest.approx(0.4 * (K - 1) / K, abs=0.04)  # a replaced class may be drawn again
    assert after.min() == 0 and after.max() == K - 1


def test_masks_without_noise_are_those_of_the_objects() -> None:
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :16, :32] = True
    masks[1, 20:24, 40:44] = True  # one sixteenth of a token at stride 16
    noised, _ = draw([{"labels": torch.tensor([0, 1, 2]), "masks": masks}], 4, 0.0, 0.0)
    for stride in (8, 16, 32):
        size = SIZE[0] // stride, SIZE[1] // stride
        inside = F.max_pool2d(masks[:2].float()[:, None], stride)[:, 0] > 0
        blocked = noised.blocked_keys(*size)
        assert torch.equal(blocked[0, :2], ~inside.flatten(1))
        assert not blocked[0, 2:].any(), "an empty mask, and a query without an object, attend everywhere"


def test_masks_of_clips_follow_their_frames() -> None:
    targets = make_targets(2, 1, frames=3)
    noised, _ = draw(targets, 4, 0.0, 0.0)
    for image, row in ((0, 0), (0, 1), (1, 0)):
        frames = targets[image]["masks"][row].float()[:, None]
        # read at stride 4 in the middle of four pixels, bilinearly
        read = F.avg_pool2d(frames[..., 1:-1, 1:-1], 2, 4) >= 0.5
        expected = F.max_pool2d(read.float(), 2).flatten() == 0  # the four points of a token
        assert torch.equal(noised.blocked_keys(SIZE[0] // 8, SIZE[1] // 8)[image, row], expected)


def test_noise_moves_as_many_tokens_in_as_out() -> None:
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, :, :64] = True
    masks[1, :16, :16] = True  # 4 of 256 tokens
    noised, _ = draw([{"labels": torch.tensor([0, 1]), "masks": masks}], 2000, 0.0, 0.5)
    torch.manual_seed(0)
    open_tokens = ~noised.blocked_keys(16, 16)[0]
    inside = masks[:, 4::8, 4::8].flatten(1).repeat(1000, 1)
    for row, area in ((0, 128), (1, 4)):
        part, of_object = open_tokens[row::2], inside[row::2]
        left = float((~part & of_object).sum(1).float().mean()) / area
        joined = float((part & ~of_object).sum(1).float().mean()) / area
        assert left == pytest.approx(0.25, abs=0.03) and joined == pytest.approx(0.25, abs=0.03)  # half of the largest


@pytest.mark.parametrize("frames", [None, 2])
def test_losses_without_noise_equal_those_by_hand(frames: int | None) -> None:
    """Two groups of two objects, and one object in the other image: six pairs, in the order of images and layers."""
    g = torch.Generator().manual_seed(1)
    targets, queries, layers, points = make_targets(2, 1, frames=frames), 5, 3, 64
    features = torch.randn(2, frames or 1, 8, 8, 16, generator=g)
    steps = [
        {
            "pred_logits": torch.randn(2, queries, K + 1, generator=g),
            "pred_masks": mask_logits(torch.randn(2, queries, 8, generator=g), features),
        }
        for _ in range(layers)
    ]
    outputs = {**steps[0], "aux_outputs": steps[1:]}
    _, objects = draw(targets, queries, 0.0, 0.0)
    criterion = SetCriterion(K, HungarianMatcher(), {}, 0.1, num_points=points, importance_sample_ratio=0.0)
    torch.manual_seed(5)
    losses = criterion.denoising_losses(outputs, targets, objects)

    pairs = [(0, 0, 0), (0, 1, 1), (0, 2, 0), (0, 3, 1), (1, 0, 0), (1, 2, 0)]  # image, query, object
    order = [(layer, *pair) for image in (0, 1) for layer in range(layers) for pair in pairs if pair[0] == image]
    logits = torch.stack([steps[layer]["pred_masks"][b, q] for layer, b, q, _ in order])  # (M, T, h, w)
    masks = torch.stack([targets[b]["masks"][n].view(-1, *SIZE) for _, b, _, n in order]).float()
    torch.manual_seed(5)
    drawn = uncertain_points(logits.flatten(0, 1), points, 3.0, 0.0)
    x = sample_maps(logits.flatten(0, 1)[:, None], drawn)[:, 0]
    t = sample_maps(masks.flatten(0, 1)[:, None], drawn)[:, 0]
    p = x.sigmoid()
    by_pair = {
        "ce": torch.stack(
            [-steps[layer]["pred_logits"][b, q].log_softmax(-1)[targets[b]["labels"][n]] for layer, b, q, n in order]
        ),
        "mask": -(t * p.log() + (1 - t) * (1 - p).log()).mean(1).view(len(order), -1).sum(1),
        "dice": (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).view(len(order), -1).sum(1),
    }
    assert len(losses) == 3 * layers
    for layer in range(layers):
        chosen = torch.tensor([index for index, pair in enumerate(order) if pair[0] == layer])
        for name, values in by_pair.items():
            key = f"loss_denoising_{name}" + (f"_{layer}" if layer else "")
            torch.testing.assert_close(losses[key], values[chosen].sum() / len(pairs), rtol=1e-4, atol=1e-5)


def test_without_deep_supervision_the_last_prediction_has_losses() -> None:
    step = {"pred_logits": torch.zeros(1, 2, K + 1), "pred_masks": torch.zeros(1, 2, 8, 16)}
    targets = make_targets(1)
    criterion = SetCriterion(K, HungarianMatcher(), {}, 0.1, num_points=8, deep_supervision=False)
    losses = criterion.denoising_losses({**step, "aux_outputs": [step]}, targets, draw(targets, 2, 0.0, 0.0)[1])
    assert list(losses) == ["loss_denoising_ce", "loss_denoising_mask", "loss_denoising_dice"]
    torch.testing.assert_close(losses["loss_denoising_ce"], torch.tensor(5.0).log())
