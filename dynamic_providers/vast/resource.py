"""Fleet, Lease and VastInstance as Pulumi sees them; the only file of this package that knows Pulumi."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from pulumi import Input, Output, ResourceOptions
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from dynamic_providers.clock import Clock
from dynamic_providers.credentials import open_store, vast_client
from dynamic_providers.errors import LeakError, StackError
from dynamic_providers.lease import keys
from dynamic_providers.lease.label import UID_LENGTH
from dynamic_providers.process import STOP, say
from dynamic_providers.resource import Provider, show, with_secret
from dynamic_providers.stopping import StoppableClock
from dynamic_providers.vast import lifecycle
from dynamic_providers.vast.rent import World, give_back
from dynamic_providers.vast.request import MachineRequest, is_updated_by, replaced_by

_NEVER = DiffResult(changes=False)


class _Provider(Provider):
    """What the three have in common: the market."""

    def _world(self) -> World:
        clock = StoppableClock(STOP)
        return World(vast_client(self._config, clock), say, clock, STOP, show)


class FleetProvider(_Provider):
    """A fleet is made once, changes never, and goes only after its last machine."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Draw the fleet's keys."""
        from dynamic_providers.lease import certificates  # x509 is slow to import, and needed only here

        sign = secrets.token_hex(32)
        authority = certificates.make_ca(sign, Clock().now())
        id_ = certificates.fleet_id(authority)
        outs = {"fleet_id": id_, "ca_certificate": authority, "sign": sign, "observe": keys.observe_key(sign)}
        return CreateResult(id_, {**props, **outs})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Nothing in a fleet can be changed."""
        return _NEVER

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Let the keys go, unless a machine still lives by them."""
        living = [i for i in self._world().market.list() if i.parsed is not None and i.parsed.fleet_id == id_]
        if living:
            ids = ", ".join(str(instance.id) for instance in living)
            raise StackError(f"fleet {id_} still has machines: {ids}. Destroy the stacks that rented them first")


