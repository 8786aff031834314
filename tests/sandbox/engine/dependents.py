"""What else a step on one resource concerns: the resources of the state that depend on it.

Source: Pulumi 3.260, pkg/resource/deploy/step_generator.go (calculateDependentReplacements).
"""

from collections.abc import Container, Iterable

from tests.sandbox.engine.registry import Registry
from tests.sandbox.engine.state import Resource
from tests.sandbox.engine.values import UNKNOWN


def replaced_with(root: Resource, base: list[Resource], seen: Container[str], registry: Registry) -> list[Resource]:
    """Return what must be replaced because *root* is deleted first, in the order of dependence.

    Args:
        root: The resource to be deleted.
        base: The state, dependents after what they depend on.
        seen: Urns that the program has registered already; those cannot depend on *root* any more.
        registry: Where their providers are.
    """
    gone = {root.urn}
    touched = {root.urn}
    found = []
    for old in base[base.index(root) + 1 :]:
        if old.urn in seen or not old.depends_on() & touched:
            continue
        touched.add(old.urn)
        if old.custom and not old.external and not old.is_provider and _needs_replacement(old, gone, base, registry):
            gone.add(old.urn)
            found.append(old)
    return found


def forget(resource: Resource, gone: Iterable[str]) -> None:
    """Drop every mention of what a refresh found gone."""
    lost = set(gone)
    resource.dependencies = [urn for urn in resource.dependencies if urn not in lost]
    if resource.property_dependencies is not None:
        resource.property_dependencies = {
            key: [urn for urn in urns if urn not in lost] for key, urns in resource.property_dependencies.items()
        }
    if resource.deleted_with in lost:
        resource.deleted_with = ""


def _needs_replacement(old: Resource, gone: set[str], base: list[Resource], registry: Registry) -> bool:
    """Ask the provider whether *old* would be replaced if what it takes from the deleted ones changed."""
    if old.deleted_with in gone:
        return True
    lost = {key for key, urns in (old.property_dependencies or {}).items() if gone & set(urns)}
    if not lost:
        return False
    news = {key: UNKNOWN if key in lost else value for key, value in old.inputs.items()}
    return bool(registry.of(old, base).diff(old, news).replaces)
