"""Queries that only a training has: groups that do not see one another, their losses, and no trace in inference."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.checkpoint import load_into
from mask2former.checkpoint.key_mapping import load_state_dict
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.denoising import Denoising, NoisedObjects
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.outputs import MaskLogits
from mask2former.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)

from .tiny_models import CONVOLUTIONS, DECODER, clip, record, tiny, without_gradient

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
R18 = [*("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), *("MODEL.RESNETS.STEM_TYPE", "basic")]
GROUPS = ("MODEL.MASK_FORMER.QUERY_GROUPS", 3)
DENOISING = ("MODEL.MASK_FORMER.DENOISING.QUERIES", 7)
OPTIONS = [pytest.param(GROUPS, id="groups"), pytest.param(DENOISING, id="denoising"), (*GROUPS, *DENOISING)]

CPU, K, Q, E = torch.device("cpu"), 3, 5, 6
SETTINGS = {**DECODER, "num_classes": K, "num_queries": Q}


def decoder(frames: int | None = None, **options: Any) -> MultiScaleMaskedTransformerDecoder:
    torch.manual_seed(0)
    cls = MultiScaleMaskedTransformerDecoder if frames is None else VideoMultiScaleMaskedTransformerDecoder
    return cls(16, **SETTINGS, **options)


def inputs(count: int) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(1)
    levels = [torch.randn(count, 16, 2 * 2**i, 3 * 2**i, generator=g) for i in range(3)]
    return levels, torch.randn(count, 8, 16, 24, generator=g)


def noised_objects(counts: tuple[int, ...] = (3, 2), frames: int | None = None) -> NoisedObjects:
    g = torch.Generator().manual_seed(2)
    shape = (64, 96) if frames is None else (frames, 64, 96)
    targets = [
        {"labels": torch.randint(K, (n,), generator=g), "masks": torch.rand(n, *shape, generator=g) > 0.5}
        for n in counts
    ]
    return Denoising(E, 0, 0).draw(GroundTruth.of(targets, CPU), K, CPU)[0]


def parts(outputs: dict[str, Any]) -> list[Tensor]:
    """Return all class and mask logits of each group of queries, the denoising queries last."""
    groups = [outputs, *outputs.get("query_groups", ()), *([outputs["denoising"]] if "denoising" in outputs else [])]
    return [
        torch.cat([x[key].flatten() for x in (group, *group["aux_outputs"]) for key in ("pred_logits", "pred_masks")])
        for group in groups
    ]


def same(first: list[Tensor], second: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("frames", [None, 2])
def test_groups_do_not_see_one_another(frames: int | None) -> None:
    model = decoder(frames, query_groups=3, denoising=True).train()
    given, noised = inputs(2 * (frames or 1)), noised_objects(frames=frames)
    before = parts(model(*given, frames=frames, noised=noised))
    changes = {
        0: [model.query_feat.weight, model.query_embed.weight],
        1: [model.training_queries.query_feat.weight[:Q], model.training_queries.query_embed.weight[:Q]],
        2: [model.training_queries.query_feat.weight[Q:], model.training_queries.query_embed.weight[Q:]],
        3: [model.training_queries.label_feat.weight, model.training_queries.label_embed.weight],
    }
    for group, weights in changes.items():
        for weight in weights:
            with torch.no_grad():
                kept = weight.clone()
                weight += 1
                after = parts(model(*given, frames=frames, noised=noised))
                weight.copy_(kept)
            assert same(before, after) == [i != group for i in range(4)]


def test_denoising_groups_do_not_see_one_another() -> None:
    """Six queries of images with three and two objects: two groups of three, and one query without an object."""
    model, given, noised = decoder(denoising=True).train(), inputs(2), noised_objects()
    before = model(*given, noised=noised)["denoising"]
    labels = noised.labels.clone()
    labels[:, 0] = (labels[:, 0] + 1) % K
    after = model(*given, noised=replace(noised, labels=labels))["denoising"]
    for key in ("pred_logits", "pred_masks"):
        assert torch.equal(before[key][:, 3:], after[key][:, 3:])
        changed = (before[key] != after[key]).flatten(2).any(2)
        assert changed.tolist() == [[True, True, True, False, False, False]] * 2
    labels = noised.labels.clone()
    labels[1, 2] = (labels[1, 2] + 1) % K  # no object of the second image
    after = model(*given, noised=replace(noised, labels=labels))["denoising"]
    changed = (before["pred_logits"] != after["pred_logits"]).any(2)
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("frames", [None, 2])
def test_own_queries_are_those_of_a_decoder_without_options(frames: int | None) -> None:
    plain, more = decoder(frames), decoder(frames, query_groups=3, denoising=True)
    own = plain.state_dict()
    assert all(torch.equal(more.state_dict()[key], own[key]) for key in own), "other weights are drawn first"
    given, noised = inputs(2 * (frames or 1)), noised_objects(frames=frames)
    expected, found = plain(*given, frames=frames), more(*given, frames=frames, noised=noised)
    assert list(found) == ["pred_logits", "pred_masks", "aux_outputs", "query_groups", "denoising"]
    torch.testing.assert_close(parts(found)[0], parts(expected)[0], atol=1e-4, rtol=1e-4)
    assert len(found["aux_outputs"]) == 4 and len(found["denoising"]["aux_outputs"]) == 3
    expected, found = plain.eval()(*given, frames=frames), more.eval()(*given, frames=frames, noised=noised)
    assert list(found) == list(expected)
    assert torch.equal(parts(found)[0], parts(expected)[0])


def test_layers_attend_to_the_objects_first() -> None:
    model, given, noised = decoder(denoising=True).train(), inputs(2), noised_objects()
    seen: list[Tensor] = []
    for layer in model.transformer_cross_attention_layers:
        layer.register_forward_pre_hook(lambda _, a, k: seen.append(k["memory_mask"]), with_kwargs=True)
    model(*given, noised=noised)
    for i in range(3):
        expected = noised.blocked_keys(2 * 2**i, 3 * 2**i)
        assert torch.equal(seen[i].unflatten(0, (2, 2))[:, 0, Q:], expected), (
            "layers with hooks get a mask for each head"
        )
    assert not torch.equal(seen[3].unflatten(0, (2, 2))[:, 0, Q:], noised.blocked_keys(2, 3))


def test_losses_are_means_over_groups() -> None:
    g = torch.Generator().manual_seed(3)
    features = torch.randn(2, 1, 8, 8, 10, generator=g)
    groups = [
        [
            {"pred_logits": torch.randn(2, Q, K + 1, generator=g), "embeds": torch.randn(2, Q, 8, generator=g)}
            for _ in range(3)
        ]
        for _ in range(2)
    ]

    def outputs(layers: list[dict[str, Tensor]]) -> dict[str, Any]:
        made = [
            {"pred_logits": x["pred_logits"], "pred_masks": MaskLogits(x["embeds"], features, False).value()}
            for x in layers
        ]
        return {**made[0], "aux_outputs": made[1:]}

    targets = [{"labels": torch.tensor([0, 2]), "masks": torch.rand(2, 32, 40, generator=g) > 0.5}] * 2
    # All points are drawn, and no candidates: what a group costs does not depend on what was drawn for the other.
    losses = []
    for both in (groups, groups[:1], groups[1:]):
        first, *others = map(outputs, both)
        criterion = SetCriterion(K, HungarianMatcher(2, 5, 5, num_points=20_000), {}, 0.1, num_points=20_000)
        torch.manual_seed(4)
        losses.append(criterion({**first, "query_groups": others} if others else first, targets))
    assert list(losses[0]) == list(losses[1])
    for name, value in losses[0].items():
        torch.testing.assert_close(value, (losses[1][name] + losses[2][name]) / 2, rtol=0.02, atol=0)
        if "loss_ce" in name:
            torch.testing.assert_close(value, (losses[1][name] + losses[2][name]) / 2)


def test_losses_of_a_subclass_are_means_over_groups_too() -> None:
    class Own(SetCriterion):
        def loss_labels(self, outputs: Any, targets: Any, indices: Any, num_masks: Any) -> dict[str, Tensor]:
            return {"loss_ce": outputs["pred_logits"].mean()}

    def outputs(value: float) -> dict[str, Any]:
        return {"pred_logits": torch.full((1, Q, K + 1), value), "pred_masks": torch.zeros(1, Q, 8, 8)}

    targets = [{"labels": torch.tensor([1]), "masks": torch.ones(1, 8, 8, dtype=torch.bool)}]
    criterion = Own(K, HungarianMatcher(num_points=16), {}, 0.1, num_points=16)
    losses = criterion({**outputs(1.0), "query_groups": [outputs(2.0), outputs(6.0)]}, targets)
    assert float(losses["loss_ce"]) == 3


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_gradients_reach_every_weight(config: str, options: tuple[Any, ...]) -> None:
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    model = tiny(config, *R18, *options).train()
    for objects in ((3, 0), (0, 0)):  # images without objects keep their losses attached to the graph
        model.zero_grad()
        losses = model([make(64, 64, *frames, n, 3, seed=i) for i, n in enumerate(objects)])
        assert set(losses) <= set(model.criterion.weight_dict)
        assert any("denoising" in name for name in losses) == ("MODEL.MASK_FORMER.DENOISING.QUERIES" in options)
        sum(losses.values()).backward()
        assert without_gradient(model) == []
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_off_is_the_model_without_options() -> None:
    """No weights, no arguments, no random numbers."""
    model = tiny(PANOPTIC, *R18)
    assert model.denoising is None and model.sem_seg_head.predictor.training_queries is None
    assert not any("training_queries" in key for key in model.state_dict())
    assert not any("denoising" in name for name in model.criterion.weight_dict)


@pytest.mark.parametrize("options", OPTIONS)
def test_inference_has_no_trace(options: tuple[Any, ...], caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A checkpoint of a training loads without its options, with one line of log, and gives the same results."""
    trained = tiny(PANOPTIC, *R18, *options).eval()
    plain = tiny(PANOPTIC, *R18).eval()
    file = tmp_path / "model.pth"
    torch.save({"model": trained.state_dict()}, file)
    with caplog.at_level(logging.INFO, "mask2former"):
        report = load_into(plain, str(file), strict=True)
    own = [key for key in trained.state_dict() if "training_queries" in key]
    assert report.training_only == own and len(own) in (2, 4)
    told = [r for r in caplog.records if "left out" in r.getMessage()]
    assert len(told) == 1 and told[0].levelno == logging.INFO and "training_queries" not in told[0].getMessage()
    batch = [record(64, 64, 2, 3)]
    with torch.no_grad():
        images = trained.preprocess(batch).tensor
        expected = plain.runtime(plain.backbone, plain.sem_seg_head, images)
        found = trained.runtime(trained.backbone, trained.sem_seg_head, images)
    assert list(found) == list(expected)
    assert same(parts(found), parts(expected)) == [True]
    # The other way: such weights are not needed for results, and begin as they are in a training.
    back = load_state_dict(trained, plain.state_dict())
    assert back.missing == own
    back.require_all(allow_partial=False)


