"""What a machine is given out of the bucket, found and tried before any money is spent."""

from dataclasses import dataclass
from datetime import timedelta

from bootstrap.contents import refused_files
from dynamic_providers.errors import StoreError
from dynamic_providers.store.binaries import CADDY, require_blobs
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelRef
from dynamic_providers.store.presign import Presigner
from dynamic_providers.vast.request import MachineRequest


@dataclass(frozen=True)
class Supply:
    """The bucket as one boot sees it.

    Attributes:
        manifest: The release to serve.
        presigner: Signs URLs that last as long as the boot may.
    """

    store: Store
    manifest: Manifest
    presigner: Presigner


def open_supply(store: Store, request: MachineRequest) -> Supply:
    """Return what *request* takes out of the bucket.

    Raises:
        StoreError: The release is not there, not whole, or not to be served, or a machine could not read it.
    """
    manifest = store.resolve(ModelRef.parse(request.model.release))
    if problems := refused_files([file.path for file in manifest.files], manifest.allow):
        raise StoreError("\n  - ".join([f"{manifest.ref} is not served:", *problems]))
    require_blobs(store, manifest)
    presigner = Presigner(store, timedelta(minutes=request.terms.boot_minutes))
    presigner.urls([CADDY.sha256])
    return Supply(store, manifest, presigner)
