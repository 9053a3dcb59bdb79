"""The segmentation head: a pixel decoder, then a transformer decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...utils.overrides import as_written, extensible
from ...utils.registry import register
from ...utils.signatures import accepted
from ..denoising import NoisedObjects
from ..pixel_decoder import build_pixel_decoder
from ..transformer_decoder import build_transformer_decoder


@register(SEM_SEG_HEADS_REGISTRY)
@extensible
class MaskFormerHead(nn.Module):
    """Pixel decoder and transformer decoder on the feature maps of a backbone.

    Args:
        pixel_decoder: module with `forward_features` (contract: ADVANCED_USAGE.md).
        transformer_predictor: the decoder; checkpoints call it `predictor`.
        transformer_in_feature: input of the decoder: "multi_scale_pixel_decoder" (three levels),
            "transformer_encoder" (the coarsest encoded map), "pixel_embedding" (the mask features), or a
            backbone map by name.
        loss_weight, ignore_value: attributes for compatibility with other heads; the criterion weights the mask losses.
    """

    # In state dicts: the layout of the pixel decoder's keys, which the reference implementation renames in older files.
    _version = 2

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
        loss_weight: float = 1.0,
        ignore_value: int = -1,
    ) -> None:
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.num_classes = num_classes
        # Not used here: meta-architectures of detectron2 read them from any head.
        self.ignore_value, self.loss_weight, self.common_stride = ignore_value, loss_weight, 4
        self.pixel_decoder = pixel_decoder
        self.predictor = transformer_predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        channels = decoder_channels(cfg, input_shape)
        return common_settings(cfg, input_shape) | {
            "transformer_predictor": build_transformer_decoder(cfg, channels, mask_classification=True),
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    def forward(
        self,
        features: Mapping[str, Tensor],
        mask: Tensor | None = None,
        *,
        frames: int | None = None,
        noised: NoisedObjects | None = None,
    ) -> dict[str, Any]:
        """Return the outputs of the decoder for maps (B * T, C, H, W) by name, by way of `layers`.

        Args:
            features: maps of the backbone.
            mask: handed on to the decoder.
            frames: T; None for images.
            noised: objects for denoising queries, in training.
        """
        return self.layers(features, mask, **_given(self.layers, frames, noised))

    def layers(
        self,
        features: Mapping[str, Tensor],
        mask: Tensor | None = None,
        *,
        frames: int | None = None,
        noised: NoisedObjects | None = None,
    ) -> dict[str, Any]:
        """Run pixel decoder and transformer decoder; arguments and result as for `forward`."""
        return self.predict(*self.pixel_maps(features), mask, **_given(self.predict, frames, noised))

    def pixel_maps(self, features: Mapping[str, Tensor]) -> tuple[Tensor | list[Tensor], Tensor]:
        """Return the input of the decoder and the mask features (B * T, mask_dim, H4, W4), frame by frame."""
        return decoder_inputs(self.pixel_decoder, self.transformer_in_feature, features)

    def predict(
        self,
        source: Tensor | list[Tensor],
        mask_features: Tensor,
        mask: Tensor | None = None,
        *,
        frames: int | None = None,
        noised: NoisedObjects | None = None,
    ) -> dict[str, Any]:
        """Return the outputs of the decoder for the result of `pixel_maps`."""
        return self.predictor(source, mask_features, mask, **_given(self.predictor, frames, noised))

    @property
    def by_frame(self) -> bool:
        """Return whether `pixel_maps` and `predict` are the whole head: no override or hook stands around them."""
        return as_written(self, MaskFormerHead, "forward", "layers")


def _given(function: Callable[..., Any], frames: int | None, noised: NoisedObjects | None) -> dict[str, Any]:
    """Return the keywords that are not None, of those that a decoder or head of another project takes."""
    keywords = {name: value for name, value in (("frames", frames), ("noised", noised)) if value is not None}
    return accepted(function, keywords) if keywords else {}


def common_settings(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
    """Read the arguments that all segmentation heads of this package share from the config."""
    head = cfg.MODEL.SEM_SEG_HEAD
    missing = [name for name in head.IN_FEATURES if name not in input_shape]
    if missing:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the backbone has {sorted(input_shape)}")
    return {
        "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
        "num_classes": head.NUM_CLASSES,
        "pixel_decoder": build_pixel_decoder(cfg, input_shape),
        "loss_weight": head.LOSS_WEIGHT,
        "ignore_value": head.IGNORE_VALUE,
    }


def decoder_channels(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> int:
    """Return the channels of the decoder input that TRANSFORMER_IN_FEATURE selects."""
    head, source = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    in_channels = {
        "multi_scale_pixel_decoder": head.CONVS_DIM,
        "transformer_encoder": head.CONVS_DIM,
        "pixel_embedding": head.MASK_DIM,
    }
    if source not in in_channels and source not in input_shape:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE '{source}' is neither one of {sorted(in_channels)} "
            f"nor a backbone feature ({sorted(input_shape)})"
        )
    return in_channels[source] if source in in_channels else input_shape[source].channels


def decoder_inputs(
    pixel_decoder: nn.Module, in_feature: str, features: Mapping[str, Tensor]
) -> tuple[Tensor | list[Tensor], Tensor]:
    """Run the pixel decoder; return the transformer decoder input and the mask features (B, mask_dim, H4, W4)."""
    decode: Callable[..., Any] = pixel_decoder.forward_features  # type: ignore[assignment]
    mask_features, encoded, levels = decode(features)
    if in_feature == "transformer_encoder" and encoded is None:
        raise ValueError(
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE 'transformer_encoder' needs a pixel decoder with an encoder: "
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME '{type(pixel_decoder).__name__}' has none"
        )
    decoded = {
        "multi_scale_pixel_decoder": levels,
        "transformer_encoder": encoded,
        "pixel_embedding": mask_features,
    }
    return decoded[in_feature] if in_feature in decoded else features[in_feature], mask_features
