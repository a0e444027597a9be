"""What Runlore reads as bytes, one target for each decoder: whatever they are, it returns or raises an error of ours.

A target says what it is given, which valid samples there are to begin with, and which errors may come of it. Anything
else (another exception, a file outside of its folder) is a bug. `test_bytes_targets.py` runs every target over the
samples, over what was found before (`corpus/`) and over a bounded number of damaged samples; `make fuzz` runs one for
as long as it is let, guided by coverage (`fuzz.py`).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import io
import json
import os
import re
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import stored_objects
import zstandard

import foreign
import made
import sessions
from runlore import errors, producer, sources
from runlore.agents import remote
from runlore.bus import port as bus_port
from runlore.commit import heads, keys, packs, pages, revisions, rollouts
from runlore.consumers import dead, edited
from runlore.consumers import record as record_stage
from runlore.consumers.runtime import SEQUENTIAL
from runlore.events import envelope, ids, models
from runlore.lookup import seeds, signing
from runlore.lookup.http import answers as http_answers
from runlore.memory import guards, model_summary, notes, operations, redact, render, rules, showing, values
from runlore.models import choices
from runlore.models import port as models_port
from runlore.snapshots import building, reading, tarin, trees
from runlore.snapshots import names as snapshot_names
from runlore.snapshots import packs as snapshot_packs
from runlore.sources.mapping import event as mapping_event
from runlore.sources.mapping import file as mapping_file
from runlore.sources.mapping import objects as mapping_objects
from runlore.store import port as store_port
from runlore.testing import buses, stores
from runlore.testing.world import finish
from runlore.upkeep import access, chain
from runlore.upkeep.erasing import receipts, seeded

BUGS = frozenset({"internal", "unprocessable", "unmappable"})
"""Kinds that say that our own code failed: what keeps the event is no excuse for what failed."""
GOLDEN = Path(__file__).resolve().parents[2] / "schemas" / "golden"
KEY = b"k" * 32
LIMITS = tarin.Limits(bytes_max=32 * 1024**2, entries_max=2000, held_bytes_max=1024**2)
"""Smaller than those of a worker, so that a bomb is at its limit within a fuzzer's second."""


@dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    run: Callable[[bytes], object]
    samples: Callable[[], list[bytes]]
    raises: tuple[type[errors.RunloreError], ...]
    kind: str = "json"
    """How its samples are damaged: `json` (lines of it), `tar`, or `bytes` alone."""


TARGETS: dict[str, Target] = {}


def target(name, samples, *raises, kind="json"):
    """Makes a function of bytes the target `name`."""

    def add(run):
        TARGETS[name] = Target(name, run, functools.cache(samples), raises, kind)
        return run

    return add


def check(name, raw):
    """Run a target. Raises what it must not raise."""
    one = TARGETS[name]
    try:
        one.run(raw)
    except one.raises as exc:
        if exc.kind in BUGS:
            raise AssertionError(f"{name}: {exc.kind}: {exc.message}") from exc


def lines(*values):
    return b"".join(compact(value) + b"\n" for value in values)


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


# --- events ---------------------------------------------------------------------------------------------------


def headed(headers, value):
    """A message as one piece of bytes: headers as lines, a blank line, the value."""
    return b"".join(b"%s: %s\n" % (name.encode(), raw) for name, raw in headers) + b"\n" + value


def message_in(raw, topic="runs"):
    head, _, value = raw.partition(b"\n\n")
    headers = []
    for line in head.split(b"\n"):
        name, _, said = line.partition(b": ")
        headers.append((name.decode("utf-8", "replace"), said))
    return bus_port.Message(topic, 0, 0, b"acme/r", value, headers, 1_770_000_000.0)


def golden_messages():
    out = []
    for path in sorted(GOLDEN.glob("*.json")):
        for one in json.loads(path.read_text("utf-8"))["samples"]:
            headers = [(name, said.encode()) for name, said in one["headers"].items()]
            out.append(headed(headers, one["value"].encode()))
    for number in range(3):
        event = producer.event_of(compact(made.data(number)), "/t")
        out.append(headed(event.headers(), event.value()))
    return out


