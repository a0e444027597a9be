"""Made session files of coding agents: the lines of Codex CLI and of Claude Code, for the tests of both importers."""

from __future__ import annotations

import json

THREAD = "0199a000-0000-7000-8000-00000000000a"
SESSION = "5e551000-0000-4000-8000-00000000000a"


def write(path, *lines):
    """A JSONL file of these lines; a text is a line as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    path.write_text(text, "utf-8")
    return path


# --- Codex -------------------------------------------------------------------------------------------------


def codex(kind, second=0, **payload):
    return {"timestamp": f"2026-03-01T10:00:{second % 60:02d}.000Z", "type": kind, "payload": payload}


def meta(thread=THREAD, **more):
    return codex("session_meta", id=thread, timestamp="2026-03-01T10:00:00.000Z", cwd="/src", **more)


def item(kind, second=0, **payload):
    return codex("response_item", second, type=kind, **payload)


def event(kind, second=0, **payload):
    return codex("event_msg", second, type=kind, **payload)


def user(text, second=0):
    return item("message", second, role="user", content=[{"type": "input_text", "text": text}])


def said(text, second=0):
    return item("message", second, role="assistant", content=[{"type": "output_text", "text": text}])


def shell(command, output, call_id, exit_code=0, second=0):
    """A command of Codex and what it printed, with the header that Codex puts above."""
    head = f"Exit code: {exit_code}\nWall time: 0.1 seconds\nOutput:\n"
    arguments = json.dumps({"command": ["bash", "-lc", command]})
    return [
        item("function_call", second, name="shell", arguments=arguments, call_id=call_id),
        item("function_call_output", second, call_id=call_id, output=head + output),
    ]


def codex_turn(number, *lines, second=0):
    """A turn as Codex announces it; `number` goes into its id, a UUIDv7 that is younger than the thread's."""
    turn_id = f"0199a000-0001-7000-8000-{number:012d}"
    return [
        event("task_started", second, turn_id=turn_id),
        codex("turn_context", second, turn_id=turn_id, model="gpt-5-codex"),
        *lines,
        event("task_complete", second, turn_id=turn_id, last_agent_message="…"),
    ]


# --- Claude Code -------------------------------------------------------------------------------------------


def claude(kind, uuid, content, *, second=0, session=SESSION, **more):
    role = {"role": kind, "content": content}
    return {
        "type": kind,
        "uuid": uuid,
        "parentUuid": None,
        "isSidechain": False,
        "sessionId": session,
        "timestamp": f"2026-03-01T10:00:{second % 60:02d}.000Z",
        "cwd": "/src",
        "gitBranch": "main",
        "message": role,
        **more,
    }


def asked(uuid, text, **more):
    return claude("user", uuid, text, **more)


def answered(uuid, text, **more):
    return claude("assistant", uuid, [{"type": "text", "text": text}], **more)


def used(uuid, name, arguments, call_id, **more):
    return claude(
        "assistant", uuid, [{"type": "tool_use", "id": call_id, "name": name, "input": arguments}], **more
    )


def resulted(uuid, text, call_id, *, is_error=False, **more):
    block = {"type": "tool_result", "tool_use_id": call_id, "content": text, "is_error": is_error}
    return claude("user", uuid, [block], **more)
