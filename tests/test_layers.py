"""Imports inside the package run in one direction, from high to low, without circles, and are relative.

Relative, because people keep the package inside their own (`vendored.mask2former`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mask2former"

# From low to high. A module imports from lines above its own, and from its own directory.
LAYERS = (
    ("errors", "installation"),
    ("utils",),
    ("structures", "config_files", "video_registration"),
    ("config", "ops", "result_parts", "visualization", "zoo"),
    ("checkpoint", "objects"),
    ("data",),
    ("modeling",),
    ("maskformer_model", "tta_merging", "config_values"),
    ("video_maskformer_model", "test_time_augmentation", "model_validation"),
    ("config_validation", "evaluation"),
    ("result_files", "result_objects"),
    ("result_tables", "result_labels"),
    ("result_shapes",),
    ("result_exports",),
    ("results", "tiling"),
    ("video",),
    ("model_source",),
    ("conversion", "engine", "model_loading", "tile_settings"),
    ("segmenter", "export"),
    ("api",),
    ("benchmark", "serving"),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def module_name(file: Path) -> str:
    """Return the dotted name below the package, "__init__" for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Yield module and line of everything that a module imports from the package, inside functions too."""
    file = FILES[name]
    here = ["", *file.relative_to(PACKAGE).parts[:-1]]  # of the package that relative imports start at
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
        base = [part for part in base if part]
        for alias in node.names:
            longer = ".".join([*base, alias.name])
            yield longer if longer in FILES else ".".join(base) or "__init__", node.lineno


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[0] for name in FILES} == set(LAYER_OF)


def test_no_import_runs_upwards() -> None:
    wrong = []
    for name, file in FILES.items():
        own = name.split(".")[0]
        for target, line in imports(name):
            other = target.split(".")[0]
            if other != own and LAYER_OF[other] >= LAYER_OF[own]:
                wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {target}, which is not below it")
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    graph = {name: {target for target, _ in imports(name) if target != name} for name in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("name", FILES)
def test_imports_are_relative(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "mask2former", f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "mask2former" for alias in node.names), f"line {node.lineno}"
