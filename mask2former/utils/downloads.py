"""Downloads: over https, bounded in size, into a cache of our own, and checked at every use.

A file lies in the cache under the SHA-256 of its complete URL: two URLs never share a file, and neither a URL nor a
server can choose where a file is written. Where no SHA-256 is published, that of the first download is recorded beside
the file, and another content is refused from then on ("trust on first use").
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock
from tqdm import tqdm

from ..errors import CheckpointError, CorruptCheckpointError
from .atomic_file import atomic_write

logger = logging.getLogger(__name__)

CACHE = "MASK2FORMER_CACHE"
ALLOW_HTTP = "MASK2FORMER_ALLOW_HTTP"
MAX_SIZE = "MASK2FORMER_MAX_DOWNLOAD"  # GiB
_DEFAULT_MAX_SIZE = 10.0
_TIMEOUT = 30  # seconds without a response
_CHUNK = 2**20
_DETECTRON2 = "detectron2://"
_DETECTRON2_SERVER = "https://dl.fbaipublicfiles.com/detectron2/"
_SCHEMES = ("https", "http", "ftp", "detectron2")

Digest = tuple[str, str]  # algorithm, and the first hexadecimal digits or all


def is_download(path: str) -> bool:
    """Return whether a path is a URL that `fetch` loads or refuses; other schemes belong to iopath's handlers."""
    return "://" in path and path.partition("://")[0].lower() in _SCHEMES


def fetch(url: str, known: Digest | None = None, advice: Callable[[Path], str] | None = None) -> Path:
    """Return the local copy of a URL, downloaded if there is none, and checked.

    Args:
        url: https or detectron2; http only with the environment variable MASK2FORMER_ALLOW_HTTP=1. A fragment
            `#sha256=<digits>` gives the checksum.
        known: checksum of the file, where one is published.
        advice: returns what to do without network, given the path in the cache.

    Raises:
        CheckpointError: the URL is refused, or the file is larger than MASK2FORMER_MAX_DOWNLOAD (GiB).
        CorruptCheckpointError: the file is truncated, or its checksum differs.
        FileNotFoundError: it cannot be downloaded.
    """
    file = cache_file(url)
    fragment = urldefrag(url).fragment
    if fragment.startswith("sha256="):
        known = ("sha256", fragment.removeprefix("sha256=").lower())
    try:
        if not file.is_file():
            with file_lock(str(file)):  # all ranks call this at the same time: one downloads
                if not file.is_file():
                    _download(url, file, known)
                    return file
        # Without the lock: ranks check at the same time, and a cache that others filled may be read-only.
        _check(file, str(file), url, known, file)
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # no network, no such host, timeout, no space
        todo = advice(file) if advice is not None else f"or put it here:\n  {file}"
        raise FileNotFoundError(
            f"cannot download {url} ({type(error).__name__}: {error}).\n"
            f"Download it on a machine with network:\n  {_address(url)}\nand give its path instead of the URL, {todo}"
        ) from error
    return file


def cache_directory() -> Path:
    """Return where downloads lie: $MASK2FORMER_CACHE, else below $FVCORE_CACHE or the user's cache directory."""
    own = os.environ.get(CACHE)
    if own:
        return Path(own).expanduser()
    base = os.environ.get("FVCORE_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mask2former"


def cache_file(url: str) -> Path:
    """Return the path of the local copy of a URL; the directory is the SHA-256 of the URL without fragment.

    Raises:
        CheckpointError: the URL is refused.
    """
    address = _address(url)
    name = PurePosixPath(urlsplit(address).path).name
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-100:] or "file"
    return cache_directory() / hashlib.sha256(address.encode()).hexdigest() / name


def local_path(path: str) -> str:
    """Return the local copy of any URL: by `fetch`, or by a handler that was registered with iopath's PathManager."""
    if is_download(path):
        return str(fetch(path))
    try:
        local: str = PathManager.get_local_path(path)
    except (OSError, RuntimeError, KeyError, NotImplementedError) as error:
        raise FileNotFoundError(f"{path} cannot be loaded ({type(error).__name__}: {error}); give a path") from error
    if not os.path.isfile(local):
        raise FileNotFoundError(f"{path} does not exist, or its scheme is unknown; give a path, or an https:// URL")
    return local


def open_path(path: str, mode: str = "rb", **options: Any) -> Any:
    """Open a file for reading: a path, or a URL as in `local_path`."""
    if is_download(path):
        return open(fetch(path), mode, **options)
    return PathManager.open(path, mode, **options)


