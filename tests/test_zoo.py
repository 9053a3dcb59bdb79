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

from mask2former import Segmenter, zoo
from mask2former.checkpoint.reading import locate
from mask2former.config import find_config, load_config
from mask2former.errors import CorruptCheckpointError
from mask2former.model_source import DEFAULT_MODEL
from mask2former.utils import downloads

FACTS = Path(__file__).parent / "facts"
PUBLISHED = [name for name in zoo.list_models() if not zoo.lookup(name).bundled]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(zoo.ENVIRONMENT, raising=False)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answers instead of the network: {"body": bytes} or {"error": exception}; counts the calls.

    The announced length is answers["length"], by default 5.
    """
    answers: dict[str, Any] = {"calls": 0}

    class Answer(io.BytesIO):
        def __init__(self) -> None:
            super().__init__(answers["body"])
            self.headers = {"Content-Length": str(answers.get("length", 5))}

    def opened(address: str) -> Answer:
        answers["calls"] += 1
        if "error" in answers:
            raise answers["error"]
        return Answer()

    monkeypatch.setattr(downloads, "_open", opened)
    return answers


def entry_for(body: bytes, name: str = "coco-panoptic-r50") -> zoo.ModelEntry:
    """The entry, as if its published file had these contents."""
    return replace(zoo.lookup(name), md5_prefix=hashlib.md5(body).hexdigest()[:6])


def test_table_holds_all_published_models_once() -> None:
    assert len(PUBLISHED) == 59 and len(zoo.list_models()) == 59 + len(zoo.list_bundled())
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


def test_table_equals_the_published_one() -> None:
    rows = json.loads((FACTS / "published_models.json").read_text())
    by_url = {zoo.lookup(name).weights: zoo.lookup(name) for name in PUBLISHED}
    assert set(rows) == set(by_url) and len(rows) == 59
    for url, row in rows.items():
        entry = by_url[url]
        assert entry.model_id == row["model id"]
        for metric in ("PQ", "AP", "AP50", "mIoU", "mIoU (ms+flip)"):
            assert entry.metrics.get(metric) == row["metrics"].get(metric), (url, metric)
        if "mapillary-vistas/semantic" not in entry.config:
            assert entry.config == row["config"]


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


def test_configurations_exist() -> None:
    for name in zoo.list_models():
        assert find_config(zoo.lookup(name).config_file).is_file(), name


def test_download_is_verified_and_cached(network: dict[str, Any], tmp_path: Path) -> None:
    entry = entry_for(b"hello")
    network["body"] = b"hello"
    file = zoo.resolve_weights(entry)
    assert file.read_bytes() == b"hello"
    assert file == downloads.cache_file(entry.weights) and file.is_relative_to(tmp_path / "cache")
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
    place = downloads.cache_file(entry.weights)
    assert entry.weights in text and str(place) in text and zoo.ENVIRONMENT in text
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x")  # put there by hand: found, and its checksum compared
    with pytest.raises(CorruptCheckpointError):
        zoo.resolve_weights("coco-panoptic-r50")


def test_files_of_detectron2s_cache_are_used_only_if_asked_for(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That cache ignores the host, so another server's file may lie there under the same name."""
    network["error"] = urllib.error.URLError("no route")
    entry = entry_for(b"hello")
    former = tmp_path / "cache" / entry.weights.removeprefix("https://dl.fbaipublicfiles.com/")
    former.parent.mkdir(parents=True)
    former.write_bytes(b"hello")
    with pytest.raises(FileNotFoundError, match=f"detectron2's cache has such a file; {zoo.ENVIRONMENT}="):
        zoo.resolve_weights(entry)
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path / "cache"))
    assert zoo.resolve_weights(entry) == former


def test_own_directory_comes_first(network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network["error"] = urllib.error.URLError("no route")
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path / "weights"))
    entry = entry_for(b"hello")
    with pytest.raises(FileNotFoundError, match="weights/model_final_94dc52.pkl"):
        zoo.resolve_weights(entry)
    directory = tmp_path / "weights"
    directory.mkdir()
    converted = directory / "coco-panoptic-r50.safetensors"
    converted.write_bytes(b"anything")
    assert zoo.resolve_weights(entry) == converted
    original = directory / entry.filename
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


