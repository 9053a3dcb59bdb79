"""A web app with a stub model, and a headless browser where the system has one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data.image_sources import load_image
from mask2former.segmenter import Segmenter
from mask2former.serving.engine import Engine, Limits, ModelSource
from mask2former.video.writer import VideoWriter

from ..conftest import TASKS, HeldModel, running

ROOT = Path(__file__).resolve().parents[3]

BROWSER = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WAIT = 300_000  # milliseconds: the machine may have much else to do
LIMITS = Limits(max_bytes=2_000_000, max_pixels=1_000_000, max_video_bytes=2_000_000, max_video_seconds=4)


def write_video(path: Path, seconds: float = 0.75) -> Path:
    """Write a video of 4 frames a second, 96 x 96, in which nuclei move."""
    image = load_image(ROOT / "docs/images/cells.png")[:128, 128:]
    writer = VideoWriter(path, Fraction(4))
    for i in range(round(4 * seconds)):
        writer.add(np.ascontiguousarray(image[:, 2 * i % 32 :][:96, :96]), i / 4)
    writer.close()
    return path


def write_dataset(directory: Path) -> Path:
    """Write COCO data of two images with two classes."""
    directory.mkdir()
    for i in (1, 2):
        Image.fromarray(np.full((20, 30, 3), 60 * i, dtype=np.uint8)).save(directory / f"image{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"image{i}.png", "height": 20, "width": 30} for i in (1, 2)],
        "categories": [{"id": 1, "name": "round"}, {"id": 5, "name": "long"}],
        "annotations": [
            _annotation(1, 1, 1, (2, 2, 10, 8)),
            _annotation(2, 1, 5, (14, 4, 12, 4)),
            _annotation(3, 2, 1, (5, 5, 6, 6)),
        ],
    }
    (directory / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def _annotation(number: int, image: int, category: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, w, h = box
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    keys = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
    return {**keys, "bbox": list(box), "area": w * h, "segmentation": [ring]}


@pytest.fixture(scope="module")
def web_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return the web app with a stub model, the included one and a small dataset."""
    for package in ("gradio", "uvicorn", "fastapi", "python_multipart"):
        pytest.importorskip(package)
    from mask2former.serving.web.app import create_web_app

    data = write_dataset(tmp_path_factory.mktemp("data") / "shapes")
    segmenter = Segmenter(HeldModel(), classes=["a", "b"], min_size=0, max_size=0, score_threshold=0.3)
    models = {
        "stub": ModelSource.ready(segmenter, TASKS),
        "absent": ModelSource(lambda device: segmenter, lambda: "its weights are on the moon"),
        "nuclei": ModelSource.named("nuclei"),
    }
    with Engine(models, limits=LIMITS, device="cpu") as engine:
        yield create_web_app(engine, hosts=["127.0.0.1"], data=data, close_engine=False)


@pytest.fixture(scope="module")
def server(web_app: Any) -> Iterator[str]:
    """Serve the web app; return its address."""
    with running(web_app) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a headless browser."""
    pytest.importorskip("playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER, timeout=WAIT)
        yield browser
        browser.close()
