"""What a save leaves out: globs, `.runloreignore`, sizes, given paths (memory directories) and mounts.

Rules are those of .gitignore: the last one that matches decides, deeper files overrule higher ones, and below
a directory that is left out nothing is looked at. Whatever is left out is counted in the report, by its rule.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pathspec

from runlore import clock, errors
from runlore.snapshots import names

IGNORE_FILE = b".runloreignore"
IGNORE_BYTES_MAX = 256 * 1024
"""A longer ignore file is refused, in bytes."""

RULES_MAX = 2000
"""Rules of one ignore file."""
STARS_MAX = 3
"""Stars of one rule, without `**/` before and `/**` behind it. Matching takes the length of a path to the power of
their number: three take half a second at worst, five take days, and an agent writes ignore files too."""
SECONDS_MAX = 300.0
"""How long all rules together may take in one save."""
_STARS = re.compile(r"\*+")


def spec(lines: Iterable[str], *, of: str = "exclude") -> pathspec.GitIgnoreSpec:
    """Rules in the syntax of .gitignore. Raises `errors.InvalidInput`, also for what would take too long."""
    lines = list(lines)
    if len(lines) > RULES_MAX:
        raise errors.InvalidInput(f"{of} has {len(lines)} rules; at most {RULES_MAX} are read")
    for line in lines:
        inner = line.strip().removeprefix("!").removeprefix("**/").removesuffix("/").removesuffix("/**")
        if not line.startswith("#") and len(_STARS.findall(inner)) > STARS_MAX:
            raise errors.InvalidInput(
                f"the rule {line.strip()[:80]!r} of {of} has more than {STARS_MAX} stars",
                hint="write it as several rules",
            )
    try:
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except Exception as exc:  # pathspec raises different ones for different mistakes.
        raise errors.InvalidInput(f"a rule of {of} can not be read: {exc}") from None


@dataclass(frozen=True)
class Level:
    """The rules of one directory: `prefix` is its path with a '/' at the end, or empty."""

    prefix: str
    rules: pathspec.GitIgnoreSpec
    name: str


@dataclass
class Spent:
    """The time that the rules of one save have taken."""

    seconds: float = 0.0

    def add(self, began: float) -> None:
        self.seconds += clock.monotonic() - began
        if self.seconds > SECONDS_MAX:
            raise errors.InvalidInput(
                f"the exclude rules take longer than {SECONDS_MAX:.0f} seconds",
                hint="use fewer and simpler ones",
            )


@dataclass(frozen=True)
class Rules:
    """Everything that decides whether an entry is left out."""

    levels: tuple[Level, ...] = ()
    """From the outermost to the innermost."""
    paths: frozenset[bytes] = frozenset()
    """Left out with all that is below, by exact path."""
    mounts: frozenset[bytes] = frozenset()
    size_bytes_max: int | None = None
    spent: Spent = field(default_factory=Spent, compare=False)

    def below(self, path: bytes, raw: bytes) -> Rules:
        """These rules and those of the ignore file `raw` in the directory `path`."""
        if len(raw) > IGNORE_BYTES_MAX:
            raise errors.InvalidInput(
                f"{names.to_text(path)}/.runloreignore is longer than {IGNORE_BYTES_MAX} bytes"
            )
        text = names.to_text(path)
        level = Level(
            f"{text}/" if text else "",
            spec(raw.decode("utf-8", "replace").splitlines(), of=f"{text}/.runloreignore".lstrip("/")),
            ".runloreignore",
        )
        return replace(self, levels=(*self.levels, level))

    @property
    def exact(self) -> frozenset[bytes]:
        return self.paths | self.mounts

    def why(self, path: bytes, *, is_dir: bool) -> str | None:
        """The rule by which the entry at `path` is left out; None where it stays."""
        if path in self.mounts:
            return "mount"
        if path in self.paths:
            return "path"
        if not self.levels:
            return None
        began = clock.monotonic()
        text = names.to_text(path) + ("/" if is_dir else "")
        found = None
        for level in reversed(self.levels):
            decided = level.rules.check_file(text[len(level.prefix) :])
            if decided.include is not None:
                found = level.name if decided.include else None
                break
        self.spent.add(began)
        return found


def rules(
    exclude: Sequence[str] = (),
    paths: Iterable[str | bytes] = (),
    mounts: Iterable[bytes] = (),
    size_bytes_max: int | None = None,
) -> Rules:
    """Rules from what a caller gives: globs, exact paths (memory directories), the largest file."""
    levels = (Level("", spec(exclude), "exclude"),) if exclude else ()
    # `./memories/` and `memories` are one directory: spelled otherwise, a memory must not slip into a snapshot.
    exact = frozenset(posixpath.normpath(os.fsencode(path)).strip(b"/") for path in paths)
    return Rules(levels, exact - {b"", b"."}, frozenset(mounts), size_bytes_max)


def mounts_below(root: bytes) -> set[bytes]:
    """Paths below `root` at which something else is mounted, also from the same device."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            points = [line.split(b" ")[4] for line in file]
    except (OSError, IndexError):
        return set()
    unescaped = (
        point.decode("unicode_escape").encode("latin-1") if b"\\" in point else point for point in points
    )
    prefix = os.path.realpath(root).rstrip(b"/") + b"/"
    return {point[len(prefix) :] for point in unescaped if point.startswith(prefix)}
