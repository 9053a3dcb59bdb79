"""The pixel decoder of Mask2Former: a deformable-attention encoder over three levels, then one FPN level at stride 4.

Mask2Former (arXiv 2112.01527), section 3.2.2; the encoder is that of Deformable DETR (arXiv 2010.04159).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...errors import ConfigError
from ...ops import enlarge
from ...utils.overrides import as_written, extensible, unchanged
from ...utils.registry import register
from ...utils.signatures import fitting
from ..normalization import GroupNorm
from ..shape_cache import ShapeCache
from ..transformer_decoder.layers import _get_activation_fn, with_position
from ..transformer_decoder.position_encoding import PositionEmbeddingSine
from ..transformer_decoder.transformer import _get_clones, one_for_all, reset_matrices
from .fpn import lateral_convolution, output_convolution, set_numbered
from .ops.functions.ms_deform_attn_func import LevelSizes, level_sizes
from .ops.modules import MSDeformAttn


@extensible
class MSDeformAttnTransformerEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both residual with post-norm.

    Args:
        d_model: C.
        d_ffn: hidden channels of the feed-forward network.
        activation: "relu" or "gelu".
        n_levels, n_heads, n_points: see `MSDeformAttn`.
    """

    with_pos_embed = staticmethod(with_position)

    def __init__(
        self,
        d_model: int = 256,
        d_ffn: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.activation = _get_activation_fn(activation)
        self.dropout2 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.dropout3 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward_ffn(self, src: Tensor) -> Tensor:
        """Apply the feed-forward network to (B, S, C)."""
        expanded = self.dropout2(self.activation(self.linear1(src)))
        return self.norm2(src + self.dropout3(self.linear2(expanded)))

    def forward(
        self,
        src: Tensor,
        pos: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: LevelSizes,
        level_start_index: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer to `src` (B, S, C) with position encoding `pos` (B or 1, S, C); returns (B, S, C).

        The other arguments are those of `MSDeformAttn`.
        """
        query = self.with_pos_embed(src, pos)
        attended = self.self_attn(query, reference_points, src, spatial_shapes, level_start_index, padding_mask)
        return self.forward_ffn(self.norm1(src + self.dropout1(attended)))


@extensible
class MSDeformAttnTransformerEncoder(nn.Module):
    """Stack of layers, which start as copies of one."""

    def __init__(self, encoder_layer: nn.Module, num_layers: int) -> None:
        super().__init__()
        self.layers = _get_clones(encoder_layer, num_layers)
        self.num_layers = num_layers
        self._points: ShapeCache[Tensor] = ShapeCache()

    @staticmethod
    def get_reference_points(
        spatial_shapes: LevelSizes, valid_ratios: Tensor | None, device: torch.device | str
    ) -> Tensor:
        """Return the centers of the S tokens, (x, y) in [0, 1] of each level.

        Args:
            spatial_shapes: (H, W) of each level, as integers or as a tensor (L, 2).
            valid_ratios: (B, L, 2), the shares of width and height of each level that an image covers; None for all.

        Returns:
            (B, S, L, 2) float32; without `valid_ratios` (1, S, 1, 2), the same for all images and levels.
        """
        centers = []
        for level, (height, width) in enumerate(level_sizes(spatial_shapes)):
            y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
            grid = torch.stack((x[None].expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1)
            centers.append(grid[None] if valid_ratios is None else grid / valid_ratios[:, None, level])
        points = torch.cat(centers, dim=1)[:, :, None]
        return points if valid_ratios is None else points * valid_ratios[:, None]

    def forward(
        self,
        src: Tensor,
        spatial_shapes: LevelSizes,
        level_start_index: Tensor | None,
        valid_ratios: Tensor | None,
        pos: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Encode `src` (B, S, C), the levels one after another, with position encoding `pos` (B or 1, S, C)."""
        device = src.device
        if valid_ratios is None and not isinstance(spatial_shapes, Tensor):
            key = (*spatial_shapes, device)
            points = self._points(key, lambda: self.get_reference_points(spatial_shapes, None, device))
        else:
            points = self.get_reference_points(spatial_shapes, valid_ratios, device)
        for layer in self.layers:
            src = layer(src, pos, points, spatial_shapes, level_start_index, padding_mask)
        return src


@extensible
class MSDeformAttnTransformerEncoderOnly(nn.Module):
    """Joint encoder of L feature maps.

    Args:
        d_model: C.
        nhead: heads of the attention.
        num_feature_levels: L.
        enc_n_points: points per level and head.
        others: see `MSDeformAttnTransformerEncoderLayer`.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        num_feature_levels: int = 4,
        enc_n_points: int = 4,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.nhead = nhead
        layer = MSDeformAttnTransformerEncoderLayer(
            d_model, dim_feedforward, dropout, activation, num_feature_levels, nhead, enc_n_points
        )
        self.encoder = MSDeformAttnTransformerEncoder(layer, num_encoder_layers)
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        self._levels: ShapeCache[tuple[Tensor, Tensor]] = ShapeCache()
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        reset_matrices(self)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module._reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, srcs: Sequence[Tensor], pos_embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode maps together.

        Args:
            srcs: L maps (B, C, H, W).
            pos_embeds: their position encodings (B or 1, C, H, W).

        Returns:
            The encoded maps one after another (B, S, C), the size (H, W) of each as int64 (L, 2), and the index of
            the first token of each (L,).
        """
        sizes = [(x.shape[2], x.shape[3]) for x in srcs]
        device = srcs[0].device
        shapes, starts = self._levels((*sizes, device), lambda: _level_tensors(sizes, device))
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in srcs], dim=1)
        positions = [one_for_all(x).flatten(2).transpose(1, 2) for x in pos_embeds]
        pos = torch.cat([x + e for x, e in zip(positions, self.level_embed, strict=True)], dim=1).to(tokens.dtype)
        if self._runs_as_written():  # integers need no copy from the device
            return self.encoder(tokens, sizes, starts, None, pos), shapes, starts
        masks = [x.new_zeros((len(x), *x.shape[2:]), dtype=torch.bool) for x in srcs]
        ratios = torch.stack([self.get_valid_ratio(mask) for mask in masks], dim=1)
        return self.encoder(tokens, shapes, starts, ratios, pos), shapes, starts

    def get_valid_ratio(self, mask: Tensor) -> Tensor:
        """Return the shares of width and height that images cover, float32 (B, 2), of a mask bool (B, H, W).

        Args:
            mask: True on padding, which `forward` does not know: its masks are False everywhere.
        """
        covered = ~mask
        return torch.stack((covered[:, 0].float().mean(dim=1), covered[:, :, 0].float().mean(dim=1)), dim=-1)

    def _runs_as_written(self) -> bool:
        """Return whether nobody replaced, overrode or hooked what gets sizes and points."""
        layers: list[Any] = list(self.encoder.layers)
        return (
            unchanged(self, MSDeformAttnTransformerEncoderOnly, "get_valid_ratio")
            and as_written(self.encoder, MSDeformAttnTransformerEncoder, "forward", "get_reference_points")
            and all(as_written(layer, MSDeformAttnTransformerEncoderLayer, "forward") for layer in layers)
            and all(as_written(layer.self_attn, MSDeformAttn, "forward") for layer in layers)
        )


