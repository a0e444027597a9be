"""What every route works with: the deployment's store and bus, the lists, the limits. Made by the command line."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, redaction, revisions
from runlore.consumers import dead
from runlore.lookup import explain, memories, seeds
from runlore.lookup.http import kept
from runlore.lookup.http.lists import Lists
from runlore.memory import render
from runlore.snapshots import library
from runlore.store import port as store_port
from runlore.upkeep import access, invitations, seedwriter

JSON_BYTES_MAX = 66 * 1024 * 1024
"""Largest body of JSON: an event with its record."""
SMALL_JSON_BYTES_MAX = 1024 * 1024
"""Largest body of any other JSON."""
ARCHIVE_BYTES_MAX = 8 * 1024**3
EVENTS_AT_ONCE_MAX = 8
"""Bodies of events that are held in memory at the same time."""
UPLOADS_AT_ONCE_MAX = 8
DOWNLOADS_AT_ONCE_MAX = 32
"""Archives and files under way: each holds a thread."""
PROJECT_SHARE = 0.75
"""Of each of these, and of all requests, what one project may have: the rest is for the others."""
WAIT_SECONDS_MAX = 60
PAGE_ITEMS_MAX, PAGE_ITEMS_DEFAULT = 1000, 100
LETTERS_SECONDS = 5.0
KNOWN_SECONDS = 5.0
ERASED_SECONDS = 5.0
"""How long what was composed may outlive an erasure by another process."""
LEDGERS_MAX = 10_000
OPENED_BYTES_MAX = 64 * 1024 * 1024
"""Text of seeds' files that are kept, so that a seed is composed once for all of its requests."""
COMPOSED_BYTES_MAX = 32 * 1024 * 1024
"""Text of revisions' files that are kept, so that a search finds its lines without composing them."""


class Gate:
    """So many at once; whoever comes beyond that is told so at once rather than kept waiting.

    Where `share` is below 1, one project may have so much of it: the others are never kept out by one alone.
    """

    def __init__(self, what: str, most: int, *, share: float = 1.0) -> None:
        self._what, self._most, self._inside = what, most, 0
        self._share = max(1, int(most * share))
        self._of: Counter[str] = Counter()

    @contextlib.contextmanager
    def entered(self, project: str = "") -> Iterator[None]:
        """Raises `errors.Overloaded`."""
        self.enter(project)
        try:
            yield
        finally:
            self.leave(project)

    def enter(self, project: str = "") -> None:
        if self._inside >= self._most:
            raise errors.Overloaded(f"{self._most} {self._what} are under way, as many as may be")
        if self._of[project] >= self._share:
            told = f"{self._share} {self._what} of the project are under way, as many as it may have"
            raise errors.Overloaded(told)
        self._inside += 1
        self._of[project] += 1

    def leave(self, project: str = "") -> None:
        self._inside -= 1
        self._of[project] -= 1
        if not self._of[project]:
            del self._of[project]


