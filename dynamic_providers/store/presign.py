"""URLs for a rented machine, made where the keys are: each reads one object, or writes one, and nothing else.

Which form of signature a service takes is found out, not believed: of the same one, people report that version 4 works
and that only version 2 does. A URL is a secret as long as it lives: it stands in no state, no log and no error.
"""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from http.client import HTTPException
from typing import IO, TYPE_CHECKING

import certifi

from dynamic_providers.errors import StoreError
from dynamic_providers.store.client import Store, Style
from dynamic_providers.store.failures import AccessError, UnreachableError
from dynamic_providers.store.manifest import blob_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LIFE_LIMIT = timedelta(days=7)
"""Of signature version 4, and the server enforces it; version 2 has none."""
WRITE_LIFE = timedelta(minutes=5)
"""The sender waits with its connection open; what is not there by then is not wanted any more."""
PROBE_SECONDS = 15
SAID_BYTES = 4096
READER = "S3_READ_ACCESS_KEY_ID"


@dataclass(frozen=True)
class Form:
    """One way to sign: signature version and where the bucket's name stands, in boto3's words."""

    name: str
    signature: str
    style: Style


FORMS = (
    Form("signature v4, bucket in the path", "s3v4", "path"),
    Form("signature v4, bucket in the host's name", "s3v4", "virtual"),
    Form("signature v2, bucket in the path", "s3", "path"),
    Form("signature v2, bucket in the host's name", "s3", "virtual"),
)


class Presigner:
    """Signs URLs for one boot, with the store's read-only keys where it has some.

    Args:
        store: The bucket.
        life: How long a URL is needed; it is good for no longer.
    """

    def __init__(self, store: Store, life: timedelta) -> None:
        self._store = store
        self._life = min(life, LIFE_LIMIT)
        self._form: Form | None = None
        self._clients: dict[tuple[Form, bool], S3Client] = {}

    def urls(self, blobs: Iterable[str]) -> dict[str, str]:
        """Return for each blob, by SHA-256, the URL that reads it; the first one ever has been tried.

        Raises:
            AccessError: No form of signature works.
            UnreachableError: Nobody answers.
            StoreError: The first blob is not there.
        """
        keys = {sha256: blob_key(sha256) for sha256 in blobs}
        signed = self.read(keys.values())
        return {sha256: signed[key] for sha256, key in keys.items()}

    def read(self, keys: Iterable[str]) -> dict[str, str]:
        """Return for each object, by key, the URL that reads it; errors are those of `urls`."""
        wanted = list(keys)
        if not wanted:
            return {}
        if self._form is None:
            self._form = self._find_form(wanted[0])
        return {key: self._sign_read(self._form, key) for key in wanted}

    def _find_form(self, key: str) -> Form:
        """Return the first form in which a URL of this object works."""
        refusals: list[str] = []
        for form in FORMS:
            try:
                refusal = self._probe(self._sign_read(form, key))
            except UnreachableError as error:
                if form.style == "path":
                    raise
                refusal = str(error)  # that a bucket's own name leads to no host says nothing of the service
            if not refusal:
                return form
            refusals.append(f"{form.name}: {refusal}")
        keys_from = f"the read-only keys of {READER}" if self._store.reader else "the keys of the bucket"
        raise AccessError(
            "\n  - ".join([f"{self._store.endpoint} takes no signed URL of bucket {self._store.bucket!r}:", *refusals])
            + f"\n  Signed with {keys_from}: check that they are current and may read the bucket, or leave "
            "read-only keys out."
        )

    def write(self, key: str, size: int, md5: str) -> str:
        """Return the URL that writes one object, of this size and content alone, soon.

        The service itself compares: the digest is part of what is signed. Version 2 does not sign the size, but no
        other content has the digest.

        Args:
            key: Of the object.
            size: Bytes, to be sent as `Content-Length`.
            md5: Of the contents, base64, to be sent as `Content-MD5`.
        """
        return self._client(self._form or FORMS[0], writes=True).generate_presigned_url(
            "put_object",
            Params={"Bucket": self._store.bucket, "Key": key, "ContentLength": size, "ContentMD5": md5},
            ExpiresIn=int(WRITE_LIFE.total_seconds()),
        )

    def _sign_read(self, form: Form, key: str) -> str:
        return self._client(form).generate_presigned_url(
            "get_object",
            Params={"Bucket": self._store.bucket, "Key": key},
            ExpiresIn=max(int(self._life.total_seconds()), 1),
        )

    def _client(self, form: Form, *, writes: bool = False) -> "S3Client":
        if (form, writes) not in self._clients:
            keys = None if writes else self._store.reader
            self._clients[form, writes] = self._store.signer(form.signature, form.style, keys)
        return self._clients[form, writes]

    def _probe(self, url: str) -> str:
        """Ask for one byte as the machine will, with no key at hand; return why not, empty if it comes.

        Nothing that is raised here is passed on as a cause: it may hold the URL.
        """
        request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})  # noqa: S310 - boto3's own, of the endpoint
        try:
            with _opener(self._store.ca_bundle).open(request, timeout=PROBE_SECONDS) as answer:
                answer.read(1)
            return ""
        except urllib.error.HTTPError as error:
            with error:
                status, code = error.code, _code(error)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            why = getattr(reason, "verify_message", "") or getattr(reason, "strerror", "") or type(reason).__name__
            raise UnreachableError(
                f"a signed URL of {self._store.endpoint} cannot be tried from here ({why}): check network, proxy "
                "and AWS_CA_BUNDLE"
            ) from None
        if code == "RequestTimeTooSkewed":
            raise AccessError(
                f"{self._store.endpoint} refuses signed URLs because this machine's clock is wrong: set it"
            )
        if status == 404:
            raise StoreError(f"bucket {self._store.bucket!r} has lost an object that was there a moment ago ({code})")
        if status == 429 or (status >= 500 and status != 501):
            raise UnreachableError(f"{self._store.endpoint} is overloaded or out of order ({status} {code}); try again")
        return f"{status} {code}".strip()


@cache
def _opener(ca_bundle: str | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=ca_bundle or certifi.where())
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Stay())


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the machine does not either, and its URL is signed for one place."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _code(answer: IO[bytes]) -> str:
    """Return the code in an S3 error, such as `SignatureDoesNotMatch`; never more, for it may quote the URL."""
    code = answer.read(SAID_BYTES).decode(errors="replace").partition("<Code>")[2].partition("</Code>")[0]
    return code if code.isalnum() else ""
