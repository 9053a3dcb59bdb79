"""Tables of objects: measures against scikit-image, CSV, pandas."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from mask2former.result_tables import columns, measure_shape, rows, write_table
from mask2former.results import InstanceResult, Result
from mask2former.structures.classes import ClassTable

from .stub_model import ALL_PARTS, StubModel

CLASSES = ClassTable(("cell", "sky"), is_thing=(True, False), dataset_ids=(3, 40))
H, W = 40, 60


def stub(parts: tuple[str, ...] = ALL_PARTS, **extra: Any) -> Result:
    image = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return Result.from_output(image, StubModel(parts).answer(6, 10), CLASSES, **extra)


def blobs(seed: int, count: int = 4, gray: bool = False) -> Result:
    """Return a result with ellipses that do not overlap, in cells of 40 x 15 pixels, with random holes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    if gray:
        image[:] = image[:, :, :1]
    y, x = np.indices((H, W))
    masks = np.zeros((count, H, W), bool)
    for i in range(count):
        a, b = rng.uniform(2, 7), rng.uniform(2, 18)
        masks[i] = ((x - 15 * i - 7) / a) ** 2 + ((y - 19) / b) ** 2 < 1
    masks &= rng.random(masks.shape) < 0.97
    n = len(masks)
    labels, scores = np.zeros(n, np.int64), np.linspace(0.9, 0.5, n, dtype=np.float32)
    return Result(image, CLASSES, InstanceResult.from_masks(masks, scores, labels, ("cell",) * n))


@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_measures_are_those_of_scikit_image(seed: int, gray: bool) -> None:
    result = blobs(seed, gray=gray)
    intensity = result.image.mean(axis=2)
    label_map = result.objects().label_map()
    table = rows(result, intensity=True)
    assert [row["id"] for row in table] == [1, 2, 3, 4]
    for row, region, outline in zip(table, regionprops(label_map, intensity), result.to_shapely(), strict=True):
        assert row["id"] == region.label and row["area"] == region.area
        top, left, bottom, right = region.bbox
        assert [row[f"box_{key}"] for key in ("x", "y", "width", "height")] == [left, top, right - left, bottom - top]
        expected = {
            "centroid_y": region.centroid[0],
            "centroid_x": region.centroid[1],
            "perimeter": region.perimeter,
            "equivalent_diameter": region.equivalent_diameter_area,
            "major_axis": region.axis_major_length,
            "minor_axis": region.axis_minor_length,
            "eccentricity": region.eccentricity,
            "intensity_mean": region.intensity_mean,
            "intensity_min": region.intensity_min,
            "intensity_max": region.intensity_max,
            "intensity_std": region.intensity_std,
            "intensity_sum": intensity[label_map == region.label].sum(),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)
        # scikit-image counts the pixels of the hull, which differs for small regions.
        assert row["solidity"] == pytest.approx(row["area"] / outline.convex_hull.area)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_perimeter_and_axes_of_any_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random(rng.integers(1, 9, 2)) < rng.random()
    if bits.any():
        (region,) = regionprops(bits.astype(np.uint8))
        shape = measure_shape(bits[region.slice])
        assert shape["perimeter"] == pytest.approx(region.perimeter)
        assert shape["major_axis"] == pytest.approx(region.axis_major_length, abs=1e-6)
        assert shape["minor_axis"] == pytest.approx(region.axis_minor_length, abs=1e-6)
        assert 0 <= shape["eccentricity"] <= 1 and 0 < shape["solidity"] <= 1


def test_solidity_of_shapes_one_can_calculate() -> None:
    corner = np.array([[1, 0], [1, 1]], bool)
    assert measure_shape(corner)["solidity"] == pytest.approx(3 / 3.5)
    assert measure_shape(np.ones((1, 1), bool)) == pytest.approx(
        {
            "centroid_x": 0,
            "centroid_y": 0,
            "perimeter": 0,
            "equivalent_diameter": math.sqrt(4 / math.pi),
            "major_axis": 0,
            "minor_axis": 0,
            "eccentricity": 0,
            "solidity": 1,
        }
    )


def test_rows_agree_with_coco_records_for_every_task() -> None:
    result = stub(path=Path("dir/x.png"))
    for task in ("instance", "panoptic", "semantic"):
        table, records = result.to_rows(task), result.to_coco(task=task)
        assert [row["area"] for row in table] == [record["area"] for record in records]
        boxes = [[row[f"box_{key}"] for key in ("x", "y", "width", "height")] for row in table]
        assert boxes == [record["bbox"] for record in records]
        assert {row["image"] for row in table} == {"x.png"}
    assert result.to_rows() == result.to_rows("panoptic")
    assert [(row["id"], row["class"]) for row in result.to_rows("panoptic")] == [(7, "cell"), (9, "sky")]
    semantic = result.to_rows("semantic")
    assert [(row["id"], row["class"], row["score"]) for row in semantic] == [(1, "cell", None), (2, "sky", None)]
    empty = result.to_rows("instance")[2]
    assert empty["area"] == 0 and empty["perimeter"] is None and list(empty) == columns()
    with pytest.raises(ValueError, match="no panoptic part"):
        stub(("instances",)).to_rows("panoptic")


