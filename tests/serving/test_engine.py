from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.segmenter import Segmenter
from mask2former.serving.engine import Batching, Engine, Limits, ModelSource, Options
from mask2former.serving.errors import (
    BusyError,
    ClosedError,
    InferenceError,
    InvalidOptionError,
    ModelUnavailableError,
    RequestTimeoutError,
    TooLargeError,
    UnknownModelError,
)

from .conftest import TASKS, HeldModel, make_engine, png, wait_for

IMAGE = np.zeros((6, 8, 3), np.uint8)
SMALL = ("INPUT.MIN_SIZE_TEST", "64", "MODEL.MASK_FORMER.TEST.TILES.SIZE", "0")


def block(engine: Engine, model: HeldModel) -> Any:
    """Make the worker wait in a forward pass, and return the future of that request."""
    model.go.clear()
    model.entered.clear()
    future = engine.submit(np.zeros((2, 2, 3), np.uint8))
    assert model.entered.wait(60)
    return future


def test_a_file_and_its_pixels_give_the_same_result() -> None:
    with make_engine() as engine:
        first, second = engine.segment(png()), engine.segment(np.zeros((6, 8, 3), np.uint8))
        assert first.size == second.size == (6, 8)
        assert first.tasks == second.tasks
        assert first.to_coco() == second.to_coco()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_only_its_part(task: str) -> None:
    with make_engine() as engine:
        assert engine.segment(IMAGE, options=Options(task=task)).tasks == (task,)


def test_thresholds_are_those_of_the_request() -> None:
    with make_engine() as engine:
        scores = [
            engine.segment(IMAGE, options=Options("instance", score)).instances.scores.tolist()  # type: ignore[union-attr]
            for score in (None, 0.5, 0.95)
        ]
        assert [len(row) for row in scores] == [2, 1, 0]


def test_equal_requests_run_in_one_batch_and_others_do_not(held: HeldModel) -> None:
    with make_engine(held, max_images=4) as engine:
        first = block(engine, held)
        same = [engine.submit(np.full((6, 8, 3), i, np.uint8)) for i in range(5)]
        other = [
            engine.submit(IMAGE, options=Options(score_threshold=0.9)),
            engine.submit(np.zeros((7, 8, 3), np.uint8)),
        ]
        held.batches.clear()
        held.go.set()
        results = [future.result(60) for future in (first, *same, *other)]
        assert held.batches == [1, 4, 1, 1, 1]
        assert [int(result.image.max()) for result in results[1:6]] == [0, 1, 2, 3, 4]
        assert (engine.status().images, engine.status().batches) == (8, 5)


def test_pixels_bound_a_batch(held: HeldModel) -> None:
    with make_engine(held, max_images=4, max_batch_pixels=100) as engine:
        first = block(engine, held)
        rest = [engine.submit(IMAGE) for _ in range(4)]  # of 48 pixels
        held.go.set()
        for future in (first, *rest):
            future.result(60)
        assert held.batches == [1, 2, 2]


def test_a_first_image_waits_for_others(held: HeldModel) -> None:
    with make_engine(held, max_images=3, max_wait=30.0) as engine:
        futures = [engine.submit(IMAGE) for _ in range(3)]
        for future in futures:
            future.result(20)
        assert held.batches == [3]


def test_an_image_that_fails_does_not_harm_those_of_its_batch() -> None:
    class Failing(HeldModel):
        def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if any(int(each["image"].max()) == 2 for each in inputs):
                raise RuntimeError("2 is not to my liking")
            return super().forward(inputs)

    model = Failing()
    with make_engine(model, max_images=4) as engine:
        first = block(engine, model)
        futures = [engine.submit(np.full((6, 8, 3), i, np.uint8)) for i in range(4)]
        model.go.set()
        first.result(60)
        with pytest.raises(InferenceError) as raised:
            futures[2].result(60)
        assert "liking" not in str(raised.value) and raised.value.__traceback__ is not None
        assert all(futures[i].result(60).size == (6, 8) for i in (0, 1, 3))
        assert engine.status().healthy


