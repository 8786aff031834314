"""One preview, update, refresh or destroy of one stack: which steps there are, and in which order.

Source: Pulumi 3.260, pkg/resource/deploy/{step_generator,deployment_executor}.go, read for decisions and their order.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.sandbox.engine.dependents import forget, replaced_with
from tests.sandbox.engine.display import Display
from tests.sandbox.engine.errors import EngineError, ResourceError
from tests.sandbox.engine.providers import Diff, Provider
from tests.sandbox.engine.registry import Registry
from tests.sandbox.engine.state import PROVIDER_PREFIX, STACK_TYPE, Resource, Snapshot
from tests.sandbox.engine.steps import Steps, row
from tests.sandbox.engine.values import Props, changed_keys, reset_ignored


class Stopped(Exception):  # noqa: N818 - not an error: the deployment has ended under a caller that waits
    """No further step begins."""


@dataclass
class Goal:
    """What the program asks for."""

    resource: Resource
    ignore_changes: list[str] = field(default_factory=list)
    delete_before_replace: bool | None = None


@dataclass
class Plan:
    """What is to be done about one registered resource."""

    act: Callable[[], None]
    operation: str


class Deployment:
    """Decides under one lock, one resource at a time; carries out in the threads that ask."""

    def __init__(
        self, snapshot: Snapshot, registry: Registry, display: Display, *, preview: bool, parallel: int
    ) -> None:
        self.snapshot = snapshot
        self.registry = registry
        self.display = display
        self.preview = preview
        self.cancelled = False
        self.failed = False
        self.closed = threading.Event()
        self.ready = threading.Event()  # the program may begin
        self.stack_outputs: Props | None = None
        self.news: dict[str, Resource] = {}
        self._steps = Steps(snapshot, display, preview=preview)
        self._slots = threading.BoundedSemaphore(parallel)
        self._deciding = threading.Lock()
        self._state = threading.Condition()
        self._running = 0
        self._condemned: dict[str, Resource] = {}  # deleted ahead of what they depend on; to be created again
        self._olds = {old.urn: old for old in snapshot.base if not old.delete}

    @property
    def ended(self) -> bool:
        """Whether no further step may begin."""
        return self.cancelled or self.failed

    def cancel(self) -> None:
        """Begin no further step and tell the providers; what is under way goes on to its end."""
        self.cancelled = True
        self._wake()
        self.registry.cancel()

    def fail(self) -> None:
        """Begin no further step."""
        self.failed = True
        self._wake()

    def close(self) -> None:
        """Let everyone go who still waits."""
        self.closed.set()
        self.ready.set()
        self._wake()

    def wait_for_end(self) -> None:
        """Return once the deployment has failed, was cancelled, or is over."""
        with self._state:
            self._state.wait_for(lambda: self.ended or self.closed.is_set())

    # Before the program: what is really there.

    def refresh(self, *, counted: bool) -> None:
        """Read every resource, all at once, and put what was found in place of what was remembered."""
        base = self.snapshot.base
        found: dict[int, Resource | None] = {}

        def read(old: Resource) -> None:
            asks = old.custom and not old.is_provider and not old.pending_replacement
            with self._step(old, "refresh"):
                found[id(old)] = self._steps.refresh(
                    old, self.registry.of(old, base) if asks else None, counted=counted
                )

        self._each(base, read)
        if self.ended:
            return
        alive = [new for old in base if (new := found[id(old)]) is not None]
        gone = {old.urn for old in base} - {new.urn for new in alive}
        for new in alive:
            forget(new, gone)
        base[:] = alive
        self._olds = {old.urn: old for old in base if not old.delete}
        if counted and not self.preview:
            self.snapshot.save()

    # While the program runs.

    def register(self, goal: Goal) -> Resource:
        """Bring one resource to where the program wants it; returns once that is done.

        Raises:
            Stopped: The deployment failed or was cancelled, here or elsewhere.
        """
        resource = goal.resource
        with self._under_way(), self._deciding:
            if self.ended:
                raise Stopped
            with self._reporting(resource):
                if resource.urn in self.news:
                    raise ResourceError(
                        resource.urn, f"Duplicate resource URN '{resource.urn}'; try giving it a unique name"
                    )
                self.news[resource.urn] = resource
                plan = self._plan(goal)
        with self._step(resource, plan.operation):
            plan.act()
        return resource

    def read(self, resource: Resource) -> Resource:
        """Read a resource that someone else owns."""
        with self._under_way(), self._deciding:
            if self.ended:
                raise Stopped
            with self._reporting(resource):
                provider = self._default_provider(resource)
                self.news[resource.urn] = resource
        with self._step(resource, "read"):
            found = provider.read(resource)
            if not found.id:
                raise ResourceError(resource.urn, f"resource '{resource.id}' does not exist")
            resource.id, resource.outputs = found.id, found.outputs
            old = self._olds.get(resource.urn)
            self.snapshot.end(resource, done=[old] if old else [], new=resource, save=not self.preview)
        return resource

    def register_outputs(self, urn: str, outputs: Props) -> None:
        """Take the outputs of a component, or of the stack itself."""
        resource = self.news[urn]
        resource.outputs = outputs
        if resource.type == STACK_TYPE:
            self.stack_outputs = outputs
        if not self.preview:
            self.snapshot.save()

    def _plan(self, goal: Goal) -> Plan:
        new = goal.resource
        if new.type.startswith(PROVIDER_PREFIX):
            raise ResourceError(new.urn, "the stand-in has default providers only, no explicit ones")
        old = self._olds.get(new.urn)
        if new.urn in self._condemned:
            return self._plan_replacement(goal, self._condemned[new.urn], Diff(True), check=True)
        if old and (old.external or old.custom != new.custom):
            raise ResourceError(new.urn, "the stand-in cannot turn a resource of one kind into one of another")
        provider = self._default_provider(new) if new.custom else None
        if old:
            new.inputs = reset_ignored(new.inputs, old.inputs, goal.ignore_changes)
        wanted = new.inputs
        if provider:
            new.inputs = self._check(new, provider, old.inputs if old else {}, wanted)
        if old is None:
            return Plan(lambda: self._steps.create(new, provider), "create")
        diff = provider.diff(old, new.inputs) if provider else Diff(old.inputs != new.inputs)
        if old.pending_replacement or (diff.changed and diff.replaces):
            new.inputs = wanted
            return self._plan_replacement(goal, old, diff, check=provider is not None)
        if diff.changed:
            return Plan(lambda: self._steps.update(old, new, provider), "update")
        return Plan(lambda: self._steps.same(old, new), "same")

    def _plan_replacement(self, goal: Goal, old: Resource, diff: Diff, *, check: bool) -> Plan:
        new = goal.resource
        if old.protect and new.protect:
            raise ResourceError(
                new.urn, f'unable to replace resource "{new.urn}"\nas it is currently marked for protection.'
            )
        provider = self._default_provider(new)
        if check:
            new.inputs = self._check(new, provider, {}, new.inputs)
        changed = changed_keys(old.inputs, new.inputs)
        before = diff.delete_before_replace if goal.delete_before_replace is None else goal.delete_before_replace
        if not before and not old.pending_replacement and new.urn not in self._condemned:

            def create_first() -> None:
                self._steps.create(new, provider, replaces=old, changed=changed)
                self._steps.replaced(old, new, changed)

            return Plan(create_first, "create-replacement")
        dependents = (
            [] if new.urn in self._condemned else replaced_with(old, self.snapshot.base, self.news, self.registry)
        )
        for dependent in dependents:
            if dependent.protect:
                raise ResourceError(
                    new.urn, f'unable to replace resource "{dependent.urn}" as part of replacing "{new.urn}"'
                )
            self._condemned[dependent.urn] = dependent

        def delete_first() -> None:
            going = {old.urn, *(dependent.urn for dependent in dependents)}
            for doomed in [*reversed(dependents), old]:
                if not doomed.pending_replacement:
                    self._delete(doomed, going - {doomed.urn}, replacing=True, keep=True)
            self._steps.replaced(old, new, changed)
            self._steps.create(new, provider, replaces=old, changed=changed)

        return Plan(delete_first, "create-replacement")

    def _check(self, new: Resource, provider: Provider, olds: Props, news: Props) -> Props:
        inputs, failures = provider.check(new, olds, news)
        reasons = []
        for name, reason in failures:
            place = f": property {name} value {{{inputs.get(name)}}}" if name else ""
            reasons.append(f"{new.type} resource '{new.name}'{place} has a problem: {reason}")
        for reason in reasons[:-1]:
            self.display.diagnostic("error", new.urn, reason)
        if reasons:
            raise ResourceError(new.urn, reasons[-1])
        return inputs

    def _default_provider(self, resource: Resource) -> Provider:
        """Return the provider of a resource's package, its record registered first; sets the reference to it."""
        package = resource.type.split(":", 1)[0]
        urn = f"{resource.urn.split('::', 2)[0]}::{resource.urn.split('::', 2)[1]}::{PROVIDER_PREFIX}{package}::default"
        old = self._olds.get(urn)
        record = self.news.get(urn)
        if record is None:
            record = self.registry.record(package, old)
            provider = self.registry.open(record, old)
            self.news[urn] = record
            self.snapshot.end(record, done=[old] if old else [], new=record, save=not self.preview)
        else:
            provider = self.registry.open(record)
        resource.provider = f"{urn}::{record.id}"
        return provider

    # After the program: what nobody asked for any more.

    def delete_rest(self) -> None:
        """Delete what the program did not register, and what was replaced; dependents first."""
        kept = set(self.news)
        doomed = [old for old in self.snapshot.resources() if old.delete or old.urn not in kept]
        self.delete_all(doomed)

    def delete_all(self, doomed: list[Resource]) -> None:
        """Delete resources layer by layer, so that nothing goes before what depends on it; one layer at once."""
        going = {old.urn for old in doomed if not old.delete}
        left = list(doomed)
        while left and not self.ended:
            needed = {urn for old in left for urn in (*old.depends_on(), old.parent) if urn}
            layer = [old for old in left if old.urn not in needed or old.delete]
            left = [old for old in left if old not in layer]
            self._each(layer, lambda old: self._delete_one(old, going - {old.urn}))

    def _delete_one(self, old: Resource, going: set[str]) -> None:
        with self._step(old, "delete-replaced" if old.delete else "delete"):
            if old.pending_replacement:
                self.snapshot.end(old, done=[old], save=not self.preview)  # it was deleted long ago
            else:
                self._delete(old, going, replacing=old.delete, keep=False)

    def _delete(self, old: Resource, going: set[str], *, replacing: bool, keep: bool) -> None:
        asks = old.custom and not old.is_provider and not old.external and not self.preview
        provider = self.registry.of(old, self.snapshot.resources()) if asks else None
        taken = old.deleted_with in going
        self._steps.delete(old, provider, replacing=replacing, keep=keep, deleted_with=taken)

    # Carrying out.

    def _wake(self) -> None:
        with self._state:
            self._state.notify_all()

    def wait_for_steps(self) -> None:
        """Return once nothing is under way."""
        with self._state:
            self._state.wait_for(lambda: self._running == 0)

    def _each(self, resources: list[Resource], act: Callable[[Resource], None]) -> None:
        def guarded(resource: Resource) -> None:
            with contextlib.suppress(Stopped):
                act(resource)

        with ThreadPoolExecutor(max_workers=max(1, len(resources))) as pool:
            list(pool.map(guarded, resources))

    @contextlib.contextmanager
    def _step(self, resource: Resource, operation: str) -> Iterator[None]:
        """Carry a step out; a failure is reported and ends the deployment for everyone."""
        with self._under_way(), self._slots, self._reporting(resource, operation):
            if self.ended:  # only now: while we queued, another step may have failed
                raise Stopped
            yield

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """Let nobody end the deployment under something that it has begun: a step, or a provider that starts."""
        with self._state:
            self._running += 1
        try:
            yield
        finally:
            with self._state:
                self._running -= 1
                self._state.notify_all()

    @contextlib.contextmanager
    def _reporting(self, resource: Resource, operation: str = "") -> Iterator[None]:
        try:
            yield
        except EngineError as err:
            self.fail()
            self.display.count("errored")
            if operation:
                self.display.failed_step(row(resource, operation))
            self.display.diagnostic("error", getattr(err, "urn", resource.urn), str(err))
            raise Stopped from err
