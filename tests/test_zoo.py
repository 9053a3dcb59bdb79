"""The table of published models: names, files, checksums, and what happens without network."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former import zoo
from mask2former.config import find_config
from mask2former.engine.errors import CorruptCheckpointError
from mask2former.engine.weight_files import locate

PUBLISHED = [name for name in zoo.list_models() if not zoo.lookup(name).bundled]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(zoo.ENVIRONMENT, raising=False)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answers instead of the network: {"body": bytes} or {"error": exception}; counts the calls."""
    answers: dict[str, Any] = {"calls": 0}

    class Answer(io.BytesIO):
        headers = {"Content-Length": "5"}

    def urlopen(url: str, timeout: float) -> Answer:
        answers["calls"] += 1
        if "error" in answers:
            raise answers["error"]
        return Answer(answers["body"])

    monkeypatch.setattr(zoo.urllib.request, "urlopen", urlopen)
    return answers


def entry_for(body: bytes, name: str = "coco-panoptic-r50") -> zoo.ModelEntry:
    """The entry, as if its published file had these contents."""
    return replace(zoo.lookup(name), md5_prefix=hashlib.md5(body).hexdigest()[:6])


def test_table_holds_all_published_models_once() -> None:
    assert len(PUBLISHED) == 59 and len(zoo.list_models()) == 60
    entries = [zoo.lookup(name) for name in PUBLISHED]
    for attribute in ("name", "config", "weights", "filename", "model_id"):
        assert len({getattr(entry, attribute) for entry in entries}) == 59, attribute
    for entry in entries:
        assert entry.filename == f"model_final_{entry.md5_prefix}.pkl"
        assert entry.metrics and all(20 < value < 90 for value in entry.metrics.values())
        assert entry.queries == (200 if "swin-l" in entry.name and "semantic" not in entry.name else 100)
        assert entry.name.split("-")[0] in (
            "coco",
            "ade20k",
            "cityscapes",
            "mapillary",
            "ytvis2019",
            "ytvis2021",
        )


def test_facts_of_some_models() -> None:
    entry = zoo.lookup("coco-instance-swin-l")
    assert entry.config == "coco/instance-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml"
    assert entry.metrics == {"AP": 50.1, "boundary AP": 36.2}
    assert entry.md5_prefix == "e5f453" and entry.schedule == "100 epochs"
    assert zoo.lookup("ade20k-semantic-swin-t").metrics == {"mIoU": 47.7, "mIoU (ms+flip)": 49.6}
    # Two slips of the original table, put right: a file name, and a backbone.
    assert zoo.lookup("mapillary-semantic-r50").config.endswith("maskformer2_R50_bs16_300k.yaml")
    assert zoo.lookup("ade20k-instance-swin-l").backbone == "Swin-L (IN21k)"


def test_table_equals_the_published_one(shared_dir: Path) -> None:
    rows = json.loads((shared_dir / "parity" / "zoo.json").read_text())["rows"]
    by_url = {zoo.lookup(name).weights: zoo.lookup(name) for name in PUBLISHED}
    assert len(rows) == len(by_url) == 59
    for row in rows:
        entry = by_url[row["url"]]
        assert entry.model_id == row["model id"]
        for metric in ("PQ", "AP", "AP50", "mIoU", "mIoU (ms+flip)"):
            assert entry.metrics.get(metric) == (float(row[metric]) if metric in row else None)
        if "mapillary-vistas/semantic" not in entry.config:
            assert f"configs/{entry.config}" == row["config"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("COCO_Panoptic_R50", "coco-panoptic-r50"),
        ("cityscapes-panoptic-swin-b", "cityscapes-panoptic-swin-b-in21k"),
        ("coco-panoptic-swin-b", "coco-panoptic-swin-b"),
        ("coco-panoptic-swin-l-in21k", "coco-panoptic-swin-l"),
        ("configs/coco/instance-segmentation/maskformer2_R101_bs16_50ep.yaml", "coco-instance-r101"),
        ("nuclei", "nuclei"),
    ],
)
def test_names_are_forgiving(given: str, found: str) -> None:
    assert zoo.lookup(given).name == found


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'coco-panoptic-r52'.*coco-panoptic-r50"):
        zoo.lookup("coco-panoptic-r52")
    with pytest.raises(ValueError, match="list_models"):
        zoo.lookup("zzz")


def test_configurations_exist_where_their_family_does() -> None:
    root = find_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml").parents[2]
    entries = [zoo.lookup(name) for name in zoo.list_models()]
    present = [e for e in entries if e.bundled or (root / e.config).parent.is_dir()]
    assert len(present) >= 15  # the COCO families and the bundled model
    assert [e.name for e in present if not find_config(e.config_file).is_file()] == []


