"""Live edits: what an agent changed in its memory files, as changes to notes; and what they mean for what is shown.

Pure. `changes` compares a file with what was seeded; `digest` and `merged` bring that into a rollout's summary;
`verdict` says which notes are hidden, and which stand in conflict.

An edit belongs to the rollout whose agent made it. What it added is a `text` note of that rollout. What it took out is
that rollout's evidence *against* the notes of the line, kept in a note of its own (kind `edit`, about one note): other
notes never change by it. A changed line is both. All is decided by the times that contributions carry, so the
order in which runs and edits come changes nothing:

- A removal counts against a note of one subject if it is that subject's; against anybody's note if it is nobody's in
  particular, or if two subjects' rollouts took the line out.
- A note is hidden while the newest removal that counts had seen all evidence for it: none is newer than what its base
  showed. (Of the rollout that removed it only later evidence counts: its own run may have met the failure again.)
- Where others' evidence came that the edit had not seen, or two edits changed one line in two ways, nobody is right:
  every side is shown, and is marked as a conflict.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore.memory import notes as _notes
from runlore.memory import redact, text, values

CHANGES_MAX = 48
"""Changes of one edit, and of one rollout (the newest), that become notes; the edit's record keeps them all."""
TEXT_CHARS_MAX = 600
WAS_CHARS_MAX = 200
LINES_MAX = 20_000
"""Lines of one edited file that are looked at."""
REMOVED_MIN, REMOVED_SHARE = 8, 0.3
"""An edit that takes out more bullets than that (the larger of the two), or leaves no line as it was, wrote the file
anew: what it adds counts, and what it left out does not."""
PAIRED_MAX = 256
"""Lines of each side that are looked at as one line changed; past it they are one taken out and one added."""
NOTES_PER_LINE_MAX = 4
TARGETS = ("failure", "fact", "correction", "text", "joint")
"""Notes that evidence may stand against; what happened in a rollout (its card) is no opinion."""
PATHS = ("MEMORY.md", "memory_summary.md")
RUNS_SHOWN_MAX = 3

_SECTIONS = {
    "user preferences": "preferences",
    "user profile": "preferences",
    "preference signals": "preferences",
    "failures and how to do differently": "failures",
    "reusable knowledge": "knowledge",
    "general tips": "knowledge",
}
_KEYWORDS = "keywords"
_MARK = re.compile(r"\s*\[conflict [0-9a-f]{6}: [^\[\]]*\]")
_BULLET = re.compile(r"[-*+]\s+")
_FRAME = re.compile(r"#|```|~~~|={3,}\s*$|-{3,}\s*$|scope:\s|- rollout_summaries/|  - desc:")
_WORD = re.compile(r"\w+")


# --- a file against what was seeded -----------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """What one file was seeded as: its text, and for each line (from 1) the notes behind it."""

    text: str = ""
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    said: str
    section: str
    number: int
    after: tuple[str, int]
    """The line before it that both texts have, and how often that one came by then: where it stands."""


def changes(path: str, base: Base, new: str, seen: Mapping[str, str]) -> list[dict[str, Any]]:
    """What `new` adds to the base and takes out of it, line by line. `seen`: note → the time of its newest evidence.

    Lines are compared as a set that counts, so a line that was moved has not changed. A line that was added where one
    was taken out, and shares half of its words, is that line changed.
    """
    old, now = _lines(base.text), _lines(new)
    common = Counter(one for one, _, _ in old) & Counter(one for one, _, _ in now)
    gone, came = _apart(old, common), _apart(now, common)
    removed = [one for one in gone if _targets(base, one, seen)]
    shown = sum(1 for number in base.notes if _targets_at(base, number, seen))
    is_anew = len(removed) > max(REMOVED_MIN, int(shown * REMOVED_SHARE)) or not _share(base.text, new)
    pairs = _pairs(removed, came)
    out = [_change(path, base, seen, was=pairs.get(one), now=one, is_anew=is_anew) for one in came]
    left = [one for one in removed if one not in pairs.values()]
    out += [_change(path, base, seen, was=one, now=None, is_anew=is_anew) for one in left]
    return [one for one in out if one.get("now") or one.get("notes")]


