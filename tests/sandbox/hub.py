"""A small Hugging Face hub on loopback: as much of its API as a download takes."""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves models as long as its block lasts.

    Args:
        models: `<org>/<repo>` → its files.
        gated: Those which only `token` opens.

    Attributes:
        endpoint: What HF_ENDPOINT is to be.
        fetched: Paths of the files that were really sent.
        cut_after: Of the next file, only so many bytes arrive before the line breaks.
    """

    token = "hf_right"

    def __init__(self, models: Mapping[str, Mapping[str, bytes]], *, gated: tuple[str, ...] = ()) -> None:
        self.models, self.gated = models, gated
        self.fetched: list[str] = []
        self.cut_after: int | None = None
        hub = self

        class Handler(_Handler):
            def __init__(self, *words: object) -> None:
                self.hub = hub
                super().__init__(*words)  # type: ignore[arg-type]

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        if repo not in self.hub.models:
            return self._refuse(404 if self._token() else 401, "RepoNotFound")
        if repo in self.hub.gated and self._token() != self.hub.token:
            return self._refuse(403, "GatedRepo")
        revision = parts[5] if is_api and len(parts) > 5 else parts[3] if len(parts) > 3 and not is_api else "main"
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        files = self.hub.models[repo]
        if is_api:
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            return self._send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
        path = "/".join(parts[4:])
        if path not in files:
            return self._refuse(404, "EntryNotFound")
        return self._send_file(path, files[path])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_file(self, path: str, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.command == "GET":
            self.hub.fetched.append(path)
        self._send(data[start:], 206 if start else 200, **headers)

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_after is not None and len(data) > self.hub.cut_after:
            self.wfile.write(data[: self.hub.cut_after])
            self.hub.cut_after = None
            self.close_connection = True
            return
        self.wfile.write(data)

    def _refuse(self, status: int, word: str) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": word, "X-Error-Message": word, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def log_message(self, *_: object) -> None:
        pass
