"""Results made without a look at numbers equal those of queries that are selected on the CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling import cuda_graphs, device_transfer
from mask2former.modeling import device_results as module
from mask2former.modeling.postprocess import Settings, begin, postprocess
from mask2former.modeling.result_graphs import ResultGraphs
from mask2former.modeling.result_rules import panoptic_segments
from mask2former.ops import backend
from mask2former.structures.masks import paste
from mask2former.structures.task import IMAGE_TASKS, Task

Size = tuple[int, int]
ALL = frozenset(IMAGE_TASKS)
SEMANTIC, INSTANCE, PANOPTIC = (frozenset({task}) for task in IMAGE_TASKS)


@pytest.fixture
def compiled() -> None:
    """Skip where the compiled op for CUDA is missing: a GPU then makes results by parts."""
    if backend("cuda") != "compiled":
        pytest.skip("no compiled op for cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a device that makes results so, a GPU or, for this test, the CPU."""
    if request.param == "cuda":
        request.getfixturevalue("compiled")
    monkeypatch.setattr(module, "_DEVICES", {request.param})
    return str(request.param)


def random_case(seed: int, queries: int = 9, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = (4 * torch.randn(queries, classes + 1, generator=g)).softmax(-1)
    coarse = 6 * torch.randn(1, queries, 3, 4, generator=g)
    masks = F.interpolate(coarse, (8, 12), mode="bicubic")[0]
    masks[seed % queries] = -5.0  # an empty mask
    return scores, masks


def compare(
    scores: torch.Tensor,
    masks: torch.Tensor,
    sizes: tuple[Size, Size, Size],
    s: Settings,
    device: str,
    quality: torch.Tensor | None = None,
) -> Any:
    """Compare with the results of the CPU, and return them."""
    before, module._DEVICES = module._DEVICES, set()
    try:
        expected = postprocess(scores, scores, masks, *sizes, replace(s, patches=False), quality=quality)
    finally:
        module._DEVICES = before
    on_device = None if quality is None else quality.to(device)
    found = postprocess(scores.to(device), None, masks.to(device), *sizes, s, quality=on_device)
    assert found.keys() == expected.keys()
    if "sem_seg" in found:
        assert found["sem_seg"].dtype == expected["sem_seg"].dtype
        if s.semantic_scores:
            torch.testing.assert_close(found["sem_seg"].cpu(), expected["sem_seg"], atol=1e-5, rtol=1e-5)
        else:
            assert same(found["sem_seg"], expected["sem_seg"])
    if "panoptic_seg" in found:
        (ids, segments), (expected_ids, expected_segments) = found["panoptic_seg"], expected["panoptic_seg"]
        assert ids.dtype == torch.int32 and same(ids, expected_ids)
        assert [x | {"area": 0} for x in segments] == [x | {"area": 0} for x in expected_segments]
        assert all(abs(x["area"] - y["area"]) <= 1 for x, y in zip(segments, expected_segments))
    if "instances" in found:
        check_instances(found["instances"], expected["instances"], s, sizes[2])
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two maps are equal, but for a pixel that rounding decides."""
    return found.shape == expected.shape and int((found.cpu() != expected).sum()) <= 1


def check_instances(found: Any, expected: Any, s: Settings, size: Size) -> None:
    assert len(found) == len(expected) and found.image_size == expected.image_size
    torch.testing.assert_close(found.scores.cpu(), expected.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.pred_classes.cpu(), expected.pred_classes)
    torch.testing.assert_close(found.pred_boxes.tensor.cpu(), expected.pred_boxes.tensor, atol=1, rtol=0)
    assert found.has("pred_patches") == s.patches
    masks = torch.from_numpy(paste(found.pred_patches, found.image_size)) if s.patches else found.pred_masks
    assert masks.dtype == torch.bool and same(masks, expected.pred_masks)


def check_equal(found: Any, expected: Any) -> None:
    """Check that results for the CPU are the same, bit for bit."""
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    one, other = found["instances"], expected["instances"]
    assert torch.equal(one.scores, other.scores) and torch.equal(one.pred_classes, other.pred_classes)
    assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    if len(one):
        assert (paste(one.pred_patches, one.image_size) == paste(other.pred_patches, other.image_size)).all()


SIZES = [
    ((32, 48), (30, 41), (23, 37)),
    ((32, 48), (30, 41), (30, 41)),
    ((32, 48), (32, 48), (90, 123)),
    ((32, 48), (1, 1), (7, 200)),
    ((8, 12), (8, 9), (1, 1)),
]


def settings_of(seed: int, tasks: frozenset[Task], topk: int, threshold: float, patches: bool) -> Settings:
    return Settings(
        tasks,
        topk=topk,
        score_threshold=threshold,
        object_mask_threshold=threshold / 2,
        overlap_threshold=0.4,
        semantic_scores=seed % 3 == 0,
        patches=patches,
        things=frozenset({0, 2}) if seed % 2 else None,
    )


@given(
    st.integers(0, 2**31),
    st.sampled_from(SIZES),
    st.sampled_from([ALL, INSTANCE, PANOPTIC, INSTANCE | PANOPTIC, SEMANTIC]),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.05, 0.6]),
    st.booleans(),
)
@settings(max_examples=80)
def test_results_equal_those_of_the_cpu(
    seed: int, sizes: Any, tasks: frozenset[Task], topk: int, threshold: float, patches: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DEVICES", {"cpu"})
        compare(*random_case(seed), sizes, settings_of(seed, tasks, topk, threshold, patches), "cpu")


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_results_of_a_gpu_equal_those_of_the_cpu(sizes: Any, patches: bool) -> None:
    for seed in range(12):
        for threshold in (0.0, 0.3):
            compare(*random_case(seed), sizes, settings_of(seed, ALL, 20, threshold, patches), "cuda")


def test_bands_and_large_masks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time for semantic segmentation, and each mask copied alone."""
    monkeypatch.setattr(module, "_BAND", 1)
    monkeypatch.setattr(module, "_COMPLETE", 0)
    monkeypatch.setattr(module, "_FIRST", 0)
    monkeypatch.setattr(device_transfer, "_PINNED", 0)
    for seed, sizes in enumerate(SIZES):
        for scores in (True, False):
            s = replace(settings_of(seed, ALL, 20, 0.05, True), semantic_scores=scores)
            compare(*random_case(seed), sizes, s, device)


@pytest.mark.parametrize("at_output", [True, False])
def test_classes_are_those_of_the_best_scores(at_output: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, masks = (x.to(device) for x in random_case(3))
    s = Settings(SEMANTIC, semantic_at_output_size=at_output)
    full = postprocess(scores, None, masks, *SIZES[0], s)["sem_seg"]
    assert full.shape == (4, *SIZES[0][2])
    for devices in ({device}, set[str]()):
        monkeypatch.setattr(module, "_DEVICES", devices)
        labels = postprocess(scores, None, masks, *SIZES[0], replace(s, semantic_scores=False))["sem_seg"]
        assert labels.dtype == torch.uint8 and same(labels, full.argmax(0).cpu())


def test_segments_below_the_threshold_leave_the_map(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others keep their ids."""
    scores = torch.tensor([[0.9, 0.0, 0.1], [0.4, 0.0, 0.6], [0.0, 0.4, 0.3], [0.0, 0.6, 0.4]]).to(device)
    masks = torch.full((4, 8, 8), -30.0, device=device)
    for q in range(4):
        masks[q, 2 * q : 2 * q + 2] = 30.0
    size = (8, 8)
    for devices in ({device}, set[str]()):
        monkeypatch.setattr(module, "_DEVICES", devices)
        s = Settings(PANOPTIC, segment_threshold=0.5)
        ids, segments = postprocess(scores, None, masks, size, size, size, s)["panoptic_seg"]
        assert ids[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 3, 3]
        assert [(x["id"], x["category_id"], x["area"]) for x in segments] == [(1, 0, 16), (3, 1, 16)]


def test_no_object_and_no_query(device: str) -> None:
    for scores in (torch.tensor([[0.0, 0.0, 1.0]] * 3), torch.zeros(0, 3)):
        masks = torch.full((len(scores), 8, 12), -5.0)
        for patches in (False, True):
            s = Settings(INSTANCE | PANOPTIC, score_threshold=0.5, object_mask_threshold=0.5, patches=patches)
            compare(scores, masks, SIZES[0], s, device)


def test_images_of_a_batch_are_begun_before_the_first_is_waited_for(device: str) -> None:
    cases = [random_case(seed) for seed in range(3)]
    s = Settings(ALL, patches=True, semantic_scores=False)
    begun = [begin(scores.to(device), None, masks.to(device), *SIZES[0], s) for scores, masks in cases]
    for finish, (scores, masks) in zip(begun, cases, strict=True):
        alone = postprocess(scores.to(device), None, masks.to(device), *SIZES[0], s)
        together = finish()
        assert torch.equal(together["panoptic_seg"][0], alone["panoptic_seg"][0])
        assert torch.equal(together["instances"].scores, alone["instances"].scores)


@pytest.mark.parametrize("first", [0, 100, 2**21])
def test_images_of_a_batch_are_waited_for_in_turn(first: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, or twice with many masks; on a GPU without another wait, of which PyTorch would tell."""
    waits: list[int] = []
    wait = device_transfer.HostCopies.wait
    monkeypatch.setattr(device_transfer.HostCopies, "wait", lambda copies: (waits.append(1), wait(copies))[1])
    monkeypatch.setattr(module, "_FIRST", first)
    cases = [[x.to(device) for x in random_case(seed)] for seed in range(4)]
    s = Settings(ALL, patches=True, semantic_scores=False, things=frozenset({0, 2}))
    alone = [postprocess(scores, None, masks, *SIZES[0], s) for scores, masks in cases]
    waits.clear()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        begun: list[Any] = []
        for scores, masks in cases:
            begun.append(begin(scores, None, masks, *SIZES[0], s, before=begun[-1] if begun else None))
        together = [finish() for finish in begun]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == (4 if first == 2**21 else 8)
    for found, expected in zip(together, alone, strict=True):
        check_same_results(found, expected)


def check_same_results(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert found["panoptic_seg"][0].dtype == torch.int32 and found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    ours, theirs = found["instances"], expected["instances"]
    assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.pred_classes, theirs.pred_classes)
    size = ours.image_size
    assert (paste(ours.pred_patches, size) == paste(theirs.pred_patches, size)).all()


def test_images_that_a_model_finishes_itself_keep_their_place(device: str) -> None:
    scores, masks = (x.to(device) for x in random_case(0))
    s = Settings(SEMANTIC, semantic_at_output_size=True, semantic_scores=False)
    begun = [
        begin(
            scores, None, masks, *SIZES[0], s, {Task.SEMANTIC: lambda m, i=i: torch.full(m.shape[1:], i)} if i else None
        )
        for i in (0, 1, 0, 2)
    ]
    found = [finish()["sem_seg"] for finish in begun]
    assert torch.equal(found[0], found[2])
    assert [set(x.unique().tolist()) for x in found[1::2]] == [{1}, {2}]


@pytest.mark.parametrize("queries", [255, 256])
def test_more_than_255_segments(queries: int, device: str) -> None:
    """A map of them does not fit into bytes."""
    scores = torch.tensor([[0.9, 0.1]]).expand(queries, -1).to(device)
    masks = torch.full((queries, 16, 16), -30.0, device=device)
    masks.view(queries, -1)[torch.arange(queries), torch.arange(queries)] = 30.0
    size = (16, 16)
    for patches in (True, False):
        s = Settings(PANOPTIC, patches=patches)
        assert module.DeviceResults(scores, masks, size, size, size, s).panoptic.id_map.dtype == (
            torch.uint8 if patches and queries < 256 else torch.int32
        )
        ids, segments = postprocess(scores, None, masks, size, size, size, s)["panoptic_seg"]
        assert ids.dtype == torch.int32 and len(segments) == queries
        assert ids.flatten().tolist() == [*range(1, queries + 1), *[0] * (256 - queries)]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.booleans(), st.sampled_from([0.3, 0.5, 0.50001, 0.9]), *3 * [st.integers(0, 9)]
        ),
        max_size=12,
    ),
    st.sampled_from([0.0, 0.5, 2 / 3, 0.8]),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([None, frozenset(), frozenset({0, 2}), frozenset(range(4))]),
)
@settings(max_examples=300)
def test_segments_of_the_device_are_those_of_the_host(queries: Any, overlap: float, least: float, things: Any) -> None:
    s = Settings(PANOPTIC, overlap_threshold=overlap, segment_threshold=least, things=things)
    labels, keep, best, *counts = (torch.tensor(column) for column in zip(*queries)) if queries else torch.zeros(6, 0)
    labels, keep, best, counts = labels.long(), keep.bool(), best.float(), torch.stack(counts, 1).long()
    kept = keep.nonzero()[:, 0]
    area, won, visible = counts[kept].T.tolist()
    expected, _ = panoptic_segments(labels[kept].tolist(), best[kept].tolist(), area, won, visible, s)
    found = module.segment_ids(counts, labels, keep, best, 5, s)
    assert found[kept].tolist() == expected and not found[~keep].any()


