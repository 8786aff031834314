"""The only module that knows vast.ai's URLs: turns each answer into a value or an error.

Reads, relabels and destroys are retried (they may be repeated); a create never is: the market has no idempotency
token, and a second PUT after a lost reply would rent a second machine or hide the first (vast-ai/vast-cli retries it).
The key travels in the `Authorization` header alone.
"""

import json
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from math import isfinite
from typing import Any

from dynamic_providers.clock import Clock
from dynamic_providers.errors import (
    AccountError,
    NotFoundError,
    OfferTakenError,
    RefusedError,
    UnavailableError,
    VastError,
)
from dynamic_providers.vast.models import Charge, Instance, Offer
from dynamic_providers.web import httpx

URL = "https://console.vast.ai"
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
TRIES = 6
FIRST_PAUSE_SECONDS = 1.0
"""Doubles up to 16 s: 31 s in all. The market's limits ask for 1 to 3 s between calls, and a penalty is 12 s.
Source: vast-ai/docs @c624622 api-reference/rate-limits-and-errors.mdx."""

SEARCH_PAGE = 64
"""About as many rows come back whatever the limit (field reports); the next page begins at the last price."""
SEARCH_PAGES = 4
"""Ten searches a minute are allowed; four pages are the 256 cheapest offers of the GPUs asked for."""

_CREDIT_WORDS = ("insufficient_credit", "missing_billing", "lacks credit")
_SPEED_WORD = "spend_rate_limit"
_KEY_WORDS = ("auth_error", "invalid user key", "session expired")
_TAKEN_WORDS = ("no_such_ask", "no longer available")
_QUOTA_WORD = "search_quota_exceeded"
"""A 429 that lasts until midnight UTC: trying again in a few seconds only delays the news."""


