"""Matching and losses where the assignment is solved on the device: the CPU plays the device, and real GPUs."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.modeling import criterion as criterion_module
from mask2former.modeling import matcher as matcher_module
from mask2former.modeling import point_sampling
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ground_truth import GroundTruth
from mask2former.modeling.matcher import HungarianMatcher, batch_dice_loss, batch_sigmoid_ce_loss, parts_of
from mask2former.modeling.outputs import mask_logits
from mask2former.modeling.point_sampling import Predictions
from mask2former.ops import assigns_on

Q, K, C, LAYERS = 6, 4, 8, 3
SIZE = (32, 40)
CASES = {
    "several images": (3, 1, 2),
    "the same number": (2, 2),
    "an image without objects": (0, 4, 1),
    "no objects": (0, 0),
    "more objects than queries": (9, 2, 6),
}


def make(
    counts: Sequence[int], device: str = "cpu", frames: int = 1, dense: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return outputs with leaves that want gradients, and targets."""
    g = torch.Generator().manual_seed(0)
    images = len(counts)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device).requires_grad_()

    features = leaf(images, frames, C, 8, 10)
    steps: list[dict[str, Any]] = []
    for _ in range(LAYERS):
        step = {"pred_logits": leaf(images, Q, K + 1), "pred_embeds": leaf(images, Q, C)}
        steps.append({**step, "pred_masks": mask_logits(step["pred_embeds"], features)} if dense else step)
    targets = [
        {
            "labels": torch.randint(0, K, (n,), generator=g).to(device),
            "masks": (torch.rand(n, frames, *SIZE, generator=g) > 0.6).to(device),
            "size": SIZE,
            "name": f"{i}.jpg",
        }
        for i, n in enumerate(counts)
    ]
    return {**steps[0], "mask_features": features, "aux_outputs": steps[1:]}, targets


def leaves(outputs: Mapping[str, Any]) -> list[Tensor]:
    steps = (outputs, *outputs["aux_outputs"])
    return [outputs["mask_features"], *(step[key] for step in steps for key in ("pred_logits", "pred_embeds"))]


def make_criterion(device: str = "cpu", **options: Any) -> SetCriterion:
    return SetCriterion(K, HungarianMatcher(2, 5, 5, num_points=64, **options), {}, 0.1, num_points=64).to(device)


@pytest.fixture
def as_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a switch that lets the CPU take the way of a GPU."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(matcher_module, "assigns_on", lambda *_: on)

    return switch


