"""The log of seeds: who was handed which revision and snapshot, when, for which rollout. Read and verified here.

Up to 1,000 seeds a second from several processes are too many for one head. So each process that hands out seeds has
a chain of its own (`seedwriter.py` writes it): links numbered from 1, each with the SHA-256 of the one before, and with
every seed that was asked for while the link before was under way. No head names them: the log of acts does. Its
*anchors* say of a writer that it began (with its first link), what it had come to every few minutes, and where it
ended. So a chain that vanished, or was cut behind its newest anchor, is found; within one every change is.

A writer that was killed leaves links behind its newest anchor. The next one that begins anchors what it sees of the
others of this hour and the one before; until then those links could be cut off unseen. A link is under the hour
of its writer's clock, which never goes back in a chain: so the newest are found by a LIST, and what came before a time
is not read. No link holds a body or a secret: a seed's id without its signature opens nothing, and it names a subject
and a rollout as keys do.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runlore import errors
from runlore.commit import keys
from runlore.store import port
from runlore.upkeep import acts, audit, chain

FORMAT = "runlore.seedlog/1"
WHAT = "the log of seeds"
LOG = "seeds"
"""What its anchors say that they are of."""
BEGAN, GOES_ON, ENDED, SEEN = "began", "goes on", "ended", "seen"
"""What an anchor says of its writer's chain; `SEEN`: what it saw of the others'."""
SEED, UNCHANGED, AGAIN, CONTENT = "seed", "unchanged", "again", "content"
"""How it was handed out: asked for; asked for and still the one that the client holds; by its id; files of it."""
HOUR = "%Y-%m-%d-%H"
READ_BATCH = 64
PROBLEMS_MAX = 100
"""What is wrong, told one by one; beyond that it is counted."""


@dataclass(frozen=True)
class Handed:
    """One seed that was handed out. Rollout and subject by their aliases; `manifest` is the revision's SHA-256."""

    at: str
    how: str
    by: Mapping[str, str]
    project: str
    memory: str
    seed: str
    revision: int
    manifest: str
    rollout: str
    agent: str
    snapshot: str | None = None
    subject: str | None = None
    request: str | None = None
    """The request's id, where whoever sent it gave it one."""
    id: str = ""
    """Where it stands in the log: `<hour>/<writer>/<number>/<place>`."""


@dataclass(frozen=True)
class Link:
    """One link of a writer's chain."""

    hour: str
    writer: str
    number: int
    previous: str
    at: str
    by: Mapping[str, str]
    """The process that wrote it: its user and host."""
    entries: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Wanted:
    """Which seeds are meant; None: all."""

    project: str | None = None
    memory: str | None = None
    revision: int | None = None
    rollout: str | None = None
    """Its alias."""
    snapshot: str | None = None
    """Its id, or what that begins with."""
    actor: str | None = None
    since: dt.datetime | None = None

    def means(self, one: Handed) -> bool:
        least = self.since.astimezone(dt.UTC).isoformat(timespec="microseconds") if self.since else ""
        return (
            one.at >= least
            and self.project in (None, one.project)
            and self.memory in (None, one.memory)
            and self.revision in (None, one.revision)
            and self.rollout in (None, one.rollout)
            and (self.snapshot is None or (one.snapshot or "").startswith(self.snapshot))
            and (self.actor is None or audit.names_actor(one.by, self.actor))
        )


def entry_of(one: Handed) -> dict[str, Any]:
    """A seed as a link holds it: without what it does not have."""
    return {name: value for name, value in asdict(one).items() if value is not None and name != "id"}


@dataclass(frozen=True, order=True)
class Name:
    """What a link's key says."""

    hour: str
    writer: str
    number: int
    sha256: str

    @property
    def key(self) -> str:
        return keys.seeds_link(self.hour, self.writer, self.number, self.sha256)


def named(key: str) -> Name:
    """Raises `errors.Corrupt` for a key that is no link's."""
    parts = key.removeprefix(keys.seeds()).removesuffix(".json").split("/")
    number, _, sha256 = parts[-1].partition("-")
    if len(parts) == 3 and number.isascii() and number.isdigit():
        name = Name(parts[0], parts[1], int(number), sha256)
        if name.key == key:
            return name
    raise errors.Corrupt(f"{key} is no link of {WHAT}", key=key)


