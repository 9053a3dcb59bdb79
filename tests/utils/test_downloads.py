"""Downloads: which URLs are refused, where files lie, and what is checked; nothing here uses the network."""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.file_io import PathManager

from mask2former.checkpoint import load_weights
from mask2former.config import load_config
from mask2former.data.image_io import read_image, read_label_map
from mask2former.errors import BadRecordError, CheckpointError, CorruptCheckpointError
from mask2former.utils import downloads
from mask2former.utils.downloads import cache_directory, cache_file, fetch, local_path
from mask2former.utils.file_io import read_json_object

URL = "https://example.org/models/a.pth"


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the server gives, and the addresses that were opened."""
    content: dict[str, Any] = {"body": b"weights", "length": None, "opened": [], "error": None}

    class Answer(io.BytesIO):
        def __init__(self) -> None:
            super().__init__(content["body"])
            self.headers = {"Content-Length": content["length"]}

    def opened(address: str) -> Answer:
        content["opened"].append(address)
        if content["error"] is not None:
            raise content["error"]
        return Answer()

    monkeypatch.setattr(downloads, "_open", opened)
    monkeypatch.setenv(downloads.CACHE, str(tmp_path / "cache"))
    for name in (downloads.ALLOW_HTTP, downloads.MAX_SIZE):
        monkeypatch.delenv(name, raising=False)
    return content


REFUSED = [
    ("http://example.org/a.pth", "not https.*MASK2FORMER_ALLOW_HTTP=1"),
    ("HTTP://example.org/a.pth", "not https"),
    ("ftp://example.org/a.pth", "not https"),
    ("https://example.org/../../etc/a.pth", r"'\.\.'"),
    ("https://example.org/%2e%2e/a.pth", r"'\.\.'"),
    ("https://example.org/%252e%252e%2fa.pth", r"'\.\.'"),
    ("detectron2://../../a.pth", r"'\.\.'"),
    ("https://example.org/..\\a.pth", "backslash"),
    ("https://example.org/a b.pth", "space"),
    ("https://example.org/a\nb.pth", "space"),
    ("https:///a.pth", "host"),
    ("https://[::1/a.pth", "not a URL"),
    ("https://user:secret@example.org/a.pth", "user name"),
    ("http://user:secret@example.org/a.pth", "user name"),
]


@pytest.mark.parametrize(("url", "reason"), REFUSED)
def test_urls_that_are_refused(url: str, reason: str, served: dict[str, Any], tmp_path: Path) -> None:
    for read in (fetch, local_path, load_weights):
        with pytest.raises(CheckpointError, match=f"(?s){reason}") as error:
            read(url)
        assert "secret" not in str(error.value)
    assert not served["opened"] and not (tmp_path / "cache").exists()


def test_http_is_taken_if_allowed(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(downloads.ALLOW_HTTP, "1")
    assert fetch("http://example.org/a.pth").read_bytes() == b"weights"


def test_each_url_has_a_file_of_its_own(tmp_path: Path) -> None:
    urls = [URL, "https://example.com/models/a.pth", f"{URL}?version=2", "https://example.org/models%2Fa.pth"]
    files = {cache_file(url) for url in urls}
    assert len(files) == len(urls)
    for file in files:
        assert file.parent.parent == tmp_path / "cache"
    assert cache_file(f"{URL}#sha256=00") == cache_file(URL)
    assert cache_file("https://example.org/").name == "file"
    assert cache_file("https://example.org/.ssh%00x").name == "ssh_00x"
    assert cache_file("detectron2://a/R.pkl") == cache_file("https://dl.fbaipublicfiles.com/detectron2/a/R.pkl")


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(downloads.CACHE)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "one"))
    assert cache_directory() == tmp_path / "one" / "mask2former"
    monkeypatch.delenv("FVCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    assert cache_directory() == tmp_path / "two" / "mask2former"


def test_redirects_lead_to_https_only() -> None:
    request = urllib.request.Request(URL)
    follow = downloads._Redirects().redirect_request
    assert follow(request, None, 302, "Found", {}, "https://example.com/b").full_url == "https://example.com/b"
    for target in ("http://example.org/a.pth", "ftp://example.org/a.pth", "file:///etc/passwd"):
        with pytest.raises(CheckpointError, match=f"redirect of {URL} to {target}"):
            follow(request, None, 302, "Found", {}, target)


def test_the_first_content_is_recorded_and_another_one_refused(
    served: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    with caplog.at_level(logging.WARNING):
        file = fetch(URL)
        fetch(URL)
    assert [digest in record.getMessage() and URL in record.getMessage() for record in caplog.records] == [True]
    assert len(served["opened"]) == 1
    file.write_bytes(b"weighty")  # damaged on disk
    with pytest.raises(CorruptCheckpointError, match="first use"):
        fetch(URL)
    file.unlink()
    served["body"] = b"others"
    with pytest.raises(CorruptCheckpointError, match="another content"):
        fetch(URL)
    assert not file.exists()
    served["body"] = b"weights"
    assert fetch(URL) == file


def test_a_published_part_of_a_checksum_is_no_reason_for_a_warning(
    served: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        file = fetch(URL, ("md5", hashlib.md5(b"weights").hexdigest()[:6]))
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    file.write_bytes(b"weighty")
    with pytest.raises(CorruptCheckpointError, match="md5"):
        fetch(URL, ("md5", hashlib.md5(b"weights").hexdigest()[:6]))


def test_a_file_that_was_put_there_is_recorded_too(served: dict[str, Any]) -> None:
    file = cache_file(URL)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"by hand")
    assert fetch(URL) == file and not served["opened"]
    file.write_bytes(b"changed")
    with pytest.raises(CorruptCheckpointError, match="first use"):
        fetch(URL)


def test_ranks_check_a_cached_file_without_waiting_for_each_other(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fetch(URL)

    def refuse(path: str) -> None:
        raise AssertionError("a lock, which only one rank has at a time")

    monkeypatch.setattr(downloads, "file_lock", refuse)
    assert fetch(URL) == file


def test_a_known_checksum_needs_no_trust(caplog: pytest.LogCaptureFixture) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    file = fetch(f"{URL}#sha256={digest}")
    assert not caplog.records and not file.with_name("a.pth.sha256").exists()
    for wrong in ("0" * 64, "", digest + "0"):
        with pytest.raises(CorruptCheckpointError, match="sha256"):
            fetch(f"{URL}#sha256={wrong}")


@pytest.mark.parametrize(("length", "body"), [("8", b"weights"), ("6", b"weights"), (None, b"")])
def test_truncated_downloads_leave_nothing(served: dict[str, Any], length: str | None, body: bytes) -> None:
    served.update(length=length, body=body)
    with pytest.raises(CorruptCheckpointError, match=URL):
        fetch(URL)
    assert [file.suffix for file in cache_file(URL).parent.iterdir()] == [".lock"]


def test_size_is_limited(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(downloads.MAX_SIZE, "0.001")
    for length, body in (("2000000", b"announced"), (None, bytes(3 * 2**20))):
        served.update(length=length, body=body)
        with pytest.raises(CheckpointError, match=r"larger than 0\.001 GiB"):
            fetch(URL)
    assert [file.suffix for file in cache_file(URL).parent.iterdir()] == [".lock"]
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(downloads.MAX_SIZE, wrong)
        with pytest.raises(CheckpointError, match=f"{downloads.MAX_SIZE}={wrong}"):
            fetch(URL)


@pytest.mark.parametrize("error", [OSError("no route"), http.client.InvalidURL("port"), http.client.BadStatusLine("x")])
def test_without_network_the_error_says_what_to_do(served: dict[str, Any], error: Exception) -> None:
    served["error"] = error
    with pytest.raises(FileNotFoundError, match=f"(?s)cannot download {URL}.*put it here:\n  {cache_file(URL)}"):
        load_weights(URL)


def test_everything_that_reads_urls_comes_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """iopath's own handlers write below a path that the URL chooses."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("iopath downloads")

    monkeypatch.setattr(PathManager, "get_local_path", refuse)
    monkeypatch.setattr(PathManager, "open", refuse)
    for url in ("http://example.org/a.json", "detectron2://../a.json"):
        for read in (read_json_object, read_image, read_label_map):
            with pytest.raises(BadRecordError, match="refused"):
                read(url)
        with pytest.raises(CheckpointError, match="refused"):
            load_weights(url)
    config = tmp_path / "a.yaml"
    config.write_text("_BASE_: https://example.org/base.yaml\n")
    with pytest.raises((FileNotFoundError, ValueError)):
        load_config(config)
    with pytest.raises(FileNotFoundError):
        load_config("https://example.org/base.yaml")


def test_the_query_belongs_to_the_server(served: dict[str, Any]) -> None:
    for given in (f"{URL}?download=true", f"{URL}?download=true&matching_heuristics=True"):
        with pytest.raises(CorruptCheckpointError):
            load_weights(given)
    with pytest.raises(CorruptCheckpointError):
        load_weights(f"{URL}?matching_heuristics=True")
    assert served["opened"][0] == f"{URL}?download=true" and served["opened"][-1] == URL


def test_an_unknown_scheme_is_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/a\.pth"):
        load_weights("s3://bucket/a.pth")
