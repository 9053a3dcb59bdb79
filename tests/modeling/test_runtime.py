"""The ways in which the network is run give the same results."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mask2former.config import load_config
from mask2former.modeling import compiled_shapes, cuda_graphs, network_call, runtime
from mask2former.modeling.backbone.swin import WindowAttention
from mask2former.modeling.compiled_shapes import CompiledShapes
from mask2former.modeling.cuda_graphs import GraphCache
from mask2former.modeling.runtime import Runtime
from mask2former.modeling.shape_cache import ShapeCache, holding
from mask2former.modeling.transformer_decoder import mask2former_transformer_decoder
from mask2former.test_time_augmentation import MaskFormerWithTTA
from mask2former.video.tracking import clip_model
from mask2former.video.windows import WindowSettings

from .tiny_models import CONVOLUTIONS, clip, record, tiny

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
R18 = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.MASK_FORMER.DEC_LAYERS", 3)
CHEAP = (*CONVOLUTIONS, "MODEL.MASK_FORMER.DEC_LAYERS", 2)  # where the size and not the parts of a network matters


class Hooked(nn.Module):
    """A module of another project."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def losses_and_gradients(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_compiled_training_gives_the_same_losses_and_gradients(config: str) -> None:
    torch.compiler.reset()
    model = tiny(config, *(CHEAP if config == VIDEO else R18))
    make = clip if config == VIDEO else record
    frames = (2,) if config == VIDEO else ()
    batch = [make(64, 64, *frames, 3, 30), make(64, 64, *frames, 2, 30, 1)]
    losses, gradients = losses_and_gradients(model, batch)
    model.runtime.compile_training, model.runtime.compiler = True, {"backend": "eager"}
    compiled, of_compiled = losses_and_gradients(model, batch)
    assert len(model.runtime._compiled) == 1
    torch.testing.assert_close(compiled, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_compiled, gradients, rtol=1e-3, atol=1e-4)


