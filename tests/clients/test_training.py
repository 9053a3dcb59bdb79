"""Training as other projects do it: with their own losses, matchers, criteria and meta-architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall, configurable, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.structures import Instances
from torch import nn

from mask2former import MaskFormer
from mask2former.modeling.criterion import (
    SetCriterion,
    calculate_uncertainty,
    dice_loss,
    dice_loss_jit,
    sigmoid_ce_loss,
    sigmoid_ce_loss_jit,
)
from mask2former.modeling.matcher import (
    HungarianMatcher,
    batch_dice_loss,
    batch_dice_loss_jit,
    batch_sigmoid_ce_loss,
    batch_sigmoid_ce_loss_jit,
)
from mask2former.modeling.transformer_decoder.maskformer_transformer_decoder import TRANSFORMER_DECODER_REGISTRY

from .client_models import batch, client_config, client_model, decoder_outputs, shapes, targets

NAMES = {f"loss_{name}{suffix}" for name in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")}


@pytest.fixture(scope="module")
def shared() -> Any:
    return client_model()


@pytest.fixture
def model(shared: Any) -> Any:
    return shared.train()


def make_criterion(
    cls: type[SetCriterion] = SetCriterion, matcher: Any = None, losses: Any = ("labels", "masks")
) -> Any:
    return cls(
        133,
        matcher=matcher or HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=50),
        weight_dict={"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        eos_coef=0.1,
        losses=list(losses),
        num_points=50,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )


# ---- outputs in training
def test_outputs_in_training_have_masks(model: Any) -> None:
    outputs = model.sem_seg_head(model.backbone(torch.rand(2, 3, 64, 64)))
    prediction = {"pred_logits": (2, 7, 134), "pred_masks": (2, 7, 16, 16)}
    assert sorted(outputs) == ["aux_outputs", "pred_logits", "pred_masks"]
    assert shapes({key: value for key, value in outputs.items() if key != "aux_outputs"}) == prediction
    assert shapes([dict(layer) for layer in outputs["aux_outputs"]]) == [prediction] * 3
    assert "pred_masks" in outputs and outputs["pred_masks"] is outputs.get("pred_masks")


def test_a_loss_on_the_masks_trains_the_network(model: Any) -> None:
    outputs = model.sem_seg_head(model.backbone(torch.rand(2, 3, 64, 64)))
    F.binary_cross_entropy_with_logits(outputs["pred_masks"], torch.zeros_like(outputs["pred_masks"])).backward()
    assert model.sem_seg_head.predictor.mask_embed.layers[0].weight.grad.abs().sum() > 0
    model.zero_grad()


@pytest.mark.parametrize("read", ["nothing", "last", "all", "changed"])
def test_losses_of_masks_that_were_read_are_the_same(model: Any, read: str) -> None:
    """The masks that a client reads, or changes in place, are those that the criterion compares."""
    torch.manual_seed(3)
    images = torch.rand(2, 3, 64, 64)
    losses = []
    for how in ("nothing", read):
        outputs = model.sem_seg_head(model.backbone(images))
        if how in ("last", "changed"):
            outputs["pred_masks"]
        if how == "all":
            shapes(outputs)
        if how == "changed":
            outputs["pred_masks"] = outputs["pred_masks"].mul_(0)
        torch.manual_seed(5)
        losses.append(model.criterion(outputs, targets()))
    if read == "changed":
        assert losses[1]["loss_mask"].item() == pytest.approx(0.6931, abs=1e-3)  # of logits that are 0 everywhere
        return
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, atol=1e-4, rtol=1e-4)


# ---- criterion
def test_criterion_of_a_reference_decoder(model: Any) -> None:
    losses = model.criterion(decoder_outputs(), targets())
    assert set(losses) == NAMES
    sum(losses.values()).backward()


def test_losses_can_be_scaled_in_place(model: Any) -> None:
    losses = model.criterion(decoder_outputs(), targets())
    before = {name: value.item() for name, value in losses.items()}
    for name in list(losses):
        losses[name] *= model.criterion.weight_dict[name]
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert value.item() == pytest.approx(before[name] * model.criterion.weight_dict[name])


def test_attributes_of_a_criterion() -> None:
    criterion = make_criterion()
    assert (criterion.num_classes, criterion.eos_coef, criterion.losses) == (133, 0.1, ["labels", "masks"])
    assert isinstance(criterion.weight_dict, dict)


def call_super(name: str, calls: list[Any]) -> Any:
    def method(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        return getattr(super(type(self), self), name)(*arguments)

    return method


@pytest.mark.parametrize(
    ("name", "times"), [("loss_labels", 4), ("loss_masks", 4), ("get_loss", 8)], ids=["labels", "masks", "any"]
)
def test_overridden_losses_are_called_layer_by_layer(name: str, times: int) -> None:
    """What `super()` computes there are the losses of the vectorized way, for the same assignment."""
    calls: list[Any] = []
    mine = make_criterion(type("Mine", (SetCriterion,), {name: call_super(name, calls)}), matcher=InOrder())
    plain = make_criterion(matcher=InOrder())
    outputs, losses = decoder_outputs(), []
    for criterion in (plain, mine):
        torch.manual_seed(1)
        losses.append(criterion(outputs, targets()))
    assert len(calls) == times and set(losses[1]) == NAMES
    assert all(torch.equal(losses[0][key], value) for key, value in losses[1].items())
    num_masks = calls[0][-1]
    assert isinstance(num_masks, float) and num_masks == 4.0


def test_losses_layer_by_layer_equal_the_vectorized_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With points that do not depend on the order in which they are drawn."""
    from mask2former.modeling import criterion as module

    points = torch.rand(1, 50, 2)
    monkeypatch.setattr(module, "uncertain_points", lambda logits, *_: points.expand(len(logits), -1, -1))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: points.expand(size[0], -1, -1))
    mine = make_criterion(type("Mine", (SetCriterion,), {"loss_labels": call_super("loss_labels", [])}))
    outputs, truth = decoder_outputs(), targets()
    expected = make_criterion()(outputs, truth)
    for name, value in mine(outputs, truth).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_own_loss_names() -> None:
    class Mine(SetCriterion):
        def get_loss(self, loss, outputs, targets, indices, num_masks):
            if loss == "extra":
                image, query = self._get_src_permutation_idx(indices)
                number, target = self._get_tgt_permutation_idx(indices)
                assert image.tolist() == number.tolist() == [0, 0, 1, 1] and len(query) == len(target) == 4
                return {"loss_extra": outputs["pred_logits"][image, query].sum() * 0}
            return super().get_loss(loss, outputs, targets, indices, num_masks)

    losses = make_criterion(Mine, losses=("labels", "masks", "extra"))(decoder_outputs(), targets())
    assert set(losses) == NAMES | {f"loss_extra{suffix}" for suffix in ("", "_0", "_1", "_2")}
    with pytest.raises(ValueError, match="unknown loss 'other'"):
        make_criterion(Mine, losses=("other",))(decoder_outputs(), targets())


