"""Selected tokens as queries: which ones, their gradients and losses, and models with and without the option."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.checkpoint import CheckpointError, load_into
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.denoising import Denoising
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.outputs import MaskLogits
from mask2former.modeling.prepared import Prepared
from mask2former.modeling.runtime import _is_known
from mask2former.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)
from mask2former.modeling.transformer_decoder.query_selection import QuerySelection, best_tokens

from .tiny_models import CONVOLUTIONS, DECODER, NoHostReads, clip, record, tiny, without_gradient

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
INSTANCE = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
SEMANTIC = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
R18 = [*("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), *("MODEL.RESNETS.STEM_TYPE", "basic")]
ON = ("MODEL.MASK_FORMER.QUERY_SELECTION", True)
GROUPS = ("MODEL.MASK_FORMER.QUERY_GROUPS", 3)
DENOISING = ("MODEL.MASK_FORMER.DENOISING.QUERIES", 7)
QUALITY = ("MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True)
NAMES = {"loss_selection_ce", "loss_selection_mask", "loss_selection_dice"}

K, Q, IN = 3, 5, 12
SETTINGS = {**DECODER, "num_classes": K, "num_queries": Q}


def decoder(frames: int | None = None, **options: Any) -> MultiScaleMaskedTransformerDecoder:
    torch.manual_seed(0)
    cls = MultiScaleMaskedTransformerDecoder if frames is None else VideoMultiScaleMaskedTransformerDecoder
    return cls(IN, **{**SETTINGS, "query_selection": True, **options})


def inputs(count: int, height: int = 2, width: int = 3) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(1)
    levels = [torch.randn(count, IN, height * 2**i, width * 2**i, generator=g) for i in range(3)]
    return levels, torch.randn(count, 8, height * 8, width * 8, generator=g)


@pytest.mark.parametrize("frames", [None, 2])
def test_selected_tokens_are_those_by_hand(frames: int | None) -> None:
    """Token by token: project, norm, classify, sort; the content that the first layer gets, and its position."""
    model, t = decoder(frames).train(), frames or 1
    levels, features = inputs(2 * t)
    seen: list[tuple[Tensor, Tensor]] = []
    model.transformer_cross_attention_layers[0].register_forward_pre_hook(
        lambda _, a, k: seen.append((a[0], k["query_pos"])), with_kwargs=True
    )
    outputs = model(levels, features, frames=frames)
    selection: Any = model.query_selection
    for b in range(2):
        found = []  # (-probability, content, class logits, position encoding) of each token
        for level in levels:
            encoding = model.pe_layer(level.unflatten(0, (2, t)) if frames else level)
            for frame in range(t):
                for y in range(level.shape[2]):
                    for x in range(level.shape[3]):
                        content = selection.norm(selection.project(level[b * t + frame, :, y, x]))
                        logits = model.class_embed(model.decoder_norm(content))
                        where = encoding[b, frame, :, y, x] if frames else encoding[b, :, y, x]
                        found.append((-float(logits.detach().softmax(-1)[:-1].max()), content, logits, where))
        best = sorted(found, key=lambda entry: entry[0])[:Q]
        contents, logits, where = (torch.stack([entry[i] for entry in best]) for i in (1, 2, 3))
        torch.testing.assert_close(seen[0][0][:, b], contents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen[0][1][:, b], model.query_embed.weight + where, atol=1e-5, rtol=1e-5)
        selected = outputs["query_selection"]
        torch.testing.assert_close(selected["pred_logits"][b], logits, atol=1e-5, rtol=1e-5)
        embeds = model.mask_embed(model.decoder_norm(contents))
        masks = torch.einsum("qc,tchw->qthw", embeds, features[b * t : (b + 1) * t])
        expected = masks if frames else masks[:, 0]
        torch.testing.assert_close(selected["pred_masks"][b], expected, atol=1e-5, rtol=1e-5)
    # The heads are those of the decoder, so this is also its prediction before the first layer.
    torch.testing.assert_close(outputs["aux_outputs"][0]["pred_masks"], selected["pred_masks"])


def test_of_fewer_tokens_all_come_in_turn() -> None:
    logits = torch.tensor([[[0.0, 1, 0], [3, 0, 0], [0, 0, 9]]])  # certain of class 1, of class 0, of no object
    assert best_tokens(logits, 2).tolist() == [[1, 0]]
    assert best_tokens(logits, 3).tolist() == [[1, 0, 2]]
    assert best_tokens(logits, 7).tolist() == [[1, 0, 2, 1, 0, 2, 1]]
    model = decoder(num_queries=50).train()
    levels, features = inputs(2, 1, 1)
    outputs = model(levels, features)
    assert outputs["pred_logits"].shape == (2, 50, K + 1)
    logits = outputs["query_selection"]["pred_logits"]
    assert torch.equal(logits[:, :21], logits[:, 21:42]) and not torch.equal(logits[:, :20], logits[:, 1:21])


@pytest.mark.parametrize("frames", [None, 2])
def test_shapes(frames: int | None) -> None:
    model, t = decoder(frames), frames or 1
    levels, features = inputs(2 * t)
    masks = (2, Q, 16, 24) if frames is None else (2, Q, t, 16, 24)
    outputs = model.train()(levels, features, frames=frames)
    assert len(outputs["aux_outputs"]) == 4
    for each in (outputs, outputs["query_selection"], *outputs["aux_outputs"]):
        assert each["pred_logits"].shape == (2, Q, K + 1) and each["pred_masks"].shape == masks
    found = model.eval()(levels, features, frames=frames)
    assert "query_selection" not in found
    torch.testing.assert_close(found["pred_masks"], outputs["pred_masks"], atol=1e-4, rtol=1e-4)


def test_gradients_of_the_content_end_where_the_decoder_begins() -> None:
    """The tokens learn from their own losses; without the memory, no gradient of the decoder reaches the levels."""
    model = decoder().train()
    levels, features = inputs(2)
    for level in levels:
        level.requires_grad_()
    for projection in model.input_proj:  # what the layers attend to
        projection.register_forward_hook(lambda _, a, out: out.detach())
    selection: Any = model.query_selection
    weights = [*levels, *selection.parameters()]
    outputs = model(levels, features)
    own = sum((x["pred_logits"] ** 2).sum() + (x["pred_masks"] ** 2).sum() for x in (outputs, *outputs["aux_outputs"]))
    assert all(g is None for g in torch.autograd.grad(own, weights, retain_graph=True, allow_unused=True))
    selected = outputs["query_selection"]
    for key in ("pred_logits", "pred_masks"):
        gradients = torch.autograd.grad((selected[key] ** 2).sum(), weights, retain_graph=True)
        assert all(bool(g.any()) for g in gradients[3:])
        reached = torch.cat([g.flatten(2).any(1) for g in gradients[:3]], 1)
        assert reached.sum(1).tolist() == [Q, Q], "the selected tokens, and no others"


def test_nothing_waits_for_the_device() -> None:
    model, given = decoder(query_groups=2).train(), inputs(2)
    with NoHostReads():
        model(*given)
        model.eval()(*given)


def test_groups_and_denoising_queries_do_not_see_selected_ones() -> None:
    """The decoder's own queries are selected; the others keep content of their own, and their predictions."""
    g = torch.Generator().manual_seed(2)
    targets = [{"labels": torch.randint(K, (n,), generator=g), "masks": torch.ones(n, 16, 24) > 0} for n in (2, 1)]
    noised = Denoising(4, 0, 0).draw(GroundTruth.of(targets, torch.device("cpu")), K, torch.device("cpu"))[0]
    alone, more = decoder().train(), decoder(query_groups=3, denoising=True).train()
    more.load_state_dict(alone.state_dict(), strict=False)
    given = inputs(2)
    expected, found = alone(*given), more(*given, noised=noised)
    assert list(found) == ["pred_logits", "pred_masks", "aux_outputs", "query_groups", "denoising", "query_selection"]
    assert [x["pred_logits"].shape[1] for x in (found, *found["query_groups"], found["denoising"])] == [Q, Q, Q, 4]
    torch.testing.assert_close(found["pred_masks"], expected["pred_masks"], atol=1e-4, rtol=1e-4)
    before = [x["pred_logits"].clone() for x in (found, *found["query_groups"], found["denoising"])]
    with torch.no_grad():
        more.query_selection.project.weight.mul_(-1)
    after = more(*given, noised=noised)
    changed = [not torch.equal(b, x["pred_logits"]) for b, x in zip(before, (after, *after["query_groups"]))]
    assert changed == [True, False, False]
    assert torch.equal(before[3], after["denoising"]["pred_logits"])


