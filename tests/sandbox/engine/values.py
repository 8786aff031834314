"""Property values as they travel: JSON, with marks for what is secret, unknown or an output.

Source: the wire and checkpoint formats of Pulumi 3.260 (sdk/go/common/resource/properties.go, plugin/rpc.go).
"""

from collections.abc import Callable, Mapping
from typing import Any

Value = Any
Props = dict[str, Any]

SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"
OUTPUT = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


def secret(value: Value) -> Value:
    """Return *value* marked secret, once."""
    return value if is_secret(value) else {SIGNATURE: SECRET, "value": value}


def is_secret(value: Value) -> bool:
    """Say whether this very value is marked."""
    return isinstance(value, dict) and value.get(SIGNATURE) == SECRET


def map_value(value: Value, visit: Callable[[Value], Value]) -> Value:
    """Return a copy of *value* with `visit` applied to every node, the innermost first."""
    if isinstance(value, dict):
        return visit({key: map_value(item, visit) for key, item in value.items()})
    if isinstance(value, list):
        return visit([map_value(item, visit) for item in value])
    return visit(value)


def any_value(value: Value, holds: Callable[[Value], bool]) -> bool:
    """Say whether `holds` is true of a node of *value*."""
    if holds(value):
        return True
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(any_value(child, holds) for child in children)


def contains_secret(value: Value) -> bool:
    """Say whether anything inside is marked secret."""
    return any_value(value, is_secret)


def contains_unknown(value: Value) -> bool:
    """Say whether anything inside is not known yet."""
    return any_value(value, lambda node: isinstance(node, str) and node == UNKNOWN)


def plain(value: Value) -> Value:
    """Return *value* without secret marks: providers that do not accept secrets see it so."""
    return map_value(value, lambda node: node["value"] if is_secret(node) else node)


def resolve_outputs(value: Value) -> Value:
    """Turn output values (which carry their dependencies) into a plain, secret or unknown value."""

    def visit(node: Value) -> Value:
        if not isinstance(node, dict) or node.get(SIGNATURE) != OUTPUT:
            return node
        known = node.get("value", UNKNOWN)
        return secret(known) if node.get("secret") else known

    return map_value(value, visit)


def mark_like(outputs: Props, inputs: Mapping[str, Value]) -> Props:
    """Mark what came out secret where what went in under the same name was.

    The dynamic provider does not accept secrets, so the marks are lost on the way through it.
    """
    marked = dict(outputs)
    for key, given in inputs.items():
        if key not in marked:
            continue
        if _is_object(marked[key]) and _is_object(given):
            marked[key] = mark_like(marked[key], given)
        elif contains_secret(given):
            marked[key] = secret(marked[key])
    return marked


def redact(value: Value, *, show_secrets: bool = False, placeholder: str = "[secret]") -> Value:
    """Return *value* for the eye: secrets shown or replaced."""
    if show_secrets:
        return plain(value)
    return map_value(value, lambda node: placeholder if is_secret(node) else node)


def changed_keys(old: Mapping[str, Value], new: Mapping[str, Value]) -> list[str]:
    """Name the top-level keys whose plain values differ, marked `+`, `-` or `~` as the display does."""
    added = [f"+{key}" for key in new if key not in old]
    gone = [f"-{key}" for key in old if key not in new]
    other = [f"~{key}" for key in new if key in old and plain(old[key]) != plain(new[key])]
    return sorted(added + gone + other, key=lambda key: key[1:])


def reset_ignored(news: Props, olds: Mapping[str, Value], ignored: list[str]) -> Props:
    """Put the old values back under the names in `ignore_changes`; a dotted path goes into objects."""
    result = map_value(news, lambda node: node)
    for path in ignored:
        *parents, last = path.split(".")
        here, before = result, olds
        for key in parents:
            here, before = here.get(key, {}), before.get(key, {})
        if last in before:
            here[last] = before[last]
        else:
            here.pop(last, None)
    return dict(result)


def from_struct(struct: Any) -> Props:
    """Read a protobuf Struct; whole numbers become ints and keys are in order, as in the checkpoint."""
    return {key: _from_proto(struct.fields[key]) for key in sorted(struct.fields)}


def to_struct(struct: Any, props: Mapping[str, Value]) -> Any:
    """Fill the protobuf Struct given and return it."""
    struct.Clear()
    struct.update(props)
    return struct


def _from_proto(value: Any) -> Value:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [_from_proto(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _is_object(value: Value) -> bool:
    return isinstance(value, dict) and SIGNATURE not in value
