"""Defaults and every YAML file resolve to the values of the reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mask2former.config import load_config

ROOT = Path(__file__).parents[2] / "configs"
RECORDED = json.loads((Path(__file__).parent / "data" / "configs.json").read_text())
PRESENT = sorted(name for name in RECORDED["files"] if (ROOT / name).is_file())


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))


def test_defaults_are_those_of_the_reference() -> None:
    ours = dict(flat(load_config()))
    recorded = RECORDED["defaults_added_or_changed_over_detectron2"]
    assert {key: ours.get(key) for key in recorded} == recorded


def test_all_coco_files_are_present() -> None:
    missing = [name for name in RECORDED["files"] if name.startswith("coco/") and name not in PRESENT]
    assert not missing


@pytest.mark.parametrize("name", PRESENT)
def test_resolved_values(name: str) -> None:
    defaults = dict(flat(load_config()))
    changed = {key: value for key, value in flat(load_config(name)) if value != defaults[key]}
    assert changed == RECORDED["files"][name]
