"""Any timm model with `features_only` as a detectron2 backbone."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ...checkpoint.reading import load_weights
from ...utils.hints import did_you_mean
from ...utils.registry import register

logger = logging.getLogger(__name__)


@register(BACKBONE_REGISTRY)
class TimmBackbone(Backbone):
    """A timm feature extractor; its maps at strides 4, 8, 16, 32 are called res2, res3, res4, res5.

    Args:
        name: a timm model name, for example "tf_efficientnet_lite0" or "convnext_tiny".
        weights: local file (.safetensors, .pth) with timm's key names; empty for random weights.
        out_features: which maps to return.
        drop_path_rate: stochastic depth rate, for models that support it.
        freeze_norm: replace batch norms by frozen ones, for small batches.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        weights: str = "",
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        drop_path_rate: float = 0.0,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        info: Any = _create(name, drop_path_rate).feature_info
        requested = {2 ** int(f.removeprefix("res")): f for f in out_features}
        strides, channels = info.reduction(), info.channels()
        # Where two maps share a stride, the later one is deeper.
        index = {requested[s]: i for i, s in enumerate(strides) if s in requested}
        missing = [f for f in out_features if f not in index]
        if missing:
            raise ValueError(f"MODEL.TIMM.NAME '{name}' has no features {missing}; its strides are {strides}")
        # Build only what is used: parameters without gradients make distributed training fail.
        selected = sorted(index.values())
        self.network = _create(name, drop_path_rate, selected)
        self._index = {feature: selected.index(i) for feature, i in index.items()}
        # Some timm transformers return (B, H, W, C).
        self._channels_last = str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC")
        self._out_features = list(out_features)
        self._out_feature_channels = {f: channels[index[f]] for f in out_features}
        self._out_feature_strides = {f: strides[index[f]] for f in out_features}
        if weights:
            self._load(weights)
        if freeze_norm:
            from timm.layers import freeze_batch_norm_2d

            # Not detectron2's conversion, which drops the activation that many of timm's batch norms include.
            self.network = freeze_batch_norm_2d(self.network)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read the arguments from the keys of MODEL.TIMM, which have the same names in upper case."""
        return {key.lower(): value for key, value in cfg.MODEL.TIMM.items()}

    @property
    def size_divisibility(self) -> int:
        """Return the coarsest stride; inputs must be padded to a multiple of it."""
        return max(self._out_feature_strides.values())

    def _load(self, weights: str) -> None:
        """Load timm-named weights; keys of the classifier and of stages that are not used are ignored."""
        if not Path(weights).is_file():
            raise FileNotFoundError(f"MODEL.TIMM.WEIGHTS: no file '{weights}'; leave it empty for random weights")
        state = load_weights(weights)
        for key in self.network.state_dict():
            # `features_only` flattens sequences: "stages.0.x" becomes "stages_0.x".
            nested_key = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)
            if key not in state and nested_key in state:
                state[key] = state.pop(nested_key)
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(
                f"MODEL.TIMM.WEIGHTS: '{weights}' has no weights for {len(missing)} tensors, e.g. {missing[:3]}; "
                "it must use timm's key names for MODEL.TIMM.NAME"
            )
        logger.info("Loaded backbone weights from %s (%d tensors ignored)", weights, len(unexpected))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"res2": (B, C, H / 4, W / 4), ...} of normalized images (B, 3, H, W)."""
        try:
            maps = self.network(x)
        except AssertionError as error:  # models with a fixed window size
            raise ValueError(
                f"the timm model does not support inputs of size {tuple(x.shape[-2:])}: {error}. "
                "Set MODEL.MASK_FORMER.SIZE_DIVISIBILITY to a multiple that the model supports."
            ) from error
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return {feature: maps[self._index[feature]] for feature in self._out_features}


def _create(name: str, drop_path_rate: float, out_indices: Sequence[int] | None = None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), 3)
        raise ValueError(f"MODEL.TIMM.NAME '{name}' is not a timm model.{hint}")
    options: dict[str, Any] = {"features_only": True, "pretrained": False, "out_indices": out_indices}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        return timm.create_model(name, strict_img_size=False, **options)  # window transformers: any input size
    except TypeError:
        logger.debug("timm model %s does not support strict_img_size", name)
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"MODEL.TIMM.NAME '{name}' does not support features_only: {error}") from error
