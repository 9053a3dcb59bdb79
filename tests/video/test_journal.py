"""Files of a long clip's run: their size, and which run they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mask2former import load_config
from mask2former.segmenter import Segmenter
from mask2former.video.journal import Journal, JournalMismatch
from mask2former.video.windows import fingerprint, tracks_of

from ..modeling.tiny_models import tiny
from .moving_shapes import ShapeModel, images

R50 = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"


class Flickering(ShapeModel):
    """Each window shows other objects: tracks begin and end all the time."""

    def clip_outputs(self, images: Tensor) -> dict[str, Any]:
        outputs = super().clip_outputs(images)
        generator = torch.Generator().manual_seed(len(self.lengths))
        return outputs | {"pred_embeds": torch.randn(len(outputs["pred_logits"]), 64, generator=generator)}


def track(model: nn.Module, count: int, directory: Path, **options: Any) -> Any:
    segment = Segmenter(model, classes=["a", "b", "c"], min_size=0, score_threshold=0.0)
    return segment.track(images(count), work_dir=directory, **options)


@pytest.mark.slow
def test_what_is_written_for_a_window_does_not_grow(tmp_path: Path) -> None:
    sizes = []
    for count in (60, 240):
        result = track(Flickering(), count, tmp_path / str(count), online=True, top_k=1000)
        assert len(result.tracks) > 2 * count
        sizes.append((tmp_path / str(count) / "state.npz").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.slow
def test_logs_hold_every_track_after_a_stop_at_any_place(tmp_path: Path) -> None:
    complete = track(Flickering(), 90, tmp_path / "complete", online=True)
    for stop_at in (1, 40, 77):
        directory = tmp_path / str(stop_at)
        with pytest.raises(KeyboardInterrupt):
            track(Flickering(stop_at=stop_at), 90, directory, online=True)
        for log in directory.glob("*.log"):  # rows of a window that was not finished
            with log.open("ab") as file:
                file.write(np.full(7, -1.0).tobytes() + b"cut")
        model = Flickering()
        model.lengths = [1] * stop_at  # so that it resumes with the same random numbers
        result = track(model, 90, directory, online=True)
        assert result.tracks == complete.tracks and result.to_ytvis() == complete.to_ytvis()
        for ours, theirs in zip(tracks_of(result.journal), tracks_of(complete.journal), strict=True):
            assert np.array_equal(ours, theirs)


def test_rows_of_a_log(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"video": 1})
    assert journal.run == {"video": 1} and journal.log("rows").shape == (0, 0)
    journal.append({}, {}, {"rows": np.array([[1.5, 2.0]]), "none": np.zeros((0, 2))})
    journal.append({}, {}, {"rows": np.array([[3, 4], [5, 6]])})
    journal.append({}, {})
    again = Journal(tmp_path, {"video": 1})
    assert again.log("rows").tolist() == [[1.5, 2], [3, 4], [5, 6]] and again.log("none").shape == (0, 0)


def test_results_without_their_run_are_discarded(tmp_path: Path) -> None:
    track(ShapeModel(), 12, tmp_path, window=8, overlap=3)
    (tmp_path / "run.json").unlink()  # a directory that was deleted in part
    model = ShapeModel()
    assert len(track(model, 9, tmp_path, window=8, overlap=3)) == 9 and model.lengths


@pytest.mark.parametrize("name", ["state.npz", "present.log"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    track(ShapeModel(), 12, tmp_path, window=8, overlap=3)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"{name} is .* delete .* to start over"):
        track(ShapeModel(), 12, tmp_path, window=8, overlap=3)


def test_fingerprint_sees_every_value_and_every_buffer() -> None:
    model = nn.BatchNorm1d(1000)
    model.register_buffer("mean", torch.zeros(3, 1, 1), persistent=False)
    before = fingerprint(model)
    assert before == fingerprint(model)
    for tensor in (model.weight.data[500:501], model.running_var[999:], model.mean[1], model.num_batches_tracked):
        tensor += 1
        assert fingerprint(model) != before
        tensor -= 1
    assert fingerprint(model) == before


@pytest.mark.parametrize("override", [("MODEL.MASK_FORMER.NHEADS", 4), ("INPUT.FORMAT", "BGR")])
def test_settings_of_the_model_belong_to_a_run(tmp_path: Path, override: tuple[str, Any]) -> None:
    options: dict[str, Any] = {"window": 4, "overlap": 2, "work_dir": tmp_path}
    model = tiny(R50).eval()
    classes = [f"class {k}" for k in range(model.sem_seg_head.num_classes)]
    cfg = load_config(R50, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(classes), "INPUT.MIN_SIZE_TEST", 48])
    Segmenter(model, cfg, classes=classes).track(images(5), **options)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", "elsewhere.pth"
    Segmenter(model, cfg, classes=classes).track(images(5), **options)
    cfg.merge_from_list(override)
    with pytest.raises(JournalMismatch, match="different (config|bgr)"):
        Segmenter(model, cfg, classes=classes).track(images(5), **options)
