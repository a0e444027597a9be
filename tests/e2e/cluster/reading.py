"""What is there afterwards, read without our code: S3 by boto3 with every version, topics by a plain consumer.

The bucket keeps versions, so that the history of every object is there to be judged: an object that was
overwritten shows it, whatever is in its place now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import brokers

HEADS = ("rollouts", "memories", "workspaces")
"""Kinds whose every version is read, not only the last."""
READERS = 8


@dataclass(frozen=True)
class Version:
    """One version of one object, or the marker of its deletion; `body` where it was read."""

    etag: str
    body: bytes | None = None
    deleted: bool = False


@dataclass(frozen=True)
class Message:
    """One message of a topic."""

    partition: int
    offset: int
    value: bytes | None
    headers: dict[str, bytes]


@dataclass
class World:
    """Everything that is there."""

    versions: dict[str, list[Version]] = field(default_factory=dict)
    """Every version of every key, oldest first."""
    runs: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)

    @property
    def objects(self) -> dict[str, bytes]:
        """The present body of each key."""
        return {
            key: found[-1].body
            for key, found in self.versions.items()
            if not found[-1].deleted and found[-1].body is not None
        }


def read(client: Any, bucket: str, servers: str, topic_prefix: str) -> World:
    """The bucket's whole history, and both topics from their first message."""
    return World(
        versions(client, bucket),
        messages(servers, topic_prefix + "runs"),
        messages(servers, topic_prefix + "dead"),
    )


def messages(servers: str, topic: str) -> list[Message]:
    found = asyncio.run(brokers.everything(servers, topic))
    return [Message(one.partition, one.offset, one.value, dict(one.headers)) for one in found]


def versions(client: Any, bucket: str, prefix: str = "") -> dict[str, list[Version]]:
    rows: list[tuple[str, dict]] = []
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
        rows += [(row["Key"], row) for row in page.get("Versions", ())]
        rows += [(row["Key"], {**row, "deleted": True}) for row in page.get("DeleteMarkers", ())]
    listed = {
        row["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for row in page.get("Contents", ())
    }
    present = {key for key, row in rows if row["IsLatest"] and not row.get("deleted")}
    assert present == listed, f"two kinds of LIST differ: {sorted(present ^ listed)[:5]}"

    def body(row: dict) -> bytes | None:
        key = row["Key"]
        if row.get("deleted") or not (row["IsLatest"] or key.split("/")[1] in HEADS):
            return None
        return client.get_object(Bucket=bucket, Key=key, VersionId=row["VersionId"])["Body"].read()

    with ThreadPoolExecutor(READERS) as pool:
        bodies = list(pool.map(body, (row for _, row in rows)))
    return _by_key(rows, bodies)


def _by_key(rows: list[tuple[str, dict]], bodies: Iterable[bytes | None]) -> dict[str, list[Version]]:
    """Rows of a LIST (of each key the newest first) as versions by key, oldest first."""
    found: dict[str, list[tuple[tuple, Version]]] = {}
    for place, ((key, row), body) in enumerate(zip(rows, bodies, strict=True)):
        version = Version(row.get("ETag", "").strip('"'), body, bool(row.get("deleted")))
        # Markers come apart from versions, so the time decides between them, and last what the server says is last.
        order = (row["IsLatest"], row["LastModified"], -place)
        found.setdefault(key, []).append((order, version))
    return {
        key: [version for _, version in sorted(some, key=lambda one: one[0])] for key, some in found.items()
    }
