"""Graphs of training, on a CPU that plays a GPU: what a capture saw is computed again at each replay."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mask2former.modeling import runtime, training_graphs
from mask2former.modeling.checkpointing import checkpoint_parts
from mask2former.modeling.outputs import DecoderOutputs, MaskLogits, Row, layer_outputs, split, unread
from mask2former.modeling.point_sampling import Predictions
from mask2former.modeling.runtime import Runtime
from mask2former.modeling.training_graphs import TrainingGraphs
from mask2former.modeling.transformer_decoder import mask2former_transformer_decoder
from mask2former.utils import host_random

from .tiny_models import clip, record, tiny

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
QUALITY = ("MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True)
SELECTION = ("MODEL.MASK_FORMER.QUERY_SELECTION", True)
R18 = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.MASK_FORMER.DEC_LAYERS", 3)


class Recorder(TorchDispatchMode):
    """Keeps the operations of a capture with the memory they work on."""

    def __init__(self, operations: list[Any]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """A graph that repeats operations."""

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for func, args, kwargs, out in self.operations:
                again = func(*args, **kwargs)
                for place, value in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: Any) -> None:
        self.waits.append("wait")

    waits: ClassVar[list[str]] = []


class Gpu:
    """The functions of `torch.cuda` that captures use."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.error: Exception | None = None
        self.random = 0

    @contextlib.contextmanager
    def context(self, *_: Any) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graph(self, graph: Graph, **_: Any) -> Iterator[None]:
        self.graphs.append(graph)
        if self.error is not None:
            raise self.error
        with Recorder(graph.operations):
            yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, gpu.context)
    monkeypatch.setattr(torch.cuda, "graph", gpu.graph)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    monkeypatch.setattr(host_random, "_of_torch", lambda: torch.zeros(1))  # its numbers are those of the GPU
    monkeypatch.setattr(runtime, "may_capture", lambda images: torch.is_grad_enabled())
    monkeypatch.setattr(runtime, "_autocast", lambda: ())
    return gpu


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, bias=True), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)).double()


def run(module: nn.Module) -> Any:
    return lambda inputs: {"x": module(inputs[0])}


