"""httpx without its command line, which brings click and rich into every process where click is installed."""

import sys

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # it goes on without, as where click is missing

import httpx  # noqa: E402 - once that is said

__all__ = ["httpx"]
