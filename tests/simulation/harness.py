"""Scenarios: some events, some processes, how much may go wrong; and what must hold after every schedule.

Goal: the production stages keep the invariants whatever happens. Method: run them in every schedule; watch each
write of a head, each commit and each deleted mark as it happens; when all processes have ended or died, let
one fresh worker recover from the committed offset and the marks alone; then check every invariant, liveness
included, and that memory means the same as after an undisturbed run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

from runlore import errors
from runlore.bus.port import Outgoing
from runlore.commit import heads, keys, revisions, rollouts
from runlore.consumers import consolidate, dead, promote, rebuild, record
from runlore.consumers.runtime import SEQUENTIAL
from runlore.events import envelope, models
from runlore.lookup import reviewing
from runlore.settings import Settings
from runlore.testing import exhaust, invariants, object_invariants, side_invariants, world
from runlore.testing.world import finish
from runlore.worker import loop

PROJECT, MEMORY = "acme", "support"
AS_TOLD = "as the scenario says"


DEAF: set[int] = set()
"""Numbers of invariants whose checkers nobody listens to (`proof.py`)."""


def heard(violations):
    """What is told of these."""
    return [one for one in violations if number_of(one) not in DEAF]


def number_of(violation):
    """The number of an invariant in docs/DESIGN.md; 0 where it is of the scenario alone."""
    number = violation.invariant.split()[0]
    return int(number) if number.isdigit() else 0


class Broken(AssertionError):
    """An invariant did not hold in some schedule."""

    def __init__(self, violations, simulation):
        self.violations = violations
        self.names = {violation.invariant for violation in violations}
        told = "\n".join(map(str, violations))
        steps = "\n".join(f"  {number:3d} {step}" for number, step in enumerate(simulation.trace, 1))
        super().__init__(f"{told}\nafter:\n{steps}\nchoices: {simulation.gen.choices()}")


# --- events -----------------------------------------------------------------------------------------------


def event(run, *, rollout="r1", attempt=1, text=None, at="2026-01-01T00:00:00+00:00", **more):
    """A run-completed event, as the producer sends it."""
    payload = {
        "updated_at": at,
        "input": [],
        "generated_items": [],
        "final_output": text or f"{run}.{attempt}",
    }
    data = {"project": PROJECT, "memory": MEMORY, "session_id": rollout, "run_id": run, "attempt": attempt}
    data |= {"record": json.dumps(payload), **more}
    made = envelope.of_run(data, source="/test")
    checked = models.run_completed(data)
    return record.message_of(made, f"{checked.project}/{checked.rollout.alias}", "runs")


def edit(name, *, rollout="r1", text=None, base="", revision=0, project=PROJECT):
    """A memory-edited event: what a run wrote into `MEMORY.md`, which was seeded as `base`."""
    sha256 = hashlib.sha256(base.encode()).hexdigest()
    files = [{"path": "MEMORY.md", "text": text or f"- {name}\n", "base_sha256": sha256}]
    data = {"project": project, "memory": MEMORY, "session_id": rollout, "run_id": f"of-{name}"}
    data |= {"edit_id": name, "edited_at": "2026-01-01T00:01:00+00:00", "revision": revision, "files": files}
    made = envelope.of_edit(data, source="/test")
    return record.message_of(made, f"{project}/{models.memory_edited(data).rollout.alias}", "runs")


def garbage(value=b"{"):
    """A message that no stage can take."""
    headers = [
        (f"ce_{name}", text) for name, text in (("id", b"g"), ("source", b"/t"), ("specversion", b"1.0"))
    ]
    return Outgoing("runs", b"k", value, [*headers, ("ce_type", models.RUN_COMPLETED.encode())])


# --- processes --------------------------------------------------------------------------------------------

SETTINGS = {count: Settings(poll_records_max=count) for count in (1, 2, 100)}


def _worker(store, bus, records_max):
    one = loop.Worker(store, bus, None, SETTINGS[records_max])
    one._index = SimpleNamespace(reconcile=_nothing)
    return one


async def _nothing():
    return 0


def worker(records_max=100):
    """A process that works until nothing is left: the production worker, with jobs in turn instead of tasks."""

    async def main(store, bus):
        await _worker(store, bus, records_max).drain()

    return main


def recorder(records_max=100):
    """The record stage alone: one of the loops of a worker that run at the same time."""

    async def main(store, bus):
        one = _worker(store, bus, records_max)
        consumer = await bus.consumer(group="record", topics=["runs"])
        while messages := await one._tries("record", lambda: one._poll(consumer, timeout_seconds=0.0)):
            await one._tries("record", lambda messages=messages: one._take(consumer, messages))
        await consumer.close()

    return main


async def _consolidated(one, project, memory):
    """All passes over a memory's marks."""
    while await one._tries("consolidate", lambda: one._consolidated(project, memory)):
        pass


