"""The pixel decoder of Mask2Former: a deformable-attention encoder over three levels, then one FPN level at stride 4.

Mask2Former (arXiv 2112.01527), section 3.2.2; the encoder is that of Deformable DETR (arXiv 2010.04159).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...errors import ConfigError
from ...ops import ms_deform_attn
from ...utils.registry import register
from ..shape_cache import ShapeCache
from ..transformer_decoder.position_encoding import PositionEmbeddingSine
from .fpn import lateral_convolution, output_convolution

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Geometry:
    """Sizes of the L levels, and centers of their S tokens.

    Attributes:
        shapes: (H, W) of each level.
        points: (S, 2) center (x, y) of every token in [0, 1] of its own map, fp32.
    """

    shapes: Shapes
    points: Tensor

    @classmethod
    def of(cls, shapes: Shapes, device: torch.device) -> Geometry:
        """Build on the device from Python ints, without a synchronizing copy."""
        centers = []
        for height, width in shapes:
            y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
            grid = torch.stack((x[None].expand(height, -1), y[:, None].expand(-1, width)), dim=-1)
            centers.append(grid.flatten(0, 1))
        return cls(tuple(shapes), torch.cat(centers))


class MSDeformAttn(nn.Module):
    """Self-attention over the tokens of all levels, each sampling P points per level and head."""

    def __init__(self, dim: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} must be a multiple of heads {heads}")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init()

    def _init(self) -> None:
        """Initialize head h to sample in direction h, point p at distance p + 1 (Deformable DETR, appendix A.4)."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().max(-1, keepdim=True).values  # on the unit square
        distance = torch.arange(1, self.points + 1, dtype=torch.float32)
        grid = direction[:, None, None] * distance[:, None]  # (heads, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.levels, -1, -1).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, geometry: Geometry, tokens: Tensor) -> Tensor:
        """Attend from each query to its sampling points.

        Args:
            query: (B, N, C), tokens with their position encoding.
            geometry: centers of the queries, and sizes of the levels.
            tokens: (B, S, C), the levels one after another.

        Returns:
            (B, N, C).
        """
        value = self.value_proj(tokens).unflatten(-1, (self.heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (self.heads, self.levels, self.points, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.heads, self.levels, self.points))
        return self.output_proj(ms_deform_attn(value, geometry.shapes, offsets, logits, geometry.points))


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both residual with post-norm."""

    def __init__(self, dim: int, hidden: int, dropout: float, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, levels, heads, points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, geometry: Geometry) -> Tensor:
        """Apply the layer to `tokens` (B, S, C) with position encoding `position` (S, C); returns (B, S, C)."""
        attended = self.self_attn(tokens + position, geometry, tokens)
        tokens = self.norm1(tokens + self.dropout(attended))
        expanded = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(expanded)))


class _Encoder(nn.Module):
    """Stack of layers; a separate module because checkpoints name it `transformer.encoder`."""

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableEncoder(nn.Module):
    """Joint encoder of L feature maps."""

    def __init__(self, layers: Sequence[EncoderLayer], dim: int, levels: int) -> None:
        super().__init__()
        self.encoder = _Encoder(layers)
        self.level_embed = nn.Parameter(torch.randn(levels, dim))
        self.position = PositionEmbeddingSine(dim // 2, normalize=True)
        self._geometry: ShapeCache[Geometry] = ShapeCache()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Encode L maps (B, C, H, W); returns maps in the same order and shapes."""
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        device = maps[0].device
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        position = torch.cat(
            [self.position.tokens(1, h, w, device) + e for (h, w), e in zip(shapes, self.level_embed, strict=True)]
        ).to(tokens.dtype)
        geometry = self._geometry((*shapes, device), lambda: Geometry.of(shapes, device))
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, geometry)
        parts = tokens.split([h * w for h, w in shapes], dim=1)
        return [p.transpose(1, 2).unflatten(2, shape) for p, shape in zip(parts, shapes, strict=True)]


_GROUPS = 32  # of the norms


def _projection(in_channels: int, channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, 1)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, channels))


