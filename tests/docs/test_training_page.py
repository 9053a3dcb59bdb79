"""docs/training.md is made of the matrices and reports beside its template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.markdown import ROOT

SCRIPT = ROOT / "tools" / "make_training_page.py"
MATRIX = """\
title: "Two learning rates"
metric: panoptic_seg/PQ
seeds: [0, 1]
budget: {minutes: 2}
reference: slow
variants:
  fast: {config: configs/shapes/panoptic_tiny.yaml}
  slow: {config: configs/shapes/panoptic_tiny.yaml, overrides: {SOLVER.BASE_LR: 0.0001, MODEL.WEIGHTS: ""}}
"""
TEMPLATE = "# Recipes\n\n<!-- comparison of rates -->\n\nThe end.\n"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import make_training_page
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return make_training_page


def report(**changes: Any) -> dict[str, Any]:
    def runs(*finals: float) -> list[dict[str, Any]]:
        return [
            {"seed": seed, "evaluations": [{"iteration": i, "minutes": m, "value": v * value} for i, m, v in CURVE]}
            for seed, value in enumerate(finals)
        ]

    slow = {"SOLVER.BASE_LR": "0.0001", "MODEL.WEIGHTS": ""}
    common = {"config": "configs/shapes/panoptic_tiny.yaml", "batch": 8, "iterations": 100}
    return {
        "schema": 1,
        "name": "rates",
        "title": "Two learning rates",
        "date": "2026-01-02T10:00:00+00:00",
        "command": "python tools/compare_recipes.py docs/training/rates.yaml",
        "metric": "panoptic_seg/PQ",
        "reference": "slow",
        "budget": {"minutes": 2, "iterations": None},
        "dataset": [],
        "hardware": {"device": "NVIDIA H200", "processor": "a CPU", "cores": 16},
        "versions": {"torch": "2.11"},
        "variants": [
            {"name": "fast", "overrides": {}, "runs": runs(70, 72), **common},
            {"name": "slow", "overrides": slow, "runs": runs(50), **common},
        ],
    } | changes


CURVE = ((50, 1.0, 0.5), (100, 2.0, 1.0))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "rates.yaml").write_text(MATRIX)
    (tmp_path / "page.txt").write_text(TEMPLATE)
    return tmp_path


def test_the_page_is_up_to_date() -> None:
    found = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_table_states_where_it_comes_from(tool: ModuleType, sources: Path) -> None:
    (sources / "rates.json").write_text(json.dumps(report()))
    page = sources / "page.md"
    assert tool.write(sources, page, sources, True) == 1  # neither page nor figure is there
    assert tool.write(sources, page, sources, False) == 0
    assert tool.write(sources, page, sources, True) == 0
    text = page.read_text()
    assert "**Two learning rates**: 2 minutes of training for each run on one GPU, seeds 0, 1" in text
    assert "| slow | `configs/shapes/panoptic_tiny.yaml` | `SOLVER.BASE_LR 0.0001`<br>`MODEL.WEIGHTS ''` |" in text
    origin = (
        "`python tools/compare_recipes.py docs/training/rates.yaml`, 2026-01-02, NVIDIA H200 (a CPU, 16 cores); torch"
    )
    assert origin in text.replace("\n", " ")
    assert "| fast | 2 | 8 | 100 | 2.0 | 71.0 ± 1.4 | 71.0 ± 1.4 | 1.4 |" in text
    assert "| slow | 1 | 8 | 100 | 2.0 | 50.0 | 50.0 | 2.0 |" in text
    assert "(images/training_rates.png)" in text and text.endswith("\nThe end.\n")
    (sources / "rates.json").write_text(json.dumps(report(date="2026-01-03T10:00:00+00:00")))
    assert tool.write(sources, page, sources, True) == 1  # the figure is of the former report


def test_a_table_says_that_runs_shared_a_gpu(tool: ModuleType, sources: Path) -> None:
    (sources / "rates.json").write_text(json.dumps(report(per_gpu=4)))
    assert tool.write(sources, sources / "page.md", sources, False) == 0
    text = (sources / "page.md").read_text().replace("\n", " ")
    assert "torch 2.11. Up to 4 runs were on a device at once; their minutes are those of a run alone." in text
    (sources / "rates.json").write_text(json.dumps(report(per_gpu=1)))
    assert tool.write(sources, sources / "page.md", sources, False) == 0
    assert "at once" not in (sources / "page.md").read_text()


def test_the_page_says_what_is_checked(tool: ModuleType, sources: Path) -> None:
    def bound(line: str) -> str:
        (sources / "rates.yaml").write_text(f"{MATRIX}bound: {{variant: fast, {line}}}\n")
        tool.write(sources, sources / "page.md", sources, False)
        text = (sources / "page.md").read_text().replace("\n", " ")
        return text[text.find("The bound") :].split(" `make")[0] if "The bound" in text else ""

    assert bound("margin: 4") == "" and bound("at_least: 60") == "The bound of panoptic_seg/PQ is 60 for fast."
    (sources / "rates.json").write_text(json.dumps(report()))
    assert bound("margin: 4") == "The bound of panoptic_seg/PQ is 67.0 for fast, 4 less than above."
    assert bound("at_least: 60") == "The bound of panoptic_seg/PQ is 60 for fast."


def test_without_a_report_the_page_says_how_to_make_one(tool: ModuleType, sources: Path) -> None:
    assert tool.write(sources, sources / "page.md", sources, False) == 0
    text = (sources / "page.md").read_text()
    assert "Not measured yet" in text and "docs/training/rates.yaml --store`" in text and "![" not in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rates.json", "{", "not JSON"),
        ("rates.json", "{}", "has no 'name'"),
        ("rates.json", json.dumps(report(schema=0)), "schema 0, not 1"),
        ("rates.json", json.dumps(report(budget={"minutes": 3, "iterations": None})), r"other settings \(budget\)"),
        ("rates.json", json.dumps(report(variants=report()["variants"][:1])), r"other settings \(slow\)"),
        ("other.yaml", MATRIX, "no line <!-- comparison of other -->"),
        ("page.txt", TEMPLATE + "<!-- comparison of none -->\n", "there is no none.yaml"),
    ],
)
def test_sources_that_do_not_fit(tool: ModuleType, sources: Path, file: str, content: str, message: str) -> None:
    (sources / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        tool.write(sources, sources / "page.md", sources, False)
