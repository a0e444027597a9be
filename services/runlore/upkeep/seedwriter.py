"""Writing the log of seeds (`seedlog.py`): what one process hands out, as one chain of links, in groups.

    a seed is made → its entry waits for the link under way → the next link holds all that wait → put → answered
                                                            └ the first: its anchor, too, before anybody is answered

`before`: whoever asked is answered once the entry is in the store, so no seed leaves without one; where it can not be
put there is no seed (503). `beside`: nobody waits, the entry is in the store within about a second, and what is under
way when the process is killed is lost. A link that may or may not have landed is put again, the same bytes under the
same name, before any other: so a writer's chain is one line, whatever is lost. An entry whose answer was refused or
lost stays: the log may say more than was handed out, never less.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from runlore import clock, errors
from runlore.commit import keys, puts
from runlore.events import envelope
from runlore.store import port
from runlore.upkeep import acts, seedlog

log = structlog.get_logger("runlore.seedlog")

BEFORE, BESIDE, OFF = "before", "beside", "off"
Mode = Literal["before", "beside", "off"]
LINK_ENTRIES_MAX = 1_000
WAITING_MAX = 10_000
"""Entries that wait to be put: some 8 MB."""
WAIT_SECONDS_MAX = 10.0
"""How long an answer waits for its entry."""
GATHER_SECONDS = 0.5
"""How long a link waits for more entries where nobody waits for it."""
AGAIN_SECONDS = 1.0
ANCHOR_SECONDS = 300.0
ANCHOR_LINKS = 1_000
"""A chain is anchored so often, while links are added to it."""
OTHERS_MAX = 500
"""Writers that one anchor names: the newest of them."""
CLOSE_SECONDS_MAX = 10.0
KNOWN_MAX = 10_000
"""Who has which seed, as far as a process remembers: some 10 MB."""


@dataclass(frozen=True)
class _Pending:
    """A link that may or may not be in the store."""

    key: str
    raw: bytes
    number: int
    sha256: str
    waiters: tuple[asyncio.Future[None], ...]


class Writer:
    """One process's chain. It begins with its first seed."""

    def __init__(
        self,
        store: port.ObjectStore,
        *,
        by: Mapping[str, str],
        mode: Mode = "before",
        looks_at_others: bool = False,
    ) -> None:
        """`looks_at_others`: it anchors the others' chains when its own has begun, in case that one was killed."""
        self._store, self._by, self.mode = store, dict(by), mode
        self._looks_at_others = looks_at_others
        self.id = clock.new_id()
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None] | None]] = []
        self._pending: _Pending | None = None
        self._number, self._sha256, self._hour = 0, "", ""
        self._anchored, self._anchored_at, self._tried_at = 0, 0.0, -AGAIN_SECONDS
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def hand_out(self, one: seedlog.Handed, *, once: bool = False) -> None:
        """Note a seed that is about to be handed out; with `before`, return once that is in the store.

        With `once` only if this process has not handed it to them yet: its files are asked for one by one. Raises
        `errors.StoreUnavailable`, `errors.Blocked` or `errors.Overloaded`: then it must not be handed out.
        """
        if self.mode == OFF:
            return
        who = (json.dumps(one.by, sort_keys=True), one.seed)
        if once and who in self._known:
            self._known.move_to_end(who)
            return
        await self._note(one)
        self._known[who] = None
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def _note(self, one: seedlog.Handed) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("the log of seeds is closed: the process is stopping")
        if len(self._waiting) >= WAITING_MAX:
            raise errors.Overloaded(
                f"{WAITING_MAX} seeds wait to be put into the log of seeds, as many as may"
            )
        done = asyncio.get_running_loop().create_future() if self.mode == BEFORE else None
        self._waiting.append((seedlog.entry_of(one), done))
        self._begin()
        self._wake.set()
        if done is not None:
            await self._until(done)

    async def _until(self, done: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await done
        except TimeoutError:
            raise errors.StoreUnavailable(
                f"the log of seeds could not be written within {WAIT_SECONDS_MAX:g} seconds",
                hint="no seed is handed out without its entry (RUNLORE_AUDIT_SEEDS)",
            ) from None

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Put what waits, and anchor the end of the chain. What can not be put in time is told in the log."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if not (self._waiting or self._pending or self._number):
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                while self._pending or self._waiting:
                    await self._write()
                await self._anchor(seedlog.ENDED, self._number, self._sha256)
        except (errors.RunloreError, TimeoutError) as exc:
            left = len(self._waiting) + (1 if self._pending else 0)
            log.warning("the log of seeds has no end", writer=self.id, left=left, problem=type(exc).__name__)
            self._answer(
                [done for _, done in self._waiting if done], errors.StoreUnavailable("it is stopping")
            )

    # --- the task ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._anchor_in()):
                    await self._wake.wait()
            self._wake.clear()
            if self.mode == BESIDE:
                await clock.sleep(GATHER_SECONDS)
            await self._write_all()
            await self._anchor_others()
            await self._anchor_if_due()

    async def _write_all(self) -> None:
        while self._waiting or self._pending:
            try:
                await self._write()
            except asyncio.CancelledError:
                raise
            except Exception as exc:
                told = exc if isinstance(exc, errors.RunloreError) else errors.StoreUnavailable()
                log.warning("seeds could not be put into the log", writer=self.id, problem=type(exc).__name__)
                if self._pending is not None:
                    self._answer(self._pending.waiters, told)
                if self.mode == BEFORE and not self._waiting:
                    # Nobody waits: it is put before the next one.
                    return
                await clock.sleep(AGAIN_SECONDS)

    async def _write(self) -> None:
        """Put one link: the one whose fate is not known, or one of what waits. The first is anchored with it."""
        link = self._pending or self._made()
        self._pending = link
        await puts.once(self._store, link.key, link.raw, what="a link of the log of seeds")
        if link.number == 1 and not self._anchored:
            await self._anchor(seedlog.BEGAN, 1, link.sha256)
        self._number, self._sha256, self._pending = link.number, link.sha256, None
        self._answer(link.waiters, None)

    def _made(self) -> _Pending:
        batch, self._waiting = self._waiting[:LINK_ENTRIES_MAX], self._waiting[LINK_ENTRIES_MAX:]
        now = clock.now()
        self._hour = max(self._hour, now.strftime(seedlog.HOUR))
        raw = envelope.dump(
            {
                **{"format": seedlog.FORMAT, "hour": self._hour, "writer": self.id, "by": self._by},
                **{"number": self._number + 1, "previous": self._sha256},
                "at": now.isoformat(timespec="microseconds"),
                "entries": [entry for entry, _ in batch],
            }
        )
        sha256 = hashlib.sha256(raw).hexdigest()
        key = keys.seeds_link(self._hour, self.id, self._number + 1, sha256)
        waiters = tuple(done for _, done in batch if done is not None)
        return _Pending(key, raw, self._number + 1, sha256, waiters)

    def _answer(self, waiters: Iterable[asyncio.Future[None]], problem: errors.RunloreError | None) -> None:
        for done in waiters:
            if done.done():
                continue
            if problem is None:
                done.set_result(None)
            else:
                done.set_exception(problem)

    # --- anchors ----------------------------------------------------------------------------------------------

    def _anchor_in(self) -> float | None:
        """Seconds until the chain is to be anchored; None where nothing was added to it."""
        if self._number == self._anchored:
            return None
        due = self._tried_at + AGAIN_SECONDS
        if self._number - self._anchored < ANCHOR_LINKS:
            due = max(due, self._anchored_at + ANCHOR_SECONDS)
        return max(0.0, due - clock.monotonic())

    async def _anchor_if_due(self) -> None:
        if self._anchor_in() != 0.0:
            return
        self._tried_at = clock.monotonic()
        try:
            await self._anchor(seedlog.GOES_ON, self._number, self._sha256)
        except errors.RunloreError as exc:
            log.warning("the log of seeds could not be anchored", writer=self.id, kind=exc.kind)

    async def _anchor_others(self) -> None:
        if not (self._looks_at_others and self._number):
            return
        self._looks_at_others = False
        try:
            seen = [one for one in await seedlog.tips(self._store, clock.now()) if one.writer != self.id]
            told = [
                {"writer": one.writer, "number": one.number, "sha256": one.sha256}
                for one in seen[-OTHERS_MAX:]
            ]
            if told:
                body = {"log": seedlog.LOG, "state": seedlog.SEEN, "writer": self.id, "others": told}
                await acts.append(self._store, acts.ANCHOR, body)
        except errors.RunloreError as exc:
            log.warning("the other logs of seeds could not be anchored", writer=self.id, kind=exc.kind)

    async def _anchor(self, state: str, number: int, sha256: str) -> None:
        body = {
            **{"log": seedlog.LOG, "state": state, "writer": self.id},
            **{"number": number, "sha256": sha256, "by": self._by},
        }
        await acts.append(self._store, acts.ANCHOR, body)
        self._anchored, self._anchored_at = number, clock.monotonic()
