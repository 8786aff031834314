"""Resources as a checkpoint keeps them, and the snapshot that a running update writes after every step."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tests.sandbox.engine.crypto import Vault
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.values import SECRET, SIGNATURE, Props, Value, is_secret, map_value, secret

STACK_TYPE = "pulumi:pulumi:Stack"
PROVIDER_PREFIX = "pulumi:providers:"
ENGINE_VERSION = "v3.260.0"  # what the manifest claims: the format is that version's


@dataclass(eq=False)
class Resource:
    """One resource of the state. Compared by identity: the same urn may be there twice, old and new."""

    urn: str
    type: str
    custom: bool
    id: str = ""
    delete: bool = False
    inputs: Props = field(default_factory=dict)
    outputs: Props = field(default_factory=dict)
    parent: str = ""
    protect: bool = False
    external: bool = False
    dependencies: list[str] = field(default_factory=list)
    provider: str = ""
    property_dependencies: dict[str, list[str]] | None = None
    pending_replacement: bool = False
    additional_secret_outputs: list[str] = field(default_factory=list)
    retain_on_delete: bool = False
    deleted_with: str = ""
    ignore_changes: list[str] = field(default_factory=list)
    created: str = ""
    modified: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that the program gave."""
        return self.urn.rsplit("::", 1)[-1]

    @property
    def is_provider(self) -> bool:
        """Whether this is the record of a provider process."""
        return self.type.startswith(PROVIDER_PREFIX)

    @property
    def provider_urn(self) -> str:
        """The provider's urn, without the id that follows it in a reference."""
        return self.provider.rsplit("::", 1)[0]

    def depends_on(self) -> set[str]:
        """Return every urn that must outlive this resource, but its parent."""
        named = {urn for urns in (self.property_dependencies or {}).values() for urn in urns}
        return (named | set(self.dependencies) | {self.provider_urn, self.deleted_with}) - {""}

    def copy(self, **changes: Any) -> "Resource":
        """Return another record of the same resource."""
        return replace(self, **changes)


# Order and names as the checkpoint has them: (attribute, JSON key).
_FIELDS = (
    ("urn", "urn"),
    ("custom", "custom"),
    ("delete", "delete"),
    ("id", "id"),
    ("type", "type"),
    ("inputs", "inputs"),
    ("outputs", "outputs"),
    ("parent", "parent"),
    ("protect", "protect"),
    ("external", "external"),
    ("dependencies", "dependencies"),
    ("provider", "provider"),
    ("property_dependencies", "propertyDependencies"),
    ("pending_replacement", "pendingReplacement"),
    ("additional_secret_outputs", "additionalSecretOutputs"),
    ("retain_on_delete", "retainOnDelete"),
    ("deleted_with", "deletedWith"),
    ("created", "created"),
    ("modified", "modified"),
    ("ignore_changes", "ignoreChanges"),
)


def to_json(resource: Resource, seal: Callable[[Value], Value]) -> dict[str, Any]:
    """Return the record as the checkpoint has it; what is empty is left out."""
    record: dict[str, Any] = {}
    for attribute, key in _FIELDS:
        value = getattr(resource, attribute)
        if attribute in ("inputs", "outputs"):
            value = seal(value)
        if value or attribute == "custom" or (attribute == "property_dependencies" and value is not None):
            record[key] = value
    return {**record, **resource.extra}


def from_json(record: dict[str, Any], unseal: Callable[[Value], Value]) -> Resource:
    """Read a record; keys that we do not know are kept and written back."""
    known = {key: attribute for attribute, key in _FIELDS}
    values = {known[key]: value for key, value in record.items() if key in known}
    for key in ("inputs", "outputs"):
        values[key] = unseal(values.get(key) or {})
    return Resource(**values, extra={key: value for key, value in record.items() if key not in known})


def sealing(vault: Vault | None) -> Callable[[Value], Value]:
    """Return the function that encrypts every secret inside a value; None shows them in the clear."""

    def visit(node: Value) -> Value:
        if not is_secret(node) or "value" not in node:  # the latter: a carried operation, still sealed
            return node
        text = json.dumps(node["value"], separators=(",", ":"), ensure_ascii=False)
        return {SIGNATURE: SECRET, **({"ciphertext": vault.encrypt(text)} if vault else {"plaintext": text})}

    return lambda value: map_value(value, visit)


