"""Secrets out of records and notes: a small detector for token shapes that nothing else has.

Every shape begins with a fixed prefix or stands in a fixed place (a URL's user part, an authorization
header), so that ordinary text, hashes, ids and base64 stay as they are: a false hit destroys knowledge, and
nobody can put it back. A secret without a shape of its own (a password in prose) is not found.
"""

from __future__ import annotations

import re
from collections import Counter

from runlore.events import records

_B64 = r"[A-Za-z0-9+/=_-]"
# Kind, pattern. A group named `keep` stays in front of the placeholder, one named `tail` behind it.
_SHAPES: list[tuple[str, str]] = [
    (
        "private-key",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
        r".*?(?:-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    ),
    ("openai-key", r"(?<![A-Za-z0-9_-])sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,}"),
    ("anthropic-key", r"(?<![A-Za-z0-9_-])sk-ant-[A-Za-z0-9_-]{20,}"),
    (
        "openai-key",
        r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}(?![A-Za-z0-9_-])",
    ),
    ("aws-key-id", r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    # The 40 characters alone are also a git hash in base64; only the name in front makes them a secret.
    (
        "aws-secret",
        r"(?P<keep>(?i:aws_?(?:secret_?access_?key|session_?token)|SecretAccessKey|SessionToken)"
        r"['\"]?\s{0,4}[:=]\s{0,4}['\"]?)[A-Za-z0-9/+=]{40,2000}",
    ),
    (
        "github-token",
        r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})(?![A-Za-z0-9_])",
    ),
    ("gitlab-token", r"(?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{20,64}(?![A-Za-z0-9_-])"),
    ("slack-token", r"(?<![A-Za-z0-9-])xox[abeoprs]-(?:[A-Za-z0-9]+-){0,4}[A-Za-z0-9]{10,}"),
    (
        "slack-webhook",
        r"(?P<keep>https://hooks\.slack\.com/services/)T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}",
    ),
    ("google-key", r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("google-token", r"(?<![A-Za-z0-9_.-])ya29\.[A-Za-z0-9_-]{20,}"),
    ("stripe-key", r"(?<![A-Za-z0-9_])(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}"),
    ("npm-token", r"(?<![A-Za-z0-9_])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9_])"),
    ("pypi-token", r"(?<![A-Za-z0-9_-])pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{40,}"),
    # Our own: of a project, of who administers, of an invitation.
    ("runlore-key", r"(?<![A-Za-z0-9_-])rl[ai]?_[0-9a-f]{32}_[0-9a-f]{64}(?![A-Za-z0-9_-])"),
    ("huggingface-token", r"(?<![A-Za-z0-9_])hf_[A-Za-z]{34}(?![A-Za-z0-9_])"),
    # A JSON Web Token: a base64url JSON object, twice, and a signature.
    ("jwt", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}"),
    # Only in a header's place, and only with a digit: "Bearer authentication" is prose.
    (
        "bearer",
        r"(?P<keep>(?<![A-Za-z])[Bb]earer\s{1,4})(?=[A-Za-z._~+/-]{0,200}[0-9])[A-Za-z0-9._~+/-]{20,}={0,2}",
    ),
    (
        "basic-auth",
        r"(?P<keep>(?i:authorization)['\"]?\s{0,4}[:=]\s{0,4}['\"]?[Bb]asic\s{1,4})[A-Za-z0-9+/]{8,}={0,2}",
    ),
    (
        "url-credentials",
        r"(?P<keep>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://)"
        r"(?!\[redacted:)[^\s/@:'\"<>\[\]{}$]{1,200}:(?!\[redacted:)[^\s/@'\"<>\[\]{}$]{1,200}(?P<tail>@[A-Za-z0-9\[])",
    ),
]
_PATTERNS = [(kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _SHAPES]
# One cheap look that nearly every string fails: each shape holds one of these.
_HINT = re.compile(
    r"(?<![A-Za-z0-9])sk-|AKIA|ASIA|PRIVATE KEY|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|hooks\.slack|AIza|ya29\."
    r"|rl[ai]?_[0-9a-f]{32}_|k_(?:live|test)_|whsec_|npm_|pypi-Ag|hf_|eyJ|[Bb]earer\s|[Bb]asic\s|://[^\s/@]{1,400}@|(?i:secret_?access_?key|session_?token)"
)
_SPELLED = re.compile(r"\\u(?:00[0-7]|017[Ff]|212[Aa])")
"""ASCII as an escape, and the two letters beyond it that count as `s` and `k` where case does not count."""
_NEEDLES = (
    *("AKIA", "ASIA", "PRIVATE KEY", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox"),
    *("hooks.slack", "AIza", "ya29.", "k_live_", "k_test_", "whsec_", "npm_", "pypi-Ag", "hf_", "eyJ"),
)
"""What a whole line, as JSON spells it, holds if any string in it passes `_HINT`: these, or what `_may_hold` asks."""
_RAW_HINTS = (
    ("sk-", re.compile(r"(?:(?<![A-Za-z0-9])|\\.{1,6}(?<=[A-Za-z0-9]))sk-")),
    ("://", re.compile(r"://[^\s/@]{1,2400}@")),
    *((name, re.compile(rf"{name}[0-9a-f]{{32}}_")) for name in ("rl_", "rla_", "rli_")),
    ("earer", re.compile(r"[Bb]earer[\s\\]")),
    ("asic", re.compile(r"[Bb]asic[\s\\]")),
)
"""A cheap needle, and what to look at where it is found. A backslash may spell any white space."""


def line(record_line: str) -> tuple[str, dict[str, int]]:
    """`record_line` with every secret as `[redacted:<kind>]`, and how many of each kind there were.

    No other byte changes, and a second pass changes nothing.
    """
    if not _may_hold(record_line):
        return record_line, {}
    counts: Counter[str] = Counter()
    out = records.map_strings(record_line, lambda value: _redact(value, counts))
    return out, dict(sorted(counts.items()))


def _may_hold(raw: str) -> bool:
    """Whether any JSON string in `raw` can pass `_HINT`: a look at the whole, ten times cheaper than at each string.

    Where letters may be spelled as escapes (`\\u0073k-`, `:\\/\\/`) it says yes without looking.
    """
    if not raw.isascii() or "\\/" in raw:
        return True
    if "\\u" in raw and _SPELLED.search(raw):
        return True
    if any(needle in raw for needle in _NEEDLES):
        return True
    if any(needle in raw and pattern.search(raw) for needle, pattern in _RAW_HINTS):
        return True
    folded = raw.lower()
    return any(name in folded for name in ("access_key", "accesskey", "session_token", "sessiontoken"))


def text(value: str) -> str:
    """`value` with every secret as `[redacted:<kind>]`."""
    return _redact(value, Counter())


def _redact(value: str, counts: Counter[str]) -> str:
    if _HINT.search(value) is None:
        return value
    for kind, pattern in _PATTERNS:
        value = pattern.sub(lambda match, kind=kind: _placeholder(match, kind, counts), value)
    return value


def _placeholder(match: re.Match[str], kind: str, counts: Counter[str]) -> str:
    counts[kind] += 1
    parts = match.groupdict()
    return f"{parts.get('keep') or ''}[redacted:{kind}]{parts.get('tail') or ''}"