def test_replaced_prediction_heads_are_told() -> None:
    class Own(MultiScaleMaskedTransformerDecoder):
        def forward_prediction_heads(self, *arguments: Any, **keywords: Any) -> Any:
            return super().forward_prediction_heads(*arguments, **keywords)

    model = Own(16, **SETTINGS, query_groups=2).train()
    with pytest.raises(ValueError, match=r"Own replaces .*QUERY_GROUPS 1"):
        model(*inputs(1))
    model.eval()(*inputs(1))


def test_a_criterion_of_another_project_is_told() -> None:
    class Own(torch.nn.Module):
        weight_dict = {"loss": 1.0}

        def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
            return {"loss": outputs["pred_logits"].sum()}

    model = tiny(PANOPTIC, *R18, *DENOISING).train()
    model.criterion = Own()
    with pytest.raises(ValueError, match=r"Own has no denoising queries: .*DENOISING\.QUERIES 0"):
        model([record(64, 64, 1, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_compiled_training_gives_the_same_losses(config: str) -> None:
    torch.compiler.reset()
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    model = tiny(config, *CONVOLUTIONS, *GROUPS, *DENOISING).train()
    batch = [make(64, 64, *frames, 3, 3), make(64, 64, *frames, 2, 3, seed=1)]
    losses = []
    for model.runtime.compile_training in (False, True):
        model.runtime.compiler = {"backend": "eager"}
        torch.manual_seed(0)
        losses.append({name: value.detach() for name, value in model(batch).items()})
    assert len(model.runtime._compiled) == 1 and not model.runtime._refused
    with torch._dynamo.config.patch(error_on_recompile=True):  # for another number of objects
        model([make(64, 64, *frames, 0, 3), make(64, 64, *frames, 9, 3, seed=1)])
    assert not model.runtime._refused
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_tiny_training_learns() -> None:
    torch.manual_seed(0)
    few = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.MASK_FORMER.QUERY_GROUPS", 2)
    model = tiny(PANOPTIC, *CONVOLUTIONS, *few, *DENOISING).train()
    sample = record(64, 64, 2, 4)
    sample["instances"].gt_masks[:] = False
    sample["instances"].gt_masks[0, 8:40, 8:32] = True
    sample["instances"].gt_masks[1, 40:60, 30:60] = True
    sample["image"] = (sample["instances"].gt_masks.sum(0) * 90).to(torch.uint8).expand(3, -1, -1).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    sums = []
    for _ in range(40):
        losses = model([sample])
        sums.append(
            {kind: sum(float(v.detach()) for n, v in losses.items() if kind in n) for kind in ("_", "denoising")}
        )
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert sums[-1]["denoising"] < 0.5 * sums[0]["denoising"]
    assert sums[-1]["_"] < 0.6 * sums[0]["_"]
