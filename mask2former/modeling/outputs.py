"""What decoders return: dictionaries that compute what costs much where it is read.

Losses and matching look at mask logits at sampled points only, so the masks of all queries and layers need not exist.
Who reads them, gets them: other projects' losses and hooks see the tensors that the reference implementation has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.lazy_dict import Later, LazyDict
from .half_products import are_halves, product


class Deferred(Later[Tensor]):
    """A tensor that is computed later, in the modes (gradients, inference) of the time when it was put off."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        grad = torch.is_grad_enabled()
        inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()

        def in_modes() -> Tensor:
            if inference:
                with torch.inference_mode():
                    return compute()
            with torch.set_grad_enabled(grad):
                return compute()

        super().__init__(in_modes)


class MaskLogits(Deferred):
    """Mask logits that are not computed: products of query embeddings and mask features.

    Attributes:
        embeds: (B, Q, C).
        features: (B, T, C, H4, W4).
        clip: the logits are (B, Q, T, H4, W4) instead of (B, Q, H4, W4).
    """

    def __init__(self, embeds: Tensor, features: Tensor, clip: bool) -> None:
        self.embeds, self.features, self.clip = embeds, features, clip

        def compute() -> Tensor:
            logits = mask_logits(embeds, features)
            return logits if clip else logits[:, :, 0]

        super().__init__(compute)


class Row(Deferred):
    """One prediction of `stack` (L, ...), which holds those of all layers, the last one first."""

    def __init__(self, stack: Tensor, index: int) -> None:
        self.stack, self.index = stack, index
        super().__init__(lambda: stack[index])


class DecoderOutputs(LazyDict):
    """Outputs of a decoder: "pred_logits" (B, Q, K + 1); "pred_masks" (B, Q, H4, W4), or (B, Q, T, H4, W4) of clips,
    both before softmax and sigmoid; "aux_outputs", a list of such dictionaries of the earlier predictions, in order.
    Where it is predicted, "pred_quality" (B, Q), before the sigmoid, see `mask_quality`. In training perhaps also
    "query_groups", a list, "query_selection" and "denoising": such dictionaries of more queries.
    """


# Without it torch's functions on nested containers would take the outputs for one leaf, and leave them as they are.
torch.utils._pytree.register_pytree_node(
    DecoderOutputs, lambda outputs: ([*outputs.values()], [*outputs]), lambda values, keys: dict(zip(keys, values))
)


def layer_outputs(
    logits: Tensor | Sequence[Any], masks: Sequence[Any], quality: Tensor | None = None, **more: Any
) -> DecoderOutputs:
    """Build the outputs of a decoder from those of its layers.

    Args:
        logits: (L, B, Q, K + 1), the last layer first, then the earlier ones in order, or one value a layer in this
            order, each a tensor or `Later`.
        masks: one value a layer in this order, each a tensor or `Later`.
        quality: (L, B, Q) in this order, or None.
        more: further entries of the last layer.
    """
    classes = [Row(logits, i) for i in range(len(logits))] if isinstance(logits, Tensor) else logits
    layers = [DecoderOutputs(pred_logits=c, pred_masks=m) for c, m in zip(classes, masks, strict=True)]
    if quality is not None:
        for i, layer in enumerate(layers):
            layer["pred_quality"] = Row(quality, i)
    last, *earlier = layers
    last["aux_outputs"] = earlier
    last.update(more)
    return last


def earlier_outputs(classes: Sequence[Tensor] | Tensor | None, masks: Sequence[Tensor] | Tensor) -> list[Any]:
    """Return the "aux_outputs" of the predictions of all layers, the first one first, without the last one.

    Args:
        classes: class logits (B, Q, K + 1) of each layer; None without classes.
        masks: mask logits of each layer.
    """
    if classes is None:
        return [{"pred_masks": layer} for layer in masks[:-1]]
    layers = zip(classes[:-1], masks[:-1], strict=True)
    return [{"pred_logits": logits, "pred_masks": layer} for logits, layer in layers]


def unread(values: Mapping[str, Any], key: str) -> Any:
    """Return the `Later` of a key that nobody has read, or None, also of plain dictionaries."""
    return values.unread(key) if isinstance(values, LazyDict) else None


def same_shapes(outputs: Mapping[str, Any]) -> bool:
    """Return whether all predictions have the same shapes, as far as they are tensors already."""
    layers = [outputs, *outputs.get("aux_outputs", ())]
    return all(
        len({layer[key].shape for layer in layers if key in layer and unread(layer, key) is None}) <= 1
        for key in ("pred_logits", "pred_masks")
    )


def without_earlier(outputs: Mapping[str, Any]) -> LazyDict:
    """Return the last prediction alone, without reading it."""
    raw = dict.items(outputs) if isinstance(outputs, LazyDict) else outputs.items()
    return DecoderOutputs((key, value) for key, value in raw if key != "aux_outputs")


def split(outputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Take outputs apart without reading what is not computed yet.

    Args:
        outputs: a tensor, `MaskLogits`, `Row`, or a dictionary or list of such values.

    Returns:
        The tensors, each once, and a function that builds the same outputs of other tensors in their place.

    Raises:
        TypeError: another kind of value.
    """
    tensors: list[Tensor] = []
    places: dict[int, int] = {}

    def place(tensor: Tensor) -> int:
        if id(tensor) not in places:
            places[id(tensor)] = len(tensors)
            tensors.append(tensor)
        return places[id(tensor)]

    def builder(value: Any) -> Callable[[Sequence[Tensor]], Any]:
        if isinstance(value, Later) and value.is_read:
            value = value.value()
        if isinstance(value, Tensor):
            index = place(value)
            return lambda given: given[index]
        if isinstance(value, MaskLogits):
            embeds, features, clip = place(value.embeds), place(value.features), value.clip
            return lambda given: MaskLogits(given[embeds], given[features], clip)
        if isinstance(value, Row):
            stack, row = place(value.stack), value.index
            return lambda given: Row(given[stack], row)
        if isinstance(value, dict):
            kind = DecoderOutputs if isinstance(value, LazyDict) else dict
            inner = {key: builder(each) for key, each in dict.items(value)}
            return lambda given: kind((key, build(given)) for key, build in inner.items())
        if isinstance(value, list | tuple):
            parts, sequence = [builder(each) for each in value], list if isinstance(value, list) else tuple
            return lambda given: sequence(build(given) for build in parts)
        raise TypeError(f"outputs of a network are tensors, not {type(value).__name__}")

    build = builder(outputs)
    return tensors, build


def mask_logits(embeds: Tensor, features: Tensor) -> Tensor:
    """Compute mask logits (B, Q, T, H, W), fp32, of query embeddings (B, Q, C) and mask features (B, T, C, H, W)."""
    with torch.autocast(embeds.device.type, enabled=False):
        batch, frames, channels, height, width = features.shape
        learns = torch.is_grad_enabled() and (embeds.requires_grad or features.requires_grad)
        if are_halves(embeds, features) and not learns:
            logits = product(embeds, features.transpose(1, 2).reshape(batch, channels, -1))
        else:
            logits = torch.bmm(embeds.float(), features.float().transpose(1, 2).reshape(batch, channels, -1))
        return logits.view(batch, -1, frames, height, width)
