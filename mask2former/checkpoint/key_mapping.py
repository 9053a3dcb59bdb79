"""Weight names: conversion of other layouts, and loading of a state dict into a model with a report.

These layouts are recognized by their keys:

- this project's and the reference's: `backbone.*`, `sem_seg_head.{pixel_decoder,predictor}.*`;
- the reference's first one: pixel-decoder keys directly under `sem_seg_head.`, and `static_query`;
- Hugging Face's `Mask2FormerForUniversalSegmentation`;
- bare Swin backbones (the original's and timm's) and torchvision ResNets;
- any of them with the prefixes of wrappers: `module.` (DistributedDataParallel, torch's averaged model), `model.`
  (Lightning) and others, and with `_orig_mod.` (torch.compile) or FSDP's names anywhere.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn

from ..errors import CheckpointError, first_few
from . import huggingface
from .training_only import is_training_only

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
Renamer = Callable[[dict[str, Tensor]], "dict[str, Tensor] | None"]  # None: nothing to rename

# Derived from the config or from other weights: not reported as missing or unexpected.
_DERIVED = re.compile(
    r"criterion\.empty_weight|pixel_(?:mean|std)|.*\.relative_position_index|.*\.num_batches_tracked|.*\.attn_mask"
)


@dataclass
class LoadReport:
    """The result of loading weights, key by key.

    Attributes:
        source: file or description.
        loaded: keys of the model that were loaded from the checkpoint.
        missing: keys of the model that the checkpoint lacks; they keep their initial value.
        unexpected: keys of the checkpoint that the model does not have.
        reinitialized: (key, shape in the checkpoint, shape in the model) where shapes differ; these weights
            keep their random initial value. Usual when fine-tuning with another number of classes or queries.
        converted: conversions that were applied, in words.
        training_only: keys of the checkpoint that the model does not have and that only a training uses
            (MODEL.MASK_FORMER.QUERY_GROUPS, DENOISING), which are left out.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reinitialized: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    training_only: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Return whether the file had every weight of the model and no others."""
        return not (self.missing or self.unexpected or self.reinitialized)

    @property
    def total(self) -> int:
        """Return the number of weights of the model."""
        return len(self.loaded) + len(self.missing) + len(self.reinitialized)

    def require_all(self, allow_partial: bool) -> None:
        """Refuse to make results with a model of which a part is random.

        Args:
            allow_partial: MODEL.ALLOW_PARTIAL_WEIGHTS; it is enough then that a weight was loaded.

        Raises:
            CheckpointError: weights are missing or have another shape; the message names some.
        """
        self.require_some()
        missing = [key for key in self.missing if not is_training_only(key)]
        reinitialized = [entry for entry in self.reinitialized if not is_training_only(entry[0])]
        if allow_partial or not (missing or reinitialized):
            return
        parts = []
        if missing:
            parts.append(f"{len(missing)} are missing from the file, for example {missing[0]}")
        if reinitialized:
            key, old, new = reinitialized[0]
            shapes = f"{key}: {old} in the file, {new} in the model"
            parts.append(f"{len(reinitialized)} have another shape, for example {shapes}")
        raise CheckpointError(
            f"{self.source}: only {len(self.loaded)} of {self.total} weights of the model are loaded, so its results "
            f"would be random: {'; '.join(parts)}. Use the config that they were trained with, or train first. "
            "(MODEL.ALLOW_PARTIAL_WEIGHTS True takes them nevertheless.)"
        )

    def require_some(self) -> None:
        """Refuse weights of which nothing fits the model.

        Raises:
            CheckpointError: the message names keys of the file and of the model.
        """
        absent = [*self.missing, *(key for key, _, _ in self.reinitialized)]
        if not absent or any(not _DERIVED.fullmatch(key) for key in self.loaded):
            return
        names = f"the file has {first_few(self.unexpected, 3)}" if self.unexpected else "all have another shape"
        raise CheckpointError(
            f"{self.source}: 0 of {self.total} weights loaded; {names}; the model has {first_few(absent, 3)}. These "
            "weights belong to another model: give others, or the config that they were trained with "
            "(training without any: MODEL.WEIGHTS '')."
        )

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} of {self.total} weights loaded"]
        lines += [f"  converted: {text}" for text in self.converted]
        if self.training_only:
            lines.append(f"  left out, as only a training with its options uses them ({len(self.training_only)})")
        if self.reinitialized:
            lines.append(f"  reinitialized, because the shape differs ({len(self.reinitialized)}):")
            lines += [f"    {key}: {old} in the file, {new} now" for key, old, new in self.reinitialized]
        if self.missing:
            lines.append(f"  not in the file, left at their initial value ({len(self.missing)}):")
            lines += [f"    {group}" for group in _grouped(self.missing, self.loaded)]
        if self.unexpected:
            lines.append(f"  in the file, but not in the model ({len(self.unexpected)}):")
            lines += [f"    {group}" for group in _grouped(self.unexpected, self.loaded)]
        return "\n".join(lines)


def _grouped(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return one line for each module whose keys are all in the list: the shortest prefix not shared by others."""
    taken = {prefix for other in others for prefix in _prefixes(other)}
    groups: dict[str, list[str]] = {}
    for key in keys:
        name = next((f"{prefix}*" for prefix in _prefixes(key) if prefix not in taken), key)
        groups.setdefault(name, []).append(key)
    return [f"{name} ({len(members)})" if len(members) > 1 else members[0] for name, members in sorted(groups.items())]


