"""Per-pixel heads as other programs build and override them: `layers`, `losses`, and the constructors' keywords."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from torch import Tensor, nn

from mask2former.modeling.meta_arch.per_pixel_baseline import PerPixelBaselineHead, PerPixelBaselinePlusHead
from mask2former.modeling.pixel_decoder.fpn import BasePixelDecoder

from .client_models import ADE20K, client_config

SHAPES = {f"res{i}": ShapeSpec(channels=4, stride=2**i) for i in (2, 3, 4, 5)}
FEATURES = {name: torch.randn(1, 4, 64 // s.stride, 64 // s.stride) for name, s in SHAPES.items()}
LABELS = torch.arange(64)[None, :, None].expand(1, 64, 64) % 3
OPTIONS = [
    *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"),
    *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder"),
]


class Predictor(nn.Module):
    """A decoder of three predictions, of which it returns the earlier ones in two entries."""

    def forward(self, x: Tensor, mask_features: Tensor, mask: Any = None) -> dict[str, Any]:
        masks = [mask_features[:, :3] * scale for scale in (1, 2, 3)]
        return {"pred_masks": masks[-1], "aux_outputs": [{"pred_masks": m} for m in masks[:-1]]}


def plain(cls: type[PerPixelBaselineHead] = PerPixelBaselineHead) -> PerPixelBaselineHead:
    torch.manual_seed(0)
    decoder = BasePixelDecoder(SHAPES, conv_dim=32, mask_dim=8)
    return cls(SHAPES, num_classes=3, pixel_decoder=decoder, loss_weight=1.0, ignore_value=255)


def plus(cls: Any = PerPixelBaselinePlusHead, deep_supervision: bool = True) -> PerPixelBaselinePlusHead:
    torch.manual_seed(0)
    return cls(
        SHAPES,
        transformer_predictor=Predictor(),
        transformer_in_feature="pixel_embedding",
        deep_supervision=deep_supervision,
        num_classes=3,
        pixel_decoder=BasePixelDecoder(SHAPES, conv_dim=32, mask_dim=8),
    )


def test_results_of_the_parts() -> None:
    head = plain()
    assert head.predictor.in_channels == 8 and head._version == 2
    scores = head.layers(FEATURES)
    assert scores.shape == (1, 3, 16, 16)
    assert head.train()(FEATURES, LABELS)[1] == head.losses(scores, LABELS) and set(head.losses(scores, LABELS)) == {
        "loss_sem_seg"
    }
    result, losses = head.eval()(FEATURES)
    assert result.shape == (1, 3, 64, 64) and losses == {}


def test_results_of_the_parts_with_a_transformer() -> None:
    head = plus()
    scores, earlier = head.layers(FEATURES)
    assert scores.shape == (1, 3, 16, 16) and [entry["pred_masks"].shape for entry in earlier] == [scores.shape] * 2
    losses = head.train()(FEATURES, LABELS)[1]
    assert list(losses) == ["loss_sem_seg", "loss_sem_seg_0", "loss_sem_seg_1"]
    assert losses["loss_sem_seg_1"] == head.losses(earlier[1]["pred_masks"], LABELS)["loss_sem_seg"]
    alone = plus(deep_supervision=False)
    assert alone.layers(FEATURES)[1] is None and list(alone.train()(FEATURES, LABELS)[1]) == ["loss_sem_seg"]


class Doubled(PerPixelBaselineHead):
    def layers(self, features: Any) -> Any:
        return 2 * super().layers(features)

    def losses(self, predictions: Any, targets: Any) -> Any:
        return {**super().losses(predictions, targets), "loss_mine": predictions.mean()}


class DoubledPlus(PerPixelBaselinePlusHead):
    def layers(self, features: Any) -> Any:
        scores, earlier = super().layers(features)
        return 2 * scores, earlier

    def losses(self, predictions: Any, targets: Any) -> Any:
        return {**super().losses(predictions, targets), "loss_mine": predictions.mean()}


@pytest.mark.parametrize(("build", "cls", "count"), [(plain, Doubled, 2), (plus, DoubledPlus, 6)])
def test_overrides_act(build: Any, cls: type, count: int) -> None:
    head, mine = build().eval(), build(cls).eval()
    torch.testing.assert_close(mine(FEATURES)[0], 2 * head(FEATURES)[0])
    losses = mine.train()(FEATURES, LABELS)[1]
    assert len(losses) == count and "loss_mine" in losses


def test_a_subclass_with_the_constructor_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(PerPixelBaselineHead):
        @configurable
        def __init__(
            self, input_shape: Any, *, num_classes: int, pixel_decoder: Any, loss_weight: float, ignore_value: int
        ) -> None:
            super().__init__(
                input_shape,
                num_classes=num_classes,
                pixel_decoder=pixel_decoder,
                loss_weight=loss_weight,
                ignore_value=ignore_value,
            )

    monkeypatch.setitem(SEM_SEG_HEADS_REGISTRY._obj_map, "Own", Own)
    head = build_model(client_config(ADE20K, [*OPTIONS, "MODEL.SEM_SEG_HEAD.NAME", "Own"])).sem_seg_head
    assert type(head) is Own and head.predictor.in_channels == 32 and head.common_stride == 4
