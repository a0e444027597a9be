"""Reading foreign files safely: which files, one bounded line at a time, whatever the bytes are.

The kinds of problem found here, before any format is looked at: `not_found`, `unreadable`, `empty`,
`given_up`, and from `errors` `bad_json` (the bytes are no text) and `record_too_large`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import zstandard

from runlore import errors
from runlore.events import models
from runlore.sources import Problem

NOT_FOUND = "not_found"
UNREADABLE = "unreadable"
EMPTY = "empty"
GIVEN_UP = "given_up"

SKIP_BYTES = 1024 * 1024
"""How much of an oversized line is read at a time while it is skipped, in bytes."""

ZSTD_SUFFIX = ".zst"
ZSTD_WINDOW_BYTES_MAX = 128 * 1024 * 1024
"""Largest window that a compressed file may ask for, in bytes."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Raw:
    """The text of one line (or of a whole file, then line 0), without its line end."""

    text: str
    line: int


_Reader = Callable[[Path, BinaryIO], Iterator[Raw | Problem]]


def under(path: Path, globs: tuple[str, ...]) -> Iterator[Path | Problem]:
    """The file `path`, or the files of folder `path` that match one of `globs`, in name order.

    A file that is named is taken whatever its suffix. Links to folders are not followed: they can be loops. Nor is a
    link to a file outside: what else lies on this machine was not meant, and may be somebody's secret.
    """
    if not path.is_dir():
        yield path
        return
    matched = False
    refused: list[OSError] = []
    root = os.path.realpath(path)
    for folder, inner, names in os.walk(path, onerror=refused.append):
        inner.sort()
        for name in sorted(names):
            if any(fnmatchcase(name, glob) for glob in globs):
                matched = True
                file = Path(folder, name)
                if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(root):
                    yield Problem(str(file), 0, UNREADABLE, "it is a link that leads out of the folder")
                else:
                    yield file
    for exc in refused:
        yield Problem(str(exc.filename), 0, UNREADABLE, f"the folder cannot be read: {exc.strerror}")
    if not matched and not refused:
        yield Problem(str(path), 0, EMPTY, f"no file in this folder matches {' or '.join(globs)}")


def lines(path: Path) -> Iterator[Raw | Problem]:
    """The lines of `path` that are not blank. Only a newline ends one: U+2028 and the like stand inside."""
    yield from _guarded(path, _lines)


def whole(path: Path) -> Iterator[Raw | Problem]:
    """The text of `path` as one; nothing if it is blank."""
    yield from _guarded(path, _whole)


def _guarded(path: Path, read: _Reader) -> Iterator[Raw | Problem]:
    try:
        # A named pipe would wait for a writer that never comes, a device might never end.
        if not stat.S_ISREG(path.stat().st_mode):
            yield Problem(str(path), 0, UNREADABLE, "not a regular file")
            return
        with path.open("rb") as stream:
            yield from read(path, _unpacked(stream) if path.suffix == ZSTD_SUFFIX else stream)
    except zstandard.ZstdError:
        yield Problem(str(path), 0, UNREADABLE, "the file is no zstd stream")
    except FileNotFoundError:
        yield Problem(str(path), 0, NOT_FOUND, "there is no such file")
    except OSError as exc:
        yield Problem(
            str(path), 0, UNREADABLE, f"the file cannot be read: {exc.strerror or type(exc).__name__}"
        )


def _unpacked(stream: BinaryIO) -> BinaryIO:
    """The stream's content as it was before compression; read on as it comes, so that no bomb goes off."""
    return io.BufferedReader(
        zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).stream_reader(stream)
    )


def _lines(path: Path, stream: BinaryIO) -> Iterator[Raw | Problem]:
    limit = models.RECORD_BYTES_MAX
    number = 0
    while raw := stream.readline(limit + 2):
        number += 1
        if len(raw.rstrip(b"\r\n")) > limit:
            _skip_rest(stream, raw)
            yield Problem(
                str(path), number, errors.RecordTooLarge.kind, f"the line has more than {limit} bytes"
            )
            continue
        yield from _text(path, raw, number)


def _skip_rest(stream: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(SKIP_BYTES)


def _whole(path: Path, stream: BinaryIO) -> Iterator[Raw | Problem]:
    limit = models.RECORD_BYTES_MAX
    raw = stream.read(limit + 1)
    if len(raw) > limit:
        yield Problem(str(path), 0, errors.RecordTooLarge.kind, f"the file has more than {limit} bytes")
        return
    yield from _text(path, raw, 0)


def _text(path: Path, raw: bytes, line: int) -> Iterator[Raw | Problem]:
    if line <= 1:
        raw = raw.removeprefix(_BOM)
    try:
        # JSON's own blanks only: `str.strip` would take U+2028 and U+0085 too.
        text = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as exc:
        at = exc.start + 1
        yield Problem(
            str(path), line, errors.BadJson.kind, f"it is not UTF-8 text (byte {at}); is it a binary file?"
        )
        return
    if "\0" in text:
        yield Problem(str(path), line, errors.BadJson.kind, "it holds NUL bytes; was the writer cut off?")
    elif text.strip(" \t\r\n"):
        yield Raw(text, line)
