"""Weights that are saved here are read by the reference implementation and projects on top of it, and the reverse."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from mask2former.checkpoint import SafeCheckpointer, load_into
from mask2former.conversion.weights_file import convert_file
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
from mask2former.modeling.meta_arch.per_pixel_baseline import PerPixelBaselineHead, PerPixelBaselinePlusHead

from .client_models import INSTANCE, client_config, client_model

LITTLE = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]


@pytest.fixture(scope="module")
def model() -> Any:
    return client_model(client_config(INSTANCE, LITTLE))


def file_of(model: Any, tmp_path: Path, kind: str) -> Path:
    """Save a model in one of the ways that write .pth files."""
    SafeCheckpointer(model, str(tmp_path)).save("saved")
    if kind == "converted":
        convert_file(str(tmp_path / "saved.pth"), tmp_path / "converted.pth")
    return tmp_path / f"{kind}.pth"


def test_heads_have_the_version_of_their_names() -> None:
    for head in (MaskFormerHead, PerPixelBaselineHead, PerPixelBaselinePlusHead):
        assert head._version == 2


@pytest.mark.parametrize("kind", ["saved", "converted"])
def test_a_saved_head_is_not_taken_for_an_old_one(model: Any, tmp_path: Path, kind: str) -> None:
    """The reference implementation renames the keys of a head without a version, and its pixel decoder stays random."""
    weights = torch.load(file_of(model, tmp_path, kind), weights_only=True)["model"]
    assert weights._metadata["sem_seg_head"] == {"version": 2}
    seen: list[int | None] = []
    other = client_model(client_config(INSTANCE, LITTLE))
    head = other.sem_seg_head

    def versioned(state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        seen.append(metadata.get("version"))

    head.register_load_state_dict_pre_hook(lambda module, *args: versioned(*args))
    DetectionCheckpointer(other).load(str(tmp_path / f"{kind}.pth"))
    assert seen == [2]
    current = model.state_dict()
    assert all(torch.equal(value, current[name]) for name, value in other.state_dict().items())


def test_files_without_versions_are_read(model: Any, tmp_path: Path) -> None:
    """As this package wrote them before, and as other programs do."""
    torch.save({"model": dict(model.state_dict())}, tmp_path / "plain.pth")
    for load in (
        lambda other, file: load_into(other, file, strict=True),
        lambda other, file: SafeCheckpointer(other).load(file),
    ):
        torch.manual_seed(5)
        other = client_model(client_config(INSTANCE, LITTLE))
        with torch.no_grad():
            other.sem_seg_head.predictor.query_feat.weight.zero_()
        load(other, str(tmp_path / "plain.pth"))
        current = model.state_dict()
        assert all(torch.equal(value, current[name]) for name, value in other.state_dict().items())
    state = OrderedDict(model.state_dict())
    assert not model.load_state_dict(state).missing_keys
