"""What the market answers: a no in its own words, and all that says nothing about the outcome."""

from typing import Any

import httpx
import pytest

from tests.unit.builders import says

UNANSWERED = [
    pytest.param(httpx.ReadTimeout("slow"), id="time-out"),
    pytest.param(httpx.RemoteProtocolError("closed"), id="connection-closed"),
    pytest.param(httpx.ConnectError("refused"), id="no-connection"),
    pytest.param(httpx.DecodingError("gzip"), id="answer-garbled"),
    pytest.param(says(502, "<html>Bad Gateway</html>"), id="502-page"),
    pytest.param(says(500, {"success": False, "error": "internal"}), id="500"),
    pytest.param(says(429, "API requests too frequent"), id="429-text"),
    pytest.param(says(429, {"detail": "API requests too frequent endpoint threshold=4.5"}), id="429-detail"),
    pytest.param(says(429, {"success": False, "error": "rate_limit_exceeded", "msg": "threshold=3.0"}), id="429-json"),
    pytest.param(says(200, "<html>log in to the network</html>"), id="200-page"),
]


def no(status: int, error: str, msg: str = "", **more: Any) -> httpx.Response:
    """Return a refusal."""
    return says(status, {"success": False, "error": error, "msg": msg} | more)
