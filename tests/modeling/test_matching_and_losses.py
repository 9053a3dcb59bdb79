"""Matcher and criterion: against brute force, and in the situations that crash other implementations."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling import criterion as criterion_module
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import (
    HungarianMatcher,
    batch_dice_loss,
    batch_sigmoid_ce_loss,
    losses_of_halves,
    parts_of,
    products_in_parts,
)
from mask2former.modeling.outputs import mask_logits
from mask2former.modeling.point_sampling import Predictions

CPU = torch.device("cpu")
B, Q, K, C, T, LAYERS = 2, 6, 4, 8, 1, 3
SIZE = (32, 40)


def make_outputs(seed: int = 0, frames: int = T) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(B, frames, C, 8, 10, generator=g, requires_grad=True)
    steps = [
        {
            "pred_logits": torch.randn(B, Q, K + 1, generator=g, requires_grad=True),
            "pred_embeds": torch.randn(B, Q, C, generator=g, requires_grad=True),
        }
        for _ in range(LAYERS)
    ]
    return {**steps[0], "mask_features": features, "aux_outputs": steps[1:]}


def dense(outputs: dict[str, Any]) -> dict[str, Any]:
    """Return the same predictions as a decoder that computes all mask logits."""

    def step(s: dict[str, Any]) -> dict[str, Any]:
        return {"pred_logits": s["pred_logits"], "pred_masks": mask_logits(s["pred_embeds"], outputs["mask_features"])}

    return {**step(outputs), "aux_outputs": [step(s) for s in outputs["aux_outputs"]]}


def make_targets(counts: tuple[int, ...], seed: int = 1, frames: int = T) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(0, K, (n,), generator=g),
            "masks": torch.rand(n, frames, *SIZE, generator=g) > 0.6,
            "size": SIZE,
            "name": f"{i}.jpg",
        }
        for i, n in enumerate(counts)
    ]


def make_criterion(**options: Any) -> SetCriterion:
    return SetCriterion(K, HungarianMatcher(2, 5, 5, num_points=64, **options), {}, 0.1, num_points=64)


def match(matcher: HungarianMatcher, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> Any:
    return matcher.match_layers(Predictions.of(outputs), GroundTruth.of(targets, CPU))


def test_assignment_is_the_cheapest_of_all() -> None:
    outputs, targets = make_outputs(), make_targets((3, 1))
    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    costs: list[torch.Tensor] = []
    original = matcher._cost
    matcher._cost = lambda *a: costs.append(original(*a)) or costs[-1]  # type: ignore[method-assign, func-returns-value]
    assignments = match(matcher, outputs, targets)
    assert len(costs) == B
    for cost, pairs in zip(costs, assignments, strict=True):
        for layer in range(LAYERS):
            count = cost.shape[2]
            best = min(
                sum(cost[layer, q, t].item() for t, q in enumerate(choice))
                for choice in itertools.permutations(range(Q), count)
            )
            mine = pairs.layer == layer
            found = cost[layer, pairs.query[mine], pairs.target[mine]].sum().item()
            assert found == pytest.approx(best, abs=1e-4)
            assert sorted(pairs.target[mine]) == list(range(count))


def test_cost_by_hand() -> None:
    """Build one query that is right everywhere and one that is wrong everywhere."""
    masks = torch.full((1, 2, 1, 8, 10), 20.0)
    masks[0, 1] = -20
    outputs = {"pred_logits": torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]), "pred_masks": masks}
    targets = [{"labels": torch.tensor([0]), "masks": torch.ones(1, 1, 32, 40, dtype=torch.bool)}]
    matcher = HungarianMatcher(2, 5, 5, num_points=256)
    cost = matcher._costs(Predictions.of(outputs), GroundTruth.of(targets, CPU))[0][0, :, 0]
    border = 0.1  # points within half a pixel of the border are read partly outside
    assert cost[0].item() == pytest.approx(-2 * 0.99988, abs=2 * 20 * border)
    assert cost[1].item() == pytest.approx(5 * 20 + 5 * (1 - 1 / 257), rel=border)
    assert cost[1] > cost[0] + 50


@pytest.mark.parametrize("frames", [1, 3])
def test_matched_only_logits_give_the_losses_and_gradients_of_dense_logits(frames: int) -> None:
    targets = make_targets((3, 2), frames=frames)
    results = []
    for convert in (lambda o: o, dense):
        outputs = make_outputs(frames=frames)
        torch.manual_seed(7)
        losses = make_criterion()(convert(outputs), targets)
        sum(losses.values()).backward()
        results.append((losses, outputs["mask_features"].grad, outputs["pred_embeds"].grad))
    (ours, *our_grads), (theirs, *their_grads) = results
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4)
    for a, b in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_names_of_losses() -> None:
    losses = make_criterion()(make_outputs(), make_targets((1, 1)))
    assert set(losses) == {f"loss_{n}{s}" for n in ("ce", "mask", "dice") for s in ("", "_0", "_1")}


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (3, 0)])
def test_images_without_objects_keep_every_part_in_the_graph(counts: tuple[int, ...]) -> None:
    outputs = make_outputs()
    losses = make_criterion()(outputs, make_targets(counts))
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    for step in (outputs, *outputs["aux_outputs"]):
        assert step["pred_logits"].grad is not None
        assert step["pred_embeds"].grad is not None
    assert outputs["mask_features"].grad is not None
    if counts == (0, 0):
        assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_more_objects_than_queries(caplog: pytest.LogCaptureFixture) -> None:
    targets = make_targets((Q + 4, 1))
    with caplog.at_level(logging.WARNING):
        losses = make_criterion()(make_outputs(), targets)
    assert "NUM_OBJECT_QUERIES" in caplog.text
    assert all(torch.isfinite(v) for v in losses.values())


def test_losses_do_not_depend_on_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dice and cross-entropy at all pixels instead of random points, pair by pair or all together."""
    monkeypatch.setattr(criterion_module, "uncertain_points", lambda logits, *_: points.expand(len(logits), -1, -1))
    points = torch.rand(1, 50, 2)
    outputs, targets = make_outputs(), make_targets((4, 2))
    results = []
    for chunk in (2**28, 1):
        monkeypatch.setattr(criterion_module, "_CHUNK", chunk)
        torch.manual_seed(2)
        results.append(make_criterion()(outputs, targets))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-6, rtol=1e-5)