def some_outputs(seed: int, layers: int, features: Tensor) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    made = [
        {
            "pred_logits": torch.randn(2, Q, K + 1, generator=g),
            "pred_masks": MaskLogits(torch.randn(2, Q, 8, generator=g), features, False).value(),
        }
        for _ in range(layers)
    ]
    return {**made[0], "aux_outputs": made[1:]}


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("own_losses", [False, True])
@pytest.mark.parametrize("quality", [False, True])
def test_selected_tokens_are_one_more_prediction(quality: bool, own_losses: bool, deep_supervision: bool) -> None:
    """Their losses are those of a model that predicts nothing else; the others keep names and values."""

    class Own(SetCriterion):
        def loss_labels(self, outputs: Any, targets: Any, indices: Any, num_masks: Any) -> dict[str, Tensor]:
            return super().loss_labels(outputs, targets, indices, num_masks)

    g = torch.Generator().manual_seed(3)
    features = torch.randn(2, 1, 8, 8, 10, generator=g)
    groups = [some_outputs(seed, 3, features) for seed in (4, 5)]
    selected = some_outputs(6, 1, features)
    selected.pop("aux_outputs")
    if quality:
        for each in (selected, *groups, *(layer for group in groups for layer in group["aux_outputs"])):
            each["pred_quality"] = torch.randn(2, Q, generator=g)
    names = NAMES | ({"loss_selection_quality"} if quality else set())
    targets = [{"labels": torch.tensor([0, 2]), "masks": torch.rand(2, 32, 40, generator=g) > 0.5}] * 2
    cls = Own if own_losses else SetCriterion
    # So many points that what is drawn for a prediction does not matter; classes decide between similar pairs.
    criterion = cls(
        K,
        HungarianMatcher(200, 5, 5, num_points=20_000),
        {},
        0.1,
        num_points=20_000,
        deep_supervision=deep_supervision,
    )
    both = {**groups[0], "query_groups": [groups[1]]}
    torch.manual_seed(4)
    plain, more, tokens = (criterion(x, targets) for x in (both, {**both, "query_selection": selected}, selected))
    assert set(more) == set(plain) | names and list(plain) == list(more)[: len(plain)]
    for name, value in more.items():
        wanted = tokens[name.replace("selection_", "")] if name in names else plain[name]
        torch.testing.assert_close(value, wanted, rtol=0.02, atol=1e-3)
        if "_ce" in name:
            torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("options", [(), QUALITY])