def test_download_is_verified_and_cached(network: dict[str, Any], tmp_path: Path) -> None:
    entry = entry_for(b"hello")
    network["body"] = b"hello"
    file = zoo.resolve_weights(entry)
    assert file.read_bytes() == b"hello"
    assert file == tmp_path / "cache" / entry.weights.removeprefix("https://dl.fbaipublicfiles.com/")
    assert zoo.resolve_weights(entry) == file and network["calls"] == 1


def test_wrong_download_is_refused_and_not_kept(network: dict[str, Any], tmp_path: Path) -> None:
    network["body"] = b"<html>404</html>"
    entry = zoo.lookup("coco-panoptic-r50")
    with pytest.raises(CorruptCheckpointError, match="94dc52") as error:
        zoo.resolve_weights(entry)
    assert entry.weights in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.pkl")) and not list((tmp_path / "cache").rglob("*.tmp"))


def test_damaged_cache_is_noticed(network: dict[str, Any]) -> None:
    entry = entry_for(b"hello")
    network["body"] = b"hello"
    zoo.resolve_weights(entry).write_bytes(b"hell")
    with pytest.raises(CorruptCheckpointError, match="Delete it"):
        zoo.resolve_weights(entry)


def test_sha256_is_used_where_known(network: dict[str, Any]) -> None:
    network["body"] = b"hello"
    good = replace(zoo.lookup("coco-panoptic-r50"), sha256=hashlib.sha256(b"hello").hexdigest())
    assert zoo.resolve_weights(good).read_bytes() == b"hello"
    with pytest.raises(CorruptCheckpointError, match="sha256"):
        zoo.resolve_weights(replace(good, sha256="0" * 64))


def test_without_network_the_error_says_what_to_do(network: dict[str, Any], tmp_path: Path) -> None:
    network["error"] = urllib.error.URLError("no route")
    entry = zoo.lookup("coco-panoptic-r50")
    with pytest.raises(FileNotFoundError) as error:
        zoo.resolve_weights("coco-panoptic-r50")
    text = str(error.value)
    place = tmp_path / "cache" / entry.weights.removeprefix("https://dl.fbaipublicfiles.com/")
    assert entry.weights in text and str(place) in text and zoo.ENVIRONMENT in text
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x")  # put there by hand: found, and its checksum compared
    with pytest.raises(CorruptCheckpointError):
        zoo.resolve_weights("coco-panoptic-r50")


def test_own_folder_comes_first(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network["error"] = urllib.error.URLError("no route")
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path / "weights"))
    entry = entry_for(b"hello")
    with pytest.raises(FileNotFoundError, match="weights/model_final_94dc52.pkl"):
        zoo.resolve_weights(entry)
    folder = tmp_path / "weights"
    folder.mkdir()
    converted = folder / "coco-panoptic-r50.safetensors"
    converted.write_bytes(b"anything")
    assert zoo.resolve_weights(entry) == converted
    original = folder / entry.filename
    original.write_bytes(b"hello")
    assert zoo.resolve_weights(entry) == original
    original.write_bytes(b"other")
    with pytest.raises(CorruptCheckpointError):
        zoo.resolve_weights(entry)


def test_file_names_in_configurations_find_the_model(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video configurations name a bare file, model_final_3c8ec9.pkl."""
    network["error"] = urllib.error.URLError("no route")
    assert zoo.entry_of_file("model_final_3c8ec9.pkl") == zoo.lookup("coco-instance-r50")
    assert zoo.entry_of_file("model_final_000000.pkl") is None
    with pytest.raises(FileNotFoundError, match="coco-instance-r50"):
        locate("model_final_3c8ec9.pkl")
    with pytest.raises(FileNotFoundError, match="coco-instance-r50"):
        locate(zoo.lookup("coco-instance-r50").weights)
    monkeypatch.chdir(tmp_path)
    Path("model_final_3c8ec9.pkl").write_bytes(b"mine")
    assert locate("model_final_3c8ec9.pkl") == Path("model_final_3c8ec9.pkl")


def test_bundled_model_lies_in_the_package(network: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.lookup("nuclei")
    package = Path(zoo.__file__).parent
    assert entry.bundled and Path(entry.config_file) == package / "bundled" / "nuclei" / "config.yaml"
    monkeypatch.setattr(zoo, "_PACKAGE", package / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        zoo.resolve_weights(entry)
    assert network["calls"] == 0


def test_names_of_the_zoo_serve_as_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mask2former.engine.weight_files import locate

    monkeypatch.setattr(zoo, "resolve_weights", lambda entry: tmp_path / entry.filename)
    assert locate("coco-panoptic-r50").name == "model_final_94dc52.pkl"
