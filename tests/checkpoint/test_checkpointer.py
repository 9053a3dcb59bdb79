"""Loading weights of every format into a model, and saving and resuming a training's state."""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.checkpoint import PeriodicCheckpointer
from safetensors import safe_open
from torch import Tensor, nn

from mask2former.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    SafeCheckpointer,
    UnsafeCheckpointError,
    load_into,
    load_weights,
    save_safetensors,
)
from mask2former.checkpoint.key_mapping import load_state_dict
from mask2former.engine.distributed import get_random_state, set_random_state
from mask2former.utils.atomic_file import atomic_write


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.conv1.norm = nn.BatchNorm2d(dim)


class Model(nn.Module):
    """The reference's names in miniature: stem and res2, pixel decoder, predictor, the criterion's buffer."""

    def __init__(self, classes: int = 3, queries: int = 5, dim: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv1 = nn.Conv2d(3, dim, 3, bias=False)
        self.backbone.res2 = nn.ModuleList([Block(dim)])
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = nn.Module()
        self.sem_seg_head.pixel_decoder.adapter_1 = nn.Conv2d(dim, dim, 1)
        self.sem_seg_head.pixel_decoder.mask_features = nn.Conv2d(dim, dim, 1)
        self.sem_seg_head.predictor = nn.Module()
        self.sem_seg_head.predictor.query_feat = nn.Embedding(queries, dim)
        self.sem_seg_head.predictor.class_embed = nn.Linear(dim, classes + 1)
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(classes + 1))


def other(**sizes: int) -> tuple[Model, dict[str, Tensor]]:
    """A model and its weights, all different from those of a fresh model."""
    torch.manual_seed(7)
    model = Model(**sizes)
    return model, {key: value.clone() for key, value in model.state_dict().items()}


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def old_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.replace("pixel_decoder.", "").replace("query_feat", "static_query"): value
        for key, value in state.items()
        if key != "criterion.empty_weight"
    }