def consolidator(passes=1):
    """The consolidate stage alone, which looks for marks a few times."""

    async def main(store, bus):
        one = _worker(store, bus, 100)
        for _ in range(passes):
            for project, memory in sorted(await one._tries("consolidate", one._marked)):
                await _consolidated(one, project, memory)

    return main


def reverter(to=1):
    """Somebody who reverts the memory, and tries again if it was interrupted."""

    async def main(store, bus):
        with contextlib.suppress(errors.Refused):  # It is what the memory has already.
            await consolidate.revert(
                store, bus, revisions.Reader(store), PROJECT, MEMORY, to=to, reason="bad merge"
            )

    return main


def builder(side="side"):
    """Somebody who builds a side line by the rules, and tries again if it was interrupted."""

    async def main(store, bus):
        with contextlib.suppress(errors.NotFound):  # The memory has no runs yet.
            line = rebuild.Rebuild(store, bus, PROJECT, MEMORY, side)
            await line.build(rebuild.setup_of(None), reason="the rules are newer")

    return main


def promoter(side="side"):
    """Somebody who makes a side line the memory's next revision, and tries again if it was interrupted."""

    async def main(store, bus):
        reader = revisions.Reader(store)
        await promote.promote(store, bus, reader, PROJECT, MEMORY, side, reason="it is better")

    return main


def newer():
    """A newer version of Runlore, which keeps one more field in every head that it finds."""

    async def main(store, bus):
        for prefix, fmt in ((keys.ROLLOUTS, rollouts.HEAD_FORMAT), (keys.MEMORIES, revisions.HEAD_FORMAT)):
            async for row in store.list(f"{PROJECT}/{prefix}/"):
                head = await heads.read(store, row.key, fmt=fmt)
                await heads.move(store, head, {"from_the_future": 1}, fmt=fmt)

    return main


def bell_worker():
    """The consolidate stage as a doorbell calls it: it works the memory without having listed what is marked."""

    async def main(store, bus):
        one = _worker(store, bus, 100)
        await _consolidated(one, PROJECT, MEMORY)

    return main


def person(rollout):
    """Somebody who releases a rollout, sees it held again, and releases it again; notes the hold lifted last."""

    async def main(store, bus):
        for _ in range(2):
            await releaser(rollout)(store, bus)
            head = await revisions.Reader(store).head(PROJECT, MEMORY)
            person.lifted = head.body["held"][rollout]["hold"]
            if person.lifted == 1:
                await bell_worker()(store, bus)

    return main


def releaser(*rollouts):
    """Somebody who lets held rollouts in again."""

    async def main(store, bus):
        with contextlib.suppress(errors.NotFound):  # They are in already.
            await consolidate.release(
                store, bus, revisions.Reader(store), PROJECT, MEMORY, rollouts, reason="looked at"
            )

    return main


def approver(rollout, hold=1):
    """Somebody who approves a rollout as this hold of it shows it."""

    async def main(store, bus):
        # It is in already, or held anew.
        with contextlib.suppress(errors.NotFound, errors.Refused):
            reader = revisions.Reader(store)
            await reviewing.approve(store, bus, reader, PROJECT, MEMORY, [rollout], reason="fine", hold=hold)

    return main


def rejecter(rollout):
    """Somebody who rejects a rollout."""

    async def main(store, bus):
        with contextlib.suppress(errors.NotFound):
            await reviewing.reject(
                store, bus, revisions.Reader(store), PROJECT, MEMORY, [rollout], reason="not fine"
            )

    return main


def private(call):
    """Calls whose order against other processes' calls can make no difference.

    Content-named objects are written with one body only and read after something names them; a record never
    changes; the log is only appended to, and nobody here reads what is appended.
    """
    kind = call.what.split("/")[1] if "/" in call.what else call.what
    # Where nothing is erased, nobody writes the ledger.
    unchanged = call.kind == "get" and kind in (keys.RECORDS, keys.ERASURES)
    immutable = kind in (keys.PACKS, keys.MANIFESTS) or unchanged
    return immutable or call.kind in ("produce", "poll", "commit") or call.what == ""


