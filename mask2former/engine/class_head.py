"""The first weights of the class head when a model is fine-tuned on other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CLASS_WEIGHT = "sem_seg_head.predictor.class_embed.weight"
CLASS_BIAS = "sem_seg_head.predictor.class_embed.bias"
_DERIVED = "criterion.empty_weight"  # of the number of classes; every model makes its own


def matching_classes(names: Sequence[str], model_names: Sequence[str] | None) -> list[int | None]:
    """Return for each class of the data the index of the model's class that it starts from, None for a new class.

    Names are compared without case and punctuation. The only class of a dataset starts from the only class of a model,
    whatever they are called.

    Args:
        names: class names of the data.
        model_names: those of the model, None if they are unknown.
    """
    if model_names is None:
        return [None] * len(names)
    if len(names) == len(model_names) == 1:
        return [0]
    known = {_plain(name): index for index, name in reversed(list(enumerate(model_names)))}
    return [known.get(_plain(name)) for name in names]


def _plain(name: str) -> str:
    letters = "".join(c for c in name.lower() if c.isalnum())
    return letters or name  # a name without letters and digits is compared as it is


def is_unchanged(matches: Sequence[int | None], count: int) -> bool:
    """Return whether the data has the `count` classes of the model in the same order."""
    return list(matches) == list(range(count))


def adapted_weights(state: Mapping[str, Tensor], matches: Sequence[int | None], seed: int = 0) -> dict[str, Tensor]:
    """Return the weights of a model with a class head for other classes.

    Rows of known classes and of no-object are kept; new classes get small random weights and the mean bias.

    Args:
        state: weights under this project's names; the class head has K + 1 rows, no-object last.
        matches: as `matching_classes` returns.
        seed: of the random weights.

    Returns:
        All weights, with len(matches) + 1 rows in the class head; without a class head in `state` unchanged.
    """
    adapted = {key: value for key, value in state.items() if key != _DERIVED}
    if CLASS_WEIGHT not in state or CLASS_BIAS not in state:
        return adapted
    weight, bias = state[CLASS_WEIGHT].float(), state[CLASS_BIAS].float()
    generator = torch.Generator().manual_seed(seed)
    rows, biases = [], []
    for match in matches:
        known = match is not None and match < len(weight) - 1
        rows.append(weight[match] if known else 0.02 * torch.randn(weight.shape[1], generator=generator))
        biases.append(bias[match] if known else bias[:-1].mean())
    adapted[CLASS_WEIGHT] = torch.stack([*rows, weight[-1]])
    adapted[CLASS_BIAS] = torch.stack([*biases, bias[-1]])
    return adapted
