"""Anything foreign becomes run-completed events: the importers behind `runlore import FORMAT PATH…`.

An importer reads files and yields, for each run, the data of a `run.completed` event, or the problem that
kept it from becoming one. What it yields is a function of the bytes and the names it was given: no clock,
no file times, no random ids. So importing twice is one import, and a changed line is a new run.

A broken file or line costs itself and no other. Memory is bounded by the largest record accepted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PROBLEMS_PER_FILE_MAX = 100
"""After this many problems and not one run a file is given up: it is not of this format."""


@dataclass(frozen=True)
class Imported:
    """One run, as the data of a run-completed event that `events.models` accepts, and where it stood."""

    data: dict[str, Any]
    file: str
    line: int
    """Counted from 1; 0 where the run is the whole file."""


@dataclass(frozen=True)
class Problem:
    """Why a file or a line is no run: `kind` is a code of `errors` or one of `sources.files`."""

    file: str
    line: int
    kind: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message} ({self.kind})"


@dataclass(frozen=True)
class Format:
    """One foreign format: what it is, which files of a folder are taken for it, and who reads it."""

    name: str
    description: str
    globs: tuple[str, ...]
    module: str
    unit: Literal["line", "file", "turn"]
    """What one run is: a line, a whole file, or one turn of the conversation that a file holds."""


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(
            "agents-sdk",
            "OpenAI Agents SDK session files, sessions/<rollout>.jsonl (Python or JavaScript): a run a line",
            ("*.jsonl",),
            "runlore.sources.agents_sdk",
            unit="line",
        ),
        Format(
            "chat",
            "OpenAI chat messages (also tau-bench): one conversation a JSONL line",
            ("*.jsonl",),
            "runlore.sources.chat",
            unit="line",
        ),
        Format(
            "swe-agent",
            "SWE-agent trajectories (.traj): one run a file",
            ("*.traj",),
            "runlore.sources.swe_agent",
            unit="file",
        ),
        Format(
            "codex",
            "Codex CLI sessions (~/.codex/sessions, ~/.codex/archived_sessions): a run for each turn",
            ("rollout-*.jsonl", "rollout-*.jsonl.zst"),
            "runlore.sources.codex",
            unit="turn",
        ),
        Format(
            "claude-code",
            "Claude Code sessions (~/.claude/projects): a run for each turn, also of subagents",
            ("*.jsonl",),
            "runlore.sources.claude_code",
            unit="turn",
        ),
    )
}


def read(format: str, path: str | Path, *, project: str, memory: str) -> Iterator[Imported | Problem]:
    """Every run in `path` (a file, or a folder read recursively in name order), or why it is none.

    Raises `errors.InvalidInput` for an unknown format and `errors.InvalidId` for a project or memory that is
    not a name: both before the first file is opened. Nothing that a file holds makes it raise.
    """
    # Imported here, so that `FORMATS` costs the command line's start nothing.
    from runlore import errors
    from runlore.events import ids

    if format not in FORMATS:
        raise errors.InvalidInput(f"there is no format {format!r}", hint=f"formats: {', '.join(FORMATS)}")
    ids.check_name(project, "project")
    ids.check_name(memory, "memory")
    return _read(FORMATS[format], Path(path), project, memory)


def _read(form: Format, path: Path, project: str, memory: str) -> Iterator[Imported | Problem]:
    from runlore.sources import files

    module = importlib.import_module(form.module)
    importer = module.Importer() if form.unit == "turn" else module
    for file in files.under(path, form.globs):
        if isinstance(file, Problem):
            yield file
        else:
            yield from _read_file(form, importer, file, project, memory)


def _read_file(
    form: Format, importer: Any, file: Path, project: str, memory: str
) -> Iterator[Imported | Problem]:
    from runlore.sources import files

    problems = runs = 0
    for raw in _units(form, importer, file):
        if isinstance(raw, Problem):
            one: Imported | Problem = raw
        elif isinstance(raw, files.Raw):
            one = _one(
                file, raw.line, lambda raw=raw: importer.run(raw.text, stem=file.stem), project, memory
            )
        else:
            one = _one(file, raw.line, lambda raw=raw: raw.data, project, memory)
        yield one
        problems += isinstance(one, Problem)
        runs += isinstance(one, Imported)
        if problems >= PROBLEMS_PER_FILE_MAX and not runs:
            yield Problem(str(file), 0, files.GIVEN_UP, f"given up after {problems} problems in this file")
            return
    if not problems and not runs and form.unit != "turn":
        yield Problem(str(file), 0, files.EMPTY, "the file is empty")


def _units(form: Format, importer: Any, file: Path) -> Iterator[Any]:
    """What each run of `file` is made from: a `files.Raw`, or a `turns.Run` that is read already."""
    from runlore.sources import files

    if form.unit == "turn":
        return importer.runs(file)
    return files.lines(file) if form.unit == "line" else files.whole(file)


def _one(
    file: Path, line: int, found: Callable[[], dict[str, Any]], project: str, memory: str
) -> Imported | Problem:
    from runlore import errors
    from runlore.events import models

    try:
        data = {"project": project, "memory": memory, "layout": models.Layout().model_dump(), **found()}
        if len(data["record"].encode("utf-8", "surrogatepass")) > models.RECORD_BYTES_MAX:
            raise errors.RecordTooLarge()
        models.run_completed(data)
    except errors.Poison as exc:
        return Problem(str(file), line, exc.kind, exc.message)
    except RecursionError:
        return Problem(str(file), line, errors.BadJson.kind, "it is nested too deeply")
    return Imported(data, str(file), line)
