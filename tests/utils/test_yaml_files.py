"""Plain YAML within bounds."""

from __future__ import annotations

import pytest

from mask2former.errors import BadRecordError
from mask2former.utils.yaml_files import parse_yaml


def test_what_people_write() -> None:
    text = """
base: &base {a: 1, b: 2}
other: {<<: *base, b: 3}
list: [yes, null, 1.5, 1e-3, "x", 2020-01-01]
again: *base
"""
    assert parse_yaml(text, "f") == {
        "base": {"a": 1, "b": 2},
        "other": {"a": 1, "b": 3},
        "list": [True, None, 1.5, "1e-3", "x", "2020-01-01"],
        "again": {"a": 1, "b": 2},
    }
    assert parse_yaml("", "f") is None and parse_yaml(b"\xef\xbb\xbfa: 1", "f") == {"a": 1}


def _aliases(count: int, width: int, prefix: str = "") -> str:
    """Lines of which each names the one before several times."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, count):
        entries = ", ".join([f"*a{i - 1}"] * width)
        lines.append(f"a{i}: &a{i} " + (f"{{<<: [{entries}]}}" if prefix else f"[{entries}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: .*'a' a second time, after line 1"),
        ("s:\n  a: 1\n  b: {c: 1, c: 1}", "line 3: .*'c' a second time"),
        ("a: " + "[" * 2_000, "line 1: .*nested more than 50"),
        ("{a: " * 2_000, "line 1: .*nested more than 50"),
        (_aliases(12, 10), ".*values, after its aliases are expanded"),
        (_aliases(20, 4, "merge"), ".*values, after its aliases are expanded"),
        (_aliases(60, 1), "line 50: .*levels, after its aliases"),
        ("a: &a [*a]", "line 1: .*contains itself"),
        ("a: &a {b: *a}", "line 1: .*contains itself"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []", "line 2: .*never are; write the value itself"),
        ("a: !thing 1", "line 1: .*!thing"),
        ("a: !!set {b}", "line 1: .*!!set"),
        ("a: !!int x", "line 1: .*'x' is not a value of the type int"),
        ("a: !!bool x", "line 1: .*type bool"),
        ("a:\n\tb: 1", "line 2: "),
        ("a: 1\n# \x01", "line 2: .*special characters"),
        ("? [1]\n: 2", "line 1: .*a key that is a list"),
        ("a: 1\n---\nb: 2", "line 2: .*single document"),
        ("a: *b", "line 1: .*undefined alias"),
        ("a: [1,", "line 1"),
        ("a: {<<: 5}", "line 1: .*merging"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadRecordError, match=rf"(?s)^f: {message}"):
        parse_yaml(text, "f")
