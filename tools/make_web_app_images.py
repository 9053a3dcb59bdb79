#!/usr/bin/env python3
"""Make the screenshots of the web app that the guides show, docs/images/web_*.png.

    python tools/make_web_app_images.py [--output DIR]

It starts the web app with the included model on a free port, and uses it in a headless Chromium that the system has.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask2former.data.image_sources import load_image  # noqa: E402
from mask2former.serving.engine import Engine, ModelSource  # noqa: E402
from mask2former.serving.server import make_server  # noqa: E402
from mask2former.serving.web.app import create_web_app  # noqa: E402
from mask2former.video.writer import VideoWriter  # noqa: E402

CELLS = ROOT / "docs/images/cells.png"
BROWSER = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
WAIT = 300_000  # milliseconds


def make_video(path: Path, frames: int = 8, rate: int = 4) -> Path:
    """Write a video in which the example image moves."""
    image = load_image(CELLS)
    writer = VideoWriter(path, Fraction(rate))
    for i in range(frames):
        writer.add(np.ascontiguousarray(np.roll(image, 6 * i, axis=1)), i / rate)
    writer.close()
    return path


def make_dataset(directory: Path, engine: Engine) -> Path:
    """Write a COCO dataset of one image, with what the model finds as its objects."""
    directory.mkdir()
    shutil.copy(CELLS, directory / CELLS.name)
    result = engine.segment(CELLS.read_bytes())
    height, width = result.size
    content = {
        "images": [{"id": 1, "file_name": CELLS.name, "width": width, "height": height}],
        "annotations": [
            {**record, "id": i, "image_id": 1, "iscrowd": 0} for i, record in enumerate(result.to_coco(), start=1)
        ],
        "categories": result.classes.categories(),
    }
    (directory / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Serve an application from a thread; yield its address."""
    server = make_server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise SystemExit("error: the server does not start")
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def segment(page: Any) -> None:
    """Choose the first example and press Segment."""
    page.locator("#examples button").first.click()
    page.locator("#image img").wait_for()
    page.get_by_role("button", name="Segment", exact=True).click()
    page.locator("#view .m2f-stage").wait_for()
    loaded(page, "#view")


def loaded(page: Any, place: str) -> None:
    """Wait until all images of a result have arrived."""
    script = "place => [...document.querySelectorAll(place + ' img')].every(i => i.complete && i.naturalWidth)"
    page.wait_for_function(script, arg=place)


def image_tab(page: Any) -> None:
    """Show the image tab with a label at an object."""
    segment(page)
    page.locator("#view svg path").nth(4).hover()


def phone(page: Any) -> None:
    """Show the same on a phone, where the result is scrolled into view."""
    segment(page)
    page.locator("#view").evaluate("element => element.scrollIntoView({behavior: 'instant', block: 'start'})")


def compare_tab(page: Any) -> None:
    """Show two thresholds side by side."""
    page.get_by_role("tab", name="Compare").click()
    page.locator("#examples button:visible").first.click()
    page.locator("#compare-image img").wait_for()
    right = page.get_by_label("number input for Score threshold, right")
    right.fill("0.94")
    right.press("Tab")
    page.get_by_role("button", name="Compare", exact=True).click()
    for side in ("left", "right"):
        page.locator(f"#compare-{side} .m2f-stage").wait_for()
        loaded(page, f"#compare-{side}")
    page.locator("#compare-left").evaluate("element => element.scrollIntoView({behavior: 'instant', block: 'end'})")


def video_tab(page: Any, video: Path) -> None:
    """Show a tracked video."""
    page.get_by_role("tab", name="Video").click()
    page.locator("#video input[type=file]").set_input_files(video)
    page.locator("#video video").wait_for()
    page.get_by_role("button", name="Track", exact=True).click()
    page.locator("#video-view video").wait_for()
    page.wait_for_function("() => document.querySelector('#video-view video').readyState >= 2")


def data_tab(page: Any) -> None:
    """Show training data."""
    page.get_by_role("tab", name="Data").click()
    page.locator("#data-view .m2f-stage").wait_for()
    loaded(page, "#data-view")


def api_page(page: Any) -> None:
    """Show the page of the HTTP API."""
    page.get_by_role("link", name="HTTP API").click()
    page.get_by_text("POST /v1/segment").first.wait_for()


def save(page: Any, path: Path) -> None:
    """Save a screenshot with 256 colors, which halves its size."""
    image = Image.open(io.BytesIO(page.screenshot()), formats=("PNG",)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Make all images."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images", metavar="DIR")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("error: there is no chromium; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as temporary, Engine({"nuclei": ModelSource.named("nuclei")}) as engine:
        video = make_video(Path(temporary) / "cells.mp4")
        data = make_dataset(Path(temporary) / "cells", engine)
        shots = {
            "web_app": (DESKTOP, image_tab),
            "web_app_compare": (DESKTOP, compare_tab),
            "web_app_video": (DESKTOP, lambda page: video_tab(page, video)),
            "web_app_data": (DESKTOP, data_tab),
            "web_app_phone": (PHONE, phone),
            "web_api": (DESKTOP, api_page),
        }
        app = create_web_app(engine, data=data)
        with serve(app) as address, sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=BROWSER.split())
            for name, (viewport, use) in shots.items():
                page = chromium.new_page(viewport=viewport, has_touch=viewport is PHONE)
                page.set_default_timeout(WAIT)
                page.goto(address)
                use(page)
                save(page, output / f"{name}.png")
                page.close()
            chromium.close()


if __name__ == "__main__":
    main()
