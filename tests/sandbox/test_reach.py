"""What a rented host can do to the bucket: read what it was granted for as long as it was, and nothing else at all.

The host is taken to be hostile and to miss nothing: every file, environment, argument and byte that reached it over SSH
is searched for URLs and for whatever might be a key, and with all of them the rest of the bucket is tried.
"""

import hashlib
import hmac
import http.client
import itertools
import json
import re
import ssl
import urllib.parse
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from bootstrap import remote
from bootstrap.ssh import Completed
from bootstrap.ssh import Machine as Session
from dynamic_providers.store.binaries import CADDY
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import blob_key
from dynamic_providers.store.presign import Presigner
from dynamic_providers.store.startup_cache import PREFIX
from tests.sandbox.clocks import SwiftClock
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.stage import Bucket, WatchedHosts, open_stage

URL = re.compile(rb"https?://[^\s\"'\\\0<>]+")
WORD = re.compile(rb"[A-Za-z0-9+/_-]{16,200}={0,2}")
BIG_BYTES = 2 * 2**20
"""A file of this size is a program or weights; what is looked for fits into less."""


@dataclass
class Spy:
    """Sees what the host sees.

    Attributes:
        told: What the operator was told, what the state holds, and what the market was asked.
    """

    folder: Path
    mark: str
    seen: set[bytes] = field(default_factory=set)
    told: str = ""
    _stats: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    def look(self) -> None:
        """Take note of everything that lies there and runs there now."""
        for path in self.folder.rglob("*"):
            try:
                stat = path.lstat()
                mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if path.is_file() and stat.st_size < BIG_BYTES and self._stats.get(path) != mark:
                    self.seen.add(path.read_bytes())
                    self._stats[path] = mark
            except OSError:  # gone meanwhile
                continue
        for pid in find_processes(self.mark):
            for name in ("cmdline", "environ"):
                try:
                    self.seen.add(Path(f"/proc/{pid}/{name}").read_bytes())
                except OSError:
                    continue

    def urls(self) -> set[str]:
        """Return every URL with a query in it."""
        return {url.decode() for text in self.seen for url in URL.findall(text) if b"?" in url}

    def words(self) -> set[bytes]:
        """Return everything that might be a key, as it stands there and decoded."""
        found = {word for text in self.seen for word in WORD.findall(urllib.parse.unquote_to_bytes(text))}
        for word in tuple(found):
            try:
                found.add(b64decode(word, validate=True))
            except ValueError:
                continue
        return found


@pytest.fixture(scope="module")
def spied(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spy]:
    """Return what a host saw from its first command until it served and its cache was kept."""
    hosts = WatchedHosts(tmp_path_factory.mktemp("spied") / "hosts", bucket.host_environment)
    spy = Spy(hosts.root, f"{hosts.root}/")
    run, ask = Session.run, Session.ask

    async def watched_run(self: Session, command: str, *, stdin: bytes | None = None, **more: Any) -> Completed:
        spy.seen |= {command.encode(), stdin or b""}
        done = await run(self, command, stdin=stdin, **more)
        spy.look()
        return done

    async def watched_ask(self: Session, program: str, question: str, **more: Any) -> Completed:
        spy.seen |= {program.encode(), question.encode()}
        done = await ask(self, program, question, **more)
        spy.look()
        return done

    with pytest.MonkeyPatch.context() as patch, open_stage(bucket, hosts, SwiftClock()) as stage:
        patch.setattr(remote, "LOOK_SECONDS", 0.15)
        patch.setattr(Session, "run", watched_run)
        patch.setattr(Session, "ask", watched_ask)
        machine = stage.create(stage.request(startup_cache=True))
        spy.told = "\n".join([*stage.said, json.dumps(machine.outputs), *map(json.dumps, stage.market.requests)])
        yield spy
        machine.delete()
    for entry in list(bucket.store.list_objects(PREFIX)):
        with bucket.store.opened() as s3:
            s3.delete_object(Bucket=bucket.store.bucket, Key=entry.key)