def test_units() -> None:
    result = blobs(1)
    plain, scaled = result.to_rows()[0], result.to_rows(pixel_size=0.5)[0]
    assert scaled["area"] == plain["area"] and scaled["area_um2"] == plain["area"] / 4
    for name in ("perimeter", "equivalent_diameter", "major_axis", "minor_axis"):
        assert scaled[f"{name}_um"] == plain[name] / 2 and name not in scaled
    for name in ("centroid_x", "box_width", "solidity"):
        assert scaled[name] == plain[name]
    for wrong in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="pixel_size"):
            result.to_rows(pixel_size=wrong)


def test_intensity_of_another_image() -> None:
    result = blobs(2)
    original = np.random.default_rng(3).integers(0, 65536, (H, W), dtype=np.uint16)
    mask = result.instances.masks[0]
    row = result.to_rows(intensity=original)[0]
    assert row["intensity_sum"] == original[mask].sum(dtype=np.int64) and row["intensity_max"] == original[mask].max()
    channels = np.stack([original, original // 2], axis=2)
    row = result.to_rows(intensity=channels)[0]
    assert row["intensity_min_1"] == original[mask].min() // 2 and "intensity_mean_0" in row
    with pytest.raises(ValueError, match=r"intensity image.*\(40, 60\)"):
        result.to_rows(intensity=original[1:])


def test_dataframe_has_types_and_the_same_columns_without_objects() -> None:
    frame = blobs(4).to_dataframe(intensity=True, pixel_size=0.3)
    assert list(frame.columns) == columns(channels=0, pixel_size=0.3) and len(frame) == 4
    assert frame["area"].dtype.kind == "i" and frame["perimeter_um"].dtype.kind == "f"
    assert frame.groupby("class")["area"].sum()["cell"] == frame["area"].sum()
    none = blobs(4).filter(1.0).to_dataframe(intensity=True)
    assert len(none) == 0 and list(none.columns) == columns(channels=0)


def test_missing_pandas_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install"):
        stub().to_dataframe()


def test_csv_comes_back_in_pandas(tmp_path: Path) -> None:
    result = blobs(5)
    (path,) = result.save(tmp_path / "out" / "objects.csv", intensity=True, pixel_size=0.25)
    read, made = pandas.read_csv(path), result.to_dataframe(intensity=True, pixel_size=0.25)
    assert list(read.columns) == list(made.columns)
    for name in made.columns:
        if made[name].dtype.kind in "if":
            np.testing.assert_allclose(read[name], made[name], rtol=1e-6)
    (path,) = result.filter(1.0).save(tmp_path / "none.csv")
    assert path.read_bytes() == (",".join(columns()) + "\n").encode()
    (path,) = stub().save(tmp_path / "semantic.csv", task="semantic")
    assert pandas.read_csv(path)["score"].isna().all()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_texts_are_no_formulas(tmp_path: Path, name: str) -> None:
    result = stub(("instances",))
    instances = result.instances
    named = InstanceResult(instances.patches, instances.scores, instances.labels, (name, "a,b", 'c"d'))
    table = rows(Result(result.image, CLASSES, named), image=f"{name}.png")
    with write_table(tmp_path / "t.csv", table).open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    safe = "'" + name.replace("\r", "\n")  # after a lone carriage return readers would begin a new row
    assert [row["class"] for row in read] == [safe, "a,b", 'c"d']
    assert {row["image"] for row in read} == {f"{safe}.png"}


def test_one_table_of_many_results(tmp_path: Path) -> None:
    results = [blobs(6), blobs(7, count=2), blobs(8, count=0)]
    table = (row for k, result in enumerate(results) for row in rows(result, image=f"sub/{k}.png"))
    read = pandas.read_csv(write_table(tmp_path / "t.csv", table))
    assert read["image"].tolist() == ["sub/0.png"] * 4 + ["sub/1.png"] * 2
    assert pandas.read_csv(write_table(tmp_path / "none.csv", [])).columns.tolist() == columns()
    mixed = [*rows(results[0]), *rows(results[1], intensity=True)]
    with pytest.raises(ValueError, match="row 5 has other columns than the table: intensity_max"):
        write_table(tmp_path / "mixed.csv", mixed)
    assert not (tmp_path / "mixed.csv").exists()