def test_a_compiler_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()

    def backend(graph: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler")

    model = tiny(PANOPTIC, *CHEAP, "MODEL.COMPILE", "compile")
    model.runtime.compiler = {"backend": backend}
    batch = [record(64, 64, 2, 30)]
    with caplog.at_level(logging.WARNING, "mask2former"):
        losses, _ = losses_and_gradients(model, batch)
        losses_and_gradients(model, batch)
    model.runtime = Runtime("off")
    torch.testing.assert_close(losses, losses_and_gradients(model, batch)[0])
    assert sum("the network is not compiled" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_on_the_cpu_modules_are_called_as_they_are(mode: str) -> None:
    model = tiny(PANOPTIC, *R18, "MODEL.COMPILE", mode).eval()
    called: list[str] = []
    model.backbone.register_forward_hook(lambda *_: called.append("backbone"))
    model.sem_seg_head.register_forward_hook(lambda *_: called.append("head"))
    with torch.no_grad():
        model([record(64, 64, 0)])
    assert called == ["backbone", "head"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_prepared_weights_on_the_cpu(dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where a mask logit is near 0, rounding decides whether a query attends to a token, and results jump.
    monkeypatch.setattr(mask2former_transformer_decoder, "blocked_keys", lambda logits: logits.isinf())
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *R18, "MODEL.COMPILE", "graph").eval()
    images = torch.randn(1, 3, 64, 96)
    parts = model.backbone, model.sem_seg_head

    def check() -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            found, expected = model.runtime(*parts, images), Runtime("off")(*parts, images)
        close = 1e-3 if dtype is None else 0.3
        torch.testing.assert_close(found["pred_logits"], expected["pred_logits"], rtol=close, atol=close)

    check()
    prepared = list(model.runtime._prepared.values())
    with torch.no_grad():
        model.backbone.res2[0].conv1.weight.mul_(3)
    check()
    model.backbone.res3[0].conv1.weight.data.mul_(3)  # which PyTorch does not count
    check()
    assert list(model.runtime._prepared.values()) == prepared
    model.sem_seg_head.predictor.decoder_norm.register_forward_hook(lambda m, x, y: 2 * y)
    check()
    assert list(model.runtime._prepared.values()) != prepared


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let images of 64 x 96 pixels be worth preparing, on every CPU."""
    monkeypatch.setattr(runtime, "_WORTH_PREPARING", 64 * 96)
    monkeypatch.setattr(runtime, "runs_onednn", lambda: True)


def outputs(ours: Runtime, model: Any, images: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        found = ours(model.backbone, model.sem_seg_head, images)
        return {name: found[name] for name in ("pred_logits", "pred_masks")}


@pytest.mark.usefixtures("worth")
def test_predictions_on_the_cpu_use_prepared_weights_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask2former_transformer_decoder, "blocked_keys", lambda logits: logits.isinf())
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *R18).eval()
    images = torch.randn(1, 3, 64, 96)
    ours = model.runtime.of_prediction
    assert ours is model.runtime.of_prediction is ours.of_prediction  # shared by all who predict with the model
    for step in ("first", "again", "changed"):
        if step == "changed":
            model.backbone.res3[0].conv1.weight.data.mul_(1.5)
        found, expected = outputs(ours, model, images), outputs(Runtime("off"), model, images)
        assert list(ours._prepared) == [None]
        for name, value in expected.items():
            assert (found[name] - value).norm() <= 1e-5 * value.norm(), name
    outputs(ours, model, images, torch.bfloat16)
    assert list(ours._prepared) == [None, torch.bfloat16]
    outputs(model.runtime, model, images)
    assert not model.runtime._prepared  # that of evaluations
    assert copy.deepcopy(ours).predicts and pickle.loads(pickle.dumps(ours)).predicts


@pytest.mark.usefixtures("worth")
@pytest.mark.parametrize("case", ["small", "float64", "float16", "hooked", "machine", "off", "evaluation"])
def test_other_predictions_on_the_cpu_call_modules_as_they_are(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = tiny(PANOPTIC, *R18).eval()
    images, dtype, ours = torch.randn(1, 3, 64, 96), None, Runtime("auto", predicts=True)
    if case == "small":
        images = images[..., :64]
    elif case == "float64":
        model, images = model.double(), images.double()
    elif case == "float16":
        dtype = torch.float16
    elif case == "hooked":
        model.backbone.res4[0].register_forward_hook(lambda *_: None)
    elif case == "machine":
        monkeypatch.setattr(runtime, "runs_onednn", lambda: False)
    elif case == "off":
        ours = Runtime("off", predicts=True).of_prediction
    else:
        ours = model.runtime
    found = outputs(ours, model, images, dtype)
    assert not ours._prepared
    torch.testing.assert_close(found, outputs(Runtime("off"), model, images, dtype), rtol=0, atol=0)


@pytest.mark.parametrize("together", [2**22, 2 * 64 * 96])
def test_clips_in_prepared_form_on_the_cpu(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame by frame until the decoder, with the embeddings of the queries."""
    monkeypatch.setattr(network_call, "_TOGETHER", together)
    torch.manual_seed(0)
    model = tiny(VIDEO, *R18).eval()
    images = torch.randn(3, 3, 64, 96)
    ours = Runtime("graph")
    with torch.no_grad():
        found, expected = model.clip_outputs(images, ours), model.clip_outputs(images)
    assert len(ours._prepared) == 1 and not model.runtime._prepared
    assert found.keys() == expected.keys() == {"pred_logits", "pred_masks", "pred_embeds"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiled_clips_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_call, "_TOGETHER", 2 * 64 * 64)
    torch.compiler.reset()
    torch.manual_seed(0)
    model = tiny(VIDEO, *CHEAP).eval()
    images, compiled = torch.randn(3, 3, 64, 64), Runtime("compile")
    compiled.compiler = {"backend": "eager"}
    with torch.no_grad():
        found, expected = model.clip_outputs(images, compiled), model.clip_outputs(images)
    assert len(compiled._compiled) == 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_sizes_are_compiled_when_they_come_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one at once, a few in all; the others run without the compiler."""
    monkeypatch.setattr(compiled_shapes, "OFTEN", 3)
    monkeypatch.setattr(compiled_shapes, "MOST", 2)
    torch.compiler.reset()
    torch.manual_seed(0)
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    model = tiny(PANOPTIC, *CHEAP).eval()
    compiled = Runtime("compile")
    compiled.compiler = {"backend": backend}
    made = []
    with torch.no_grad():
        for height in (64, 64, 96, 96, 96, 96, 128, 128, 128, 128, 64):
            images, before = torch.randn(1, 3, height, 64), len(graphs)
            found = compiled(model.backbone, model.sem_seg_head, images)
            made.append(len(graphs) > before)
            expected = Runtime("off")(model.backbone, model.sem_seg_head, images)
            torch.testing.assert_close(found["pred_logits"], expected["pred_logits"], rtol=1e-3, atol=1e-3)
    assert made == [True, False, False, False, True, *[False] * 6]


def test_each_of_many_models_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts the forms of a function over all models of a process, and gives up after eight."""
    monkeypatch.setattr(compiled_shapes, "OFTEN", 1)
    torch.compiler.reset()
    graphs: list[Any] = []

    class Head(nn.Module):
        def forward(self, maps: Any) -> Any:
            return {"pred_logits": maps["res2"].sum(1)}

    class Backbone(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return {"res2": 2 * images}

    made = []
    with torch.no_grad():
        for number in range(4):
            compiled = Runtime("compile")
            compiled.compiler = {"backend": lambda graph, _: graphs.append(graph) or graph.forward}
            backbone, head, before = Backbone().eval(), Head().eval(), len(graphs)
            for size in (8, 16, 24, 32):
                compiled(backbone, head, torch.ones(1, 3, size, size + number))
            made.append(len(graphs) - before)
    torch.compiler.reset()
    assert made == [8] * 4


def test_which_shapes_are_compiled() -> None:
    shapes = CompiledShapes()
    assert shapes("a") and shapes("a")
    assert [shapes("b") for _ in range(100)] == [False] * 99 + [True]
    for name in ("c", "d"):
        assert [shapes(name) for _ in range(100)][-1]
    assert not any(shapes("e") for _ in range(300)) and shapes("b")
    shapes.clear()
    assert shapes("e") and not shapes("b")
    for number in range(5000):  # does not fill the memory
        assert not shapes(number)
    assert len(shapes._calls) <= 1000


def test_modes() -> None:
    with pytest.raises(ValueError, match="must be one of auto, off, graph, compile, not 'fast'"):
        Runtime("fast")
    copied = copy.deepcopy(Runtime("graph"))
    assert copied.mode == "graph"


def test_only_modules_of_known_libraries_are_captured_unasked() -> None:
    model = tiny(PANOPTIC, *R18)
    assert runtime._is_known(model.backbone) and runtime._is_known(model.sem_seg_head)
    handle = model.backbone.res4[0].register_forward_hook(lambda *_: None)
    assert not runtime._is_known(model.backbone)
    handle.remove()
    model.backbone.res4[0].forward = lambda x: x
    assert not runtime._is_known(model.backbone)
    predictor = model.sem_seg_head.predictor
    predictor._decode = lambda *_: None  # a method that `forward` calls
    assert not runtime._is_known(model.sem_seg_head)
    del predictor._decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(predictor), "_decode", lambda *_: None)
        assert not runtime._is_known(model.sem_seg_head)
    assert runtime._is_known(model.sem_seg_head)
    model.sem_seg_head.pixel_decoder.layer_1 = Hooked()
    assert not runtime._is_known(model.sem_seg_head)


class Graphs:
    """Stands for the graphs of a runtime."""

    def __init__(self, error: Exception | None = None) -> None:
        self.keys: list[Any] = []
        self.error, self.cleared = error, False

    def __call__(self, key: Any, network: Any, images: Any) -> dict[str, Tensor]:
        self.keys.append(key)
        if self.error is not None:
            raise self.error
        return {}

    def __len__(self) -> int:
        return 1

    def clear(self) -> None:
        self.cleared = True


class Network:
    """Stands for the form of a network that is captured."""

    def __init__(self, fits: bool = True) -> None:
        self.fits = lambda: fits

    def __call__(self, images: Any, keywords: Any) -> dict[str, Tensor]:
        raise AssertionError("only its graph runs")


def infer(
    graphs: Graphs, network: Network, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any] | None = None
) -> tuple[Runtime, Callable[[], Any]]:
    """Return a runtime, and a call of its inference that takes place on a GPU as far as it can see."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(Runtime, "_prepared_network", lambda *_: network)
    images = SimpleNamespace(device=torch.device("cuda"), shape=(1, 3, 4, 4))
    ours = Runtime("graph")
    ours._graphs = graphs
    return ours, lambda: ours._infer(nn.Identity(), nn.Identity(), images, keywords or {})


def test_a_graph_is_not_used_under_other_settings_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs()
    _, call = infer(graphs, Network(), monkeypatch)
    call()
    call()
    assert len(set(graphs.keys)) == 1
    with torch.backends.cudnn.flags(deterministic=True):
        call()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        call()
    monkeypatch.setattr(runtime, "backend", lambda _: "another one")
    call()
    assert len(set(graphs.keys)) == 4


def test_a_graph_is_not_used_for_another_form_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs()
    for network in (Network(), Network()):  # the second is made while another thread captures the first
        infer(graphs, network, monkeypatch)[1]()
    assert len(set(graphs.keys)) == 2


def test_a_graph_is_not_used_for_other_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, network = Graphs(), Network()
    for keywords in ({}, {"frames": 1}, {"frames": 2}, {"frames": 2}):
        infer(graphs, network, monkeypatch, keywords)[1]()
    assert len(set(graphs.keys)) == 3


def test_graphs_that_do_not_fit_into_memory_do_not_end_smaller_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(torch.OutOfMemoryError("out of memory"))
    ours, call = infer(graphs, Network(), monkeypatch)
    with caplog.at_level(logging.WARNING, "mask2former"):
        assert call() is None and call() is None
    assert len(graphs.keys) == 1 and graphs.cleared
    assert sum("not enough memory for a CUDA graph" in message for message in caplog.messages) == 1
    graphs.error = None
    smaller = SimpleNamespace(device=torch.device("cuda"), shape=(1, 3, 4, 3))
    assert ours._infer(nn.Identity(), nn.Identity(), smaller, {}) == {}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_who_looks_at_operations_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs()
    _, call = infer(graphs, Network(), monkeypatch)
    with FlopCounterMode(display=False):
        assert call() is None
    assert not graphs.keys
    monkeypatch.setattr(Runtime, "_infer", lambda *_: {"x": torch.zeros(1)})
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: Runtime()(nn.Identity(), nn.Identity().eval(), x), torch.ones(1, 3, 4, 4))
    assert torch.equal(traced(torch.full((1, 3, 4, 4), 2.0)), torch.full((1, 3, 4, 4), 2.0))


@pytest.mark.parametrize("fits", [True, False])
def test_graphs_are_refused_for_what_a_network_is_not_for_a_change_of_it(
    fits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(RuntimeError("weights are on another device"))
    _, call = infer(graphs, Network(fits), monkeypatch)
    with caplog.at_level(logging.WARNING, "mask2former"):
        assert call() is None and call() is None
    assert graphs.cleared
    assert len(graphs.keys) == (1 if fits else 2)
    assert len(caplog.messages) == (1 if fits else 0)


def test_a_training_gets_the_memory_of_graphs() -> None:
    ours, backbone = Runtime(), nn.Identity()
    ours._graphs = Graphs()
    for training in (False, True):
        ours(backbone.train(training), nn.Identity().train(training), torch.ones(1, 3, 4, 4))
        assert ours._graphs.cleared is training


def test_graphs_of_frequent_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Captured:
        def __init__(self, function: Any, *_: Any) -> None:
            self.function = function

        def __call__(self, inputs: Any) -> Any:
            return self.function(*inputs)

    monkeypatch.setattr(cuda_graphs, "CapturedFunction", Captured)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(cuda_graphs, "GraphMemory", lambda stream: None)
    cache = GraphCache(entries=2, after=2)

    def run(width: int) -> bool:
        return cache("key", lambda x: {"x": x}, torch.zeros(1, 3, 4, width)) is not None

    assert [run(1) for _ in range(3)] == [False, True, True]
    assert [run(2) for _ in range(3)] == [False, True, True]
    assert [run(3) for _ in range(8)] == [False] * 7 + [True]  # in the place of the first
    assert cache.captured == 3 and run(2) and not run(1)
    cache.clear()
    assert not run(2)

    large = GraphCache(entries=9, after=1, pixels=20)
    for width in (3, 2, 7, 1):  # 12, 8, 28 and 4 pixels: the third takes the place of all before
        assert [large("key", lambda x: {"x": x}, torch.zeros(1, 3, 4, width)) is not None for _ in range(8)][-1]
    assert [shapes[0][0][-1] for shapes, *_ in large._graphs] == [1]
    both = large("key", lambda x, y: {"x": x + y}, torch.ones(1, 3, 4, 1), torch.ones(1))
    assert both is not None and both["x"].eq(2).all() and len(large) == 2


def test_what_a_graph_reads_is_held() -> None:
    cache: ShapeCache[Tensor] = ShapeCache(entries=1)
    first = cache("a", lambda: torch.ones(1))
    held: list[object] = []
    with holding(held):
        assert cache("a", lambda: torch.zeros(1)) is first
        second = cache("b", lambda: torch.zeros(1))
    cache("c", lambda: torch.zeros(1))
    assert held == [first, second]


def test_what_only_a_graph_computes_is_not_for_others() -> None:
    cache: ShapeCache[Tensor] = ShapeCache()
    with holding([]):
        of_graph = cache("a", lambda: torch.ones(1))
    assert cache("a", lambda: torch.zeros(1)) is not of_graph


def test_a_graph_computes_the_bias_of_windows() -> None:
    attention = WindowAttention(8, 2, 2)
    with torch.no_grad():
        cached = attention._bias()
        assert attention._bias() is cached
        with holding([]):
            captured = attention._bias()
    assert captured is not cached and torch.equal(captured, cached)


# ---- on a GPU


def on_gpu(config: str, mode: str, *overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    return tiny(config, *overrides, "MODEL.DEVICE", "cuda", "MODEL.COMPILE", mode).eval()


def predict(model: nn.Module, batch: list[dict[str, Any]], dtype: torch.dtype | None) -> list[Any]:
    with torch.inference_mode(), torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
        return model(batch)


def check_same(results: list[Any], expected: list[Any]) -> None:
    for ours, wanted in zip(results, expected, strict=True):
        assert torch.equal(ours["panoptic_seg"][0], wanted["panoptic_seg"][0])
        assert ours["panoptic_seg"][1] == wanted["panoptic_seg"][1]
        assert torch.equal(ours["sem_seg"], wanted["sem_seg"])
        for name, value in wanted["instances"].get_fields().items():
            given = ours["instances"].get(name)
            assert torch.equal(getattr(given, "tensor", given), getattr(value, "tensor", value)), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config", [PANOPTIC, "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"], ids=["R50", "Swin-T"]
)
def test_graphs_give_the_same_results_bit_for_bit(config: str, dtype: torch.dtype | None) -> None:
    plain, captured = on_gpu(config, "off"), on_gpu(config, "auto")
    batches = [[record(96, 128, 0, seed=1)], [record(96, 150, 0, seed=2)], [record(64, 64, 0), record(50, 64, 0)]]
    for _ in range(3):
        for batch in batches:
            check_same(predict(captured, batch, dtype), predict(plain, batch, dtype))
    assert captured.runtime.captured == captured.runtime.held == 3
    captured.runtime._forget()
    assert captured.runtime.captured == 3 and captured.runtime.held == 0


def predict_clip(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    with torch.inference_mode(), torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
        return clip_model(model, WindowSettings.online()).clip_outputs(images)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("config", [PANOPTIC, VIDEO], ids=["frames", "clips"])
def test_graphs_of_clips_give_the_same_results_bit_for_bit(
    config: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image models frame by frame; video models on clips, whose backbone sees two frames at a time."""
    monkeypatch.setattr(network_call, "_TOGETHER", 2 * 96 * 128)
    plain, captured = on_gpu(config, "off"), on_gpu(config, "auto")
    lengths = (1,) if config == PANOPTIC else (3, 2, 1)
    for seed in range(3):
        for frames in lengths:
            generator = torch.Generator().manual_seed(10 * seed + frames)
            images = torch.randn(frames, 3, 96, 128, generator=generator).cuda()
            found, expected = predict_clip(captured, images, dtype), predict_clip(plain, images, dtype)
            assert found.keys() == expected.keys() == {"pred_logits", "pred_masks", "pred_embeds"}
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert captured.runtime.captured == len(lengths)
    assert not plain.runtime.captured


@pytest.mark.gpu
def test_images_and_frames_of_one_size_have_graphs_of_their_own() -> None:
    plain, captured = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "graph")
    batch = [record(96, 128, 0)]
    images = captured.preprocess(batch).tensor
    for _ in range(2):
        check_same(predict(captured, batch, None), predict(plain, batch, None))
        found, expected = predict_clip(captured, images, None), predict_clip(plain, images, None)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert captured.runtime.captured == 2


@pytest.mark.gpu
def test_eight_usual_images_get_a_graph() -> None:
    plain, captured = on_gpu(PANOPTIC, "off", *R18), on_gpu(PANOPTIC, "graph", *R18)
    batch = [record(800, 1333, 0, seed=i) for i in range(8)]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        images = captured.preprocess(batch).tensor
        found, expected = (m.runtime(m.backbone, m.sem_seg_head, images)["pred_logits"] for m in (captured, plain))
    assert captured.runtime.captured == 1 and torch.equal(found, expected)


@pytest.mark.gpu
def test_test_time_augmentation_uses_graphs() -> None:
    cfg = load_config(None, ["TEST.AUG.MIN_SIZES", [64, 96], "TEST.AUG.FLIP", True, "INPUT.FORMAT", "RGB"])
    plain, captured = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "auto")
    batch = [{**record(64, 96, 0), "height": 64, "width": 96}]
    for _ in range(2):
        expected = MaskFormerWithTTA(cfg, plain)(batch)
        check_same(MaskFormerWithTTA(cfg, captured)(batch), expected)
    assert captured.runtime.captured == 2


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["in place", "data", "exchanged", "module", "hook", "device"])
def test_graphs_see_changes_of_the_model(how: str) -> None:
    plain, captured = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "graph")
    batch = [record(96, 128, 0)]
    check_same(predict(captured, batch, torch.bfloat16), predict(plain, batch, torch.bfloat16))
    seen = []
    for model in (plain, captured):
        convolution, norm = model.backbone.res4[0].conv1, model.sem_seg_head.predictor.decoder_norm
        if how == "in place":
            with torch.no_grad():
                convolution.weight.mul_(1.5)
                norm.weight.mul_(0.5)
        elif how == "data":
            convolution.weight.data.mul_(1.5)
        elif how == "exchanged":
            norm.weight.data = norm.weight.data * 0.5
        elif how == "module":
            torch.manual_seed(1)
            model.sem_seg_head.predictor.class_embed = nn.Linear(32, 134).cuda()
        elif how == "hook":
            norm.register_forward_hook(lambda m, x, y: (seen.append(1), y * 2)[1])
        else:
            model.cpu().cuda()
    check_same(predict(captured, batch, torch.bfloat16), predict(plain, batch, torch.bfloat16))
    check_same(predict(captured, batch, torch.bfloat16), predict(plain, batch, torch.bfloat16))


