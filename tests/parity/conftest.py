"""Recorded numbers of the reference implementation, and models filled with the same deterministic weights."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former.config import load_config

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def deterministic() -> ModuleType:
    """Weights and images that are the same on every machine."""
    spec = importlib.util.spec_from_file_location("deterministic", HERE / "deterministic.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recorded_configs() -> dict[str, Any]:
    """The reference's defaults, and per YAML file the resolved values that differ from them."""
    return json.loads((HERE / "data" / "configs.json").read_text())


def apply_values(cfg: CfgNode, values: dict[str, Any]) -> None:
    """Set dotted keys, with the type of the value they replace."""
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[leaf] = tuple(value) if isinstance(node[leaf], tuple) else value


@dataclass
class Vector:
    """One recorded model: its description, its numbers and our model with the same weights."""

    meta: dict[str, Any]
    numbers: dict[str, np.ndarray]
    model: Any


@pytest.fixture(scope="module")
def load_vector(deterministic: ModuleType, recorded_configs: dict[str, Any]):
    """Function that loads a vector by name; models are kept for the module's tests."""
    known: dict[str, Vector] = {}

    def load(name: str) -> Vector:
        if name in known:
            return known[name]
        known.clear()  # one model at a time in memory
        meta = json.loads((HERE / "data" / f"{name}.json").read_text())
        with np.load(HERE / "data" / f"{name}.npz") as archive:
            numbers = dict(archive)
        cfg = load_config()
        apply_values(cfg, recorded_configs["files"][meta["config"]])
        cfg.merge_from_list([*meta["opts"], "MODEL.DEVICE", "cpu"])
        model = build_model(cfg).eval()
        model.load_state_dict(deterministic.fill(model.state_dict()))
        known[name] = Vector(meta, numbers, model)
        return known[name]

    return load
