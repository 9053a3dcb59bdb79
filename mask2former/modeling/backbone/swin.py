"""Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030) as a detectron2 backbone with four feature levels.

Windows attend through `scaled_dot_product_attention`; the relative position bias (at inference) and the mask of
shifted windows (per input size) are computed once and cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...utils.registry import register
from ..shape_cache import ShapeCache


class _DropPath(nn.Module):
    """Stochastic depth: drop a sample's residual branch with probability `rate` (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep) / keep


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


def _relative_position_index(window: int) -> Tensor:
    """Return the (window^2, window^2) row of the bias table for each pair of positions: section 3.2 of the paper."""
    position = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = position[:, :, None] - position[:, None, :] + window - 1  # (2, N, N), each in [0, 2 window - 2]
    return offset[0] * (2 * window - 1) + offset[1]


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias per relative position and head."""

    relative_position_index: Tensor

    def __init__(
        self, dim: int, window: int, heads: int, qkv_bias: bool, qk_scale: float | None, attn_drop: float, drop: float
    ) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.scale = qk_scale or (dim // heads) ** -0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._bias_cache: tuple[int, Tensor] | None = None

    def _bias(self) -> Tensor:
        """Return the (heads, N, N) bias; cached while the table does not change and gradients are disabled."""
        table = self.relative_position_bias_table
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._gather(table)
        # Inference tensors have no version counter; a new data pointer then reveals a replaced table.
        version = -1 if table.is_inference() else table._version
        key = hash((version, table.data_ptr(), table.device, table.dtype))
        if self._bias_cache is None or self._bias_cache[0] != key:
            self._bias_cache = (key, self._gather(table))
        return self._bias_cache[1]

    def _gather(self, table: Tensor) -> Tensor:
        tokens = self.window**2
        index = self.relative_position_index.flatten()
        return table[index].view(tokens, tokens, self.heads).permute(2, 0, 1).contiguous()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: (B * W, N, C), W windows of N tokens per image.
            mask: (W, N, N) added to the attention logits of each window, or None.
        """
        windows, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self._bias()[None]
        if mask is not None:
            bias = bias + mask[:, None]
            if windows > mask.shape[0]:
                bias = bias.repeat(windows // mask.shape[0], 1, 1, 1)
        drop = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=drop, scale=self.scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(windows, tokens, channels)))


def _to_windows(x: Tensor, window: int) -> Tensor:
    """Partition (B, H, W, C), H and W multiples of `window`, into (B * windows, window^2, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def _from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Invert `_to_windows`."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, -1)


class SwinBlock(nn.Module):
    """Window attention (shifted in every second block) and an MLP, both residual with pre-norm."""

    def __init__(self, attn: WindowAttention, dim: int, shift: int, mlp_ratio: float, drop: float, path: float) -> None:
        super().__init__()
        self.window = attn.window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.drop_path = _DropPath(path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Apply the block to `x` (B, H, W, C); shifted blocks use `shift_mask` (windows, N, N)."""
        x = x + self.drop_path(self._attend(self.norm1(x), shift_mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        padded_height, padded_width = x.shape[1:3]
        windows = self.attn(_to_windows(x, self.window), shift_mask if self.shift else None)
        x = _from_windows(windows, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Downsampling by 2: the channels of 2 x 2 neighbors are concatenated and projected from 4 C to 2 C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Merge (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


def _shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return (windows, N, N): 0 where two tokens of a shifted window were neighbors in the image, -100 elsewhere."""

    def regions(size: int) -> Tensor:
        padded = size + -size % window
        position = torch.arange(padded, device=device)
        return (position >= padded - window).long() + (position >= padded - window // 2)

    region = 3 * regions(height)[:, None] + regions(width)[None]
    tokens = _to_windows(region[None, :, :, None], window)[..., 0]  # (windows, N)
    return (tokens[:, :, None] != tokens[:, None, :]) * -100.0


class SwinStage(nn.Module):
    """The blocks of one resolution, and the patch merging that follows them (except after the last stage)."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None, use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint
        self.window = blocks[0].window
        self._masks: ShapeCache[Tensor] = ShapeCache(entries=2)  # (windows, N, N) floats: large at high resolution

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the stage, (B, H, W, C) as its input, and the input of the next stage."""
        height, width, device = x.shape[1], x.shape[2], x.device
        mask = self._masks((height, width, device), lambda: _shift_mask(height, width, self.window, device))
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Non-overlapping patches as tokens."""

    def __init__(self, patch_size: int, dim: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)."""
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        x = self.proj(x).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


@register(BACKBONE_REGISTRY)
class D2SwinTransformer(Backbone):
    """Swin-T/S/B/L. Output: {"res2": (B, C, H / 4, W / 4), ..., "res5": (B, 8 C, H / 32, W / 32)}."""

    @configurable
    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        known = [f"res{i + 2}" for i in range(len(depths))]
        unknown = [name for name in out_features if name not in known]
        if unknown:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES {unknown} do not exist; choose from {known}")
        self.patch_embed = PatchEmbed(patch_size, embed_dim, patch_norm)
        self.absolute_pos_embed = None
        if ape:
            grid = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, grid, grid))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        paths = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        stages = []
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim = embed_dim * 2**i
            blocks = []
            for j in range(depth):
                attn = WindowAttention(dim, window_size, heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate)
                path = paths[sum(depths[:i]) + j]
                blocks.append(SwinBlock(attn, dim, window_size // 2 * (j % 2), mlp_ratio, drop_rate, path))
            last = i == len(depths) - 1
            stages.append(SwinStage(blocks, None if last else PatchMerging(dim), use_checkpoint))
        self.layers = nn.ModuleList(stages)
        self.apply(_init_linear)
        self._out_features = list(out_features)
        self._out_feature_channels = {name: embed_dim * 2**i for i, name in enumerate(known)}
        self._out_feature_strides = {name: patch_size * 2**i for i, name in enumerate(known)}
        for i, name in enumerate(known):
            if name in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(self._out_feature_channels[name]))

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read the arguments from the keys of MODEL.SWIN, which have the same names in upper case."""
        return {key.lower(): value for key, value in cfg.MODEL.SWIN.items()}

    @property
    def size_divisibility(self) -> int:
        """Return the multiple to which the meta-architecture must pad inputs."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps (B, C, H', W') by name of normalized images (B, 3, H, W)."""
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False)
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        features = {}
        for i, stage in enumerate(self.layers):
            out, x = stage(x)
            name = f"res{i + 2}"
            if name in self._out_features:
                features[name] = getattr(self, f"norm{i}")(out).permute(0, 3, 1, 2).contiguous()
        return features


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
