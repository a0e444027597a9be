"""Guards: what a new revision must pass before a head moves to it, whoever wrote it.

They look at the rendered parts, not at how they were made, so that a fault of the rules, of a model or of
the renderer is caught by code that shares nothing with them. Each violation names the rollouts that may be
guilty, so that a batch can be split until the guilty one stands alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from runlore.memory import documents, handbook, injected, redact, render, summary, text
from runlore.memory import notes as _notes

SUMMARY_TOKENS_MAX = 1_500
"""`memory_summary.md`, as estimated by `text.token_estimate`, which counts from above."""
LINE_CHARS_MAX = 4_000
SHRINK_MAX = 0.3
"""Share of the untouched rollouts' bytes that may vanish in one revision."""
_BYTES_MAX = {
    "MEMORY.md": handbook.MEMORY_BYTES_MAX,
    "raw_memory.md": documents.RAW_MEMORY_BYTES_MAX,
    "rollout_summary.md": documents.SUMMARY_BYTES_MAX,
    "selection.json": 2_048,
}
_OTHER_BYTES_MAX = 16 * 1024
_UNSAFE = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_HEADINGS = {
    "MEMORY.md": re.compile(
        r"# Task Group: \S.*|## Task \d+: \S.*|### (?:rollout_summary_files|keywords)"
        r"|## (?:User preferences|Reusable knowledge|Failures and how to do differently)"
    ),
    "raw_memory.md": re.compile(r"### Task \d+: \S.*"),
    "rollout_summary.md": re.compile(r"# \S.*|## Task \d+: \S.*"),
    "SKILL.md": re.compile(r"# [a-z0-9-]+"),
    "index.md": re.compile(r"###? \S.*|#### \d{4}-\d{2}-\d{2}"),
}
_HEADER = ("rollout_id: ", "updated_at: ", "rollout_path: ", "rollout_summary_file: ", "terminal_state: ", "")
_REFERENCE = re.compile(r"^- (rollout_summaries/\S+\.md) \(rollout_id=([^,\s]+),", re.MULTILINE)
PERSONAL_CHARS_MIN = 24
"""A stretch of a subject's own words this long in a shared part is a leak."""


class Violation(NamedTuple):
    """Why a revision must not be published."""

    kind: str
    """`format`, `dangling`, `removal`, `shrink`, `secret`, `size`, `subject`, `instruction`."""
    message: str
    rollouts: tuple[str, ...]
    """Who may be guilty; empty where it cannot be told."""
    key: str = ""
    """Names exactly this, for a person who lets it pass (`SOFT`); "" where nobody may."""


SOFT = ("instruction", "removal", "shrink", "rejected")
"""What a person may let pass, once it was shown: these are about what memory should say. The others never: a secret
or a subject's words would be shown to whom they are not for, and a malformed or too large seed harms every run."""


def check(
    before: _notes.Notes | None, after: _notes.Notes, parts: Mapping[str, render.Part]
) -> list[Violation]:
    """Everything that is wrong with a revision; none if it may be published."""
    found = [*_format(after, parts), *_dangling(after, parts), *_secrets(after, parts)]
    found += [*_sizes(after, parts), *_subjects(after, parts)]
    for one in injected.check(before, after, parts):
        found.append(Violation("instruction", one.message, one.rollouts, one.key))
    if before is not None:
        found += [*_removals(before, after), *_shrinking(before, after)]
    return found


def _suspects(after: _notes.Notes, part: render.Part, line: int | None = None) -> tuple[str, ...]:
    """The rollouts behind a part, or behind one of its lines."""
    if part.rollout:
        return (part.rollout,)
    ids = {note for first, last, note in part.why if line is None or first <= line <= last}
    return tuple(sorted({name for one in ids for name in (after.get(one) or {"support": {}})["support"]}))


def _format(after: _notes.Notes, parts: Mapping[str, render.Part]) -> Iterable[Violation]:
    for name, part in parts.items():
        file = name.rpartition("/")[2]
        if not part.text.endswith("\n"):
            yield Violation("format", f"{name} does not end with a newline", _suspects(after, part))
        if file == "selection.json":
            yield from _selection_format(after, name, part)
            continue
        for number, line in enumerate(part.text.split("\n"), 1):
            problem = _line_problem(file, line)
            if problem:
                yield Violation("format", f"{name}:{number} {problem}", _suspects(after, part, number))
        if file == "raw_memory.md":
            head = part.text.split("\n")[: len(_HEADER)]
            if len(head) < len(_HEADER) or any(
                not line.startswith(want) for line, want in zip(head, _HEADER, strict=True)
            ):
                yield Violation(
                    "format", f"{name} does not begin with the SDK's header", _suspects(after, part)
                )


def _line_problem(file: str, line: str) -> str | None:
    if _UNSAFE.search(line):
        return "holds a control character or a Unicode line break"
    if len(line) > LINE_CHARS_MAX:
        return f"is longer than {LINE_CHARS_MAX} characters"
    if line.startswith(("```", "~~~", "===")):
        return "begins a fence or a rule"
    allowed = _HEADINGS.get(file)
    if line.startswith("#") and (allowed is None or not allowed.fullmatch(line)):
        return "is a heading that this file does not have"
    return None


