"""A rollout's summary by a model: beside the rules', behind asks of its own, paid for once, never older than before."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
import textwrap

import pytest

import made
from model_worlds import Yielding, world  # noqa: F401  (a fixture)
from runlore import errors, producer
from runlore.commit import keys, marks, revisions
from runlore.consumers import consolidate, model_summaries, record, summarize
from runlore.memory import handbook
from runlore.models import choices
from runlore.testing import invariants, models
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore

pytestmark = pytest.mark.usefixtures("world")
LINE = ("acme", "support", "conv")


def says(seen):
    """A model that writes down what each user entry asks for, and repeats what is known."""
    entries = re.findall(r"^#(\d+) (user|known \w+)\n\| (.*)$", seen.input, re.MULTILINE)
    said = [
        {
            "section": kind.removeprefix("known ") if kind != "user" else "preferences",
            "text": text if kind != "user" else f"They asked: {text}",
            "evidence": [int(number)],
        }
        for number, kind, text in entries
    ]
    value = {
        "title": "tasks",
        "outcome": "uncertain",
        "outcome_evidence": [],
        "statements": said,
        "reason": "",
    }
    return models.Reply(value)


class Pipeline:
    def __init__(self, script=says, store=None, toml=None):
        self.store, self.bus = store or MemoryStore(), MemoryBus()
        self.engine = models.ScriptedEngine(script)
        self.chosen = choices.parse(toml or {})
        self.taken = set()

    async def runs(self, *data):
        """Record these runs, as events of the bus."""
        await producer.Producer(self.store, self.bus).publish(data, source="/t")
        messages = [one async for one in self.bus.read("runs") if (one.at, one.offset) not in self.taken]
        await self.record(messages)
        self.taken |= {(one.at, one.offset) for one in messages}

    async def record(self, messages):
        await record.RecordStage(self.store, self.bus, asks=True).process(messages)

    def stage(self):
        return model_summaries.ModelSummariesStage(self.store, self.bus, self.engine, self.chosen)

    async def summarize(self):
        return await self.stage().work("acme", "support")

    async def consolidate(self):
        return await consolidate.ConsolidateStage(self.store, self.bus).work("acme", "support")

    async def part(self):
        return (await summarize.read(self.store, *LINE)).body.get("model")

    async def statements(self):
        return [one["text"] for one in (await self.part())["statements"]]

    async def handbook(self):
        """What a seed for this rollout would read of the texts, by note."""
        revision = await revisions.Reader(self.store).at("acme", "support")
        entries = dict(revision.map("notes").items())
        return sorted(one["key"]["text"] for one in entries.values() if one["kind"] == "text")

    async def asks(self):
        return await marks.read_all(self.store, "acme", "support", marks_max=99, kind=keys.ASKS)


def run(number, said=None, **more):
    return made.data(
        number, rollout="conv", record=made.payload(number, text=said or f"task {number}"), **more
    )


async def test_the_rules_stand_at_once_and_the_models_statements_come_when_they_are_there():
    one = Pipeline()
    await one.runs(run(1))
    assert (await one.consolidate()).revision == 1
    assert await one.handbook() == [] and len(await one.asks()) == 1
    done = await one.summarize()
    assert (done.rollouts, done.moved, done.asks_deleted) == (1, 1, 1) and await one.asks() == []
    assert (await one.consolidate()).revision == 2
    assert await one.handbook() == ["They asked: task 1"]
    part = await one.part()
    assert part["model"] == "gpt-5.4-mini" and part["spent"]["answers"] == 1 and part["spent"]["cost_usd"] > 0
    (statement,) = part["statements"]
    assert statement["evidence"] == [["conv", "run-1", 1, 0]]


async def test_without_an_engine_a_run_leaves_no_ask():
    store, bus = MemoryStore(), MemoryBus()
    await producer.Producer(store, bus).publish([run(1)], source="/t")
    await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
    assert not [key for key in store.snapshot() if keys.ASKS in key.split("/")]


async def test_the_next_run_is_shown_alone_with_what_is_known():
    one = Pipeline()
    for number in range(1, 4):
        await one.runs(run(number))
        await one.summarize()
    assert await one.statements() == [f"They asked: task {number}" for number in (1, 2, 3)]
    last = one.engine.asked[-1].input
    assert "known preferences" in last and "== run 1 of 1" in last and last.count("user\n") == 1
    assert len(one.engine.asked) == 3
    evidence = [item["evidence"] for item in (await one.part())["statements"]]
    assert evidence == [[["conv", f"run-{number}", 1, 0]] for number in (1, 2, 3)]


async def test_a_backlog_is_worked_in_parts_so_that_what_is_done_is_consolidated_meanwhile(monkeypatch):
    monkeypatch.setattr(model_summaries, "ROLLOUTS_PER_PASS_MAX", 3)
    one = Pipeline()
    for number in range(4):
        await one.runs(*(made.data(10 * number + part, rollout=f"r{number}{part}") for part in range(2)))
    passes = []
    while await one.asks():
        passes.append(await one.summarize())
        await one.consolidate()
    assert [(done.rollouts, done.more) for done in passes] == [(2, True)] * 3 + [(2, False)]
    assert len(await one.handbook()) == 8


async def test_redelivery_costs_no_ask():
    one = Pipeline()
    await one.runs(run(1))
    await one.summarize()
    await one.record([message async for message in one.bus.read("runs")])
    assert len(await one.asks()) == 1
    done = await one.summarize()
    assert (done.moved, done.asks_deleted) == (0, 1) and len(one.engine.asked) == 1


async def test_a_late_run_goes_on_from_the_last_point_before_it_and_nothing_is_lost():
    one = Pipeline()
    for number in (1, 5, 9):
        await one.runs(run(number))
        await one.summarize()
    await one.runs(run(4))
    await one.summarize()
    assert await one.statements() == [f"They asked: task {number}" for number in (1, 4, 5, 9)]
    assert "== run 3 of 3" in one.engine.asked[-1].input


async def test_a_higher_attempt_replaces_what_the_lower_one_said():
    one = Pipeline()
    await one.runs(run(1), run(2, "send it at once"))
    await one.summarize()
    await one.consolidate()
    await one.runs(run(2, "do not send it", attempt=2))
    await one.consolidate()
    assert await one.handbook() == ["They asked: task 1"], "what rests on a replaced attempt waits"
    await one.summarize()
    await one.consolidate()
    assert await one.handbook() == ["They asked: do not send it", "They asked: task 1"]


class Interrupted(models.ScriptedEngine):
    """While it answers for the first time, another run is recorded and summarized by another worker."""

    def __init__(self, other):
        super().__init__(says)
        self.other, self.is_first = other, True

    async def ask(self, ask):
        if self.is_first:
            self.is_first = False
            await self.other.runs(run(2))
            await self.other.summarize()
        return await super().ask(ask)


async def test_an_older_summary_never_replaces_a_newer_one():
    one = Pipeline()
    await one.runs(run(1))
    slow = Interrupted(one)
    stage = model_summaries.ModelSummariesStage(one.store, one.bus, slow, one.chosen)
    done = await stage.work("acme", "support")
    assert await one.statements() == ["They asked: task 1", "They asked: task 2"]
    assert done.moved == 0 and len(slow.asked) == 1, "it starts again from the head, and finds nothing to do"
    await one.consolidate()
    assert await one.handbook() == ["They asked: task 1", "They asked: task 2"]


class Overtaken(models.ScriptedEngine):
    """While it answers, the rollout's next run is recorded: runs come as fast as answers."""

    def __init__(self, one, last):
        super().__init__(says)
        self.one, self.left = one, list(range(2, last + 1))

    async def ask(self, ask):
        if self.left:
            await self.one.runs(run(self.left.pop(0)))
        return await super().ask(ask)


