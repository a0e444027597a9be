"""A scripted model: an engine in memory, and a local HTTP server that speaks OpenAI's API, after one script.

A script is asked what to answer each time: it sees the ask as it arrived, and gives a `Reply`. Without one every answer
is the smallest that fits the schema. `ScriptedEngine` gives replies without a network; `ModelServer` gives them to the
real `openai` package, or to anything else that speaks the Responses API or chat completions.

    python -m runlore.testing.models --port 8099        # RUNLORE_MODEL_URL=http://127.0.0.1:8099/v1

A reply may be a fault instead:

=================  ==============================================================================================
`refusal`          the model refuses, in the API's own form
`filtered`         a content filter ends the answer
`malformed`        the text is no JSON
`truncated`        the text ends in the middle, and the API says that the limit of tokens was met
`wrong_schema`     JSON of another shape
`busy`             429, with `retry_after` if it is given
`no_quota`         429 with the code `insufficient_quota`
`broken`           500
`unauthorized`     401, with a message that repeats the key
`forbidden`        403
`no_model`         404 with the code `model_not_found`
`bad_setting`      400 with the code `unsupported_value`
`too_long`         400 with the code `context_length_exceeded`
`silent`           the request is read, and nothing is ever said
`cut`              the connection ends in the middle of the body
`slow`             the body comes a byte at a time, `seconds` apart
`gibberish`        200 with a body that is no JSON
=================  ==============================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.models import port, prices

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
HEAD_BYTES_MAX = 64 * 1024
_STATUSES: dict[str, tuple[int, str, str]] = {
    # fault → status, code, type
    "busy": (429, "rate_limit_exceeded", "requests"),
    "no_quota": (429, "insufficient_quota", "insufficient_quota"),
    "broken": (500, "", "server_error"),
    "unauthorized": (401, "invalid_api_key", "invalid_request_error"),
    "forbidden": (403, "unsupported_country_region_territory", "request_forbidden"),
    "no_model": (404, "model_not_found", "invalid_request_error"),
    "bad_setting": (400, "unsupported_value", "invalid_request_error"),
    "too_long": (400, "context_length_exceeded", "invalid_request_error"),
}
_ERRORS: dict[str, type[errors.RunloreError]] = {
    "refusal": errors.ModelRefused,
    "filtered": errors.ModelRefused,
    "malformed": errors.BadAnswer,
    "truncated": errors.BadAnswer,
    "wrong_schema": errors.BadAnswer,
    "busy": errors.ModelBusy,
    "no_quota": errors.ModelBlocked,
    "broken": errors.ModelUnavailable,
    "unauthorized": errors.ModelBlocked,
    "forbidden": errors.ModelBlocked,
    "no_model": errors.ModelBlocked,
    "bad_setting": errors.ModelBlocked,
    "too_long": errors.AskRejected,
    "silent": errors.ModelUnavailable,
    "cut": errors.ModelUnavailable,
    "slow": errors.ModelUnavailable,
    "gibberish": errors.ModelUnavailable,
}
FAULTS = tuple(_ERRORS)


@dataclass(frozen=True)
class Seen:
    """An ask as it arrived."""

    model: str
    instructions: str
    input: str
    schema: Mapping[str, Any]
    effort: str = ""
    tier: str = ""
    path: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What the model answers: a value of the shape that was asked for, or a fault."""

    value: Any = None
    """None: the smallest value that fits the schema."""
    fault: str = ""
    retry_after: float | None = None
    seconds: float = 0.05
    tokens: tuple[int, int, int] | None = (1000, 200, 100)
    """Input, of it from the cache, output; None: the endpoint does not say."""
    model: str = ""
    tier: str = ""

    def __post_init__(self) -> None:
        if self.fault and self.fault not in FAULTS:
            raise ValueError(f"there is no fault {self.fault!r}; there are {', '.join(FAULTS)}")

    @property
    def usage(self) -> port.Usage | None:
        if self.tokens is None:
            return None
        came, cached, went = self.tokens
        return port.Usage(input_tokens=came, output_tokens=went, cached_tokens=cached)


Script = Callable[[Seen], Reply]


