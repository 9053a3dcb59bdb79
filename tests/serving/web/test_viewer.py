from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mask2former.result_parts import InstanceResult
from mask2former.results import Result
from mask2former.serving.web import viewer
from mask2former.serving.web.store import Entry, ResultStore
from mask2former.structures.classes import ClassTable
from mask2former.structures.mask_list import MaskList

EVIL = '<script>alert("x")</script>'


def make_result(count: int = 2, name: str = "round", size: int = 40) -> Result:
    """Return squares of growing size."""
    masks = np.zeros((count, size, size), dtype=bool)
    for i in range(count):
        masks[i, 2 : 4 + i % 30, 3 : 7 + i % 30] = True
    scores, labels = np.linspace(0.9, 0.5, count, dtype=np.float32), np.zeros(count, dtype=np.int64)
    instances = InstanceResult(MaskList.from_dense(masks, (size, size)), scores, labels, (name,) * count)
    return Result(np.zeros((size, size, 3), dtype=np.uint8), ClassTable((name,)), instances)


def test_outlines_legend_and_counts() -> None:
    page = viewer.show(ResultStore().add_image(make_result(), "auto", "x.png"), "nuclei")
    paths = re.findall(r'<path d="([^"]+)".*?data-label="([^"]+)"', page)
    # The larger object comes first, so that the smaller one lies on top of it.
    assert [label for _, label in paths] == ["round 0.50 · 15 px · id 2", "round 0.90 · 8 px · id 1"]
    assert sorted(paths[1][0].strip("MZ").split()) == ["3,2", "3,4", "7,2", "7,4"]
    assert "2 objects · 40 x 40 pixels · nuclei" in page and "round <b>2</b>" in page


def test_ground_truth_has_no_scores() -> None:
    page = viewer.show(ResultStore().add_image(make_result(1), "auto", "x.png", scores=False))
    assert "round · 8 px · id 1" in page and "1 object ·" in page


def test_names_are_no_html() -> None:
    entry = ResultStore().add_image(make_result(name=EVIL), "auto", f"{EVIL}.png")
    page = viewer.show(entry, EVIL) + viewer.files(entry) + viewer.problem(EVIL) + viewer.cards({EVIL: EVIL})
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_page_of_many_objects_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    masks = random.random((3, 200, 200)) < 0.5  # outlines that are as long as they can be
    instances = InstanceResult(
        MaskList.from_dense(masks), np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.int64), ("a",) * 3
    )
    result = Result(np.zeros((200, 200, 3), dtype=np.uint8), ClassTable(("a",)), instances)
    monkeypatch.setattr(viewer, "_MOST_OUTLINES", 2)
    page = viewer.show(ResultStore().add_image(result, "auto", "x.png"))
    assert page.count("<path") == 2
    assert len(viewer.table(make_result(600), "auto")) == viewer.TABLE_ROWS


def test_an_empty_result() -> None:
    page = viewer.show(ResultStore().add_image(make_result(0), "auto", "x.png"))
    assert "0 objects" in page and "Nothing reaches the score threshold" in page


# ------------------------------------------------------------------ the store
def test_old_results_make_room(tmp_path: Path) -> None:
    store = ResultStore(max_entries=2)
    video = tmp_path / "video"
    video.mkdir()
    first = store.add_video(video, "walk.mp4")
    second = store.add_image(make_result(), "auto", "x.png")
    assert store.get(first.key) is first  # which makes the second one the oldest
    third = store.add_image(make_result(), "auto", "y.png")
    assert store.get(second.key) is None and store.get(third.key) is third and video.is_dir()
    store.close()
    assert len(store) == 0 and not video.exists()


def test_memory_and_age_are_bounded() -> None:
    store = ResultStore(max_bytes=3 * 40 * 40 * 2 * 2)
    entries = [store.add_image(make_result(), "auto", "x.png") for _ in range(4)]
    assert [store.get(entry.key) is not None for entry in entries] == [False, False, True, True]
    store = ResultStore(max_age=0.0)
    entry = store.add_image(make_result(), "auto", "x.png")
    entry.seen -= 1
    store.sweep()
    assert len(store) == 0


def test_names_of_files() -> None:
    for name, stem in (("../../a b.png", "a b"), ("", "result"), ("x\r\nSet-Cookie: y.png", "x__Set-Cookie_ y")):
        assert ResultStore().add_image(make_result(), "auto", name).stem == stem


def test_many_objects_give_a_tiff() -> None:
    entry = Entry("key", "x", make_result())
    assert "labels.png" in entry.downloads() and "labels.tif" not in entry.downloads()
    assert entry.file("view.webp")[:4] == b"RIFF" and entry.file("overlay.png")[1:4] == b"PNG"
