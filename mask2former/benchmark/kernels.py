"""Kinds of GPU kernels, by their names: what the time of a GPU goes to."""

from __future__ import annotations

import re

# The first kind of which a word is in the name. Own kernels are in a namespace of their own.
_OWN = "mask2former::"
_OWN_KINDS = (
    ("masked attention", r"attend_kernel|combine_kernel|blocked_keys_kernel"),
    ("deformable attention", r"^(forward_kernel|backward_kernel|scale_kernel|from_fixed|largest_kernel)"),
    ("masks and matching", r""),
)
_KINDS = (
    ("compiled operations", r"^triton_"),  # whose names are those of the operations in them
    ("copies and casts", r"memcpy|memset|catarray|copy_kernel|copyfunctor|nchwtonhwc|nhwctonchw"),
    ("attention of PyTorch", r"flash|fmha|attention|sdpa"),
    ("convolutions", r"conv(?!ert)|fprop|dgrad|wgrad|implicit_gemm|cudnn"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|gemv|splitk|dot_kernel"),
    ("optimizer", r"multi_tensor|multitensor|adam|foreach"),
    ("communication", r"nccl"),
    ("norms and softmax", r"layer_norm|layernorm|group_norm|groupnorm|batch_norm|softmax|rowwise|gammabeta"),
    ("interpolation", r"upsample|bilinear|grid_sampl"),
    ("sums and sorting", r"reduce|sort|topk|scan|cub::"),
    ("other operations", r""),
)
KINDS = tuple(dict.fromkeys(name for name, _ in (*_OWN_KINDS, *_KINDS)))


def kind_of(kernel: str) -> str:
    """Return which of `KINDS` a kernel belongs to, by its name in a profile."""
    own = _OWN in kernel
    if own:  # arguments of a kernel may have names, too
        kernel = kernel.partition("(anonymous namespace)::")[2] or kernel
        kernel = kernel.partition("(")[0].partition("<")[0]
    found = (name for name, words in (_OWN_KINDS if own else _KINDS) if re.search(words, kernel, re.IGNORECASE))
    return next(found, KINDS[-1])
