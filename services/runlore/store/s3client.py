"""One request to S3 at a time, in the caller's thread: signed, then checked, then sent, at most once.

`Client.call` is the only place where a request leaves. botocore's own retries are off, because it signs each
of them anew: a process paused inside one would send a fresh signature after its age was checked, and a sweep
could have passed (`commit/age.py`). The guard runs in botocore's `before-send` hook, which comes after signing
and once for each time that bytes leave; a second time (its redirect to another region would be one) is
refused. So a guarded write is sent with the signature that its guard came after, or not at all.

Integrity: every body goes out with its CRC32, which the store checks before it keeps it, and comes back with
one that botocore checks, where the store knows it. Etags are opaque: with KMS or several parts they are no MD5.
"""

from __future__ import annotations

import base64
import datetime as dt
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runlore import __version__, clock, errors
from runlore.store import port

try:
    import boto3
    from botocore import auth, awsrequest
    from botocore.config import Config

    from runlore.store import s3errors
except ImportError as exc:
    raise errors.Refused(
        f"the store over S3 needs boto3, which is not installed ({exc.name})",
        hint="pip install 'runlore[server]'",
    ) from None

OnRequest = Callable[[str, int, int, int, float], None]
"""Called after each request, in a thread of the pool, with S3's name of the operation, the HTTP status (0: no
whole answer), the bytes of the body sent and of the one received, and the seconds it took."""

