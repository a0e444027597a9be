"""Text that somebody else wrote, made fit to be looked at: nothing hidden, nothing that runs, nothing endless.

Everything that a template prints passes `visible` (Jinja2's `finalize`), so a name that turns the line around, or hides
words that only a model would read, shows as what it is. Markdown is rendered with HTML off, and no image is loaded.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import markupsafe
from markdown_it import MarkdownIt
from markdown_it.token import Token

from runlore import clock

LINE_CHARS_MAX = 2000
"""Characters of one line that are shown."""
LINES_MAX = 1000
"""Lines that one page shows."""
MARKDOWN_CHARS_MAX = 200_000
HEX_BYTES_MAX = 1024

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but tab and newline; what changes the direction of a line; what has no width; tags; and halves of
surrogate pairs, which can not be sent."""
_SCHEMES = ("http", "https", "mailto")


def visible(value: Any) -> Any:
    """What a template prints for a value: hidden characters of a text by their numbers, nothing for None."""
    if isinstance(value, markupsafe.Markup):
        return value
    if isinstance(value, str):
        return _HIDDEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", value)
    return "" if value is None else value


# --- Markdown -----------------------------------------------------------------------------------------------

Address = Callable[[int], str]
"""Where the page of a line's why is."""


def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    # What is a link is decided below; the parser itself only keeps `javascript:` and its like out.
    return made


def markdown(
    text: str, why: Address, known: Collection[int], linked: Callable[[str], str | None]
) -> markupsafe.Markup:
    """A memory's file as a page: each line behind its number, which leads to why it is there.

    `known`: the lines that notes are behind. `linked`: where a relative link leads, None where to nothing.
    """
    parser = _parser()
    tokens = parser.parse(visible(text))
    row: int | None = None
    for token in tokens:
        if token.type == "inline" and token.map and token.children is not None:
            # The cells of a table's row are one line: its first alone has the number.
            first = token.map[0] + 1
            token.children = _numbered(token.children, first, why, known, linked, first != row)
            row = first
        elif token.type in ("heading_open", "heading_close"):
            # The page has headings of its own above these.
            token.tag = f"h{min(6, int(token.tag[1:]) + 2)}"
        elif token.type in ("fence", "code_block"):
            _code(token, why, known)
    # Built by the library from escaped text, and by the functions here.
    return markupsafe.Markup(parser.renderer.render(tokens, parser.options, {}))


def _number(line: int, why: Address, known: Collection[int]) -> str:
    told = "known" if line in known else "frame"
    return str(
        markupsafe.Markup('<a class="ln {}" id="L{}" href="{}" title="Why line {} is there">{}</a>').format(
            told, line, why(line), line, line
        )
    )


def _html(content: str) -> Token:
    return Token("html_inline", "", 0, content=content)


def _numbered(
    children: list[Token],
    first: int,
    why: Address,
    known: Collection[int],
    linked: Callable[[str], str | None],
    is_first: bool,
) -> list[Token]:
    made = [_html(_number(first, why, known))] if is_first else []
    line, inside = first, []
    for one in children:
        if one.type == "link_open":
            inside.append(_link(one, linked))
            if not inside[-1]:
                continue
        elif one.type == "link_close" and not inside.pop():
            continue
        made.append(one)
        if one.type in ("softbreak", "hardbreak"):
            line += 1
            made.append(_html(_number(line, why, known)))
    return made


def _link(token: Token, linked: Callable[[str], str | None]) -> bool:
    """Make a link lead where it may; whether it leads anywhere."""
    target = str(token.attrGet("href") or "")
    scheme = urlsplit(target).scheme.lower() if not target.startswith("//") else "none"
    if scheme in _SCHEMES:
        token.attrs = {"href": target, "rel": "noopener noreferrer nofollow", "class": "out"}
        return True
    place = linked(target) if not scheme else None
    if place is None:
        return False
    token.attrs = {"href": place}
    return True


