"""Video instance segmentation of clips of any length, in memory that does not depend on it.

The network processes overlapping windows. The queries of each window are matched to the existing tracks (`tracks.py`),
and its masks are written to a journal on disk (`journal.py`). No retraining is needed. A clip that fits one window
gives exactly the results of `VideoMaskFormer` on the complete clip. Windows of one frame give online tracking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..maskformer_model import MaskFormer
from ..modeling.device_transfer import to_cpu, to_device
from ..modeling.mask_resizing import Size, resize_masks
from ..modeling.runtime import Runtime
from ..objects import ObjectRules
from ..structures.rle import encode_masks
from .frame_rules import FrameObjects, objects_of_frame
from .journal import Journal
from .journal_checks import check_last_window, check_tracks
from .reader import Frame, FrameSource
from .tracks import TrackTable, all_tracks

# Masks that are resized together hold about this many pixels.
_CHUNK = 2**23


class ClipModel(Protocol):
    """The interface that a model needs: `VideoMaskFormer` has it, `ImageClips` adapts image models to it."""

    def preprocess(self, frames: list[Tensor], /) -> tuple[Tensor, Size]:
        """Convert T uint8 frames (3, H', W') to (T, 3, H, W) on the device; also return (H', W')."""

    def clip_outputs(self, images: Tensor, /) -> dict[str, Tensor]:
        """Return logits: "pred_logits" (Q, K + 1) and "pred_masks" (Q, T, H4, W4); and "pred_embeds" (Q, C)."""


class VideoClips:
    """Adapter that runs a video model by another runtime than its own.

    Args:
        model: a model whose `clip_outputs` takes a `runtime`, as that of `VideoMaskFormer` does.
        runtime: runs backbone and head.
    """

    def __init__(self, model: Any, runtime: Runtime) -> None:
        self.preprocess = model.preprocess
        self.clip_outputs = partial(model.clip_outputs, runtime=runtime)


class ImageClips:
    """Adapter that runs an image model on clips of one frame.

    Args:
        model: the model.
        runtime: runs backbone and head; None: that of the model.
    """

    def __init__(self, model: MaskFormer, runtime: Runtime | None = None) -> None:
        self.model = model
        self.runtime = runtime or model.runtime

    def preprocess(self, frames: list[Tensor]) -> tuple[Tensor, Size]:
        images = self.model.pad_images(frames)
        height, width = images.image_sizes[0]
        return images.tensor, (int(height), int(width))

    def clip_outputs(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.runtime(self.model.backbone, self.model.sem_seg_head, images, frames=1)
        if "query_embeds" not in outputs:
            raise ValueError(
                f"{type(self.model.sem_seg_head).__name__} returns no 'query_embeds', which tracking needs; "
                "set MODEL.SEM_SEG_HEAD.NAME to a head that does, such as MaskFormerHead"
            )
        masks = outputs["pred_masks"][0]
        return {
            "pred_logits": outputs["pred_logits"][0],
            "pred_masks": masks if masks.dim() == 4 else masks[:, None],
            "pred_embeds": outputs["query_embeds"][0],
        }


@dataclass(frozen=True)
class WindowSettings:
    """How a long clip is split into windows and how their results are merged.

    Attributes:
        window: frames that the network processes together. Memory grows with it; 1: online, frame by frame.
        overlap: frames that two neighboring windows share. Each half is taken from the window in which it lies farther
            from the border.
        candidates: number of objects per window, by score, whose masks are kept.
        match_threshold: similarity (see `tracks.similarity`) above which two objects are considered the same.
        embed_threshold: the same threshold where there are no masks to compare and only embeddings are used.
        min_score: after the first window, objects whose best class score is lower are ignored.
        patience: a track that is not matched for more than this number of frames ends.
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
            raise ValueError(f"window must be at least 1 frame, not {self.window}")
        if not 0 <= self.overlap < self.window:
            raise ValueError(f"overlap must lie between 0 and window - 1 = {self.window - 1}, not {self.overlap}")
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, not {self.candidates}")

    @staticmethod
    def candidates_for(top_k: int) -> int:
        """Return the number of candidates for the best `top_k`, with a margin for objects whose score rises later."""
        return max(20, 2 * top_k)

    @classmethod
    def selected(cls, cfg: CfgNode | None, window: int | None, overlap: int | None, candidates: int) -> WindowSettings:
        """Build settings from what is given, and for the rest from a config whose TEST.WINDOW_FRAMES is not 0.

        Args:
            cfg: of the model, or None.
            window, overlap, candidates: see the class; None: not given.
        """
        test: Mapping[str, Any] = {} if cfg is None else cfg.TEST  # a config of another project may lack the keys
        frames = int(test.get("WINDOW_FRAMES", 0))
        if window is None:
            window = frames or cls.window
        if overlap is None:
            overlap = int(test.get("WINDOW_OVERLAP", cls.overlap)) if frames else cls.overlap
            overlap = max(0, min(overlap, window - 1))
        return cls(window, overlap, candidates)

    @classmethod
    def online(cls, **options: Any) -> WindowSettings:
        """Build settings for windows of one frame: the result of a frame depends on earlier frames only."""
        return cls(**{"window": 1, "overlap": 0, **options})


