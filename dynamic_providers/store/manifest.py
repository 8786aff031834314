"""A model's release: which files, how big, with which contents; and the ways to name one."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

from dynamic_providers.errors import StoreError

FORMAT = 2
OLD_FORMAT = 1
MODELS = "models/"
BLOBS = "blobs/sha256/"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME_RULE = "a small letter or digit, then small letters, digits, `.` and `-`, 100 characters at most"
TAG_RULE = "a small letter or digit, then small letters, digits, `.`, `_` and `-`, 63 characters at most"
ALLOWED = ("code", "pickle")
"""What a release may hold only if its push said so."""
NUMBERS = ("parameters", "context_length", "gpu_bytes")


@dataclass(frozen=True)
class ModelFile:
    """One file of a model.

    Attributes:
        path: Relative to the model's folder, with `/` between its parts.
        size: Bytes.
        sha256: Of its contents, hex.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelRef:
    """What a stack file calls a model: by its name alone (the tag `latest`), by a tag, or exactly one release."""

    name: str
    digest: str | None = None
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name`, `name:tag` or `name@sha256:<hex>`.

        Raises:
            StoreError: It is none of them.
        """
        name, at, digest = text.partition("@")
        plain, colon, tag = name.partition(":")
        if not NAME.fullmatch(plain):
            raise StoreError(f"{text!r} is no model's name: {NAME_RULE}")
        if colon and not TAG.fullmatch(tag):
            raise StoreError(f"{text!r}: after `:` comes a tag: {TAG_RULE}")
        if colon and at:
            raise StoreError(f"{text!r}: names a tag and a digest; write one of the two")
        algorithm, _, value = digest.partition(":")
        if at and (algorithm != "sha256" or not SHA256.fullmatch(value)):
            raise StoreError(f"{text!r}: after `@` comes `sha256:` and 64 hexadecimal digits, in small letters")
        return cls(plain, value if at else None, tag if colon else None)

    def __str__(self) -> str:
        if self.digest:
            return f"{self.name}@sha256:{self.digest}"
        return f"{self.name}:{self.tag}" if self.tag else self.name


@dataclass(frozen=True)
class Facts:
    """What a model is, by its own files; None is unknown.

    Attributes:
        format: Of the weights: `safetensors`, `gguf` or `pickle`.
        license: As its card names it.
        parameters: How many numbers it has learned, whatever their size.
        dtype: What they are computed in, as its configuration says.
        quantization: How they are packed, such as `awq-4bit`.
        context_length: Tokens of prompt and answer together.
        gpu_bytes: Of GPU memory that its weights take, without cache.
    """

    format: str | None = None
    license: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    gpu_bytes: int | None = None


@dataclass(frozen=True)
class Manifest:
    """One release of a model. Equal contents make an equal digest, whoever pushes them, from wherever, whenever.

    The digest covers what runs: name, files, and what is allowed in them. `source` and `facts` are notes beside it:
    the same files from a folder and from a hub are the same release, and a later version that reads more facts out
    of them makes no other. So a release of the first format, which had no notes, keeps its digest.

    Attributes:
        allow: What of `ALLOWED` is in it, because its push said so.
        source: Where its files came from; None is unknown.
    """

    name: str
    files: tuple[ModelFile, ...]
    allow: tuple[str, ...] = ()
    source: str | None = None
    facts: Facts = Facts()

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda file: file.path)))
        object.__setattr__(self, "allow", tuple(sorted(self.allow)))
        problems = _problems(self)
        if problems:
            raise StoreError(f"manifest of model {self.name!r}: " + "; ".join(problems))

    def to_bytes(self) -> bytes:
        """Return the one way to write this manifest."""
        return _write(self._identity() | {"format": FORMAT, "source": self.source, "facts": asdict(self.facts)})

    def _identity(self) -> dict[str, Any]:
        """Return what makes it this release and no other, as the first format wrote it."""
        files = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in self.files]
        allow = {"allow": list(self.allow)} if self.allow else {}
        return {"files": files, "format": OLD_FORMAT, "name": self.name} | allow

    @cached_property
    def digest(self) -> str:
        """The sha256 of what makes it this release, hex."""
        return hashlib.sha256(_write(self._identity())).hexdigest()

    @property
    def ref(self) -> ModelRef:
        """The name of exactly this release."""
        return ModelRef(self.name, self.digest)

    @property
    def key(self) -> str:
        """Its place in the bucket."""
        return manifest_key(self.name, self.digest)

    @property
    def bytes_total(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the bytes of a manifest; whose release it is, its digest tells.

        Raises:
            StoreError: They are no manifest, or one of the first format that we would not have written.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise StoreError(f"not a manifest: no JSON ({error})") from error
        if not isinstance(value, dict):
            raise StoreError("not a manifest: not a JSON object")
        if (version := value.get("format")) not in (OLD_FORMAT, FORMAT):
            raise StoreError(f"manifest of format {version!r}: this version reads up to format {FORMAT}")
        if not isinstance(value.get("name"), str) or not isinstance(value.get("files"), list):
            raise StoreError("not a manifest: no `name` and `files`")
        files = tuple(_parse_file(file) for file in value["files"])
        if version == FORMAT:
            return cls(value["name"], files, *_parse_notes(value))
        manifest = cls(value["name"], files)
        if _write(manifest._identity()) != data:
            raise StoreError(f"manifest of model {manifest.name!r}: not in canonical form")
        return manifest


def blob_key(sha256: str) -> str:
    """Return the place of a content in the bucket."""
    return f"{BLOBS}{sha256}"


def manifest_key(name: str, digest: str) -> str:
    """Return the place of a release in the bucket."""
    return f"{MODELS}{name}/{digest}.json"


def digest_of_key(key: str) -> str | None:
    """Return the digest that a manifest's key names; None if it is no manifest's key."""
    digest = key.rpartition("/")[2].removesuffix(".json")
    return digest if key.endswith(".json") and SHA256.fullmatch(digest) else None


def _parse_file(value: Mapping[str, Any] | object) -> ModelFile:
    if isinstance(value, dict):
        path, size, sha256 = value.get("path"), value.get("size"), value.get("sha256")
        if isinstance(path, str) and type(size) is int and isinstance(sha256, str):
            return ModelFile(path, size, sha256)
    raise StoreError(f"not a manifest: a file needs `path`, `size` and `sha256`, not {value!r}")


def _parse_notes(value: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None, Facts]:
    """Return allowances, source and facts; facts that only a later version knows are left out."""
    allow, source, facts = value.get("allow", []), value.get("source"), value.get("facts", {})
    if not (isinstance(allow, list) and isinstance(source, str | None) and isinstance(facts, dict)):
        raise StoreError("not a manifest: `allow` is a list, `source` a text, `facts` an object")
    known = {}
    for field in fields(Facts):
        kind = int if field.name in NUMBERS else str
        known[field.name] = facts.get(field.name)
        if known[field.name] is not None and type(known[field.name]) is not kind:
            raise StoreError(f"not a manifest: fact {field.name!r} is {known[field.name]!r}")
    return tuple(map(str, allow)), source, Facts(**known)


def _write(value: Mapping[str, Any]) -> bytes:
    """Return JSON with keys in order and no spaces: the same value is always the same bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _problems(manifest: Manifest) -> list[str]:
    problems = [] if NAME.fullmatch(manifest.name) else [f"no model's name: {NAME_RULE}"]
    problems += [f"{kind!r} cannot be allowed" for kind in manifest.allow if kind not in ALLOWED]
    notes = (manifest.source, *asdict(manifest.facts).values())
    # Who may write to the bucket may not forge the lines of a list with them.
    problems += [f"{note!r} is no plain text" for note in notes if isinstance(note, str) and not note.isprintable()]
    if not manifest.files:
        problems.append("no files")
    paths = [file.path for file in manifest.files]
    folders = {"/".join(parts[:end]) for parts in (path.split("/") for path in paths) for end in range(1, len(parts))}
    for file in manifest.files:
        if not is_safe_path(file.path):
            problems.append(f"{file.path!r} is no plain path below the model's folder")
        if file.path in folders:
            problems.append(f"{file.path!r} is both a file and a folder")
        if file.size < 0:
            problems.append(f"{file.path!r} has {file.size} bytes")
        if not SHA256.fullmatch(file.sha256):
            problems.append(f"{file.path!r} has no sha256 of 64 hexadecimal digits: {file.sha256!r}")
    problems += [f"{path!r} is there twice" for path in sorted({path for path in paths if paths.count(path) > 1})]
    return problems


def is_safe_path(path: str) -> bool:
    """Say whether joining *path* to a folder can only name something inside that folder."""
    # Control characters would let a name forge lines of a log or of a list; a backslash is a separator elsewhere.
    return path.isprintable() and "\\" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