def test_bundled_models_are_the_directories_of_the_package() -> None:
    directories = (Path(zoo.__file__).parent / "bundled").iterdir()
    assert set(zoo.list_bundled()) == {path.name for path in directories if path.is_dir()}
    assert zoo.list_bundled()[0] == DEFAULT_MODEL


@pytest.mark.parametrize("name", zoo.list_bundled())
def test_bundled_model_lies_in_the_package(name: str, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.lookup(name)
    package = Path(zoo.__file__).parent
    assert entry.bundled and Path(entry.config_file) == package / "bundled" / name / "config.yaml"
    monkeypatch.setattr(zoo, "_PACKAGE", package / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        zoo.resolve_weights(entry)
    assert network["calls"] == 0


def test_names_of_the_zoo_serve_as_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mask2former.checkpoint.reading import locate

    monkeypatch.setattr(zoo, "resolve_weights", lambda entry: tmp_path / entry.filename)
    assert locate("coco-panoptic-r50").name == "model_final_94dc52.pkl"


def test_names_by_task_and_dataset() -> None:
    assert len(set(zoo.list_models(task="video instance")) - set(zoo.list_bundled())) == 12
    by_task = [zoo.list_models(task=task) for task in ("panoptic", "instance", "semantic", "video instance")]
    assert sorted(name for names in by_task for name in names) == sorted(zoo.list_models())
    assert zoo.list_models("panoptic", "ade20k") == ["ade20k-panoptic-r50", "ade20k-panoptic-swin-l"]
    assert zoo.list_models(task="instance", dataset="nuclei") == ["nuclei"]
    assert zoo.list_models(task="panoptic", dataset="ytvis2019") == []
    with pytest.raises(ValueError, match=r"no models of task 'depth'.*panoptic, instance, semantic"):
        zoo.list_models(task="depth")
    with pytest.raises(ValueError, match=r"no models of dataset 'lvis'.*mapillary"):
        zoo.list_models(dataset="lvis")


def test_other_names_of_configurations_find_the_model() -> None:
    semantic = "mapillary-vistas/semantic-segmentation/"
    for name in ("maskformer_R50_bs16_300k.yaml", "maskformer2_R50_bs16_300k.yaml"):
        assert zoo.lookup(f"configs/{semantic}{name}").name == "mapillary-semantic-r50"
    aliases = [(entry, name) for entry in map(zoo.lookup, zoo.list_models()) for name in entry.config_aliases]
    assert len(aliases) == 2
    for entry, name in aliases:
        assert load_config(name).dump() == load_config(entry.config).dump()


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_agree_with_the_configuration(name: str) -> None:
    entry = zoo.lookup(name)
    model = load_config(entry.config).MODEL
    assert entry.queries == model.MASK_FORMER.NUM_OBJECT_QUERIES
    if entry.backbone.startswith("R"):
        assert model.BACKBONE.NAME == "build_resnet_backbone" and entry.backbone == f"R{model.RESNETS.DEPTH}"
    else:
        sizes = {"Swin-T": (96, 6), "Swin-S": (96, 18), "Swin-B": (128, 18), "Swin-L": (192, 18)}
        assert model.BACKBONE.NAME == "D2SwinTransformer"
        assert (model.SWIN.EMBED_DIM, model.SWIN.DEPTHS[2]) == sizes[entry.backbone.split()[0]]
    switches = model.MASK_FORMER.TEST
    if entry.task in ("panoptic", "instance", "semantic"):
        assert switches[f"{entry.task.upper()}_ON"]
    else:
        assert model.META_ARCHITECTURE == "VideoMaskFormer"


def test_every_pretrained_file_of_the_configurations_is_known() -> None:
    """MODEL.WEIGHTS of every published model's configuration is a backbone or another model of the zoo."""
    named = {load_config(zoo.lookup(name).config).MODEL.WEIGHTS for name in PUBLISHED}
    found = {name: zoo.entry_of_file(name) for name in named}
    assert None not in found.values()
    backbones = {entry.name for entry in found.values() if isinstance(entry, zoo.BackboneEntry)}
    assert backbones == {entry.name for entry in zoo.list_backbones() if entry.used}
    models = {entry.name for entry in found.values() if isinstance(entry, zoo.ModelEntry)}
    assert models == {name for name in zoo.list_models("instance", "coco") if name != "coco-instance-swin-b"}


def test_backbone_is_downloaded_under_its_own_name(network: dict[str, Any], tmp_path: Path) -> None:
    network["body"] = b"12345"  # as long as the Content-Length says
    file = locate("swin_tiny_patch4_window7_224.pkl")
    assert file.name == "swin_tiny_patch4_window7_224.pth" and file.read_bytes() == b"12345"
    assert file.is_relative_to(tmp_path / "cache")
    assert locate("swin_tiny_patch4_window7_224.pth") == file and network["calls"] == 1
    resnet = locate("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
    assert resnet.name == "R-50.pkl" and resnet.is_relative_to(tmp_path / "cache")


def test_cut_short_backbone_is_refused(network: dict[str, Any], tmp_path: Path) -> None:
    network["body"] = b"1234"
    with pytest.raises(CorruptCheckpointError, match="4 of 5 bytes"):
        locate("swin_tiny_patch4_window7_224.pkl")
    with pytest.raises(CorruptCheckpointError, match="63fe2227"):  # torchvision writes the SHA-256 into the name
        locate("R-101.pkl")
    left = [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert set(left) == {".lock"}


def test_own_backbone_files_come_first(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network["error"] = urllib.error.URLError("no route")
    name = "swin_small_patch4_window7_224"
    directory = tmp_path / "weights"
    monkeypatch.setenv(zoo.ENVIRONMENT, str(directory))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"(?s)releases/download/v1.0.0/{name}.pth.*weights/{name}.pth"):
        locate(f"{name}.pkl")
    directory.mkdir()
    (directory / f"{name}.pkl").write_bytes(b"converted")
    assert locate(f"{name}.pkl") == directory / f"{name}.pkl"
    (tmp_path / f"{name}.pth").write_bytes(b"published")
    assert locate(f"{name}.pkl") == Path(f"{name}.pth")
    (tmp_path / f"{name}.pkl").write_bytes(b"converted")
    assert locate(f"{name}.pkl") == Path(f"{name}.pkl")


def test_two_files_of_one_name_are_not_confused(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """detectron2 publishes two files R-50.pkl: only the address tells them apart."""
    network["error"] = urllib.error.URLError("no route")
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path))
    (tmp_path / "R-50.pkl").write_bytes(b"which one?")
    assert zoo.entry_of_file("R-50.pkl") is None
    with pytest.raises(FileNotFoundError, match=r"detectron2/ImageNetPretrained/MSRA/R-50\.pkl"):
        locate("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    place = tmp_path / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"this one")
    assert locate("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == place


def test_published_bare_swin_file_trains(network: dict[str, Any]) -> None:
    """What the Swin configurations name is downloaded in Swin's own layout and fits the model."""
    import torch

    from mask2former.checkpoint import load_into
    from mask2former.modeling.backbone.swin import D2SwinTransformer

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = D2SwinTransformer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2)

    source, model = Model(), Model()
    state = {**source.backbone.state_dict(), "norm.weight": torch.ones(64), "head.weight": torch.ones(10, 64)}
    for i in range(4):
        del state[f"norm{i}.weight"], state[f"norm{i}.bias"]
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    entry = zoo.entry_of_file("swin_tiny_patch4_window7_224.pkl")
    assert entry is not None
    network["body"] = buffer.getvalue()
    network["length"] = len(network["body"])
    report = load_into(model, "swin_tiny_patch4_window7_224.pkl")
    assert not report.unexpected and len(report.missing) == 8
    weight = "layers.2.blocks.0.attn.qkv.weight"
    assert torch.equal(model.backbone.state_dict()[weight], source.backbone.state_dict()[weight])


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "swin-l" in name or name.endswith("r50")])
def test_models_of_every_table_reach_their_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Segmenter.load(name)` goes from the name to the configuration and asks for this model's file."""
    asked = []

    class Asked(Exception):
        pass

    def resolve(entry: zoo.WeightsFile) -> Path:
        asked.append(entry.filename)
        raise Asked

    monkeypatch.setattr(zoo, "resolve_weights", resolve)
    with pytest.raises(Asked):
        Segmenter.load(name)
    assert asked == [zoo.lookup(name).filename]