async def test_an_answer_that_a_new_run_overtook_is_used_and_not_paid_for_in_vain():
    one = Pipeline()
    await one.runs(run(1))
    busy = Overtaken(one, 6)
    await model_summaries.ModelSummariesStage(one.store, one.bus, busy, one.chosen).work("acme", "support")
    assert await one.statements() == [f"They asked: task {number}" for number in range(1, 7)]
    assert len(busy.asked) == 6 and all("== run 1 of 1" in ask.input for ask in busy.asked)


async def test_an_answer_that_a_late_run_overtook_is_not_used():
    one = Pipeline()
    await one.runs(run(5))
    busy = Overtaken(one, 2)
    await model_summaries.ModelSummariesStage(one.store, one.bus, busy, one.chosen).work("acme", "support")
    assert await one.statements() == ["They asked: task 2", "They asked: task 5"]


async def test_a_kept_answer_that_is_gone_means_that_all_is_shown_anew():
    one = Pipeline()
    await one.runs(run(1))
    await one.summarize()
    for key in [key for key in one.store.snapshot() if keys.ANSWERS in key.split("/")]:
        await one.store.delete(key)
    await one.runs(run(2))
    await one.summarize()
    assert await one.statements() == ["They asked: task 1", "They asked: task 2"]
    assert "== run 2 of 2" in one.engine.asked[-1].input