def test_padding_of_masks_changes_nothing() -> None:
    """Masks smaller than the padded batch count as zero outside."""
    small = make_targets((2, 3))
    for target in small:
        target["masks"] = target["masks"][..., :20, :30]
    padded = [{**t, "masks": torch.nn.functional.pad(t["masks"], (0, SIZE[1] - 30, 0, SIZE[0] - 20))} for t in small]
    losses = []
    for targets in (small, padded):
        torch.manual_seed(3)
        losses.append(make_criterion()(make_outputs(), targets))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], atol=1e-6, rtol=1e-5)


def test_cost_that_is_not_finite_names_the_image_and_stops(caplog: pytest.LogCaptureFixture) -> None:
    outputs = make_outputs()
    with torch.no_grad():
        outputs["aux_outputs"][0]["pred_embeds"][1, 2] = float("nan")
    matcher = HungarianMatcher(2, 5, 5, num_points=64, max_nonfinite=2)
    with caplog.at_level(logging.WARNING):
        pairs = match(matcher, outputs, make_targets((2, 3)))
    assert "1.jpg, predictions [1]" in caplog.text
    broken = pairs[1].query[pairs[1].layer == 1]
    assert 2 not in broken  # the broken query is chosen last, not first
    with pytest.raises(FloatingPointError, match=r"AMP\.DTYPE"):
        match(matcher, outputs, make_targets((2, 3)))


def test_deep_supervision_can_be_off() -> None:
    criterion = SetCriterion(K, HungarianMatcher(num_points=16), {}, 0.1, num_points=16, deep_supervision=False)
    assert set(criterion(make_outputs(), make_targets((1, 2)))) == {"loss_ce", "loss_mask", "loss_dice"}