@pytest.mark.gpu
def test_graphs_see_changes_of_the_bias_of_windows() -> None:
    swin = "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
    plain, captured = on_gpu(swin, "off"), on_gpu(swin, "graph")
    batches = [[record(96, 128, 0)], [record(64, 96, 0)]]
    check_same(predict(captured, batches[0], torch.bfloat16), predict(plain, batches[0], torch.bfloat16))
    for model in (plain, captured):
        for name, weight in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                with torch.no_grad():
                    weight.mul_(50)
    for batch in (*batches, batches[0]):  # the second size is captured after the change
        check_same(predict(captured, batch, torch.bfloat16), predict(plain, batch, torch.bfloat16))


@pytest.mark.gpu
def test_many_sizes_and_streams_share_graphs() -> None:
    plain, captured = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "auto")
    captured.runtime._graphs.entries = 3
    stream = torch.cuda.Stream()
    for i in range(40):
        batch = [record(64 + 32 * (i * 7 % 5), 96, 0, seed=i)]
        expected = predict(plain, batch, torch.bfloat16)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream if i % 2 else torch.cuda.current_stream()):
            found = predict(captured, batch, torch.bfloat16)
        torch.cuda.synchronize()
        check_same(found, expected)


@pytest.mark.gpu
def test_graphs_of_sizes_do_not_overlap_on_streams() -> None:
    plain, captured = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "graph")
    batches = [[record(256 + 128 * (i % 2), 512, 0, seed=i)] for i in range(40)]
    for batch in batches[:2]:
        predict(captured, batch, torch.bfloat16)
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream(), torch.cuda.Stream()], []
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for i, batch in enumerate(batches):
            with torch.cuda.stream(streams[i % 2]):
                images = captured.preprocess(batch).tensor
                found.append(captured.runtime(captured.backbone, captured.sem_seg_head, images)["pred_logits"])
        torch.cuda.synchronize()
        for batch, logits in zip(batches, found, strict=True):
            images = plain.preprocess(batch).tensor
            wanted = plain.runtime(plain.backbone, plain.sem_seg_head, images)["pred_logits"]
            assert torch.equal(logits, wanted)
    assert captured.runtime.captured == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("first", [0, 1])
