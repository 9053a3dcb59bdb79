"""Both readers of JSON files refuse the same files; `tests/data/test_coco_json.py` has more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former.errors import BadRecordError
from mask2former.utils.file_io import read_json, read_json_object


@pytest.mark.parametrize("content", [b"", b"[1, 2", b'{"a": ' * 100000, b"\xff\xfe"])
def test_what_is_not_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ground truth: .*a\.json"):
        read_json(path, "ground truth")
    with pytest.raises(BadRecordError, match=r"a\.json"):
        read_json_object(str(path))


def test_missing_file_names_its_purpose(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ground truth: .*none\.json does not exist"):
        read_json(tmp_path / "none.json", "ground truth")


def test_text_in_another_encoding_and_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"name": "细胞"}'.encode("gbk"))
    with pytest.raises(BadRecordError, match=r"a\.json: is not text in UTF-8 .*; save it as UTF-8"):
        read_json_object(str(path))
    with pytest.raises(BadRecordError) as info:
        read_json_object(str(tmp_path))
    assert str(info.value) == f"{tmp_path}: cannot be read: Is a directory"
