"""The figure of a comparison: validation curves over the minutes of training."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from training_reports import Report, deviations, summaries

from mask2former.utils.file_io import write_bytes

_KEY = "Report"  # text of the PNG file: the digest of its report


def digest(report: Report) -> str:
    """Return what tells a figure of this report from one of another."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:32]


def draw(report: Report, file: Path) -> None:
    """Draw the mean curve of each variant, with a band of one standard deviation where there are several seeds."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bands = {variant["name"]: deviations(variant) for variant in report["variants"]}
    for summary in summaries(report):
        minutes = [point.minutes for point in summary.mean]
        values = [point.value for point in summary.mean]
        (line,) = axes.plot(minutes, values, marker="o", markersize=3, linewidth=1.5, label=summary.name)
        if summary.runs > 1:
            low = [value - band for value, band in zip(values, bands[summary.name], strict=True)]
            high = [value + band for value, band in zip(values, bands[summary.name], strict=True)]
            axes.fill_between(minutes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_title(report["title"])
    axes.set_xlabel(f"minutes of training on {report['hardware']['device']}")
    axes.set_ylabel(report["metric"])
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    content = io.BytesIO()
    canvas.print_png(content, metadata={_KEY: digest(report)})
    write_bytes(file, content.getvalue())


def is_of(report: Report, file: Path) -> bool:
    """Return whether a file is the figure of this report."""
    if not file.is_file():
        return False
    with Image.open(file, formats=("PNG",)) as image:
        image.load()
        return getattr(image, "text", {}).get(_KEY) == digest(report)
