"""Checks of the components of a model, and of what fits together in it; of those that this package builds."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

from .errors import ConfigError
from .modeling.transformer_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder
from .structures.task import Task, tasks_of
from .utils.hints import did_you_mean

ARCHITECTURES = ("MaskFormer", "VideoMaskFormer", "SemanticSegmentor")
PER_PIXEL_HEADS = ("PerPixelBaselineHead", "PerPixelBaselinePlusHead")
MASKED_ATTENTION_DECODERS = ("MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder")


def validate_model(cfg: CfgNode) -> None:
    """Reject components that do not exist or do not fit together.

    Raises:
        ConfigError: naming the key, its value and the remedy.
    """
    _validate_components(cfg)
    if not has_own_model(cfg):
        return
    if _has_own_head(cfg):
        _validate_combinations(cfg)
        _validate_queries(cfg)
        _validate_mask_quality(cfg)
        _validate_sizes(cfg)
    _validate_backbone(cfg)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with this message, unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def is_video(cfg: CfgNode) -> bool:
    """Return whether the model is that of clips."""
    return bool(cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer")


def _is_ours(registry: Registry, name: str) -> bool:
    """Return whether a registered component is one of this package, or of detectron2, which it builds on."""
    package = __name__.rpartition(".")[0]
    owner = registry.get(name).__module__
    return any(owner == each or owner.startswith(f"{each}.") for each in (package, f"{package}_video", "detectron2"))


def has_own_model(cfg: CfgNode) -> bool:
    """Return whether this package builds the model: not where another project's meta-architecture does."""
    return _is_ours(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)


def _has_own_head(cfg: CfgNode) -> bool:
    """Return whether a head of this package builds pixel decoder and transformer decoder."""
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    return name in SEM_SEG_HEADS_REGISTRY and _is_ours(SEM_SEG_HEADS_REGISTRY, name)


def one_of(key: str, value: str, known: Sequence[str]) -> None:
    """Raise `ConfigError` for a name that is not known, with the one that is most like it."""
    hint = did_you_mean(value, known)
    require(value in known, f"{key} is '{value}', which does not exist.{hint} Known: {', '.join(sorted(known))}")