@target("event", golden_messages, errors.Poison)
def event(raw):
    """A message on `runs`: its envelope, its data, its record by all the rules, and what is kept of it."""
    incoming = record_stage.parse(message_in(raw))
    if isinstance(incoming.data, models.RunCompleted):
        found = record_stage.make(incoming, incoming.data.record or "{}", KEY)
        again = rollouts.decode("r", found.encode())
        assert again.line == found.line
        # Readers in other languages read it too.
        json.loads(found.encode().split(b"\n", 1)[0], parse_constant=_no_constant)


def _no_constant(word):
    raise AssertionError(f"{word} was kept, which is no JSON")


@target("doorbell", golden_messages, errors.Poison)
def doorbell(raw):
    found = envelope.parse(message_in(raw).headers, message_in(raw).value)
    envelope.check_type(found, models.CHANGED)
    models.parse_data(models.Changed, found.data)


def emitted():
    return [
        compact(made.data(1)),
        compact(made.event(2)),
        *(raw.partition(b"\n\n")[2] for raw in golden_messages()),
    ]


@target("line", emitted, errors.Poison)
def line(raw):
    """A line that is handed in, and what its producer hides of it before it is sent."""
    found = producer.event_of(raw, "/t")
    if found.type in (models.RUN_COMPLETED, models.MEMORY_EDITED):
        data = found.data
        checked = models.handed_in(found.type, data)
        producer.hidden(data, checked, KEY)
        producer.key_of(checked)


@target("edit", lambda: [raw for raw in golden_messages() if b"memory.edited" in raw], errors.Poison)
def edit(raw):
    data = models.memory_edited(envelope.parse(message_in(raw).headers, message_in(raw).value).data)
    empty = stores.MemoryStore()
    finish(edited.line_of(empty, revisions.Reader(empty), data, SEQUENTIAL, KEY))


def record_lines():
    return [compact(made.payload(number)) for number in range(4)] + [_labelled()]


def _labelled():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Deploy with ghp_" + "a1B2" * 9}]},
        *made.call("c1", "shell", {"cmd": "make deploy"}, "Error: no such target: deploy"),
        {"type": "reasoning", "summary": [{"text": "Perhaps it is release."}]},
        *made.call("c2", "shell", {"cmd": "make release"}, "ok\nreleased 1.2.3"),
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Released."}]},
    ]
    return compact(made.payload(9, items=items, text="Deploy it"))


@target("record", record_lines, errors.Poison)
def record(raw):
    """A record's line through all that is made of it: digest, summary, notes, files, guards."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.InvalidRecord from None
    data = models.run_completed(made.data(1) | {"record": text})
    incoming = record_stage.Incoming(message_in(b"\n\n"), envelope.Event("e", "s", "t", {}), data)
    found = record_stage.make(incoming, text, KEY)
    meta = values.RunMeta(project="p", memory="m", rollout="r1", run="run1", ended_at=found.meta["ended_at"])
    summary = rules.build([rules.digest(found.line, meta)])
    known, refused = operations.apply(notes.Notes(), operations.propose(notes.Notes(), "r1", summary))
    assert not refused
    for made_of_it in (summary, known.entries()):
        json.loads(envelope.dump(made_of_it), parse_constant=_no_constant)
    parts = render.parts(known, models.Layout())
    broken = [one for one in guards.check(None, known, parts) if one.kind not in guards.SOFT]
    assert not broken, broken


@target("redaction", record_lines, errors.Poison)
def redaction(raw):
    """A line of JSON without its secrets is as much JSON as before, and hiding again changes nothing."""
    found = envelope.load(raw, "it")
    if not isinstance(found, dict):
        return
    kept, _ = redact.line(json.dumps(found), KEY)
    json.loads(kept)
    assert redact.line(kept, KEY)[0] == kept


def letters():
    message = bus_port.Message(
        "runs", 1, 2, b"acme/r", b'{"project":"acme","run_id":"r"}', [("ce_id", b"e")], 1.0
    )
    small = dead.compose("a" * 16, message, errors.BadJson(), source="orders")
    large = dead.compose("b" * 16, message, errors.EventTooLarge(), stored=([keys.dead_letter("b" * 64)], 9))
    return [headed(one.headers, one.value or b"") for one in (small, large)]


@target("dead-letter", letters, errors.RunloreError)
def dead_letter(raw):
    """A message on `dead`, listed, looked into and read."""
    found, bus, store = message_in(raw, "dead"), buses.MemoryBus(), stores.MemoryStore()
    finish(bus.produce([bus_port.Outgoing("dead", found.key, found.value, found.headers)]))
    for one in finish(dead.read_all(bus)):
        dead.project_of(one), dead.run_of(one), dead.fits(one), one.event_id
        finish(dead.value_of(store, one))


# --- foreign files and events ---------------------------------------------------------------------------------


def imports(form, name):
    """A target's function: the bytes as a file of a format."""

    def run(raw):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(raw)
            for one in sources.read(form, path, project="demo", memory="support"):
                if isinstance(one, sources.Imported):
                    made_of(one.data)

    return run