@dataclass(frozen=True)
class Window:
    """Frames of one forward pass. The first `shared` are also in the previous window; `last`: this is the final one."""

    frames: list[Frame]
    shared: int
    last: bool

    @property
    def span(self) -> tuple[int, int]:
        """Return the position of the first frame and the end (exclusive)."""
        return self.frames[0].position, self.frames[-1].position + 1

    def own(self, overlap: int) -> range:
        """Return the positions in this window of the frames whose masks are taken from it."""
        return range(self.shared // 2, len(self.frames) - (0 if self.last else overlap - overlap // 2))


def windows(frames: Iterator[Frame], window: int, overlap: int, shared: int = 0) -> Iterator[Window]:
    """Split a stream into overlapping windows, with one window and one frame in memory.

    Args:
        frames: the stream.
        window: number of frames per window.
        overlap: number of frames that consecutive windows share.
        shared: number of frames at the start of the stream that an earlier window already contained.

    Yields:
        The windows in order; only the last one may be shorter.
    """
    buffer: list[Frame] = []
    ahead = next(frames, None)
    while ahead is not None:
        buffer += [ahead, *islice(frames, window - len(buffer) - 1)]
        ahead = next(frames, None)
        if len(buffer) > shared:
            yield Window(buffer, shared, ahead is None)
        buffer = buffer[len(buffer) - overlap :]
        shared = overlap


class LongClip:
    """Tracking of one video, window by window.

    Args:
        model: the model, in evaluation mode.
        source: the video.
        journal: where results are written; windows that it already holds are not computed again.
        settings: length, overlap and matching of the windows.
        prepare: converts (H, W, 3) uint8 RGB to (3, H', W') uint8 in the size and channel order of the network.
        autocast: returns the context in which the network runs.
        output: height and width of the masks; default: those of the frames.
        rules: for windows of one frame, which candidates are objects (see `frame_rules.tracking_rules`); None: all.
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
        rules: ObjectRules | None = None,
    ) -> None:
        self.model, self.source, self.journal, self.settings = model, source, journal, settings
        self.prepare, self.autocast, self.output, self.rules = prepare, autocast, output, rules
        if rules is not None and settings.window > 1:
            raise ValueError("rules apply to windows of one frame")
        self.table = TrackTable(settings.match_threshold, settings.patience, settings.embed_threshold)

    def run(self, progress: Callable[[int], Any] = lambda frames: None) -> None:
        """Process the video to its end, resuming from the journal.

        Args:
            progress: called after each window with the number of frames that are finished.

        Raises:
            ValueError: the video has no frames, or a frame cannot be read.
        """
        if self.journal.facts() is not None:
            return
        s, state = self.settings, self.journal.state
        size: Size | None = None
        start = shared = 0
        if state:
            tracks_of(self.journal)  # checks them
            check_last_window(self.journal, s.overlap)
            self.table.restore(state)
            end, height, width = (int(v) for v in (state["end"], *state["size"]))
            size, start = (height, width), max(end - s.overlap, 0)
            shared = end - start
            progress(end)
        for window in windows(self.source.read(start), s.window, s.overlap, shared):
            expected: Size = self.output or window.frames[0].image.shape[:2]
            if size is not None and size != expected:
                raise self.journal.damage("state.npz", f"its masks have size {size}, not {expected}")
            size = expected
            entry, state, present = self._window(window, size)
            self.journal.append(entry, state, {"present": present, "closed": self.table.take_closed()})
            progress(window.span[1])
        if size is None:
            raise ValueError(f"{self.source.name}: no frame could be read")
        end = int(self.journal.state["end"])
        facts = {"frames": end, "height": size[0], "width": size[1], "damaged": self.source.damaged}
        facts |= {"first": self.source.first, "every": self.source.every}
        self.journal.finish(facts)

    def _window(self, window: Window, output: Size) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
        """Process a window; return its journal entry, the state after it, and its rows (window, track)."""
        with torch.inference_mode():
            with self.autocast():
                images, size = self.model.preprocess([self.prepare(frame.image) for frame in window.frames])
                outputs = self.model.clip_outputs(images)
            scores, logits, embeds = self._candidates(outputs)
            confident = scores.max(axis=1) >= self.settings.min_score
            iou = self._shared_iou(logits, window.shared)
            # The first window may be the only one; then objects of any score are kept, as for a complete clip.
            used = confident | (self.journal.done == 0)
            padded = (images.shape[-2], images.shape[-1])
            objects: FrameObjects | None = None
            if self.rules is not None:
                objects = objects_of_frame(scores, logits[:, 0], used, self.rules, padded, size, output)
                used = np.isin(np.arange(len(scores)), objects.rows)
            numbers = self.table.update(scores, embeds, window.span, iou, used, lasting=confident)
            if objects is None:
                masks = self._encoded(logits, numbers, window, padded, size, output)
            else:
                masks = {str(n): [text] for n, text in zip(numbers[objects.rows], objects.counts(), strict=True)}
        own = window.own(self.settings.overlap)
        entry = {
            "start": window.frames[own.start].position,
            "stop": window.frames[own.stop - 1].position + 1,
            "seconds": [window.frames[t].seconds for t in own],
            "tracks": masks,
        }
        tracks = numbers[numbers > 0]
        present = np.stack([np.full(len(tracks), self.journal.done), tracks], axis=1)
        return entry, self._state(window, numbers, logits, output), present

    def _candidates(self, outputs: Mapping[str, Tensor]) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Return class scores (N, K), mask logits (N, T, H4, W4) on the device, and unit embeddings (N, C)."""
        scores = to_cpu(F.softmax(outputs["pred_logits"].float(), dim=-1))[:, :-1]
        rows = scores.amax(dim=1).topk(min(self.settings.candidates, len(scores))).indices.sort().values
        index = to_device(rows, outputs["pred_masks"].device)
        embeds = to_cpu(F.normalize(outputs["pred_embeds"].float()[index], dim=1))
        return scores[rows].numpy(), outputs["pred_masks"][index], embeds.numpy()

    def _shared_iou(self, logits: Tensor, shared: int) -> dict[int, np.ndarray]:
        """Return for each track of the previous window the IoU of its masks with the new ones on the shared frames.

        Computed at stride 4; NaN where both masks are empty.
        """
        state = self.journal.state
        if not shared or not len(state["shared_ids"]):
            return {}
        pixels = logits[0, :shared].numel()
        if state["shared_bits"].shape[1] != (pixels + 7) // 8:
            raise self.journal.damage("state.npz", "shared_bits are of masks of another size")
        bits = np.unpackbits(state["shared_bits"], axis=1, count=pixels)
        previous = to_device(torch.from_numpy(bits), logits.device).float()
        current = (logits[:, :shared].flatten(1) > 0).float()
        with torch.autocast(logits.device.type, enabled=False):  # counts of pixels, which 16 bits would round
            intersection = previous @ current.T
        union = previous.sum(1)[:, None] + current.sum(1)[None] - intersection
        iou = to_cpu(torch.where(union > 0, intersection / union.clamp(min=1), torch.nan)).numpy()
        return dict(zip(state["shared_ids"].tolist(), iou, strict=True))

    def _encoded(
        self, logits: Tensor, numbers: np.ndarray, window: Window, padded: Size, image: Size, output: Size
    ) -> dict[str, list[str]]:
        """Return for each track the COCO RLE counts of its masks in the window's own frames, "" for an empty mask."""
        rows = np.flatnonzero(numbers)
        masks_of: list[list[str]] = [[] for _ in rows]
        index = to_device(torch.from_numpy(rows), logits.device)
        chunk = max(1, _CHUNK // max(padded[0] * padded[1], output[0] * output[1]))
        for t in window.own(self.settings.overlap):
            for begin in range(0, len(rows), chunk):
                masks = resize_masks(logits[index[begin : begin + chunk], t].float(), padded, image, output) > 0
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
    """Return scores (N, K) and spans (N, 3) of all tracks (see `all_tracks`), and rows (M, 2) of window and track.

    Raises:
        ValueError: the journal is damaged.
    """
    present, closed = journal.log("present"), journal.log("closed")
    check_tracks(journal, present, closed)
    return *all_tracks(journal.state, closed), present.astype(np.int64).reshape(-1, 2)


def fingerprint(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers, persistent or not. Takes up to a second."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(cfg: CfgNode | None) -> str:
    """Return a hash of the model's config; the device and the location of the weights do not change it."""
    if cfg is None:
        return ""
    model = cfg.MODEL.clone()
    model.DEVICE = model.WEIGHTS = model.TIMM.WEIGHTS = ""
    return hashlib.blake2b(model.dump().encode(), digest_size=8).hexdigest()


def run_facts(source: FrameSource, model: nn.Module, settings: WindowSettings, **more: Any) -> dict[str, Any]:
    """Return what the results of a journal depend on (JSON content), to be compared with a later run."""
    return {"video": source.identity(), "weights": fingerprint(model), **asdict(settings), **more}
