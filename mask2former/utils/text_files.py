"""Text that people write by hand, with errors that name the file: encodings of their editors, and paths from home."""

from __future__ import annotations

import codecs
import os
import stat

from ..errors import BadRecordError

# What Windows programs write besides UTF-8; the longer marks come first.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def expand_home(path: str | os.PathLike[str]) -> str:
    """Return a path in which a leading `~` is the home directory, as a shell does; URLs and "" stay as they are."""
    return os.path.expanduser(os.fspath(path))


def read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    """Read a text file in UTF-8, with or without byte order mark.

    Args:
        path: a leading `~` is the home directory.
        max_bytes: a larger file is an error; it is not read.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: it is no regular file, too large, not in UTF-8, or cannot be read.
    """
    name = expand_home(path)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise BadRecordError(name, "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        if status.st_size > max_bytes:
            raise BadRecordError(name, f"has {status.st_size:,} bytes; such a text file has at most {max_bytes:,}")
        with open(name, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise BadRecordError(name, f"cannot be read: {error}") from error
    return decode_text(content, name)


def decode_text(content: bytes, source: str) -> str:
    """Decode UTF-8 with or without byte order mark; `source` is named in the errors.

    Raises:
        BadRecordError: another encoding, or no text.
    """
    encoding = next((encoding for mark, encoding in _OTHER_MARKS if content.startswith(mark)), None)
    if encoding is not None:
        raise BadRecordError(source, f"is text in {encoding}: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadRecordError(
            source, f"is not text in UTF-8 ({error.reason}); save it as UTF-8", f"line {line}"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadRecordError(source, "is not text: it contains a zero byte", f"line {line}")
    return text