def _prefixes(key: str) -> Iterator[str]:
    """Yield the prefixes of a key: "a." and "a.b." of `a.b.c`."""
    for match in re.finditer(r"\.", key):
        yield key[: match.end()]


def to_current_layout(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under this project's names, and the conversions that were applied, in words."""
    notes: list[str] = []
    out = _without_wrappers(state)
    if huggingface.is_huggingface(out):
        return huggingface.from_huggingface(out), ["Hugging Face names to this project's"]
    for note, rename in _HEADS:
        out = _apply(rename, out, note, notes)
    return out, notes


def _apply(rename: Renamer, state: dict[str, Tensor], note: str, notes: list[str]) -> dict[str, Tensor]:
    renamed = rename(state)
    if renamed is None:
        return state
    notes.append(note)
    return renamed


# Added inside names by torch.compile and FSDP.
_INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The shortest prefix before the first module of a segmentation model, ours or Hugging Face's.
_PREFIX = re.compile(r"((?:[^.]+\.)*?)(?:backbone|sem_seg_head|model\.pixel_level_module|model\.transformer_module)\.")
_USUAL_PREFIX = re.compile(r"(?:(?:module|model|net|network)\.)+")


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the prefixes that training programs put before the names of a model.

    Raises:
        CheckpointError: several models are in the file, and none has a usual prefix.
    """
    out = {_INSIDE.sub("", key): value for key, value in state.items()}
    prefixes = list(dict.fromkeys(match[1] for match in map(_PREFIX.match, out) if match))
    if not prefixes:  # a bare backbone
        for prefix in ("module.", "model."):
            if out and all(key.startswith(prefix) for key in out):
                out = {key[len(prefix) :]: value for key, value in out.items()}
        return out
    if "" in prefixes:
        return out
    usual = [prefix for prefix in prefixes if _USUAL_PREFIX.fullmatch(prefix)] or prefixes
    if len(usual) > 1:
        raise CheckpointError(f"the file has weights of several models: {', '.join(usual)}. Save those of one only.")
    return {key.removeprefix(usual[0]): value for key, value in out.items()}


def _rename(state: dict[str, Tensor], new_name: Callable[[str], str | None]) -> dict[str, Tensor] | None:
    """Return a renamed copy without the keys whose new name is None; None if nothing changes."""
    names = {key: new_name(key) for key in state}
    if all(key == name for key, name in names.items()):
        return None
    return {name: state[key] for key, name in names.items() if name is not None}


def _first_head_layout(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert the reference's head version 1, whose pixel decoder's weights are directly under the head."""
    head = "sem_seg_head."

    def name(key: str) -> str:
        if not key.startswith(head) or key[len(head) :].startswith(("predictor.", "pixel_decoder.")):
            return key
        return f"{head}pixel_decoder.{key[len(head) :]}"

    return _rename(state, name)


def _static_query(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    return _rename(state, lambda key: key.replace("predictor.static_query.", "predictor.query_feat."))


def swin_names(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert an ImageNet Swin without prefix; the final norm and the classifier are dropped."""
    if "patch_embed.proj.weight" not in state or "layers.0.blocks.0.attn.qkv.weight" not in state:
        return None
    # timm assigns a patch merging to the stage after it, the original to the stage before.
    merging = "layers.{}.downsample.reduction.weight"
    timm = merging.format(0) not in state and merging.format(1) in state

    def name(key: str) -> str | None:
        if key.startswith(("head.", "norm.")):
            return None
        if timm and (match := re.fullmatch(r"layers\.(\d+)\.(downsample\..*)", key)):
            key = f"layers.{int(match[1]) - 1}.{match[2]}"
        return f"backbone.{key}"

    return _rename(state, name)


def torchvision_resnet_names(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert torchvision's names to detectron2's: layer1..4 -> res2..5, bnN -> convN.norm, downsample -> shortcut."""
    if "layer1.0.conv1.weight" not in state or "conv1.weight" not in state:
        return None

    def name(key: str) -> str | None:
        if key.startswith("fc."):
            return None
        key = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", key)
        if not key.startswith("res"):
            key = f"stem.{key}"
        key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
        key = key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        return f"backbone.{key}"

    return _rename(state, name)


_HEADS: tuple[tuple[str, Renamer], ...] = (
    ("first head layout: sem_seg_head.* to sem_seg_head.pixel_decoder.*", _first_head_layout),
    ("static_query to query_feat", _static_query),
)
# Applied only if the model has such a backbone: the timm adapter loads the same files under their own names.
_BACKBONES: dict[str, tuple[str, Renamer]] = {
    "backbone.patch_embed.proj.weight": (
        "Swin backbone: prefix backbone. added, classifier dropped",
        swin_names,
    ),
    "backbone.res2.0.conv1.weight": (
        "torchvision ResNet names to detectron2's, classifier dropped",
        torchvision_resnet_names,
    ),
}


def check_weight(key: str, value: Tensor, source: str) -> None:
    """Refuse tensors that have no plain values: sparse, quantized, complex, or without memory.

    Raises:
        CheckpointError: names file and entry.
    """
    kind = None
    if value.is_meta:
        kind = "a meta tensor, which has a shape but no values"
    elif value.is_quantized:
        kind = "a quantized tensor; save tensor.dequantize() instead"
    elif value.is_nested or value.layout != torch.strided:
        kind = "a sparse tensor; save tensor.to_dense() instead"
    elif value.is_complex():
        kind = "complex, but weights are real numbers"
    if kind is not None:
        raise CheckpointError(f"{source}: entry {key!r} is {kind}")


def load_state_dict(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "state dict",
    match_names: bool = False,
    caffe2_names: bool = False,
    strict: bool = False,
    dry_run: bool = False,
) -> LoadReport:
    """Load `state` (any known layout) into `model` where names and shapes match.

    Args:
        match_names: match a backbone's short names to the model's longer ones (detectron2's heuristics),
            unless the names match already.
        caffe2_names: the names are those of Caffe2; convert them first (detectron2's tables).
        strict: raise unless the report is complete; the model is then unchanged.
        dry_run: only report what would be loaded.

    Raises:
        CheckpointError: a weight is not a plain floating point tensor, the file has several models, or, with `strict`,
            a weight is missing, unexpected or of another shape.
    """
    target = model.state_dict()
    weights, notes = to_current_layout(state)
    for marker, (note, rename) in _BACKBONES.items():
        if marker in target:
            weights = _apply(rename, weights, note, notes)
    if match_names and target.keys().isdisjoint(weights):
        weights = _matched(target, weights, caffe2_names, source)
        notes.append("names matched by their ends (detectron2's heuristics)")
    report = LoadReport(source, converted=notes)
    fitting: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in weights.items():
        if key not in target:
            if is_training_only(key):
                report.training_only.append(key)
            elif not _DERIVED.fullmatch(key):
                report.unexpected.append(key)
        elif tuple(value.shape) == tuple(target[key].shape):
            check_weight(key, value, source)
            if target[key].is_floating_point() and not value.is_floating_point():
                raise CheckpointError(
                    f"{source}: {key} holds integers ({value.dtype}), which look like quantized weights; save them as "
                    "floating point numbers"
                )
            fitting[key] = value
        elif not key.endswith(".relative_position_index"):  # derived from the window size
            report.reinitialized.append((key, tuple(value.shape), tuple(target[key].shape)))
    absent = [key for key in target if key not in weights and not _DERIVED.fullmatch(key)]
    report.missing = [key for key in absent if not _shared(target[key], target, fitting)]
    report.loaded = list(fitting)
    if strict and not report.complete:
        raise CheckpointError(f"the checkpoint does not match the model exactly.\n{report}")
    if dry_run:
        return report
    _keep_versions(model, state, fitting)
    model.load_state_dict(fitting, strict=False)
    return report


def _matched(
    target: dict[str, Tensor], weights: dict[str, Tensor], caffe2_names: bool, source: str
) -> dict[str, Tensor]:
    """Return the weights under the names of the model that end alike (detectron2's heuristics)."""
    try:
        matched: dict[str, Tensor] = align_and_update_state_dicts(target, weights, c2_conversion=caffe2_names)
    except Exception as error:  # detectron2 expects the layers of its own models
        raise CheckpointError(
            f"{source}: its names cannot be matched to those of the model ({type(error).__name__}: {error})"
        ) from error
    return matched


def _shared(tensor: Tensor, target: Mapping[str, Tensor], fitting: Mapping[str, Tensor]) -> bool:
    """Return whether a weight is loaded under another name of the same tensor."""
    if tensor.numel() == 0 or tensor.is_meta:
        return False
    others = (target[other] for other in fitting)
    return any(other.data_ptr() == tensor.data_ptr() and other.shape == tensor.shape for other in others)


def _keep_versions(model: nn.Module, state: Mapping[str, Tensor], fitting: OrderedDict[str, Tensor]) -> None:
    """Keep the file's module versions, for the conversions of torch and detectron2; the head is converted already."""
    versions: dict[str, dict[str, int]] = dict(getattr(state, "_metadata", None) or {})
    current = getattr(model.state_dict(), "_metadata", {})
    for name, value in current.items():
        if name.split(".")[0] == "sem_seg_head":
            versions[name] = value
    fitting._metadata = versions  # type: ignore[attr-defined]