def _validate_components(cfg: CfgNode) -> None:
    name = cfg.MODEL.META_ARCHITECTURE
    known = [each for each in ARCHITECTURES if each in META_ARCH_REGISTRY]
    require(
        name in known or (name in META_ARCH_REGISTRY and not has_own_model(cfg)),
        f"MODEL.META_ARCHITECTURE is '{name}', which is not a model of this package, nor one that your program has "
        f"registered. Import the module that registers it, or set it to {' or '.join(map(repr, known))}, or start from "
        "one of the files in configs/ with --config-file.",
    )
    heads = [each for each, _ in SEM_SEG_HEADS_REGISTRY]
    if has_own_model(cfg):
        one_of("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, [each for each, _ in BACKBONE_REGISTRY])
        one_of("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, heads)
    if not _has_own_head(cfg):
        return
    one_of("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, heads)
    one_of(
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME,
        [each for each, _ in TRANSFORMER_DECODER_REGISTRY],
    )


def _validate_combinations(cfg: CfgNode) -> None:
    """Reject components that exist but cannot be combined."""
    node, head, architecture = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.META_ARCHITECTURE
    source, decoder = node.TRANSFORMER_IN_FEATURE, node.TRANSFORMER_DECODER_NAME
    per_pixel, tasks = head.NAME in PER_PIXEL_HEADS, tasks_of(cfg)
    require(
        not per_pixel or architecture == "SemanticSegmentor",
        f"MODEL.SEM_SEG_HEAD.NAME '{head.NAME}' predicts per pixel: set MODEL.META_ARCHITECTURE 'SemanticSegmentor'.",
    )
    require(
        head.NAME != "MaskFormerHead" or architecture != "SemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NAME 'MaskFormerHead' predicts masks: set MODEL.META_ARCHITECTURE 'MaskFormer'.",
    )
    require(
        architecture != "VideoMaskFormer" or tasks <= {Task.INSTANCE},
        "MODEL.META_ARCHITECTURE 'VideoMaskFormer' predicts instances only: set MODEL.MASK_FORMER.TEST.SEMANTIC_ON and "
        "PANOPTIC_ON to False.",
    )
    require(
        not per_pixel or tasks <= {Task.SEMANTIC},
        f"MODEL.SEM_SEG_HEAD.NAME '{head.NAME}' predicts semantic segmentation only: set "
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON and PANOPTIC_ON to False.",
    )
    require(
        per_pixel or decoder not in MASKED_ATTENTION_DECODERS or source == "multi_scale_pixel_decoder",
        f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME '{decoder}' needs multi-scale features, not '{source}': set "
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE 'multi_scale_pixel_decoder'.",
    )
    require(
        source != "transformer_encoder" or head.PIXEL_DECODER_NAME != "BasePixelDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE 'transformer_encoder' needs a pixel decoder with an encoder: set "
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME 'TransformerEncoderPixelDecoder'.",
    )


def _validate_queries(cfg: CfgNode) -> None:
    """Reject queries of training and selected ones where head or decoder have none."""
    node, model = cfg.MODEL.MASK_FORMER, _decoder_and_head(cfg)
    for key, value, off in (
        ("QUERY_GROUPS", node.QUERY_GROUPS, 1),
        ("DENOISING.QUERIES", node.DENOISING.QUERIES, 0),
        ("QUERY_SELECTION", node.QUERY_SELECTION, False),
    ):
        require(
            value == off or _has_masked_attention(cfg),
            f"MODEL.MASK_FORMER.{key} is {value}, but only {' and '.join(MASKED_ATTENTION_DECODERS)} have such "
            f"queries, not {model}: set MODEL.MASK_FORMER.{key} {off}.",
        )
    require(
        not node.DENOISING.QUERIES or node.DEC_LAYERS > 1,
        "MODEL.MASK_FORMER.DENOISING.QUERIES needs a decoder with layers: set MODEL.MASK_FORMER.DEC_LAYERS to 2 or "
        "more (it counts the prediction before the first layer)",
    )


def _has_masked_attention(cfg: CfgNode) -> bool:
    decoder = TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)
    masked = isinstance(decoder, type) and issubclass(decoder, MultiScaleMaskedTransformerDecoder)
    return masked and cfg.MODEL.SEM_SEG_HEAD.NAME not in PER_PIXEL_HEADS


def _decoder_and_head(cfg: CfgNode) -> str:
    decoder, head = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME, cfg.MODEL.SEM_SEG_HEAD.NAME
    return f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME '{decoder}' with MODEL.SEM_SEG_HEAD.NAME '{head}'"


def _validate_mask_quality(cfg: CfgNode) -> None:
    """Reject predicted mask quality where the model predicts none."""
    remedy = "set MODEL.MASK_FORMER.MASK_QUALITY.ENABLED False."
    enabled = cfg.MODEL.MASK_FORMER.MASK_QUALITY.ENABLED
    require(
        not enabled or not is_video(cfg),
        "MODEL.MASK_FORMER.MASK_QUALITY.ENABLED is True, but it is for images, and MODEL.META_ARCHITECTURE is "
        f"'VideoMaskFormer': {remedy}",
    )
    require(
        not enabled or _has_masked_attention(cfg),
        "MODEL.MASK_FORMER.MASK_QUALITY.ENABLED is True, but only MultiScaleMaskedTransformerDecoder predicts the "
        f"quality of masks, not {_decoder_and_head(cfg)}: {remedy}",
    )


def _validate_sizes(cfg: CfgNode) -> None:
    """Reject widths and numbers of heads that do not fit together."""
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    require(
        node.HIDDEN_DIM % node.NHEADS == 0,
        f"MODEL.MASK_FORMER.HIDDEN_DIM {node.HIDDEN_DIM} must be a multiple of NHEADS {node.NHEADS}",
    )
    require(
        head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS in (8, node.NHEADS),
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS has no effect: the pixel decoder takes "
        f"MODEL.MASK_FORMER.NHEADS ({node.NHEADS}). Set that key instead.",
    )
    require(
        node.HIDDEN_DIM % 4 == 0,
        f"MODEL.MASK_FORMER.HIDDEN_DIM {node.HIDDEN_DIM} must be a multiple of 4, for positions",
    )
    deformable = head.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder"
    require(
        head.CONVS_DIM % 32 == 0 or not (deformable or head.NORM == "GN"),
        f"MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM} must be a multiple of 32, the groups of its norms",
    )
    require(
        not deformable or head.CONVS_DIM % node.NHEADS == 0,
        f"MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM} must be a multiple of MODEL.MASK_FORMER.NHEADS {node.NHEADS}",
    )
    stride = head.COMMON_STRIDE
    require(stride & (stride - 1) == 0, f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {stride} must be a power of 2, such as 4")
    for key in ("IN_FEATURES", "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"):
        require(len(set(head[key])) == len(head[key]), f"MODEL.SEM_SEG_HEAD.{key} names a feature twice: {head[key]}")


def _validate_backbone(cfg: CfgNode) -> None:
    """Reject settings of the selected backbone that do not fit together."""
    name, swin, resnet = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SWIN, cfg.MODEL.RESNETS
    if name == "D2SwinTransformer":
        require(
            len(swin.DEPTHS) == len(swin.NUM_HEADS),
            f"MODEL.SWIN.DEPTHS {swin.DEPTHS} and MODEL.SWIN.NUM_HEADS {swin.NUM_HEADS} must have one entry per stage",
        )
        for stage, heads in enumerate(swin.NUM_HEADS):
            channels = swin.EMBED_DIM * 2**stage
            require(
                channels % heads == 0,
                f"MODEL.SWIN.NUM_HEADS: {heads} heads do not divide the {channels} channels of stage {stage + 1}, "
                f"MODEL.SWIN.EMBED_DIM {swin.EMBED_DIM} times {2**stage}",
            )
    elif name in ("build_resnet_backbone", "build_resnet_deeplab_backbone"):
        require(
            resnet.DEPTH in (18, 34, 50, 101, 152),
            f"MODEL.RESNETS.DEPTH is {resnet.DEPTH}, which does not exist. Known: 18, 34, 50, 101, 152",
        )
        dilations = (resnet.RES4_DILATION, resnet.RES5_DILATION)
        require(
            dilations in (((1, 1), (1, 2), (1, 4), (2, 4)) if "deeplab" in name else ((1, 1), (1, 2))),
            f"MODEL.BACKBONE.NAME '{name}' has no MODEL.RESNETS.RES4_DILATION {dilations[0]} with RES5_DILATION "
            f"{dilations[1]}: set 1 and 1, or 1 and 2",
        )
        for key, value in (("RES2_OUT_CHANNELS", 64), ("NUM_GROUPS", 1), ("RES5_DILATION", 1)):
            require(
                resnet.DEPTH > 34 or resnet[key] == value,
                f"MODEL.RESNETS.DEPTH {resnet.DEPTH} needs MODEL.RESNETS.{key} {value}, not {resnet[key]}",
            )
