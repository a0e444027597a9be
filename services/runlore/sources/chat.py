"""`chat`: OpenAI chat messages, one conversation a JSONL line.

A line is `{"messages": […]}`, `{"traj": […]}` (tau-bench) or the bare list. Optional beside it: an id
(`conversation_id`, `session_id`, `group_id`, `thread_id` or `id`), `user_id` (the subject), a time, each also
under `metadata`. One line is one run; a line without an id is a rollout of its own.

tau-bench: `reward` and `info` say how well the run did and what the right actions were. They are labels for
measuring, and are never read, but for `info.task.user_id`: whom the run was for. `task_id` and `trial`, with
the file's name (every domain counts its tasks from 0), are the conversation.

**How it ended** is decided by the agent's last act, as it is in the SDK, where words of the user that no run
answers are part of no run. Its text: `completed`, and that text is the final output, also when the user had a
word after it (which is kept among the items). A call or an output: `cancelled`, because the log stops before
the agent spoke, and does not say who stopped it; `failed` would claim an error that no line shows.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from runlore import errors
from runlore.events import envelope, ids
from runlore.sources import items, payloads

_LISTS = ("messages", "traj")
_TIMES = ("updated_at", "created_at", "timestamp", "created")
_ROLES = ("user", "assistant", "tool", "function", "system", "developer")
_MILLISECONDS_FROM = 100_000_000_000
"""A number of at least this is milliseconds since 1970, not seconds (it would be the year 5138)."""


def run(text: str, *, stem: str) -> dict[str, Any]:
    """The run of one line. Raises `errors.BadJson` or `errors.InvalidRecord`."""
    line = envelope.load(text, "the line")
    about = line if isinstance(line, dict) else {}
    found = _ids(about, stem)
    rollout = next(iter(found.values()), "")
    messages = _messages(line)
    transcript = transcribe(messages, rollout)
    payload = payload_of(transcript, updated_at=_updated_at(about))
    return finished(payload, found, subject=_subject(about), agents=speakers(messages))


def payload_of(
    transcript: items.Transcript,
    *,
    updated_at: str,
    rollout_id: str | None = None,
    terminal: dict[str, Any] | None = None,
    final_output: Any = None,
) -> dict[str, Any]:
    """The SDK's payload of a conversation: it ended as `terminal` says, else as the agent's last act does."""
    first, rest = transcript.split()
    if terminal is None:
        final_output = transcript.last_word() if final_output is None else final_output
        ended = payloads.CANCELLED if final_output is None else payloads.COMPLETED
        terminal = payloads.terminal(ended, has_final_output=final_output is not None)
    return payloads.build(
        updated_at=updated_at,
        rollout_id=rollout_id,
        input=first,
        generated_items=rest,
        terminal_metadata=terminal,
        final_output=final_output,
    )


def finished(
    payload: dict[str, Any], found: dict[str, str], *, subject: str | None, agents: list[str]
) -> dict[str, Any]:
    """The event's fields for `payload`: the run is named by what it says, so a changed line is a new run."""
    digest = payloads.digest(payload)
    stem = ids.alias(next(iter(found.values()), "chat"))
    run_id = f"{stem}-{digest}"
    rollout = ids.resolve_rollout(
        conversation_id=found.get("conversation_id"),
        session_id=found.get("session_id"),
        group_id=found.get("group_id"),
        run_id=run_id,
    )
    # The SDK puts the rollout's id after the time; its readers go by that order.
    ordered = {"updated_at": payload["updated_at"], "rollout_id": rollout.alias, **payload}
    out: dict[str, Any] = {**found, "run_id": run_id, "attempt": 1}
    if subject:
        out["subject"] = subject
    if agents:
        out["agents"] = agents
    out["record"] = payloads.dump(ordered).removesuffix("\n")
    return out


def _messages(line: Any) -> list[Any]:
    if isinstance(line, dict):
        name = next((name for name in _LISTS if name in line), None)
        if name is None:
            raise errors.InvalidRecord(f"this is no conversation: it has neither {' nor '.join(_LISTS)}")
        line = line[name]
    if not isinstance(line, list):
        raise errors.InvalidRecord("the conversation's messages are not a list")
    return line