class VastClient:
    """The market's HTTP API. Thread-safe, as `httpx.Client` is.

    Args:
        api_key: The account's key.
        url: Scheme, host and port; the official client's `VAST_URL`.
        clock: Pauses between tries.
        transport: Another way to carry requests; for tests.
    """

    def __init__(
        self, api_key: str, url: str = URL, *, clock: Clock | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._clock = clock or Clock()
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=TIMEOUT,
            transport=transport,
            verify=_trust(),
        )
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        """Return the market's time as of its last answer: ours may be wrong, and expiry is judged by its clock."""
        return self._clock.now() + self._ahead

    def credit_usd(self) -> float:
        """Return what the account can still spend, USD."""
        return float(self._read("GET", "/api/v0/users/current").get("credit") or 0)

    def search_offers(self, gpu_names: list[str], *, disk_gb: float) -> list[Offer]:
        """Return the on-demand offers of these GPUs that can be rented, cheapest first.

        Everything else is checked by `offers.py`: the market does not always apply numeric filters, and we want to
        say what turned an offer away.

        Args:
            gpu_names: The market's own names.
            disk_gb: Prices come all-in with a disk of this size.
        """
        offers: dict[int, Offer] = {}
        cheapest = 0.0
        for _ in range(SEARCH_PAGES):
            query = {
                "gpu_name": {"in": gpu_names},
                "rentable": {"eq": True},
                "rented": {"eq": False},
                "external": {"eq": False},
                "dph_total": {"gte": cheapest},
                "order": [["dph_total", "asc"]],
                "type": "on-demand",
                "limit": SEARCH_PAGE,
                "allocated_storage": disk_gb,
            }
            rows = self._read("POST", "/api/v0/bundles/", json=query).get("offers") or []
            before = len(offers)
            # What has no id cannot be rented; what has no machine could not be avoided.
            named = [row for row in rows if None not in (row.get("id"), row.get("machine_id"))]
            offers |= {offer.id: offer for offer in map(Offer.from_api, named)}
            if len(rows) < SEARCH_PAGE or len(offers) == before:
                break
            cheapest = max((o.usd_per_hour for o in offers.values() if isfinite(o.usd_per_hour)), default=cheapest)
        return list(offers.values())

    def create_instance(self, offer_id: int, body: Mapping[str, Any]) -> int:
        """Rent an offer; return the instance's id. Never retried.

        Raises:
            OfferTakenError: Another tenant was faster.
            AccountError: Key or credit.
            RefusedError: Another no; its `new_contract` may name an instance that exists all the same.
            UnavailableError: Nobody knows whether something was rented.
        """
        answer = _value_of(self._send("PUT", f"/api/v0/asks/{offer_id}/", json=dict(body)))
        if not answer.get("new_contract"):
            raise UnavailableError(f"vast.ai said yes to renting offer {offer_id}, but named no instance")
        return int(answer["new_contract"])

    def list_instances(self) -> list[Instance]:
        """Return every instance of the account. All pages, or an error: a part would look like 'gone'."""
        try:
            return [Instance.from_api(row) for row in self._list_rows({})]
        except (KeyError, TypeError, ValueError) as error:
            raise UnavailableError(f"vast.ai's list of instances has a row that cannot be read: {error!r}") from error

    def show_instance(self, instance_id: int) -> Instance | None:
        """Return one instance, None if the market does not know it (yet, or any more)."""
        try:
            row = self._read("GET", f"/api/v0/instances/{instance_id}/", params={"owner": "me"}).get("instances")
        except NotFoundError:
            return None
        if row and row.get("actual_status") == "running" and not isinstance(row.get("ports"), dict):
            # Sources disagree on whether this read shows ports as the list does; the list does for certain.
            row = next(iter(self._list_rows({"id": {"eq": instance_id}})), None)
        return Instance.from_api(row) if row else None

    def relabel(self, instance_id: int, label: str) -> None:
        """Replace an instance's label."""
        self._read("PUT", f"/api/v0/instances/{instance_id}/", json={"label": label})

    def attach_ssh_key(self, instance_id: int, public_key: str) -> None:
        """Let *public_key* log in as root; one that may already is fine."""
        try:
            self._read("POST", f"/api/v0/instances/{instance_id}/ssh/", json={"ssh_key": public_key})
        except RefusedError as error:
            if "duplicate" not in str(error).lower():
                raise

    def destroy_instance(self, instance_id: int) -> None:
        """Ask for an instance to be destroyed; one that is gone counts as destroyed."""
        try:
            self._read("DELETE", f"/api/v0/instances/{instance_id}/", json={}, tries=2)
        except NotFoundError:
            return

    def charge_of(self, instance_id: int, *, since: datetime, until: datetime) -> Charge | None:
        """Return what the market charges for one instance, None where its books do not show it yet.

        Source: docs.vast.ai api-reference/billing/show-charges. Days are whole: the filter takes one more on each side.
        """
        day = timedelta(days=1)
        window = {"gte": int((since - day).timestamp()), "lte": int((until + day).timestamp())}
        params: dict[str, Any] = {
            "select_filters": json.dumps({"day": window, "type": {"in": ["instance"]}}),
            "latest_first": "true",
            "limit": 100,
        }
        while True:
            answer = self._read("GET", "/api/v0/charges/", params=params)
            for row in answer.get("results") or []:
                if row.get("source") == f"instance-{instance_id}":
                    items = row.get("items") or [row]
                    usd: dict[str, float] = {}
                    for item in items:
                        usd[str(item["type"])] = usd.get(str(item["type"]), 0.0) + float(item["amount"])
                    return Charge(usd)
            if not answer.get("next_token"):
                return None
            params["after_token"] = answer["next_token"]

    def _list_rows(self, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        params = {
            "select_filters": json.dumps(filters),
            "order_by": json.dumps([{"col": "id", "dir": "asc"}]),
            "limit": "25",
        }
        count = found = 0
        while True:
            answer = self._read("GET", "/api/v1/instances/", params=params)
            if not isinstance(answer.get("instances"), list):
                raise UnavailableError("vast.ai answered the list of instances without a list")
            yield from answer["instances"]
            count, found = count + len(answer["instances"]), max(found, int(answer.get("instances_found") or 0))
            if not answer.get("next_token"):
                break
            params["after_token"] = answer["next_token"]
        # Whether the market counts a page or all of them is not documented; fewer rows than either is a part.
        if count < found:
            raise UnavailableError(f"vast.ai listed {count} of {found} instances")

    def _read(self, method: str, path: str, *, tries: int = TRIES, **kwargs: Any) -> dict[str, Any]:
        """Carry a request that may be repeated; pause and try again while the market is unavailable."""
        pause = FIRST_PAUSE_SECONDS
        for _ in range(tries - 1):
            try:
                return _value_of(self._send(method, path, **kwargs))
            except UnavailableError:
                self._clock.sleep(pause)
                pause = min(pause * 2, 16.0)
        return _value_of(self._send(method, path, **kwargs))

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **kwargs)
        except httpx.RequestError as error:  # also an answer that broke off or cannot be decoded
            what = str(error) or type(error).__name__
            raise UnavailableError(f"vast.ai did not answer {method} {path}: {what}") from error
        if stamp := reply.headers.get("Date"):
            self._ahead = parsedate_to_datetime(stamp).astimezone(UTC) - self._clock.now()
        return reply