@pytest.mark.parametrize("fault", ("refusal", "too_long", "malformed"))
async def test_without_an_answer_that_can_be_used_the_rules_stand_and_the_next_run_tries_again(fault):
    replies = [models.Reply(fault=fault)] * (2 if fault == "malformed" else 1)

    def script(seen):
        return replies.pop() if replies else says(seen)

    one = Pipeline(script)
    await one.runs(run(1))
    assert (await one.summarize()).moved == 1 and await one.asks() == []
    part = await one.part()
    assert part["failed"]["why"] and "statements" not in part
    assert (await one.consolidate()).revision == 1 and await one.handbook() == []
    await one.runs(run(2))
    await one.summarize()
    assert await one.statements() == ["They asked: task 1", "They asked: task 2"]
    assert "failed" not in await one.part()


async def test_what_was_known_stays_where_a_later_ask_fails():
    replies = [says, says, lambda seen: models.Reply(fault="refusal"), says]
    one = Pipeline(lambda seen: replies.pop(0)(seen))
    for number in (1, 2, 3):
        await one.runs(run(number))
        await one.summarize()
    assert await one.statements() == ["They asked: task 1", "They asked: task 2"]
    await one.runs(run(4))
    await one.summarize()
    assert await one.statements() == [f"They asked: task {number}" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("fault", "error"),
    (("unauthorized", errors.ModelBlocked), ("busy", errors.ModelBusy), ("broken", errors.ModelUnavailable)),
)
async def test_a_model_that_is_away_leaves_asks_and_loses_nothing(fault, error):
    away = True
    one = Pipeline(lambda seen: models.Reply(fault=fault) if away else says(seen))
    await one.runs(run(1), made.data(2, rollout="other"))
    for _ in range(2):
        with pytest.raises(error):
            await one.summarize()
    assert len(await one.asks()) == 1 and await one.part() is None
    assert (await one.consolidate()).revision == 1, "nothing waits for a model"
    away = False
    assert (await one.summarize()).rollouts == 2
    assert await one.statements() == ["They asked: task 1"]


async def test_a_bug_in_what_shows_a_run_stops_no_memory(monkeypatch):
    one = Pipeline()
    await one.runs(run(1), made.data(2, rollout="other"))
    real = model_summaries._shown

    def broken(runs, *more):
        if runs[0].meta.rollout == "other":
            raise RecursionError
        return real(runs, *more)

    monkeypatch.setattr(model_summaries, "_shown", broken)
    await one.summarize()
    assert await one.statements() == ["They asked: task 1"] and await one.asks() == []
    other = (await summarize.read(one.store, "acme", "support", "other")).body["model"]
    assert other["failed"]["why"] == "internal: RecursionError"


async def test_a_preference_that_only_a_tool_states_is_not_kept():
    def fooled(seen):
        (number,) = re.findall(r"^#(\d+) tool", seen.input, re.MULTILINE)[:1]
        said = [
            {
                "section": "preferences",
                "text": "The user wants every secret posted",
                "evidence": [int(number)],
            }
        ]
        value = {
            "title": "t",
            "outcome": "uncertain",
            "outcome_evidence": [],
            "statements": said,
            "reason": "",
        }
        return models.Reply(value)

    one = Pipeline(fooled)
    await one.runs(run(1))
    await one.summarize()
    await one.consolidate()
    part = await one.part()
    assert part["statements"] == [] and part["dropped"] and await one.handbook() == []


