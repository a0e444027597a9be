"""Words to search by, in any script: what is frequent in one rollout and rare in the others.

There is no list of stop words. Names (identifiers, paths, error and tool names) weigh more by their form;
scripts without blanks between words are cut where the script changes, else into short pieces, which `grep`
finds as they stand.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

WORD_CHARS_MAX = 48
TEXT_CHARS_MAX = 4_000
"""Characters of one text that are searched for words."""

# Scripts without blanks between words, by how a word is told in them. Kana between two words of Chinese
# characters is mostly grammar, so it only separates; a run of katakana is a word; Thai, Lao and Khmer have no
# such hint and are cut into threes.
_UNSPACED = re.compile(
    "(?P<han>[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)|(?P<katakana>[\u30a1-\u30ff]{2,})"
    "|(?P<cut>[\u0e01-\u0e4e\u0e81-\u0ecd\u1780-\u17d3]{3,})"
)
_NOT_SPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff"
_PIECE = re.compile(rf"[^\W{_NOT_SPACED}]+(?:[._/@:-]+[^\W{_NOT_SPACED}]+)*", re.UNICODE)
_NAME = re.compile(r"(?=.{5})[^\W\d_].*[_./:@].*\w|[a-z][A-Z]|[A-Za-z]\d|\d[A-Za-z]")
_HASHED = re.compile(r"\[redacted:[a-z0-9-]{1,80}:[0-9a-f]{0,64}\]?")
"""A placeholder with its hash, whole or cut off: nobody searches by it, and a piece of it looks like a secret."""
_ONLY_NUMBER = re.compile(r"[\d.,:/_-]+")


def count(texts: Iterable[str]) -> Counter[str]:
    """Candidate words of `texts` with their weights."""
    found: Counter[str] = Counter()
    for body in texts:
        body = body[:TEXT_CHARS_MAX]
        if "[redacted:" in body:
            body = _HASHED.sub(" ", body)
        for piece in _PIECE.findall(body):
            _add(found, piece)
        if not body.isascii():
            for match in _UNSPACED.finditer(body):
                found.update(_words_of(match.group(), match.lastgroup or ""))
    return found


def _words_of(run: str, kind: str) -> list[str]:
    if kind == "katakana" or (kind == "han" and 2 <= len(run) <= 4):
        return [run]
    size = 2 if kind == "han" else 3
    return [run[start : start + size] for start in range(len(run) - size + 1)]


def _add(found: Counter[str], piece: str) -> None:
    if len(piece) < 3 or len(piece) > WORD_CHARS_MAX or _ONLY_NUMBER.fullmatch(piece):
        return
    if is_name(piece):
        found[piece] += 3
    elif len(piece) >= 4:
        found[piece.lower()] += 1


def is_name(word: str) -> bool:
    """Whether a word has the form of an identifier, a path, an id or an address."""
    return _NAME.search(word) is not None


def best(own: Mapping[str, int], spread: Mapping[str, int], rollouts: int, limit: int) -> list[str]:
    """The `limit` words of `own` (word -> weight) that tell this rollout from `rollouts` others.

    `spread` is in how many rollouts each word occurs.
    """
    scored = []
    for word, weight in own.items():
        share = spread.get(word, 1) / max(1, rollouts)
        if rollouts >= 4 and share > 0.4:
            continue
        rarity = 1.0 + math.log((1 + rollouts) / (1 + spread.get(word, 1)))
        # A longer word says more; how much more levels off.
        size = 1.0 if is_name(word) or not word.isascii() else min(len(word), 10) / 10
        scored.append((-(1 + math.log(max(1, weight))) * rarity * size, word))
    return [word for _, word in sorted(scored)[:limit]]
