"""The facts of one run, from its record: small, bounded, each with the item that shows it.

`of(line, meta)` is the only function of the rules that reads a record; everything after it works on
digests. A digest is plain JSON, so that it can be kept instead of read again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from runlore.memory import calls, failures, fixes, keywords, signatures, text, transcript, values

VERSION = 1
DIGEST_BYTES_MAX = 32 * 1024
REQUESTS_MAX = 8
REQUEST_CHARS_MAX = 400
ANSWER_CHARS_MAX = 400
FAILURES_MAX = 24
FACTS_MAX = 16
COMMAND_CHARS_MAX = 160
CORRECTIONS_MAX = 6
CORRECTION_CHARS_MAX = 280
FILES_MAX = 20
FILE_CHARS_MAX = 120
KEYWORDS_MAX = 48
TOOLS_MAX = 32
TEMPLATES_MAX = 6
STEPS_MAX = 3
CHECKS_MAX = 8
PERSONAL_WORDS_MAX = 4_000
"""Words of the run's data that are masked in a signature, as long as only one subject has met it."""
ECHO_CHARS_MIN = 24
ECHO_DENSE_CHARS_MIN = 10
"""A stretch of a message this long that the user said too is taken for the user's words; the second number is
for scripts in which two or three characters are a word."""
ECHO_TEXT_CHARS_MAX = 2_000
ENUMERATED_MIN = 3
"""A field of one answer that gives the same value so often enumerates; it does not name anybody."""

_PATH = re.compile(r"(?:[\w@%+.~-]*/)*[\w@%+~-][\w@%+.~-]*\.[A-Za-z][\w]{0,7}")
_WORD = re.compile(r"[^\W\d_]+")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ][\d:.,+Z-]{1,40})?", re.ASCII)
_OWN = ("MEMORY.md", "memory_summary.md", "raw_memories", "rollout_summaries", "phase_two_selection.json")
"""The SDK's names for what we wrote. A call that names one looks memory up, or edits it: nothing to remember."""
_PLACES = ("workdir", "working_directory", "cwd")


def of(line: str, meta: values.RunMeta) -> dict[str, Any]:
    """The digest of a record. A line that is no record has an empty one."""
    payload = _payload(line)
    items = transcript.items(payload)
    made = calls.of(items)
    users = [(item.index, item.text) for item in items if item.kind == "user"]
    found = [one for one in failures.find(fixes.Context(made, users)) if not _is_lookup(one.call)]
    work = [call for call in made if not _is_lookup(call)]
    terminal = payload.get("terminal_metadata")
    terminal = terminal if isinstance(terminal, dict) else {}
    digest: dict[str, Any] = {
        "v": VERSION,
        "project": meta.project,
        "memory": meta.memory,
        "rollout": meta.rollout,
        "run": meta.run,
        "attempt": meta.attempt,
        "subject": meta.subject,
        "ended_at": _ended_at(meta, payload),
        "agents": [text.inline(agent, 80) for agent in meta.agents[:8]],
        "state": text.inline(str(terminal.get("terminal_state") or ""), 40) or values.UNKNOWN,
        "exception": text.inline(str(terminal.get("exception_type") or ""), 80),
        "items": len(items),
        "calls": len(made),
        "requests": _requests(items, made),
        "answer": _answer(payload, items),
        "open": _open(items, made, payload),
        "failures": _failures(found, made, meta.subject is not None, [said for _, said in users]),
        "verified": _verified(made, found),
        "passed": _passed(made, found),
        "broken": _broken(found),
        "last_failing": _last_failing(made, found),
        "facts": _facts(work, found),
        "corrections": _corrections(items, made, found),
        "files": _files(work),
        "tools": _tools(made),
        "keywords": _keywords(items, work, found),
    }
    return _bounded(digest)


def _is_lookup(call: calls.Call) -> bool:
    """Whether a call is about memory itself: every agent is told to search it, in every run."""
    said = [call.command or "", *(value for _, value in call.leaves)]
    return any(name in one for name in _OWN for one in said)


