"""An S3 server in memory behind boto3's names: for what the real one in the sandbox does not refuse or get wrong."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn
from unittest.mock import MagicMock

from botocore.exceptions import ClientError

BUCKET = "team-models"
KEY = "AAAAAAAAAAAAAAAAAAAA"
PROJECT = "1234567"


class NoSuchKey(ClientError):  # noqa: N818 - S3's own name
    pass


class BucketAlreadyOwnedByYou(ClientError):  # noqa: N818 - S3's own name
    pass


def refuse(code: str, status: int, kind: type[ClientError] = ClientError) -> NoReturn:
    raise kind({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")  # type: ignore[typeddict-item]


@dataclass
class FakeS3:
    """One bucket's server.

    Attributes:
        exists: The bucket is there.
        owner: Id of whoever owns the buckets, as the server names them.
        appears_after: So many requests after its creation do not find the bucket.
        refuses: Feature → (code, status) of the refusal.
        forgets: Features that are taken without a word, and not kept.
        sees_tls: Whether it knows that requests came over TLS.
        keeps_policy: Once locked out, nobody takes the policy back either.
        key: Id of the key that asks.
    """

    exists: bool = True
    owner: str = f"p{PROJECT}"
    appears_after: int = 0
    refuses: dict[str, tuple[str, int]] = field(default_factory=dict)
    forgets: set[str] = field(default_factory=set)
    sees_tls: bool = True
    keeps_policy: bool = False
    key: str = KEY
    versions: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    uploads: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=count)

    meta: ClassVar[Any] = MagicMock()  # where hooks are hung, of which none matters here
    exceptions: ClassVar[Any] = SimpleNamespace(
        ClientError=ClientError, NoSuchKey=NoSuchKey, BucketAlreadyOwnedByYou=BucketAlreadyOwnedByYou
    )

    @property
    def keys(self) -> set[str]:
        return {key for key, _, _ in self.versions}

    @property
    def policy(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.settings.get("policy", "{}"))
        return found

    # What boto3's client has

    def list_buckets(self) -> dict[str, Any]:
        return {"Owner": {"ID": self.owner}}

    def create_bucket(self, Bucket: str) -> None:  # noqa: N803
        self.asked.append("create_bucket")
        if self.exists:
            refuse("BucketAlreadyOwnedByYou", 409, BucketAlreadyOwnedByYou)
        self.exists = True

    def delete_bucket(self, Bucket: str) -> None:  # noqa: N803
        self._enter("s3:DeleteBucket")
        if self.versions or self.uploads:
            refuse("BucketNotEmpty", 409)
        self.exists = False

    def list_objects_v2(self, Bucket: str, Prefix: str = "", Delimiter: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803
        self._enter("s3:ListBucket")
        keys = sorted(key for key in self.keys if key.startswith(Prefix))
        folders = sorted(
            {key[: key.index("/", len(Prefix)) + 1] for key in keys if Delimiter and "/" in key[len(Prefix) :]}
        )
        plain = [key for key in keys if not any(key.startswith(folder) for folder in folders)]
        return {"Contents": [{"Key": key} for key in plain], "CommonPrefixes": [{"Prefix": name} for name in folders]}

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self._enter("s3:GetObject")
        found = [body for key, _, body in self.versions if key == Key]
        if not found or found[-1] is None:
            refuse("NoSuchKey", 404, NoSuchKey)
        return {"Body": io.BytesIO(found[-1])}

    def put_object(self, Bucket: str, Key: str, Body: bytes, **_: Any) -> None:  # noqa: N803
        self._enter("s3:PutObject")
        self.versions.append((Key, str(next(self._ids)), Body))

    def delete_object(self, Bucket: str, Key: str, VersionId: str) -> None:  # noqa: N803
        self._enter("s3:DeleteObjectVersion")
        self.asked.append(f"delete {Key}")
        self.versions = [version for version in self.versions if version[:2] != (Key, VersionId)]

    def abort_multipart_upload(self, Bucket: str, Key: str, UploadId: str) -> None:  # noqa: N803
        self._enter("s3:AbortMultipartUpload")
        self.uploads.remove((Key, UploadId))

    def get_paginator(self, operation: str) -> Any:
        return SimpleNamespace(paginate=lambda **asked: [getattr(self, operation)(**asked)])

    def list_multipart_uploads(self, Bucket: str) -> dict[str, Any]:  # noqa: N803
        return {"Uploads": [{"Key": key, "UploadId": id_} for key, id_ in self.uploads]}

    def list_object_versions(self, Bucket: str) -> dict[str, Any]:  # noqa: N803
        entries = [({"Key": key, "VersionId": id_}, body) for key, id_, body in self.versions]
        return {
            "Versions": [entry for entry, body in entries if body is not None],
            "DeleteMarkers": [entry for entry, body in entries if body is None],
        }

    def get_bucket_lifecycle_configuration(self, Bucket: str) -> dict[str, Any]:  # noqa: N803
        return {"Rules": self._get("lifecycle", "NoSuchLifecycleConfiguration")}

    def put_bucket_lifecycle_configuration(self, Bucket: str, LifecycleConfiguration: dict[str, Any]) -> None:  # noqa: N803
        self._put("lifecycle", LifecycleConfiguration["Rules"], "s3:PutLifecycleConfiguration")

    def get_bucket_versioning(self, Bucket: str) -> dict[str, Any]:  # noqa: N803
        self._enter("s3:GetBucketVersioning")
        return {"Status": self.settings["versioning"]} if "versioning" in self.settings else {}

    def put_bucket_versioning(self, Bucket: str, VersioningConfiguration: dict[str, Any]) -> None:  # noqa: N803
        self._put("versioning", VersioningConfiguration["Status"], "s3:PutBucketVersioning")

    def get_bucket_policy(self, Bucket: str) -> dict[str, Any]:  # noqa: N803
        return {"Policy": self._get("policy", "NoSuchBucketPolicy")}

    def put_bucket_policy(self, Bucket: str, Policy: str) -> None:  # noqa: N803
        self._put("policy", Policy, "s3:PutBucketPolicy")

    def delete_bucket_policy(self, Bucket: str) -> None:  # noqa: N803
        self._enter("s3:DeleteBucketPolicy")
        self.settings.pop("policy", None)

    # What a server does

    def _get(self, feature: str, absent: str) -> Any:
        self._enter("s3:Get")
        if feature in self.refuses and self.refuses[feature][1] == 501:
            refuse(*self.refuses[feature])
        if feature not in self.settings:
            refuse(absent, 404)
        return self.settings[feature]

    def _put(self, feature: str, value: Any, action: str) -> None:
        self._enter(action)
        if feature in self.refuses:
            refuse(*self.refuses[feature])
        if feature not in self.forgets:
            self.settings[feature] = value

    def _enter(self, action: str) -> None:
        self.asked.append(action)
        if not self.exists:
            refuse("NoSuchBucket", 404)
        if self.appears_after and "create_bucket" in self.asked:
            self.appears_after -= 1
            refuse("NoSuchBucket", 404)
        policy_itself = action.endswith("BucketPolicy") or action == "s3:Get"
        denied = any(self._is_denied(statement, action) for statement in self.policy.get("Statement", []))
        locked = any(self._is_denied(statement, "s3:ListBucket") for statement in self.policy.get("Statement", []))
        if denied or (policy_itself and self.keeps_policy and locked and action != "s3:Get"):
            refuse("AccessDenied", 403)

    def _is_denied(self, statement: dict[str, Any], action: str) -> bool:
        me = f"arn:aws:iam:::user/p{PROJECT}:{self.key}"
        if "NotPrincipal" in statement:
            meant = me not in statement["NotPrincipal"]["AWS"]
        else:
            meant = statement["Principal"] == "*" or me in statement["Principal"]["AWS"]
        over_tls = "Condition" in statement and self.sees_tls
        return meant and action in statement["Action"] and not over_tls
