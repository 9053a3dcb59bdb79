"""Datasets of the shapes world: their files agree, and are the same however they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data import register_all
from mask2former.data.datasets.ytvis_json import read_ytvis_json
from mask2former.data.formats import load_data
from mask2former.data.shapes import CLASSES, STUFF_CLASSES, THING_CLASSES, Options, sample
from mask2former.data.shapes.files import Recipe, write_dataset
from mask2former.structures.masks import segmentation_to_mask
from mask2former.structures.panoptic_ids import rgb_to_id

SIZE = (48, 64)
RECIPE = Recipe(Options(SIZE, (2, 8)), 5, {"train": 4, "val": 2}, {"train": 2, "val": 1}, frames=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of datasets with a small shapes world."""
    root = tmp_path_factory.mktemp("datasets")
    write_dataset(root / "shapes", RECIPE, workers=1)
    return root


@pytest.fixture
def registered(root: Path) -> Iterator[Path]:
    register_all(root)
    yield root / "shapes"
    register_all()


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_masks_of_all_files_agree(root: Path) -> None:
    directory = root / "shapes"
    panoptic = read(directory / "annotations/panoptic_train.json")
    instances = read(directory / "annotations/instances_train.json")
    index_of = {entry["id"]: index for index, entry in enumerate(panoptic["categories"])}
    names = (directory / "classes.txt").read_text().split()
    assert [entry["name"] for entry in panoptic["categories"]] == names == [*THING_CLASSES, *STUFF_CLASSES]
    assert len(panoptic["annotations"]) == 4
    for annotation in panoptic["annotations"]:
        ids = rgb_to_id(np.asarray(Image.open(directory / "panoptic_train" / annotation["file_name"])))
        semantic = np.asarray(Image.open(directory / "semantic_train" / annotation["file_name"]))
        image = next(entry for entry in panoptic["images"] if entry["id"] == annotation["image_id"])
        pixels = Image.open(directory / "images/train" / image["file_name"])
        assert (image["height"], image["width"]) == SIZE == ids.shape == semantic.shape == pixels.size[::-1]
        objects = [entry for entry in instances["annotations"] if entry["image_id"] == image["id"]]
        things = [s for s in annotation["segments_info"] if index_of[s["category_id"]] < len(THING_CLASSES)]
        assert len(objects) == len(things) >= 1
        for entry, segment in zip(objects, things, strict=True):
            mask = segmentation_to_mask(entry["segmentation"], SIZE)
            assert (mask == (ids == segment["id"])).all()
            assert (entry["area"], entry["bbox"]) == (segment["area"], segment["bbox"])
            assert entry["category_id"] == segment["category_id"]
        assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids))
        for segment in annotation["segments_info"]:
            assert set(semantic[ids == segment["id"]]) == {index_of[segment["category_id"]]}
            assert (ids == segment["id"]).sum() == segment["area"]
    numbers = [entry["id"] for entry in instances["annotations"]]
    assert len(set(numbers)) == len(numbers)


def test_files_hold_the_samples(root: Path) -> None:
    drawn = sample(RECIPE.options, 5, "val", 1)
    stored = np.asarray(Image.open(root / "shapes/images/val/000001.jpg")).astype(int)
    assert abs(stored - drawn.images[0]).mean() < 6  # of JPEG
    semantic = np.asarray(Image.open(root / "shapes/semantic_val/000001.png"))
    index = {entry["name"]: number for number, entry in enumerate(CLASSES)}
    assert (np.array([255, *(index[name] for name in drawn.names)])[drawn.ids[0]] == semantic).all()


def test_clips_are_youtube_vis(root: Path) -> None:
    directory = root / "shapes/videos"
    annotations = read_ytvis_json(str(directory / "train.json"))
    assert len(annotations.videos) == 2 and tuple(annotations.categories.values()) == THING_CLASSES
    for number, video in annotations.videos.items():
        drawn = sample(RECIPE.options, 5, "train", number - 1, frames=3, kind="clip")
        assert video.size == SIZE and len(video.file_names) == 3
        assert all((directory / "train/JPEGImages" / name).is_file() for name in video.file_names)
        assert len(video.tracks) == len(drawn.scene.things)
        first = len(drawn.scene.stuff) + 1
        for position, track in enumerate(video.tracks, start=first):
            for ids, segmentation in zip(drawn.ids, track.segmentations, strict=True):
                mask = np.zeros(SIZE, bool) if segmentation is None else segmentation_to_mask(segmentation, SIZE)
                assert (mask == (ids == position)).all()


@pytest.mark.slow
def test_workers_and_interruptions_change_nothing(root: Path, tmp_path: Path) -> None:
    expected = content(root / "shapes")
    out = tmp_path / "other"
    write_dataset(out, RECIPE, workers=3)
    assert content(out) == expected
    (out / "images/train/000001.jpg").unlink()
    (out / "semantic_train/000002.png").write_bytes(b"half")
    (out / "annotations/panoptic_train.json").unlink()
    (out / "images/train/.000003.jpg.abcdefgh.tmp").write_bytes(b"left by a killed run")
    kept = (out / "panoptic_train/000000.png").stat().st_mtime_ns
    write_dataset(out, RECIPE, workers=1)
    assert content(out) == expected
    assert (out / "panoptic_train/000000.png").stat().st_mtime_ns == kept


