"""Models of the Hugging Face hub: named as `hf:<org>/<repo>@<revision>`, brought into the hub's own cache, then pushed.

The cache is that of every other program that loads models: what one of them has downloaded is not downloaded again,
and a download that was broken off goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dynamic_providers.errors import StoreError
from dynamic_providers.store.folder import CODE, PICKLED, ModelFolder, read_folder
from dynamic_providers.store.transfer import Counter, Report

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PREFIX = "hf:"
FORM = "hf:<org>/<repo>@<revision>"
FILES_AT_ONCE = 4
SITE = "https://huggingface.co"
# The same weights for other programs, and what is no part of the model.
OTHER_FORMS = (".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".mlmodel", ".png", ".jpg", ".jpeg", ".gif")
OTHER_FOLDERS = ("original/", "onnx/", "openvino/", "coreml/", "metal/", "figures/", "assets/")


@dataclass(frozen=True)
class HubRef:
    """A model of the hub.

    Attributes:
        repo: `<org>/<repo>`.
        revision: A branch, a tag or a commit.
    """

    repo: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `hf:<org>/<repo>@<revision>`; without a revision it is `main`.

        Raises:
            StoreError: It is no such name.
        """
        repo, _, revision = text.removeprefix(PREFIX).partition("@")
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo) or (revision and not re.fullmatch(r"[\w./-]+", revision)):
            raise StoreError(f"{text!r} names no model of the hub; write {FORM}")
        return cls(repo, revision or "main")

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Download:
    """A model that was brought here.

    Attributes:
        folder: It, to be pushed.
        ref: The commit that it is, whatever moving name it was asked by.
        left_out: Its files that were not brought: other forms of the same weights, and what is no part of it.
    """

    folder: ModelFolder
    ref: HubRef
    left_out: tuple[str, ...]


def is_hub(text: str) -> bool:
    """Say whether a source is of the hub."""
    return text.startswith(PREFIX)


def download(ref: HubRef, report: Report, allowed: Collection[str] = ()) -> Download:
    """Bring a model here, as far as it is not here yet.

    Args:
        ref: Which.
        report: Told the progress.
        allowed: What of `manifest.ALLOWED` may be in it; code is left out otherwise, and so are pickled twins.

    Raises:
        StoreError: No such model, no access to it, or no way to the hub.
    """
    try:
        import huggingface_hub as hub
        from httpx2 import HTTPError
    except ImportError as error:
        raise StoreError(f"{ref}: needs huggingface_hub, which is not installed: run `make setup` again") from error
    try:
        info = hub.HfApi().model_info(ref.repo, revision=ref.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted, left_out = choose_files(sizes, allowed)
        folder = _fetch(hub, info, ref.repo, {path: sizes[path] for path in wanted}, report)
        # The cache keeps contents beside the folder and links them into it.
        model = read_folder(folder, allowed, links_within=folder.parents[1], only=wanted)
    except (HTTPError, OSError, ValueError) as error:
        raise _explain(ref, error) from error
    return Download(model, HubRef(ref.repo, str(info.sha)), tuple(left_out))


def choose_files(paths: Collection[str], allowed: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Return the files to bring, and those to leave out."""
    visible = sorted(path for path in paths if not any(part.startswith(".") for part in path.split("/")))
    endings: tuple[str, ...] = OTHER_FORMS
    if any(path.endswith(".safetensors") for path in visible):
        endings += (*PICKLED, ".gguf")
    if "code" not in allowed:
        endings += CODE  # read_folder still refuses a configuration that calls for it
    left_out = [path for path in visible if path.endswith(endings) or path.startswith(OTHER_FOLDERS)]
    return [path for path in visible if path not in left_out], left_out


def _fetch(hub: Any, info: ModelInfo, repo: str, sizes: dict[str, int], report: Report) -> Path:
    """Return the folder in the cache, with all these files in it."""
    from huggingface_hub.utils.tqdm import tqdm

    count = Counter(report, "download", sum(sizes.values()))

    def fetch(path: str) -> Path:
        done = 0

        class Bar(tqdm):
            """Tells our own bar, and shows nothing."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                nonlocal done
                more = min(int(n or 0), sizes[path] - done)
                done += more
                count(more)

        found = Path(hub.hf_hub_download(repo, path, revision=info.sha, tqdm_class=Bar))
        count(sizes[path] - done)  # what was here before, or has no bar
        return found.parents[path.count("/")]

    with ThreadPoolExecutor(FILES_AT_ONCE, "download") as pool:
        try:
            return set(pool.map(fetch, sizes)).pop()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _explain(ref: HubRef, error: Exception) -> StoreError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return StoreError(
            f"{ref}: its owner decides who may have it. Ask for access at {SITE}/{ref.repo},\n"
            f"  make a token that may read ({SITE}/settings/tokens), and: export HF_TOKEN=…"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return StoreError(
            f"{ref}: the model has no revision {ref.revision!r}; those there: {SITE}/{ref.repo}/tree/main"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return StoreError(
            f"{ref}: no such model, or a private one and HF_TOKEN is not set to a token that may read it; "
            f"correct the name ({SITE}/models)"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return StoreError(f"{ref}: the hub says no: {_first_line(error)}")
    if isinstance(error, OSError) and error.filename:
        return StoreError(f"{ref}: {error.filename}: {error.strerror}")
    return StoreError(f"{ref}: no answer from the hub ({_first_line(error)}); check the network and HF_ENDPOINT")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
