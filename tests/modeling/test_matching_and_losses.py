"""Matcher and criterion: against brute force, and in the situations that crash other implementations."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.modeling import criterion as criterion_module
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.point_sampling import MaskBank, Predictions
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import mask_logits

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
    """The same predictions as a decoder that makes all mask logits."""

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
    bank = MaskBank.of([t["masks"].flatten(0, 1) for t in targets], torch.device("cpu"))
    return matcher(Predictions.of(outputs), targets, bank, SIZE)


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
    """One query that is right everywhere and one that is wrong everywhere."""
    masks = torch.full((1, 2, 1, 8, 10), 20.0)
    masks[0, 1] = -20
    outputs = {"pred_logits": torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]), "pred_masks": masks}
    targets = [{"labels": torch.tensor([0]), "masks": torch.ones(1, 1, 32, 40, dtype=torch.bool)}]
    matcher = HungarianMatcher(2, 5, 5, num_points=256)
    bank = MaskBank.of([t["masks"][:, 0] for t in targets], torch.device("cpu"))
    cost = matcher._costs(Predictions.of(outputs), targets, bank, (32, 40))[0][0, :, 0]
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
    padded = [
        {**t, "masks": torch.nn.functional.pad(t["masks"], (0, SIZE[1] - 30, 0, SIZE[0] - 20))} for t in small
    ]
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
    criterion = SetCriterion(
        K, HungarianMatcher(num_points=16), {}, 0.1, num_points=16, deep_supervision=False
    )
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
