"""The summary of a rollout: its runs' digests folded in one fixed order into a bounded value.

`build` is a function of the *set* of digests: of each run only the highest attempt counts, and runs are
folded in the order (ended_at, run). `extend` folds newer runs onto a summary that exists; because both use
the same step, it equals `build` over all of them, and where it cannot, it says so with None.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from runlore.memory import edits, signatures, values
from runlore.memory import notes as _notes

VERSION = 1
ENGINE = {"name": "rules", "version": 1}
"""Which rules made a summary. Raise the version with every change of what the same records give."""
SUMMARY_BYTES_MAX = 64 * 1024
RUNS_MAX = 64
"""Newest runs that are kept by name; of older ones only their number, and the attempt where it is not 1."""
SEEN_MAX = 256
"""Newest events kept by fingerprint: a resumed run repeats its history, which must not count twice."""
BROKEN_MAX = 32
"""Calls that failed in a run, kept by fingerprint: one that ends well later is a check that passed."""
REQUESTS_MAX = 6
FAILURES_MAX = 32
FIXES_MAX = 2
FACTS_MAX = 24
CORRECTIONS_MAX = 8
FILES_MAX = 24
TOOLS_MAX = 32
SHAPES_MAX = 6
KEYWORDS_MAX = 64
MIXED = _notes.MIXED

_TRIMMED = ("keywords", "facts", "files", "corrections", "failures", "tools", "requests")
"""What gives up entries when a summary is over its size, most dispensable first."""


def build(digests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a rollout from the digests of its runs and of their edits; {} of none."""
    every = list(digests)
    latest: dict[str, dict[str, Any]] = {}
    for digest in every:
        if edits.is_edit(digest):
            continue
        known = latest.get(digest["run"])
        if known is None or digest["attempt"] > known["attempt"]:
            latest[digest["run"]] = digest
    state: dict[str, Any] = {}
    for digest in sorted(latest.values(), key=_order):
        state = _step(state, digest)
    return _edited(state, every)


