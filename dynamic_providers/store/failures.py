"""What went wrong with the bucket, and what to change: one message for each way that S3 says no."""

from typing import TYPE_CHECKING

from dynamic_providers.errors import StoreError

if TYPE_CHECKING:  # importing boto3 takes a third of a second; who comes here has done it
    from botocore.exceptions import ClientError

BUCKET_RULE = "3 to 63 small letters, digits, `-` and `.`, a letter or digit at both ends"
CREDENTIALS = "Hetzner Console: project, Security, S3 credentials"


class NoSuchBucketError(StoreError):
    """The bucket does not exist."""


class NoSuchUploadError(StoreError):
    """An upload in parts is over: completed or cleared away."""


class UnreachableError(StoreError):
    """Nobody answers at the endpoint."""


class AccessError(StoreError):
    """The keys are wrong, or not for this bucket."""


def status_of(error: "ClientError") -> int:
    """Return the HTTP status that came with a refusal; 0 if there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: "ClientError") -> str:
    """Return S3's word for a refusal; empty if there is none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def explain(error: Exception, *, bucket: str, endpoint: str, keys: str) -> StoreError:
    """Return what the operator should read instead of *error*, which is boto3's.

    Args:
        error: What boto3 raised.
        bucket: The bucket's name.
        endpoint: Where it was looked for.
        keys: Where the keys came from.
    """
    from botocore import exceptions as boto

    told = (boto.ClientError, boto.BotoCoreError)
    # boto3's uploads wrap what botocore raised into an error without its code.
    cause = error.__context__ if isinstance(error.__context__, told) and not isinstance(error, told) else error
    if isinstance(cause, boto.ClientError):
        return _refused(cause, bucket, endpoint, keys)
    if isinstance(cause, boto.SSLError):
        return UnreachableError(
            f"{endpoint} shows a certificate that is not trusted here ({_reason(cause)}).\n"
            f"  A service with its own authority needs AWS_CA_BUNDLE=<its PEM file>."
        )
    if isinstance(cause, boto.ConnectionError | boto.HTTPClientError):
        return UnreachableError(
            f"bucket {bucket!r}: no answer from {endpoint} ({_reason(cause)}).\n"
            f"  Check the network, `store.location`, `store.endpoint` and AWS_ENDPOINT_URL_S3."
        )
    if isinstance(cause, boto.ProfileNotFound | boto.NoCredentialsError | boto.PartialCredentialsError):
        return AccessError(f"{_first_line(cause)}: check `store.profile` and AWS_PROFILE")
    if isinstance(cause, boto.ParamValidationError):
        return StoreError(f"no bucket can be named {bucket!r}: {BUCKET_RULE}; correct `store.bucket`")
    if isinstance(cause, OSError) and "CA certificate" in str(cause):
        return StoreError(f"AWS_CA_BUNDLE: {_first_line(cause)}")
    return StoreError(f"bucket {bucket!r} at {endpoint}: {_first_line(cause)}")


def _refused(error: "ClientError", bucket: str, endpoint: str, keys: str) -> StoreError:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return NoSuchBucketError(
            f"no bucket {bucket!r} at {endpoint}: correct `store.bucket` and `store.location`,\n"
            f"  or create it by putting a model there: gpu models push <folder>"
        )
    if code == "NoSuchUpload":
        return NoSuchUploadError(f"bucket {bucket!r}: an upload was cleared away while it ran: push again")
    if code in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
        return StoreError(
            f"the name {bucket!r} belongs to somebody else: names of buckets are shared by all customers of the "
            f"service; choose another as `store.bucket`"
        )
    if code == "RequestTimeTooSkewed":
        return AccessError(f"{endpoint} refuses requests because this machine's clock is wrong: set it")
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthorizationHeaderMalformed"):
        part = "secret key is not the access key's" if code == "SignatureDoesNotMatch" else "access key is unknown"
        return AccessError(f"{endpoint}: the {part} ({code}); keys from {keys}. New ones: {CREDENTIALS}")
    if status in (401, 403):
        return AccessError(
            f"bucket {bucket!r} at {endpoint}: access denied ({code}) with the keys from {keys}.\n"
            f"  Either they are wrong, or the bucket belongs to another project: names of buckets are shared by all "
            f"customers of the service."
        )
    if code == "InvalidBucketName":
        return StoreError(f"no bucket can be named {bucket!r}: {BUCKET_RULE}; correct `store.bucket`")
    if status in (429, 500, 502, 503, 504):
        return UnreachableError(f"{endpoint} is overloaded or out of order ({status} {code}); try again later")
    return StoreError(f"bucket {bucket!r} at {endpoint}: {_first_line(error)}")


def _reason(error: BaseException) -> str:
    """Return what the operating system or the TLS library said, below all wrappers."""
    reason, seen = "", error
    while True:
        reason = getattr(seen, "verify_message", "") or getattr(seen, "strerror", "") or reason
        below = getattr(seen, "kwargs", {}).get("error") or seen.__cause__ or seen.__context__
        if not isinstance(below, BaseException):
            return reason or ("timed out" if "Timeout" in type(error).__name__ else _first_line(error))
        seen = below


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
