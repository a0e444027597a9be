"""A world with one clock that jumps: for sweeps, whose promise is about time.

Every store call is a step, and between two steps any process may go on or the time may jump. A commit is three
steps, as on S3: it is signed, its age is checked, it is sent; the store refuses a signature older than its
window. A reply is never lost and nobody crashes here: what matters is who is paused where, and for how long
(a crash is a pause without an end). After each step: what a head names is there, and what one named less than
T ago is there too.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import hashlib
from dataclasses import dataclass, field

from runlore import clock, errors
from runlore.commit import heads, keys, lines, sweep
from runlore.snapshots import names, reading
from runlore.testing import workspaces
from runlore.testing.stores import MemoryStore
from runlore.testing.world import finish

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
STORE_WINDOW = dt.timedelta(minutes=15)
"""The window of the simulated store itself: a fact, whatever the code under test believes."""
TERM = dt.timedelta(hours=72)
STEPS_MAX = 400

PRIVATE = (keys.MEMORIES, keys.MANIFESTS, keys.PACKS, keys.BLOBS, keys.OUTCOMES)
"""Kinds that only one process here looks at."""
HEADS = (keys.WORKSPACES, keys.OUTCOMES)
PAUSES = (TERM - STORE_WINDOW, dt.timedelta(minutes=10), TERM)
"""Just not too late to commit; within a signature's window; too late."""


class Broken(AssertionError):
    """Something is gone that must be there."""


class Shared(clock.World):
    """A process's view of the one clock; its ids are a function of its name."""

    def __init__(self, world, name, process=None):
        self._world, self._name, self._drawn, self._process = world, name, 0, process

    def now(self):
        if self._process is not None:
            # What it does next may depend on this; until it asks, when it goes on makes no difference.
            self._process.history = hash((self._process.history, self._world.at))
        return self._world.at

    def monotonic(self):
        return (self.now() - EPOCH).total_seconds()

    async def sleep(self, seconds):
        return None

    def random_bytes(self, count):
        self._drawn += 1
        return hashlib.sha256(f"{self._name}/{self._drawn}".encode()).digest()[:count]

    def random(self):
        return 0.5


class _Step:
    def __init__(self, what, perform):
        self.what, self.perform = what, perform

    def __await__(self):
        return (yield self)


@dataclass
class Process:
    name: str
    context: contextvars.Context
    coroutine: object
    step: object = None
    history: int = 0
    result: object = None
    """What it returned, or the error that it ended with."""

    @property
    def alive(self):
        return self.coroutine is not None


