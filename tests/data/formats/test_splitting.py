"""Splits are seeded, keep groups together, and give each part its share of every class."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.data.formats import CocoData, load_data, split, write_coco
from tests.data.formats import samples


def synthetic(labels: list[list[int]], root: Path = Path("/nowhere")) -> CocoData:
    """Return data of images with objects of these classes; the files do not exist."""
    images = [
        {"id": n, "file_name": f"p{n % 7}/im{n}.png", "height": 8, "width": 8} for n, _ in enumerate(labels, start=1)
    ]
    annotations = [
        {
            "id": 0,
            "image_id": n,
            "category_id": label,
            "iscrowd": 0,
            "area": 4,
            "bbox": [0, 0, 2, 2],
            "segmentation": [],
        }
        for n, row in enumerate(labels, start=1)
        for label in row
    ]
    for number, entry in enumerate(annotations, start=1):
        entry["id"] = number
    categories = [{"id": n, "name": f"c{n}"} for n in range(1, 5)]
    return CocoData(root, {"images": images, "annotations": annotations, "categories": categories}, "test")


def ids(data: CocoData) -> set[int]:
    return {image["id"] for image in data.content["images"]}


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=3, max_size=40),
    st.integers(0, 99),
    st.sampled_from([{"val": 0.1}, {"val": 0.2, "test": 0.2}, {"val": 0.5}, {"train": 0.7, "val": 0.3}]),
)
def test_parts_are_a_partition(labels: list[list[int]], seed: int, fractions: dict[str, float]) -> None:
    data = synthetic(labels)
    parts = split(data, fractions, seed)
    assert next(iter(parts)) == "train" and set(parts) == {"train", *fractions}
    assert sum(len(ids(part)) for part in parts.values()) == len(labels)
    assert set.union(*map(ids, parts.values())) == ids(data) and all(ids(part) for part in parts.values())
    assert sum(len(part.content["annotations"]) for part in parts.values()) == sum(map(len, labels))
    again = split(data, fractions, seed)
    assert {name: ids(part) for name, part in again.items()} == {name: ids(part) for name, part in parts.items()}
    for name, fraction in fractions.items():
        if name != "train":
            assert abs(len(ids(parts[name])) - max(1, fraction * len(labels))) <= 1


def test_seeds_and_shares_of_classes() -> None:
    labels = [[1, 1, 1]] * 80 + [[1, 2]] * 16 + [[3]] * 4
    data = synthetic(labels)
    parts = split(data, {"val": 0.25}, seed=0)
    counts = Counter(entry["category_id"] for entry in parts["val"].content["annotations"])
    assert len(ids(parts["val"])) == 25 and counts[3] == 1 and counts[2] == 4
    assert ids(split(data, {"val": 0.25}, seed=1)["val"]) != ids(parts["val"])


@pytest.mark.parametrize("group", ["parent", r"^(p\d)/", lambda name: name.split("/")[0]])
def test_groups_stay_together(group: object) -> None:
    parts = split(synthetic([[1]] * 70), {"val": 0.3}, group=group)  # type: ignore[arg-type]
    directories = [{image["file_name"].split("/")[0] for image in part.content["images"]} for part in parts.values()]
    assert not directories[0] & directories[1] and len(directories[1]) == 2


def test_copies_of_an_image_stay_together(tmp_path: Path) -> None:
    samples.write_label_maps(tmp_path, samples.sample(0, images=6))
    for number in range(6):
        shutil.copy(tmp_path / "images" / f"im{number}.png", tmp_path / "images" / f"copy{number}.png")
        shutil.copy(tmp_path / "labels" / f"im{number}.png", tmp_path / "labels" / f"copy{number}.png")
    for part in split(load_data(tmp_path)["all"], {"val": 0.34}).values():
        names = {Path(image["file_name"]).stem for image in part.content["images"]}
        assert {name.replace("copy", "im") for name in names} <= names


@pytest.mark.parametrize(
    ("fractions", "group", "message"),
    [
        ({"val": 0.0}, None, "between 0 and 1"),
        ({"val": 0.6, "test": 0.4}, None, "nothing for train"),
        ({"train": 0.5, "val": 0.4}, None, "add up to 1"),
        ({"val": 0.1}, "(", "regular expression"),
        ({"val": 0.1}, "patient", "does not match the file name"),
        ({"val": 0.1}, ".png", "1 group"),
        ({"val": 0.1, "test": 0.1}, r"im(1)|", "2 groups|1 group"),
    ],
)
def test_wrong_arguments(fractions: dict[str, float], group: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(synthetic([[1]] * 9), fractions, group=group)


def test_fewer_images_than_parts() -> None:
    with pytest.raises(ValueError, match="1 different image cannot make 2 parts; annotate more images"):
        split(synthetic([[1]]))


@pytest.mark.parametrize("place", ["near/annotations/a.json", "far/deep/er/a.json"])
def test_written_files_find_their_images(tmp_path: Path, place: str) -> None:
    samples.write_label_maps(tmp_path / "near", samples.sample(0))
    data = load_data(tmp_path / "near")["all"]
    path = write_coco(data, tmp_path / place)
    loaded = load_data(path)["all"]
    assert loaded.image_root == tmp_path / "near" and loaded.content["images"] == data.content["images"]
    if place.startswith("near"):  # both can be moved together
        (tmp_path / "near").rename(tmp_path / "moved")
        assert load_data(tmp_path / "moved" / "annotations" / "a.json")["all"].image_root == tmp_path / "moved"
