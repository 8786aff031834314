"""One step on one resource: ask the provider, write the state, say so. The same names as the real engine's steps.

Source: Pulumi 3.260, pkg/resource/deploy/step.go and pkg/backend/snapshot.go.
"""

import time
from collections.abc import Iterable

from tests.sandbox.engine.display import Display, Row
from tests.sandbox.engine.errors import ResourceError
from tests.sandbox.engine.providers import Diff, Provider
from tests.sandbox.engine.state import Resource, Snapshot, now
from tests.sandbox.engine.values import Props, changed_keys, secret


class Steps:
    """Carries steps out, or in a preview only shows them."""

    def __init__(self, snapshot: Snapshot, display: Display, *, preview: bool) -> None:
        self._snapshot = snapshot
        self._display = display
        self._preview = preview

    def same(self, old: Resource, new: Resource) -> None:
        """Carry a resource over unchanged."""
        new.id, new.outputs = old.id, old.outputs
        new.created, new.modified = old.created, old.modified
        self._snapshot.end(new, done=[old], new=new, save=not self._preview)
        if not new.is_provider:
            self._display.finished(row(new, "same"))

    def create(
        self, new: Resource, provider: Provider | None, *, replaces: Resource | None = None, changed: Iterable[str] = ()
    ) -> None:
        """Create a resource; *replaces* is the old one if this is the second half of a replacement."""
        operation = "create-replacement" if replaces else "create"
        line = row(new, operation, changed)
        self._display.started(line)
        begun = time.monotonic()
        if self._preview:
            new.outputs = dict(new.inputs) if new.custom else {}
        elif provider:
            self._snapshot.begin("creating", new)
            try:
                new.id, new.outputs = provider.create(new)
            except BaseException:
                self._snapshot.end(new)
                raise
            hide_outputs(new)
        new.created = new.modified = now()
        done = []
        if replaces and replaces.pending_replacement:
            done.append(replaces)
        elif replaces:
            replaces.delete = True
        self._snapshot.end(new, done=done, new=new, save=not self._preview)
        if new.custom or self._preview:
            self._display.finished(line, time.monotonic() - begun)
        else:
            self._display.count("create")

    def update(self, old: Resource, new: Resource, provider: Provider | None) -> None:
        """Update a resource in place."""
        line = row(new, "update", changed_keys(old.inputs, new.inputs))
        self._display.started(line)
        begun = time.monotonic()
        new.id, new.outputs = old.id, old.outputs
        if self._preview and new.custom:
            new.outputs = dict(new.inputs)
        elif provider and not self._preview:
            self._snapshot.begin("updating", new)
            try:
                new.outputs = provider.update(old, new.inputs)
            except BaseException:
                self._snapshot.end(new)
                raise
            hide_outputs(new)
        new.created, new.modified = old.created, now()
        self._snapshot.end(new, done=[old], new=new, save=not self._preview)
        self._display.finished(line, time.monotonic() - begun)

    def replaced(self, old: Resource, new: Resource, changed: Iterable[str]) -> None:
        """Show the replacement as a whole: this is the line that counts."""
        del old
        line = row(new, "replace", changed)
        self._display.started(line)
        self._display.finished(line)

    def delete(
        self, old: Resource, provider: Provider | None, *, replacing: bool, keep: bool, deleted_with: bool
    ) -> None:
        """Delete a resource.

        Args:
            old: The resource.
            provider: None for components and for the records of providers.
            replacing: Part of a replacement.
            keep: Stays in the state as *pending replacement* until its successor is created.
            deleted_with: Another deletion takes it along, so the provider is not asked.
        """
        if old.protect and not replacing:
            raise ResourceError(old.urn, _protected(old.urn))
        silent = old.is_provider or old.external
        line = row(old, "delete-replaced" if replacing else "delete")
        if not silent:
            self._display.started(line)
        begun = time.monotonic()
        if not self._preview:
            self._snapshot.begin("deleting", old)
            ask = provider and old.custom and not (silent or old.retain_on_delete or deleted_with)
            try:
                if ask and provider:
                    provider.delete(old)
            except BaseException:
                self._snapshot.end(old)
                raise
        if keep:
            old.pending_replacement = True
        self._snapshot.end(old, done=[] if keep else [old], save=not self._preview)
        if not silent:
            self._display.finished(line, time.monotonic() - begun)

    def refresh(self, old: Resource, provider: Provider | None, *, counted: bool) -> Resource | None:
        """Return the resource as it truly is, or None if it is gone.

        *counted*: the command is `refresh` itself, so that what is found makes up the summary.
        """
        if not old.custom or old.is_provider or old.pending_replacement or provider is None:
            if counted and not old.is_provider:
                self._display.finished(row(old, "same"))
            return old
        line = row(old, "refresh")
        self._display.started(line)
        begun = time.monotonic()
        found = provider.read(old)
        new: Resource | None = None
        diff = Diff(False)
        if found.id:
            new = old.copy(id=found.id, inputs=found.inputs, outputs=found.outputs)
            hide_outputs(new)
            if (new.inputs, new.outputs) != (old.inputs, old.outputs):
                new.modified = now()
            # As the real engine: what would an `up` without a change of the program have to undo?
            diff = provider.diff(new, old.inputs) if not old.external else diff
        if not counted:
            self._display.finished(line, time.monotonic() - begun)
        elif not old.external:
            operation = "delete" if new is None else "update" if diff.changed else "same"
            changed = changed_keys(old.outputs, new.outputs) if new and diff.changed else ()
            self._display.finished(row(old, operation, changed), time.monotonic() - begun)
        return new


def hide_outputs(resource: Resource) -> None:
    """Mark the outputs that the program named in `additional_secret_outputs`."""
    for key in resource.additional_secret_outputs:
        if key in resource.outputs:
            resource.outputs[key] = secret(resource.outputs[key])


def row(resource: Resource, operation: str, changed: Iterable[str] = ()) -> Row:
    """Return the display's line for a resource."""
    return Row(resource.urn, resource.type, resource.name, operation, tuple(changed))


def plain_outputs(resource: Resource) -> Props:
    """Return what the program learns of a registered resource; components have no outputs of their own."""
    return resource.outputs if resource.custom else resource.inputs


def _protected(urn: str) -> str:
    return (
        f'unable to delete resource "{urn}"\nas it is currently marked for protection. To unprotect the resource, '
        "remove the `protect` flag from the resource in your Pulumi program and run `pulumi up`"
    )