def test_loss_functions_by_hand() -> None:
    logits, masks = torch.zeros(2, 10), torch.ones(2, 10)
    assert float(dice_loss(logits, masks, 2.0)) == pytest.approx(1 - 11 / 16)
    assert float(sigmoid_ce_loss(logits, masks, 2.0)) == pytest.approx(0.693147, abs=1e-5)
    assert float(dice_loss_jit(logits, masks, 2.0)) == pytest.approx(0.3125)
    assert float(sigmoid_ce_loss_jit(logits, masks, 4.0)) == pytest.approx(0.693147 / 2, abs=1e-5)
    assert calculate_uncertainty(torch.tensor([[[3.0, -2.0, 0.0]]])).tolist() == [[[-3.0, -2.0, 0.0]]]
    with pytest.raises(ValueError, match="one channel"):
        calculate_uncertainty(torch.zeros(2, 3, 4))


def test_pairwise_loss_functions_equal_the_loss_functions() -> None:
    logits, masks = torch.randn(3, 10), (torch.rand(2, 10) > 0.5).float()
    assert batch_dice_loss_jit is batch_dice_loss and batch_sigmoid_ce_loss_jit is batch_sigmoid_ce_loss
    for pairwise, single in ((batch_dice_loss, dice_loss), (batch_sigmoid_ce_loss, sigmoid_ce_loss)):
        expected = [[single(x[None], y[None], 1.0).item() for y in masks] for x in logits]
        torch.testing.assert_close(pairwise(logits, masks), torch.tensor(expected), atol=1e-5, rtol=1e-5)


# ---- matcher
class InOrder(nn.Module):
    """A matcher of another project: query i for target i."""

    def forward(self, outputs: Any, targets: Any) -> Any:
        assert outputs["pred_masks"].dim() == 4 and "aux_outputs" not in outputs
        return [(torch.arange(len(t["labels"])), torch.arange(len(t["labels"]))) for t in targets]