def _pairs(removed: Sequence[_Line], came: Sequence[_Line]) -> dict[_Line, _Line]:
    """Added line → the line that it is, changed: at one place, each at most once."""
    there: dict[tuple[str, int], list[_Line]] = {}
    for one in removed[:PAIRED_MAX]:
        there.setdefault(one.after, []).append(one)
    found: dict[_Line, _Line] = {}
    for one in came[:PAIRED_MAX]:
        here = there.get(one.after, [])
        was = next((gone for gone in here if _alike(gone.said, one.said)), None)
        if was is not None:
            here.remove(was)
            found[one] = was
    return found


def _change(
    path: str,
    base: Base,
    seen: Mapping[str, str],
    *,
    was: _Line | None,
    now: _Line | None,
    is_anew: bool,
) -> dict[str, Any]:
    made: dict[str, Any] = {"file": path}
    if was is not None:
        made["was"] = text.inline(was.said, WAS_CHARS_MAX)
        if not is_anew:
            made["notes"] = {note: seen[note] for note in _targets(base, was, seen)}
    if now is not None:
        made |= {"section": now.section, "now": text.clip(now.said, TEXT_CHARS_MAX)}
    return made


def _targets(base: Base, line: _Line, seen: Mapping[str, str]) -> list[str]:
    return _targets_at(base, line.number, seen)


def _targets_at(base: Base, number: int, seen: Mapping[str, str]) -> list[str]:
    return [note for note in base.notes.get(number, ()) if note in seen][:NOTES_PER_LINE_MAX]


def _lines(body: str) -> list[tuple[str, str, int]]:
    """(what it says, its section, its number) of every line that says something; a bullet with the lines that go on."""
    out: list[tuple[str, str, int]] = []
    section, is_open = "knowledge", False
    for number, raw in enumerate(body.splitlines()[:LINES_MAX], 1):
        line = _MARK.sub("", raw).rstrip()
        if not line.strip() or _FRAME.match(line):
            is_open = False
            if line.startswith("#"):
                section = _section(line)
            continue
        if section == _KEYWORDS:
            # One line of search words; what is put below it, at the end of the file say, is a statement.
            section, is_open = "knowledge", False
            continue
        said = _BULLET.sub("", line.strip(), count=1).strip()
        if line[0] in " \t" and is_open and not _BULLET.match(line.strip()):
            if len(out[-1][0]) <= TEXT_CHARS_MAX:  # More of it is cut off anyway.
                before = out.pop()
                out.append((f"{before[0]} {said}", *before[1:]))
        elif said:
            out.append((said, section, number))
            is_open = True
    return out


def _section(heading: str) -> str:
    name = heading.lstrip("#").strip().rstrip(":").casefold()
    if name == _KEYWORDS:
        return name
    return _SECTIONS.get(name, "knowledge")


def _apart(lines: list[tuple[str, str, int]], common: Counter[str]) -> list[_Line]:
    """The lines that the other text does not have, each with where it stands."""
    left, met = Counter(common), Counter[str]()
    out, after = [], ("", 0)
    for said, section, number in lines:
        if left[said] > 0:
            left[said] -= 1
            met[said] += 1
            after = (said, met[said])
        else:
            out.append(_Line(said, section, number, after))
    return out


def _share(old: str, new: str) -> bool:
    """Whether two texts have any line in common, headings too."""
    return bool({one for one in old.splitlines() if one.strip()} & set(new.splitlines()))


def _alike(one: str, other: str) -> bool:
    mine, theirs = set(_WORD.findall(one.casefold())), set(_WORD.findall(other.casefold()))
    return 2 * len(mine & theirs) >= max(1, min(len(mine), len(theirs)))


# --- into a rollout's summary -----------------------------------------------------------------------------


