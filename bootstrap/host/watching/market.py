"""The market as the machine itself may ask it: read and destroy this one instance, with the instance's own key.

Each question has a thread of its own: looking up a name has no time limit, and nothing else may wait for it.
Runs on the machine: standard library only, Python 3.11.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bootstrap.host.watching.files import say

ENVIRONMENT = Path("../container.env")
MARKET_URL = "https://console.vast.ai"
TIMEOUT_SECONDS = 20.0
ANSWER_BYTES = 2**20
SHOWN_CHARACTERS = 200
SHORTEST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
ARMED_PAUSE_SECONDS = 600.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:
        """Go nowhere else: urllib would take the key along."""


class MarketError(Exception):
    """The market did not do what was asked; the text says why and holds no secret."""


class Market:
    """Asks in the background; what came of it is read here.

    Attributes:
        is_armed: The key has read its own instance.
        unarmed_because: Why it has not; None if it has.
    """

    def __init__(self) -> None:
        self.is_armed = False
        self.unarmed_because: str | None = "the market has not answered yet"
        self._is_over = threading.Event()
        self._destroyer: threading.Thread | None = None

    def start(self) -> None:
        """Begin. Both threads from the first: when the rental is over there may be none to be had."""
        self._destroyer = _run(self._destroy_for_ever)
        _run(self._keep_armed)

    def destroy(self) -> None:
        """End the rental: ask until nobody is left who asks. Said again and again, it is done once."""
        self._is_over.set()
        if self._destroyer is None or not self._destroyer.is_alive():
            self._destroyer = _run(self._destroy_for_ever)

    def _keep_armed(self) -> None:
        pauses = growing_pauses()
        while True:
            try:
                check_own_instance()
            except MarketError as error:
                self.is_armed, self.unarmed_because = False, str(error)
                say(f"not armed: {error}")
                time.sleep(next(pauses))
            else:
                self.is_armed, self.unarmed_because = True, None
                pauses = growing_pauses()
                time.sleep(ARMED_PAUSE_SECONDS)

    def _destroy_for_ever(self) -> None:
        self._is_over.wait()
        for pause in growing_pauses():
            try:
                say(f"destroy: {ask('DELETE')[:SHOWN_CHARACTERS]}")
            except MarketError as error:
                say(f"destroy: {error}")
            time.sleep(pause)  # after a yes too: what it did not end goes on costing


def _run(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=work.__name__, daemon=True)
    thread.start()
    return thread


def growing_pauses() -> Iterator[float]:
    """Yield the seconds before each further try."""
    pause = SHORTEST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def check_own_instance() -> None:
    """Read the own instance.

    Raises:
        MarketError: That did not work, so neither would destroying it.
    """
    instance_id, _ = read_identity()
    try:
        row = json.loads(ask("GET"))["instances"]
        is_own = row is not None and str(row["id"]) == instance_id
    except (ValueError, KeyError, TypeError) as error:
        raise MarketError("the market's answer cannot be read") from error
    if not is_own:
        raise MarketError(f"the market does not show instance {instance_id} to its own key")


def read_identity() -> tuple[str, str]:
    """Return the instance's id and key, as `onstart` wrote them down: the agent's own environment has no secret.

    Raises:
        MarketError: They are not there.
    """
    try:
        text = ENVIRONMENT.read_text(errors="surrogateescape")
    except OSError as error:
        raise MarketError(f"container.env cannot be read: {error.strerror}") from error
    known = dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
    instance_id, key = known.get("CONTAINER_ID", ""), known.get("CONTAINER_API_KEY", "")
    if not instance_id.isdecimal() or not key.isascii() or not key.isprintable() or not key:
        raise MarketError("CONTAINER_ID or CONTAINER_API_KEY is missing in container.env")
    return instance_id, key


def ask(method: str) -> str:
    """Send a request about the own instance and return the answer's text.

    Raises:
        MarketError: It was not answered with success.
    """
    instance_id, key = read_identity()
    base = os.environ.get("VAST_URL", "").rstrip("/") or MARKET_URL
    address = f"{base}/api/v0/instances/{instance_id}/"
    try:
        request = urllib.request.Request(  # noqa: S310  (the operator names another address, or nobody does)
            address, method=method, headers={"Authorization": f"Bearer {key}"}
        )
        opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=_trust()))
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            text: str = answer.read(ANSWER_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            raise MarketError(f"the market answers {error.code} to {method}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise MarketError(f"the market does not answer: {reason}") from None
    return text


def _trust() -> ssl.SSLContext:
    """Return what verifies the market: the system's authorities, and where there is certifi, as with vLLM, its too."""
    context = ssl.create_default_context()
    found = importlib.util.find_spec("certifi")
    if found and found.origin:
        bundle = Path(found.origin).with_name("cacert.pem")
        if bundle.exists():
            context.load_verify_locations(bundle)
    return context
