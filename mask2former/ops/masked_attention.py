"""Masked attention of Mask2Former's decoder (arXiv 2112.01527, section 3.2.1): few queries, many keys, no gradients.

`torch.ops.mask2former.masked_attention` and `blocked_keys` exist with or without the compiled extension; their default
kernels are PyTorch code. The extension adds kernels for CUDA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ms_deform_attn import backend
from .registration import Op, register_ops

_SCHEMAS = (
    "masked_attention(Tensor query, Tensor key, Tensor value, Tensor blocked) -> Tensor",
    "blocked_keys(Tensor logits) -> Tensor",
)
_HEAD_CHANNELS = 32
_HALF = (torch.bfloat16, torch.float16)
_LARGEST = 2**30  # sizes of the kernel are 32 bits


def masked_attention(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> Tensor:
    """Attend from N queries to those of S keys that are not blocked, and to all keys where every key is blocked.

    The scale is 1 / sqrt(D). On CUDA, bf16 and fp16 without gradients and with D = 32 run on compiled kernels, with
    softmax and sums in fp32; the result does not vary from call to call. Anything else is
    `scaled_dot_product_attention`, and has gradients.

    Args:
        query: (B, heads, N, D) float, any strides.
        key, value: (B, heads, S, D), S at least 1, in the dtype of `query`.
        blocked: bool (B, N, S) or (B, 1, N, S), True where a query does not attend to a key.

    Returns:
        (B, N, heads * D), contiguous, in the dtype of `query`.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices; the message names the argument.
    """
    _check(query, key, value, blocked)
    if has_kernel(query, key, value):
        return torch.ops.mask2former.masked_attention.default(query, key, value, blocked)
    return _masked_attention(query, key, value, blocked)


def has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether `masked_attention` runs these (B, heads, N or S, D) on a compiled kernel."""
    if query.device.type != "cuda" or query.dtype not in _HALF or query.shape[-1] != _HEAD_CHANNELS:
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    return key.shape[2] < _LARGEST and backend("cuda") == "compiled"


@torch.no_grad()
def blocked_keys(logits: Tensor) -> Tensor:
    """Return where queries do not attend: outside their masks, and nowhere where the mask is empty.

    Args:
        logits: (..., S) float, mask logits of a query.

    Returns:
        bool (..., S), True where the probability (after the sigmoid) is below 0.5, unless it is in the whole row.
    """
    if logits.device.type == "cuda" and logits.dtype == torch.float32 and backend("cuda") == "compiled":
        return torch.ops.mask2former.blocked_keys.default(logits)
    return _blocked_keys(logits)


def open_empty(blocked: Tensor) -> Tensor:
    """Let queries (..., S) that are blocked everywhere attend everywhere, as softmax cannot do without a key."""
    return blocked & ~blocked.all(dim=-1, keepdim=True)


def _check(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> None:
    """Raise ValueError for inconsistent arguments."""
    if query.dim() != 4:
        raise ValueError(f"query must be (B, heads, N, D), got {tuple(query.shape)}")
    batch, heads, queries, channels = query.shape
    if key.dim() != 4 or key.shape[:2] != query.shape[:2] or key.shape[3] != channels or key.shape[2] < 1:
        raise ValueError(f"key must be ({batch}, {heads}, S, {channels}) with S at least 1, got {tuple(key.shape)}")
    if value.shape != key.shape:
        raise ValueError(f"value must have the shape of key {tuple(key.shape)}, got {tuple(value.shape)}")
    shape = (batch, queries, key.shape[2])
    if blocked.dtype != torch.bool or tuple(blocked.shape) not in (shape, (batch, 1, *shape[1:])):
        raise ValueError(f"blocked must be bool {shape}, got {blocked.dtype} {tuple(blocked.shape)}")
    for name, tensor in {"key": key, "value": value, "blocked": blocked}.items():
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}")
        if tensor.dtype != query.dtype and tensor is not blocked:
            raise ValueError(f"{name} is {tensor.dtype}, query is {query.dtype}")


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> Tensor:
    mask = open_empty(blocked if blocked.dim() == 4 else blocked[:, None])
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=~mask)
    return out.transpose(1, 2).reshape(query.shape[0], query.shape[2], -1).contiguous()


def _blocked_keys(logits: Tensor) -> Tensor:
    return open_empty(logits.sigmoid() < 0.5)


def _fake_masked_attention(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> Tensor:
    batch, heads, queries, channels = query.shape
    return query.new_empty(batch, queries, heads * channels)


def _fake_blocked_keys(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.bool)


def _autograd(ctx: object, grad: Tensor) -> None:
    raise RuntimeError("torch.ops.mask2former.masked_attention has no gradients; mask2former.ops.masked_attention has")


register_ops(
    Op(_SCHEMAS[0], _masked_attention, _fake_masked_attention, _autograd),
    Op(_SCHEMAS[1], _blocked_keys, _fake_blocked_keys),
)