def _level_tensors(sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (H, W) of each level (L, 2) and the index of its first token (L,), int64.

    They are built from scalars: a tensor from a Python list would be a synchronizing copy.
    """

    def tensor(numbers: Sequence[int]) -> Tensor:
        return torch.stack([torch.full((), n, dtype=torch.int64, device=device) for n in numbers])

    starts = [sum(h * w for h, w in sizes[:level]) for level in range(len(sizes))]
    return tensor([n for size in sizes for n in size]).view(-1, 2), tensor(starts)


_GROUPS = 32  # of the norms


def _projection(in_channels: int, channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, 1)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, GroupNorm(_GROUPS, channels))


def _channels_last(maps: Tensor) -> Tensor:
    """Return (B, C, H, W) with the strides of channels_last, also that of a single image.

    `contiguous` leaves that one as it is, because it does not matter; but kernels look at it, and take their slow form.
    """
    _, channels, height, width = maps.shape
    dense = maps.contiguous(memory_format=torch.channels_last)
    return dense.as_strided(maps.shape, (channels * height * width, 1, width * channels, channels))


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

    Attributes:
        in_features, feature_strides, feature_channels: of all maps, finest first.
        transformer_in_features, transformer_feature_strides, transformer_in_channels: of those that are encoded,
            finest first.
        input_proj: projections of the encoded maps, coarsest first, as all lists of modules.
        lateral_convs, output_convs: convolutions of the FPN.
        maskformer_num_feature_levels: number of levels that are returned.
    """

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
        norm: str | None = "GN",
        transformer_in_features: Sequence[str] = ("res3", "res4", "res5"),
        common_stride: int = 4,
    ) -> None:
        super().__init__()
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride)
        of_encoder = [(name, shape) for name, shape in by_stride if name in transformer_in_features]
        self.in_features = [name for name, _ in by_stride]
        self.feature_strides = [shape.stride for _, shape in by_stride]
        self.feature_channels = [shape.channels for _, shape in by_stride]
        self.transformer_in_features = [name for name, _ in of_encoder]
        self.transformer_in_channels = [shape.channels for _, shape in of_encoder]
        self.transformer_feature_strides = [shape.stride for _, shape in of_encoder]
        self.transformer_num_feature_levels = len(of_encoder)
        if len(of_encoder) != len(set(transformer_in_features)):
            raise ValueError(
                f"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES {list(transformer_in_features)} must be a subset of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES {self.in_features}"
            )
        self.input_proj = nn.ModuleList(
            _projection(channels, conv_dim) for channels in reversed(self.transformer_in_channels)
        )
        self.transformer = MSDeformAttnTransformerEncoderOnly(
            d_model=conv_dim,
            nhead=transformer_nheads,
            num_encoder_layers=transformer_enc_layers,
            dim_feedforward=transformer_dim_feedforward,
            dropout=transformer_dropout,
            num_feature_levels=self.transformer_num_feature_levels,
            enc_n_points=transformer_points,
        )
        self.pe_layer = PositionEmbeddingSine(conv_dim // 2, normalize=True)
        self.mask_dim = mask_dim
        self.maskformer_num_feature_levels = 3
        self.common_stride = common_stride
        self.num_fpn_levels = int(math.log2(min(self.transformer_feature_strides)) - math.log2(common_stride))
        # Their names count from the finest map: checkpoints have `adapter_1`, `layer_1`.
        for index, channels in enumerate(self.feature_channels[: self.num_fpn_levels], start=1):
            self.add_module(f"adapter_{index}", lateral_convolution(channels, conv_dim, norm))
            self.add_module(f"layer_{index}", output_convolution(conv_dim, conv_dim, norm))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, transformer = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        arguments = {
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
        return fitting(cls, arguments, {"transformer_points": 4})

    @property
    def lateral_convs(self) -> list[nn.Module]:
        """Return the lateral convolutions of the FPN, coarsest first."""
        return [self.get_submodule(f"adapter_{index}") for index in range(self.num_fpn_levels, 0, -1)]

    @lateral_convs.setter
    def lateral_convs(self, modules: Sequence[nn.Module]) -> None:
        set_numbered(self, "adapter", modules)

    @property
    def output_convs(self) -> list[nn.Module]:
        """Return the output convolutions of the FPN, coarsest first."""
        return [self.get_submodule(f"layer_{index}") for index in range(self.num_fpn_levels, 0, -1)]

    @output_convs.setter
    def output_convs(self, modules: Sequence[nn.Module]) -> None:
        set_numbered(self, "layer", modules)

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
        coarsest_first = list(reversed(self.transformer_in_features))
        maps = [p(features[name]) for name, p in zip(coarsest_first, self.input_proj, strict=True)]
        tokens, _, _ = self.transformer(maps, [self.pe_layer(x) for x in maps])
        parts = tokens.split([x.shape[2] * x.shape[3] for x in maps], dim=1)
        out = [p.transpose(1, 2).unflatten(2, x.shape[-2:]) for p, x in zip(parts, maps, strict=True)]
        finer = reversed(self.in_features[: self.num_fpn_levels])
        for name, lateral_conv, output_conv in zip(finer, self.lateral_convs, self.output_convs, strict=True):
            lateral = lateral_conv(features[name])
            coarse = out[-1]
            if lateral.is_contiguous(memory_format=torch.channels_last):  # interpolation keeps a format
                coarse = _channels_last(coarse)
            up = enlarge(coarse, lateral.shape[-2:])
            out.append(output_conv(lateral + up))
        return self.mask_features(out[-1]), out[0], out[: self.maskformer_num_feature_levels]

    def _check_sizes(self, features: Mapping[str, Tensor]) -> None:
        """Refuse maps of which a group of the norms has a single value, as torch does without naming the key."""
        if self.mask_features.in_channels != _GROUPS:
            return
        for name in self.transformer_in_features:
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