@pytest.mark.parametrize("read", ["own", "selected"])
def test_masks_that_somebody_has_read_are_compared(read: str, options: tuple[Any, ...]) -> None:
    model = tiny(PANOPTIC, *R18, *ON, *GROUPS, *options).train()
    batch = [record(64, 64, 2, 3)]
    images = model.preprocess(batch)
    outputs = model.runtime(model.backbone, model.sem_seg_head, images.tensor)
    targets = model._targets(batch, images)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(model.criterion(outputs, targets))
        assert ("loss_selection_quality" in losses[-1]) is bool(options)
        for layer in [outputs["query_selection"]] if read == "selected" else [outputs, *outputs["aux_outputs"]]:
            layer["pred_masks"]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [(), GROUPS, (*GROUPS, *DENOISING)])
@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_gradients_reach_every_weight(config: str, options: tuple[Any, ...]) -> None:
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    model = tiny(config, *R18, *ON, *options).train()
    for objects in ((3, 0), (0, 0)):
        model.zero_grad()
        losses = model([make(64, 64, *frames, n, 3, seed=i) for i, n in enumerate(objects)])
        assert set(losses) == set(model.criterion.weight_dict) and set(losses) >= NAMES
        sum(losses.values()).backward()
        assert without_gradient(model) == []
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_losses_of_tokens_reach_the_encoder() -> None:
    model = tiny(PANOPTIC, *R18, *ON).train()
    losses = model([record(64, 64, 3, 3)])
    sum(losses[name] for name in NAMES).backward()
    parts = ("sem_seg_head.pixel_decoder.transformer.", "sem_seg_head.predictor.query_selection.", "backbone.res5.")
    for part in parts:
        assert any(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name.startswith(part))
    assert not model.sem_seg_head.predictor.query_embed.weight.grad.any()