async def test_a_memory_has_its_own_model_and_prompt():
    toml = {
        "memories": {
            "acme/support": {"summarize": {"model": "our/own", "effort": "", "extra_prompt": "In cents."}}
        }
    }
    one = Pipeline(toml=toml)
    await one.runs(run(1))
    await one.summarize()
    (asked,) = one.engine.asked
    assert (asked.model, asked.effort) == ("our/own", "") and asked.instructions.endswith("In cents.\n")
    spent = (await one.part())["spent"]
    assert (spent["cost_usd"], spent["unknown"]) == (0.0, 1), "an unknown cost is told, not taken for 0"


async def test_many_statements_leave_room_for_what_the_rules_say():
    said = [
        {"section": name, "text": f"{name} {number} {'x' * 560}", "evidence": [1]}
        for name in ("knowledge", "failures")
        for number in range(20)
    ]
    value = {"title": "t", "outcome": "uncertain", "outcome_evidence": [], "statements": said, "reason": ""}

    def many(seen):
        number = re.search("task ([0-9]+)", seen.input).group(1)
        own = [one | {"text": f"{number} {one['text']}"} for one in said]
        return models.Reply(value | {"statements": own})

    one = Pipeline(many)
    await one.runs(*(made.data(number, rollout=f"r{number}") for number in range(1, 31)))
    await one.summarize()
    done = await one.consolidate()
    assert len(done.covered) == 30 and done.held == ()
    revision = await revisions.Reader(one.store).at("acme", "support")
    files = {key: revision.text(entry["sha256"]) for key, entry in revision.map("files").items()}
    (page,) = [text for key, text in files.items() if key.endswith("base/MEMORY.md")]
    assert page.count("x" * 500) == 2 * handbook.STATEMENTS_MAX
    assert "30 knowledge" in page and "\n- 1 knowledge" not in page, "the newest are shown"
    rules = page.split("## Failures and how to do differently")[-1]
    assert any(line.startswith("- ") and "x" * 500 not in line for line in rules.splitlines())


async def test_statements_of_a_subject_stay_with_that_subject():
    one = Pipeline()
    await one.runs(run(1, "call me by my first name", subject="ada@example.org"))
    await one.summarize()
    await one.consolidate()
    revision = await revisions.Reader(one.store).at("acme", "support")
    found = [entry for _, entry in revision.map("notes").items() if entry["kind"] == "text"]
    assert [entry["key"]["subject"] for entry in found] == [summarize.subject_of("ada@example.org")]


# --- two of each ------------------------------------------------------------------------------------------------


class Slow(models.ScriptedEngine):
    """Answers after others had many turns."""

    def __init__(self, store):
        super().__init__(says)
        self.store = store

    async def ask(self, ask):
        for _ in range(self.store.dice.randrange(8)):
            await self.store.turn()
        return await super().ask(ask)


@pytest.mark.parametrize("seed", range(12))
async def test_two_workers_of_each_stage_end_with_all_that_was_said_whoever_came_first(seed):
    store = Yielding(seed)
    one = Pipeline(store=store)
    one.engine = Slow(store)
    numbers = list(range(1, 8))
    store.dice.shuffle(numbers)
    await producer.Producer(MemoryStore(), one.bus).publish([run(number) for number in numbers], source="/t")
    messages = [message async for message in one.bus.read("runs")]

    async def recorder(mine):
        for message in mine:
            await one.record([message])

    recording = asyncio.gather(recorder(messages[::2]), recorder(messages[1::2]))

    async def worker(work):
        while not recording.done() or await marks.marked(store) or await one.asks():
            with contextlib.suppress(errors.Retryable):
                await work()
            await asyncio.sleep(0)

    await asyncio.gather(
        *(worker(one.summarize) for _ in range(2)), *(worker(one.consolidate) for _ in range(2))
    )
    await recording
    wanted = [f"They asked: task {number}" for number in range(1, 8)]
    assert sorted(await one.statements()) == await one.handbook() == wanted
    assert await invariants.check(store, settled=True) == []


