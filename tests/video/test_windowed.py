"""Evaluation in windows: TEST.WINDOW_FRAMES."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from mask2former import load_config
from mask2former.evaluation.ytvis_evaluation import clip_to_records
from mask2former.video.windowed import WindowedClips, windowed
from mask2former.video.windows import WindowSettings

from ..modeling.tiny_models import tiny
from .moving_shapes import HEIGHT, WIDTH, ShapeModel, images, truth

R50 = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"


class Shapes(ShapeModel):
    test_topk_per_video, score_threshold = 10, 0.5


def clip(count: int, **more: Any) -> dict[str, Any]:
    return {"image": [torch.from_numpy(image).permute(2, 0, 1) for image in images(count)], **more}


def only(result: Any) -> dict[str, Any]:
    """Return the result of a batch of one clip."""
    return result if isinstance(result, dict) else result[0]


@pytest.mark.parametrize(("window", "overlap"), [(8, 3), (7, 0), (1, 0)])
def test_a_long_clip_has_its_objects_in_all_frames(window: int, overlap: int) -> None:
    model = Shapes().eval()
    output = WindowedClips(model, WindowSettings(window, overlap))([clip(30, height=HEIGHT, width=WIDTH)])
    assert max(model.lengths) == window and len(model.lengths) > 1
    assert output["pred_labels"] == [0, 1, 2] and "pred_masks" not in output
    for record in clip_to_records(output, 7):
        assert len(record["segmentations"]) == 30 and record["video_id"] == 7
        for t, rle in enumerate(record["segmentations"]):
            mask = np.zeros((HEIGHT, WIDTH), bool) if rle is None else mask_util.decode(rle).astype(bool)
            assert np.count_nonzero(mask != truth(record["category_id"], t)) <= 8


def test_masks_have_the_size_of_the_record() -> None:
    output = WindowedClips(Shapes().eval(), WindowSettings(8, 3))([clip(12, height=2 * HEIGHT, width=2 * WIDTH)])
    assert output["image_size"] == (2 * HEIGHT, 2 * WIDTH)
    large = np.kron(truth(0, 4), np.ones((2, 2))).astype(bool)
    mask = mask_util.decode(output["pred_rles"][0][4]).astype(bool)
    assert mask.shape == large.shape and np.count_nonzero(mask != large) <= 32


def test_a_clip_that_fits_is_left_to_the_model() -> None:
    cfg = load_config(R50, ["TEST.WINDOW_FRAMES", 4, "TEST.WINDOW_OVERLAP", 2])
    model = tiny(R50).eval()
    wrapped = windowed(cfg, model)
    assert isinstance(wrapped, WindowedClips) and not wrapped.training
    with torch.no_grad():
        ours, theirs = wrapped([clip(4)]), only(model([clip(4)]))
        assert ours["pred_scores"] == theirs["pred_scores"]
        assert all(torch.equal(a, b) for a, b in zip(ours["pred_masks"], theirs["pred_masks"], strict=True))
        short, long = wrapped([clip(3), clip(5)])
    assert "pred_masks" in short and len(long["pred_rles"][0]) == 5


def test_one_window_gives_the_records_of_the_complete_clip() -> None:
    model = tiny(R50).eval()
    record = clip(4, height=HEIGHT, width=WIDTH)
    with torch.no_grad():
        complete = clip_to_records(only(model([record])), 1)
        wrapped = WindowedClips(model, WindowSettings(window=4, overlap=0, candidates=100))
        parts = clip_to_records(wrapped._long(record), 1)
    key = ("score", "category_id")
    assert [[r[k] for k in key] for r in parts] == [[pytest.approx(r[k]) for k in key] for r in complete]
    assert [r["segmentations"] for r in parts] == [r["segmentations"] for r in complete]


def test_image_models_and_no_window_leave_the_model_as_it_is() -> None:
    model = tiny(R50)
    assert windowed(load_config(R50), model) is model
    other = torch.nn.Linear(1, 1)
    assert windowed(load_config(R50, ["TEST.WINDOW_FRAMES", 4, "TEST.WINDOW_OVERLAP", 2]), other) is other
