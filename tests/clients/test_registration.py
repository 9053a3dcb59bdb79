"""Names that projects register themselves, before or after the import of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former import add_maskformer2_config, add_maskformer2_video_config
from mask2former.data.datasets.catalog import FileMetadata, register_custom, set_dataset, unregister
from tests.clients.client_models import CONFIGS

ROOT = Path(__file__).parents[2]
NAME = "default_of_the_tests"


def run(code: str) -> Any:
    """Run a program in a new interpreter; return what it prints as JSON in its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def name() -> Iterator[str]:
    yield NAME
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def ours() -> list[dict[str, Any]]:
    return [{"ours": True}]


def theirs() -> list[dict[str, Any]]:
    return [{"ours": False}]


# ------------------------------------------------------------------ datasets
def test_a_dataset_that_is_registered_later_replaces_the_default_and_its_metadata(name: str) -> None:
    set_dataset(name, ours, {"thing_classes": ["a", "b"], "json_file": "ours.json"})
    DatasetCatalog.register(name, theirs)
    MetadataCatalog.get(name).set(thing_classes=["x"], evaluator_type="ytvis")
    assert DatasetCatalog.get(name) == theirs()
    assert MetadataCatalog.get(name).as_dict() == {"name": name, "thing_classes": ["x"], "evaluator_type": "ytvis"}
    set_dataset(name, ours, {"thing_classes": ["a", "b"]})
    assert DatasetCatalog.get(name) == theirs() and MetadataCatalog.get(name).thing_classes == ["x"]
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, ours)


def test_a_dataset_that_is_registered_earlier_stays(name: str) -> None:
    DatasetCatalog.register(name, theirs)
    MetadataCatalog.get(name).set(thing_classes=["x"])
    set_dataset(name, ours, {"thing_classes": ["a", "b"]})
    assert DatasetCatalog.get(name) == theirs() and MetadataCatalog.get(name).thing_classes == ["x"]


def test_assignment_and_removal_are_registrations_too(name: str) -> None:
    set_dataset(name, ours, {})
    DatasetCatalog[name] = theirs
    set_dataset(name, ours, {})
    assert DatasetCatalog.get(name) == theirs()
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, theirs)
    assert DatasetCatalog.get(name) == theirs()


def test_values_of_metadata_can_be_changed_and_then_stay(name: str) -> None:
    set_dataset(name, ours, {"thing_classes": ["a"], "json_file": "1.json"})
    MetadataCatalog.get(name).set(thing_classes=["x"])
    set_dataset(name, ours, {"thing_classes": ["a"], "json_file": "2.json"})
    assert MetadataCatalog.get(name).thing_classes == ["x"]
    DatasetCatalog.register(name, theirs)  # metadata that was set first
    assert MetadataCatalog.get(name).thing_classes == ["x"]


def test_values_that_files_would_give_can_be_set_without_them(name: str) -> None:
    def read() -> dict[str, Any]:
        raise FileNotFoundError("no such file")

    set_dataset(name, ours, FileMetadata(["thing_classes"], read, name=name, json_file="1.json"))
    with pytest.raises(FileNotFoundError):
        _ = MetadataCatalog.get(name).thing_classes
    MetadataCatalog.get(name).set(thing_classes=["x"])
    assert MetadataCatalog.get(name).thing_classes == ["x"] and "_pending" not in MetadataCatalog.get(name).as_dict()


def test_custom_datasets_are_registered_as_before(name: str) -> None:
    try:
        register_custom(name, ("file", 1), lambda: (ours, {"thing_classes": ["a"]}))
        register_custom(name, ("file", 2), lambda: (theirs, {"thing_classes": ["b"]}))
        assert DatasetCatalog.get(name) == theirs() and MetadataCatalog.get(name).thing_classes == ["b"]
        with pytest.raises(AssertionError, match="already registered"):
            DatasetCatalog.register(name, ours)
    finally:
        unregister(name)


# ------------------------------------------------------------------ configs
def test_published_configs_merge_without_the_video_keys() -> None:
    count = 0
    for file in sorted(CONFIGS.rglob("*.yaml")):
        if "video" in str(file.relative_to(CONFIGS)):
            continue
        cfg = get_cfg()
        add_maskformer2_config(cfg)
        cfg.merge_from_file(str(file))
        count += 1
    assert count >= 57  # of the reference implementation


def test_the_video_keys_may_be_added_again() -> None:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.INPUT.SAMPLING_FRAME_NUM = 5
    add_maskformer2_video_config(cfg)
    assert cfg.INPUT.SAMPLING_FRAME_NUM == 5
    cfg.merge_from_file(str(CONFIGS / "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"))
    assert cfg.INPUT.SAMPLING_FRAME_NUM == 2 and cfg.INPUT.SAMPLING_FRAME_RANGE == 20