def parse(key: str, raw: bytes) -> Link:
    """A link, if its bytes are those of its name. Raises `errors.Corrupt`."""
    name = named(key)
    body = chain.body_of(key, raw, fmt=FORMAT, what=WHAT)
    try:
        if (body["hour"], body["writer"]) == (name.hour, name.writer):
            return Link(
                *(name.hour, name.writer, name.number, str(body["previous"]), str(body["at"])),
                by=dict(body["by"]),
                entries=tuple(dict(one) for one in body["entries"]),
            )
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.Corrupt(f"the entry {key} of {WHAT} is not what was written", key=key)


# --- reading ----------------------------------------------------------------------------------------------------


async def newest_first(
    store: port.ObjectStore, wanted: Wanted | None = None, *, after: str | None = None
) -> AsyncIterator[Handed]:
    """Seeds that were handed out, as far as somebody reads on: the newest first, by the clocks of their writers.

    `after`: the `id` of one, to go on behind it. Raises `errors.Corrupt`; what was removed only `verify` finds.
    """
    meant = wanted or Wanted()
    least = meant.since.astimezone(dt.UTC).strftime(HOUR) if meant.since else ""
    skip_to = after
    for hour in sorted(await store.children(keys.seeds()), reverse=True):
        if hour < least:
            return
        if skip_to is not None and hour > skip_to.partition("/")[0]:
            continue
        async for one in _of_hour(store, hour):
            if skip_to is not None:
                skip_to = None if one.id == skip_to else skip_to
            elif meant.means(one):
                yield one
        # What it named is gone, or was never there: nothing of that hour can be told twice.
        skip_to = None


async def _of_hour(store: port.ObjectStore, hour: str) -> AsyncIterator[Handed]:
    """All of one hour: each writer's from its newest on, merged by time."""
    writers: dict[str, list[Name]] = {}
    async for row in store.list(keys.seeds_hour(hour)):
        name = named(row.key)
        writers.setdefault(name.writer, []).append(name)
    sources = {writer: _backwards(store, names) for writer, names in writers.items()}
    waiting: list[tuple[_Newer, str, Handed]] = []

    async def take(writer: str) -> None:
        if (one := await anext(sources[writer], None)) is not None:
            heapq.heappush(waiting, (_Newer(one.at), writer, one))

    for writer in sorted(sources):
        await take(writer)
    while waiting:
        _, writer, one = heapq.heappop(waiting)
        yield one
        await take(writer)


class _Newer(str):
    """A time that sorts before those that are older."""

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


async def _backwards(store: port.ObjectStore, names: Sequence[Name]) -> AsyncIterator[Handed]:
    rest = sorted(names, reverse=True)
    together = 1
    while rest:
        batch, rest = rest[:together], rest[together:]
        together = min(together * 4, READ_BATCH)
        wanted = [name.key for name in batch]
        for key, stored in zip(wanted, await store.get_many(wanted), strict=True):
            if stored is not None:
                for one in reversed(handed(parse(key, stored.body))):
                    yield one


def handed(link: Link) -> list[Handed]:
    """The seeds of a link. Raises `errors.Corrupt`."""
    where = f"{link.hour}/{link.writer}/{link.number}"
    known = Handed.__dataclass_fields__
    try:
        return [
            Handed(**{**{name: value for name, value in one.items() if name in known}, "id": f"{where}/{at}"})
            for at, one in enumerate(link.entries)
        ]
    except TypeError:
        raise errors.Corrupt(f"the link {where} of {WHAT} holds something else than seeds") from None


async def tips(store: port.ObjectStore, now: dt.datetime) -> list[Name]:
    """The newest link of every writer of this hour and the one before, by their names alone."""
    found: dict[str, Name] = {}
    for hour in ((now - dt.timedelta(hours=1)).strftime(HOUR), now.strftime(HOUR)):
        async for row in store.list(keys.seeds_hour(hour)):
            name = named(row.key)
            found[name.writer] = max(found.get(name.writer, name), name)
    return [found[writer] for writer in sorted(found)]


# --- verifying --------------------------------------------------------------------------------------------------