def install(monkeypatch):
    """Let the worker run its jobs in turn, and say nothing; parse each message once."""
    parse, parsed = record.parse, {}

    def parse_once(message):
        name = (message.offset, message.value)
        if name not in parsed:
            parsed[name] = parse(message)
        return parsed[name]

    monkeypatch.setattr(record, "parse", parse_once)
    monkeypatch.setattr(loop.concurrency, "runtime", lambda lanes: SEQUENTIAL)
    quiet = SimpleNamespace(**dict.fromkeys(("warning", "error", "exception"), _say_nothing))
    monkeypatch.setattr(loop, "log", quiet)
    monkeypatch.setattr(consolidate, "log", quiet)


def _say_nothing(*_, **__):
    return None


# --- scenarios --------------------------------------------------------------------------------------------


@dataclass
class Scenario:
    """What happens, and what may go wrong."""

    messages: list
    processes: list = field(default_factory=lambda: [worker()])
    faults: world.Faults = world.NO_FAULTS
    before: list = field(default_factory=list)
    """(messages, process) pairs that were sent and that ran, undisturbed, before it begins."""
    replay: bool = False
    """Whether the topic is then replayed from its start."""
    list_page: int = 1000
    compare: bool = True
    """Whether the end must mean what it means after one undisturbed worker."""
    holds: object = None
    """What else must hold at the end: a function of the memory's view that gives what is wrong, or None."""
    restarts: bool = True
    prepare: object = None
    """Called before each schedule, to set back what a process changed outside of its world."""
    schedules_max: int = 60_000

    def explore(self, *, partly=False, is_over=lambda: False):
        """Every schedule, or with `partly` as many as it may have. Raises `Broken` on the first that breaks one."""
        self._checked, self._ends, self._begun = {}, {}, None
        self._wanted = self._calm_meaning() if self.compare else None
        return exhaust.explore(self._run, schedules_max=self.schedules_max, partly=partly, is_over=is_over)

    def run(self, gen):
        """One schedule; its simulation."""
        self._checked, self._ends, self._begun = {}, {}, None
        self._wanted = self._calm_meaning() if self.compare else None
        return self._run(gen)

    def _calm_meaning(self):
        simulation = self._world(exhaust.Replay([]))
        for messages, _ in self.before:
            finish(simulation.bus.produce(messages))
        finish(simulation.bus.produce(self.messages))
        simulation.spawn("calm", worker())
        simulation.run()
        return meaning(simulation.store, simulation.bus)

    def _world(self, gen):
        if self.prepare:
            self.prepare()
        return world.Simulation(gen, list_page=self.list_page, watch=self._watch, private=private)

    def _prepared(self, gen):
        if self._begun is None:
            self._begun = self._begin()
        simulation = self._world(gen)
        simulation.store, simulation.bus = self._begun.store.copy(), self._begun.bus.copy()
        simulation.named, simulation.trace = set(self._begun.named), list(self._begun.trace)
        simulation.allow(self.faults)
        for number, main in enumerate(self.processes):
            simulation.spawn(f"p{number}", main, restarts=self.restarts)
        return simulation

    def _begin(self):
        """The world at the moment at which choices begin: the same in every schedule."""
        simulation = self._world(exhaust.Replay([]))
        for number, (messages, main) in enumerate(self.before):
            finish(simulation.bus.produce(messages))
            simulation.spawn(f"before{number}", main)
            simulation.run()
        finish(simulation.bus.produce(self.messages))
        if self.replay:
            finish(simulation.bus.rewind(group="record", topic="runs"))
        return simulation

    def _run(self, gen):
        simulation = self._prepared(gen)
        simulation.run()
        end = (simulation.store.fingerprint(), simulation.bus.fingerprint(ignore=("changed",)))
        late = tuple(sorted(map(str, simulation.late)))
        if self._ends.get((end, late)):
            return simulation
        self._recover(simulation)
        if simulation.late:
            # What was under way all the time lands at last, and one more worker looks.
            simulation.land()
            self._recover(simulation)
        self._ends[end, late] = True
        return simulation

    def _recover(self, simulation):
        simulation.quietly()
        simulation.current = None
        simulation.processes.clear()
        simulation.spawn(f"fresh{len(simulation.trace)}", worker())
        simulation.trace.append("(faults stop; one fresh worker)")
        simulation.run()
        found = finish(invariants.check(simulation.store, simulation.bus, settled=True))
        found += finish(side_invariants.check(simulation.store, PROJECT))
        found = heard([*found, *self._seeds(simulation)])
        if self._wanted is not None and not found:
            found += heard(differences(self._wanted, meaning(simulation.store, simulation.bus)))
        if self.holds is not None and not found:
            (view,) = finish(invariants.look(simulation.store, PROJECT))
            wrong = self.holds(view)
            found += [invariants.Violation(AS_TOLD, view.name, wrong)] if wrong else []
        if found:
            raise Broken(found, simulation)

    def _seeds(self, simulation):
        found = []
        for number, manifest in sorted(simulation.named):
            check = invariants.seeds_give_the_same_bytes(simulation.store, PROJECT, MEMORY, number, manifest)
            found += finish(check)
        return found

    # --- at each write --------------------------------------------------------------------------------

    def _watch(self, simulation, call, before):
        found = []
        kind = call.what.split("/")[1] if "/" in call.what else ""
        if kind in (keys.ROLLOUTS, keys.MEMORIES, keys.SIDES):
            after = simulation.store.body(call.what)
            found += invariants.moved_well(call.what, before, after)
            if kind == keys.ROLLOUTS and after is not None:
                rollout = call.what.rpartition("/")[2].removesuffix(".json")
                named = object_invariants.rollout_names_what_exists(
                    simulation.store, PROJECT, MEMORY, rollout, after
                )
                found += finish(named)
            if kind == keys.MEMORIES and after is not None:
                found += self._moved(simulation, before, after)
        elif kind == keys.MANIFESTS:
            manifest = simulation.store.body(call.what)
            found += finish(object_invariants.manifest_names_what_exists(simulation.store, PROJECT, manifest))
        elif call.kind == "commit" or (kind == keys.MARKS and call.kind != "put_if_absent"):
            found += self._at_rest(simulation)
        if found := heard(found):
            raise Broken(found, simulation)

    def _moved(self, simulation, before, after):
        head = json.loads(after)
        if head.get("manifest"):
            simulation.named.add((head["revision"], head["manifest"]))
        return finish(invariants.follows(simulation.store, PROJECT, MEMORY, before, after))

    def _at_rest(self, simulation):
        """Invariant 4 at the moments at which it can break: a commit, and a mark that goes."""
        name = (simulation.store.fingerprint(), simulation.bus.fingerprint(ignore=("changed",)))
        if name not in self._checked:
            self._checked[name] = finish(offsets(simulation.store, simulation.bus))
        return self._checked[name]


