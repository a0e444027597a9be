"""What a foreign event only points to: objects below a prefix that the mapping allows, and nothing else.

An event is not trusted, and a URL in it is a request to read with our credentials. So it must begin with an allowed
prefix that ends in `/`, letter by letter, and hold nothing that two readers could read differently: no `..`, no
empty part, no `%` escape, no query. `http` is never fetched.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from runlore import errors

OBJECT_BYTES_MAX = 64 * 1024 * 1024
"""Largest object with messages that is read unless the mapping says less, in bytes, unpacked."""
ARCHIVE_BYTES_MAX = 256 * 1024 * 1024
"""Largest workspace archive that is read, in bytes: it is in memory once. A larger one is saved as a snapshot."""
_KEY = re.compile(r"[^\x00-\x20\x7f\\%?#]+")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_GZIP = b"\x1f\x8b"
_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchVersion"})
_FORBIDDEN = frozenset(
    {
        "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
        "ExpiredTokenException", "InvalidToken", "NoSuchBucket", "AllAccessDisabled", "PermanentRedirect",
    }
)  # fmt: skip

Fetch = Callable[[str, int], bytes]
"""`fetch(url, bytes_max)`: the object's bytes. Blocking. Raises as `reader` says."""


def check_prefix(prefix: str) -> str:
    """`prefix`, if a mapping may allow it. Raises `errors.BadMapping`."""
    bucket, _, rest = prefix.removeprefix("s3://").partition("/")
    whole = prefix.startswith("s3://") and _BUCKET.fullmatch(bucket) and prefix.endswith("/")
    if not whole or (rest and not _is_clean(rest.removesuffix("/"))):
        raise errors.BadMapping(
            f"objects.prefixes: {prefix!r} is no prefix", hint='as in "s3://bucket/folder/", ending in /'
        )
    return prefix


def check_url(url: Any, prefixes: Sequence[str], name: str) -> str:
    """`url`, if it lies below one of `prefixes`. Raises `errors.ObjectRefused`, never with the URL itself."""
    if not isinstance(url, str):
        raise errors.ObjectRefused(f"{name} is no URL")
    if not prefixes:
        raise errors.ObjectRefused(f"{name} names an object, and objects.prefixes allows none")
    found = next((prefix for prefix in prefixes if url.startswith(prefix)), None)
    if found is None:
        raise errors.ObjectRefused(
            f"{name} names an object that is not below {' or '.join(prefixes)}",
            hint="s3:// URLs only; a prefix is compared letter by letter",
        )
    if not _is_clean(url.removeprefix("s3://").partition("/")[2]):
        raise errors.ObjectRefused(
            f"{name} names an object by a key with '..', '%', '?', a blank or an empty part",
            hint="give the key as the store has it, without escapes",
        )
    return url


def _is_clean(key: str) -> bool:
    return _KEY.fullmatch(key) is not None and not {"", ".", ".."} & set(key.split("/"))


def unpacked(body: bytes, bytes_max: int, name: str) -> bytes:
    """`body`, unpacked if it is gzip. Raises `errors.ObjectTooLarge`, `errors.Undecodable`."""
    if not body.startswith(_GZIP):
        return body
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(body, bytes_max + 1)
    except zlib.error:
        raise errors.Undecodable(f"{name}: the object is damaged gzip") from None
    if len(out) > bytes_max:
        raise errors.ObjectTooLarge(f"{name}: the object has more than {bytes_max} bytes unpacked")
    if not unpacker.eof:
        raise errors.Undecodable(f"{name}: the object is gzip that ends too early")
    return out


def reader(client: Any) -> Fetch:
    """A fetch over a boto3 S3 client.

    It raises `errors.ObjectMissing`, `errors.ObjectTooLarge`; `errors.Blocked` where a permission is missing, which
    is nobody's event's fault; `errors.SourceUnavailable` where trying again may help.
    """
    import botocore.exceptions as failures

    def fetch(url: str, bytes_max: int) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            got = client.get_object(Bucket=bucket, Key=key)
            with got["Body"] as body:
                if got["ContentLength"] > bytes_max:
                    raise errors.ObjectTooLarge(
                        f"the object has {got['ContentLength']} bytes; at most {bytes_max} are read"
                    )
                content = body.read(bytes_max + 1)
            if len(content) != got["ContentLength"]:
                raise errors.SourceUnavailable(f"an object of bucket {bucket} came cut off")
            return content
        except failures.ClientError as exc:
            raise _of_client(exc, bucket) from exc
        except (failures.NoCredentialsError, failures.PartialCredentialsError) as exc:
            raise errors.Blocked(f"no credentials to read bucket {bucket}") from exc
        except failures.ParamValidationError as exc:
            raise errors.ObjectRefused("the object's URL is not one that S3 takes") from exc
        except (failures.BotoCoreError, failures.HTTPClientError, OSError) as exc:
            raise errors.SourceUnavailable(f"bucket {bucket} did not answer: {type(exc).__name__}") from exc

    return fetch


def _of_client(exc: Any, bucket: str) -> errors.RunloreError:
    code = str(exc.response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return errors.ObjectMissing(
            f"the object is not in bucket {bucket}", hint="put it there, then redrive"
        )
    if code in _FORBIDDEN:
        return errors.Blocked(
            f"bucket {bucket} refuses the read ({code})",
            hint="allow s3:GetObject on the mapping's prefixes, and s3:ListBucket so that a missing object is told "
            "from a forbidden one",
        )
    return errors.SourceUnavailable(f"bucket {bucket} answered {code or 'an error'}")


def lazily(make: Callable[[], Any]) -> Fetch:
    """A fetch whose client is made by the first call: most mappings need none, and boto3 takes long to load."""
    made: list[Fetch] = []
    making = threading.Lock()

    def fetch(url: str, bytes_max: int) -> bytes:
        with making:
            if not made:
                made.append(reader(make()))
        return made[0](url, bytes_max)

    return fetch


def client(
    *,
    endpoint: str = "",
    region: str = "",
    access_key_id: str = "",
    secret_access_key: str = "",
    timeout_seconds: float = 20.0,
    connections_max: int = 32,
) -> Any:
    """A boto3 S3 client; what is empty is boto3's own choice. Raises `errors.Blocked` where boto3 is not there.

    It reads only, so botocore may retry by itself.
    """
    try:
        import boto3
        from botocore import config
    except ImportError:
        raise errors.Blocked("reading objects needs boto3", hint="pip install 'runlore[server]'") from None
    return boto3.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region or None,
        aws_access_key_id=access_key_id or None,
        aws_secret_access_key=secret_access_key or None,
        config=config.Config(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            max_pool_connections=connections_max,
            retries={"mode": "standard", "total_max_attempts": 3},
            s3={"addressing_style": "path"} if endpoint else {},
        ),
    )
