"""Names and settings of Hugging Face's Mask2Former, both ways, against the installed transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.checkpoint import CheckpointError, huggingface, load_weights, save_safetensors
from mask2former.checkpoint.huggingface_config import (
    class_names_from_huggingface,
    config_from_huggingface,
    config_to_huggingface,
)
from mask2former.config import load_config

transformers = pytest.importorskip("transformers")

DEPTHS = [1, 2, 1, 1]
TOOL = Path(__file__).parents[2] / "tools" / "convert_huggingface.py"


def tiny(**head: Any) -> Any:
    """A random model of Hugging Face, no network needed."""
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=12,
        depths=DEPTHS,
        num_heads=[1, 2, 3, 6],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 48,
        "dim_feedforward": 64,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "num_attention_heads": 4,
        "num_queries": 7,
        "id2label": {0: "cell", 1: "nucleus", 2: "debris"},
    }
    config = transformers.Mask2FormerConfig(backbone_config=swin, **{**settings, **head})
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    for parameter in model.parameters():  # every value different, so that a wrong order shows
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def directory(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    model.save_pretrained(path)
    return path


def swin_keys(window: int = 4) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the reference's Swin backbone at the tiny size, written down independently."""
    dims, heads, out = [12, 24, 48, 96], [1, 2, 3, 6], {}
    out["patch_embed.proj.weight"], out["patch_embed.proj.bias"] = (12, 3, 4, 4), (12,)
    out["patch_embed.norm.weight"] = out["patch_embed.norm.bias"] = (12,)
    for i, (dim, head, depth) in enumerate(zip(dims, heads, DEPTHS)):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            for name, rows, columns in (
                ("attn.qkv", 3 * dim, dim),
                ("attn.proj", dim, dim),
                ("mlp.fc1", 4 * dim, dim),
                ("mlp.fc2", dim, 4 * dim),
            ):
                out[f"{block}{name}.weight"], out[f"{block}{name}.bias"] = (rows, columns), (rows,)
            for name in ("norm1", "norm2"):
                out[f"{block}{name}.weight"] = out[f"{block}{name}.bias"] = (dim,)
            out[f"{block}attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, head)
            out[f"{block}attn.relative_position_index"] = (window**2, window**2)
        if i < 3:
            out[f"layers.{i}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            out[f"layers.{i}.downsample.norm.weight"] = out[f"layers.{i}.downsample.norm.bias"] = (4 * dim,)
        out[f"norm{i}.weight"] = out[f"norm{i}.bias"] = (dim,)
    return {f"backbone.{key}": shape for key, shape in out.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_both_spellings_give_the_reference_names(model: Any, directory: Path) -> None:
    in_memory = huggingface.from_huggingface(model.state_dict())
    from_file = load_weights(directory)
    assert equal(in_memory, from_file)
    backbone = {key: tuple(v.shape) for key, v in from_file.items() if key.startswith("backbone.")}
    assert backbone == swin_keys()
    heads = {key.split(".")[0] for key in from_file}
    assert heads == {"backbone", "sem_seg_head", "criterion"}
    shapes = {key: tuple(value.shape) for key, value in from_file.items()}
    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    for key, shape in {
        pixel + "input_proj.0.0.weight": (32, 96, 1, 1),  # coarsest level first
        pixel + "input_proj.2.1.bias": (32,),
        pixel + "transformer.level_embed": (3, 32),
        pixel + "transformer.encoder.layers.1.self_attn.sampling_offsets.weight": (4 * 3 * 4 * 2, 32),
        pixel + "transformer.encoder.layers.1.linear1.weight": (48, 32),
        pixel + "adapter_1.weight": (32, 12, 1, 1),
        pixel + "adapter_1.norm.weight": (32,),
        pixel + "layer_1.weight": (32, 32, 3, 3),
        pixel + "mask_features.bias": (32,),
        predictor + "transformer_self_attention_layers.2.self_attn.in_proj_weight": (96, 32),
        predictor + "transformer_cross_attention_layers.2.multihead_attn.in_proj_bias": (96,),
        predictor + "transformer_ffn_layers.2.linear2.weight": (32, 64),
        predictor + "query_feat.weight": (7, 32),
        predictor + "class_embed.weight": (4, 32),
        predictor + "mask_embed.layers.2.weight": (32, 32),
        "criterion.empty_weight": (4,),
    }.items():
        assert shapes[key] == shape


def test_projections_are_stacked_query_key_value(model: Any) -> None:
    state, ours = model.state_dict(), huggingface.from_huggingface(model.state_dict())
    theirs = "model.transformer_module.decoder.layers.1.self_attn."
    stacked = ours["sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_weight"]
    for i, part in enumerate("qkv"):
        assert torch.equal(stacked[32 * i : 32 * (i + 1)], state[f"{theirs}{part}_proj.weight"])
    theirs = "model.pixel_level_module.encoder.swin.encoder.layers.1.blocks.1.attention."
    for i, part in enumerate("qkv"):
        expected = state[f"{theirs}{part}_proj.bias"]
        assert torch.equal(ours["backbone.layers.1.blocks.1.attn.qkv.bias"][24 * i : 24 * (i + 1)], expected)


def test_relative_position_index_equals_theirs(model: Any) -> None:
    theirs = model.model.pixel_level_module.encoder.swin.encoder.layers[0].blocks[0].attention
    expected = theirs.relative_position_bias.relative_position_index.view(16, 16)
    assert torch.equal(huggingface.relative_position_index(4), expected)


def test_round_trip_is_exact_and_loads_in_transformers(model: Any, directory: Path, tmp_path: Path) -> None:
    ours = load_weights(directory)
    theirs = huggingface.to_huggingface(ours)
    assert equal(huggingface.from_huggingface(theirs), ours)
    save_safetensors(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    loaded, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(".layernorm." in key for key in info["missing_keys"])  # unused: the stages have their own norms
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, second = model(pixels), loaded.eval()(pixels)
    assert torch.equal(first.class_queries_logits, second.class_queries_logits)
    assert torch.equal(first.masks_queries_logits, second.masks_queries_logits)


def test_optional_input_projections_translate() -> None:
    state = tiny(enforce_input_projection=True).state_dict()
    if not any("transformer_module.input_proj" in key for key in state):
        pytest.skip(f"transformers {transformers.__version__} does not store these weights")
    ours = huggingface.from_huggingface(state)
    assert ours["sem_seg_head.predictor.input_proj.2.weight"].shape == (32, 32, 1, 1)
    assert equal(huggingface.from_huggingface(huggingface.to_huggingface(ours)), ours)
    more = {**ours, "sem_seg_head.predictor.training_queries.query_feat.weight": torch.zeros(2, 2)}
    assert equal(huggingface.from_huggingface(huggingface.to_huggingface(more)), ours), "only a training uses them"


def test_other_weights_are_not_taken_for_theirs() -> None:
    assert not huggingface.is_huggingface({"backbone.patch_embed.proj.weight": 0, "model.layers.0": 0})
    with pytest.raises(CheckpointError, match=r"backbone\.res2"):
        huggingface.to_huggingface({"backbone.res2.0.conv1.weight": torch.zeros(1)})


def test_settings_both_ways(model: Any, directory: Path) -> None:
    keys = config_from_huggingface(directory, task="instance")
    assert keys["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == 3
    assert keys["MODEL.SWIN.DEPTHS"] == DEPTHS and keys["MODEL.SWIN.WINDOW_SIZE"] == 4
    assert keys["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == 7 and keys["MODEL.MASK_FORMER.DEC_LAYERS"] == 4
    assert keys["MODEL.MASK_FORMER.TEST.INSTANCE_ON"] and not keys["MODEL.MASK_FORMER.TEST.SEMANTIC_ON"]
    cfg = load_config(None, [item for pair in keys.items() for item in pair])
    settings = config_to_huggingface(cfg, class_names_from_huggingface(directory))
    original = json.loads((directory / "config.json").read_text())
    for key, value in settings.items():
        if key == "backbone_config":
            assert value == {name: original[key][name] for name in value}
        elif original[key] is not None:  # transformers leaves label2id to be derived
            assert value == original[key], key
    rebuilt = transformers.Mask2FormerConfig.from_dict(settings)
    assert rebuilt.num_labels == 3 and list(rebuilt.backbone_config.depths) == DEPTHS


def test_settings_without_equivalent_are_refused(directory: Path, tmp_path: Path) -> None:
    settings = json.loads((directory / "config.json").read_text())
    for change, match in (
        ({"model_type": "maskformer"}, "maskformer"),
        ({"activation_function": "gelu"}, "activation_function"),
        ({"backbone_config": {**settings["backbone_config"], "model_type": "resnet"}}, "resnet"),
        ({"backbone_config": {**settings["backbone_config"], "use_absolute_embeddings": True}}, "absolute"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
    ):
        with pytest.raises(CheckpointError, match=match):
            config_from_huggingface({**settings, **change})
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        config_from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON file"):
        config_from_huggingface(tmp_path)
    with pytest.raises(CheckpointError, match="PIXEL_DECODER_NAME"):
        config_to_huggingface(load_config(None, ["MODEL.BACKBONE.NAME", "D2SwinTransformer"]))


def test_two_nameless_classes() -> None:
    assert class_names_from_huggingface({"model_type": "mask2former"}) == ["LABEL_0", "LABEL_1"]


def run_tool(*args: str) -> Any:
    """In this process: starting another one costs seconds."""
    import contextlib
    import importlib.util
    import io

    spec = importlib.util.spec_from_file_location("convert_huggingface", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = module.main(args)
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def test_tool_there_and_back(model: Any, directory: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    result = run_tool("from-hf", str(directory), str(ours), "--task", "panoptic")
    assert result.code == 0, result.err
    assert sorted(path.name for path in ours.iterdir()) == [
        "classes.json",
        "config.yaml",
        "model.safetensors",
    ]
    assert json.loads((ours / "classes.json").read_text()) == ["cell", "nucleus", "debris"]
    assert load_config(ours / "config.yaml").MODEL.MASK_FORMER.TEST.PANOPTIC_ON
    result = run_tool("to-hf", str(ours), str(theirs), "--config-file", str(ours / "config.yaml"))
    assert result.code == 0, result.err
    loaded = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(theirs).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).masks_queries_logits, model(pixels).masks_queries_logits)
    processor = transformers.AutoImageProcessor.from_pretrained(theirs)
    assert processor.image_mean[0] == pytest.approx(0.485)


def test_tool_reports_errors(directory: Path, tmp_path: Path) -> None:
    result = run_tool("to-hf", str(directory), str(tmp_path / "out"))
    assert result.code == 1 and "--config-file" in result.err
    result = run_tool("from-hf", str(tmp_path), str(tmp_path / "out"))
    assert result.code == 1 and "config.json" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_tool_help_explains() -> None:
    text = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True, check=True).stdout
    assert "from_pretrained" in text and "bit for bit" in text