@cache
def _trust() -> ssl.SSLContext:
    """Return the public authorities: once a process, for each reading of them takes longer than most requests."""
    return httpx.create_ssl_context()


def _value_of(reply: httpx.Response) -> dict[str, Any]:
    """Return a reply's JSON object, or raise what it means."""
    try:
        body = reply.json()
    except ValueError as error:
        if reply.is_success:  # a proxy's page must not read as "no such instance" or "no credit"
            raise UnavailableError(
                f"vast.ai answered {reply.request.url.path} with something else than JSON"
            ) from error
        body = {"msg": reply.text.strip()[:200]}
    answer = body if isinstance(body, dict) else {"results": body}
    if reply.is_success and answer.get("success", True):
        return answer
    raise _refusal(reply, answer)


def _refusal(reply: httpx.Response, answer: Mapping[str, Any]) -> VastError:
    """Say what an unsuccessful answer means. By its words first: the statuses differ between sources."""
    code, message = str(answer.get("error") or ""), str(answer.get("msg") or answer.get("detail") or "")
    words, status = f"{code} {message}".lower(), reply.status_code
    said = " ".join(filter(None, (f"vast.ai said {status}", code, message)))
    details: dict[str, Any] = {"status": status, "code": code, "new_contract": answer.get("new_contract")}
    lasts = any(word in words for word in (*_CREDIT_WORDS, _SPEED_WORD, _QUOTA_WORD))
    if status >= 500 or (status == 429 and not lasts):
        return UnavailableError(f"{said} ({reply.request.method} {reply.request.url.path})")
    if any(word in words for word in _KEY_WORDS) or status == 401:
        return AccountError(
            f"{said}\n  the key is not valid: set VAST_API_KEY to one of your account's keys", **details
        )
    if any(word in words for word in _CREDIT_WORDS):
        return AccountError(f"{said}\n  add credit to your vast.ai account (Billing), then run this again", **details)
    if _SPEED_WORD in words:
        advice = "a new account may spend little at a time: wait a few hours, or ask for a cheaper machine"
        return AccountError(f"{said}\n  {advice} (need.max_usd_per_hour)", **details)
    if _QUOTA_WORD in words:
        return AccountError(f"{said}\n  searches are used up until {_reset_of(reply)}: wait until then", **details)
    if any(word in words for word in _TAKEN_WORDS) or status == 410:
        return OfferTakenError(said, **details)
    if "no_such_instance" in words or status == 404:
        return NotFoundError(said, **details)
    return RefusedError(said, **details)


def _reset_of(reply: httpx.Response) -> str:
    """Return when the daily quota of searches begins anew; the header holds unix seconds."""
    stamp = reply.headers.get("X-RateLimit-Reset", "")
    return f"{datetime.fromtimestamp(int(stamp), UTC):%F %H:%M} UTC" if stamp.isdigit() else "midnight UTC"
