"""What a failed request to S3 means: one of the port's errors, by what its caller must do. Pure.

A read that fails may always be sent again. For a write the question is whether it may have had an effect:

=====================================================  ==========================================
it never left this machine, or the store turned it     `StoreUnavailable`: nothing landed
away before doing anything (throttled, bad digest)
412, and 404 on a condition                            `PreconditionFailed`: somebody was there
409                                                    `WriteConflict`: nothing landed
no answer, a cut answer, 500, 502, 504, a bare 503     `OutcomeUnknown`: it may have landed, or may yet
a credential, a permission, the bucket, the region,    `Blocked`: a person must act
the encryption key, or what the store can not do
=====================================================  ==========================================

A 503 counts as "turned away" only with a code of S3's own in it: a gateway's bare 503 may stand for a server
that died after it had written. What is not known is treated as the worse case: `OutcomeUnknown` for a
write's 5xx, `Blocked` for a 4xx, because a stage that waits loses nothing.

Messages name the object, the code and the request's id, never a credential or a signature.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as aws

from runlore import errors

MESSAGE_CHARS_MAX = 300

TURNED_AWAY = {
    "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "Throttling", "ThrottlingException",
    "ThrottledException", "RequestThrottled", "RequestLimitExceeded", "TooManyRequests",
    "TooManyRequestsException", "BandwidthLimitExceeded", "KMS.ThrottlingException",
    # The body did not arrive as it was sent:
    "RequestTimeout", "IncompleteBody", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}  # fmt: skip
"""Codes with which S3 says that it did nothing, and that sending it again may help."""

OLD_SIGNATURE = {"RequestTimeTooSkewed", "RequestExpired"}
"""Codes with which a store refuses a request that was signed too long ago, or in the future."""

MISSING = {"NoSuchKey", "NotFound", "404", "NoSuchVersion"}

HINTS = {
    "NoSuchBucket": "create the bucket, or correct RUNLORE_S3_BUCKET",
    "AccessDenied": "give these credentials the permission (docs: the bucket policy in infra/), or correct them",
    "AllAccessDisabled": "the bucket or its account is disabled: ask who owns it",
    "InvalidAccessKeyId": "correct RUNLORE_S3_ACCESS_KEY_ID, or the role or profile that boto3 finds",
    "SignatureDoesNotMatch": "correct RUNLORE_S3_SECRET_ACCESS_KEY; a proxy that changes the Host header does this too",
    "ExpiredToken": "log in again, or let the role be renewed",
    "InvalidToken": "log in again, or let the role be renewed",
    "TokenRefreshRequired": "log in again, or let the role be renewed",
    "PermanentRedirect": "the bucket lies in another region: set RUNLORE_S3_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket lies in another region: set RUNLORE_S3_REGION to it",
    "IllegalLocationConstraintException": "the bucket lies in another region: set RUNLORE_S3_REGION to it",
    "RequestTimeTooSkewed": "this machine's clock differs from the store's by more than 15 minutes: correct it",
    "RequestExpired": "this machine's clock differs from the store's by more than 15 minutes: correct it",
    "InvalidObjectState": "the object was moved to an archive class: restore it, and keep lifecycle rules off",
    "NotImplemented": "the store can not do this: `runlore doctor` says what it must be able to do",
    "QuotaExceeded": "raise the bucket's quota, or free space",
    "KMS.DisabledException": "enable the KMS key, or correct RUNLORE_S3_KMS_KEY",
    "KMS.NotFoundException": "correct RUNLORE_S3_KMS_KEY",
}
"""What to do about a code that only a person can change."""

_NEVER_SENT = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError)
_NO_CREDENTIALS = (
    aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound, aws.NoRegionError,
    aws.InvalidRegionError, aws.ConfigNotFound, aws.ConfigParseError, aws.UnauthorizedSSOTokenError,
    aws.SSOTokenLoadError, aws.TokenRetrievalError, aws.ParamValidationError, aws.InvalidConfigError,
)  # fmt: skip
_CREDENTIALS_LATER = (aws.CredentialRetrievalError, aws.MetadataRetrievalError)
"""The role's own service did not answer: it usually does a moment later."""


