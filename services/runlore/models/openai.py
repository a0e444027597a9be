"""An engine over the `openai` package: any endpoint that speaks its API, with structured output.

The Responses API first; where an endpoint does not have it (404, 405, 501 on the path), chat completions, from then
on. Nothing is stored at the endpoint (`store=False`), and no tool is offered: a model answers in the shape that it is
given, and can do nothing else.

An endpoint that is full (429) or stumbles (5xx, no connection) is tried again a few times, after as long as it asks
for. What could be paid for twice is not tried again here: a request that came to no end in time waits for the stage's
own next try. Nor is what would end the same way: a bad answer, a refusal, a missing right.

What goes out at the same time is bounded, and shared out by project (`turns.Gate`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from runlore import clock, errors, telemetry, turns
from runlore.models import port, prices
from runlore.settings import Settings

try:
    import openai
except ImportError as exc:
    raise errors.Refused(
        f"asking a model needs openai, which is not installed ({exc.name})",
        hint="pip install 'runlore[server]'",
    ) from None

log = structlog.get_logger("runlore.models")

URL = "https://api.openai.com/v1"
AUTO, RESPONSES, CHAT = "auto", "responses", "chat"
WAIT_SECONDS_MIN = 0.5
WAIT_SECONDS_MAX = 20.0
"""An endpoint that asks for longer is left to the stage, whose place in line is not held meanwhile."""
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")
_FILTERED = (
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "responsible_ai_policy_violation",
)
_SETTINGS = (
    "unsupported_parameter",
    "unsupported_value",
    "unknown_parameter",
    "invalid_model",
    "model_not_found",
)
"""Codes of a 400 that every ask with these settings would meet."""
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
"""Faults of a connection after which the endpoint has surely seen nothing."""
_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}")


@dataclass(frozen=True)
class Said:
    """What either API answered, before its text is read."""

    text: str
    is_refusal: bool
    cut: str
    """Why the text ends before its end; empty: it does not."""
    model: str
    tier: str
    usage: port.Usage | None


class OpenAIEngine:
    """`port.Engine` over one endpoint. One for a process: its limit of requests at the same time is the endpoint's."""

    def __init__(
        self,
        *,
        url: str = "",
        key: str = "",
        api: str = AUTO,
        table: prices.Table | None = None,
        timeout_seconds: float = 300.0,
        requests_max: int = 4,
        tries_max: int = 3,
    ) -> None:
        # Each of these is given: what is not, the package reads from OPENAI_* variables that are not meant for us.
        self._client = openai.AsyncOpenAI(
            base_url=url or URL,
            api_key=key or "none",
            timeout=timeout_seconds,
            max_retries=0,
            # What is asked holds what runs said: it goes where the settings say, and nowhere that an answer names.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self._api, self._table = api, table or prices.built_in()
        self._timeout_seconds, self._tries_max = timeout_seconds, tries_max
        self._room = turns.Gate(requests_max)
        self._unpriced: set[str] = set()

    @classmethod
    def of(cls, settings: Settings, table: prices.Table) -> OpenAIEngine:
        """The engine that `settings` name. Nothing is asked of it yet."""
        return cls(
            url=settings.model_url,
            key=settings.model_key.get_secret_value(),
            api=settings.model_api,
            table=table,
            timeout_seconds=settings.model_timeout_seconds,
            requests_max=settings.model_requests_max,
            tries_max=settings.model_tries_max,
        )

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, ask: port.Ask) -> port.Answer:
        if len(ask.input) + len(ask.instructions) > port.INPUT_BYTES_MAX:
            raise errors.AskRejected(f"the ask is longer than {port.INPUT_BYTES_MAX} characters")
        for attempt in range(self._tries_max):
            try:
                async with self._room.place(ask.project):
                    said = await self._sent(ask)
                return self._answer(ask, said)
            except (errors.ModelBusy, errors.ModelUnavailable) as exc:
                asked = exc.context.get("retry_after_seconds")
                wait = asked if asked is not None else WAIT_SECONDS_MIN * 2**attempt * (0.5 + clock.jitter())
                is_last = attempt == self._tries_max - 1
                if is_last or wait > WAIT_SECONDS_MAX or exc.context.get("may_be_paid"):
                    raise
            await clock.sleep(wait)
        raise AssertionError("unreachable")

    async def _sent(self, ask: port.Ask) -> Said:
        """What the endpoint answered to one request. Raises as `models/port.py` says."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if self._api == CHAT:
                    return await self._chat(ask)
                try:
                    return await self._responses(ask)
                except openai.APIStatusError as exc:
                    if self._api != AUTO or not _lacks_api(exc):
                        raise
                said = await self._chat(ask)
                self._api = CHAT
                return said
        except (TimeoutError, openai.APITimeoutError):
            telemetry.MODEL_REQUESTS.inc(model=ask.model, status=telemetry.NO_REPLY)
            raise errors.ModelUnavailable(
                f"no whole answer of {ask.model} came within {self._timeout_seconds:g} s", may_be_paid=True
            ) from None
        except openai.APIStatusError as exc:
            telemetry.MODEL_REQUESTS.inc(model=ask.model, status=f"{exc.status_code // 100}xx")
            raise _error(exc, ask) from None
        except openai.APIError as exc:
            telemetry.MODEL_REQUESTS.inc(model=ask.model, status=telemetry.NO_REPLY)
            cause = type(exc.__cause__ or exc).__name__
            if cause in _NOT_SENT:
                raise errors.ModelUnavailable(
                    f"the endpoint of {ask.model} is not reached: {cause}"
                ) from None
            raise errors.ModelUnavailable(
                f"the connection to the endpoint of {ask.model} ended too early: {cause}", may_be_paid=True
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            telemetry.MODEL_REQUESTS.inc(model=ask.model, status="2xx")
            raise errors.ModelUnavailable(
                f"the endpoint of {ask.model} answers what no such API answers",
                hint="check RUNLORE_MODEL_URL; it usually ends in /v1",
                may_be_paid=True,
            ) from None

    async def _responses(self, ask: port.Ask) -> Said:
        form = {"type": "json_schema", **_schema(ask)}
        sent: dict[str, Any] = {
            "model": ask.model,
            "instructions": ask.instructions,
            "input": ask.input,
            "text": {"format": form},
            "max_output_tokens": ask.output_tokens_max,
            "store": False,
            # Asks with the same beginning go where it is cached.
            "prompt_cache_key": hashlib.sha256(ask.instructions.encode("utf-8", "replace")).hexdigest()[:32],
        }
        sent |= {"reasoning": {"effort": ask.effort}} if ask.effort else {}
        sent |= {"service_tier": ask.tier} if ask.tier else {}
        raw = await self._client.responses.with_raw_response.create(**sent)
        return _of_responses(json.loads(raw.text), ask)

    async def _chat(self, ask: port.Ask) -> Said:
        sent: dict[str, Any] = {
            "model": ask.model,
            "messages": [
                {"role": "system", "content": ask.instructions},
                {"role": "user", "content": ask.input},
            ],
            "response_format": {"type": "json_schema", "json_schema": _schema(ask)},
            "max_completion_tokens": ask.output_tokens_max,
        }
        sent |= {"reasoning_effort": ask.effort} if ask.effort else {}
        sent |= {"service_tier": ask.tier} if ask.tier else {}
        raw = await self._client.chat.completions.with_raw_response.create(**sent)
        return _of_chat(json.loads(raw.text), ask)

    def _answer(self, ask: port.Ask, said: Said) -> port.Answer:
        """What was said, as an answer. Raises `errors.NoAnswer`, with what it has cost all the same."""
        cost = self._table.cost_usd(ask.model, tier=said.tier or ask.tier, usage=said.usage)
        _count(ask.model, said.usage, cost)
        if cost is None and ask.model not in self._unpriced:
            self._unpriced.add(ask.model)
            log.warning("the cost of a model is not known", model=ask.model, is_usage_told=bool(said.usage))
        paid: dict[str, Any] = {**(said.usage.as_dict() if said.usage else {}), "cost_usd": cost}
        if said.is_refusal:
            raise errors.ModelRefused(f"{ask.model} refuses to answer this", **paid)
        if said.cut:
            raise errors.BadAnswer(
                f"the answer of {ask.model} was cut off: {said.cut}",
                hint="raise `output_tokens_max` in the file of models" if "tokens" in said.cut else None,
                **paid,
            )
        value = port.read(ask, said.text, paid)
        return port.Answer(value=value, model=said.model, usage=said.usage, cost_usd=cost)


def _count(model: str, usage: port.Usage | None, cost_usd: float | None) -> None:
    """Count an answer and what it took. What is not known is not counted."""
    telemetry.MODEL_REQUESTS.inc(model=model, status="2xx")
    if usage is not None:
        telemetry.MODEL_TOKENS.inc(usage.input_tokens, model=model, direction="in")
        telemetry.MODEL_TOKENS.inc(usage.output_tokens, model=model, direction="out")
    if cost_usd is not None:
        telemetry.MODEL_COST.inc(cost_usd, model=model)


def _schema(ask: port.Ask) -> dict[str, Any]:
    return {"name": ask.answer.__name__.lower(), "schema": port.schema_of(ask.answer), "strict": True}


# --- what came back ---------------------------------------------------------------------------------------------


def _of_responses(body: Mapping[str, Any], ask: port.Ask) -> Said:
    """An answer of the Responses API. Raises what a strange body raises, and what a failed response says."""
    texts: list[str] = []
    is_refusal = False
    if body.get("status") == "failed" or body.get("error"):
        raise _failed(_known(body.get("error"), "code"), ask)
    for item in body["output"]:
        for part in item.get("content") or () if item.get("type") == "message" else ():
            is_refusal = is_refusal or part.get("type") == "refusal"
            texts += [part["text"]] if part.get("type") == "output_text" else []
    cut = ""
    if body.get("status") == "incomplete":
        cut = _known(body.get("incomplete_details"), "reason") or "incomplete"
    usage = body.get("usage") or {}
    return Said(
        text="".join(texts),
        is_refusal=is_refusal or cut in _FILTERED,
        cut=cut,
        model=str(body.get("model") or ask.model)[:128],
        tier=_known(body, "service_tier"),
        usage=_usage(usage, "input_tokens", "output_tokens"),
    )


def _of_chat(body: Mapping[str, Any], ask: port.Ask) -> Said:
    """An answer of chat completions. Raises what a strange body raises."""
    choice = body["choices"][0]
    message, ended = choice["message"], _known(choice, "finish_reason")
    return Said(
        text=message.get("content") or "",
        is_refusal=bool(message.get("refusal")) or ended in _FILTERED,
        cut="max_output_tokens" if ended == "length" else "",
        model=str(body.get("model") or ask.model)[:128],
        tier=_known(body, "service_tier"),
        usage=_usage(body.get("usage") or {}, "prompt_tokens", "completion_tokens"),
    )


def _usage(told: Mapping[str, Any], came: str, went: str) -> port.Usage | None:
    if not all(isinstance(told.get(name), int) for name in (came, went)):
        return None
    return port.Usage(
        input_tokens=told[came],
        output_tokens=told[went],
        cached_tokens=int((told.get(f"{came}_details") or {}).get("cached_tokens") or 0),
        reasoning_tokens=int((told.get(f"{went}_details") or {}).get("reasoning_tokens") or 0),
    )


# --- what went wrong --------------------------------------------------------------------------------------------


def _known(body: object, name: str) -> str:
    """A code that an endpoint says, if it has the form of one: anything else may be anybody's words."""
    value = body.get(name) if isinstance(body, Mapping) else None
    return value if isinstance(value, str) and _CODE.fullmatch(value) else ""


