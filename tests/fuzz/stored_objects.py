"""Objects as the store holds them, made by the stages themselves, and the parser of every kind that is one document."""

from __future__ import annotations

import functools
import hashlib
import json

import made
from runlore import clock, producer
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, lines, marks, redaction
from runlore.consumers import consolidate
from runlore.consumers import record as record_stage
from runlore.memory import values
from runlore.models import answers, ledger, spend
from runlore.store import port as store_port
from runlore.testing import buses, stores
from runlore.testing.world import finish
from runlore.upkeep import access, acts, adminlog, audit, organization, pauses, seedlog, spendalerts, workers
from runlore.upkeep.erasing import receipts as _receipts

AT = "2026-03-01T10:00:00.000000+00:00"
SHA = "a" * 64


@functools.cache
def sample():
    """Key → body of every object that two rollouts' runs leave."""
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    messages = []
    for number in range(4):
        one = producer.event_of(
            json.dumps(made.data(number, rollout=f"c-{number % 2}", subject=None)).encode(), "/t"
        )
        out = record_stage.message_of(one, "acme/c", "runs")
        messages.append(bus_port.Message("runs", 0, number, out.key, out.value, list(out.headers), 0.0))
    finish(record_stage.RecordStage(store, bus).process(messages))
    marked = {key: stored.body for key, (stored, _) in store._objects.items()}
    finish(consolidate.ConsolidateStage(store, bus).work("acme", "support"))
    return marked | {key: stored.body for key, (stored, _) in store._objects.items()}


def store():
    """A store of its own with all of them."""
    out = stores.MemoryStore()
    for key, body in sample().items():
        finish(out.put(key, body))
    return out


def shown():
    """What a model was shown, as fields of `showing.Shown`."""
    place = (values.Evidence("r", "run", 1, 0),)
    return "#1 tool: x", {1: place, 2: place}, {1: "tool", 2: "user"}, 0, 9


def _compact(body):
    return json.dumps(body, separators=(",", ":")).encode()


# --- receipts -------------------------------------------------------------------------------------------------


def receipts():
    body = {
        "format": _receipts.FORMAT,
        "id": "e" * 32,
        "project": "acme",
        "scope": erasures.SCOPES[0],
        "name": "x",
        "memory": "support",
        "snapshots": "keep",
        "strict": False,
        "asked_at": AT,
        "state": "done",
        "first_at": AT,
        "second_at": AT,
        "next_pass_at": None,
        "targets": [{"memory": "support", "rollout": "c", "runs": ["r"]}],
        "row": {"erasure": "e", "until": AT, "memory": "support", "subject": None},
        "removed": {"records": 1},
        "revisions": {},
        "seeded": {"total": 0, "runs": []},
        "left": {},
        "elsewhere": [],
    }
    return [_compact(body), _compact({"receipt": body})]


# --- one document, one parser -----------------------------------------------------------------------------------


def _head(fmt, use, key="acme/x/00/k.json"):
    def run(raw):
        use(heads.parse(key, store_port.Stored(raw, "e"), fmt=fmt))

    return run


def _chained(fmt, body):
    return lambda: [_compact({"format": fmt, "number": 7, "previous": SHA, **body})]


def _by_hash(parse, key_of):
    """A parser whose key is the content's hash: the bytes lie where their hash says."""
    return lambda raw: parse(key_of(7, hashlib.sha256(raw).hexdigest()), raw)


def _rows(head):
    for row in erasures.rows(head):
        row.holds("support", None, AT)


def _mark(raw):
    found = marks.parse("k", raw)
    marks.covered_from([found])
    return found.rollouts, dict(found.releases), dict(found.approves)


def _access(raw):
    try:
        name = json.loads(raw)["id"]
    except Exception:
        name = "a" * 32
    found = access._parsed(f"_operations/keys/{name}.json", raw)
    found.allows("read"), found.opens_with("x"), found.shown(), found.is_over(clock.now())


def _outcome(raw):
    out = stores.MemoryStore()
    finish(out.put("acme/k", raw))
    finish(lines.outcome(out, "acme/k"))