def write_pickle(path: Path, state: dict[str, Tensor], **extra: Any) -> Path:
    model = OrderedDict((key, value.numpy()) for key, value in state.items())
    path.write_bytes(pickle.dumps({"model": model, "__author__": "test", **extra}, protocol=2))
    return path


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pt", ".bin", ".safetensors"])
def test_every_format_gives_the_same_weights(tmp_path: Path, suffix: str) -> None:
    _, state = other()
    file = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        write_pickle(file, state, matching_heuristics=True)
    elif suffix == ".safetensors":
        save_safetensors(state, file)
    else:
        torch.save({"model": state, "iteration": 3}, file)
    loaded = load_weights(file)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    model = Model()
    assert load_into(model, file, strict=True).complete
    assert same(model, state)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_of_training_programs(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    _, state = other()
    wrapped = {prefix + key: value for key, value in state.items()}
    torch.save({wrapper: wrapped, "epoch": 1} if wrapper else wrapped, tmp_path / "a.pth")
    model = Model()
    assert load_into(model, tmp_path / "a.pth").complete
    assert same(model, state)


def test_first_head_layout_without_versions(tmp_path: Path) -> None:
    _, state = other()
    file = write_pickle(tmp_path / "old.pkl", old_layout(state), matching_heuristics=True)
    model = Model()
    report = load_into(model, file, strict=True)
    assert same(model, {**state, "criterion.empty_weight": torch.ones(4)})
    assert len(report.converted) == 2
    assert "pixel_decoder" in str(report) and "query_feat" in str(report)


def test_parts_of_both_layouts_mix() -> None:
    _, state = other()
    mixed = {key.replace("pixel_decoder.mask", "mask"): value for key, value in state.items()}
    model = Model()
    assert load_into(model, mixed).complete
    assert same(model, state)


def test_sharded_directory(tmp_path: Path) -> None:
    _, state = other()
    keys = list(state)
    parts = {"model-1.safetensors": keys[:4], "model-2.safetensors": keys[4:]}
    for name, part in parts.items():
        save_safetensors({key: state[key] for key in part}, tmp_path / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(__import__("json").dumps({"weight_map": weight_map}))
    assert load_weights(tmp_path).keys() == state.keys()
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-2"):
        load_weights(index)
    index.write_text('{"weight_map": {"a": "../../etc/passwd.safetensors"}}')
    with pytest.raises(UnsafeCheckpointError, match="passwd"):
        load_weights(index)


def test_detectron2_backbone_pickle_is_matched_by_name_ends(tmp_path: Path) -> None:
    model, state = other()
    prefix = "backbone."
    short = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    fresh = Model()
    report = load_into(fresh, write_pickle(tmp_path / "R.pkl", short, matching_heuristics=True))
    loaded = fresh.state_dict()
    assert all(torch.equal(loaded[prefix + key], value) for key, value in short.items())
    assert all(key.startswith("sem_seg_head.") for key in report.missing)
    assert "sem_seg_head.* (7)" in str(report)
    assert not report.unexpected
    del model


def test_torchvision_resnet_names() -> None:
    torch.manual_seed(3)
    conv, scale = torch.randn(8, 8, 1, 1), torch.randn(8)
    state = {
        "conv1.weight": torch.randn(8, 3, 3, 3),
        "layer1.0.conv1.weight": conv,
        "layer1.0.bn1.weight": scale,
        "layer1.0.bn1.bias": scale,
        "layer1.0.bn1.running_mean": scale,
        "layer1.0.bn1.running_var": scale.abs(),
        "fc.weight": torch.zeros(10, 8),
    }
    model = Model()
    report = load_into(model, state)
    assert torch.equal(model.backbone.res2[0].conv1.weight, conv)
    assert torch.equal(model.backbone.res2[0].conv1.norm.running_mean, scale)
    assert torch.equal(model.backbone.stem.conv1.weight, state["conv1.weight"])
    assert not report.unexpected and all(key.startswith("sem_seg_head") for key in report.missing)


@pytest.mark.parametrize("timm", [False, True])
def test_bare_swin_names(timm: bool) -> None:
    class Swin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.patch_embed = nn.Module()
            self.backbone.patch_embed.proj = nn.Conv2d(3, 4, 4)
            self.backbone.layers = nn.ModuleList(nn.Module() for _ in range(2))
            for layer in self.backbone.layers:
                layer.blocks = nn.ModuleList([nn.Module()])
                layer.blocks[0].attn = nn.Module()
                layer.blocks[0].attn.qkv = nn.Linear(4, 12)
            self.backbone.layers[0].downsample = nn.Module()
            self.backbone.layers[0].downsample.reduction = nn.Linear(16, 8, bias=False)

    target = Swin().state_dict()
    state = {key.removeprefix("backbone."): torch.randn_like(value) for key, value in target.items()}
    if timm:
        state["layers.1.downsample.reduction.weight"] = state.pop("layers.0.downsample.reduction.weight")
    merging = state["layers.1.downsample.reduction.weight" if timm else "layers.0.downsample.reduction.weight"]
    extra = {"norm.weight": torch.ones(4), "head.weight": torch.ones(10, 4)}
    extra["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
    model = Swin()
    assert load_into(model, {**state, **extra}).complete
    assert torch.equal(model.backbone.layers[0].downsample.reduction.weight, merging)


def test_timm_and_torchvision_names_stay_for_load_weights(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "timm.pth")
    assert load_weights(tmp_path / "timm.pth").keys() == state.keys()


def test_other_class_count_is_reported_and_reinitialized() -> None:
    _, state = other(classes=3)
    model = Model(classes=6)
    before = model.sem_seg_head.predictor.class_embed.weight.detach().clone()
    report = load_into(model, state)
    assert report.reinitialized == [
        ("sem_seg_head.predictor.class_embed.weight", (4, 8), (7, 8)),
        ("sem_seg_head.predictor.class_embed.bias", (4,), (7,)),
        ("criterion.empty_weight", (4,), (7,)),
    ]
    assert torch.equal(model.sem_seg_head.predictor.class_embed.weight, before)
    assert not report.missing and not report.unexpected
    text = str(report)
    assert "class_embed.weight: (4, 8) in the file, (7, 8) now" in text
    assert f"{len(state) - 3} of {len(state)} weights loaded" in text


def test_report_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    _, state = other(queries=4)
    state["backbone.fc.weight"] = torch.zeros(2)
    del state["backbone.stem.conv1.weight"]
    with caplog.at_level(logging.INFO, "mask2former"):
        load_into(Model(), state)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    for part in (
        "query_feat.weight: (4, 8)",
        "backbone.fc.weight",
        "backbone.stem.conv1.weight",
        "not in the model",
    ):
        assert part in messages[0]


def test_strict_names_every_key_and_leaves_the_model_alone() -> None:
    _, state = other(classes=6)
    state["extra"] = torch.zeros(1)
    del state["backbone.stem.conv1.weight"]
    model = Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_into(model, state, strict=True)
    for key in ("extra", "backbone.stem", "class_embed.bias", "(7, 8)"):
        assert key in str(error.value)
    assert same(model, before)


def test_derived_buffers_need_not_be_there() -> None:
    _, state = other()
    del state["criterion.empty_weight"]
    del state["backbone.res2.0.conv1.norm.num_batches_tracked"]
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    model = Model()
    assert load_into(model, state, strict=True).complete
    assert torch.equal(model.criterion.empty_weight, torch.ones(4))


def test_tied_weights_are_not_missing() -> None:
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.b = model.a
    assert load_state_dict(model, {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}).complete
    assert torch.equal(model.b.weight, torch.ones(2, 2))


def test_half_precision_storage(tmp_path: Path) -> None:
    source, state = other()
    file = save_safetensors(source, tmp_path / "half.safetensors", torch.float16, {"classes": 3})
    with safe_open(str(file), "pt") as archive:
        assert archive.metadata() == {"format": "pt", "classes": "3"}
        assert archive.get_tensor("sem_seg_head.predictor.class_embed.bias").dtype == torch.float16
        assert archive.get_tensor("backbone.res2.0.conv1.norm.num_batches_tracked").dtype == torch.int64
    model = Model()
    load_into(model, file, strict=True)
    for key, value in model.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-6)


def test_half_precision_refuses_values_that_overflow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"big.*too large for torch\.float16"):
        save_safetensors({"big": torch.tensor([1e6])}, tmp_path / "a.safetensors", torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_of_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    state = {"a": base, "view": base[:, 1:], "transposed": base.t()}
    loaded = load_weights(save_safetensors(state, tmp_path / "a.safetensors"))
    assert all(torch.equal(loaded[key], state[key]) for key in state)


class Evil:
    def __reduce__(self) -> Any:
        return (eval, ("1 + 1",))


def test_code_is_refused_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Evil(), "__author__": "x"}))
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Evil()}, tmp_path / "a.pth")
    torch.save({"w": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pkl", "a.pth", "old.pth"):
        with pytest.raises(UnsafeCheckpointError, match=rf"{name}.*eval"):
            load_into(Model(), tmp_path / name)
    with pytest.raises(UnsafeCheckpointError):
        SafeCheckpointer(Model(), str(tmp_path)).load(str(tmp_path / "a.pkl"))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_cut_file_is_corrupt(tmp_path: Path, suffix: str, keep: float) -> None:
    _, state = other()
    file = tmp_path / f"cut{suffix}"
    if suffix == ".pkl":
        write_pickle(file, state)
    elif suffix == ".pth":
        torch.save(state, file)
    else:
        save_safetensors(state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptCheckpointError, match=rf"cut\{suffix}"):
        load_weights(file)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    ],
)
def test_what_downloads_leave_is_explained(tmp_path: Path, content: bytes, hint: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=hint):
        load_weights(tmp_path / "a.pth")


