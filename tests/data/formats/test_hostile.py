"""Files that want to do harm are refused quickly, with an error that names the file."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from mask2former.data.formats import load_data
from mask2former.data.formats.coco_data import Context
from mask2former.data.formats.files import Tree
from mask2former.data.formats.huggingface import load_dataset
from mask2former.errors import BadRecordError
from tests.data.formats import samples
from tests.data.formats.samples import save_array, save_image, save_json, save_text

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lol">ENTITIES]>
<annotations><image name="&l;" width="1" height="1"/></annotations>""".replace(
    "ENTITIES", "".join(f'<!ENTITY {chr(97 + n)} "{f"&{chr(96 + n)};" * 10}">' for n in range(1, 12))
)
EXTERNAL = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<annotations><image name="&x;" width="1" height="1"/></annotations>"""


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """Of this process alone, so that other work on the machine does not matter."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", [LAUGHS, EXTERNAL])
def test_entities(tmp_path: Path, text: str) -> None:
    save_image(tmp_path / "a.png")
    save_text(tmp_path / "annotations.xml", text)
    with pytest.raises(BadRecordError, match=r"annotations\.xml: declares a document type or entities"):
        load_data(tmp_path)


def test_deep_xml_and_truncated_xml(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_text(tmp_path / "annotations.xml", "<annotations>" + "<a>" * 100_000)
    with pytest.raises(BadRecordError, match="nested too deeply"):
        load_data(tmp_path)
    save_text(tmp_path / "annotations.xml", "<annotations><image name='a.png'")
    with pytest.raises(BadRecordError, match="is not an XML file"):
        load_data(tmp_path)


NAMES = ["../../etc/passwd", "/etc/passwd", "..\\..\\secret.png", "../outside.png", "images/../../outside.png"]


def coco_with(root: Path, name: str) -> None:
    content = samples.coco_content(samples.sample(0))
    content["images"][0]["file_name"] = name
    save_image(root / "im1.png")
    save_json(root / "a.json", content)


def labelme_with(root: Path, name: str) -> None:
    save_json(root / "a.json", {**samples.labelme_content("a", []), "imagePath": name})


def cvat_with(root: Path, name: str) -> None:
    save_text(root / "a.xml", f'<annotations><image name="{name}" width="96" height="64"/></annotations>')


def label_studio_with(root: Path, name: str) -> None:
    save_json(root / "a.json", [{"data": {"image": name}, "annotations": [{"result": []}]}])


@pytest.mark.parametrize("write", [coco_with, labelme_with, cvat_with, label_studio_with])
@pytest.mark.parametrize("name", NAMES)
def test_names_outside_of_the_data(tmp_path: Path, write: Callable[[Path, str], None], name: str) -> None:
    save_image(tmp_path / "outside.png")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", name)
    with pytest.raises(BadRecordError, match=r"a\.(json|xml): .*(lies outside of|does not exist below)"):
        load_data(tmp_path / "data")


@pytest.mark.parametrize("name", ["", None, 7, ["a.png"], "a\0.png", "x" * 10_000])
def test_names_that_are_none(tmp_path: Path, name: object) -> None:
    content = samples.coco_content(samples.sample(0))
    content["images"][0]["file_name"] = name
    save_json(tmp_path / "a.json", content)
    with pytest.raises(BadRecordError, match="is not the file name of an image"):
        load_data(tmp_path)


def test_yolo_lists_stay_inside(tmp_path: Path) -> None:
    save_image(tmp_path / "outside.png")
    samples.write_yolo(tmp_path / "data", samples.sample(0))
    save_text(tmp_path / "data" / "data.yaml", "train: list.txt\nnames: [cell, debris]\n")
    save_text(tmp_path / "data" / "list.txt", "../outside.png\n")
    with pytest.raises(BadRecordError, match=r"list\.txt: .*lies outside of"):
        load_data(tmp_path / "data")


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "categories": [], "annotations": ' + "[" * 100_000,
        '{"shapes": [], "imagePath": "a.png", "x": ' + "[" * 100_000,
        '[{"data": ' + "[" * 100_000,
    ],
)
def test_deep_json(tmp_path: Path, text: str) -> None:
    save_image(tmp_path / "a.png")
    save_text(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=r"a\.json"):
        load_data(tmp_path)


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def test_huge_sizes(tmp_path: Path) -> None:
    samples.write_label_maps(tmp_path / "a", samples.sample(0))
    (tmp_path / "a" / "labels" / "im0.png").write_bytes(png_of_size(100_000, 100_000))
    with pytest.raises(BadRecordError, match=r"labels/im0\.png: cannot be read"):
        load_data(tmp_path / "a")
    samples.write_coco(tmp_path / "b", samples.sample(0))
    content = samples.coco_content(samples.sample(0))
    content["images"][0].update(height=10**12, width=10**12)
    save_json(tmp_path / "b" / "annotations" / "instances.json", content)
    with pytest.raises(BadRecordError, match=r"instances\.json: image 1: height must be"):
        load_data(tmp_path / "b")
    np.lib.format.open_memmap(  # sparse: takes no space
        tmp_path / "big.npy", mode="w+", dtype=np.uint8, shape=(100_000, 20_000)
    )
    save_image(tmp_path / "c" / "images" / "a.png")
    (tmp_path / "c" / "labels").mkdir()
    (tmp_path / "big.npy").rename(tmp_path / "c" / "labels" / "a.npy")
    with pytest.raises(BadRecordError, match=r"a\.npy: has the shape .*too large"):
        load_data(tmp_path / "c")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, "x", None])
