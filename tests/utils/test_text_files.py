"""Text that people write: byte order marks, other encodings, paths from home."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former.errors import BadRecordError
from mask2former.utils.file_io import parse_json, write_bytes
from mask2former.utils.text_files import expand_home, read_text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_are_no_text(mark: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(mark + "größe\r\n".encode())
    assert read_text(file, 100) == "größe\r\n"
    file.write_bytes(mark + b'{"a": 1}')
    assert parse_json(str(file)) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a: 1".encode("utf-32"), "UTF-32: save it as UTF-8"),
        ("a\ngröße".encode("latin-1"), "line 2: is not text in UTF-8"),
        (b"a\n\0", "line 2: is not text: it contains a zero byte"),
        (b"a" * 101, "has 101 bytes"),
    ],
)
def test_other_content_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(BadRecordError, match=rf"a\.txt.*{message}"):
        read_text(file, 100)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match="is a directory"):
        read_text(tmp_path, 100)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_text(tmp_path / "b.txt", 100)


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/a") == str(tmp_path / "a") and expand_home("a/~") == "a/~" and expand_home("") == ""
    assert write_bytes("~/out/a.json", b"[1]") == tmp_path / "out/a.json"
    assert parse_json("~/out/a.json") == [1] and read_text("~/out/a.json", 9) == "[1]"
