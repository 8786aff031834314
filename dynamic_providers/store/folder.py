"""A folder with a model, as it is before it is pushed: what is in it, and what must not be."""

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dynamic_providers.errors import StoreError
from dynamic_providers.store.facts import CutShortError, read_facts, read_header, read_json, shards
from dynamic_providers.store.manifest import Facts

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CODE = (".py", ".pyc", ".so")
WEIGHTS = (".safetensors", ".gguf", *PICKLED)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER_ENDINGS = (".tiktoken", ".bpe.model")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that can be pushed.

    Attributes:
        files: Path in the model → file to read.
        allow: What of `manifest.ALLOWED` is in it.
        facts: What the model is.
    """

    files: Mapping[str, Path]
    allow: tuple[str, ...]
    facts: Facts


def read_folder(
    folder: Path,
    allowed: Collection[str] = (),
    *,
    links_within: Path | None = None,
    only: Collection[str] | None = None,
) -> ModelFolder:
    """Return what is in the folder. Hidden files are left out.

    Args:
        folder: Where the model lies.
        allowed: What of `manifest.ALLOWED` may be in it.
        links_within: Where links may lead; None is the folder itself.
        only: Paths of the model's files, where others lie beside them; None is all there are.

    Raises:
        StoreError: No folder, no model in it, or something that must not be pushed; all problems at once.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder} is no folder")
    try:
        files, problems = _list_files(folder.resolve(), (links_within or folder).resolve(), only)
        found = {"pickle": _pickled(files), "code": _code(files)}
        if not files and not problems:
            problems.append("it is empty")
        else:
            problems += _lacking(files) + _unfinished(files)
        for kind, names in found.items():
            if names and kind not in allowed:
                problems.append(_refusal(kind, names))
        if problems:
            raise StoreError("\n  - ".join([f"{folder} cannot be pushed:", *problems]))
        return ModelFolder(files, tuple(sorted(kind for kind, names in found.items() if names)), read_facts(files))
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from error


def find_files(folder: Path) -> dict[str, Path]:
    """Return the files in the folder, unread and unchecked: path in the model → file."""
    return _list_files(folder.resolve(), folder.resolve(), None)[0]


def _list_files(root: Path, links_within: Path, only: Collection[str] | None) -> tuple[dict[str, Path], list[str]]:
    """Return the files, and what is wrong with others."""
    files: dict[str, Path] = {}
    problems: list[str] = []
    for base, folders, names in os.walk(
        root, onerror=lambda error: problems.append(f"{error.filename}: {error.strerror}")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(names)]:
            path = Path(base, name)
            if name.startswith(".") or (path.is_dir() and not path.is_symlink()):
                continue
            if only is not None and path.relative_to(root).as_posix() not in only:
                continue
            if problem := _unusable(path, links_within):
                problems.append(f"{path.relative_to(root)}: {problem}")
            else:
                files[path.relative_to(root).as_posix()] = path
    return files, problems


def _unusable(path: Path, links_within: Path) -> str:
    """Say why a file cannot be pushed; empty if it can."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, until Python 3.13
        return "a link to nothing"
    if not target.is_relative_to(links_within):
        return f"a link out of the folder, to {target}; make a copy without links: cp -rL <folder> <copy>"
    if target.is_dir():
        return "a link to a folder; make a copy without links: cp -rL <folder> <copy>"
    if not stat.S_ISREG(target.stat().st_mode):
        return "no regular file"
    return "" if os.access(target, os.R_OK) else "may not be read"


def _pickled(files: Mapping[str, Path]) -> list[str]:
    return [path for path in files if path.endswith(PICKLED)]


def _code(files: Mapping[str, Path]) -> list[str]:
    """Return the files with code, and the configurations that would have some loaded."""
    configs = [path for path in files if path.endswith("config.json")]
    return [path for path in files if path.endswith(CODE)] + [
        f"{path} (auto_map)" for path in configs if read_json(files[path]).get("auto_map")
    ]


def _refusal(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if kind == "pickle":
        return (
            f"pickled, which runs code when it is loaded: {shown}; take the safetensors form of the model and remove "
            "them, or, if you trust who made them: --allow-pickle"
        )
    return f"brings code of its own: {shown}; remove it, or, if you have read it and trust it: --allow-code"


def _lacking(files: Mapping[str, Path]) -> list[str]:
    """Say what a model needs and this one has not."""
    problems = []
    if "config.json" not in files:
        problems.append("no config.json: not a model as Hugging Face lays it out, or not downloaded to the end")
    if not any(path in TOKENIZERS or path.endswith(TOKENIZER_ENDINGS) for path in files):
        problems.append(f"no tokenizer ({', '.join(TOKENIZERS[:4])} …): take it from the model's own repository")
    if lost := [path for path in shards(files) if path not in files]:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        problems.append(f"the index names weights that are not there: {shown}; download the model to the end")
    elif not any(PurePosixPath(path).suffix in WEIGHTS for path in files):
        problems.append("no weights (*.safetensors): not downloaded to the end")
    return problems


def _unfinished(files: Mapping[str, Path]) -> list[str]:
    """Say which weights are not the whole file."""
    problems = []
    for path, source in files.items():
        if not path.endswith(WEIGHTS):
            continue
        with source.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                problems.append(f"{path}: only stands for the file that git-lfs would bring; run: git lfs pull")
                continue
        if path.endswith(".safetensors"):
            try:
                read_header(source)
            except CutShortError as error:
                problems.append(f"{path}: {error}")
    return problems