async def offsets(store, bus):
    """Invariant 4, as it is now in every project."""
    views = {
        (view.project, view.memory): view
        for project in await invariants.projects(store)
        for view in await invariants.look(store, project)
    }
    committed = await bus.committed(group="record", topic="runs")
    return await invariants.offsets_follow_effects(bus, views, committed)


# --- what memory means ------------------------------------------------------------------------------------


def meaning(store, bus):
    """What is in memory, without when and in how many steps it came there."""
    (view,) = finish(invariants.look(store, PROJECT)) or (None,)
    if view is None:
        return {}
    out = {"held": {name: why["kind"] for name, why in view.held.items()}}
    out["rollouts"] = {
        name: {run: (entry["attempt"], entry["received"]) for run, entry in head.body["runs"].items()}
        for name, head in view.rollouts.items()
    }
    out["summaries"] = {name: head.body["summary"] for name, head in view.rollouts.items()}
    out["dead"] = sorted((letter.reason, str(letter.event_id)) for letter in finish(dead.read_all(bus)))
    if view.revision is not None:
        out["notes"] = dict(view.revision.map("notes").items())
        out["selected"] = sorted(dict(view.revision.map("selected").items()))
        out["files"] = {
            path: view.revision.text(entry["sha256"]) for path, entry in view.revision.map("files").items()
        }
    return out


def differences(wanted, got):
    return [
        invariants.Violation(invariants.ONCE, name, f"undisturbed: {wanted.get(name)}; here: {got.get(name)}")
        for name in sorted({*wanted, *got})
        if wanted.get(name) != got.get(name)
    ]
