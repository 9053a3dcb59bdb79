"""Image files of a command line: nothing is dropped without a word, nothing is read twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mask2former.cli import inputs
from mask2former.cli.inputs import collect, unique_names, unique_stems


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(*inputs: str) -> list[str]:
    files, problems = collect(inputs)
    assert not problems
    return [file.as_posix() for file in files]


def test_what_a_directory_holds_besides_images_is_named(caplog: pytest.LogCaptureFixture) -> None:
    make("in/a.png", "in/b.jfif", "in/c.JPE", "in/d.HEIC", "in/e.xyz", "in/f", "in/more/g.png")
    make("in/._a.png", "in/Thumbs.db", "in/.DS_Store")
    assert names("in") == ["in/a.png", "in/b.jfif", "in/c.JPE", "in/d.HEIC"]
    assert "in: 2 files are left out" in caplog.text and "e.xyz, f" in caplog.text
    assert "'in/**/*.png'" in caplog.text and "more" in caplog.text
    assert "Thumbs" not in caplog.text and "._a" not in caplog.text


def test_loops_of_links_and_one_directory_twice() -> None:
    make("in/a.png", "in/sub/b.png")
    Path("in/again").symlink_to(".")
    Path("in/sub/up").symlink_to("..")
    Path("other").symlink_to("in")
    assert names("in/**/*.png") == ["in/a.png", "in/sub/b.png"]
    assert names("in", "other", "./in/a.png", os.path.abspath("in")) == ["in/a.png"]
    assert names("in/**/sub/**") == ["in/sub/b.png"]


def test_a_pattern_matches_no_hidden_files() -> None:
    make("in/a.png", "in/Thumbs.db", "in/._a.png")
    assert names("in/*") == names("in/**") == ["in/a.png"]


def test_pipes_are_named() -> None:
    os.mkfifo("pipe.png")
    assert collect(["pipe.png", "/dev/null"]) == (
        [],
        ["pipe.png: is a pipe or device, not a file", "/dev/null: is a pipe or device, not a file"],
    )


def test_urls_are_named() -> None:
    problem = "https://example.com/a.png: is a URL; download it, and give the file"
    assert collect(["https://example.com/a.png"]) == ([], [problem])


def test_images_of_one_name_can_be_told_apart() -> None:
    files = [Path(name) for name in ("left/a.png", "right/a.png", "c.png", "right/deep/a.png", "a.png", "a.jpg")]
    assert unique_names(files) == ["left/a.png", "right/a.png", "c.png", "right/deep/a.png", "a.png", "a.jpg"]
    assert unique_stems(files) == ["a", "a_2", "c", "a_3", "a_4", "a_5"]
    assert unique_names([Path("x/y/a.png"), Path("x/z/a.png"), Path("b.png")]) == ["y/a.png", "z/a.png", "b.png"]
    assert unique_stems([Path("A.png"), Path("a.png"), Path("a_2.png")]) == ["A", "a_2", "a_2_2"]


def test_the_names_of_a_large_directory_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of all names for each name took hours for 100,000 images."""
    hashed = []

    class Counted(str):
        def __hash__(self) -> int:
            hashed.append(self)
            return super().__hash__()

    for number in range(30):
        (tmp_path / f"{number}.png").touch()
    monkeypatch.setattr(inputs, "image_names", lambda names: [Counted(name) for name in names])
    assert len(collect([str(tmp_path)])[0]) == 30
    assert len(hashed) <= 60
