"""`claude-code`: sessions of Claude Code, `~/.claude/projects/<folder>/<session>.jsonl`, and its subagents'.

The format is Claude Code's own and unpublished; what stands here was gathered from its issues and from tools that
read it (anthropics/claude-code#66947, #92089, #60845; microsoft/amplifier#46; xingkaixin/codesesh#263). A line has
`type`, `uuid`, `parentUuid`, `sessionId`, `timestamp`, `cwd`, `gitBranch`:

| type | what is taken |
|---|---|
| `user` | `message.content`: the person's text, or `tool_result` blocks (`tool_use_id`, `content`, `is_error`) |
| `assistant` | `message.content`: `text` and `tool_use` (`id`, `name`, `input`); one answer may be several lines |
| `attachment` | a `queued_command`: what the person typed while the agent worked (it stands in no `user` line) |
| any other | nothing: `summary`, `system`, `file-history-snapshot`, titles, modes, queues |

**Whose words.** Lines with `isMeta`, `isCompactSummary`, `isVisibleInTranscriptOnly` or an `origin` other than a
human are the program's. `[Request interrupted by user]` is an end, not a word. A slash command is `/name args`.

**Copies.** A compaction may write lines again, with their old `uuid`: a uuid counts once in a file. A continued
session keeps its ancestors' lines with their `sessionId`: they are runs of that session, and known there. A branch
marks what it copied with `forkedFrom`, and those lines are passed over. Where a copy says nothing of its origin, the
file that comes first in one import has the turn.

**Subagents** (`isSidechain`) have files of their own, `<session>/subagents/agent-<id>.jsonl` (earlier beside the
session, or between its lines). Each is a rollout of its own, `<session>.agent-<id>`, whose runs have the turn that
called it as `parent_run_id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runlore.sources import Problem, items, turns

FOLDERS_UP_MAX = 5
"""A subagent's file lies this many folders below its session's at most."""
COMMAND_CHARS_MAX = 10_000
"""Characters of a message in which a slash command is looked for."""
_SESSION = re.compile(r"[\w-]{1,64}")
_INTERRUPTED = "[Request interrupted by user"
_REJECTED = "User rejected tool use"
_TOO_LARGE = re.compile(
    r"\A<persisted-output>\nOutput too large[^\n]*\n+Preview \([^)\n]*\):\n(.*?)\s*(?:</persisted-output>\s*)?\Z",
    re.DOTALL,
)
"""What stands for an output in a file of its own, in `<session>/tool-results/` (anthropics/claude-code#23948)."""
_EXIT = re.compile(r"(?:Error: )?Exit code (\d{1,3})\n")
_COMMAND = re.compile(r"<command-name>(.*?)</command-name>", re.DOTALL)
_ARGUMENTS = re.compile(r"<command-args>(.*?)</command-args>", re.DOTALL)
_LOCAL = ("<local-command-stdout>", "<local-command-stderr>", "<bash-stdout>", "<bash-stderr>")
_PROGRAM = (
    "<local-command-caveat>",
    "<bash-input>",
    "<system-reminder>",
    "<task-notification>",
    "Caveat: The mess",
)
_CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")
_OUTPUTS = ("tool_result", "mcp_tool_result", "web_search_tool_result", "web_fetch_tool_result")


class Importer:
    """Reads the files of one import, and remembers across them which turns it had."""

    def __init__(self) -> None:
        self.turns: dict[str, str] = {}
        """Turn → the conversation that had it first."""
        self._called_in: tuple[Path, dict[str, str]] | None = None

    def runs(self, path: Path) -> Iterator[turns.Run | Problem]:
        """The runs of one file, and what is wrong in it."""
        return turns.runs(_Reader(path, self), path)

    def called_in(self, file: Path) -> dict[str, str]:
        """Subagent → the turn of the session in `file` that called it."""
        if self._called_in is None or self._called_in[0] != file:
            reader = _Reader(file, Importer())
            for _ in turns.runs(reader, file):
                pass
            self._called_in = file, reader.spawned
        return self._called_in[1]


class _Reader:
    def __init__(self, path: Path, seen: Importer) -> None:
        self.known = 0
        self.spawned: dict[str, str] = {}
        """Subagent → the turn in which its call was answered."""
        self._path = path
        self._seen = seen
        self._uuids: set[str] = set()
        self._main: turns.Turn | None = None
        self._side: dict[str, turns.Turn] = {}
        """Chain → the turn of a subagent whose lines stand between the session's."""
        self._chain_of: dict[str, str] = {}
        """The uuid of a line of such a chain → the chain."""

    def read(self, line: turns.Line) -> Iterator[turns.Run | Problem]:
        line = _queued(line)
        data = line.data
        if data.get("type") not in ("user", "assistant") or not isinstance(data.get("message"), dict):
            self.known += isinstance(data.get("type"), str)
            return
        self.known += 1
        uuid = turns.id_of(data.get("uuid"))
        if isinstance(data.get("forkedFrom"), dict) or (uuid is not None and uuid in self._uuids):
            return
        if uuid is not None:
            self._uuids.add(uuid)
        if data.get("isSidechain") is True and not self._path.name.startswith("agent-"):
            yield from self._read_side(line, uuid)
        else:
            yield from self._read_main(line, uuid)

    def end(self) -> Iterator[turns.Run | Problem]:
        for turn in (self._main, *self._side.values()):
            if turn is not None:
                yield from self._finish(turn)

    def _finish(self, turn: turns.Turn) -> Iterator[turns.Run | Problem]:
        if turn.acted and self._seen.turns.setdefault(turn.run_id, turn.conversation) == turn.conversation:
            yield from turn.finish()

    def _read_main(self, line: turns.Line, uuid: str | None) -> Iterator[turns.Run | Problem]:
        said = _spoken(line.data)
        conversation = self._conversation(line.data)
        begins = said and line.data.get("isQueued") is not True
        if self._main is not None and (
            (begins and self._main.acted) or self._main.conversation != conversation
        ):
            for turn in (self._main, *self._side.values()):
                yield from self._finish(turn)
            self._main, self._side = None, {}
        if self._main is None:
            if not said and not _is_act(line.data):
                return
            self._main = self._begin(line, uuid, conversation)
            if line.data.get("isSidechain") is True:
                self._main.parent = self._parent(line.data)
        spawned = turns.part_of(line.data, "toolUseResult").get("agentId")
        if isinstance(spawned, str):
            self.spawned.setdefault(spawned, self._main.run_id)
        _add(self._main, line, said)

    def _read_side(self, line: turns.Line, uuid: str | None) -> Iterator[turns.Run | Problem]:
        """A subagent's line in the session's own file, as versions until 2025 wrote them."""
        above = turns.id_of(line.data.get("parentUuid"))
        chain = self._chain_of.get(above or "") or uuid or str(line.number)
        if uuid is not None:
            self._chain_of[uuid] = chain
        turn = self._side.get(chain)
        if turn is None:
            session = self._conversation(line.data)
            turn = self._side[chain] = self._begin(line, uuid, f"{session}.agent-{chain}")
            turn.parent = self._main.run_id if self._main is not None else None
        _add(turn, line, _spoken(line.data))
        yield from ()

    def _begin(self, line: turns.Line, uuid: str | None, conversation: str) -> turns.Turn:
        name = uuid or f"{conversation}.{line.number}"
        return turns.Turn(name, conversation, path=self._path, line=line.number)

    def _conversation(self, data: dict[str, Any]) -> str:
        session = turns.id_of(data.get("sessionId")) or self._path.stem
        if data.get("isSidechain") is True and self._path.name.startswith("agent-"):
            agent = turns.id_of(data.get("agentId")) or self._path.stem.removeprefix("agent-")
            return f"{session}.agent-{agent}"
        return session

    def _parent(self, data: dict[str, Any]) -> str | None:
        """The turn of the session in which this subagent was called; the session itself where it can't be told."""
        session = turns.id_of(data.get("sessionId"))
        agent = turns.id_of(data.get("agentId")) or self._path.stem.removeprefix("agent-")
        if session is None:
            return None
        if _SESSION.fullmatch(session):  # It becomes a file's name.
            for folder in list(self._path.parents)[:FOLDERS_UP_MAX]:
                if (file := folder / f"{session}.jsonl").is_file():
                    return self._seen.called_in(file).get(agent, session)
        return session


def _queued(line: turns.Line) -> turns.Line:
    """A line that attaches the person's words, as a line in which they stand; any other as it is."""
    attached = turns.part_of(line.data, "attachment")
    if line.data.get("type") != "attachment" or attached.get("type") != "queued_command":
        return line
    if attached.get("commandMode") not in (None, "prompt"):
        return line
    said = {"role": "user", "content": attached.get("prompt")}
    data = {**line.data, "type": "user", "message": said, "isQueued": True}
    return turns.Line(line.number, {**data, "origin": attached.get("origin")})


def _add(turn: turns.Turn, line: turns.Line, said: str) -> None:
    data, message = line.data, line.data["message"]
    if data["type"] == "assistant":
        if message.get("model") == "<synthetic>" and data.get("isApiErrorMessage") is not True:
            return
        turn.seen(line, data.get("timestamp"))
        if data.get("isApiErrorMessage") is True:
            turn.failed("api_error", items.as_text(message.get("content")))
        else:
            _add_answer(turn, message.get("content"))
        return
    blocks = message.get("content")
    text = items.as_text(blocks) if isinstance(blocks, str) else ""
    if said or _is_act(data) or _is_interruption(blocks) or text.startswith(_LOCAL):
        turn.seen(line, data.get("timestamp"))
    for block in blocks if isinstance(blocks, list) else []:
        if isinstance(block, dict) and block.get("type") in _OUTPUTS:
            _add_output(turn, block, data.get("toolUseResult"))
    if said:
        turn.user(said)
    if text.startswith(_LOCAL):
        turn.unsay("/")  # It was a command of the program's own: this is what it printed.
    if _is_interruption(blocks):
        turn.stopped()


def _add_answer(turn: turns.Turn, content: Any) -> None:
    if isinstance(content, str):
        turn.assistant(content)
    for block in content if isinstance(content, list) else []:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            turn.assistant(turns.text_of(block.get("text")))
        elif kind in _CALLS and turns.id_of(block.get("name")):
            turn.call(block["name"], items.as_arguments(block.get("input")), turns.id_of(block.get("id")))
        elif kind in _OUTPUTS:
            _add_output(turn, block, None)


def _add_output(turn: turns.Turn, block: dict[str, Any], result: Any) -> None:
    # What the person refused did not run: it is no failure of the tool, and the words in it are the person's.
    refused = isinstance(result, str) and result.startswith(_REJECTED)
    failed = block.get("is_error") is True
    text, code = items.as_text(block.get("content")), 0 if not failed and _went_well(result) else None
    # The first line of a command that failed: as a number it is no word of the error.
    if failed and (head := _EXIT.match(text)) and text[head.end() :].strip():
        text, code = text[head.end() :], int(head.group(1))
    if preview := _TOO_LARGE.match(text):
        text = f"{preview.group(1)}\n[cut]"
    call_id = turns.id_of(block.get("tool_use_id"))
    turn.output(text, call_id, failed=failed and not refused, exit_code=code)


def _went_well(result: Any) -> bool:
    """Whether a command ended with exit code 0: any other is an error, or comes with an interpretation."""
    return (
        isinstance(result, dict)
        and isinstance(result.get("stdout"), str)
        and result.get("interrupted") is False
        and not result.get("returnCodeInterpretation")
        and not result.get("backgroundTaskId")
    )


def _is_act(data: dict[str, Any]) -> bool:
    """Whether a line is the agent's doing: its answer, or a tool's output."""
    content = data["message"].get("content")
    if data["type"] == "assistant":
        return bool(content)
    blocks = content if isinstance(content, list) else []
    return any(isinstance(block, dict) and block.get("type") in _OUTPUTS for block in blocks)


def _is_interruption(content: Any) -> bool:
    return _joined(content).startswith(_INTERRUPTED)


def _joined(content: Any) -> str:
    """A message's own text: that of its text blocks, pictures as their kind, without tools' outputs."""
    if isinstance(content, list):
        content = [one for one in content if not (isinstance(one, dict) and one.get("type") in _OUTPUTS)]
    return items.as_text(content)


def _spoken(data: dict[str, Any]) -> str:
    """The person's words in a line; none where the program speaks."""
    origin = data.get("origin")
    if data.get("type") != "user" or (isinstance(origin, dict) and origin.get("kind") not in (None, "human")):
        return ""
    if any(data.get(flag) is True for flag in ("isMeta", "isCompactSummary", "isVisibleInTranscriptOnly")):
        return ""
    text = _joined(data["message"].get("content"))
    head = text[:COMMAND_CHARS_MAX]
    if command := _COMMAND.search(head):
        arguments = _ARGUMENTS.search(head)
        name = "/" + command.group(1).strip().lstrip("/")
        return f"{name} {arguments.group(1).strip()}".strip() if arguments else name
    if text.startswith((_INTERRUPTED, *_LOCAL, *_PROGRAM)) or turns.is_wrapped(text):
        return ""
    return text if text.strip() else ""
