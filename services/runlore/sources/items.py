"""Chat messages become SDK items: the part that `chat` and `swe-agent` share.

A call and its output are tied by a `call_id` that is unique in the run. Chat logs often have none, or start
again at `call_0` on every turn, and readers of records take two items with one `call_id` for the same; so a
missing or repeated id is replaced by one derived from the rollout, the call's place and its content. The
same conversation, grown by a turn, gets the same ids again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from runlore import errors

_CALL_ID_HEX = 24


class Transcript:
    """The items of one run, in the order in which they happened."""

    def __init__(self, rollout: str) -> None:
        self.items: list[dict[str, Any]] = []
        self._rollout = rollout
        self._call_ids: set[str] = set()
        self._calls = 0
        # Calls that have no output yet, oldest first: (id as given, name, id in the record, output's type).
        self._open: list[tuple[str | None, str, str, str]] = []

    def user(self, text: str) -> None:
        self.items.append({"content": text, "role": "user"})

    def assistant(self, text: str) -> None:
        self.items.append({"content": text, "role": "assistant"})

    def call(self, name: str, arguments: str, given_id: str | None = None) -> None:
        """A function call; its arguments are the JSON text that the model wrote."""
        call_id = self._new_id(given_id, name, arguments)
        self._open.append((given_id, name, call_id, "function_call_output"))
        item = {"arguments": arguments, "call_id": call_id, "name": name, "type": "function_call"}
        self.items.append(item)

    def custom_call(self, name: str, input: str, given_id: str | None = None) -> None:
        """A call of a custom tool; its input is free text."""
        call_id = self._new_id(given_id, name, input)
        self._open.append((given_id, name, call_id, "custom_tool_call_output"))
        self.items.append({"call_id": call_id, "input": input, "name": name, "type": "custom_tool_call"})

    def output(
        self,
        text: str,
        given_id: str | None = None,
        name: str | None = None,
        *,
        failed: bool = False,
        exit_code: int | None = None,
    ) -> None:
        """A call's output: of the call with the id given, else of that name, else of the oldest still open.

        One that answers no call is kept under an id of its own: what a tool said is evidence all the same.
        `failed` where the log itself calls it an error, `exit_code` where it knows one: the text alone may not show it.
        """
        found = self._answered(given_id, name)
        if found is None:
            call_id, kind = self._new_id(given_id, name or "", text), "function_call_output"
        else:
            self._open.remove(found)
            call_id, kind = found[2], found[3]
        flags: dict[str, Any] = {} if exit_code is None else {"exit_code": exit_code}
        flags |= {"is_error": True} if failed else {}
        self.items.append({"call_id": call_id, **flags, "output": text, "type": kind})

    def _answered(self, given_id: str | None, name: str | None) -> tuple[str | None, str, str, str] | None:
        if given_id:
            return next((call for call in self._open if call[0] == given_id), None)
        named = [call for call in self._open if not name or call[1] == name]
        return next(iter(named or self._open), None)

    def _new_id(self, given: str | None, name: str, content: str) -> str:
        self._calls += 1
        if given and given not in self._call_ids:
            call_id = given
        else:
            parts = json.dumps([self._rollout, self._calls, name, content]).encode("ascii")
            call_id = "call_" + hashlib.sha256(parts).hexdigest()[:_CALL_ID_HEX]
        self._call_ids.add(call_id)
        return call_id

    def split(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The run's input (what came before the agent's first word or call), and all that followed.

        A user's later turns stay where they happened, among what followed: order is evidence.
        """
        first = next((n for n, item in enumerate(self.items) if item.get("role") != "user"), len(self.items))
        return self.items[:first], self.items[first:]

    def last_word(self) -> str | None:
        """The assistant's text, if that was the agent's last act."""
        for item in reversed(self.items):
            if item.get("role") != "user":
                return item["content"] if item.get("role") == "assistant" else None
        return None


def as_text(content: Any) -> str:
    """A message's content as one text. Parts are joined by a newline; what is not text leaves its kind."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(_part, content)))
    return compact(content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return compact(part)
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return part[name]
    # Pictures, sounds and files are often megabytes of base64, and a later agent could not use them.
    kind = str(part.get("type") or "part").removeprefix("input_").removesuffix("_url")
    return f"[{kind}]"


def as_arguments(arguments: Any) -> str:
    """A call's arguments as the JSON text that the SDK holds."""
    return arguments if isinstance(arguments, str) else compact({} if arguments is None else arguments)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def add_tool_calls(transcript: Transcript, calls: Any, where: str) -> None:
    """The `tool_calls` of an assistant message; several of them ran in parallel, in the order given."""
    if not isinstance(calls, list):
        raise errors.InvalidRecord(f"{where}.tool_calls is not a list")
    for number, call in enumerate(calls):
        call = call if isinstance(call, dict) else {}
        function, custom = call.get("function"), call.get("custom")
        given = call["id"] if isinstance(call.get("id"), str) and call["id"] else None
        if isinstance(custom, dict) and isinstance(custom.get("name"), str):
            transcript.custom_call(custom["name"], as_text(custom.get("input")), given)
        elif isinstance(function, dict) and isinstance(function.get("name"), str):
            transcript.call(function["name"], as_arguments(function.get("arguments")), given)
        else:
            raise errors.InvalidRecord(f"{where}.tool_calls[{number}] has no function name")
