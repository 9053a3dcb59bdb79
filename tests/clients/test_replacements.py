"""Parts of a model that programs replace from outside: methods of classes, modules, hooks, keys of dictionaries."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from detectron2.config import configurable
from torch import Tensor, nn

from mask2former import MaskFormer
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder, StandardTransformerDecoder
from mask2former.modeling.transformer_decoder.layers import CrossAttentionLayer
from mask2former.modeling.transformer_decoder.position_encoding import PositionEmbeddingSine
from mask2former.test_time_augmentation import with_tta
from mask2former.utils.lazy_dict import Later, LazyDict
from mask2former_video import VideoMaskFormer, add_maskformer2_video_config

from .client_models import CONFIGS, SMALL, batch, client_config, client_model, decoder_outputs, shapes, targets


@pytest.fixture
def model() -> Any:
    return client_model(train=True)


def masks_of(model: Any) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model.sem_seg_head(model.backbone(torch.rand(2, 3, 64, 64)))["pred_masks"]


@pytest.mark.parametrize(
    ("cls", "name", "train", "times"),
    [
        (SetCriterion, "loss_masks", True, 4),
        (SetCriterion, "get_loss", True, 8),
        (HungarianMatcher, "memory_efficient_forward", True, 4),
        (MultiScaleMaskedTransformerDecoder, "forward_prediction_heads", True, 4),
        (MaskFormer, "semantic_inference", False, 2),
        (MaskFormer, "instance_inference", False, 2),
    ],
)
def test_a_method_assigned_to_a_class_is_called(
    monkeypatch: pytest.MonkeyPatch, model: Any, cls: type, name: str, train: bool, times: int
) -> None:
    calls, original = [], getattr(cls, name)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cls, name, counted)
    with torch.no_grad():
        model.train(train)(batch())
    assert len(calls) == times


def test_losses_of_the_last_prediction_see_the_earlier_ones(model: Any) -> None:
    seen = []

    class Mine(SetCriterion):
        def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_masks: float) -> Any:
            seen.append("aux_outputs" in outputs)
            return super().get_loss(loss, outputs, targets, indices, num_masks)

    criterion = Mine(133, HungarianMatcher(num_points=20), {}, 0.1, ["labels"], 20)
    criterion(model.sem_seg_head(model.backbone(torch.rand(2, 3, 64, 64))), targets())
    assert seen == [True, False, False, False]


def test_dictionaries_that_share_a_value_get_one_tensor() -> None:
    calls: list[int] = []
    value = Later(lambda: calls.append(1) or torch.zeros(2))
    first, second = LazyDict(a=value), LazyDict(a=value)
    assert first["a"] is second["a"] and len(calls) == 1
    assert LazyDict(a=value).unread("a") is None  # somebody may have changed it in place


def test_further_outputs_of_a_decoder_are_ignored(model: Any) -> None:
    outputs, expected = decoder_outputs(), targets()
    torch.manual_seed(0)
    plain = model.criterion(outputs, expected)
    outputs["pred_embeds"], outputs["mask_features"] = torch.randn(2, 7, 8), torch.randn(2, 1, 8, 4, 4)
    for target in expected:  # DETR's targets have the size of the image there
        target["size"], target["name"] = torch.tensor([32, 32]), torch.tensor([1])
    torch.manual_seed(0)
    assert model.criterion(outputs, expected) == plain
    for target in expected:
        target["size"] = (32, 32)
    torch.manual_seed(0)
    assert model.criterion(outputs, expected) == plain


def test_earlier_predictions_may_have_other_numbers_of_queries_and_sizes(model: Any) -> None:
    outputs = decoder_outputs()
    other = {"pred_logits": torch.randn(2, 9, 134), "pred_masks": torch.randn(2, 9, 32, 32)}
    outputs["aux_outputs"][0] = other
    losses = model.criterion(outputs, targets())
    assert len(losses) == 12
    torch.testing.assert_close(losses["loss_ce_0"], model.criterion(other, targets())["loss_ce"], rtol=0.1, atol=0)


def test_soft_masks_keep_their_values() -> None:
    soft = torch.rand(2, 8, 8)
    truth = GroundTruth.of(
        [{"labels": torch.zeros(2), "masks": soft}, {"labels": torch.zeros(1), "masks": soft[:1] > 0.5}], soft.device
    )
    centers = torch.tensor([[[2.5 / 8, 3.5 / 8]]])
    sampled = truth.bank.sample(torch.arange(3), centers, truth.size)
    torch.testing.assert_close(
        sampled, torch.stack((soft[0, 3, 2], soft[1, 3, 2], (soft[0, 3, 2] > 0.5).float()))[:, None]
    )


def test_own_position_encodings_act(model: Any) -> None:
    class Own(PositionEmbeddingSine):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(x, mask).flip(1)

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PositionEmbeddingSine(16, normalize=True)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.inner(x, mask)

    expected = masks_of(model)
    model.sem_seg_head.predictor.pe_layer = Other()
    torch.testing.assert_close(masks_of(model), expected)
    calls: list[Any] = []
    model.sem_seg_head.predictor.pe_layer = PositionEmbeddingSine(16, normalize=True)
    model.sem_seg_head.predictor.pe_layer.register_forward_hook(lambda module, inputs, output: calls.append(output))
    torch.testing.assert_close(masks_of(model), expected)
    assert shapes(calls) == [(2, 32, 2, 2), (2, 32, 4, 4), (2, 32, 8, 8)]
    model.sem_seg_head.predictor.pe_layer = Own(16, normalize=True)
    assert not torch.allclose(masks_of(model), expected)


def test_attentions_of_torch_replace_ours(model: Any) -> None:
    expected = masks_of(model)
    decoder = model.sem_seg_head.predictor
    for layer in (*decoder.transformer_cross_attention_layers, *decoder.transformer_self_attention_layers):
        name = "multihead_attn" if isinstance(layer, CrossAttentionLayer) else "self_attn"
        attention = nn.MultiheadAttention(32, 4)
        attention.load_state_dict(getattr(layer, name).state_dict())
        setattr(layer, name, attention)
    torch.testing.assert_close(masks_of(model), expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_of_another_project_gets_a_mask_for_each_head(model: Any) -> None:
    seen = []

    class Own(CrossAttentionLayer):
        def forward(self, tgt: Tensor, memory: Tensor, memory_mask: Any = None, **others: Any) -> Tensor:
            seen.append(memory_mask)
            return super().forward(tgt, memory, memory_mask, **others)

    expected = masks_of(model)
    for layer in model.sem_seg_head.predictor.transformer_cross_attention_layers:
        layer.__class__ = Own
    torch.testing.assert_close(masks_of(model), expected)
    assert shapes(seen) == [(8, 7, 4), (8, 7, 16), (8, 7, 64)]


def test_class_embed_of_another_project_gets_one_layer(model: Any) -> None:
    weight, seen = torch.randn(134, 32), []

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bqc,kc->bqk", x, weight)

    def outputs() -> Any:
        torch.manual_seed(1)
        return model.sem_seg_head(model.backbone(torch.rand(2, 3, 64, 64)))

    plain = outputs()
    hook = model.sem_seg_head.predictor.class_embed.register_forward_hook(lambda *args: seen.append(args[-1]))
    hooked = outputs()
    hook.remove()
    assert shapes(seen) == [(2, 7, 134)] * 4
    assert torch.equal(seen[-1], hooked["pred_logits"]) and torch.equal(
        seen[0], hooked["aux_outputs"][0]["pred_logits"]
    )
    torch.testing.assert_close(hooked["pred_logits"], plain["pred_logits"])
    model.sem_seg_head.predictor.class_embed = Own()
    assert len(model(batch())) == 12


def test_decoder_of_maskformer_in_the_forms_of_others() -> None:
    class Mine(StandardTransformerDecoder):
        def _set_aux_loss(self, outputs_class: Any, outputs_seg_masks: Any) -> Any:
            assert len(outputs_class) == len(outputs_seg_masks) == 2
            return [{**layer, "mine": 1} for layer in super()._set_aux_loss(outputs_class, outputs_seg_masks)]

    settings: dict[str, Any] = {"num_classes": 3, "hidden_dim": 16, "num_queries": 5, "nheads": 2, "dropout": 0.0}
    settings |= {"dim_feedforward": 16, "enc_layers": 0, "dec_layers": 2, "pre_norm": False, "deep_supervision": True}
    settings |= {"mask_dim": 8, "enforce_input_project": False}
    plain, mine = StandardTransformerDecoder(16, **settings), Mine(16, **settings)
    assert plain.num_queries == 5 and plain.aux_loss
    mine.load_state_dict(plain.state_dict())
    x, features = torch.rand(2, 16, 4, 4), torch.rand(2, 8, 8, 8)
    expected, found = plain(x, features), mine(x, features)
    assert found["aux_outputs"][0].pop("mine") == 1
    torch.testing.assert_close(dict(found), {**expected, "aux_outputs": [dict(x) for x in expected["aux_outputs"]]})


@pytest.mark.parametrize(
    "module",
    [
        "mask2former.modeling.transformer_decoder.transformer",
        "mask2former.modeling.transformer_decoder.mask2former_transformer_decoder",
        "mask2former.modeling.pixel_decoder.msdeformattn",
        "mask2former_video.modeling.transformer_decoder.video_mask2former_transformer_decoder",
    ],
)
def test_activations_by_name(module: str) -> None:
    assert importlib.import_module(module)._get_activation_fn("relu") is torch.nn.functional.relu


def test_augmentation_at_test_time_calls_replaced_methods(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Mine(MaskFormer):
        def semantic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
            calls.append("semantic")
            return super().semantic_inference(mask_cls, mask_pred)

        def instance_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Any:
            calls.append("instance")
            return super().instance_inference(mask_cls, mask_pred)

    class Own(MaskFormer):
        def forward(self, batched_inputs: Any) -> Any:
            return super().forward(batched_inputs)

    cfg = client_config(options=["TEST.AUG.MIN_SIZES", [64], "TEST.AUG.FLIP", True])
    record = [{"image": batch(1)[0]["image"], "height": 40, "width": 50}]
    plain, mine = client_model(cfg), Mine(cfg).eval()
    mine.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, found = with_tta(cfg, plain)(record)[0], with_tta(cfg, mine)(record)[0]
    assert calls == ["semantic", "semantic", "instance"]
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])
    torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert list(with_tta(cfg, Own(cfg).eval())(record)[0]) == ["sem_seg"]
    assert "Own has its own forward" in caplog.text


def video_config() -> Any:
    cfg = client_config()
    add_maskformer2_video_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"))
    cfg.merge_from_list([x for pair in SMALL.items() for x in pair])
    return cfg


def clip() -> list[dict[str, Any]]:
    return [{"image": [sample["image"] for sample in batch()], "height": 40, "width": 50}]


def test_video_model_with_the_published_constructor() -> None:
    class Mine(VideoMaskFormer):
        @configurable
        def __init__(
            self,
            *,
            backbone,
            sem_seg_head,
            criterion,
            num_queries,
            object_mask_threshold,
            overlap_threshold,
            metadata,
            size_divisibility,
            sem_seg_postprocess_before_inference,
            pixel_mean,
            pixel_std,
            num_frames,
        ):
            super().__init__(
                backbone=backbone,
                sem_seg_head=sem_seg_head,
                criterion=criterion,
                num_queries=num_queries,
                object_mask_threshold=object_mask_threshold,
                overlap_threshold=overlap_threshold,
                metadata=metadata,
                size_divisibility=size_divisibility,
                sem_seg_postprocess_before_inference=sem_seg_postprocess_before_inference,
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
                num_frames=num_frames,
            )

    model = Mine(video_config())
    assert model.num_frames == 2 and model.sem_seg_postprocess_before_inference and model.overlap_threshold == 0.8


def test_overridden_inference_of_videos_makes_the_result() -> None:
    seen: list[Any] = []

    class Mine(VideoMaskFormer):
        def inference_video(self, pred_cls, pred_masks, img_size, output_height, output_width):
            seen.append((tuple(pred_cls.shape), tuple(pred_masks.shape), img_size, output_height, output_width))
            return super().inference_video(pred_cls, pred_masks, img_size, output_height, output_width)

    torch.manual_seed(0)
    plain, mine = VideoMaskFormer(video_config()).eval(), Mine(video_config()).eval()
    mine.load_state_dict(plain.state_dict())
    record = clip()
    with torch.no_grad():
        expected, found = plain(record), mine(record)
    assert seen == [((7, 41), (7, 2, 64, 64), (64, 64), 40, 50)]
    assert found["pred_scores"] == expected["pred_scores"] and found["image_size"] == (40, 50)
    assert all(torch.equal(a, b) for a, b in zip(found["pred_masks"], expected["pred_masks"], strict=True))
    empty = plain.inference_video(torch.zeros(0, 41), torch.zeros(0, 2, 64, 64), (64, 64), 40, 50)
    assert empty["pred_scores"] == empty["pred_masks"] == []
