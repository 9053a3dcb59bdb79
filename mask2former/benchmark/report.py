"""The report of a benchmark: rows of figures with what they belong to, as text and as JSON."""

from __future__ import annotations

import datetime
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..utils.file_io import write_json
from .floor import Cost, Peaks
from .hardware import describe, hardware, versions
from .measure import Activity

SCHEMA = 1  # of the JSON; a change that readers must know raises it
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Figure:
    """A number with its unit.

    Attributes:
        name: "time", "peak memory", ...
        value: the number; the median where there are several samples.
        unit: "ms", "images/s", "GiB", ...; "" for counts.
        quartiles: of the samples: the first and the third; None for one sample.
        minimum: of the samples.
        samples: how many there are.
    """

    name: str
    value: float
    unit: str = ""
    quartiles: tuple[float, float] | None = None
    minimum: float | None = None
    samples: int = 1

    @classmethod
    def of(cls, name: str, samples: Sequence[float], unit: str) -> Figure:
        """Summarize samples."""
        if len(samples) == 1:
            return cls(name, samples[0], unit)
        lower, middle, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(name, middle, unit, (lower, upper), min(samples), len(samples))

    def __str__(self) -> str:
        text = f"{_digits(self.value)} {self.unit}".rstrip()
        if self.quartiles is None:
            return f"{self.name} {text}"
        return f"{self.name} {text} ({_digits(self.quartiles[0])} to {_digits(self.quartiles[1])})"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        found: dict[str, Any] = {"name": self.name, "value": self.value, "unit": self.unit}
        if self.quartiles is not None:
            found |= {"quartiles": list(self.quartiles), "minimum": self.minimum, "samples": self.samples}
        return found


