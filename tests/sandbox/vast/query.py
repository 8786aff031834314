"""The market's query language: filters, order and limit over rows."""

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tests.sandbox.vast.errors import ApiError

Row = Mapping[str, Any]
Column = Callable[[Row], Any]

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
OPERATORS = frozenset({"eq", "neq", "in", "notin", *_COMPARE})

# Source: vastai 1.9.1, data/query.py, "Column aliases".
_ALIASES = {
    "reliability2": "reliability",
    "dphtotal": "dph_total",
    "gpu_totalram": "gpu_total_ram",
    "ubuntu_version": "os_version",
    "driver_version": "driver_vers",
}
_GIGABYTES = {"gpu_ram_GB": "gpu_ram", "cpu_ram_GB": "cpu_ram", "gpu_totalram_GB": "gpu_total_ram"}

OFFER_COLUMNS: Mapping[str, Column] = {
    "verified": lambda row: row["verification"] == "verified",
    "datacenter": lambda row: row["hosting_type"] == 1,
    "geolocation": lambda row: row["geolocation"][-2:],
    "external": lambda row: bool(row["external"]),
    # An offer id is filtered by `ask_contract_id`; a filter on `id` was seen to match nothing.
    "id": lambda row: None,
}
"""What a search filters by although rows do not carry it so. Source: vastai 1.9.1, data/query.py."""


def choose_rows(
    rows: Sequence[Row], filters: Mapping[str, Any], virtual: Mapping[str, Column] = MappingProxyType({})
) -> list[Row]:
    """Keep the rows that satisfy every filter.

    Args:
        rows: Rows with the same columns.
        filters: column -> operator -> value; numbers may be strings, as the official client sends them.
        virtual: Columns that are made for the question, by name.

    Raises:
        ApiError: A column or operator does not exist.
    """
    kept = list(rows)
    for column, conditions in filters.items():
        if not isinstance(conditions, Mapping):
            raise ApiError(400, "invalid_request", f"Error in query parameters: {column} needs an operator")
        for name, value in conditions.items():
            if name not in OPERATORS:
                raise ApiError(400, "invalid_request", f"Error in query parameters: {name} is not an operator")
            kept = [row for row in kept if _matches(_cell(row, column, virtual), name, _scaled(column, value))]
    return kept


def sort_rows(rows: Sequence[Row], order: Sequence[tuple[str, str]]) -> list[Row]:
    """Sort by several columns, the first one weighing most; rows without a value come last."""
    result = list(rows)
    for column, direction in reversed(order):
        name = _ALIASES.get(column, column)
        have = [row for row in result if row.get(name) is not None]
        lack = [row for row in result if row.get(name) is None]
        result = sorted(have, key=lambda row: row[name], reverse=direction == "desc") + lack
    return result


def parse_order_by(value: Any) -> list[tuple[str, str]]:
    """Read columns with their directions, as `[["dph_total", "asc"]]`.

    Raises:
        ApiError: They are something else.
    """
    order = []
    for pair in value if isinstance(value, list) else [value]:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and pair[1] in ("asc", "desc")):
            raise ApiError(400, "invalid_request", f"Error in query parameters: {pair!r} is no order")
        order.append((pair[0], pair[1]))
    return order


def parse_number(value: Any) -> float:
    """Read a number, which may come as a string.

    Raises:
        ApiError: It is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ApiError(400, "invalid_request", f"Error in query parameters: {value!r} is not a number") from None


def _cell(row: Row, column: str, virtual: Mapping[str, Column]) -> Any:
    if column in virtual:
        return virtual[column](row)
    name = _GIGABYTES.get(column) or _ALIASES.get(column, column)
    if name not in row:
        raise ApiError(400, "invalid_request", f"Error in query parameters: {column} is not a valid search key")
    return row[name]


def _scaled(column: str, value: Any) -> Any:
    return parse_number(value) * 1000 if column in _GIGABYTES else value


def _matches(cell: Any, name: str, value: Any) -> bool:
    if name in ("in", "notin"):
        if not isinstance(value, list):
            raise ApiError(400, "invalid_request", f"Error in query parameters: {name} needs a list")
        return any(_is_equal(cell, item) for item in value) == (name == "in")
    if name in ("eq", "neq"):
        return _is_equal(cell, value) == (name == "eq")
    if cell is None or value is None:
        return False
    if isinstance(cell, str):
        return _COMPARE[name](cell, str(value))
    return _COMPARE[name](float(cell), parse_number(value))


def _is_equal(cell: Any, value: Any) -> bool:
    if cell is None or value is None:
        return cell is value
    if isinstance(cell, bool):
        return cell == (value.lower() == "true" if isinstance(value, str) else bool(value))
    if isinstance(cell, int | float):
        return float(cell) == parse_number(value)
    return bool(cell == value)