def results(criterion: SetCriterion, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> list[Tensor]:
    """Return losses and gradients."""
    torch.manual_seed(7)
    losses = list(criterion(outputs, targets).values())
    grads = torch.autograd.grad(torch.stack(losses).sum(), leaves(outputs), retain_graph=True)
    return [*(loss.detach() for loss in losses), *grads]


@pytest.mark.parametrize("chunk", [2**26, 1])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_cpu(
    name: str, frames: int, dense: bool, chunk: int, as_device: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher_module, "_CHUNK", chunk)
    found = []
    for on_device in (False, True):
        as_device(on_device)
        found.append(results(make_criterion(), *make(CASES[name], frames=frames, dense=dense)))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


class NoQuestions(TorchDispatchMode):
    """Refuse what a GPU can do only by waiting for its numbers: shapes, and values on the host, that depend on them."""

    REFUSED = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.REFUSED, name
        if name == "index":
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_nothing_asks_for_numbers(name: str, as_device: Callable[[bool], None]) -> None:
    as_device(True)
    outputs, targets = make(CASES[name])
    with NoQuestions():
        losses = make_criterion()(outputs, targets)
        torch.stack(list(losses.values())).sum().backward()


def test_number_of_operations_does_not_depend_on_the_images(as_device: Callable[[bool], None]) -> None:
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return func(*args, **(kwargs or {}))

    as_device(True)
    numbers = []
    for images in (2, 12):
        outputs, targets = make((2,) * images)
        with Count() as count:
            make_criterion()(outputs, targets)
        numbers.append(count.operations)
    # A mask is a view as bytes, flattened, of each image's.
    assert numbers[1] - numbers[0] <= 10 * 6


def test_replaced_matching_of_layers_is_called(as_device: Callable[[bool], None]) -> None:
    as_device(True)
    calls = []

    class Mine(HungarianMatcher):
        def match_layers(self, predictions: Any, truth: Any) -> Any:
            calls.append(1)
            return super().match_layers(predictions, truth)

    SetCriterion(K, Mine(num_points=16), {}, 0.1, num_points=16)(*make((1, 2)))
    assert calls == [1]


# --- kernels of points, losses and costs: their code in PyTorch plays them ---


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (criterion_module, point_sampling):
        monkeypatch.setattr(module, "takes_points", lambda _: True)
    monkeypatch.setattr(matcher_module, "takes_terms", lambda _: True)


def place_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matcher and criterion compare masks at the same points."""
    places = torch.rand(1, 64, 2, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(
        HungarianMatcher, "_points", lambda self, truth, device: places.expand(len(truth.labels), -1, -1).to(device)
    )
    monkeypatch.setattr(
        criterion_module, "uncertain_points", lambda logits, *_: places.expand(len(logits), -1, -1).to(logits.device)
    )


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_losses_of_kernels_are_those_without(
    name: str, frames: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_points(monkeypatch)
    found = []
    for on in (False, True):
        monkeypatch.setattr(criterion_module, "takes_points", lambda _, on=on: on)
        found.append(results(make_criterion(), *make(CASES[name], frames=frames, dense=dense)))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_kernels_ask_for_no_numbers(name: str, as_device: Callable[[bool], None], with_kernels: None) -> None:
    as_device(True)
    outputs, targets = make(CASES[name])
    criterion = make_criterion()
    criterion.object_points = 0.5
    with NoQuestions():
        torch.stack(list(criterion(outputs, targets).values())).sum().backward()


def costs_of_halves(matcher: HungarianMatcher, soft: bool = False) -> Tensor:
    """Return the costs of predictions whose mask logits are products of bf16 numbers."""
    outputs, targets = make((2, 3))
    predictions = Predictions.of(outputs)
    assert predictions.embeds is not None and predictions.features is not None
    predictions.halves = predictions.embeds.bfloat16(), predictions.features.bfloat16()
    for target in targets:
        target["masks"] = target["masks"] * 0.3 if soft else target["masks"]
    with torch.no_grad():
        return matcher._padded_costs(predictions, GroundTruth.of(targets, torch.device("cpu")))[0]


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch, with_kernels: None) -> list[torch.Size]:
    """Return a list that takes the shapes of the logits of which costs are computed in halves."""
    shapes: list[torch.Size] = []
    original = matcher_module.losses_of_halves
    monkeypatch.setattr(matcher_module, "losses_of_halves", lambda x, y: shapes.append(x.shape) or original(x, y))  # type: ignore[func-returns-value]
    return shapes


def test_costs_of_binary_masks_are_computed_in_halves(halves: list[torch.Size]) -> None:
    costs_of_halves(HungarianMatcher(num_points=64))
    assert halves == [(2, LAYERS * Q, 64)]


def test_costs_of_soft_masks_are_not(halves: list[torch.Size]) -> None:
    """The same value at many points: rounded, all errors have the same sign."""
    costs_of_halves(HungarianMatcher(num_points=64), soft=True)
    assert not halves


@pytest.mark.parametrize("name", ["batch_dice_loss", "batch_sigmoid_ce_loss"])
def test_replaced_functions_of_matching_are_called(
    name: str, halves: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher_module, name, lambda x, y: torch.full((2, LAYERS * Q, 3), 1e6))
    assert (costs_of_halves(HungarianMatcher(num_points=64)) > 1e5).all() and not halves


def test_replaced_costs_know_nothing_of_halves(halves: list[torch.Size]) -> None:
    class Mine(HungarianMatcher):
        def _cost(self, class_logits: Tensor, logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
            return super()._cost(class_logits, logits, labels, target) + 1e6

    assert (costs_of_halves(Mine(num_points=64)) > 1e5).all() and not halves


@pytest.mark.parametrize("replaced", [False, True])
def test_replaced_losses_have_room_for_candidates(
    replaced: bool, with_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kernels, a pair takes memory for coordinates and logits of all candidates."""

    class Mine(SetCriterion):
        def _compare(self, *arguments: Any) -> Any:
            return super()._compare(*arguments)

    criterion = (Mine if replaced else SetCriterion)(K, HungarianMatcher(), {}, 0.1, num_points=100)
    monkeypatch.setattr(criterion_module, "_CHUNK", 10 * (8 * 10 + 4 * 300))
    groups = list(criterion._groups([30], Predictions.of(make((30,))[0])))
    assert groups == ([[10]] * 3 if replaced else [[30]])


# --- costs that are not finite ---


class Copy:
    """A copy to the CPU that is ready when the test says so."""

    is_ready = False

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.clone()

    def ready(self) -> bool:
        return Copy.is_ready

    def value(self) -> Tensor:
        return self._tensor


@pytest.fixture
def slow_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Copy]]:
    monkeypatch.setattr(matcher_module, "HostCopy", Copy)
    Copy.is_ready = False
    yield Copy


