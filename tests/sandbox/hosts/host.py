"""One rented host: a folder, an SSH server, published ports, and everything that runs there."""

import asyncio
import json
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import asyncssh

from tests.sandbox.hosts import nvidia_smi
from tests.sandbox.hosts.forward import Forward
from tests.sandbox.hosts.processes import MARK, end_processes
from tests.sandbox.hosts.sshd import Account, SshServer
from tests.sandbox.vast.hosts import SOUND, SSH_PORT, Address, HostSpec, SshTrouble

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Host:
    """A host from its first start until it is destroyed.

    Args:
        folder: Everything of the host lies here.
        mark: Marks its processes.
        tools: Folder with the `vllm` to be found on PATH.
        env: Further environment, for every process of the host.
    """

    def __init__(self, folder: Path, mark: str, tools: Path, env: Mapping[str, str]) -> None:
        self.folder, self.mark = folder, mark
        self._tools, self._env = tools, env
        self._home = folder / "root"
        # Seen from outside a host has another address than its programs bind: who confuses the container's port with
        # the published one finds nobody there.
        place = f"{secrets.randbelow(254)}.{secrets.randbelow(253) + 1}"
        self._public_ip, self._inner_ip = f"127.77.{place}", f"127.78.{place}"
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._ports: dict[int, int] = {}
        self._listeners: list[Forward | SshServer] = []
        self._keys: Sequence[str] = ()
        self._spec: HostSpec | None = None
        self._trouble = SOUND

    async def start(self, spec: HostSpec) -> Address:
        """Open the ports and run `onstart`; a second start keeps address, ports, host key and files."""
        self._spec, self._keys, self._trouble = spec, spec.authorized_keys, spec.ssh
        self._lay_out(spec)
        await self.plug()
        await self._run_onstart(spec)
        return Address(self._public_ip, dict(self._ports))

    def authorize(self, keys: Sequence[str]) -> None:
        self._keys = keys

    async def plug(self) -> None:
        """Open the ports that the host publishes, each where it was before."""
        assert self._spec is not None
        for port in self._spec.tcp_ports:
            self._ports[port] = await self._publish(port, self._spec)

    async def unplug(self) -> None:
        """Close them, and cut what is open."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()

    async def treat_ssh(self, trouble: SshTrouble) -> None:
        """Break or repair the SSH server; what is open is cut if nothing is to listen any more."""
        self._trouble = trouble
        is_on = [listener for listener in self._listeners if isinstance(listener, SshServer)]
        for server in is_on:
            server.treat(trouble)
            if trouble.is_refused:
                await server.close()
                self._listeners.remove(server)
        is_wanted = self._spec is not None and SSH_PORT in self._spec.tcp_ports and not trouble.is_refused
        if is_wanted and not is_on and self._spec is not None:
            self._ports[SSH_PORT] = await self._publish(SSH_PORT, self._spec)

    def read_log(self) -> str:
        """Return what `onstart` wrote, and then what the SSH server did."""
        logs = (self.folder / "onstart.log", self.folder / "sshd.log")
        return "".join(path.read_text(errors="replace") for path in logs if path.exists())

    async def execute(self, words: Sequence[str]) -> str:
        """Run a program at home; return its output, errors included."""
        child = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", MARK: self.mark},
            cwd=self._home,
        )
        output, _ = await child.communicate()
        return output.decode(errors="replace")

    async def stop(self) -> None:
        """Close the ports and end every process."""
        await self.unplug()
        await end_processes(self.mark)

    async def destroy(self) -> None:
        await self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lay_out(self, spec: HostSpec) -> None:
        for folder in (self._home, self.folder / "w", self.folder / "tmp", self.folder / "bin"):
            folder.mkdir(parents=True, exist_ok=True)
        gpus = self.folder / "bin" / "gpus.json"
        gpus.write_text(json.dumps([asdict(gpu) for gpu in spec.gpus]))
        tool = self.folder / "bin" / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{nvidia_smi.__file__}" "{gpus}" "$@"\n')
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    async def _publish(self, port: int, spec: HostSpec) -> int:
        before = self._ports.get(port, 0)
        listener: Forward | SshServer
        if port == SSH_PORT and self._trouble.is_refused:
            return before or _free_port(self._public_ip)
        if port == SSH_PORT:
            env = self._environment(spec)
            account = Account(self._host_key, lambda: self._keys, env, self._home, self.folder)
            listener = await SshServer.open(self._public_ip, before, account, self._trouble)
        else:
            listener = await Forward.open(self._public_ip, before, self._inner_ip, port)
        self._listeners.append(listener)
        return listener.port

    def _environment(self, spec: HostSpec) -> dict[str, str]:
        """What every process of the host sees; nothing of this process's own environment."""
        python = Path(sys.base_prefix) / "bin"
        return {
            "HOME": str(self._home),
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": f"{self.folder / 'bin'}:{self._tools}:{SYSTEM_PATH}:{python}",
            "GPU_WORKSPACE": str(self.folder / "w"),
            "GPU_BIND_ADDRESS": self._inner_ip,
            "VAST_URL": spec.market_url,
            **self._env,
            MARK: self.mark,
        }

    async def _run_onstart(self, spec: HostSpec) -> None:
        """Run the script as the market's entrypoint does: with the variables that SSH sessions do not see."""
        if not spec.onstart:
            return
        script = self._home / "onstart.sh"
        script.write_text(spec.onstart)
        seen = {
            "CONTAINER_ID": str(spec.instance_id),
            "CONTAINER_API_KEY": spec.api_key,
            "VAST_CONTAINERLABEL": f"C.{spec.instance_id}",
            "PUBLIC_IPADDR": self._public_ip,
            "GPU_COUNT": str(len(spec.gpus)),
            "SSH_PUBLIC_KEY": "\n".join(spec.authorized_keys),
            **{f"VAST_TCP_PORT_{port}": str(public) for port, public in self._ports.items()},
        }
        env = {**self._environment(spec), **seen, **spec.env, MARK: self.mark}
        with (self.folder / "onstart.log").open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                "bash",
                str(script),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                cwd=self._home,
                start_new_session=True,
            )
        self._onstart = asyncio.create_task(child.wait())


def _free_port(ip: str) -> int:
    """Return a port on which nothing listens."""
    with socket.create_server((ip, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
