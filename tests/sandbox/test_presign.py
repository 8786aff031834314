"""Signed URLs: against a real S3 server, and against a played one that is choosy about signatures."""

import hashlib
import re
import ssl
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dynamic_providers.credentials import open_store
from dynamic_providers.errors import StoreError
from dynamic_providers.store.access import AccessKeys
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.client import Store
from dynamic_providers.store.failures import AccessError, UnreachableError
from dynamic_providers.store.presign import FORMS, Presigner
from tests.sandbox.storage import Storage

pytestmark = pytest.mark.usefixtures("of_the_storage")

HOUR = timedelta(hours=1)
WEIGHTS, OTHER = b"weights" * 1000, b"{}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a bucket with two blobs."""
    made = Store("presigned")
    made.ensure_bucket()
    for content in (WEIGHTS, OTHER):
        (tmp_path / "blob").write_bytes(content)
        made.put_blob(tmp_path / "blob", sha256(content))
    return made


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ask(storage: Storage, url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int | bytes:
    """Return what was read, or the status of the refusal."""
    request = urllib.request.Request(url, method=method, data=body, headers=headers)
    context = ssl.create_default_context(cafile=str(storage.ca_path))
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            data: bytes = response.read()
            return data
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_url_reads_one_blob_and_ranges_of_it(store: Store, storage: Storage) -> None:
    url = Presigner(store, HOUR).urls([sha256(WEIGHTS)])[sha256(WEIGHTS)]
    assert ask(storage, url) == WEIGHTS
    assert ask(storage, url, Range="bytes=7-13") == b"weights"
    assert storage.secret_key not in url
    assert ask(storage, url.replace(sha256(WEIGHTS), sha256(OTHER))) == 403
    for method in ("HEAD", "PUT", "DELETE", "POST"):
        assert ask(storage, url, method, b"" if method == "PUT" else None) in (403, 405), method


def test_a_url_ends(store: Store, storage: Storage) -> None:
    url = Presigner(store, timedelta(seconds=1)).urls([sha256(OTHER)])[sha256(OTHER)]
    time.sleep(2.1)
    assert ask(storage, url) == 403


@pytest.mark.parametrize(
    ("life", "seconds"),
    [
        pytest.param(timedelta(days=30), 604800, id="no-longer-than-the-signature-allows"),
        pytest.param(timedelta(minutes=20), 1200, id="no-longer-than-needed"),
        pytest.param(timedelta(0), 1, id="never-for-ever"),
    ],
)
def test_how_long_a_url_lives(life: timedelta, seconds: int, store: Store) -> None:
    (url,) = Presigner(store, life).urls([sha256(OTHER)]).values()
    assert f"X-Amz-Expires={seconds}&" in url


def test_a_url_writes_one_object_of_one_content(store: Store, storage: Storage) -> None:
    md5, other = ("XrY7u+Ae7tCTyyK7j1rNww==", "eV8yArF8trw9S3cdjGyerw==")  # of `hello world` and `other`
    presigner = Presigner(store, HOUR)
    url = presigner.write("caches/1/a.tar.gz", 11, md5)
    assert ask(storage, url, "PUT", b"hello there", **{"Content-MD5": md5}) == 400
    assert ask(storage, url, "PUT", b"other", **{"Content-MD5": other}) == 403
    assert ask(storage, url, "PUT", b"hello world and more", **{"Content-MD5": md5}) in (400, 403)
    assert ask(storage, url, "PUT", b"hello world") == 403
    assert ask(storage, url.replace("/1/a", "/1/b"), "PUT", b"hello world", **{"Content-MD5": md5}) == 403
    assert ask(storage, url) == 403
    assert ask(storage, url, "PUT", b"hello world", **{"Content-MD5": md5}) == b""
    key = "caches/1/a.tar.gz"
    assert ask(storage, presigner.read([key])[key]) == b"hello world"


def test_read_only_keys_sign_what_is_read_and_the_bucket_s_own_what_is_written(store: Store, storage: Storage) -> None:
    store.reader = AccessKeys("reader", "wrong")
    with pytest.raises(AccessError, match="read-only keys of S3_READ_ACCESS_KEY_ID") as caught:
        Presigner(store, HOUR).urls([sha256(OTHER)])
    assert str(caught.value).count("403 InvalidAccessKeyId") == len(FORMS)
    assert "Credential=reader" not in Presigner(store, HOUR).write("caches/a", 1, "md5")
    store.reader = AccessKeys(*storage.reader)
    presigner = Presigner(store, HOUR)
    url = presigner.urls([sha256(OTHER)])[sha256(OTHER)]
    assert storage.reader[0] in url
    assert storage.access_key not in url
    assert ask(storage, url) == OTHER
    md5 = "XrY7u+Ae7tCTyyK7j1rNww=="
    assert ask(storage, presigner.write("caches/b", 11, md5), "PUT", b"hello world", **{"Content-MD5": md5}) == b""


def test_read_only_keys_come_from_the_environment_then_from_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    address = StoreAddress("presigned", "fsn1")
    config = {"s3_read_access_key_id": "stack", "s3_read_secret_access_key": "b"}
    assert open_store(address, lambda key: None).reader is None
    assert (reader := open_store(address, config.get).reader)
    assert reader.access_key_id == "stack"
    monkeypatch.setenv("S3_READ_ACCESS_KEY_ID", "environment")
    with pytest.raises(StoreError, match="s3_read_secret_access_key is not set in the environment"):
        open_store(address, config.get)
    monkeypatch.setenv("S3_READ_SECRET_ACCESS_KEY", "d")
    assert (reader := open_store(address, config.get).reader)
    assert reader.access_key_id == "environment"


# A service with habits of its own


@contextmanager
def choosy(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """Serve on loopback: *answer* is given the path and query, and returns status and S3 code."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = answer(self.path)
            said = f"<Error><Code>{code}</Code><Resource>{self.path}</Resource></Error>".encode()
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def a_store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    return Store("presigned")


def test_the_form_that_works_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def only_version_2(path: str) -> tuple[int, str]:
        asked.append(path)
        return (403, "SignatureDoesNotMatch") if "X-Amz-Signature" in path else (206, "")

    with choosy(only_version_2) as endpoint:
        presigner = Presigner(a_store(endpoint, monkeypatch), HOUR)
        urls = presigner.urls([sha256(WEIGHTS), sha256(OTHER)])
        assert all("AWSAccessKeyId=" in url and "Expires=" in url for url in urls.values())
        tries = len(asked)
        presigner.urls([sha256(WEIGHTS)])
        assert len(asked) == tries
        assert "AWSAccessKeyId=" in presigner.write("caches/a", 1, "md5")


SECRET_PARTS = re.compile(r"(X-Amz-|Signature=|AWSAccessKeyId)")


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        pytest.param(403, "SignatureDoesNotMatch", AccessError, "takes no signed URL", id="no-form"),
        pytest.param(307, "TemporaryRedirect", AccessError, "307 TemporaryRedirect", id="redirect"),
        pytest.param(501, "NotImplemented", AccessError, "501 NotImplemented", id="not-implemented"),
        pytest.param(403, "RequestTimeTooSkewed", AccessError, "clock is wrong", id="clock"),
        pytest.param(404, "NoSuchKey", StoreError, "has lost an object", id="lost"),
        pytest.param(429, "", UnreachableError, "overloaded", id="busy"),
        pytest.param(503, "SlowDown", UnreachableError, "503 SlowDown", id="out-of-order"),
    ],
)
def test_what_cannot_be_signed_is_told_without_a_url(
    status: int, code: str, kind: type[StoreError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with choosy(lambda path: (status, code)) as endpoint, pytest.raises(kind, match=said) as caught:
        Presigner(a_store(endpoint, monkeypatch), HOUR).urls([sha256(OTHER)])
    assert not SECRET_PARTS.search("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"AWS_ENDPOINT_URL_S3": "https://127.0.0.1:9"}, "Connection refused", id="nobody-there"),
        pytest.param({"AWS_CA_BUNDLE": None}, "unable to get local issuer certificate", id="unknown-authority"),
    ],
)
def test_who_cannot_be_reached_is_told_without_a_url(
    change: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UnreachableError, match=said) as caught:
        Presigner(Store("presigned"), HOUR).urls([sha256(OTHER)])
    assert not SECRET_PARTS.search("".join(traceback.format_exception(caught.value)))
