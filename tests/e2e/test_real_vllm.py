"""The whole job with the real engine: vLLM on CPU serves a tiny Llama made on the spot; OpenAI's client asks."""

import json
import math
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e import vllm_cpu
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.vllm_stub.arguments import FLAGS
from tests.sandbox.world import Plan, World

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]

UP_LIMIT_SECONDS = 900  # a first start imports torch in four processes: minutes on two busy cores
MODEL = "llama-3.1-8b-instruct"  # the name that the stack file asks for


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(Plan(tmp_path_factory.mktemp("s"), real_vllm=True, boot_seconds=1)) as world:
        yield world


@pytest.fixture(scope="module")
def outputs(world: World) -> Iterator[dict[str, Any]]:
    world.run("pulumi", "up", "-y", "--skip-preview", "-s", "gpu-on", limit_seconds=UP_LIMIT_SECONDS)
    yield json.loads(world.run("pulumi", "stack", "output", "--json", "--show-secrets", "-s", "gpu-on"))
    world.run("pulumi", "destroy", "-y", "--skip-preview", "-s", "gpu-on")
    assert world.market.instances == []
    assert all(row["to"] for row in world.market.ledger()["instances"])
    world.market.settle()
    assert find_processes(f"{world.plan.folder.resolve()}/hosts/") == set()


@pytest.fixture
def client(outputs: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with client_of(outputs) as client:
        yield client


@contextmanager
def client_of(outputs: dict[str, Any]) -> Iterator[openai.OpenAI]:
    trust = ssl.create_default_context(cadata=outputs["ca_certificate"])
    with (
        openai.DefaultHttpxClient(verify=trust, timeout=60) as http,
        openai.OpenAI(
            base_url=f"{outputs['endpoint']}/v1", api_key=outputs["client_token"], http_client=http, max_retries=0
        ) as client,
    ):
        yield client


def test_the_model_is_listed_under_the_name_to_ask_for(client: openai.OpenAI, outputs: dict[str, Any]) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [outputs["model"]] == [MODEL]
    assert listed[0].model_dump()["max_model_len"] == 8192


def test_it_completes_the_same_way_twice_at_temperature_zero(client: openai.OpenAI) -> None:
    first, second = (
        client.completions.create(model=MODEL, prompt="hello world", max_tokens=8, temperature=0) for _ in range(2)
    )
    assert first.choices[0].text == second.choices[0].text
    assert len(first.choices[0].text.split()) == 8, "the tiny Llama says whole words"
    assert first.system_fingerprint is not None
    assert first.system_fingerprint.startswith("vllm-0.32.0")
    assert "stub" not in first.system_fingerprint


def test_a_chat_answers_whole_and_streamed_alike(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=12, temperature=0
    )
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 12, "it came word by word"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_without_the_token_nobody_is_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").completions.create(model=MODEL, prompt="x", max_tokens=1)


def test_what_vllm_leaves_open_the_door_keeps_shut(client: openai.OpenAI, outputs: dict[str, Any]) -> None:
    for path in ("/invocations", "/tokenize", "/docs", "/metrics"):
        with pytest.raises(openai.NotFoundError):
            client.with_options(base_url=outputs["endpoint"]).post(
                path, body={"model": MODEL, "prompt": "x"}, cast_to=object
            )


def test_a_model_that_embeds_comes_up_and_gives_vectors(world: World) -> None:
    world.run("pulumi", "up", "-y", "--skip-preview", "-s", "gpu-embed", limit_seconds=UP_LIMIT_SECONDS)
    try:
        outputs = json.loads(world.run("pulumi", "stack", "output", "--json", "--show-secrets", "-s", "gpu-embed"))
        with client_of(outputs) as client:
            answer = client.embeddings.create(model=outputs["model"], input=["hello world", "moon", "hello world"])
            first, other, again = (row.embedding for row in answer.data)
            assert math.hypot(*first) == pytest.approx(1, abs=1e-3)
            assert first == pytest.approx(again, abs=1e-3)
            assert first != pytest.approx(other, abs=1e-3)
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model=outputs["model"], prompt="hello", max_tokens=1)
    finally:
        world.run("pulumi", "destroy", "-y", "--skip-preview", "-s", "gpu-embed")


def test_the_stub_knows_exactly_the_flags_of_the_real_one() -> None:
    """Flags that the stub takes and the real one does not would let a broken stack file through every other test."""
    vllm_cpu.build()
    script = Path(__file__).with_name("vllm_flags.py")
    real = subprocess.run([vllm_cpu.python(), script], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(real.stdout) == json.loads(FLAGS.read_text())
