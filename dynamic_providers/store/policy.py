"""What a bucket says about who may use it, and about what it forgets by itself: documents in, documents out.

Everything is compared in one canonical form: servers give back what they were given in an order of their own.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

LOST_AFTER_DAYS = 7
"""A week to find out that something was deleted by mistake, or to go on with a push that was broken off."""

# Listed one by one: Hetzner passes over `NotAction`, and takes no policy at all that names what it lacks. What reads
# and writes the policy itself is not among them, on purpose: a policy that locks us out can be taken back, and a new
# key let in, by whoever has a key of the project. Source: public configurations for Hetzner, 2026.
_WRITES = (
    *("s3:AbortMultipartUpload", "s3:DeleteBucket", "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutBucketAcl"),
    *("s3:PutBucketVersioning", "s3:PutLifecycleConfiguration", "s3:PutObject", "s3:PutObjectAcl"),
)
_READS = (
    *("s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket", "s3:ListBucketMultipartUploads"),
    *("s3:ListBucketVersions", "s3:ListMultipartUploadParts"),
)
_TLS, _KEYS, _READERS = "OnlyOverTls", "OnlyTheseKeys", "TheseKeysOnlyRead"
_PRINCIPAL = "arn:aws:iam:::user/p{project}:{key}"  # the plain form of AWS names nobody at Hetzner
_PROJECT = re.compile(r"p(\d+)")


def lifecycle_rules() -> list[dict[str, Any]]:
    """Return what the bucket forgets by itself: parts of broken pushes, and what was deleted or replaced."""
    return [
        {
            "ID": "gpu-on-demand",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": LOST_AFTER_DAYS},
            "NoncurrentVersionExpiration": {"NoncurrentDays": LOST_AFTER_DAYS},
        }
    ]


def tls_policy(bucket: str) -> str:
    """Return the policy that lets nobody in without TLS."""
    return _document([_tls(bucket)])


def keys_policy(bucket: str, project: str, keys: Iterable[str], readers: Iterable[str] = ()) -> str:
    """Return the policy that lets nobody in without TLS, nor with another key.

    Args:
        bucket: Its name.
        project: Number of the Hetzner project that the keys belong to.
        keys: Ids of the keys that may do everything.
        readers: Ids of the keys that may read and nothing else.
    """
    readers = sorted(readers)
    mine = [_PRINCIPAL.format(project=project, key=key) for key in sorted({*keys, *readers})]
    statements = [_tls(bucket), _deny(bucket, _KEYS, (*_READS, *_WRITES), NotPrincipal={"AWS": mine})]
    if readers:
        only_read = [_PRINCIPAL.format(project=project, key=key) for key in readers]
        statements.append(_deny(bucket, _READERS, _WRITES, Principal={"AWS": only_read}))
    return _document(statements)


def keys_in(policy: str) -> set[str]:
    """Return the ids of the keys that a policy of ours lets do everything."""
    return _named(policy, _KEYS, "NotPrincipal") - readers_in(policy)


def readers_in(policy: str) -> set[str]:
    """Return the ids of the keys that a policy of ours lets read and nothing else."""
    return _named(policy, _READERS, "Principal")


def is_ours(policy: str) -> bool:
    """Say whether a policy has a statement that we would have written."""
    return any(s.get("Sid") in (_TLS, _KEYS, _READERS) for s in _statements(policy))


def project_of(owner: str) -> str | None:
    """Return the number of the Hetzner project that an owner's id names; None elsewhere.

    Source: inferred from the form of its principals (Ceph: user `p<project>`); a wrong guess is found out by the probe.
    """
    found = _PROJECT.fullmatch(owner)
    return found[1] if found else None


def canonical(document: Any) -> str:
    """Return a policy's one way to be written; empty for none."""
    if isinstance(document, str):
        try:
            document = json.loads(document) if document else None
        except ValueError:
            return str(document)
    return json.dumps(_sorted(document), sort_keys=True, separators=(",", ":")) if document else ""


def canonical_rules(rules: Iterable[Mapping[str, Any]]) -> str:
    """Return lifecycle rules' one way to be written; empty for none."""
    taken = []
    for rule in rules:
        plain = {key: value for key, value in rule.items() if key not in ("ID", "Prefix", "Filter")}
        # `Prefix` beside `Filter` is the older way to say the same.
        plain["Prefix"] = rule.get("Prefix") or (rule.get("Filter") or {}).get("Prefix", "")
        plain |= {"Filter": left} if (left := _without_prefix(rule.get("Filter"))) else {}
        taken.append(plain)
    return json.dumps(sorted(taken, key=str), sort_keys=True, separators=(",", ":")) if taken else ""


def _without_prefix(rule_filter: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (rule_filter or {}).items() if key != "Prefix"}


def _document(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _tls(bucket: str) -> dict[str, Any]:
    condition = {"Bool": {"aws:SecureTransport": "false"}}
    return _deny(bucket, _TLS, (*_READS, *_WRITES), Principal="*", Condition=condition)


def _deny(bucket: str, sid: str, actions: Iterable[str], **who: Any) -> dict[str, Any]:
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    return {"Sid": sid, "Effect": "Deny", "Action": list(actions), "Resource": resources, **who}


def _statements(policy: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(policy or "{}").get("Statement", [])
    except (ValueError, AttributeError):
        return []
    return [s for s in (found if isinstance(found, list) else [found]) if isinstance(s, dict)]


def _named(policy: str, sid: str, element: str) -> set[str]:
    """Return the ids of the keys that one statement names."""
    principals = [s.get(element) for s in _statements(policy) if s.get("Sid") == sid]
    arns = [one.get("AWS", []) for one in principals if isinstance(one, dict)]
    return {arn.rpartition(":")[2] for found in arns for arn in ([found] if isinstance(found, str) else found)}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = sorted((_sorted(one) for one in value), key=lambda one: json.dumps(one, sort_keys=True))
        return inner[0] if len(inner) == 1 else inner
    return value
