"""Runs the scripts of datasets/ on small directories made in the test."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data import register_all

SCRIPTS = Path(__file__).parents[2] / "datasets"

Run = Callable[..., int]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a script of datasets/ by its name."""

    def load_script(name: str) -> ModuleType:
        monkeypatch.setattr(sys, "path", list(sys.path))
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_script


@pytest.fixture
def prepare(load: Callable[[str], ModuleType], tmp_path: Path) -> Run:
    """Return a function that runs a script on `tmp_path`, in this process, and returns its exit status."""

    def run(name: str, *arguments: str) -> int:
        return load(name).main(["--root", str(tmp_path), "--workers", "1", *arguments])

    return run


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Path]:
    """Register all dataset names with `tmp_path` as their root."""
    register_all(tmp_path)
    yield tmp_path
    register_all()


@pytest.fixture
def save() -> Callable[[Path, Any], Path]:
    """Return a function that saves an image (array) or JSON content, with the directories it needs."""

    def save_file(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(content))
        else:
            Image.fromarray(np.asarray(content)).save(path)
        return path

    return save_file


@pytest.fixture
def pixels() -> Callable[[Path], np.ndarray]:
    """Return a function that reads an image as it is stored."""

    def read(path: Path) -> np.ndarray:
        return np.asarray(Image.open(path))

    return read


@pytest.fixture
def document() -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        return json.loads(path.read_text())

    return read
