"""A whole deployment for one seed: agents, two competing workers, an index replica, a reader, an operator, a sweep.

Goal: the invariants hold whatever happens to whole processes, in the code as it runs in production: the worker's own
loops, lanes, commits and rebalances included. Method: a simulated cluster (`runlore.testing.cluster`); every write is
watched as it lands; at the end faults stop, everything settles, and every invariant is checked, liveness included; then
the topic is replayed from its start, which must change nothing.

A seed is *dense* (ten minutes in which everything happens at once) or *long* (two weeks, in which processes stand still
for longer than a term, and sweeps delete what nothing names).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import disks
import harness
import toy
from harness import MEMORY, PROJECT

from runlore import clock, errors
from runlore.commit import age, erasures, keys, lines, revisions, sweep
from runlore.consumers import consolidate, dead
from runlore.lookup import index as lookup_index
from runlore.lookup import seeds
from runlore.models import choices
from runlore.settings import Settings
from runlore.snapshots import names, reading
from runlore.testing import (
    cluster,
    erasure_invariants,
    invariants,
    models,
    object_invariants,
    side_invariants,
    simloop,
    snapshot_invariants,
    workspaces,
)
from runlore.testing.simloop import at_once
from runlore.upkeep.erasing import asking, eraser, proof
from runlore.worker import loop as worker_loop

DAY = 86_400.0
NOISY = "noisy"
"""A project that sends many events at once, now and then."""
ERASED_DAYS_MAX = 10
"""By then every erasure has come to its second date."""
NEEDLE = "heliotrope"
"""What every run of the rollout says that is erased."""
AGENTS, RUNS, BURST = 3, 5, 12
RUN_NAMES = [f"n{agent}-{number}" for agent in range(AGENTS) for number in range(RUNS)]
STALE, INDEXED, REPLAY = (
    "11 no seed is older than one seen",
    "the index agrees with the heads",
    "a replay changes nothing",
)
CALLBACKS_MAX = 3_000_000


@dataclass(frozen=True)
class Scale:
    """How time goes in one kind of schedule, in seconds."""

    name: str
    between_runs: float
    horizon: float
    settle: float
    settings: dict = field(default_factory=dict)
    commit: float = 1.0
    sweep: float = 0.0
    rates: cluster.Rates = field(default_factory=cluster.Rates)


DENSE = Scale(
    "dense",
    60.0,
    600.0,
    900.0,
    {"marks_interval_seconds": 20.0, "poll_timeout_seconds": 30.0},
    commit=20.0,
    rates=cluster.Rates(
        crash_seconds=60.0,
        pause_seconds=90.0,
        jump_seconds=120.0,
        partitions_seconds=900.0,
        disk_seconds=120.0,
        full_seconds=45.0,
    ),
)
LONG = Scale(
    "long",
    1.5 * DAY,
    14 * DAY,
    2 * DAY,
    {"marks_interval_seconds": 7200.0, "poll_timeout_seconds": 7200.0, "heads_interval_seconds_max": 7200.0},
    commit=7200.0,
    sweep=0.7 * DAY,
    rates=cluster.Rates(
        crash_seconds=1.5 * DAY,
        pause_seconds=2 * DAY,
        long_pause=0.5,
        jump_seconds=DAY,
        partitions_seconds=6 * DAY,
        disk_seconds=DAY,
        full_seconds=0.2 * DAY,
    ),
)


def scale_of(seed):
    return LONG if seed % 3 == 2 else DENSE


def erases(seed):
    """Whether a rollout is erased in a seed's schedule, beside all else."""
    return seed % 4 == 3


def is_real(seed):
    """Whether a seed's schedule has the real memory and a model; else the toy, which costs a tenth."""
    return seed % 6 == 4


class Broken(AssertionError):
    """An invariant did not hold."""

    def __init__(self, seed, violations, world):
        self.violations, self.faults, self.trace = violations, list(world.faults), list(world.trace)
        self.names = {one.invariant for one in violations}
        super().__init__(f"seed {seed}: " + "\n".join(map(str, violations[:5])))


