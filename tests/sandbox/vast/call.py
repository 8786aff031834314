"""One request to the market, and the table entry that answers it."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.sandbox.vast.errors import ApiError

ALIASES: Mapping[str, str] = {"attach": "attach_key", "label": "change", "state": "change"}
"""Further names by which a fault can be aimed, and the route they belong to."""

Json = TypeVar("Json", dict[str, Any], list[Any], int)


@dataclass(frozen=True)
class Call:
    """A request as handlers see it.

    Attributes:
        numbers: The ids in the path, in order.
        query: The parameters of the URL.
        body: The JSON body, None if there is none.
        owner: `account`, `instance` (with its own key) or `nobody`.
        method: The HTTP method.
    """

    numbers: tuple[int, ...]
    query: Mapping[str, str]
    body: Any
    owner: str
    method: str

    def fields(self) -> dict[str, Any]:
        """The body as an object.

        Raises:
            ApiError: It is something else.
        """
        if not isinstance(self.body or {}, dict):
            raise ApiError(400, "invalid_request", "Invalid json body")
        return dict(self.body or {})

    def parameter(self, name: str, default: Json) -> Json:
        """A parameter of the URL that is itself JSON, of the same type as the default.

        Raises:
            ApiError: It is not.
        """
        try:
            value = json.loads(self.query[name]) if name in self.query else default
        except ValueError:
            value = None
        if not isinstance(value, type(default)):
            raise ApiError(400, "invalid_request", f"Error in query parameters: {name}")
        return value


@dataclass(frozen=True)
class Route:
    """Which handler answers what.

    Attributes:
        name: The call's name; faults are aimed by it.
        method: HTTP method.
        path: Pattern of the path, without the slash at its end; `N` stands for an id.
        handler: Makes the reply: text, or what is then rendered as JSON.
        who: `anyone`, `account`, or `instance` where an instance's own key will do for its own id.
    """

    name: str
    method: str
    path: str
    handler: Callable[[Any, Call], Awaitable[Any]]
    who: str = "account"

    def names(self, body: Any) -> frozenset[str]:
        """Return the names by which a fault is aimed at this call; a change is a new `label` or a new `state`."""
        if self.name == "change":
            is_label = isinstance(body, dict) and "label" in body
            return frozenset({"change", "label" if is_label else "state"})
        return frozenset({self.name, *(alias for alias, name in ALIASES.items() if name == self.name)})

    def match(self, method: str, path: str) -> tuple[int, ...] | None:
        """Return the ids in the path if this route answers it.

        Args:
            method: HTTP method of the request.
            path: Its path; with or without a slash at the end, as the market takes both.
        """
        pattern = self.path.replace("N", r"(\d+)")
        found = re.fullmatch(pattern, path.removesuffix("/"))
        return tuple(map(int, found.groups())) if found and method == self.method else None
