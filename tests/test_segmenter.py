"""Segmenter: what it accepts, what it hands to the model, how it loads."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from scipy import ndimage

from mask2former import ops
from mask2former.config import load_config
from mask2former.modeling.postprocess import begin
from mask2former.modeling.runtime import Runtime
from mask2former.objects import ObjectRules
from mask2former.segmenter import Segmenter
from mask2former.structures.classes import ClassTable
from mask2former.utils.device import select_device

from .stub_model import ALL_PARTS, StubModel, gray_tensor

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
TINY = [
    *(
        "MODEL.RESNETS.DEPTH",
        "18",
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "64",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        "32",
    ),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", "64", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "10"),
    *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0", "INPUT.MAX_SIZE_TEST", "128"),
]


def segmenter(parts: tuple[str, ...] = ("instances",), **options: Any) -> Segmenter:
    options = {"min_size": 0, "score_threshold": 0.0} | options
    return Segmenter(StubModel(parts), classes=["cell", "sky"], **options)


def seen(segment: Segmenter) -> torch.Tensor:
    return segment.model.seen[-1]["image"]


# ------------------------------------------------------------------ images
def test_every_kind_of_image_gives_the_same_input(tmp_path: Path) -> None:
    tensor = gray_tensor(8, 12)
    array = tensor.permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    path = tmp_path / "p.png"
    image.save(path)
    opaque = np.dstack([array, np.full((8, 12), 255, np.uint8)])
    strided = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    segment = segmenter()
    for item in (tensor, array, strided, opaque, image, image.convert("RGBA"), path, str(path)):
        result = segment(item)
        assert torch.equal(seen(segment), tensor) and result.image.shape == (8, 12, 3)
    assert segment(str(path)).path == path and segment(array).path is None


def test_gray_and_16_bit_images(tmp_path: Path) -> None:
    gray = np.arange(96, dtype=np.uint8).reshape(8, 12)
    deep = gray.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    segment = segmenter()
    for item in (
        gray,
        gray[..., None],
        deep,
        Image.fromarray(gray),
        Image.fromarray(deep),
        tmp_path / "deep.png",
    ):
        segment(item)
        assert torch.equal(seen(segment), torch.from_numpy(gray).expand(3, 8, 12))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(gray_tensor(8, 12).permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    segment = segmenter()
    for item in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        result = segment(item)
        np.testing.assert_array_equal(result.image, np.rot90(np.asarray(image), -1))
        assert result.instances.masks.shape == (3, 12, 8)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (np.full((4, 4, 3), 2.0, np.float32), r"from 2 to 2.*stretch"),
        (np.zeros((4, 4, 3), np.int64), r"uint8.*int64.*stretch"),
        (np.zeros((3, 5, 7), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "list"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(5, 4, 4), r"uint8 \(3, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "list"),
        (7, "int"),
    ],
)
def test_wrong_images_say_what_is_expected(bad: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        segmenter()(bad)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    segment = segmenter()
    with pytest.raises(FileNotFoundError, match=r"nix\.png"):
        segment(tmp_path / "nix.png")
    with pytest.raises(FileNotFoundError, match="is a directory"):
        segment(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match=r"broken\.png"):
        segment(str(tmp_path / "broken.png"))


def test_pages_channels_and_stretch_of_a_call(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 12), 1000 * i, np.uint16)) for i in (1, 2, 3)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    segment = segmenter()

    def values(results: list[Any]) -> list[int]:
        return [int(result.image[0, 0, 0]) for result in results]

    everything = segment(tmp_path / "stack.tif", page="all", stretch=(0, 4000))
    assert values(everything) == [64, 128, 191] and everything[2].path == tmp_path / "stack.tif"
    assert values([segment(tmp_path / "stack.tif", page=1, stretch=(0, 4000))]) == [128]
    assert segment(tmp_path / "stack.tif", channels=(2, None, 0), stretch=(0, 4000)).image[0, 0].tolist() == [
        191,
        0,
        64,
    ]
    assert [values(r) for r in segment([tmp_path / "stack.tif"] * 2, page="all")] == [[4, 8, 12]] * 2
    streamed = segment.stream([tmp_path / "stack.tif"] * 2, page="all", batch_size=4)
    assert values(list(streamed)) == [4, 8, 12] * 2


# ------------------------------------------------------------------ calling
def test_resizing_is_that_of_the_evaluation() -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    segment = segmenter(min_size=60, max_size=80)
    result = segment(array)
    expected = T.ResizeShortestEdge([60, 60], 80).get_transform(array).apply_image(array)
    assert seen(segment).shape == (3, 48, 80) and seen(segment).dtype == torch.uint8
    np.testing.assert_array_equal(seen(segment).permute(1, 2, 0).numpy(), expected)
    assert result.instances.masks.shape[1:] == (30, 50) and result.image.shape == (30, 50, 3)


@pytest.mark.parametrize("tile", [None, "auto", 1000])
@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)])
def test_long_images_keep_their_shortest_edge(size: tuple[int, int], tile: int | str | None) -> None:
    segment = segmenter(min_size=64, max_size=80)
    result = segment(np.zeros((*size, 3), np.uint8), tile=tile)
    assert min(seen(segment).shape) >= 1 and result.image.shape[:2] == size


def test_lists_keep_order_and_run_in_batches() -> None:
    images = [gray_tensor(8, 10 + i) for i in range(5)]
    segment = segmenter(batch_size=2)
    results = segment(images)
    assert [r.image.shape[1] for r in results] == [10, 11, 12, 13, 14]
    assert segment.model.batches == [2, 2, 1]
    assert segment([]) == [] and len(segment(tuple(images), batch_size=5)) == 5
    assert all(r.seconds > 0 for r in results)
    with pytest.raises(ValueError, match="batch_size"):
        segment(images, batch_size=0)


def test_stream_is_lazy() -> None:
    taken = []

    def source() -> Any:
        for i in range(4):
            taken.append(i)
            yield gray_tensor(4, 4)

    next(segmenter().stream(source()))
    assert taken == [0]


def test_threshold_of_constructor_and_of_call() -> None:
    segment = segmenter(score_threshold=0.5)
    assert len(segment(gray_tensor(4, 4))) == 1
    assert len(segment(gray_tensor(4, 4), score_threshold=0.0)) == 3
    with pytest.raises(ValueError, match="between 0 and 1"):
        segment(gray_tensor(4, 4), score_threshold=50)


def test_task_keeps_one_part() -> None:
    assert segmenter(ALL_PARTS)(gray_tensor(4, 4)).tasks == ("instance", "panoptic", "semantic")
    assert segmenter(ALL_PARTS, task="semantic")(gray_tensor(4, 4)).tasks == ("semantic",)
    with pytest.raises(ValueError, match="no panoptic result"):
        segmenter(task="panoptic")(gray_tensor(4, 4))
    with pytest.raises(ValueError, match="task"):
        segmenter(task="boxes")


def test_amp_runs_the_model_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = []
    native = True
    monkeypatch.setattr("mask2former.utils.device.cpu_multiplies", lambda dtype: native)

    class Probe(StubModel):
        def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            formats.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(inputs)

    for amp in (False, True, "bfloat16", "float16"):
        Segmenter(Probe(), classes=["cell", "sky"], amp=amp)(gray_tensor(4, 4))
    assert formats == [None, torch.bfloat16, torch.bfloat16, torch.float16]
    assert "cpu, bfloat16 autocast)" in repr(segmenter(amp=True)) and "cpu)" in repr(segmenter())
    native = False
    assert "cpu)" in repr(segmenter(amp="auto"))  # without units for bfloat16, fp32 is faster
    with pytest.raises(ValueError, match="amp"):
        segmenter(amp="int8")


@pytest.mark.parametrize(
    ("compile", "mode", "predicts"),
    [(None, "auto", True), (None, "off", False), (None, "graph", False), ("auto", "off", True)],
)
def test_segmenters_of_a_model_share_the_runtime_of_predictions(
    compile: str | None, mode: str, predicts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes: list[Runtime] = []
    run = Runtime.__call__

    def recording(self: Runtime, *inputs: Any) -> Any:
        runtimes.append(self)
        return run(self, *inputs)

    monkeypatch.setattr(Runtime, "__call__", recording)
    model: Any = build_model(load_config(CONFIG, [*TINY, "MODEL.DEVICE", "cpu", "MODEL.COMPILE", mode])).eval()
    options = {"classes": [f"c{i}" for i in range(133)], "min_size": 64, "max_size": 64}
    for _ in range(2):
        Segmenter(model, compile=compile, **options)(gray_tensor(64, 64))
    assert [x.predicts and x.mode == "auto" for x in runtimes] == [predicts] * 2
    assert (runtimes[0] is runtimes[1]) is (compile is None)
    segment = Segmenter(model, **options)
    model.runtime = Runtime("off")
    segment(gray_tensor(64, 64))
    assert runtimes[-1] is model.runtime  # as it is when it is called


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_a_batch_on_a_gpu_waits_once_an_image(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most; images that keep their size and enlarged ones; all other waits are errors."""
    if ops.backend("cuda") != "compiled":
        pytest.skip("no compiled op for cuda")
    cfg = load_config(CONFIG, [*TINY, "MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", ""])
    names = [str(i) for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    segment = Segmenter(build_model(cfg), cfg, classes=names, score_threshold=0.0, compile="off")
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i in range(4)]
    expected = segment(images, batch_size=4)
    waits: list[int] = []
    wait = torch.cuda.Event.synchronize
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: (waits.append(1), wait(event))[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = segment(images, batch_size=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= len(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.panoptic.map, theirs.panoptic.map)
        assert np.array_equal(ours.instances.scores, theirs.instances.scores)


def test_ready_model_needs_class_names() -> None:
    with pytest.raises(ValueError, match="classes"):
        Segmenter(StubModel())
    segment = Segmenter(StubModel().eval(), classes=("a", "b"))
    assert "StubModel" in repr(segment) and "2 classes" in repr(segment)


def test_the_given_model_is_not_changed() -> None:
    model = StubModel()
    model.part = torch.nn.Dropout().eval()
    segment = Segmenter(model, classes=("a", "b"))
    assert model.training and not model.part.training
    assert not any(part.training for part in segment.model.modules())
    assert segment.model.weight is model.weight  # a copy in evaluation mode follows a training
    model.eval()
    assert Segmenter(model, classes=("a", "b")).model is model
    elsewhere = Segmenter(model, classes=("a", "b"), device="meta")
    assert elsewhere.model.weight.device.type == "meta" and model.weight.device.type == "cpu"
    model.part.train()  # one part is enough
    assert not Segmenter(model, classes=("a", "b")).model.part.training and model.part.training


def test_devices() -> None:
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type in ("cpu", "cuda", "mps")
    for bad in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=bad):
            select_device(bad)


# ------------------------------------------------------------------ loading a real model
@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a training's output: config.yaml and random weights of a very small model."""
    from detectron2.modeling import build_model

    from mask2former.checkpoint.writing import save_safetensors

    directory = tmp_path_factory.mktemp("tiny")
    cfg = load_config(CONFIG, [*TINY, "MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    save_safetensors(build_model(cfg), directory / "model.safetensors")
    (directory / "config.yaml").write_text(cfg.dump())
    return directory


def test_the_device_of_overrides_is_taken(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what "auto" would take
    segment = Segmenter.load(str(tiny), overrides=["MODEL.DEVICE", "cpu"])
    assert segment.device.type == segment.model.device.type == "cpu"


def test_config_and_weights_give_what_the_model_itself_gives(tiny: Path) -> None:
    weights = tiny / "model.safetensors"
    segment = Segmenter.load(config=CONFIG, weights=weights, overrides=TINY, device="cpu", score_threshold=0.0)
    assert segment.classes.names[0] == "person" and segment.classes.dataset_ids[-1] == 200
    image = gray_tensor(60, 90)
    result = segment(image)
    array = image.permute(1, 2, 0).numpy()
    resized = T.ResizeShortestEdge([64, 64], 128).get_transform(array).apply_image(array)
    with torch.no_grad():
        (expected,) = segment.model(
            [{"image": torch.from_numpy(resized.transpose(2, 0, 1).copy()), "height": 60, "width": 90}]
        )
    np.testing.assert_array_equal(result.panoptic.map, expected["panoptic_seg"][0].numpy())
    np.testing.assert_array_equal(result.semantic, expected["sem_seg"].argmax(0).numpy())
    scores = np.sort(expected["instances"].scores.numpy())
    np.testing.assert_allclose(np.sort(result.instances.scores), scores, rtol=1e-5)
    by_opts = Segmenter.load(config=CONFIG, overrides=[*TINY, "MODEL.WEIGHTS", str(weights)], device="cpu")
    np.testing.assert_array_equal(by_opts(image, score_threshold=0.0).semantic, result.semantic)


def test_directory_of_a_training_and_one_task(tiny: Path) -> None:
    image = gray_tensor(60, 90)
    whole = Segmenter.load(str(tiny), device="cpu", score_threshold=0.0)(image)
    for task in ("instance", "panoptic", "semantic"):
        part = Segmenter.load(str(tiny), device="cpu", score_threshold=0.0, task=task)(image)
        assert part.tasks == (task,)
        if task == "instance":  # things only, as the whole model gives them
            np.testing.assert_array_equal(part.instances.masks, whole.instances.masks)
        if task == "panoptic":
            np.testing.assert_array_equal(part.panoptic.map, whole.panoptic.map)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_segmenters_of_one_model_have_settings_of_their_own(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    """Two threads meet inside the model, after each has called it and before either makes results."""
    model = Segmenter.load(str(tiny), device="cpu").model
    settings, image = model.settings, gray_tensor(60, 90)
    options = {"classes": ClassTable.numbered(133), "min_size": 64, "max_size": 128}
    every = Segmenter(model, score_threshold=0.0, **options)(image).instances.scores
    thresholds = (0.0, float(every[len(every) // 2]))
    used: dict[str, float] = {}

    def begin_and_note(*arguments: Any) -> Any:
        used[threading.current_thread().name] = arguments[6].score_threshold
        return begin(*arguments)

    monkeypatch.setattr("mask2former.maskformer_model.begin", begin_and_note)
    meeting = threading.Barrier(2)

    def meet(*_: Any) -> None:
        meeting.wait(120)

    hook = model.backbone.register_forward_pre_hook(meet)
    segmenters = [Segmenter(model, score_threshold=thresholds[i], **options) for i in order]
    counts: dict[str, int] = {}

    def run(segment: Segmenter) -> None:
        counts[threading.current_thread().name] = len(segment(image).instances)

    named = zip(order, segmenters, strict=True)
    threads = [threading.Thread(target=run, args=(segment,), name=str(i)) for i, segment in named]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert used == {"0": thresholds[0], "1": thresholds[1]}
    assert counts["0"] == len(every) and 0 < counts["1"] < len(every)
    assert model.settings == settings


def test_loading_registers_no_dataset_and_takes_things_from_the_classes(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny / "model.safetensors")
    cfg = load_config(tiny / "config.yaml")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("a_dataset_of_another_machine",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    rows = [{"id": k, "name": f"kind {k}", "isthing": int(k < 3)} for k in range(133)]
    (tmp_path / "classes.json").write_text(json.dumps(rows))
    before = set(MetadataCatalog)
    segment = Segmenter.load(str(tmp_path), device="cpu", score_threshold=0.0)
    assert set(MetadataCatalog) == before
    assert segment.model.settings.things == {0, 1, 2}
    assert set(segment(gray_tensor(60, 90)).instances.labels.tolist()) <= {0, 1, 2}


def test_class_names_beside_the_weights_are_used(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny / name)
    (tmp_path / "classes.json").write_text(json.dumps([{"id": 7 + k, "name": f"kind {k}"} for k in range(133)]))
    segment = Segmenter.load(str(tmp_path), device="cpu")
    assert segment.classes.names[2] == "kind 2" and segment.classes.dataset_ids[2] == 9
    (tmp_path / "classes.json").write_text(json.dumps(["too", "few"]))
    with pytest.raises(ValueError, match="133"):
        Segmenter.load(str(tmp_path), device="cpu")


def test_loading_mistakes_are_explained(tiny: Path, tmp_path: Path) -> None:
    weights = tiny / "model.safetensors"
    for arguments, error, match in (
        ({"name": "nuclei", "config": CONFIG}, ValueError, "not both"),
        ({"config": CONFIG}, ValueError, "no weights"),
        ({"weights": weights}, ValueError, "config"),
        ({"name": "no-such-model"}, ValueError, "no-such-model"),
        (
            {"config": CONFIG, "weights": tmp_path / "nix.pth", "overrides": TINY},
            FileNotFoundError,
            r"nix\.pth",
        ),
        (
            {"config": CONFIG, "weights": weights, "overrides": [*TINY[:-4], "MODEL.SWIN.DEEPTHS", "3"]},
            ValueError,
            "DEPTHS",
        ),
        (
            {
                "config": CONFIG,
                "weights": weights,
                "overrides": [*TINY, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "11"],
            },
            ValueError,
            "another shape.*query",
        ),
        ({"name": str(tmp_path)}, FileNotFoundError, r"config\.yaml"),
    ):
        with pytest.raises(error, match=match):
            Segmenter.load(device="cpu", **arguments)


def test_a_directory_of_images_may_bear_a_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mask2former import zoo
    from mask2former.model_source import locate_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "nuclei").mkdir()
    monkeypatch.setattr(zoo, "resolve_weights", lambda entry: Path(entry.weights))
    monkeypatch.setattr("mask2former.config.find_config", lambda name: Path(name))
    assert locate_model("nuclei", None, None)[1] == Path("bundled/nuclei/model.safetensors")
    (tmp_path / "nuclei" / "config.yaml").touch()
    (tmp_path / "nuclei" / "model_final.pth").touch()
    assert locate_model("nuclei", None, None)[1] == Path("nuclei/model_final.pth")
    (tmp_path / "nuclei" / "model_final.safetensors").touch()  # the EMA weights come before the plain ones
    assert locate_model("nuclei", None, None)[1] == Path("nuclei/model_final.safetensors")


def test_size_for_one_call() -> None:
    segment = segmenter()
    shapes: list[tuple[int, ...]] = []
    segment.model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0][0]["image"].shape[1:])))
    image = np.zeros((40, 60, 3), np.uint8)
    segment(image, min_size=80)
    segment(image)
    assert shapes == [(80, 120), (40, 60)]
    with pytest.raises(ValueError, match="min_size"):
        segment(image, min_size=0)


# ------------------------------------------------------------------ rules and tiles
class Blobs(StubModel):
    """Finds the connected bright regions of its input, as a perfect model would; score 0.9."""

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.seen += inputs
        return [self.found(x["image"][0].numpy() > 127, x["height"], x["width"]) for x in inputs]

    @staticmethod
    def found(bright: np.ndarray, height: int, width: int) -> dict[str, Any]:
        labels, count = ndimage.label(bright)
        masks = torch.from_numpy(np.stack([labels == k for k in range(1, count + 1)]) if count else labels[:0] > 0)
        masks = masks.reshape(count, *labels.shape)
        resized = torch.nn.functional.interpolate(masks[None].float(), (height, width))[0] > 0.5 if count else masks
        instances = Instances((height, width))
        instances.pred_masks = resized.reshape(count, height, width)
        instances.scores, instances.pred_classes = torch.full((count,), 0.9), torch.zeros(count, dtype=torch.int64)
        return {"instances": instances}


def grid_of_squares(count: int) -> np.ndarray:
    image = np.zeros((20 * count, 20 * count, 3), np.uint8)
    for y in range(count):
        for x in range(count):
            image[20 * y + 5 : 20 * y + 15, 20 * x + 5 : 20 * x + 15] = 255
    return image


def test_tiles_find_what_the_complete_image_shows_too_small() -> None:
    segment = Segmenter(Blobs(), classes=["cell"], min_size=80, max_size=80, score_threshold=0.5)
    image = grid_of_squares(12)
    result = segment(image, tile=80, overlap=0.25)
    assert len(result.instances) == 144 and set(result.instances.areas.tolist()) == {100}
    assert result.image is image or (result.image == image).all()
    assert {tuple(x["image"].shape[1:]) for x in segment.model.seen} == {(80, 80)}
    assert result.counts() == {"cell": 144}


def test_auto_tiles_only_where_the_image_would_shrink() -> None:
    segment = Segmenter(Blobs(), classes=["cell"], min_size=80, max_size=1000)
    assert len(segment(grid_of_squares(6), tile="auto").instances) == 36  # 120 pixels: shrinks by less than two
    assert len(segment.model.seen) == 1
    assert len(segment(grid_of_squares(9), tile="auto").instances) == 81
    assert len(segment.model.seen) > 2


@pytest.mark.parametrize("wrong", [{"tile": "some"}, {"tile": 3}, {"tile": True}, {"tile": 80, "overlap": 1.0}])
def test_wrong_tiles(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tile|overlap"):
        segmenter()(np.zeros((9, 9, 3), np.uint8), **wrong)


def test_a_crowded_image_is_a_warning_or_is_cut_into_tiles(caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(CONFIG, ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "40", "INPUT.MIN_SIZE_TEST", "120"])
    segment = Segmenter(Blobs(), cfg, classes=[f"c{k}" for k in range(133)])
    image = grid_of_squares(6)
    assert len(segment(image).instances) == 36
    assert "36 of the 40 queries found an object" in caplog.text and "tile='auto'" in caplog.text
    caplog.clear()
    cfg.MODEL.MASK_FORMER.TEST.TILES.SIZE = 60
    assert len(segment(image).instances) == 36 and len(segment.model.seen) > 3 and not caplog.text


def test_rules_of_model_constructor_and_call() -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    key = "MODEL.MASK_FORMER.TEST.INSTANCES"
    cfg = load_config(CONFIG, [f"{key}.SCORE_THRESHOLD", "0.3", f"{key}.NON_OVERLAPPING", "True"])
    segment = Segmenter(StubModel(), cfg, classes=[f"c{k}" for k in range(133)])
    assert segment(image).instances.areas.tolist() == [48, 6]
    assert segment(image, score_threshold=0.6).instances.areas.tolist() == [48]
    assert segment(image, rules=ObjectRules(score_threshold=0.3)).instances.areas.tolist() == [48, 12]
    assert Segmenter(StubModel(), cfg, classes=segment.classes, rules=ObjectRules()).rules == ObjectRules()


def test_calls_in_threads_give_the_results_of_single_calls(tiny: Path) -> None:
    segment = Segmenter.load(config=tiny / "config.yaml", weights=tiny / "model.safetensors", device="cpu")
    rng = np.random.default_rng(0)
    jobs = [
        (rng.integers(0, 255, (40 + 8 * i, 60, 3), dtype=np.uint8), {"score_threshold": 0.02 * i, "tile": tile})
        for i, tile in enumerate(["off", 48] * 8)
    ]
    alone = [segment(image, **options) for image, options in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: segment(job[0], **job[1]), jobs))
    for one, other in zip(alone, together, strict=True):
        assert one.counts() == other.counts()
        assert (one.panoptic.map == other.panoptic.map).all()
        assert one.instances.patches.encode() == other.instances.patches.encode()


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.touch()
    with pytest.raises(ValueError, match=r"model\.pth is a file, but .* needs its config, too: --config-file FILE"):
        Segmenter.load(str(file), device="cpu")
