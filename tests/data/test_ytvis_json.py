from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.config import load_config
from mask2former.data import BadRecordError, register_all, register_from_config, register_ytvis_json
from mask2former.data.datasets.ytvis_json import load_ytvis_json, read_ytvis_json
from mask2former.data.inspect import check_dataset
from mask2former.structures.masks import segmentation_to_mask

Write = Callable[[], tuple[str, str]]
Content = dict[str, Any]


def test_reading(write_videos: Write, video_masks: dict[int, list[np.ndarray | None]]) -> None:
    content = read_ytvis_json(write_videos()[0])
    assert list(content.videos) == [2, 4, 9] and content.categories == {3: "bar", 7: "cell"} and content.has_truth
    assert content.videos[4].size == (32, 40) and len(content.videos[4].file_names) == 6
    tracks = {track.id: track for video in content.videos.values() for track in video.tracks}
    assert [(t.id, t.category_id, t.crowd) for _, t in sorted(tracks.items())] == [
        (1, 7, False),
        (2, 3, False),
        (3, 3, False),
        (4, 7, False),
        (5, 7, True),
    ]
    for key, masks in video_masks.items():
        for mask, segmentation in zip(masks, tracks[key].segmentations, strict=True):
            assert (mask is None) == (segmentation is None)
            if mask is not None:
                np.testing.assert_array_equal(segmentation_to_mask(segmentation, (32, 40)), mask)


def test_records(write_videos: Write) -> None:
    path, directory = write_videos()
    records = load_ytvis_json(path, directory, {3: 0, 7: 1})
    assert [record["video_id"] for record in records] == [2, 4, 9]
    assert records[0]["file_names"] == [f"{directory}/clip2/{t:05d}.png" for t in range(3)]
    assert (records[1]["height"], records[1]["width"], records[1]["length"]) == (32, 40, 6)
    assert [(a["id"], a["category_id"], a["iscrowd"]) for a in records[0]["annotations"]] == [(4, 1, 0), (5, 1, 1)]
    with pytest.raises(BadRecordError, match=r"annotation 4: category 7 is not a class of the dataset"):
        load_ytvis_json(path, directory, {3: 0})


@pytest.mark.parametrize("annotations", [None, "absent"])
def test_files_of_a_server(write_videos: Write, video_content: Content, annotations: Any) -> None:
    video_content["annotations"] = None
    if annotations == "absent":
        del video_content["annotations"]
    path, directory = write_videos()
    assert not read_ytvis_json(path).has_truth
    assert all("annotations" not in record for record in load_ytvis_json(path, directory, {}))


