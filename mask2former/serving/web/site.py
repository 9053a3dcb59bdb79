"""What all tabs of the web app share: the engine, uploads, results, examples and the list of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine import Engine, ModelStatus, Options
from ..errors import InvalidOptionError, TooLargeError
from .store import Entry, ResultStore
from .uploads import UploadDirectory

_THRESHOLD = 0.5  # of models that are not here


@dataclass(frozen=True)
class Site:
    """The web app without its pages.

    Attributes:
        engine: runs models.
        uploads: directory of uploads.
        store: results that pages show.
        examples: images in the directory of uploads.
    """

    engine: Engine
    uploads: UploadDirectory
    store: ResultStore
    examples: Sequence[Path] = ()

    # ---- models
    def models(self, videos: bool) -> list[ModelStatus]:
        """Return the models for images, or all of them for videos, which image models can do frame by frame."""
        return [model for model in self.engine.models() if videos or model.kind == "image"]

    def choices(self, videos: bool) -> list[tuple[str, str]]:
        """Return label and name of each model."""
        return [(_choice(model), model.name) for model in self.models(videos)]

    def first(self, videos: bool) -> str:
        """Return the model that a page starts with: the default one if it fits."""
        names = [model.name for model in self.models(videos)]
        if not names:
            raise InvalidOptionError(
                "no model of images is offered, which the pages need; add one, or use the API only"
            )
        return self.engine.default if self.engine.default in names else names[0]

    def status(self, name: str) -> ModelStatus:
        """Return what is known of a model.

        Raises:
            InvalidOptionError: there is no such model.
        """
        for model in self.engine.models():
            if model.name == name:
                return model
        raise InvalidOptionError("there is no such model; choose one of the list")

    def threshold(self, name: str) -> float:
        """Return the score threshold of a model."""
        known = self.status(name).score_threshold
        return _THRESHOLD if known is None else known

    # ---- images
    def segment(
        self,
        path: str | None,
        model: str,
        task: str = "auto",
        score_threshold: float | None = None,
        tile: str | None = None,
    ) -> Entry:
        """Segment an upload and keep the result.

        Args:
            path: of the upload.
            model, task, score_threshold: see `Engine.submit`, `Options`.
            tile: None, "auto", "off", or an edge in pixels as text.

        Raises:
            ServingError: as `Engine.segment`; or the upload is missing.
        """
        if not path:
            raise InvalidOptionError("choose an image first: upload one, take one with the camera, or click an example")
        file = self.uploads.resolve(path)
        size, limit = file.stat().st_size, self.engine.limits.max_bytes
        if size > limit:
            raise TooLargeError(f"the image has {size:,} bytes; the limit is {limit:,}")
        edge = int(tile) if tile is not None and tile.isdigit() else tile
        result = self.engine.segment(file.read_bytes(), model, Options(task, score_threshold, edge))
        return self.store.add_image(result, task, file.name)


def _choice(model: ModelStatus) -> str:
    return model.name if model.available else f"{model.name} (not on this machine)"
