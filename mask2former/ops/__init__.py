"""Deformable attention (Deformable DETR, Zhu et al., ICLR 2021, arXiv 2010.04159), masked attention, assignment,
enlargement, and what reads masks.
"""

from . import extension, mask_results
from .assignment import assigns_on, linear_assignment
from .enlarging import enlarge
from .mask_sampling import sample_masks
from .masked_attention import blocked_keys, masked_attention
from .ms_deform_attn import backend, ms_deform_attn, pytorch_backend

__all__ = [
    "assigns_on",
    "backend",
    "blocked_keys",
    "enlarge",
    "linear_assignment",
    "mask_results",
    "masked_attention",
    "ms_deform_attn",
    "pytorch_backend",
    "sample_masks",
]

extension.load_all()  # at import, so that `torch.ops.mask2former` is complete
