"""Pages of the instance list, by key rather than by offset: rows that come or go do not shift the others."""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from typing import Any

from tests.sandbox.vast.errors import ApiError

Row = Mapping[str, Any]
Token = Mapping[str, Any]


def choose_page(
    rows: Sequence[Row], order: Sequence[tuple[str, str]], limit: int, after: Token | None
) -> tuple[list[Row], str | None]:
    """Choose the rows that follow `after`, and the token of the page behind them.

    Args:
        rows: All rows.
        order: Columns and directions; `id` breaks ties.
        limit: Most rows on the page.
        after: The last row of the page before, None for the first page.
    """
    columns = [*order, *([] if any(name == "id" for name, _ in order) else [("id", "asc")])]

    def compare(one: Row, other: Row) -> int:
        for name, direction in columns:
            left, right = _key(one.get(name)), _key(other.get(name))
            if left != right:
                return (-1 if left < right else 1) * (1 if direction == "asc" else -1)
        return 0

    rest = sorted(rows, key=cmp_to_key(compare))
    if after is not None:
        rest = [row for row in rest if compare(row, after) > 0]
    page = rest[:limit]
    if len(rest) <= limit:
        return page, None
    values = {name: page[-1].get(name) for name, _ in columns}
    return page, base64.b64encode(json.dumps({"values": values}).encode()).decode()


def decode_token(text: str | None) -> Token | None:
    """Read a token.

    Raises:
        ApiError: It is not one of ours.
    """
    if text is None:
        return None
    try:
        token: Token = json.loads(base64.b64decode(text, validate=True))["values"]
    except (ValueError, KeyError, TypeError):
        raise ApiError(400, "invalid_token", "Invalid after_token") from None
    return token


def _key(value: Any) -> tuple[bool, Any]:
    """Make values comparable: null comes first."""
    return (False, 0) if value is None else (True, value)
