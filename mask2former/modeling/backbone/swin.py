"""Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030) as a detectron2 backbone with four feature levels.

Windows attend through `scaled_dot_product_attention`; the relative position bias (at inference) and the mask of
shifted windows (per input size) are computed once and cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...utils.overrides import extensible, unchanged
from ...utils.registry import register
from ...utils.signatures import fitting
from ..shape_cache import ShapeCache, is_capturing

# Class of a norm, or a function that builds one for a number of channels.
NormLayer = Callable[[int], nn.Module]


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


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden, out_features or in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., in_features) -> (..., out_features)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return a height and a width, given both or one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _relative_position_index(height: int, width: int) -> Tensor:
    """Return the (N, N) row of the bias table for each pair of the N positions of a window: section 3.2."""
    position = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    rows, columns = position[:, :, None] - position[:, None, :]  # (N, N) each
    return (rows + height - 1) * (2 * width - 1) + columns + width - 1


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias per relative position and head.

    Args:
        dim: C.
        window_size: height and width of the windows, or one number for both.
        qk_scale: factor of the attention logits; None for one over the square root of the channels of a head.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int | Sequence[int],
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = _pair(window_size)
        self.dim = dim
        self.window_size = (height, width)
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), num_heads))
        self.register_buffer("relative_position_index", _relative_position_index(height, width))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._bias_cache: tuple[int, Tensor] | None = None

    def _bias(self) -> Tensor:
        """Return the (heads, N, N) bias; cached while the table does not change and gradients are disabled.

        A CUDA graph computes it in each run, as it runs no Python that would notice a change.
        """
        table = self.relative_position_bias_table
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_capturing():
            return self._gather(table)
        # Inference tensors have no version counter; a new data pointer then reveals a replaced table.
        version = -1 if table.is_inference() else table._version
        key = hash((version, table.data_ptr(), table.device, table.dtype))
        if self._bias_cache is None or self._bias_cache[0] != key:
            self._bias_cache = (key, self._gather(table))
        return self._bias_cache[1]

    def _gather(self, table: Tensor) -> Tensor:
        tokens = self.window_size[0] * self.window_size[1]
        index = self.relative_position_index.flatten()
        return table[index].view(tokens, tokens, self.num_heads).permute(2, 0, 1).contiguous()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            x: (B * W, N, C), W windows of N tokens per image.
            mask: (W, N, N) added to the attention logits of each window, or None.
        """
        windows, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self._bias()[None]
        if mask is not None:
            bias = bias + mask[:, None]
            if windows > mask.shape[0]:
                bias = bias.repeat(windows // mask.shape[0], 1, 1, 1)
        drop = self.attn_drop.p if self.attn_drop.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=drop, scale=self.scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(windows, tokens, channels)))


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Partition (B, H, W, C), H and W multiples of `window_size`, into (B * windows, window_size, window_size, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size, window_size, channels)


def window_reverse(windows: Tensor, window_size: int, H: int, W: int) -> Tensor:
    """Invert `window_partition`; returns (B, H, W, C)."""
    x = windows.view(-1, H // window_size, W // window_size, window_size, window_size, windows.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], H, W, -1)


@extensible
class SwinTransformerBlock(nn.Module):
    """Window attention (shifted in every second block) and an MLP, both residual with pre-norm.

    Args:
        dim: C.
        shift_size: tokens by which the windows are shifted; 0 for none.
        mlp_ratio: hidden channels of the MLP, divided by C.
        drop_path: probability that a residual branch is dropped for a sample.
        others: see `WindowAttention` and `Mlp`.

    Attributes:
        H, W: size of the maps where `forward` is not told it; set by the caller.
    """

    H: int
    W: int

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: NormLayer = nn.LayerNorm,
    ) -> None:
        super().__init__()
        if not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size {shift_size} must be between 0 and window_size {window_size}")
        self.dim = dim
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.mlp_ratio = mlp_ratio
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = _DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor, mask_matrix: Tensor | None, size: tuple[int, int] | None = None) -> Tensor:
        """Apply the block to `x` (B, H * W, C).

        Args:
            mask_matrix: (windows, N, N), used by shifted blocks.
            size: H and W; by default the attributes of these names.
        """
        height, width = size or (self.H, self.W)
        x = x.view(x.shape[0], height, width, -1)
        x = x + self.drop_path(self._attend(self.norm1(x), mask_matrix))
        return (x + self.drop_path(self.mlp(self.norm2(x)))).flatten(1, 2)

    def _attend(self, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
        (height, width), window, shift = x.shape[1:3], self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        padded_height, padded_width = x.shape[1:3]
        windows = self.attn(window_partition(x, window).flatten(1, 2), mask_matrix if shift else None)
        x = window_reverse(windows, window, padded_height, padded_width)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Downsampling by 2: the channels of 2 x 2 neighbors are concatenated and projected from 4 C to 2 C."""

    def __init__(self, dim: int, norm_layer: NormLayer = nn.LayerNorm) -> None:
        super().__init__()
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Merge (B, H * W, C) -> (B, ceil(H / 2) * ceil(W / 2), 2 C)."""
        x = F.pad(x.view(x.shape[0], H, W, -1), (0, 0, 0, W % 2, 0, H % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1))).flatten(1, 2)


