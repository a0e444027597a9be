"""When a key was last used, about: an object beside the key, written by whoever answers for it, now and then.

It is for people who clean up. Nothing rests on it: where it can not be written it is left, and it is up to
`EVERY_SECONDS` old.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

import structlog

from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope
from runlore.store import port

log = structlog.get_logger("runlore.lastuse")

FORMAT = "runlore.lastuse/1"
EVERY_SECONDS = 600.0
PUT_SECONDS_MAX = 2.0
NOTED_MAX = 10_000


class Notes:
    """What one service has seen of its keys."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._noted: OrderedDict[str, float] = OrderedDict()

    async def used(self, key_id: str) -> None:
        """Note that a key is used now. Never raises: whoever asks has a good key."""
        now = clock.monotonic()
        if (before := self._noted.get(key_id)) is not None and now - before < EVERY_SECONDS:
            return
        self._noted[key_id] = now
        self._noted.move_to_end(key_id)
        while len(self._noted) > NOTED_MAX:
            self._noted.popitem(last=False)
        try:
            async with asyncio.timeout(PUT_SECONDS_MAX):
                body = envelope.dump({"format": FORMAT, "at": clock.now_iso()})
                await self._store.put(keys.last_use(key_id), body)
        except (errors.RunloreError, TimeoutError) as exc:
            log.warning("the last use of a key is not noted", key=key_id, problem=type(exc).__name__)


async def of(store: port.ObjectStore, key_ids: Iterable[str]) -> dict[str, str]:
    """Key → when it was last used, of those of which that is known."""
    wanted = list(key_ids)
    found: dict[str, str] = {}
    for key_id, stored in zip(
        wanted, await store.get_many([keys.last_use(one) for one in wanted]), strict=True
    ):
        try:
            if stored is not None and (body := envelope.kept(stored.body))["format"] == FORMAT:
                found[key_id] = str(body["at"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