def made_of(data):
    """What the record stage makes of an event's data."""
    checked = models.run_completed(data)
    incoming = record_stage.Incoming(message_in(b"\n\n"), envelope.Event("e", "s", "t", {}), checked)
    record_stage.make(incoming, checked.record or "", KEY)


def chats():
    calls = [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]
    said = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "name": "find", "content": "not found"},
        {"role": "assistant", "content": [{"type": "text", "text": "Gone."}]},
    ]
    tau = {"task_id": 3, "reward": 1.0, "info": {"task": {"user_id": "u"}}, "traj": said, "trial": 0}
    return [lines({"messages": said}), lines(tau, {"messages": said[:1], "id": "x", "metadata": {"a": 1}})]


def trajectories():
    step = {"action": "ls\n", "observation": "main.py", "thought": "Look.", "response": "Look."}
    history = [{"role": "system", "content": "You are"}, {"role": "user", "content": "Fix the bug."}]
    turn = {
        "role": "assistant",
        "content": "…",
        "action": "ls\n",
        "agent": "primary",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
        ],
    }
    told = {
        "role": "tool",
        "content": [{"type": "text", "text": "main.py"}],
        "tool_call_ids": ["c1"],
        "message_type": "observation",
    }
    info = {
        "exit_status": "submitted",
        "submission": "diff",
        "model_stats": {"api_calls": 2, "tokens_sent": 9},
    }
    return [
        compact({"trajectory": [step], "history": history, "info": info}),
        compact({"trajectory": [], "history": [*history, turn, told], "info": info, "environment": "e"}),
    ]


def codex_files():
    turn = sessions.codex_turn(
        1, sessions.user("Fix it."), *sessions.shell("ls", "a.py", "c1", 2), sessions.said("No.")
    )
    return [lines(sessions.meta(), *turn), lines(*turn, sessions.event("turn_aborted", reason="interrupted"))]


def claude_files():
    turn = [
        sessions.asked("u1", "Fix the test."),
        sessions.used("a1", "Bash", {"command": "pytest"}, "t1"),
        sessions.resulted("u2", "Exit code 1\n1 failed", "t1", is_error=True),
        sessions.answered("a2", "Fixed."),
    ]
    return [lines(*turn), lines(*turn, sessions.asked("u3", "And this?", isSidechain=True, parentUuid="a2"))]


CODEX = f"rollout-2026-03-01T10-00-00-{sessions.THREAD}.jsonl"
target("agents-sdk", lambda: [lines(made.payload(1), made.payload(2))])(imports("agents-sdk", "r.jsonl"))
target("chat", chats)(imports("chat", "c.jsonl"))
target("swe-agent", trajectories)(imports("swe-agent", "t.traj"))
target("codex", codex_files)(imports("codex", CODEX))
target("claude-code", claude_files)(imports("claude-code", f"{sessions.SESSION}.jsonl"))
target("codex-zst", lambda: [zstandard.compress(one) for one in codex_files()], kind="bytes")(
    imports("codex", f"{CODEX}.zst")
)


