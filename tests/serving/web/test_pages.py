"""The pages in a real browser. MASK2FORMER_SCREENSHOTS names a directory that keeps the screenshots."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..conftest import make_engine, png, running, wait_for
from .conftest import WAIT, write_video

pytestmark = pytest.mark.slow


class Visit:
    """A page with what went wrong in it."""

    def __init__(self, page: Any, address: str, screenshots: Path) -> None:
        self.page, self.address, self._screenshots = page, address, screenshots
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("request", self._request)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", lambda answer: answer.status >= 400 and self.errors.append(f"{answer.status} {answer.url}"))

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)

    def screenshot(self, name: str) -> None:
        """Keep what the page shows."""
        self.page.screenshot(path=self._screenshots / f"{name}.png", timeout=WAIT)

    def upload(self, content: bytes, name: str, place: str = "#image", shown: str = "img") -> None:
        """Choose a file in an input, and wait until it is there."""
        kind = "video/mp4" if name.endswith(".mp4") else "image/png"  # pages accept files by this, the server does not
        file = {"name": name, "mimeType": kind, "buffer": content}
        self.page.locator(f"{place} input[type=file]").first.set_input_files([file])
        self.page.locator(f"{place} {shown}").first.wait_for()

    def choose(self, label: str, option: str) -> None:
        """Choose an entry of a list."""
        self.page.get_by_label(label, exact=True).locator("visible=true").first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def press(self, name: str) -> None:
        """Click a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def text(self, place: str, part: str) -> str:
        """Wait for an element with a text, and return the complete text."""
        element = self.page.locator(place).filter(has_text=part)
        element.wait_for()
        return str(element.inner_text())

    def download(self, link: str) -> bytes:
        """Click a link, and return the file."""
        with self.page.expect_download(timeout=WAIT) as waiting:
            self.page.get_by_role("link", name=link, exact=True).click()
        return Path(waiting.value.path()).read_bytes()


