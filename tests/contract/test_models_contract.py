"""Every engine answers and fails alike: the fake in memory, and the real `openai` package over either API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import pydantic
import pytest

from runlore import clock, errors
from runlore.models import openai as adapter
from runlore.models import port
from runlore.testing import models

ENGINES = ("memory", "responses", "chat")
KEY = "sk-a-key-that-nobody-may-see"
SLOW = ("silent", "slow")


class Statement(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    text: str
    evidence: list[int]


class Said(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    title: str
    statements: list[Statement]


class Waits(clock.World):
    """Real time, but nobody waits; what would have been waited for is noted."""

    def __init__(self):
        self.waited = []

    async def sleep(self, seconds):
        self.waited.append(seconds)


@pytest.fixture
def world():
    made = Waits()
    clock.install(made)
    yield made
    clock.install(clock.World())


def asked(**more):
    said = {"model": "gpt-5.4-mini", "instructions": "Summarize.", "input": "a run", "answer": Said}
    return port.Ask(**said | more)


@contextlib.asynccontextmanager
async def engine_of(kind, replies, **more):
    """An engine of a kind that answers after a script, and what was seen of its asks."""
    if kind == "memory":
        yield models.ScriptedEngine(replies)
        return
    async with models.ModelServer(replies) as server:
        settings = {"api": kind, "key": KEY, "timeout_seconds": 5.0, "tries_max": 1} | more
        engine = adapter.OpenAIEngine(url=server.url, **settings)
        try:
            yield engine
        finally:
            await engine.close()


VALUE = {"title": "a fix", "statements": [{"text": "it works with -x", "evidence": [3, 5]}]}


@pytest.mark.parametrize("kind", ENGINES)
async def test_an_answer_is_typed_counted_and_priced(kind, world):
    reply = models.Reply(VALUE, tokens=(1_000_000, 400_000, 10_000), model="gpt-5.4-mini-2026-03-17")
    async with engine_of(kind, [reply]) as engine:
        answer = await engine.ask(asked())
    assert answer.value == Said.model_validate(VALUE)
    assert answer.model == "gpt-5.4-mini-2026-03-17"
    assert answer.usage == port.Usage(input_tokens=1_000_000, cached_tokens=400_000, output_tokens=10_000)
    assert answer.cost_usd == pytest.approx(0.6 * 0.75 + 0.4 * 0.075 + 0.01 * 4.5)


@pytest.mark.parametrize("kind", ENGINES)
async def test_what_is_not_known_of_the_cost_is_told_as_unknown(kind, world):
    async with engine_of(kind, [models.Reply(VALUE, tokens=None), models.Reply(VALUE)]) as engine:
        first = await engine.ask(asked())
        assert first.usage is None and first.cost_usd is None
        second = await engine.ask(asked(model="somebodys-own"))
        assert second.usage is not None and second.cost_usd is None


@pytest.mark.parametrize("fault", models.FAULTS)
@pytest.mark.parametrize("kind", ENGINES)
async def test_each_fault_is_told_as_what_can_be_done_about_it(kind, fault, world, caplog):
    caplog.set_level(logging.DEBUG)
    seconds = 0.3 if fault in SLOW else 5.0
    async with engine_of(kind, [models.Reply(VALUE, fault)], timeout_seconds=seconds) as engine:
        with pytest.raises(errors.RunloreError) as told:
            await engine.ask(asked(input="what the customer said"))
    assert type(told.value) is models._ERRORS[fault]
    said = json.dumps(told.value.as_dict()) + str(told.value) + repr(told.value.__cause__)
    assert KEY not in said and "customer" not in said


@pytest.mark.parametrize("kind", ENGINES)
async def test_an_engine_goes_on_after_a_fault(kind, world):
    replies = [models.Reply(fault="malformed"), models.Reply(fault="unauthorized"), models.Reply(VALUE)]
    async with engine_of(kind, replies) as engine:
        for error in (errors.BadAnswer, errors.ModelBlocked):
            with pytest.raises(error):
                await engine.ask(asked())
        assert (await engine.ask(asked())).value.title == "a fix"


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_shape_that_endpoints_would_not_hold_a_model_to_is_refused_before_it_is_sent(kind, world):
    class Loose(pydantic.BaseModel):
        title: str = ""

    async with engine_of(kind, []) as engine:
        with pytest.raises(errors.Fatal):
            await engine.ask(asked(answer=Loose))


# --- what only an endpoint has ----------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ENGINES[1:])
async def test_what_is_sent_begins_with_what_does_not_change_and_stores_nothing(api, world):
    async with models.ModelServer() as server:
        engine = adapter.OpenAIEngine(url=server.url, key=KEY, api=api)
        await engine.ask(asked(effort="low", tier="flex", output_tokens_max=700))
        await engine.ask(asked())
        await engine.close()
    first, second = server.seen
    assert (first.instructions, first.input) == ("Summarize.", "a run")
    assert (first.effort, first.tier) == ("low", "flex") and (second.effort, second.tier) == ("", "")
    assert first.schema == port.schema_of(Said)
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert 700 in (first.body.get("max_output_tokens"), first.body.get("max_completion_tokens"))
    assert "tools" not in first.body
    if api == "responses":
        assert first.body["store"] is False and first.body["text"]["format"]["strict"] is True
        assert first.body["prompt_cache_key"] == second.body["prompt_cache_key"]
        assert "reasoning" not in second.body
    else:
        assert first.body["response_format"]["json_schema"]["strict"] is True
        assert [one["role"] for one in first.body["messages"]] == ["system", "user"]


async def test_an_endpoint_without_the_responses_api_is_asked_over_chat_from_then_on(world):
    async with models.ModelServer([models.Reply(VALUE)] * 2, paths=[models.CHAT]) as server:
        engine = adapter.OpenAIEngine(url=server.url)
        for _ in range(2):
            assert (await engine.ask(asked())).value.title == "a fix"
        assert engine._api == adapter.CHAT
        await engine.close()
    assert [one.path for one in server.seen] == [models.CHAT] * 2


async def test_a_model_that_is_not_there_is_no_reason_to_try_the_other_api(world):
    async with models.ModelServer([models.Reply(fault="no_model")]) as server:
        engine = adapter.OpenAIEngine(url=server.url, tries_max=3)
        with pytest.raises(errors.ModelBlocked, match="does not take"):
            await engine.ask(asked())
        await engine.close()
    assert [one.path for one in server.seen] == [models.RESPONSES]


async def test_an_endpoint_with_neither_api_is_told_to_a_person(world):
    async with models.ModelServer(paths=[]) as server:
        engine = adapter.OpenAIEngine(url=server.url)
        with pytest.raises(errors.ModelBlocked) as told:
            await engine.ask(asked())
        await engine.close()
    assert "RUNLORE_MODEL_URL" in told.value.hint


@pytest.mark.parametrize("api", ENGINES[1:])
async def test_a_full_endpoint_is_asked_again_after_as_long_as_it_wants(api, world):
    replies = [models.Reply(fault="busy", retry_after=7), models.Reply(fault="broken"), models.Reply(VALUE)]
    async with engine_of(api, replies, tries_max=3) as engine:
        assert (await engine.ask(asked())).value.title == "a fix"
    assert world.waited[0] == 7 and 0 < world.waited[1] < adapter.WAIT_SECONDS_MAX and len(world.waited) == 2


async def test_a_wait_that_is_too_long_for_a_place_in_line_is_left_to_the_stage(world):
    async with engine_of("responses", [models.Reply(fault="busy", retry_after=600)], tries_max=3) as engine:
        with pytest.raises(errors.ModelBusy) as told:
            await engine.ask(asked())
    assert told.value.context["retry_after_seconds"] == 600 and world.waited == []


@pytest.mark.parametrize(
    "fault",
    (
        "no_quota",
        "unauthorized",
        "no_model",
        "too_long",
        "refusal",
        "malformed",
        "truncated",
        "silent",
        "cut",
    ),
)
async def test_what_trying_again_does_not_mend_or_would_pay_for_twice_is_sent_once(fault, world):
    async with models.ModelServer([models.Reply(fault=fault)]) as server:
        engine = adapter.OpenAIEngine(url=server.url, tries_max=5, timeout_seconds=0.5)
        with pytest.raises(errors.RunloreError):
            await engine.ask(asked())
        await engine.close()
    assert len(server.seen) == 1 and world.waited == []


async def test_an_endpoint_that_is_not_there_is_tried_and_then_told(world):
    async with models.ModelServer() as server:
        gone = server.url
    engine = adapter.OpenAIEngine(url=gone, tries_max=3)
    with pytest.raises(errors.ModelUnavailable, match="not reached"):
        await engine.ask(asked())
    await engine.close()
    assert len(world.waited) == 2


async def test_a_projects_many_requests_let_anothers_go_out_next(world):
    async with models.ModelServer(lambda seen: models.Reply(VALUE)) as server:
        engine = adapter.OpenAIEngine(url=server.url, requests_max=2)
        asks = [asked(input=f"noisy {n}", project="noisy") for n in range(40)]
        asks += [asked(input=f"quiet {n}", project="quiet") for n in range(4)]
        await asyncio.gather(*(engine.ask(one) for one in asks))
        await engine.close()
    order = [seen.input for seen in server.seen]
    # Two were out before; from then on each has one of the two places.
    assert max(order.index(f"quiet {n}") for n in range(4)) < 2 + 2 * 4 + 2, order
    assert asks[0].name == asked(input="noisy 0").name  # For whom it is asked decides no answer.


async def test_no_more_requests_go_out_at_the_same_time_than_may(world):
    # Each answer yields to the loop at every byte, so that all that may go out are seen together.
    async with models.ModelServer(lambda seen: models.Reply(VALUE, "slow", seconds=0.0)) as server:
        engine = adapter.OpenAIEngine(url=server.url, requests_max=2)
        told = await asyncio.gather(
            *(engine.ask(asked(input=str(one))) for one in range(8)), return_exceptions=True
        )
        await engine.close()
    assert [one.value.title for one in told] == ["a fix"] * 8
    assert server.most == 2
