"""Counts of tools/analyze_model.py against formulas written by hand."""

from __future__ import annotations

from typing import Any

import analyze_model
import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

from mask2former import load_config
from mask2former.ops import ms_deform_attn
from mask2former.ops.registration import ms_deform_attn as op

ADE20K = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
C, HIDDEN, HEADS, POINTS, QUERIES, FFN = 32, 48, 4, 2, 7, 40
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.CONVS_DIM", C, "MODEL.SEM_SEG_HEAD.MASK_DIM", C),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 2, "MODEL.MASK_FORMER.NHEADS", HEADS),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", HEADS),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", POINTS),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", HIDDEN),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", C, "MODEL.MASK_FORMER.DEC_LAYERS", 4, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", FFN),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", QUERIES, "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
]
LEVELS = (2 * 3, 4 * 6, 8 * 12)  # tokens at strides 32, 16, 8 of 64 x 96
NORM = 5  # flops of a norm with weights per element, as fvcore counts it


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(load_config(R50, TINY)).eval()


@pytest.fixture(scope="module")
def by_module(model: nn.Module) -> Any:
    return analyze_model.analyze(model, (64, 96)).by_module()


def test_deformable_encoder(by_module: Any) -> None:
    tokens = sum(LEVELS)
    samples = HEADS * 3 * POINTS
    projections = 2 * C * C + C * samples * 2 + C * samples  # value, output, offsets, weights
    op_flops = 5 * 3 * POINTS * C  # every head has C / HEADS channels
    layer = tokens * (projections + op_flops + 2 * C * HIDDEN + 2 * NORM * C)
    assert by_module["sem_seg_head.pixel_decoder.transformer"] == 2 * layer


def test_decoder_layers(by_module: Any) -> None:
    layers = "sem_seg_head.predictor.transformer_"
    for i, tokens in enumerate(LEVELS):
        cross = 2 * QUERIES * C * C + 2 * tokens * C * C + 2 * QUERIES * tokens * C + NORM * QUERIES * C
        assert by_module[f"{layers}cross_attention_layers.{i}"] == cross
        self_attention = 4 * QUERIES * C * C + 2 * QUERIES * QUERIES * C + NORM * QUERIES * C
        assert by_module[f"{layers}self_attention_layers.{i}"] == self_attention
        assert by_module[f"{layers}ffn_layers.{i}"] == 2 * QUERIES * C * FFN + NORM * QUERIES * C


def test_operators(model: nn.Module, by_module: Any) -> None:
    assert by_module["backbone.stem.conv1"] == (32 * 48) * 64 * (3 * 7 * 7 + 2)  # + scale and shift of the frozen norm
    operators = analyze_model.analyze(model, (64, 96)).by_operator()
    # Masks at the levels of the three layers' attention, and the last ones at stride 4.
    levels = [LEVELS[0], LEVELS[1], LEVELS[2], 16 * 24]
    assert operators["bmm"] == QUERIES * C * sum(levels)
    assert operators["deformable_attention"] == 2 * sum(LEVELS) * 3 * POINTS * C * 5
    total = sum(operators.values())
    assert total == by_module["backbone"] + by_module["sem_seg_head"] == by_module[""]


def test_swin_attention() -> None:
    from mask2former.modeling.backbone.swin import D2SwinTransformer

    swin = D2SwinTransformer(
        embed_dim=12, depths=(1, 1), num_heads=(2, 4), window_size=4, out_features=("res2", "res3")
    )
    head = nn.Identity()
    net = nn.Module()
    net.backbone, net.sem_seg_head = swin.eval(), head
    counts = analyze_model.analyze(net, (32, 48))
    # 8 x 12 tokens in windows of 16, then 4 x 6 tokens, padded to 4 x 8.
    expected = (8 * 12 * 16 * 12 + 4 * 8 * 16 * 24) * 2
    assert counts.by_operator()["attention"] == expected


class Deformable(nn.Module):
    shapes = ((4, 6), (2, 3))

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.run(value, self.shapes, locations, weights)


