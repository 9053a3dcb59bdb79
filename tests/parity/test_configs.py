"""Defaults and all 71 YAML files resolve to the values of the reference, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg

from mask2former.config import add_maskformer2_config, add_maskformer2_video_config, find_config, load_config

RECORDED = json.loads((Path(__file__).parent / "data" / "configs.json").read_text())
FILES: dict[str, dict[str, Any]] = RECORDED["files"]
RUNNABLE = [name for name, values in FILES.items() if "MODEL.META_ARCHITECTURE" in values]
# Names in the reference's table of models, and names that tell what is inside, beside those of its files.
SAME = {
    "mapillary-vistas/semantic-segmentation/maskformer_R50_bs16_300k.yaml": "maskformer2_R50_bs16_300k.yaml",
    "mapillary-vistas/panoptic-segmentation/maskformer2_R50_bs16_300k.yaml": "maskformer_R50_bs16_300k.yaml",
    "ade20k/semantic-segmentation/maskformer2_R101_bs16_160k.yaml": "maskformer2_R101_bs16_90k.yaml",
}


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return dotted keys with their values as JSON gives them."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))


DEFAULTS = dict(flat(load_config()))


def test_defaults_are_those_of_the_reference() -> None:
    recorded = RECORDED["defaults_added_or_changed_over_detectron2"]
    assert {key: DEFAULTS.get(key) for key in recorded} == recorded


def test_the_record_is_complete() -> None:
    assert (len(FILES), len(RUNNABLE)) == (71, 59)
    assert all(Path(name).name.startswith("Base-") for name in FILES.keys() - set(RUNNABLE))
    assert sum(name.startswith("youtubevis_") for name in RUNNABLE) == 12


@pytest.mark.parametrize("name", FILES)
def test_resolved_values(name: str) -> None:
    expected = DEFAULTS | FILES[name]
    resolved = dict(flat(load_config(name)))
    wrong = {key: value for key, value in resolved.items() if repr(value) != repr(expected[key])}
    message = "\n".join(f"  {key}: {value!r}, reference {expected[key]!r}" for key, value in wrong.items())
    assert not wrong, f"configs/{name} differs from the reference:\n{message}"
    assert resolved.keys() == expected.keys()


@pytest.mark.parametrize("name", SAME)
def test_both_names_of_misnamed_files(name: str) -> None:
    published = str(Path(name).parent / SAME[name])
    assert load_config(name) == load_config(published)
    assert FILES[published] == {k: v for k, v in flat(load_config(name)) if v != DEFAULTS[k]}


@pytest.mark.parametrize("name", ["cityscapes/panoptic-segmentation", "youtubevis_2021"])
def test_detectron2_reads_the_files_too(name: str) -> None:
    """Scripts of the reference's users call `merge_from_file`, not `load_config`."""
    name = next(file for file in RUNNABLE if file.startswith(f"{name}/swin/"))
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    add_maskformer2_video_config(cfg)
    cfg.merge_from_file(str(find_config(name)), allow_unsafe=False)
    assert cfg == load_config(name)