def images(seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(2, 3, 5, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_gradients_statistics_and_outputs_are_those_of_the_modules(gpu: Gpu) -> None:
    ours, plain = net(), net()
    graphs = TrainingGraphs(after=2)
    for step in range(5):
        x = images(step)
        outputs = graphs("key", run(ours), [ours], [x])
        assert (outputs is None) is (step < 1)
        outputs = run(ours)([x]) if outputs is None else outputs
        expected = plain(x)
        assert torch.equal(outputs["x"], expected)
        for each, y in ((ours, outputs["x"]), (plain, expected)):
            (y * torch.arange(4.0)[:, None, None]).square().sum().backward()
            with torch.no_grad():
                for p in each.parameters():
                    p -= 0.01 * p.grad  # in place: the graph reads the new weights
        for a, b in zip(gradients(ours), gradients(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(dict(ours.named_buffers())[name], buffer, rtol=1e-12, atol=1e-12)
        for p in (*ours.parameters(), *plain.parameters()):
            if step % 2:  # gradients of two steps are summed in the others
                p.grad = None
    assert graphs.captured == 1 and gpu.graphs[0].replays == 4


def test_gradients_that_somebody_keeps_do_not_change(gpu: Gpu) -> None:
    module = net()
    graphs = TrainingGraphs(after=1)
    kept = []
    for step in range(3):
        graphs("key", run(module), [module], [images(step)])["x"].square().sum().backward()
        kept.append(([p.grad for p in module.parameters()], gradients(module)))
        module.zero_grad(set_to_none=True)
    for now, before in kept:
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))


def test_parameters_stay_themselves(gpu: Gpu) -> None:
    module = net()
    before = dict(module.named_parameters())
    module[0].weight.requires_grad_(False)
    graphs = TrainingGraphs(after=1)
    graphs("key", run(module), [module], [images()])["x"].sum().backward()
    assert all(p is before[name] for name, p in module.named_parameters())
    assert module[0].weight.grad is None and module[3].weight.grad is not None


def test_unused_parameters_have_no_gradient(gpu: Gpu) -> None:
    module = net()
    module.add_module("unused", nn.Linear(2, 2).double())
    outputs = TrainingGraphs(after=1)("key", lambda x: {"x": module[0](x[0])}, [module], [images()])
    outputs["x"].sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == {"0.weight", "0.bias"}


def test_random_numbers_and_statistics_are_those_of_a_run_without_capture(gpu: Gpu) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).double()
    plain = copy.deepcopy(module)
    torch.manual_seed(5)
    expected = plain(images())
    torch.manual_seed(5)
    assert torch.equal(TrainingGraphs(after=1)("key", run(module), [module], [images()])["x"], expected)
    assert torch.equal(module[0].running_mean, plain[0].running_mean)
    assert module[0].num_batches_tracked == 1


class Head(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


def test_no_graph_where_inputs_or_modules_change(gpu: Gpu) -> None:
    module, head, ours = net(), Head(), Runtime("graph")
    runs = 0

    def captured(width: int = 6) -> bool:
        """Return whether a call ran the graphs."""
        nonlocal runs
        ours(module, head, images(width=width))
        before, runs = runs, gpu.graphs[0].replays
        return runs > before

    assert captured() and captured()
    assert not captured(width=7) and captured()  # one other size between: the graph stays
    module[0].weight.requires_grad_(False)
    assert not captured()
    module[0].weight.requires_grad_(True)
    assert captured()
    with torch.backends.cudnn.flags(deterministic=True):
        assert not captured()
    module[0].weight.data = module[0].weight.data.clone()
    assert not captured()
    assert ours.captured_in_training == 1


@pytest.mark.parametrize("change", ["eval", "hook", "replace", "method", "momentum"])
def test_no_graph_of_changed_modules(change: str, gpu: Gpu) -> None:
    module, head, ours = net(), Head(), Runtime("graph")
    ours(module, head, images())
    if change == "eval":
        module[1].eval()
    elif change == "hook":
        module[2].register_forward_hook(lambda m, x, y: 2 * y)
    elif change == "replace":
        module[2] = nn.Identity()
    elif change == "momentum":
        module[1].momentum = 0.5
    else:
        module[2].forward = lambda x: 3 * x
    plain = copy.deepcopy(module)
    expected = plain(images())
    assert torch.equal(ours(module, head, images())["x"], expected)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in plain.state_dict().items())
    assert gpu.graphs[0].replays == 1


def test_an_evaluation_between_steps_keeps_the_graphs(gpu: Gpu) -> None:
    module, head, ours = net(), Head(), Runtime("graph")
    ours(module, head, images())
    ours._of(module.eval(), head.eval())  # as in an evaluation that is not captured
    module.train(), head.train()
    module[1].momentum = 1.0  # as precise statistics do it
    ours._of(module, head)
    module[1].momentum = 0.1
    ours(module, head, images())
    assert ours.captured_in_training == 1 and gpu.graphs[0].replays == 2


def test_sizes_that_vary_are_not_captured(gpu: Gpu) -> None:
    module, graphs = net(), TrainingGraphs(after=3)
    sizes = [6, 7, 7, 8, 6, 6, 9, 6, 6]
    assert all(graphs("key", run(module), [module], [images(width=w)]) is None for w in sizes)
    assert not gpu.graphs
    assert graphs("key", run(module), [module], [images(width=6)]) is not None
    others = [graphs("key", run(module), [module], [images(width=8)]) is not None for _ in range(21)]
    assert others == [False] * 19 + [True] * 2  # a training that goes on at another size
    assert graphs.captured == 2


def test_a_second_forward_pass_before_the_backward_pass_is_left_to_the_modules(gpu: Gpu) -> None:
    module, graphs = net(), TrainingGraphs(after=1)
    first = graphs("key", run(module), [module], [images(0)])
    assert graphs("key", run(module), [module], [images(1)]) is None
    first["x"].sum().backward()
    second = graphs("key", run(module), [module], [images(1)])
    assert second is not None
    del second  # nobody asks for its gradients
    assert graphs("key", run(module), [module], [images(1)]) is not None


def test_a_second_backward_pass_is_refused(gpu: Gpu) -> None:
    module = net()
    loss = TrainingGraphs(after=1)("key", run(module), [module], [images()])["x"].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss.backward()


def test_an_evaluation_gets_the_memory_of_a_long_training(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_graphs, "_WORTH", 3)
    module, graphs = net(), TrainingGraphs(after=2)
    outputs: list[bool] = []
    for step in range(6):
        outputs.append(graphs("key", run(module), [module], [images(step)]) is not None)
        if step in (2, 4):
            graphs.make_room()
    assert outputs == [False, True, True, True, True, True]
    assert graphs.captured == 2  # dropped after the fifth step, and made again at once


def test_a_failed_capture_changes_nothing(gpu: Gpu) -> None:
    module = net()
    before, parameters = copy.deepcopy(module.state_dict()), dict(module.named_parameters())
    state = torch.get_rng_state()
    gpu.error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="not permitted"):
        TrainingGraphs(after=1)("key", run(module), [module], [images()])
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p is parameters[name] for name, p in module.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_split_reads_nothing() -> None:
    logits, embeds, features = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 5), torch.randn(1, 1, 5, 2, 2)
    outputs = layer_outputs(logits, [MaskLogits(each, features, False) for each in embeds], denoising=[embeds[0]])
    tensors, build = split(outputs)
    assert len(tensors) == 5  # stack, two embeddings, features, and another view of an embedding
    built = build([2 * x for x in tensors])
    assert isinstance(built, DecoderOutputs) and unread(outputs, "pred_masks") is not None
    assert isinstance(unread(built, "pred_logits"), Row) and isinstance(unread(built, "pred_masks"), MaskLogits)
    assert torch.equal(built["pred_logits"], 2 * outputs["pred_logits"])
    assert torch.equal(built["aux_outputs"][0]["pred_masks"], 4 * outputs["aux_outputs"][0]["pred_masks"])
    assert torch.equal(built["denoising"][0], 2 * embeds[0])
    with pytest.raises(TypeError, match="not int"):
        split({"a": 1})