def _payload(line: str) -> dict[str, Any]:
    try:
        payload = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _ended_at(meta: values.RunMeta, payload: dict[str, Any]) -> str:
    told = meta.ended_at if meta.ended_at != values.UNKNOWN else payload.get("updated_at")
    # Of anything else (`yesterday`) a heading would be made that no file of memory has, and its rollout held for it.
    return told if isinstance(told, str) and _TIME.fullmatch(told) else values.UNKNOWN


def _bounded(digest: dict[str, Any]) -> dict[str, Any]:
    """`digest` within its limit: the longest lists give up their last entries first."""
    while len(signatures.as_json(digest)) > DIGEST_BYTES_MAX:
        sizes = {
            name: len(signatures.as_json(value)) for name, value in digest.items() if isinstance(value, list)
        }
        name = max(sizes, key=lambda one: (sizes[one], one))
        digest[name] = digest[name][: len(digest[name]) // 2]
    return digest


# --- what was asked and answered --------------------------------------------------------------------


def _requests(items: list[transcript.Item], made: list[calls.Call]) -> list[dict[str, Any]]:
    """The user's turns: the first, and the newest. `acted` tells those that made the agent call a tool."""
    turns = [item for item in items if item.kind == "user"]
    acted: set[int] = set()
    for call in made:
        before = [turn.index for turn in turns if turn.index < call.index]
        acted |= set(before[-1:])
    kept = turns if len(turns) <= REQUESTS_MAX else [*turns[:2], *turns[-(REQUESTS_MAX - 2) :]]
    return [
        {
            "item": turn.index,
            "text": text.inline(turn.text, REQUEST_CHARS_MAX),
            "acted": turn.index in acted,
            "id": calls.fingerprint("user", turn.text),
        }
        for turn in kept
        if text.inline(turn.text, REQUEST_CHARS_MAX)
    ]


def _answer(payload: dict[str, Any], items: list[transcript.Item]) -> dict[str, Any] | None:
    said = [item for item in items if item.kind == "assistant"]
    final = payload.get("final_output")
    body = transcript.text_of(final) if final is not None else (said[-1].text if said else "")
    shown = text.inline(body, ANSWER_CHARS_MAX)
    index = said[-1].index if said else (items[-1].index if items else 0)
    return {"item": index, "text": shown} if shown else None


def _open(
    items: list[transcript.Item], made: list[calls.Call], payload: dict[str, Any]
) -> list[dict[str, Any]]:
    """What was left undone: calls without an answer (among them those that wait for approval), a turn without one."""
    waiting = [call for call in made if call.output is None]
    left = [{"item": call.index, "call": describe(call)} for call in waiting[-STEPS_MAX:]]
    if isinstance(payload.get("interruptions"), list) and payload["interruptions"] and not left:
        left = [{"item": items[-1].index if items else 0, "call": "an approval"}]
    if items and items[-1].kind == "user":
        left.append({"item": items[-1].index, "turn": text.inline(items[-1].text, REQUEST_CHARS_MAX)})
    return left


# --- what failed, and what worked -------------------------------------------------------------------


def _failures(
    found: list[failures.Failure], made: list[calls.Call], is_personal: bool, said: list[str]
) -> list[dict[str, Any]]:
    personal = _personal_words(made) if is_personal else frozenset()
    out = []
    for one in found[:FAILURES_MAX] if len(found) <= FAILURES_MAX else _most_telling(found):
        entry: dict[str, Any] = {
            "id": calls.identity(one.call),
            "head": text.inline(one.call.head, calls.HEAD_CHARS_MAX),
            "key": one.signature.key,
            "shown": one.signature.shown,
            "message": one.message,
            "reason": one.reason,
            "sure": one.is_sure,
            "shape": calls.fingerprint(one.call.template)[:6],
            "item": one.call.index,
        }
        if one.call.command:
            entry["call"] = text.inline(one.call.command, COMMAND_CHARS_MAX)
        doubtful = personal | _echoed(one.message, said) if is_personal else personal
        masked = sorted(set(_WORD.findall(one.signature.shown)) & doubtful)
        if masked:
            entry["masked"] = masked[:16]
        if one.is_flaky:
            entry["flaky"] = True
        elif one.fix:
            entry["fix"] = _fix(one.fix, made)
        out.append(entry)
    return out


def _echoed(message: str, said: list[str]) -> frozenset[str]:
    """The words of `message` that repeat a stretch of what the user said: a tool that quotes its caller."""
    spoken = "\n".join(text.inline(turn, ECHO_TEXT_CHARS_MAX) for turn in said[-20:])
    words: set[str] = set()
    size = ECHO_DENSE_CHARS_MIN if any(char >= "\u2e80" for char in message) else ECHO_CHARS_MIN
    for start in range(max(0, len(message) - size + 1)):
        stretch = message[start : start + size]
        if stretch in spoken:
            words |= {word.group() for word in _WORD.finditer(message) if _overlap(word, start, start + size)}
    return frozenset(words)


def _overlap(word: re.Match[str], start: int, end: int) -> bool:
    return word.start() < end and start < word.end()


def _most_telling(found: list[failures.Failure]) -> list[failures.Failure]:
    ranked = sorted(found, key=lambda one: (one.fix is None, not one.is_sure, -one.call.number))[
        :FAILURES_MAX
    ]
    return sorted(ranked, key=lambda one: one.call.number)


def _fix(fix: dict[str, Any], made: list[calls.Call]) -> dict[str, Any]:
    working = next((call for call in made if call.index == fix["item"]), None)
    out = {name: value for name, value in fix.items() if name != "after"}
    if working is not None:
        out["shape"] = calls.fingerprint(working.template)[:6]
    if "after" in fix:
        out["after"] = [describe(call) for call in fix["after"][-STEPS_MAX:]]
    return out


def _personal_words(made: list[calls.Call]) -> frozenset[str]:
    """Words that stand alone as data in this run: names, cities, plans. They may be somebody's.

    Words of the schema (tools, argument names, keys) are not, nor is a value that one field repeats: that is
    the vocabulary of an enumeration.
    """
    words: set[str] = set()
    schema: set[str] = set()
    ids: dict[tuple[str, str], str] = {}
    for call in made:
        repeated = Counter(_strings_of(call.container))
        schema |= set(_WORD.findall(call.tool))
        for (path, value), count in (Counter(call.leaves) + repeated).items():
            schema |= set(_WORD.findall(path))
            into = schema if count >= ENUMERATED_MIN else words
            if len(value) <= 60 and "@" not in value and any(map(str.isdigit, value)):
                # `card_1` and `card_2` in one field: what ids of different things have in common is their kind.
                for word in _WORD.findall(value):
                    if ids.setdefault((path, word), value) != value:
                        schema.add(word)
            if len(value) <= 60 and len(words) < PERSONAL_WORDS_MAX:
                into |= set(_WORD.findall(value))
    return frozenset(words - schema)


def _strings_of(container: Any) -> list[tuple[str, str]]:
    found = []
    for path, value in transcript.leaves(container):
        if isinstance(value, str):
            found.append((path, value))
        if len(found) >= 2_000:
            break
    return found


def describe(call: calls.Call) -> str:
    """A call in a few words: the command, or the tool and what it was applied to."""
    if call.command:
        return text.inline(call.command, COMMAND_CHARS_MAX)
    named = [value for path, value in call.leaves if value and len(value) <= 80 and "\n" not in value]
    return text.inline(" ".join([call.head, *named[:3]]), COMMAND_CHARS_MAX)


def _verified(made: list[calls.Call], found: list[failures.Failure]) -> dict[str, Any] | None:
    """The check that passed after the last change: a call made before and after it, that ended well."""
    failed = {one.call.number for one in found if one.is_sure}
    changes = [call.number for call in made if failures.is_change(call) and call.number not in failed]
    for call in reversed(made):
        if changes and call.number < changes[-1]:
            return None
        if call.number in failed or call.output is None or failures.is_change(call):
            continue
        earlier = [one for one in made[: call.number] if calls.is_same(one, call)]
        before = [one for one in earlier if any(one.number < change < call.number for change in changes)]
        did_fail = [one for one in earlier if one.number in failed]
        if did_fail or (before and call.output.exit_code == 0):
            shown = {"item": call.index, "call": describe(call)}
            return shown | ({"failed": did_fail[-1].index} if did_fail else {})
    return None


def _passed(made: list[calls.Call], found: list[failures.Failure]) -> list[dict[str, Any]]:
    """Commands that ended well after the last change: a check, where an earlier run saw the same one fail."""
    failed = {one.call.number for one in found}
    last = max((call.number for call in made if failures.is_change(call)), default=-1)
    passed = [
        {"id": _same(call), "item": call.index, "call": describe(call)}
        for call in made[last + 1 :]
        if call.number not in failed and call.output is not None and call.output.exit_code == 0
    ]
    return passed[-CHECKS_MAX:]


def _broken(found: list[failures.Failure]) -> list[str]:
    """The calls that failed, by what they ask for: so that a later run's pass is known for a check."""
    return list(dict.fromkeys(_same(one.call) for one in found if one.is_sure))[-CHECKS_MAX:]


def _same(call: calls.Call) -> str:
    return calls.fingerprint("same", call.head, repr(call.leaves))


def _last_failing(made: list[calls.Call], found: list[failures.Failure]) -> dict[str, Any] | None:
    """The newest failure, unless the same tool worked after it."""
    sure = [one for one in found if one.is_sure]
    if not sure:
        return None
    last, failed = sure[-1], {one.call.number for one in found}
    for call in made[last.call.number + 1 :]:
        if call.head == last.call.head and call.number not in failed and call.output is not None:
            return None
    return {"item": last.call.index, "call": describe(last.call), "message": last.message}


def _facts(made: list[calls.Call], found: list[failures.Failure]) -> list[dict[str, Any]]:
    """Commands that worked: exit code 0, or what made a failure go away."""
    cured = {one.fix["item"] for one in found if one.fix}
    seen: dict[str, dict[str, Any]] = {}
    for call in made:
        if not call.command or call.output is None or "\n" in call.command.strip():
            continue
        if call.output.exit_code != 0 and call.index not in cured:
            continue
        shown = text.inline(call.command, COMMAND_CHARS_MAX)
        if len(call.command) > COMMAND_CHARS_MAX or len(shown.split()) < 2:
            continue
        fact = seen.setdefault(shown, {"command": shown, "item": call.index, "count": 0})
        fact["count"] += 1
        place = next(
            (call.args[name] for name in _PLACES if isinstance(call.args, dict) and call.args.get(name)), ""
        )
        if isinstance(place, str) and place:
            fact["where"] = text.inline(place, FILE_CHARS_MAX)
    ranked = sorted(
        seen.values(), key=lambda fact: (fact["item"] not in cured, -fact["count"], -fact["item"])
    )
    return ranked[:FACTS_MAX]


def _corrections(
    items: list[transcript.Item], made: list[calls.Call], found: list[failures.Failure]
) -> list[dict[str, Any]]:
    """User turns that made the agent do the same kind of call again with something changed; and turns said twice."""
    failed = {one.call.number for one in found}
    turns = [item for item in items if item.kind == "user"]
    out = []
    said = [keywords.count([turn.text]) for turn in turns]
    for place, turn in enumerate(turns):
        end = turns[place + 1].index if place + 1 < len(turns) else len(items) + turn.index + 1
        shown = text.inline(turn.text, CORRECTION_CHARS_MAX)
        if len(shown) < 8:
            continue
        entry = {"item": turn.index, "text": shown, "id": calls.fingerprint("user", turn.text)}
        redone = _redone(turn, end, made, failed)
        if redone:
            out.append(entry | redone)
        elif any(_is_repeat(said[place], earlier) for earlier in said[:place]):
            out.append(entry | {"repeat": True})
    return out[-CORRECTIONS_MAX:]


def _redone(
    turn: transcript.Item, end: int, made: list[calls.Call], failed: set[int]
) -> dict[str, Any] | None:
    start, said = turn.index, turn.text.lower()
    before = [call for call in made if call.index < start]
    for call in made:
        if not start < call.index < end or call.number in failed:
            continue
        last = next((one for one in reversed(before) if one.head == call.head), None)
        if last is None or last.number in failed or last.output is None or not calls.is_variant(last, call):
            continue
        if call.command:
            return {"head": call.head}
        paths = calls.changed_paths(last, call)
        # Either the rest of the call stayed as it was, or the user named the new value.
        is_kept = set(last.leaves) & set(call.leaves)
        is_named = any(
            path in paths and 2 <= len(value) <= 80 and value.lower() in said for path, value in call.leaves
        )
        if (is_kept or is_named) and len(paths) <= fixes.CHANGES_MAX:
            return {"head": call.head, "paths": [path[-80:] for path in paths]}
    return None


def _is_repeat(turn: Counter[str], earlier: Counter[str]) -> bool:
    """Whether two turns, as counted words, say the same: most of the words of both."""
    if len(turn) < 3 or not earlier:
        return False
    return (turn & earlier).total() >= 0.7 * max(turn.total(), earlier.total())


# --- where to look again ----------------------------------------------------------------------------


def _files(made: list[calls.Call]) -> list[str]:
    """Files that were changed or named, changed ones first."""
    weight: dict[str, int] = {}
    for call in made:
        worth = 10 if failures.is_change(call) else 1
        words = (
            call.command.split("\n", 1)[0].split()[:60]
            if call.command
            else [v for _, v in call.leaves if len(v) <= FILE_CHARS_MAX]
        )
        for word in words:
            word = word.strip("'\"(),;")
            if len(word) <= FILE_CHARS_MAX and _PATH.fullmatch(word) and not word.replace(".", "").isdigit():
                weight[word] = weight.get(word, 0) + worth
    return sorted(weight, key=lambda word: (-weight[word], word))[:FILES_MAX]


def _tools(made: list[calls.Call]) -> list[dict[str, Any]]:
    """How each tool answered: shapes, how often, and how often the agent asked again at once with a change."""
    by_head: dict[str, list[calls.Call]] = {}
    for call in made:
        by_head.setdefault(call.head, []).append(call)
    out = []
    for head, same in sorted(by_head.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:TOOLS_MAX]:
        shapes: dict[str, list[int]] = {}
        for place, call in enumerate(same):
            following = same[place + 1] if place + 1 < len(same) else None
            retried = following is not None and calls.is_variant(call, following)
            tally = shapes.setdefault(calls.fingerprint(call.template)[:6], [0, 0])
            tally[0] += 1
            tally[1] += retried
        kinds = sum(call.shape in ("object", "list") for call in same)
        ranked = sorted(shapes.items(), key=lambda pair: (-pair[1][0], pair[0]))[:TEMPLATES_MAX]
        out.append({"head": head, "calls": len(same), "data": kinds, "shapes": dict(sorted(ranked))})
    return out


def _keywords(
    items: list[transcript.Item], made: list[calls.Call], found: list[failures.Failure]
) -> list[list[Any]]:
    texts = [item.text for item in items if item.kind == "user"]
    counted = keywords.count(texts)
    for call in made:
        counted[call.head.rpartition(": ")[2]] += 3
    counted.update(keywords.count(one.message for one in found))
    counted.update({name.rsplit("/", 1)[-1]: 3 for name in _files(made)})
    ranked = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    return [[word, weight] for word, weight in ranked if len(word) >= 2][:KEYWORDS_MAX]
