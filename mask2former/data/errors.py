"""The one error that a bad image, annotation or record raises."""

from __future__ import annotations

from pathlib import Path


class BadRecordError(ValueError):
    """One record of a dataset cannot be used.

    The message names the file, the record inside it and the reason. With ``DATALOADER.SKIP_BAD_RECORDS`` the
    data loaders catch exactly this class, count it and go on.

    Args:
        file: file that is broken or that holds the broken record.
        reason: what is wrong, and where it helps how to mend it.
        record: which record of the file, for example "annotation 17".
    """

    def __init__(self, file: str | Path, reason: str, record: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.record = record
        super().__init__(f"{self.file}: {record}: {reason}" if record else f"{self.file}: {reason}")

    def __reduce__(self) -> tuple:
        # Exceptions cross process borders when a loader worker raises them.
        return type(self), (self.file, self.reason, self.record)