def test_graphs_on_another_device_than_the_current_one(first: int) -> None:
    for number in (first, 1 - first):
        plain, captured = (on_gpu(PANOPTIC, mode).to(f"cuda:{number}") for mode in ("off", "graph"))
        for seed in range(3):  # a graph that holds nothing gives the first results for all images
            batch = [record(96, 128, 0, seed=seed)]
            check_same(predict(captured, batch, torch.bfloat16), predict(plain, batch, torch.bfloat16))
        assert captured.runtime.captured == 1


@pytest.mark.gpu
def test_what_cannot_be_captured_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert x.sum().item() is not None
            return super().forward(x)

    plain, captured = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "graph")
    for model in (plain, captured):
        torch.manual_seed(1)
        model.sem_seg_head.predictor.class_embed = Waiting(32, 134).cuda()
    batch = [record(96, 128, 0)]
    with caplog.at_level(logging.WARNING, "mask2former"):
        for _ in range(3):
            check_same(predict(captured, batch, None), predict(plain, batch, None))
    assert sum("CUDA graphs are not used" in message for message in caplog.messages) == 1
    assert torch.rand(8, device="cuda").unique().numel() > 1  # random numbers still work


@pytest.mark.gpu
def test_training_goes_on_after_graphs_of_an_evaluation() -> None:
    model = on_gpu(PANOPTIC, "auto")
    batch = [record(96, 128, 2, 30)]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        predict(model, batch, torch.bfloat16)
        predict(model, batch, torch.bfloat16)
        model.train()
        with torch.autocast("cuda", torch.bfloat16):
            sum(model(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
    plain = copy.deepcopy(model)
    plain.runtime = Runtime("off")
    check_same(predict(model, batch, torch.bfloat16), predict(plain, batch, torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_inference_is_close() -> None:
    torch.compiler.reset()
    plain, compiled = on_gpu(PANOPTIC, "off"), on_gpu(PANOPTIC, "compile")
    for size in (96, 128, 160):
        batch = [record(size, 128, 0)]
        wanted, found = predict(plain, batch, None)[0]["sem_seg"], predict(compiled, batch, None)[0]["sem_seg"]
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_training_on_a_gpu() -> None:
    torch.compiler.reset()
    model = tiny(PANOPTIC, *R18, "MODEL.DEVICE", "cuda")
    batch = [record(64, 64, 3, 30), record(64, 64, 2, 30, 1)]
    losses, gradients = losses_and_gradients(model, batch)
    model.runtime.compile_training = True
    compiled, of_compiled = losses_and_gradients(model, batch)
    torch.testing.assert_close(compiled, losses, rtol=1e-2, atol=1e-3)
    norms = [torch.stack([g.norm() for g in x]).norm() for x in (of_compiled, gradients)]
    torch.testing.assert_close(*norms, rtol=2e-2, atol=0)
