from __future__ import annotations

from pathlib import Path

import pytest

from mask2former.data.file_listing import list_files


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_files(root)]


def test_a_link_to_its_own_directory_is_listed_once(tmp_path: Path) -> None:
    make(tmp_path, "0.png", "1.png", "sub/2.png")
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "sub" / "up").symlink_to("..")
    assert listed(tmp_path) == ["0.png", "1.png", "sub/2.png"]


def test_links_to_each_other_and_to_a_sibling(tmp_path: Path) -> None:
    make(tmp_path, "b/1.png", "c/2.png")
    (tmp_path / "b" / "over").symlink_to("../c")
    (tmp_path / "c" / "back").symlink_to("../b")
    (tmp_path / "a").symlink_to("c")
    assert listed(tmp_path) == ["b/1.png", "c/2.png"]  # not below "a", although it comes first


def test_links_out_of_the_directory_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "store/1.png", "set/0.png")
    (tmp_path / "set" / "x").symlink_to("../store")
    (tmp_path / "set" / "y").symlink_to("../store")
    (tmp_path / "set" / "z.png").symlink_to("../store/1.png")
    (tmp_path / "set" / "broken.png").symlink_to("nowhere")
    assert listed(tmp_path / "set") == ["0.png", "x/1.png", "z.png"]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "._a.png", ".DS_Store", "Thumbs.db", "__MACOSX/a.png", ".git/a.png")
    assert listed(tmp_path) == ["a.png"]


def test_order_is_that_of_the_names(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "a/z.png", "a.png", "a/b/c.png")
    assert listed(tmp_path) == ["a/b/c.png", "a/z.png", "a.png", "b.png"]


def test_too_deep_is_said(tmp_path: Path) -> None:
    make(tmp_path, "/".join(["d"] * 101) + "/a.png")
    with pytest.raises(ValueError, match="more than 100 directories below"):
        list_files(tmp_path)