def _selection_format(after: _notes.Notes, name: str, part: render.Part) -> Iterable[Violation]:
    try:
        row = json.loads(part.text)
    except ValueError:
        row = None
    wanted = ["rollout_id", "updated_at", "rollout_path", "rollout_summary_file", "terminal_state"]
    if (
        not isinstance(row, dict)
        or list(row) != wanted
        or not all(isinstance(v, str) and v for v in row.values())
    ):
        yield Violation("format", f"{name} is not a row of the selection", _suspects(after, part))


def _dangling(after: _notes.Notes, parts: Mapping[str, render.Part]) -> Iterable[Violation]:
    """Every summary file that is named exists, belongs to the rollout it says, and may be seen where it is named."""
    files: dict[str, str] = {}
    owners: dict[str, str | None] = {}
    for name, part in parts.items():
        if name.endswith("/selection.json") and part.rollout:
            match = re.search(r'"rollout_summary_file": "([^"]+)"', part.text)
            files[part.rollout] = match.group(1) if match else ""
            owners[part.rollout] = part.subject
    known = after.rollouts()
    for name, part in parts.items():
        if part.rollout and part.rollout not in known:
            yield Violation("dangling", f"{name} is of a rollout that supports nothing", (part.rollout,))
        if not name.endswith("/MEMORY.md"):
            continue
        for path, rollout in _REFERENCE.findall(part.text):
            if files.get(rollout) != path:
                yield Violation("dangling", f"{name} names {path}, which does not exist", (rollout,))
            elif owners[rollout] is not None and owners[rollout] != part.subject:
                yield Violation("subject", f"{name} names a rollout of another subject", (rollout,))
    for name, part in parts.items():
        for _, _, note in part.why:
            if after.get(note) is None:
                yield Violation("dangling", f"{name} rests on note {note}, which does not exist", ())


def _removals(before: _notes.Notes, after: _notes.Notes) -> Iterable[Violation]:
    """A note may go only if each rollout that supported it went, or now says something else."""
    still = after.rollouts()
    for identity, entry in before.entries().items():
        if after.get(identity) is not None:
            continue
        if entry["kind"] == "joint" and _is_taken_over(entry, after):
            continue
        same = [name for name in entry["support"] if name in still and before.card(name) == after.card(name)]
        if same:
            message = f"note {identity} ({entry['kind']}) is gone; {len(same)} unchanged rollouts support it"
            suspects = tuple(sorted(set(after.rollouts()) - before.rollouts()))
            yield Violation("removal", message, suspects, f"removal {identity}")


def _is_taken_over(gone: Mapping[str, Any], after: _notes.Notes) -> bool:
    """Whether another joint statement rests on all that this one did, and so keeps its support."""
    over = {note for note in gone["key"]["over"] if after.get(note) is not None}
    return any(over <= set(entry["key"]["over"]) for _, entry in after.of_kind("joint"))


def _shrinking(before: _notes.Notes, after: _notes.Notes) -> Iterable[Violation]:
    still = after.rollouts()
    same = {name for name in before.rollouts() & still if before.card(name) == after.card(name)}
    entries, later = before.entries(), after.entries()
    # A note that nothing touched is the same object in both: only the others can have shrunk.
    touched = {one for one in entries.keys() | later.keys() if entries.get(one) is not later.get(one)}
    lost = _bytes_of(entries, same, touched) - _bytes_of(later, same, touched)
    if lost <= 0:
        return
    was = _bytes_of(entries, same, entries.keys())
    if lost > SHRINK_MAX * was:
        message = f"what {len(same)} unchanged rollouts support shrank from {was} to {was - lost} bytes"
        yield Violation("shrink", message, tuple(sorted(still - before.rollouts())), f"shrink {lost}")


def _bytes_of(entries: Mapping[str, Mapping[str, Any]], rollouts: set[str], which: Collection[str]) -> int:
    return sum(
        len(json.dumps(one))
        for identity in which
        if identity in entries
        for rollout, one in entries[identity]["support"].items()
        if rollout in rollouts
    )


def _secrets(after: _notes.Notes, parts: Mapping[str, render.Part]) -> Iterable[Violation]:
    for name, part in parts.items():
        if part.is_clean:
            continue
        for number, line in enumerate(part.text.split("\n"), 1):
            if redact.text(line) != line:
                yield Violation("secret", f"{name}:{number} holds a secret", _suspects(after, part, number))
                break
        else:
            yield Violation("secret", f"{name} holds a secret", _suspects(after, part))


