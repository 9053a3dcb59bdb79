"""Names of video models and datasets, which are registered when something needs them.

Projects for videos register some of them themselves, and would find them in use after `import mask2former`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .utils.registry import Waiting, claim, shared

# The components of video models, and the names of YouTube-VIS; `import mask2former_video` registers them too.
VIDEO = shared("VIDEO", Waiting)
OVIS = shared("OVIS", Waiting)  # the names of OVIS
# The names of YouTube-VIS with annotations listed by frame, in place of those of VIDEO; by `import mask2former_video`.
YTVIS_BY_FRAME = shared("YTVIS_BY_FRAME", Waiting)

_COMPONENTS = ("VideoMaskFormer", "VideoMultiScaleMaskedTransformerDecoder")


def register_named_datasets(names: Iterable[Any]) -> None:
    """Register the video datasets that `names` has names of."""
    given = tuple(name for name in names if isinstance(name, str))
    for prefix, waiting in (("ytvis_", VIDEO), ("ovis_", OVIS)):
        if any(name.startswith(prefix) for name in given):
            waiting.activate()


def register_named(cfg: Any) -> None:
    """Register the video components and datasets that a config names, before a model of this package is built."""
    if cfg.MODEL.META_ARCHITECTURE in _COMPONENTS or cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME in _COMPONENTS:
        VIDEO.activate()
    register_named_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    claim()
