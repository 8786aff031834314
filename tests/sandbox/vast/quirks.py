"""Where sources disagree about the market, or where it surprises; the default is the likelier answer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from tests.sandbox.vast.errors import ApiError


@dataclass
class Quirks:
    """How this market behaves where nobody knows for certain.

    Attributes:
        unknown_by_id: What a read by id says of an instance that is not there: null with status 200 (the official
            client's own tests, most field logs), or 404 `no_such_instance` (OpenAPI show_instance.yaml).
        gone_word: The word of a 404 about an instance: OpenAPI destroy_instance.yaml knows both.
        taken_status: Status of `no_such_ask`; 0 is 410 with cancel_unavail and 404 without (OpenAPI
            create_instance.yaml), field logs show 400 as well.
        refused_create_status: Status of every other refusal of a create; 0 leaves each its own. Old logs show 200 with
            `success: false`.
        bad_key_status: Status of an unknown key: 401 (show_instance.yaml), 404 (search_offers.yaml).
        ports_by_id: What a read by id shows as `ports`: the docker map, as the list does (dstack reads it so), nothing
            (vast-ai/base-image: "does not include Docker-style port mappings"), or numbers (show_instance.yaml).
        unpublished_ports: What a row without a port map has: `ports` null (show_instances.yaml allows it), or no such
            key. The official client's `ssh-url` can do with the second alone.
        untidy_addresses: Whose `public_ipaddr` ends with a line break: some hosts', all, or none. Field reports.
        show_lag_seconds: A read by id knows an instance, and its end, so late. SkyPilot waits 3 s for a new one.
        list_lag_seconds: The same for the lists; after a destroy nobody has measured it.
        takes_text_numbers: Whether a create accepts `"disk": "60"`. Search does; of create nothing is documented.
        kept_label_length: Longer labels are cut to this; 0 keeps all. Not documented, so nothing may depend on it.
        account_keys_reach_running: Whether a new key of the account is added to running instances too
            (create_ssh_key.yaml) or only to later ones (guides/instances/ssh.mdx).
        is_team_key: Whether the key is a team's, which may have no SSH keys (skypilot #9631, #10730).
        search_cap: Most rows of a search, whatever its limit: 64 in the field, not documented.
        too_often: Body of a 429: OpenAPI and docs know all three.
        tells_when_to_retry: Whether a 429 carries Retry-After. Docs say no, client 1.9.1 reads it.
        refusals_count: Whether a call that was refused for coming too often starts the interval anew.
    """

    unknown_by_id: Literal["null", "404"] = "null"
    gone_word: Literal["no_such_instance", "not_found"] = "no_such_instance"
    taken_status: Literal[0, 400, 404, 410] = 0
    refused_create_status: Literal[0, 200, 400] = 0
    bad_key_status: Literal[401, 404] = 401
    ports_by_id: Literal["map", "missing", "numbers"] = "map"
    unpublished_ports: Literal["null", "absent"] = "null"
    untidy_addresses: Literal["some", "all", "none"] = "some"
    show_lag_seconds: float = 0.0
    list_lag_seconds: float = 0.0
    takes_text_numbers: bool = False
    kept_label_length: int = 0
    account_keys_reach_running: bool = False
    is_team_key: bool = False
    search_cap: int = 64
    too_often: Literal["text", "detail", "json"] = "text"
    tells_when_to_retry: bool = False
    refusals_count: bool = False

    def change(self, values: Mapping[str, Any]) -> None:
        """Behave otherwise from now on.

        Raises:
            ApiError: There is no such quirk, or it has no such value.
        """
        for name, value in values.items():
            self._check(name, value)
        for name, value in values.items():
            setattr(self, name, value)

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check(field.name, getattr(self, field.name))

    @classmethod
    def _check(cls, name: str, value: Any) -> None:
        hints = get_type_hints(cls)
        if name not in hints:
            raise ApiError(400, "invalid_args", f"no quirk {name!r}; there are {', '.join(sorted(hints))}")
        choices, is_flag = get_args(hints[name]), hints[name] is bool
        is_amount = isinstance(value, int | float) and value >= 0
        fits = value in choices if choices else is_amount
        if not fits or isinstance(value, bool) is not is_flag:
            raise ApiError(400, "invalid_args", f"{name} cannot be {value!r}")
