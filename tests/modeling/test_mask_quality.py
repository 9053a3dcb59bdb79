"""Predicted mask quality: the IoU that is learned, its loss, and where it changes results."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.checkpoint import load_into
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.mask_quality import mask_ious, predicted_quality
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.postprocess import Settings, postprocess
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.structures.task import IMAGE_TASKS, Task

from .tiny_models import CONVOLUTIONS, NoHostReads, record, step_and_predict_without_syncs, tiny, without_gradient

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
R18 = [*("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), *("MODEL.RESNETS.STEM_TYPE", "basic")]
QUALITY = ("MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True)
MORE = ("MODEL.MASK_FORMER.QUERY_GROUPS", 2, "MODEL.MASK_FORMER.DENOISING.QUERIES", 7)
SELECTION = ("MODEL.MASK_FORMER.QUERY_SELECTION", True)
CPU, K, Q = torch.device("cpu"), 3, 5


def block(height: int, width: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def truth_of(*masks: Tensor, size: tuple[int, int] | None = None) -> GroundTruth:
    target: dict[str, Any] = {"labels": torch.zeros(len(masks), dtype=torch.int64), "masks": torch.stack(masks)}
    return GroundTruth.of([target | ({} if size is None else {"size": size})], CPU)


def test_ious_of_blocks() -> None:
    """A predicted pixel is 4 x 4 pixels of the image; corners of predicted masks are round, which small ones show."""
    objects = [block(256, 320, 64, 80, 128, 160), block(256, 320, 200, 300, 208, 308), block(256, 320, 0, 0, 0, 0)]
    truth = truth_of(*objects)
    same = [block(64, 80, 16, 20, 32, 40), block(64, 80, 50, 75, 52, 77), block(64, 80, 0, 0, 0, 0)]
    half = [block(64, 80, 16, 20, 32, 30), block(64, 80, 50, 75, 52, 79), block(64, 80, 3, 3, 5, 5)]
    rows = torch.arange(3)
    with NoHostReads():
        found = mask_ious(torch.stack(same) * 2.0 - 1, truth, rows)
    assert found.tolist() == [pytest.approx(1, abs=0.01), pytest.approx(0.9, abs=0.02), 0]
    found = mask_ious(torch.stack(half) * 2.0 - 1, truth, rows)
    assert found.tolist() == pytest.approx([0.5, 0.5, 0], abs=0.03)
    nothing = mask_ious(torch.full((3, 64, 80), -1.0), truth, rows)
    assert nothing.tolist() == [0, 0, 0]
    apart = mask_ious(torch.stack(same) * 2.0 - 1, truth, rows.flip(0))
    assert apart.tolist() == [0, pytest.approx(0.9, abs=0.02), 0]


@pytest.mark.parametrize("seed", range(4))
def test_ious_equal_those_of_all_pixels(seed: int) -> None:
    """Also of masks that are smaller than the padded image."""
    g = torch.Generator().manual_seed(seed)
    logits = F.interpolate(torch.randn(1, 6, 4, 5, generator=g), (40, 50), mode="bicubic")[0]
    masks = F.interpolate(torch.randn(1, 6, 4, 5, generator=g), (150, 190), mode="bicubic")[0] > 0
    found = mask_ious(logits, truth_of(*masks, size=(160, 200)), torch.arange(6))
    ours = F.interpolate(logits[None], (160, 200), mode="bilinear")[0] > 0
    theirs = F.pad(masks, (0, 10, 0, 10))
    expected = (ours & theirs).flatten(1).sum(1) / (ours | theirs).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def outputs_of(seed: int, layers: int = 3) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def layer() -> dict[str, Tensor]:
        coarse = 4 * torch.randn(2, Q, 3, 4, generator=g)
        return {
            "pred_logits": torch.randn(2, Q, K + 1, generator=g),
            "pred_masks": F.interpolate(coarse, (16, 20), mode="bilinear").requires_grad_(),
            "pred_quality": torch.randn(2, Q, generator=g).requires_grad_(),
        }

    last, *earlier = (layer() for _ in range(layers))
    return {**last, "aux_outputs": earlier}


def targets_of(*counts: int) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(9)
    coarse = [F.interpolate(torch.randn(1, max(n, 1), 3, 4, generator=g), (64, 80), mode="bilinear")[0] for n in counts]
    masks = [m[:n] > 0 for m, n in zip(coarse, counts, strict=True)]
    return [{"labels": torch.arange(n) % K, "masks": m} for n, m in zip(counts, masks, strict=True)]


class FixedMatcher(torch.nn.Module):
    """Query n of an image has target n."""

    def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
        return [(torch.arange(len(target["labels"])),) * 2 for target in targets]


@pytest.mark.parametrize("chunk", [2**28, 1])
def test_loss_by_hand(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mask2former.modeling.criterion._CHUNK", chunk)  # 1: one pair at a time
    outputs, targets = outputs_of(0), targets_of(3, 1)
    losses = SetCriterion(K, FixedMatcher(), {}, 0.1, num_points=32)(outputs, targets)
    for name, layer in (("", outputs), ("_0", outputs["aux_outputs"][0]), ("_1", outputs["aux_outputs"][1])):
        total = torch.zeros(())
        for image, count in ((0, 3), (1, 1)):
            masks = F.interpolate(layer["pred_masks"][image : image + 1], (64, 80), mode="bilinear")[0, :count] > 0
            expected = targets[image]["masks"]
            iou = (masks & expected).flatten(1).sum(1) / (masks | expected).flatten(1).sum(1)
            p = layer["pred_quality"][image, :count].sigmoid()
            total = total - (iou * p.log() + (1 - iou) * (1 - p).log()).sum()
        torch.testing.assert_close(losses[f"loss_quality{name}"], total / 4, atol=0.02, rtol=0)
    sum(losses[name] for name in losses if "quality" in name).backward()  # type: ignore[union-attr]
    assert outputs["pred_masks"].grad is None or not outputs["pred_masks"].grad.any(), "masks do not learn from it"
    assert (outputs["pred_quality"].grad != 0).tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]


def test_other_losses_are_those_without_quality() -> None:
    """Nothing more is drawn, and all ways of the criterion have the loss."""
    outputs, targets = outputs_of(1), targets_of(2, 0)
    plain = {k: v for k, v in outputs.items() if k != "pred_quality"}
    plain["aux_outputs"] = [{k: v for k, v in x.items() if k != "pred_quality"} for x in outputs["aux_outputs"]]
    both = []
    for given in (plain, outputs):
        torch.manual_seed(0)
        both.append(SetCriterion(K, HungarianMatcher(2, 5, 5, num_points=32), {}, 0.1, num_points=32)(given, targets))
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    assert both[1].keys() - both[0].keys() == {"loss_quality", "loss_quality_0", "loss_quality_1"}

    class Own(SetCriterion):
        def loss_labels(self, *arguments: Any) -> dict[str, Tensor]:
            return {}

    torch.manual_seed(0)
    by_layer = Own(K, HungarianMatcher(2, 5, 5, num_points=32), {}, 0.1, num_points=32)(outputs, targets)
    assert by_layer.keys() == {name for name in both[1] if "loss_ce" not in name}


def test_clips_are_refused() -> None:
    outputs = {
        "pred_logits": torch.zeros(1, Q, K + 1),
        "pred_masks": torch.zeros(1, Q, 2, 8, 8),
        "pred_quality": torch.zeros(1, Q),
    }
    targets = [{"labels": torch.tensor([0]), "masks": torch.ones(1, 2, 32, 32, dtype=torch.bool)}]
    with pytest.raises(ValueError, match="not from clips"):
        SetCriterion(K, HungarianMatcher(num_points=8), {}, 0.1, num_points=8)(outputs, targets)


# ------------------------------------------------------------------ models
@pytest.mark.parametrize("options", [(), MORE, SELECTION, (*MORE, *SELECTION)])
def test_every_prediction_has_a_loss_and_every_weight_a_gradient(options: tuple[Any, ...]) -> None:
    model = tiny(PANOPTIC, *R18, *QUALITY, "MODEL.MASK_FORMER.MASK_QUALITY.LOSS_WEIGHT", 2.5, *options).train()
    weights = model.criterion.weight_dict
    names = {"loss_quality", "loss_quality_0", "loss_quality_1", "loss_quality_2"}
    names |= {"loss_selection_quality"} if "MODEL.MASK_FORMER.QUERY_SELECTION" in options else set()
    assert {name: weights[name] for name in weights if "quality" in name} == dict.fromkeys(names, 2.5)
    for objects in ((3, 0), (0, 0)):
        model.zero_grad()
        losses = model([record(64, 64, n, 3, seed=i) for i, n in enumerate(objects)])
        assert losses.keys() == weights.keys()
        sum(losses.values()).backward()
        assert without_gradient(model) == []
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_tokens_learn_from_their_quality_but_are_selected_by_class() -> None:
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *R18, *QUALITY, *SELECTION).train()
    predictor = model.sem_seg_head.predictor
    images = model.preprocess([record(64, 64, 3, 3)])
    features = model.backbone(images.tensor)
    with torch.no_grad():
        first = model.sem_seg_head(features)
        predictor.quality_embed.layers[-1].bias += 3 * torch.randn(1)
        second = model.sem_seg_head(features)
    selected, shifted = first["query_selection"], second["query_selection"]
    assert selected["pred_quality"].shape == selected["pred_logits"].shape[:2]
    assert torch.equal(selected["pred_logits"], shifted["pred_logits"])
    assert not torch.equal(selected["pred_quality"], shifted["pred_quality"])
    # The heads are those of the decoder, so this is also its prediction before the first layer.
    torch.testing.assert_close(first["aux_outputs"][0]["pred_quality"], selected["pred_quality"])
    losses = model([record(64, 64, 3, 3)])
    losses["loss_selection_quality"].backward()
    weights = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {f"sem_seg_head.predictor.query_selection.{part}.weight" for part in ("project", "norm")} <= weights
    assert any("quality_embed" in name for name in weights) and not any("mask_embed" in name for name in weights)


@pytest.mark.parametrize("options", [(), MORE, SELECTION, (*MORE, *SELECTION)])
def test_other_weights_and_logits_are_those_of_the_model_without_it(options: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    plain = tiny(PANOPTIC, *R18, *options).eval()
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *R18, *QUALITY, *options).eval()
    own = plain.state_dict()
    assert plain.sem_seg_head.predictor.quality_embed is None and not any("quality" in key for key in own)
    assert all(torch.equal(model.state_dict()[key], own[key]) for key in own)
    images = model.preprocess([record(64, 96, 0)]).tensor
    with torch.no_grad():
        expected = plain.sem_seg_head(plain.backbone(images))
        found = model.sem_seg_head(model.backbone(images))
    assert "pred_quality" not in expected and found["pred_quality"].shape == (1, 10)
    assert all(torch.equal(found[key], expected[key]) for key in ("pred_logits", "pred_masks"))
    assert [layer["pred_quality"].shape for layer in found["aux_outputs"]] == 3 * [(1, 10)]


def test_mixed_precision() -> None:
    model = tiny(PANOPTIC, *R18, *QUALITY, *SELECTION).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([record(64, 64, 3, 3)])
        with torch.no_grad():
            model.eval()
            images = model.preprocess([record(64, 64, 0)]).tensor
            quality = predicted_quality(model.sem_seg_head(model.backbone(images)))
    assert all(losses[f"loss_quality{s}"].dtype == torch.float32 for s in ("", "_0", "_1", "_2"))
    assert losses["loss_selection_quality"].dtype == torch.float32
    assert all(torch.isfinite(value) for value in losses.values())
    assert quality is not None and quality.dtype == torch.float32 and 0 < quality.min() <= quality.max() < 1


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_instances_are_scored_by_it(mode: str) -> None:
    """All pairs of queries and classes are instances: their scores differ by the factor of their query alone."""
    model = tiny(PANOPTIC, *R18, *QUALITY, "TEST.DETECTIONS_PER_IMAGE", 10_000, "MODEL.COMPILE", mode).eval()
    batch = [record(64, 96, 0), record(50, 70, 0, seed=1)]
    with torch.no_grad():
        model.panoptic_on = False
        outputs = model.runtime(model.backbone, model.sem_seg_head, model.preprocess(batch).tensor)
        quality = predicted_quality(outputs)
        results = []
        for model.quality_power in (0.0, 1.0, 0.5):
            results.append(model(batch))
    assert quality is not None and quality.std() > 1e-4
    classes = model.sem_seg_head.num_classes
    for image in range(2):
        best = torch.softmax(outputs["pred_logits"][image].float(), -1)[:, :-1]
        for power, result in zip((0.0, 1.0, 0.5), results, strict=True):
            factor = quality[image] ** power
            order = (best * factor[:, None]).flatten().argsort(descending=True, stable=True)
            found = result[image]["instances"]
            assert (found.pred_classes == order % classes).float().mean() > 0.99  # but for equal scores
            torch.testing.assert_close(
                found.scores.sum(), _sum_of_scores(results[0][image]["instances"], best, factor), rtol=1e-4, atol=0
            )
        assert torch.equal(results[0][image]["sem_seg"], results[1][image]["sem_seg"])


def _sum_of_scores(plain: Any, best: Tensor, factor: Tensor) -> Tensor:
    """Return the sum of all scores x factor, of instances that are scored without it, in the order of class scores."""
    order = best.flatten().argsort(descending=True, stable=True)
    return (plain.scores * factor[order // best.shape[1]]).sum()


def test_only_instances_use_it() -> None:
    """Equal to instances of class scores that are multiplied before; the best ones are selected by the product."""
    g = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(9, K + 1, generator=g)).softmax(-1)
    masks = F.interpolate(6 * torch.randn(1, 9, 3, 4, generator=g), (8, 12), mode="bicubic")[0]
    quality = torch.rand(9, generator=g)
    sizes = (32, 48), (32, 48), (32, 48)
    everything = Settings(frozenset(IMAGE_TASKS), topk=5, score_threshold=0.05, quality_power=2.0)
    found = postprocess(scores, None, masks, *sizes, everything, quality=quality)
    plain = postprocess(scores, None, masks, *sizes, everything)
    weighted = postprocess(scores * quality[:, None] ** 2, None, masks, *sizes, everything)
    assert torch.equal(found["sem_seg"], plain["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], plain["panoptic_seg"][0])
    assert found["panoptic_seg"][1] == plain["panoptic_seg"][1]
    assert torch.equal(found["instances"].scores, weighted["instances"].scores)
    assert torch.equal(found["instances"].pred_masks, weighted["instances"].pred_masks)
    assert not torch.equal(found["instances"].pred_masks, plain["instances"].pred_masks)
    off = postprocess(scores, None, masks, *sizes, replace(everything, quality_power=0.0), quality=quality)
    assert torch.equal(off["instances"].scores, plain["instances"].scores)
    semantic = Settings(frozenset({Task.SEMANTIC}))
    assert torch.equal(postprocess(scores, None, masks, *sizes, semantic, quality=quality)["sem_seg"], plain["sem_seg"])


def test_checkpoints_with_and_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, model = tiny(PANOPTIC, *R18), tiny(PANOPTIC, *R18, *QUALITY)
    own = [key for key in model.state_dict() if "quality_embed" in key]
    assert len(own) == 6 and all(key.startswith("sem_seg_head.predictor.quality_embed.") for key in own)
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    torch.save({"model": model.state_dict()}, tmp_path / "quality.pth")
    with caplog.at_level(logging.INFO, "mask2former"):
        report = load_into(model, str(tmp_path / "plain.pth"))
    assert report.missing == own and "quality_embed" in caplog.text
    report = load_into(plain, str(tmp_path / "quality.pth"))
    assert report.missing == [] and report.unexpected == own


def test_replaced_prediction_heads_are_told() -> None:
    class Own(MultiScaleMaskedTransformerDecoder):
        def forward_prediction_heads(self, *arguments: Any, **keywords: Any) -> Any:
            return super().forward_prediction_heads(*arguments, **keywords)

    decoder = Own(
        16,
        **{"num_classes": K, "hidden_dim": 16, "num_queries": Q, "nheads": 2, "dim_feedforward": 32, "dec_layers": 3},
        **{"pre_norm": False, "mask_dim": 8, "enforce_input_project": False, "mask_quality": True},
    )
    levels = [torch.zeros(1, 16, 2 * 2**i, 2 * 2**i) for i in range(3)]
    with pytest.raises(ValueError, match=r"Own replaces .*MASK_QUALITY\.ENABLED False"):
        decoder(levels, torch.zeros(1, 8, 16, 16))


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses() -> None:
    torch.compiler.reset()
    model = tiny(PANOPTIC, *CONVOLUTIONS, *QUALITY, *MORE, *SELECTION).train()
    batch = [record(64, 64, 3, 3), record(64, 64, 2, 3, seed=1)]
    losses = []
    for model.runtime.compile_training in (False, True):
        model.runtime.compiler = {"backend": "eager"}
        torch.manual_seed(0)
        losses.append({name: value.detach() for name, value in model(batch).items()})
    assert len(model.runtime._compiled) == 1 and not model.runtime._refused
    assert {"loss_quality_2", "loss_selection_quality"} <= losses[1].keys()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_tiny_training_learns_it() -> None:
    """One image with two objects: at the end the queries know the IoU of their masks."""
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *CONVOLUTIONS, *QUALITY, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2).train()
    sample = record(64, 64, 2, 2)
    masks = torch.stack((block(64, 64, 8, 8, 40, 32), block(64, 64, 40, 30, 60, 60)))
    sample["instances"].gt_masks, sample["instances"].gt_classes = masks, torch.tensor([0, 1])
    sample["image"] = (masks.sum(0) * 90).to(torch.uint8).expand(3, -1, -1).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model([sample]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(model.preprocess([sample]).tensor))
        targets = [{"labels": torch.tensor([0, 1]), "masks": masks}]
        query, number = model.criterion.matcher(outputs, targets)[0]
        ious = mask_ious(outputs["pred_masks"][0, query], truth_of(*masks), number)
        quality = predicted_quality(outputs)
    assert quality is not None and ious.min() > 0.3
    torch.testing.assert_close(quality[0, query], ious, atol=0.15, rtol=0)


@pytest.mark.gpu
def test_no_hidden_host_syncs() -> None:
    points = ("MODEL.MASK_FORMER.SMALL_OBJECT_POINTS", 0.5)
    model = tiny(PANOPTIC, *R18, *QUALITY, *points, "MODEL.DEVICE", "cuda")
    batch = [record(64, 96, 3, 133), record(50, 70, 0, 133)]
    for item in batch:
        item["image"], item["sem_seg"] = item["image"].cuda(), item["sem_seg"].cuda()
        item["instances"] = item["instances"].to("cuda")
    step_and_predict_without_syncs(model, batch)
