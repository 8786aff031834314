"""A model that embeds, on a host with real SSH, supervisor, Caddy and TLS; the model server is the stub."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap import ready
from bootstrap.steps import Engine
from dynamic_providers.errors import BootstrapError
from tests.sandbox.blob_server import BlobServer
from tests.sandbox.bootstrap_world import CA, SOON, TOKEN, World, a_world
from tests.sandbox.models import write_tiny_llama
from tests.sandbox.stage import Stage


def test_a_stack_that_embeds_is_brought_up_and_changed_to_text_and_back(stage: Stage) -> None:
    machine = stage.create(stage.request(vllm_args=("--runner", "pooling")))
    for vllm_args in ((), ("--convert", "embed")):
        machine.update(stage.request(vllm_args=vllm_args))
    machine.delete()
    assert len(stage.rents) == 1


def in_world(tmp_path: Path, test: Callable[[World], Awaitable[None]]) -> None:
    model = write_tiny_llama(tmp_path / "model", positions=4096)

    async def play() -> None:
        with BlobServer() as store:
            async with a_world(tmp_path, store, model) as world:
                await test(world)

    asyncio.run(play())


async def ask(world: World, *, embeds: bool) -> float:
    name = world.engine.served_name
    return await ready.first_token(world.endpoint, CA, TOKEN, name, deadline=SOON, embeds=embeds)


def embedding(engine: Engine) -> Engine:
    return replace(engine, vllm_args=("--runner", "pooling"))


def test_a_model_that_embeds_gets_ready_by_a_vector(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.engine = embedding(world.engine)
        await world.apply()
        assert 0 < await world.first_token() < SOON.total_seconds()
        answer = await world.ask("POST", "/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]})
        assert [row["index"] for row in answer.json()["data"]] == [0, 1]

    in_world(tmp_path, test)


def test_what_a_model_cannot_answer_is_told_with_what_to_change_and_an_edit_changes_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.apply()
        with pytest.raises(BootstrapError, match="HTTP 404 from the front door; this model does not embed"):
            await ask(world, embeds=True)
        assert (await world.apply(embedding(world.engine))).changed
        with pytest.raises(BootstrapError, match=r"vllm_args: \[--runner, pooling\]"):
            await ask(world, embeds=False)
        await ask(world, embeds=True)

    in_world(tmp_path, test)
