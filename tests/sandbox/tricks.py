"""Tricks by which a request may be taken for another one, somewhere between a client and an engine."""

from collections.abc import Callable


def disguises(path: str) -> dict[str, str]:
    """Return what somewhere on the way may be taken for *path*, by the name of the trick."""
    inner = path.lstrip("/")
    return {
        "doubled": f"//{inner}",
        "tripled-inside": path.replace("/", "///"),
        "upper": path.upper(),
        "first-upper": "/" + inner.capitalize(),
        "dot": f"/./{inner}",
        "up": f"/v1/..{path}",
        "from-an-open-one": f"/v1/models/..{path}",
        "semicolon": f"/v1/;/..{path}",
        "parameter": f"{path};a=b",
        "encoded-dots": f"/v1/%2e%2e{path}",
        "encoded-slash": path.replace("/", "%2f"),
        "encoded-slash-inside": "/" + inner.replace("/", "%2F"),
        "encoded-letter": f"/%{ord(inner[0]):02x}{inner[1:]}",
        "twice-encoded": f"/%25{ord(inner[0]):02x}{inner[1:]}",
        "encoded-question": f"{path}%3f",
        "encoded-end": f"{path}%00",
        "new-line": f"{path}%0a",
        "carriage-return": f"{path}%0d%0aX-Api-Key:%20token-a",
        "trailing-slash": f"{path}/",
        "trailing-dot": f"{path}/.",
        "backslash": path.replace("/", "\\"),
        "encoded-backslash": path.replace("/", "%5c"),
        "wide": path.replace("/", "%ef%bc%8f"),
        "overlong": path.replace("/", "%c0%af"),
        "fragment": f"/v1/models#/..{path}",
        "query": f"/v1/models/?path={path}",
        "tab": f"{path}%09",
        "absolute": f"https://engine{path}/",
        "absolute-with-user": f"http://token-a@engine{path}/",
    }


LIES: dict[str, Callable[[str], dict[str, str]]] = {
    "forwarded-path": lambda path: {"X-Forwarded-Prefix": path, "X-Forwarded-Path": path, "X-Forwarded-Uri": path},
    "forwarded-from": lambda path: {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=_a"},
    "forwarded-host": lambda path: {"X-Forwarded-Host": "engine", "X-Forwarded-Proto": "http", "X-Host": "engine"},
    "original": lambda path: {"X-Original-URL": path, "X-Rewrite-URL": path, "X-Original-URI": path},
    "override": lambda path: {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST", "X-HTTP-Method": "POST"},
    "aliases": lambda path: {"X_Api_Key": "token-a", "X.Api.Key": "token-a", "Authorization_": "Bearer token-a"},
    "cookie": lambda path: {"Cookie": "Authorization=Bearer token-a; x-api-key=token-a"},
    "basic": lambda path: {"Authorization": "Basic dG9rZW4tYTo=", "Proxy-Authorization": "Bearer token-a"},
    "nearly": lambda path: {"Authorization": "Bearer token-a,", "X-Api-Key": "token-a token-b"},
    "folded-name": lambda path: {"Authorization ": "Bearer token-a"},
    "connection": lambda path: {"Connection": "Authorization, X-Api-Key, close", "Te": "trailers"},
    "upgrade": lambda path: {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
    "h2c": lambda path: {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"},
    "long": lambda path: {"X-Long": "x" * 70_000},
    "hostless": lambda path: {"Host": ""},
    "host-with-path": lambda path: {"Host": f"engine{path}?"},
    "host-of-the-key": lambda path: {"Host": "engine/v1/models?"},
    "host-twice": lambda path: {"Host": "a\r\nHost: engine"},
    "host-with-blanks": lambda path: {"Host": "engine 1"},
}

FRAMINGS = {
    "both-lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "negative": b"Content-Length: -1\r\n\r\n",
    "signed": b"Content-Length: +0\r\n\r\n",
    "hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "listed": b"Content-Length: 0, 0\r\n\r\n",
    "huge": b"Content-Length: 99999999999999999999\r\n\r\n",
    "no-number": b"Content-Length: a\r\n\r\n",
    "chunked-and-length": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-spelled-out": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked-twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-other": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked-in-blanks": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked-name-in-blanks": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunk-size-wrong": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "chunk-with-extension": b"Transfer-Encoding: chunked\r\n\r\n0;a=\n\r\n\r\n",
    "bare-line-ends": b"Transfer-Encoding: chunked\n\n0\n\n",
    "folded": b"X-A: b\r\n Content-Length: 9\r\nContent-Length: 0\r\n\r\n",
    "zero-in-name": b"X-\x00A: b\r\n\r\n",
    "line-end-in-value": b"X-A: b\rContent-Length: 9\r\n\r\n",
}

PSEUDO = {
    "no-path": [(":method", "GET"), (":scheme", "https"), (":authority", "a")],
    "path-twice": [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":path", "/v1/models")],
    "no-method": [(":scheme", "https"), (":authority", "a"), (":path", "/v1/models")],
    "method-with-blanks": [(":method", "GET /v1/models HTTP/1.1"), (":scheme", "https"), (":path", "/v1/models")],
    "relative-path": [(":method", "GET"), (":scheme", "https"), (":path", "v1/models")],
    "star": [(":method", "OPTIONS"), (":scheme", "https"), (":path", "*")],
    "connect": [(":method", "CONNECT"), (":authority", "engine:80")],
    "extended-connect": [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/v1/a")],
    "path-with-line-ends": [(":method", "GET"), (":scheme", "https"), (":path", "/v1/models\r\nx-api-key: token-a")],
    "authority-with-path": [(":method", "GET"), (":scheme", "https"), (":authority", "a/v1/models?"), (":path", "/a")],
    "other-scheme": [(":method", "GET"), (":scheme", "http+unix"), (":authority", "a"), (":path", "/invocations")],
    "late": [("x-a", "b"), (":method", "GET"), (":scheme", "https"), (":path", "/v1/models")],
    "unknown": [(":method", "GET"), (":scheme", "https"), (":path", "/v1/models"), (":token", "token-a")],
}  # fmt: skip
LAST = {
    "nothing": [],
    "capitals": [("Authorization", "Bearer token-a")],
    "line-end-in-value": [("x-a", "b\r\nx-api-key: token-a")],
    "line-end-in-name": [("x-a: b\r\nx-api-key", "token-a")],
    "chunked": [("transfer-encoding", "chunked")],
    "connection": [("connection", "upgrade"), ("upgrade", "websocket")],
    "host-beside-authority": [("host", "engine/v1/models")],
    "length-that-is-none": [("content-length", "5")],
}