@functools.cache
def mappings():
    whole = {
        "where": "type != 'skip'",
        "run": {"id": "id", "rollout": "chat.id", "attempt": "attempt", "time": "time"},
        "messages": {"at": ["turns", {"at": "text", "role": "assistant"}], "roles": {"bot": "assistant"}},
        "end": {"state": "state", "error": "error"},
        "usage": {"input_tokens": "usage.input"},
        "workspaces": [{"archive": "url", "agent": "agents[0]"}],
        "objects": {"prefixes": ["s3://bucket/in/"]},
    }
    found = [foreign.mapping(one) for one in (foreign.ORDERS, foreign.SPANS)]
    return [*found, foreign.mapping(foreign.PLAIN, whole)]


def foreign_events():
    more = {
        "id": "e",
        "chat": {"id": "c"},
        "turns": [{"role": "bot", "content": "x"}],
        "url": "s3://bucket/in/a",
        "usage": {"input": 3},
    }
    return [compact(foreign.order()), compact(foreign.span()), compact(more)]


@target("mapped", foreign_events, errors.Poison)
def mapped(raw):
    """A foreign event, by mappings of three teams."""
    failed = None
    for one in mappings():
        try:
            found = one.map(foreign.given(raw, headers=[("x", raw[:50])], key=raw[:9]), _object)
            if isinstance(found, mapping_event.Mapped):
                made_of(found.event.data)
        except errors.Poison as exc:
            if exc.kind in BUGS:
                raise
            failed = exc
    if failed is not None:
        raise failed


def _object(url, bytes_max):
    assert url.startswith("s3://bucket/in/") and ".." not in url, url
    return b'{"turns": [{"role": "user", "content": "x"}]}'


def mapping_texts():
    folder = foreign.EXAMPLES
    return [(folder / name).read_bytes() for name in ("orders.toml", "spans.toml")]


_FUNCTION = re.compile(rb"[\w.]+:[A-Za-z_]")


@target("mapping-file", mapping_texts, errors.BadMapping, errors.InvalidId, kind="bytes")
def mapping_text(raw):
    """A mapping file that an operator wrote. Functions of modules are not loaded: they are code, and trusted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.toml")
        path.write_bytes(raw)
        found = mapping_file.read(path)
    if not _FUNCTION.search(raw):
        mapping_event.Mapping(found)


@target(
    "models-file",
    lambda: [b'[summarize]\nmodel = "m"\n[consolidate]\nmodel = "n"\n'],
    errors.BadModels,
    kind="bytes",
)
def models_file(raw):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "models.toml")
        path.write_bytes(raw)
        choices.load(path)


@target("object", lambda: [gzip.compress(b"x" * 999, mtime=0), b"{}"], errors.Poison, kind="bytes")
def unpacked_object(raw):
    """What an object holds that an event points to, unpacked within its limit."""
    assert len(mapping_objects.unpacked(raw, 4096, "it")) <= max(4096, len(raw))


# --- archives and snapshots -----------------------------------------------------------------------------------


def archives():
    out = []
    for fmt in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w", format=fmt) as tar:
            for name, kind, link, content in (
                ("sub", tarfile.DIRTYPE, "", b""),
                ("sub/f.txt", tarfile.REGTYPE, "", b"body"),
                ("large", tarfile.REGTYPE, "", bytes(70_000) + b"x"),
                ("link", tarfile.SYMTYPE, "sub/f.txt", b""),
                ("hard", tarfile.LNKTYPE, "sub/f.txt", b""),
                ("fifo", tarfile.FIFOTYPE, "", b""),
                ("long/" + "n" * 95 if fmt == tarfile.USTAR_FORMAT else "n" * 150, tarfile.REGTYPE, "", b"l"),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, link, len(content)
                if fmt == tarfile.PAX_FORMAT:
                    member.pax_headers = {"mtime": "1600000000.5", "SCHILY.xattr.user.a": "b"}
                tar.addfile(member, io.BytesIO(content))
        out.append(body.getvalue())
    return [*out, gzip.compress(out[0], 1, mtime=0), sparse(), b"E2B_SANDBOX_SNAPSHOT_V1\nsbx_1"]


def sparse(size=200_000):
    """A sparse file as GNU tar writes it (PAX 1.0): a map, then the data."""
    body = io.BytesIO()
    told = b"1\n65536\n4\n".ljust(512, b"\0") + b"data"
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("GNUSparseFile.0/holes")
        member.size = len(told)
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "holes",
            "GNU.sparse.realsize": str(size),
        }
        tar.addfile(member, io.BytesIO(told))
    return body.getvalue()


@target("archive", archives, errors.InvalidInput, kind="tar")
def archive(raw):
    """A workspace's archive: what is made of it can be read again, and each of its names stays below it."""
    kept = {}
    builder = building.Builder(lambda pack: kept.__setitem__(pack.name, pack.raw))
    found, needed = tarin.Ingest(builder, LIMITS).run(io.BytesIO(raw))
    if found.kind == trees.NATIVE:
        return
    builder.settle(needed)
    built = builder.finish(found, needed)
    store = stores.MemoryStore()
    for name, body in [*kept.items(), (str(built.ref), built.root_pack.raw)]:
        finish(store.put(keys.snapshot_pack("acme", name), body))
    walked(store, str(built.ref))