@dataclass
class Verified:
    """What a look at every writer's chain found. `beside`: writers that died before they answered anybody."""

    writers: int = 0
    links: int = 0
    entries: int = 0
    beside: int = 0
    problems: list[str] = field(default_factory=list)
    untold: int = 0
    """Problems beyond the first `PROBLEMS_MAX`."""

    def add(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
        else:
            self.untold += 1


class Anchors:
    """What the log of acts says of each writer: at which number it had which hash, and where it ended."""

    def __init__(self) -> None:
        self.of: dict[str, dict[int, str]] = {}
        self.ends: dict[str, int] = {}

    def look(self, entry: acts.Entry) -> None:
        """Take in an entry of the log of acts. Raises `errors.Corrupt`."""
        if entry.kind != acts.ANCHOR or entry.body.get("log") != LOG:
            return
        try:
            state = entry.body["state"]
            for one in entry.body["others"] if state == SEEN else [entry.body]:
                writer, number = str(one["writer"]), int(one["number"])
                self.of.setdefault(writer, {})[number] = str(one["sha256"])
                if state == ENDED:
                    self.ends[writer] = number
        except (ValueError, KeyError, TypeError):
            raise errors.Corrupt(f"the entry {entry.number} of {acts.WHAT} is no anchor") from None


@dataclass
class _Chain:
    """How far a writer's chain was walked."""

    number: int = 0
    sha256: str = ""


async def verify(
    store: port.ObjectStore, anchors: Anchors, *, on_progress: chain.OnProgress = lambda count, what: None
) -> Verified:
    """Whether every link of every writer is there as it was written, and as far as the anchors say.

    `anchors` are read before: a link is put before its anchor, so each that an anchor names is there by now.
    """
    out, walked = Verified(), dict[str, _Chain]()
    for hour in await store.children(keys.seeds()):
        batch: list[str] = []
        async for row in store.list(keys.seeds_hour(hour)):
            batch.append(row.key)
            if len(batch) == READ_BATCH:
                await _walk(store, batch, walked, anchors, out)
                batch = []
                on_progress(out.links, WHAT)
        await _walk(store, batch, walked, anchors, out)
        on_progress(out.links, WHAT)
    unknown = [writer for writer, at in walked.items() if writer not in anchors.of and at.number > 1]
    if unknown:
        # They may have begun since: nobody answers by a second link before the first is anchored.
        async for entry in acts.LOG.newest_first(store, (await acts.read(store)).tip):
            anchors.look(entry)
    _judge(walked, anchors, out)
    out.writers = len({*walked, *anchors.of})
    return out


async def _walk(
    store: port.ObjectStore, batch: list[str], walked: dict[str, _Chain], anchors: Anchors, out: Verified
) -> None:
    for key, stored in zip(batch, await store.get_many(batch), strict=True):
        try:
            name = named(key)
            at = walked.setdefault(name.writer, _Chain())
            if stored is None:
                out.add(f"the link {name.number} of the writer {name.writer} is missing")
            else:
                link = parse(key, stored.body)
                _follow(name, link, at, anchors, out)
                out.entries += len(link.entries)
        except errors.Corrupt as exc:
            out.add(exc.message)
            continue
        out.links += 1
        at.number, at.sha256 = name.number, name.sha256


def _follow(name: Name, link: Link, at: _Chain, anchors: Anchors, out: Verified) -> None:
    """Tell what is wrong with a link after the one that came before it."""
    which = f"of the writer {name.writer}"
    if name.number <= at.number:
        out.add(f"there is another link {name.number} {which}, which is none of its chain")
    elif name.number > at.number + 1:
        gone = f"{at.number + 1} to {name.number - 1}" if name.number > at.number + 2 else f"{at.number + 1}"
        out.add(f"the link {gone} {which} is missing")
    elif link.previous != at.sha256:
        out.add(f"the link {name.number} {which} does not follow the one before it")
    if anchors.of.get(name.writer, {}).get(name.number, name.sha256) != name.sha256:
        out.add(f"the link {name.number} {which} is another than {acts.WHAT} names")


def _judge(walked: Mapping[str, _Chain], anchors: Anchors, out: Verified) -> None:
    """Tell what the anchors say that is not so."""
    for writer, places in sorted(anchors.of.items()):
        last, at = max(places), walked.get(writer, _Chain())
        if at.number == 0:
            out.add(f"the chain of the writer {writer} is missing: {acts.WHAT} knows {last} links of it")
        elif at.number < last:
            out.add(f"the chain of the writer {writer} is cut after {at.number}: there were {last} links")
        elif writer in anchors.ends and at.number > anchors.ends[writer]:
            out.add(f"the chain of the writer {writer} goes on after its end, {anchors.ends[writer]}")
    for writer, at in sorted(walked.items()):
        if writer in anchors.of:
            continue
        if at.number > 1:
            out.add(f"{acts.WHAT} does not know the writer {writer}, which has {at.number} links")
        else:
            out.beside += 1
