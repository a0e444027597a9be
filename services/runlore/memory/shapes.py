"""The shapes of secrets that Runlore knows itself: tokens with a prefix, places, and values that a name makes secret.

Every shape begins with a fixed prefix, stands in a fixed place (a URL's user part, an authorization header) or
behind a name that says what it is, so that ordinary text, hashes, ids and base64 stay as they are: a false hit
destroys knowledge, and nobody can put it back. A secret without shape, place or name (a password in prose) is
not found. What vendors' tokens look like beyond these is the library's (`memory/detectors.py`).

Raise `redact.SHAPES_VERSION` with every change here: `runlore rescan` finds by it what was kept under older ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Kind, what a text holds at least if the shape is in it (in any case, where letters are small), the shape.
# A group named `keep` stays in front of the placeholder, one named `tail` behind it.
TABLE: list[tuple[str, tuple[str, ...], str]] = [
    (
        "private-key",
        ("PRIVATE KEY",),
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
        # To its end, however it is quoted; where there is none, as far as one string goes.
        r"(?:(?:(?!-----BEGIN).){0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|[^\"'`<>{}]*)",
    ),
    ("openai-key", ("sk-",), r"(?<![A-Za-z0-9_-])sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,}"),
    ("anthropic-key", ("sk-ant-",), r"(?<![A-Za-z0-9_-])sk-ant-[A-Za-z0-9_-]{20,}"),
    (
        "openai-key",
        ("sk-",),
        r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}(?![A-Za-z0-9_-])",
    ),
    ("aws-key-id", ("AKIA", "ASIA"), r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    # The 40 characters alone are also a git hash in base64; only the name in front makes them a secret.
    (
        "aws-secret",
        ("access_key", "accesskey", "session_token", "sessiontoken", "secretaccess", "secret_access"),
        r"(?P<keep>(?i:aws_?(?:secret_?access_?key|session_?token)|SecretAccessKey|SessionToken)"
        r"\\{0,3}['\"]?\s{0,4}[:=]\s{0,4}\\{0,3}['\"]?)[A-Za-z0-9/+=]{40,2000}",
    ),
    (
        "github-token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})(?![A-Za-z0-9_])",
    ),
    ("gitlab-token", ("glpat-",), r"(?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{20,64}(?![A-Za-z0-9_-])"),
    ("slack-token", ("xox",), r"(?<![A-Za-z0-9-])xox[abeoprs]-(?:[A-Za-z0-9]+-){0,4}[A-Za-z0-9]{10,}"),
    (
        "slack-webhook",
        ("hooks.slack",),
        r"(?P<keep>https://hooks\.slack\.com/services/)T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}",
    ),
    ("google-key", ("AIza",), r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("google-token", ("ya29.",), r"(?<![A-Za-z0-9_.-])ya29\.[A-Za-z0-9_-]{20,}"),
    (
        "stripe-key",
        ("k_live_", "k_test_", "whsec_"),
        r"(?<![A-Za-z0-9_])(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}",
    ),
    ("npm-token", ("npm_",), r"(?<![A-Za-z0-9_])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9_])"),
    ("pypi-token", ("pypi-Ag",), r"(?<![A-Za-z0-9_-])pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{40,}"),
    ("huggingface-token", ("hf_",), r"(?<![A-Za-z0-9_])hf_[A-Za-z]{34}(?![A-Za-z0-9_])"),
    # A JSON Web Token: a base64url JSON object, twice, and a signature.
    ("jwt", ("eyJ",), r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}"),
    # Only in a header's place, and only with a digit: "Bearer authentication" is prose.
    (
        "bearer",
        ("earer",),
        r"(?P<keep>(?<![A-Za-z])[Bb]earer\s{1,4})(?=[A-Za-z._~+/-]{0,200}[0-9])[A-Za-z0-9._~+/-]{20,}={0,2}",
    ),
    (
        "basic-auth",
        ("asic",),
        r"(?P<keep>(?i:authorization)\\{0,3}['\"]?\s{0,4}[:=]\s{0,4}\\{0,3}['\"]?[Bb]asic\s{1,4})[A-Za-z0-9+/]{8,}={0,2}",
    ),
    # The user stays: whose password it was is knowledge, and the same password elsewhere gets the same hash.
    (
        "url-credentials",
        ("://",),
        r"(?P<keep>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/@:'\"<>\[\]{}$]{0,200}:)"
        r"[^\s/@'\"<>\[\]{}$]{1,200}(?P<tail>@[A-Za-z0-9\[])",
    ),
    # Our own: of a project, of who administers, of an invitation.
    (
        "runlore-key",
        ("rl_", "rla_", "rli_"),
        r"(?<![A-Za-z0-9_])rl[ai]?_[0-9a-f]{32}_[0-9a-f]{64}(?![A-Za-z0-9_])",
    ),
    (
        "url-signature",
        ("ignature=", "sig="),
        r"(?P<keep>[?&;](?:X-Amz-Signature|X-Goog-Signature|Signature|sig)=)[A-Za-z0-9%+/=_-]{20,2000}",
    ),
    (
        "curl-credentials",
        ("curl",),
        r"(?P<keep>\bcurl\b[^\n|]{0,500}?\s(?:-u|--user)(?:\s|=)?['\"]?[^\s:'\"$<{]{1,100}:)[^\s'\"$<{\\]{4,200}",
    ),
    (
        "netrc-password",
        ("login",),
        r"(?P<keep>\blogin\s{1,10}\S{1,100}\s{1,10}password\s{1,10})[^\s'\"\\<$]{4,200}",
    ),
]
PATTERNS = [(kind, needles, re.compile(pattern, re.DOTALL | re.ASCII)) for kind, needles, pattern in TABLE]
FOLDED = ("aws-secret",)
"""Kinds whose needles are looked for without regard to case."""

STEMS = ("passw", "passphrase", "pwd", "secret", "token", "credential", "key")
"""What a name that says secret holds: one cheap look for each, that nearly every text fails."""
_KEY_OF = re.compile(
    r"(?i:api|access|auth|account|private|secret|signing|encryption|master|service|shared)[_.\-\s]?$",
    re.ASCII,
)
_WORD = r"(?i:passw(?:or)?d|passphrase|pwd|secret|token|credentials?|key)"
_VALUE = r"[^\s'\"`\\,;]{8,512}"
NAMED = re.compile(
    rf"{_WORD}(?:[_-]?(?i:base|value))?(?:\\{{0,7}}['\"`])?\s{{0,20}}(?::=|=>|[:=])\s{{0,20}}"
    rf"(?:(?P<quote>\\{{0,7}}['\"`])(?P<quoted>[^'\"`\\\s]{{8,512}})(?P=quote)|(?P<bare>{_VALUE}))",
    re.ASCII,
)
"""From a stem on: `name = value`, `"name": "value"`, also escaped in a string of a string."""
FLAG = re.compile(rf"{_WORD}(?:\s|['\"],\s?['\"])(?P<bare>{_VALUE})", re.ASCII)
"""From a stem on: `--api-token value`, in a shell's line or in a list of arguments."""
_FLAG_START = re.compile(r"(?<!\S)['\"]?--(?:[a-z]+-){0,4}$|['\"]--(?:[a-z]+-){0,4}$", re.ASCII)
_STEM = re.compile("|".join(STEMS), re.ASCII | re.IGNORECASE)
_BEFORE_CHARS = 60