def test_results_with_gradients_are_made_by_parts(device: str) -> None:
    scores, masks = (x.to(device).requires_grad_() for x in random_case(2))
    result = postprocess(scores, None, masks, *SIZES[0], Settings())["sem_seg"]
    result.sum().backward()
    assert masks.grad is not None and scores.grad is not None
    assert module.are_possible(scores.detach(), masks.detach(), SIZES[0][2])


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_small_results_are_where_they_are_needed() -> None:
    """With patches on the CPU and in ordinary memory, else on the GPU."""
    scores, masks = (x.cuda() for x in random_case(1))
    s = Settings(ALL, semantic_scores=False)
    there = postprocess(scores, None, masks, *SIZES[0], s)
    assert all(x.is_cuda for x in (there["sem_seg"], there["panoptic_seg"][0], there["instances"].pred_masks))
    here = postprocess(scores, None, masks, *SIZES[0], replace(s, patches=True))
    for x in (here["sem_seg"], here["panoptic_seg"][0], here["instances"].scores):
        assert x.device.type == "cpu" and not (x.is_pinned() and x.numel() > 1000)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_a_cuda_graph_holds_the_device_part() -> None:
    scores, masks = (x.cuda() for x in random_case(1))
    other = tuple(x.cuda() for x in random_case(8))
    s = Settings(ALL, patches=True, semantic_scores=False, things=frozenset({0, 2}))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        module.DeviceResults(scores, masks, *SIZES[0], s)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = module.DeviceResults(scores, masks, *SIZES[0], s)
    scores.copy_(other[0]), masks.copy_(other[1])
    graph.replay()
    found, expected = results(), postprocess(*other[:1], None, other[1], *SIZES[0], s)
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert torch.equal(found["instances"].scores, expected["instances"].scores)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("things", [None, frozenset({0, 2})])
def test_results_from_graphs_are_the_same(things: frozenset[int] | None) -> None:
    """Of several sizes that take turns, also while results of earlier images are not finished."""
    graphs = ResultGraphs()
    for quality in (None, torch.rand(9).cuda()):
        for round_ in range(5):
            begun = []
            for seed, sizes in enumerate(SIZES):
                scores, masks = (x.cuda() for x in random_case(10 * round_ + seed))
                s = Settings(ALL, topk=20, semantic_scores=False, patches=True, things=things, score_threshold=0.1)
                found = module.DeviceResults(scores, masks, *sizes, s, quality, graphs)
                found.send()
                begun.append((found, module.DeviceResults(scores, masks, *sizes, s, quality)))
            for found, expected in begun:
                check_equal(found(), expected())
    assert graphs.captured == len(graphs) == 2 * len(set(SIZES))


