"""Gradio's inputs for files, which hand paths on and leave the content alone, and parts that several tabs have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import viewer
from .site import Site

# On a phone the result lies below the button (see app.css).
SHOW = """() => document.querySelector('%s')?.scrollIntoView(
    {behavior: 'smooth', block: matchMedia('(max-width: 640px)').matches ? 'start' : 'nearest'})"""
_VIEWER_JS = (Path(__file__).parent / "static" / "viewer.js").read_text(encoding="utf-8")


def _path_only(component: Any) -> Any:
    """Let an input hand on the path of an upload, so that nothing decodes or converts it before it is checked.

    On the instance: Gradio writes a stub file beside the source of every class that derives from its components.
    """
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component


def video_input(label: str, elem_id: str) -> Any:
    """Add an input for a video file."""
    return _path_only(gr.Video(label=label, sources=["upload"], height=300, buttons=[], elem_id=elem_id))


def image_input(elem_id: str, height: int = 300) -> Any:
    """Add an input for an image: a file, the clipboard or a webcam."""
    sources = ["upload", "webcam", "clipboard"]
    return _path_only(
        gr.Image(label="Image", sources=sources, type="filepath", height=height, buttons=[], elem_id=elem_id)
    )


def example_images(site: Site, target: Any) -> None:
    """Add images to choose from, if there are any; a click puts one into the input."""
    if not site.examples:
        return
    samples = [[str(path)] for path in site.examples]
    names = [path.stem for path in site.examples]
    dataset = gr.Dataset(
        components=[gr.Image(render=False, type="filepath")],
        samples=samples,
        label=f"Examples: {', '.join(names)}",
        samples_per_page=12,
        type="index",
        layout="gallery",
        elem_id="examples",
        show_label=True,
    )

    def choose(index: int) -> str:
        return str(site.examples[index])

    dataset.click(choose, dataset, target, show_progress="hidden", queue=False, api_visibility="private")


def model_input(site: Site, videos: bool, value: str | None = None, label: str = "Model") -> gr.Dropdown:
    """Add the list of models; those that cannot be used say so."""
    choices = site.choices(videos)
    return gr.Dropdown(choices, value=value or site.first(videos), label=label, filterable=True)


def threshold_input(site: Site, model: str, label: str = "Score threshold") -> gr.Slider:
    """Add a slider with the threshold of a model."""
    return gr.Slider(0, 1, site.threshold(model), step=0.01, label=label, buttons=[])


def result_view(hint: str, elem_id: str) -> gr.HTML:
    """Add the place of a result."""
    return gr.HTML(
        viewer.empty(hint), js_on_load=_VIEWER_JS, elem_id=elem_id, apply_default_css=False, elem_classes="m2f-result"
    )


def result_files(elem_id: str) -> gr.HTML:
    """Add the place of links to the files of a result."""
    return gr.HTML("", elem_id=elem_id, apply_default_css=False, elem_classes="m2f-result")


def clear_on_change(source: Any, hint: str, views: Sequence[gr.HTML], files: Sequence[gr.HTML] = ()) -> None:
    """Remove results when their image or video is replaced, in the browser, without asking the server."""
    values = [viewer.empty(hint)] * len(views) + [""] * len(files)
    source.change(None, None, [*views, *files], js=f"() => {json.dumps(values)}", api_visibility="private")


def object_table(headers: list[str], label: str, elem_id: str) -> gr.Dataframe:
    """Add a table that the page cannot change; app.css hides it while there is no result."""
    return gr.Dataframe(
        headers=headers,
        datatype=["number" if name not in ("class", "name") else "str" for name in headers],
        type="array",
        label=label,
        interactive=False,
        max_height=320,
        elem_id=elem_id,
        elem_classes="m2f-table",
        buttons=[],
    )
