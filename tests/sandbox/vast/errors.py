"""How the market says no."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        error: The market's own word, such as `invalid_args`.
        msg: Its sentence.
        headers: Headers beside the usual ones.
        **extra: Further keys of the body.
    """

    def __init__(
        self, status: int, error: str, msg: str, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        self.status = status
        self.headers: Mapping[str, str] = headers or {}
        self.body: Any = {"success": False, "error": error, "msg": msg, **extra}
        super().__init__(f"{status} {error}: {msg}")


def gateway_error(status: int) -> ApiError:
    """Make what a proxy in front of the market answers for it: a page, or JSON for the market's own 500."""
    if status == 500:
        return ApiError(500, "internal_error", "Something went wrong on our side.")
    titles = {502: "502 Bad Gateway", 503: "503 Service Temporarily Unavailable", 504: "504 Gateway Time-out"}
    refusal = ApiError(status, "gateway", titles[status])
    refusal.body = f"<html><head><title>{titles[status]}</title></head><body>nginx</body></html>"
    return refusal


def too_often(form: str, *, threshold: float | None = None, retry_after: float | None = None) -> ApiError:
    """Make the answer to a call that comes too soon after the last one.

    Source: vast-ai/docs @c624622 api-reference/rate-limits-and-errors.mdx and its OpenAPI files know all three forms.

    Args:
        form: `text`, `detail` or `json`.
        threshold: Seconds between two calls, if the answer is to name them.
        retry_after: Seconds until the call may be made again, if a header is to tell them.
    """
    named = "" if threshold is None else f" endpoint threshold={threshold}"
    text = "API requests too frequent" + named
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    refusal = ApiError(429, "rate_limit_exceeded", text, headers=headers)
    if form == "text":
        refusal.body = text.replace(" endpoint", ": endpoint")
    elif form == "detail":
        refusal.body = {"detail": text}
    return refusal
