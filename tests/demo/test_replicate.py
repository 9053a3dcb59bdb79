"""predict.py, the predictor for Replicate, and the files that its environment is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import predict
from mask2former import zoo
from mask2former.segmenter import Segmenter

from ..stub_model import ALL_PARTS, StubModel

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("parts", "count"), [(ALL_PARTS, 3), ({"instances"}, 1)], ids=["all", "instances alone"])
def test_an_image_with_the_segmentations_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Any, count: int
) -> None:
    names: list[str] = []

    def load(name: str, **_: Any) -> Segmenter:
        names.append(name)
        return Segmenter(StubModel(parts), classes=["cell", "sky"], min_size=0)

    monkeypatch.setattr(predict.Segmenter, "load", load)
    predictor = predict.Predictor()
    predictor.setup()
    assert names == [predict.MODEL] and predict.MODEL in zoo.list_models()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "a.png")
    drawn = Image.open(predictor.predict(image=tmp_path / "a.png"))
    assert drawn.size == (30, 20 * count)
    assert all((part != 90).any() for part in np.split(np.asarray(drawn), count))


def test_the_environment() -> None:
    cog = yaml.safe_load((ROOT / "cog.yaml").read_text())
    file, name = cog["predict"].split(":")
    assert (ROOT / file).is_file() and hasattr(predict, name)
    assert (ROOT / cog["build"]["python_requirements"]).is_file()


def test_requirements_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert block is not None
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == re.findall(r'^    "([^"]+)"', block[1], re.MULTILINE)
