"""Video instances in the format of YouTube-VIS and OVIS: a typed reader, and registration of custom datasets.

The format (Yang et al., "Video Instance Segmentation", ICCV 2019) is COCO's with "videos" instead of "images": a video
lists the files of its frames, and an annotation is one object with a segmentation for each frame, null where it is not
visible. Segmentations are polygons or RLE.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import BadRecordError, report_bad_records
from ...utils.file_io import read_json_object
from .catalog import Records, file_state, locate, register_custom
from .coco_annotations import check_class_and_crowd, check_id, check_segmentation, check_sides, is_id, read_categories

Segmentation = list[list[float]] | dict[str, Any]


@dataclass(frozen=True)
class Track:
    """One object of a video.

    Attributes:
        id: id of the annotation.
        category_id: category id of the file.
        crowd: whether it is a region of many objects, which training and evaluation leave out.
        segmentations: T segmentations, None where the object is not visible.
        areas: T pixel counts, None or 0 where it is not visible; None if the file has no areas.
    """

    id: int
    category_id: int
    crowd: bool
    segmentations: list[Segmentation | None]
    areas: list[float | None] | None = None


@dataclass(frozen=True)
class Video:
    """A clip of T frames of one size.

    Attributes:
        id: id of the video.
        height, width: size of its frames in pixels.
        file_names: T file names, relative to the directory of the frames.
        tracks: its objects.
    """

    id: int
    height: int
    width: int
    file_names: list[str]
    tracks: list[Track] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.height, self.width


@dataclass(frozen=True)
class VideoAnnotations:
    """Content of an annotation file in the YouTube-VIS format.

    Attributes:
        file: name of the file.
        categories: id -> name, by ascending id.
        videos: id -> video, by ascending id.
        has_truth: whether there is ground truth; annotations of a test server are null or missing.
        left_out: ids of videos with bad records, which are not in `videos`.
    """

    file: str
    categories: dict[int, str]
    videos: dict[int, Video]
    has_truth: bool
    left_out: frozenset[int] = frozenset()


def read_ytvis_json(json_file: str, *, skip_bad_records: bool = False) -> VideoAnnotations:
    """Read and check a YouTube-VIS or OVIS JSON file.

    All masks are checked here, so that a bad one does not stop a training later.

    Args:
        json_file: file name.
        skip_bad_records: leave out and report videos with bad records instead of raising an error.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file is malformed or, without `skip_bad_records`, one of its records.
    """
    content = read_json_object(json_file, lists=("videos", "categories"))
    return check_ytvis_content(json_file, content, skip_bad_records=skip_bad_records)


def check_ytvis_content(json_file: str, content: dict[str, Any], *, skip_bad_records: bool = False) -> VideoAnnotations:
    """Check the content of a YouTube-VIS or OVIS JSON file, as `read_ytvis_json`; its name is for messages."""
    categories = dict(read_categories(json_file, content, None))
    annotations = content.get("annotations")
    if not isinstance(annotations, (list, type(None))):
        raise BadRecordError(json_file, "needs a list 'annotations', or null")
    videos: dict[int, Video] = {}
    seen: set[int] = set()
    problems: list[BadRecordError] = []
    bad: set[int] = set()
    passes: list[tuple[str, Callable[[int, Any], None], list[Any]]] = [
        ("id", lambda position, entry: _add_video(json_file, entry, position, videos), content["videos"]),
        (
            "video_id",
            lambda position, entry: _add_track(json_file, entry, position, videos, seen, categories),
            annotations or [],
        ),
    ]
    for key, add, entries in passes:
        for position, entry in enumerate(entries):
            try:
                add(position, entry)
            except BadRecordError as error:
                if not skip_bad_records:
                    raise
                problems.append(error)
                if isinstance(entry, dict) and is_id(entry.get(key)):
                    bad.add(entry[key])
    report_bad_records(json_file, problems, len(bad & videos.keys()), "videos")
    kept = {number: video for number, video in sorted(videos.items()) if number not in bad}
    return VideoAnnotations(json_file, categories, kept, annotations is not None, frozenset(bad))


def _add_video(file: str, entry: Any, position: int, videos: dict[int, Video]) -> None:
    where = check_id(file, entry, f"videos[{position}]", "video", videos)
    check_sides(file, entry, where)
    names = entry.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BadRecordError(file, "needs 'file_names', a list with the file of each frame", where)
    if entry.get("length", len(names)) != len(names):
        raise BadRecordError(
            file, f"'length' is {entry['length']!r}, but the video has {len(names)} 'file_names'", where
        )
    videos[entry["id"]] = Video(entry["id"], entry["height"], entry["width"], names)


def _add_track(
    file: str, entry: Any, position: int, videos: dict[int, Video], seen: set[int], declared: Mapping[int, str]
) -> None:
    where = check_id(file, entry, f"annotations[{position}]", "annotation", seen)
    seen.add(entry["id"])
    number = entry.get("video_id")
    if not is_id(number) or number not in videos:
        raise BadRecordError(file, f"belongs to video {number!r}, which is not in 'videos'", where)
    video = videos[number]
    category, crowd = check_class_and_crowd(file, entry, where, declared)
    given = entry.get("segmentations")
    length = len(video.file_names)
    if not isinstance(given, list) or len(given) != length:
        if given is None and entry.get("bboxes"):
            raise BadRecordError(file, "has 'bboxes' but no 'segmentations'; training needs masks, not boxes", where)
        count = f"{len(given)} entries" if isinstance(given, list) else "no list"
        raise BadRecordError(file, f"'segmentations' has {count}, but video {number} has {length} frames", where)
    segmentations = [
        check_segmentation(file, one, {"height": video.height, "width": video.width}, f"{where}, frame {frame}") or None
        for frame, one in enumerate(given)
    ]
    areas = entry.get("areas")
    if not isinstance(areas, list) or len(areas) != length:
        areas = None
    elif not all(area is None or (type(area) in (int, float) and area >= 0) for area in areas):
        raise BadRecordError(file, "'areas' must be pixel counts or null", where)
    video.tracks.append(Track(entry["id"], category, crowd, segmentations, areas))


def video_records(content: VideoAnnotations, image_root: str, classes: Mapping[int, int]) -> Records:
    """Build the records of all videos, for the mappers of clips.

    Args:
        content: annotations of `read_ytvis_json`.
        image_root: directory of the frames.
        classes: category id -> class index.

    Returns:
        {"file_names" (T paths), "height", "width", "length" (T), "video_id"} each and, if the file has ground truth,
        "annotations": for each object {"id", "category_id" (class index), "iscrowd", "segmentations" (T, or None)}.

    Raises:
        BadRecordError: an object has a category that is not in `classes`.
    """
    records = []
    for video in content.videos.values():
        record: dict[str, Any] = {
            "file_names": [os.path.join(image_root, name) for name in video.file_names],
            "height": video.height,
            "width": video.width,
            "length": len(video.file_names),
            "video_id": video.id,
        }
        if content.has_truth:
            record["annotations"] = [
                {
                    "id": track.id,
                    "category_id": _class_of(content.file, track, classes),
                    "iscrowd": int(track.crowd),
                    "segmentations": track.segmentations,
                }
                for track in video.tracks
            ]
        records.append(record)
    return records


def _class_of(file: str, track: Track, classes: Mapping[int, int]) -> int:
    if track.category_id not in classes:
        reason = f"category {track.category_id} is not a class of the dataset, which has {sorted(classes)}"
        raise BadRecordError(file, reason, f"annotation {track.id}")
    return classes[track.category_id]


def frame_records(record: dict[str, Any]) -> Records:
    """Return the frames of a video as image records; the record of an image is returned alone."""
    if "file_names" not in record:
        return [record]
    frames = []
    for position, file in enumerate(record["file_names"]):
        frame = {"file_name": file, "height": record["height"], "width": record["width"]}
        if "annotations" in record:
            frame["annotations"] = [
                {**track, "segmentation": track["segmentations"][position]}
                for track in record["annotations"]
                if track["segmentations"][position]
            ]
        frames.append(frame)
    return frames


def category_metadata(json_file: str) -> dict[str, Any]:
    """Return class list and id map from the categories of a file, classes in the order of the ids.

    Raises:
        FileNotFoundError, BadRecordError: as `read_ytvis_json`.
    """
    categories = read_categories(json_file, read_json_object(json_file, lists=("categories",)), None)
    return {
        "thing_classes": [category for _, category in categories],
        "thing_dataset_id_to_contiguous_id": {key: index for index, (key, _) in enumerate(categories)},
    }


def register_ytvis_json(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    skip_bad_records: bool = False,
) -> None:
    """Register a custom dataset of videos, with a JSON file in the format of YouTube-VIS.

    The categories are read now (classes in the order of their ids), everything else when the dataset is loaded. A
    second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        json_file: relative paths are looked up in the working directory, then below the dataset root.
        image_root: directory of the frames, looked up the same way.
        skip_bad_records: leave out and report videos with bad records instead of raising an error; so does the
            evaluation.

    Raises:
        FileNotFoundError: the JSON file or the directory does not exist.
        NotADirectoryError, IsADirectoryError: a file is given for a directory, or the reverse.
        BadRecordError: the JSON file or its categories are malformed.
        ValueError: the name is already used by other code.
    """
    json_path, image_path = locate(json_file, directory=False), locate(image_root, directory=True)

    def describe() -> tuple[Callable[[], Records], dict[str, Any]]:
        metadata = category_metadata(json_path)
        classes = metadata["thing_dataset_id_to_contiguous_id"]
        load = functools.partial(load_ytvis_json, json_path, image_path, classes, skip_bad_records=skip_bad_records)
        paths = {"json_file": json_path, "image_root": image_path}
        return load, {**metadata, **paths, "evaluator_type": "ytvis", "skip_bad_records": skip_bad_records}

    register_custom(name, (*file_state(json_path), "ytvis", image_path, skip_bad_records), describe)


def load_ytvis_json(
    json_file: str, image_root: str, classes: Mapping[int, int], *, skip_bad_records: bool = False
) -> Records:
    """Load the records of a YouTube-VIS JSON file; see `read_ytvis_json` and `video_records`."""
    return video_records(read_ytvis_json(json_file, skip_bad_records=skip_bad_records), image_root, classes)
