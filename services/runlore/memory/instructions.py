"""Which texts read like an instruction to whoever reads memory: what the guard `instruction` goes by. Pure.

    text ─folded─▶ signals ─weighed by where the text came from─▶ held, or not

Structure first: text that is hidden, a chat template's tokens, speakers' prefixes, commands piped from the network,
data sent away, prose in base64. Then families of words (`instruction_words`). A strong signal is one that notes of
work have no use for; a weak one (the reader is named, it is to hold for ever) is common in honest documentation, so
two kinds of it are needed, and they count only where a tool said it: what a person said is a preference, and what an
agent wrote itself is what memory is for. It shares no code with what renders notes.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from runlore.memory import instruction_words as words

TOOL, AGENT, USER = "tool", "agent", "user"
"""Where a text came from."""
SCAN_CHARS_MAX = 4_000
"""Characters of one line that are looked at; a longer one is no line of memory (guard `format`)."""
BASE64_CHARS_MIN, BASE64_WORDS_MIN = 32, 4
GAP = r"[^\n.!?。！？;]{0,60}?"
"""What may stand between a verb and its object: no end of a sentence."""


class Signal(NamedTuple):
    """One reason to take a text for an instruction."""

    kind: str
    is_strong: bool
    excerpt: str
    """What showed it, folded. It is never put into a message: it may be what was to be kept away."""


# --- folding ----------------------------------------------------------------------------------------

_ZERO_WIDTH = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2060-\u2064\u206a-\u206f\ufeff\uffa0"
)
_INVISIBLE = re.compile(
    f"[{_ZERO_WIDTH}\u200c\u200d\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)
_WORD = re.compile(r"\w+")
_SPELT = re.compile(r"\b(?:\w{1,14}[.*_|/~-] ?){3,}\w{1,14}")


def cited(said: Collection[str]) -> str:
    """Where a statement came from that cites these: a tool's words alone count least, the person's alone most."""
    if set(said) == {USER}:
        return USER
    return TOOL if TOOL in said and USER not in said else AGENT


def folded(text: str) -> str:
    """`text` as it is compared: compatibility forms, lower case, blanks as one, nothing invisible, no spelling out."""
    return _apart(_plain(text))


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return " ".join(text.casefold().replace("’", "'").split())


def likened(text: str) -> str:
    """`folded`, with each word in Latin letters that looks like one: no marks above letters, none of other scripts.

    Only words that become Latin as a whole, so that words of other languages stay what they are.
    """
    if text.isascii():
        return folded(text)
    shown = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text))
    shown = "".join(char for char in shown if not unicodedata.combining(char))
    return _apart(_plain(_WORD.sub(_latin, shown)))


def _latin(match: re.Match[str]) -> str:
    found = match.group().translate(words.LOOKALIKES)
    return found if found.isascii() else match.group()


def _apart(plain: str) -> str:
    # Words kept apart by dots or strokes, so that no phrase stands there.
    return _SPELT.sub(lambda match: " ".join(re.split(r"[.*_|/~-] ?", match.group())), plain)


# --- structure --------------------------------------------------------------------------------------

_FLAG = re.compile("\U0001f3f4[\U000e0061-\U000e007a0-9\U000e0030-\U000e0039]+\U000e007f")
_HIDDEN = re.compile(
    "[\U000e0000-\U000e007f]{2}|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4}|[\u202a-\u202e]|[a-zA-Z][\u200c\u200d][a-zA-Z]"
)
_INSIDE = re.compile(f"(?<=\\w)[{_ZERO_WIDTH}](?=\\w)")
_ROLES = r"system|assistant|developer|system-reminder|instructions?|human|user|admin"
_PROSE = r"\s*[\"']?\w[\w']*(?:[ ,:]+\w[\w']*){3}"
TEMPLATE = (
    r"<\|[a-z0-9_ /-]{2,40}\|>",
    r"\[/?inst\]|<</?sys>>|</?(?:start|end)_of_turn>",
    rf"<(?:{_ROLES})>{_PROSE}",
    r"</(?:tool_response|tool_result|tool_call|function_results?|function_calls?|untrusted\w*)>",
    r"(?:^|\s)#{1,6} ?(?:instruction|response|system)s?: ?\w",
    r"(?:^|[\s\"(])human: .{3,300}[\s\"]assistant: ",
)
_SPEAKER = re.compile(
    rf"(?:^|[\"'(\[>.!?#*/|-]\s*)(?:{_ROLES}|ai)(?: (?:note|message|prompt|notice|update|override))?: ?\w"
)
_SHELL = r"(?:sudo (?:-\w+ )?)?(?:ba|z|da|k|fi)?sh\b|python[\d.]*|node\b|perl\b|ruby\b|php\b"
FETCHED = (
    rf"\b(?:curl|wget|fetch)\b[^|\n;]{{3,300}}\| ?(?:{_SHELL})",
    r"\b(?:ba|z|da)?sh (?:<\(|-c [\"']?\$\()\s*(?:curl|wget)",
    r"\b(?:eval|source|exec)\b [\"'(<$`]{0,4}(?:curl|wget)\b",
    r"\b(?:iwr|irm|invoke-webrequest|invoke-restmethod)\b.{3,200}\| ?(?:iex|invoke-expression)",
    r"\bexec\(.{0,40}urlopen\(",
)
SENT = (
    r"\b(?:env|printenv|history|cat [~./]?\S*(?:\.ssh|\.env|\.aws|netrc|id_rsa|/etc/(?:passwd|shadow))\S*)"
    r"\b.{0,60}\| ?(?:\w+ ?(?:-\w+ )?\| ?)?(?:curl|wget|nc|ncat)\b",
    r"\bcurl\b.{0,120}(?:-d|--data\S*|-f|--form|-t|--upload-file) ?\S{0,12}@(?:~|\.env|/etc/|\S*\.ssh|\S*\.aws)",
    r"https?://\S+[?&][\w-]+=(?:\$\{?\w*(?:key|token|secret|pass)|[{<](?:conversation|chat|history|secret|token|password|env)\w*[}>])",
    r"!\[[^\]]{0,80}\]\(https?://[^)\s]*[?&=/][^)\s]*[{$<]",
    rf"\b(?:{words.SEND})\b.{{0,60}}?(?:{words.SECRET}).{{0,60}}?(?:https?://|\S+@\S+\.\w)",
    rf"(?:{words.SECRET}).{{0,30}}(?:{words.SEND}).{{0,20}}(?:https?://|\S+@\S+\.\w)",
)


def _any(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{one})" for one in patterns))


def _overrides() -> Iterable[str]:
    for verb, what in words.OVERRIDE.values():
        start = r"\b" if verb[0].isascii() or "а" <= verb[-1] <= "я" else ""
        yield rf"{start}(?:{verb}){GAP}(?:{what})"
        if verb[0] > "~" or verb.startswith("yok"):
            # The object stands first in Japanese, Korean, Hindi and Turkish, and may in Chinese and Russian.
            yield rf"(?:{what}){GAP}(?:{verb})"


STRONG = {
    "template": _any(TEMPLATE),
    "fetched": _any(FETCHED),
    "sent": _any(SENT),
    "override": _any([*_overrides(), *words.VOID]),
    "conceal": _any(one for row in words.CONCEAL.values() for one in row),
}
WEAK = {
    "speaker": _SPEAKER,
    "lasting": _any(words.LASTING.values()),
    "silent": _any(words.SILENT),
    "memorised": _any(words.MEMORISED),
    "posed": _any(words.POSED),
    "claimed": _any(words.CLAIMED),
    "reader": _any(words.READER.values()),
}
PATTERNS = STRONG | WEAK
_TRIGGERS: dict[str, tuple[str, ...]] = {
    "template": (
        *("<|", "inst]", "sys>", "_of_turn", "<system", "<assistant", "<developer", "<instruction", "<human"),
        *("<user", "<admin", "</", "# i", "# r", "# s", "#i", "#r", "#s", "human: "),
    ),
    "fetched": ("curl", "wget", "fetch", "iwr", "irm", "invoke-", "urlopen"),
    "sent": ("curl", "wget", "| nc", "ncat", "http", "@"),
    **words.TRIGGERS,
    "speaker": (":",),
}
"""Without one of these a text can not match: most texts have none, and comparing costs a tenth of matching."""
_BASE64 = re.compile(rf"(?<![\w+/=-])[A-Za-z0-9+/_-]{{{BASE64_CHARS_MIN},}}={{0,2}}")


@functools.lru_cache(maxsize=16_384)
def signals(text: str) -> tuple[Signal, ...]:
    """Every reason to take `text` for an instruction, the strong ones first.

    That it names the reader is looked for last, and only beside another weak signal: it costs most and is common.
    """
    text = text[:SCAN_CHARS_MAX]
    found = [Signal(kind, True, excerpt) for kind, excerpt in [*_hidden(text), *_encoded(text)]]
    plain = _plain(text)
    found += _matching(plain, found)
    if not text.isascii() and (like := likened(text)) != _apart(plain):
        known = {one.kind for one in found}
        found += [one for one in _matching(like, found) if one.kind not in known]
    return tuple(sorted(found, key=lambda one: not one.is_strong))


def _matching(plain: str, found: Sequence[Signal]) -> list[Signal]:
    """The signals of a folded text's words, beside those that were found before."""
    out: list[Signal] = []
    kinds = [kind for kind in PATTERNS if any(one in plain for one in _TRIGGERS[kind])]
    plain = _apart(plain) if kinds else plain
    for kind in kinds:
        if kind == "reader" and all(one.is_strong for one in [*found, *out]):
            continue
        match = PATTERNS[kind].search(plain)
        if match:
            out.append(Signal(kind, kind in STRONG, match.group().strip()))
    return out


def against(text: str, source: str) -> tuple[Signal, ...]:
    """The signals for which a text that came from `source` is held; none where it may be shown."""
    found = signals(text)
    if source == USER:
        return tuple(one for one in found if one.kind == "hidden")
    if any(one.is_strong for one in found):
        return tuple(one for one in found if one.is_strong)
    return found if source == TOOL and len(found) >= 2 else ()


def _hidden(text: str) -> Iterable[tuple[str, str]]:
    if text.isascii():
        return
    match = _HIDDEN.search(_FLAG.sub("", text))
    if match or len(_INSIDE.findall(text)) >= 3:
        yield "hidden", "invisible characters"


def _encoded(text: str) -> Iterable[tuple[str, str]]:
    for match in _BASE64.finditer(text):
        body = match.group().rstrip("=").replace("-", "+").replace("_", "/")
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
            told = raw.decode("utf-8")
        except (binascii.Error, ValueError):
            continue
        if told.isprintable() and len(re.findall(r"[^\W\d_]{2,} ", told + " ")) >= BASE64_WORDS_MIN:
            yield "encoded", folded(told)[:200]