def _shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return (windows, N, N): 0 where two tokens of a shifted window were neighbors in the image, -100 elsewhere."""

    def regions(size: int) -> Tensor:
        padded = size + -size % window
        position = torch.arange(padded, device=device)
        return (position >= padded - window).long() + (position >= padded - window // 2)

    region = 3 * regions(height)[:, None] + regions(width)[None]
    tokens = window_partition(region[None, :, :, None], window).flatten(1)  # (windows, N)
    return (tokens[:, :, None] != tokens[:, None, :]) * -100.0


class BasicLayer(nn.Module):
    """The blocks of one resolution, and what makes the input of the next one, which the last resolution has not.

    Args:
        dim: C.
        depth: number of blocks.
        drop_path: of each block, or one number for all.
        downsample: class of a `PatchMerging`, or None.
        use_checkpoint: compute activations a second time, in the backward pass.
        others: see `SwinTransformerBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        downsample: Callable[..., nn.Module] | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = window_size // 2
        self.depth = depth
        self.use_checkpoint = use_checkpoint
        paths = [drop_path] * depth if isinstance(drop_path, (int, float)) else drop_path
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim,
                num_heads,
                window_size,
                shift_size=self.shift_size * (i % 2),
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop,
                attn_drop=attn_drop,
                drop_path=paths[i],
                norm_layer=norm_layer,
            )
            for i in range(depth)
        )
        self.downsample = None if downsample is None else downsample(dim=dim, norm_layer=norm_layer)
        self._masks: ShapeCache[Tensor] = ShapeCache(entries=2)  # (windows, N, N) floats: large at high resolution

    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Return features (B, H * W, C) of `x` (B, H * W, C), H, W, and the input of the next layer, its height, width.

        Without `downsample` the latter are the same.
        """
        device = x.device
        mask = self._masks((H, W, device), lambda: _shift_mask(H, W, self.window_size, device))
        block: Any
        for block in self.blocks:
            arguments: tuple[Any, ...] = (x, mask, (H, W))
            if not unchanged(block, SwinTransformerBlock, "forward"):  # of another project: forward(x, mask_matrix)
                block.H, block.W = H, W
                arguments = (x, mask)
            if self.use_checkpoint and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        if self.downsample is None:
            return x, H, W, x, H, W
        return x, H, W, self.downsample(x, H, W), (H + 1) // 2, (W + 1) // 2


class PatchEmbed(nn.Module):
    """Non-overlapping patches as a map.

    Args:
        patch_size: height and width of the patches, or one number for both.
        in_chans: channels of the images.
        embed_dim: C.
        norm_layer: class of a norm of C channels, or None.
    """

    def __init__(
        self,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = _pair(patch_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, in_chans, H, W) -> (B, C, ceil(H / patch), ceil(W / patch))."""
        height, width = self.patch_size
        x = self.proj(F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height)))
        return x if self.norm is None else self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SwinTransformer(nn.Module):
    """Swin-T/S/B/L. Output: {"res2": (B, C, H / 4, W / 4), ..., "res5": (B, 8 C, H / 32, W / 32)}.

    Args:
        pretrain_img_size: size of the images of the first training, for the absolute position.
        in_chans: channels of the images.
        embed_dim: C.
        depths, num_heads: blocks, and heads of their attention, of each layer.
        drop_path_rate: stochastic depth of the last block; it grows from 0.
        norm_layer: class of all norms.
        ape: add a learned absolute position to the patches.
        patch_norm: a norm after the patch embedding.
        out_indices: layers whose features are returned.
        frozen_stages: parts that stay as they are, also in training: with 0 and above the patch embedding, with 1 and
            above the absolute position, with 2 and above the dropout after it and `frozen_stages` - 1 layers.
        others: see `BasicLayer`.

    Attributes:
        num_features: channels of each layer.
    """

    def __init__(
        self,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.pretrain_img_size = pretrain_img_size
        self.num_layers = len(depths)
        self.embed_dim = embed_dim
        self.ape = ape
        self.patch_norm = patch_norm
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, norm_layer if patch_norm else None)
        self.absolute_pos_embed = None
        if ape:
            grid = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, grid, grid))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        self.num_features = [embed_dim * 2**i for i in range(self.num_layers)]
        paths = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            layer = BasicLayer(
                dim=self.num_features[i],
                depth=depth,
                num_heads=heads,
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=paths[sum(depths[:i]) : sum(depths[: i + 1])],
                norm_layer=norm_layer,
                downsample=PatchMerging if i < self.num_layers - 1 else None,
                use_checkpoint=use_checkpoint,
            )
            self.layers.append(layer)
        self.init_weights()
        for i in self.out_indices:
            self.add_module(f"norm{i}", norm_layer(self.num_features[i]))
        self._freeze_stages()

    def init_weights(self, pretrained: str | None = None) -> None:
        """Draw the weights of all linear layers; the constructor does so."""
        if pretrained is not None:
            raise ValueError("pretrained weights of a backbone are read with MODEL.WEIGHTS, not by init_weights")
        self.apply(_init_linear)

    def _freeze_stages(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen.append(self.patch_embed)
        if self.frozen_stages >= 1 and self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        if self.frozen_stages >= 2:
            frozen += [self.pos_drop, *list(self.layers)[: self.frozen_stages - 1]]
        for module in frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SwinTransformer:
        """Set training or evaluation, except of frozen parts."""
        super().train(mode)
        self._freeze_stages()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps (B, C, H', W') by name of normalized images (B, in_chans, H, W)."""
        x = self.patch_embed(x)
        height, width = x.shape[2], x.shape[3]
        if self.absolute_pos_embed is not None:
            x = x + F.interpolate(self.absolute_pos_embed, (height, width), mode="bicubic", align_corners=False)
        x = self.pos_drop(x.flatten(2).transpose(1, 2))
        features = {}
        for i, layer in enumerate(self.layers):
            out, out_height, out_width, x, height, width = layer(x, height, width)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(out).view(-1, out_height, out_width, self.num_features[i])
                features[f"res{i + 2}"] = out.permute(0, 3, 1, 2).contiguous()
        return features


@register(BACKBONE_REGISTRY)
class D2SwinTransformer(SwinTransformer, Backbone):
    """`SwinTransformer` as a backbone of detectron2, which returns the maps of `out_features`."""

    @configurable
    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        depths: Sequence[int] = (2, 2, 6, 2),
        patch_size: int = 4,
        drop_path_rate: float = 0.3,
        **settings: Any,
    ) -> None:
        known = [f"res{i + 2}" for i in range(len(depths))]
        unknown = [name for name in out_features if name not in known]
        if unknown:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES {unknown} do not exist; choose from {known}")
        super().__init__(
            depths=depths,
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
            out_indices=[i for i, name in enumerate(known) if name in out_features],
            **settings,
        )
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(known, self.num_features, strict=True))
        self._out_feature_strides = {name: patch_size * 2**i for i, name in enumerate(known)}

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read the arguments from the keys of MODEL.SWIN, which have the same names in upper case."""
        arguments = {key.lower(): value for key, value in cfg.MODEL.SWIN.items()}
        if input_shape is not None and input_shape.channels is not None:
            arguments["in_chans"] = input_shape.channels
        return fitting(cls, arguments, {"in_chans": 3})

    @property
    def size_divisibility(self) -> int:
        """Return the multiple to which the meta-architecture must pad inputs."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of `out_features`; see `SwinTransformer.forward`."""
        return {name: y for name, y in super().forward(x).items() if name in self._out_features}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