def test_coordinates(tmp_path: Path, value: object) -> None:
    content = samples.coco_content(samples.sample(0))
    content["annotations"][0]["segmentation"][0][2] = value
    samples.save_images(tmp_path, samples.sample(0))
    save_json(tmp_path / "a.json", content)
    with pytest.raises(BadRecordError, match=r"a\.json: annotation 1: polygon 0"):
        load_data(tmp_path)


def test_yaml_with_code_and_aliases(tmp_path: Path) -> None:
    samples.write_yolo(tmp_path, samples.sample(0))
    save_text(tmp_path / "data.yaml", f"names: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(BadRecordError, match=r"data\.yaml.*os\.mkdir is not accepted"):
        load_data(tmp_path)
    assert not (tmp_path / "made").exists()
    laughs = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)}, ' * 9}]\n" for n in range(9)
    )
    save_text(tmp_path / "data.yaml", laughs + "names: *j\n")
    with pytest.raises(BadRecordError, match=r"data\.yaml: .*more than 200,000 values"):
        load_data(tmp_path)


def test_encodings_that_do_not_exist(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_text(tmp_path / "annotations.xml", '<?xml version="1.0" encoding="utf-9"?>\n<annotations></annotations>')
    with pytest.raises(BadRecordError, match=r"annotations\.xml: is not an XML file"):
        load_data(tmp_path)


@pytest.mark.parametrize("annotations", [1.5, [{"category_id": [3]}], [{"category_id": {}}], [5]])
def test_coco_annotations_of_other_types(tmp_path: Path, annotations: object) -> None:
    content = samples.coco_content(samples.sample(0))
    samples.save_images(tmp_path, samples.sample(0))
    save_json(tmp_path / "a.json", {**content, "annotations": annotations})
    with pytest.raises(BadRecordError, match=r"a\.json"):
        load_data(tmp_path)


@pytest.mark.parametrize("kind", [[], {}, 5, True])
def test_labelme_shapes_of_other_types(tmp_path: Path, kind: object) -> None:
    shape = {"label": "cell", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": kind or ["polygon"]}
    save_image(tmp_path / "a.png")
    save_json(tmp_path / "a.json", samples.labelme_content("a", [shape]))
    with pytest.raises(BadRecordError, match=r"a\.json: .*shape_type must be a text"):
        load_data(tmp_path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")

    class Attack:
        def __reduce__(self) -> tuple:
            return Path.mkdir, (tmp_path / "made",)

    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels" / "a.npy", np.array(Attack(), dtype=object), allow_pickle=True)
    with pytest.raises(BadRecordError, match=r"a\.npy: is not an array of numbers"):
        load_data(tmp_path)
    assert not (tmp_path / "made").exists()


def test_an_image_as_label_map(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")
    noise = np.random.default_rng(0).integers(0, 1 << 24, (400, 400))
    save_array(tmp_path / "labels" / "a.npy", noise)
    save_array(tmp_path / "images" / "a.png", np.zeros((400, 400), np.uint8))
    with pytest.raises(BadRecordError, match="it is an image and not a label map"):
        load_data(tmp_path)


def test_splits_of_hugging_face_stay_inside(tmp_path: Path) -> None:
    class Split:
        features: ClassVar = {"image": type("Image", (), {})(), "label_map": type("Image", (), {})()}

    for name in ("../outside", "/tmp/outside", ".."):
        with pytest.raises(ValueError, match="no name of a split"):
            load_dataset({name: Split()}, Context(Tree(tmp_path), options={"image_dir": tmp_path / "images"}))
