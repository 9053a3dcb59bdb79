"""Torch datasets of records and a mapper, which skip or report bad records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset, get_worker_info

from ..errors import BadRecordError
from .sampler import Draw, random_state

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Mapper = Callable[[dict[str, Any]], Sample | None]

# More bad records in a row have a common cause, for example a wrong image directory.
_MAX_TRIES = 50


class _MappedRecords(Dataset):
    """Base of the training and test datasets: serialized records, a mapper, and a count of bad records."""

    def __init__(self, records: list[dict[str, Any]], mapper: Mapper, *, skip_bad: bool, num_workers: int) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.skip_bad = skip_bad
        # One counter per worker in shared memory: the main process reads them, and no lock is needed.
        self._skipped = torch.zeros(max(1, num_workers), dtype=torch.int64).share_memory_()
        self._reported: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def skipped(self) -> int:
        """Return how many times a bad record was skipped so far, by all workers of this rank."""
        return int(self._skipped.sum())

    def try_map(self, index: int) -> Sample | BadRecordError | None:
        """Map one record.

        Returns:
            The sample; for a bad record None if bad records are skipped, else the error. The error is returned and not
            raised, because torch would bury its message in the traceback of a worker.
        """
        record = self.records[index]
        try:
            sample = self.mapper(record)
            if sample is None:
                raise BadRecordError(_name(record, index), "the mapper returned None for this record")
            return sample
        except BadRecordError as error:
            if not self.skip_bad:
                return error
            worker = get_worker_info()
            self._skipped[worker.id if worker else 0] += 1
            if error.file not in self._reported:
                self._reported.add(error.file)
                logger.warning("bad record skipped: %s", error)
            return None


def _name(record: dict[str, Any], index: int) -> str:
    """Return the name of a record for messages: its file, or the first of its frames."""
    return str(record.get("file_name") or next(iter(record.get("file_names", ())), f"record {index}"))


class TrainingRecords(_MappedRecords):
    """Maps the record of a `Draw`; a bad record is replaced by one drawn at random, or its error is returned.

    Args:
        records: in detectron2's format.
        mapper: turns a record into a sample; the global random states are seeded for each draw. Its method
            `use_records`, if it has one, gets the records.
        seed: determines augmentation and replacement together with the position of a draw.
        skip_bad: replace and count bad records; otherwise return their errors.
        num_workers: workers of the loader.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        mapper: Mapper,
        *,
        seed: int,
        skip_bad: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(records, mapper, skip_bad=skip_bad, num_workers=num_workers)
        self.seed = seed
        use_records = getattr(mapper, "use_records", None)  # mappers may be plain functions
        if use_records is not None:
            use_records(self.records)

    def __getitem__(self, draw: Draw) -> Sample | BadRecordError:
        index = draw.record
        with random_state(self.seed, draw.position):
            for attempt in range(_MAX_TRIES):
                sample = self.try_map(index)
                if sample is not None:
                    return sample
                index = int(np.random.default_rng([self.seed, draw.position, attempt]).integers(len(self)))
        return BadRecordError(
            _name(self.records[index], index),
            f"{_MAX_TRIES} records in a row are bad; the warnings above name them. Check the dataset, "
            "or set DATALOADER.SKIP_BAD_RECORDS to False to stop at the first",
        )


class TestRecords(_MappedRecords):
    """Maps the record of an index; returns None for a skipped record.

    Args:
        records: in detectron2's format.
        mapper: turns a record into a sample.
        skip_bad: return None for bad records and count them; otherwise return their errors.
        num_workers: workers of the loader.
    """

    __test__ = False  # pytest takes the name for that of a test class

    def __init__(
        self, records: list[dict[str, Any]], mapper: Mapper, *, skip_bad: bool = False, num_workers: int = 0
    ) -> None:
        super().__init__(records, mapper, skip_bad=skip_bad, num_workers=num_workers)

    def __getitem__(self, index: int) -> Sample | BadRecordError | None:
        return self.try_map(index)