@pytest.mark.parametrize("call", ["__call__", "forward", "memory_efficient_forward"])
def test_matcher_returns_pairs(model: Any, call: str) -> None:
    outputs, truth = decoder_outputs(), targets()
    pairs = getattr(model.criterion.matcher, call)(outputs=outputs, targets=truth)
    assert shapes(pairs) == [[(2,), (2,)]] * 2
    assert all(index.dtype == torch.int64 for pair in pairs for index in pair)
    assert [sorted(target.tolist()) for _, target in pairs] == [[0, 1]] * 2


def test_a_matcher_of_another_project() -> None:
    losses = make_criterion(matcher=InOrder())(decoder_outputs(), targets())
    assert set(losses) == NAMES


@pytest.mark.parametrize("name", ["forward", "memory_efficient_forward"])
def test_overridden_matching_is_called_for_each_layer(name: str) -> None:
    calls: list[Any] = []
    matcher = type("Mine", (HungarianMatcher,), {name: call_super(name, calls)})(2.0, 5.0, 5.0, 50)
    make_criterion(matcher=matcher)(decoder_outputs(), targets())
    assert len(calls) == 4


def test_a_hook_on_the_matcher_is_called_for_each_layer() -> None:
    criterion, calls = make_criterion(), []
    criterion.matcher.register_forward_hook(lambda module, inputs, output: calls.append(output))
    criterion(decoder_outputs(), targets())
    assert [len(pairs) for pairs in calls] == [2] * 4


# ---- meta-architectures
def test_an_own_forward_on_the_parts_of_the_model() -> None:
    class Mine(MaskFormer):
        def forward(self, batched_inputs):
            images = self.preprocess(batched_inputs)
            outputs = self.sem_seg_head(self.backbone(images.tensor))
            truth = [x["instances"].to(self.device) for x in batched_inputs]
            losses = self.criterion(outputs, self.prepare_targets(truth, images))
            for name in list(losses):
                if name in self.criterion.weight_dict:
                    losses[name] *= self.criterion.weight_dict[name]
                else:
                    losses.pop(name)
            return losses

    plain, mine, samples = client_model(train=True), Mine(client_config()).train(), batch()
    mine.load_state_dict(plain.state_dict())
    torch.manual_seed(2)
    expected = plain(samples)
    torch.manual_seed(2)
    losses = mine(samples)
    sum(losses.values()).backward()
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])


def test_overridden_targets_reach_the_criterion() -> None:
    class Mine(MaskFormer):
        def prepare_targets(self, targets, images):
            assert all(isinstance(x, Instances) and x.has("gt_weights") for x in targets)
            prepared = super().prepare_targets(targets, images)
            for target in prepared:
                assert sorted(target) == ["labels", "masks"]
                target["masks"] = torch.zeros_like(target["masks"])
                assert target["masks"].shape == (2, *images.tensor.shape[-2:])
            return prepared

    plain, mine, samples = client_model(train=True), Mine(client_config()).train(), batch(size=(60, 50))
    mine.load_state_dict(plain.state_dict())
    for sample in samples:
        sample["instances"].gt_weights = torch.ones(2)
    seen = []
    mine.criterion.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    mine(samples)
    assert not any(target["masks"].any() for target in seen[0])


def test_an_own_criterion_gets_masks_and_padded_targets() -> None:
    class Criterion(nn.Module):
        weight_dict = {"loss_x": 2.0}

        def forward(self, outputs, targets):
            masks = torch.stack([t["masks"].float().mean() for t in targets])
            assert {t["masks"].shape for t in targets} == {(2, 64, 64)}
            return {"loss_x": outputs["pred_masks"].mean() + masks.mean(), "loss_without_weight": masks.sum()}

    model = client_model(train=True)
    model.criterion = Criterion()
    assert shapes(model(batch(size=(60, 50)))) == {"loss_x": ()}


def test_own_keywords() -> None:
    class Mine(MaskFormer):
        @configurable
        def __init__(self, *, alpha, **others):
            super().__init__(**others)
            self.alpha = alpha

        @classmethod
        def from_config(cls, cfg):
            return {**super().from_config(cfg), "alpha": 0.5}

    model = Mine(client_config()).train()
    assert model.alpha == 0.5 and set(model(batch())) == NAMES


