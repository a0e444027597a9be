"""What an agent may ask of memory: small, bounded answers of one project, for `lookup.mcp`.

The project and the subject are fixed when the desk is made, and no question names another. An answer never holds
more than `TEXT_CHARS_MAX` characters of text; one that was cut says so in `cut`, with what to ask for next.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from runlore import clock, errors
from runlore.commit import heads as commit_heads
from runlore.commit import keys, revisions, rollouts
from runlore.events import ids
from runlore.lookup import index as lookup_index
from runlore.lookup import memories, why
from runlore.memory import render

TEXT_CHARS_MAX = 20_000
"""Characters of text in one answer: about 5,000 tokens, half of what clients warn at."""
LINE_CHARS_MAX = 400
"""Characters of a line that search and why show."""
RESULTS_MAX = 50
QUERY_CHARS_MAX = 1_000
RUNS_MAX = 100
FILES_MAX = 500
"""Files in a list; a memory holds two a rollout, and 256 rollouts."""
NOTES_MAX = 10
EVIDENCE_MAX = 20
_FILES_HINT = "read_memory without a path lists them"
_ALIAS = re.compile(rf"{ids.ALIAS_PREFIX}[a-z0-9-]{{1,80}}")
RECONCILE_SECONDS = 5.0
"""How old what the index knows may be: it costs a LIST of all heads to know better."""


class Desk:
    """Answers questions about one project's memories. One question at a time: the index takes no two."""

    def __init__(
        self,
        reader: revisions.Reader,
        index: lookup_index.Index,
        *,
        project: str,
        memory: str | None = None,
        subject: str | None = None,
    ) -> None:
        self.project = project
        self.memory = memory
        """The only memory that is shown; None: all of the project's."""
        self._reader = reader
        self._index = index
        self._whom = memories.whom_of(subject)
        self._lock = asyncio.Lock()
        self._compared: float | None = None

    async def list_memories(self) -> dict[str, Any]:
        """Each memory with its newest revision, and how much it was made from."""
        rows = await self._memories()
        shown = _fitting(rows, len(rows))
        cut = {"cut": f"{len(rows)} memories; the first {len(shown)} are listed"}
        return {"project": self.project, "memories": shown, **(cut if len(shown) < len(rows) else {})}

    async def read_memory(
        self, path: str = "", *, memory: str | None = None, revision: int | None = None, from_line: int = 1
    ) -> dict[str, Any]:
        """A file of a memory from a line on; without a path, which files there are, from one on."""
        name, opened, files = await self._files(memory, revision)
        about = {"memory": name, "revision": opened.number}
        if not path.strip():
            rows = [{"path": one, "lines": file.text.count("\n")} for one, file in files.items()]
            if not 1 <= from_line <= max(1, len(rows)):
                raise errors.NotFound(f"there are {len(rows)} files, not {from_line}")
            shown = _fitting(rows[from_line - 1 :], FILES_MAX)
            return {**about, "files": shown, **_cut("files", from_line, len(shown), len(rows))}
        path, file = memories.file_of(files, path, hint=_FILES_HINT)
        lines = file.text.splitlines()
        if not 1 <= from_line <= max(1, len(lines)):
            raise errors.NotFound(f"{path} has {len(lines)} lines, not {from_line}")
        text, last = _page(lines, from_line)
        answer = {**about, "path": path, "from_line": from_line, "text": text}
        return {**answer, **_cut("lines", from_line, last - from_line + 1, len(lines))}

    async def why(
        self, path: str, line: int, *, memory: str | None = None, revision: int | None = None
    ) -> dict[str, Any]:
        """The notes behind one line, each with the runs and items that support it."""
        name, opened, files = await self._files(memory, revision)
        path, file = memories.file_of(files, path, hint=_FILES_HINT)
        lines = file.text.splitlines()
        if not 1 <= line <= len(lines):
            raise errors.NotFound(f"{path} has {len(lines)} lines, not {line}")
        notes = await why.of_line(self._reader.store, opened, file, line, subject=self._whom)
        shown = [{**note, "evidence": note["evidence"][:EVIDENCE_MAX]} for note in notes]
        shown = _fitting(shown, NOTES_MAX)
        answer: dict[str, Any] = {
            "memory": name,
            "revision": opened.number,
            "path": path,
            "line": line,
            "text": lines[line - 1][:LINE_CHARS_MAX],
            "notes": shown,
        }
        if not notes:
            answer["remark"] = "a heading or a frame of the file: no run is behind it"
        if len(notes) > len(shown) or any(len(note["evidence"]) > EVIDENCE_MAX for note in notes):
            answer["cut"] = (
                f"{len(notes)} notes; {len(shown)} with at most {EVIDENCE_MAX} items each are shown"
            )
        return answer

    async def search_memory(
        self, query: str, *, memory: str | None = None, limit: int = 10
    ) -> dict[str, Any]:
        """Lines of the newest revision that hold every word, then rollouts whose summary does."""
        words = memories.words_of(query)
        if not words:
            raise errors.InvalidInput("the query has no word")
        if len(query) > QUERY_CHARS_MAX:
            raise errors.InvalidInput(f"the query has more than {QUERY_CHARS_MAX} characters")
        name = await self._named(memory)
        limit = _within(limit, RESULTS_MAX)
        async with self._lock:
            await self._compare()
            found = await asyncio.to_thread(
                self._index.search, query, self.project, name, subject=self._whom, limit=limit + 1
            )
        await self._there(name, memory)
        found = memories.let_in(found, await self._reader.head(self.project, name))
        answer: dict[str, Any] = {"memory": name, "lines": [], "rollouts": []}
        lines: list[dict[str, Any]] = []
        try:
            _, opened, files = await self._files(name, None)
        except errors.NotFound:
            pass  # Runs are summarised before there is a first revision.
        else:
            answer["revision"] = opened.number
            lines = await asyncio.to_thread(_matches, files, words, limit + 1)
        answer["lines"] = _fitting(lines, limit, parts=2)
        rollouts = [{"rollout": row["rollout"], "snippet": " ".join(row["snippet"].split())} for row in found]
        answer["rollouts"] = _fitting(rollouts, limit, parts=2)
        if len(lines) > len(answer["lines"]) or len(found) > len(answer["rollouts"]):
            answer["cut"] = f"there are more; use rarer words, or a higher limit (at most {RESULTS_MAX})"
        return answer

    async def list_runs(self, *, memory: str | None = None, limit: int = 20) -> dict[str, Any]:
        """The newest runs."""
        limit = _within(limit, RUNS_MAX)
        name = await self._named(memory) if memory or self.memory else None
        if name is not None:
            await self._there(name, memory)
        async with self._lock:
            await self._compare()
            rows = await asyncio.to_thread(
                self._index.runs_for, self.project, name, subject=self._whom, limit=limit + 1
            )
        answer: dict[str, Any] = {"project": self.project, "runs": _fitting(rows, limit)}
        if len(rows) > len(answer["runs"]):
            answer["cut"] = f"the newest {len(answer['runs'])}; ask for more with limit (at most {RUNS_MAX})"
        return answer

    async def read_rollout(self, rollout: str, *, memory: str | None = None) -> dict[str, Any]:
        """What one conversation was about: its runs, and its summary."""
        name = await self._named(memory)
        if not rollout.strip():
            raise errors.InvalidInput("no rollout was named", hint="list_runs shows them")
        head = await self._head(name, rollout.strip())
        # One of another subject is not told from one that is not there.
        if not head.body.get("runs") or head.body.get("subject") not in (None, self._whom):
            raise errors.NotFound(f"memory {name} has no rollout {rollout!r}", hint="list_runs shows them")
        alias = head.body["rollout"]
        text = await self._summary(name, alias, head.body.get("summary"))
        runs = [
            {"run": run, "attempt": entry["attempt"], "ended_at": entry["ended_at"]}
            for run, entry in head.body["runs"].items()
            if "edit_of" not in entry
        ]
        answer = {
            "memory": name,
            "rollout": alias,
            "id": head.body["original"],
            "updated_at": head.body["updated_at"],
            "runs": runs[-RUNS_MAX:],
            "summary": text[:TEXT_CHARS_MAX],
        }
        if len(text) > TEXT_CHARS_MAX or len(runs) > RUNS_MAX:
            answer["cut"] = (
                f"{len(runs)} runs, {len(text)} characters; the newest {RUNS_MAX} runs and the first"
                f" {TEXT_CHARS_MAX} characters are shown"
            )
        return answer

    async def files(self) -> list[tuple[str, str]]:
        """(memory, path) of every file that can be read now."""
        found: list[tuple[str, str]] = []
        for row in await self._memories():
            if row["revision"]:
                _, _, files = await self._files(row["memory"], None)
                found += [(row["memory"], path) for path in files]
        return found[:FILES_MAX]

    async def _summary(self, memory: str, alias: str, summary: Any) -> str:
        """The rollout's page in the newest revision; where it has none, what the rules made of it."""
        try:
            _, _, files = await self._files(memory, None)
        except errors.NotFound:
            files = {}
        start = f"rollout_summaries/{alias}_"
        page = next((file.text for path, file in files.items() if path.startswith(start)), None)
        if page is None and alias in (await self._reader.head(self.project, memory)).body.get("held", {}):
            return "held for review: nobody has let it in"
        return page if page is not None else json.dumps(summary, indent=1, ensure_ascii=False)

    async def _head(self, memory: str, rollout: str) -> commit_heads.Head:
        """The head of a rollout that is named by its id, or by its alias as lists show it."""
        ids.check_id(rollout, "the rollout's id")
        for alias in ([rollout] if _ALIAS.fullmatch(rollout) else []) + [ids.alias(rollout)]:
            key = keys.rollout_head(self.project, memory, alias)
            head = await commit_heads.read(self._reader.store, key, fmt=rollouts.HEAD_FORMAT)
            if head.etag is not None:
                return head
        return head

    async def _files(
        self, memory: str | None, number: int | None
    ) -> tuple[str, revisions.Revision, Mapping[str, render.Composed]]:
        name = await self._named(memory)
        revision = await self._reader.at(self.project, name, number)
        return name, revision, await asyncio.to_thread(memories.compose, revision, self._whom)

    async def _memories(self) -> list[dict[str, Any]]:
        async with self._lock:
            await self._compare()
            rows = await asyncio.to_thread(self._index.memories, self.project)
        named = ("memory", "revision", "rollouts", "runs", "held")
        return [{one: row[one] for one in named} for row in rows if self.memory in (None, row["memory"])]

    async def _named(self, memory: str | None) -> str:
        """The memory that is meant: the one named, the only one shown, or the only one there is."""
        wanted = memory.strip() if memory and memory.strip() else self.memory
        if wanted is not None:
            ids.check_name(wanted, "memory")
            if self.memory not in (None, wanted):
                raise errors.NotFound(f"this server shows the memory {self.memory!r} only")
            return wanted
        known = [row["memory"] for row in await self._memories()]
        if len(known) == 1:
            return known[0]
        if not known:
            raise errors.NotFound(f"project {self.project} has no memory yet")
        raise errors.InvalidInput("say which memory is meant", hint=f"memories: {', '.join(known)}")

    async def _there(self, name: str, asked: str | None) -> None:
        """Raises where a client named a memory that does not exist: nothing found would be another answer."""
        if self.memory is None and asked:
            known = [row["memory"] for row in await self._memories()]
            if name not in known:
                hint = f"memories: {', '.join(known[:RESULTS_MAX])}" if known else "there is none yet"
                raise errors.NotFound(f"project {self.project} has no memory {name!r}", hint=hint)

    async def _compare(self) -> None:
        now = clock.monotonic()
        if self._compared is None or now - self._compared >= RECONCILE_SECONDS:
            await lookup_index.reconcile(self._index, self._reader.store)
            self._compared = now