def test_class_loss_by_hand() -> None:
    outputs = make_outputs()
    targets = make_targets((1, 0))
    criterion = make_criterion()
    torch.manual_seed(5)
    pairs = match(criterion.matcher, outputs, targets)
    torch.manual_seed(5)
    loss = criterion(outputs, targets)["loss_ce"]
    wanted = np.full((B, Q), K)
    wanted[0, pairs[0].query[pairs[0].layer == 0]] = targets[0]["labels"].numpy()
    log_probability = outputs["pred_logits"].detach().log_softmax(-1).numpy()
    weight = np.where(wanted == K, 0.1, 1.0)
    nll = -np.take_along_axis(log_probability, wanted[..., None], axis=-1)[..., 0]
    assert loss.item() == pytest.approx((nll * weight).sum() / weight.sum(), rel=1e-5)


def read(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample maps (T, H, W) bilinearly at points (P, 2); returns (T, P)."""
    grid = (2 * points - 1).expand(len(maps), 1, -1, -1)
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]


@pytest.mark.parametrize("chunk", [2**28, 1])
@pytest.mark.parametrize("frames", [1, 3])
def test_mask_losses_equal_their_definition(monkeypatch: pytest.MonkeyPatch, frames: int, chunk: int) -> None:
    """Sums over matched pairs and frames, read at the same points, divided by the number of objects of the batch."""
    points = torch.rand(50, 2)
    monkeypatch.setattr(criterion_module, "uncertain_points", lambda logits, *_: points.expand(len(logits), -1, -1))
    monkeypatch.setattr(criterion_module, "_CHUNK", chunk)
    outputs, targets = make_outputs(frames=frames), make_targets((3, 2), frames=frames)
    criterion = make_criterion()
    torch.manual_seed(5)
    assignments = match(criterion.matcher, outputs, targets)
    torch.manual_seed(5)
    losses = criterion(outputs, targets)
    for layer, (suffix, step) in enumerate(zip(("", "_0", "_1"), (outputs, *outputs["aux_outputs"]), strict=True)):
        cross_entropy, dice = 0.0, 0.0
        for image, (pairs, target) in enumerate(zip(assignments, targets, strict=True)):
            for query, number in zip(pairs.query[pairs.layer == layer], pairs.target[pairs.layer == layer]):
                maps = torch.einsum("c,tchw->thw", step["pred_embeds"][image, query], outputs["mask_features"][image])
                x, y = read(maps, points), read(target["masks"][number].float(), points)
                cross_entropy += float(-(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x)).mean(1).sum())
                p = x.sigmoid()
                dice += float((1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).sum())
        assert losses[f"loss_mask{suffix}"].item() == pytest.approx(cross_entropy / 5, rel=1e-4)
        assert losses[f"loss_dice{suffix}"].item() == pytest.approx(dice / 5, rel=1e-4)


def test_dice_of_an_empty_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sums of the quotient have a 1 added: nothing against nothing costs nothing, instead of everything."""
    points = 0.2 + 0.6 * torch.rand(64, 2)  # not at the border, where reads are partly outside
    monkeypatch.setattr(criterion_module, "uncertain_points", lambda logits, *_: points.expand(len(logits), -1, -1))
    logits = torch.full((2, 8, 10), -20.0)
    logits[1] = 20.0
    empty = {"labels": torch.tensor([0]), "masks": torch.zeros(1, *SIZE, dtype=torch.bool)}
    _, dice = make_criterion()._compare(logits, GroundTruth.of([empty], CPU), torch.zeros(2, dtype=torch.int64))
    assert dice.tolist() == pytest.approx([0, 1 - 1 / 65], abs=1e-4)


def test_cost_of_an_empty_mask() -> None:
    logits = torch.tensor([[-20.0] * 64, [20.0] * 64])
    matcher = HungarianMatcher(0, 0, 3, num_points=64)
    cost = matcher._cost(torch.zeros(1, 2, K + 1), logits, torch.tensor([1]), torch.zeros(1, 64))
    assert cost.flatten().tolist() == pytest.approx([0, 3 * (1 - 1 / 65)], abs=1e-4)


@pytest.mark.parametrize("weights", [(2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 4.0), (2.0, 3.0, 4.0)])
def test_costs_equal_their_definition(weights: tuple[float, float, float]) -> None:
    class_logits, logits = torch.randn(2, 3, K + 1), torch.randn(2 * 3, 20)
    labels, masks = torch.tensor([3, 0]), torch.rand(2, 20)
    cost = HungarianMatcher(*weights)._cost(class_logits, logits, labels, masks)
    assert cost.shape == (2, 3, 2)
    for layer, query, number in itertools.product(range(2), range(3), range(2)):
        x, y = logits[3 * layer + query], masks[number]
        p = x.sigmoid()
        expected = (
            -weights[0] * class_logits[layer, query].softmax(0)[labels[number]]
            - weights[1] * (y * p.log() + (1 - y) * (1 - p).log()).mean()
            + weights[2] * (1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
        )
        assert cost[layer, query, number].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_costs_of_halves_are_those_of_fp32(device: str) -> None:
    """16 significant bits of logits and probabilities, 8 of masks between pixels: what is left of it in sums."""
    g = torch.Generator().manual_seed(0)
    logits, masks = 3 * torch.randn(2, 6, 4096, generator=g), torch.rand(2, 3, 4096, generator=g)
    masks = torch.where(masks < 0.5, (masks * 4).floor() / 2, masks)  # 0, 0.5, and anything above it
    entropy, dice = losses_of_halves(logits.to(device), masks.to(device))
    exact = logits.double(), masks.double()
    torch.testing.assert_close(entropy.double().cpu(), batch_sigmoid_ce_loss(*exact), rtol=0, atol=2e-4)
    torch.testing.assert_close(dice.double().cpu(), batch_dice_loss(*exact), rtol=0, atol=5e-5)


def test_points_are_drawn_as_the_criterion_says(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    original = criterion_module.uncertain_points

    def recorded(logits: torch.Tensor, *options: Any) -> torch.Tensor:
        given.append(options)
        return original(logits, *options)

    monkeypatch.setattr(criterion_module, "uncertain_points", recorded)
    matcher = HungarianMatcher(num_points=16)
    SetCriterion(K, matcher, {}, 0.1, num_points=20, oversample_ratio=2.5, importance_sample_ratio=0.4)(
        make_outputs(), make_targets((1, 1))
    )
    assert given == [(20, 2.5, 0.4)]


def test_defaults_are_those_of_the_paper() -> None:
    criterion = SetCriterion(K, HungarianMatcher(), {}, 0.1)
    assert (criterion.num_points, criterion.oversample_ratio, criterion.importance_sample_ratio) == (12544, 3.0, 0.75)
    assert criterion.matcher.num_points == 12544 and criterion.empty_weight.tolist() == pytest.approx([1] * K + [0.1])


def test_size_of_the_batch_is_that_of_the_largest_masks() -> None:
    """Largest height and largest width, whichever images have them."""
    targets = make_targets((2, 2))
    for target, (height, width) in zip(targets, ((32, 30), (20, 40)), strict=True):
        target["masks"] = target["masks"][..., :height, :width]
    bare = [{k: v for k, v in t.items() if k != "size"} for t in targets]
    losses = []
    for given in (targets, bare, bare[::-1]):
        torch.manual_seed(3)
        losses.append(make_criterion()(make_outputs(), given))
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
    turned = [{**t, "size": SIZE} for t in bare[::-1]]
    torch.manual_seed(3)
    expected = make_criterion()(make_outputs(), turned)
    assert all(torch.equal(value, losses[2][name]) for name, value in expected.items())


@pytest.mark.parametrize(("counts", "mean"), [((0,), 1.0), ((1,), 1.0), ((3,), 3.0), ((3, 5), 4.0), ((0, 1), 1.0)])
def test_number_of_objects_is_a_mean_over_ranks(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], mean: float
) -> None:
    monkeypatch.setattr(criterion_module.comm, "get_world_size", lambda: len(counts))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(sum(counts[1:])))
    assert criterion_module._global_mean(counts[0], torch.device("cpu")).item() == mean


def test_groups_hold_a_bounded_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the pairs of a group; all pairs come once and in order, also those of an image with many."""
    predictions = Predictions(torch.zeros(1, 1, 1, 2), masks=torch.zeros(1, 1, 1, 1, 10, 10))
    criterion = make_criterion()  # 64 points, of which 4 x 3 x 64 values are drawn: 868 values a pair
    monkeypatch.setattr(criterion_module, "_CHUNK", 3 * 868 + 867)
    assert list(criterion._groups((2, 2, 7, 0, 1, 3, 4), predictions)) == [
        [2, 0, 0, 0, 0, 0, 0],
        [0, 2, 0, 0, 0, 0, 0],
        [0, 0, 3, 0, 0, 0, 0],
        [0, 0, 3, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 3, 0],
        [0, 0, 0, 0, 0, 0, 3],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert list(criterion._groups((0, 0), predictions)) == [[0, 0]]


def test_unknown_losses() -> None:
    with pytest.raises(ValueError, match=r"unknown losses \['boxes'\]"):
        SetCriterion(K, HungarianMatcher(), {}, 0.1, losses=["labels", "boxes"])


def test_costs_that_are_all_zero() -> None:
    with pytest.raises(ValueError, match="all matching costs are zero"):
        HungarianMatcher(0, 0, 0)
    HungarianMatcher(1, 1, 1)


def test_losses_are_fp32_under_autocast() -> None:
    outputs, targets = make_outputs(), make_targets((2, 1))
    losses = []
    for enabled in (False, True):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(make_criterion()(outputs, targets))
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())


def test_costs_are_fp32_under_autocast() -> None:
    outputs, targets = make_outputs(), make_targets((2, 1))
    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    torch.manual_seed(4)
    expected = matcher._costs(Predictions.of(outputs), GroundTruth.of(targets, CPU))
    costs: list[torch.Tensor] = []
    original = matcher._cost
    matcher._cost = lambda *a: costs.append(original(*a)) or costs[-1]  # type: ignore[method-assign, func-returns-value]
    torch.manual_seed(4)
    with torch.autocast("cpu", torch.bfloat16):
        match(matcher, outputs, targets)
    assert all(torch.equal(a, b) for a, b in zip(costs, expected, strict=True))


def test_mask_logits_without_frames_are_those_of_one_frame() -> None:
    outputs = dense(make_outputs())
    flat = [{**s, "pred_masks": s["pred_masks"][:, :, 0]} for s in (outputs, *outputs["aux_outputs"])]
    predictions, bare = Predictions.of(outputs), Predictions.of({**flat[0], "aux_outputs": flat[1:]})
    points = torch.rand(B, 9, 2)
    assert predictions.masks is not None and bare.masks is not None
    assert bare.masks.shape == (LAYERS, B, Q, 1, 8, 10) and torch.equal(predictions.masks, bare.masks)
    for image, (a, b) in enumerate(zip(predictions.sample(points, 1), bare.sample(points, 1), strict=True)):
        assert a.shape == (1, LAYERS * Q, 9) and torch.equal(a, b)
        first = predictions.masks[0, image, 0]
        torch.testing.assert_close(a[0, :1], read(first, points[image]))


@pytest.mark.parametrize("convert", [lambda o: o, dense], ids=["embeddings", "masks"])
def test_samples_of_clips_come_frame_by_frame(convert: Any) -> None:
    """The values at the points of frame 0, then those of frame 1, ...; of the image's own points and features."""
    outputs = convert(make_outputs(frames=3))
    expected = Predictions.of(dense(make_outputs(frames=3))).masks
    assert expected is not None
    points = torch.rand(B, 9, 2)
    assert [len(values) for values in Predictions.of(outputs).sample(points, 5)] == [B]
    for image, values in enumerate(torch.cat(list(Predictions.of(outputs).sample(points, 1)))):
        for row, maps in zip(values, expected[:, image].flatten(0, 1), strict=True):
            torch.testing.assert_close(row.view(3, 9), read(maps, points[image]), atol=1e-4, rtol=1e-4)
    image, layers, queries = torch.tensor([0, 1, 1]), torch.tensor([1, 2, 0]), torch.tensor([3, 1, 5])
    found = Predictions.of(outputs).matched((layers * B + image) * Q + queries, [1, 2])
    torch.testing.assert_close(found, expected[layers, image, queries], atol=1e-4, rtol=1e-4)


def test_infinite_costs_are_chosen_last_or_first(caplog: pytest.LogCaptureFixture) -> None:
    matcher = HungarianMatcher(max_nonfinite=0)
    costs = np.array([[[np.inf, 2.0], [np.nan, 1.0], [5.0, -np.inf]]])
    for _ in range(3):  # 0 never stops
        given = costs.copy()
        matcher._check_finite([given], [None])
    assert given[0, 0, 0] == given[0, 1, 0] == 1e8 and given[0, 2, 1] == -1e8
    assert matcher.nonfinite_steps == 3 and "image number 0 of the batch" in caplog.text
    matcher._check_finite([np.zeros((1, 2, 2))], [None])
    assert matcher.nonfinite_steps == 3


def test_warning_of_too_many_objects_comes_once(caplog: pytest.LogCaptureFixture) -> None:
    matcher = HungarianMatcher()
    matcher._assign(np.zeros((1, 3, 3)))
    assert caplog.text == ""
    for _ in range(2):
        pairs = matcher._assign(np.zeros((2, 3, 4)))
    assert caplog.text.count("NUM_OBJECT_QUERIES") == 1
    assert pairs.layer.tolist() == [0, 0, 0, 1, 1, 1] and pairs.query.tolist() == [0, 1, 2] * 2


def test_points_of_the_matcher_differ_between_images() -> None:
    matcher = HungarianMatcher(num_points=64)
    outputs, targets = make_outputs(), make_targets((1, 1))
    for key in ("pred_logits", "pred_embeds", "mask_features"):
        outputs[key] = outputs[key].detach()[:1].expand(2, *outputs[key].shape[1:])
    targets[1] = targets[0]
    last = {**outputs, "aux_outputs": []}
    first, second = matcher._costs(Predictions.of(last), GroundTruth.of(targets, CPU))
    assert not torch.equal(first, second)


def test_a_target_without_masks_is_named() -> None:
    targets = make_targets((1, 1))
    del targets[1]["masks"]
    with pytest.raises(ValueError, match=r"a target of 1\.jpg has no 'masks', only 'labels', 'size', 'name'"):
        make_criterion()(make_outputs(), targets)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("parts", [2, 8])
def test_products_in_parts_are_the_products(lead: tuple[int, ...], parts: int) -> None:
    """Points and images of a larger tensor, as the matcher has them, are multiplied as they are."""
    g = torch.Generator().manual_seed(4)
    a = torch.randn(*lead, 5, 64, generator=g, dtype=torch.float64)
    b = torch.randn(*lead, 3, 64, generator=g, dtype=torch.float64)
    torch.testing.assert_close(products_in_parts(a, b, parts), a @ b.mT, rtol=1e-12, atol=1e-12)


def test_sums_are_split_where_a_gpu_would_idle() -> None:
    """Parts divide the points, stay long, and are made only of products with few results."""
    assert parts_of(12544, 2 * 1000 * 20) == 16  # 2 images, 10 predictions of 100 queries, 20 objects
    assert parts_of(12544, 8 * 1000 * 300) == 1  # dense images
    assert parts_of(12545, 20_000) == 1
    assert parts_of(3136, 20_000) == 4
    assert parts_of(12544, 0) == 1  # of no images or objects
    for points in range(1, 4000, 7):
        parts = parts_of(points, 10)
        assert points % parts == 0 and (parts == 1 or points // parts >= 512)
