"""What single formats have of their own."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from mask2former.data.formats import CocoData, huggingface, load_data
from mask2former.data.formats.files import image_size
from mask2former.data.formats.label_studio import decode_brush
from mask2former.data.formats.voc import voc_color
from mask2former.data.image_io import read_image
from mask2former.errors import BadRecordError
from mask2former.utils.file_io import read_json_object
from tests.data.formats import samples
from tests.data.formats.samples import SIZE, save_array, save_image, save_json, save_text


def counts(data: CocoData) -> list[str]:
    """Return the class of each object."""
    names = {entry["id"]: entry["name"] for entry in data.content["categories"]}
    return [names[entry["category_id"]] for entry in data.content["annotations"]]


# ---------------------------------------------------------------- COCO
def test_roboflow_drops_the_project_category(tmp_path: Path) -> None:
    samples.write_roboflow(tmp_path, samples.sample(0))
    data = load_data(tmp_path)["train"]
    assert data.names == ["cell", "debris"] and "category 'things' only groups the others" in data.notes[0]


def test_coco_boxes_only(tmp_path: Path) -> None:
    content = samples.coco_content(samples.sample(0))
    for entry in content["annotations"]:
        entry["bbox"] = [1, 1, 5, 5]
        del entry["segmentation"]
    samples.save_images(tmp_path, samples.sample(0))
    file = save_json(tmp_path / "a.json", content)
    with pytest.raises(BadRecordError, match="boxes without 'segmentation'"):
        load_data(file)


def test_coco_splits_with_other_categories(tmp_path: Path) -> None:
    first, second = samples.sample(0), samples.sample(1, classes=("debris", "fiber"))
    for split, part in (("train2017", first), ("val2017", second)):
        samples.save_images(tmp_path / split, part)
        save_json(tmp_path / "annotations" / f"instances_{split}.json", samples.coco_content(part))
        save_json(tmp_path / "annotations" / f"captions_{split}.json", {"images": [], "annotations": []})
    loaded = load_data(tmp_path)
    assert list(loaded) == ["train", "val"]
    assert loaded["train"].names == loaded["val"].names == ["cell", "debris", "fiber"]
    assert set(counts(loaded["val"])) == {"debris", "fiber"} and "different categories" in loaded["train"].notes[0]
    assert loaded["val"].content["images"][0]["file_name"] == "val2017/im0.png"


def test_coco_file_in_annotations(tmp_path: Path) -> None:
    samples.write_coco(tmp_path, samples.sample(0))
    data = load_data(tmp_path / "annotations" / "instances.json")["all"]
    assert data.content["images"][0]["file_name"] == "images/im0.png"


def test_coco_paths_of_another_computer(tmp_path: Path) -> None:
    content = samples.coco_content(samples.sample(0))
    content["images"][0]["file_name"] = "C:\\Users\\me\\cells\\im0.png"
    content["images"][1]["file_name"] = "/home/me/im1.png"
    samples.save_images(tmp_path / "photos", samples.sample(0))
    save_json(tmp_path / "a.json", content)
    assert [i["file_name"] for i in load_data(tmp_path)["all"].content["images"]] == [
        "photos/im0.png",
        "photos/im1.png",
    ]


def test_coco_two_files_of_one_split(tmp_path: Path) -> None:
    samples.write_coco(tmp_path / "a", samples.sample(0))
    samples.write_coco(tmp_path / "b", samples.sample(0))
    with pytest.raises(ValueError, match="pass one file"):
        load_data(tmp_path)


# ---------------------------------------------------------------- label maps
def test_holes_and_pieces_stay(tmp_path: Path) -> None:
    from mask2former.structures.masks import segmentation_to_mask

    ids = np.zeros(SIZE, np.int32)
    ids[5:30, 5:30] = 70000  # more than 16 bits
    ids[10:20, 10:20] = 0
    ids[40:50, 60:70] = 70000
    ids[12:15, 12:15] = 3
    save_image(tmp_path / "images" / "a.png")
    save_array(tmp_path / "labels" / "a.tif", ids)
    data = load_data(tmp_path)["all"]
    masks = [segmentation_to_mask(entry["segmentation"], SIZE) for entry in data.content["annotations"]]
    assert len(masks) == 2 and (masks[0] == (ids == 3)).all() and (masks[1] == (ids == 70000)).all()
    assert data.content["annotations"][1]["area"] == (ids == 70000).sum()
    assert data.content["annotations"][1]["bbox"] == [5, 5, 65, 45]


def test_binary_masks_become_components(tmp_path: Path) -> None:
    data = samples.sample(0)
    samples.write_binary(tmp_path, data)
    loaded = load_data(tmp_path)["all"]
    assert len(loaded.content["annotations"]) == sum(map(len, data.values()))
    assert any("each connected component is one object" in note for note in loaded.notes)


def test_soft_binary_masks_are_thresholded(tmp_path: Path) -> None:
    soft = np.zeros(SIZE, np.uint8)
    soft[10:40, 10:40], soft[10:40, 9], soft[10:40, 40] = 255, 200, 60
    soft[50:60, 50:60] = 255
    save_image(tmp_path / "images" / "a.png")
    save_array(tmp_path / "masks" / "a.png", soft)
    loaded = load_data(tmp_path)["all"]
    assert sorted(entry["area"] for entry in loaded.content["annotations"]) == [100, 31 * 30]
    assert any("thresholded at 128" in note for note in loaded.notes)


def test_one_object_of_value_255_is_not_binary(tmp_path: Path) -> None:
    ids = np.zeros(SIZE, np.uint8)
    for number in range(1, 256):
        ids[number // 16 * 4 : number // 16 * 4 + 3, number % 16 * 6 : number % 16 * 6 + 5] = number
    save_image(tmp_path / "images" / "a.png")
    save_array(tmp_path / "masks" / "a.png", ids)
    loaded = load_data(tmp_path)["all"]
    assert len(loaded.content["annotations"]) == 255 and not loaded.notes


def test_class_name_of_label_maps(tmp_path: Path) -> None:
    samples.write_label_maps(tmp_path, samples.sample(0))
    save_text(tmp_path / "classes.txt", "nucleus\n")
    assert load_data(tmp_path)["all"].names == ["nucleus"]
    save_text(tmp_path / "classes.txt", "nucleus\ndebris\n")
    with pytest.raises(BadRecordError, match=r"classes\.txt: names 2 classes"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(SIZE, 0.5), "not integers"),
        (np.full(SIZE, np.nan), "not integers"),
        (np.full(SIZE, -1), "negative value"),
        (np.zeros((3, 4, 5, 6)), "one channel"),
        (np.full((10, 10), 1), "10x10 pixels, its image"),
        (np.array({"masks": 1}, dtype=object), "not an array of numbers"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    save_image(tmp_path / "images" / "a.png")
    save_array(tmp_path / "labels" / "a.npy", array)
    with pytest.raises(BadRecordError, match=message):
        load_data(tmp_path)


def test_seg_npy_of_cellpose_is_refused_with_a_hint(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    np.save(tmp_path / "a_seg.npy", {"masks": np.ones(SIZE)}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(BadRecordError, match="save the masks as PNG or TIFF"):
        load_data(tmp_path)


def test_files_of_cellpose_beside_its_masks(tmp_path: Path) -> None:
    samples.write_beside(tmp_path, samples.sample(0), "_cp_masks")
    for stem in ("im0", "im1"):
        np.save(tmp_path / f"{stem}_seg.npy", {"masks": np.ones(SIZE)}, allow_pickle=True)  # type: ignore[arg-type]
    content = load_data(tmp_path)["all"].content
    assert len(content["images"]) == 2 and content["annotations"]
    assert not any(image["file_name"].endswith(".npy") for image in content["images"])


# ---------------------------------------------------------------- sizes
def test_sizes_are_those_of_the_images_that_training_reads(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 6  # rotated by 90 degrees
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "rotated.tif", tiffinfo=tags)
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((20, 30, 3), np.float32), photometric="rgb")
    np.save(tmp_path / "array.npy", np.zeros((20, 30), np.uint8))
    for name in ("rotated.tif", "float.tif", "array.npy"):
        size = image_size(tmp_path / name)
        assert size == ((30, 20) if name == "rotated.tif" else (20, 30))
        assert size == read_image(str(tmp_path / name)).shape[:2]
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadRecordError, match="cannot be read as an image"):
        image_size(tmp_path / "broken.png")


# ---------------------------------------------------------------- YOLO
def test_yolo_boxes_only(tmp_path: Path) -> None:
    samples.write_yolo(tmp_path, samples.sample(0))
    for path in (tmp_path / "labels" / "train").iterdir():
        path.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(BadRecordError, match="all 2 objects are boxes"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.1 0.1 0.2 0.1 0.2 0.2", "class '7'"),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", "NaN"),
        ("0 10 10 50 10 50 50", "not normalized"),
        ("0 0.1 0.1 0.2 0.1 0.2", "pairs of x and y"),
        ("0 0.1 0.1 x 0.1 0.2 0.2", "not a number"),
    ],
)
def test_yolo_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    samples.write_yolo(tmp_path, samples.sample(0))
    with (tmp_path / "labels" / "train" / "im1.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadRecordError, match=f"im1.txt: line .*{message}"):
        load_data(tmp_path)


def test_yolo_splits_of_the_config(tmp_path: Path) -> None:
    """Roboflow names ../train/images for a directory beside data.yaml; lists of files are read too."""
    for part in ("learn", "check"):
        for stem, things in samples.sample(len(part)).items():
            save_image(tmp_path / part / "images" / f"{part}{stem}.png", len(part))
            lines = [samples.yolo_line(thing, ["cell", "debris"].index(thing.name)) for thing in things]
            save_text(tmp_path / part / "labels" / f"{part}{stem}.txt", "\n".join(lines))
    save_text(tmp_path / "list.txt", "./check/images/checkim0.png\ncheck/images/checkim1.png\n")
    save_text(tmp_path / "data.yaml", "train: ../learn/images\nval: list.txt\nnames: {0: cell, 1: debris}\n")
    loaded = load_data(tmp_path / "data.yaml")
    assert {k: len(v.content["images"]) for k, v in loaded.items()} == {"train": 2, "val": 2}
    assert loaded["val"].content["images"][0]["file_name"] == "check/images/checkim0.png"


def test_yolo_without_names(tmp_path: Path) -> None:
    samples.write_yolo(tmp_path, samples.sample(0))
    (tmp_path / "data.yaml").unlink()
    data = load_data(tmp_path)["train"]
    assert data.names == ["class_0", "class_1"] and "no data.yaml or classes.txt" in data.notes[0]


# ---------------------------------------------------------------- VOC
def test_voc_palette() -> None:
    assert [voc_color(index) for index in (0, 1, 2, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]


def test_voc_unknown_color(tmp_path: Path) -> None:
    samples.write_voc_colors(tmp_path, samples.sample(0))
    save_array(tmp_path / "SegmentationClass" / "im0.png", np.full((*SIZE, 3), 9, np.uint8))
    with pytest.raises(BadRecordError, match=r"im0\.png: has the color \(9, 9, 9\)"):
        load_data(tmp_path)


# ---------------------------------------------------------------- LabelMe
def labelme(tmp_path: Path, *shapes: dict[str, Any]) -> CocoData:
    save_image(tmp_path / "a.png")
    save_json(tmp_path / "a.json", samples.labelme_content("a", list(shapes)))
    return load_data(tmp_path)["all"]


def test_labelme_shapes_and_groups(tmp_path: Path) -> None:
    square = [[1, 1], [9, 1], [9, 9], [1, 9]]
    data = labelme(
        tmp_path,
        {"label": "cell", "points": square, "group_id": 4},
        {"label": "cell", "points": [[20, 20], [30, 30]], "shape_type": "rectangle", "group_id": 4},
        {"label": "debris", "points": [[60, 30], [70, 30]], "shape_type": "circle"},
        {"label": "debris", "points": [[1, 50], [9, 60]], "shape_type": "line"},
        {"label": "__ignore__", "points": square},
    )
    assert counts(data) == ["cell", "debris"]
    merged, circle = data.content["annotations"]
    assert merged["area"] == 164 and len(merged["segmentation"]) == 2
    assert abs(circle["area"] - math.pi * 100) < 8
    assert any("'line'" in note for note in data.notes) and any("'__ignore__'" in note for note in data.notes)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "a", "points": [[0, 0], [float("nan"), 1], [2, 2]]}, "NaN"),
        ({"label": "a", "points": [[0, 0], [1e300, 1], [2, 2]]}, "far outside"),
        ({"label": "a", "points": "12"}, "list of"),
        ({"points": [[0, 0], [9, 9], [0, 9]]}, "needs a 'label'"),
        ({"label": "a", "points": [[0, 0], [4, 4]], "shape_type": "mask", "mask": "%%"}, "base64"),
        ({"label": "a", "points": [[0, 0], [4, 4]], "shape_type": "mask", "mask": "AAAA"}, "not a PNG"),
        ({"label": "a", "points": [[0, 0], [4, 4], [5, 5]], "shape_type": "circle"}, "has 2 points"),
    ],
)
def test_labelme_bad_shapes(tmp_path: Path, shape: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecordError, match=rf"a\.json: shapes\[0\]: .*{message}"):
        labelme(tmp_path, shape)


def test_labelme_swapped_size(tmp_path: Path) -> None:
    content = samples.labelme_content("a", [])
    content["imageHeight"], content["imageWidth"] = SIZE[1], SIZE[0]
    save_image(tmp_path / "a.png")
    save_json(tmp_path / "a.json", content)
    with pytest.raises(BadRecordError, match="was made for an image of 64x96"):
        load_data(tmp_path)


# ---------------------------------------------------------------- CVAT
def cvat(tmp_path: Path, shapes: str, image: str = 'name="a.png" width="96" height="64"') -> CocoData:
    save_image(tmp_path / "images" / "a.png")
    save_text(tmp_path / "annotations.xml", f"<annotations><image id='0' {image}>{shapes}</image></annotations>")
    return load_data(tmp_path)["all"]


def test_cvat_ellipse_groups_and_leftovers(tmp_path: Path) -> None:
    data = cvat(
        tmp_path,
        '<ellipse label="a" cx="40" cy="30" rx="20" ry="10"/>'
        '<polygon label="b" points="1,1;9,1;9,9;1,9" group_id="2"/>'
        '<polygon label="b" points="21,1;29,1;29,9;21,9" group_id="2"/>'
        '<polyline label="a" points="1,1;2,2"/>',
    )
    assert counts(data) == ["a", "b"]
    assert abs(data.content["annotations"][0]["area"] - math.pi * 200) < 10
    assert data.content["annotations"][1]["area"] == 128
    assert any("<polyline>" in note for note in data.notes)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ('<box label="a" xtl="1" ytl="1" xbr="5" ybr="5"/>', "objects are boxes"),
        ('<polygon label="a" points="1,1;nan,2;3,3"/>', "NaN"),
        ('<polygon label="a"/>', "has no 'points'"),
        ('<polygon label="a" points="1;2;3"/>', "not a number"),
        ('<mask label="a" rle="1,2" left="0" top="0" width="2" height="2"/>', "do not add up"),
        ('<mask label="a" rle="0,4" left="95" top="0" width="2" height="2"/>', "outside of the image"),
        ('<mask label="a" rle="9223372036854775807,9" left="0" top="0" width="2" height="2"/>', "do not add up"),
        ('<mask label="a" rle="99999999999999999999" left="0" top="0" width="2" height="2"/>', "not a number"),
        ('<mask label="a" rle="1" left="0" top="0" width="99999999999" height="2"/>', "width must be"),
    ],
)
def test_cvat_bad_shapes(tmp_path: Path, shapes: str, message: str) -> None:
    with pytest.raises(BadRecordError, match=rf"annotations\.xml: .*{message}"):
        cvat(tmp_path, shapes)


def test_cvat_video(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_text(tmp_path / "annotations.xml", "<annotations><track id='0'></track></annotations>")
    with pytest.raises(BadRecordError, match="CVAT for video"):
        load_data(tmp_path)


# ---------------------------------------------------------------- Label Studio
def test_label_studio_minimal_export_and_empty_tasks(tmp_path: Path) -> None:
    data = samples.sample(0)
    tasks = samples.label_studio_tasks(data)
    samples.save_images(tmp_path, data)
    minimal = [
        {
            "image": task["data"]["image"],
            "id": task["id"],
            "label": [
                {**r["value"], **{k: v for k, v in r.items() if k != "value"}} for r in task["annotations"][0]["result"]
            ],
            "annotator": 1,
            "annotation_id": 1,
        }
        for task in tasks
    ]
    save_json(tmp_path / "min.json", minimal)
    assert len(load_data(tmp_path)["all"].content["annotations"]) == sum(map(len, data.values()))
    tasks[1]["annotations"] = []
    save_json(tmp_path / "min.json", tasks)
    loaded = load_data(tmp_path)["all"]
    assert len(loaded.content["images"]) == 1 and "tasks without an annotation" in loaded.notes[0]


def test_label_studio_shapes(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    values = [
        {"x": 10, "y": 10, "width": 25, "height": 25, "rotation": 0, "rectanglelabels": ["r"]},
        {"x": 50, "y": 50, "radiusX": 12.5, "radiusY": 12.5, "ellipselabels": ["e"]},
        {"choices": ["good"]},
    ]
    result = [{"value": value, "original_width": 96, "original_height": 64} for value in values]
    save_json(tmp_path / "p.json", [{"data": {"image": "s3://bucket/a.png"}, "annotations": [{"result": result}]}])
    loaded = load_data(tmp_path)["all"]
    areas = {c: entry["area"] for c, entry in zip(counts(loaded), loaded.content["annotations"], strict=True)}
    assert abs(areas["r"] - 24 * 16) < 20 and abs(areas["e"] - math.pi * 12 * 8) < 10


def test_brush_masks() -> None:
    values = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), 4000, p=[0.9, 0.1])
    code = np.array(samples.encode_brush(values), np.uint8)
    assert (decode_brush(code, 4000) == values).all()
    with pytest.raises(ValueError, match="truncated"):
        decode_brush(code[: len(code) // 2], 4000)
    with pytest.raises(ValueError, match="4000 values"):
        decode_brush(code, 5000)
    for seed in range(50):  # any bytes end in an error or in values
        noise = np.random.default_rng(seed).integers(0, 256, 200, dtype=np.uint8)
        noise[:4] = [0, 0, 15, 160]
        with contextlib.suppress(ValueError):
            assert len(decode_brush(noise, 4000)) == 4000


# ---------------------------------------------------------------- Hugging Face
@pytest.mark.parametrize("kind", ["columns", "maps"])
def test_hugging_face(tmp_path: Path, kind: str) -> None:
    hf = pytest.importorskip("datasets")
    if not hasattr(hf, "Dataset"):
        pytest.skip("the package datasets is not installed")
    data = samples.sample(0)
    samples.save_images(tmp_path / "images", data)
    rows: dict[str, list[Any]] = {"image": [str(tmp_path / "images" / f"{stem}.png") for stem in data]}
    features: dict[str, Any] = {"image": hf.Image()}
    if kind == "columns":
        rows["objects"] = [
            {
                "segmentation": [[t.polygon.reshape(-1).tolist()] for t in things],
                "category": [["cell", "debris"].index(t.name) for t in things],
            }
            for things in data.values()
        ]
        features["objects"] = {
            "segmentation": hf.Sequence(hf.Sequence(hf.Sequence(hf.Value("float32")))),
            "category": hf.Sequence(hf.ClassLabel(names=["cell", "debris"])),
        }
    else:
        for stem, things in data.items():
            save_array(tmp_path / "maps" / f"{stem}.png", samples.label_map(things))
        rows["label_map"] = [str(tmp_path / "maps" / f"{stem}.png") for stem in data]
        features["label_map"] = hf.Image()
    dataset = hf.DatasetDict({"train": hf.Dataset.from_dict(rows, features=hf.Features(features))})
    dataset.save_to_disk(tmp_path / "saved")
    for source in (dataset, tmp_path / "saved"):
        loaded = load_data(source, image_dir=tmp_path / "written")
        assert list(loaded) == ["train"] and loaded["train"].format == "huggingface"
        assert len(loaded["train"].content["annotations"]) == sum(map(len, data.values()))
        assert loaded["train"].names == (["cell", "debris"] if kind == "columns" else ["object"])
        for image in loaded["train"].content["images"]:
            assert (loaded["train"].image_root / image["file_name"]).is_file()


def test_json_of_all_kinds_is_told_apart(tmp_path: Path) -> None:
    from mask2former.data.formats.sniffing import json_kind

    assert json_kind(save_json(tmp_path / "a.json", {"images": [], "categories": [], "annotations": []})) == "coco"
    assert json_kind(save_json(tmp_path / "b.json", {"x": 1})) is None
    assert json_kind(save_text(tmp_path / "c.json", "\ufeff" + json.dumps([{"data": {}}]))) == "label_studio"


def test_yolo_splits_inside_each_other_and_classes_that_are_no_whole_numbers(tmp_path: Path) -> None:
    """With train "images" and val "images/val", training must not see what validates it."""
    for name in ("a", "val/b"):
        save_image(tmp_path / f"images/{name}.png")
        save_text(tmp_path / f"labels/{name}.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    save_text(tmp_path / "data.yaml", "train: images\nval: images/val\nnames: [cell, debris]\n")
    loaded = load_data(tmp_path)
    assert {split: [i["file_name"] for i in data.content["images"]] for split, data in loaded.items()} == {
        "train": ["images/a.png"],
        "val": ["images/val/b.png"],
    }
    for wrong in ("1.7", "-0.5", "nan"):
        save_text(tmp_path / "labels/a.txt", f"{wrong} 0.1 0.1 0.9 0.1 0.9 0.9\n")
        with pytest.raises(BadRecordError, match="is not one of those of the names"):
            load_data(tmp_path)


# ---------------------------------------------------------------- files of one name, and nothing inside
def test_images_that_differ_in_the_suffix_only_are_ambiguous(tmp_path: Path) -> None:
    writers = {"yolo": samples.write_yolo, "maps": samples.write_label_maps, "voc": samples.write_voc}
    for name, write in writers.items():
        write(tmp_path / name, samples.sample(0))
        image = next(path for path in (tmp_path / name).rglob("im0.png") if "mage" in path.parent.as_posix()[-20:])
        save_image(image.with_suffix(".bmp"), 5)
        with pytest.raises(BadRecordError, match=r"im0\.\w+: has the same name as im0\.\w+, so .* ambiguous; rename"):
            load_data(tmp_path / name)
        problems: list[BadRecordError] = []
        data = next(iter(load_data(tmp_path / name, problems=problems).values()))
        assert [image["file_name"][-7:] for image in data.content["images"]] == ["im1.png"] and len(problems) == 1


def test_images_of_one_name_without_labels_are_both_kept(tmp_path: Path) -> None:
    samples.write_yolo(tmp_path, samples.sample(0))
    for name in ("empty.png", "empty.bmp"):
        save_image(tmp_path / "images" / "train" / name)
    data = load_data(tmp_path)["train"]
    assert {Path(image["file_name"]).name for image in data.content["images"]} >= {"empty.png", "empty.bmp"}


@pytest.mark.parametrize("kind", ["labelme", "cvat", "polygon"])
def test_objects_without_pixels_are_left_out(tmp_path: Path, kind: str) -> None:
    data = samples.sample(0)
    if kind == "labelme":
        samples.write_labelme_masks(tmp_path, data)
        content = json.loads((tmp_path / "im0.json").read_text())
        buffer = io.BytesIO()
        Image.new("L", (4, 4)).save(buffer, "PNG")
        empty = {
            **content["shapes"][0],
            "points": [[1, 1], [4, 4]],
            "mask": base64.b64encode(buffer.getvalue()).decode(),
        }
        save_json(tmp_path / "im0.json", {**content, "shapes": [*content["shapes"], empty]})
    else:
        extra = '<mask label="cell" rle="16" left="1" top="1" width="4" height="4"/>'
        if kind == "polygon":
            extra = '<polygon label="cell" points="-9,-9;-5,-9;-5,-5"/>'
        samples.write_cvat(tmp_path, data)
        file = tmp_path / "annotations.xml"
        save_text(file, file.read_text().replace("</image>", f"{extra}</image>", 1))
    loaded = load_data(tmp_path)["all"]
    assert all(entry["area"] > 0 for entry in loaded.content["annotations"])
    assert len(loaded.content["annotations"]) == sum(len(things) for things in data.values())
    assert any("1 objects without a pixel inside their image" in note for note in loaded.notes)
    problems: list[BadRecordError] = []
    load_data(tmp_path, problems=problems)
    assert len(problems) == 1 and "no pixel inside the image" in str(problems[0])


def test_images_that_a_saved_dataset_names_lie_in_its_directory(tmp_path: Path) -> None:
    reader = object.__new__(huggingface._Reader)
    reader.place = tmp_path / "set"
    save_image(tmp_path / "set" / "a.png")
    save_image(tmp_path / "secret.png")
    assert reader._named("a.png", "row 0") == (tmp_path / "set" / "a.png").read_bytes()
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "/etc/hostname", "link.png"):
        with pytest.raises(BadRecordError, match="lies outside of"):
            reader._named(name, "row 0")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    with pytest.raises(BadRecordError, match="pipe or device"):
        reader._named("pipe.png", "row 0")


def test_pipes_are_no_training_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="pipe or device"):
        load_data(tmp_path / "a.json")
    with pytest.raises(BadRecordError, match="pipe or device"):
        read_json_object(str(tmp_path / "a.json"))
