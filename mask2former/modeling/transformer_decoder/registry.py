"""Registry of transformer decoders, how one is built, and the settings that they share."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from ...utils.registry import shared

TRANSFORMER_DECODER_REGISTRY: Registry = shared("TRANSFORMER_MODULE", lambda: Registry("TRANSFORMER_MODULE"))
TRANSFORMER_DECODER_REGISTRY.__doc__ = "Transformer decoders: called as cls(cfg, in_channels, mask_classification)."


def build_transformer_decoder(cfg: Any, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME for levels of `in_channels` channels."""
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    return TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, in_channels, mask_classification)


def decoder_settings(cfg: Any, in_channels: int, mask_classification: bool) -> dict[str, Any]:
    """Read the arguments that all decoders of this package share from the config."""
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    return {
        "in_channels": in_channels,
        "mask_classification": mask_classification,
        "num_classes": head.NUM_CLASSES,
        "hidden_dim": node.HIDDEN_DIM,
        "num_queries": node.NUM_OBJECT_QUERIES,
        "nheads": node.NHEADS,
        "dim_feedforward": node.DIM_FEEDFORWARD,
        "pre_norm": node.PRE_NORM,
        "enforce_input_project": node.ENFORCE_INPUT_PROJ,
        "mask_dim": head.MASK_DIM,
    }