def test_both_forms_of_the_op_count_the_same() -> None:
    inputs = (torch.rand(2, 30, 4, 8), torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3))

    def registered(value: Any, shapes: Any, locations: Any, weights: Any) -> torch.Tensor:
        return op(value, [n for shape in shapes for n in shape], None, locations, weights)

    totals = []
    for run in (ms_deform_attn, registered):
        analysis = FlopCountAnalysis(Deformable(run), inputs).set_op_handle(**analyze_model._FLOPS)
        totals.append(analysis.total())
        assert "mask2former::ms_deform_attn" not in analysis.unsupported_ops()
    assert totals == [5 * (2 * 5) * (4 * 8) * (2 * 3)] * 2


def test_activations(model: nn.Module) -> None:
    counts = analyze_model.analyze(model, (64, 96), ActivationCountAnalysis)
    stem = counts.by_module()["backbone.stem"]
    assert stem == 64 * 32 * 48
    layer = counts.by_module()["sem_seg_head.predictor.transformer_self_attention_layers.0"]
    assert layer == 5 * QUERIES * C  # query, key, value, attention, output


def flops_at(model: nn.Module, size: tuple[int, int]) -> float:
    """Extrapolate to a large image from two small ones: attention among queries is constant, the rest linear."""
    first, second = (analyze_model.analyze(model, (128, width)).total() for width in (160, 320))
    per_pixel = (second - first) / (128 * 160)
    return first + per_pixel * (size[0] * size[1] - 128 * 160)


def masks_at_every_layer(size: tuple[int, int]) -> float:
    """Return the extra flops of the reference: it computes all 10 mask predictions of 100 queries at stride 4.

    Here 9 of them have the resolution of the next layer's attention: strides 32, 16 and 8, three times each.
    """
    full = 100 * 256 * size[0] * size[1]
    return 9 * full / 16 - 3 * full * (1 / 32**2 + 1 / 16**2 + 1 / 8**2)


def test_published_numbers() -> None:
    """Compare with the paper: 71 G for R50 on ADE20K's crops, 44 M and 226 G on COCO's images of about 800 x 1050."""
    crop, image = (512, 512), (800, 1050)
    model = build_model(load_config(ADE20K, ["MODEL.DEVICE", "cpu"])).eval()
    total = flops_at(model, crop) + analyze_model.semantic_flops(model, crop) + masks_at_every_layer(crop)
    assert round(total / 1e9) == 71
    model = build_model(load_config(R50, ["MODEL.DEVICE", "cpu"])).eval()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 44
    total = flops_at(model, image) + analyze_model.semantic_flops(model, image) + masks_at_every_layer(image)
    assert total == pytest.approx(226e9, rel=0.02)


def test_fixed_sizes() -> None:
    cfg = load_config(R50)
    assert analyze_model.fixed_size(cfg) == (800, 1333)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", (512, 1024)
    assert analyze_model.fixed_size(cfg) == (512, 512)
    assert analyze_model.padded((800, 1333), 32) == (800, 1344)
    assert analyze_model.padded((61, 64), 0) == (61, 64)


def test_command_line_without_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*map(str, TINY), "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "90"]
    tasks = ["--tasks", "flop", "activation", "parameter", "structure", "--use-fixed-input-size"]
    assert analyze_model.main([*tasks, "--config-file", R50, *overrides]) == 0
    out = capsys.readouterr().out
    assert "Flops of one input of 64 x 96 (padded)" in out  # 64 x 90, padded to a multiple of 32
    assert "sem_seg_head.pixel_decoder.transformer" in out and "deformable_attention" in out
    assert "Total flops: 0." in out and "Total activations: " in out
    count = sum(p.numel() for p in build_model(load_config(R50, TINY)).parameters())
    assert f"({count})" in out
    assert "(pixel_decoder): MSDeformAttnPixelDecoder" in out


