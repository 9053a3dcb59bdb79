"""A trained model becomes a bundled one: files, row of the zoo, card and navigation."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import bundle_model
import pytest
import torch
from safetensors.torch import save_file

from mask2former import load_config, zoo

ROOT = Path(zoo.__file__).parents[1]
NEW = {"backbone": "EfficientNet-Lite0", "schedule": "10 steps of 2", "license": "CC0 1.0", "dataset": ""}
CARD = "# Model card: shapes\n\n<!-- scores -->\nold\n<!-- end of scores -->\n\nThe end.\n"
RESULTS = {
    "shapes_val_panoptic": {
        "panoptic_seg": {"PQ": 61.25, "PQ_th": 50.0, "PQ_st": 80.04, "SQ": 1.0},
        "segm": {"AP": 40.0, "APl": None},
        "sem_seg": {"mIoU": 70.55},
    }
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a directory with the table of the zoo, whose bundled model is there too."""
    root = tmp_path / "checkout"
    (root / "mask2former/bundled/nuclei").mkdir(parents=True)
    shutil.copyfile(ROOT / "mask2former/zoo.json", root / "mask2former/zoo.json")
    rows = json.loads((root / "mask2former/zoo.json").read_text("utf-8"))
    rows["models"] = [row for row in rows["models"] if row["name"] != "shapes"]
    (root / "mask2former/zoo.json").write_text(bundle_model.zoo_text(rows), "utf-8")
    (root / "mask2former/bundled/nuclei/README.md").write_text(CARD.replace("shapes", "nuclei"), "utf-8")
    return root


def packed(directory: Path, config: str = "shapes/panoptic_efficientnet_lite0.yaml") -> Path:
    """Write a packed model of 24 numbers."""
    directory.mkdir()
    (directory / "config.yaml").write_text(load_config(config).dump(), "utf-8")
    (directory / "classes.json").write_text('["disk"]', "utf-8")
    save_file({"a": torch.zeros(4, 5), "b": torch.ones(4)}, directory / "model.safetensors")
    return directory


def scores(directory: Path) -> Path:
    file = directory / "metrics.json"
    file.write_text(json.dumps(RESULTS), "utf-8")
    return file


def test_a_new_model(checkout: Path, tmp_path: Path) -> None:
    before = json.loads((checkout / "mask2former/zoo.json").read_text("utf-8"))
    card = tmp_path / "card.md"
    card.write_text(CARD, "utf-8")
    source = packed(tmp_path / "packed")
    digest = bundle_model.bundle(source, "shapes", checkout, card, scores(tmp_path), NEW)
    directory = checkout / "mask2former/bundled/shapes"
    assert sorted(path.name for path in directory.iterdir()) == sorted([*bundle_model.FILES, "README.md"])
    assert digest == hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    after = json.loads((checkout / "mask2former/zoo.json").read_text("utf-8"))
    assert after["models"][:-1] == before["models"] and after["backbones"] == before["backbones"]
    entry = zoo.ModelEntry(**after["models"][-1])
    assert entry.bundled and (entry.name, entry.task, entry.dataset, entry.queries) == (
        "shapes",
        "panoptic",
        "shapes",
        100,
    )
    assert entry.metrics == {"PQ": 61.2, "AP": 40.0, "mIoU": 70.5} and entry.sha256 == digest
    text = (directory / "README.md").read_text("utf-8")
    assert (
        "| PQ | PQ of things | PQ of stuff | AP | mIoU |\n|" in text and "| 61.2 | 50.0 | 80.0 | 40.0 | 70.5 |" in text
    )
    assert "old" not in text and text.endswith("The end.\n") and "0.0 million parameters" in text
    # Once more, with other weights and no new numbers.
    save_file({"a": torch.ones(4, 5)}, source / "model.safetensors")
    again = bundle_model.bundle(source, "shapes", checkout, None, None, {"schedule": "20 steps"})
    row = json.loads((checkout / "mask2former/zoo.json").read_text("utf-8"))["models"][-1]
    assert again != digest and row == after["models"][-1] | {"sha256": again, "schedule": "20 steps"}
    assert (directory / "README.md").read_text("utf-8") == text


def test_a_model_of_clips(checkout: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(CARD, "utf-8")
    source = packed(tmp_path / "packed", "shapes/video_efficientnet_lite0.yaml")
    bundle_model.bundle(source, "shapes-clips", checkout, card, scores(tmp_path), NEW | {"dataset": "shapes"})
    row = json.loads((checkout / "mask2former/zoo.json").read_text("utf-8"))["models"][-1]
    assert (row["name"], row["task"], row["dataset"]) == ("shapes-clips", "video instance", "shapes")
    assert row["metrics"] == {"AP": 40.0}


def test_statistics_of_norms_are_no_parameters(tmp_path: Path) -> None:
    tensors = {"n.weight": torch.ones(200_000), "n.running_mean": torch.ones(300_000), "n.running_var": torch.ones(9)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "\n0.2 million parameters" in bundle_model.card_table({"AP": 1.0}, tmp_path / "model.safetensors")


def test_other_rows_keep_their_text(checkout: Path, tmp_path: Path) -> None:
    lines = (checkout / "mask2former/zoo.json").read_text("utf-8").splitlines()
    source = packed(tmp_path / "packed", "nuclei/maskformer2_efficientnet_lite0.yaml")
    bundle_model.bundle(source, "nuclei", checkout, None, scores(tmp_path), {})
    changed = (checkout / "mask2former/zoo.json").read_text("utf-8").splitlines()
    different = [new for old, new in zip(lines, changed, strict=True) if old != new]
    assert len(different) == 1 and '"name": "nuclei"' in different[0] and '"metrics": {"AP": 40.0}' in different[0]


@pytest.mark.parametrize(
    ("name", "given", "content", "message"),
    [
        ("shapes", NEW | {"license": ""}, RESULTS, "give --license"),
        ("coco-panoptic-r50", NEW, RESULTS, "published model"),
        ("shapes", NEW, {}, "results of one dataset"),
        ("shapes", NEW, {"a": {"box": {"AP": 1.0}}}, "has none of PQ"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_written(
    checkout: Path, tmp_path: Path, name: str, given: dict[str, str], content: object, message: str
) -> None:
    card = tmp_path / "card.md"
    card.write_text(CARD, "utf-8")
    file = scores(tmp_path)
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=message):
        bundle_model.bundle(packed(tmp_path / "packed"), name, checkout, card, file, given)
    assert not (checkout / "mask2former/bundled" / name).exists()


def test_card_needs_a_place_for_numbers(checkout: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Model card: shapes\n", "utf-8")
    with pytest.raises(ValueError, match="end of scores"):
        bundle_model.bundle(packed(tmp_path / "packed"), "shapes", checkout, card, scores(tmp_path), NEW)


def test_card_gets_a_page_once() -> None:
    text = "nav:\n  - Models:\n      - Nuclei: mask2former/bundled/nuclei/README.md\n  - Inside:\n"
    page = "      - Shapes, a bundled model: mask2former/bundled/shapes/README.md\n"
    added = bundle_model.with_page(text, "shapes")
    assert added == text.replace("  - Inside", f"{page}  - Inside")
    assert bundle_model.with_page(added, "shapes") == added


def test_table_is_written_as_it_is() -> None:
    text = (ROOT / "mask2former/zoo.json").read_text("utf-8")
    assert bundle_model.zoo_text(json.loads(text)) == text
