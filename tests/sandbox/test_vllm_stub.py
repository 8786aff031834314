"""The stub engine against what the real one was seen to do."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.sandbox.models import write_tiny_llama

STUB = Path(__file__).parent / "vllm_stub" / "vllm"
REAL_METRICS = Path(__file__).parent / "data" / "vllm-0.32-metrics.txt"
SLOW = {"prompt": "go on", "max_tokens": 2000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", positions=4096)


@contextmanager
def serving(model: Path, workdir: Path, *words: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    environment = {**os.environ, "STUB_START_SECONDS": "0", "STUB_TOKENS_PER_SECOND": "200"}
    command = [str(STUB), "serve", str(model), "--uds", "v.sock", "--served-model-name", "tiny", *words]
    with subprocess.Popen(command, cwd=workdir, env=environment, stdout=subprocess.DEVNULL) as process:
        transport = httpx.HTTPTransport(uds=str(workdir / "v.sock"))
        with httpx.Client(transport=transport, base_url="http://vllm", timeout=10) as client:
            try:
                wait_for(lambda: listens(workdir / "v.sock"))
                yield client, process
            finally:
                process.kill()


def listens(path: Path) -> bool:
    # Not httpx: it leaks the socket of a refused connection, and a warning is an error here.
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(model, tmp_path_factory.mktemp("run")) as (client, _):
        yield client


def samples(text: str) -> dict[str, float]:
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line and not line.startswith("#")
    }


def metrics(client: httpx.Client) -> dict[str, float]:
    return samples(client.get("/metrics").text)


def engine(name: str, **labels: str) -> str:
    every = sorted({"engine": "0", "model_name": "tiny", **labels}.items())
    return f"vllm:{name}{{" + ",".join(f'{key}="{value}"' for key, value in every) + "}"


def test_every_engine_metric_of_the_real_one_is_there_with_its_type_and_labels(client: httpx.Client) -> None:
    shown, real = client.get("/metrics").text, REAL_METRICS.read_text()
    types = {line for line in real.splitlines() if line.startswith("# TYPE")}
    assert types <= set(shown.splitlines())
    info = "vllm:cache_config_info"  # its labels describe one machine's cache
    wanted = {series for series in samples(real) if not series.startswith(info)}
    assert wanted <= set(samples(shown))
    assert {series for series in samples(shown) if series.startswith("vllm:")} - wanted == {
        series for series in samples(shown) if series.startswith(info) or "_created" in series
    }


def test_the_same_prompt_brings_the_same_words(client: httpx.Client) -> None:
    ask = {"model": "tiny", "prompt": "hello world", "max_tokens": 8}
    first, second = (client.post("/v1/completions", json=ask).json() for _ in range(2))
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert first["choices"][0]["finish_reason"] == "length"
    assert first["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    other = client.post("/v1/completions", json={**ask, "prompt": "hello moon"}).json()
    assert other["choices"][0]["text"] != first["choices"][0]["text"]


def test_a_stream_says_what_the_whole_answer_says_and_tells_the_usage(client: httpx.Client) -> None:
    ask = {"messages": [{"role": "user", "content": "hi"}]}
    whole = client.post("/v1/chat/completions", json=ask).json()
    streamed = client.post(
        "/v1/chat/completions", json={**ask, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(event["choices"][0]["delta"]["content"] for event in events if event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-1]["usage"] == whole["usage"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        pytest.param("POST", "/v1/completions", {"model": "nope", "prompt": "x"}, 404, id="wrong-model"),
        pytest.param("POST", "/v1/completions", {"model": "tiny"}, 400, id="no-prompt"),
        pytest.param("POST", "/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, id="no-tokens"),
        pytest.param("POST", "/v1/completions", {"prompt": "x", "max_tokens": 5000}, 400, id="too-many-tokens"),
        pytest.param("POST", "/v1/completions", {"prompt": "x " * 5000}, 400, id="too-long-prompt"),
        pytest.param("POST", "/v1/completions", ["x"], 400, id="not-an-object"),
        pytest.param("POST", "/v1/embeddings", {"input": "x"}, 404, id="a-generating-model-does-not-embed"),
        pytest.param("POST", "/v1/models", {}, 405, id="wrong-method"),
        pytest.param("GET", "/v1/nothing", None, 404, id="unknown-route"),
        pytest.param("POST", "/invocations", {"prompt": "x"}, 200, id="open-invocations"),
        pytest.param("POST", "/tokenize", {"prompt": "x"}, 200, id="open-tokenize"),
        pytest.param("GET", "/docs", None, 200, id="open-docs"),
        pytest.param("GET", "/openapi.json", None, 200, id="open-openapi"),
        pytest.param("GET", "/version", None, 200, id="version"),
        pytest.param("GET", "/ping", None, 200, id="ping"),
        pytest.param("GET", "/load", None, 200, id="load"),
        pytest.param("GET", "/v1/models", None, 200, id="models"),
    ],
)
def test_answers_as_the_real_one(client: httpx.Client, method: str, path: str, body: object, status: int) -> None:
    before = metrics(client)[engine("prompt_tokens_total")]
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    if status >= 400:
        assert metrics(client)[engine("prompt_tokens_total")] == before, "a refused request reached the engine"


def test_a_finished_request_is_counted_once(client: httpx.Client) -> None:
    before = metrics(client)
    client.post("/v1/completions", json={"prompt": "one two three", "max_tokens": 5})
    after = metrics(client)
    gained = {name: after[name] - before[name] for name in before}
    assert gained[engine("prompt_tokens_total")] == 4
    assert gained[engine("generation_tokens_total")] == 5
    assert gained[engine("request_success_total", finished_reason="length")] == 1
    assert gained[engine("e2e_request_latency_seconds_count")] == 1
    assert gained[engine("inter_token_latency_seconds_count")] == 4


def test_a_client_that_hangs_up_leaves_tokens_but_no_finished_request(client: httpx.Client) -> None:
    before = metrics(client)
    with client.stream("POST", "/v1/completions", json=SLOW) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the stream with its iterator
        next(lines)
        assert metrics(client)[engine("num_requests_running")] == 1
    wait_for(lambda: metrics(client)[engine("num_requests_running")] == 0)
    after = metrics(client)
    assert after[engine("generation_tokens_total")] > before[engine("generation_tokens_total")]
    for reason in ("stop", "length", "abort"):
        name = engine("request_success_total", finished_reason=reason)
        assert after[name] == before[name]


def test_what_does_not_fit_waits_and_a_drain_lets_it_finish_but_takes_nothing_new(model: Path, tmp_path: Path) -> None:
    ask = {"prompt": "x", "max_tokens": 100, "ignore_eos": True}
    with (
        serving(model, tmp_path, "--max-num-seqs", "1", "--shutdown-timeout", "10") as (client, process),
        ThreadPoolExecutor(2) as pool,
    ):
        running = [pool.submit(client.post, "/v1/completions", json=ask) for _ in range(2)]
        wait_for(lambda: metrics(client)[engine("num_requests_waiting")] == 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        refused = client.post("/v1/completions", json=ask)
        assert refused.status_code == 500
        assert "cannot schedule new futures" in refused.json()["error"]["message"]
        assert client.get("/health").status_code == 200
        assert [future.result().json()["usage"]["completion_tokens"] for future in running] == [100, 100]
        assert process.wait(5) == 0


def test_without_a_shutdown_timeout_running_work_is_cut(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as (client, process), client.stream("POST", "/v1/completions", json=SLOW) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the stream with its iterator
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        with pytest.raises(httpx.TransportError):
            list(lines)


def test_a_pooling_model_embeds_and_does_not_generate(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--runner", "pooling") as (client, _):
        answer = client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]}).json()
        assert [row["index"] for row in answer["data"]] == [0, 1]
        assert answer["data"][0]["embedding"] != answer["data"][1]["embedding"]
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 404


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        pytest.param(["--bogus", "3"], 2, "vllm: error: unrecognized arguments: --bogus 3", id="unknown-flag"),
        pytest.param(["--max-num-seqs", "abc"], 2, "invalid int value: 'abc'", id="not-a-number"),
        pytest.param(["--dtype", "int9"], 2, "invalid choice: 'int9'", id="not-a-choice"),
        pytest.param(["--api-key", "k"], 2, "does not play --api-key", id="unplayed-flag-is-not-swallowed"),
        pytest.param(["--max-model-len", "8192"], 1, "greater than the derived max_model_len", id="too-long"),
        pytest.param(["--max_model_len=8k"], 1, "(8000) is greater", id="underscores-and-units"),
        pytest.param(["--quantization", "nosuch"], 1, "Unknown quantization method: nosuch", id="quantization"),
        pytest.param(["--tensor-parallel-size", "3"], 1, "must be divisible", id="heads-do-not-divide"),
    ],
)
def test_a_wrong_argument_ends_it_at_once(
    model: Path, tmp_path: Path, words: list[str], status: int, message: str
) -> None:
    done = run(tmp_path, "serve", str(model), "--uds", "v.sock", *words)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr


def break_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda folder: (folder / "config.json").unlink(), "config.json", id="no-config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON", id="broken-config"),
        pytest.param(lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer", id="no-tokenizer"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), "model weights", id="no-weights"),
        pytest.param(break_header, "header", id="broken-header"),
        pytest.param(cut_weights, "not fully covered", id="cut-weights"),
    ],
)
def test_a_broken_model_folder_is_turned_down(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    spoil(folder)
    done = run(tmp_path, "serve", str(folder), "--uds", "v.sock")
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_a_socket_left_by_a_former_run_is_an_error_as_with_the_real_one(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as (_, process):
        process.send_signal(signal.SIGTERM)
        process.wait(5)
    done = run(tmp_path, "serve", str(model), "--uds", "v.sock")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


def run(workdir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(STUB), *words], cwd=workdir, capture_output=True, text=True, timeout=20, check=False)


def wait_for(claim: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
