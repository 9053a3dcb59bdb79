"""What stands beside the weights of a model, intact and damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mask2former.errors import BadRecordError
from mask2former.model_source import locate_model, store_classes, stored_classes
from mask2former.structures.classes import ClassTable

ROW = {"id": 3, "name": "cell", "isthing": 1, "color": [1, 2, 3]}


def read(directory: Path, content: str | bytes) -> ClassTable | None:
    (directory / "classes.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return stored_classes(directory / "config.yaml", directory / "model.safetensors")


def test_classes_are_read_as_they_were_written(tmp_path: Path) -> None:
    table = ClassTable(("cell", "sky"), (True, False), ((1, 2, 3), (4, 5, 6)), (3, 40))
    store_classes(table, tmp_path)
    assert read(tmp_path, (tmp_path / "classes.json").read_bytes()) == table
    assert read(tmp_path, '["cell", "sky"]') == ClassTable(("cell", "sky"))
    assert read(tmp_path, b"\xef\xbb\xbf" + json.dumps([{"id": 3, "name": "cell"}]).encode()) == ClassTable(
        ("cell",), dataset_ids=(3,)
    )


@pytest.mark.parametrize(
    "rows",
    [
        *([], {}, 5, None, "cell", [5], [None], [["cell"]], [""], [" "], ["cell", ROW], ["\ud800"]),
        *([{**ROW, "name": value}] for value in (None, 5, "", " ", ["cell"], "\udc00")),
        *([{**ROW, "id": value}] for value in (None, "3", 3.5, -1, [3])),
        *([{**ROW, "isthing": value}] for value in (None, "no", 2, [])),
        *([{**ROW, "color": value}] for value in ([300, 0, 0], [1, 2], [1, 2, 3, 4], "red", [1.5, 2, 3], 5)),
        *([ROW, ROW], [{"name": "cell"}], [{"id": 3}]),
    ],
)
def test_damaged_classes_are_an_error_that_names_the_file(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(BadRecordError, match=r"classes\.json: must be a JSON list of names or of \{id, name\}"):
        read(tmp_path, json.dumps(rows))


def test_byte_order_marks_are_no_part_of_a_name(tmp_path: Path) -> None:
    """Of an editor, in the middle of a file that was put together of two."""
    assert read(tmp_path, json.dumps(["\ufeffcell", "bar"])) == ClassTable(("cell", "bar"))
    with pytest.raises(BadRecordError, match="is no text"):
        read(tmp_path, json.dumps(["\ufeff"]))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, b"\xff\xfe[\0", "", "[", b"\0" * 9])
def test_classes_that_are_no_json(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(BadRecordError, match=r"classes\.json"):
        read(tmp_path, content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "classes.json")
    with pytest.raises(BadRecordError, match="pipe or device"):
        stored_classes(tmp_path / "config.yaml", tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"config\.yaml is a pipe or device"):
        locate_model(str(tmp_path), None, None)


@pytest.mark.parametrize("tag", ["x" * 5000, "../other.pth", "a\0b", "", "."])
def test_a_damaged_tag_names_no_weights(tmp_path: Path, tag: str) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "last_checkpoint").write_text(tag)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        locate_model(str(tmp_path), None, None)
    (tmp_path / "model_0000001.pth").touch()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth\n")
    assert locate_model(str(tmp_path), None, None)[1] == tmp_path / "model_0000001.pth"
