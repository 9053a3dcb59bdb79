"""Mask2Former's transformer decoder with a cosine classifier, which keeps rare classes from having small weights."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from mask2former.modeling.transformer_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder
from torch import Tensor, nn


class CosineClassifier(nn.Module):
    """Query states (..., C) -> class logits (..., K + 1): scaled cosines with a vector for each class."""

    def __init__(self, channels: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels))
        self.scale = scale

    def forward(self, states: Tensor) -> Tensor:
        return self.scale * F.normalize(states, dim=-1) @ F.normalize(self.weight, dim=-1).T


@TRANSFORMER_DECODER_REGISTRY.register()
class CosineDecoder(MultiScaleMaskedTransformerDecoder):
    """For MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME."""

    @configurable
    def __init__(self, *arguments: Any, scale: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.class_embed = CosineClassifier(keywords["hidden_dim"], keywords["num_classes"] + 1, scale)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        return {**arguments, "scale": cfg.MODEL.MINE.SCALE}
