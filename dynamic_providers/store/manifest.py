"""A model's release: which files, how big, with which contents; and the ways to name one."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from dynamic_providers.errors import StoreError

FORMAT = 1
MODELS = "models/"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME_RULE = "a small letter or digit, then small letters, digits, `.` and `-`, 100 characters at most"


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
    """What a stack file calls a model: the release pushed last, or exactly one."""

    name: str
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name` or `name@sha256:<hex>`.

        Raises:
            StoreError: It is neither; or it is `name:tag`, which is to come.
        """
        name, at, digest = text.partition("@")
        plain, colon, tag = name.partition(":")
        if not NAME.fullmatch(plain):
            raise StoreError(f"{text!r} is no model's name: {NAME_RULE}")
        if colon:
            raise StoreError(
                f"{text!r}: tags are not there yet; write {plain!r} for the release pushed last, "
                f"or {plain + '@sha256:<digest>'!r} for exactly one (without {':' + tag!r})"
            )
        algorithm, _, value = digest.partition(":")
        if at and (algorithm != "sha256" or not SHA256.fullmatch(value)):
            raise StoreError(f"{text!r}: after `@` comes `sha256:` and 64 hexadecimal digits, in small letters")
        return cls(plain, value if at else None)

    def __str__(self) -> str:
        return f"{self.name}@sha256:{self.digest}" if self.digest else self.name


@dataclass(frozen=True)
class Manifest:
    """One release of a model. Equal contents make an equal digest, whoever pushes them, whenever."""

    name: str
    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda file: file.path)))
        problems = _problems(self)
        if problems:
            raise StoreError(f"manifest of model {self.name!r}: " + "; ".join(problems))

    def to_bytes(self) -> bytes:
        """Return the one way to write this manifest: keys and files in order, no spaces."""
        files = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in self.files]
        value = {"files": files, "format": FORMAT, "name": self.name}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()

    @cached_property
    def digest(self) -> str:
        """The sha256 of its bytes, hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

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
        """Read the bytes of a manifest.

        Only the canonical form is taken, so that the digest of the value is the digest of the bytes.

        Raises:
            StoreError: They are no manifest, or one that we would not have written.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise StoreError(f"not a manifest: no JSON ({error})") from error
        if not isinstance(value, dict):
            raise StoreError("not a manifest: not a JSON object")
        if value.get("format") != FORMAT:
            raise StoreError(f"manifest of format {value.get('format')!r}: this version reads format {FORMAT}")
        if not isinstance(value.get("name"), str) or not isinstance(value.get("files"), list):
            raise StoreError("not a manifest: no `name` and `files`")
        manifest = cls(value["name"], tuple(_parse_file(file) for file in value["files"]))
        if manifest.to_bytes() != data:
            raise StoreError(f"manifest of model {manifest.name!r}: not in canonical form")
        return manifest


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


def _problems(manifest: Manifest) -> list[str]:
    problems = [] if NAME.fullmatch(manifest.name) else [f"no model's name: {NAME_RULE}"]
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