def test_a_decoder_of_another_project() -> None:
    class ClientDecoder(nn.Module):
        def __init__(self, cfg, in_channels, mask_classification=True):
            super().__init__()
            self.queries, self.classes = nn.Embedding(7, 32), nn.Linear(32, 134)

        def forward(self, x, mask_features, mask=None):
            queries = self.queries.weight[None].expand(len(mask_features), -1, -1)
            masks = torch.einsum("bqc,bchw->bqhw", queries, mask_features)
            prediction = {"pred_logits": self.classes(queries), "pred_masks": masks}
            return {**prediction, "aux_outputs": [dict(prediction)]}

    TRANSFORMER_DECODER_REGISTRY.register(ClientDecoder)
    try:
        model = client_model(client_config(options=["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "ClientDecoder"]))
    finally:
        del TRANSFORMER_DECODER_REGISTRY._obj_map["ClientDecoder"]
    losses = model.train()(batch())
    assert len(losses) == 6
    sum(losses.values()).backward()
    with torch.no_grad():
        assert sorted(model.eval()(batch())[0]) == ["instances", "panoptic_seg", "sem_seg"]


def test_lazy_config() -> None:
    from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
    from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
    from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import (
        MultiScaleMaskedTransformerDecoder,
    )

    channels = {f"res{i}": ShapeSpec(channels=256 * 2 ** (i - 2), stride=2**i) for i in (2, 3, 4, 5)}
    model = instantiate(
        LazyCall(MaskFormer)(
            backbone=LazyCall(ResNet)(
                stem=LazyCall(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
                stages=LazyCall(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
                out_features=list(channels),
            ),
            sem_seg_head=LazyCall(MaskFormerHead)(
                input_shape=channels,
                num_classes=80,
                pixel_decoder=LazyCall(MSDeformAttnPixelDecoder)(
                    input_shape=channels,
                    transformer_dropout=0.0,
                    transformer_nheads=8,
                    transformer_dim_feedforward=64,
                    transformer_enc_layers=1,
                    conv_dim=32,
                    mask_dim=32,
                    norm="GN",
                    transformer_in_features=["res3", "res4", "res5"],
                    common_stride=4,
                ),
                loss_weight=1.0,
                ignore_value=255,
                transformer_predictor=LazyCall(MultiScaleMaskedTransformerDecoder)(
                    in_channels=32,
                    mask_classification=True,
                    num_classes="${..num_classes}",
                    hidden_dim=32,
                    num_queries=10,
                    nheads=8,
                    dim_feedforward=64,
                    dec_layers=3,
                    pre_norm=False,
                    mask_dim=32,
                    enforce_input_project=False,
                ),
                transformer_in_feature="multi_scale_pixel_decoder",
            ),
            criterion=LazyCall(SetCriterion)(
                num_classes="${..sem_seg_head.num_classes}",
                matcher=LazyCall(HungarianMatcher)(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=100),
                weight_dict={"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
                eos_coef=0.1,
                losses=["labels", "masks"],
                num_points=100,
                oversample_ratio=3.0,
                importance_sample_ratio=0.75,
            ),
            num_queries=10,
            object_mask_threshold=0.8,
            overlap_threshold=0.8,
            metadata=None,
            size_divisibility=32,
            sem_seg_postprocess_before_inference=True,
            semantic_on=False,
            panoptic_on=False,
            instance_on=True,
            test_topk_per_image=100,
            pixel_mean=[123.675, 116.280, 103.530],
            pixel_std=[58.395, 57.120, 57.375],
        )
    )
    assert set(model.train()(batch())) == {"loss_ce", "loss_mask", "loss_dice"}
    with torch.no_grad():
        assert list(model.eval()(batch())[0]) == ["instances"]


def test_a_class_that_the_model_does_not_have_is_named() -> None:
    model, samples = client_model(train=True), batch(1)
    samples[0]["instances"].gt_classes[1] = 133
    samples[0]["file_name"] = "street.jpg"
    with pytest.raises(ValueError, match=r"street\.jpg has class 133.*NUM_CLASSES is 133"):
        model(samples)


def test_weights_of_losses_may_be_learned_and_losses_of_the_model_scaled() -> None:
    model, samples = client_model(train=True), batch()
    torch.manual_seed(1)
    expected = model(samples)
    weight = nn.Parameter(torch.tensor(2.0))
    model.criterion.weight_dict = {**model.criterion.weight_dict, "loss_ce": weight}
    torch.manual_seed(1)
    losses = model(samples)
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name])
        expected[name] *= 2
        losses[name] *= 2
    sum(losses.values()).backward()
    assert weight.grad is not None and weight.grad.item() == pytest.approx(losses["loss_ce"].item() / 2, rel=1e-4)