def _ids(about: dict[str, Any], stem: str) -> dict[str, str]:
    """The ids of a conversation by the event's own names, in the order in which they decide the rollout."""
    out = {
        name: value
        for name, keys in {
            "conversation_id": ("conversation_id", "thread_id"),
            "session_id": ("session_id",),
            "group_id": ("group_id",),
        }.items()
        if (value := _named(about, keys))
    }
    if out:
        return out
    if own := _named(about, ("id",)):
        return {"conversation_id": own}
    if "task_id" in about:
        trial = f".trial-{about['trial']}" if "trial" in about else ""
        return {"conversation_id": f"{stem}.task-{about['task_id']}{trial}"}
    return {}


def _named(about: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    metadata = about.get("metadata")
    for holder in (about, metadata if isinstance(metadata, dict) else {}):
        for key in keys:
            value = holder.get(key)
            # A number is an id too (rows of a database), a boolean is not.
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip()
    return None


def _subject(about: dict[str, Any]) -> str | None:
    if named := _named(about, ("subject", "user_id")):
        return named
    info = about.get("info")
    task = info.get("task") if isinstance(info, dict) else None
    return _named(task, ("user_id",)) if isinstance(task, dict) else None


def _updated_at(about: dict[str, Any]) -> str:
    """The conversation's own time as the SDK writes times, or its word for none. Never the machine's."""
    metadata = about.get("metadata")
    for holder in (about, metadata if isinstance(metadata, dict) else {}):
        for key in _TIMES:
            if when := moment(holder.get(key)):
                return when
    return payloads.UNKNOWN_TIME


def moment(value: Any) -> str | None:
    """A time as the SDK writes times: from ISO 8601 (UTC where it names no zone), or a number since 1970.

    The number's size tells its unit: seconds, milliseconds, microseconds or nanoseconds.
    """
    try:
        if isinstance(value, str):
            when = dt.datetime.fromisoformat(value.strip())
            when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            when = dt.datetime.fromtimestamp(_seconds(value), dt.UTC)
        else:
            return None
        return when.astimezone(dt.UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError):
        return None


def _seconds(value: float) -> float:
    for _ in range(3):
        if value < _MILLISECONDS_FROM:
            break
        value = value / 1000
    return value


def speakers(messages: list[Any]) -> list[str]:
    """Who spoke as the assistant, in order, where the log tells (`name`): a chain of hand-offs."""
    names = [m.get("name") for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def transcribe(messages: list[Any], rollout: str) -> items.Transcript:
    """The items of a list of chat messages. Raises `errors.InvalidRecord` with the message that is none."""
    transcript = items.Transcript(rollout)
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise errors.InvalidRecord(f"{where} is not an object")
        _add(transcript, message, where)
    if not transcript.items:
        raise errors.InvalidRecord("the conversation holds no message of a user, an assistant or a tool")
    return transcript


def _add(transcript: items.Transcript, message: dict[str, Any], where: str) -> None:
    role = message.get("role")
    text = items.as_text(message.get("content"))
    if role in ("system", "developer"):
        return  # As the SDK does: instructions are the agent's, not what happened.
    if role == "user":
        transcript.user(text)
    elif role == "assistant":
        _add_assistant(transcript, message, text, where)
    elif role in ("tool", "function"):
        given, name = message.get("tool_call_id"), message.get("name")
        transcript.output(
            text,
            given if isinstance(given, str) else None,
            name if isinstance(name, str) else None,
            failed=message.get("is_error") is True,
        )
    elif role is None:
        raise errors.InvalidRecord(f"{where} has no role")
    else:
        raise errors.InvalidRecord(f"{where} has the role {str(role)[:40]!r}; known are {', '.join(_ROLES)}")


def _add_assistant(transcript: items.Transcript, message: dict[str, Any], text: str, where: str) -> None:
    text = text or items.as_text(message.get("refusal"))
    if text:
        transcript.assistant(text)
    if message.get("tool_calls"):
        items.add_tool_calls(transcript, message["tool_calls"], where)
    legacy = message.get("function_call")
    if isinstance(legacy, dict):
        if not isinstance(legacy.get("name"), str):
            raise errors.InvalidRecord(f"{where}.function_call has no name")
        transcript.call(legacy["name"], items.as_arguments(legacy.get("arguments")))