def test_split_keeps_lists_and_tuples() -> None:
    x = torch.ones(2)
    for value in ((x, [x]), [x, (x, x)]):
        tensors, build = split(value)
        built = build(tensors)
        assert type(built) is type(value) and type(built[1]) is type(value[1]) and built[0] is x


def test_split_keeps_quality_groups_and_selection() -> None:
    logits, quality, embeds = torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6), torch.randn(1, 6, 5)
    features = torch.randn(1, 1, 5, 2, 2)

    def part(queries: slice) -> DecoderOutputs:
        masks = [MaskLogits(embeds[:, queries], features, False)] * 2
        return layer_outputs(logits[:, :, queries], masks, quality[:, :, queries])

    outputs, other = part(slice(3)), part(slice(3, 6))
    selected = DecoderOutputs(
        pred_logits=logits[0], pred_masks=MaskLogits(embeds, features, False), pred_quality=quality[0]
    )
    outputs.update(query_groups=[other], query_selection=selected)
    expected = Predictions.of_groups([part(slice(3)), part(slice(3, 6))])
    tensors, build = split(outputs)
    built = build([2 * x for x in tensors])
    assert isinstance(unread(built, "pred_quality"), Row)
    assert unread(built, "pred_quality").stack is unread(built["aux_outputs"][0], "pred_quality").stack
    found = Predictions.of_groups([built, *built["query_groups"]])
    assert found.quality is not None and expected.quality is not None
    assert torch.equal(found.quality, 2 * expected.quality) and torch.equal(found.logits, 2 * expected.logits)
    assert isinstance(unread(built["query_selection"], "pred_masks"), MaskLogits)
    assert torch.equal(built["query_selection"]["pred_quality"], 2 * quality[0])


