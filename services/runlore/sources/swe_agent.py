"""`swe-agent`: SWE-agent trajectories, one run a `.traj` file.

`history` is what the model saw (the task, its own turns), `trajectory` what happened: each step's thought,
action and observation, the last one too. The task is taken from the history, the steps from the trajectory,
and where the model called tools (`tool_calls`), the calls from the history's turn of the same action. System
prompts and demonstrations (`is_demo`) are not what happened, and are left out.

A text action is a call of one tool named `action`, the key under which the file keeps it: what a line of text
runs is for the reader of the record to find out, not for an importer that knows some commands and not others.

**How it ended.** A submission is the final output and makes the run `completed`, as any final output does in
the SDK. Without one: `failed` with the file's `exit_status` as the exception's type, or `cancelled` where the
file gives no status (it was written while the run went on). No status is translated into another word.
"""

from __future__ import annotations

from typing import Any

from runlore import errors
from runlore.events import envelope
from runlore.sources import chat, items, payloads

TEXT_ACTION_TOOL = "action"
_SUBMITTED = "submitted"


def run(text: str, *, stem: str) -> dict[str, Any]:
    """The run of one file. Raises `errors.BadJson` or `errors.InvalidRecord`."""
    document = envelope.load(text, "the file")
    if not isinstance(document, dict) or not isinstance(document.get("trajectory"), list):
        raise errors.InvalidRecord("this is no SWE-agent trajectory: it has no list `trajectory`")
    history = _history(document)
    transcript = items.Transcript(stem)
    _add_task(transcript, history)
    _add_steps(transcript, document["trajectory"], [m for m in history if m.get("role") == "assistant"])
    if not transcript.items:
        raise errors.InvalidRecord("the trajectory holds no task and no step")
    info = document.get("info")
    final, terminal = _end(info if isinstance(info, dict) else {})
    first, rest = transcript.split()
    payload = payloads.build(
        updated_at=payloads.UNKNOWN_TIME,
        rollout_id=None,
        input=first,
        generated_items=rest,
        terminal_metadata=terminal,
        final_output=final,
    )
    agents = list(
        dict.fromkeys(m["agent"] for m in history if isinstance(m.get("agent"), str) and m["agent"])
    )
    return chat.finished(payload, {"conversation_id": stem}, subject=None, agents=agents)


def _history(document: dict[str, Any]) -> list[dict[str, Any]]:
    history = document.get("history") or []
    if not isinstance(history, list):
        raise errors.InvalidRecord("`history` is not a list")
    for number, message in enumerate(history):
        if not isinstance(message, dict):
            raise errors.InvalidRecord(f"history[{number}] is not an object")
    return [m for m in history if m.get("role") != "system" and not m.get("is_demo")]


def _add_task(transcript: items.Transcript, history: list[dict[str, Any]]) -> None:
    for message in history:
        if message.get("role") == "assistant":
            return
        if message.get("role") == "user":
            transcript.user(items.as_text(message.get("content")))


def _add_steps(transcript: items.Transcript, steps: list[Any], turns: list[dict[str, Any]]) -> None:
    for number, step in enumerate(steps):
        if not isinstance(step, dict):
            raise errors.InvalidRecord(f"trajectory[{number}] is not an object")
        action = items.as_text(step.get("action"))
        thought = items.as_text(step.get("thought")) or items.as_text(step.get("response"))
        if thought.strip():
            transcript.assistant(thought)
        calls = _take_calls(turns, action)
        if calls:
            items.add_tool_calls(transcript, calls, f"trajectory[{number}]")
        elif action.strip():
            transcript.call(TEXT_ACTION_TOOL, items.compact({TEXT_ACTION_TOOL: action}))
        else:
            continue  # A turn without an action ran nothing; its observation is the scaffold's complaint.
        _add_observation(transcript, items.as_text(step.get("observation")), calls)


def _take_calls(turns: list[dict[str, Any]], action: str) -> list[Any]:
    """The tool calls of the next turn in the history that took this action; turns before it are passed.

    The two lists are not parallel: a turn that was asked again stands in one of them only.
    """
    for number, turn in enumerate(turns):
        if items.as_text(turn.get("action")).strip() == action.strip():
            del turns[: number + 1]
            calls = turn.get("tool_calls")
            return calls if isinstance(calls, list) else []
    return []


def _add_observation(transcript: items.Transcript, observation: str, calls: list[Any]) -> None:
    """One observation answers a step. Of several parallel calls, the last is answered: they ran in order."""
    last = calls[-1].get("id") if calls and isinstance(calls[-1], dict) else None
    transcript.output(observation, last if isinstance(last, str) else None)


def _end(info: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    status = info.get("exit_status")
    status = status if isinstance(status, str) and status else None
    submission = info.get("submission")
    if isinstance(submission, str):
        # "submitted (exit_cost)" was handed in by the scaffold when the budget ended; keep that visible.
        kind = None if status == _SUBMITTED else status
        return submission, payloads.terminal(payloads.COMPLETED, error_type=kind, has_final_output=True)
    if status is None:
        return None, payloads.terminal(payloads.CANCELLED)
    return None, payloads.terminal(payloads.FAILED, error_type=status)
