"""docs/benchmarks.md is made of the reports beside its template."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.markdown import ROOT

SCRIPT = ROOT / "tools" / "make_benchmarks.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_benchmarks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(milliseconds: float, date: str, **changes: Any) -> dict[str, Any]:
    """Return a report of the network."""
    time = {"name": "time", "value": milliseconds, "unit": "ms", "quartiles": [milliseconds - 1, milliseconds + 1]}
    return {
        "schema": 1,
        "benchmark": "infer",
        "title": "R50, 1 x 800 x 1333, bf16",
        "label": "",
        "date": f"{date}T10:00:00+00:00",
        "command": "python tools/benchmark.py infer",
        "settings": {"batch": 1, "compile": "off"},
        "hardware": {"device": "NVIDIA H200", "memory_gib": 140, "processor": "a CPU", "cores": 16, "threads": 8},
        "versions": {"torch": "2.11", "python": "3.12"},
        "rows": [{"name": "network", "figures": [time, {"name": "kernels", "value": 1200, "unit": ""}]}],
    } | changes


TEMPLATE = "# Benchmarks\n\n<!-- figures of infer -->\n\nThe end.\n"


def test_the_page_is_up_to_date() -> None:
    found = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_table_states_where_it_comes_from(tool: ModuleType) -> None:
    text = tool.page(TEMPLATE, [run(12.34, "2026-01-02")])
    assert "### infer: R50, 1 x 800 x 1333, bf16, NVIDIA H200, 8 threads\n" in text
    assert "`python tools/benchmark.py infer`, 2026-01-02, NVIDIA H200 (a CPU, 16 cores), 8 threads" in text
    assert "torch 2.11, python 3.12" in text.replace("\n", " ")
    assert "|  | time, ms | kernels |\n| --- | ---: | ---: |\n| network | 12.3 (11.3 to 13.3) | 1200 |\n" in text
    assert text.endswith("|\n\nThe end.\n") and "Side by side" not in text


def test_figures_that_rows_do_not_share_stand_in_one_column(tool: ModuleType) -> None:
    figures = [[{"name": f"figure {row}{i}", "value": i, "unit": "s" * (i > 0)} for i in range(2)] for row in range(4)]
    rows = [{"name": f"row {i}", "figures": each} for i, each in enumerate(figures)]
    text = tool.page(TEMPLATE, [run(1, "2026-01-02", rows=rows)])
    assert "|  | figures |\n| --- | ---: |\n| row 0 | figure 00 0; figure 01 1 s |\n" in text


def test_a_table_says_where_the_time_of_the_gpu_goes(tool: ModuleType) -> None:
    before, after = run(20, "2026-01-02"), run(10, "2026-02-01")
    assert "Time of the GPU" not in tool.page(TEMPLATE, [before])
    before["rows"][0]["gpu"] = {"kinds": {"convolutions": 9.0, "other operations": 1.0}, "longest": []}
    text = tool.page(TEMPLATE, [before])
    assert (
        "\n\nTime of the GPU by kind of kernel, in ms:\n\n|  | network |\n| --- | ---: |\n| convolutions | 9 |\n"
        in text
    )
    after["rows"][0]["gpu"] = {"kinds": {"optimizer": 2.0, "convolutions": 4.0}, "longest": []}
    text = tool.page(TEMPLATE, [before, after])
    assert "| 2026-01-02, compile off: network | 2026-02-01, compile off: network |\n" in text
    assert "| convolutions | 9 | 4 |\n| optimizer | - | 2 |\n| other operations | 1 | - |\n" in text
    after["date"] = before["date"]  # without labels both runs have one name
    assert "| convolutions | 9 | 4 |\n" in tool.page(TEMPLATE, [before, after])


def test_two_runs_of_a_case_stand_side_by_side(tool: ModuleType) -> None:
    after = run(10, "2026-02-01", settings={"batch": 1, "compile": "graph"}, label="after")
    other = run(7, "2026-01-05", settings={"batch": 8, "compile": "off"})
    text = tool.page(TEMPLATE, [run(20, "2026-01-02"), other, after])
    assert text.count("###") == 2 and text.count("Side by side:") == 1
    head = "|  | 2026-01-02, compile off | after, 2026-02-01, compile graph | first over last |"
    assert (
        f"{head}\n| --- | ---: | ---: | ---: |\n| network: time, ms | 20 (19 to 21) | 10 (9 to 11) | 2.00 |\n" in text
    )
    assert "| network: kernels | 1200 | 1200 | 1.00 |" in text


def test_older_reports_say_that_memory_of_graphs_is_missing(tool: ModuleType) -> None:
    said = "Peak memory lacks what CUDA graphs hold."
    graph = {"batch": 1, "compile": "graph"}

    def text(**changes: Any) -> str:
        return " ".join(tool.page(TEMPLATE, [run(10, "2026-02-01", **changes)]).split())

    assert said in text(settings=graph)
    assert said not in text(settings=graph, counts_graphs=True)
    assert said not in text()  # without graphs
    assert said not in text(settings=graph, hardware={"device": "a CPU", "processor": "a CPU", "threads": 1})


def test_memory_with_and_without_graphs_has_no_ratio(tool: ModuleType) -> None:
    def line(**changes: Any) -> str:
        runs = [run(20, "2026-01-02"), run(10, "2026-02-01", settings={"batch": 1, "compile": "graph"}, **changes)]
        for each, value in zip(runs, (4, 2), strict=True):
            each["rows"][0]["figures"].append({"name": "peak memory", "value": value, "unit": "GiB"})
        text = tool.page(TEMPLATE, runs)
        return next(line for line in text.splitlines() if line.startswith("| network: peak memory"))

    assert line().endswith("| - |")
    assert line(counts_graphs=True).endswith("| 2.00 |")


def test_a_row_that_older_reports_lack(tool: ModuleType) -> None:
    after = run(10, "2026-02-01")
    after["rows"] = [*after["rows"], after["rows"][0] | {"name": "in a row"}]
    text = tool.page(TEMPLATE, [run(20, "2026-01-02"), after])
    assert "| in a row | 10 (9 to 11) | 1200 |" in text and "in a row: time" not in text


def test_headings_tell_cases_apart(tool: ModuleType) -> None:
    shrunk = run(7, "2026-01-05", settings={"batch": 1, "source": [4000, 6000]})
    one = run(9, "2026-01-06")
    one["hardware"] = one["hardware"] | {"threads": 1}
    text = tool.page(TEMPLATE, [run(20, "2026-01-02"), shrunk, one])
    headings = [line for line in text.splitlines() if line.startswith("###")]
    assert len(set(headings)) == len(headings) == 3
    assert "1333, bf16 from 4000 x 6000, NVIDIA H200, 8 threads" in text and "NVIDIA H200, 1 thread\n" in text
    assert "16 cores), 1 thread;" in text


def test_without_reports_the_page_says_how_to_make_one(tool: ModuleType) -> None:
    assert "tools/benchmark.py infer --json FILE" in tool.page(TEMPLATE, [])


def test_a_report_without_place_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="figures of scale"):
        tool.page(TEMPLATE, [run(1, "2026-01-02", benchmark="scale")])


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not JSON"), ("{}", "has no 'benchmark'"), ('{"schema": 1}', "has no 'benchmark'")]
)
def test_files_that_are_no_reports(tool: ModuleType, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        tool.runs(tmp_path)