# ------------------------------------------------------------------ what an import registers
VIDEO_NAMES = """
import json
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
def names():
    from mask2former.modeling.transformer_decoder import TRANSFORMER_DECODER_REGISTRY as decoders
    return [sum(n.startswith(p) for n in DatasetCatalog) for p in ("ytvis_", "ovis_")] + [
        "VideoMaskFormer" in META_ARCH_REGISTRY, "VideoMultiScaleMaskedTransformerDecoder" in decoders]
"""


@pytest.mark.slow
def test_the_import_registers_no_video_names_until_a_config_needs_them() -> None:
    code = """
import mask2former
found = [names()]
mask2former.load_config("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")
found.append(names())
mask2former.load_config(None, ["DATASETS.TEST", "('ovis_val',)"])
found.append(names())
mask2former.load_config(None, ["DATASETS.TEST", "('ytvis_2021_val',)"])
found.append(names())
print(json.dumps(found + [mask2former.VideoMaskFormer.__name__]))
"""
    none, everything = [0, 0, False, False], [6, 3, True, True]
    assert run(VIDEO_NAMES + code) == [none, none, [0, 3, False, False], everything, "VideoMaskFormer"]


@pytest.mark.slow
def test_the_video_package_registers_youtube_vis_and_not_ovis() -> None:
    code = """
import mask2former_video
found = [names()]
mask2former_video.YTVISDatasetMapper
import mask2former.data
mask2former.data.register_all("elsewhere")
found.append(names())
from detectron2.data import MetadataCatalog
print(json.dumps(found + [MetadataCatalog.get("ytvis_2019_val").json_file]))
"""
    first, second, file = run(VIDEO_NAMES + code)
    assert (first, second) == ([6, 0, True, True], [6, 3, True, True]) and file == "elsewhere/ytvis_2019/valid.json"


CLIENT = """
import json, sys
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
NAMES = ["ytvis_2019_train", "ytvis_2019_val", "ovis_train", "ade20k_full_sem_seg_val"]
def theirs():
    for name in NAMES:
        DatasetCatalog.register(name, lambda: [{"theirs": 1}])
        MetadataCatalog.get(name).set(thing_classes=["x"], evaluator_type="ytvis", json_file="theirs.json")
    import torch
    @META_ARCH_REGISTRY.register()
    class VideoMaskFormer(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()
            from mask2former.modeling.transformer_decoder import build_transformer_decoder
            self.decoder = build_transformer_decoder(cfg, 32)
def decoder():
    from mask2former.modeling.transformer_decoder.maskformer_transformer_decoder import TRANSFORMER_DECODER_REGISTRY
    import torch
    @TRANSFORMER_DECODER_REGISTRY.register()
    class VideoMultiScaleMaskedTransformerDecoder(torch.nn.Module):
        def __init__(self, cfg, in_channels, mask_classification): super().__init__()
def check():
    import mask2former
    cfg = mask2former.load_config("youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml", ["MODEL.DEVICE", "cpu"])
    mask2former.register_all("elsewhere")
    model = build_model(cfg)
    print(json.dumps([type(model).__module__, type(model.decoder).__module__] + [
        [len(DatasetCatalog.get(n)), MetadataCatalog.get(n).json_file] for n in NAMES]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        "theirs(); import mask2former; decoder(); check()",
        "import mask2former_video; theirs(); decoder(); check()",
        "import mask2former; mask2former.load_config('youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml'); "
        "mask2former.register_all(); theirs(); decoder(); check()",
    ],
    ids=["before", "after the video package", "after a config and all datasets"],
)
def test_a_project_with_its_own_video_names_gets_its_own(order: str) -> None:
    assert run(CLIENT + order) == ["__main__", "__main__"] + [[1, "theirs.json"]] * 4


def test_a_video_model_is_built_from_a_config_that_other_code_has_read() -> None:
    """The name waits until it is looked up, which no program does that registers its own."""
    code = """
import json
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.projects.deeplab import add_deeplab_config
from mask2former import add_maskformer2_config
before = "VideoMaskFormer" in META_ARCH_REGISTRY
cfg = get_cfg()
add_deeplab_config(cfg)
add_maskformer2_config(cfg)
cfg.merge_from_file("configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml")
cfg.MODEL.DEVICE = "cpu"
print(json.dumps([before, type(build_model(cfg)).__module__]))
"""
    assert run(code) == [False, "mask2former.video_maskformer_model"]