@pytest.mark.parametrize("config", [PANOPTIC, INSTANCE, SEMANTIC, VIDEO])
def test_training_and_results(config: str) -> None:
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    model = tiny(config, *R18, *ON)
    batch = [make(64, 64, *frames, 2, 3)]
    losses = model.train()(batch)
    assert all(torch.isfinite(value) for value in losses.values()) and len(losses) == 3 * 4 + 3
    with torch.no_grad():
        results = model.eval()(batch)
    assert results


def test_mixed_precision() -> None:
    model = tiny(PANOPTIC, *R18, *ON, *GROUPS, *DENOISING).train()
    batch = [record(64, 64, 3, 3)]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(batch)


def test_off_is_the_model_without_the_option() -> None:
    model, on = tiny(PANOPTIC, *R18), tiny(PANOPTIC, *R18, *ON)
    assert model.sem_seg_head.predictor.query_selection is None
    assert not any("selection" in key for key in (*model.state_dict(), *model.criterion.weight_dict))
    weights = {name: weight for name, weight in on.criterion.weight_dict.items() if name not in NAMES}
    assert (
        weights == model.criterion.weight_dict
        and weights["loss_mask"] == on.criterion.weight_dict["loss_selection_mask"]
    )
    prefix = "sem_seg_head.predictor."
    assert set(on.state_dict()) ^ set(model.state_dict()) == {
        f"{prefix}query_feat.weight",
        *(f"{prefix}query_selection.{each}.{kind}" for each in ("project", "norm") for kind in ("weight", "bias")),
    }
    outputs = decoder(query_selection=False).train()(*inputs(1))
    assert list(outputs) == ["pred_logits", "pred_masks", "aux_outputs"]


