"""The video tab: a video, a model, a bar while it is tracked; the drawn video, a table of the tracks and files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gradio as gr

from ...video.results import VideoResult
from ...video.tables import TRACK_COLUMNS
from ..errors import InvalidOptionError, ServingError
from . import viewer
from .components import (
    SHOW,
    clear_on_change,
    model_input,
    object_table,
    result_files,
    result_view,
    threshold_input,
    video_input,
)
from .image_tab import describe
from .site import Site
from .video_job import LimitedVideo, TrackingJob

_EMPTY = "Choose a video, then press Track."
_STOPPED = "Stopped. Press Track to begin again."
_INTERVAL = 0.5  # seconds between two looks at the progress

Update = tuple[Any, Any, Any]  # of the page: the place of the result, the table, the links
_UNCHANGED: Update = (gr.skip(), gr.skip(), gr.skip())


def build(site: Site) -> None:
    """Add the tab's content."""
    first, limits = site.first(videos=True), site.engine.limits
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            label = f"Video, up to {limits.max_video_seconds:g} s and {limits.max_video_bytes >> 20} MiB"
            video = video_input(label, "video")
            with gr.Row(elem_id="track-or-stop"):
                button = gr.Button("Track", variant="primary", size="lg", elem_id="track", min_width=120)
                stop = gr.Button("Stop", size="lg", elem_id="stop", min_width=80)
            model = model_input(site, videos=True)
            about = gr.HTML(describe(site, first))
            threshold = threshold_input(site, first)
        with gr.Column(scale=3, min_width=320):
            view = result_view(_EMPTY, "video-view")
            files = result_files("video-files")
            table = object_table(list(TRACK_COLUMNS), "Tracks", "tracks")

    def track(path: str | None, name: str, score: float) -> Iterator[Update]:
        yield from track_upload(site, path, name, score)

    def choose(name: str) -> tuple[str, Any]:
        return describe(site, name), gr.Slider(value=site.threshold(name))

    started = button.click(
        track,
        [video, model, threshold],
        [view, table, files],
        show_progress="hidden",  # the page has a bar of its own
        concurrency_limit=4,
        api_visibility="private",
    )
    button.click(None, js=SHOW % "#video-view", api_visibility="private")
    clear_on_change(video, _EMPTY, [view], [files])
    stop.click(
        lambda: (viewer.empty(_STOPPED), None, ""),
        None,
        [view, table, files],
        cancels=[started],
        queue=False,
        api_visibility="private",
    )
    model.input(choose, model, [about, threshold], show_progress="hidden", queue=False, api_visibility="private")


def track_upload(site: Site, path: str | None, model: str, score: float) -> Iterator[Update]:
    """Track the objects of an upload; yield what the page shows, first progress, then the result or an error.

    A caller who stops to iterate stops the job.
    """
    try:
        if not path:
            raise InvalidOptionError("choose a video first: drop one into the box on this page, or click there")
        source = LimitedVideo(site.uploads.resolve(path), site.engine.limits)
        with ExitStack() as undo:
            job = TrackingJob(site.engine, source, model, score)
            undo.callback(job.stop)
            yield from _progress(job, job.future, "Tracking")
            result, directory = job.future.result(), site.uploads.new_directory()
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            written = job.write(directory)
            yield from _progress(job, written, "Drawing")
            written.result()
            undo.pop_all()
        yield _finished(site, result, directory, source.name)
    except ServingError as error:
        yield viewer.problem(str(error)), None, ""
    except CancelledError:
        yield viewer.empty(_STOPPED), None, ""


def _progress(job: TrackingJob, future: Future[Any], work: str) -> Iterator[Update]:
    shown = ""
    while not wait([future], _INTERVAL).done:
        of = f" of {job.length}" if job.length else ""
        text = f"{work}, frame {job.frames}{of}" if job.started else "Waiting for other videos"
        if text != shown:
            shown = text
            yield viewer.progress(text, job.fraction), None, ""
        else:  # the page can stop a generator only where it yields
            yield _UNCHANGED


def _finished(site: Site, result: VideoResult, directory: Path, name: str) -> Update:
    entry = site.store.add_video(directory, name)
    count = len(result.tracks)
    parts = [
        f"{count} track{'s' * (count != 1)}",
        f"{len(result)} frames",
        f"{result.size[1]} x {result.size[0]} pixels",
    ]
    if result.damaged:
        parts.append("the video is damaged, and some of its frames are missing")
    return viewer.player(entry, " · ".join(parts)), _rows(directory / "tracks.csv"), viewer.files(entry)


def _rows(table: Path) -> list[list[Any]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1 : viewer.TABLE_ROWS + 1]
    return [[value if i == 1 else _number(value) for i, value in enumerate(row)] for row in rows]


def _number(text: str) -> float | int | None:
    if not text:
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else round(value, 3)
