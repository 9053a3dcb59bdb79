"""The .json file beside an exported model: all that a program must know to run it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..objects import ObjectRules
from ..structures.classes import ClassTable
from .check import Difference
from .network import ExportNetwork

VERSION = 1  # of the form of the file


def describe(
    network: ExportNetwork,
    model: nn.Module,
    cfg: CfgNode,
    classes: ClassTable,
    *,
    name: str,
    kind: str,
    post: str,
    shape: Sequence[int],
    dynamic_batch: bool,
    precision: str,
    differences: Sequence[Difference],
) -> dict[str, Any]:
    """Return the content of the file: JSON values.

    Args:
        network, model, cfg, classes: what was exported.
        name: of the model, for people.
        kind: the format; `post`, `precision`: as exported.
        shape: of the images, (B, 3, H, W) or (B, T, 3, H, W).
        dynamic_batch: B may be any number.
        differences: those of the check.
    """
    any_model: Any = model
    rules = ObjectRules.from_config(cfg)
    thresholds = dict(network.thresholds)
    if "score_threshold" in thresholds:  # what people see; evaluation, which the model's own value is for, keeps all
        thresholds["score_threshold"] = max(thresholds["score_threshold"], rules.score_threshold)
    return {
        "version": VERSION,
        "model": name,
        "format": kind,
        "precision": precision,
        "post": post,
        "input": {
            "height": shape[-2],
            "width": shape[-1],
            "batch": shape[0],
            "dynamic_batch": dynamic_batch,
            "frames": network.frames,
            "channel_order": cfg.INPUT.FORMAT,
            "mean": any_model.pixel_mean.flatten().tolist(),
            "std": any_model.pixel_std.flatten().tolist(),
            "resize": "keep the ratio, fit into height and width, pad right and below with zeros after normalizing",
        },
        "input_names": list(network.input_names),
        "outputs": {
            post: list(network.part.output_names or network.logit_names),
            "all": list(network.output_names),
        },
        "thresholds": thresholds,
        "rules": asdict(rules),
        "classes": classes.categories(),
        "check": [asdict(difference) for difference in differences],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "onnx", "onnxruntime", "onnxscript"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