class Watched(AssertionError):
    """What a watcher of writes found."""

    def __init__(self, violations):
        self.violations = violations
        super().__init__("\n".join(map(str, violations)))


class SimEngine:
    """A model that takes a while, and is away, busy or wrong now and then."""

    def __init__(self, world, name):
        self._world, self._name, self._inner = world, name, models.ScriptedEngine()

    async def ask(self, ask):
        await asyncio.sleep(self._world.between(f"{self._name}/model", 0.5, 20.0))
        for kind in (errors.ModelUnavailable, errors.ModelBusy, errors.BadAnswer, errors.ModelRefused):
            if self._world.goes_wrong(f"{self._name}/model", kind.kind, self._world.rates.refused):
                raise kind("as it happens")
        return await self._inner.ask(ask)

    async def close(self):
        return None


class Fleet:
    """One schedule. With `real` memory is what it is in production, and a model summarizes and brings together."""

    def __init__(self, seed, *, without=(), runs=RUNS):
        self.seed, self.scale, self.runs, self.real = seed, scale_of(seed), runs, is_real(seed)
        self.without, self.erases = without, erases(seed)
        self.outbox = {}
        """What each agent has on its disk: the event of each run, once it is made."""
        self.sent, self.saved = set(), {}
        self.named = set()
        self.seen = []
        self.stopping = []
        self.indexes = {}
        self.may_erase, self.is_erasing = True, False

    def run(self):
        """Its world, after everything was checked. Raises `Broken`."""
        with tempfile.TemporaryDirectory() as folder, simloop.simulated(callbacks_max=CALLBACKS_MAX) as loop:
            self.folder = Path(folder)
            self.world = cluster.Cluster(
                loop, self.seed, rates=self.scale.rates, watch=self.watch, without=self.without
            )
            self.world.on_disk = self._on_disk
            try:
                main = loop.create_task(self._drive(), context=self.world.context)
                loop.run_until_complete(main)
            except (Watched, simloop.Stuck) as exc:
                wrong = getattr(exc, "violations", [invariants.Violation(invariants.ENDS, "world", str(exc))])
                raise Broken(self.seed, wrong, self.world) from exc
            finally:
                self.world.over = True
            return self.world

    # --- the plot -----------------------------------------------------------------------------------------

    async def _drive(self):
        world, scale = self.world, self.scale
        workers = ["worker-a", "worker-b", "index-c"]
        for name in workers:
            world.start(name, self._worker(name))
        agents = [f"agent-{number}" for number in range(AGENTS)]
        for number, name in enumerate(agents):
            world.start(name, self._agent(number))
        world.start("noise", self._noise())
        world.start("reader", self._reader())
        if self.erases:
            world.start("forgetter", self._forgetter())
        world.start("operator", self._operator())
        if scale.sweep:
            world.start("sweeper", self._sweeper())
        forgetter = ["forgetter"] if self.erases else []
        disturbed = asyncio.create_task(world.disturb([*workers, *agents, *forgetter]))
        agents.append("noise")
        await self._until(scale.horizon)
        world.calm()
        disturbed.cancel()
        world.tell("--- faults stop ---")
        for _ in range(100):
            if all(world.members[name].done for name in agents):
                break
            await self._until(scale.between_runs)
        await self._until(scale.settle)
        await self._no_more_erasing()
        await self._stop(workers)
        self.check()
        before = self._meaning()
        await self._replay(workers)
        self.check()
        after = self._meaning()
        if self.erases:
            self.may_erase = True
            for _ in range(ERASED_DAYS_MAX):
                if world.members["forgetter"].done:
                    break
                await self._until(DAY)
            self._nothing_is_left_of_what_was_erased()
        self._broken(
            [
                invariants.Violation(REPLAY, name, f"before: {before[name]}; after: {after[name]}")
                for name in before
                if before[name] != after[name]
            ]
        )

    async def _until(self, seconds):
        end = self.world.loop.time() + seconds
        while self.world.loop.time() < end:
            await asyncio.sleep(min(30.0 if self.scale is DENSE else 7200.0, end - self.world.loop.time()))
            if self.world.failed:
                error = self.world.failed[0]
                if isinstance(error, Watched):
                    raise error
                raise Watched(
                    [invariants.Violation("no error that nobody foresaw", "process", repr(error))]
                ) from error

    async def _no_more_erasing(self):
        """An erasure that is at work comes to where it waits, and the indexes to what it moved. It goes on later."""
        self.may_erase = False
        if self.erases:
            while self.is_erasing:
                await self._until(60.0)
            await self._until(self.scale.settle)

    async def _stop(self, names):
        """End these processes as SIGTERM does."""
        for event in self.stopping:
            event.set()
        for _ in range(200):
            if all(self.world.members[name].done for name in names):
                return
            await self._until(10.0)
        raise Watched([invariants.Violation(invariants.ENDS, "workers", "they do not stop")])

    async def _replay(self, workers):
        await self.world.replay("runs", ("record", "snapshot"))
        self.stopping.clear()
        self.world.tell("--- the topic is replayed from its start ---")
        for name in workers:
            self.world.start(name, self._worker(name))
        await self._until(self.scale.settle)
        await self._stop(workers)

    def _on_disk(self, name, is_full):
        if name in self.indexes:
            self.indexes[name].is_full(is_full)

    # --- processes ----------------------------------------------------------------------------------------

    def _worker(self, name):
        # With a short queue what is noisy is put aside and read again.
        short = {"queue_records_max": 6, "poll_records_max": 3} if self.seed % 2 else {}
        settings = Settings(bus="sqlite").model_copy(update={**self.scale.settings, **short})
        stages = ["index"] if name.startswith("index") else list(worker_loop.STAGES)

        async def main(store, bus):
            stopping = asyncio.Event()
            self.stopping.append(stopping)
            # Its disk outlives it; now and then somebody deletes the file.
            path = self.folder / f"{name}.db"
            if self.world.goes_wrong(
                name, "index deleted", 0.2 if self.world.rates is not cluster.CALM else 0
            ):
                _delete(path)
            index = self.indexes[name] = disks.Index(path, self.world, name)
            try:
                has_model = self.real and stages != ["index"]
                engine = SimEngine(self.world, self.world.members[name].process.name)
                one = worker_loop.Worker(
                    store,
                    bus,
                    index,
                    settings,
                    stages=stages,
                    index_group=f"index-{name}",
                    stopping=stopping,
                    summaries=worker_loop.Summaries(engine, choices.Choices()) if has_model else None,
                )
                await one.run()
            finally:
                if self.indexes.get(name) is index:
                    del self.indexes[name]
                index.close()

        return main

    def _agent(self, number):
        """An agent: takes a seed, works, saves its workspace, and sends its event until the bus has it."""

        async def main(store, bus):
            for run in range(self.runs):
                name = f"n{number}-{run}"
                if name in self.sent:
                    continue
                await clock.sleep(self.world.between(f"agent-{number}", 0.1, 1.9) * self.scale.between_runs)
                messages = self.outbox.get(name)
                if messages is None:
                    messages = self.outbox[name] = [await self._ran(store, number, run, name)]
                    messages += self._more(number, run, name, messages[0])
                while True:
                    try:
                        await bus.produce(messages)
                        break
                    except errors.BusUnavailable:
                        await clock.sleep(3.0)
                self.sent.add(name)

        return main

    def _noise(self):
        async def main(store, bus):
            for burst in range(2):
                await clock.sleep(self.world.between("noise", 0.2, 2.0) * self.scale.between_runs)
                messages = [
                    harness.event(f"x{burst}-{number}", rollout=f"r{number % 5}", project=NOISY)
                    for number in range(BURST)
                ]
                await _tried(lambda messages=messages: bus.produce(messages))

        return main

    async def _ran(self, store, number, run, name):
        """The event of a run, with the workspace that it left."""
        rollout = f"r{int(self.world.draw('rollout') * 4)}"
        if is_bad := self.world.draw("poison") < 0.05:
            rollout = f"bad-{name}"
        seed = await _tried(lambda: seeds.resolve(revisions.Reader(store), PROJECT, MEMORY, rollout))
        await clock.sleep(self.world.between(f"agent-{number}", 1.0, 0.3 * self.scale.between_runs))
        said = f"{NEEDLE} {name}" if rollout == "r2" else None
        if self.world.draw("workspace") < 0.2:
            return harness.event(name, rollout=rollout, text=said)
        files = {"f": name.encode(), f"of-{number}": b"%d" % run}
        # What the seed named is there for its term; whoever worked for longer refers to nothing.
        bases = []
        if seed is not None and seed.snapshot and clock.now_iso() < seed.expires:
            bases = [await _tried(lambda: reading.open_exact(store, PROJECT, names.Ref.parse(seed.snapshot)))]
        self.saved[name] = clock.now()
        ref = await _tried(lambda: workspaces.put(store, PROJECT, files, bases=bases))
        base = seed.base if seed is not None else None
        workspace = {"snapshot": str(ref), "base": base}
        said = toy.POISON if is_bad else said
        more = {"workspaces": [workspace], **({"record": self._record(name, run)} if self.real else {})}
        return harness.event(name, rollout=rollout, text=said, **more)

    def _record(self, name, number):
        """A run in which a tool fails, and works once its arguments are changed."""
        items = []
        for step, (path, output) in enumerate(
            (("wrong", {"error": "no such table"}), ("right", {"rows": number}))
        ):
            call = {"call_id": f"c{step}", "name": "query", "arguments": json.dumps({"path": path})}
            items.append({"type": "function_call", **call})
            items.append(
                {"type": "function_call_output", "call_id": f"c{step}", "output": json.dumps(output)}
            )
        line = {
            "updated_at": clock.now_iso(),
            "input": [{"role": "user", "content": f"Count the rows of table {name}"}],
            "generated_items": items,
            "terminal_metadata": {"terminal_state": "completed", "has_final_output": True},
            "final_output": f"{number} rows in {name}",
        }
        return json.dumps(line)

    def _more(self, number, run, name, first):
        """What goes with it: the same once more, a second attempt, something that is no event."""
        draw = self.world.draw("more")
        if draw < 0.1:
            return [first]
        if draw < 0.2:
            body = json.loads(first.value)
            return [harness.event(name, rollout=body["session_id"], attempt=2)]
        return [harness.garbage()] if draw < 0.25 else []

    def _reader(self):
        """Whoever asks for seeds: never gets an older one, and the same bytes as long as a seed is good."""

        async def main(store, bus):
            reader = revisions.Reader(store)
            newest = 0
            while self.world.rates is not cluster.CALM:
                await clock.sleep(self.world.between("reader", 0.05, 0.4) * self.scale.between_runs)
                try:
                    opened = await seeds.open_newest(
                        reader, lambda: seeds.resolve(reader, PROJECT, MEMORY, "r1")
                    )
                except errors.Retryable:
                    continue
                if opened is None:
                    continue
                seed = opened.seed
                if seed.revision < newest:
                    told = invariants.Violation(STALE, "reader", f"{seed.revision} after {newest}")
                    self.world.failed.append(Watched([told]))
                newest = seed.revision
                self.seen.append((seed, {path: one.text for path, one in opened.files.items()}))

        return main

    def _operator(self):
        """Somebody who takes a memory back to an earlier revision once."""

        async def main(store, bus):
            await clock.sleep(self.world.between("operator", 0.3, 0.8) * self.scale.horizon)
            if self.world.draw("operator") < 0.5:
                return
            reader = revisions.Reader(store)

            async def revert():
                head = await reader.head(PROJECT, MEMORY)
                if int(head.body.get("revision") or 0) > 1:
                    await consolidate.revert(store, bus, reader, PROJECT, MEMORY, to=1, reason="bad merge")

            try:
                await _tried(revert)
            except errors.Refused:
                return

        return main

    def _forgetter(self):
        """Somebody who has a rollout erased, and a schedule that goes on with it until it is done."""

        async def main(store, bus):
            self.is_erasing = False
            if self.world.members["forgetter"].starts == 1:
                await clock.sleep(self.world.between("forgetter", 0.2, 0.7) * self.scale.horizon)
            one = eraser.Eraser(store, bus, PROJECT)
            while True:
                while not self.may_erase:
                    await clock.sleep(60.0)
                self.is_erasing = True
                try:
                    if not [entry async for entry in erasures.every(store, PROJECT)]:
                        await one.begin(asking.wanted_of(project=PROJECT, rollout="r2"))
                    for entry in await eraser.due(store, PROJECT):
                        await one.carry_on(str(entry.body["id"]))
                    if not await eraser.unfinished(store, PROJECT):
                        return
                except (errors.Retryable, errors.NotFound):
                    pass  # Nothing is there yet, or it is tried again.
                finally:
                    self.is_erasing = False
                pause = 60.0 if self.world.rates is not cluster.CALM else 0.5 * DAY
                await clock.sleep(pause if self.scale is DENSE else 0.5 * DAY)

        return main

    def _sweeper(self):
        async def main(store, bus):
            while True:
                await clock.sleep(self.world.between("sweeper", 0.5, 1.5) * self.scale.sweep)
                if self.world.rates is cluster.CALM:
                    return
                try:
                    plan = await sweep.scan(store, PROJECT)
                    # Between the two anything may happen, for any time.
                    await clock.sleep(self.world.draw("sweeper") ** 3 * 0.5 * DAY)
                    await sweep.delete(store, plan)
                except errors.Retryable:
                    continue

        return main

    # --- at each write ------------------------------------------------------------------------------------

    def watch(self, kind, key, before):
        found = []
        store = self.world.store
        project, part, *rest = key.split("/") if "/" in key else (key, "")
        after = store.body(key)
        if part in (keys.ROLLOUTS, keys.MEMORIES, keys.SIDES):
            found += invariants.moved_well(key, before, after)
            if part == keys.ROLLOUTS and after is not None:
                rollout = rest[-1].removesuffix(".json")
                found += at_once(
                    object_invariants.rollout_names_what_exists(store, project, MEMORY, rollout, after)
                )
            if part == keys.MEMORIES and after is not None:
                head = json.loads(after)
                if head.get("manifest"):
                    self.named.add((project, head["revision"], head["manifest"]))
                found += at_once(invariants.follows(store, project, MEMORY, before, after))
        elif part == keys.WORKSPACES:
            found += snapshot_invariants.moved_well(key, before, after)
            found += at_once(snapshot_invariants.forgets_nothing(store, key, before, after))
            head = at_once(lines.heads.read(store, key, fmt=lines.HEAD_FORMAT))
            found += at_once(snapshot_invariants.refs_are_whole(store, project, head))
        elif part == keys.MANIFESTS and kind != "delete" and not self.erases:
            # Beside an erasure a writer that is too late may put one whose packs are gone: no head moves to it.
            found += at_once(object_invariants.manifest_names_what_exists(store, project, after))
        elif kind == "commit" or (part == keys.MARKS and kind in ("delete", "compare_and_delete")):
            found += at_once(harness.offsets(store, self.world.bus))
        elif kind == "delete" and part in (keys.SNAPSHOTS, keys.BLOBS, keys.PACKS):
            found += at_once(snapshot_invariants.check(store, project))
        if found:
            raise Watched(found)

    # --- at the end ---------------------------------------------------------------------------------------

    def check(self):
        store, bus = self.world.store, self.world.bus
        found = at_once(invariants.check(store, bus, settled=True))
        found += at_once(side_invariants.check(store, PROJECT))
        found += at_once(snapshot_invariants.check(store, PROJECT))
        found += at_once(snapshot_invariants.every_workspace_reaches_an_end(store, bus))
        found += at_once(erasure_invariants.check(store, PROJECT))
        for project, number, manifest in sorted(self.named):
            with contextlib.suppress(errors.Erased):
                same = invariants.seeds_give_the_same_bytes(store, project, MEMORY, number, manifest)
                found += at_once(same)
        found += self._nothing_is_swept_too_early()
        found += self._seeds_are_what_they_were()
        found += self._indexes_agree()
        missing = set(RUN_NAMES if self.runs == RUNS else ()) - self.sent
        if missing:
            found.append(invariants.Violation(invariants.ENDS, "agents", f"never sent: {sorted(missing)}"))
        self._broken(found)

    def _broken(self, found):
        if found:
            raise Watched(found)

    def _nothing_is_swept_too_early(self):
        """What was saved stays for a term: so a workspace that came in time is not missing."""
        found = []
        for letter in at_once(dead.read_all(self.world.bus)):
            run = dead.run_of(letter) if letter.reason in ("snapshot_missing", "snapshot_expired") else None
            if run is None:
                continue
            after = dt.datetime.fromisoformat(letter.at) - self.saved[run]
            if after < age.TERM - 2 * age.WINDOW:
                found.append(
                    invariants.Violation(snapshot_invariants.KEPT, run, f"{letter.reason} after {after}")
                )
        return found

    def _seeds_are_what_they_were(self):
        found, reader = [], revisions.Reader(self.world.store)
        for seed, files in self.seen:
            if clock.now_iso() >= seed.expires:
                continue
            try:
                opened = at_once(seeds.open_seed(reader, seed))
            except errors.Erased:
                continue
            if {path: one.text for path, one in opened.files.items()} != files:
                found.append(invariants.Violation(invariants.SEEDS, seed.id[:12], "it has other bytes now"))
        return found

    def _nothing_is_left_of_what_was_erased(self):
        """After the second date no byte of it is in the store, and the ledger says that it is done."""
        store = self.world.store
        states = {entry.body["state"] for entry in at_once(_all(erasures.every(store, PROJECT)))}
        found = [] if states <= {erasures.DONE} else [f"an erasure is {sorted(states)} at the end"]
        for key, body in store.snapshot().items():
            if any(NEEDLE.encode() in part for part in proof.unpacked(key, body)):
                found.append(f"{key} holds what was erased")
        self._broken([invariants.Violation(invariants.ERASED, PROJECT, one) for one in found])

    def _indexes_agree(self):
        found = []
        for path in sorted(self.folder.glob("*.db")):
            index = lookup_index.Index(path)
            for key, body in self.world.store.snapshot().items():
                if key.split("/")[1] not in (keys.ROLLOUTS, keys.MEMORIES, keys.WORKSPACES):
                    continue
                stored = at_once(self.world.store.get(key))
                if index.etags([key]).get(key) != stored.etag:
                    counter = json.loads(body)["counter"]
                    found.append(invariants.Violation(INDEXED, path.name, f"{key} at {counter} is not in it"))
            index.close()
        return found

    def _meaning(self):
        views = [*at_once(invariants.look(self.world.store, PROJECT))]
        views += at_once(invariants.look(self.world.store, NOISY))
        return {view.project: self._means(view) for view in views}

    def _means(self, view):
        return {
            "held": sorted(view.held),
            "runs": {name: head.body["runs"] for name, head in view.rollouts.items()},
            "files": dict(view.revision.map("files").items()) if view.revision else {},
            "revision": view.revision.number if view.revision else 0,
            "lines": {
                key: [json.loads(body).get("ref"), sorted(json.loads(body).get("branches", ()))]
                for key, body in self.world.store.snapshot().items()
                if key.split("/")[:2] == [view.project, keys.WORKSPACES]
            },
        }


async def _all(rows):
    return [row async for row in rows]


def _delete(path):
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


async def _tried(work):
    """`work`, until the store can be asked."""
    while True:
        try:
            return await work()
        except errors.Retryable:
            await clock.sleep(2.0)