def _fitting(rows: list[dict[str, Any]], most: int, *, parts: int = 1) -> list[dict[str, Any]]:
    """The first rows, `most` of them, that one answer of so many parts holds; one at least."""
    shown: list[dict[str, Any]] = []
    room = TEXT_CHARS_MAX // parts
    for row in rows[:most]:
        room -= len(json.dumps(row, ensure_ascii=False))
        if room < 0 and shown:
            break
        shown.append(row)
    return shown


def _cut(what: str, first: int, shown: int, of: int) -> dict[str, str]:
    """What is missing of a page, and how to ask for it."""
    last = first - 1 + shown
    if last >= of:
        return {}
    return {"cut": f"{what} {first} to {last} of {of}; ask again with from_line={last + 1}"}


def _page(lines: list[str], first: int) -> tuple[str, int]:
    """The lines from `first` on that one answer holds, and the last of them."""
    shown: list[str] = []
    room = TEXT_CHARS_MAX
    for line in lines[first - 1 :]:
        room -= len(line) + 1
        if room < 0 and shown:
            break
        shown.append(line if len(line) <= TEXT_CHARS_MAX else f"{line[:TEXT_CHARS_MAX]} … [line cut]")
    return "\n".join(shown), first - 1 + len(shown)


def _matches(files: Mapping[str, render.Composed], words: list[str], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    # What is told first is worth most; the raw memories repeat what the others say.
    for path in sorted(files, key=lambda path: (path.startswith("raw_"), path.count("/"), path)):
        for number, line in enumerate(files[path].text.splitlines(), 1):
            folded = line.casefold()
            if folded not in seen and all(word in folded for word in words):
                seen.add(folded)
                found.append({"path": path, "line": number, "text": line[:LINE_CHARS_MAX]})
                if len(found) == limit:
                    return found
    return found


def _within(limit: int, most: int) -> int:
    if not 1 <= limit <= most:
        raise errors.InvalidInput(f"limit is 1 to {most}")
    return limit
