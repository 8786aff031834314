"""Which arguments of `vllm serve` are taken, and what they mean."""

import pytest

from bootstrap.arguments import asks_for_vectors, refused_args


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        pytest.param(["--enable-prefix-caching"], [], id="harmless"),
        pytest.param(["--dtype", "half", "--max-num-seqs=4", "-O1", "-cc.mode=none"], [], id="harmless-with-values"),
        pytest.param(["--reasoning-parser", "qwen3"], [], id="begins-like-a-refused-one"),
        pytest.param(["--tool-call-parser", "hermes", "--enable-auto-tool-choice"], [], id="tools"),
        pytest.param(["--config-format", "auto"], [], id="longer-than-a-refused-one"),
        pytest.param(["--seed", "-1"], [], id="negative-number"),
        pytest.param(["--load-format", "auto"], [], id="local-load-format"),
        pytest.param(["--load-format", "runai_streamer"], ["--load-format runai_streamer"], id="load-from-network"),
        pytest.param(["--load_format=tensorizer"], ["--load-format tensorizer"], id="load-from-network-spelled-other"),
        pytest.param(["--trust-remote-code"], ["--trust-remote-code"], id="remote-code"),
        pytest.param(["--trust_remote_code"], ["--trust_remote_code"], id="underscores"),
        pytest.param(["--trust-rem"], ["--trust-rem"], id="abbreviated"),
        pytest.param(["--host", "0.0.0.0", "--port=80"], ["--host", "--port"], id="every-one-is-named"),
        pytest.param(["--uds=x"], ["--uds"], id="socket"),
        pytest.param(["--api-key", "k"], ["--api-key"], id="api-key"),
        pytest.param(["--ssl-certfile", "x"], ["--ssl-certfile"], id="tls"),
        pytest.param(["--served-model-name", "x"], ["--served-model-name"], id="name"),
        pytest.param(["--model", "x"], ["--model"], id="model"),
        pytest.param(["--max-model-len", "8"], ["--max-model-len"], id="context"),
        pytest.param(["-tp", "2"], ["-tp"], id="short"),
        pytest.param(["-tp2"], ["-tp2"], id="short-with-value"),
        pytest.param(["--kv-events-config.publisher=zmq"], ["--kv-events-config.publisher"], id="json-by-dots"),
        pytest.param(["--allowed-media-domains", "a.b"], ["--allowed-media-domains"], id="media"),
        pytest.param(["--disable-log-stats"], ["--disable-log-stats"], id="no-metrics"),
    ],
)
def test_arguments_that_undo_the_machine_are_refused_with_the_reason(args: list[str], flags: list[str]) -> None:
    problems = refused_args(args)
    assert [problem.partition(" is not taken: ")[0] for problem in problems] == flags
    assert all(problem.partition(" is not taken: ")[2] for problem in problems)


@pytest.mark.parametrize(
    ("args", "embeds"),
    [
        pytest.param([], False, id="nothing-said"),
        pytest.param(["--enable-prefix-caching"], False, id="something-else"),
        pytest.param(["--runner", "pooling"], True, id="pooling"),
        pytest.param(["--runner=pooling"], True, id="with-an-equals-sign"),
        pytest.param(["--run", "pooling"], True, id="shortened"),
        pytest.param(["--runner", "generate"], False, id="generate"),
        pytest.param(["--runner", "auto"], False, id="left-to-vllm"),
        pytest.param(["--runner", "pooling", "--runner", "generate"], False, id="the-last-one-counts"),
        pytest.param(["--convert", "embed"], True, id="converted"),
        pytest.param(["--runner", "auto", "--convert=embed"], True, id="converted-with-runner-auto"),
        pytest.param(["--runner", "generate", "--convert", "embed"], False, id="the-runner-counts-first"),
        pytest.param(["--convert", "none"], False, id="not-converted"),
        pytest.param(["--seed", "3", "--runner", "pooling"], True, id="after-another-flag"),
        pytest.param(["--runner"], False, id="no-value-which-is-for-vllm-to-refuse"),
    ],
)
def test_which_arguments_ask_for_vectors(args: list[str], embeds: bool) -> None:
    # Spellings as vLLM 0.32's own parser took them, meaning as its config/model.py has it.
    assert asks_for_vectors(args) is embeds