class LeaseProvider(_Provider):
    """The intent, in the state before any money. Its end sweeps whatever was rented for it."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Draw the lease's uid; nobody is called."""
        uid = secrets.token_hex(UID_LENGTH // 2)
        return CreateResult(uid, {**props, "uid": uid})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Another fleet is another lease."""
        replaces = ["fleet_id"] if olds.get("fleet_id") != news.get("fleet_id") else []
        return DiffResult(bool(replaces), replaces, delete_before_replace=True)

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """End every machine of this lease, also one that the engine never heard of."""
        world, leaks = self._world(), []
        for instance in world.market.list():
            if instance.belongs_to(props["fleet_id"], props["uid"]):
                say(f"instance {instance.id} of this lease is in no state: giving it back")
                try:
                    give_back(world, instance)
                except LeakError as error:  # one bad machine must not save the rest
                    leaks.append(str(error))
        if leaks:
            raise StackError("\n".join(leaks))


class VastInstanceProvider(_Provider):
    """A rented machine that serves one model."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Adopt or rent, and bring it up."""
        request = MachineRequest.from_props(props)
        id_, outs = lifecycle.create(self._world(), open_store(request.store, self._config), request)
        say(how_to_ask(request.stack, request.model.served_name, embeds=lifecycle.engine_of(request).embeds))
        return CreateResult(id_, {**props, **outs})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Ask the market and the machine itself."""
        outs = lifecycle.read(self._world(), int(id_), MachineRequest.from_props(props), props)
        return ReadResult(id_, outs) if outs is not None else ReadResult("", {})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare what is asked with what is applied; never with the market."""
        replaces = replaced_by(olds, news)
        wanted = lifecycle.engine_of(MachineRequest.from_props(news)).settings_hash()
        return DiffResult(bool(replaces) or is_updated_by(olds, news, wanted), replaces, delete_before_replace=True)

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Change the running machine in place."""
        was, request = MachineRequest.from_props(olds), MachineRequest.from_props(news)
        store = open_store(request.store, self._config)
        outs = lifecycle.update(self._world(), store, int(id_), was, request, olds.get("ssh_host_key"))
        say(how_to_ask(request.stack, request.model.served_name, embeds=lifecycle.engine_of(request).embeds))
        return UpdateResult({**news, **outs, "attempts": olds["attempts"]})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Give it back."""
        request = MachineRequest.from_props(props)
        lifecycle.delete(self._world(), int(id_), request)


class Fleet(Resource, module="vast", name="Fleet"):
    """A certificate authority, and the keys that everything on its machines derives from.

    Attributes:
        fleet_id: Short hash of the certificate; stands in every label.
        ca_certificate: PEM; what clients verify the endpoint against.
        sign: The operators' key (secret).
        observe: Scrape and control (secret).
    """

    fleet_id: Output[str]
    ca_certificate: Output[str]
    sign: Output[str]
    observe: Output[str]

    def __init__(self, name: str, opts: ResourceOptions | None = None) -> None:
        props = dict.fromkeys(("fleet_id", "ca_certificate", "sign", "observe"))
        super().__init__(FleetProvider(), name, props, with_secret(opts, "sign", "observe"))

    def to_props(self) -> dict[str, Output[str]]:
        """Return what a VastInstance takes of its fleet, by the names of its inputs."""
        return {
            "fleet_id": self.fleet_id,
            "ca_certificate": self.ca_certificate,
            "sign": self.sign,
            "observe": self.observe,
        }


class Lease(Resource, module="vast", name="Lease"):
    """The intent to have one machine.

    Attributes:
        uid: Stands in the label of whatever is rented for it.
    """

    uid: Output[str]

    def __init__(self, name: str, fleet_id: Input[str], opts: ResourceOptions | None = None) -> None:
        super().__init__(LeaseProvider(), name, {"fleet_id": fleet_id, "uid": None}, opts)


class VastInstance(Resource, module="vast", name="Instance"):
    """A machine on vast.ai that serves one model. Its outputs are those of `lifecycle.create`."""

    instance_id: Output[str]
    endpoint: Output[str]
    usd_per_hour: Output[float]
    phases: Output[dict[str, float]]
    attempts: Output[int]
    expires_at: Output[str]
    armed: Output[bool]
    client_token: Output[str]
    tokens: Output[dict[str, str]]

    OUTPUTS = (
        "instance_id",
        "endpoint",
        "usd_per_hour",
        "disk_gb",
        "phases",
        "attempts",
        "expires_at",
        "applied",
        "is_stopped",
        "is_ready",
        "armed",
        "ssh_host_key",
        "client_token",
        "tokens",
    )

    def __init__(self, name: str, props: Mapping[str, Input[Any]], opts: ResourceOptions | None = None) -> None:
        """Declare it.

        Args:
            name: Of the resource.
            props: As `MachineRequest.to_props` gives them.
            opts: Pulumi's.
        """
        opts = with_secret(opts, "sign", "observe", "client_token", "tokens")
        super().__init__(VastInstanceProvider(), name, {**props, **dict.fromkeys(self.OUTPUTS)}, opts)


def how_to_ask(stack: str, model: str, *, embeds: bool = False) -> str:
    """Return the command that asks the stack's endpoint for text, or for a vector; to be pasted into a shell."""
    output = f"$(pulumi stack output -s {stack}"
    text = "The best thing about a GPU on demand is"
    path, question = ("embeddings", {"input": text}) if embeds else ("completions", {"prompt": text, "max_tokens": 32})
    body = json.dumps({"model": model, **question})
    return (
        f"curl -sS --cacert <(pulumi stack output -s {stack} ca_certificate)"
        f' -H "Authorization: Bearer {output} --show-secrets client_token)"'
        f" -H 'Content-Type: application/json' -d '{body}'"
        f' "{output} endpoint)/v1/{path}"'
    )
