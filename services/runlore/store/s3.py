"""The object store on S3: AWS, or any server that keeps its conditional writes.

Every call is one request in a thread of the store's own pool (`s3client.py`), and its failure one of the
port's errors (`s3errors.py`). How each promise of the port is kept:

=====================  ==================================================================================
`put_if_absent`        `If-None-Match: *`
`compare_and_set`      `If-Match: <etag>`, or `If-None-Match: *`; the guard between signing and sending
`compare_and_delete`   `DELETE` with `If-Match`; a 412 is looked at again, as some servers say 412 for a missing key
`settle`               nothing: a store refuses a signature older than `SIGNATURE_WINDOW` itself
=====================  ==================================================================================

Reads are sent again after a passing fault, with growing, jittered waits and a deadline. Of the writes only
`put` is: its name is its content, so twice is once. Every other write is told to its caller, which starts again
from the head. The waiting is done on the loop, not in a thread: botocore's retry modes would hold one of a
bounded pool for it, have no deadline, and do not cover a body that is cut on its way.

Nothing outside of the prefix is read, listed or deleted: each key gets it here, and `_below` checks what a LIST
says. What lies below it under a name that is no key of ours is passed over.

An etag is the store's own: with KMS, or in parts, it is no MD5, and two writes of equal bytes may differ in it.

The order of a LIST is the server's. AWS sorts by key; SeaweedFS sorts each folder on its own, so that all of
`a/` comes before `a-b`. Within one folder both are the same, and nothing in Runlore needs more.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import datetime as dt
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from runlore import clock, errors, tasks
from runlore.settings import Settings
from runlore.store import s3client, s3errors
from runlore.store.port import Guard, Listed, Presigned, Stored, check_key, check_prefix

SIGNATURE_WINDOW = dt.timedelta(minutes=15)
"""How old a signature S3 takes: `commit/age.py` counts on it."""
READ_SECONDS_MAX = 30.0
"""How long a read (or a `put`) is tried again; each request has the timeout of the settings besides."""
READ_TRIES_MAX = 8
WAIT_SECONDS_MIN, WAIT_SECONDS_MAX = 0.05, 3.0
"""The wait before the second try, and the longest: each is doubled, then drawn from its upper half."""
SINGLE_BYTES_MAX = 32 * 1024 * 1024
"""A larger body goes in parts, so that a fault costs one part and several are under way at once."""
PART_BYTES = 16 * 1024 * 1024
PARTS_AT_ONCE = 4
BODY_BYTES_MAX = 10_000 * PART_BYTES
"""S3 takes at most 10,000 parts: 160 GB."""
DELETE_KEYS_MAX = 1000
"""Keys that one DeleteObjects takes."""
RANGE_END_MAX = 2**62
"""Servers read the end of a range as a signed 64-bit number."""
PRESIGNED_SECONDS = int(SIGNATURE_WINDOW.total_seconds())
"""How long a presigned URL may be used: the bucket's policy takes no older signature."""
PRESIGNED_BYTES_MAX = 5 * 1024**3
"""The largest object that S3 takes in one request."""
_ENCRYPTION_HEADERS = {
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
}
PROBE = "_doctor/signature"
"""The key with which `refuses_old_signatures` asks. Nothing is ever written there."""

T = TypeVar("T")