@dataclass
class World:
    """One schedule."""

    gen: object
    jumps: int = 0
    switches: int | None = None
    coarse: bool = False
    """Whether signing and checking are one step: a pause between them only makes more be refused."""
    retries: bool = False
    """A client that signs a request again when it is sent (boto3's default): a mutant."""
    store: MemoryStore = field(default_factory=MemoryStore)
    at: dt.datetime = EPOCH
    processes: list = field(default_factory=list)
    trace: list = field(default_factory=list)
    named_at: dict = field(default_factory=dict)
    """Ref → when a head last named it."""
    current: object = None

    def __post_init__(self):
        self._packs = {}
        self._named = {}
        self._context = contextvars.copy_context()
        self._context.run(clock.install, Shared(self, "world"))

    # --- processes ----------------------------------------------------------------------------------------

    def spawn(self, name, main):
        context = contextvars.copy_context()
        process = Process(name, context, None)
        context.run(clock.install, Shared(self, name, process))
        process.coroutine = context.run(main, Store(self))
        self.processes.append(process)
        self._resume(process, None, None)
        return process

    def calmly(self, name, main):
        """Run one process to its end, undisturbed; its result."""
        left, self.jumps = self.jumps, 0
        process = self.spawn(name, main)
        while process.alive:
            self._go(process)
        self.processes.remove(process)
        self.current, self.jumps = None, left
        if isinstance(process.result, Exception):
            raise process.result
        return process.result

    def copy(self, gen, **more):
        """This world, to go on from here in another schedule."""
        made = World(gen, at=self.at, **more)
        made.store._objects, made.store._order = dict(self.store._objects), list(self.store._order)
        made.named_at = dict(self.named_at)
        made._packs, made._named = self._packs, {key: set(refs) for key, refs in self._named.items()}
        return made

    def run(self):
        for _ in range(STEPS_MAX):
            alive = [process for process in self.processes if process.alive]
            if not alive:
                return
            first = self.current if self.current in alive else alive[0]
            others = [process for process in alive if process is not first]
            if self.current in alive and self.switches == 0:
                others = []
            options = [(process, None) for process in [first, *others]]
            if first is self.current and _private(first.step.what):
                options = options[:1]
            elif self.jumps:
                options += [(one, pause) for one, _ in options if _timed(one.step.what) for pause in PAUSES]
            number = self.gen.choose(len(options), self.state) if len(options) > 1 else 0
            chosen, pause = options[number]
            if pause is not None:
                self.jumps -= 1
                self.at += pause
                self.trace.append(f"(time passes: {pause})")
            if self.current is not chosen and self.current in alive and self.switches:
                self.switches -= 1
            self._go(chosen)
        raise AssertionError("no end:\n" + "\n".join(self.trace[-40:]))

    def state(self):
        # When a head was written is in its body; when a pack was, a sweep asks.
        objects = tuple(
            (key, stored.etag, 0 if key.split("/")[1] in HEADS else at)
            for key, (stored, at) in sorted(self.store._objects.items())
        )
        processes = tuple((p.name, p.history, p.alive, p.step and p.step.what) for p in self.processes)
        current = self.current.name if self.current and self.switches is not None else None
        return (hash(objects), self.at, processes, self.jumps, self.switches, current)

    def _go(self, process):
        self.current = process
        step = process.step
        self.trace.append(f"{self.at - EPOCH}  {process.name}: {step.what}")
        try:
            result, error = self._context.run(step.perform), None
        except errors.RunloreError as exc:
            result, error = None, exc
        kind, _, key = step.what.partition(" ")
        if kind == "send" and error is None:
            self._moved(key)
        if kind == "delete":
            self._deleted(key)
        self._resume(process, result, error)

    def _resume(self, process, result, error):
        told = error.kind if error else _told(result)
        process.history = hash((process.history, told))
        try:
            if error is None:
                process.step = process.context.run(process.coroutine.send, result)
            else:
                process.step = process.context.run(process.coroutine.throw, error)
            return
        except StopIteration as end:
            process.result = end.value
        except errors.RunloreError as exc:
            process.result = exc
        process.coroutine = process.step = None

    # --- what must hold -----------------------------------------------------------------------------------

    def packs_of(self, ref):
        """The keys that a snapshot needs; None where they can not even be told."""
        if ref not in self._packs:
            try:
                opened = finish(reading.open_exact(self.store, "acme", names.Ref.parse(ref)))
            except errors.RunloreError:
                return None
            self._packs[ref] = opened.packs()
        return self._packs[ref]

    def _moved(self, key):
        if key.split("/")[1] != keys.WORKSPACES:
            return
        head = finish(lines.read(self.store, lines.line_from(finish(_read(self.store, key)))))
        now = lines.named(head.body)
        for ref in now | self._named.get(key, set()):
            self.named_at[ref] = self.at
        self._named[key] = now
        for ref in now:
            packs = self.packs_of(ref)
            lost = ["its root"] if packs is None else [one for one in packs if self.store.body(one) is None]
            if lost:
                self.broken(f"the head {key} names {ref[:8]}, whose {', '.join(lost)} is gone")

    def _deleted(self, key):
        for ref in set().union(*self._named.values()) if self._named else ():
            self.named_at[ref] = self.at
        for ref, at in self.named_at.items():
            if self.at - at <= TERM and key in (self.packs_of(ref) or ()):
                self.broken(f"{key} is deleted, which {ref[:8]} needs; it was named {self.at - at} ago")

    def broken(self, what):
        steps = "\n".join(f"  {step}" for step in self.trace)
        raise Broken(f"{what}\nafter:\n{steps}\nchoices: {self.gen.choices()}")


def _private(what):
    """Steps whose order against others' can make no difference: what they read or write nobody else does."""
    kind, _, key = what.partition(" ")
    return kind in ("list", "put") and key.split("/")[1] in PRIVATE


def _timed(what):
    """Steps for which it matters when they come. A pause before any other is one before the next of these."""
    kind, _, key = what.partition(" ")
    return kind in ("begin", "sign", "check", "send", "delete") or (
        kind in ("get", "put") and key.split("/")[1] in (keys.WORKSPACES, keys.SNAPSHOTS)
    )


async def _read(store, key):
    return await heads.read(store, key, fmt=lines.HEAD_FORMAT)


