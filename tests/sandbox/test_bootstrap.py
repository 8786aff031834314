"""The bootstrap against a host with a real SSH server, supervisor, Caddy and TLS; the model server is the stub."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncssh
import pytest

from bootstrap import closing, run
from bootstrap.ssh import Completed, connect
from bootstrap.steps import Gpu, Grant, ModelFile
from dynamic_providers.errors import BootError, BootstrapError
from dynamic_providers.lease.certificates import make_ca
from tests.sandbox import blob_server
from tests.sandbox.blob_server import BlobServer
from tests.sandbox.bootstrap_world import CONTROL, DEADLINES, NOW, PUBLIC, SCRAPE, SOON, TOKEN, World, a_world, put
from tests.sandbox.models import write_tiny_llama

InWorld = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"), positions=4096)


@pytest.fixture
def in_world(tmp_path: Path, model: Path) -> Iterator[InWorld]:
    """Run an async test against a machine that has just come up."""
    with BlobServer() as store:

        async def play(test: Callable[[World], Awaitable[None]]) -> None:
            async with a_world(tmp_path, store, model) as world:
                await test(world)

        yield lambda test: asyncio.run(play(test))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[tuple[asyncio.Runner, World]]:
    with BlobServer() as store, asyncio.Runner() as runner:
        context = a_world(tmp_path_factory.mktemp("shared"), store, model)
        world = runner.run(context.__aenter__())
        try:
            yield runner, world
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
def in_serving_world(shared: tuple[asyncio.Runner, World]) -> InWorld:
    """Run an async test against a machine that serves, the same for all of them."""
    runner, world = shared
    engine, identity = world.engine, world.identity

    async def play(test: Callable[[World], Awaitable[None]]) -> None:
        world.engine, world.identity = engine, identity
        try:
            await world.apply()
            await test(world)
        finally:
            world.engine, world.identity = engine, identity

    return lambda test: runner.run(play(test))


def test_from_a_bare_machine_to_the_first_token(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        applied = await world.apply()
        assert applied.changed
        assert set(applied.phases) == {"weights", "engine"}
        assert 0 < await world.first_token() < SOON.total_seconds()
        state = await world.control.read(timeout=SOON)
        assert state is not None
        assert (state["settings"], state["instance"]) == (world.engine.settings_hash(), "7")
        async with await connect(world.target(), deadline=SOON) as machine:
            assert await run.read_settings_hash(machine) == world.engine.settings_hash()
            assert await run.inspect_gpus(machine) == (Gpu("NVIDIA GeForce RTX 4090", 24564),)

    in_world(test)


def test_a_second_run_changes_and_restarts_nothing(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        pids, files, requests = await world.pids(), snapshot(world), dict(world.store.requests)
        assert not (await world.apply()).changed
        assert (await world.pids(), snapshot(world), dict(world.store.requests)) == (pids, files, requests)

    in_serving_world(test)


def snapshot(world: World) -> dict[str, tuple[int, int]]:
    """What lies there but logs and caches, with inode and time of the last change."""
    paths = [p for part in ("bin", "blobs", "models", "bundle", "run/started") for p in (world.root / part).rglob("*")]
    stats = {str(path): path.stat() for path in paths if path.is_file() and "__pycache__" not in str(path)}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def test_no_secret_is_an_argument_or_in_a_log_or_readable_by_others(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.first_token()
        await world.ask("GET", "/v1/models", None, headers={"x-api-key": TOKEN})
        await world.ask("GET", f"/v1/models?api_key={TOKEN}")
        await world.sh("for i in $(seq 50); do grep -q /v1/models ../log/access.log && break; sleep 0.1; done")
        secrets = [TOKEN, SCRAPE, CONTROL, world.identity.private_key[60:100], blob_server.SIGNATURE[-16:]]
        logs = {path: path.read_text() for path in (world.root / "log").iterdir()}
        names = {"access.log", "agent.log", "door.log", "engine.log", "fetch.log", "supervisor.log"}
        assert {path.name for path in logs} >= names
        assert "/v1/models" in logs[world.root / "log/access.log"]
        assert not [path for path, text in logs.items() if any(secret in text for secret in secrets)]
        open_to_others = [
            path for path in world.root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077
        ]
        assert not open_to_others

    in_serving_world(test)


def test_nothing_listens_but_the_door_and_nobody_inherits_the_account_key(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        pids = (await world.pids()).values()
        listening = await world.sh("cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" {print $2, $10}'")
        inodes = {line.split()[1]: line.split()[0] for line in listening.splitlines()}
        held = await world.sh(
            f"ls -l {' '.join(f'/proc/{pid}/fd' for pid in pids)} | grep -o 'socket:\\[[0-9]*' || true"
        )
        ports = [inodes[inode] for line in held.splitlines() if (inode := line.partition("[")[2]) in inodes]
        assert [int(port.partition(":")[2], 16) for port in ports] == [8443]
        for pid in pids:
            assert "the-machines-own-key" not in Path(f"/proc/{pid}/environ").read_text()
        assert b"CONTAINER_API_KEY=the-machines-own-key" in (world.root / "container.env").read_bytes()

    in_serving_world(test)


def test_a_container_that_restarts_serves_again_by_itself(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.apply()
        await world.hosts.stop(7)
        with pytest.raises(BootError, match="first token: none from"):
            await world.first_token(deadline=timedelta(seconds=1))
        assert await world.control.read(timeout=SOON) is None
        await world.hosts.start(world.spec)
        await world.first_token()
        assert not (await world.apply()).changed

    in_world(test)


def test_what_a_killed_supervisor_left_running_ends_before_the_next_starts(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.apply()
        before = await world.pids()
        os.kill(int((world.root / "run/supervisor.pid").read_text()), signal.SIGKILL)
        await world.first_token()  # who is served is served on
        world.identity = replace(world.identity, tokens={"default": "another-token"})
        assert (await world.apply()).changed
        after = await world.pids()
        assert after.keys() == before.keys() == {"agent", "door", "engine"}
        assert not set(after.values()) & set(before.values())
        alive = [pid for pid in before.values() if Path(f"/proc/{pid}/cmdline").exists()]
        assert not [pid for pid in alive if Path(f"/proc/{pid}/cmdline").read_bytes()], "two doors at one port"
        await world.first_token("another-token")
        for _ in range(20):  # each connection would be taken by either door
            assert (await world.ask("GET", "/v1/models")).status_code == 401

    in_world(test)


def test_a_bad_argument_fails_at_once_and_the_former_engine_comes_back(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        bad = replace(world.engine, vllm_args=("--no-such-flag",))
        began = time.monotonic()
        with pytest.raises(BootstrapError, match="engine: vLLM ended at its start") as caught:
            await world.apply(bad)
        assert time.monotonic() - began < 10
        assert "unrecognized arguments: --no-such-flag" in caught.value.output
        async with await connect(world.target(), deadline=SOON) as machine:
            assert await run.read_settings_hash(machine) is None
        assert (await world.ask("POST", "/v1/completions", json={})).status_code == 503
        assert (await world.apply()).changed
        await world.first_token()

    in_serving_world(test)


def test_another_release_takes_over_and_shared_blobs_are_not_fetched_again(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        door = (await world.pids())["door"]
        note = put(world.store, b"a note")
        files = (*world.engine.files, ModelFile("docs/README.md", 6, note))
        world.engine = replace(world.engine, release="tiny@sha256:" + "cd" * 32, served_name="tiny-2", files=files)
        before = world.store.requests.copy()
        assert (await world.apply()).changed
        await world.first_token()
        assert dict(world.store.requests - before) == {note: 1}
        assert (await world.pids())["door"] == door
        assert (world.root / "models" / ("cd" * 32) / "docs/README.md").read_bytes() == b"a note"

    in_serving_world(test)


def test_new_clients_are_let_in_and_former_ones_kept_out_without_a_restart_or_a_cut(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        before = await world.pids()
        question = {"model": "tiny", "prompt": "Hello", "max_tokens": 300, "stream": True, "ignore_eos": True}
        stream = asyncio.create_task(world.ask("POST", "/v1/completions", json=question))
        while not (await in_flight(world)):
            await asyncio.sleep(0.05)
        world.identity = replace(world.identity, tokens={"alice": "another-token", "bob": "a-third-token"})
        assert (await world.apply()).changed
        assert await world.pids() == before
        for token in ("another-token", "a-third-token"):
            await world.first_token(token)
        assert (await world.ask("GET", "/v1/models")).status_code == 401
        assert not (await world.apply()).changed
        assert (await stream).text.endswith("data: [DONE]\n\n")

    in_serving_world(test)


async def in_flight(world: World) -> int:
    state = await world.control.read(timeout=SOON)
    assert state is not None
    return int(state["in_flight"])


def test_another_program_at_the_door_is_started_anew(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        before, former = await world.pids(), world.caddy
        content = world.store.blobs[former.sha256] + b"\0"  # another file, and to the kernel the same program
        digest = put(world.store, content)
        world.caddy = Grant(digest, len(content), world.store.url(digest))
        try:
            assert (await world.apply()).changed
            after = await world.pids()
            assert after["door"] != before["door"]
            assert after["engine"] == before["engine"]
            await world.first_token()
        finally:
            world.caddy = former

    in_serving_world(test)


def test_an_apply_that_was_cut_off_goes_on_and_its_download_lived_on(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        largest = max(world.engine.files, key=lambda file: file.size).sha256
        world.store.faults[largest] = [blob_server.cut, blob_server.busy, blob_server.busy]
        first = asyncio.create_task(world.apply())
        while not any(phase == "weights" for phase, _ in world.told):
            await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await world.apply()).changed
        await world.first_token()
        assert world.store.requests[world.caddy.sha256] == 4  # four segments, each fetched once
        assert world.store.bytes_sent[largest] == len(world.store.blobs[largest])

    in_world(test)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(blob_server.spoil, "note.txt.*not what its manifest says", id="corrupt"),
        pytest.param(blob_server.expired, "note.txt: its URL is past its time$", id="expired"),
        pytest.param(
            blob_server.refusal(403, "SignatureDoesNotMatch"), "note.txt.*SignatureDoesNotMatch", id="wrong-url"
        ),
    ],
)
def test_weights_that_cannot_be_had_fail_by_name_and_cut_nobody(
    in_serving_world: InWorld, fault: blob_server.Fault, said: str
) -> None:
    async def test(world: World) -> None:
        former, note = world.engine, add_file(world, said.encode())
        world.store.faults[note] = [fault] * 2
        with pytest.raises(BootstrapError, match=said) as caught:
            await world.apply()
        assert blob_server.SIGNATURE not in str(caught.value)
        world.engine = former
        await world.first_token()

    in_serving_world(test)


def test_urls_that_end_are_signed_anew_while_the_download_runs(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        asked: list[set[str]] = []

        def sign(blobs: Iterable[str]) -> dict[str, str]:
            asked.append(set(blobs))
            return {sha256: world.store.url(sha256) + "&fresh" for sha256 in asked[-1]}

        note = add_file(world, b"past its time")
        world.store.faults[note] = [blob_server.expired]
        assert (await world.apply(fresh_urls=sign)).changed
        await world.first_token()
        assert asked == [{world.caddy.sha256, *(file.sha256 for file in world.engine.files)}]
        assert [query.endswith("&fresh") for query in world.store.queries[note]] == [False, True]
        assert any("past its time: signing anew" in text for _, text in world.told)
        assert not any("fresh" in path.read_text() for path in (world.root / "log").iterdir())

    in_serving_world(test)


def test_a_fresh_url_that_is_past_its_time_too_says_whose_clock_is_wrong(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        note = add_file(world, b"past every time")
        world.store.faults[note] = [blob_server.expired] * 9
        with pytest.raises(BootstrapError, match=r"note.txt.*past its time.*\n.*clock.*disagree"):
            await world.apply(fresh_urls=lambda blobs: {sha256: world.store.url(sha256) for sha256 in blobs})

    in_serving_world(test)


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        pytest.param("adapter/model.bin", b"pickled", r"pickled.*adapter/model.bin .*--allow-pickle", id="pickled"),
        pytest.param("modeling.py", b"code", r"code: modeling.py .*--allow-code", id="code"),
        pytest.param("sub/config.json", b'{"auto_map": {"a": "b"}}', r"sub/config.json would have code", id="auto-map"),
    ],
)
def test_what_runs_code_is_not_served_unless_its_push_allowed_it(
    in_serving_world: InWorld, path: str, content: bytes, said: str
) -> None:
    async def test(world: World) -> None:
        former = world.engine
        world.engine = replace(former, files=(*former.files, ModelFile(path, len(content), put(world.store, content))))
        with pytest.raises(BootstrapError, match=said):
            await world.apply()
        assert (await world.apply(replace(world.engine, allow=("code", "pickle")))).changed
        world.engine = former
        await world.apply()

    in_serving_world(test)


def add_file(world: World, content: bytes) -> str:
    note = put(world.store, content)
    world.engine = replace(world.engine, files=(*world.engine.files, ModelFile("note.txt", len(content), note)))
    return note


def test_a_missed_deadline_is_the_hosts_fault(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        note = add_file(world, b"comes late")
        world.store.faults[note] = [blob_server.busy] * 100
        with pytest.raises(BootError, match=r"weights: missed its deadline: .* MB") as weights:
            await world.apply(deadlines=DEADLINES | {"weights": timedelta(seconds=4)})
        assert weights.value.phase == "weights"
        assert any("MB" in text for phase, text in world.told if phase == "weights")
        world.store.faults.clear()
        world.engine = replace(world.engine, max_model_len=1024)
        with pytest.raises(BootError, match="engine: not up after 0 s") as engine:
            await world.apply(deadlines=DEADLINES | {"engine": timedelta(0)})
        assert engine.value.phase == "engine"

    in_serving_world(test)


def test_a_closed_door_says_so_and_cuts_nobody(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        question = {"model": "tiny", "prompt": "Hello", "max_tokens": 150, "stream": True, "ignore_eos": True}
        stream = asyncio.create_task(world.ask("POST", "/v1/completions", json=question))
        await asyncio.sleep(0.3)
        async with await connect(world.target(), deadline=SOON) as machine:
            await closing.close_door(machine)
            await closing.close_door(machine)
            assert await run.read_settings_hash(machine) is None, "who comes next must see that it does not serve"
        refused = await world.ask("GET", "/v1/models")
        assert refused.status_code == 503
        assert refused.headers["retry-after"].isdigit()
        assert refused.json()["error"]["code"] == "closed"
        assert (await world.ask("GET", "/metrics/vllm", SCRAPE)).status_code == 200
        assert not stream.done()
        assert (await stream).text.endswith("data: [DONE]\n\n")
        assert not (await world.apply()).changed
        await world.first_token()

    in_serving_world(test)


def test_a_bare_machine_has_no_door_to_close_and_no_settings(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        async with await connect(world.target(), deadline=SOON) as machine:
            await closing.close_door(machine)
            assert await run.read_settings_hash(machine) is None

    in_world(test)


def test_tokens_reach_the_client_as_they_are_made(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        question = {"model": "tiny", "prompt": "Hello", "max_tokens": 60, "stream": True, "ignore_eos": True}
        async with world.client() as client:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with client.stream("POST", "/v1/completions", json=question, headers=headers) as answer:
                arrivals = [time.monotonic() async for line in answer.aiter_lines() if line.startswith("data:")]
        assert len(arrivals) > 50
        assert arrivals[-1] - arrivals[0] > 0.3  # 100 tokens a second: held back, they would all come at once

    in_serving_world(test)


def test_a_changed_host_key_is_refused_at_once(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        async with await connect(world.target(), deadline=SOON) as machine:
            seen = machine.host_key
        async with await connect(world.target(seen + " a comment"), deadline=SOON) as machine:
            assert machine.host_key == seen
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        began = time.monotonic()
        with pytest.raises(BootError, match="another host key"):
            await connect(world.target(other), deadline=SOON)
        assert time.monotonic() - began < 5

    in_serving_world(test)


def test_login_waits_for_our_key_and_gives_up_in_time(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.hosts.authorize(7, [])
        with pytest.raises(BootError, match=r"ssh: no login at .* within 1 s"):
            await connect(world.target(), deadline=timedelta(seconds=1))
        waiting = asyncio.create_task(connect(world.target(), deadline=SOON))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await world.hosts.authorize(7, [PUBLIC])
        async with await waiting as machine:
            assert (await machine.run("echo hello; exit 3")).exit_status == 3

    in_world(test)


def test_a_connection_that_broke_is_made_again(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        async with await connect(world.target(), deadline=SOON) as machine:
            machine._connection.abort()
            assert (await machine.run("cat", stdin=b"still here")).stdout == "still here"

    in_serving_world(test)


def test_a_program_that_answers_is_started_once_and_anew_on_a_new_connection(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        program = "read -r line; echo $$ $line; read -r line; echo $$ $line; echo no more >&2; exit 3"
        async with await connect(world.target(), deadline=SOON) as machine:
            first, second = [await machine.ask(program, word) for word in ("one", "two")]
            assert [answer.stdout.split()[1] for answer in (first, second)] == ["one", "two"]
            assert first.stdout.split()[0] == second.stdout.split()[0]
            assert await machine.ask(program, "three") == Completed(3, "", "no more\n")
            machine._connection.abort()
            answers = [await machine.ask("cat", "still here")]
            machine._connection.abort()
            answers.append(await machine.ask("cat", "still here"))
            assert [answer.stdout for answer in answers] == ["still here\n"] * 2

    in_serving_world(test)


def test_the_first_token_is_refused_by_wrong_names_and_from_strangers(in_serving_world: InWorld) -> None:
    async def test(world: World) -> None:
        with pytest.raises(BootstrapError, match="first token: HTTP 401"):
            await world.first_token("a-wrong-token")
        with pytest.raises(BootstrapError, match="first token: HTTP 404"):
            await world.first_token(served_name="another")
        stranger = make_ca("22" * 32, NOW)
        with pytest.raises(BootError, match="another machine answers"):
            await world.first_token(ca=stranger)
        assert await replace(world.control, ca_certificate=stranger).read(timeout=SOON) is None
        assert await replace(world.control, token=TOKEN).read(timeout=SOON) is None

    in_serving_world(test)
