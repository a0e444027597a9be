"""The documents of one rollout: its summary, its raw memory, its resume note, its row of the selection.

All of them say only what their rollout showed. Their header lines are the SDK's, byte for byte
(`agents.sandbox.memory.manager._format_raw_memory` and `_format_rollout_summary`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any

from runlore.memory import keywords as _keywords
from runlore.memory import notes as _notes
from runlore.memory import text, values

RAW_MEMORY_BYTES_MAX = 3_500
"""The JavaScript SDK reads at most 1,000,000 bytes of `raw_memories.md`, which joins up to 256 of these."""
SUMMARY_BYTES_MAX = 12 * 1024
RESUME_TOKENS_MAX = 340
TITLE_CHARS_MAX = 110
TITLE_CHARS_MIN = 12
"""What is left of a request below this length is no title."""
KEYWORDS_MAX = 10
SLUG_WORDS = 3
FAILURES_SHOWN_MAX = 8
VALUE_CHARS_MAX = 160

Line = tuple[str, str]
"""A line and the id of the note that it comes from."""


def title(card: dict[str, Any], common: Container[str] = ()) -> str:
    """What the rollout was about: its first request, in the user's words, past sentences that are `common`."""
    asked = request(card)
    if not asked:
        return "A run without a request"
    told = sentences(asked["text"])
    while len(told) > 1 and told[0] in common and len(" ".join(told[1:])) >= TITLE_CHARS_MIN:
        told = told[1:]
    return text.plain(" ".join(told), TITLE_CHARS_MAX)


class Common:
    """Sentences that several of these rollouts open with, whatever their case: they tell none from the others."""

    def __init__(self, cards: Iterable[dict[str, Any]]) -> None:
        requests = {asked["text"].casefold() for card in cards if (asked := request(card))}
        often = Counter(sentence for asked in requests for sentence in set(sentences(asked)))
        self._folded = {sentence for sentence, count in often.items() if count > 1}

    def __contains__(self, sentence: object) -> bool:
        return isinstance(sentence, str) and sentence.casefold() in self._folded


def sentences(body: str) -> list[str]:
    """The sentences of one line of text."""
    return [part for part in re.split(r"(?<=[.!?:])\s+|(?<=[。！？؟])", body) if part]


def request(card: dict[str, Any]) -> dict[str, Any] | None:
    """The request that opened the rollout, if it says enough to be told from others."""
    return card["first"] or (card["requests"] or [None])[0]


def last_request(card: dict[str, Any]) -> dict[str, Any] | None:
    """The newest request that made the agent do something; else the newest."""
    acted = [one for one in card["requests"] if one["acted"]]
    return (acted or card["requests"] or [card["first"]])[-1]


def outcome(card: dict[str, Any]) -> tuple[str, str]:
    """The SDK's word for the outcome, and what it rests on."""
    state = card["state"]
    if state in ("failed", "guardrail_tripped"):
        return "fail", f"the run ended as {state}" + (f" ({card['exception']})" if card["exception"] else "")
    if state in ("interrupted", "cancelled", "max_turns_exceeded"):
        return "partial", f"the run ended as {state}"
    if card["verified"]:
        return "success", f"`{card['verified']['call']}` passed after the last change"
    return "uncertain", "ended; nothing verified"


def slug(card: dict[str, Any]) -> str:
    """The readable end of the summary's file name. A subject's words must not stand in a file name."""
    if card["subject"]:
        return "rollout"
    names = [word for word, _ in card["keywords"] if _keywords.is_name(word) and "://" not in word]
    return text.slug(" ".join(names[:SLUG_WORDS])) or text.slug(title(card)) or "rollout"


def selection_row(card: dict[str, Any], sessions_dir: str) -> dict[str, str]:
    """The rollout's row of `phase_two_selection.json`; keys in the SDK's order."""
    rollout = card["rollout"]
    return {
        "rollout_id": rollout,
        "updated_at": card["updated_at"] or values.UNKNOWN,
        "rollout_path": f"{sessions_dir}/{rollout}.jsonl",
        "rollout_summary_file": f"rollout_summaries/{rollout}_{slug(card)}.md",
        "terminal_state": card["state"],
    }


