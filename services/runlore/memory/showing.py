"""A rollout's runs as a model is shown them: numbered entries within a budget of tokens, fenced as data.

What counts most is shown first, whatever the length: what the user said, then final answers, then failures and what
worked after them, then everything else; within a kind the newest first, and the first request before all. Long texts
are cut in their middle, and each cut and gap says so. Shown entries stand in the order in which they happened.

Everything quoted stands behind `| `, so no text can begin a line of ours: it can not close the fence, number itself,
or pass for what another said. The fence's tag is a hash of what it holds, which no part of it can know.

Pure, and a function of the runs alone: the same runs give the same bytes, and so the same kept answer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore.memory import calls, failures, fixes, text, transcript, values

USER, FINAL, FAILED, OTHER = range(4)
"""Tiers: what is shown first, while there is room."""
TOKENS_MAX = {USER: 2_000, FINAL: 2_000, FAILED: 800, OTHER: 300}
"""Of one entry, by its tier."""
ENTRY_TOKENS = 12
"""What an entry's own line costs, at most."""
ENTRIES_MAX = 2_000
KNOWN = "known"


@dataclass(frozen=True)
class Run:
    """One run: what the event said of it, and its record's line."""

    meta: values.RunMeta
    line: str


@dataclass(frozen=True)
class Shown:
    """What a model is given, and what each of its numbers stands for."""

    text: str
    evidence: Mapping[int, tuple[values.Evidence, ...]]
    kinds: Mapping[int, str]
    """`user`, `assistant`, `tool`, or `known <section>`."""
    left_out: int
    """Entries that had no room."""
    tokens: int
    """An estimate, from above."""
    known_by: Mapping[int, str] = field(default_factory=dict)
    """Of known statements: where their words came from, as it was found when they were first said."""


@dataclass(frozen=True)
class _Entry:
    tier: int
    kind: str
    head: str
    body: tuple[str, ...]
    evidence: tuple[values.Evidence, ...]
    tokens: int
    run: int
    known_by: str = ""


def render(
    runs: Sequence[Run],
    *,
    tokens_max: int,
    known: Sequence[Mapping[str, Any]] = (),
    before: Run | None = None,
) -> Shown:
    """What a model is shown of `runs`, oldest first.

    `known`: the statements of earlier runs (section, text, evidence), which are always shown. `before`: the run
    before the first. Agents repeat the whole conversation at the beginning of each run; that is not shown again.
    """
    entries = [_known(one) for one in known]
    headings: list[str] = []
    earlier = (0, [])
    if before is not None:
        payload = _payload(before)
        items = transcript.items(payload)
        earlier = _own_at(payload, items), items
    for number, run in enumerate(runs):
        payload = _payload(run)
        items = transcript.items(payload)
        skip = _repeated(earlier, items)
        earlier = _own_at(payload, items), items
        headings.append(_heading(run, payload, f"{number + 1} of {len(runs)}", skip))
        entries += _entries(number, run, payload, items[skip:])
    chosen = _chosen(entries, tokens_max, len(known))
    return _written(entries, chosen, headings)


# --- entries ----------------------------------------------------------------------------------------


def _known(one: Mapping[str, Any]) -> _Entry:
    evidence = tuple(values.Evidence(*each) for each in one["evidence"])
    body = _cut(str(one["text"]), TOKENS_MAX[OTHER])
    head = f"{KNOWN} {one['section']}"
    return _Entry(USER, head, head, body, evidence, _cost(body), -1, str(one.get("said_by", "")))


def _entries(
    number: int, run: Run, payload: Mapping[str, Any], items: Sequence[transcript.Item]
) -> list[_Entry]:
    made = {call.index: call for call in calls.of(list(items))}
    users = [(item.index, item.text) for item in items if item.kind == "user"]
    found = failures.find(fixes.Context(list(made.values()), users))
    failed = {one.call.index for one in found}
    cured = {int(one.fix["item"]) for one in found if one.fix} - failed
    said = [item for item in items if item.kind == "assistant"]
    final = said[-1].index if said and items[-1] is said[-1] else -1
    out = []
    for item in items:
        cited = (values.Evidence(run.meta.rollout, run.meta.run, run.meta.attempt, item.index),)
        if item.kind == "call":
            state = "failed" if item.index in failed else ""
            state = "worked after a failure" if item.index in cured else state
            tier = FAILED if state else OTHER
            name = text.inline(made[item.index].head, calls.HEAD_CHARS_MAX) or "?"
            head = f"tool {name}{f' ({state})' if state else ''}"
            body = _call(item, tier)
        else:
            tier = USER if item.kind == "user" else FINAL if item.index == final else OTHER
            head = f"{item.kind}{' (final)' if tier == FINAL else ''}"
            body = _cut(item.text, TOKENS_MAX[tier])
        kind = "tool" if item.kind == "call" else item.kind
        out.append(_Entry(tier, kind, head, body, cited, _cost(body), number))
    return [*out, *_final_output(number, run, payload, items)]


def _final_output(
    number: int, run: Run, payload: Mapping[str, Any], items: Sequence[transcript.Item]
) -> list[_Entry]:
    """What the run gave back, where no message says it already: a typed output of the agent."""
    told = transcript.text_of(payload.get("final_output"))
    if not told.strip() or not items or any(told.strip() in item.text for item in items if item.text):
        return []
    cited = (values.Evidence(run.meta.rollout, run.meta.run, run.meta.attempt, items[-1].index),)
    body = _cut(told, TOKENS_MAX[FINAL])
    return [_Entry(FINAL, "assistant", "assistant (final)", body, cited, _cost(body), number)]