@dataclass
class Row:
    """What was measured of one thing: "network", "forward, bf16", ..."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    activity: Activity | None = None

    def add(self, name: str, value: float, unit: str = "") -> None:
        """Add a figure of one sample."""
        self.figures.append(Figure(name, value, unit))

    def add_activity(self, activity: Activity) -> None:
        """Add what the GPU does in the time of this row, which is in ms."""
        self.activity = activity
        self.add("kernels", activity.kernels)
        self.add("copies", activity.copies)
        self.add("launches", activity.launches)
        self.add("host waits", activity.waits)
        self.add("GPU busy", min(1.0, activity.busy * 1e3 / self.value("time")) * 100, "%")

    def value(self, name: str) -> float:
        """Return the value of a figure.

        Raises:
            KeyError: there is none of this name.
        """
        return {figure.name: figure.value for figure in self.figures}[name]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        found: dict[str, Any] = {"name": self.name, "figures": [figure.to_json() for figure in self.figures]}
        if self.activity is not None and self.activity.kinds:
            found["gpu"] = {
                "kinds": {kind: round(seconds * 1e3, 4) for kind, seconds in self.activity.kinds.items()},  # ms
                "longest": [
                    {"name": name[:200], "ms": round(seconds * 1e3, 4), "count": count}
                    for name, seconds, count in self.activity.longest
                ],
            }
        return found

    def __str__(self) -> str:
        """Return a line for the times, and indented ones for what explains them."""
        first = [f for f in self.figures if f.name in _FIRST]
        rest = [f for f in self.figures if f.name not in _FIRST]
        head = f"{self.name:28s} {', '.join(map(str, first))}".rstrip()
        lines = [head, f"{'':4s}{', '.join(map(str, rest))}" if rest else ""]
        if self.activity is not None and self.activity.kinds:
            kinds = [f"{kind} {_digits(seconds * 1e3)}" for kind, seconds in self.activity.kinds.items()]
            lines.append(f"{'':4s}ms of the GPU: {', '.join(kinds)}")
        return "\n".join(filter(None, lines))


_FIRST = ("time", "images", "frames", "ratio")


def step_row(
    name: str,
    seconds: Sequence[float],
    *,
    images: int = 0,
    memory: int | None = None,
    activity: Activity | None = None,
    cost: Cost | None = None,
    peaks: Peaks | None = None,
) -> Row:
    """Make the row of a step of a network.

    Args:
        name: of the row.
        seconds: the samples.
        images: in a step; 0: they are not counted.
        memory: peak in bytes.
        activity: of the GPU.
        cost, peaks: give the physical floor.
    """
    row = Row(name, [Figure.of("time", [s * 1e3 for s in seconds], "ms")])
    if images:
        row.figures.append(Figure.of("images", [images / s for s in seconds], "images/s"))
    if memory is not None:
        row.add("peak memory", memory / GIB, "GiB")
    if activity is not None:
        row.add_activity(activity)
    if cost is not None and peaks is not None:
        if cost.flops:
            row.add("floor of FLOPs", cost.flops / peaks.flops * 1e3, "ms")
        row.add("floor of bytes", cost.bytes / peaks.bandwidth * 1e3, "ms")
        row.add("share of the floor", cost.seconds(peaks) / statistics.median(seconds) * 100, "%")
    return row


@dataclass
class Report:
    """A run of a benchmark.

    Attributes:
        benchmark: "infer", "train", ...
        title: what is measured, in one line.
        settings: what the figures depend on. Runs of a benchmark on one device whose settings are equal, apart from
            "compile", are the same case: the page compares them.
        device: where it ran.
        peaks: of the floors; None without floors.
        rows: the figures.
        label: of this run among those of its case: "before", "after", ...
    """

    benchmark: str
    title: str
    settings: dict[str, Any]
    device: torch.device
    peaks: Peaks | None = None
    rows: list[Row] = field(default_factory=list)
    label: str = ""

    def head(self) -> str:
        """Return the lines above the figures."""
        text = f"{self.title}\n{describe(self.device)}"
        if self.peaks is not None:
            flops, moved = self.peaks.flops / 1e12, self.peaks.bandwidth / 1e12
            text += f"\nfloors: {flops:.3g} TFLOP/s, {moved:.3g} TB/s ({self.peaks.source})"
        return text

    def __str__(self) -> str:
        return "\n".join([self.head(), *map(str, self.rows)])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        now = datetime.datetime.now(datetime.timezone.utc)
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "benchmark": self.benchmark,
            "title": self.title,
            "label": self.label,
            "date": now.isoformat(timespec="seconds"),
            "command": command_line(),
            "settings": self.settings,
            "hardware": hardware(self.device),
            "versions": versions(),
            "counts_graphs": True,  # peak memory has what CUDA graphs hold; reports without this key lack it
            "rows": [row.to_json() for row in self.rows],
        }
        if self.peaks is not None:
            found["peaks"] = {
                "flops": {"value": self.peaks.flops / 1e12, "unit": "TFLOP/s"},
                "bandwidth": {"value": self.peaks.bandwidth / 1e12, "unit": "TB/s"},
                "source": self.peaks.source,
            }
        return found

    def write(self, path: str | os.PathLike[str] | None, label: str | None = None) -> None:
        """Write the report atomically as JSON, and say so; nothing without `path`."""
        self.label = label or ""
        if path is not None:
            print(f"written: {write_json(path, self.to_json(), nan='null', indent=1)}")

    def publish(self, path: str | os.PathLike[str] | None, label: str | None = None) -> None:
        """Print the report, and `write` it."""
        print(self)
        self.write(path, label)


def command_line() -> str:
    """Return the command that runs, as it is typed in a checkout; without the name of the JSON file."""
    program, *arguments = sys.argv
    name = Path(program).name
    if name in ("__main__.py", "mask2former"):
        words = ["mask2former", *arguments]
    else:
        words = ["python", f"tools/{name}", *arguments]
    for option in ("--json", "--label"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    threads = os.environ.get("OMP_NUM_THREADS")
    return shlex.join(words) if threads is None else f"OMP_NUM_THREADS={threads} {shlex.join(words)}"


def _digits(value: float) -> str:
    """Return a number with about four digits."""
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    digits = next((digits for limit, digits in ((1000, 0), (100, 1), (10, 2), (1, 3)) if abs(value) >= limit), 4)
    return f"{value:.{digits}f}"