def test_average_weights_sizes_by_their_number(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = analyze_model.Input((64, 96), (10, 20)), analyze_model.Input((64, 64), (10, 10))
    by_size = {x.padded: analyze_model.analyze(model, x.padded) for x in (large, small)}
    monkeypatch.setattr(analyze_model, "analyze", lambda model, size, kind, frames: by_size[size])
    report = analyze_model._flop_report(model, [large, small, large, large]).splitlines()
    totals = [by_size[x.padded].total() + QUERIES * 5 * x.results[0] * x.results[1] for x in (large, small)]
    mean, spread = (3 * totals[0] + totals[1]) / 4, (totals[0] - totals[1]) * 3**0.5 / 4
    assert report[-1] == f"Total flops: {mean / 1e9:.1f} G (standard deviation {spread / 1e9:.1f}) of one image"
    scores = QUERIES * 5 * (3 * 200 + 100) / 4
    assert any(line.split() == ["semantic_scores", f"{scores / 1e9:.3f}", "G"] for line in report)


def test_clips_of_video_models(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    """Count backbone and pixel decoder once per frame; the queries attend to T times as many tokens."""
    clips = build_model(load_config(VIDEO, TINY)).eval()
    one, three = (analyze_model.analyze(clips, (64, 96), frames=t).by_module() for t in (1, 3))
    for part in ("backbone", "sem_seg_head.pixel_decoder"):
        assert three[part] == 3 * one[part] > 0
    cross = 2 * QUERIES * C * C + 3 * (2 * LEVELS[0] * C * C + 2 * QUERIES * LEVELS[0] * C) + NORM * QUERIES * C
    assert three["sem_seg_head.predictor.transformer_cross_attention_layers.0"] == cross
    self_attention = "sem_seg_head.predictor.transformer_self_attention_layers.0"
    assert three[self_attention] == one[self_attention]

    args = ["--tasks", "flop", "activation", "--input-size", "64", "90", "--config-file"]
    assert analyze_model.main([*args, VIDEO, *map(str, TINY)]) == 0
    out = capsys.readouterr().out
    assert "Flops of one input of 2 frames of 64 x 96 (padded)" in out and out.count(") of one clip") == 2
    assert analyze_model.main([*args, VIDEO, "--num-frames", "3", *map(str, TINY)]) == 0
    assert f"Total flops: {three[''] / 1e9:.1f} G" in capsys.readouterr().out
    assert analyze_model.main([*args, VIDEO, "--num-frames", "0", *map(str, TINY)]) == 1
    assert "--num-frames must be at least 1" in capsys.readouterr().err
    assert analyze_model.main([*args, R50, "--num-frames", "3", *map(str, TINY)]) == 1
    assert "--num-frames is for video models" in capsys.readouterr().err


def test_semantic_scores_only_where_semantic_results_are_on(model: nn.Module) -> None:
    assert analyze_model.semantic_flops(model, (10, 20)) == QUERIES * 5 * 200
    instances = build_model(load_config(R50, [*TINY, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False]))
    assert analyze_model.semantic_flops(instances, (10, 20)) == 0
    assert analyze_model.semantic_flops(nn.Identity(), (10, 20)) == 0


def test_missing_dataset_names_the_remedy(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    from mask2former.data import register_all

    register_all(str(tmp_path))
    try:
        status = analyze_model.main(["--tasks", "flop", "--config-file", R50, *map(str, TINY)])
    finally:
        monkeypatch.undo()
        register_all()
    assert status == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "--use-fixed-input-size" in error


def test_images_of_a_dataset_are_averaged(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    import numpy as np
    from PIL import Image

    sizes = [(40, 60), (60, 40), (40, 60)]
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    images = [{"id": i, "file_name": f"{i}.jpg", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    annotations = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    name = f"analyzed_{tmp_path.name}"
    entry = repr(((name, str(tmp_path / "annotations.json"), str(tmp_path)),))
    overrides = ["DATASETS.COCO_JSON", entry, "DATASETS.TEST", f"('{name}',)", "DATASETS.TRAIN", "()"]
    overrides += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]
    args = ["--tasks", "flop", "-n", "2", "--config-file", R50]
    assert analyze_model.main([*args, *map(str, TINY), *overrides]) == 0
    out = capsys.readouterr().out
    assert "mean of 2 inputs" in out and "Flops of one input of 64 x 96 (padded)" in out


def test_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        analyze_model.main(["--config-file", R50])  # --tasks is required
    assert analyze_model.main(["--tasks", "structure", "--config-file", R50, "MODEL.NO_SUCH", "1"]) == 1
    assert "MODEL.NO_SUCH" in capsys.readouterr().err
    size = ["--tasks", "flop", "--input-size", "0", "5", "--config-file", R50]
    assert analyze_model.main([*size, *map(str, TINY)]) == 1
    assert "--input-size must be positive" in capsys.readouterr().err