def walked(store, ref):
    """Everything that a snapshot's reader shows: trees, reports and the beginnings of files."""

    async def walk():
        opened = await reading.open_snapshot(store, "acme", ref)
        await opened.report()
        if opened.record.kind != trees.TREE:
            return
        async for path, tree in opened.walk():
            assert b".." not in path.split(b"/") and not path.startswith(b"/"), path
            for file in tree.files.values():
                async for _ in opened.content(file, length=100_000):
                    pass

    finish(walk())


@functools.cache
def snapshot():
    """A small snapshot: (its ref, its root pack)."""
    builder = building.Builder(lambda pack: None)
    found, needed = tarin.Ingest(builder, LIMITS).run(io.BytesIO(archives()[0]))
    builder.settle(needed)
    built = builder.finish(found, needed)
    return built.ref, built.root_pack.raw


@target("snapshot-pack", lambda: [snapshot()[1]], errors.Corrupt, errors.Fatal, errors.NotFound, kind="bytes")
def snapshot_pack(raw):
    """A root pack of anybody's under the name that its bytes have."""
    ref, store = snapshot()[0], stores.MemoryStore()
    forged = snapshot_names.Ref(ref.id, snapshot_names.digest(raw))
    finish(store.put(keys.snapshot_pack("acme", forged.pack), raw))
    walked(store, str(forged))


def tables():
    end = snapshot_packs.parse_end(snapshot()[1])
    raw = zstandard.decompress(end.index)
    header = struct.unpack_from(">I", raw)[0]
    # The header as a line, so that it is damaged as JSON.
    return [raw[8 : 8 + header] + b"\n" + raw[8 + header :]]