class S3Store:
    """`store.port.ObjectStore` on one bucket and prefix, for any number of processes and machines."""

    def __init__(self, place: s3client.Place) -> None:
        self.place = place
        self._client = s3client.Client(place)
        self._pool = ThreadPoolExecutor(place.connections_max, thread_name_prefix="runlore-s3")

    @classmethod
    def of(cls, settings: Settings) -> S3Store:
        """The store that `settings` name. Nothing is asked of it, and no credential is looked for yet."""
        return cls(
            s3client.Place(
                bucket=settings.s3_bucket,
                prefix=settings.s3_prefix,
                endpoint=settings.s3_endpoint,
                region=settings.s3_region,
                access_key_id=settings.s3_access_key_id.get_secret_value(),
                secret_access_key=settings.s3_secret_access_key.get_secret_value(),
                encryption=settings.s3_encryption,
                kms_key=settings.s3_kms_key,
                timeout_seconds=settings.s3_timeout_seconds,
                connections_max=settings.s3_connections_max,
            )
        )

    @property
    def on_request(self) -> s3client.OnRequest | None:
        """Told of every request (`s3client.OnRequest`); in a thread of the pool, so it must not block."""
        return self._client.on_request

    @on_request.setter
    def on_request(self, told: s3client.OnRequest | None) -> None:
        self._client.on_request = told

    # --- reading --------------------------------------------------------------------------------------

    async def get(self, key: str) -> Stored | None:
        answer = await self._read("GetObject", Key=self._key(key))
        return None if answer is None else Stored(answer["Body"], _etag(answer))

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        for key in keys:
            check_key(key)
        found: list[Stored | None] = [None] * len(keys)
        numbers = iter(range(len(keys)))

        async def work() -> None:
            for number in numbers:
                found[number] = await self.get(keys[number])

        # Half of the pool: a large batch must not keep a head's move waiting.
        await tasks.together(work() for _ in range(min(len(keys), max(1, self.place.connections_max // 2))))
        return found

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        if length <= 0:
            return await self._nothing(key)
        last = min(offset + length, RANGE_END_MAX) - 1
        answer = await self._read("GetObject", Key=self._key(key), Range=f"bytes={offset}-{last}")
        if answer is None or _is_part(answer):
            return None if answer is None else answer["Body"][:length]
        return answer["Body"][offset : offset + length]

    async def get_tail(self, key: str, length: int) -> bytes | None:
        if length <= 0:
            return await self._nothing(key)
        span = min(length, RANGE_END_MAX)
        answer = await self._read("GetObject", Key=self._key(key), Range=f"bytes=-{span}")
        return None if answer is None else answer["Body"][-span:]

    async def _nothing(self, key: str) -> bytes | None:
        """No byte of an object that is there: no range says that."""
        return None if await self._read("HeadObject", Key=self._key(key)) is None else b""

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        async for page in self._pages(Prefix=self.place.prefix + check_prefix(prefix)):
            for row in page.get("Contents", ()):
                key = self._below(row["Key"])
                if key is not None:
                    yield Listed(key, _etag(row), int(row["Size"]), row["LastModified"].timestamp())

    async def children(self, prefix: str) -> list[str]:
        start = self.place.prefix + check_prefix(prefix, folder=True)
        found: set[str] = set()
        async for page in self._pages(Prefix=start, Delimiter="/"):
            names = [row["Prefix"].rstrip("/") for row in page.get("CommonPrefixes", ())]
            names += [row["Key"] for row in page.get("Contents", ())]
            found.update(name[len(start) :] for name in names if self._below(name) is not None)
        return sorted(found)

    async def _pages(self, **params: Any) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            page = await self._read("ListObjectsV2", **params)
            if page is None:
                raise errors.StoreUnavailable(f"the store answered a LIST of {self.place!r} with 404")
            yield page
            if not page.get("IsTruncated"):
                return
            # The server's own token: what comes "after" a key differs between servers, this does not.
            params["ContinuationToken"] = page["NextContinuationToken"]

    # --- writing --------------------------------------------------------------------------------------

    async def put(self, key: str, body: bytes) -> str:
        name = self._key(key)
        return await self._again(lambda: self._write(name, body, {}))

    async def put_if_absent(self, key: str, body: bytes) -> str:
        return await self._write(self._key(key), body, {"IfNoneMatch": "*"})

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        return await self._write(self._key(key), body, condition, guard)

    async def delete(self, key: str) -> None:
        name = self._key(key)
        with contextlib.suppress(errors.PreconditionFailed):  # A 404: it is gone.
            await self._run("DeleteObject", write=True, Key=name)

    async def delete_many(self, keys: Sequence[str]) -> None:
        names = [self._key(key) for key in keys]
        if len(names) == 1:
            return await self.delete(keys[0])
        for at in range(0, len(names), DELETE_KEYS_MAX):
            asked = [{"Key": name} for name in names[at : at + DELETE_KEYS_MAX]]
            answer = await self._run("DeleteObjects", write=True, Delete={"Objects": asked, "Quiet": True})
            for refused in answer.get("Errors", ()):
                raise s3errors.of_one_key(refused, f"DeleteObjects {self.place.bucket}")

    async def compare_and_delete(self, key: str, etag: str) -> None:
        name = self._key(key)
        try:
            await self._run("DeleteObject", write=True, Key=name, IfMatch=f'"{etag}"')
        except errors.PreconditionFailed:
            # 404 on AWS, 412 elsewhere where there is nothing. Deleted by somebody else is deleted.
            if await self._read("HeadObject", Key=name) is not None:
                raise

    async def settle(self) -> None:
        """Nothing to wait for: what passed its guard too long ago is refused by its signature's age."""

    async def close(self) -> None:
        # What has not begun never will; what is under way ends with its request's timeout at the latest.
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        self._client.close()

    async def _write(
        self, name: str, body: bytes, condition: Mapping[str, str], guard: Guard | None = None
    ) -> str:
        """One object, in one request or in parts; its etag, which is the store's to make."""
        if len(body) > BODY_BYTES_MAX:
            raise errors.InvalidInput(f"{name} has {len(body)} bytes; at most {BODY_BYTES_MAX} are accepted")
        if len(body) > SINGLE_BYTES_MAX:
            return await self._write_parts(name, body, condition, guard)
        answer = await self._run(
            "PutObject",
            write=True,
            guard=guard,
            Key=name,
            Body=body,
            ChecksumCRC32=s3client.checksum(body),
            **condition,
            **self._encryption(),
        )
        return _etag(answer)

    async def _write_parts(
        self, name: str, body: bytes, condition: Mapping[str, str], guard: Guard | None
    ) -> str:
        """Nothing is there until the last request, which carries condition and guard. Parts may be sent again."""
        begun = await self._again(
            lambda: self._run(
                "CreateMultipartUpload",
                write=True,
                Key=name,
                ChecksumAlgorithm="CRC32",
                ChecksumType="FULL_OBJECT",
                **self._encryption(),
            )
        )
        upload = {"Key": name, "UploadId": begun["UploadId"]}
        try:
            parts = await self._send_parts(upload, memoryview(body))
            # Off the loop: it reads every byte, which may still lie on a disk.
            checksum = await asyncio.to_thread(s3client.checksum, body)
            answer = await self._run(
                "CompleteMultipartUpload",
                write=True,
                guard=guard,
                MultipartUpload={"Parts": parts},
                ChecksumCRC32=checksum,
                ChecksumType="FULL_OBJECT",
                **upload,
                **condition,
            )
        except errors.OutcomeUnknown:
            raise  # It may still be put together: its parts are the bucket's lifecycle rule's to clean away.
        except BaseException:
            with contextlib.suppress(errors.RunloreError):
                await asyncio.shield(self._run("AbortMultipartUpload", write=True, **upload))
            raise
        return _etag(answer)

    async def _send_parts(self, upload: Mapping[str, str], body: memoryview) -> list[dict[str, Any]]:
        starts = range(0, len(body), PART_BYTES)
        sent: list[dict[str, Any]] = [{} for _ in starts]
        numbers = iter(range(len(starts)))

        async def work() -> None:
            for number in numbers:
                part = bytes(body[starts[number] : starts[number] + PART_BYTES])
                checksum = s3client.checksum(part)
                params = {"PartNumber": number + 1, "Body": part, "ChecksumCRC32": checksum, **upload}
                answer = await self._again(
                    lambda params=params: self._run("UploadPart", write=True, **params)
                )
                sent[number] = {"PartNumber": number + 1, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

        await tasks.together(work() for _ in range(min(PARTS_AT_ONCE, len(sent))))
        return sent

    def _encryption(self) -> dict[str, str]:
        if self.place.encryption == "s3":
            return {"ServerSideEncryption": "AES256"}
        if self.place.encryption == "kms":
            key = {"SSEKMSKeyId": self.place.kms_key} if self.place.kms_key else {}
            return {"ServerSideEncryption": "aws:kms", **key}
        return {}

    async def presigned_put(self, key: str, *, sha256: str, size: int) -> Presigned:
        """The hash and the length are signed headers: AWS takes other bytes for none. Not every server looks."""
        if size > PRESIGNED_BYTES_MAX:
            raise errors.Refused(f"one request takes at most {PRESIGNED_BYTES_MAX} bytes, not {size}")
        told = base64.b64encode(bytes.fromhex(sha256)).decode()
        params = {
            "Key": self._key(key),
            "ContentLength": size,
            "ChecksumSHA256": told,
            **self._encryption(),
        }
        headers = {"Content-Length": str(size), "x-amz-checksum-sha256": told}
        headers |= {_ENCRYPTION_HEADERS[name]: value for name, value in self._encryption().items()}
        loop = asyncio.get_running_loop()
        call = functools.partial(self._client.presign, PRESIGNED_SECONDS, **params)
        return Presigned(await loop.run_in_executor(self._pool, call), headers, PRESIGNED_SECONDS)

    # --- beyond the port --------------------------------------------------------------------------------

    async def refuses_old_signatures(self, window: dt.timedelta = SIGNATURE_WINDOW) -> bool:
        """Whether a write signed longer ago than `window` is refused: what the age rule rests on.

        It asks for a write that can not land, as its condition names an etag that nothing has: signed now, the
        store must answer with the condition's failure. Raises the port's errors where it does not.
        """
        await self._ask_signed(clock.now())
        try:
            await self._ask_signed(clock.now() - window - dt.timedelta(minutes=1))
        except errors.Blocked as exc:
            if exc.context.get("status") in (401, 403):
                return True
            raise
        return False

    async def _ask_signed(self, when: dt.datetime) -> None:
        params = {"Key": self.place.prefix + PROBE, "Body": b"", "IfMatch": '"never"'}
        try:
            await self._run("PutObject", write=True, signed_at=when, **params)
        except errors.PreconditionFailed:
            return
        await self.delete(PROBE)
        raise errors.Blocked(
            "the store ignores the condition of a write (If-Match): it would lose revisions",
            hint="use a store with conditional writes",
        )

    # --- inside ---------------------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        return self.place.prefix + check_key(key)

    def _below(self, name: str) -> str | None:
        """The key of an object's name; None where it is none of ours."""
        if not name.startswith(self.place.prefix):
            return None
        try:
            return check_key(name[len(self.place.prefix) :])
        except errors.InvalidId:
            return None

    async def _read(self, operation: str, **params: Any) -> dict[str, Any] | None:
        """A read's answer, tried again while a fault may pass; None where the object is not there."""
        return await self._again(lambda: self._read_once(operation, **params))

    async def _read_once(self, operation: str, **params: Any) -> dict[str, Any] | None:
        try:
            return await self._run(operation, write=False, **params)
        except errors.RunloreError:
            raise
        except Exception as exc:
            if s3errors.status_of(exc) == 416:  # The range begins where the object ends.
                return {"Body": b"", "ResponseMetadata": {"HTTPStatusCode": 206}}
            return None

    async def _again(self, step: Callable[[], Awaitable[T]]) -> T:
        """`step`, until it succeeds or its deadline has passed. For what may be done twice."""
        give_up = clock.monotonic() + READ_SECONDS_MAX
        for attempt in range(1, READ_TRIES_MAX + 1):
            try:
                return await step()
            except (errors.StoreUnavailable, errors.OutcomeUnknown, errors.WriteConflict):
                wait = min(WAIT_SECONDS_MAX, WAIT_SECONDS_MIN * 2**attempt) * (0.5 + clock.jitter() / 2)
                if attempt == READ_TRIES_MAX or clock.monotonic() + wait > give_up:
                    raise
                await clock.sleep(wait)
        raise AssertionError("unreachable")

    async def _run(self, operation: str, **params: Any) -> dict[str, Any]:
        context = contextvars.copy_context()  # The clock's world is the caller's.
        loop = asyncio.get_running_loop()
        call = self._client.call
        return await loop.run_in_executor(self._pool, lambda: context.run(call, operation, **params))


def _etag(answer: Mapping[str, Any]) -> str:
    """An etag without its quotes: some servers leave them out of a LIST."""
    etag = str(answer.get("ETag", "")).strip('"')
    if not etag:
        raise errors.OutcomeUnknown("the store answered without an etag")
    return etag


def _is_part(answer: Mapping[str, Any]) -> bool:
    """Whether the store sent the range that was asked for; one that knows no ranges sends everything."""
    return answer["ResponseMetadata"]["HTTPStatusCode"] == 206
