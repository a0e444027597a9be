"""What notes say, as lines: every sentence that stands in a memory file is made here.

Of the values in a failure and its cures, only those are shown that may cross subjects (see `crossing`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runlore.memory import crossing, edits, joint, summary, text, values
from runlore.memory import notes as _notes

COMMAND_CHARS_MAX = 160
FIXES_MAX = 2
STATEMENT_CHARS_MAX = 600
ROLLOUTS_MIN = 2
"""Rollouts that must show what every run is told."""


@dataclass(frozen=True)
class Lesson:
    """A failure as the notes tell it, ready to be ranked and written. `fixed`: rollouts that its best cure cured."""

    note: str
    head: str
    memory: str
    agent: str
    count: int
    rollouts: int
    fixed: int
    at: str
    text: str
    """The full sentence."""
    brief: str
    """The same for the summary, which tells only what two rollouts support; "" where they do not."""


def lessons(all_notes: _notes.Notes) -> list[Lesson]:
    """Every failure that is told surely enough, the most useful first."""
    tools, edited = _tool_profiles(all_notes), edits.verdict(all_notes)
    personal = crossing.Personal(all_notes)
    out = [
        _marked(lesson, edited)
        for identity, entry in all_notes.of_kind("failure")
        if identity not in edited.hidden and (lesson := _lesson(identity, entry, tools, personal))
    ]
    return sorted(
        out, key=lambda one: (one.fixed == 0, -min(one.fixed, 3), -one.rollouts, _newest(one.at), one.note)
    )


def _marked(lesson: Lesson, edited: edits.Verdict) -> Lesson:
    if lesson.note not in edited.marks:
        return lesson
    brief = edited.mark(lesson.note, lesson.brief) if lesson.brief else ""
    return dataclasses.replace(lesson, text=edited.mark(lesson.note, lesson.text), brief=brief)


def _newest(at: str) -> tuple[int, tuple[int, ...]]:
    known, told = values.time_key(at)
    return -known, tuple(-ord(char) for char in told)


@dataclass
class _Profile:
    calls: int = 0
    data: int = 0
    shapes: dict[str, list[int]] | None = None


def _tool_profiles(all_notes: _notes.Notes) -> dict[str, _Profile]:
    out: dict[str, _Profile] = {}
    for _, entry in all_notes.of_kind("tool"):
        profile = _Profile(shapes={})
        for one in entry["support"].values():
            profile.calls += one["calls"]
            profile.data += one["data"]
            for shape, (count, retried) in one["shapes"].items():
                tally = profile.shapes.setdefault(shape, [0, 0, 0])
                tally[0] += count
                tally[1] += retried
                tally[2] += 1
        out[entry["key"]["head"]] = profile
    return out


def _is_told(one: Mapping[str, Any], profile: _Profile | None) -> bool:
    """Whether a call counts as failed, given how this tool answered in all rollouts."""
    if one.get("sure"):
        return True
    if profile is None:
        return False
    if profile.data >= 2:
        # Elsewhere this tool answers data; here it answered a short sentence.
        return True
    count, retried, rollouts = (profile.shapes or {}).get(one.get("shape", ""), [0, 0, 0])
    return count >= 2 and rollouts >= 2 and retried >= 0.8 * count


def _is_cured(fix: Mapping[str, Any], one: Mapping[str, Any], profile: _Profile | None) -> bool:
    if one.get("sure"):
        return True
    count, retried, _ = ((profile.shapes if profile else None) or {}).get(fix.get("shape", ""), [0, 0, 0])
    return bool(profile and profile.data >= 2) or (count >= 2 and retried <= 0.2 * count)


def _lesson(
    identity: str, entry: dict[str, Any], tools: dict[str, _Profile], personal: crossing.Personal
) -> Lesson | None:
    profile = tools.get(entry["key"]["head"])
    told = {rollout: one for rollout, one in entry["support"].items() if _is_told(one, profile)}
    flaky = sum(bool(one.get("flaky")) for one in told.values())
    if not told or flaky > sum(bool(one["fixes"]) for one in told.values()):
        return None
    shared = _shared(told.values(), personal)
    for one in told.values():
        shared.saw(entry["key"]["head"], one.get("subject"))
    head = entry["key"]["head"]
    shown = personal.hide(_shown(told.values(), shared))
    if not _tells(shown):
        # All that would be left is a placeholder: nobody could recognise the failure by it.
        return None
    cures = _phrases(told, profile, shared)
    count, at = (
        sum(one["count"] for one in told.values()),
        max(values.time_key(one["at"]) for one in told.values())[1],
    )
    fixed = max((n for _, n in cures), default=0)
    head = text.inline(_tool_and_program(head, shared), 80)
    said = f'`{head}` answered "{shown}"'
    times = _times(count, len(told), at)
    if cures:
        worked = "; or ".join(f"{phrase}{f' ({n}×)' if n > 1 else ''}" for phrase, n in cures[:FIXES_MAX])
        full = f"{said} ({times}). What worked: {worked}."
        brief = _brief(said, cures[:FIXES_MAX], len(told), is_shape=_is_shape(told.values()))
    else:
        full = f"{said} ({times}). No cure is known."
        brief = ""
    agent = _most_common(one.get("agent", "") for one in told.values())
    memory = _most_common(one.get("memory", "") for one in told.values())
    return Lesson(
        identity,
        entry["key"]["head"],
        memory,
        agent,
        count,
        len(told),
        fixed,
        at or values.UNKNOWN,
        full,
        brief,
    )


def _brief(said: str, cures: list[tuple[str, int]], rollouts: int, *, is_shape: bool) -> str:
    """A line for `memory_summary.md`.

    Two rollouts must have met the failure. A cure that one of them showed is told as such, if it is the shape
    of a change; of a command line, whose words are of that one run, two rollouts must have shown it.
    """
    if rollouts < ROLLOUTS_MIN:
        return ""
    sure = [(phrase, n) for phrase, n in cures if is_shape or n >= ROLLOUTS_MIN]
    told = [phrase + (" (once)" if n < ROLLOUTS_MIN else "") for phrase, n in sure]
    return f"{said} → worked: {'; or '.join(told)}" if told else ""


def _is_shape(told: Iterable[Mapping[str, Any]]) -> bool:
    return all("changes" in fix for one in told for fix in one["fixes"])


def _tool_and_program(head: str, shared: crossing.Shared) -> str:
    # A tool's name may cross subjects; the program in a command line is an argument's value, and may not.
    tool, colon, program = head.partition(": ")
    return head if not colon or shared.mask(program) == program else tool


def own_sentence(head: str, one: Mapping[str, Any]) -> str:
    """The lesson as one rollout alone shows it, with its own values: only for who may see that rollout."""
    shared = crossing.Shared()
    said = f'`{text.inline(head, 80)}` answered "{text.inline(one.get("shown", ""), 240)}"'
    times = f" ({one['count']}×)" if one["count"] > 1 else ""
    cures = list(dict.fromkeys(phrase for fix in one["fixes"] if (phrase := _phrase([fix], shared))))
    if one.get("flaky"):
        return f"{said}{times}. The same call worked later with nothing changed."
    return (
        f"{said}{times}. What worked: {'; or '.join(cures)}."
        if cures
        else f"{said}{times}. No cure is known."
    )


def _times(count: int, rollouts: int, at: str) -> str:
    seen = f"{count}× in {rollouts} rollouts" if rollouts > 1 else (f"{count}×" if count > 1 else "once")
    when = f"{at[:10]}" if seen == "once" else f"last {at[:10]}"
    return f"{seen}, {when}" if at and at != values.UNKNOWN else seen


def _shared(told: Iterable[Mapping[str, Any]], personal: crossing.Personal) -> crossing.Shared:
    shared = crossing.Shared(personal)
    for one in told:
        subject = one.get("subject")
        shared.saw(one.get("shown", ""), subject)
        for fix in one["fixes"]:
            for change in fix.get("changes", ()):
                shared.saw(f"{change.get('was', '')} {change.get('is', '')}", subject)
            shared.saw(f"{fix.get('was', '')} {fix.get('command', '')}", subject)
            shared.saw(" ".join(piece for pair in fix.get("pieces", ()) for piece in pair), subject)
            shared.saw(" ".join(fix.get("after", ())), subject)
    return shared


def _shown(told: Iterable[Mapping[str, Any]], shared: crossing.Shared) -> str:
    """The signature as most rollouts show it, with the words masked that may be one subject's data."""
    ones = list(told)
    shown = _most_common(one.get("shown", "") for one in ones)
    doubtful = {word for one in ones for word in one.get("masked", ())}

    def keep(match: re.Match[str]) -> str:
        word = match.group()
        return "<text>" if word in doubtful and not shared.is_public(word) else word

    parts = re.split(r"(<[^<>\s]*>)", shown)
    return text.inline("".join(p if p.startswith("<") else re.sub(r"[^\W\d_]+", keep, p) for p in parts), 240)