def test_more_images_keep_those_that_there_are(root: Path, tmp_path: Path) -> None:
    few = Recipe(RECIPE.options, 5, {"train": 2, "val": 0}, {"train": 0, "val": 0}, frames=3)
    write_dataset(tmp_path / "grown", few, workers=1)
    write_dataset(tmp_path / "grown", RECIPE, workers=1)
    assert content(tmp_path / "grown") == content(root / "shapes")


def test_clips_of_any_length_are_added_where_there_are_none(tmp_path: Path) -> None:
    images, none = {"train": 0, "val": 1}, {"train": 0, "val": 0}
    write_dataset(tmp_path, Recipe(RECIPE.options, 5, images, none), workers=1)  # of 12 frames, had it any
    write_dataset(tmp_path, Recipe(RECIPE.options, 5, images, {"train": 0, "val": 1}, frames=3), workers=1)
    assert len(list((tmp_path / "videos/val/JPEGImages").rglob("*.jpg"))) == 3
    with pytest.raises(ValueError, match="frames 3, not 4"):
        write_dataset(tmp_path, Recipe(RECIPE.options, 5, images, {"train": 0, "val": 1}, frames=4), workers=1)
    with pytest.raises(ValueError, match="1 clips of val, more than the 0 asked for"):
        write_dataset(tmp_path, Recipe(RECIPE.options, 5, images, none), workers=1)


def test_other_directories_are_left_alone(root: Path, tmp_path: Path) -> None:
    before = content(root / "shapes")
    other = Recipe(RECIPE.options, 6, RECIPE.images, RECIPE.clips, frames=3)
    with pytest.raises(ValueError, match="seed 5, not 6"):
        write_dataset(root / "shapes", other, workers=1)
    fewer = Recipe(RECIPE.options, 5, {"train": 1, "val": 1}, RECIPE.clips, frames=3)
    with pytest.raises(ValueError, match="4 images of train, more than the 1 asked for"):
        write_dataset(root / "shapes", fewer, workers=1)
    assert content(root / "shapes") == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty, and no dataset of this command"):
        write_dataset(tmp_path, RECIPE, workers=1)
    (tmp_path / "shapes.json").write_text('{"generator": ["?"')
    with pytest.raises(ValueError, match="not empty, and no dataset of this command"):
        write_dataset(tmp_path, RECIPE, workers=1)
    with pytest.raises(ValueError, match=r"notes\.txt is a file"):
        write_dataset(tmp_path / "notes.txt", RECIPE, workers=1)
    assert sorted(content(tmp_path)) == ["notes.txt", "shapes.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more"),
        ({"frames": 1}, "2 to 1000 frames"),
        ({"images": {"train": 0, "val": 0}, "clips": {"train": 0, "val": 0}}, "not all 0"),
    ],
)
def test_bad_recipes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


# ------------------------------------------------------------------ use of the files
def test_registered_names(registered: Path) -> None:
    for split, images, clips in (("train", 4, 2), ("val", 2, 1)):
        panoptic = DatasetCatalog.get(f"shapes_{split}_panoptic")
        assert len(panoptic) == len(DatasetCatalog.get(f"shapes_{split}_semantic")) == images
        instances = DatasetCatalog.get(f"shapes_{split}_instance")
        assert [len(record["annotations"]) for record in instances] == [
            sum(segment["isthing"] for segment in record["segments_info"]) for record in panoptic
        ]
        assert len(DatasetCatalog.get(f"shapes_{split}_video")) == clips
        for record in panoptic:
            files = (record["file_name"], record["pan_seg_file_name"], record["sem_seg_file_name"])
            assert all(Path(file).is_file() and Path(file).is_relative_to(registered) for file in files)
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    assert len(metadata.thing_classes) == 12 and len(metadata.stuff_classes) == 17
    assert set(metadata.thing_dataset_id_to_contiguous_id.values()) == set(range(12))


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    register_all(tmp_path)
    try:
        for task in ("panoptic", "instance", "semantic", "video"):
            with pytest.raises(FileNotFoundError, match="mask2former data shapes <root>/shapes"):
                DatasetCatalog.get(f"shapes_val_{task}")
    finally:
        register_all()


def test_the_directory_is_training_data(root: Path) -> None:
    splits = load_data(root / "shapes")
    assert {name: len(data.content["images"]) for name, data in splits.items()} == {"train": 4, "val": 2}
    assert splits["train"].format == "coco"
    assert [entry["name"] for entry in splits["train"].content["categories"]] == list(THING_CLASSES)


def test_the_directory_explains_itself(root: Path) -> None:
    text = (root / "shapes/README.md").read_text()
    assert "seed 5" in text and "| images | 4 | 2 |" in text and "classes.txt" in text
    assert not re.search(r"[{}]", text)
    recipe = read(root / "shapes/shapes.json")
    assert recipe["seed"] == 5 and recipe["version"] >= 1 and recipe["options"]["size"] == [48, 64]
