"""The tables of docs/compatibility.md: complete, up to date, and made of a right comparison of parameters."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("cog")  # of predict.py

from tests.docs.markdown import ROOT

SCRIPT = ROOT / "tools" / "make_compatibility.py"
NAMES = json.loads((ROOT / "tests" / "facts" / "reference_names.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
GENERATED = PAGE.partition("<!-- names: begin -->\n")[2].partition("<!-- names: end -->")[0]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_compatibility", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_is_what_the_tool_writes() -> None:
    """In a process of its own: the tool imports every module and script of the reference's names."""
    result = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_name_of_the_reference_vanishes() -> None:
    assert (len(NAMES), sum(map(len, NAMES.values()))) == (77, 227)
    sections = dict(part.partition("\n")[::2] for part in GENERATED.replace(r"\_", "_").split("\n#### ")[1:])
    assert list(sections) == list(NAMES)
    for module, names in NAMES.items():
        assert re.findall(r"^\| (?:`(\w+)`|the file) \|", sections[module], re.MULTILINE) == (list(names) or [""])


def test_names_that_are_not_here_have_a_remark() -> None:
    rows = re.findall(r"^\| (`\w+`|the file) \| (same|other form|not) \| (.*) \|$", GENERATED, re.MULTILINE)
    assert len(rows) == sum(len(names) or 1 for names in NAMES.values())
    assert [name for name, state, remark in rows if state != "same" and not remark.strip()] == []
    same = sum(state == "same" for _, state, _ in rows)
    assert same > 0.6 * len(rows)


def test_parameters_of_the_reference_are_read(tool: ModuleType) -> None:
    assert tool.parse("()") == ([], [])
    assert tool.parse("(a, b=, *, c, d=)") == ([("a", False), ("b", True)], [("c", False), ("d", True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (lambda a, b=1: 0, "(a, b=)", []),
        (lambda a, b=1, *, more=2: 0, "(a, b=)", []),
        (lambda a, **options: 0, "(a, *, b, c=)", []),
        (lambda *values, **options: 0, "(a, b=)", []),
        (lambda a, b: 0, "(a, *, b)", []),
        (lambda a, b: 0, "(a, b=)", ["`b` has no default"]),
        (lambda a: 0, "(a, b=, *, c)", ["no parameter `b`, `c`"]),
        (lambda a, c: 0, "(a)", ["needs `c`"]),
        (lambda b, a: 0, "(a, b)", ["`a` is not parameter 1", "`b` is not parameter 2"]),
        (lambda a, *, b=1: 0, "(a, b=)", ["`b` is not parameter 2"]),
        (lambda x, b=1: 0, "(a, b=)", ["parameter `x` for `a`"]),
        (lambda a, *rest: 0, "(a, b, c=)", ["by position only `b`, `c`"]),
    ],
)
def test_differences_of_parameters(
    tool: ModuleType, ours: Callable[..., Any], theirs: str, expected: list[str]
) -> None:
    parameters = list(inspect.signature(ours).parameters.values())
    assert [difference.text for difference in tool.differing(parameters, tool.parse(theirs))] == expected


class Base:
    def __init__(self, size: int, *, scale: float, name: str = "") -> None:
        self.size = size

    @property
    def area(self) -> int:
        return self.size**2

    @classmethod
    def from_text(cls, text: str) -> None: ...

    def run(self, x: int) -> None: ...


class Derived(Base):
    def __init__(self, *, extra: int = 0, **options: Any) -> None:
        super().__init__(**options)


def test_differences_of_classes(tool: ModuleType) -> None:
    fact = {"": "(size, *, scale)", "area": "property", "from_text": "(text)", "run": "(x)"}
    assert list(tool.compare(Base, fact)) == []
    # What **options pass on counts: unknown keywords do not become known by them.
    assert list(tool.compare(Derived, {"": "(*, size, scale, name=, extra=)"})) == []
    texts = [difference.text for difference in tool.compare(Derived, {"": "(*, size, scale, mode=)", "stop": "()"})]
    assert texts == ["no parameter `mode`", "no `stop`"]
    assert [difference.text for difference in tool.compare(Base, {"run": "property"})] == ["`run`: is a method"]
    assert [difference.text for difference in tool.compare(len, fact)] == ["is no class"]


def test_remarks_that_are_missing_or_useless_are_reported(tool: ModuleType) -> None:
    entry, difference = tool.Entry, tool.Difference
    found = [
        entry("a.py", "same", tool.SAME, []),
        entry("a.py", "renamed", tool.OTHER, [difference("parameter `x` for `y`", explained=True)]),
        entry("a.py", "other", tool.OTHER, [difference("no parameter `y`")]),
        entry("b.py", "gone", tool.NOT, []),
    ]
    empty = {"differences": {}, "notes": {}}
    assert tool.wrong_remarks(found, empty) == [
        "a.py: other: no parameter `y`, and no remark",
        "b.py: gone: missing, and no remark",
    ]
    remarks = {"differences": {"a.py": {"other": "why"}, "b.py": {"*": "use c"}}, "notes": {"a.py": {"same": "note"}}}
    assert tool.wrong_remarks(found, remarks) == []
    table = tool.tables(found, remarks)
    assert "| `other` | other form | no parameter `y`; why |\n" in table
    assert "| `gone` | not | use c |\n" in table and "| `same` | same | note |\n" in table
    remarks["differences"]["a.py"]["same"] = "why"
    remarks["notes"]["c.py"] = {"x": "note"}
    assert len(tool.wrong_remarks(found, remarks)) == 2
