"""No secret goes where others can look, over the whole life of two stacks.

One has its keys in the environment, the other in its encrypted config.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynamic_providers.lease import certificates, keys
from tests.e2e.engines import ENGINES
from tests.sandbox.planted import ProcessWatch, Secret, files_in, find, requests_of
from tests.sandbox.world import Plan, World

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

PASSPHRASE = "correct h&rse+battery/st=ple"
COMMAND_SECONDS = 90.0
STACKS = ("by-environment", "by-config")
KEYS = {
    "vast_api_key": "VAST_API_KEY",
    "s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
}
PRESIGNED = Secret.of_text("a presigned URL", "X-Amz-Signature")
VERBOSE = ("--logtostderr", "-v=6")
"""What the real CLI logs for who looks into a problem; from 7 on, inputs too, in the clear. The stand-in has none."""


@dataclass
class Owned:
    """The secrets of one stack.

    Attributes:
        kept: Those that never leave the operator's side.
        lent: Those that lie on its machine, and end with it.
    """

    kept: list[Secret]
    lent: list[Secret]
    instance_id: int


@dataclass
class Life:
    """What was to be seen from the first command to the last."""

    account: list[Secret]
    owned: dict[str, Owned] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)
    machines: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: dict[str, bytes] = field(default_factory=dict)
    processes: dict[str, bytes] = field(default_factory=dict)

    @property
    def secrets(self) -> list[Secret]:
        return [*self.account, *(s for owned in self.owned.values() for s in (*owned.kept, *owned.lent)), PRESIGNED]


class Operator:
    """Types commands and keeps what they print."""

    def __init__(self, world: World, life: Life, verbose: tuple[str, ...]) -> None:
        self.world, self.life = world, life
        self._verbose = verbose

    def make(self, stack: str, **model: Any) -> None:
        """Write a stack file and create the stack."""
        folder = self.world.project / "stacks"
        config = yaml.safe_load((folder / "Pulumi.gpu-on.yaml").read_text())["config"]
        config["gpu-on-demand:model"].update(model)
        path = folder / f"Pulumi.{stack}.yaml"
        former = yaml.safe_load(path.read_text()) if path.exists() else {}
        path.write_text(yaml.safe_dump({**former, "config": {**former.get("config", {}), **config}}))
        if not former:
            self.run("stack", "init", "--no-select", stack)

    def deploy(self, kind: str, stack: str, *, fails: bool = False) -> None:
        """Run a command that reads or changes what there is."""
        confirmed = () if kind == "preview" else ("-y", "--skip-preview")
        self.run(kind, *confirmed, "-s", stack, *self._verbose, stack=stack, fails=fails)

    def run(self, *words: str, stack: str = STACKS[0], text: str = "", fails: bool = False) -> str:
        """Run a command, which prints no secret."""
        done = self.quietly(*words, stack=stack, text=text)
        assert (done.returncode != 0) == fails, done.stdout
        self.life.said[f"what was printed ({len(self.life.said)}, pulumi {' '.join(words)})"] = done.stdout.encode()
        return done.stdout

    def quietly(self, *words: str, stack: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command whose output is nobody's business."""
        env = {**os.environ, **self.world.environment}
        if stack == STACKS[1]:
            env = {name: value for name, value in env.items() if name not in KEYS.values()}
        return subprocess.run(
            ["pulumi", *words],
            env=env,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def secrets_of(self, stack: str) -> Owned:
        """Read a stack's secrets out of its state, and derive what is derived from them."""
        exported = self.quietly("stack", "export", "--show-secrets", "-s", stack, stack=stack).stdout
        outputs: dict[str, Any] = {}
        for resource in json.loads(exported)["deployment"]["resources"]:
            outputs |= {name: _plain(value) for name, value in resource.get("outputs", {}).items()}
        sign, observe, uid = outputs["sign"], outputs["observe"], outputs["uid"]
        instance_id = int(outputs["instance_id"])
        leaf = certificates.sign_leaf(
            sign,
            outputs["ca_certificate"],
            uid=uid,
            instance_id=instance_id,
            address=outputs["endpoint"].split("/")[2].split(":")[0],
            expires_at=datetime.fromisoformat(outputs["expires_at"]),
        )
        kept = [
            Secret.of_text(f"sign of {stack}", sign),
            Secret.of_text(f"observe of {stack}", observe),
            Secret.of_key(f"SSH key of {stack}", certificates.ssh_keypair(sign, uid)[0]),
            Secret(f"CA key of {stack}", certificates._p256(sign, "ca").private_numbers().private_value.to_bytes(32)),
        ]
        lent = [
            *(Secret.of_text(f"token {name} of {stack}", token) for name, token in outputs["tokens"].items()),
            Secret.of_text(f"scrape token of {stack}", keys.scrape_token(observe, uid, instance_id)),
            Secret.of_text(f"control token of {stack}", keys.control_token(observe, uid, instance_id)),
            Secret.of_key(f"TLS key of {stack}", leaf.private_key),
        ]
        return Owned(kept, lent, instance_id)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return json.loads(value["plaintext"]) if "plaintext" in value else {k: _plain(v) for k, v in value.items()}
    return value


@pytest.fixture(scope="module", params=ENGINES)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Return what was seen of two stacks from their creation to their end."""
    folder: Path = tmp_path_factory.mktemp("planted") / "s"
    with World(Plan(folder, stand_in=request.param, boot_seconds=0.5)) as world:
        world.environment["PULUMI_CONFIG_PASSPHRASE"] = PASSPHRASE
        account = [
            Secret.of_text(name, world.environment[name]) for name in ("PULUMI_CONFIG_PASSPHRASE", *KEYS.values())
        ]
        life = Life(account)
        with ProcessWatch(folder / "hosts") as watch:
            live(Operator(world, life, () if request.param else VERBOSE), folder)
        life.requests = requests_of(world.market.requests)
        life.processes = watch.places
    return life


def live(operator: Operator, folder: Path) -> None:
    """Bring both stacks up, look at them, spoil one, mend it, and end both."""
    first, second = STACKS
    operator.make(first)
    operator.make(second)
    for key, name in KEYS.items():
        operator.run("config", "set", "--secret", key, "-s", second, text=operator.world.environment[name])
    for stack in STACKS:
        operator.deploy("preview", stack)
        operator.deploy("up", stack)
        operator.deploy("refresh", stack)
    operator.make(first, vllm_args=["--no-such-flag"])
    operator.deploy("up", first, fails=True)  # prints the last lines of the engine's log
    operator.make(first, vllm_args=["--enable-prefix-caching"])
    operator.deploy("up", first)
    for words in (("stack", "output"), ("stack", "output", "--json"), ("stack", "export"), ("config",), ("stack",)):
        operator.run(*words, "-s", second, stack=second)
    life = operator.life
    life.owned = {stack: operator.secrets_of(stack) for stack in STACKS}
    life.machines = {s: files_in(folder / "hosts" / str(owned.instance_id)) for s, owned in life.owned.items()}
    for when in ("with machines", "at the end"):
        for kept in ("state", "pulumi", "project/stacks"):  # backups and history too
            life.state |= {f"{place} {when}": text for place, text in files_in(folder / kept).items()}
        for stack in STACKS if when == "with machines" else ():
            operator.deploy("destroy", stack)


def test_the_market_is_sent_none(life: Life) -> None:
    assert any("asks" in place for place in life.requests)
    assert find(life.secrets, life.requests) == []


def test_none_is_printed(life: Life) -> None:
    assert b"--no-such-flag" in b"".join(life.said.values())
    assert find(life.secrets, life.said) == []


def test_none_is_kept_unless_encrypted(life: Life) -> None:
    assert sum(b"ciphertext" in text for text in life.state.values()) >= len(STACKS)
    assert find(life.secrets, life.state) == []


def test_none_is_an_argument_of_a_program_or_in_the_environment_of_a_machines(life: Life) -> None:
    seen = b"\n".join(life.processes.values())
    for program in (b"pulumi.dynamic", b"caddy", b"vllm", b"supervisor", b"ssh"):
        assert program in seen, program
    assert find(life.secrets, life.processes) == []


@pytest.mark.parametrize("stack", STACKS)
def test_none_lies_on_a_machine_but_its_own(life: Life, stack: str) -> None:
    (other,) = (owned for name, owned in life.owned.items() if name != stack)
    # A presigned URL names the key that it was made with, and the machine needs that URL.
    account = [secret for secret in life.account if secret.name != "AWS_ACCESS_KEY_ID"]
    foreign = [*account, *life.owned[stack].kept, *other.kept, *other.lent]
    assert find(life.owned[stack].lent, life.machines[stack])  # we do look where they would be
    assert find(foreign, life.machines[stack]) == []


@pytest.mark.parametrize("stack", STACKS)
def test_none_is_in_a_machines_logs(life: Life, stack: str) -> None:
    logs = {place: text for place, text in life.machines[stack].items() if ".log" in place}
    assert len(logs) >= 3
    assert find(life.secrets, logs) == []
