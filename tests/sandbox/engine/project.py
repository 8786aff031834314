"""Pulumi.yaml, the stack's file beside it, and the configuration that the two make together."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sandbox.engine import documents
from tests.sandbox.engine.crypto import Vault, read_passphrase
from tests.sandbox.engine.errors import EngineError

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True)
class Project:
    """What Pulumi.yaml says."""

    root: Path
    name: str
    runtime_options: dict[str, Any]
    main: Path
    stack_config_dir: Path
    refresh: bool
    config: dict[str, Any]
    backend_url: str

    @classmethod
    def find(cls, start: Path) -> "Project":
        """Read the Pulumi.yaml of *start* or of the nearest folder above."""
        for folder in (start, *start.parents):
            for name in ("Pulumi.yaml", "Pulumi.yml"):
                if (folder / name).is_file():
                    return cls._read(folder, folder / name)
        raise EngineError(
            f"no Pulumi.yaml project file found (searching upwards from {start}). "
            "If you have not created a project yet, use `pulumi new` to do so: no project file found"
        )

    @classmethod
    def _read(cls, root: Path, path: Path) -> "Project":
        document = documents.load(path.read_text(), str(path))
        runtime = document.get("runtime")
        options = runtime.get("options") or {} if isinstance(runtime, dict) else {}
        if (runtime.get("name") if isinstance(runtime, dict) else runtime) != "python":
            raise EngineError(f"the stand-in runs Python programs only, not {runtime!r}")
        if unknown := set(options) - {"virtualenv", "toolchain", "typechecker"}:
            raise EngineError(f"the stand-in does not know the runtime option {sorted(unknown)[0]!r}")
        if "name" not in document:
            raise EngineError(f"could not validate '{path}': project is missing a 'name' attribute")
        return cls(
            root=root,
            name=document["name"],
            runtime_options=options,
            main=(root / (document.get("main") or ".")).resolve(),
            stack_config_dir=root / (document.get("stackConfigDir") or "."),
            refresh=(document.get("options") or {}).get("refresh") == "always",
            config={_qualify(key, document["name"]): item for key, item in (document.get("config") or {}).items()},
            backend_url=(document.get("backend") or {}).get("url", ""),
        )

    def stack_file(self, stack: str, override: str = "") -> "StackFile":
        """Return the file of one stack, which need not exist yet."""
        name = f"Pulumi.{stack.replace('/', '-')}.yaml"
        return StackFile(Path(override) if override else self.stack_config_dir / name, self.name)


def _qualify(key: str, project: str) -> str:
    return key if ":" in key else f"{project}:{key}"


class StackFile:
    """One `Pulumi.<stack>.yaml`."""

    def __init__(self, path: Path, project: str) -> None:
        self.path = path
        self._project = project

    @property
    def text(self) -> str:
        """The file's text; empty when there is none."""
        return self.path.read_text() if self.path.exists() else ""

    @property
    def entries(self) -> dict[str, Any]:
        """The values below `config:`, by full key; `{"secure": …}` is a secret."""
        document = documents.load(self.text, str(self.path))
        config = document.get("config") or {}
        return {_qualify(key, self._project): value for key, value in config.items()}

    @property
    def salt(self) -> str:
        """The state of the stack's vault."""
        return str(documents.load(self.text, str(self.path)).get("encryptionsalt") or "")

    def set_salt(self, salt: str) -> None:
        """Write the vault's state into the file."""
        self._write(documents.set_top(self.text, "encryptionsalt", salt))

    def set_entry(self, key: str, value: Any) -> None:
        """Set one value, or with None remove it."""
        document = documents.load(self.text, str(self.path)).get("config") or {}
        short = key.split(":", 1)[1]
        self._write(documents.set_config(self.text, short if short in document else key, value))

    def _write(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text)


def open_vault(file: StackFile, fallback_salt: str = "") -> Vault:
    """Return the stack's vault; a stack without one gets it now, and its salt goes into the stack file."""
    phrase = read_passphrase()
    salt = file.salt or fallback_salt
    vault = Vault(phrase, salt) if salt else Vault.create(phrase)
    if not file.salt:
        vault.check()
        file.set_salt(vault.state)
    return vault


@dataclass(frozen=True)
class Config:
    """Every value as the program gets it: a string, objects as JSON text."""

    values: dict[str, str]
    secret_keys: frozenset[str]

    @classmethod
    def of(cls, project: Project, file: StackFile, vault: Vault, stack: str) -> "Config":
        """Join the stack's values with the project's; the stack's win."""
        entries = file.entries
        values = {key: default for key, item in project.config.items() if (default := _default(item)) is not None}
        values.update(entries)
        _validate(project, values, stack)
        texts: dict[str, str] = {}
        hidden = set()
        for key in sorted(values):
            opened, had_secret = _open(values[key], vault)
            texts[key] = as_text(opened)
            if had_secret:
                hidden.add(key)
        return cls(texts, frozenset(hidden))


def _default(item: Any) -> Any:
    """Return the project's value of a key, or None; a plain value is a short form."""
    if isinstance(item, dict) and item.keys() & {"type", "default", "value", "description", "items", "secret"}:
        return item.get("value", item.get("default"))
    return item


def _validate(project: Project, values: dict[str, Any], stack: str) -> None:
    missing = []
    for key, item in project.config.items():
        short = key.split(":", 1)[1]
        if key not in values:
            missing.append(f"'{short}'")
            continue
        wanted = item.get("type") if isinstance(item, dict) else None
        value = values[key]
        if wanted == "integer" and isinstance(value, str) and value.lstrip("-").isdigit():
            continue
        if wanted == "boolean" and value in ("true", "false"):
            continue
        secure = isinstance(value, dict) and "secure" in value
        if wanted in _TYPES and not secure and not isinstance(value, _TYPES[wanted]):
            raise EngineError(
                f"validating stack config: Stack '{stack}' with configuration key '{short}' must be of type '{wanted}'"
            )
    if missing:
        what = f"value {missing[0]}" if len(missing) == 1 else "values " + ", ".join(missing)
        raise EngineError(f"validating stack config: Stack '{stack}' is missing configuration {what}")


def _open(value: Any, vault: Vault) -> tuple[Any, bool]:
    """Decrypt `{"secure": …}` wherever it stands."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        return vault.decrypt(value["secure"]), True
    if isinstance(value, dict):
        opened = {key: _open(item, vault) for key, item in value.items()}
        return {key: item for key, (item, _) in opened.items()}, any(hidden for _, hidden in opened.values())
    if isinstance(value, list):
        items = [_open(item, vault) for item in value]
        return [item for item, _ in items], any(hidden for _, hidden in items)
    return value, False


def as_text(value: Any) -> str:
    """Return a configuration value as the string that programs see."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def pulumi_home() -> Path:
    """Return the folder for what belongs to the person, not to a project."""
    return Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