def status_of(exc: BaseException) -> int:
    """The HTTP status that a failed call was answered with; 0 where there was no whole answer."""
    response = getattr(exc, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if response else 0


def code_of(exc: BaseException) -> str:
    """S3's error code of a failed call; empty where there is none."""
    response = getattr(exc, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if response else ""


def is_missing(exc: BaseException) -> bool:
    """Whether the object (not its bucket, not an upload) is not there."""
    return status_of(exc) == 404 and code_of(exc) in MISSING


def translated(
    exc: Exception, what: str, *, write: bool, sent: bool = True, signed_seconds: float = 0.0
) -> errors.RunloreError:
    """The port's error for a failed call.

    `what` names call and object, `sent` is whether the request may have left this machine, `signed_seconds`
    how long ago it was signed.
    """
    if isinstance(exc, errors.RunloreError):
        return exc
    if isinstance(exc, aws.ClientError):
        return _of_answer(exc, what, write=write, signed_seconds=signed_seconds)
    if isinstance(exc, _NO_CREDENTIALS):
        return errors.Blocked(f"{what}: {exc}", hint="check the RUNLORE_S3_* settings and boto3's own")
    if _distrusts(exc):
        return errors.Blocked(
            f"{what}: the store's certificate is not trusted ({exc})",
            hint="name its CA in AWS_CA_BUNDLE, or correct RUNLORE_S3_ENDPOINT",
        )
    if isinstance(exc, aws.FlexibleChecksumError) and not write:
        return errors.StoreUnavailable(f"{what}: the bytes that came are not those of their checksum")
    if not write or not sent or isinstance(exc, (*_NEVER_SENT, *_CREDENTIALS_LATER)):
        return errors.StoreUnavailable(f"{what}: {_short(exc)}", hint="check RUNLORE_S3_ENDPOINT")
    return errors.OutcomeUnknown(f"{what}: the reply was lost: {_short(exc)}")


def _of_answer(exc: aws.ClientError, what: str, *, write: bool, signed_seconds: float) -> errors.RunloreError:
    status, code = status_of(exc), code_of(exc)
    message = f"{what}: {status} {code}: {_short(exc.response['Error'].get('Message', ''))}".rstrip(": ")
    context = _context(exc)
    if status == 412 or (write and is_missing(exc)):
        return errors.PreconditionFailed(message, **context)
    if status == 409:
        return errors.WriteConflict(message, **context)
    if code in TURNED_AWAY or status == 429:
        return errors.StoreUnavailable(message, **context)
    if code in OLD_SIGNATURE and signed_seconds > 60:
        # The process was paused between signing and sending. Nothing landed; the next try is signed anew.
        return errors.StoreUnavailable(f"{message} (this process was paused)", **context)
    if code == "NoSuchUpload":  # Of a multipart write: it was completed, or cleaned away.
        return errors.OutcomeUnknown(message, **context)
    if status >= 500 and status != 501:
        return (errors.OutcomeUnknown if write else errors.StoreUnavailable)(message, **context)
    hint = HINTS.get(code) or (HINTS["AccessDenied"] if status in (401, 403) else None)
    return errors.Blocked(message, hint=hint or "see what the store says about this code", **context)


def of_one_key(row: Mapping[str, Any], what: str) -> errors.RunloreError:
    """The port's error for one row of what a batch delete could not delete."""
    code = str(row.get("Code", ""))
    message = f"{what}/{row.get('Key', '')}: {code}: {_short(row.get('Message', ''))}".rstrip(": ")
    if code in ("InternalError", "OperationAborted") or code in TURNED_AWAY:
        return errors.StoreUnavailable(
            message, code=code
        )  # What was not deleted is named: it is still there.
    return errors.Blocked(message, hint=HINTS.get(code, "see what the store says about this code"), code=code)


def _context(exc: aws.ClientError) -> dict[str, Any]:
    request = exc.response.get("ResponseMetadata", {}).get("RequestId")
    return {"status": status_of(exc), "code": code_of(exc), **({"request": request} if request else {})}


def _distrusts(exc: object, depth: int = 8) -> bool:
    """Whether a certificate was not accepted, so that the connection was never made. Each library wraps it."""
    if isinstance(exc, ssl.SSLCertVerificationError) or not isinstance(exc, BaseException) or not depth:
        return isinstance(exc, ssl.SSLCertVerificationError)
    return any(_distrusts(inner, depth - 1) for inner in (exc.__cause__, exc.__context__, *exc.args))


def _short(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= MESSAGE_CHARS_MAX else f"{text[:MESSAGE_CHARS_MAX]}…"
