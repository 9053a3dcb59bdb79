"""Video instance segmentation of clips of any length, in memory that does not depend on it.

The network sees overlapping windows. Each window's queries are matched to the tracks before them (`tracks.py`), and
its masks go to a journal on the disk (`journal.py`). Nothing is retrained. A clip that fits one window gives exactly
what `VideoMaskFormer` gives for the whole clip. With windows of one frame this is online tracking, frame by frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..maskformer_model import MaskFormer
from ..modeling.device_transfer import to_cpu, to_device
from ..modeling.postprocess import Size, resize_masks
from ..structures.rle import encode_masks
from .journal import Journal
from .reader import Frame, FrameSource
from .tracks import TrackTable, all_tracks

# Masks that are resized together hold about this many pixels.
_CHUNK = 2**23


class ClipModel(Protocol):
    """What is asked of a model; `VideoMaskFormer` has it, `ImageClips` gives it to image models."""

    def preprocess(self, frames: list[Tensor], /) -> tuple[Tensor, Size]:
        """T frames uint8 (3, H', W') -> (T, 3, H, W) on the device, and (H', W')."""

    def clip_outputs(self, images: Tensor, /) -> dict[str, Tensor]:
        """ "pred_logits" (Q, K + 1), "pred_masks" (Q, T, H4, W4), before softmax and sigmoid, "pred_embeds" (Q, C)."""


class ImageClips:
    """An image model as a model of clips of one frame."""

    def __init__(self, model: MaskFormer) -> None:
        self.model = model

    def preprocess(self, frames: list[Tensor]) -> tuple[Tensor, Size]:
        images = self.model.pad_images(frames)
        height, width = images.image_sizes[0]
        return images.tensor, (int(height), int(width))

    def clip_outputs(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.model.sem_seg_head(self.model.backbone(images))
        if "query_embeds" not in outputs:
            raise ValueError(
                f"{type(self.model.sem_seg_head).__name__} gives no query embeddings, by which objects are followed"
            )
        masks = outputs["pred_masks"][0]
        return {
            "pred_logits": outputs["pred_logits"][0],
            "pred_masks": masks if masks.dim() == 4 else masks[:, None],
            "pred_embeds": outputs["query_embeds"][0],
        }


@dataclass(frozen=True)
class WindowSettings:
    """How a long clip is cut and put together.

    Attributes:
        window: frames that the network sees together. Memory grows with it; 1: online, frame by frame.
        overlap: frames that two neighboring windows share. Each half of them comes from the window that has it
            farther from its border.
        candidates: objects of a window, best first, whose masks are kept.
        match_threshold: similarity (see `tracks.similarity`) above which two objects are the same.
        embed_threshold: the same where no masks can be compared, and embeddings alone decide.
        min_score: after the first window, objects whose best class score is lower are not used.
        patience: a track that was not found for more than so many frames ends.
    """

    window: int = 24
    overlap: int = 6
    candidates: int = 20
    match_threshold: float = 0.5
    embed_threshold: float = 0.6
    min_score: float = 0.05
    patience: int = 24

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window is a number of frames, at least 1, not {self.window}")
        if not 0 <= self.overlap < self.window:
            raise ValueError(f"overlap must lie between 0 and window - 1 = {self.window - 1}, not {self.overlap}")
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, not {self.candidates}")

    @staticmethod
    def candidates_for(top_k: int) -> int:
        """Candidates of a window, so that its best `top_k` are among them with room for objects that grow better."""
        return max(20, 2 * top_k)

    @classmethod
    def online(cls, **options: Any) -> WindowSettings:
        """Frame by frame: each frame's result depends on the frames before it only."""
        return cls(**{"window": 1, "overlap": 0, **options})


