"""Our own builder of the SDK's rollout line, so that nothing here needs the SDK to be installed.

Key order, separators, escapes and the item filter are the SDK's (openai-agents 0.24,
`sandbox/memory/rollouts.py`), which a golden test compares with the real functions. Its functions are
undocumented, and importing the SDK takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

UNKNOWN_TIME = "unknown"
"""What the SDK's own memory storage reads as "no time is known" (and sorts last)."""

COMPLETED = "completed"
INTERRUPTED = "interrupted"
CANCELLED = "cancelled"
FAILED = "failed"
MAX_TURNS_EXCEEDED = "max_turns_exceeded"
GUARDRAIL_TRIPPED = "guardrail_tripped"
TERMINAL_STATES = (COMPLETED, INTERRUPTED, CANCELLED, FAILED, MAX_TURNS_EXCEEDED, GUARDRAIL_TRIPPED)

_ROLES_DROPPED = frozenset({"developer", "system"})
_ROLES_KEPT = frozenset({"assistant", "tool", "user"})
_TYPES_KEPT = frozenset(
    {
        "apply_patch_call",
        "apply_patch_call_output",
        "computer_call",
        "computer_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "function_call",
        "function_call_output",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)


def keeps(item: dict[str, Any]) -> bool:
    """Whether the SDK keeps this item in a rollout line: by its role first, then by its type."""
    role = item.get("role")
    if role in _ROLES_DROPPED:
        return False
    return role in _ROLES_KEPT or item.get("type") in _TYPES_KEPT


def items_of(input: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's input as items: a text is one user message."""
    if isinstance(input, str):
        return [{"content": input, "role": "user"}]
    return list(input)


def terminal(
    state: str, *, error_type: str | None = None, error: str | None = None, has_final_output: bool = False
) -> dict[str, Any]:
    """The line's `terminal_metadata`."""
    return {
        "terminal_state": state,
        "exception_type": error_type,
        "exception_message": error or None,
        "has_final_output": has_final_output,
    }


def terminal_of_exception(exc: BaseException) -> dict[str, Any]:
    """The `terminal_metadata` of a run that raised: the SDK goes by the class's name alone."""
    name = type(exc).__name__
    if name == "MaxTurnsExceeded":
        state = MAX_TURNS_EXCEEDED
    elif "Guardrail" in name:
        state = GUARDRAIL_TRIPPED
    elif name == "CancelledError":
        state = CANCELLED
    else:
        state = FAILED
    return terminal(state, error_type=name, error=str(exc))


def build(
    *,
    updated_at: str,
    rollout_id: str | None,
    input: str | Sequence[dict[str, Any]],
    generated_items: Sequence[dict[str, Any]],
    terminal_metadata: dict[str, Any],
    interruptions: Sequence[Any] = (),
    final_output: Any = None,
) -> dict[str, Any]:
    """The payload of one run in the SDK's key order, its items filtered as the SDK filters them."""
    payload: dict[str, Any] = {"updated_at": updated_at}
    if rollout_id is not None:
        payload["rollout_id"] = rollout_id
    payload["input"] = [item for item in items_of(input) if keeps(item)]
    payload["generated_items"] = [item for item in generated_items if keeps(item)]
    if interruptions:
        payload["interruptions"] = list(interruptions)
    payload["terminal_metadata"] = terminal_metadata
    if final_output is not None:
        payload["final_output"] = final_output
    return payload


def dump(payload: dict[str, Any]) -> str:
    """The payload as the SDK's line: compact, ASCII, ended by a newline."""
    return json.dumps(payload, separators=(",", ":")) + "\n"


def digest(payload: dict[str, Any]) -> str:
    """32 hex digits that name what a run says, whatever rollout it is filed under."""
    body = {name: value for name, value in payload.items() if name != "rollout_id"}
    return hashlib.sha256(dump(body).encode("ascii")).hexdigest()[:32]
