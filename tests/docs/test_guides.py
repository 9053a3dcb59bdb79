"""The guides are correct where a test can check it: links, paths, config keys, tables, YAML examples."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mask2former.config import add_maskformer2_config, add_maskformer2_video_config, find_config, load_config
from tests.docs.markdown import ROOT, Block, anchors, blocks, links, pages, prose, text_of, ticked

PAGES = pages()
IDS = [str(p.relative_to(ROOT)) for p in PAGES]
TOP_DIRECTORIES = {p.name for p in ROOT.iterdir() if p.is_dir()} & {
    *("mask2former", "configs", "tools", "tests", "docs", "demo", ".ci"),
}
KEY = re.compile(r"\b(?:LOGGERS|(?:MODEL|SOLVER|INPUT|DATASETS|DATALOADER|TEST)(?:\.[A-Z][A-Z0-9_]*)+)\b(?!\.)")
PATH = re.compile(r"[\w.\-/]+")


def keys_of(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield all keys, including those of sections."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{key}.")


def leaves_of(node: Mapping[str, Any]) -> set[str]:
    """Return the keys that are not sections."""
    keys = set(keys_of(node))
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


def test_the_expected_guides_are_there() -> None:
    names = {"README.md", "INSTALL.md", "GETTING_STARTED.md", "ADVANCED_USAGE.md", "MODEL_ZOO.md"}
    assert names | {"CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"} <= set(IDS)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links(page: Path) -> None:
    broken = []
    for link in links(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken, f"{page.relative_to(ROOT)} has broken links: {broken}"


def named_paths(page: Path) -> set[str]:
    """Return the paths of this repository in backticks and in the commands of shell blocks."""
    words = {word for text in ticked(page) for word in text.split()}
    for block in blocks(page):
        if block.info[:1] == ("bash",):
            words |= set(block.code.split())
    return {w for w in words if PATH.fullmatch(w) and w.split("/")[0] in TOP_DIRECTORIES and "/" in w}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_named_paths_exist(page: Path) -> None:
    missing = sorted(path for path in named_paths(page) if not (ROOT / path).exists())
    assert not missing, f"{page.relative_to(ROOT)} names paths that do not exist: {missing}"
    scripts = {word for text in ticked(page) for word in text.split() if re.fullmatch(r"[a-zA-Z]\w*\.(py|md)", word)}
    missing = sorted(s for s in scripts if not (ROOT / s).exists() and not (page.parent / s).exists())
    assert not missing, f"{page.relative_to(ROOT)} names files that are neither beside it nor at the top: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_named_keys_exist(page: Path) -> None:
    known = set(keys_of(load_config()))
    unknown = sorted(set(KEY.findall(text_of(page))) - known)
    assert not unknown, f"{page.relative_to(ROOT)} names config keys that do not exist: {unknown}"


def documented() -> dict[str, str]:
    """Return {key: default} from the tables of the guide; a row may hold several keys."""
    section = prose(ROOT / "GETTING_STARTED.md").split("\n## All config keys\n")[1].split("\n## ")[0]
    table: dict[str, str] = {}
    for keys, default in re.findall(r"^\| (`[A-Z][^|]*`) \| ([^|]*) \|", section, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", keys)
        defaults = default.split(", ") if len(names) > 1 else [default]
        assert all(KEY.fullmatch(name) for name in names) and len(defaults) == len(names), keys
        assert not table.keys() & set(names), f"{keys} is documented twice"
        table |= dict(zip(names, defaults, strict=True))
    return table


def test_every_key_of_this_project_is_documented_with_its_default() -> None:
    from detectron2.config import get_cfg
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    before = leaves_of(cfg)
    add_deeplab_config(cfg)
    deeplab = leaves_of(cfg) - before
    add_maskformer2_config(cfg)
    add_maskformer2_video_config(cfg)
    ours = (leaves_of(cfg) - before - deeplab) | {"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"}
    table = documented()
    assert sorted(ours - table.keys()) == [], "missing in the tables of GETTING_STARTED.md, 'All config keys'"
    wrong = {}
    for key in ours:
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        shown = table[key]
        if shown != (f'"{node}"' if isinstance(node, str) else str(node).replace("'", '"')):
            wrong[key] = (shown, node)
    assert wrong == {}, "(in the table, in the code)"


def yaml_examples() -> list[Block]:
    """Return the YAML blocks of all guides."""
    return [b for page in PAGES for b in blocks(page) if b.info[:1] == ("yaml",)]


@pytest.mark.parametrize("block", yaml_examples(), ids=lambda b: b.name)
def test_yaml_examples_load(block: Block, tmp_path: Path) -> None:
    """`_BASE_` is relative to the top of the repository."""
    text = re.sub(r"(?m)^(_BASE_: *)(\S+)", lambda m: m[1] + str(ROOT / m[2]), block.code)
    file = tmp_path / "example.yaml"
    file.write_text(text, encoding="utf-8")
    cfg = load_config(file)
    assert [len(entry) for entry in cfg.DATASETS.COCO_JSON] == [3] * len(cfg.DATASETS.COCO_JSON)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_shell_examples_use_configs_that_exist(page: Path) -> None:
    for block in blocks(page):
        if block.info[:1] == ("bash",):
            for name in re.findall(r"--config-file (\S+\.yaml)", block.code):
                if "/" in name and not name.startswith("OUT/"):
                    assert find_config(name).is_file()


def test_model_zoo_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_model_zoo.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    page = text_of(ROOT / "MODEL_ZOO.md")
    from mask2former import zoo

    for name in zoo.list_models():
        entry = zoo.lookup(name)
        assert f"`{name}`" in page and entry.weights in page, name


def test_model_zoo_notices_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that differs from the table is reported, and rewritten. In this process: it has imported the package."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "mask2former").mkdir()
    for name in ("tools/make_model_zoo.py", "tools/generated_page.py", "mask2former/zoo.json"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    main = copied_tool(tmp_path / "tools" / "make_model_zoo.py", monkeypatch).main
    assert main(["--check"]) == 1
    assert not (tmp_path / "MODEL_ZOO.md").exists()
    assert main([]) == 0
    first = (tmp_path / "MODEL_ZOO.md").read_bytes()
    assert main(["--check"]) == 0
    assert b"51.9" in first and b"*planned*" in first
    table = (tmp_path / "mask2former/zoo.json").read_text().replace("51.9", "51.8")
    (tmp_path / "mask2former/zoo.json").write_text(table)
    assert main(["--check"]) == 1
    assert (tmp_path / "MODEL_ZOO.md").read_bytes() == first


def copied_tool(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a copy of a tool; of sys.path and the modules beside the tool nothing stays behind the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "generated_page", ModuleType("generated_page"))
    del sys.modules["generated_page"]
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
