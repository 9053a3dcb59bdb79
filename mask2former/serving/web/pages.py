"""The page: a head, and a tab for images, comparisons, videos and, if a dataset was given, training data."""

from __future__ import annotations

import gradio as gr

from . import compare_tab, data_tab, image_tab, video_tab
from .dataset import Dataset
from .site import Site

_HEAD = """<div class="m2f-head"><h1>Mask2Former</h1><p>Segment images and videos on this machine.</p>
<nav><a href="docs">HTTP API</a></nav></div>"""


def build(site: Site, dataset: Dataset | None) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="Mask2Former", analytics_enabled=False) as blocks:
        gr.HTML(_HEAD, apply_default_css=False, padding=False)
        with gr.Tabs():
            with gr.Tab("Image"):
                image_tab.build(site)
            with gr.Tab("Compare"):
                compare_tab.build(site)
            with gr.Tab("Video"):
                video_tab.build(site)
            if dataset is not None:
                with gr.Tab("Data"):
                    data_tab.build(site, dataset)
    return blocks


def theme() -> gr.themes.Base:
    """Return the colors and fonts; the fonts are those of the system, so that nothing is fetched."""
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