@dataclass(frozen=True)
class Window:
    """Frames of one run of the network. The first `shared` are also in the window before; `last`: none follows."""

    frames: list[Frame]
    shared: int
    last: bool

    @property
    def span(self) -> tuple[int, int]:
        """Number of the first frame, and the end."""
        return self.frames[0].index, self.frames[-1].index + 1

    def own(self, overlap: int) -> range:
        """Positions in the window of the frames whose masks come from it."""
        return range(self.shared // 2, len(self.frames) - (0 if self.last else overlap - overlap // 2))


def windows(frames: Iterator[Frame], window: int, overlap: int, shared: int = 0) -> Iterator[Window]:
    """Cut a stream into overlapping windows, with one window and one frame in memory.

    Args:
        shared: number of frames at the beginning of the stream that an earlier window has seen.
    """
    held: list[Frame] = []
    ahead = next(frames, None)
    while ahead is not None:
        held += [ahead, *islice(frames, window - len(held) - 1)]
        ahead = next(frames, None)
        if len(held) > shared:
            yield Window(held, shared, ahead is None)
        held = held[len(held) - overlap :]
        shared = overlap


class LongClip:
    """One run through a video.

    Args:
        model: in evaluation mode.
        source: the video.
        journal: where results go; what it has already is not computed again.
        settings: of the windows.
        prepare: (H, W, 3) uint8 RGB -> uint8 (3, H', W') as the network wants it.
        autocast: makes the context in which the network runs.
        output: height and width of the masks; default: those of the frames.
    """

    def __init__(
        self,
        model: ClipModel,
        source: FrameSource,
        journal: Journal,
        settings: WindowSettings,
        prepare: Callable[[np.ndarray], Tensor],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        output: Size | None = None,
    ) -> None:
        self.model, self.source, self.journal, self.settings = model, source, journal, settings
        self.prepare, self.autocast, self.output = prepare, autocast, output
        self.table = TrackTable(settings.match_threshold, settings.patience, settings.embed_threshold)

    def run(self, progress: Callable[[int], Any] = lambda frames: None) -> None:
        """Go through the video to its end, from where the journal stands.

        Args:
            progress: called after each window with the number of frames that are done.
        Raises:
            ValueError: the video has no frames, or an unreadable one.
        """
        if self.journal.facts() is not None:
            return
        s, state = self.settings, self.journal.state
        size: Size | None = None
        start = shared = 0
        if state:
            self.table.restore(state)
            end, height, width = (int(v) for v in (state["end"], *state["size"]))
            size, start = (height, width), max(end - s.overlap, 0)
            shared = end - start
            progress(end)
        for window in windows(self.source.read(start), s.window, s.overlap, shared):
            size = size or self.output or window.frames[0].image.shape[:2]
            entry, state, present = self._window(window, size)
            self.journal.append(entry, state, {"present": present, "closed": self.table.take_closed()})
            progress(window.span[1])
        if size is None:
            raise ValueError(f"{self.source.name}: no frame could be read")
        end = int(self.journal.state["end"])
        facts = {"frames": end, "height": size[0], "width": size[1], "damaged": self.source.damaged}
        self.journal.finish(facts)

    def _window(self, window: Window, output: Size) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
        """The journal's entry of a window, the state after it, and its rows (window, track)."""
        with torch.inference_mode():
            with self.autocast():
                images, size = self.model.preprocess([self.prepare(frame.image) for frame in window.frames])
                outputs = self.model.clip_outputs(images)
            scores, logits, embeds = self._candidates(outputs)
            sure = scores.max(axis=1) >= self.settings.min_score
            iou = self._shared_iou(logits, window.shared)
            # The first window may be the only one, whose result keeps objects of any score, as the whole clip's does.
            found = sure | (self.journal.done == 0)
            numbers = self.table.update(scores, embeds, window.span, iou, found, lasting=sure)
            padded = (images.shape[-2], images.shape[-1])
            masks = self._encoded(logits, numbers, window, padded, size, output)
        own = window.own(self.settings.overlap)
        entry = {
            "start": window.frames[own.start].index,
            "stop": window.frames[own.stop - 1].index + 1,
            "seconds": [window.frames[t].seconds for t in own],
            "tracks": masks,
        }
        used = numbers[numbers > 0]
        present = np.stack([np.full(len(used), self.journal.done), used], axis=1)
        return entry, self._state(window, numbers, logits, output), present

    def _candidates(self, outputs: Mapping[str, Tensor]) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Class scores (N, K), mask logits (N, T, H4, W4) on the device and unit embeddings (N, C) of the best."""
        scores = to_cpu(F.softmax(outputs["pred_logits"].float(), dim=-1))[:, :-1]
        rows = scores.amax(dim=1).topk(min(self.settings.candidates, len(scores))).indices.sort().values
        index = to_device(rows, outputs["pred_masks"].device)
        embeds = to_cpu(F.normalize(outputs["pred_embeds"].float()[index], dim=1))
        return scores[rows].numpy(), outputs["pred_masks"][index], embeds.numpy()

    def _shared_iou(self, logits: Tensor, shared: int) -> dict[int, np.ndarray]:
        """For each track of the window before, the IoU of its masks with the new ones on the shared frames.

        At stride 4; NaN where both are empty.
        """
        state = self.journal.state
        if not shared or not len(state["shared_ids"]):
            return {}
        bits = np.unpackbits(state["shared_bits"], axis=1, count=logits[0, :shared].numel())
        before = to_device(torch.from_numpy(bits), logits.device).float()
        now = (logits[:, :shared].flatten(1) > 0).float()
        both = before @ now.T
        either = before.sum(1)[:, None] + now.sum(1)[None] - both
        iou = to_cpu(torch.where(either > 0, both / either.clamp(min=1), torch.nan)).numpy()
        return dict(zip(state["shared_ids"].tolist(), iou, strict=True))

    def _encoded(
        self, logits: Tensor, numbers: np.ndarray, window: Window, padded: Size, image: Size, output: Size
    ) -> dict[str, list[str]]:
        """For each track its masks in the window's own frames: COCO's run lengths, "" for an empty mask."""
        rows = np.flatnonzero(numbers)
        masks_of: list[list[str]] = [[] for _ in rows]
        index = to_device(torch.from_numpy(rows), logits.device)
        step = max(1, _CHUNK // max(padded[0] * padded[1], output[0] * output[1]))
        for t in window.own(self.settings.overlap):
            for begin in range(0, len(rows), step):
                masks = resize_masks(logits[index[begin : begin + step], t].float(), padded, image, output) > 0
                filled = to_cpu(masks.flatten(1).any(1)).tolist()
                for i, rle in enumerate(encode_masks(masks)):
                    masks_of[begin + i].append(rle["counts"] if filled[i] else "")
        return {str(number): masks for number, masks in zip(numbers[rows], masks_of, strict=True)}

    def _state(self, window: Window, numbers: np.ndarray, logits: Tensor, size: Size) -> dict[str, np.ndarray]:
        rows = np.flatnonzero(numbers)
        tail = logits[:, max(logits.shape[1] - self.settings.overlap, 0) :].flatten(1) > 0
        bits = np.packbits(to_cpu(tail).numpy()[rows], axis=1)
        return {
            **self.table.as_arrays(),
            "end": np.array(window.span[1]),
            "size": np.array(size),
            "shared_ids": numbers[rows],
            "shared_bits": bits,
        }


def tracks_of(journal: Journal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tracks of a run: scores (N, K), spans (N, 3), as from `all_tracks`; and rows (M, 2) of window and track."""
    present = journal.log("present").astype(np.int64).reshape(-1, 2)
    return *all_tracks(journal.state, journal.log("closed")), present


def fingerprint(model: nn.Module) -> str:
    """A number that differs for other parameters or buffers, saved ones or not. Takes up to a second."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(cfg: CfgNode | None) -> str:
    """A number that differs for other settings of the model, but not for another device or place of the weights."""
    if cfg is None:
        return ""
    model = cfg.MODEL.clone()
    model.DEVICE = model.WEIGHTS = model.TIMM.WEIGHTS = ""
    return hashlib.blake2b(model.dump().encode(), digest_size=8).hexdigest()


def run_facts(source: FrameSource, model: nn.Module, settings: WindowSettings, **more: Any) -> dict[str, Any]:
    """What a journal's results depend on, to be kept for a later run."""
    return {"video": source.identity(), "weights": fingerprint(model), **asdict(settings), **more}
