"""The HTML of a result: the overlay with an outline of each object that answers the mouse, legend, counts, files."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...result_objects import ObjectList
from ...results import Result
from ...structures.polygons import trace_polygons
from .result_routes import address
from .store import Download, Entry

_MOST_OUTLINES = 1000
_POINTS = 60_000  # of all outlines; beyond it they get coarser
_COARSEST = 64.0  # pixels
_MOST_CLASSES = 40  # in the legend
TABLE_ROWS = 500
COLUMNS = ("id", "class", "score", "area", "centroid_x", "centroid_y", "box_x", "box_y", "box_width", "box_height")
HEADERS = ["id", "class", "score", "area", "x", "y", "left", "top", "width", "height"]  # in the page


def show(entry: Entry, note: str = "") -> str:
    """Return the HTML of an image's result.

    Args:
        entry: the result in the store, from which the page gets its images.
        note: a sentence below the image, plain text.
    """
    result = entry.result
    assert result is not None
    height, width = result.size
    objects = result.objects(entry.task)
    outlines = "".join(_outlines(objects, entry.scores))
    name = html.escape(result.path.name if result.path else "image", quote=True)
    return (
        f'<div class="m2f-view"><div class="m2f-stage" style="--w:{width};--h:{height}">'
        f'<img src="{address(entry, "image.webp")}" alt="{name}" draggable="false">'
        f'<img class="m2f-over" src="{address(entry, "view.webp")}" alt="segmentation of {name}" draggable="false">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{outlines}</svg>'
        '<output class="m2f-tip" hidden></output></div>'
        f'<div class="m2f-bar"><p class="m2f-summary" role="status">{html.escape(_summary(result, objects, note))}</p>'
        '<label class="m2f-toggle"><input type="checkbox" checked> Overlay</label></div>'
        f"{_legend(result, entry.task)}</div>"
    )


def files(entry: Entry) -> str:
    """Return links to the files of a result."""
    return f'<div class="m2f-files">{"".join(_link(entry, *item) for item in entry.downloads().items())}</div>'


def player(entry: Entry, summary: str) -> str:
    """Return the HTML of a video's result."""
    source = address(entry, "overlay.mp4")
    return (
        f'<div class="m2f-view"><video src="{source}" controls playsinline muted loop></video>'
        f'<p class="m2f-summary" role="status">{html.escape(summary)}</p></div>'
    )


def progress(text: str, fraction: float | None) -> str:
    """Return a bar; None: it is not known how far the work is."""
    value = "" if fraction is None else f' value="{fraction:.3f}"'
    bar = f'<progress max="1"{value}></progress>'
    return f'<div class="m2f-progress">{bar}<p role="status">{html.escape(text)}</p></div>'


def problem(text: str) -> str:
    """Return an error that people can read, in the place of a result, as a sentence."""
    if text.partition(" ")[0].isalpha():  # not the name of a file or model
        text = text[:1].upper() + text[1:]
    return f'<p class="m2f-error" role="alert">{html.escape(text)}</p>'


def hint(text: str) -> str:
    """Return what stands where a result will be."""
    return f'<p class="m2f-hint">{html.escape(text)}</p>'


def empty(text: str) -> str:
    """Return a hint with the height of a result."""
    return f'<div class="m2f-empty">{hint(text)}</div>'


def table(result: Result, task: str) -> list[list[Any]]:
    """Return a row for each object, at most `TABLE_ROWS`, with `COLUMNS`."""
    rows = []
    for row in result.to_rows(task)[:TABLE_ROWS]:
        values = (row[name] for name in COLUMNS)
        rows.append([round(value, 3) if isinstance(value, float) else value for value in values])
    return rows


# ------------------------------------------------------------------ parts
def _summary(result: Result, objects: ObjectList, note: str) -> str:
    count = len(objects)
    parts = [f"{count:,} object{'s' * (count != 1)}", f"{result.size[1]} x {result.size[0]} pixels"]
    if result.seconds is not None:
        parts.append(f"{result.seconds:.2f} s")
    if note:
        parts.append(note)
    return " · ".join(parts)


def _legend(result: Result, task: str) -> str:
    counts = result.counts(task)
    if not counts:
        return '<p class="m2f-hint">Nothing reaches the score threshold. A lower one finds more.</p>'
    shown_task = task if task != "auto" else next(t for t in ("panoptic", "instance", "semantic") if t in result.tasks)
    colors = dict(zip(result.classes.names, result.classes.colors, strict=True))
    rows = []
    for name, count in list(counts.items())[:_MOST_CLASSES]:
        # Each instance has its own color, so that a class has none.
        style = "m2f-many" if shown_task == "instance" else ""
        color = "" if style else f' style="background:rgb{tuple(colors[name])}"'
        number = "" if shown_task == "semantic" else f" <b>{count:,}</b>"
        rows.append(f'<li><i class="{style}"{color}></i>{html.escape(name)}{number}</li>')
    more = len(counts) - len(rows)
    rest = f"<li>and {more} more</li>" if more > 0 else ""
    return f'<ul class="m2f-legend" aria-label="legend">{"".join(rows)}{rest}</ul>'


def _outlines(objects: ObjectList, scores: bool) -> list[str]:
    """Return an SVG path of each object, the largest first, so that the small ones lie on top."""
    order = [int(i) for i in np.argsort(-objects.masks.areas, kind="stable")[:_MOST_OUTLINES]]
    tolerance = max(0.5, max(objects.size, default=1) / 2000)
    while True:
        paths, points = [], 0
        for i in order:
            polygons = trace_polygons(objects.masks[i], tolerance)
            rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
            points += sum(map(len, rings))
            if points > _POINTS and tolerance < _COARSEST:
                break
            data = "".join("M" + " ".join(f"{x:g},{y:g}" for x, y in ring.tolist()) + "Z" for ring in rings)
            label = html.escape(_label(objects, i, scores), quote=True)
            paths.append(f'<path d="{data}" fill-rule="evenodd" data-label="{label}"/>')
        else:
            return paths
        tolerance *= 2


def _label(objects: ObjectList, i: int, scores: bool) -> str:
    score = objects.scores[i] if scores else None
    shown = "" if score is None else f" {score:.2f}"
    return f"{objects.names[i]}{shown} · {int(objects.masks.areas[i]):,} px · id {int(objects.ids[i])}"


def _link(entry: Entry, name: str, download: Download) -> str:
    file = html.escape(entry.stem + download.suffix, quote=True)
    return f'<a href="{address(entry, name)}" download="{file}">{html.escape(download.label)}</a>'


def cards(facts: Mapping[str, str]) -> str:
    """Return names and values as a list."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="m2f-facts">{rows}</dl>'
