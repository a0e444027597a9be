"""`agents-sdk`: the Agents SDK's own session files, `sessions/<rollout>.jsonl`, one run a line.

The line is the record as it stands: not a byte of it is changed here. The file does not say whether its
rollout was a conversation, a session or a group; the three share one namespace, so it is given as the
conversation. Lines of the JavaScript SDK (camelCase items, raw non-ASCII) come through the same way.
"""

from __future__ import annotations

from typing import Any

from runlore import errors
from runlore.events import envelope, ids, records

_SHAPE = ("input", "generated_items", "terminal_metadata")


def run(text: str, *, stem: str) -> dict[str, Any]:
    """The run of one line. Raises `errors.BadJson` or `errors.InvalidRecord`."""
    envelope.load(text, "the line")  # For its message, which says where the JSON breaks.
    payload = records.check(text)
    if not any(name in payload for name in _SHAPE):
        raise errors.InvalidRecord(f"this is no SDK rollout line: it has none of {', '.join(_SHAPE)}")
    own = payload.get("rollout_id")
    rollout = own.strip() if isinstance(own, str) and own.strip() else stem
    return {
        "conversation_id": rollout,
        "run_id": f"{ids.alias(rollout)}-{records.received_hash(text)}",
        "attempt": 1,
        "record": text,
    }