_ANSWER = {
    "format": answers.FORMAT,
    "name": "f" * 64,
    "result": {"a": 1},
    "model": "m",
    "usage": None,
    "cost_usd": 0.1,
    "at": AT,
    "about": {"memory": "m"},
}
_LINE = {
    "project": "acme",
    "rollout": "c",
    "agent": "main",
    "counter": 2,
    "ref": f"{SHA}/{SHA}",
    "snapshot": SHA,
    "versions": [],
    "branches": {},
    "tags": {},
}
PARSERS = [
    ("mark", lambda: [body for key, body in sample().items() if "/marks/" in key], _mark),
    (
        "ledger-of-erasures",
        lambda: [
            _compact(
                {
                    "format": erasures.LEDGER_FORMAT,
                    "counter": 1,
                    "rows": [{"erasure": "e", "until": AT, "memory": None, "subject": "rl-x"}],
                }
            )
        ],
        _head(erasures.LEDGER_FORMAT, _rows),
    ),
    (
        "workspace-head",
        lambda: [_compact({"format": lines.HEAD_FORMAT, **_LINE})],
        _head(lines.HEAD_FORMAT, lambda h: h.counter),
    ),
    (
        "outcome",
        lambda: [
            _compact(
                {
                    "format": lines.OUTCOME_FORMAT,
                    "run": "r",
                    "attempt": 1,
                    "state": "moved",
                    "ref": SHA,
                    "head": 1,
                }
            )
        ],
        _outcome,
    ),
    (
        "redaction-key",
        lambda: [_compact({"format": redaction.FORMAT, "key": "ab" * redaction.KEY_BYTES, "created_at": AT})],
        lambda raw: redaction.parse("k", raw),
    ),
    (
        "answer",
        lambda: [_compact(_ANSWER)],
        lambda raw: (
            answers.about(raw),
            answers.rewritten(keys.answer("acme", "f" * 64), raw, lambda line: line),
        ),
    ),
    (
        "spend",
        lambda: [
            _compact(
                {
                    "format": spend.FORMAT,
                    "counter": 1,
                    "project": "acme",
                    "month": "2026-03",
                    "days": {},
                    "open": {},
                    "deferred": {},
                }
            )
        ],
        lambda raw: ledger.parse(keys.spend("acme", "2026-03"), raw),
    ),
    (
        "access-key",
        lambda: [
            _compact(
                {
                    "format": access.FORMAT,
                    "id": "a" * 32,
                    "project": "acme",
                    "scope": "read",
                    "name": "n",
                    "sha256": SHA,
                    "created_at": AT,
                    "revoked_at": None,
                }
            )
        ],
        _access,
    ),
    (
        "secret",
        lambda: [_compact({"format": access.SECRET_FORMAT, "secret": "ab" * 32, "created_at": AT})],
        lambda raw: access._secret_of("k", raw),
    ),
    (
        "pause",
        lambda: [
            _compact(
                {
                    "format": pauses.FORMAT,
                    "stage": "record",
                    "project": None,
                    "memory": None,
                    "reason": "x",
                    "by": {},
                    "at": AT,
                }
            )
        ],
        lambda raw: pauses.parse(keys.pause("record"), store_port.Stored(raw, "e")),
    ),
    (
        "worker",
        lambda: [
            _compact(
                {
                    "format": workers.FORMAT,
                    "worker": "w",
                    "host": "h",
                    "pid": 1,
                    "version": "1",
                    "started_at": AT,
                    "at": AT,
                    "stages": {"record": {"state": "ok"}},
                }
            )
        ],
        lambda raw: workers.parse(keys.worker("w"), store_port.Stored(raw, "e")),
    ),
    (
        "spend-alert",
        lambda: [
            _compact({"format": spendalerts.FORMAT, "done": False, "until": None, "tries": 0, "told": []})
        ],
        lambda raw: spendalerts.parse("k", raw),
    ),
    (
        "audit-entry",
        lambda: [
            _compact(
                {
                    "format": audit.FORMAT,
                    "id": "n",
                    "at": AT,
                    "by": {},
                    "what": "w",
                    "reason": "r",
                    "projects": ["acme"],
                    "arguments": {},
                }
            )
        ],
        lambda raw: audit.parse("acme/audit/2026-03/n.begun.json", raw),
    ),
    (
        "act",
        _chained(
            acts.FORMAT,
            {"kind": "begun", "act": {"number": 7, "sha256": SHA}, "latest": AT, "at": AT, "body": {}},
        ),
        _by_hash(acts.parse, keys.act_entry),
    ),
    (
        "log-entry",
        _chained(
            adminlog.FORMAT,
            {
                "id": "i",
                "at": AT,
                "by": {},
                "type": "project.created",
                "target": "t",
                "project": None,
                "details": {},
                "reason": None,
            },
        ),
        _by_hash(adminlog.parse, keys.log_entry),
    ),
    (
        "seed-link",
        _chained(
            seedlog.FORMAT, {"hour": "2026-03-01-10", "writer": "w", "at": AT, "by": {}, "entries": [{}]}
        ),
        _by_hash(seedlog.parse, lambda number, sha256: keys.seeds_link("2026-03-01-10", "w", number, sha256)),
    ),
    (
        "organization",
        lambda: [_compact({"format": organization.FORMAT, "counter": 1, "projects": {}, "admin_keys": {}})],
        _head(organization.FORMAT, organization.parse),
    ),
]
"""Name, samples, parser: of what lies in the store as one JSON document."""
