"""The data of a trainer: its loaders, and what a loader in detectron2's form leaves undone."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import TrainerBase

from ..config_validation import check_mapper_name
from ..data import build_test_loader, build_train_loader
from ..utils.signatures import accepted
from .stop_signals import keep_workers

logger = logging.getLogger(__name__)


class TrainerData(TrainerBase):
    """The part of `Trainer` that loads data; see there for the attributes."""

    cfg: CfgNode
    seed: int
    start_iter: int
    _loader: tuple[int, Any] | None = None  # and the iteration that it starts from

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0, seed: int | None = None) -> Any:
        """Build a loader of endless micro-batches for this rank, from those of iteration `start_iteration` on.

        An override may have detectron2's form `(cls, cfg)`: the trainer passes the keywords that it accepts. Without
        them the order of the data is that of the loader, and a resumed training does not continue it.
        """
        return build_train_loader(cfg, start_iteration=start_iteration, seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return keep_workers(build_test_loader(cfg, dataset_name))

    @property
    def data_loader(self) -> Any:
        """Return the loader of the training, from `start_iter` on; it is built when it is first read."""
        if self._loader is None or self._loader[0] != self.start_iter:
            self._loader = self.start_iter, keep_workers(self._own_loader(start_iteration=self.start_iter))
        return self._loader[1]

    @data_loader.setter
    def data_loader(self, loader: Any) -> None:
        self._loader = self.start_iter, loader

    def _own_loader(self, **keywords: Any) -> Any:
        """Call `build_train_loader` with the keywords, and the seed, that an override accepts."""
        keywords |= {"seed": self.seed}
        given = accepted(self.build_train_loader, keywords)
        if len(given) < len(keywords):
            _tell_lost(type(self).__name__, sorted(keywords.keys() - given), self.cfg)
        return self.build_train_loader(self.cfg, **given)

    @classmethod
    def _check_mapper(cls, cfg: CfgNode) -> None:
        """Check INPUT.DATASET_MAPPER_NAME where our own loader reads it: a subclass may have names of its own.

        Raises:
            ConfigError: unknown name.
        """
        if cls.build_train_loader.__func__ is TrainerData.build_train_loader.__func__:  # type: ignore[attr-defined]
            check_mapper_name(cfg)

    def _tell_skipped_records(self) -> None:
        loader = None if self._loader is None else self._loader[1]
        count = getattr(getattr(loader, "dataset", None), "skipped", 0)
        if count:
            records = "1 bad record was" if count == 1 else f"{count} bad records were"
            logger.warning("%s skipped (DATALOADER.SKIP_BAD_RECORDS); see above.", records)


def _tell_lost(trainer: str, keywords: Collection[str], cfg: CfgNode) -> None:
    lost = ["the seed of the run does not decide the order of the data"] if "seed" in keywords else []
    if "start_iteration" in keywords:
        lost.append("a resumed training does not continue that order, but starts it again")
    steps = cfg.SOLVER.ACCUMULATION_STEPS
    if steps > 1:
        lost.append(f"each of the {steps} micro-batches of a step (SOLVER.ACCUMULATION_STEPS) is a batch of the loader")
    text = "%s.build_train_loader takes no %s: %s. Its form (cls, cfg, *, start_iteration=0, seed=None) gets both."
    logger.warning(text, trainer, " and no ".join(keywords), "; ".join(lost))