def raw_memory(
    card: dict[str, Any], note: str, row: dict[str, str], learnt: dict[str, str], common: Container[str] = ()
) -> list[Line]:
    """`raw_memories/<rollout>.md`. `learnt`: failure note id -> its sentence for this rollout."""
    word, because = outcome(card)
    about = title(card, common)
    group = task_group(card)
    told = [
        f"rollout_id: {row['rollout_id']}",
        f"updated_at: {row['updated_at']}",
        f"rollout_path: {row['rollout_path']}",
        f"rollout_summary_file: {row['rollout_summary_file']}",
        f"terminal_state: {row['terminal_state']}",
        "",
        "---",
        f"description: {about} ({because})",
        f"task: {about}",
        f"task_group: {group}",
        f"task_outcome: {word}",
        f"keywords: {', '.join(words(card))}",
        "---",
        "",
        f"### Task 1: {about}",
        "",
        f"task: {about}",
        f"task_group: {group}",
        f"task_outcome: {word}",
    ]
    body = [(line, note) for line in told]
    for heading, section in (
        ("Preference signals:", corrections(card, note)),
        ("Reusable knowledge:", knowledge(card, note)),
        ("Failures and how to do differently:", [(f"- {said}", one) for one, said in learnt.items()]),
        ("References:", references(card, note, learnt)),
    ):
        if section:
            body += [("", note), (heading, note), *section]
    return _within(body, RAW_MEMORY_BYTES_MAX)


def rollout_summary(
    card: dict[str, Any], note: str, row: dict[str, str], learnt: dict[str, str], common: Container[str] = ()
) -> list[Line]:
    """`rollout_summaries/<rollout>_<slug>.md`."""
    word, because = outcome(card)
    about = title(card, common)
    head = [
        f"session_id: {row['rollout_id']}",
        f"updated_at: {row['updated_at']}",
        f"rollout_path: {row['rollout_path']}",
        f"terminal_state: {row['terminal_state']}",
        "",
        f"# {about}",
        "",
        f"Rollout context: {_context(card)}",
        "",
        f"## Task 1: {about}",
        "",
        f"Outcome: {word} ({because})",
    ]
    body = [(line, note) for line in head]
    for heading, section in (
        ("Preference signals:", corrections(card, note)),
        ("Key steps:", steps(card, note)),
        ("Failures and how to do differently:", [(f"- {said}", one) for one, said in learnt.items()]),
        ("Reusable knowledge:", knowledge(card, note)),
        ("References:", references(card, note, learnt)),
    ):
        if section:
            body += [("", note), (heading, note), ("", note), *section]
    return _within(body, SUMMARY_BYTES_MAX)


def task_group(card: dict[str, Any]) -> str:
    """The family that the rollout belongs to: its memory, and the agent that worked where it is known."""
    return f"{card['memory']} / {card['agents'][0]}" if card["agents"] else card["memory"]


def words(card: dict[str, Any]) -> list[str]:
    """The rollout's own search words."""
    return [text.inline(word, 48) for word, _ in card["keywords"][:KEYWORDS_MAX]]


def _context(card: dict[str, Any]) -> str:
    many = f"{card['runs_total']} runs, the last with" if card["runs_total"] > 1 else "1 run,"
    said = [f"{many} {card['calls']} tool call{'' if card['calls'] == 1 else 's'}"]
    if card["agents"]:
        said.append("agents " + " → ".join(card["agents"]))
    if card["files"]:
        said.append("files " + ", ".join(f"`{text.inline(name, 120)}`" for name in card["files"][:6]))
    return "; ".join(said) + "."


def corrections(card: dict[str, Any], note: str) -> list[Line]:
    """What the user said that made the agent do something again: in the user's words, after what they answered."""
    return [(f"- {correction(one)}", note) for one in card["corrections"]]


def correction(one: dict[str, Any], said: str | None = None) -> str:
    """A correction with what it was an answer to and what the agent then changed."""
    quote = text.inline(said if said is not None else one["text"], 280)
    if one.get("repeat") and not one.get("head"):
        return f'the user said twice: "{quote}"'
    changed = (
        f" with another {', '.join(f'`{text.inline(path, 80)}`' for path in one['paths'])}"
        if one.get("paths")
        else ""
    )
    head = text.inline(one.get("head", "a tool"), 80)
    return f'after `{head}`, the user said: "{quote}" -> `{head}` was called again{changed}'


