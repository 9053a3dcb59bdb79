"""Models that requests can name: whether they are here, and those that are in memory."""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import zoo
from ..config import find_config, load_config
from ..maskformer_model import MaskFormer
from ..model_source import dataset_classes, locate_model, stored_classes
from ..objects import ObjectRules
from ..segmenter import Segmenter
from ..structures.task import IMAGE_TASKS, Task, tasks_of
from ..utils.hints import did_you_mean
from .errors import InvalidOptionError, ModelUnavailableError, UnknownModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelStatus:
    """What a list of models shows of one.

    Attributes:
        name: as requests give it.
        available: whether it can be used on this machine.
        reason: why not; "" if it can.
        kind: "image" or "video" (`Engine.submit_job` with `Segmenter.track` only).
        tasks: those that it computes, of panoptic, instance, semantic; () if it is unavailable, or a video model.
        loaded: whether it is in memory.
        description: one line: dataset, task and backbone.
        license: of the weights; "" if unknown.
        score_threshold: that of requests which give none; None if the model is unavailable.
        classes: names of the classes that it finds; () if it is unavailable, or they are unknown.
    """

    name: str
    available: bool
    reason: str
    kind: str
    tasks: tuple[str, ...]
    loaded: bool
    description: str
    license: str
    score_threshold: float | None = None
    classes: tuple[str, ...] = ()


def _here() -> str:
    return ""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class ModelSource:
    """How a model is loaded. `named`, `directory` and `ready` make one.

    Attributes:
        load: returns the segmenter for a device ("auto", "cuda", "cpu").
        missing: returns why it cannot be loaded, "" if it can; called often, so it looks for files only.
        tasks: returns the image tasks that it computes; called if it is available.
        kind: "image" or "video".
        description: one line.
        license: of the weights.
        score_threshold: returns that of requests which give none; called if it is available.
        classes: returns the names of the classes that it finds; called if it is available.
    """

    load: Callable[[str], Segmenter]
    missing: Callable[[], str] = _here
    tasks: Callable[[], tuple[str, ...]] = tuple
    kind: str = "image"
    description: str = ""
    license: str = ""
    score_threshold: Callable[[], float | None] = _nothing
    classes: Callable[[], tuple[str, ...]] = tuple

    @classmethod
    def named(cls, name: str, **options: Any) -> ModelSource:
        """Return a model of the zoo, which is never downloaded; `options` are those of `Segmenter.load`.

        Raises:
            ValueError: the zoo has no such model.
        """
        entry = zoo.lookup(name)
        video = entry.task == "video instance"

        def missing() -> str:
            if zoo.local_weights(entry) is not None:
                return ""
            return (
                f"the weights are not on this machine; put {entry.filename} from {entry.weights} into the directory "
                f"that {zoo.ENVIRONMENT} names, or run `mask2former predict --model {entry.name}` once to download them"
            )

        return cls(
            functools.partial(_load, entry.name, options),
            missing,
            functools.partial(_tasks, entry.config_file, video),
            "video" if video else "image",
            f"{entry.dataset} {entry.task}, {entry.backbone}",
            entry.license,
            functools.partial(_threshold, entry.config_file, options.get("score_threshold")),
            functools.partial(_classes, entry.name),
        )

    @classmethod
    def directory(cls, path: str, **options: Any) -> ModelSource:
        """Return the model of a training output directory.

        Raises:
            FileNotFoundError, ConfigError: there is no config, or one that cannot be read.
        """
        config = Path(path).expanduser() / "config.yaml"
        video = load_config(config).MODEL.META_ARCHITECTURE == "VideoMaskFormer"
        tasks = functools.partial(_tasks, str(config), video)
        return cls(
            functools.partial(_load, path, options),
            _here,
            tasks,
            "video" if video else "image",
            config.parent.name,
            score_threshold=functools.partial(_threshold, str(config), options.get("score_threshold")),
            classes=functools.partial(_classes, str(path)),
        )

    @classmethod
    def ready(cls, segmenter: Segmenter, tasks: tuple[str, ...] = (Task.INSTANCE.value,)) -> ModelSource:
        """Return a model that is in memory already."""
        video = hasattr(segmenter.model, "clip_outputs")
        return cls(
            lambda device: segmenter,
            _here,
            lambda: tasks,
            "video" if video else "image",
            score_threshold=lambda: segmenter.score_threshold,
            classes=lambda: segmenter.classes.names,
        )


def zoo_models() -> dict[str, ModelSource]:
    """Return all models of the zoo, the bundled ones first, then those whose weights are here."""
    entries = [zoo.lookup(name) for name in zoo.list_models()]
    entries.sort(key=lambda entry: (not entry.bundled, zoo.local_weights(entry) is None))
    return {entry.name: ModelSource.named(entry.name) for entry in entries}


def _load(name: str, options: Mapping[str, Any], device: str) -> Segmenter:
    return Segmenter.load(name, **{"device": device, **options})


@functools.cache
def _tasks(config: str, video: bool) -> tuple[str, ...]:
    enabled = frozenset() if video else tasks_of(load_config(find_config(Path(config))))
    return tuple(task.value for task in (Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC) if task in enabled)