def unsealing(vault: Vault | None) -> Callable[[Value], Value]:
    """Return the function that decrypts every secret inside; None leaves a hollow mark in its place."""

    def visit(node: Value) -> Value:
        if not is_secret(node):
            return node
        if "plaintext" in node:
            return secret(json.loads(node["plaintext"]))
        return secret(json.loads(vault.decrypt(node["ciphertext"])) if vault else None)

    return lambda value: map_value(value, visit)


@dataclass
class Checkpoint:
    """The state of a stack at rest."""

    resources: list[Resource] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    salt: str = ""
    time: str = ""

    @classmethod
    def read(cls, deployment: dict[str, Any], vault: Vault | None) -> "Checkpoint":
        """Read the `deployment` of an export or `latest` of a checkpoint file."""
        secrets = deployment.get("secrets_providers") or {}
        if secrets.get("type", "passphrase") != "passphrase":
            raise EngineError(f"the stand-in knows passphrase secrets only, not {secrets['type']!r}")
        unseal = unsealing(vault)
        return cls(
            [from_json(record, unseal) for record in deployment.get("resources") or []],
            deployment.get("pending_operations") or [],
            (secrets.get("state") or {}).get("salt", ""),
            (deployment.get("manifest") or {}).get("time", ""),
        )

    def write(self, vault: Vault | None) -> dict[str, Any]:
        """Return the deployment object; without a vault, secrets stand in the clear (`--show-secrets`)."""
        seal = sealing(vault)
        magic = hashlib.sha256(ENGINE_VERSION.encode()).hexdigest()
        deployment: dict[str, Any] = {
            "manifest": {"time": self.time or now(), "magic": magic, "version": ENGINE_VERSION},
            "secrets_providers": {"type": "passphrase", "state": {"salt": self.salt}},
        }
        if self.resources:
            deployment["resources"] = [to_json(resource, seal) for resource in self.resources]
        if self.pending:
            deployment["pending_operations"] = [
                {**entry, "resource": seal(entry["resource"])} for entry in self.pending
            ]
        return {**deployment, "metadata": {}}

    def stack_outputs(self) -> Props:
        """Return the outputs of the stack's root resource."""
        return next((found.outputs for found in self.resources if found.type == STACK_TYPE), {})


class Snapshot:
    """The state while an update runs: what was before, what is new, what is under way.

    Every change is written at once, so that a killed engine leaves the truth behind.
    """

    def __init__(self, base: Checkpoint, save: Callable[[Checkpoint], None]) -> None:
        self.base = base.resources
        # Only an interrupted create needs a person's eye: it is carried on until someone resolves it.
        self._carried = [entry for entry in base.pending if entry["type"] == "creating"]
        self._salt = base.salt
        self._save = save
        self._lock = threading.Lock()
        self._new: list[Resource] = []
        self._done: set[int] = set()
        self._pending: dict[int, dict[str, Any]] = {}

    def begin(self, operation: str, resource: Resource) -> None:
        """Write down that *resource* is about to be created, updated or deleted."""
        with self._lock:
            self._pending[id(resource)] = {"resource": to_json(resource, lambda props: props), "type": operation}
            self._write()

    def end(
        self, resource: Resource, *, done: Iterable[Resource] = (), new: Resource | None = None, save: bool = True
    ) -> None:
        """Close what `begin` opened: *done* leave the state, *new* enters it."""
        with self._lock:
            self._pending.pop(id(resource), None)
            self._done.update(id(old) for old in done)
            if new is not None:
                self._new.append(new)
            if save:
                self._write()

    def freeze(self) -> None:
        """Write no more: what fails from now on fails because the engine is being ended."""
        with self._lock:
            self._save = lambda checkpoint: None

    def save(self) -> None:
        """Write the state as it is, for instance after outputs were registered."""
        with self._lock:
            self._write()

    def resources(self) -> list[Resource]:
        """Return what the state holds now: the new ones in order, then what is left of the old ones."""
        return [found for found in (*self._new, *self.base) if id(found) not in self._done]

    def _write(self) -> None:
        self._save(Checkpoint(self.resources(), [*self._pending.values(), *self._carried], self._salt))


def now() -> str:
    """Return this instant as the checkpoint writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
