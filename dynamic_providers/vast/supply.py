"""What a machine is given out of the bucket, found and tried before any money is spent."""

from dataclasses import dataclass
from datetime import timedelta

from bootstrap.contents import refused_files
from dynamic_providers.errors import StoreError
from dynamic_providers.store.binaries import CADDY, VMAGENT, require_blobs
from dynamic_providers.store.client import Store
from dynamic_providers.store.manifest import Manifest, ModelRef
from dynamic_providers.store.presign import Presigner
from dynamic_providers.vast.rent import World
from dynamic_providers.vast.request import MachineRequest


@dataclass(frozen=True)
class Supply:
    """The bucket as one boot sees it.

    Attributes:
        manifest: The release to serve.
        presigner: Signs URLs that last as long as the boot may.
        has_vmagent: The program that carries metrics away is there; without it machines serve, and tell nobody.
    """

    store: Store
    manifest: Manifest
    presigner: Presigner
    has_vmagent: bool = False


def open_supply(world: World, store: Store, request: MachineRequest) -> Supply:
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
    has_vmagent = request.monitoring is not None and not store.missing([VMAGENT.blob])
    if request.monitoring and not has_vmagent:
        world.say(
            f"no metrics will come from this machine: bucket {store.bucket!r} lacks vmagent, which a push of any model "
            "puts there"
        )
    return Supply(store, manifest, presigner, has_vmagent)