def _lacks_api(exc: openai.APIStatusError) -> bool:
    """Whether the endpoint has no such path; a model that it does not have has a code of its own."""
    return exc.status_code in (404, 405, 501) and "model" not in _known(exc.body, "code")


def _failed(code: str, ask: port.Ask) -> errors.RunloreError:
    if code in _FILTERED:
        return errors.ModelRefused(f"{ask.model} refuses to answer this: {code}")
    return errors.ModelUnavailable(f"{ask.model} failed: {code or 'no reason told'}", may_be_paid=True)


def _error(exc: openai.APIStatusError, ask: port.Ask) -> errors.RunloreError:
    """Our error for a status. The endpoint's message is left out: it may repeat the key, or what was asked."""
    status, codes = exc.status_code, (_known(exc.body, "code"), _known(exc.body, "type"))
    told = f"{status}{f' {codes[0] or codes[1]}' if any(codes) else ''}"
    named = _known(exc.body, "param")
    if status in (401, 403):
        return errors.ModelBlocked(
            f"the model's endpoint does not take our key ({told})",
            hint="set RUNLORE_MODEL_KEY to one that is good",
        )
    if status == 402 or (status in (403, 429) and set(codes) & set(_NO_QUOTA)):
        return errors.ModelBlocked(
            f"the account has no quota left for {ask.model} ({told})",
            hint="add credit, or raise the account's limit",
        )
    if 300 <= status < 400:
        return errors.ModelBlocked(
            f"the endpoint of {ask.model} answers with a redirect ({status}), which is not followed",
            hint="set RUNLORE_MODEL_URL to where it leads, if that is meant",
        )
    if status == 404 or set(codes) & set(_SETTINGS):
        return errors.ModelBlocked(
            f"the endpoint does not take {ask.model} as it is asked ({told}{f', {named}' if named else ''})",
            hint="check the model, its effort and tier in the file of models, and RUNLORE_MODEL_URL",
        )
    waits: dict[str, Any] = {} if (after := _retry_after(exc)) is None else {"retry_after_seconds": after}
    if status == 429:
        return errors.ModelBusy(f"the endpoint of {ask.model} takes no more for now ({told})", **waits)
    if status in (408, 409) or status >= 500:
        return errors.ModelUnavailable(f"the endpoint of {ask.model} answers {told}", **waits)
    if set(codes) & set(_FILTERED):
        return errors.ModelRefused(f"a filter in front of {ask.model} refuses this ({told})")
    return errors.AskRejected(f"the endpoint does not take this ask for {ask.model} ({told})")


def _retry_after(exc: openai.APIStatusError) -> float | None:
    """How long the endpoint asks to wait. A date instead of seconds is left to our own waits."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(exc.response.headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None
