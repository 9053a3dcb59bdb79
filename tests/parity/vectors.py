"""The recorded vectors in `data/`: results of the reference, and models with the same weights and inputs.

`NAME.json` holds the config, the sizes, the keys and shapes of the state dict, and results that are lists; `NAME.npz`
the network's outputs (float64) and results that are arrays. Weights and images come from `deterministic.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import mask2former_video  # noqa: F401 (registers the components of videos)
from mask2former.config import load_config
from tests.parity import deterministic

DATA = Path(__file__).parent / "data"
FRAMES = 3  # of the clip that video models see


@dataclass(frozen=True)
class Vector:
    """Recorded results of the reference for one model.

    Attributes:
        meta: the content of its JSON file.
        numbers: the arrays of its archive, by name.
    """

    meta: dict[str, Any]
    numbers: dict[str, np.ndarray]


@cache
def recorded_configs() -> dict[str, Any]:
    """Return the reference's defaults, and per YAML file the resolved values that differ from them."""
    return json.loads((DATA / "configs.json").read_text())


@cache
def load_vector(name: str) -> Vector:
    """Read the files of one vector."""
    with np.load(DATA / f"{name}.npz") as archive:
        return Vector(json.loads((DATA / f"{name}.json").read_text()), dict(archive))


def build(vector: Vector) -> Any:
    """Build the vector's model on the CPU, in evaluation mode, with its deterministic weights in float32."""
    cfg = load_config()
    _apply(cfg, recorded_configs()["files"][vector.meta["config"]])
    cfg.merge_from_list([*vector.meta["opts"], "MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    model.load_state_dict(deterministic.fill(model.state_dict()))
    return model


def sample(vector: Vector) -> dict[str, Any]:
    """Return the model's input: an image uint8 (3, H, W), or for video a list of FRAMES images, and the output size."""
    size = vector.meta["input_hw"]
    video = "video" in vector.meta
    image = [deterministic.image(*size, seed) for seed in range(FRAMES)] if video else deterministic.image(*size)
    height, width = vector.meta["output_hw"]
    return {"image": image, "height": height, "width": width}


def network_outputs(model: Any, image: Any) -> dict[str, Any]:
    """Run the network without post-processing on the image or the frames of `sample`.

    Returns:
        {"pred_logits" (1, Q, K + 1), "pred_masks" (1, Q, H4, W4), for a clip (1, Q, T, H4, W4)}.
    """
    if isinstance(image, list):
        outputs = model.clip_outputs(model.preprocess(image)[0])
        return {"pred_logits": outputs["pred_logits"][None], "pred_masks": outputs["pred_masks"][None]}
    outputs = model.sem_seg_head(model.backbone(model.preprocess([{"image": image}]).tensor))
    return {"pred_logits": outputs["pred_logits"], "pred_masks": outputs["pred_masks"]}


def _apply(cfg: CfgNode, values: dict[str, Any]) -> None:
    """Set dotted keys, with the type of the value that they replace."""
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[leaf] = tuple(value) if isinstance(node[leaf], tuple) else value
