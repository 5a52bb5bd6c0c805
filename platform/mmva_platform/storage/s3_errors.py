"""Maps an S3 failure to a kind of storage error, and decides how long to wait before another attempt."""

import random

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as UrllibError

from mmva_platform.storage import base

# No answer, or an incomplete one. ResponseParserError is raised for XML that was cut off.
_TRANSIENT = (
    boto.ConnectionError, boto.FlexibleChecksumError, boto.HTTPClientError, boto.IncompleteReadError,
    boto.ReadTimeoutError, ResponseParserError, boto.ResponseStreamingError, UrllibError,
)  # fmt: skip
FAILURES = (boto.ClientError, boto.BotoCoreError, *_TRANSIENT)
_NO_CREDENTIALS = (
    boto.CredentialRetrievalError, boto.InvalidConfigError, boto.NoCredentialsError, boto.PartialCredentialsError,
    boto.ProfileNotFound, boto.SSOError, boto.TokenRetrievalError,
)  # fmt: skip
_UNREACHABLE = (boto.ConnectTimeoutError, boto.EndpointConnectionError, boto.ProxyConnectionError, boto.SSLError)
_BAD_CREDENTIALS = {
    "AccountProblem", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "NotSignedUp",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException",
}  # fmt: skip
_BAD_BUCKET = {"AllAccessDisabled", "AuthorizationHeaderMalformed", "InvalidBucketName", "PermanentRedirect"}
_DENIED = {"AccessDenied", "Forbidden"}
_MISSING = {"NoSuchKey", "NotFound"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "ConditionalRequestConflict"}
_MAX_BACKOFF_S = 20.0


def typed_failure(place: str, error: Exception) -> base.StorageError:
    """The StorageError for a failure at a place; StorageUnavailable if another attempt may help."""
    if isinstance(error, boto.ClientError):
        return _typed_answer(place, error)
    if isinstance(error, _NO_CREDENTIALS):
        return _environment(
            base.StorageDenied(f"{place}: no S3 credentials found (environment, profile or role): {error}")
        )
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, _TRANSIENT):
        return base.StorageError(f"{place}: {error}")
    failure = base.StorageUnavailable(f"{place}: {' '.join(str(error).split())}")
    return _environment(failure) if isinstance(error, _UNREACHABLE) else failure


def back_off_s(attempt: int, *, throttled: bool) -> float:
    """Seconds to wait after attempt number `attempt`, from 1: full jitter, under a limit that doubles each time."""
    base_s = 1.0 if throttled else 0.1
    return random.uniform(0, min(_MAX_BACKOFF_S, base_s * 2 ** (attempt - 1)))


def status_of(error: boto.ClientError) -> int:
    """HTTP status of an answer; 0 if it is not known."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_throttled(error: Exception) -> bool:
    """Whether the server asks for fewer requests."""
    return isinstance(error, boto.ClientError) and status_of(error) in {429, 503}


def _typed_answer(place: str, error: boto.ClientError) -> base.StorageError:
    details = error.response.get("Error", {})
    code, message, status = str(details.get("Code", "")), str(details.get("Message", "")), status_of(error)
    if (failure := _environment_fault(place, code, message)) is not None:
        return _environment(failure)
    if status == 404 or code in _MISSING:
        return base.StorageNotFound(f"{place}: not found")
    if status in {401, 403} or code in _DENIED:
        return base.StorageDenied(f"{place}: access denied ({code or status})")
    if status == 501 or code == "NotImplemented":
        return base.StorageUnsupported(f"{place}: this store does not support that ({message or code or status})")
    if status >= 500 or status in {409, 429} or code in _BUSY:
        return base.StorageUnavailable(f"{place}: storage is unavailable ({code or status})")
    return base.StorageError(f"{place}: {code or status} {message}".rstrip())


def _environment_fault(place: str, code: str, message: str) -> base.StorageError | None:
    """The failure if it affects every object: the encryption key, the credentials or the bucket."""
    if code.startswith("KMS.") or "kms:" in message:  # an AccessDenied that names kms:Decrypt is about the key
        return base.StorageDenied(f"{place}: the bucket's encryption key cannot be used ({code}: {message})")
    if code in _BAD_CREDENTIALS:
        return base.StorageDenied(f"{place}: access denied, the credentials are not accepted ({code})")
    if code == "NoSuchBucket":
        return base.StorageNotFound(f"{place}: not found (no such bucket)")
    if code in _BAD_BUCKET:
        return base.StorageError(f"{place}: {code} {message}".rstrip())
    return None


def _environment(failure: base.StorageError) -> base.StorageError:
    failure.environment = True
    return failure
