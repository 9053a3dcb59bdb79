"""The compare tab: one image, two models or thresholds, side by side."""

from __future__ import annotations

import gradio as gr

from ..errors import ServingError
from . import viewer
from .components import SHOW, clear_on_change, example_images, image_input, model_input, result_view, threshold_input
from .site import Site

_EMPTY = "Choose an image, then press Compare."


def build(site: Site) -> None:
    """Add the tab's content."""
    first = site.first(videos=False)
    ready = [model.name for model in site.models(videos=False) if model.available]
    second = next((name for name in ready if name != first), first)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = image_input("compare-image", height=200)
            example_images(site, image)
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                inputs, sides = [image], ("left", "right")
                for side, name in zip(sides, (first, second)):
                    with gr.Column(min_width=150):
                        model = model_input(site, False, name, f"Model, {side}")
                        score = threshold_input(site, name, f"Score threshold, {side}")
                        inputs += [model, score]
            button = gr.Button("Compare", variant="primary", size="lg", elem_id="compare")
    with gr.Row():
        views = [result_view(_EMPTY, f"compare-{side}") for side in sides]

    def compare(path: str | None, left: str, left_score: float, right: str, right_score: float) -> tuple[str, str]:
        return _side(site, path, left, left_score), _side(site, path, right, right_score)

    button.click(compare, inputs, views, concurrency_limit=4, api_visibility="private")
    button.click(None, js=SHOW % "#compare-left", api_visibility="private")
    clear_on_change(image, _EMPTY, views)


def _side(site: Site, path: str | None, model: str, score: float) -> str:
    try:
        return viewer.show(site.segment(path, model, "auto", score), f"{model}, threshold {score:g}")
    except ServingError as error:
        return viewer.problem(str(error))