@register(SEM_SEG_HEADS_REGISTRY)
class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable encoder and FPN: mask features at stride 4 and three levels for the transformer decoder.

    Args:
        input_shape: name -> ShapeSpec of the backbone maps.
        transformer_in_features: inputs of the encoder; finer maps enter the FPN.
        conv_dim: channels of the encoder and the FPN.
        mask_dim: channels of the mask features.
        norm: norm of the FPN convolutions ("GN"; empty for none).
        common_stride: stride of the mask features.
    """

    num_output_levels = 3

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_dropout: float = 0.0,
        transformer_nheads: int = 8,
        transformer_dim_feedforward: int = 1024,
        transformer_enc_layers: int = 6,
        transformer_points: int = 4,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
        transformer_in_features: Sequence[str] = ("res3", "res4", "res5"),
        common_stride: int = 4,
    ) -> None:
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        # Coarsest first, the order of the encoder levels.
        self.encoder_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        if len(self.encoder_features) != len(set(transformer_in_features)):
            raise ValueError(
                f"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES {list(transformer_in_features)} must be a subset of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES {by_stride}"
            )
        self.input_proj = nn.ModuleList(
            _projection(input_shape[name].channels, conv_dim) for name in self.encoder_features
        )
        levels = len(self.encoder_features)
        layers = [
            EncoderLayer(
                conv_dim,
                hidden=transformer_dim_feedforward,
                dropout=transformer_dropout,
                levels=levels,
                heads=transformer_nheads,
                points=transformer_points,
            )
            for _ in range(transformer_enc_layers)
        ]
        self.transformer = DeformableEncoder(layers, conv_dim, levels)
        finest = input_shape[self.encoder_features[-1]].stride
        num_fpn_levels = int(math.log2(finest) - math.log2(common_stride))
        self.fpn_features = [n for n in reversed(by_stride) if input_shape[n].stride < finest][:num_fpn_levels]
        for index, name in enumerate(reversed(self.fpn_features), start=1):
            self._add_fpn_level(index, input_shape[name].channels, conv_dim, norm)
        self.mask_dim = mask_dim
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def _add_fpn_level(self, index: int, in_channels: int, conv_dim: int, norm: str) -> None:
        """Add convolutions `adapter_N` (lateral) and `layer_N` (output); N counts from the finest map."""
        self.add_module(f"adapter_{index}", lateral_convolution(in_channels, conv_dim, norm))
        self.add_module(f"layer_{index}", output_convolution(conv_dim, conv_dim, norm))

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, transformer = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        return {
            "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "transformer_dropout": transformer.DROPOUT,
            "transformer_nheads": transformer.NHEADS,
            "transformer_dim_feedforward": head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "common_stride": head.COMMON_STRIDE,
        }

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Decode the backbone maps.

        Returns:
            Mask features (B, mask_dim, H4, W4), the coarsest encoded map (B, C, H, W), and three levels, coarsest
            first.
        """
        device_type = next(iter(features.values())).device.type
        if torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
            # The residual stream of the encoder can overflow fp16, but not bf16.
            with torch.autocast(device_type, enabled=False):
                return self._decode({name: x.float() for name, x in features.items()})
        return self._decode(features)

    def _decode(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        self._check_sizes(features)
        maps = [p(features[n]) for n, p in zip(self.encoder_features, self.input_proj, strict=True)]
        out = self.transformer(maps)
        for name, index in zip(self.fpn_features, range(len(self.fpn_features), 0, -1), strict=True):
            lateral = getattr(self, f"adapter_{index}")(features[name])
            up = F.interpolate(out[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            out.append(getattr(self, f"layer_{index}")(lateral + up))
        return self.mask_features(out[-1]), out[0], out[: self.num_output_levels]

    def _check_sizes(self, features: Mapping[str, Tensor]) -> None:
        """Refuse maps of which a group of the norms has a single value, as torch does without naming the key."""
        if self.mask_features.in_channels != _GROUPS:
            return
        for name in self.encoder_features:
            batch, _, height, width = features[name].shape
            if batch * height * width == 1:
                raise ConfigError(
                    f"An image is so small that the map {name!r} has one pixel, and with MODEL.SEM_SEG_HEAD.CONVS_DIM "
                    f"{_GROUPS} a group of its norm has one value. Raise INPUT.IMAGE_SIZE, INPUT.CROP.SIZE, "
                    "INPUT.MIN_SIZE_TRAIN or MIN_SIZE_TEST, or CONVS_DIM."
                )

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Call `forward_features`."""
        return self.forward_features(features)