def test_contents_that_are_no_weights(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {"a": "text"}}, tmp_path / "text.pth")
    write_pickle(tmp_path / "text.pkl", {}, extra=1)
    (tmp_path / "text.pkl").write_bytes(pickle.dumps({"model": {"a": np.array(["x"])}, "__author__": "x"}))
    for name in ("list.pth", "text.pth", "text.pkl"):
        with pytest.raises(CorruptCheckpointError, match=name):
            load_weights(tmp_path / name)


def test_missing_files_say_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_weights(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_weights(tmp_path)
    with pytest.raises(ValueError, match="matching_heuristics"):
        torch.save({}, tmp_path / "a.pth")
        load_weights(f"{tmp_path}/a.pth?color=red")


# --- saving and resuming ------------------------------------------------------------------------------------


def training(directory: Path, model: nn.Module | None = None) -> tuple[SafeCheckpointer, Model, torch.optim.Optimizer]:
    model = model or Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    checkpointer = SafeCheckpointer(model, str(directory), optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    return checkpointer, model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_saved_state_is_data_and_resumes_exactly(tmp_path: Path) -> None:
    checkpointer, model, optimizer = training(tmp_path)
    step(model, optimizer)
    extra = {
        "iteration": np.int64(4),
        "random": get_random_state(),
        "array": np.arange(3, dtype=np.uint8),
        "best": {"AP": np.float64(0.5), 3: None},
        "names": {"a", "b"},
    }
    checkpointer.save("model_0000004", **extra)
    expected = np.random.rand(3), torch.rand(3)

    raw = torch.load(tmp_path / "model_0000004.pth", weights_only=True)
    assert raw["iteration"] == 4 and type(raw["iteration"]) is int
    assert type(raw["best"]["AP"]) is float and raw["names"] == {"a", "b"}
    assert raw["array"].tolist() == [0, 1, 2]

    again, other_model, other_optimizer = training(tmp_path)
    assert again.has_checkpoint()
    rest = again.resume_or_load("unused.pth", resume=True)
    assert rest["iteration"] == 4
    assert same(other_model, model.state_dict())
    set_random_state(rest["random"])
    np.testing.assert_array_equal(np.random.rand(3), expected[0])
    assert torch.equal(torch.rand(3), expected[1])
    step(model, optimizer)
    step(other_model, other_optimizer)
    assert same(other_model, model.state_dict())
    assert again.checkpointables["scaler"].get_scale() == 64.0


def test_without_resume_only_weights_are_loaded(tmp_path: Path) -> None:
    checkpointer, model, optimizer = training(tmp_path)
    step(model, optimizer)
    checkpointer.save("first")
    again, _, fresh = training(tmp_path)
    rest = again.resume_or_load(str(tmp_path / "first.pth"), resume=False)
    assert fresh.state_dict()["state"] == {}
    assert "optimizer" in rest
    assert SafeCheckpointer(Model()).load("") == {}


def test_what_is_no_data_is_named(tmp_path: Path) -> None:
    checkpointer, *_ = training(tmp_path)
    with pytest.raises(CheckpointError, match=r"hooks\['lr'\]\[1\] is a .*function"):
        checkpointer.save("bad", hooks={"lr": [1, lambda: None]})
    with pytest.raises(ValueError, match="plain file name"):
        checkpointer.save("../bad")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer, model, optimizer = training(tmp_path)
    checkpointer.save("model_final", iteration=1)
    whole = (tmp_path / "model_final.pth").read_bytes()
    step(model, optimizer)

    def full_disk(data: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_final", iteration=2)
    assert (tmp_path / "model_final.pth").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpointer, model, optimizer = training(tmp_path)
    periodic = PeriodicCheckpointer(checkpointer, 1)
    states = []
    for iteration in range(3):
        step(model, optimizer)
        periodic.step(iteration)
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    torch.save({"model": other()[1]}, tmp_path / "pretrained.pth")  # newest file, but no state of this training
    newest = tmp_path / "model_0000002.pth"
    newest.write_bytes(newest.read_bytes()[:-100])

    again, resumed, _ = training(tmp_path)
    with caplog.at_level(logging.ERROR, "mask2former"):
        assert again.resume_or_load("", resume=True)["iteration"] == 1
    assert same(resumed, states[1])
    assert "model_0000002.pth" in caplog.text and "OLDER CHECKPOINT" in caplog.text

    newest.unlink()
    assert training(tmp_path)[0].resume_or_load("", resume=True)["iteration"] == 1
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptCheckpointError, match=r"model_0000000\.pth"):
        training(tmp_path)[0].resume_or_load("", resume=True)


def test_resume_in_an_empty_directory_loads_the_weights(tmp_path: Path) -> None:
    source, state = other()
    torch.save(source.state_dict(), tmp_path / "start.pth")
    model = Model()
    SafeCheckpointer(model, str(tmp_path / "out")).resume_or_load(str(tmp_path / "start.pth"), resume=True)
    assert same(model, state)


def test_wrapped_models_are_unwrapped(tmp_path: Path) -> None:
    source, state = other()
    SafeCheckpointer(nn.DataParallel(source), str(tmp_path)).save("a")
    assert load_weights(tmp_path / "a.pth").keys() == state.keys()
    model = nn.DataParallel(Model())
    load_into(model, tmp_path / "a.pth", strict=True)
    assert same(model.module, state)


def test_save_to_disk_can_be_switched_off(tmp_path: Path) -> None:
    SafeCheckpointer(Model(), str(tmp_path), save_to_disk=False).save("a")
    assert list(tmp_path.iterdir()) == []


def test_strict_checkpointer(tmp_path: Path) -> None:
    torch.save(other(classes=9)[1], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="class_embed"):
        SafeCheckpointer(Model(), str(tmp_path), strict=True).load(str(tmp_path / "a.pth"))
    checkpointer = SafeCheckpointer(Model(), str(tmp_path))
    checkpointer.load(str(tmp_path / "a.pth"))
    assert checkpointer.last_report is not None and len(checkpointer.last_report.reinitialized) == 3


def test_atomic_write_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.bin"
    with atomic_write(file) as stream:
        stream.write(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(file) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    "name",
    ["model.{}", "net.model.{}", "learner.{}", "_fsdp_wrapped_module.{}", "module.module.{}"],
)
def test_prefixes_of_training_programs(tmp_path: Path, name: str) -> None:
    """Lightning and others; its state dict also has entries of the training beside the model's."""
    _, state = other()
    wrapped = {name.format(key): value for key, value in state.items()}
    extra = {"loss.weight": torch.ones(1)}
    torch.save({"state_dict": {**wrapped, **extra}, "pytorch-lightning_version": "2.0"}, tmp_path / "a.ckpt")
    model = Model()
    report = load_into(model, tmp_path / "a.ckpt")
    assert report.unexpected == ["loss.weight"] and not report.missing and same(model, state)


def test_names_of_wrapped_parts() -> None:
    _, state = other()
    wrapped = {key.replace("backbone.", "backbone._orig_mod."): value for key, value in state.items()}
    model = Model()
    assert load_into(model, wrapped).complete and same(model, state)


def test_two_models_in_one_file(tmp_path: Path) -> None:
    _, state = other()
    both = {prefix + key: value for prefix in ("student.", "teacher.") for key, value in state.items()}
    with pytest.raises(CheckpointError, match=r"several models: student\., teacher\."):
        load_into(Model(), both)
    usual = {prefix + key: value for prefix in ("model.", "ema_model.") for key, value in state.items()}
    report = load_into(Model(), usual)
    assert not report.missing and len(report.unexpected) >= len(state) - 1
    torch.save({"first": state, "second": state}, tmp_path / "a.pth")
    with pytest.raises(CorruptCheckpointError, match="'first', 'second'"):
        load_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "wrap", [lambda s: {"ema": {"average": s, "updates": 3}}, lambda s: {"model_ema": s, "step": 1}]
)
def test_files_with_ema_weights_only(tmp_path: Path, wrap: Any) -> None:
    _, state = other()
    torch.save(wrap(state), tmp_path / "a.pth")
    model = Model()
    assert load_into(model, tmp_path / "a.pth").complete and same(model, state)


def test_what_must_fit_for_results_and_for_training() -> None:
    _, state = other()
    load_into(Model(), state).require_all(allow_partial=False)
    head = load_into(Model(classes=8), state)
    with pytest.raises(CheckpointError, match=r"class_embed\.weight: \(4, 8\) in the file, \(9, 8\) in the model"):
        head.require_all(allow_partial=False)
    head.require_all(allow_partial=True)
    head.require_some()
    queries = load_into(Model(queries=9), state)
    with pytest.raises(CheckpointError, match=r"only \d+ of \d+ weights.*query_feat.*ALLOW_PARTIAL_WEIGHTS"):
        queries.require_all(allow_partial=False)
    backbone = load_into(Model(), {key: value for key, value in state.items() if key.startswith("backbone.")})
    with pytest.raises(CheckpointError, match="missing from the file, for example sem_seg_head"):
        backbone.require_all(allow_partial=False)
    backbone.require_some()
    # The derived buffer alone is no weight.
    nothing = load_into(Model(), {"net.conv": torch.ones(1), "criterion.empty_weight": torch.ones(4)})
    for check in (nothing.require_some, lambda: nothing.require_all(allow_partial=True)):
        with pytest.raises(CheckpointError, match=r"0 of \d+ weights.*net\.conv.*backbone"):
            check()


def test_integers_are_no_weights() -> None:
    _, state = other()
    key = "sem_seg_head.predictor.class_embed.weight"
    with pytest.raises(CheckpointError, match=f"{key} holds integers.*int8"):
        load_into(Model(), {**state, key: state[key].to(torch.int8)})
    with pytest.raises(CheckpointError, match=f"{key}' is a sparse tensor"):
        load_into(Model(), {**state, key: state[key].to_sparse()})


def test_names_that_heuristics_cannot_match(monkeypatch: pytest.MonkeyPatch) -> None:
    from mask2former.checkpoint import key_mapping

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("res2")

    monkeypatch.setattr(key_mapping, "align_and_update_state_dicts", fail)
    with pytest.raises(CheckpointError, match=r"a\.pkl: its names cannot be matched"):
        load_state_dict(Model(), {"x": torch.ones(1)}, source="a.pkl", match_names=True)