@target("snapshot-index", tables, errors.Corrupt)
def snapshot_index(raw):
    """An index, written by anybody: a header, then ids and lengths."""
    header, _, rest = raw.partition(b"\n")
    body = struct.pack(">II", len(header), len(rest) // 36) + header + rest
    index = snapshot_packs.Index()
    index.add(snapshot_packs.decode_table(zstandard.compress(body)), "a" * 64)
    reading.plan(index, range(len(index.frame_pack)))


@target("snapshot-root", lambda: [snapshot_packs.parse_end(snapshot()[1]).root], errors.Corrupt, errors.Fatal)
def snapshot_root(raw):
    reading.decode_root(raw)


@target(
    "snapshot-record",
    lambda: [reading.decode_root(snapshot_packs.parse_end(snapshot()[1]).root).record],
    errors.Corrupt,
    errors.Fatal,
)
def snapshot_record(raw):
    trees.decode_record(raw, snapshot_names.digest(raw))


def tree_bodies():
    file = trees.File(
        b"f", 0o644, 1, 200_000, (b"\1" * 32, b"\2" * 32), (0, 65_536, 131_072, 9), {"user.a": b"b"}
    )
    folder = trees.Dir(b"d", 0o755, 2, b"\3" * 32, b"\4" * 32)
    return [trees.encode([folder], [file], [trees.Link(b"l", 3, b"../x%")]).raw, trees.encode([], [], []).raw]


@target("snapshot-tree", tree_bodies, errors.Corrupt)
def snapshot_tree(raw):
    found = trees.decode(raw)
    for one in found.entries():
        assert one.name not in (b"", b".", b"..") and b"/" not in one.name and b"\0" not in one.name
    trees.encode(found.dirs.values(), found.files.values(), found.links.values())


@target("snapshot-report", lambda: [trees.Report(skipped=[(b"a", "fifo")]).encode()], errors.Corrupt)
def snapshot_report(raw):
    trees.decode_report(raw)


@target("memory-archive", archives, errors.BadArchive, kind="tar")
def memory_archive(raw):
    """A seed's bundle, as whatever answers in the service's place sends it."""
    for name in remote._unpacked(io.BytesIO(raw)):
        assert not name.startswith("/") and ".." not in name.split("/"), name


# --- what lies in the store -----------------------------------------------------------------------------------

_DAMAGE = (errors.Fatal, errors.Erased, errors.HeadMoved, errors.NotFound)
"""`errors.Corrupt` is one of the fatal."""


def stored(name, samples, *raises):
    """A target over an object's bytes, where it lies."""
    return target(name, samples, *(raises or _DAMAGE))


def of_kind(kind):
    return lambda: [body for key, body in stored_objects.sample().items() if key.split("/")[1] == kind]


@stored("heads", lambda: [body for kind in ("rollouts", "memories") for body in of_kind(kind)()])
def head(raw):
    for fmt in (rollouts.HEAD_FORMAT, revisions.HEAD_FORMAT):
        try:
            assert heads.parse("k", store_port.Stored(raw, "e"), fmt=fmt).counter >= 0
        except errors.Corrupt:
            raise
        except errors.Fatal:
            continue


@stored("stored-record", of_kind("records"))
def stored_record(raw):
    found = rollouts.decode("k", raw)
    assert found.run and found.attempt is not None and found.received is not None


@stored("revision-manifest", of_kind("manifests"))
def revision_manifest(raw):
    """A manifest of anybody's under the name that its bytes have, with the real packs."""
    store = stored_objects.store()
    sha256 = packs.name(raw)
    finish(store.put(keys.manifest("acme", "support", 1, sha256), raw))
    found = finish(revisions.Reader(store).load("acme", "support", 1, sha256))
    for name in revisions.MAPS:
        for key, _ in found.map(name).items():
            found.map(name).get(key)
    seed = seeds.Seed("acme", "support", 1, sha256, "r", None, "2999-01-01T00:00:00+00:00")
    seeds.open_revision(found, seed)


def pack_indexes():
    (raw, *_) = of_kind("packs")()
    (length,) = struct.unpack(">I", raw[-4:])
    return [zlib.decompress(raw[-4 - length : -4]) + b"\n" + raw[: -4 - length]]


@stored("revision-pack", pack_indexes)
def revision_pack(raw):
    """A pack of anybody's under the name that its bytes have: its index as a line, then its frames."""
    index, _, frames = raw.partition(b"\n")
    tail = zlib.compress(index)
    body = frames + tail + struct.pack(">I", len(tail))
    found = packs.decode(packs.name(body), body)
    for frame in list(found.index)[:20]:
        try:
            found.content(frame)
        except errors.Corrupt:
            continue


@stored("revision-pack-bytes", of_kind("packs"))
def revision_pack_bytes(raw):
    packs.decode(packs.name(raw), raw)


def map_pages():
    store = stored_objects.store()
    head = finish(revisions.Reader(store).head("acme", "support"))
    found = finish(revisions.Reader(store).current(head, "acme", "support"))
    return [found.frames.content(page) for name in revisions.MAPS for page in found.map(name).names()]


@stored("revision-page", map_pages)
def revision_page(raw):
    found = pages.PagedMap({"pages": ["x"], "count": 1, "bytes": 9}, lambda name: raw)
    dict(found.items()), found.get("a")


for _name, _samples, _run in stored_objects.PARSERS:
    stored(f"stored-{_name}", _samples, *_DAMAGE, errors.InvalidInput, errors.InvalidId)(_run)


# --- ids, tokens and papers that people hand in ---------------------------------------------------------------

SEED = seeds.Seed("acme", "support", 3, "0" * 64, "conv-1", None, "2999-01-01T00:00:00+00:00")
_ASKED = (errors.InvalidInput, errors.InvalidId, errors.Refused, errors.Blocked)


def inner(encoded):
    """What stands in a base64 text, as a line of JSON."""
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


@target("seed-id", lambda: [inner(SEED.id.removeprefix(seeds.PREFIX))], *_ASKED)
def seed_id(raw):
    """A seed's id, made up: its content is what it is given."""
    text = seeds.PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    seeded.seed_of(text)
    seeds.parse(text)


@target(
    "token",
    lambda: [
        signing.sign(KEY, SEED).encode(),
        b"rl_" + b"a" * 32 + b"_" + b"b" * 64,
        b"3:" + b"a" * 64,
        b"_".join([b"a"] * 3),
    ],
    *_ASKED,
    kind="bytes",
)
def token(raw):
    """A token, a signed id, a place in a log: as they came."""
    text = raw.decode("latin-1")
    assert (found := access.parse(text)) is None or len(found) == 2
    chain.parsed(text)
    for read in (
        lambda: ids.as_alias(text),
        lambda: snapshot_names.Ref.parse(text),
        lambda: ids.check_name(text, "project"),
        lambda: signing.open_signed(KEY, "zoo", text),
    ):
        try:
            read()
        except _ASKED:
            continue


@target("cursor", lambda: [inner(http_answers.cursor_of("2026-01-01", "r"))], *_ASKED)
def cursor(raw):
    text = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    for kinds in ((str, str), (int, str), (str,)):
        try:
            http_answers.place_of(text, *kinds)
        except errors.InvalidInput:
            continue


@target("receipt", stored_objects.receipts, errors.InvalidInput)
def receipt(raw):
    """A receipt of an erasure, which is replayed after a restore."""
    receipts.as_entry(receipts.parse(raw))


@target(
    "workspace-receipt", lambda: [compact({"seed": SEED.id, "files": {"memories/MEMORY.md": ["0" * 64]}})]
)
def workspace_receipt(raw):
    """What says which files of a workspace a seed wrote: an agent can write it."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "workspace")
        folder.mkdir()
        Path(outer, "other").write_text("mine")
        path = folder / seeds.RECEIPT
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        seeds.receipt_of(folder)
        opened = seeds.Opened(SEED, {"memories/MEMORY.md": render.Composed("x\n")}, 0, {})
        with contextlib.suppress(errors.UnsafeTarget, errors.TargetModified):
            seeds.write_into(opened, folder, force=True)
        assert (
            sorted(os.listdir(outer)) == ["other", "workspace"] and Path(outer, "other").read_text() == "mine"
        )


# --- what a model answers -------------------------------------------------------------------------------------


def summaries():
    one = {"section": "knowledge", "text": "The tests need a database.", "evidence": [1]}
    return [
        compact(
            {"title": "T", "outcome": "uncertain", "outcome_evidence": [], "statements": [one], "reason": ""}
        )
    ]


@target("model-summary", summaries, errors.NoAnswer)
def model_answer(raw):
    """What a model says of a rollout, as its endpoint sent it."""
    ask = models_port.Ask(model="m", instructions="i", input="x", answer=model_summary.Summary)
    said = models_port.read(ask, raw.decode("utf-8", "replace"), {})
    shown = showing.Shown(*stored_objects.shown())
    model_summary.accept(said, shown, KEY)