def _edited(state: dict[str, Any], digests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The summary with the changes of the edits among `digests`: apart from the runs, so that neither waits."""
    found = sorted((one for one in digests if edits.is_edit(one)), key=_order)
    if not found:
        return state
    new = dict(state) if state else _empty(found[0])
    for one in found:
        new["subject"] = _subject(new["subject"], one["subject"])
    if not new["runs"]:
        # When the rollout began its first run says.
        new["started_at"] = new["updated_at"] = values.UNKNOWN
    return new | {"edits": edits.merged(new.get("edits", ()), found)}


def extend(summary: dict[str, Any], digests: list[dict[str, Any]]) -> dict[str, Any] | None:
    """`build` of all runs so far and `digests`, or None where that needs the older digests themselves."""
    if not summary or not summary["runs"]:
        own = {name: summary[name] for name in ("edits", "subject") if name in summary}
        return _with(build(digests), own)
    runs = [one for one in digests if not edits.is_edit(one)]
    news: dict[str, dict[str, Any]] = {}
    kept = {run: attempt for run, attempt, _ in summary["runs"]} | summary["retried"]
    for digest in runs:
        attempt = kept.get(digest["run"])
        if attempt is None and not _is_surely_new(summary, digest):
            return None
        if attempt is not None and digest["attempt"] > attempt:
            return None
        known = news.get(digest["run"])
        if attempt is None and (known is None or digest["attempt"] > known["attempt"]):
            news[digest["run"]] = digest
    state = summary
    for digest in sorted(news.values(), key=_order):
        if _order(digest) <= _last(state):
            return None
        state = _step(state, digest)
    return _edited(state, digests)


def _with(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A summary with the edits that were known before its first run."""
    if not own:
        return state
    subject = _subject(state["subject"], own["subject"])
    return state | {"subject": subject, "edits": edits.merged([*own["edits"], *state.get("edits", ())], ())}


def _is_surely_new(summary: dict[str, Any], digest: dict[str, Any]) -> bool:
    """Whether a run that is not kept by name cannot be one of those that are no longer kept."""
    if summary["runs_total"] == len(summary["runs"]):
        return True
    return digest["attempt"] == 1 and not summary["runs_unsure"]


def _order(digest: dict[str, Any]) -> tuple[tuple[int, str], str]:
    return values.time_key(digest["ended_at"]), digest["run"]


def _last(state: dict[str, Any]) -> tuple[tuple[int, str], str]:
    run, _, ended_at = state["runs"][-1]
    return values.time_key(ended_at), run


# --- one step ---------------------------------------------------------------------------------------


def _step(state: dict[str, Any], digest: dict[str, Any]) -> dict[str, Any]:
    new = copy.deepcopy(state) if state else _empty(digest)
    seen = set(new["seen"])
    where = {"run": digest["run"], "attempt": digest["attempt"]}
    new["subject"] = _subject(new["subject"], digest["subject"])
    new["agents"] = list(dict.fromkeys([*new["agents"], *digest["agents"]]))[:8]
    new["updated_at"] = digest["ended_at"]
    for name in ("state", "exception", "items", "calls"):
        new[name] = digest[name]
    new["answer"] = digest["answer"] and digest["answer"] | where
    new["open"] = [one | where for one in digest["open"]]
    for name in ("verified", "last_failing"):
        new[name] = digest[name] and digest[name] | where
    if new["verified"] is None:
        checks = [one for one in digest["passed"] if one["id"] in new["broken"]]
        new["verified"] = {**checks[-1], **where, "earlier": True} if checks else None
    new["broken"] = list(dict.fromkeys([*new["broken"], *digest["broken"]]))[-BROKEN_MAX:]
    _requests(new, digest, where, seen)
    _failures(new, digest, where, seen)
    _facts(new, digest, where)
    _corrections(new, digest, where, seen)
    _tools(new, digest)
    new["files"] = list(dict.fromkeys([*digest["files"], *new["files"]]))[:FILES_MAX]
    _keywords(new, digest)
    _runs(new, digest)
    events = [one["id"] for name in ("requests", "failures", "corrections") for one in digest[name]]
    new["seen"] = list(dict.fromkeys([*[one for one in new["seen"] if one not in events], *events]))[
        -SEEN_MAX:
    ]
    return _bounded(new)


def _empty(digest: dict[str, Any]) -> dict[str, Any]:
    return {
        "v": VERSION,
        "engine": ENGINE,
        "project": digest["project"],
        "memory": digest["memory"],
        "rollout": digest["rollout"],
        "subject": None,
        "agents": [],
        "started_at": digest["ended_at"],
        "updated_at": digest["ended_at"],
        "runs": [],
        "runs_total": 0,
        "runs_unsure": False,
        "retried": {},
        "seen": [],
        "broken": [],
        "first": None,
        "requests": [],
        "failures": [],
        "facts": [],
        "corrections": [],
        "files": [],
        "tools": [],
        "keywords": [],
    }


def _subject(known: str | None, told: str | None) -> str | None:
    if known is None or told is None or known == told:
        return known or told
    return MIXED


def _runs(new: dict[str, Any], digest: dict[str, Any]) -> None:
    new["runs"].append([digest["run"], digest["attempt"], digest["ended_at"]])
    new["runs_total"] += 1
    while len(new["runs"]) > RUNS_MAX:
        run, attempt, _ = new["runs"].pop(0)
        if attempt > 1:
            new["retried"][run] = attempt
    if len(new["retried"]) > RUNS_MAX:
        new["runs_unsure"], new["retried"] = True, {}


def _requests(new: dict[str, Any], digest: dict[str, Any], where: dict[str, Any], seen: set[str]) -> None:
    fresh = [one | where for one in digest["requests"] if one["id"] not in seen]
    if new["first"] is None and fresh:
        new["first"] = fresh[0]
    new["requests"] = [*new["requests"], *fresh][-REQUESTS_MAX:]


def _failures(new: dict[str, Any], digest: dict[str, Any], where: dict[str, Any], seen: set[str]) -> None:
    known = {(one["head"], one["key"]): one for one in new["failures"]}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in digest["failures"]:
        if one["id"] not in seen:
            groups.setdefault((one["head"], one["key"]), []).append(one)
    for name, fresh in groups.items():
        known[name] = _merged(known.pop(name, None), fresh, digest, where)
    ranked = sorted(known.values(), key=_worth)[:FAILURES_MAX]
    new["failures"] = [one for one in known.values() if one in ranked]


def _worth(one: dict[str, Any]) -> tuple[Any, ...]:
    return (not one["fixes"], not one["sure"], -one["count"], one["head"], one["key"])


def _merged(
    known: dict[str, Any] | None, fresh: list[dict[str, Any]], digest: dict[str, Any], where: dict[str, Any]
) -> dict[str, Any]:
    latest = fresh[-1]
    merged = known or {"head": latest["head"], "key": latest["key"], "count": 0, "sure": False, "fixes": []}
    merged["count"] += len(fresh)
    merged["sure"] = merged["sure"] or any(one["sure"] for one in fresh)
    merged["at"] = digest["ended_at"]
    merged["flaky"] = merged.get("flaky", False) or any(one.get("flaky", False) for one in fresh)
    for name in ("shown", "message", "reason", "shape", "call"):
        if name in latest:
            merged[name] = latest[name]
    merged["masked"] = sorted(
        {*merged.get("masked", []), *(word for one in fresh for word in one.get("masked", []))}
    )
    merged["evidence"] = where | {"item": latest["item"]}
    fixes = [one["fix"] | where | {"failed": one["item"]} for one in fresh if one.get("fix")]
    if merged["flaky"] or not fixes:
        # It came back and nothing cured it: what seemed to cure it before did not.
        merged["fixes"] = []
    else:
        merged["fixes"] = _distinct([*reversed(fixes), *merged["fixes"]])[:FIXES_MAX]
    return merged


def _distinct(fixes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for fix in fixes:
        out.setdefault(fix_shape(fix), fix)
    return list(out.values())


def fix_shape(fix: dict[str, Any]) -> str:
    """What two fixes must share to be one: the paths and where the values came from, not the values."""
    if "changes" in fix:
        return signatures.as_json(sorted(change["path"] for change in fix["changes"]))
    return signatures.as_json([fix.get("command"), fix.get("pieces"), fix.get("after")])


def _facts(new: dict[str, Any], digest: dict[str, Any], where: dict[str, Any]) -> None:
    known = {one["command"]: one for one in new["facts"]}
    for one in reversed(digest["facts"]):
        earlier = known.pop(one["command"], None)
        count = one["count"] + (earlier["count"] if earlier else 0)
        known[one["command"]] = one | where | {"count": count, "at": digest["ended_at"]}
    new["facts"] = list(known.values())[-FACTS_MAX:]


def _corrections(new: dict[str, Any], digest: dict[str, Any], where: dict[str, Any], seen: set[str]) -> None:
    fresh = [one | where | {"at": digest["ended_at"]} for one in digest["corrections"]]
    known = {one["id"] for one in new["corrections"]}
    fresh = [one for one in fresh if one["id"] not in known and one["id"] not in seen]
    new["corrections"] = [*new["corrections"], *fresh][-CORRECTIONS_MAX:]


def _tools(new: dict[str, Any], digest: dict[str, Any]) -> None:
    known = {one["head"]: one for one in new["tools"]}
    for one in digest["tools"]:
        earlier = known.setdefault(one["head"], {"head": one["head"], "calls": 0, "data": 0, "shapes": {}})
        earlier["calls"] += one["calls"]
        earlier["data"] += one["data"]
        for name, (count, retried) in one["shapes"].items():
            tally = earlier["shapes"].get(name, [0, 0])
            earlier["shapes"][name] = [tally[0] + count, tally[1] + retried]
        ranked = sorted(earlier["shapes"].items(), key=lambda pair: (-pair[1][0], pair[0]))[:SHAPES_MAX]
        earlier["shapes"] = dict(sorted(ranked))
    new["tools"] = sorted(known.values(), key=lambda one: (-one["calls"], one["head"]))[:TOOLS_MAX]


def _keywords(new: dict[str, Any], digest: dict[str, Any]) -> None:
    weights = dict(map(tuple, new["keywords"]))
    for word, weight in digest["keywords"]:
        weights[word] = weights.get(word, 0) + weight
    ranked = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))
    new["keywords"] = [[word, weight] for word, weight in ranked[:KEYWORDS_MAX]]


def _bounded(state: dict[str, Any]) -> dict[str, Any]:
    def measured() -> int:
        # Edits have a bound of their own: what a run leaves must not depend on when they came.
        return len(signatures.as_json({name: one for name, one in state.items() if name != "edits"}))

    size = measured()
    while size > SUMMARY_BYTES_MAX:
        # The longest list gives up a half: of keywords the rare ones, of the others the oldest.
        name = max(_TRIMMED, key=lambda one: len(signatures.as_json(state[one])))
        half = len(state[name]) // 2
        is_ranked = name in ("keywords", "files", "tools")
        state[name] = state[name][:half] if is_ranked else state[name][len(state[name]) - half :]
        size = measured()
    return state