class OfTwoTypes(nn.Module):
    """A layer that leaves autocast, as parts that need fp32 do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cpu", enabled=False):
            return self.second(x.float())


def test_the_backward_pass_is_captured_outside_of_autocast(gpu: Gpu) -> None:
    ours, plain, graphs = OfTwoTypes(), OfTwoTypes(), TrainingGraphs(after=1)
    x = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = graphs("key", run(ours), [ours], [x])["x"], plain(x)
    for y in (found, expected):
        y.square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours), gradients(plain), strict=True))


def test_a_new_parameter_at_the_place_of_another_one_gets_its_gradient(gpu: Gpu) -> None:
    module, head, ours = net(), Head(), Runtime("graph")
    ours(module, head, images())["x"].sum().backward()
    old = module[0].weight
    module[0].weight = nn.Parameter(old.data)
    old.grad = None
    ours(module, head, images())["x"].sum().backward()
    assert old.grad is None and module[0].weight.grad is not None


def test_a_network_that_does_not_learn_needs_no_graphs(gpu: Gpu) -> None:
    module, head, ours = net().requires_grad_(False), Head(), Runtime("graph")
    assert not ours(module, head, images())["x"].requires_grad
    module.requires_grad_(True)
    ours(module, head, images())
    assert ours.captured_in_training == 1


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_gradients_are_called(register: str, gpu: Gpu) -> None:
    module, head, ours = net(), Head(), Runtime("graph")
    calls: list[int] = []
    for _ in range(2):
        ours(module, head, images())["x"].sum().backward()
    handle = getattr(module[0], register)(lambda *_: calls.append(1))
    for _ in range(2):
        ours(module, head, images())["x"].sum().backward()
    assert len(calls) == 2
    handle.remove()
    other = Runtime("graph")
    getattr(module[0], register)(lambda *_: calls.append(1))
    other(module, head, images())["x"].sum().backward()
    assert len(calls) == 3 and other.captured_in_training == 0


def test_outputs_that_somebody_keeps_do_not_change(gpu: Gpu) -> None:
    module, graphs = net(), TrainingGraphs(after=1)
    kept = graphs("key", run(module), [module], [images(0)])["x"].detach()
    before = kept.clone()
    assert graphs("key", run(module), [module], [images(1)]) is not None
    assert torch.equal(kept, before)


class LayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if random.random() < 0.5 else x * self.layer.bias.sum()


def test_a_network_that_draws_on_the_cpu_is_not_captured(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    module, head, ours = LayerDrop(), Head(), Runtime("graph")
    random.seed(3)
    expected = [module(images()) for _ in range(8)]
    random.seed(3)
    with caplog.at_level(logging.WARNING, "mask2former"):
        found = [ours(module, head, images())["x"] for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "goes on without CUDA graphs: the network draws random numbers on the CPU" in caplog.text


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1).double()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.layer(x) * self.calls


def test_a_network_that_exchanges_buffers_is_not_captured(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    module, head, ours = Counter(), Head(), Runtime("graph")
    with caplog.at_level(logging.WARNING, "mask2former"):
        found = [ours(module, head, images())["x"] for _ in range(3)]
    assert all(torch.equal(x, module.layer(images()) * (i + 1)) for i, x in enumerate(found))
    assert module.calls == 3 and "the network exchanges buffers" in caplog.text


class Keeper(nn.Module):
    """Reads a parameter from elsewhere than its place among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1).double()
        self.kept = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kept[0], self.layer.bias)