_PLACEHOLDER = re.compile(
    r"(?i)x{4}|\*{3}|\.{3}|your|changeme|change_me|replace|example|dummy|placeholder|redacted|^\$|^%|^<|\$\{|\{\{|<[a-z_-]+>"
)
_WORDS = re.compile(r"[A-Za-z]+(?:[-_.:/@][A-Za-z]+)*[-_.]?[0-9]{0,4}")
"""An identifier, a file's name, a plain word: what stands where a program names a secret and does not hold it."""
_CODE = re.compile(r"[)\]}]|[A-Za-z_][\w.]*[(\[]|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$|&[A-Za-z_]")
_REFERENCE = re.compile(
    r"[~.]{0,2}/|[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://|arn:|projects/|sha\d{3}[-:]|\["
)
_SAID = frozenset({"pass", "passwd", "password", "pwd"})
"""What a manual calls a password: `https://user:pass@host`."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BARE_STOPS = re.compile(r"[)}\]>.:]+$")


def folded(value: str) -> str | None:
    """`value` in small letters, where each stays in its place; None where one does not."""
    small = value.lower()
    return small if len(small) == len(value) else None


def named(value: str, small: str | None) -> Iterator[tuple[int, int]]:
    """Where a value stands that its name makes a secret."""
    if small is None:
        starts: Iterable[int] = (match.start() for match in _STEM.finditer(value))
    else:
        starts = (at for stem in STEMS for at in _all(small, stem))
    for at in starts:
        before = value[max(0, at - _BEFORE_CHARS) : at]
        is_key = value[at : at + 3].lower() == "key"
        # `secret:` behind a colon or a slash is a part of a path or of a resource's name.
        match = (
            None
            if before[-1:] in (":", "/") or (is_key and not _KEY_OF.search(before))
            else NAMED.match(value, at)
        )
        if match is None and "--" in before and _FLAG_START.search(before):
            match = FLAG.match(value, at)
        if match is not None and _is_of_placeholder(before, match):
            continue
        found = match and _span(value, match, in_query=_QUERY.search(before) is not None)
        if found:
            yield found


def _is_of_placeholder(before: str, match: re.Match[str]) -> bool:
    """Whether it is a piece of a placeholder, cut off before or behind: `…token:0123456789ab]`."""
    if _OPENED.search(before):
        return True
    bare = match.groupdict().get("bare") or ""
    return (
        _HASH.fullmatch(_BARE_STOPS.sub("", bare)) is not None
        and match.string[match.start("bare") - 1] == ":"
    )


_OPENED = re.compile(r"\[redacted:[a-z0-9-]*$")
_HASH = re.compile(r"[0-9a-f]{4,12}")
_QUERY = re.compile(r"[?&][\w.-]*$", re.ASCII)


def _all(value: str, stem: str) -> Iterator[int]:
    at = value.find(stem)
    while at >= 0:
        yield at
        at = value.find(stem, at + len(stem))


def _span(value: str, match: re.Match[str], *, in_query: bool) -> tuple[int, int] | None:
    """The value behind a name, without what ends a sentence or a list; None where it is no secret."""
    parts = match.groupdict()
    is_quoted = parts.get("quoted") is not None
    start, end = match.span("quoted" if is_quoted else "bare")
    if not is_quoted:
        word = value[start:end].partition("&")[0] if in_query else value[start:end]
        end = start + len(_BARE_STOPS.sub("", word))
        if end - start < 8 or value[end : end + 1] in ("(", "["):
            return None
    return (start, end) if is_secret_value(value[start:end]) else None


def is_placeholder(token: str) -> bool:
    """Whether a token is one of a manual: `ghp_xxxx…` (all of one letter or two), `REPLACE_ME`."""
    if len(set(token[-16:].lower())) <= 2 or token.lower() in _SAID:
        return True
    return _WORDS.fullmatch(token) is not None and _PLACEHOLDER.search(token) is not None


def is_secret_value(value: str) -> bool:
    """Whether what stands behind a secret's name is one: no placeholder, code, reference, word or number."""
    if _PLACEHOLDER.search(value) or _CODE.match(value) or _REFERENCE.match(value) or _UUID.fullmatch(value):
        return False
    if _WORDS.fullmatch(value) or not any(char.isdigit() for char in value):
        return False
    return any(char.isalpha() for char in value) and len(set(value)) >= 6
