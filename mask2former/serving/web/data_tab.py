"""The tab of training data: one image at a time with its annotated objects."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import ServingError
from . import viewer
from .components import object_table, result_view
from .dataset import ALL, Dataset
from .site import Site

_COLUMNS = [name for name in viewer.HEADERS if name != "score"]


def build(site: Site, dataset: Dataset) -> None:
    """Add the tab's content."""
    first = dataset.splits[0]
    count = len(dataset.images(first))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            split = gr.Dropdown(dataset.splits, value=first, label=f"Split of {dataset.name}")
            name = gr.Dropdown([ALL, *dataset.classes(first)], value=ALL, label="Images with")
            number = gr.Slider(1, max(count, 2), 1, step=1, label=_label(count), buttons=[], visible=count > 1)
            with gr.Row():
                previous = gr.Button("Previous", min_width=100)
                following = gr.Button("Next", variant="primary", min_width=100, elem_id="data-next")
            notes = gr.HTML(_notes(dataset, first))
        with gr.Column(scale=3, min_width=320):
            view = result_view("", "data-view")
            table = object_table(_COLUMNS, "Annotated objects", "data-objects")

    def show(which: str, shown: str, position: float) -> tuple[str, Any]:
        try:
            found = dataset.images(which, shown)
            if not found:
                return viewer.hint("No image shows this class."), None
            position = min(max(int(position), 1), len(found)) - 1
            result = dataset.result(which, found[int(position)], site.engine.limits)
        except ServingError as error:
            return viewer.problem(str(error)), None
        file = str(result.path)
        entry = site.store.add_image(result, "instance", file, scores=False)
        rows = [row[:2] + row[3:] for row in viewer.table(result, "instance")]
        return viewer.show(entry, file), rows

    def select(which: str, shown: str) -> tuple[Any, Any, str]:
        names = dataset.classes(which)
        shown = shown if shown in names else ALL
        found = len(dataset.images(which, shown))
        slider = gr.Slider(maximum=max(found, 2), value=1, label=_label(found), visible=found > 1)
        return slider, gr.Dropdown([ALL, *names], value=shown), _notes(dataset, which)

    def move(step: int, which: str, shown: str, position: float) -> int:
        return min(max(int(position) + step, 1), max(len(dataset.images(which, shown)), 1))

    inputs, outputs = [split, name, number], [view, table]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for button, step in ((previous, -1), (following, 1)):
        moved = button.click(lambda *values, step=step: move(step, *values), inputs, number, queue=False, **quiet)
        moved.then(show, inputs, outputs, **quiet)
    gr.on([split.input, name.input], select, [split, name], [number, name, notes], queue=False, **quiet).then(
        show, inputs, outputs, **quiet
    )
    number.release(show, inputs, outputs, trigger_mode="always_last", **quiet)
    blocks = gr.context.Context.root_block
    assert blocks is not None
    blocks.load(show, inputs, outputs, **quiet)


def _label(count: int) -> str:
    return f"Image, 1 to {count:,}"


def _notes(dataset: Dataset, split: str) -> str:
    return "".join(viewer.hint(note) for note in dataset.notes(split))