def _told(result):
    """A hashable name for what a process was told."""
    if isinstance(result, list):
        return tuple(_told(one) for one in result)
    if hasattr(result, "etag"):
        return (getattr(result, "key", None), result.etag, getattr(result, "modified", None))
    return result if isinstance(result, (str, bytes, int, dt.datetime, type(None))) else repr(type(result))


class Store:
    """The object store as a process of this world sees it."""

    def __init__(self, world):
        self._world, self._inner = world, world.store

    async def _call(self, what, work):
        return await _Step(what, lambda: finish(work()))

    async def begin(self):
        """A process begins when it likes: until then it has not looked at the clock."""
        await _Step("begin", lambda: None)

    async def get(self, key):
        return await self._call(f"get {key}", lambda: self._inner.get(key))

    async def get_many(self, wanted):
        return [await self.get(key) for key in wanted]

    async def get_range(self, key, offset, length):
        return await self._call(f"get {key}", lambda: self._inner.get_range(key, offset, length))

    async def get_tail(self, key, length):
        return await self._call(f"get {key}", lambda: self._inner.get_tail(key, length))

    async def put(self, key, body):
        return await self._call(f"put {key}", lambda: self._inner.put(key, body))

    async def put_if_absent(self, key, body):
        return await self._call(f"put {key}", lambda: self._inner.put_if_absent(key, body))

    async def compare_and_set(self, key, body, etag, *, guard=None):
        signed = None
        if guard is not None:
            signed = await _Step(f"sign {key}", lambda: self._world.at)
            if not self._world.coarse:
                await _Step(f"check {key}", lambda: None)
            guard()

        def send():
            if signed is not None and not self._world.retries and self._world.at - signed > STORE_WINDOW:
                raise errors.StoreUnavailable("403: the signature is too old")
            return finish(self._inner.compare_and_set(key, body, etag))

        return await _Step(f"send {key}", send)

    async def delete(self, key):
        await self._call(f"delete {key}", lambda: self._inner.delete(key))

    async def delete_many(self, wanted):
        for key in wanted:  # Each is a step: no store promises that they go together.
            await self.delete(key)

    async def settle(self):
        return None

    async def list(self, prefix):
        rows = await self._call(f"list {prefix}", lambda: _rows(self._inner, prefix))
        for row in rows:
            yield row

    async def children(self, prefix):
        return await self._call(f"list {prefix}", lambda: self._inner.children(prefix))


async def _rows(store, prefix):
    return [row async for row in store.list(prefix)]


# --- processes --------------------------------------------------------------------------------------------

P = "acme"


def writer(rollout, run, files, *, base=None, source=None, tries=1):
    """A writer as the snapshot stage is one: read heads, save what a run left, move the line; again if too late.

    It refers to the version that its own line names, or the line `source`; `base(head)` chooses otherwise.
    """

    async def main(store):
        await store.begin()
        line = lines.Line(P, rollout)
        for attempt in range(tries):
            try:
                return await _write(store, line, run, files, base, source)
            except errors.CommitTooLate:
                if attempt == tries - 1:
                    raise

    return main


async def _write(store, line, run, files, base, source):
    head = await lines.read(store, line)
    seen, began = lines.base_of(head.body), head.read_at
    from_head = head
    if source is not None:
        from_head = await lines.read(store, lines.Line(P, source))
        began = min(began, from_head.read_at)
    chosen = await base(store, from_head) if base is not None else from_head.body.get("ref")
    opened = [await reading.open_exact(store, P, names.Ref.parse(chosen))] if chosen else []
    ref = await workspaces.put(store, P, files, bases=opened)
    offer = lines.Offer(run, 1, str(ref), seen, f"e-{run}")
    return await lines.advance(store, line, offer, began=began)


def sweeper(times=1):
    async def main(store):
        await store.begin()
        for _ in range(times):
            await sweep.delete(store, await sweep.scan(store, P))

    return main


def reader(rollout, out):
    """Somebody who restores a line's version: what it read, or the error that told it."""

    async def main(store):
        await store.begin()
        head = await lines.read(store, lines.Line(P, rollout))
        began = clock.now()
        try:
            found = workspaces.plain(await workspaces.read(store, P, head.body["ref"]))
        except errors.RunloreError as exc:
            if clock.now() - began <= TERM:
                raise AssertionError(f"gone {clock.now() - began} after it was named") from exc
            return
        out.append(found)

    return main
