"""The models that a platform's stack file declares, and the resources that they become."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamic_providers.errors import StoreError
from dynamic_providers.store.address import StoreAddress
from dynamic_providers.store.hub import FORM, HubRef, is_hub
from dynamic_providers.store.manifest import ALLOWED, NAME, NAME_RULE, TAG, TAG_RULE
from dynamic_providers.store.model import take_fingerprint
from dynamic_providers.store.tags import LATEST
from infra.fields import Section, parse_json, suggest

MODEL_KEYS = ("name", "source", "tags", "allow")
EXAMPLE = "[{name: llama-3.1-8b, source: ../models/llama-3.1-8b, tags: [prod]}]"


@dataclass(frozen=True)
class ModelSource:
    """A model to be put into the platform's bucket.

    Attributes:
        name: Its name there.
        source: A folder, from the project's own on; or `hf:<org>/<repo>@<revision>`.
        tags: Beside `latest`, which a push moves.
        allow: What of `manifest.ALLOWED` may be in it.
    """

    name: str
    source: str
    tags: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    def to_props(self, address: StoreAddress, root: Path) -> dict[str, Any]:
        """Return the inputs of its resource.

        Args:
            address: The bucket's.
            root: The project's folder.
        """
        folder = None if is_hub(self.source) else (root / Path(self.source).expanduser()).resolve()
        props = {
            "store": address.to_props(),
            "name": self.name,
            "source": self.source,
            "folder": folder and str(folder),
            "tags": list(self.tags),
            "allow": list(self.allow),
            "fingerprint": take_fingerprint(self.source, folder),
        }
        return {key: value for key, value in props.items() if value is not None}


def parse_models(values: Any, problems: list[str]) -> tuple[ModelSource, ...]:
    """Return what stands under `models`; every problem goes to *problems*."""
    values = parse_json(values)
    if values is None:
        return ()
    if not isinstance(values, list):
        problems.append(f"models: is no list; write models: {EXAMPLE}")
        return ()
    models = []
    for number, value in enumerate(values):
        section = Section(parse_json(value), MODEL_KEYS, problems, path=f"models[{number}]", example=EXAMPLE[1:-1])
        models.append(
            ModelSource(
                name=section.required_text("name", "write its name in the bucket", _name_problem),
                source=section.required_text("source", f"write a folder, or {FORM}", _source_problem),
                tags=section.texts("tags", "write a list such as [prod]", _tag_problem),
                allow=section.texts("allow", "write [pickle], [code] or both", _allow_problem),
            )
        )
    names = [model.name for model in models if model.name]
    problems += [
        f"models: {name!r} is there twice; leave one out" for name in sorted(set(names)) if names.count(name) > 1
    ]
    return tuple(models)


def _name_problem(text: str) -> str:
    return "" if NAME.fullmatch(text) else f"is no model's name: {NAME_RULE}"


def _source_problem(text: str) -> str:
    if not is_hub(text):
        return ""
    try:
        HubRef.parse(text)
    except StoreError:
        return f"names no model of the hub; write {FORM}"
    return ""


def _tag_problem(text: str) -> str:
    if text == LATEST:
        return "moves with every push by itself; leave it out"
    return "" if TAG.fullmatch(text) else f"is no tag: {TAG_RULE}"


def _allow_problem(text: str) -> str:
    return "" if text in ALLOWED else f"cannot be allowed; {suggest(text, ALLOWED)}"
