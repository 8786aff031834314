"""What single values of a stack file must look like: each rule says what is wrong with a text, or nothing."""

import re

from dynamic_providers.errors import StoreError
from dynamic_providers.store.failures import BUCKET_RULE
from dynamic_providers.store.manifest import ModelRef
from dynamic_providers.vast.models import GPUS, REGIONS, GpuNeed
from infra.fields import suggest

DEFAULT_IMAGE = "vllm/vllm-openai:v0.32.0"
LOCATIONS = ("fsn1", "nbg1", "hel1")  # Source: docs.hetzner.com, Object Storage, overview
OLDEST_RELEASE = (0, 22)
"""Of vLLM: at or above the fixes of the advisories in docs/adr/0011."""
MOVING_TAGS = ("latest", "nightly", "main", "master", "edge", "dev", "stable")


def min_cuda_of(image: str) -> float:
    """Return the CUDA version that a host's driver must run for this image.

    Source: vLLM's releases: since v0.20.1 the plain tag is built for CUDA 13.0, `-cu129` for 12.9.
    """
    found = re.search(r"-cu(\d{2})(\d)(?:-|$)", image.rpartition(":")[2])
    return float(f"{found[1]}.{found[2]}") if found else GpuNeed.min_cuda


def ref_problem(text: str) -> str:
    """Check a model's name in a stack file."""
    try:
        ModelRef.parse(text)
    except StoreError as error:
        return str(error).removeprefix(repr(text)).lstrip(": ")
    return ""


def served_name_problem(text: str) -> str:
    """Check the name that clients ask for."""
    return "" if re.fullmatch(r"[A-Za-z0-9][\w./:-]{0,127}", text) else "is no name; letters, digits and ._/:- only"


def gpu_problem(text: str) -> str:
    """Check the name of a GPU."""
    return "" if text in GPUS else f"is no GPU known here; {suggest(text, GPUS)}"


def region_problem(text: str) -> str:
    """Check the name of a region."""
    if text in REGIONS or re.fullmatch("[A-Z]{2}", text):
        return ""
    return f"is no region; {suggest(text, REGIONS)}; or a country's two capital letters"


def location_problem(text: str) -> str:
    """Check a location of the store."""
    return "" if text in LOCATIONS else f"is no location; {suggest(text, LOCATIONS)}"


def endpoint_problem(text: str) -> str:
    """Check the store's address."""
    fits = re.fullmatch(r"https://[A-Za-z0-9.\[\]:-]+/?", text)
    return "" if fits else "is no address of a store; write https://<host>, with a port if need be, and no path"


def bucket_problem(text: str) -> str:
    """Check a bucket's name."""
    # A dotted quad looks like an address; xn-- and the suffixes are reserved. Source: S3's rules for bucket names.
    fits = re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text) and not re.search(r"\.\.|\.-|-\.", text)
    if not fits or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", text) or text.startswith("xn--"):
        return f"cannot be a bucket's name; {BUCKET_RULE}"
    return ""


def access_key_problem(text: str) -> str:
    """Check the id of an access key."""
    return "" if re.fullmatch(r"[A-Za-z0-9]{8,128}", text) else "is no access key's id; letters and digits only"


def fleet_id_problem(text: str) -> str:
    """Check the id of a fleet."""
    return "" if re.fullmatch(r"[0-9a-f]{8}", text) else "is no fleet's id; 8 hexadecimal digits"


def stack_problem(text: str) -> str:
    """Check the name of a stack."""
    fits = re.fullmatch(r"(?:[\w.-]+/[\w.-]+/)?[\w.-]{1,100}", text)
    return "" if fits else "is no stack's name; write that of the platform's stack, such as platform"


def client_problem(text: str) -> str:
    """Check a client's name."""
    fits = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", text)
    return "" if fits else "is no client's name; small letters, digits and `-`, 32 at most"


def image_problem(text: str) -> str:
    """Check the name of an image.

    Releases of vLLM with holes that the front door cannot close are turned away: see docs/adr/0011.
    """
    if re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", text):
        return ""
    repository, _, tag = text.rpartition(":")
    if not repository or "/" in tag:
        return f"has no tag; write an exact one, such as {DEFAULT_IMAGE}"
    if tag in MOVING_TAGS or not re.fullmatch(r"\w[\w.-]{0,127}", tag) or not re.fullmatch(r"[\w./:-]+", repository):
        return f"is not pinned; write an exact tag, such as {DEFAULT_IMAGE}"
    release = re.match(r"v(\d+)\.(\d+)\.", tag) if repository.endswith("vllm/vllm-openai") else None
    if release and (int(release[1]), int(release[2])) < OLDEST_RELEASE:
        return f"has known security holes; write {DEFAULT_IMAGE} or a newer one"
    return ""