def test_parameters_that_are_kept_elsewhere_are_not_forgotten(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    module, head, ours = Keeper(), Head(), Runtime("graph")
    with caplog.at_level(logging.WARNING, "mask2former"):
        ours(module, head, images())["x"].sum().backward()
    assert len(gradients(module)) == 2 and ours.captured_in_training == 0
    assert "goes on without CUDA graphs: the network has parameters" in caplog.text


def test_parameters_of_outputs_without_losses_have_no_gradient(gpu: Gpu) -> None:
    module, graphs = nn.ModuleList([nn.Conv2d(3, 2, 1).double() for _ in range(3)]), TrainingGraphs(after=1)

    def network(inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        first, second, third = (layer(inputs[0]) for layer in module)
        return {"a": first, "b": first * second, "c": third}

    def learned(names: str) -> set[int]:
        module.zero_grad()
        outputs = graphs("key", network, [module], [images()])
        sum(outputs[name].sum() for name in names).backward()
        expected = network([images()])
        parameters = list(module.parameters())
        values = torch.autograd.grad(sum(expected[n].sum() for n in names), parameters, allow_unused=True)
        for p, value in zip(parameters, values, strict=True):
            assert (p.grad is None) is (value is None)
            assert value is None or torch.allclose(p.grad, value)
        return {i for i, layer in enumerate(module) if layer.weight.grad is not None}

    assert [learned(names) for names in ("abc", "a", "b", "c", "ac", "abc")] == [
        *({0, 1, 2}, {0}, {0, 1}, {2}, {0, 2}, {0, 1, 2}),
    ]


def test_buffers_are_restored_after_a_failed_run_has_ended(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    monkeypatch.setattr(Stream, "waits", waits)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: waits.append("restore"))
    module = net()

    def network(inputs: Sequence[Tensor]) -> Any:
        module(inputs[0])
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        TrainingGraphs(after=1)("key", network, [module], [images()])
    assert waits == ["wait", "wait", "restore"]


def test_transformed_and_watched_calls_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    given: Any = SimpleNamespace(device=torch.device("cuda"), requires_grad=False)
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(training_graphs.may_capture(given))
        return x.sum()

    look(torch.ones(1))
    torch.func.grad(look)(torch.ones(1))
    with torch.autograd.forward_ad.dual_level():
        look(torch.ones(1))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    look(torch.ones(1))
    handle.remove()
    assert seen == [True, False, False, False]


# ---- models


def step(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return {name: value.detach() for name, value in losses.items()}, gradients(model)


CASES = [
    (PANOPTIC, ()),
    (PANOPTIC, ("MODEL.MASK_FORMER.QUERY_GROUPS", 2)),
    (PANOPTIC, ("MODEL.MASK_FORMER.DENOISING.QUERIES", 6)),
    (PANOPTIC, QUALITY),
    (PANOPTIC, SELECTION),
    (
        PANOPTIC,
        (*QUALITY, *SELECTION, "MODEL.MASK_FORMER.QUERY_GROUPS", 2, "MODEL.MASK_FORMER.DENOISING.QUERIES", 6),
    ),
    (VIDEO, ()),
    (VIDEO, SELECTION),
]
NAMES = ["panoptic", "groups", "denoising", "quality", "selection", "all", "video", "video_selection"]


@pytest.mark.parametrize(("config", "more"), CASES, ids=NAMES)
def test_models_have_the_same_losses_and_gradients(config: str, more: Sequence[Any], gpu: Gpu) -> None:
    model = tiny(config, *R18, *more)
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    batch = [make(64, 64, *frames, 3, 30), make(64, 64, *frames, 2, 30, 1)]
    plain = Runtime("off")
    model.runtime, ours = plain, Runtime("graph")
    expected = step(model, batch)
    model.runtime = ours
    for _ in range(3):
        found = step(model, batch)
    assert ours.captured_in_training == 1 and gpu.graphs[0].replays == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_checkpointed_parts_are_not_captured(gpu: Gpu) -> None:
    model = tiny(PANOPTIC, *R18, "MODEL.COMPILE", "graph")
    checkpoint_parts(model, ["transformer_decoder"])
    step(model, [record(64, 64, 2, 30)])
    assert not gpu.graphs


@pytest.mark.parametrize("ended_with", [None, "CUDA error: operation failed due to a previous error during capture"])
def test_a_capture_that_fails_is_told_once(ended_with: str | None, gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    """With what went wrong, not with what PyTorch says where it ends the capture."""
    model = tiny(PANOPTIC, *R18, "MODEL.COMPILE", "graph")
    gpu.error = cause = RuntimeError("operation not permitted when stream is capturing")
    if ended_with is not None:
        gpu.error = RuntimeError(ended_with)
        gpu.error.__context__ = cause
    with caplog.at_level(logging.WARNING, "mask2former"):
        first, second = (step(model, [record(64, 64, 2, 30)]) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert [m for m in caplog.messages if "without CUDA graphs" in m] == [
        "training goes on without CUDA graphs: operation not permitted when stream is capturing"
    ]


# ---- on a GPU


@pytest.fixture
def continuous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let queries attend everywhere: where a mask logit is near 0, rounding decides, and results jump."""
    monkeypatch.setattr(mask2former_transformer_decoder, "blocked_keys", lambda logits: logits.isinf())


def on_gpu(config: str, mode: str, *overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    return tiny(config, *R18, *overrides, "MODEL.DEVICE", "cuda", "MODEL.COMPILE", mode)


def samples(config: str) -> list[dict[str, Any]]:
    make, frames = (clip, (2,)) if config == VIDEO else (record, ())
    return [make(64, 64, *frames, 3, 30), make(64, 64, *frames, 2, 30, 1)]


def on_device(model: nn.Module, batch: list[dict[str, Any]], amp: bool) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch, and the gradients of all parameters together."""
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
        total: Any = sum(model.train()(batch).values())
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check_training(config: str, more: Sequence[Any], mode: str, amp: bool) -> None:
    plain, ours, batch = on_gpu(config, "off", *more), on_gpu(config, mode, *more), samples(config)
    for step in range(5):
        (loss, gradient), (expected, of_plain) = (on_device(model, batch, amp) for model in (ours, plain))
        torch.testing.assert_close(loss, expected, rtol=1e-2 if amp else 1e-4, atol=0)
        distance = (gradient - of_plain).norm() / of_plain.norm()
        assert distance < (0.1 if amp else 1e-2), (step, distance)
        with torch.no_grad():
            for p, other in zip(ours.parameters(), plain.parameters(), strict=True):
                if other.grad is not None:
                    other -= 1e-4 * other.grad
                    p.copy_(other)  # the same place from which both go on
    assert ours.runtime.captured_in_training == 1


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["auto", "graph"])
@pytest.mark.parametrize(("config", "more"), CASES, ids=NAMES)
def test_graphs_train_as_the_modules_do(
    config: str, more: Sequence[Any], mode: str, amp: bool, continuous: None
) -> None:
    check_training(config, more, mode, amp)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("config", "more"), CASES, ids=NAMES)
def test_graphs_of_compiled_code_train_as_the_modules_do(config: str, more: Sequence[Any], continuous: None) -> None:
    torch.compiler.reset()
    # Compiled convolutions are other ones, and those of TF32 differ so much that other queries and points are chosen.
    # The noise of attention masks is drawn in the network: compiled code has a generator of its own, and may draw for
    # the layers in another order, which saves memory.
    from torch._inductor import config as inductor

    same_numbers = inductor.patch(fallback_random=True, reorder_for_peak_memory=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), same_numbers:
        check_training(config, more, "compile", False)


@pytest.mark.gpu
def test_a_captured_step_without_host_waits() -> None:
    model = on_gpu(PANOPTIC, "graph")
    batch = [record(64, 64, 3, 30)]
    for _ in range(2):
        on_device(model, batch, True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device(model, batch, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert model.runtime.captured_in_training == 1


@pytest.mark.gpu
def test_what_cannot_be_captured_is_told_and_trains_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_gpu(PANOPTIC, "graph")
    stem = type(model.backbone.stem)
    forward = stem.forward
    monkeypatch.setattr(stem, "forward", lambda module, x: forward(module, x) * float(x.abs().max() > 0))
    with caplog.at_level(logging.WARNING, "mask2former"):
        losses = [on_device(model, [record(64, 64, 3, 30)], True)[0] for _ in range(3)]
    assert sum("without CUDA graphs" in message for message in caplog.messages) == 1
    assert all(torch.isfinite(loss) for loss in losses)


@pytest.mark.gpu
def test_inference_between_captured_steps() -> None:
    model = on_gpu(PANOPTIC, "graph")
    batch = [record(64, 64, 3, 30)]
    for _ in range(2):
        on_device(model, batch, True)
        with torch.no_grad():
            model.eval()(batch)
    assert model.runtime.captured_in_training == 1 and model.runtime.captured == 2


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(64, 64), (50, 64)])
def test_images_of_one_size_are_uploaded_together_with_the_same_values(sizes: tuple[int, int]) -> None:
    model = on_gpu(PANOPTIC, "off")
    together = model.preprocess([record(*sizes, 1), record(*sizes, 1, seed=1)])
    apart = model.pad_images([x["image"].cuda() for x in (record(*sizes, 1), record(*sizes, 1, seed=1))])
    assert torch.equal(together.tensor, apart.tensor)
    assert [tuple(size) for size in together.image_sizes] == [tuple(size) for size in apart.image_sizes]
