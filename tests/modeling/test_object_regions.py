"""Points around objects: where they are, how many, and what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.object_regions import move_to_objects, regions_of
from mask2former.modeling.point_sampling import Predictions, uncertain_points

from .tiny_models import NoHostReads, clip, record, tiny

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
R18 = [*("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), *("MODEL.RESNETS.STEM_TYPE", "basic")]
SHARE = "MODEL.MASK_FORMER.SMALL_OBJECT_POINTS"
CPU, K, SIZE = torch.device("cpu"), 3, (200, 400)
BOXES = [(40, 100, 140, 150), (300, 20, 304, 24), (390, 190, 400, 200), (0, 0, 0, 0)]  # left, top, right, bottom
# A margin of a fifth, at least four pixels, inside the image; that of an empty mask is the image.
REGIONS = [(20, 90, 160, 160), (296, 16, 308, 28), (386, 186, 400, 200), (0, 0, 400, 200)]


def target(boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return {"labels": torch.zeros(len(boxes), dtype=torch.int64), "masks": masks}


def inside(points: Tensor, region: tuple[int, int, int, int]) -> Tensor:
    """Return which of points (..., 2) in [0, 1] are in a region in pixels."""
    x, y = points[..., 0] * SIZE[1], points[..., 1] * SIZE[0]
    left, top, right, bottom = region
    return (x >= left - 1e-3) & (x <= right + 1e-3) & (y >= top - 1e-3) & (y <= bottom + 1e-3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_regions_by_hand(dtype: torch.dtype) -> None:
    """Of images of several sizes, in one padded size, and without objects."""
    targets = [target(BOXES[:2]), target([]), target(BOXES[3:], (50, 60)), target(BOXES[2:3])]
    for given in targets:
        given["masks"] = given["masks"].to(dtype)
    truth = GroundTruth.of(targets, CPU)
    with NoHostReads():
        boxes, regions = truth.boxes, regions_of(truth)
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2)
    order = [0, 1, 3, 2]
    torch.testing.assert_close(boxes * scale, torch.tensor([BOXES[i] for i in order]).float())
    torch.testing.assert_close(regions * scale, torch.tensor([REGIONS[i] for i in order]).float())
    assert regions_of(GroundTruth.of([target([])], CPU)).shape == (0, 4)


def test_each_object_gets_the_same_number_of_points() -> None:
    truth = GroundTruth.of([target(BOXES[:3]), target([]), target(BOXES[1:2])], CPU)
    torch.manual_seed(0)
    drawn = torch.rand(3, 12_000, 2)
    points = drawn.clone()
    with NoHostReads():
        move_to_objects(points, truth, 0.75)
    assert torch.equal(points[:, 9000:], drawn[:, 9000:]), "the others stay uniform"
    assert torch.equal(points[1], drawn[1]), "so do those of an image without objects"
    counts = [int(inside(points[0, :9000], region).sum()) for region in REGIONS[:3]]
    assert sum(counts) == 9000 and all(count == pytest.approx(3000, abs=200) for count in counts)  # 4 sigma
    assert inside(points[2, :9000], REGIONS[1]).all()
    # Uniform inside a region: the object of 4 x 4 pixels is a ninth of its own. Before it had one point in 5000.
    of_object = int(inside(points[2], BOXES[1]).sum())
    assert of_object == pytest.approx(1000, abs=150) and int(inside(drawn[2], BOXES[1]).sum()) < 10
    assert (points >= 0).all() and (points <= 1).all()


def test_points_of_clips_are_around_an_object_of_some_frame() -> None:
    masks = torch.zeros(1, 2, *SIZE, dtype=torch.bool)
    masks[0, 0, 20:24, 300:304] = True
    masks[0, 1, 190:200, 390:400] = True
    truth = GroundTruth.of([{"labels": torch.tensor([0]), "masks": masks}], CPU)
    points = torch.rand(1, 1000, 2)
    move_to_objects(points, truth, 1.0)
    first, second = (int(inside(points, region).sum()) for region in REGIONS[1:3])
    assert first + second == 1000 and 400 < first < 600


def test_a_share_of_the_random_points_of_a_mask_is_in_its_region() -> None:
    truth = GroundTruth.of([target(BOXES)], CPU)
    logits, regions = torch.randn(4, 50, 100), regions_of(truth)
    torch.manual_seed(0)
    plain = uncertain_points(logits, 80, 3.0, 0.5)
    torch.manual_seed(0)
    points = uncertain_points(logits, 80, 3.0, 0.5, regions, 0.6)
    assert points.shape == (4, 80, 2)
    assert torch.equal(points[:, :40], plain[:, :40]) and torch.equal(points[:, 64:], plain[:, 64:])
    assert all(inside(points[i, 40:64], REGIONS[i]).all() for i in range(4))
    assert torch.equal(points[3], plain[3]), "an empty mask has no region"


def test_a_share_of_zero_draws_what_was_drawn() -> None:
    outputs = {"pred_logits": torch.randn(2, 5, K + 1), "pred_masks": torch.randn(2, 5, 50, 100)}
    targets = [target(BOXES[:2]), target([])]
    losses = []
    for share in ({}, {"object_points": 0.0}, {"object_points": 0.5}):
        matcher = HungarianMatcher(2, 5, 5, num_points=64, **share)
        torch.manual_seed(0)
        losses.append(SetCriterion(K, matcher, {}, 0.1, num_points=64, **share)(outputs, targets))
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
    assert not torch.equal(losses[0]["loss_mask"], losses[2]["loss_mask"])


def test_matching_tells_small_objects_apart() -> None:
    """Two queries outline two objects of 4 x 4 pixels; 64 uniform points in the image find neither."""
    first, second = (300, 20, 304, 24), (100, 120, 104, 124)
    logits = torch.stack([target([box])["masks"][0].float() * 20 - 10 for box in (first, second)])
    outputs = {"pred_logits": torch.zeros(1, 2, K + 1), "pred_masks": logits[None]}
    truth = GroundTruth.of([target([second, first])], CPU)
    right = []
    for share in (0.0, 0.8):
        matcher = HungarianMatcher(2, 5, 5, num_points=64, object_points=share)
        torch.manual_seed(0)
        pairs = [matcher.match_layers(Predictions.of(outputs), truth)[0] for _ in range(20)]
        right.append(sum(pair.target.tolist() == [1, 0] for pair in pairs))
    assert right[1] == 20 and right[0] < 15


@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_models_with_all_kinds_of_queries(config: str) -> None:
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    more = ("MODEL.MASK_FORMER.QUERY_GROUPS", 2, "MODEL.MASK_FORMER.DENOISING.QUERIES", 7)
    model = tiny(config, *R18, *more, SHARE, 0.5).train()
    assert model.criterion.object_points == model.criterion.matcher.object_points == 0.5
    for counts in ((3, 0), (0, 0)):
        losses = model([make(64, 64, *frames, n, 3, seed=i) for i, n in enumerate(counts)])
        assert set(losses) == set(model.criterion.weight_dict)
        assert all(torch.isfinite(value) for value in losses.values())
    plain = tiny(config, *R18).criterion
    assert plain.object_points == plain.matcher.object_points == 0
