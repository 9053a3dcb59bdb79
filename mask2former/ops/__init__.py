"""Deformable attention (Deformable DETR, Zhu et al., ICLR 2021, arXiv 2010.04159), masked attention, assignment,
enlargement, what reads masks, and their losses at points.
"""

from . import extension, mask_results
from .assignment import assigns_on, linear_assignment
from .enlarging import enlarge
from .mask_points import draw_points, matching_terms, point_losses, takes_points, takes_terms
from .mask_sampling import sample_masks
from .masked_attention import blocked_keys, masked_attention
from .ms_deform_attn import backend, ms_deform_attn, pytorch_backend

__all__ = [
    "assigns_on",
    "backend",
    "blocked_keys",
    "draw_points",
    "enlarge",
    "linear_assignment",
    "mask_results",
    "masked_attention",
    "matching_terms",
    "ms_deform_attn",
    "point_losses",
    "pytorch_backend",
    "sample_masks",
    "takes_points",
    "takes_terms",
]

extension.load_all()  # at import, so that `torch.ops.mask2former` is complete
