"""The per-pixel baselines of MaskFormer v1 (arXiv 2107.06278, section 4): class scores per pixel, trained with
cross-entropy. They are heads of detectron2's meta-architecture `SemanticSegmentor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...utils.registry import register
from ...utils.signatures import fitting
from ..transformer_decoder.maskformer_transformer_decoder import StandardTransformerDecoder
from .mask_former_head import common_settings, decoder_channels, decoder_inputs

Output = tuple[Tensor | None, dict[str, Tensor]]


@register(SEM_SEG_HEADS_REGISTRY)
class PerPixelBaselineHead(nn.Module):
    """Per-pixel classifier: a 1x1 convolution on the mask features.

    Args:
        input_shape: name -> ShapeSpec of the backbone maps.
        num_classes: K.
        pixel_decoder: module with `forward_features` (contract: ADVANCED_USAGE.md).
        loss_weight: factor of the loss.
        ignore_value: label of ignored pixels.
        mask_dim: channels of the mask features; by default `mask_dim` of the pixel decoder.
        common_stride: stride of the mask features; the scores are upsampled by it.
    """

    _version = 2  # as in MaskFormerHead

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
        mask_dim: int | None = None,
        common_stride: int = 4,
    ) -> None:
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.common_stride = common_stride
        self.pixel_decoder = pixel_decoder
        channels: Any = pixel_decoder.mask_dim if mask_dim is None else mask_dim
        self.predictor: nn.Module = Conv2d(channels, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        optional = {"mask_dim": head.MASK_DIM, "common_stride": head.COMMON_STRIDE}
        settings = common_settings(cfg, input_shape) | optional
        return fitting(cls, settings, optional | {"common_stride": 4})

    def forward(self, features: Mapping[str, Tensor], targets: Tensor | None = None) -> Output:
        """Score the classes at each pixel, by way of `layers` and `losses`.

        Args:
            features: backbone maps (B, C, H', W') by name.
            targets: in training int64 (B, H, W), classes in [0, K) or `ignore_value`.

        Returns:
            In training None and the losses; otherwise class logits (B, K, H, W), before the softmax, and {}.
        """
        scores = self.layers(features)
        return (None, self.losses(scores, targets)) if self.training else (self._upsample(scores), {})

    def layers(self, features: Mapping[str, Tensor]) -> Any:
        """Return class logits (B, K, H4, W4)."""
        mask_features, _ = decoder_inputs(self.pixel_decoder, "pixel_embedding", features)
        return self.predictor(mask_features)

    def _upsample(self, scores: Tensor) -> Tensor:
        factor = float(self.common_stride)
        return F.interpolate(scores.float(), scale_factor=factor, mode="bilinear", align_corners=False)

    def losses(self, predictions: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Return {"loss_sem_seg"}: the mean cross-entropy over labeled pixels, weighted; zero without labeled pixels.

        Args:
            predictions: class logits (B, K, H4, W4).
            targets: int64 (B, H, W), classes in [0, K) or `ignore_value`.
        """
        if targets is None:
            raise ValueError(
                "training samples have no 'sem_seg', the label map that per-pixel heads require; "
                "set INPUT.DATASET_MAPPER_NAME to 'mask_former_semantic'"
            )
        height, width = targets.shape[-2:]
        # Where H is not a multiple of the stride, the upsampled map is larger than the image.
        scores = self._upsample(predictions)[..., :height, :width]
        if scores.shape[-2:] != targets.shape[-2:]:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {self.common_stride} does not scale the mask features to the "
                f"label map size {height} x {width}; set it to the stride of the finest map of "
                "MODEL.SEM_SEG_HEAD.IN_FEATURES"
            )
        total = F.cross_entropy(scores, targets, reduction="sum", ignore_index=self.ignore_value)
        return {"loss_sem_seg": total / (targets != self.ignore_value).sum().clamp(min=1) * self.loss_weight}


@register(SEM_SEG_HEADS_REGISTRY)
class PerPixelBaselinePlusHead(PerPixelBaselineHead):
    """A transformer decoder whose query k is the mask of class k; its mask logits are the class logits.

    Args:
        transformer_predictor: decoder without classes; checkpoints call it `predictor`.
        transformer_in_feature: input of the decoder, as in `MaskFormerHead`.
        deep_supervision: in training supervise earlier predictions of the decoder, too.
        others: see `PerPixelBaselineHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
        deep_supervision: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, **options)
        self.predictor = transformer_predictor
        self.transformer_in_feature = transformer_in_feature
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        queries, classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if queries != classes:
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries}, but PerPixelBaselinePlusHead has one query per "
                f"class; set it to MODEL.SEM_SEG_HEAD.NUM_CLASSES, {classes}"
            )
        channels = decoder_channels(cfg, input_shape)
        return super().from_config(cfg, input_shape) | {
            "transformer_predictor": StandardTransformerDecoder(cfg, channels, mask_classification=False),
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
            "deep_supervision": cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION,
        }

    def forward(self, features: Mapping[str, Tensor], targets: Tensor | None = None) -> Output:
        """Score the classes at each pixel as `PerPixelBaselineHead` does.

        In training the losses of earlier predictions are added, with the suffixes _0, _1, ...
        """
        scores, earlier = self.layers(features)
        if not self.training:
            return self._upsample(scores), {}
        losses = self.losses(scores, targets)
        for i, prediction in enumerate(earlier or ()):
            losses |= {f"{name}_{i}": loss for name, loss in self.losses(prediction["pred_masks"], targets).items()}
        return None, losses

    def layers(self, features: Mapping[str, Tensor]) -> Any:
        """Return class logits (B, K, H4, W4), and those of earlier predictions, {"pred_masks"} each, or None."""
        source, mask_features = decoder_inputs(self.pixel_decoder, self.transformer_in_feature, features)
        outputs = self.predictor(source, mask_features)
        return outputs["pred_masks"], outputs["aux_outputs"] if self.deep_supervision else None