def test_a_checkpoint_without_the_option_is_fine_tuned(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """One warning tells what is new; results with such weights would be random, and are refused."""
    plain, model = tiny(PANOPTIC, *R18), tiny(PANOPTIC, *R18, *ON)
    file = tmp_path / "model.pth"
    torch.save({"model": plain.state_dict()}, file)
    with caplog.at_level(logging.INFO, "mask2former"):
        report = load_into(model, str(file))
    (told,) = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert "sem_seg_head.predictor.query_selection.* (4)" in told.getMessage()
    assert "sem_seg_head.predictor.query_feat.weight" in told.getMessage()
    assert len(report.missing) == 4 and len(report.unexpected) == 1 and not report.reinitialized
    assert torch.equal(model.sem_seg_head.predictor.query_embed.weight, plain.sem_seg_head.predictor.query_embed.weight)
    with pytest.raises(CheckpointError, match=r"query_selection.*Use the config that they were trained with"):
        report.require_all(allow_partial=False)
    with pytest.raises(CheckpointError, match="query_selection"):
        load_into(tiny(PANOPTIC, *R18, *ON), str(file), strict=True)


def test_replaced_prediction_heads_are_told() -> None:
    class Own(MultiScaleMaskedTransformerDecoder):
        def forward_prediction_heads(self, *arguments: Any, **keywords: Any) -> Any:
            return super().forward_prediction_heads(*arguments, **keywords)

    with pytest.raises(ValueError, match=r"Own replaces .*QUERY_SELECTION False"):
        Own(IN, **SETTINGS, query_selection=True).eval()(*inputs(1))


def test_a_criterion_of_another_project_is_told() -> None:
    class Own(nn.Module):
        weight_dict = {"loss": 1.0}

        def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
            return {"loss": outputs["pred_logits"].sum()}

    model = tiny(PANOPTIC, *R18, *ON).train()
    model.criterion = Own()
    with pytest.raises(ValueError, match=r"Own has no losses of selected tokens.*QUERY_SELECTION False"):
        model([record(64, 64, 1, 3)])


def test_prepared_and_known_to_graphs() -> None:
    """CUDA graphs are made of modules that are known, with weights in the type of autocast."""
    model = tiny(PANOPTIC, *R18, *ON, *QUALITY).eval()
    assert _is_known(model.backbone) and _is_known(model.sem_seg_head)
    forms = Prepared(model.backbone, model.sem_seg_head, torch.bfloat16, fold=False)
    assert forms.head.predictor.query_selection.project.weight.dtype == torch.bfloat16
    images = model.preprocess([record(64, 64, 1)]).tensor
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.sem_seg_head(model.backbone(images))
        found = forms.head(forms.backbone(images))
    assert torch.equal(found["pred_logits"], expected["pred_logits"])
    assert torch.equal(found["pred_masks"], expected["pred_masks"])
    assert torch.equal(found["pred_quality"], expected["pred_quality"])


def test_a_step_in_float64_is_that_of_a_decoder_with_this_content() -> None:
    """The selected content, given to a decoder without the option as learned content, has the same gradients."""
    model = decoder().train().double()
    levels, features = ([level.double() for level in inputs(1)[0]], inputs(1)[1].double())
    seen: list[tuple[Tensor, Tensor]] = []
    layer: Any = model.transformer_cross_attention_layers[0]
    handle = layer.register_forward_pre_hook(lambda _, a, k: seen.append((a[0], k["query_pos"])), with_kwargs=True)
    outputs = model(levels, features)
    handle.remove()
    plain = decoder(query_selection=False).train().double()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        plain.query_feat.weight.copy_(seen[0][0][:, 0])
        plain.query_embed.weight.copy_(seen[0][1][:, 0])
    expected = plain(levels, features)
    losses = []
    for each in (outputs, expected):
        torch.testing.assert_close(each["pred_logits"], expected["pred_logits"], rtol=1e-9, atol=1e-9)
        predictions = (each, *each["aux_outputs"])
        losses.append(sum((x["pred_logits"].square().mean() + x["pred_masks"].square().mean()) for x in predictions))
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    shared = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        if "query_selection" in name:
            assert weight.grad is None
        else:
            torch.testing.assert_close(weight.grad, shared[name].grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_compiled_training_gives_the_same_losses(config: str) -> None:
    torch.compiler.reset()
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    model = tiny(config, *CONVOLUTIONS, *ON, *GROUPS, *DENOISING).train()
    batch = [make(64, 64, *frames, 3, 3), make(64, 64, *frames, 2, 3, seed=1)]
    losses = []
    for model.runtime.compile_training in (False, True):
        model.runtime.compiler = {"backend": "eager", "fullgraph": True}
        torch.manual_seed(0)
        losses.append({name: value.detach() for name, value in model(batch).items()})
    assert len(model.runtime._compiled) == 1 and not model.runtime._refused
    with torch._dynamo.config.patch(error_on_recompile=True):
        model([make(64, 64, *frames, 0, 3), make(64, 64, *frames, 9, 3, seed=1)])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_tiny_training_learns() -> None:
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *CONVOLUTIONS, *ON, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4).train()
    sample = record(64, 64, 2, 4)
    sample["instances"].gt_masks[:] = False
    sample["instances"].gt_masks[0, 8:40, 8:32] = True
    sample["instances"].gt_masks[1, 40:60, 30:60] = True
    sample["image"] = (sample["instances"].gt_masks.sum(0) * 90).to(torch.uint8).expand(3, -1, -1).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    sums = []
    for _ in range(40):
        losses = model([copy.deepcopy(sample)])
        sums.append({kind: sum(float(v.detach()) for n, v in losses.items() if kind in n) for kind in ("_", "selecti")})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert sums[-1]["selecti"] < 0.6 * sums[0]["selecti"]
    assert sums[-1]["_"] < 0.6 * sums[0]["_"]


def test_a_selection_is_built_of_a_projection_and_a_norm() -> None:
    """Channels of the levels may differ from those of the queries."""
    selection = QuerySelection(IN, 16, 4)
    found = selection(inputs(6)[0], 3, nn.Linear(16, K + 1))
    assert found.content.shape == (2, 4, 16) and found.index.shape == (2, 4)
    assert found.index.max() < 3 * (6 + 24 + 96) and found.queries().shape == (4, 2, 16)
    assert not found.queries().requires_grad and found.content.requires_grad
