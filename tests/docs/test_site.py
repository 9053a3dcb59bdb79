"""The documentation site: links of the guides, pages, and docstrings that are rendered completely."""

from __future__ import annotations

import ast
import importlib.util
import re
from types import ModuleType

import pytest

from tests.docs.markdown import ROOT, pages

URL = "https://example.org/repository"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/architecture.md", "architecture.md"),
        ("docs/architecture.md", "../INSTALL.md#detectron2", "INSTALL.md#detectron2"),
        ("datasets/README.md", "../docs/architecture.md", "../architecture.md"),
        ("INSTALL.md", "datasets", "datasets/README.md"),
        ("INSTALL.md", "#detectron2", "#detectron2"),
        ("INSTALL.md", "https://example.com/setup.py", "https://example.com/setup.py"),
        ("docs/architecture.md", "../setup.py", f"{URL}/blob/HEAD/setup.py"),
        ("README.md", "tests/docs", f"{URL}/tree/HEAD/tests/docs"),
        ("README.md", "missing.md", "missing.md"),  # left for MkDocs to report
    ],
)
def test_links_lead_to_pages_or_to_the_repository(hooks: ModuleType, page: str, link: str, expected: str) -> None:
    site = {"README.md", "INSTALL.md", "architecture.md", "datasets/README.md"}
    assert hooks.rewrite(f"See [`it`]({link}).", page, site, URL) == f"See [`it`]({expected})."


def test_links_to_source_files_are_text_while_no_repository_is_known(hooks: ModuleType) -> None:
    assert hooks.rewrite("See [the script](setup.py).", "README.md", {"README.md"}, "") == "See the script."


def test_code_is_left_alone(hooks: ModuleType) -> None:
    text = "`[a](setup.py)`\n\n```python runnable\n[a](setup.py)\n```\n\n[a](setup.py)\n"
    expected = f"`[a](setup.py)`\n\n```python\n[a](setup.py)\n```\n\n[a]({URL}/blob/HEAD/setup.py)\n"
    assert hooks.rewrite(text, "README.md", {"README.md"}, URL) == expected


def test_images_stay_images(hooks: ModuleType) -> None:
    page = hooks.rewrite("![cells](docs/images/nuclei.jpg)", "README.md", {"images/nuclei.jpg"}, URL)
    assert page == "![cells](images/nuclei.jpg)"


def test_links_around_images(hooks: ModuleType) -> None:
    site = {"architecture.md", "images/nuclei.jpg"}
    text = "[![a](docs/images/nuclei.jpg)](docs/architecture.md#x) [![b](https://b.org/b.svg)](docs/architecture.md)"
    expected = "[![a](images/nuclei.jpg)](architecture.md#x) [![b](https://b.org/b.svg)](architecture.md)"
    assert hooks.rewrite(text, "README.md", site, URL) == expected


def test_every_guide_and_every_module_has_a_page(hooks: ModuleType) -> None:
    outside = {path.relative_to(ROOT).as_posix() for path in pages() if ROOT / "docs" not in path.parents}
    assert outside <= set(hooks.guides())
    names = hooks.modules()
    assert names[0] == "mask2former" and len(names) == len(set(names))
    assert {"mask2former.config", "mask2former.modeling", "mask2former.modeling.criterion"} <= set(names)
    assert not any("__" in name for name in names)


def test_a_package_opens_its_own_page_and_holds_its_modules(hooks: ModuleType) -> None:
    assert hooks.navigation(["p", "p.a", "p.a.x", "p.b"]) == [
        {"p": ["api/p.md", {"a": ["api/p.a.md", {"x": "api/p.a.x.md"}]}, {"b": "api/p.b.md"}]}
    ]


def test_docstrings_have_no_text_that_a_browser_reads_as_a_tag() -> None:
    """`<name>` is visible in the site only between backticks."""
    tags = []
    for path in sorted((ROOT / "mask2former").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = re.sub(r"`[^`]*`", "", ast.get_docstring(node) or "")
                tags += [f"{path.relative_to(ROOT)}: {tag}" for tag in re.findall(r"<[a-zA-Z][\w-]*>", text)]
    assert not tags