def _sizes(after: _notes.Notes, parts: Mapping[str, render.Part]) -> Iterable[Violation]:
    tokens: dict[str, int] = {}
    first: dict[str, render.Part] = {}
    for name, part in parts.items():
        owner, _, file = name.partition("/")
        first.setdefault(owner, part)
        size, limit = len(part.text.encode("utf-8", "surrogatepass")), _BYTES_MAX.get(file, _OTHER_BYTES_MAX)
        if size > limit:
            yield Violation(
                "size", f"{name} has {size} bytes; at most {limit} are allowed", _suspects(after, part)
            )
        if file in ("preferences.md", "tips.md", "index.md", "resume.md"):
            # The headings that `compose` puts around them cost a few tokens each.
            tokens[owner] = tokens.get(owner, 0) + part.tokens + 10
    base = tokens.pop(render.BASE, 0)
    subjects = {
        part.subject: f"subject.{part.subject}"
        for part in parts.values()
        if part.subject and not part.rollout
    }
    for owner, own in tokens.items():
        part = first[owner]
        personal = tokens.get(subjects.get(part.subject, ""), 0) if part.rollout else 0
        if base + own + personal >= SUMMARY_TOKENS_MAX:
            message = f"memory_summary.md for {owner} has {base + own + personal} tokens or more"
            yield Violation("size", message, _suspects(after, part))
    if base >= SUMMARY_TOKENS_MAX:
        yield Violation("size", f"memory_summary.md has {base} tokens", ())


def _subjects(after: _notes.Notes, parts: Mapping[str, render.Part]) -> Iterable[Violation]:
    """Each rollout's parts carry its subject, and no shared part holds a subject's own words or values."""
    public = {name: part.text for name, part in parts.items() if part.subject is None}
    whole = "\n".join(public.values())
    cards = {
        card["rollout"]: card for _, entry in after.of_kind("rollout") for card in entry["support"].values()
    }
    said_by_nobody = {
        words for card in cards.values() if card["subject"] is None for words in _own_words(card)
    }
    for name, part in parts.items():
        card = cards.get(part.rollout or "")
        if card is not None and part.subject != card["subject"]:
            message = f"{name} is not marked with its rollout's subject"
            yield Violation("subject", message, (card["rollout"],))
    for rollout, card in cards.items():
        if card["subject"] is None:
            continue
        # One look at everything first: a leak is rare, and only then it matters where it stands.
        told = [words for words in _own_words(card) if words not in said_by_nobody and words in whole]
        for name, body in public.items() if told else ():
            if any(words in body for words in told):
                yield Violation("subject", f"{name} holds the words of a subject", (rollout,))
    yield from _values_crossing(after, public, whole)


def _own_words(card: dict[str, Any]) -> list[str]:
    said = [one["text"] for one in [card["first"], *card["requests"], *card["corrections"]] if one]
    return [
        text.inline(one, PERSONAL_CHARS_MIN * 2)[:PERSONAL_CHARS_MIN]
        for one in said
        if len(one) >= PERSONAL_CHARS_MIN
    ]


def _values_crossing(after: _notes.Notes, public: Mapping[str, str], whole: str) -> Iterable[Violation]:
    """Values of a fix that one subject alone has shown must not stand in a shared part."""
    seen: dict[str, set[str | None]] = {}
    where: dict[str, str] = {}
    for _, entry in after.of_kind("failure"):
        for rollout, one in entry["support"].items():
            for value in _fix_values(one):
                by = seen.setdefault(value, set())
                by |= {one.get("subject")} - {summary.MIXED}
                where.setdefault(value, rollout)
    # One look at everything first: what stands there is rare, and only then it matters who else has shown it.
    own = [value for value, by in seen.items() if _is_alone(by) and value in whole]
    own = [value for value in own if _is_alone(seen[value] | _others_that_show(after, value))]
    for name, body in public.items():
        for value in own:
            if value in body and _stands(value, body):
                yield Violation(
                    "subject", f"{name} holds a value that one subject alone has shown", (where[value],)
                )


def _is_alone(subjects: Collection[str | None]) -> bool:
    return None not in subjects and len(subjects) < _notes.SHARE_SUBJECTS_MIN


def _stands(value: str, body: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", body) is not None


def _others_that_show(after: _notes.Notes, value: str) -> set[str | None]:
    """Whose rollouts show a value at any other place, as a part of a longer one too; None: it is nobody's."""
    escaped = json.dumps(value, ensure_ascii=False)[1:-1]
    out: set[str | None] = set()
    for _, entry in after.entries().items():
        if entry["kind"] == "tool" and _stands(value, entry["key"]["head"]):
            return {None}  # A tool's name may cross.
        for one in entry["support"].values():
            if str(one.get("at", ""))[:10] == value or str(one.get("updated_at", ""))[:10] == value:
                return {None}  # The day of a run, that every line tells, and not theirs.
            told = {name: part for name, part in one.items() if name != "evidence"} | {"key": entry["key"]}
            if _stands(escaped, json.dumps(told, ensure_ascii=False)):
                out.add(one.get("subject"))
    return out - {summary.MIXED}


def _fix_values(one: Mapping[str, Any]) -> Iterable[str]:
    for fix in one.get("fixes", ()):
        told = [change.get(side, "") for change in fix.get("changes", ()) for side in ("was", "is")]
        told += [fix.get("command", ""), fix.get("was", ""), *fix.get("after", ())]
        # A short or plain word is likely to stand in a shared line for reasons of its own.
        yield from (value for value in told if len(value) >= 6 and re.search(r"[\d@ ]", value))