def _address(url: str) -> str:
    """Return the https URL behind a URL, without its fragment."""
    address = urldefrag(url).url
    if address.lower().startswith(_DETECTRON2):
        address = _DETECTRON2_SERVER + address[len(_DETECTRON2) :]
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError as error:
        raise CheckpointError(f"{url!r} is not a URL: {error}") from error
    if "@" in parts.netloc:
        raise CheckpointError(f"the URL of host {host} is refused, because it contains a user name")
    _check_scheme(parts.scheme, url)
    segments = re.split(r"[/\\]", unquote(unquote(parts.path)))
    if not host or ".." in segments or "\\" in address or re.search(r"[\x00-\x20\x7f]", address):
        raise CheckpointError(f"{url!r} is refused: a URL needs a host, and may contain no '..', backslash or space")
    return address


def _check_scheme(scheme: str, url: str) -> None:
    if scheme == "https" or (scheme == "http" and os.environ.get(ALLOW_HTTP, "") not in ("", "0")):
        return
    reason = (
        f"anyone on the way can change what it gives; {ALLOW_HTTP}=1 allows it" if scheme == "http" else "use https"
    )
    raise CheckpointError(f"{url} is refused: {scheme or 'no scheme'} is not https ({reason})")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        _check_scheme(urlsplit(newurl).scheme, f"the redirect of {req.full_url} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(address: str) -> Any:
    return urllib.request.build_opener(_Redirects).open(address, timeout=_TIMEOUT)


def _limit() -> float:
    """Return the largest size of a download in GiB."""
    text = os.environ.get(MAX_SIZE) or str(_DEFAULT_MAX_SIZE)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < 2**20:
        raise CheckpointError(f"{MAX_SIZE}={text} is not a size in GiB")
    return limit


def _download(url: str, target: Path, known: Digest | None) -> None:
    """Write a file completely or not at all."""
    limit = _limit()
    too_large = f"{url} is larger than {limit:g} GiB; {MAX_SIZE} (in GiB) allows more"
    with _open(_address(url)) as response:
        length = str(response.headers.get("Content-Length") or "")
        total = int(length) if length.isascii() and length.isdigit() else None
        if total is not None and total > limit * 2**30:
            raise CheckpointError(too_large)
        bar = tqdm(total=total, desc=target.name, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, atomic_write(target) as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if bar.n > limit * 2**30:
                    raise CheckpointError(too_large)
            file.flush()
            if total not in (None, bar.n):
                raise CorruptCheckpointError(f"{url}: download truncated after {bar.n} of {total} bytes; try again")
            if bar.n == 0:
                raise CorruptCheckpointError(f"{url}: the server gave an empty file")
            _check(Path(file.name), url, url, known, target)


def _check(file: Path, shown: str, url: str, known: Digest | None, target: Path) -> None:
    """Compare the checksum that is known, and, unless it is a complete SHA-256, that of the first use."""
    check_digest(file, shown, known)
    if known is None or known[0] != "sha256" or len(known[1]) < 64:
        # Part of a checksum is known for most models of the zoo: their first download is no reason to worry.
        level = logging.WARNING if known is None else logging.INFO
        _check_record(digest_of(file, "sha256"), shown, url, target, level)


def _check_record(digest: str, shown: str, url: str, target: Path, level: int) -> None:
    record = target.with_name(f"{target.name}.sha256")
    if record.is_file():
        expected = record.read_text(encoding="utf-8", errors="replace").split(maxsplit=1)[:1]
        if expected != [digest]:
            raise CorruptCheckpointError(
                f"{shown}: sha256 {digest} is not that of the first use, which {record} holds: the file is damaged, or "
                f"{url} has another content now. Delete {target} to download it again; if the new content is right, "
                "delete the record, too."
            )
        return
    try:
        with atomic_write(record) as file:
            file.write(f"{digest}  {target.name}\n".encode())
        place = f"recorded in {record}"
    except OSError as error:
        place = f"not recorded ({error})"
    text = "%s: no SHA-256 is known. This first copy is trusted, and later ones must equal it: its sha256 %s is %s."
    logger.log(level, text, url, digest, place)


def check_digest(file: Path, shown: str, known: Digest | None) -> None:
    """Compare a file with a checksum, if there is one.

    Raises:
        CorruptCheckpointError: it differs; the message names `shown`.
    """
    if known is None:
        return
    algorithm, expected = known
    digest = digest_of(file, algorithm)
    if not expected or not digest.startswith(expected):
        raise CorruptCheckpointError(
            f"{shown}: {algorithm} {digest} does not start with {expected}, so this is not the complete or not the "
            "published file. Delete it and download it again."
        )


def digest_of(file: Path, algorithm: str) -> str:
    """Return the checksum of a file in hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()