def in_turn(replies: Iterable[Reply]) -> Script:
    """A script of these replies, one after the other; then the smallest answer for ever."""
    left = list(replies)
    return lambda seen: left.pop(0) if left else Reply()


def smallest(schema: Mapping[str, Any], defs: Mapping[str, Any] | None = None) -> Any:
    """The smallest value that fits a schema of objects, lists and scalars."""
    defs = schema.get("$defs", {}) if defs is None else defs
    if "$ref" in schema:
        return smallest(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return smallest(schema["anyOf"][0], defs)
    if schema.get("type") == "object":
        return {name: smallest(one, defs) for name, one in schema.get("properties", {}).items()}
    return {"array": [], "string": "", "integer": 0, "number": 0.0, "boolean": False}.get(
        schema.get("type", "")
    )


# --- in memory --------------------------------------------------------------------------------------------------


class ScriptedEngine:
    """`models.port.Engine` after a script, without a network and without waits. Faults are final: it tries once."""

    def __init__(self, script: Script | Iterable[Reply] = (), *, table: prices.Table | None = None) -> None:
        self._script = script if callable(script) else in_turn(script)
        self._table = table or prices.built_in()
        self.asked: list[port.Ask] = []
        """Every ask, in order."""

    async def ask(self, ask: port.Ask) -> port.Answer:
        self.asked.append(ask)
        seen = Seen(
            ask.model, ask.instructions, ask.input, port.schema_of(ask.answer), ask.effort, ask.tier, "memory"
        )
        reply = self._script(seen)
        if reply.fault not in ("", "malformed", "wrong_schema"):
            waits = {} if reply.retry_after is None else {"retry_after_seconds": reply.retry_after}
            raise _ERRORS[reply.fault](f"scripted: {reply.fault}", **waits)
        cost = self._table.cost_usd(ask.model, tier=reply.tier or ask.tier, usage=reply.usage)
        value = port.read(ask, _text(reply, seen), {"cost_usd": cost})
        return port.Answer(value=value, model=reply.model or ask.model, usage=reply.usage, cost_usd=cost)

    async def close(self) -> None:
        return None


def _text(reply: Reply, seen: Seen) -> str:
    """The text of a reply, spoilt where its fault says so."""
    if reply.fault == "wrong_schema":
        return json.dumps({"something": "else"})
    if reply.fault == "malformed":
        return "Sure! Here is the JSON that you asked for:"
    said = json.dumps(smallest(seen.schema) if reply.value is None else reply.value)
    return said[: len(said) // 2] if reply.fault == "truncated" else said


# --- over HTTP --------------------------------------------------------------------------------------------------


class ModelServer:
    """An endpoint on a free port of 127.0.0.1. `async with` starts and stops it."""

    def __init__(
        self,
        script: Script | Iterable[Reply] = (),
        *,
        paths: Iterable[str] = (RESPONSES, CHAT),
        listen: int = 0,
    ) -> None:
        self._script = script if callable(script) else in_turn(script)
        self._paths, self._listen = frozenset(paths), listen
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen: list[Seen] = []
        """Every ask that reached the script, in order."""
        self.most = 0
        """The most asks that were in hand at the same time."""
        self._in_hand = 0

    @property
    def url(self) -> str:
        """What to set as base URL."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> ModelServer:
        self._server = await asyncio.start_server(
            self._client, "127.0.0.1", self._listen, limit=HEAD_BYTES_MAX
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The client went away, or the server is stopped.
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        body = json.loads(await reader.readexactly(int(headers.get("content-length") or 0)) or b"{}")
        path = first.split(" ")[1]
        if path not in self._paths:
            return await _send(writer, 404, {"detail": "Not Found"})
        seen = _seen(path, body, headers)
        self.seen.append(seen)
        self._in_hand += 1
        self.most = max(self.most, self._in_hand)
        try:
            return await self._reply(self._script(seen), seen, writer)
        finally:
            self._in_hand -= 1

    async def _reply(self, reply: Reply, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if reply.fault == "silent":
            await asyncio.Event().wait()
        if reply.fault in _STATUSES:
            status, code, kind = _STATUSES[reply.fault]
            said = f"scripted {reply.fault}; your key is {seen.headers.get('authorization', '')}"
            error = {"message": said, "type": kind, "code": code or None, "param": "reasoning.effort"}
            waits = "" if reply.retry_after is None else f"Retry-After: {reply.retry_after:g}\r\n"
            return await _send(writer, status, {"error": error}, waits)
        if reply.fault == "gibberish":
            return await _send(writer, 200, "<html>not an API")
        answer = (_responses if seen.path == RESPONSES else _chat)(reply, seen)
        if reply.fault == "cut":
            whole = json.dumps(answer).encode()
            writer.write(_head(200, len(whole)) + whole[: len(whole) // 2])
            await writer.drain()
            return False
        if reply.fault == "slow":
            whole = json.dumps(answer).encode()
            writer.write(_head(200, len(whole)))
            for at in range(len(whole)):
                writer.write(whole[at : at + 1])
                await writer.drain()
                await asyncio.sleep(reply.seconds)
            return True
        return await _send(writer, 200, answer)


def _seen(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Seen:
    tier = body.get("service_tier", "")
    if path == RESPONSES:
        schema = ((body.get("text") or {}).get("format") or {}).get("schema") or {}
        effort = (body.get("reasoning") or {}).get("effort", "")
        said, asked = body.get("instructions", ""), body.get("input", "")
    else:
        schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema") or {}
        effort = body.get("reasoning_effort", "")
        by_role = {one["role"]: one["content"] for one in body.get("messages", ())}
        said, asked = by_role.get("system", ""), by_role.get("user", "")
    return Seen(body.get("model", ""), said, asked, schema, effort, tier, path, body, headers)


def _responses(reply: Reply, seen: Seen) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": _text(reply, seen), "annotations": []}
    if reply.fault == "refusal":
        part = {"type": "refusal", "refusal": "I can not help with that."}
    reason = {"truncated": "max_output_tokens", "filtered": "content_filter"}.get(reply.fault)
    out: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "status": "incomplete" if reason else "completed",
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": reply.model or seen.model,
        "output": [
            {"id": "rs_1", "type": "reasoning", "summary": []},
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]},
        ],
        "service_tier": reply.tier or "default",
    }
    if reply.usage:
        used = reply.usage
        out["usage"] = {
            "input_tokens": used.input_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.input_tokens + used.output_tokens,
        }
    return out


def _chat(reply: Reply, seen: Seen) -> dict[str, Any]:
    is_refusal = reply.fault == "refusal"
    message = {
        "role": "assistant",
        "content": None if is_refusal else _text(reply, seen),
        "refusal": "I can not help with that." if is_refusal else None,
    }
    ended = {"truncated": "length", "filtered": "content_filter"}.get(reply.fault, "stop")
    out: dict[str, Any] = {
        "id": "chatcmpl_1",
        "object": "chat.completion",
        "created": 0,
        "model": reply.model or seen.model,
        "choices": [{"index": 0, "message": message, "finish_reason": ended}],
    }
    if reply.usage:
        used = reply.usage
        out["usage"] = {
            "prompt_tokens": used.input_tokens,
            "completion_tokens": used.output_tokens,
            "total_tokens": used.input_tokens + used.output_tokens,
            "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        }
    return out


def _head(status: int, size: int, more: str = "", kind: str = "application/json") -> bytes:
    lines = f"HTTP/1.1 {status} Scripted\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{more}\r\n"
    return lines.encode("latin-1")


async def _send(writer: asyncio.StreamWriter, status: int, said: Any, more: str = "") -> bool:
    raw = said.encode() if isinstance(said, str) else json.dumps(said).encode()
    kind = "text/html" if isinstance(said, str) else "application/json"
    writer.write(_head(status, len(raw), more, kind) + raw)
    await writer.drain()
    return True


async def _serve(listen: int) -> None:
    async with ModelServer(listen=listen) as server:
        print(f"a scripted model at {server.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A scripted model that speaks OpenAI's API.")
    parser.add_argument("--port", type=int, default=0, help="Port; 0: any free one.")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args().port))
