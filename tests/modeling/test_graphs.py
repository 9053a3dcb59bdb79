"""The network, from normalized image to logits, is one graph: for torch.export and for torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former.config import load_config

from .tiny_models import CONVOLUTIONS

R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
HEAD, NODE = "MODEL.SEM_SEG_HEAD", "MODEL.MASK_FORMER"
PER_PIXEL = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", f"{HEAD}.NUM_CLASSES", 10, f"{HEAD}.NAME")
# Parts that are swapped against those of the usual model.
PARTS = {
    "pyramid": (f"{HEAD}.PIXEL_DECODER_NAME", "BasePixelDecoder"),
    "MaskFormer v1": (
        *(f"{HEAD}.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder", f"{NODE}.ENC_LAYERS", 1),
        *(f"{NODE}.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
        *(f"{NODE}.TRANSFORMER_IN_FEATURE", "transformer_encoder", f"{NODE}.DEC_LAYERS", 1),
    ),
    "selected queries": (f"{NODE}.QUERY_SELECTION", True),
    "per pixel": (*PER_PIXEL, "PerPixelBaselineHead"),
    "per pixel, with decoder": (*PER_PIXEL, "PerPixelBaselinePlusHead"),
}
CONFIGS = [
    "nuclei/maskformer2_R50.yaml",
    "nuclei/maskformer2_efficientnet_lite0.yaml",
    "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
]
# Tracing takes time for every layer, so there are as few as show each kind: two decoder layers, which attend to other
# levels, with one backbone and one with the others; shifted windows in one stage; timm's own model for tests in the
# place of a larger one of its family. Where parts are swapped, the backbone is four convolutions.
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 1, 2, 1]),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.TIMM.NAME", "test_efficientnet"),
    *("MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8], "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.HIDDEN_DIM", 32),
    *("MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 10),
]

pytestmark = pytest.mark.slow  # together about half a minute


ONE_LAYER = (f"{NODE}.DEC_LAYERS", 2)


class Core(nn.Module):
    """Tensor in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.head(self.backbone(x))
        if isinstance(outputs, tuple):  # of a per-pixel head: scores and no losses
            return outputs[:1]
        return outputs["pred_logits"], outputs["pred_masks"]


@pytest.mark.parametrize("how", ["export", "compile"])
@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (CONFIGS[0], ()),
        *((config, ONE_LAYER) for config in CONFIGS[1:]),
        *((R50, (*ONE_LAYER, *CONVOLUTIONS, *parts)) for parts in PARTS.values()),
    ],
    ids=[*CONFIGS, *PARTS],
)
def test_one_graph_same_numbers(config: str, parts: tuple[Any, ...], how: str) -> None:
    core = Core(build_model(load_config(config, [*TINY, *parts]))).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = core(x)
        if how == "export":
            graph = torch.export.export(core, (x,)).module()
        else:
            torch.compiler.reset()  # each model counts against one limit of recompilations
            graph = torch.compile(core, fullgraph=True, backend="eager")
        for ours, wanted in zip(graph(x), expected, strict=True):
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
