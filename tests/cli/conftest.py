"""A stub model behind the commands, and an empty working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from mask2former.objects import ObjectRules
from mask2former.segmenter import Segmenter

from ..stub_model import StubModel

Load = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def use_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Return a function that makes the commands load a model; it returns the list of what `load` is asked for."""
    monkeypatch.chdir(tmp_path)

    def use(model: nn.Module | None = None, **rules: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def load(name: str | None = None, **options: Any) -> Segmenter:
            asked.append({"name": name, **options})
            changed = ObjectRules(**rules).changed(score_threshold=options.get("score_threshold"))
            return Segmenter(model or StubModel(), classes=["cell", "sky"], min_size=0, rules=changed)

        monkeypatch.setattr(Segmenter, "load", load)
        return asked

    return use


def write_image(path: str | Path, height: int = 20, width: int = 30) -> Path:
    """Write an image of noise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(directory: str | Path) -> set[str]:
    """Return the files below a directory."""
    return {str(p.relative_to(directory)) for p in Path(directory).rglob("*") if p.is_file()}