ASKED_FIRST_BYTES_MIN = 1024 * 1024
"""A body of so many bytes waits for the store's "100 Continue", so that one that is refused is not sent in vain."""
_TIMESTAMP = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Place:
    """Where the objects are and who asks for them. An empty endpoint is AWS; empty credentials are boto3's own."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""
    encryption: str = "bucket"
    kms_key: str = ""
    timeout_seconds: float = 20.0
    connections_max: int = 32

    def __repr__(self) -> str:
        return f"Place({self.bucket}/{self.prefix} at {self.endpoint or 'AWS'})"


@dataclass
class _Sending:
    """The call that a thread is in, as the hook sees it."""

    operation: str
    guard: port.Guard | None
    signed_at: dt.datetime | None
    """Sign with this time instead: how `refuses_old_signatures` asks."""
    sent_bytes: int
    """Size of its body."""
    times: int = 0
    refused: BaseException | None = None
    """What the guard raised."""


class Client:
    """boto3's client for one place. Threads share it; it is made by the first call, which may take 0.2 s."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.on_request: OnRequest | None = None
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._session: Any = None
        self._made: Any = None

    def call(
        self,
        operation: str,
        *,
        write: bool,
        guard: port.Guard | None = None,
        signed_at: dt.datetime | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        """S3's answer to `operation` (`PutObject`, with its own parameters), a `Body` read to its end.

        Raises botocore's own error for a missing object of a read (`s3errors.is_missing`) and for a range that
        begins beyond the end; else the port's errors, and whatever the guard raises.
        """
        sending = _Sending(operation, guard, signed_at, len(params.get("Body") or b""))
        began = clock.monotonic()
        status = received = 0
        try:
            answer = self._send(sending, params)
            status = int(answer["ResponseMetadata"]["HTTPStatusCode"])
            received = len(answer.get("Body") or b"")
            return answer
        except Exception as exc:
            status = s3errors.status_of(exc)
            if exc is sending.refused or (not write and (s3errors.is_missing(exc) or status == 416)):
                raise
            raise s3errors.translated(
                exc,
                f"{operation} {self._named(params)}",
                write=write,
                sent=sending.times > 0,
                signed_seconds=clock.monotonic() - began,
            ) from exc
        finally:
            if self.on_request is not None and sending.times:
                seconds = clock.monotonic() - began
                self.on_request(operation, status, sending.sent_bytes, received, seconds)

    def presign(self, seconds: int, **params: Any) -> str:
        """The URL of a `PutObject` with these parameters, whose headers it signs. Asks the store nothing."""
        client = self._made or self._make()
        try:
            return client.generate_presigned_url(
                "put_object",
                Params={"Bucket": self.place.bucket, **params},
                ExpiresIn=seconds,
                HttpMethod="PUT",
            )
        except Exception as exc:
            what = f"presign {self._named(params)}"
            raise s3errors.translated(exc, what, write=False, sent=False, signed_seconds=0.0) from exc

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()
            self._made = None

    # --- inside ---------------------------------------------------------------------------------------

    def _send(self, sending: _Sending, params: Mapping[str, Any]) -> dict[str, Any]:
        client = self._made or self._make()
        self._threads.sending = sending
        try:
            answer = getattr(client, _METHODS[sending.operation])(Bucket=self.place.bucket, **params)
            if "Body" in answer:
                answer["Body"] = _whole(answer)
            return answer
        finally:
            self._threads.sending = None

    def _named(self, params: Mapping[str, Any]) -> str:
        name = str(params.get("Key", params.get("Prefix", "")))
        return f"{self.place.bucket}/{name}"

    def _make(self) -> Any:
        """The client. Nothing is asked of the store yet, but a role's own service may be."""
        with self._lock:
            if self._made is None:
                place = self.place
                self._session = boto3.session.Session(
                    aws_access_key_id=place.access_key_id or None,
                    aws_secret_access_key=place.secret_access_key or None,
                    region_name=place.region or None,
                )
                # A server that is not AWS has one region, whatever it is called.
                region = self._session.region_name or ("us-east-1" if place.endpoint else None)
                self._made = self._session.client(
                    "s3", endpoint_url=place.endpoint or None, region_name=region, config=_config(place)
                )
                self._made.meta.events.register("before-send.s3", self._before_send)
                self._made.meta.events.register_last("before-call.s3", self._before_call)
            return self._made

    def _before_call(self, params: Mapping[str, Any], **_: Any) -> None:
        """A small body goes with its headers. botocore asks before it sends any: a round trip for each PUT."""
        sending: _Sending | None = getattr(self._threads, "sending", None)
        if sending is not None and sending.sent_bytes < ASKED_FIRST_BYTES_MIN:
            params["headers"].pop("Expect", None)

    def _before_send(self, request: Any, event_name: str, **_: Any) -> None:
        """The last moment before bytes leave: the request is signed and will not be signed again."""
        sending: _Sending | None = getattr(self._threads, "sending", None)
        if sending is None:
            return
        if sending.times or event_name.endswith(".HeadBucket"):
            # botocore follows the answer of another region, or asks where the bucket lies to do so.
            raise errors.Blocked(
                f"{self.place.bucket} lies in another region; nothing is signed and sent a second time",
                hint=s3errors.HINTS["PermanentRedirect"],
            )
        if sending.signed_at is not None:
            self._sign_as_of(request, sending.signed_at)
        try:
            if sending.guard is not None:
                sending.guard()
        except BaseException as exc:
            sending.refused = exc
            raise
        sending.times += 1

    def _sign_as_of(self, request: Any, when: dt.datetime) -> None:
        """Replace the request's signature by one of another time."""
        headers = {name: _text(value) for name, value in request.headers.items()}
        again = awsrequest.AWSRequest(request.method, request.url, headers, request.body)
        region = self._made.meta.region_name
        _SignsAsOf(self._session.get_credentials().get_frozen_credentials(), "s3", region, when).add_auth(
            again
        )
        for name, value in again.headers.items():
            request.headers[name] = value


class _SignsAsOf(auth.S3SigV4Auth):
    """Signature version 4 with the time it is given. The credential's own time limit stays."""

    def __init__(self, credentials: Any, service: str, region: str, when: dt.datetime) -> None:
        super().__init__(credentials, service, region)
        self._when = when.astimezone(dt.UTC)

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = self._when.strftime(_TIMESTAMP)
        super()._modify_request_before_signing(request)


def _whole(answer: Mapping[str, Any]) -> bytes:
    """The body of an answer, all of it: botocore counts the bytes and checks their sum where it is told one."""
    stream = answer["Body"]
    try:
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if "content-length" not in headers and headers.get("transfer-encoding") != "chunked":
            raise errors.StoreUnavailable("the store's answer does not say how long it is")
        return stream.read()
    finally:
        stream.close()  # Of a body that was cut, the connection too.


def checksum(body: bytes) -> str:
    """The CRC32 of a body as S3 writes it."""
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


def _config(place: Place) -> Config:
    return Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=place.connections_max,
        connect_timeout=place.timeout_seconds,
        read_timeout=place.timeout_seconds,
        tcp_keepalive=True,
        # Built anew for each request, botocore's own takes a tenth of the processor time of a small PUT.
        user_agent=f"runlore/{__version__} Boto3/{boto3.__version__}",
        # Every parameter is made here and not by a caller.
        parameter_validation=False,
        # Bucket names as host names need DNS that only AWS has.
        s3={"addressing_style": "path" if place.endpoint else "auto"},
        # Ours goes in a header. botocore's would make the body a stream in chunks, which not every server reads.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported",
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_METHODS = {
    "GetObject": "get_object",
    "HeadObject": "head_object",
    "PutObject": "put_object",
    "DeleteObject": "delete_object",
    "DeleteObjects": "delete_objects",
    "ListObjectsV2": "list_objects_v2",
    "CreateMultipartUpload": "create_multipart_upload",
    "UploadPart": "upload_part",
    "CompleteMultipartUpload": "complete_multipart_upload",
    "AbortMultipartUpload": "abort_multipart_upload",
}
"""Every operation that Runlore uses: the list that a policy of least privilege follows from."""
