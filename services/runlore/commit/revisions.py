"""Revisions: a memory's immutable, numbered versions, each named by one manifest.

A manifest holds four paged maps (`MAPS`), the packs that hold their pages and contents, its parent, and what
it newly covers. Written in the order pack → manifest → head (invariant 1); found by number through a LIST of
one prefix.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import heads, keys, packs, pages, puts, sides
from runlore.events import envelope
from runlore.store import port

HEAD_FORMAT = "runlore.memory/1"
MANIFEST_FORMAT = "runlore.manifest/1"
STUB_FORMAT = "runlore.erased-manifest/1"
"""What lies in a manifest's place once its revision was erased: where it stood in its line, and nothing of it."""
STUB_KEEPS = ("project", "memory", "revision", "parent", "created_at", "side", "erasure")
TAKE_OVER = ("erasure", "revert", "promote")
"""Reasons of revisions whose notes are not their parent's and those of what they cover: the ones that covered a run
may be stubs by now, and say nothing."""
MAPS = ("coverage", "selected", "notes", "files")
"""The paged maps of a manifest: rollout → what of it is covered; rollout with notes → when it was updated;
note id → note; part of a file → its content."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
CACHE_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of packs, with their indexes, that one process keeps in memory."""
INDEX_ENTRY_BYTES = 300
"""What one frame of a pack's index takes in memory: its name, a tuple and two numbers."""


@dataclass(frozen=True)
class Revision:
    """One revision in memory: its manifest's body and the frames of its packs."""

    project: str
    memory: str
    sha256: str
    body: Mapping[str, Any]
    frames: packs.Frames

    @property
    def number(self) -> int:
        return int(self.body["revision"])

    @property
    def parent(self) -> tuple[int, str] | None:
        parent = self.body.get("parent")
        return (int(parent["revision"]), str(parent["manifest"])) if parent else None

    def map(self, name: str) -> pages.PagedMap:
        """One of the `MAPS` of this revision. A change to it changes nothing here."""
        return pages.PagedMap(self.body["maps"][name], self.frames.content)

    def text(self, sha256: str) -> str:
        """The content of one part, verified."""
        return self.frames.content(sha256).decode("utf-8")


