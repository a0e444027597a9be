"""Ids: which rollout a run belongs to, and the file-safe alias of an id that is not file-safe.

**Rollout.** The SDK's order and its trimming, exactly (openai-agents 0.24, `run_internal/run_grouping.py`):
conversation id, else session id, else group id, each stripped and skipped when blank; else `run-<run id>`.
There is one namespace: conversation `abc`, session `abc` and group `abc` are the same rollout.

**Alias.** Keys, file names and logs hold only an id's alias. An id that is safe as a file name on every
common file system stands for itself; any other gets ``rl-<readable part>-<32 hex of its sha256>``. The
prefix `rl-` belongs to aliases alone: an id that begins with it is aliased too, so no two originals
share an alias. The SDK also takes upper-case letters verbatim; here they are aliased, because `Abc` and
`abc` would be one file on a case-insensitive file system.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from runlore import errors

ALIAS_PREFIX = "rl-"
ID_CHARS_MAX = 1024
"""Longest id accepted, in characters."""

_VERBATIM = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.ASCII)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
# Device names that Windows reserves, with or without an extension (learn.microsoft.com, "Naming Files").
_RESERVED_STEMS = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}


class Rollout(NamedTuple):
    """The rollout of a run: how it was found (`conversation`, `session`, `group`, `run`), and its id."""

    kind: str
    original: str

    @property
    def alias(self) -> str:
        return alias(self.original)


def resolve_rollout(
    *, conversation_id: str | None, session_id: str | None, group_id: str | None, run_id: str
) -> Rollout:
    """The rollout of a run, in the SDK's order; `run-<run id>` where the run belongs to none."""
    for kind, value in (("conversation", conversation_id), ("session", session_id), ("group", group_id)):
        if value and value.strip():
            return Rollout(kind, value.strip())
    return Rollout("run", f"run-{run_id}")


def is_file_safe(value: str) -> bool:
    """Whether `value` can be a file name everywhere, and no other such value the same file."""
    return (
        _VERBATIM.fullmatch(value) is not None
        and not value.startswith(ALIAS_PREFIX)
        and not value.endswith(".")
        and value.split(".", 1)[0] not in _RESERVED_STEMS
    )


def alias(original: str) -> str:
    """The file-safe name of an id: itself, or `rl-<readable part>-<hash>`; at most 128 characters."""
    if is_file_safe(original):
        return original
    readable = re.sub(r"[^a-z0-9]+", "-", original.lower().encode("ascii", "ignore").decode())[:40].strip("-")
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{ALIAS_PREFIX}{readable}-{digest}" if readable else f"{ALIAS_PREFIX}{digest}"


_ALIAS = re.compile(rf"{ALIAS_PREFIX}[a-z0-9-]{{1,80}}", re.ASCII)


def as_alias(text: str) -> str:
    """`text` where it is an alias, as lists show it; else the alias of the id that it is. Raises `errors.InvalidId`."""
    check_id(text, "the id")
    return text if _ALIAS.fullmatch(text) else alias(text.strip())


def subject_alias(original: str) -> str:
    """The name of a subject in keys, files and logs: a hash only, as a subject is often an e-mail address."""
    return ALIAS_PREFIX + hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_name(value: str, what: str) -> str:
    """`value`, if it can name a project or a memory.

    Raises `errors.InvalidId`. Operators choose these names, so they are strict instead of aliased.
    """
    if _NAME.fullmatch(value) is None or not is_file_safe(value):
        raise errors.InvalidId(
            f"{what} {value!r} is not a name",
            hint="use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit",
        )
    return value


def has_control(value: str) -> bool:
    """Whether `value` holds a control character of ASCII."""
    return any(ord(char) < 32 or ord(char) == 127 for char in value)


def check_id(value: str, what: str) -> str:
    """`value`, if it can be an id that a producer gives: not blank, bounded, no control characters.

    Raises `errors.InvalidId`. A path (`../x`, `a/b`) is refused too where it would climb: an id names a
    thing, and one that climbs is an attack or a bug at the producer; either way a person should see it.
    """
    if not value.strip():
        raise errors.InvalidId(f"{what} is blank")
    if len(value) > ID_CHARS_MAX:
        raise errors.InvalidId(f"{what} has {len(value)} characters; at most {ID_CHARS_MAX} are accepted")
    if has_control(value):
        raise errors.InvalidId(f"{what} holds a control character")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        # JSON can spell half a character; UTF-8, and so a header or a database, can not hold it.
        raise errors.InvalidId(f"{what} holds half a surrogate pair")
    if ".." in re.split(r"[/\\]", value):
        raise errors.InvalidId(f"{what} {value!r} holds a path that climbs ('..')")
    return value
