"""The record of a run: the SDK's own line, built from what a result, an error or the hooks tell.

The functions with which the SDK builds its line are undocumented; ours use public parts alone, and a golden test holds
them against the SDK's. On purpose they differ in two cases: a stream's record has the user's input (the SDK loses it),
and a cancelled run's the items that were there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import agents
from pydantic import BaseModel

from runlore import clock
from runlore.sources import payloads


def line(
    *,
    rollout: str,
    input: str | Sequence[Any],
    items: Sequence[Any],
    terminal: Mapping[str, Any],
    interruptions: Sequence[Any] = (),
    final_output: Any = None,
) -> str:
    """The line of one run. Raises TypeError or ValueError where a value is none that JSON holds."""
    payload = payloads.build(
        updated_at=clock.now_iso(),
        rollout_id=rollout,
        input=input if isinstance(input, str) else _plain(list(input)),
        generated_items=_plain([one for item in items if (one := item_of(item)) is not None]),
        terminal_metadata=dict(terminal),
        interruptions=[_raw(one.raw_item) for one in interruptions],
        final_output=_plain(final_output),
    )
    try:
        return payloads.dump(payload)
    except (TypeError, ValueError):
        # An output of a type of the program's own: the SDK loses the whole run there, we its type.
        return json.dumps(payload, separators=(",", ":"), default=_shown) + "\n"


def item_of(item: Any) -> dict[str, Any] | None:
    """A run item as model input; an approval request is none. A dict stands for itself."""
    if isinstance(item, dict):
        return item
    if item.type == "tool_approval_item":
        return None
    found = item.to_input_item()
    if isinstance(found, dict) and found.get("status") is None:
        found = {name: value for name, value in found.items() if name != "status"}
    return found


def terminal_of(result: Any, error: BaseException | None = None) -> dict[str, Any]:
    """The `terminal_metadata` of a run that has a result; `error` is what a stream ended with."""
    if result.final_output is not None:
        return payloads.terminal(payloads.COMPLETED, has_final_output=True)
    if getattr(result, "interruptions", None):
        return payloads.terminal(payloads.INTERRUPTED)
    if error is not None:
        return payloads.terminal_of_exception(error)
    if getattr(result, "_cancel_mode", None) == "immediate":
        return payloads.terminal(payloads.CANCELLED)
    return payloads.terminal(payloads.FAILED)


def usage_of(result: Any) -> dict[str, int] | None:
    """What the run cost, as the SDK counted it."""
    usage = getattr(getattr(result, "context_wrapper", None), "usage", None)
    names = ("requests", "input_tokens", "output_tokens", "total_tokens")
    counted = {name: getattr(usage, name, None) for name in names}
    return {name: n for name, n in counted.items() if isinstance(n, int)} or None


def digest_of(interruptions: Iterable[Any], agent: str | None) -> str:
    """What an interrupted run is recognised by when it is resumed: whose it is, and what it waits for."""
    waits = []
    for one in interruptions:
        raw = _raw(one.raw_item)
        raw = raw if isinstance(raw, dict) else {}
        waits.append([raw.get("call_id") or raw.get("id"), raw.get("name"), raw.get("arguments")])
    body = json.dumps([agent, sorted(waits, key=repr)], default=_shown)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def is_state(input: Any) -> bool:
    """Whether a run is resumed."""
    return isinstance(input, agents.RunState)


def run_before(state: Any, sessions: Path) -> str | None:
    """The run that a saved state was interrupted in, as its snapshot file is named in a folder like `sessions`.

    On the machine that made it, a note says so too; elsewhere only the state is there.
    """

    def named(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            place, name = value.get("base_path"), value.get("id")
            if isinstance(place, str) and isinstance(name, str) and is_like(Path(place), sessions):
                yield name
            for one in value.values():
                yield from named(one)
        elif isinstance(value, list):
            for one in value:
                yield from named(one)

    # `<run>-<count of its workspaces>`: see `Run.new_space`.
    found = {name.rpartition("-")[0] for name in named(state.to_json().get("sandbox"))}
    return found.pop() if len(found) == 1 else None


def is_like(folder: Path, sessions: Path) -> bool:
    """Whether it is `sessions`, here or on another machine: that has another home, and the same folders below it."""
    return folder.parts[-3:] == sessions.parts[-3:]


def _raw(raw: Any) -> Any:
    if isinstance(raw, BaseModel):
        return _plain(raw.model_dump(exclude_unset=True))
    return dict(raw) if isinstance(raw, Mapping) else _plain(raw)


def _plain(value: Any) -> Any:
    """Values as the SDK makes them fit for JSON: mappings and iterables become dicts and lists."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray):
        # A pydantic model iterates as pairs; the SDK writes it that way too.
        return [_plain(one) for one in value]
    return value


def _shown(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return repr(value)