@pytest.fixture
def visit(server: str, chromium: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Open the page, in the size of a marked test or of a laptop."""
    size = getattr(request, "param", {"width": 1280, "height": 800})
    yield from open_page(chromium, server, tmp_path, size)


def open_page(chromium: Any, address: str, directory: Path, size: dict[str, int]) -> Iterator[Visit]:
    """Yield a page of a new session, which asked no other server for anything and made no errors."""
    kept = os.environ.get("MASK2FORMER_SCREENSHOTS")
    screenshots = Path(kept) if kept else directory
    screenshots.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(viewport=size, accept_downloads=True)
    try:
        visit = Visit(context.new_page(), address, screenshots)
        visit.page.goto(address, timeout=WAIT)
        visit.page.get_by_role("button", name="Segment", exact=True).wait_for()
        yield visit
        assert visit.foreign == [] and visit.errors == []
    finally:
        context.close()


def test_three_clicks_from_an_example_to_a_file(visit: Visit) -> None:
    if not visit.page.locator("#examples").count():
        pytest.skip("there are no example images on this machine")
    visit.page.locator("#examples button").first.click()
    visit.page.locator("#image img").first.wait_for()
    visit.press("Segment")
    visit.text("#view .m2f-summary", "pixels")
    overlay = Image.open(io.BytesIO(visit.download("Overlay (PNG)")))
    assert min(overlay.size) > 100 and len(overlay.convert("RGB").getcolors(1 << 24) or ()) > 3
    visit.screenshot("image")


def test_upload_threshold_table_and_files(visit: Visit) -> None:
    visit.upload(png(32, 48), "leaf.png")
    visit.press("Segment")
    # The stub finds the left half (a, 0.9) and the top row (b, 0.4); in the panoptic result a has 0.8.
    cells = visit.page.locator("#objects")
    cells.get_by_text("0.8", exact=True).locator("visible=true").first.wait_for()
    visit.choose("Task", "instance")
    cells.get_by_text("0.4", exact=True).locator("visible=true").first.wait_for()
    threshold = visit.page.get_by_label("number input for Score threshold", exact=True)
    threshold.fill("0.5")
    threshold.press("Tab")
    visit.text("#view .m2f-summary", "1 object ")
    assert visit.text("#view .m2f-legend", "a").split() == ["a", "1"]
    visit.page.locator("#view svg path").hover()
    assert visit.text("#view .m2f-tip", "a 0.90").startswith("a 0.90 · 768 px")
    visit.screenshot("threshold")

    coco = json.loads(visit.download("COCO (JSON)"))
    assert coco["images"][0]["file_name"] == "leaf.png" and [a["area"] for a in coco["annotations"]] == [768]
    labels = np.asarray(Image.open(io.BytesIO(visit.download("Label map (PNG)"))))
    assert labels[:, :24].min() == labels[:, :24].max() == 1 and not labels[:, 24:].any()
    rows = list(csv.DictReader(io.StringIO(visit.download("Table (CSV)").decode("utf-8-sig"))))
    assert [(row["class"], row["area"]) for row in rows] == [("a", "768")]
    shapes = json.loads(visit.download("Polygons (GeoJSON)"))
    assert [feature["geometry"]["type"] for feature in shapes["features"]] == ["Polygon"]


def test_the_overlay_can_be_hidden(visit: Visit) -> None:
    visit.upload(png(), "x.png")
    visit.press("Segment")
    over = visit.page.locator("#view .m2f-over")
    over.wait_for(state="visible")
    visit.page.get_by_label("Overlay", exact=True).uncheck()
    over.wait_for(state="hidden")


def test_errors_say_what_to_do(visit: Visit) -> None:
    visit.press("Segment")
    assert "Choose an image first" in visit.text("#view [role=alert]", "choose")
    visit.page.locator("#image input[type=file]").first.set_input_files(
        [{"name": "x.png", "mimeType": "image/png", "buffer": b"#!/bin/sh\necho this is no image"}]
    )
    visit.page.locator("#image img").first.wait_for(state="attached")
    visit.press("Segment")
    assert "JPEG" in visit.text("#view [role=alert]", "no image of a known type")
    visit.screenshot("error")


def test_a_model_without_weights_says_why(visit: Visit) -> None:
    visit.choose("Model", "absent (not on this machine)")
    assert "its weights are on the moon" in visit.text("#about [role=alert]", "cannot be used")


def test_the_page_says_what_a_model_finds(visit: Visit) -> None:
    assert visit.text("#about", "Finds").split("\n")[:2] == ["Finds", "a, b"]


def test_another_image_clears_the_result(visit: Visit) -> None:
    visit.upload(png(), "x.png")
    visit.press("Segment")
    visit.page.locator("#view .m2f-stage").wait_for()
    visit.page.locator("#image").get_by_role("button", name="Clear").or_(
        visit.page.locator("#image").get_by_label("Remove Image")
    ).first.click()
    visit.page.locator("#view .m2f-stage").wait_for(state="detached")
    visit.page.locator("#objects").wait_for(state="hidden")
    assert "press Segment" in visit.text("#view", "Choose an image")


def test_two_thresholds_side_by_side(visit: Visit) -> None:
    visit.page.get_by_role("tab", name="Compare").click()
    visit.upload(png(), "x.png", "#compare-image")
    right = visit.page.get_by_label("number input for Score threshold, right", exact=True)
    right.fill("0.85")
    right.press("Tab")
    visit.press("Compare")
    assert "2 objects" in visit.text("#compare-left .m2f-summary", "threshold 0.3")
    assert "0 objects" in visit.text("#compare-right .m2f-summary", "threshold 0.85")
    visit.screenshot("compare")
    visit.upload(png(seed=1), "y.png", "#compare-image")
    for side in ("left", "right"):
        visit.page.locator(f"#compare-{side} .m2f-stage").wait_for(state="detached")


def test_a_video(visit: Visit, tmp_path: Path) -> None:
    pytest.importorskip("av")
    video = write_video(tmp_path / "walk.mp4").read_bytes()
    visit.page.get_by_role("tab", name="Video").click()
    visit.choose("Model", "nuclei")
    visit.upload(video, "walk.mp4", "#video", "video")
    visit.press("Track")
    assert "3 frames · 96 x 96 pixels" in visit.text("#video-view .m2f-summary", "tracks")
    visit.page.wait_for_function("() => document.querySelector('#video-view video').readyState >= 1", timeout=WAIT)
    written = visit.download("Video (MP4)")
    assert written[4:8] == b"ftyp" and len(written) > 500
    rows = list(csv.DictReader(io.StringIO(visit.download("Tracks (CSV)").decode("utf-8-sig"))))
    assert rows and rows[0]["class"] == "nucleus" and rows[0]["frames"] == "3"
    visit.screenshot("video")


def test_a_video_can_be_stopped(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from mask2former.serving.web import video_tab

    frames, jobs, make = 15, [], video_tab.TrackingJob

    def start(*arguments: Any) -> Any:
        jobs.append(make(*arguments))
        return jobs[-1]

    monkeypatch.setattr(video_tab, "TrackingJob", start)
    visit.page.get_by_role("tab", name="Video").click()
    visit.choose("Model", "nuclei")
    video = write_video(tmp_path / "walk.mp4", seconds=frames / 4).read_bytes()
    visit.upload(video, "walk.mp4", "#video", "video")
    visit.press("Track")
    visit.text("#video-view [role=status]", "Tracking")
    visit.press("Stop")
    visit.text("#video-view", "Stopped.")
    (job,) = jobs
    wait_for(job.future.done, WAIT / 1000)
    assert job.frames < frames
    visit.page.locator("#stop").wait_for(state="hidden")  # there is nothing to stop, and a result would be lost
    visit.press("Track")
    visit.text("#video-view [role=status]", "Tracking")
    visit.page.locator("#track").wait_for(state="hidden")
    visit.press("Stop")
    visit.text("#video-view", "Stopped.")


def test_a_video_that_is_too_long(visit: Visit, tmp_path: Path) -> None:
    pytest.importorskip("av")
    visit.page.get_by_role("tab", name="Video").click()
    visit.upload(write_video(tmp_path / "long.mp4", seconds=8).read_bytes(), "long.mp4", "#video", "video")
    visit.press("Track")
    assert "4 seconds, which is the limit" in visit.text("#video-view [role=alert]", "longer")


def test_training_data(visit: Visit) -> None:
    visit.page.get_by_role("tab", name="Data").click()
    assert "2 objects" in visit.text("#data-view .m2f-summary", "image1.png")
    visit.press("Next")
    assert "1 object " in visit.text("#data-view .m2f-summary", "image2.png")
    visit.choose("Images with", "long")
    visit.text("#data-view .m2f-summary", "image1.png")
    visit.screenshot("data")


@pytest.mark.parametrize("visit", [{"width": 390, "height": 844}], indirect=True)
def test_a_phone_does_not_scroll_sideways(visit: Visit) -> None:
    visit.upload(png(30, 40), "x.png")
    visit.press("Segment")
    visit.page.locator("#view .m2f-stage").wait_for()
    visit.page.locator("#files a").first.wait_for()
    for tab in ("Image", "Compare", "Video", "Data"):
        visit.page.get_by_role("tab", name=tab).click()
        widths = visit.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1] == 390, tab
    visit.page.get_by_role("tab", name="Image").click()
    box = visit.page.locator("#view .m2f-stage").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    order = ["#segment", "#view", "#files", "#about", "#objects"]  # the result before the settings
    boxes = [visit.page.locator(place).bounding_box() for place in order]
    tops = [place["y"] for place in boxes if place is not None]
    assert len(tops) == len(order) and tops == sorted(tops)
    visit.page.locator("#view").scroll_into_view_if_needed()
    visit.screenshot("phone")


def test_the_token_is_asked_for_once(chromium: Any, tmp_path: Path) -> None:
    from mask2former.serving.web.app import create_web_app

    with make_engine() as engine, running(create_web_app(engine, token="open sesame", close_engine=False)) as address:
        context = chromium.new_context()
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("This token is wrong.").wait_for()
        page.screenshot(path=tmp_path / "token.png")
        page.get_by_label("Token").fill("open sesame")
        page.get_by_role("button", name="Open").click()
        page.get_by_role("button", name="Segment", exact=True).wait_for()
        file = {"name": "x.png", "mimeType": "image/png", "buffer": png()}
        page.locator("#image input[type=file]").first.set_input_files([file])
        page.locator("#image img").first.wait_for()
        page.get_by_role("button", name="Segment", exact=True).click()
        page.locator("#view .m2f-stage").wait_for()  # upload, queue and images passed with the cookie
        page.goto(f"{address}/?token=open%20sesame")
        assert "token" not in page.url
        context.close()
