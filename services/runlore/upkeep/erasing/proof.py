"""Proof: whether what a receipt says is gone is gone, from every byte that is kept.

By names: what the receipt's heads, revisions and records say now. By bytes: needles that whoever asks gives (a receipt
holds no text), looked for in every object, also in what is compressed, in messages, and in this machine's files.
"""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from runlore import errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures, keys, packs
from runlore.snapshots import packs as snapshot_packs
from runlore.store import port as store_port
from runlore.testing import erasure_invariants

NEEDLE_CHARS_MIN = 6
NEEDLES_MAX = 1000
FRAME_BYTES_MAX = 80 * 1024 * 1024
FILES = ("index.db", "index.db-wal", "log.db", "log.db-wal")
"""Of a home: what is scanned as it lies on the disk, free pages and all."""
Progress = Callable[[int, str], None]


@dataclass
class Proof:
    """What was looked at, and where something is left."""

    scanned: dict[str, int] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    bus: list[dict[str, str]] = field(default_factory=list)
    """Messages that hold a needle, on a bus that lets none go: with the time until which its topic keeps each."""

    def look(self, what: str, where: str, bodies: Iterable[bytes], needles: Sequence[bytes]) -> None:
        if self.holds(what, bodies, needles):
            self.problems.append({"where": where, "what": "it holds one of the needles"})

    def holds(self, what: str, bodies: Iterable[bytes], needles: Sequence[bytes]) -> bool:
        self.scanned[what] = self.scanned.get(what, 0) + 1
        return any(needle in body for body in bodies for needle in needles)


def needles_in(text: str) -> list[bytes]:
    """The needles of a file, one a line, each as bytes and as JSON spells it. Raises `errors.InvalidInput`."""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if short := [line for line in found if len(line) < NEEDLE_CHARS_MIN]:
        raise errors.InvalidInput(
            f"{len(short)} needles have fewer than {NEEDLE_CHARS_MIN} characters",
            hint="a shorter one is found anywhere",
        )
    if len(found) > NEEDLES_MAX:
        raise errors.InvalidInput(f"{len(found)} needles; at most {NEEDLES_MAX} are looked for")
    spelled = {line.encode() for line in found}
    for line in found:
        # In a record, and in what is a JSON string within one.
        once = json.dumps(line)[1:-1]
        spelled |= {once.encode(), json.dumps(once)[1:-1].encode()}
    return sorted(spelled)


async def prove(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    receipt: Mapping[str, Any],
    *,
    needles: Sequence[bytes] = (),
    home: Path | None = None,
    on_progress: Progress = lambda count, what: None,
) -> Proof:
    """Look everywhere. `home`: this machine's, whose files are scanned too. Blocking reads are few and short."""
    proof = Proof()
    project = str(receipt["project"])
    entry = {**receipt, "state": erasures.DONE if receipt["second_at"] else erasures.UNREACHABLE}
    for one in await erasure_invariants.of_entry(store, project, entry):
        proof.problems.append({"where": one.where, "what": one.what})
    if not needles:
        return proof
    done = 0
    for prefix in (f"{project}/", f"{keys.DEAD_LETTERS}/"):
        async for row in store.list(prefix):
            stored = await store.get(row.key)
            if stored is not None:
                proof.look(row.key.split("/")[1], row.key, unpacked(row.key, stored.body), needles)
            done += 1
            on_progress(done, "objects")
    is_ours = isinstance(bus, bus_port.Overwrites)
    async for topic, message in _messages(bus):
        where = f"{topic.name}/{message.partition}/{message.offset}"
        raw = b"\n".join([message.key or b"", message.value or b"", *(value for _, value in message.headers)])
        if is_ours:
            proof.look("messages", where, [raw], needles)
        elif proof.holds("messages", [raw], needles):
            until = dt.datetime.fromtimestamp(message.time, dt.UTC) + dt.timedelta(
                hours=topic.retention_hours
            )
            proof.bus.append({"where": where, "until": until.isoformat(timespec="seconds")})
    for name in FILES if home is not None else ():
        path = Path(home or ".") / name
        if path.is_file():
            proof.look("files", str(path), [path.read_bytes()], needles)
    return proof


async def _messages(bus: bus_port.Bus) -> AsyncIterator[tuple[pipeline.Topic, bus_port.Message]]:
    for topic in pipeline.TOPICS:
        async for message in bus.read(topic.name):
            yield topic, message


def unpacked(key: str, body: bytes) -> Iterator[bytes]:
    """An object's bytes, and those of every frame in it."""
    yield body
    kind = key.split("/")[1]
    try:
        if kind == keys.PACKS:
            pack = packs.decode(packs.name(body), body)
            for frame, (_, size) in pack.index.items():
                if size:
                    yield zlib.decompress(pack.stored(frame))
        elif kind in (keys.BLOBS, keys.SNAPSHOTS):
            end = snapshot_packs.parse_end(body)
            table = snapshot_packs.decode_table(end.index or b"")
            for pack_number, offset, stored, _ in table.frames:
                if table.packs[pack_number] == snapshot_packs.SELF:
                    raw = body[offset : offset + stored]
                    yield zstandard.ZstdDecompressor().decompress(raw, max_output_size=FRAME_BYTES_MAX)
    except (errors.Corrupt, zlib.error, zstandard.ZstdError):
        return  # `runlore verify` tells that.