def _most_common(found: Iterable[str]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for one in found:
        counts[one] += 1
    return min(counts, key=lambda one: (-counts[one], one), default="")


Cure = tuple[str, dict[str, Any]]
"""A rollout, and a fix that it showed."""


def _phrases(
    told: Mapping[str, Mapping[str, Any]], profile: _Profile | None, shared: crossing.Shared
) -> list[tuple[str, int]]:
    """What worked, in words, with in how many rollouts, the most frequent first."""
    cures = [
        (rollout, fix)
        for rollout, one in told.items()
        for fix in one["fixes"]
        if _is_cured(fix, one, profile)
    ]
    found: dict[str, set[str]] = {}
    for group in [*_by_path(cures), *_by_words(cures)]:
        phrase = _phrase([fix for _, fix in group], shared)
        if phrase:
            found[phrase] = found.get(phrase, set()) | {rollout for rollout, _ in group}
    counted = [(phrase, len(rollouts)) for phrase, rollouts in found.items()]
    return sorted(counted, key=lambda pair: (-pair[1], len(pair[0]), pair[0]))


def _by_path(cures: list[Cure]) -> list[list[Cure]]:
    """Fixes of arguments, grouped by what they have in common, and cut down to it.

    The path that most rollouts changed comes first and takes every fix that changed it: what else some of
    them changed is not what mattered. Then the same for the fixes that are left.
    """
    left = [(rollout, fix) for rollout, fix in cures if "changes" in fix]
    groups = []
    while left:
        by: dict[str, set[str]] = defaultdict(set)
        for rollout, fix in left:
            for change in fix["changes"]:
                by[change["path"]].add(rollout)
        first = min(by, key=lambda path: (-len(by[path]), path))
        taken = [cure for cure in left if first in _paths(cure[1])]
        common = set.intersection(*(_paths(fix) for _, fix in taken))
        groups.append(
            [(r, {"changes": [c for c in fix["changes"] if c["path"] in common]}) for r, fix in taken]
        )
        left = [cure for cure in left if first not in _paths(cure[1])]
    return groups


def _paths(fix: Mapping[str, Any]) -> set[str]:
    return {change["path"] for change in fix["changes"]}


def _by_words(cures: list[Cure]) -> list[list[Cure]]:
    """Fixes of commands, those that are the same together."""
    groups: dict[str, list[Cure]] = defaultdict(list)
    for rollout, fix in cures:
        if "changes" not in fix:
            groups[summary.fix_shape(fix)].append((rollout, fix))
    return list(groups.values())


def _phrase(fixes: list[dict[str, Any]], shared: crossing.Shared) -> str:
    """One cure in words, from all the fixes that are it."""
    first = fixes[0]
    if "changes" in first:
        paths = [change["path"] for change in first["changes"]]
        same = [[c for fix in fixes for c in fix["changes"] if c["path"] == path] for path in paths]
        return ", and ".join(
            _change(path, changes, shared) for path, changes in zip(paths, same, strict=True)
        )
    if "command" in first:
        return _instead(first["was"], first["command"], shared)
    if "pieces" in first:
        pieces = [_instead(was, now, shared) for was, now in first["pieces"] if now]
        return ", and ".join(piece for piece in pieces if piece)
    masked = [_code(step, shared) for step in dict.fromkeys(first.get("after", ()))]
    steps = [f"`{step}`" for step in masked if _tells_enough(step)]
    return "the same call, after " + ", ".join(steps) if steps else ""


def _instead(was: str, now: str, shared: crossing.Shared) -> str:
    """`<new> instead of <old>`; "" where masking left nothing of the difference."""
    before, after = _code(was, shared), _code(now, shared)
    return f"`{after}` instead of `{before}`" if after != before and _tells_enough(after) else ""


def _code(body: str, shared: crossing.Shared) -> str:
    return text.inline(shared.mask(body), COMMAND_CHARS_MAX)


_VERBS = {
    "set": "another `{path}`",
    "add": "`{path}` added",
    "drop": "without `{path}`",
    "more": "more `{path}`",
    "fewer": "fewer `{path}`",
}


def _change(path: str, changes: list[dict[str, Any]], shared: crossing.Shared) -> str:
    """What was changed at one argument path, from every fix that changed it."""
    source = _most_common(change.get("from", "") for change in changes)
    how = _most_common(change["how"] for change in changes)
    shown = text.inline(path or "value", 80)
    if source == "error":
        return f"`{shown}` = the value that the error names"
    if source == "error sum":
        return f"`{shown}` so that all of them add up to the number in the error"
    words = _VERBS[how].format(path=shown)
    if source == "user":
        words += ", as the user says"
    elif source.startswith("answer "):
        words += f" out of `{text.inline(source.removeprefix('answer '), 120)}`"
    return words + _example(changes, shared)


def _example(changes: list[dict[str, Any]], shared: crossing.Shared) -> str:
    """`, e.g. <new> instead of <old>`, of the change that says most once what is personal is masked."""
    pairs = []
    for change in changes:
        was, now = shared.mask(change.get("was", "")), shared.mask(change.get("is", ""))
        if was and now and was != now and _tells(was) and _tells(now):
            pairs.append((was.count("<") + now.count("<"), text.inline(now, 60), text.inline(was, 60)))
    if not pairs:
        return ""
    masked = min(pairs)[0]
    now, was = json.loads(_most_common(json.dumps(pair[1:]) for pair in pairs if pair[0] == masked))
    return f", e.g. `{now}` instead of `{was}`"


def _tells(masked: str) -> bool:
    """Whether anything but placeholders is left."""
    return bool(crossing.PIECE.search(re.sub(r"<\w+>", "", masked)))


def _tells_enough(masked: str) -> bool:
    """Whether a command is still more words than placeholders: with fewer, nobody could use it."""
    rest, holes = re.subn(r"<\w+>", "", masked)
    return len(crossing.PIECE.findall(rest)) > holes


# --- facts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """A command that worked."""

    note: str
    subject: str | None
    """Whose seeds may show it; None for everybody's."""
    memory: str
    agent: str
    rollouts: int
    count: int
    at: str
    text: str


def facts(all_notes: _notes.Notes) -> list[Fact]:
    """Commands that worked, those of most rollouts first; a command of one subject stays with it."""
    out, edited = [], edits.verdict(all_notes)
    for identity, entry in all_notes.of_kind("fact"):
        if identity in edited.hidden:
            continue
        told, subject = list(entry["support"].values()), _notes.owner(entry)
        where = _most_common(one["where"] for one in told if one.get("where")) if subject is None else ""
        at = max(values.time_key(one["at"]) for one in told)[1]
        count = sum(one["count"] for one in told)
        words = f"`{text.inline(entry['key']['command'], COMMAND_CHARS_MAX)}` worked"
        words += f" in `{text.inline(where, 120)}`" if where else ""
        agent = _most_common(one.get("agent", "") for one in told)
        memory = _most_common(one.get("memory", "") for one in told)
        line = edited.mark(identity, f"{words} ({_times(count, len(told), at)}).")
        out.append(Fact(identity, subject, memory, agent, len(told), count, at, line))
    return sorted(out, key=lambda one: (-one.rollouts, -one.count, _newest(one.at), one.note))


# --- statements -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """What a model or a live edit said, as it is to be shown."""

    note: str
    section: str
    subject: str | None
    rollouts: tuple[str, ...]
    """Those that support it, the newest last."""
    text: str
    group: str = ""
    """The task group that it says itself; else it stands with its newest rollout."""


def statements(all_notes: _notes.Notes) -> list[Statement]:
    """The statements that stand: not retired since they were last said, and not merged into another or covered by one.

    The newest wording is shown. All is decided by the times that the contributions carry, so the order in
    which they came does not matter.
    """
    if "statements" not in all_notes.memo:
        # Each subject's pages ask for them.
        all_notes.memo["statements"] = _statements(all_notes)
    found: list[Statement] = all_notes.memo["statements"]
    return found


def _statements(all_notes: _notes.Notes) -> list[Statement]:
    edited = edits.verdict(all_notes)
    merged: dict[str, set[str]] = defaultdict(set)
    standing: dict[str, tuple[dict[str, Any], set[str]]] = {}
    for identity, entry in all_notes.of_kind("text"):
        if identity in edited.hidden:
            continue
        by_action: dict[str, list[tuple[tuple[int, str], str]]] = defaultdict(list)
        for rollout, one in entry["support"].items():
            by_action[one.get("action", "add")].append((values.time_key(one.get("at", "")), rollout))
        said = sorted(by_action["add"] + by_action["amend"])
        into = {str(entry["support"][rollout].get("into")) for _, rollout in by_action["merge"]}
        if said and max(by_action["retire"], default=((0, ""), ""))[0] <= said[-1][0] and by_action["add"]:
            standing[identity] = (entry, {rollout for _, rollout in said})
            for other in into:
                merged[other] |= {rollout for _, rollout in said}
    out = []
    joints = joint.standing(all_notes)
    for identity, entry in joints.joints.items():
        if identity not in edited.hidden and entry["key"]["section"] != joint.SKILLS:
            one = _statement(identity, entry, set(entry["support"]))
            out.append(dataclasses.replace(one, text=edited.mark(identity, one.text)))
    for identity, (entry, rollouts) in standing.items():
        if identity in joints.covered or any(
            one.get("action") == "merge" and one.get("into") in standing for one in entry["support"].values()
        ):
            continue
        one = _statement(identity, entry, rollouts | merged.get(identity, set()))
        out.append(dataclasses.replace(one, text=edited.mark(identity, one.text)))
    return sorted(out, key=lambda one: (-len(one.rollouts), one.note))


def _statement(identity: str, entry: dict[str, Any], rollouts: set[str]) -> Statement:
    told = [(values.time_key(one.get("at", "")), rollout, one) for rollout, one in entry["support"].items()]
    said = sorted((at, rollout, one["text"]) for at, rollout, one in told if one.get("text"))
    newest = said[-1][2] if said else entry["key"]["text"]
    groups = sorted((at, rollout, group(one)) for at, rollout, one in told if one.get("memory"))
    ordered = sorted((values.time_key(entry["support"].get(r, {}).get("at", "")), r) for r in rollouts)
    return Statement(
        note=identity,
        section=entry["key"]["section"],
        subject=entry["key"]["subject"],
        rollouts=tuple(rollout for _, rollout in ordered),
        text=text.statement(newest, STATEMENT_CHARS_MAX),
        group=groups[-1][2] if groups else "",
    )


def group(one: Mapping[str, Any]) -> str:
    """The task group of a contribution: its memory, and the agent that worked where it is known."""
    return f"{one['memory']} / {one['agent']}" if one.get("agent") else str(one["memory"])
