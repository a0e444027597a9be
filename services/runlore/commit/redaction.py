"""A project's redaction key: what the hashes in its placeholders are made with.

Drawn once by whoever needs it first, put if absent, never changed: with another key equal secrets would not be
linkable any more. It lies outside of the project (`_operations/redaction/`), so no seed, snapshot, archive or
interface of a project holds it. It protects nothing but what short secrets could be guessed from their hashes.
"""

from __future__ import annotations

from runlore import clock, errors
from runlore.commit import keys, puts
from runlore.events import envelope, ids
from runlore.store import port

FORMAT = "runlore.redaction/1"
KEY_BYTES = 32
KNOWN_MAX = 10_000
"""Keys that one process remembers, each asked for once."""
DENIED_SECONDS = 60.0
"""How long whoever may not read a key does not ask for it again."""


class Keys:
    """The keys of the projects that a process meets."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._known: dict[str, bytes] = {}
        self._denied: dict[str, float] = {}

    async def of(self, project: str) -> bytes:
        """The key of `project`. Raises `errors.Corrupt`, and `errors.Blocked` where it may not be read."""
        known = self._known.get(project)
        if known is None:
            if clock.monotonic() < self._denied.get(project, 0.0):
                raise errors.Blocked(f"the redaction key of {project} may not be read")
            if len(self._known) + len(self._denied) >= KNOWN_MAX:
                self._known.clear()
                self._denied.clear()
            try:
                known = self._known[project] = await read(self._store, project)
            except errors.Blocked:
                self._denied[project] = clock.monotonic() + DENIED_SECONDS
                raise
        return known

    async def of_or_none(self, project: str) -> bytes | None:
        """The same; None where this process may not read it (a producer: the record stage hides what it leaves)."""
        try:
            return await self.of(project)
        except errors.Blocked:
            return None


async def read(store: port.ObjectStore, project: str) -> bytes:
    """The key of `project`, drawn if there is none. Raises `errors.Corrupt`, `errors.StoreUnavailable`."""
    where = keys.redaction(ids.check_name(project, "project"))
    stored = await store.get(where)
    if stored is not None:
        return parse(where, stored.body)
    drawn = clock.secret_hex(KEY_BYTES)
    body = envelope.dump({"format": FORMAT, "key": drawn, "created_at": clock.now_iso()})
    await puts.once(store, where, body, what=f"the redaction key of {project}")
    # Whose put it was that landed is not told after a lost reply, or another was first: what is there counts.
    stored = await store.get(where)
    if stored is None:
        raise errors.StoreUnavailable(f"the redaction key of {project} went between two looks")
    return parse(where, stored.body)


def parse(where: str, raw: bytes) -> bytes:
    """The key in `raw`. Raises `errors.Corrupt`, and never says what is there."""
    try:
        body = envelope.kept(raw)
        found = bytes.fromhex(body["key"])
        if body["format"] == FORMAT and len(found) == KEY_BYTES:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.Corrupt(f"{where} is no redaction key", hint="put the one of a backup there; hashes need it")
