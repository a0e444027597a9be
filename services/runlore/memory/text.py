"""Text that may have been written by anybody, made safe to stand inside a line of a memory file.

Whatever a tool or a user wrote becomes one line of visible characters: no line break of any kind, no
invisible or direction-changing character, no fence, rule or heading, no token of a chat template. So a quotation
can never start a line, close a section, or end the block that the SDK wraps around `memory_summary.md`.
"""

from __future__ import annotations

import re

# Every control character and every Unicode line or paragraph separator, with the blanks around it.
_BLANKS = re.compile("[\\s\\x00-\\x1f\\x7f-\\x9f\u2028\u2029]+")
# Format characters that hide or reorder text, tag characters, and lone surrogates (which UTF-8 can't hold).
# The joiners U+200C and U+200D stay: Persian, Hindi and emoji are misspelt without them.
_HIDDEN = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")
# Three of one mark draw a fence, a rule or a heading; one of it says as much.
_RULES = re.compile(r"([=\-#*~_<>|+`])\1{2,}")
# Chat templates' own tokens: an engine may take them for the end of a message, wherever they stand.
_TEMPLATE = re.compile(r"<\|([^|<>\n]{1,40})\|>|\[(/?)(INST)\]|<<(/?)(SYS)>>")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？؟۔।]|[.!?]$")
_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+|[^\x00-\x7f]|[^\sA-Za-z0-9]|\n")

SCAN_CHARS_MAX = 20_000
"""Characters of one text that are looked at at all, when a line is made of it."""


def inline(text: str, limit: int) -> str:
    """`text` as one safe line of at most `limit` characters, cut at a sentence or a word."""
    text = text[:SCAN_CHARS_MAX]
    if not (text.isascii() and text.isprintable()):
        text = _SURROGATE.sub("\ufffd", _HIDDEN.sub("", _BLANKS.sub(" ", text)))
    text = _RULES.sub(r"\1", text).replace("`", "'")
    if "<" in text or "[" in text:
        text = _TEMPLATE.sub(lambda match: f"({''.join(one for one in match.groups() if one)})", text)
    return clip(" ".join(text.split()), limit)


def plain(text: str, limit: int) -> str:
    """`inline` for a place where a Markdown marker would count: a heading, or the first words of a line."""
    return inline(text, limit).lstrip("#>*-+=~ \t") or inline(text, limit)


def statement(text: str, limit: int) -> str:
    """`plain`, but what stands between single backticks stays code, where every one of them has its other."""
    made = plain(text, limit)
    stand_in = "\ue000"
    if text.count("`") % 2 or "``" in text or stand_in in text:
        return made
    kept = plain(text.replace("`", stand_in), limit)
    # Cut, one of a pair may be missing.
    return kept.replace(stand_in, "`") if kept.count(stand_in) % 2 == 0 else made


def visible_lines(text: str) -> list[str]:
    """The lines of `text`, at any kind of line break, without what hides or reorders characters."""
    if not (text.isascii() and text.isprintable()):
        text = _SURROGATE.sub("\ufffd", _HIDDEN.sub("", text))
    return [_BLANKS.sub(" ", line) if _CONTROLS.search(line) else line for line in text.splitlines()]


def clip(text: str, limit: int) -> str:
    """`text`, or its beginning up to a sentence's end (else a word's) within `limit` characters, and an ellipsis."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    ends = [match.end() for match in _SENTENCE_END.finditer(head)]
    if ends and ends[-1] >= limit // 2:
        return head[: ends[-1]] + "…"
    space = head.rfind(" ")
    return (head[:space] if space >= limit // 2 else head).rstrip(" ,;:") + "…"


def token_estimate(text: str) -> int:
    """How many model tokens `text` is, estimated from above.

    Counted without a tokenizer: four letters or three digits a token (common words of up to eight letters
    are one token in practice), every punctuation mark, line break and non-ASCII character one of its own,
    and two for a character outside the basic plane.
    """
    total = 0
    for match in _TOKEN.finditer(text):
        piece = match.group()
        if len(piece) == 1:
            total += 2 if piece > "\uffff" else 1
        elif piece[0] <= "9":
            total += -(-len(piece) // 3)
        else:
            total += -(-len(piece) // 4)
    return total


def slug(text: str, limit: int = 40) -> str:
    """A file-name part of `text` in the SDK's alphabet (`[a-z0-9][a-z0-9_-]{0,79}`); "" if nothing is left."""
    words = re.sub(r"[^a-z0-9]+", "-", text[:400].lower()).strip("-")
    if len(words) > limit:
        words = words[:limit].rpartition("-")[0] or words[:limit]
    return words.strip("-")