def _set(where: str, number: int, key: str, value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[where][number][key] = value

    return change


# What is changed, the message, and the videos that are left when bad records are skipped.
BAD = {
    "text as id": (_set("videos", 0, "id", "9"), r"videos\[0\]: needs an integer 'id'", {2, 4}),
    "id twice": (_set("videos", 1, "id", 9), "video 9: the id is used twice", {2}),
    "no height": (_set("videos", 0, "height", 0), "video 9: needs a positive integer 'height' in pixels", {2, 4}),
    "no frames": (_set("videos", 0, "file_names", []), "video 9: needs 'file_names'", {2, 4}),
    "length": (_set("videos", 1, "length", 7), "video 4: 'length' is 7, but the video has 6", {2, 9}),
    "no video": (_set("annotations", 0, "video_id", 5), "annotation 1: belongs to video 5", {2, 4, 9}),
    "category": (_set("annotations", 0, "category_id", 1), "annotation 1: category 1 is not declared", {2, 9}),
    "crowd": (_set("annotations", 0, "iscrowd", 2), "annotation 1: 'iscrowd' must be 0 or 1", {2, 9}),
    "too few": (_set("annotations", 1, "segmentations", [None]), "annotation 2: 'segmentations' has 1 entries", {2, 9}),
    "none": (_set("annotations", 1, "segmentations", None), "annotation 2: 'segmentations' has no list", {2, 9}),
    "mask": (
        _set("annotations", 2, "segmentations", [{"size": [32, 40], "counts": [5]}]),
        "annotation 3, frame 0: the runs of the RLE do not add up",
        {2, 4},
    ),
    "areas": (_set("annotations", 2, "areas", ["1"]), "annotation 3: 'areas' must be pixel counts or null", {2, 4}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_or_left_out(write_videos: Write, video_content: Content, case: str) -> None:
    change, message, kept = BAD[case]
    change(video_content)
    path, _ = write_videos()
    with pytest.raises(BadRecordError, match=rf"videos\.json: {message}") as caught:
        read_ytvis_json(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    left = read_ytvis_json(path, skip_bad_records=True)
    assert set(left.videos) == kept and not left.left_out & kept
    assert left.left_out == {2, 4, 9} - kept or case in ("text as id", "no video")  # whose videos have no known id
    assert all(len(track.segmentations) == len(v.file_names) for v in left.videos.values() for track in v.tracks)


def test_empty_segmentations_are_absent(write_videos: Write, video_content: Content) -> None:
    video_content["annotations"][2]["segmentations"] = [[]]
    assert read_ytvis_json(write_videos()[0]).videos[9].tracks[0].segmentations == [None]


def test_not_this_format(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [], "categories": []}))
    with pytest.raises(BadRecordError, match=r"coco\.json: has no 'videos'"):
        read_ytvis_json(str(path))
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        read_ytvis_json(str(tmp_path / "missing.json"))


def test_own_names(write_videos: Write, video_content: Content) -> None:
    path, directory = write_videos()
    cfg = load_config(None, ["DATASETS.YTVIS_JSON", repr([["clips", path, directory], ["other", "nowhere", "at_all"]])])
    register_from_config(cfg, ["clips"])
    metadata = MetadataCatalog.get("clips")
    assert metadata.thing_classes == ["bar", "cell"] and metadata.evaluator_type == "ytvis"
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1} and metadata.json_file == path
    assert len(DatasetCatalog.get("clips")) == 3
    video_content["videos"].append({**video_content["videos"][0], "id": 11})
    write_videos()
    register_ytvis_json("clips", path, directory)
    assert len(DatasetCatalog.get("clips")) == 4
    cfg.DATASETS.YTVIS_JSON = [["clips", path]]
    with pytest.raises(ValueError, match=r"DATASETS\.YTVIS_JSON holds entries \[name, json_file, image_root\]"):
        register_from_config(cfg)


def test_published_names(tmp_path: Path, write_videos: Write) -> None:
    try:
        register_all(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"(?s)'ytvis_2021_train'.*<root>/ytvis_2021/.*JPEGImages"):
            DatasetCatalog.get("ytvis_2021_train")
        with pytest.raises(FileNotFoundError, match=r"(?s)'ovis_val'.*annotations_valid.json"):
            _ = MetadataCatalog.get("ovis_val").thing_classes
        path, directory = write_videos()
        (tmp_path / "ovis").mkdir()
        Path(path).rename(tmp_path / "ovis" / "annotations_valid.json")
        Path(directory).rename(tmp_path / "ovis" / "valid")
        assert MetadataCatalog.get("ovis_val").thing_classes == ["bar", "cell"]
        assert DatasetCatalog.get("ovis_val")[2]["file_names"] == [str(tmp_path / "ovis/valid/clip9/00000.png")]
    finally:
        register_all()


def test_looking_through_videos(write_videos: Write) -> None:
    path, directory = write_videos()
    register_ytvis_json("clips", path, directory)
    Path(directory, "clip4", "00003.png").unlink()
    report = check_dataset("clips", workers=1)
    assert report.total == 10 and len(report.problems) == 1 and "clip4/00003.png" in report.problems[0]
    objects = sum(
        (inspection.objects for inspection in report.inspections), start=type(report.inspections[0].objects)()
    )
    assert objects == {0: 4 + 1, 1: 4 + 1}