@dataclass
class Service:
    """One lookup service. `work_dir` holds what is on its way in; what a dead process left there is swept."""

    store: store_port.ObjectStore
    bus: bus_port.Bus
    lists: Lists
    work_dir: Path
    with_keys: bool = False
    requests_max: int = 256
    connections_max: int = 4096
    stall_seconds: float = 60.0
    post: invitations.Post = field(default_factory=invitations.Post)
    """How invitations are mailed, if they are."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    known: Callable[[], Awaitable[explain.Known]] | None = None
    """What this machine knows beside the store: the file of models, and what the stages last said."""
    status_path: Path | None = None
    """What `runlore up` on this machine says of its stages, for the page of the status."""
    up: Callable[[], int | None] = lambda: None
    """The process that runs the stages on this machine, if any does."""
    seed_log: seedwriter.Writer | None = None
    """Where seeds are noted that are handed out; None: nowhere."""

    def __post_init__(self) -> None:
        self.reader = revisions.Reader(self.store)
        self.hashing = redaction.Keys(self.store)
        # Without keys there is one machine's user alone.
        share = PROJECT_SHARE if self.with_keys else 1.0
        self.events = Gate("events", EVENTS_AT_ONCE_MAX, share=share)
        self.uploads = Gate("uploads", UPLOADS_AT_ONCE_MAX, share=share)
        self.downloads = Gate("downloads", DOWNLOADS_AT_ONCE_MAX, share=share)
        self.requests = Gate("requests", self.requests_max, share=share)
        self._secret: bytes | None = None
        self._known: tuple[float, explain.Known] | None = None
        self._letters: tuple[float, list[dead.Letter]] | None = None
        self._reading_letters = asyncio.Lock()
        self._kept: kept.Kept[tuple[seeds.Opened, list[dict[str, Any]]]] = kept.Kept(
            size_max=OPENED_BYTES_MAX
        )
        self._composed: kept.Kept[memories.Files] = kept.Kept(size_max=COMPOSED_BYTES_MAX)
        self._ledgers: dict[str, tuple[float, int]] = {}
        """Project → when its ledger of erasures was read, and its counter."""
        self._behind: set[asyncio.Future[None]] = set()

    async def secret(self) -> bytes:
        """What seed ids are signed with."""
        if self._secret is None:
            self._secret = await access.secret(self.store, access.SEED_SIGNING)
        return self._secret

    async def _erasures(self, project: str) -> int:
        """The counter of a project's ledger of erasures, at most `ERASED_SECONDS` old. Once it moved all is let go."""
        read_at, known = self._ledgers.get(project, (0.0, -1))
        if known >= 0 and clock.monotonic() - read_at <= ERASED_SECONDS:
            return known
        if len(self._ledgers) >= LEDGERS_MAX:
            self._ledgers.clear()
        asked_at = clock.monotonic()
        now = (await erasures.ledger(self.store, project)).counter
        self._ledgers[project] = asked_at, now
        if known not in (-1, now):
            self._kept.clear()
            self._composed.clear()
        return now

    def forget_erased(self, project: str) -> None:
        """Look at the ledger anew: something was just erased."""
        self._ledgers.pop(project, None)
        self._kept.clear()
        self._composed.clear()
        self.forget_letters()

    def behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that no answer waits for, and that somebody else goes on with if this process ends."""
        task = asyncio.ensure_future(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def letters(self) -> list[dead.Letter]:
        """The dead letters, at most `LETTERS_SECONDS` old: each look reads the whole topic."""
        async with self._reading_letters:
            if self._letters is None or clock.monotonic() - self._letters[0] > LETTERS_SECONDS:
                self._letters = clock.monotonic(), await dead.read_all(self.bus)
            return self._letters[1]

    async def knows(self) -> explain.Known:
        """What is known beside the store, at most `KNOWN_SECONDS` old."""
        if self.known is None:
            return explain.Known()
        if self._known is None or clock.monotonic() - self._known[0] > KNOWN_SECONDS:
            self._known = clock.monotonic(), await self.known()
        return self._known[1]

    def forget_letters(self) -> None:
        """Read them anew: one of them was just resolved."""
        self._letters = None

    def snapshots(self, project: str) -> library.Snapshots:
        return library.Snapshots(self.store, project)

    async def opened(self, seed: seeds.Seed) -> seeds.Opened:
        """The seed with its files, composed once and kept for a while."""
        return (await self.listed(seed))[0]

    async def listed(self, seed: seeds.Seed) -> tuple[seeds.Opened, list[dict[str, Any]]]:
        """The same with its files as they are listed: their hashes are made once, too."""
        if not seed.revision:
            return await seeds.open_seed(self.reader, seed), []
        erased = await self._erasures(seed.project)
        name = ("seed", erased, seed.project, seed.memory, seed.manifest, seed.subject, seed.rollout)
        opened, rows = await self._kept.get(name, lambda: self._opened(seed))
        return seeds.Opened(seed, opened.files, opened.notes, opened.layout), rows

    async def _opened(self, seed: seeds.Seed) -> tuple[tuple[seeds.Opened, list[dict[str, Any]]], int]:
        revision = await seeds.load(self.reader, seed)

        def work() -> tuple[seeds.Opened, list[dict[str, Any]]]:
            made = seeds.open_revision(revision, seed)
            return made, memories.sizes((path, one.text) for path, one in sorted(made.files.items()))

        # Off the loop: composing reads and verifies every part.
        made = await asyncio.to_thread(work)
        return made, _size(made[0].files)

    async def composed(
        self, project: str, memory: str, head: heads.Head, whom: str | None
    ) -> memories.Files | None:
        """The files of the revision that a head names, as `whom` may see them; None before the first."""
        if not (manifest := head.body.get("manifest")):
            return None

        async def make() -> tuple[memories.Files, int]:
            revision = await self.reader.current(head, project, memory)
            assert revision is not None
            found = await asyncio.to_thread(lambda: memories.Files(memories.compose(revision, whom)))
            return found, _size(found.files)

        erased = await self._erasures(project)
        return await self._composed.get((project, memory, manifest, whom, erased), make)


def _size(files: Mapping[str, render.Composed]) -> int:
    return sum(len(one.text) for one in files.values())