@pytest.mark.parametrize(
    ("tasks", "size", "output", "classes", "small"),
    [
        (ALL, (480, 640), (480, 640), 133, True),
        (SEMANTIC, (480, 640), (480, 640), 150, True),
        (SEMANTIC, (512, 683), (480, 640), 150, False),  # sums of 150 classes are resized
        (SEMANTIC, (480, 640), (480, 640), 200, False),
        (INSTANCE, (480, 640), (480, 640), 1203, True),
        (ALL, (4000, 6000), (4000, 6000), 133, False),
    ],
)
def test_graphs_hold_no_sums_of_all_classes(
    tasks: frozenset[Task], size: Size, output: Size, classes: int, small: bool
) -> None:
    s = Settings(tasks, semantic_scores=False, patches=True)
    launch = module._Launch(("logits", "scores"), (512, 704), size, size, output, s)
    assert launch.is_small(classes) == small


def test_no_graphs_of_what_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = ResultGraphs()
    calls: list[Any] = []
    monkeypatch.setattr(graphs, "_graphs", lambda *given: calls.append(given))
    x: Any = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for place, name in ((torch.jit, "is_tracing"), (torch.compiler, "is_compiling")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda: True)
            assert graphs(dict, x) is None and not calls
    graphs(dict, x)
    assert len(calls) == 1


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_large_results_and_those_of_the_device_are_launched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = ResultGraphs()
    scores, masks = (x.cuda() for x in random_case(1))
    compact = Settings(ALL, semantic_scores=False, patches=True)
    for s in (replace(compact, patches=False), replace(compact, semantic_scores=True)):
        for _ in range(5):
            module.DeviceResults(scores, masks, *SIZES[0], s, None, graphs)
    monkeypatch.setattr(module, "_SMALL", 1)
    for _ in range(5):
        module.DeviceResults(scores, masks, *SIZES[0], compact, None, graphs)
    assert not len(graphs)