class Reader:
    """Reads revisions; keeps the packs it read, which never change, up to `CACHE_BYTES_MAX`.

    What a revision made here no longer names is let go at once: so a worker that makes one after the other keeps what
    its memories hold now, and not the last minutes of their past.
    """

    def __init__(self, store: port.ObjectStore) -> None:
        self.store = store
        self._packs: OrderedDict[str, packs.Pack] = OrderedDict()
        self._bytes = 0

    async def head(self, project: str, memory: str, *, side: str | None = None) -> heads.Head:
        """The memory's head, or that of a side line; counter 0 where it has no revision yet.

        Raises `errors.NotFound` for a side line that there is not.
        """
        if side is not None:
            return await sides.existing(self.store, project, memory, side)
        return await heads.read(self.store, keys.memory_head(project, memory), fmt=HEAD_FORMAT)

    async def manifest(self, project: str, memory: str, number: int, sha256: str) -> dict[str, Any]:
        """A manifest's body, verified. Raises `errors.Corrupt`."""
        key = keys.manifest(project, memory, number, sha256)
        stored = await self.store.get(key)
        if stored is None:
            raise errors.Corrupt(f"revision {number} of {project}/{memory}: its manifest is missing", key=key)
        if packs.name(stored.body) != sha256:
            if (stub := stub_in(stored.body)) is not None:
                return stub
            raise errors.Corrupt(
                f"revision {number} of {project}/{memory}: its manifest has other bytes", key=key
            )
        try:
            body = envelope.kept(stored.body)
            fmt = body["format"]
            whole = fmt != MANIFEST_FORMAT or _is_whole(body)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise errors.Corrupt(f"revision {number} of {project}/{memory}: its manifest is none", key=key)
        if fmt != MANIFEST_FORMAT:
            raise errors.Fatal(f"revision {number} of {project}/{memory} has the format {fmt!r}")
        return body

    async def load(self, project: str, memory: str, number: int, sha256: str) -> Revision:
        """A revision with its packs. Raises `errors.Corrupt` where anything is missing or changed."""
        body = await self.manifest(project, memory, number, sha256)
        if body.get("erased"):
            raise erased(project, memory, number, body)
        names = [str(pack["sha256"]) for pack in body["packs"]]
        # Held from here on: while the others are read, another reader may drop them from the cache.
        held = {name: self._packs[name] for name in names if name in self._packs}
        missing = [name for name in names if name not in held]
        found = await self.store.get_many([keys.pack(project, name) for name in missing])
        for name, stored in zip(missing, found, strict=True):
            if stored is None:
                # It may have been erased since its manifest was read.
                if (body := await self.manifest(project, memory, number, sha256)).get("erased"):
                    raise erased(project, memory, number, body)
                raise errors.Corrupt(f"revision {number} of {project}/{memory}: pack {name[:12]} is missing")
            held[name] = packs.decode(name, stored.body)
        for pack in held.values():
            self.keep(pack)
        return Revision(project, memory, sha256, body, packs.Frames(list(held.values())))

    def keep(self, pack: packs.Pack) -> None:
        """Remember a pack that was just read or written."""
        if pack.sha256 not in self._packs:
            self._packs[pack.sha256] = pack
            self._bytes += _size(pack)
        self._packs.move_to_end(pack.sha256)
        while self._bytes > CACHE_BYTES_MAX and len(self._packs) > 1:
            _, dropped = self._packs.popitem(last=False)
            self._bytes -= _size(dropped)

    def let_go(self, pack: packs.Pack) -> None:
        """Forget a pack that is not likely to be read again."""
        if self._packs.pop(pack.sha256, None) is not None:
            self._bytes -= _size(pack)

    async def current(self, head: heads.Head, project: str, memory: str) -> Revision | None:
        """The revision that `head` names; None before the first. Raises `errors.HeadMoved` if it was erased since."""
        if not head.body.get("manifest"):
            return None
        try:
            return await self.load(project, memory, int(head.body["revision"]), str(head.body["manifest"]))
        except errors.Erased as exc:
            # An erasure moves the head before it touches what the head named.
            raise errors.HeadMoved(f"the head {head.key} moved past {head.counter}", key=head.key) from exc

    async def at(
        self, project: str, memory: str, number: int | None = None, *, side: str | None = None
    ) -> Revision:
        """Revision `number` (None: the head's), of the memory or of a side line of it.

        Raises `errors.NotFound` with what there is.
        """
        head = await self.head(project, memory, side=side)
        named = f"memory {project}/{memory}" if side is None else f"side line {side} of {project}/{memory}"
        newest = int(head.body.get("revision") or 0)
        if newest == 0:
            raise errors.NotFound(
                f"{named} has no revision yet",
                hint="`runlore status` shows what is still on its way"
                if side is None
                else "`runlore rebuild` goes on building it",
            )
        if number is None or number == newest:
            revision = await self.current(head, project, memory)
            assert revision is not None
            return revision
        if not 1 <= number < newest:
            raise errors.NotFound(f"{named} has revisions 1 to {newest}, not {number}")
        found = await self._find(head, project, memory, number, side)
        return await self.load(project, memory, number, found)

    async def _find(self, head: heads.Head, project: str, memory: str, number: int, side: str | None) -> str:
        """The manifest of revision `number` in the head's line.

        A LIST by number finds it at once: each manifest says which line it was written for. Where writers raced, or
        a side line began again, several were written for that number, and only one is the parent of the next: then
        the line is walked from the head.
        """
        prefix = keys.manifests(project, memory, number)
        named = [row.key.removeprefix(prefix) async for row in self.store.list(prefix)]
        if len(named) > 1:
            bodies = {one: await self.manifest(project, memory, number, one) for one in named}
            named = [one for one, body in bodies.items() if body.get("side") == side]
        if len(named) == 1:
            return named[0]
        at, sha256 = int(head.body["revision"]), str(head.body["manifest"])
        while at > number:
            parent = (await self.manifest(project, memory, at, sha256)).get("parent")
            if not parent:
                break
            at, sha256 = int(parent["revision"]), str(parent["manifest"])
        if at != number:
            raise errors.NotFound(f"revision {number} of {project}/{memory} is not kept any more")
        return sha256

    async def line(
        self, project: str, memory: str, *, side: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The manifests of a memory, or of a side line, from the newest back, each with its own `sha256` added."""
        start = None
        if side is not None:
            head = (await self.head(project, memory, side=side)).body
            start = (int(head.get("revision") or 0), head.get("manifest"))
        async for body in self.line_from(project, memory, start):
            yield body

    async def line_from(
        self, project: str, memory: str, start: tuple[int, str | None] | None
    ) -> AsyncIterator[dict[str, Any]]:
        """The same from a revision back: `start` is its number and its manifest's name; None: the newest."""
        at, sha256 = start or (0, None)
        if start is None:
            head = await self.head(project, memory)
            at, sha256 = int(head.body.get("revision", 0)), head.body.get("manifest")
        while sha256:
            body = await self.manifest(project, memory, at, sha256)
            yield {**body, "sha256": sha256}
            parent = body.get("parent")
            at, sha256 = (int(parent["revision"]), str(parent["manifest"])) if parent else (0, None)


async def refuse_lost(reader: Reader, project: str, memory: str) -> None:
    """Raises `errors.HeadLost` where a memory without a head had one: a second line would hide what it had learnt.

    `errors.HeadMoved` where it has one by now. A first revision alone says nothing: whoever wrote it may have died
    before there was a head.
    """
    async for row in reader.store.list(keys.manifests(project, memory)):
        number, _, sha256 = row.key.rpartition("/")[2].partition("-")
        # A side line's lie among them, and have a head of their own.
        if int(number) > 1 and not (await reader.manifest(project, memory, int(number), sha256)).get("side"):
            raise await heads.gone(
                reader.store,
                keys.memory_head(project, memory),
                f"the head of memory {project}/{memory} is gone, and revision {int(number)} of it is there",
                hint="`runlore repair` says what it was, and makes it again",
            )


def stub_of(body: Mapping[str, Any], erasure: str, at: str) -> bytes:
    """What is left of a manifest once its revision was erased: its number, its parent, when it was made."""
    kept = {name: body.get(name) for name in STUB_KEEPS}
    # Their names tell nothing, and whoever goes on after a crash knows what is still to be deleted.
    told = {"erasure": erasure, "at": at, "packs": [str(one["sha256"]) for one in body["packs"]]}
    return envelope.dump({"format": STUB_FORMAT, **kept, "erased": told})


def _is_whole(body: Mapping[str, Any]) -> bool:
    """Whether a manifest has what every reader takes from it."""
    parent = body["parent"]
    numbers = [body["revision"], *([parent["revision"]] if parent else [])]
    names = [*(pack["sha256"] for pack in body["packs"]), *([parent["manifest"]] if parent else [])]
    maps = [body["maps"][name] for name in MAPS]
    return (
        all(type(one) is int and one > 0 for one in numbers)
        and all(type(one) is str and _SHA256.fullmatch(one) for one in names)
        and all(isinstance(one, dict) for one in maps)
    )


def stub_in(raw: bytes) -> dict[str, Any] | None:
    """A stub as a manifest that holds nothing; None where these are other bytes."""
    try:
        body = envelope.kept(raw)
        if body["format"] != STUB_FORMAT:
            return None
    except (ValueError, KeyError, TypeError):
        return None
    nothing = {"files": 0, "bytes": 0, "notes": 0, "selected": 0, "rollouts": 0}
    blank = {"reason": "erased", "engine": {"name": "none", "version": 0}, "tokens": 0, "cost_usd": 0}
    return {**blank, "covers": [], "refused": [], "packs": [], "totals": nothing, **body}


def erased(project: str, memory: str, number: int, body: Mapping[str, Any]) -> errors.Erased:
    told = body["erased"]
    return errors.Erased(
        f"revision {number} of {project}/{memory} was erased on {told['at'][:10]} (erasure {told['erasure']})",
        hint="the newest revision holds what may be shown",
    )


def _size(pack: packs.Pack) -> int:
    return len(pack.raw) + INDEX_ENTRY_BYTES * len(pack.index)


@dataclass(frozen=True)
class Draft:
    """What the next revision will hold."""

    maps: Mapping[str, pages.PagedMap]
    """One for each of `MAPS`."""
    contents: Mapping[str, bytes]
    """The contents that `files` names, as far as they are new (name → content)."""
    live: frozenset[str]
    """Every frame that `files` names."""
    facts: Mapping[str, Any]
    """The manifest's own fields: covers, engine, layout, reason, totals, …"""


async def write(
    store: port.ObjectStore,
    reader: Reader,
    project: str,
    memory: str,
    *,
    parent: Revision | None,
    draft: Draft,
    anew: bool = False,
) -> Revision:
    """Write a draft's pack, then its manifest; the revision, which no head names yet.

    `anew`: name no pack of the parent, as those hold what is not to be kept: the draft's maps and contents are whole.
    """
    new = dict(draft.contents)
    roots = {name: draft.maps[name].flush(new) for name in MAPS}
    live = set(draft.live).union(*(paged.names() for paged in draft.maps.values()))
    now = clock.now_iso()
    held, written = packs.repack(
        parent.frames if parent and not anew else packs.Frames(), live, new, salt=now
    )
    if written is not None:
        await store.put(keys.pack(project, written.sha256), written.raw)
        reader.keep(written)
    body = {
        "format": MANIFEST_FORMAT,
        "project": project,
        "memory": memory,
        "revision": parent.number + 1 if parent else 1,
        "parent": {"revision": parent.number, "manifest": parent.sha256} if parent else None,
        "created_at": now,
        **draft.facts,
        "maps": roots,
        "packs": [{"sha256": pack.sha256, "size": len(pack.raw)} for pack in held],
    }
    raw = envelope.dump(body)
    sha256 = packs.name(raw)
    # If absent: a request that was given up lands later, and by then an erasure's stub may stand in its place.
    where = keys.manifest(project, memory, body["revision"], sha256)
    await puts.once(store, where, raw, what=f"the manifest {where}")
    named = {pack.sha256 for pack in held}
    for pack in parent.frames.packs if parent else ():
        if pack.sha256 not in named:
            reader.let_go(pack)
    return Revision(project, memory, sha256, body, packs.Frames(held))