@dataclass
class Thief:
    """Tries things on the bucket with a URL and no key."""

    bucket: Bucket

    def ask(self, method: str, url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Return status and body; the path is sent as it is written."""
        body = b"mine now" if method in ("PUT", "POST") else None
        self.line.request(method, url.removeprefix(self.bucket.storage.endpoint), body, headers or {})
        answer = self.line.getresponse()
        return answer.status, answer.read()

    @cached_property
    def line(self) -> http.client.HTTPSConnection:
        """One connection for all of it: it is made anew where the server closes it."""
        context = ssl.create_default_context(cafile=str(self.bucket.storage.ca_path))
        return http.client.HTTPSConnection(self.bucket.storage.endpoint.partition("//")[2], context=context, timeout=10)

    def tries(self, url: str) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yield what one might do with a URL that was meant for something else."""
        parts = urllib.parse.urlsplit(url)
        place, name = f"{parts.scheme}://{parts.netloc}", self.bucket.store.bucket
        other = self.bucket.releases["other"]
        targets = [
            f"/{name}",
            f"/{name}/",
            "/",
            f"/{name}/{other.key}",
            f"/{name}/{blob_key(other.files[0].sha256)}",
            f"/{name}/models/other/tags.json",
            f"/{name}/{PREFIX}another",
            f"{parts.path}/../../../{other.key}",
            f"{parts.path}%2f..%2f..%2f..%2f{other.key}",
        ]
        queries = [parts.query, "", f"list-type=2&{parts.query}", f"{parts.query}&list-type=2&prefix="]
        for method, target, query in itertools.product(("GET", "HEAD", "PUT", "POST", "DELETE"), targets, queries):
            yield method, f"{place}{target}?{query}", {}
        for method, more in itertools.product(
            ("PUT", "DELETE", "POST"), ("", "&uploads", "&tagging", "&acl", "&delete")
        ):
            yield method, url + more, {}
        for more in ("&versions", "&policy", "&acl", "&uploads", "&location"):
            yield "GET", url + more, {}
        source = f"/{name}/{blob_key(other.files[0].sha256)}"
        yield "PUT", url, {"x-amz-copy-source": source}
        yield "PUT", url, {"x-amz-copy-source": source, "Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
        yield "GET", url, {"X-HTTP-Method-Override": "DELETE", "x-amz-acl": "public-read"}


def listing(store: Store) -> dict[str, tuple[int, object]]:
    return {entry.key: (entry.size, entry.modified) for entry in store.list_objects("")}


def test_a_host_reads_what_it_was_granted_and_nothing_else(spied: Spy, bucket: Bucket) -> None:
    thief, release = Thief(bucket), bucket.releases["tiny"]
    urls = {url for url in spied.urls() if "Signature=" in url}
    granted = {blob_key(sha256) for sha256 in (CADDY.sha256, *(file.sha256 for file in release.files))}
    of_path = {urllib.parse.urlsplit(url).path.removeprefix(f"/{bucket.store.bucket}/"): url for url in urls}
    written = of_path.keys() - granted
    assert of_path.keys() >= granted, "the spy is blind"
    assert [key.startswith(PREFIX) and key.endswith(".tar.gz") for key in written] == [True]

    before = listing(bucket.store)
    for key in granted:
        assert hashlib.sha256(thief.ask("GET", of_path[key])[1]).hexdigest() == key.rpartition("/")[2]
        assert int(parse(of_path[key])["X-Amz-Expires"]) <= timedelta(minutes=20).total_seconds()
    one_of_each = [of_path[min(granted)], of_path[min(written)]]
    allowed = []
    for url in one_of_each:
        for method, target, headers in thief.tries(url):
            status, said = thief.ask(method, target, headers)
            if status < 400 and not (method == "GET" and target == url and url == one_of_each[0]):
                allowed.append((method, target.replace(bucket.storage.endpoint, ""), headers, status, said[:80]))
    thief.line.close()
    assert allowed == []
    assert listing(bucket.store) == before


def test_no_url_is_told_kept_or_shown_to_the_market(spied: Spy) -> None:
    assert "kept for machine" in spied.told
    assert "ssh_host_key" in spied.told
    assert not re.search(r"Signature=|X-Amz-|AWSAccessKeyId", spied.told)


def parse(url: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))


def signs(secret: bytes, url: str) -> bool:
    """Say whether *secret* is the key that a URL was signed with (signature version 4), asking nobody."""
    query = parse(url)
    parts, signature = urllib.parse.urlsplit(url), query.pop("X-Amz-Signature")
    canonical = "\n".join(
        [
            "GET",
            parts.path,
            urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="~-_."),
            f"host:{parts.netloc}\n",
            "host",
            "UNSIGNED-PAYLOAD",
        ]
    )
    scope = query["X-Amz-Credential"].partition("/")[2]
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join([query["X-Amz-Algorithm"], query["X-Amz-Date"], scope, hashed])
    key = b"AWS4" + secret
    for part in [*scope.split("/"), text]:
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex() == signature


def test_nothing_on_a_host_is_a_key_of_the_bucket(spied: Spy, bucket: Bucket) -> None:
    own = CADDY.sha256
    url = Presigner(bucket.store, timedelta(minutes=1)).urls([own])[own]
    assert signs(bucket.storage.secret_key.encode(), url), "the question can be answered yes"
    words = spied.words()
    assert len(words) > 1000, "the spy is blind"
    assert [word for word in words if signs(word, url)] == []


@pytest.mark.parametrize("form", ["AWS_SECRET={}", '{{"secret": "{}"}}', "://id:{}@host/", "base64"])
def test_a_key_that_lay_there_would_be_found(form: str, bucket: Bucket) -> None:
    url = Presigner(bucket.store, timedelta(minutes=1)).urls([CADDY.sha256])[CADDY.sha256]
    secret = bucket.storage.secret_key
    text = b64encode(secret.encode()) if form == "base64" else form.format(secret).encode()
    assert any(signs(word, url) for word in Spy(Path(), "", {b"a\0b " + text + b"\n"}).words())