def _code(token: Token, why: Address, known: Collection[int]) -> None:
    """A block of code as HTML of ours, each line behind its number."""
    assert token.map is not None
    first = token.map[0] + (2 if token.type == "fence" else 1)
    lines = token.content.split("\n")[: -1 if token.content.endswith("\n") else None]
    shown = [f"{_number(first + at, why, known)}{markupsafe.escape(line)}" for at, line in enumerate(lines)]
    token.type, token.content = "html_block", f"<pre><code>{chr(10).join(shown)}</code></pre>\n"


# --- lines and bytes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line as it is shown: its number, its text, how many characters were cut."""

    number: int
    text: str
    cut: int = 0


def lines_of(text: list[str], first: int = 1) -> list[Line]:
    """The lines from `first` on that one page shows."""
    here = text[first - 1 : first - 1 + LINES_MAX]
    return [
        Line(first + at, one[:LINE_CHARS_MAX], max(0, len(one) - LINE_CHARS_MAX))
        for at, one in enumerate(here)
    ]


@dataclass(frozen=True)
class Changed:
    """One line of a difference: `add`, `del`, `hunk` or `same`; what it is marked with; its text."""

    what: str
    mark: str
    text: str


def changed(diff: str) -> list[Changed]:
    """The lines of a unified diff, without those that name the files."""
    kinds = {"+": "add", "-": "del", "@": "hunk"}
    found = []
    for line in diff.split("\n")[:-1]:
        if line.startswith(("+++ ", "--- ")) and not found:
            continue
        what = kinds.get(line[:1], "same")
        text = line if what == "hunk" else line[1:]
        found.append(Changed(what, "" if what == "hunk" else line[:1], text[:LINE_CHARS_MAX]))
        if len(found) > LINES_MAX:
            found.append(Changed("hunk", "", f"… cut: only the first {LINES_MAX} lines are shown"))
            break
    return found


def as_text(raw: bytes, *, is_cut: bool) -> str | None:
    """The text of a file's bytes; None where they are no text. `is_cut`: its end may be half a character."""
    if b"\0" in raw:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        return raw[: exc.start].decode("utf-8") if is_cut and len(raw) - exc.start < 4 else None


def hex_lines(raw: bytes) -> list[tuple[str, str, str]]:
    """The head of a file that is no text: where, the bytes, and what of them is ASCII."""
    rows = []
    for at in range(0, min(len(raw), HEX_BYTES_MAX), 16):
        part = raw[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in part)
        rows.append((f"{at:06x}", part.hex(" "), shown))
    return rows


_TICKED = re.compile(r"`([^`]{1,300})`")


def ticked(text: Any) -> markupsafe.Markup:
    """A sentence of ours in which a command stands between backticks: that part as code."""
    # Escaped first: what is between them may be somebody's id.
    return markupsafe.Markup(
        _TICKED.sub(r"<code>\1</code>", str(markupsafe.escape(visible(str(text or "")))))
    )


_FOUND = re.compile(r"\[([^\[\]]{1,200})\]")


def found_in(snippet: Any) -> markupsafe.Markup:
    """A search's snippet, with what was found in it marked (the index puts it between brackets)."""
    return markupsafe.Markup(_FOUND.sub(r"<mark>\1</mark>", str(markupsafe.escape(visible(str(snippet))))))


# --- numbers and times ------------------------------------------------------------------------------------------


def size(count: int | None) -> str:
    """So many bytes, for a person."""
    if count is None:
        return ""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def moment(text: Any) -> markupsafe.Markup | str:
    """A time as it is shown: to the minute, in UTC; how long ago in its title."""
    try:
        found = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text or "")
    if found.tzinfo is None:
        found = found.replace(tzinfo=dt.UTC)
    found = found.astimezone(dt.UTC)
    return markupsafe.Markup('<time datetime="{}" title="{}">{}</time>').format(
        found.isoformat(timespec="seconds"), ago(found), f"{found:%Y-%m-%d %H:%M}"
    )


def ago(found: dt.datetime) -> str:
    """How long ago that was."""
    seconds = (clock.now() - found).total_seconds()
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{max(0.0, seconds) / length:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"