@pytest.mark.gpu
def test_a_function_that_cannot_be_captured_is_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs = ResultGraphs()
    x = torch.ones(1, 2, 2, device="cuda")

    def waits(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x + float(x.sum())}

    assert [graphs(waits, x) for _ in range(5)] == [None] * 5
    assert sum("without CUDA graphs" in record.message for record in caplog.records) == 1
    assert float((x + 1).sum()) == 8


def test_no_graphs_on_a_cpu(device: str, caplog: pytest.LogCaptureFixture) -> None:
    if device != "cpu":
        pytest.skip("of the CPU")
    graphs = ResultGraphs()
    scores, masks = random_case(3)
    s = Settings(ALL, semantic_scores=False, patches=True)
    for _ in range(5):
        module.DeviceResults(scores, masks, *SIZES[0], s, None, graphs)
    assert not len(graphs) and not graphs.captured
    assert not caplog.text  # not even tried: that fails, and is told


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_memory_of_a_large_image() -> None:
    """24 megapixels with a hundred queries, in less than 3 GiB."""
    generator = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(100, 134, generator=generator)).softmax(-1).cuda()
    masks = F.interpolate(6 * torch.randn(1, 100, 8, 8, generator=generator), (200, 304), mode="bicubic")[0].cuda()
    s = Settings(ALL, patches=True, semantic_scores=False)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = postprocess(scores, None, masks, (800, 1216), (800, 1200), (4000, 6000), s)
    assert torch.cuda.max_memory_allocated() < 3 * 2**30
    assert result["sem_seg"].shape == (4000, 6000)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("patches", [False, True])
def test_predicted_quality(power: float, patches: bool, device: str) -> None:
    scores, masks = random_case(3)
    quality = torch.rand(len(scores), generator=torch.Generator().manual_seed(4))
    s = Settings(ALL, topk=6, score_threshold=0.05, patches=patches, quality_power=power, things=frozenset({0, 2}))
    sizes = (32, 48), (30, 44), (60, 88)
    found = compare(scores, masks, sizes, s, device, quality)["instances"]
    plain = compare(scores, masks, sizes, s, device)["instances"]
    assert torch.equal(found.scores, plain.scores) == (power == 0)


def test_many_sizes_of_results_are_captured_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture costs what ten graphs save: where sizes take turns, one must not come with every eighth call."""
    monkeypatch.setattr(cuda_graphs, "CapturedFunction", lambda function, *_: lambda inputs: function(*inputs))
    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    cache = ResultGraphs()._graphs
    for _ in range(60):
        for size in range(64):  # twice as many as there may be graphs
            cache(size, lambda x: {"x": x}, torch.ones(2, 3, 4))
    assert 32 <= cache.captured <= 32 + 60 * 64 // 35