def steps(card: dict[str, Any], note: str) -> list[Line]:
    """What was asked, in order, what was left open, and the answer."""
    out = []
    asked = {one["id"]: one for one in [card["first"], *card["requests"]] if one}
    for one in asked.values():
        out.append((f'- the user asked: "{text.inline(one["text"], 240)}"', note))
    if card["verified"]:
        known = card["verified"].get("failed") is not None or card["verified"].get("earlier")
        failed = " It had failed before." if known else ""
        check = text.inline(card["verified"]["call"], VALUE_CHARS_MAX)
        out.append((f"- check: `{check}` passed after the last change.{failed}", note))
    if card["answer"]:
        out.append((f'- the agent ended with: "{text.inline(card["answer"]["text"], 300)}"', note))
    return out + unfinished(card, note)


def unfinished(card: dict[str, Any], note: str) -> list[Line]:
    """Calls and turns without an answer."""
    out = []
    for one in card["open"]:
        if "call" in one:
            out.append((f"- not answered yet: `{text.inline(one['call'], VALUE_CHARS_MAX)}`", note))
        elif card["state"] != "completed":
            out.append(
                (f'- the user\'s last turn has no answer yet: "{text.inline(one["turn"], 240)}"', note)
            )
    return out


def knowledge(card: dict[str, Any], note: str) -> list[Line]:
    """Commands that worked."""
    out = []
    for one in reversed(card["facts"][-8:]):
        where = f" in `{text.inline(one['where'], 120)}`" if one.get("where") else ""
        times = f" ({one['count']}×)" if one["count"] > 1 else ""
        out.append((f"- `{text.inline(one['command'], VALUE_CHARS_MAX)}` worked{where}{times}", note))
    return out


def references(card: dict[str, Any], note: str, learnt: Container[str]) -> list[Line]:
    """Strings to look for, as they stood in the run: messages of the failures that are told, and files."""
    out = []
    failed = [one for one in reversed(card["failures"]) if _failure_note(one) in learnt]
    for one in failed[:FAILURES_SHOWN_MAX]:
        what = f"`{text.inline(one['call'], VALUE_CHARS_MAX)}`" if one.get("call") else f"`{one['head']}`"
        where = f"run {one['evidence']['run']}, item {one['evidence']['item']}"
        out.append((f'- {what} answered "{text.inline(one["message"], 200)}" ({where})', note))
    if card["files"]:
        out.append(
            ("- files: " + ", ".join(f"`{text.inline(name, 120)}`" for name in card["files"][:10]), note)
        )
    return out


def _failure_note(one: dict[str, Any]) -> str:
    return _notes.note_id("failure", {"head": one["head"], "key": one["key"]})


def resume(card: dict[str, Any], note: str) -> list[Line]:
    """What whoever continues this rollout needs first: bullets for `memory_summary.md`."""
    out: list[Line] = []
    asked = last_request(card)
    if asked:
        out.append((f'- last request: "{text.inline(asked["text"], 300)}"', note))
    out += unfinished(card, note)
    _, because = outcome(card)
    out.append((f"- state: {because}", note))
    failing = card.get("last_failing")
    if failing:
        what = f"`{text.inline(failing['call'], VALUE_CHARS_MAX)}`"
        out.append(
            (
                f'- last failing call, not seen to work since: {what}: "{text.inline(failing["message"], 160)}"',
                note,
            )
        )
    if card["files"]:
        out.append(
            ("- files: " + ", ".join(f"`{text.inline(name, 80)}`" for name in card["files"][:8]), note)
        )
    if card["answer"]:
        out.append((f'- the agent\'s last words: "{text.inline(card["answer"]["text"], 200)}"', note))
    kept: list[Line] = []
    for line in out:
        if text.token_estimate("\n".join(said for said, _ in [*kept, line])) <= RESUME_TOKENS_MAX:
            kept.append(line)
    return kept


def _within(body: list[Line], limit: int) -> list[Line]:
    """`body` up to `limit` bytes, whole lines only."""
    size, kept = 0, []
    for line, note in body:
        size += len(line.encode()) + 1
        if size > limit:
            break
        kept.append((line, note))
    while kept and (not kept[-1][0] or re.fullmatch(r"[A-Z][a-z ]+:", kept[-1][0])):
        kept.pop()
    return kept


def keywords_of(card: dict[str, Any], spread: dict[str, int], rollouts: int) -> list[str]:
    """The words that tell this rollout from the others."""
    own = {word: weight for word, weight in card["keywords"]}
    return [text.inline(word, 48) for word in _keywords.best(own, spread, rollouts, KEYWORDS_MAX)]
