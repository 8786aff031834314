"""What the store's answer to a request means: the bytes that were asked for, or why they do not come. Pure.

Of what the store says, only known words are ever repeated: an error may quote the URL, which is a secret.
"""

import calendar
import contextlib
import re
import time
import urllib.parse
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import NamedTuple

SKEW_SECONDS = 15 * 60
"""How far a signature may lie in the store's future. Source: S3's RequestTimeTooSkewed; Ceph's RGW_AUTH_GRACE."""
EXPIRED_CODES = {"ExpiredRequest", "RequestExpired", "ExpiredToken", "TokenRefreshRequired"}
"""R2, NooBaa, sessions. S3, SeaweedFS and Ceph say AccessDenied, Ceph without any message: then the clocks tell."""
RETRY_AFTER_MOST_SECONDS = 30


class Fault(NamedTuple):
    """Why bytes did not come.

    Kinds: `expired` and `skewed` (a fresh URL may help), `refused`, `missing`, `corrupt`, `whole` (the store sends
    whole files only), `busy` and `network` (asking again may help), `disk`.
    """

    kind: str
    message: str
    retry_after: float = 0


@dataclass(frozen=True)
class Range:
    """What one request asks for.

    Args:
        id: Names the request between the job and its workers.
        url: Presigned.
        path: The file that the bytes go to.
        at: Offset of the first byte.
        length: How many bytes.
        size: Of the whole object.
        is_whole: The store is known to send whole objects only.
    """

    id: int
    url: str = field(repr=False)
    path: str
    at: int
    length: int
    size: int
    is_whole: bool = False


@dataclass(frozen=True)
class Answer:
    """The head of an answer, and of a refusal the beginning of its body. `length` is None where it is not told."""

    status: int
    length: int | None = None
    content_range: str = ""
    date: str = ""
    retry_after: str = ""
    said: str = ""


def find_fault(answer: Answer, wanted: Range) -> Fault | None:
    """Return why the answer's body is not what was asked for; None if it is, as far as one can tell before it comes."""
    if answer.status == 206:
        return _fault_in_part(answer, wanted)
    if answer.status == 200:
        if answer.length not in (None, wanted.size):
            return _wrong_size(answer.length, wanted)
        is_asked = wanted.is_whole or wanted.length == wanted.size
        return None if is_asked else Fault("whole", "the store sends the whole file whatever part is asked for")
    code, message = _said(answer.said, "Code"), _said(answer.said, "Message").lower()
    if answer.status == 404:
        return Fault("missing", f"not in the bucket ({code}): push the model again")
    if answer.status == 416:
        return _wrong_size(None, wanted)
    if answer.status == 429 or answer.status >= 500:
        after = float(answer.retry_after) if answer.retry_after.isdigit() else 0
        text = f"the store answers {answer.status} ({code}): overloaded or out of order; try again later"
        return Fault("busy", text, min(after, RETRY_AFTER_MOST_SECONDS))
    return _refusal(answer, code, message, wanted)


def _fault_in_part(answer: Answer, wanted: Range) -> Fault | None:
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.content_range.strip())
    if not said:
        return Fault("network", "the store sends a part of the file and does not say which")
    if said[3] not in ("*", str(wanted.size)):
        return _wrong_size(int(said[3]), wanted)
    if int(said[1]) != wanted.at:
        return Fault("network", "the store sends another part of the file than was asked for")
    return None


def _wrong_size(size: int | None, wanted: Range) -> Fault:
    held = "another number of" if size is None else size
    return Fault(
        "corrupt", f"the bucket holds {held} bytes of it, its manifest says {wanted.size}: push the model again"
    )


def _refusal(answer: Answer, code: str, message: str, wanted: Range) -> Fault:
    signed, ends = lifetime(wanted.url)
    now = _store_time(answer.date)
    if code == "RequestTimeTooSkewed" or "not yet valid" in message or (signed and signed - now > SKEW_SECONDS):
        ahead = f"{signed - now:.0f} s ahead of" if signed else "not"
        return Fault("skewed", f"its URL was signed by a clock that is {ahead} the store's: set the operator's clock")
    if code in EXPIRED_CODES or "expired" in message or (ends and now >= ends):
        return Fault("expired", f"its URL is past its time{_for_how_long(signed, ends, now)}")
    return Fault(
        "refused",
        f"the store takes its URL for wrong (HTTP {answer.status}, {code}): the keys that signed it are not the"
        " bucket's any more, or may not read it; check them and run `pulumi up` again",
    )


def _for_how_long(signed: float, ends: float, now: float) -> str:
    """Say when it was signed by the store's clock, which shows an operator's clock that is behind."""
    return (
        f" (signed {now - signed:.0f} s ago by the store's clock, for {ends - signed:.0f} s)" if signed and ends else ""
    )


def lifetime(url: str) -> tuple[float, float]:
    """Return when a URL was signed and when it ends, in Unix time; 0 where it does not say."""
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
    with contextlib.suppress(ValueError, KeyError):
        signed = calendar.timegm(time.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ"))
        return signed, signed + int(query["X-Amz-Expires"])
    with contextlib.suppress(ValueError, KeyError):
        return 0, int(query["Expires"])  # signature version 2
    return 0, 0


def _store_time(date: str) -> float:
    with contextlib.suppress(ValueError):
        return parsedate_to_datetime(date).timestamp()
    return time.time()


def _said(body: str, element: str) -> str:
    """Return the text of an element of an S3 error. A code is a word, never more."""
    text = body.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return text if element == "Message" or re.fullmatch(r"[A-Za-z.]{1,60}", text) else "without a reason"
