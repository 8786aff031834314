"""Rented hosts for the emulator's market: real SSH, real processes, real ports, all on loopback."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.sandbox.hosts.host import Host
from tests.sandbox.hosts.processes import end_processes
from tests.sandbox.vast.hosts import Address, HostSpec, SshTrouble


class SshHosts:
    """Runs each host in a folder under `root`.

    What an earlier run left behind there, because it was killed, ends when the first host starts.

    Args:
        root: Where the folders go; made if missing.
        tools: Folder with the `vllm` that hosts find on PATH.
        env: Environment that every process of every host gets, such as SSL_CERT_FILE.
    """

    def __init__(self, root: Path, tools: Path, env: Mapping[str, str] | None = None) -> None:
        self._root, self._tools, self._env = root.resolve(), tools.resolve(), dict(env or {})
        self._hosts: dict[int, Host] = {}
        self._is_swept = False

    async def start(self, spec: HostSpec) -> Address:
        if not self._is_swept:
            self._is_swept = True
            await self._end_everything()
        host = self._hosts.get(spec.instance_id)
        if host is None:
            mark = f"{self._root}/{spec.instance_id}"
            host = Host(self._root / str(spec.instance_id), mark, self._tools, self._env)
            self._hosts[spec.instance_id] = host
        return await host.start(spec)

    async def authorize(self, instance_id: int, keys: Sequence[str]) -> None:
        if instance_id in self._hosts:
            self._hosts[instance_id].authorize(keys)

    async def treat_ssh(self, instance_id: int, trouble: SshTrouble) -> None:
        if instance_id in self._hosts:
            await self._hosts[instance_id].treat_ssh(trouble)

    async def unplug(self, instance_id: int) -> None:
        if instance_id in self._hosts:
            await self._hosts[instance_id].unplug()

    async def plug(self, instance_id: int) -> None:
        if instance_id in self._hosts:
            await self._hosts[instance_id].plug()

    async def read_log(self, instance_id: int) -> str:
        return self._hosts[instance_id].read_log() if instance_id in self._hosts else ""

    async def execute(self, instance_id: int, words: Sequence[str]) -> str:
        return await self._hosts[instance_id].execute(words) if instance_id in self._hosts else ""

    async def stop(self, instance_id: int) -> None:
        if instance_id in self._hosts:
            await self._hosts[instance_id].stop()

    async def destroy(self, instance_id: int) -> None:
        if instance_id in self._hosts:
            await self._hosts.pop(instance_id).destroy()

    async def close(self) -> None:
        """End every process; the folders stay, so that one can look at what happened."""
        await asyncio.gather(*(host.stop() for host in self._hosts.values()))
        await self._end_everything()

    async def _end_everything(self) -> None:
        await end_processes(f"{self._root}/")
