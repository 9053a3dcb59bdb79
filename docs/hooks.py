"""MkDocs hooks: add the guides of the repository to the site, and a page of the API reference per module.

A page keeps its path in the repository, without ``docs/``: ``datasets/README.md`` is the page ``datasets/README.md``,
``docs/architecture.md`` is ``architecture.md``. Nothing is moved or copied, and a new module needs no edit.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mask2former"
GUIDES = (
    *("*.md", "configs/*.md", "datasets/*.md", "demo/*.md", "examples/*/*.md", "tools/*.md"),
    f"{PACKAGE}/bundled/*/*.md",
)

# A code block, a link (its text may be an image) or image, inline code: in this order, so that only links outside code
# match.
_PARTS = re.compile(
    r"^(?P<fence>```+)(?P<info>[^\n`]*)\n.*?^(?P=fence)[ \t]*$"
    r"|(?P<image>!?)\[(?P<text>(?:!\[[^\]\n]*\]\([^)\s]+\)|[^\]\n])*)\]\((?P<target>[^)\s]+)\)"
    r"|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)


def guides() -> list[str]:
    """Return the paths in the repository of all guides outside docs/."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in GUIDES for path in ROOT.glob(pattern))


def modules() -> list[str]:
    """Return the dotted names of all public modules, a package before its modules."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"), key=lambda path: (path.parent.parts, path.name != "__init__.py"))
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths)
    names = (name.removesuffix(".__init__") for name in names)
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))


def site_path(repository_path: str) -> str:
    """Return the path of a file of the repository among the sources of the site."""
    return repository_path.removeprefix("docs/")


def rewrite(text: str, page: str, pages: Collection[str], repository: str) -> str:
    """Return the text of a guide with links that work in the site.

    Args:
        text: Markdown.
        page: path of the guide in the repository.
        pages: paths of the pages and images among the sources of the site.
        repository: URL of the repository, for links to files that are not in the site; if empty, they become text.
    """

    def replace(part: re.Match[str]) -> str:
        if part["fence"]:  # "runnable" is a marker for the tests
            return part[0].replace(part["info"], part["info"].partition(" ")[0], 1)
        target, _, anchor = (part["target"] or "").partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return part[0]
        shown = _PARTS.sub(replace, part["text"])  # maybe an image
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        match = next((p for p in (path, f"{path}/README.md") if site_path(p) in pages), None)
        if match is not None:
            link = posixpath.relpath(site_path(match), posixpath.dirname(site_path(page)) or ".")
        elif not (ROOT / path).exists():
            return part[0]  # MkDocs reports it
        elif repository:
            link = f"{repository.rstrip('/')}/{'tree' if (ROOT / path).is_dir() else 'blob'}/HEAD/{path}"
        else:
            return shown
        return f"{part['image']}[{shown}]({link}{'#' + anchor if anchor else ''})"

    return _PARTS.sub(replace, text)


def navigation(names: list[str]) -> list[Any]:
    """Return the modules as MkDocs' nested navigation: a package has a page and contains its modules."""
    tree: dict[str, list[Any]] = {}
    for name in names:
        page = {name.rpartition(".")[2]: f"api/{name}.md"}
        parent = tree.get(name.rpartition(".")[0], tree.setdefault("", []))
        if any(other.startswith(f"{name}.") for other in names):
            tree[name] = [f"api/{name}.md"]
            page = {name.rpartition(".")[2]: tree[name]}
        parent.append(page)
    return tree[""]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API reference to the navigation."""
    assert config.nav is not None
    config.nav.insert(-1, {"API reference": navigation(modules())[0][PACKAGE]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the guides outside docs/ and a page for each module."""
    from mkdocs.structure.files import File

    for path in guides():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for name in modules():
        files.append(File.generated(config, f"api/{name}.md", content=f"::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a guide with links that work in the site."""
    source = page.file.src_uri
    if source.startswith("api/"):
        return markdown
    origin = source if (ROOT / source).is_file() else f"docs/{source}"
    return rewrite(markdown, origin, {file.src_uri for file in files}, config.repo_url or "")
