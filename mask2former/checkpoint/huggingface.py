"""Conversion of weight names of Hugging Face's `Mask2FormerForUniversalSegmentation` with Swin, to and from ours.

The two models compute the same function, so weights convert exactly: tensors are renamed, and the three projections
of an attention are stacked (ours) or separate (theirs). Both naming schemes of their Swin are read, that of the files
on the hub and that of the modules in transformers 5; the first is written, because every version of transformers
reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .training_only import is_training_only

_ENCODER = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."
_LAYERS = _TRANSFORMER + "decoder.layers.*."
_BLOCK = _ENCODER + "encoder.layers.*.blocks.*."
_PIXEL = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."
_OUR_BLOCK = "backbone.layers.*.blocks.*."
_BIAS_TABLE = "relative_position_bias_table"
_SAMPLER = _DECODER + "encoder.layers.*."
_OUR_SAMPLER = _PIXEL + "transformer.encoder.layers.*."
_SELF = _PREDICTOR + "transformer_self_attention_layers.*."
_CROSS = _PREDICTOR + "transformer_cross_attention_layers.*."
_FFN = _PREDICTOR + "transformer_ffn_layers.*."

# (theirs, ours): modules or parameters with the same leaves; * stands for a number.
_SAME = (
    (_ENCODER + "embeddings.patch_embeddings.projection", "backbone.patch_embed.proj"),
    (_ENCODER + "embeddings.norm", "backbone.patch_embed.norm"),
    (_BLOCK + "layernorm_before", _OUR_BLOCK + "norm1"),
    (_BLOCK + "layernorm_after", _OUR_BLOCK + "norm2"),
    (_BLOCK + "attention.self." + _BIAS_TABLE, _OUR_BLOCK + "attn." + _BIAS_TABLE),
    (_BLOCK + "attention.output.dense", _OUR_BLOCK + "attn.proj"),
    (_BLOCK + "intermediate.dense", _OUR_BLOCK + "mlp.fc1"),
    (_BLOCK + "output.dense", _OUR_BLOCK + "mlp.fc2"),
    (_ENCODER + "encoder.layers.*.downsample.reduction", "backbone.layers.*.downsample.reduction"),
    (_ENCODER + "encoder.layers.*.downsample.norm", "backbone.layers.*.downsample.norm"),
    (_DECODER + "level_embed", _PIXEL + "transformer.level_embed"),
    (_DECODER + "input_projections.*.0", _PIXEL + "input_proj.*.0"),
    (_DECODER + "input_projections.*.1", _PIXEL + "input_proj.*.1"),
    (_SAMPLER + "self_attn.sampling_offsets", _OUR_SAMPLER + "self_attn.sampling_offsets"),
    (_SAMPLER + "self_attn.attention_weights", _OUR_SAMPLER + "self_attn.attention_weights"),
    (_SAMPLER + "self_attn.value_proj", _OUR_SAMPLER + "self_attn.value_proj"),
    (_SAMPLER + "self_attn.output_proj", _OUR_SAMPLER + "self_attn.output_proj"),
    (_SAMPLER + "self_attn_layer_norm", _OUR_SAMPLER + "norm1"),
    (_SAMPLER + "fc1", _OUR_SAMPLER + "linear1"),
    (_SAMPLER + "fc2", _OUR_SAMPLER + "linear2"),
    (_SAMPLER + "final_layer_norm", _OUR_SAMPLER + "norm2"),
    (_DECODER + "adapter_*.0", _PIXEL + "adapter_*"),
    (_DECODER + "adapter_*.1", _PIXEL + "adapter_*.norm"),
    (_DECODER + "layer_*.0", _PIXEL + "layer_*"),
    (_DECODER + "layer_*.1", _PIXEL + "layer_*.norm"),
    (_DECODER + "mask_projection", _PIXEL + "mask_features"),
    (_TRANSFORMER + "queries_features", _PREDICTOR + "query_feat"),
    (_TRANSFORMER + "queries_embedder", _PREDICTOR + "query_embed"),
    (_TRANSFORMER + "level_embed", _PREDICTOR + "level_embed"),
    (_TRANSFORMER + "input_projections.*", _PREDICTOR + "input_proj.*"),
    (_LAYERS + "self_attn.out_proj", _SELF + "self_attn.out_proj"),
    (_LAYERS + "self_attn_layer_norm", _SELF + "norm"),
    (_LAYERS + "cross_attn", _CROSS + "multihead_attn"),
    (_LAYERS + "cross_attn.out_proj", _CROSS + "multihead_attn.out_proj"),
    (_LAYERS + "cross_attn_layer_norm", _CROSS + "norm"),
    (_LAYERS + "fc1", _FFN + "linear1"),
    (_LAYERS + "fc2", _FFN + "linear2"),
    (_LAYERS + "final_layer_norm", _FFN + "norm"),
    (_TRANSFORMER + "decoder.layernorm", _PREDICTOR + "decoder_norm"),
    (_TRANSFORMER + "decoder.mask_predictor.mask_embedder.*.0", _PREDICTOR + "mask_embed.layers.*"),
    ("class_predictor", _PREDICTOR + "class_embed"),
    ("criterion.empty_weight", "criterion.empty_weight"),
)

# (their three, our one): stacked along the first axis in the order query, key, value.
_STACKED = tuple(
    (tuple(f"{theirs}{part}.{leaf}" for part in parts), ours + leaf)
    for theirs, parts, ours in (
        (_BLOCK + "attention.self.", ("query", "key", "value"), _OUR_BLOCK + "attn.qkv."),
        (_LAYERS + "self_attn.", ("q_proj", "k_proj", "v_proj"), _SELF + "self_attn.in_proj_"),
    )
    for leaf in ("weight", "bias")
)

# transformers 5 in memory -> hub files, for keys under the encoder.
_SWIN_SPELLING = (
    (r"^swin\.(embeddings|encoder)\.", r"\1."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_UNUSED = re.compile(r".*\.relative_position_index|.*\.encoder\.(?:swin\.)?layernorm\.(?:weight|bias)")


def is_huggingface(state: Mapping[str, object]) -> bool:
    """Return whether the keys are those of Hugging Face's Mask2Former."""
    return any(key.startswith((_ENCODER, _DECODER, _ENCODER.removeprefix("model."))) for key in state)


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to this project's names; unknown keys are kept."""
    source = {_file_spelling(key): value for key, value in state.items() if not _UNUSED.fullmatch(key)}
    out: dict[str, Tensor] = {}
    for theirs, ours in _STACKED:
        for parts, name in _matches(source, theirs, ours):
            if all(part in source for part in parts):
                out[name] = torch.cat([source.pop(part) for part in parts])
    norms = sorted(_stage_norms(source).items())
    for stage, (_, name) in enumerate(norms):
        # Swin numbers the norms of the stages that are used; every Mask2Former uses all four.
        for leaf in ("weight", "bias"):
            out[f"backbone.norm{stage}.{leaf}"] = source.pop(f"{name}.{leaf}")
    for key, value in source.items():
        out[_translated(key, _TO_OURS) or key] = value
    for key in [key for key in out if key.endswith("attn.relative_position_bias_table")]:
        rows = out[key].shape[0]
        out[key.replace("_bias_table", "_index")] = relative_position_index((math.isqrt(rows) + 1) // 2)
    return out


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert this project's weights (Swin backbone, deformable pixel decoder) to Hugging Face's file names.

    Weights that only a training uses are left out.

    Raises:
        CheckpointError: weights without a counterpart in Hugging Face's model, e.g. of another backbone.
    """
    out: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        if key.endswith("relative_position_index") or key in ("pixel_mean", "pixel_std") or is_training_only(key):
            continue
        stacked = [_fill(key, ours, theirs) for theirs, ours in _STACKED]
        names = next((names for names in stacked if names is not None), None)
        norm = re.fullmatch(r"backbone\.norm(\d)\.(weight|bias)", key)
        if names is not None:
            out.update(zip(names, (part.clone() for part in value.chunk(3))))
        elif norm:
            out[f"{_ENCODER}hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}"] = value
        elif (name := _translated(key, _TO_THEIRS)) is not None:
            out[name] = value
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights have no counterpart in Hugging Face's model, e.g. {', '.join(unknown[:3])}. "
            "Only Swin with MSDeformAttnPixelDecoder and MultiScaleMaskedTransformerDecoder can be converted."
        )
    return out


def relative_position_index(window: int) -> Tensor:
    """Build the row of Swin's bias table for each pair of pixels of a window: int64 (window^2, window^2).

    It is row (dy + window - 1) * (2 * window - 1) + (dx + window - 1) for the offset from the second to the first
    pixel (Liu et al., Swin Transformer, ICCV 2021, section 3.2).
    """
    positions = torch.arange(window)
    y, x = torch.meshgrid(positions, positions, indexing="ij")
    dy = y.flatten()[:, None] - y.flatten()[None]
    dx = x.flatten()[:, None] - x.flatten()[None]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def _file_spelling(key: str) -> str:
    """Return a key in the naming scheme of the files on the hub."""
    if key.startswith(("pixel_level_module.", "transformer_module.")):  # saved without the class head
        key = "model." + key
    if not key.startswith(_ENCODER):
        return key
    rest = key[len(_ENCODER) :]
    for pattern, replacement in _SWIN_SPELLING:
        rest = re.sub(pattern, replacement, rest)
    return _ENCODER + rest


def _pattern(template: str) -> re.Pattern[str]:
    """Compile a template: `*` matches a number; one more name (weight, bias, in_proj_weight) may follow."""
    return re.compile(re.escape(template).replace(r"\*", r"(\d+)") + r"(\.\w+)?")


_TO_OURS = tuple((_pattern(theirs), ours) for theirs, ours in _SAME)
_TO_THEIRS = tuple((_pattern(ours), theirs) for theirs, ours in _SAME)


def _translated(key: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, template in table:
        match = pattern.fullmatch(key)
        # A number is not a parameter name: "input_proj.0" + ".0" is not a parameter of "input_proj.*".
        if match and not (match.groups()[-1] or "")[1:].isdigit():
            *numbers, leaf = match.groups()
            return _numbered(template, numbers) + (leaf or "")
    return None


def _numbered(template: str, numbers: list[str]) -> str:
    for number in numbers:
        template = template.replace("*", number, 1)
    return template


def _fill(key: str, template: str, others: tuple[str, ...]) -> tuple[str, ...] | None:
    """Fill the numbers of `key` at the stars of `template` into `others`; None if it does not match."""
    match = re.fullmatch(re.escape(template).replace(r"\*", r"(\d+)"), key)
    return None if match is None else tuple(_numbered(other, list(match.groups())) for other in others)


def _matches(source: Mapping[str, Tensor], theirs: tuple[str, ...], ours: str) -> Iterator[tuple[tuple[str, ...], str]]:
    for key in list(source):
        names = _fill(key, theirs[0], (*theirs, ours))
        if names is not None:
            yield names[:-1], names[-1]


def _stage_norms(source: Mapping[str, Tensor]) -> dict[int, str]:
    """Return {stage number: module name} of the norms of the backbone's outputs."""
    norms = {}
    for key in source:
        match = re.fullmatch(re.escape(_ENCODER) + r"hidden_states_norms\.stage(\d+)\.weight", key)
        if match:
            norms[int(match[1])] = key.removesuffix(".weight")
    return norms
