"""Files of class names: `classes.json` beside a model, and lists of names for label maps."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from mask2former.data.datasets import catalog
from mask2former.data.datasets.semantic_folder import register_semantic_folder
from mask2former.model_loading import class_table
from mask2former.model_source import stored_classes
from mask2former.structures.classes import ClassTable

from .datasets import NAME
from .judgment import Case, require
from .mutation import damage_text, mutate, mutate_bytes, write_json

FORMS: tuple[Any, ...] = (
    ["cell", "bar", "中文"],
    [
        {"id": 7, "name": "cell", "isthing": 1, "color": [1, 2, 3]},
        {"id": 3, "name": "bar", "isthing": 0, "color": [4, 5, 6]},
    ],
    [{"id": 1, "name": "cell"}, {"id": 2, "name": "bar"}],
)


def prepare(root: Path) -> Path:
    """Make directories for the images and label maps of a dataset."""
    for name in ("images", "labels"):
        (root / name).mkdir()
    return root


def run(root: Path, case: Case) -> None:
    """Write a changed file and read it for a model and for a dataset."""
    random = case.random
    form = random.choice(FORMS)
    file = case.directory / "classes.json"
    file.write_bytes(write_json(random, mutate(random, form, (_colors,))))
    stored = case.attempt(stored_classes, case.directory / "config.yaml", case.directory / "model.pth")
    if stored.accepted:
        _check(stored.value)
        case.attempt(class_table, None, stored.value)
    names = case.directory / random.choice(("names.txt", "names.json"))
    text = "\n".join(FORMS[0]) if names.suffix == ".txt" else json.dumps(FORMS[0])
    damaged = damage_text(random, text).encode("utf-8", "surrogatepass")
    names.write_bytes(
        random.choice(
            (damaged, mutate_bytes(random, text.encode()), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode())
        )
    )
    catalog.unregister(NAME)
    case.names = (NAME,)
    case.attempt(register_semantic_folder, NAME, root / "images", root / "labels", names)


def _check(table: ClassTable | None) -> None:
    require(table is not None, "the file is overlooked")
    assert table is not None
    require(len(table) > 0, "a model has no classes")
    for category in table.categories():
        require(
            isinstance(category["name"], str) and category["name"].strip(), f"a class is called {category['name']!r}"
        )
        require(not category["name"].startswith("\ufeff"), f"a class is called {category['name']!r}")
        require(
            len(category["color"]) == 3 and all(0 <= value <= 255 for value in category["color"]),
            f"a color is {category['color']}",
        )
    ids = [category["id"] for category in table.categories()]
    require(len(set(ids)) == len(ids), f"classes have the same id: {ids}")
    json.dumps(table.categories()).encode()


def _colors(random: Random, tree: Any) -> None:
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        values = ([300, -1, 0], [1, 2], [1, 2, 3, 4], "red", [1.5, 2, 3], None, [None] * 3, ["1", "2", "3"], 5)
        tree[random.randrange(len(tree))] = {**tree[0], "color": random.choice(values)}
