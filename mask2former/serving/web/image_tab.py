"""The image tab: an image, a model and its settings; the result with legend, table and files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..errors import ServingError
from . import viewer
from .components import (
    SHOW,
    clear_on_change,
    example_images,
    image_input,
    model_input,
    object_table,
    result_files,
    result_view,
    threshold_input,
)
from .site import Site

_SHOWN_CLASSES = 6  # of a model
_EMPTY = "Choose an image, then press Segment."
_TILES = [("default", ""), ("automatic", "auto"), ("off", "off"), *((f"{n} px", str(n)) for n in (256, 512, 1024))]


def build(site: Site) -> None:
    """Add the tab's content."""
    first = site.first(videos=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = image_input("image")
            example_images(site, image)
            button = gr.Button("Segment", variant="primary", size="lg", elem_id="segment")
            model = model_input(site, videos=False)
            about = gr.HTML(describe(site, first), elem_id="about")
            threshold = threshold_input(site, first)
            with gr.Row():
                task = gr.Dropdown(_tasks(site, first), value="auto", label="Task", min_width=120)
                tile = gr.Dropdown(_TILES, value="", label="Tiles", min_width=120)
        with gr.Column(scale=3, min_width=320):
            view = result_view(_EMPTY, "view")
            files = result_files("files")
            table = object_table(viewer.HEADERS, f"Objects (the first {viewer.TABLE_ROWS}; the CSV has all)", "objects")

    def segment(path: str | None, name: str, which: str, score: float, edge: str) -> tuple[str, Any, str]:
        try:
            entry = site.segment(path, name, which, score, edge or None)
        except ServingError as error:
            return viewer.problem(str(error)), None, ""
        assert entry.result is not None
        return viewer.show(entry, name), viewer.table(entry.result, entry.task), viewer.files(entry)

    def choose(name: str) -> tuple[str, Any, Any]:
        return (
            describe(site, name),
            gr.Slider(value=site.threshold(name)),
            gr.Dropdown(_tasks(site, name), value="auto"),
        )

    outputs = [view, table, files]
    gr.on(
        [button.click, threshold.release, task.input, tile.input],
        segment,
        [image, model, task, threshold, tile],
        outputs,
        show_progress_on=view,
        trigger_mode="always_last",
        concurrency_limit=8,
        api_visibility="private",
    )
    button.click(None, js=SHOW % "#view", api_visibility="private")
    clear_on_change(image, _EMPTY, [view], [files])
    model.input(choose, model, [about, threshold, task], show_progress="hidden", queue=False, api_visibility="private")


def describe(site: Site, name: str) -> str:
    """Return the HTML of what is known of a model; of one that cannot be used, why not."""
    status = site.status(name)
    if not status.available:
        return viewer.problem(f"model {name} cannot be used: {status.reason}")
    facts = {
        "Finds": _listed(status.classes),
        "Model": status.description,
        "Tasks": ", ".join(status.tasks),
        "License": status.license,
    }
    return viewer.cards({key: value for key, value in facts.items() if value})


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_CLASSES
    return ", ".join(names[:_SHOWN_CLASSES]) + (f" and {more} more" if more > 0 else "")


def _tasks(site: Site, name: str) -> list[str]:
    return ["auto", *site.status(name).tasks]