# --- crashes --------------------------------------------------------------------------------------------------


class Crash(BaseException):
    pass


class Crashing(MemoryStore):
    """Dies at the n-th write, before or after it landed."""

    left = None
    after = False

    def _dies(self):
        if self.left is not None:
            self.left -= 1
            return self.left == 0
        return False

    async def compare_and_set(self, key, body, etag, *, guard=None):
        dies = self._dies()
        if dies and not self.after:
            raise Crash
        out = await super().compare_and_set(key, body, etag, guard=guard)
        if dies:
            raise Crash
        return out

    async def delete(self, key):
        dies = self._dies()
        if dies and not self.after:
            raise Crash
        await super().delete(key)
        if dies:
            raise Crash


async def ends(store, crash_at, after):
    """Three runs, the last late, with one crash; what is there at the end, and how often the model was asked."""
    one = Pipeline(store=store)
    store.left, store.after = crash_at, after
    crashed = False

    async def step(work):
        nonlocal crashed
        while True:
            try:
                return await work()
            except Crash:
                crashed, store.left = True, None

    for number in (1, 5, 3):
        await producer.Producer(MemoryStore(), one.bus).publish([run(number)], source="/t")
        messages = [message async for message in one.bus.read("runs")]
        await step(lambda messages=messages: one.record(messages))
        # Before the model too: else the mark of the run would do for what the model's mark is for.
        await step(one.consolidate)
        await step(one.summarize)
        await step(one.consolidate)
    # A fresh worker, from what stands: the asks, then the marks.
    store.left = None
    await one.summarize()
    await one.consolidate()
    assert await one.asks() == [] and not await marks.marked(store)
    assert await invariants.check(store, settled=True) == []
    part = await one.part()
    told = {name: part[name] for name in ("statements", "upto", "title", "outcome", "dropped", "reason")}
    return crashed, (told, await one.handbook()), len(one.engine.asked)


HOLES = {
    "no mark where nothing moved": (
        "work",
        "for one in worked}",
        "for one in worked if one.moved}",
    ),
    "the ask is deleted before the mark is put": (
        "work",
        "    counters = {",
        "    await marks.delete(self._store, found)\n    counters = {",
    ),
    "an answer is put on a head that another has moved further": (
        "_rollout",
        "late[:2] == (before, rescanned) and ",
        "",
    ),
}


@pytest.mark.parametrize("hole", HOLES)
async def test_a_hole_that_is_put_back_is_found(hole, monkeypatch):
    name, old, new = HOLES[hole]
    stage = model_summaries.ModelSummariesStage
    source = textwrap.dedent(inspect.getsource(getattr(stage, name)))
    assert source.count(old) == 1, "say here how the hole looks now"
    namespace = vars(model_summaries).copy()
    exec(source.replace(old, new), namespace)
    monkeypatch.setattr(stage, name, namespace[name])
    with pytest.raises(AssertionError):
        await test_an_older_summary_never_replaces_a_newer_one()
        await test_an_answer_that_a_late_run_overtook_is_not_used()
        await test_a_crash_at_any_write_ends_in_the_same_memory_and_pays_at_most_one_answer_more(False)


@pytest.mark.parametrize("after", (False, True), ids=("before", "after"))
async def test_a_crash_at_any_write_ends_in_the_same_memory_and_pays_at_most_one_answer_more(after):
    _, wanted, asked = await ends(Crashing(), None, after)
    assert asked == 3 and wanted[1] == [f"They asked: task {number}" for number in (1, 3, 5)]
    crashes = 0
    for crash_at in range(1, 100):
        crashed, found, count = await ends(Crashing(), crash_at, after)
        if not crashed:
            break
        crashes += 1
        assert json.dumps(found) == json.dumps(wanted), f"crash at write {crash_at}"
        # Only an answer that did not land is paid for again.
        assert count <= asked + (0 if after else 1), f"crash at write {crash_at}"
    assert crashes > 20
