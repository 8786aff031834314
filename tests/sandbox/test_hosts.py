"""The rented hosts of the sandbox behave as rented machines do."""

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.sandbox.hosts.backend import SshHosts
from tests.sandbox.hosts.processes import find_processes
from tests.sandbox.vast.hosts import Address, Gpu, HostSpec

pytestmark = pytest.mark.anyio

CLIENT_KEY = asyncssh.generate_private_key("ssh-ed25519")
PUBLIC_KEY = CLIENT_KEY.export_public_key().decode()
SPEC = HostSpec(
    instance_id=4242,
    gpus=(Gpu("NVIDIA GeForce RTX 4090", 24564, 8.9),) * 2,
    onstart="",
    env={},
    tcp_ports=(22, 8443),
    api_key="the-key-of-4242",
    market_url="http://127.0.0.1:1",
    authorized_keys=(PUBLIC_KEY,),
)
ECHO_SERVER = """
import os, socket
listener = socket.create_server((os.environ["GPU_BIND_ADDRESS"], 8443))
while True:
    near, _ = listener.accept()
    while data := near.recv(100):
        near.sendall(data.upper())
    near.close()
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def one_host(root: Path, spec: HostSpec = SPEC) -> AsyncIterator[tuple[SshHosts, Address]]:
    tools = root / "tools"
    tools.mkdir()
    vllm = tools / "vllm"
    vllm.write_text("#!/bin/sh\necho a stub\n")
    vllm.chmod(0o755)
    hosts = SshHosts(root / "hosts", tools, {"SSL_CERT_FILE": "/somewhere/ca.pem"})
    try:
        yield hosts, await hosts.start(spec)
    finally:
        await hosts.close()
    assert not find_processes(f"{root}/hosts/")


def connect(address: Address, key: asyncssh.SSHKey = CLIENT_KEY, user: str = "root") -> Any:
    return asyncssh.connect(
        address.ip, address.ports[22], username=user, client_keys=[key], known_hosts=None, config=[], agent_path=None
    )


async def ask(address: Address, command: str, data: str = "") -> asyncssh.SSHCompletedProcess:
    async with connect(address) as connection:
        done: asyncssh.SSHCompletedProcess = await connection.run(command, input=data, check=False)
        return done


async def eventually(claim: Callable[[], bool | Awaitable[bool]], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        value = claim()
        if value if isinstance(value, bool) else await value:
            return
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.03)


async def test_a_command_gets_input_and_gives_output_and_status(tmp_path: Path) -> None:
    async with one_host(tmp_path) as (_, address):
        done = await ask(address, "cat; echo $((6 * 7)) | tr 4 x >&2; exit 3", "hello")
        assert (done.stdout, done.stderr, done.exit_status) == ("hello", "x2\n", 3)
        killed = await ask(address, "kill -9 $$")
        assert (killed.exit_signal or ("",))[0] == "KILL"


async def test_sessions_see_the_machine_and_not_the_secrets_of_onstart(tmp_path: Path) -> None:
    async with one_host(tmp_path, replace(SPEC, env={"MINE": "1"})) as (_, address):
        seen = dict(line.split("=", 1) for line in str((await ask(address, "env")).stdout).splitlines())
        folder = tmp_path / "hosts" / "4242"
        assert seen["HOME"] == str(folder / "root")
        assert seen["GPU_WORKSPACE"] == str(folder / "w")
        assert seen["GPU_BIND_ADDRESS"].startswith("127.78.")
        assert seen["SSL_CERT_FILE"] == "/somewhere/ca.pem"
        assert not {"CONTAINER_ID", "CONTAINER_API_KEY", "MINE", "VIRTUAL_ENV"} & set(seen)
        assert (await ask(address, "vllm; pwd; python3 -c 'print(1)'; test -d $GPU_WORKSPACE")).exit_status == 0


async def test_nvidia_smi_prints_the_gpus_that_are_there(tmp_path: Path) -> None:
    async with one_host(tmp_path) as (_, address):
        done = await ask(address, "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits")
        assert done.stdout == "NVIDIA GeForce RTX 4090, 24564\n" * 2
        assert (await ask(address, "nvidia-smi --query-gpu=flavour --format=csv")).exit_status == 2


async def test_only_attached_keys_let_root_in(tmp_path: Path) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    async with one_host(tmp_path) as (hosts, address):
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(address, stranger)
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(address, user="ubuntu")
        await hosts.authorize(4242, (stranger.export_public_key().decode(),))
        async with connect(address, stranger):
            pass
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(address)


async def test_files_go_by_sftp_and_scp_under_the_paths_that_commands_see(tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(bytes(range(256)) * 1000)
    async with one_host(tmp_path) as (_, address), connect(address) as connection:
        async with connection.start_sftp_client() as sftp:
            workspace = str((await connection.run("printf %s $GPU_WORKSPACE")).stdout)
            await sftp.put(local, f"{workspace}/a.bin")
            await sftp.put(local, "b.bin")
            assert await sftp.realpath(".") == str(tmp_path / "hosts" / "4242" / "root")
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await sftp.get("/etc/passwd", tmp_path / "stolen")
        await asyncssh.scp(local, (connection, "c.bin"))
        sums = str((await connection.run("cat $GPU_WORKSPACE/a.bin b.bin c.bin | wc -c")).stdout)
        assert int(sums) == 3 * 256_000


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")
async def test_the_openssh_client_is_served_as_well(tmp_path: Path) -> None:
    CLIENT_KEY.write_private_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    options = f"-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path}/known -o LogLevel=ERROR"
    async with one_host(tmp_path) as (_, address):
        port, there = address.ports[22], f"root@{address.ip}"
        script = f"""
            set -e
            cd {tmp_path}
            scp {options} -i key -P {port} key {there}:by-sftp
            scp -O {options} -i key -P {port} {there}:by-sftp back
            cmp key back
            echo 'exit 5' | ssh {options} -i key -p {port} {there} || test $? = 5
        """
        client = await asyncio.create_subprocess_exec("bash", "-c", script)
        assert await asyncio.wait_for(client.wait(), 20) == 0


async def test_the_published_port_leads_to_the_bound_address(tmp_path: Path) -> None:
    spec = replace(SPEC, onstart=f"python3 -c '{ECHO_SERVER}' &")
    async with one_host(tmp_path, spec) as (_, address):
        with pytest.raises(OSError, match=r"\[Errno 111\]"):
            socket.create_connection((address.ip, 8443), timeout=1)

        async def answers() -> bool:
            reader, writer = await asyncio.open_connection(address.ip, address.ports[8443])
            try:
                writer.write(b"abc")
                return await reader.read(3) == b"ABC"
            except ConnectionResetError:  # it does not listen yet
                return False
            finally:
                writer.close()

        await eventually(answers)


async def test_onstart_knows_who_it_is_and_runs_again_after_a_stop(tmp_path: Path) -> None:
    script = 'echo "$CONTAINER_ID $CONTAINER_API_KEY $PUBLIC_IPADDR:$VAST_TCP_PORT_8443 $MINE" >> said'
    async with one_host(tmp_path, replace(SPEC, onstart=script, env={"MINE": "yes"})) as (hosts, address):
        said = tmp_path / "hosts" / "4242" / "root" / "said"
        line = f"4242 the-key-of-4242 {address.ip}:{address.ports[8443]} yes\n"
        await eventually(lambda: said.exists() and said.read_text() == line)
        async with connect(address) as connection:
            key = connection.get_server_host_key()
        async with connect(address) as connection:
            await hosts.stop(4242)
            await asyncio.wait_for(connection.wait_closed(), 2)
        with pytest.raises(OSError, match=r"\[Errno 111\]"):
            await connect(address)
        assert await hosts.start(replace(SPEC, onstart=script, env={"MINE": "yes"})) == address
        await eventually(lambda: said.read_text() == line * 2)
        async with connect(address) as connection:
            assert connection.get_server_host_key() == key


async def test_each_host_has_its_own_address_and_host_key(tmp_path: Path) -> None:
    async with one_host(tmp_path) as (hosts, address):
        other = await hosts.start(replace(SPEC, instance_id=4243))
        assert other.ip != address.ip
        async with connect(address) as one, connect(other) as two:
            assert one.get_server_host_key() != two.get_server_host_key()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("sleep 321 & sleep 322 & disown -a; true", id="left-by-a-shell"),
        pytest.param("setsid -f sleep 321 >/dev/null 2>&1 </dev/null", id="detached-from-the-session"),
        pytest.param(
            "setsid -f sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' >/dev/null 2>&1", id="deaf-to-term"
        ),
        pytest.param("setsid -f sh -c 'env -i sleep 321; true' >/dev/null 2>&1", id="with-a-cleared-environment"),
    ],
)
async def test_destroy_ends_every_process_and_removes_the_folder(tmp_path: Path, command: str) -> None:
    async with one_host(tmp_path, replace(SPEC, onstart=command)) as (hosts, _):
        mark = f"{tmp_path}/hosts/4242"
        await eventually(lambda: bool(find_processes(mark)))
        before = time.monotonic()
        await hosts.destroy(4242)
        assert not find_processes(mark)
        assert not (tmp_path / "hosts" / "4242").exists()
        assert time.monotonic() - before < 3


async def test_a_command_outlives_the_connection_that_started_it(tmp_path: Path) -> None:
    async with one_host(tmp_path) as (_, address):
        connection = await connect(address)
        process = await connection.create_process("echo begun; sleep 0.3; echo lost; echo done > proof")
        await process.stdout.readline()
        connection.abort()
        proof = tmp_path / "hosts" / "4242" / "root" / "proof"
        await eventually(proof.exists)


async def test_a_session_stays_open_as_long_as_a_daemon_holds_its_output(tmp_path: Path) -> None:
    async with one_host(tmp_path) as (_, address):
        before = time.monotonic()
        await ask(address, "sleep 0.4 &")
        assert time.monotonic() - before >= 0.4
        before = time.monotonic()
        await ask(address, "setsid sleep 5 >/dev/null 2>&1 </dev/null &")
        assert time.monotonic() - before < 2


async def test_a_signal_reaches_the_command(tmp_path: Path) -> None:
    async with one_host(tmp_path) as (_, address), connect(address) as connection:
        process = await connection.create_process(
            "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
        )
        await process.stdout.readline()
        process.terminate()
        done = await process.wait()
        assert (done.stdout, done.exit_status) == ("caught\n", 7)


async def test_what_a_killed_run_left_behind_ends_at_the_next_start(tmp_path: Path) -> None:
    left = await asyncio.create_subprocess_exec("sleep", "321", env={"SANDBOX_HOST": f"{tmp_path}/hosts/17"})
    async with one_host(tmp_path):
        assert await asyncio.wait_for(left.wait(), 3) < 0