def test_out_of_memory_is_an_answer_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HeldModel()
    with make_engine(model) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(model, "answer", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("2 GiB")))
            with pytest.raises(InferenceError, match="memory"):
                engine.segment(IMAGE)
        assert engine.segment(IMAGE).size == (6, 8)


def test_a_broken_gpu_makes_the_engine_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HeldModel()
    with make_engine(model) as engine:
        monkeypatch.setattr(model, "answer", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error: an assert")))
        with pytest.raises(InferenceError):
            engine.segment(IMAGE)
        assert not engine.status().healthy and "GPU" in engine.status().reason
        with pytest.raises(ClosedError):
            engine.submit(IMAGE)


def test_a_full_queue_refuses_and_recovers(held: HeldModel) -> None:
    with make_engine(held, max_waiting=3) as engine:
        first = block(engine, held)
        rest = [engine.submit(IMAGE) for _ in range(2)]
        with pytest.raises(BusyError) as raised:
            engine.submit(IMAGE)
        assert raised.value.retry_after >= 1
        held.go.set()
        for future in (first, *rest):
            future.result(60)
        wait_for(lambda: engine.status().accepted == 0)
        assert engine.segment(IMAGE).size == (6, 8)


def test_pixels_bound_the_queue_but_one_image_is_always_accepted(held: HeldModel) -> None:
    with make_engine(held, max_waiting_pixels=40) as engine:
        assert engine.segment(IMAGE).size == (6, 8)
        wait_for(lambda: engine.status().accepted == 0)  # its place is free after its result is there
        first = block(engine, held)
        with pytest.raises(BusyError):
            engine.submit(IMAGE)
        held.go.set()
        first.result(60)


def test_refused_images_leave_no_reservation() -> None:
    with make_engine(limits=Limits(max_pixels=40), max_waiting=2) as engine:
        for _ in range(5):
            with pytest.raises(TooLargeError):
                engine.submit(png())
        for _ in range(5):
            with pytest.raises(ValueError, match="truncated"):
                engine.submit(png(5, 7)[:-60])
        assert engine.status().accepted == 0


def test_a_canceled_request_makes_room_at_once(held: HeldModel) -> None:
    with make_engine(held, max_waiting=2) as engine:
        first = block(engine, held)
        second = engine.submit(IMAGE)
        assert second.cancel()
        assert engine.status().waiting == 0
        third = engine.submit(IMAGE)
        held.go.set()
        assert first.result(60) and third.result(60)
        with pytest.raises(CancelledError):
            second.result()


def test_timeouts(held: HeldModel) -> None:
    with make_engine(held) as engine:
        first = block(engine, held)
        late = engine.submit(IMAGE, timeout=0.001)
        with pytest.raises(RequestTimeoutError):
            engine.segment(IMAGE, timeout=0.01)
        held.go.set()
        first.result(60)
        with pytest.raises(RequestTimeoutError, match="turn"):
            late.result(60)


def test_an_image_in_many_tiles_stops_at_its_deadline(held: HeldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr("mask2former.serving.engine.time", clock)
    with make_engine(held) as engine:
        held.go.clear()
        held.entered.clear()
        future = engine.submit(np.zeros((256, 256, 3), np.uint8), options=Options(tile=64), timeout=0.2)
        assert held.entered.wait(60)
        now[0] = 0.3
        held.go.set()
        with pytest.raises(RequestTimeoutError, match="tiles"):
            future.result(60)
        assert held.batches == [1]  # of 25 tiles
        assert not held._forward_pre_hooks


def test_models_tell_why_they_are_missing() -> None:
    with make_engine() as engine:
        stub, absent = engine.models()
        assert stub.available and stub.tasks == TASKS and stub.classes == ("a", "b")
        assert not absent.available and "moon" in absent.reason and absent.classes == ()
        with Engine({"nuclei": ModelSource.named("nuclei")}, device="cpu") as included:
            assert included.models()[0].classes == ("nucleus",)  # before it is loaded
        with pytest.raises(ModelUnavailableError, match="moon"):
            engine.submit(IMAGE, "absent")
        with pytest.raises(UnknownModelError, match="Did you mean.*stub"):
            engine.submit(IMAGE, "stup")


@pytest.mark.parametrize(
    "options",
    [{"tile": 3}, {"tile": "huge"}, {"tile": True}, {"score_threshold": 1.1}, {"score_threshold": float("nan")}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        Options(**options)


def test_a_task_that_the_model_lacks() -> None:
    with make_engine() as engine, pytest.raises(InvalidOptionError, match="auto or panoptic"):
        engine.submit(IMAGE, options=Options(task="video"))


def test_a_model_that_cannot_be_loaded_harms_no_other() -> None:
    good = make_engine()
    segmenter = good._pool.get("stub")
    good.close()

    def fail(device: str) -> Segmenter:
        raise OSError("/secret/path is damaged")

    sources = {"bad": ModelSource(fail, tasks=lambda: TASKS), "good": ModelSource.ready(segmenter, TASKS)}
    with Engine(sources, device="cpu") as engine:
        with pytest.raises(ModelUnavailableError) as raised:
            engine.segment(IMAGE)
        assert "secret" not in str(raised.value)
        assert not engine.models()[0].available
        assert engine.segment(IMAGE, "good").size == (6, 8)


def test_only_some_models_stay_in_memory() -> None:
    loads: list[str] = []

    def source(name: str) -> ModelSource:
        def load(device: str) -> Segmenter:
            loads.append(name)
            return Segmenter(HeldModel(), classes=["a", "b"], min_size=0)

        return ModelSource(load, tasks=lambda: TASKS)

    with Engine({name: source(name) for name in "abc"}, device="cpu", max_loaded=2) as engine:
        for name in "abacab":
            engine.segment(IMAGE, name)
        assert loads == ["a", "b", "c", "b"]
        assert [model.loaded for model in engine.models()] == [True, True, False]


def test_jobs_let_images_through_and_stop_at_the_end(held: HeldModel) -> None:
    with make_engine(held) as engine:
        started, go = threading.Event(), threading.Event()

        def job(segmenter: Segmenter, turn: Any) -> str:
            started.set()
            assert go.wait(60)
            turn()
            return f"{len(held.batches)} batch"

        future = engine.submit_job(job)
        assert started.wait(60)
        image = engine.submit(IMAGE)
        go.set()
        assert future.result(60) == "1 batch"
        assert image.result(60).size == (6, 8)


def test_jobs_fail_alone() -> None:
    def overdue(segmenter: Segmenter, turn: Any) -> None:
        while True:
            turn()

    def broken(segmenter: Segmenter, turn: Any) -> None:
        raise RuntimeError("secret")

    def canceled(segmenter: Segmenter, turn: Any) -> None:
        raise CancelledError

    with make_engine() as engine:
        with pytest.raises(RequestTimeoutError):
            engine.submit_job(overdue, timeout=0.05).result(60)
        with pytest.raises(InferenceError):
            engine.submit_job(broken).result(60)
        with pytest.raises(CancelledError):
            engine.submit_job(canceled).result(60)
        assert engine.segment(IMAGE).size == (6, 8)
        running = engine.submit_job(overdue)
    with pytest.raises(ClosedError):
        running.result(60)


def test_close_finishes_what_was_accepted(held: HeldModel) -> None:
    engine = make_engine(held)
    futures = [block(engine, held), *(engine.submit(IMAGE) for _ in range(3))]
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_for(lambda: engine._queue._closed)
    with pytest.raises(ClosedError):
        engine.submit(IMAGE)
    held.go.set()
    closing.join(60)
    assert all(future.result(60) for future in futures)
    assert not engine.status().healthy


def test_close_fails_what_takes_too_long(held: HeldModel) -> None:
    engine = make_engine(held)
    running, waiting = block(engine, held), engine.submit(IMAGE)
    assert not engine.close(timeout=0.01)
    with pytest.raises(ClosedError):
        waiting.result(60)
    held.go.set()
    assert running.result(60)
    assert engine.close()


def test_many_threads_lose_nothing() -> None:
    with make_engine(max_images=4, max_waiting=1000) as engine:
        sizes: list[tuple[int, int]] = []

        def client(number: int) -> None:
            for i in range(20):
                height = 4 + (number + i) % 3
                assert engine.segment(np.zeros((height, 8, 3), np.uint8)).size == (height, 8)
                sizes.append((height, 8))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(sizes) == 160 and engine.status().images == 160
        wait_for(lambda: engine.status().accepted == 0)
        assert engine.status().waiting == 0


def test_batching_settings_out_of_range() -> None:
    for name in ("max_images", "max_waiting", "timeout"):
        with pytest.raises(ValueError, match=name):
            Batching(**{name: 0})
    with pytest.raises(ValueError, match="max_pixels"):
        Limits(max_pixels=0)
    with pytest.raises(ValueError, match="default"):
        Engine({"a": ModelSource(lambda device: None)}, default="b", device="cpu")  # type: ignore[arg-type,return-value]


@pytest.mark.slow
def test_batches_of_a_real_model_give_the_results_of_single_calls() -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    for number, image in enumerate(images):  # one more bright disc in each, so that results differ
        rows, columns = np.mgrid[:64, :64]
        image[:] //= 16
        for disc in range(number + 1):
            image[(rows - 16 - 16 * disc) ** 2 + (columns - 14 - 18 * disc) ** 2 < 36] = 200
    segmenter = Segmenter.load("nuclei", device="cpu", overrides=SMALL, score_threshold=0.1)
    alone = [segmenter(image) for image in images]
    source = ModelSource.named("nuclei", overrides=SMALL, score_threshold=0.1)
    with Engine({"nuclei": source}, device="cpu", batching=Batching(max_images=3, max_wait=30.0)) as engine:
        futures = [engine.submit(image) for image in images]
        together = [future.result(120) for future in futures]
        assert engine.status().batches == 1
        futures = [engine.submit(image, options=Options(task="instance")) for image in images]  # full, so no waiting
        one_task = [future.result(120) for future in futures]
        assert engine.status().batches == 2
    for first, second in zip(2 * alone, [*together, *one_task], strict=True):
        assert first.instances is not None and second.instances is not None
        np.testing.assert_allclose(first.instances.scores, second.instances.scores, atol=1e-5)
        different = (first.instances.label_map() != second.instances.label_map()).mean()
        assert different < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_task_of_a_real_model_is_that_of_loading_with_it(task: str) -> None:
    image = np.random.default_rng(2).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    image[16:40, 16:40] = 200
    options: dict[str, Any] = {"device": "cpu", "score_threshold": 0.1}
    switches = [part for each in TASKS for part in (f"MODEL.MASK_FORMER.TEST.{each.upper()}_ON", "True")]
    everything = Segmenter.load("nuclei", overrides=[*SMALL, *switches], **options)
    expected = Segmenter.load("nuclei", overrides=[*SMALL, *switches], task=task, **options)(image)
    with Engine({"nuclei": ModelSource.ready(everything, TASKS)}, device="cpu") as engine:
        result = engine.segment(image, options=Options(task=task))
        assert engine.segment(image).tasks == everything(image).tasks  # its own switches are what they were
    assert result.tasks == (task,)
    assert result.to_coco() == expected.to_coco(task=task)


@pytest.mark.gpu
def test_batches_on_a_gpu_give_the_results_of_single_calls_and_memory_stays() -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 255, (64, 64 + 32 * (i % 3), 3), dtype=np.uint8) for i in range(12)]
    source = ModelSource.named("nuclei", overrides=SMALL, score_threshold=0.1)
    alone = [source.load("cuda")(image) for image in images[:3]]
    with Engine({"nuclei": source}, device="cuda", batching=Batching(max_waiting=1000)) as engine:
        used = []
        for _ in range(12):
            results = [future.result(120) for future in [engine.submit(image) for image in images * 2]]
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_allocated())
        assert engine.status().healthy and engine.status().batches < engine.status().images
    assert used[-1] <= used[-4] + 2**20
    for first, second in zip(alone, results, strict=False):
        assert first.instances is not None and second.instances is not None
        assert (first.instances.label_map() != second.instances.label_map()).mean() < 5e-3