def broken(counts: Sequence[int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    outputs, targets = make(counts)
    with torch.no_grad():
        outputs["aux_outputs"][0]["pred_embeds"][1, 2] = float("nan")
    return outputs, targets


def test_a_cost_that_is_not_finite_is_reported_when_it_is_known(
    as_device: Callable[[bool], None], slow_copies: type[Copy], caplog: pytest.LogCaptureFixture
) -> None:
    as_device(True)
    criterion = make_criterion(max_nonfinite=2)
    matcher: Any = criterion.matcher
    criterion(*broken((2, 3)))
    criterion(*broken((2, 0)))  # of an image without objects
    criterion(*make((2, 3)))
    assert matcher.nonfinite_steps == 0 and not caplog.records
    slow_copies.is_ready = True
    criterion(*make((1, 1)))
    assert matcher.nonfinite_steps == 1 and caplog.text.count("not finite (1 iterations so far)") == 1
    assert "image 1.jpg, predictions [1]" in caplog.text and "0.jpg" not in caplog.text
    criterion(*broken((1, 1)))
    with pytest.raises(FloatingPointError, match=r"\(2 iterations so far\): image 1\.jpg.*AMP\.DTYPE"):
        criterion(*make((1, 1)))


def test_a_limited_number_of_iterations_is_unchecked(
    as_device: Callable[[bool], None], slow_copies: type[Copy]
) -> None:
    as_device(True)
    criterion = make_criterion()
    matcher: Any = criterion.matcher
    for _ in range(matcher_module._MOST_UNCHECKED + 3):
        criterion(*broken((1, 1)))
    assert matcher.nonfinite_steps == 2
    matcher.check_earlier_costs(wait=True)
    assert matcher.nonfinite_steps == matcher_module._MOST_UNCHECKED + 3 and not matcher._unchecked


def test_matchers_with_unchecked_costs_can_be_copied(as_device: Callable[[bool], None]) -> None:
    as_device(True)
    criterion = make_criterion()
    criterion(*broken((1, 1)))
    for other in (copy.deepcopy(criterion.matcher), pickle.loads(pickle.dumps(criterion.matcher))):
        other.check_earlier_costs(wait=True)
        assert other.nonfinite_steps == 1


def test_warning_of_too_many_objects(as_device: Callable[[bool], None], caplog: pytest.LogCaptureFixture) -> None:
    as_device(True)
    criterion = make_criterion()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            criterion(*make((1, Q + 3)))
    assert caplog.text.count(f"An image has {Q + 3} objects but the model only {Q} queries") == 1


# --- on a GPU ---


@pytest.fixture
def cuda() -> str:
    if not assigns_on("cuda", Q, Q):
        pytest.skip("no compiled op for cuda")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_matches_without_a_wait(name: str, cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = make_criterion(cuda)
    outputs, targets = make(CASES[name], cuda)
    results(criterion, outputs, targets)  # the first step makes handles of libraries
    monkeypatch.setattr(matcher_module, "to_cpu", lambda *_: pytest.fail("a copy to the CPU"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(criterion, outputs, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_finds_what_scipy_finds(name: str, frames: int, cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients with the assignment on the GPU, and with costs that are copied to the CPU."""
    found = []
    for on_device in (True, False):
        if not on_device:
            monkeypatch.setattr(matcher_module, "assigns_on", lambda *_: False)
        found.append(results(make_criterion(cuda), *make(CASES[name], cuda, frames)))
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_finds_what_the_cpu_finds(name: str, frames: int, cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients at the same points: kernels of matching and losses against the code in PyTorch."""
    place_points(monkeypatch)
    found = [results(make_criterion(kind), *make(CASES[name], kind, frames)) for kind in (cuda, "cpu")]
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value.cpu(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
def test_a_gpu_reports_costs_that_are_not_finite(cuda: str, caplog: pytest.LogCaptureFixture) -> None:
    criterion = make_criterion(cuda, max_nonfinite=2)
    matcher: Any = criterion.matcher
    outputs, targets = make((2, 3), cuda)
    with torch.no_grad():
        outputs["aux_outputs"][0]["pred_embeds"][1, 2] = float("nan")
    losses = criterion(outputs, targets)
    assert torch.isfinite(losses["loss_mask"])
    torch.cuda.synchronize()
    criterion(*make((1, 1), cuda))
    assert matcher.nonfinite_steps == 1 and "image 1.jpg, predictions [1]" in caplog.text
    criterion(outputs, targets)
    with pytest.raises(FloatingPointError, match="2 iterations so far"):
        matcher.check_earlier_costs(wait=True)


@pytest.mark.gpu
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_gpu_sums_over_parts_of_the_points(lead: tuple[int, ...], cuda: str) -> None:
    """Costs of few objects at many points are those of the CPU in float64."""
    g = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(*lead, 200, 12544, generator=g)
    target = (torch.rand(*lead, 7, 12544, generator=g) > 0.8).float()
    assert parts_of(12544, logits.shape[:-1].numel() * 7) == 16
    for cost in (batch_dice_loss, batch_sigmoid_ce_loss):
        found = cost(logits.to(cuda), target.to(cuda))
        expected = cost(logits.double(), target.double())
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-6)
