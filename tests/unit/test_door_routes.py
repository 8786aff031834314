"""The front door has a word about every route of the pinned vLLM: it is let through, or it is shut for a reason."""

import json
from pathlib import Path

import pytest

from bootstrap.door import READ, WRITE, render_door
from bootstrap.steps import Identity

RECORDED = Path(__file__).parents[1] / "sandbox/data/vllm-0.32-routes.json"
"""By tests/e2e/vllm_routes.py, which tests/e2e/test_vllm_routes.py holds it to."""

OPEN = {*(f"GET {path}" for path in READ), *(f"POST {path}" for path in WRITE)}

_DUPLICATE = "does what an open one does, past what counts its callers"
_PAGES = "describes the server to strangers"
_INSIDE = "tells of the machine: only the agent and the platform may ask"
_DRIVING = "changes what the machine serves, or stops it"
_SCALING = "one machine serves a model; it has no parts elsewhere"
_TOKENS = "reads tokens or templates, which neither OpenAI's nor Anthropic's clients ask for; costs the processor"
_OTHER_TASKS = "no model that is served here does this"
_STORED = "answers are kept nowhere: there is none to come back to"

SHUT = {
    **dict.fromkeys(["POST /invocations", "GET /ping", "POST /ping", "POST /inference/v1/generate"], _DUPLICATE),
    **dict.fromkeys(["POST /generative_scoring", "POST /v1/chat/completions/batch", "POST /v2/embed"], _DUPLICATE),
    **dict.fromkeys(
        [f"{m} {p}" for m in ("GET", "HEAD") for p in ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")],
        _PAGES,
    ),
    "GET /version": _PAGES,
    **dict.fromkeys(["GET /metrics", "ANY /metrics", "GET /load", "GET /kv_event_sources"], _INSIDE),
    **dict.fromkeys(["GET /server_info", "GET /is_paused", "GET /is_sleeping", "GET /weight_info"], _INSIDE),
    **dict.fromkeys(["GET /get_world_size", "GET /fault_tolerance/status", "POST /weight_checker"], _INSIDE),
    **dict.fromkeys(
        [
            *("POST /abort_requests", "POST /inference/v1/abort_requests", "POST /fault_tolerance/apply"),
            *("POST /adapters", "DELETE /adapters/{adapter_name}"),
            *("POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"),
            *("POST /collective_rpc", "POST /pause", "POST /resume", "POST /sleep", "POST /wake_up"),
            *("POST /reset_encoder_cache", "POST /reset_mm_cache", "POST /reset_prefix_cache"),
            *("POST /release_kv_cache_memory", "POST /start_profile", "POST /stop_profile"),
            *("POST /init_weight_transfer_engine", "POST /shutdown_weight_transfer_engine"),
            *("POST /start_weight_update", "POST /start_draft_weight_update", "POST /finish_weight_update"),
            *("POST /update_weights", "POST /update_weight_version"),
        ],
        _DRIVING,
    ),
    **dict.fromkeys(["POST /scale_elastic_ep", "POST /is_scaling_elastic_ep"], _SCALING),
    **dict.fromkeys(["POST /tokenize", "POST /detokenize"], _TOKENS),
    **dict.fromkeys(
        [
            *("POST /v1/chat/completions/render", "POST /v1/chat/completions/derender"),
            *("POST /v1/completions/render", "POST /v1/completions/derender"),
            *("POST /v1/messages/render", "POST /v1/responses/render"),
        ],
        _TOKENS,
    ),
    **dict.fromkeys(["POST /classify", "POST /pooling", "POST /rerank", "POST /score"], _OTHER_TASKS),
    **dict.fromkeys(["POST /v1/rerank", "POST /v1/score", "POST /v2/rerank", "POST /v1/systemone"], _OTHER_TASKS),
    **dict.fromkeys(["POST /v1/audio/transcriptions", "POST /v1/audio/translations"], _OTHER_TASKS),
    "WEBSOCKET /v1/realtime": _OTHER_TASKS,
    **dict.fromkeys(["GET /v1/responses/{response_id}", "POST /v1/responses/{response_id}/cancel"], _STORED),
}


def recorded() -> set[str]:
    return {line["route"] for line in json.loads(RECORDED.read_text())}


def test_every_route_of_the_pinned_vllm_is_open_or_shut_and_no_other_is_named() -> None:
    assert OPEN | SHUT.keys() == recorded()
    assert not OPEN & SHUT.keys()


def test_a_model_that_writes_and_one_that_embeds_have_all_between_them_that_is_open() -> None:
    usual = {line["route"] for line in json.loads(RECORDED.read_text()) if {"text", "vectors"} & set(line["in"])}
    assert usual >= OPEN


@pytest.mark.parametrize(
    ("tokens", "scrape"),
    [
        pytest.param({"a": "token*"}, "scrape", id="pattern"),
        pytest.param({"a": "{env.PATH}"}, "scrape", id="placeholder"),
        pytest.param({"a": ""}, "scrape", id="empty"),
        pytest.param({"a": "tokén"}, "scrape", id="no-ascii"),
        pytest.param({"a": "to ken"}, "scrape", id="blank"),
        pytest.param({"a": "token"}, "*", id="scrape-token"),
        pytest.param({"{env.PATH}": "token"}, "scrape", id="name-as-placeholder"),
        pytest.param({"": "token"}, "scrape", id="no-name"),
    ],
)
def test_what_caddy_would_read_as_a_pattern_is_no_token_and_no_name(tokens: dict[str, str], scrape: str) -> None:
    with pytest.raises(ValueError, match=r"token holds characters|no client's name"):
        render_door(Identity("1", "certificate", "key", tokens, scrape, "control"))
