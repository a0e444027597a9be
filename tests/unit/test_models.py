"""Kept answers, prices and choices: nobody pays twice, an unknown cost is not 0, a file says only what it may."""

from __future__ import annotations

import json
import re

import pydantic
import pytest

from runlore import errors
from runlore.commit import keys, sweep
from runlore.models import answers, choices, port, prices
from runlore.testing import models
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import verify


class Said(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    title: str


def asked(**more):
    said = {"model": "gpt-5.4-mini", "instructions": "Summarize.", "input": "a run", "answer": Said}
    return port.Ask(**said | more)


def accept(value):
    return {"title": value.title.upper()}


def replies(*titles):
    return models.ScriptedEngine([models.Reply({"title": title}) for title in titles])


# --- kept answers ---------------------------------------------------------------------------------------------


async def test_what_was_answered_once_is_not_asked_again():
    store, engine = MemoryStore(), replies("one", "two")
    first = await answers.ask(store, engine, "acme", asked(), accept)
    again = await answers.ask(store, engine, "acme", asked(), accept)
    assert first.result == again.result == {"title": "ONE"}
    assert (first.is_new, again.is_new) == (True, False) and len(engine.asked) == 1
    assert again.usage["input_tokens"] == 1000 and again.cost_usd == first.cost_usd > 0


class Other(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    title: str
    more: str


@pytest.mark.parametrize(
    "more",
    (
        {"model": "gpt-5.5"},
        {"effort": "high"},
        {"instructions": "Summarize well."},
        {"input": "another run"},
        {"output_tokens_max": 9},
        {"number": 1},
        {"answer": Other},
    ),
    ids=lambda more: next(iter(more)),
)
def test_whatever_decides_an_answer_gives_the_ask_another_name(more):
    assert asked(**more).name != asked().name


def test_what_changes_only_the_price_does_not():
    assert asked(tier="flex").name == asked().name


async def test_an_answer_of_one_project_is_not_found_by_another():
    store, engine = MemoryStore(), replies("one", "two")
    await answers.ask(store, engine, "acme", asked(), accept)
    other = await answers.ask(store, engine, "zeta", asked(), accept)
    assert other.result == {"title": "TWO"}
    assert {key.split("/")[0] for key in store.snapshot()} == {"acme", "zeta"}


async def test_what_code_does_not_accept_is_not_kept():
    store, engine = MemoryStore(), replies("bad", "good")

    def picky(value):
        if value.title == "bad":
            raise errors.BadAnswer("nothing of it can be used")
        return accept(value)

    with pytest.raises(errors.BadAnswer):
        await answers.ask(store, engine, "acme", asked(), picky)
    assert store.snapshot() == {}
    assert (await answers.ask(store, engine, "acme", asked(), picky)).result == {"title": "GOOD"}


class Races(models.ScriptedEngine):
    """While it answers, another worker's answer to the same lands."""

    def __init__(self, store, other):
        super().__init__([models.Reply({"title": "late"})])
        self.store, self.other = store, other

    async def ask(self, ask):
        await answers.ask(self.store, self.other, "acme", ask, accept)
        return await super().ask(ask)


async def test_of_two_workers_that_ask_the_same_both_go_on_with_the_one_that_landed():
    store = MemoryStore()
    late = await answers.ask(store, Races(store, replies("first")), "acme", asked(), accept)
    assert late.result == {"title": "FIRST"} and not late.is_new
    assert (await answers.read(store, "acme", asked().name)).result == {"title": "FIRST"}


class LosesReply(MemoryStore):
    """The first write lands, and its reply does not come."""

    lost = 0

    async def put_if_absent(self, key, body):
        etag = await super().put_if_absent(key, body)
        if not self.lost:
            self.lost += 1
            raise errors.OutcomeUnknown("the reply was lost")
        return etag


async def test_an_answer_whose_reply_of_the_store_was_lost_is_recognised_as_our_own():
    store, engine = LosesReply(), replies("one", "two")
    kept = await answers.ask(store, engine, "acme", asked(), accept)
    assert kept.result == {"title": "ONE"} and kept.is_new and len(engine.asked) == 1


@pytest.mark.parametrize("raw", (b"", b"{}", b"[]", b'{"format": "runlore.answer/1", "name": "abc"}'))
async def test_a_damaged_answer_is_told_and_never_taken(raw):
    store = MemoryStore()
    key = keys.answer("acme", asked().name)
    await store.put(key, raw)
    with pytest.raises(errors.Corrupt) as told:
        await answers.ask(store, replies("one"), "acme", asked(), accept)
    assert "delete it" in told.value.hint
    found = (await verify.verify(store, MemoryBus())).violations
    assert [one.where for one in found] == [key]


async def test_an_answer_under_another_asks_name_is_not_taken():
    store = MemoryStore()
    await answers.ask(store, replies("one"), "acme", asked(), accept)
    [(_, body)] = store.snapshot().items()
    await store.put(keys.answer("acme", asked(number=1).name), body)
    with pytest.raises(errors.Corrupt):
        await answers.read(store, "acme", asked(number=1).name)


async def test_verify_reads_answers_and_a_sweep_leaves_them():
    store = MemoryStore()
    await answers.ask(store, replies("one"), "acme", asked(), accept)
    told = await verify.verify(store, MemoryBus())
    assert told.violations == [] and told.checked == {"answers": 1}
    plan = await sweep.scan(store, "acme")
    assert plan.victims == [] and plan.young == 0
    assert keys.ANSWERS in keys.KINDS


async def test_what_is_kept_says_what_was_asked_without_its_words():
    store = MemoryStore()
    await answers.ask(store, replies("one"), "acme", asked(input="what the customer said"), accept)
    [(_, body)] = store.snapshot().items()
    assert b"customer" not in body
    assert json.loads(body)["asked"]["model"] == "gpt-5.4-mini"


# --- prices ---------------------------------------------------------------------------------------------------


def usage(came=1000, went=100, cached=0):
    return port.Usage(input_tokens=came, output_tokens=went, cached_tokens=cached)


def test_the_table_has_a_source_a_day_and_the_models_that_are_asked_by_default():
    table = prices.built_in()
    assert table.source.startswith("https://") and re.fullmatch(r"\d{4}-\d{2}-\d{2}", table.checked)
    for choice in choices.DEFAULTS.values():
        assert table.cost_usd(choice.model, tier=choice.tier, usage=usage()) > 0


def test_a_tier_has_its_own_price_and_the_cache_another():
    table = prices.built_in()
    assert table.cost_usd("gpt-5.5", tier="flex", usage=usage()) == pytest.approx(0.004)
    whole = table.cost_usd("gpt-5.5", tier="", usage=usage())
    assert whole == pytest.approx(1000 * 5e-6 + 100 * 30e-6)
    assert table.cost_usd("gpt-5.5", tier="", usage=usage(cached=1000)) == pytest.approx(
        1000 * 5e-7 + 100 * 30e-6
    )


@pytest.mark.parametrize(
    ("model", "tier", "told"),
    (
        ("somebodys-own", "", usage()),
        ("gpt-5.5", "of-tomorrow", usage()),
        ("gpt-5.5", "", None),
        ("gpt-5.5", "", usage(came=300_000)),
    ),
    ids=("model", "tier", "usage", "long"),
)
def test_what_the_table_does_not_say_is_unknown_and_not_free(model, tier, told):
    assert prices.built_in().cost_usd(model, tier=tier, usage=told) is None


# --- choices --------------------------------------------------------------------------------------------------

FILE = """
[summarize]
effort = "low"
extra_prompt = "Orders are in cents."

[memories."acme/support".summarize]
model = "our/model-1"
effort = ""

[prices."our/model-1".tiers]
default = { input = 0.1, output = 0.4 }
"""


def test_a_memory_changes_what_the_file_says_for_all_and_the_rest_is_the_sdks_default(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(FILE)
    found = choices.load(path)
    own, other = (found.of("acme", memory, "summarize") for memory in ("support", "sales"))
    assert (own.model, own.effort, own.extra_prompt) == ("our/model-1", "", "Orders are in cents.")
    assert (other.model, other.effort) == ("gpt-5.4-mini", "low")
    last = found.of("acme", "support", "consolidate")
    assert (last.model, last.effort) == ("gpt-5.5", "medium")
    table = found.table()
    assert table.cost_usd("our/model-1", tier="", usage=usage()) == pytest.approx(0.00014)
    assert table.cost_usd("gpt-5.5", tier="", usage=usage()) > 0


@pytest.mark.parametrize(
    ("said", "where"),
    (
        ("[summarise]\nmodel = 'a'", "summarise"),
        ("[summarize]\nmodel = 'two words'", "summarize.model"),
        ("[summarize]\ninput_tokens_max = 1", "summarize.input_tokens_max"),
        ("[memories.support.summarize]\nmodel = 'a'", "memories"),
        ("[prices.a.tiers]\ndefault = { input = -1, output = 1 }", "prices.a.tiers.default.input"),
        ("[prices.a.tiers]\ndefault = { input = inf, output = 1 }", "prices.a.tiers.default.input"),
        ("[summarize", "not TOML"),
    ),
    ids=("phase", "name", "limit", "memory", "negative", "infinite", "toml"),
)
def test_a_file_that_says_what_it_may_not_is_refused_with_the_place(said, where, tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(said)
    with pytest.raises(errors.BadModels, match=re.escape(where)):
        choices.load(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(errors.BadModels, match="can not be read"):
        choices.load(tmp_path / "none.toml")