def digest(line: str, meta: values.RunMeta) -> dict[str, Any]:
    """The digest of an edit's record: its changes, and which run made it."""
    body = json.loads(line)["edit"]
    return {
        "project": meta.project,
        "memory": meta.memory,
        "rollout": meta.rollout,
        "run": meta.run,
        "attempt": meta.attempt,
        "subject": meta.subject,
        "ended_at": meta.ended_at,
        "agents": [text.inline(agent, 80) for agent in meta.agents[:8]],
        "edit": {"by": str(body["run"]), "revision": int(body["revision"])},
        "changes": body["changes"][:CHANGES_MAX],
    }


def is_edit(digest: Mapping[str, Any]) -> bool:
    return "edit" in digest


def merged(known: Iterable[dict[str, Any]], digests: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rollout's changes with those of some edits: the newest, oldest first. A function of the set of them."""
    found = {(one["id"], one["item"]): one for one in known}
    for edit in digests:
        common = {"at": edit["ended_at"], "id": edit["run"], **edit["edit"]}
        for item, change in enumerate(edit["changes"]):
            found[edit["run"], item] = {**common, "item": item, **change}
    ordered = sorted(found.values(), key=lambda one: (values.time_key(one["at"]), one["id"], one["item"]))
    return ordered[-CHANGES_MAX:]


def fingerprint(changed: list[dict[str, Any]]) -> str:
    """What the rollout's card says of its edits, so that a card tells whether anything of its rollout moved."""
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Said:
    """What a rollout's edits say about one note: its kind, key and body."""

    kind: str
    key: dict[str, Any]
    body: dict[str, Any]

    @property
    def note(self) -> str:
        return _notes.note_id(self.kind, self.key)


def said(summary: Mapping[str, Any]) -> list[Said]:
    """Every note that a summary's edits support: what was added, and against what they stand."""
    subject, agent = summary["subject"], (summary["agents"] or [""])[0]
    common = {"subject": subject, "memory": summary["memory"], "agent": agent}
    added: dict[str, Said] = {}
    against: dict[str, Said] = {}
    for one in summary.get("edits", ()):
        where = {"at": one["at"], "by": one["by"], "revision": one["revision"]}
        where["evidence"] = [[one["id"], 1, one["item"]]]
        put = _added(one, common | where)
        if put is not None:
            added[put.note] = put
        for note, seen in one.get("notes", {}).items():
            if put is not None and put.note == note:
                continue  # The same words in another place.
            before = against.get(note)
            same = before is not None and before.body["evidence"][0][0] == one["id"]
            now = [*(before.body["now"] if same and before else []), *([put.note] if put else [])]
            body = common | where | {"seen": seen, "was": one.get("was", ""), "now": list(dict.fromkeys(now))}
            against[note] = Said("edit", {"note": note}, body)
    return [*added.values(), *against.values()]


def _added(one: Mapping[str, Any], common: dict[str, Any]) -> Said | None:
    statement = one.get("now", "")
    if not text.inline(statement, TEXT_CHARS_MAX).strip() or redact.text(statement) != statement:
        return None
    key = {"section": one["section"], "subject": common["subject"], "text": " ".join(statement.split())}
    return Said("text", key, common | {"text": statement, "was": one.get("was", "")})


# --- what they mean ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Which notes are not shown, and what stands behind those that are in conflict."""

    hidden: frozenset[str] = frozenset()
    marks: Mapping[str, str] = field(default_factory=dict)

    def mark(self, note: str, line: str) -> str:
        """A line of a note, with the mark of its conflict if it has one."""
        return f"{line} {self.marks[note]}" if note in self.marks else line


def verdict(notes: _notes.Notes) -> Verdict:
    """What all edits come to."""
    if "verdict" not in notes.memo:
        notes.memo["verdict"] = _verdict(notes)
    found: Verdict = notes.memo["verdict"]
    return found


def _verdict(notes: _notes.Notes) -> Verdict:
    counted: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    alone: dict[str, list[str]] = {}
    for _, entry in notes.of_kind("edit"):
        note = entry["key"]["note"]
        target = notes.get(note)
        if target is None or target["kind"] not in TARGETS:
            continue
        if found := _counted(_notes.owner(target), entry["support"]):
            counted[note] = sorted(found, key=_order)
        else:
            alone[note] = [one for said in entry["support"].values() for one in said["now"]]
    if not counted and not alone:
        return Verdict()
    hidden = frozenset(note for note, found in counted.items() if not _unseen(notes, note, *found[-1]))
    marks: dict[str, str] = {}
    for note, found in sorted(counted.items()):
        sides = {rollout: _sides(notes, one["now"], counted, hidden) for rollout, one in found}
        stand = {one for some in sides.values() for one in some}
        if note in hidden:
            is_conflict = len({frozenset(some) for some in sides.values() if some}) > 1
        else:
            newest = values.time_key(found[-1][1]["at"])
            is_conflict = bool(stand) or any(at <= newest for at in _unseen(notes, note, *found[-1]))
        if is_conflict:
            name = f"[conflict {note[:6]}: "
            for one in sorted(stand):
                marks.setdefault(one, f"{name}{_by(notes, one)}]")
            if note not in hidden:
                how = "changed" if stand else "taken out"
                marks.setdefault(note, f"{name}{how} by {_runs(found)}, seen again since]")
    for note, now in sorted(alone.items()):
        # What one subject changed in everybody's line stands beside it, for that subject.
        for one in now:
            if notes.get(one) is not None and one not in hidden:
                marks.setdefault(one, f"[conflict {note[:6]}: {_by(notes, one)}, others see another line]")
    return Verdict(hidden, marks)


def _order(one: tuple[str, Mapping[str, Any]]) -> tuple[tuple[int, str], str]:
    return values.time_key(one[1]["at"]), one[0]


def _counted(owner: str | None, support: Mapping[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The contributions against a note that count, given whose note it is."""
    if owner is not None:
        return [(rollout, one) for rollout, one in support.items() if one["subject"] == owner != _notes.MIXED]
    known = {one["subject"] for one in support.values()} - {_notes.MIXED, None}
    enough = len(known) >= _notes.SHARE_SUBJECTS_MIN
    return [
        (rollout, one)
        for rollout, one in support.items()
        if one["subject"] is None or (enough and one["subject"] in known)
    ]


def _unseen(
    notes: _notes.Notes, note: str, rollout: str, against: Mapping[str, Any]
) -> list[tuple[int, str]]:
    """The times of evidence for a note that whoever stood against it had not seen."""
    entry = notes.get(note) or {"support": {}}
    seen, at = values.time_key(against["seen"]), values.time_key(against["at"])
    times = [(name, values.time_key(one.get("at", ""))) for name, one in entry["support"].items()]
    return [time for name, time in times if time > (at if name == rollout else seen)]


def _sides(
    notes: _notes.Notes,
    now: Sequence[str],
    counted: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]],
    hidden: frozenset[str],
) -> set[str]:
    """The notes that are shown now in place of a line: an edited line may have been edited again."""
    found: set[str] = set()
    met: set[str] = set()
    left = list(now)
    while left:
        note = left.pop()
        if note in met or notes.get(note) is None:
            continue
        met.add(note)
        if note in hidden:
            left += [after for _, one in counted[note] for after in one["now"]]
        else:
            found.add(note)
    return found


def _by(notes: _notes.Notes, note: str) -> str:
    entry = notes.get(note) or {"support": {}}
    return "said by " + _runs(list(entry["support"].items()), own=entry.get("key", {}).get("subject"))


def _runs(found: Sequence[tuple[str, Mapping[str, Any]]], *, own: str | None = None) -> str:
    """The runs behind contributions; those for a subject are named to that subject alone."""
    named = [
        text.inline(str(one["by"]), 48).replace("[", "(").replace("]", ")")
        for _, one in sorted(found, key=lambda pair: (values.time_key(pair[1].get("at", "")), pair[0]))
        if one.get("by") and one.get("subject") in (None, own)
    ]
    shown = list(dict.fromkeys(named))[-RUNS_SHOWN_MAX:]
    return "run " + ", ".join(shown) if shown else "a run for somebody else"