def _call(item: transcript.Item, tier: int) -> tuple[str, ...]:
    args = item.args if isinstance(item.args, str) else json.dumps(item.args, ensure_ascii=False)
    # Of a third of the room the arguments: what came back says more.
    asked = [line.replace("| ", "| > ", 1) for line in _cut(args, TOKENS_MAX[tier] // 3)]
    if item.output is None:
        return (*asked, "[no answer]")
    code = item.output.exit_code
    ended = (f"[exit code {code}]",) if code is not None else ()
    return (*asked, *_cut(item.output.text, TOKENS_MAX[tier] * 2 // 3), *ended)


def _payload(run: Run) -> dict[str, Any]:
    try:
        payload = json.loads(run.line)
    except (ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _own_at(payload: Mapping[str, Any], items: Sequence[transcript.Item]) -> int:
    """The place in `items` of the first that the run itself made."""
    given = payload.get("input")
    count = len(given) if isinstance(given, list) else int(isinstance(given, str))
    return sum(1 for item in items if item.index < count)


def _repeated(earlier: tuple[int, Sequence[transcript.Item]], items: Sequence[transcript.Item]) -> int:
    """How many items a run begins with that the run before had, from its beginning or from its first own item on.

    An agent that is given the conversation repeats all of it; a run that goes on after an interruption, what it did.
    """
    own, before = earlier
    counts = [0]
    for start in {0, own}:
        pairs = zip(before[start:], items, strict=False)
        same = (_content(one) == _content(other) for one, other in pairs)
        counts.append(sum(1 for _ in itertools.takewhile(bool, same)))
    return max(counts)


def _content(item: transcript.Item) -> tuple[Any, ...]:
    output = item.output
    return item.kind, item.text, item.tool, repr(item.args), output and (output.text, output.exit_code)


# --- the budget -------------------------------------------------------------------------------------


def _cut(body: str, tokens_max: int) -> tuple[str, ...]:
    """The lines of `body`, quoted; of a long one the beginning and the end, with a line that says what is gone."""
    room = tokens_max * 4  # No estimate gives less than a token for four characters.
    kept = body if len(body) <= room else body[: room // 2] + body[-(room - room // 2) :]
    while len(kept) > 1 and (tokens := text.token_estimate(kept)) > tokens_max:
        room = min(len(kept) - 1, int(len(kept) * tokens_max / tokens))
        kept = body[: room // 2] + body[len(body) - (room - room // 2) :]
    if len(kept) == len(body):
        return _quoted(body)
    half = len(kept) // 2
    gone = f"[{len(body) - len(kept)} characters left out]"
    return (*_quoted(body[:half]), gone, *_quoted(body[len(body) - (len(kept) - half) :]))


def _quoted(body: str) -> tuple[str, ...]:
    return tuple(f"| {line}" for line in text.visible_lines(body) if line.strip())


def _cost(body: Sequence[str]) -> int:
    return ENTRY_TOKENS + text.token_estimate("\n".join(body)) + len(body)


def _chosen(entries: Sequence[_Entry], tokens_max: int, known: int) -> set[int]:
    """The places of the entries that have room: tier by tier, the first request first, else the newest first."""
    users = [place for place, one in enumerate(entries) if one.tier == USER and place >= known]
    order = [*range(known), *users[:1]]
    for tier in TOKENS_MAX:
        order += [place for place in range(len(entries) - 1, known - 1, -1) if entries[place].tier == tier]
    chosen: set[int] = set()
    left = tokens_max
    for place in order:
        if place in chosen or len(chosen) >= ENTRIES_MAX:
            continue
        if place < known or entries[place].tokens <= left:
            chosen.add(place)
            left -= entries[place].tokens
    return chosen


# --- the text ---------------------------------------------------------------------------------------


def _written(entries: Sequence[_Entry], chosen: set[int], headings: Sequence[str]) -> Shown:
    of_run: dict[int, list[tuple[int, _Entry]]] = defaultdict(list)
    for place, entry in enumerate(entries):
        of_run[entry.run].append((place, entry))
    out: list[str] = []
    evidence: dict[int, tuple[values.Evidence, ...]] = {}
    kinds: dict[int, str] = {}
    known_by: dict[int, str] = {}
    for number in range(-1, len(headings)):
        out += headings[number : number + 1] if number >= 0 else []
        gap = 0
        for place, entry in of_run[number]:
            if place not in chosen:
                gap += 1
                continue
            out += [f"[{gap} entries left out]"] if gap else []
            gap = 0
            evidence[len(evidence) + 1], kinds[len(kinds) + 1] = entry.evidence, entry.kind
            known_by |= {len(evidence): entry.known_by} if entry.known_by else {}
            out += [f"#{len(evidence)} {entry.head}", *entry.body]
        out += [f"[{gap} entries left out]"] if gap else []
    inner = "\n".join(out)
    tag = f"runs-{hashlib.sha256(inner.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    whole = f"<{tag}>\n{inner}\n</{tag}>\n"
    left_out = len(entries) - len(chosen)
    return Shown(whole, evidence, kinds, left_out, text.token_estimate(whole), known_by)


def _heading(run: Run, payload: Mapping[str, Any], number: str, repeated: int) -> str:
    terminal = payload.get("terminal_metadata")
    state = terminal.get("terminal_state") if isinstance(terminal, dict) else None
    ended = text.inline(str(state or values.UNKNOWN), 40)
    again = f"; its first {repeated} items repeat the run before" if repeated else ""
    return f"== run {number}, ended {text.inline(run.meta.ended_at, 40)}: {ended}{again}"
