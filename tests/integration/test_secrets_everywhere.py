"""Every way in, with a handful of secrets: afterwards none is anywhere in the store, on the bus or in a prompt.

Goal: whatever hands text over (`emit`, the lookup service, importers, a team's topic, an agent's home, a live edit),
and whatever a model answers, has its secrets hidden before it is kept. Method: the same secrets through each way and
all stages; then every object (packs opened), every message and all that a model was shown is searched for them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sqlite3

import pytest

import foreign
import made
import sessions
from lookup_service import served
from runlore import pipeline, producer, sources, wiring
from runlore.agents import embedded, seen
from runlore.bus import port as bus_port
from runlore.commit import keys, packs, redaction
from runlore.consumers import consolidate, dead, model_summaries, record, source
from runlore.events import models as event_models
from runlore.lookup import seeds
from runlore.memory import redact
from runlore.models import choices
from runlore.settings import Settings
from runlore.sources.mapping import event
from runlore.testing import invariants, models
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore

TOKEN = "ghp_" + "aB3dE5" * 6
PASSWORD = "h7Kq" + "2vZ9xLm4"
URL_PASSWORD = "t0p" + "S3cr1tHere"
KEY_BODY = "MIIEowIBAAKCAQEA" + "q8Zt3" * 20
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N"
SECRETS = [TOKEN, PASSWORD, URL_PASSWORD, KEY_BODY, JWT]
SAID = "\n".join(
    (
        f"Push with {TOKEN} and set DB_PASSWORD={PASSWORD} first.",
        f"The database is postgres://bob:{URL_PASSWORD}@db.internal:5432/shop, the session {JWT}.",
        "-----BEGIN RSA " + f"PRIVATE KEY-----\n{KEY_BODY}\n-----END RSA " + "PRIVATE KEY-----",
    )
)
ITEMS = [
    *made.call("c1", "sh", {"command": f"git push https://bob:{URL_PASSWORD}@git.internal/x"}, SAID),
    *made.call("c2", "sh", {"command": "env"}, {"env": {"DB_PASSWORD": PASSWORD, "GITHUB_TOKEN": TOKEN}}),
]


def run(number=1, **more):
    payload = made.payload(number, text=SAID, items=ITEMS, final=f"done with {TOKEN}")
    return made.data(number, rollout="conv", record=payload, notes=f"by hand: {TOKEN}", **more)


def repeats(asked):
    """A model that says every secret, as if it knew them, and repeats what it was shown."""
    numbers = [int(one) for one in re.findall(r"^#(\d+) ", asked.input, re.MULTILINE)]
    lines = [one[2:] for one in asked.input.splitlines() if one.startswith("| ")]
    said = [*SAID.splitlines()[:2], f"the key is {TOKEN}", "password: " + PASSWORD, *lines[:10]]
    statements = [
        {"section": "knowledge", "text": one[:500], "evidence": numbers[:1]} for one in said if one.strip()
    ]
    value = {"title": f"task with {TOKEN}", "outcome": "success", "outcome_evidence": numbers[:1]}
    return models.Reply(value | {"statements": statements, "reason": SAID})


class Stages:
    """The stages behind a bus, with a model."""

    def __init__(self, store, bus):
        self.store, self.bus = store, bus
        self.engine = models.ScriptedEngine(repeats)

    async def work(self, *projects):
        taken = [one async for one in self.bus.read("runs")]
        assert taken
        hashing = redaction.Keys(self.store)
        done = await record.RecordStage(self.store, self.bus, asks=True, hashing=hashing).process(taken)
        assert done.count(record.DEAD) == 0, done.outcomes
        summaries = model_summaries.ModelSummariesStage(
            self.store, self.bus, self.engine, choices.Choices(), hashing=hashing
        )
        for project in projects or ("acme",):
            await summaries.work(project, "support")
            await consolidate.ConsolidateStage(self.store, self.bus).work(project, "support")
        assert self.engine.asked and await invariants.check(self.store, self.bus) == []

    async def plain(self):
        """Where a secret stands; and how many texts were looked at."""
        return [where async for where, text in self.texts() if holds(text)]

    async def texts(self):
        async for row in self.store.list(""):
            raw = (await self.store.get(row.key)).body
            yield row.key, raw
            if row.key.split("/")[1] == keys.PACKS:
                pack = packs.decode(row.key.rpartition("/")[2], raw)
                for frame in pack.index:
                    if pack.index[frame][1]:
                        yield f"{row.key} {frame}", pack.content(frame)
        for topic in pipeline.TOPICS:
            async for message in self.bus.read(topic.name):
                told = b"".join([message.value or b"", message.key or b"", repr(message.headers).encode()])
                yield f"{topic.name} {message.offset}", told
        for number, ask in enumerate(self.engine.asked):
            yield f"prompt {number}", (ask.instructions + ask.input).encode()

    async def seen_by_next(self, project="acme"):
        found = await seeds.resolve(consolidate.revisions.Reader(self.store), project, "support", "conv")
        opened = await seeds.open_seed(consolidate.revisions.Reader(self.store), found)
        return "".join(one.text for one in opened.files.values())


def holds(raw):
    return any(one.encode() in raw for one in SECRETS)


def stages():
    return Stages(MemoryStore(), MemoryBus())


def sender(one):
    return producer.Producer(one.store, one.bus, hashing=redaction.Keys(one.store))


async def emitted(one, tmp_path):
    stream = io.BytesIO(made.lines([run(1), made.event(2, record=json.loads(run(2)["record"]))]))
    assert [sent async for sent in sender(one).emit(stream, source="/t")]


async def handed_in(one, tmp_path):
    async with served(tmp_path, store=one.store, bus=one.bus) as service:
        await service.post("events", run(1), status=202, headers={"Idempotency-Key": "k"})
        large = made.payload(2, text=SAID + "x" * event_models.RECORD_INLINE_BYTES_MAX)
        await service.post("events", made.data(2, rollout="conv", record=large), status=202)


async def imported(one, tmp_path, fmt, path, *lines):
    found = [*sources.read(fmt, sessions.write(path, *lines), project="acme", memory="support")]
    datas = [one.data for one in found]
    assert len(datas) == 1 and holds(datas[0]["record"].encode())
    await sender(one).publish(datas, source="/t")


async def of_codex(one, tmp_path):
    turn = sessions.codex_turn(
        1, sessions.user(SAID), *sessions.shell(f"echo {TOKEN}", SAID, "c1"), sessions.said(SAID)
    )
    path = tmp_path / f"2026/03/01/rollout-2026-03-01T10-00-00-{sessions.THREAD}.jsonl"
    await imported(one, tmp_path, "codex", path, sessions.meta(), *turn)


async def of_claude_code(one, tmp_path):
    lines = [
        sessions.asked("u1", SAID),
        sessions.used("a1", "Bash", {"command": f"export DB_PASSWORD={PASSWORD}"}, "t1"),
        sessions.resulted("u2", SAID, "t1"),
        sessions.answered("a2", f"Pushed with {TOKEN}."),
    ]
    await imported(one, tmp_path, "claude-code", tmp_path / f"-src/{sessions.SESSION}.jsonl", *lines)


async def of_a_topic(one, tmp_path):
    given = foreign.order()
    text = json.dumps(given)
    said = foreign.items(foreign.mapping(foreign.ORDERS), given)[0]["content"]
    assert json.dumps(said)[1:-1] in text
    changed = text.replace(json.dumps(said)[1:-1], json.dumps(SAID)[1:-1])
    stage = source.SourceStage(one.store, one.bus, foreign.mapping(foreign.ORDERS), event.no_objects)
    message = bus_port.Message("shop.chat.closed", 0, 0, None, changed.encode(), [], 0.0)
    outcomes, _ = await stage.process([message])
    assert [found.state for found in outcomes] == [source.MAPPED]


WAYS = (emitted, handed_in, of_codex, of_claude_code, of_a_topic)


@pytest.mark.parametrize("way", WAYS, ids=[one.__name__ for one in WAYS])
async def test_no_secret_is_kept_whatever_way_it_came_in(way, tmp_path):
    one = stages()
    await way(one, tmp_path)
    assert await one.plain() == []
    (project,) = {json.loads(found.value)["project"] async for found in one.bus.read("runs")}
    memories = {json.loads(found.value)["memory"] async for found in one.bus.read("runs")}
    if memories == {"support"}:
        await one.work(project)
    else:
        taken = [found async for found in one.bus.read("runs")]
        hashing = redaction.Keys(one.store)
        done = await record.RecordStage(one.store, one.bus, hashing=hashing).process(taken)
        assert done.count(record.RECORDED) == len(taken)
    assert await one.plain() == []
    assert await dead.read_all(one.bus) == []
    # What is linkable is there: the same token has one hash, whoever wrote it.
    key = await redaction.read(one.store, project)
    hashed = redact.placeholder("github-token", TOKEN, key).encode()
    kinds = {where.split("/")[1] async for where, text in one.texts() if hashed in text and "/" in where}
    assert {"records", "rollouts"} <= kinds


async def test_what_a_live_edit_holds_is_hidden_on_the_bus_and_in_every_seed(tmp_path):
    one = stages()
    async with served(tmp_path, store=one.store, bus=one.bus) as service:
        await service.post("events", run(1), status=202)
        await one.work()
        seed = await service.seed("next")
        path = f"seeds/{seed['seed']}/files/memories/MEMORY.md"
        base = (await service.get(path)).text
        large = "".join(f"- fact {number} is that {number}\n" for number in range(12_000))
        for number, more in enumerate(("", large)):
            text = base + "".join(f"- {line}\n" for line in SAID.splitlines()[:2]) + more
            data = {
                "project": "acme",
                "memory": "support",
                "session_id": f"next-{number}",
                "run_id": f"run-9{number}",
                "edit_id": f"edit-{number}",
                "edited_at": made.moment(100),
                "revision": seed["revision"],
                "notes": f"by hand: {TOKEN}",
                "files": [
                    {
                        "path": "MEMORY.md",
                        "text": text,
                        "base_sha256": hashlib.sha256(base.encode()).hexdigest(),
                    }
                ],
            }
            # The same rollout's files as it would see them: another's rollout has no part of its own.
            await service.post("events", data, status=202)
            await service.post("events", data, status=202)
        assert await one.plain() == []
        await one.work()
        assert await one.plain() == []
        edits = [
            key async for key in (row.key async for row in one.store.list("acme/records/")) if "edit-" in key
        ]
        assert len(edits) == 2
        key = await redaction.read(one.store, "acme")
        assert redact.placeholder("github-token", TOKEN, key) in await one.seen_by_next()


async def test_an_edit_is_the_same_whether_its_producer_hid_anything_or_not(tmp_path):
    one = stages()
    base = hashlib.sha256(b"").hexdigest()
    data = {
        "project": "acme",
        "memory": "support",
        "session_id": "conv",
        "run_id": "run-1",
        "edit_id": "edit-1",
        "edited_at": made.moment(1),
        "revision": 0,
        "files": [{"path": "MEMORY.md", "text": f"- {SAID}\n", "base_sha256": base}],
    }
    await sender(one).publish([data], source="/t")
    await producer.Producer(one.store, one.bus).publish([data], source="/t")
    hidden, plain = [found async for found in one.bus.read("runs")]
    assert not holds(hidden.value) and holds(plain.value)
    assert dict(hidden.headers)["ce_id"] == dict(plain.headers)["ce_id"]
    for order in ((hidden, plain), (plain, hidden)):
        store = MemoryStore()
        stage = record.RecordStage(store, MemoryBus(), hashing=redaction.Keys(store))
        states = [(await stage.process([message])).outcomes[0].state for message in order]
        assert states == [record.RECORDED, record.ALREADY]
        (row,) = [row async for row in store.list("acme/records/")]
        kept = (await store.get(row.key)).body
        assert not holds(kept) and json.loads(kept.splitlines()[0])["redacted"]["github-token"] == 1


async def test_an_agents_home_on_this_machine_keeps_no_secret_in_any_file(tmp_path):
    home = tmp_path / "home"
    settings = Settings(home=home)
    one = embedded.Embedded(
        settings,
        project="acme",
        memory="support",
        seeds=seen.Seen(tmp_path / "seen", "here", lambda *_: None),
    )
    assert await one.send(run(1), []) == []
    edit = {
        "project": "acme",
        "memory": "support",
        "session_id": "conv",
        "run_id": "run-1",
        "edit_id": "edit-1",
        "edited_at": made.moment(1),
        "revision": 0,
        "files": [
            {"path": "MEMORY.md", "text": f"- {SAID}\n", "base_sha256": hashlib.sha256(b"").hexdigest()}
        ],
    }
    assert await one.send(edit, []) == []
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files and not [path for path in files if holds(path.read_bytes())]
    await one.settle()
    async with wiring.open_home(settings) as opened:
        worked = Stages(opened.store, opened.bus)
        assert await worked.plain() == [] and await worked.seen_by_next()
        assert await dead.read_all(opened.bus) == []
    files = [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in files if holds(path.read_bytes())]
    index = sqlite3.connect(home / "index.db")
    try:
        assert index.execute("SELECT count(*) FROM summaries").fetchone()[0]
    finally:
        index.close()


async def test_what_a_model_is_shown_is_what_is_kept(tmp_path):
    one = stages()
    await sender(one).publish([run(1), run(2)], source="/t")
    await one.work()
    assert await one.plain() == []
    (kept,) = [
        json.loads((await one.store.get(row.key)).body) async for row in one.store.list(keys.answers("acme"))
    ]
    hashed = redact.placeholder("github-token", TOKEN, await redaction.read(one.store, "acme"))
    assert kept["result"]["title"] == f"task with {hashed}" and kept["result"]["redacted"]["github-token"]
    assert hashed in one.engine.asked[0].input