@functools.cache
def _classes(name: str) -> tuple[str, ...]:
    config, weights = locate_model(name, None, None)
    table = stored_classes(config, Path(str(weights))) or dataset_classes(load_config(config))
    return () if table is None else tuple(table.names)


@functools.cache
def _threshold(config: str, given: float | None) -> float:
    rules = ObjectRules.from_config(load_config(find_config(Path(config))))
    return rules.changed(score_threshold=given).score_threshold


class ModelPool:
    """Loads models on demand and keeps the last used ones; only the worker thread calls `get`."""

    def __init__(self, sources: Mapping[str, ModelSource], device: str, max_loaded: int) -> None:
        if not sources:
            raise ValueError("an engine needs at least one model")
        if max_loaded < 1:
            raise ValueError(f"max_loaded must be at least 1, not {max_loaded}")
        self._sources = dict(sources)
        self._device, self._max_loaded = device, max_loaded
        self._loaded: OrderedDict[str, dict[str, Segmenter]] = OrderedDict()  # by model, then task
        self._failures: dict[str, str] = {}
        self._lock = threading.Lock()  # of the two above: other threads ask for the status

    def names(self) -> tuple[str, ...]:
        """Return the names of all models."""
        return tuple(self._sources)

    def status(self, name: str) -> ModelStatus:
        """Return what is known of a model, whether it is loaded or not.

        Raises:
            UnknownModelError: no such model; the message suggests similar names.
        """
        source = self._sources.get(name)
        if source is None:
            hint = did_you_mean(name[:100], self._sources)
            raise UnknownModelError(f"no model is named {name[:100]!r}.{hint} GET /v1/models lists them.")
        with self._lock:
            loaded, reason = name in self._loaded, self._failures.get(name, "")
        tasks: tuple[str, ...] = ()
        classes: tuple[str, ...] = ()
        threshold: float | None = None
        try:
            reason = reason or ("" if loaded else source.missing())
            if not reason:
                tasks, threshold, classes = source.tasks(), source.score_threshold(), source.classes()
        except (OSError, ValueError):
            logger.exception("the files of model %s cannot be read", name)
            reason = "its files cannot be read; the log of the server says why"
        facts = source.description, source.license, threshold, classes
        return ModelStatus(name, not reason, reason, source.kind, tasks, loaded, *facts)

    def check(self, name: str, task: str | None) -> None:
        """Check that a model is available and computes a task ("auto": any); None: that it is for jobs.

        Raises:
            UnknownModelError, ModelUnavailableError, InvalidOptionError: it is not so.
        """
        status = self.status(name)
        if not status.available:
            raise ModelUnavailableError(f"model {name} cannot be used: {status.reason}")
        if task is None:
            return
        if status.kind == "video":
            raise InvalidOptionError(f"{name} is a video model, which takes clips, not images")
        if task != "auto" and task not in status.tasks:
            known = " or ".join(("auto", *status.tasks))
            raise InvalidOptionError(f"task must be {known} for model {name}, not {task[:40]!r}")

    def get(self, name: str, task: str = "auto") -> Segmenter:
        """Return the segmenter of a model for a task, loaded if necessary.

        Raises:
            ModelUnavailableError: loading failed; the model is unavailable from then on.
        """
        with self._lock:
            variants = self._loaded.get(name)
            if variants is not None:
                self._loaded.move_to_end(name)
        if variants is None:
            variants = {"auto": self._load(name)}
            with self._lock:
                self._loaded[name] = variants
        if task not in variants:
            variants[task] = _for_task(variants["auto"], task)
        return variants[task]

    def _load(self, name: str) -> Segmenter:
        with self._lock:
            while len(self._loaded) >= self._max_loaded:
                dropped, _ = self._loaded.popitem(last=False)
                logger.info("model %s makes room for %s", dropped, name)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            return self._sources[name].load(self._device)
        except Exception as error:  # whatever is wrong with its files, other models go on
            logger.exception("model %s cannot be loaded", name)
            if not isinstance(error, torch.OutOfMemoryError | MemoryError):  # which may pass
                with self._lock:
                    self._failures[name] = f"loading failed ({type(error).__name__}); the log of the server says why"
            raise ModelUnavailableError(f"model {name} cannot be loaded; the log of the server says why") from None

    def close(self) -> None:
        """Release all models."""
        with self._lock:
            self._loaded.clear()


def _for_task(segmenter: Segmenter, task: str) -> Segmenter:
    """Return a segmenter that computes one task only, as `Segmenter.load(task=...)`, with the same weights."""
    model, cfg = segmenter.model, segmenter.cfg
    if isinstance(model, MaskFormer):
        model = copy.copy(model)  # shares parameters, modules and captured graphs; only the switches are its own
        before = {each for each in IMAGE_TASKS if getattr(model, each.switch.lower())}
        # As in loading: with panoptic results the instances are things only.
        enabled = {Task(task)} | (before & {Task.PANOPTIC} if task == Task.INSTANCE else set())
        for each in IMAGE_TASKS:
            setattr(model, each.switch.lower(), each in enabled)
        exact = cfg is not None and cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
        model.sem_seg_postprocess_before_inference = exact or enabled != {Task.SEMANTIC}
    variant = copy.copy(segmenter)
    variant.model, variant.task = model, task
    return variant
