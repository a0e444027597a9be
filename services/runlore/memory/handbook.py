"""What all runs of a memory share: `MEMORY.md`, and the sections of `memory_summary.md`.

The base is for every seed: rollouts of nobody in particular, and of a subject's rollouts only what may cross
(see `lines`). A subject's own page is for that subject's seeds. `memory_summary.md` holds only what two
rollouts support; it is cut by whole lines to its share of the budget, the most useful lines first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from runlore.memory import documents, edits, keywords, lines, text, values
from runlore.memory import notes as _notes

Line = documents.Line

SECTIONS = ("preferences", "knowledge", "failures")
"""Where a statement of a model may stand: the three sections of a task group."""
MEMORY_BYTES_MAX = 192 * 1024
LESSONS_MAX = 120
STATEMENTS_MAX = 80
"""Of models and live edits, in one section of one task group: what the rules say must still fit behind them."""
FACTS_MAX = 40
PREFERENCES_MAX = 60
TIPS_TOKENS_MAX = 560
PREFERENCES_TOKENS_MAX = 140
INDEX_TOKENS_MAX = 90
SHARED_WORDS_MAX = 24
ROLLOUTS_MIN = lines.ROLLOUTS_MIN


def memory(
    all_notes: _notes.Notes,
    cards: Mapping[str, dict[str, Any]],
    told: list[lines.Lesson],
    subject: str | None,
) -> list[Line]:
    """A page of `MEMORY.md`: everybody's (`subject` None), or one subject's own."""
    groups: dict[str, list[str]] = {}
    for rollout, card in _newest_first(cards):
        groups.setdefault(documents.task_group(card), []).append(rollout)
    shared = _lessons_by_group(told) if subject is None else {}
    facts = [one for one in lines.facts(all_notes) if one.subject == subject]
    spread = _spread(cards)
    out: list[Line] = []
    of = {rollout: group for group, members in groups.items() for rollout in members}
    told_by_models: dict[tuple[str, str], list[Line]] = {}
    for one in _statements(all_notes, cards):
        group = of.get(one.rollouts[-1], one.group)
        if one.subject == subject and group:
            told_by_models.setdefault((group, one.section), []).append((f"- {one.text}", one.note))
    said = [group for group, _ in told_by_models]
    for group in dict.fromkeys([*groups, *shared, *(_group(one) for one in facts), *said]):
        models = {name: told_by_models.get((group, name), [])[:STATEMENTS_MAX] for name in SECTIONS}
        block = _tasks(groups.get(group, []), cards, spread)
        wishes = _preferences(all_notes, subject, groups.get(group, []))
        block += _section("## User preferences", [*models["preferences"], *wishes])
        own = [one for one in facts if _group(one) == group]
        worked = [(f"- {one.text}", one.note) for one in own[:FACTS_MAX]]
        block += _section("## Reusable knowledge", [*models["knowledge"], *worked])
        failed = [(f"- {one.text}", one.note) for one in shared.get(group, [])[:LESSONS_MAX]]
        block += _section("## Failures and how to do differently", [*models["failures"], *failed])
        if block:
            scope = _scope(group, groups.get(group, []), subject)
            out += [
                (f"# Task Group: {group}" + (" (this user)" if subject else ""), ""),
                (scope, ""),
                *block,
                ("", ""),
            ]
    return _fit(out)


def _statements(all_notes: _notes.Notes, cards: Mapping[str, dict[str, Any]]) -> list[lines.Statement]:
    """What models and live edits said: first what more rollouts bear, then what is newer."""

    def newest(one: lines.Statement) -> tuple[int, str]:
        card = cards.get(one.rollouts[-1])
        return values.time_key(card["updated_at"] if card else "")

    found = sorted(lines.statements(all_notes), key=newest, reverse=True)
    return sorted(found, key=lambda one: -len(one.rollouts))


def _fit(out: list[Line]) -> list[Line]:
    size = 0
    for place, (line, _) in enumerate(out):
        size += len(line.encode()) + 1
        if size > MEMORY_BYTES_MAX:
            out = out[:place]
            break
    while out and not out[-1][0]:
        out = out[:-1]
    return out


def _scope(group: str, rollouts: list[str], subject: str | None) -> str:
    if subject:
        return f"scope: what this user's {len(rollouts)} rollouts in {group} showed; nobody else sees it."
    if rollouts:
        return f"scope: what {len(rollouts)} rollouts in {group} showed. Search by tool name, file or error text."
    return (
        f"scope: what tools answered in {group}, whoever the run was for. Search by tool name or error text."
    )


def _newest_first(cards: Mapping[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    # The SDK's order: by time, then by id, both descending.
    return sorted(
        cards.items(), key=lambda pair: (values.time_key(pair[1]["updated_at"]), pair[0]), reverse=True
    )


def _lessons_by_group(told: list[lines.Lesson]) -> dict[str, list[lines.Lesson]]:
    out: dict[str, list[lines.Lesson]] = {}
    for one in told:
        out.setdefault(_group(one), []).append(one)
    return out


def _group(one: lines.Lesson | lines.Fact) -> str:
    return f"{one.memory} / {one.agent}" if one.agent else one.memory


def _tasks(rollouts: list[str], cards: Mapping[str, dict[str, Any]], spread: dict[str, int]) -> list[Line]:
    """One `## Task` for each thing that was asked; rollouts that began with the same request are one task."""
    tasks: dict[str, list[str]] = {}
    for rollout in rollouts:
        asked = documents.request(cards[rollout])
        tasks.setdefault(asked["text"].casefold() if asked else "", []).append(rollout)
    common = documents.Common(cards.values())
    out: list[Line] = []
    for number, members in enumerate(tasks.values(), 1):
        card = cards[members[0]]
        note = _card_note(members[0])
        word, _ = documents.outcome(card)
        title = documents.title(card, common)
        out += [("", note), (f"## Task {number}: {title} ({word})", note)]
        out += [("", note), ("### rollout_summary_files", note), ("", note)]
        for rollout in members:
            out.append((f"- {_reference(cards[rollout])}", _card_note(rollout)))
        own = documents.keywords_of(card, spread, len(cards))
        if own:
            out += [("", note), ("### keywords", note), ("", note), (f"- {', '.join(own)}", note)]
    return out


def _reference(card: dict[str, Any]) -> str:
    row = documents.selection_row(card, "")
    _, because = documents.outcome(card)
    return (
        f"{row['rollout_summary_file']} (rollout_id={row['rollout_id']}, updated_at={row['updated_at']}, "
        f"terminal_state={row['terminal_state']}, {because})"
    )


def _card_note(rollout: str) -> str:
    return _notes.note_id("rollout", {"rollout": rollout})


def _spread(cards: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    """In how many rollouts each search word occurs."""
    return Counter(word for card in cards.values() for word, _ in card["keywords"])


def _section(heading: str, bullets: list[Line]) -> list[Line]:
    if not bullets:
        return []
    unique = list({line: (line, note) for line, note in bullets}.values())
    return [("", unique[0][1]), (heading, unique[0][1]), ("", unique[0][1]), *unique]


def _preferences(all_notes: _notes.Notes, subject: str | None, rollouts: list[str]) -> list[Line]:
    """Corrections, those of most rollouts first, each shown once in the block of its newest rollout."""
    out, edited = [], edits.verdict(all_notes)
    for identity, entry in all_notes.of_kind("correction"):
        if entry["key"]["subject"] != subject or identity in edited.hidden:
            continue
        newest = max(entry["support"], key=lambda name: (values.time_key(entry["support"][name]["at"]), name))
        if newest in rollouts:
            said = documents.correction(entry["support"][newest], entry["key"]["text"])
            line = edited.mark(identity, f"- {said}")
            out.append((-len(entry["support"]), rollouts.index(newest), line, identity))
    return [(line, note) for _, _, line, note in sorted(out)[:PREFERENCES_MAX]]


# --- memory_summary.md ------------------------------------------------------------------------------


def tips(all_notes: _notes.Notes, told: list[lines.Lesson]) -> list[Line]:
    """Bullets of `## General Tips`: cures first, then commands that worked in several rollouts."""
    cured = [(f"- {one.brief}", one.note) for one in told if one.brief]
    worked = [
        (f"- {one.text}", one.note)
        for one in lines.facts(all_notes)
        if one.subject is None and one.rollouts >= ROLLOUTS_MIN
    ]
    worked += _agreed(all_notes, None, ("knowledge", "failures"))
    facts = within(worked, TIPS_TOKENS_MAX // 4)
    return within(cured, TIPS_TOKENS_MAX - sum(text.token_estimate(line) + 1 for line, _ in facts)) + facts


def preferences(all_notes: _notes.Notes, subject: str | None) -> list[Line]:
    """Bullets of `## User preferences`: what the same user said in two rollouts."""
    out, edited = [], edits.verdict(all_notes)
    for identity, entry in all_notes.of_kind("correction"):
        if identity in edited.hidden:
            continue
        if entry["key"]["subject"] == subject and len(entry["support"]) >= ROLLOUTS_MIN:
            newest = max(
                entry["support"], key=lambda name: (values.time_key(entry["support"][name]["at"]), name)
            )
            said = documents.correction(entry["support"][newest], entry["key"]["text"])
            out.append((-len(entry["support"]), edited.mark(identity, f"- {said}"), identity))
    told = [(line, note) for _, line, note in sorted(out)]
    return within([*told, *_agreed(all_notes, subject, ("preferences",))], PREFERENCES_TOKENS_MAX)


def _agreed(all_notes: _notes.Notes, subject: str | None, sections: tuple[str, ...]) -> list[Line]:
    """Statements that two rollouts support."""
    return [
        (f"- {one.text}", one.note)
        for one in lines.statements(all_notes)
        if one.subject == subject and one.section in sections and len(one.rollouts) >= ROLLOUTS_MIN
    ]


def index(cards: Mapping[str, dict[str, Any]], told: list[lines.Lesson], memory_name: str) -> list[Line]:
    """Bullets of `## What's in Memory`: what to search `MEMORY.md` for. Words that two rollouts have in common."""
    if not cards:
        return []
    note = _card_note(max(cards))
    day = max(values.time_key(card["updated_at"]) for card in cards.values())[1][:10]
    spread = _spread(cards)
    common = [word for word, count in spread.items() if count >= ROLLOUTS_MIN]
    names = [word for word in common if keywords.is_name(word) or not word.isascii()]
    ranked = sorted(names, key=lambda word: (-spread[word], word))[:SHARED_WORDS_MAX]
    out = [(f"### {memory_name}", note), ("", note)]
    if day:
        out += [(f"#### {day}", note), ("", note)]
    plural = "s" if len(cards) > 1 else ""
    topic = ", ".join(text.inline(word, 48) for word in ranked)
    out.append((f"- {len(cards)} rollout{plural}" + (f": {topic}" if topic else ""), note))
    out.append(
        (
            "  - desc: MEMORY.md lists each with its summary file, keywords and failures; search it first.",
            note,
        )
    )
    return (
        out if text.token_estimate("\n".join(line for line, _ in out)) <= INDEX_TOKENS_MAX else _shorter(out)
    )


def _shorter(out: list[Line]) -> list[Line]:
    """The index with fewer words on its topic line."""
    place = len(out) - 2
    while (
        text.token_estimate("\n".join(line for line, _ in out)) > INDEX_TOKENS_MAX and ", " in out[place][0]
    ):
        out[place] = (out[place][0].rpartition(", ")[0], out[place][1])
    return out


def within(bullets: Iterable[Line], tokens: int) -> list[Line]:
    """The bullets that fit, in order; a long one does not keep shorter ones out."""
    kept, left = [], tokens
    for line, note in bullets:
        cost = text.token_estimate(line) + 1
        if cost <= left:
            kept.append((line, note))
            left -= cost
    return kept
