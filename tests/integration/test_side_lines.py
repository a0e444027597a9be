"""Side lines: a memory made anew beside its own line, paid for once, moving nothing; and what promoting it does."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from test_model_summaries import Pipeline, run, says

import made
from model_worlds import NoWaits, world  # noqa: F401  (a fixture)
from runlore import clock, errors
from runlore.commit import heads, keys, revisions, rollouts, sides, sweep
from runlore.consumers import consolidate, promote, rebuild, summarize
from runlore.lookup import memories, seeds
from runlore.models import choices
from runlore.testing import invariants, models, side_invariants

pytestmark = pytest.mark.usefixtures("world")
MEANT = ("acme", "support")
RULES = rebuild.setup_of(None)
OTHER = rebuild.setup_of(choices.Choice(model="gpt-5.4", effort="low"))


async def recorded(*rollouts, **more):
    """A memory with two runs of each rollout, consolidated by the rules alone."""
    one = Pipeline(**more)
    for number, rollout in enumerate(rollouts):
        await one.runs(*(made.data(10 * number + part, rollout=rollout) for part in (1, 2)))
    await one.consolidate()
    return one


async def build(one, name="side", setup=OTHER, engine=None, **more):
    engine = engine or models.ScriptedEngine(says)
    line = rebuild.Rebuild(one.store, one.bus, *MEANT, name)
    return await line.build(setup, reason="to see", engine=engine, **more), engine


async def promoted(one, name="side"):
    reader = revisions.Reader(one.store)
    return await promote.promote(one.store, one.bus, reader, *MEANT, name, reason="it is better")


async def files(one, side=None, at=None, subject=None):
    """What a seed would hold, by path."""
    _, found = await memories.files_of(revisions.Reader(one.store), *MEANT, at, subject, side=side)
    return {path: file.text for path, file in found.items()}


async def texts(one, side=None):
    revision = await revisions.Reader(one.store).at(*MEANT, side=side)
    entries = dict(revision.map("notes").items())
    return sorted(entry["key"]["text"] for entry in entries.values() if entry["kind"] == "text")


async def sound(one):
    assert await invariants.check(one.store) == []
    assert await side_invariants.check(one.store, "acme") == []


def outside(store):
    """Every object but what a side line may write, what counts spending, and the key of placeholders."""
    own = (keys.SIDES, keys.MANIFESTS, keys.PACKS, keys.ANSWERS, keys.SPEND, keys.REDACTION)
    return {key: body for key, body in store.snapshot().items() if key.split("/")[1] not in own}


async def test_the_present_rules_give_the_memory_that_is_there_already():
    one = await recorded("a", "b", "c")
    before = outside(one.store)
    done, _ = await build(one, setup=RULES)
    assert await files(one, "side") == await files(one)
    assert (done.held, done.left_out, done.progress.runs) == ((), (), 6)
    assert outside(one.store) == before
    await sound(one)


async def test_the_rules_made_anew_in_many_revisions_give_the_same(monkeypatch):
    monkeypatch.setattr(rebuild, "ROLLOUTS_PER_REVISION_MAX", 2)
    one = await recorded(*"edcba")
    done, _ = await build(one, setup=RULES)
    assert done.revision == 3 and await files(one, "side") == await files(one)
    await sound(one)


async def test_another_models_statements_stand_in_the_side_alone_and_nothing_else_moves():
    one = await recorded("a", "b")
    before = outside(one.store)
    done, engine = await build(one)
    assert len(engine.asked) == 2 and {ask.model for ask in engine.asked} == {"gpt-5.4"}
    assert len(await texts(one, "side")) == 4 and await texts(one) == []
    assert outside(one.store) == before
    assert done.progress.asks == 2 and done.progress.cost_usd > 0
    head = await sides.existing(one.store, *MEANT, "side")
    assert head.body["spent"]["answers"] == 2 and head.body["state"] == "built"
    await sound(one)


async def test_its_own_prompt_is_what_the_model_is_given():
    one = await recorded("a")
    choice = choices.Choice(model="gpt-5.4", prompt="Say what was asked.", extra_prompt="In cents.")
    _, engine = await build(one, setup=rebuild.setup_of(choice))
    (ask,) = engine.asked
    assert ask.instructions.startswith("Say what was asked.\n") and "In cents." in ask.instructions


async def test_a_build_that_was_killed_goes_on_and_pays_for_nothing_twice(monkeypatch):
    monkeypatch.setattr(rebuild, "ASKED_PER_REVISION_MAX", 3)
    one = await recorded(*"abcdefg")

    class Killed(BaseException):
        pass

    async def dies(ask):
        if len(engine.asked) == 5:
            raise Killed
        return await models.ScriptedEngine.ask(engine, ask)

    engine = models.ScriptedEngine(says)
    engine.ask = dies
    with pytest.raises(Killed):
        await build(one, engine=engine)
    assert len(engine.asked) == 5
    done, again = await build(one)
    assert len(again.asked) == 2 and done.progress.asks == 2
    head = await sides.existing(one.store, *MEANT, "side")
    assert head.body["spent"]["answers"] == 7 and len(await texts(one, "side")) == 14
    await sound(one)


async def test_a_limit_stops_before_the_next_ask_and_a_higher_one_goes_on(monkeypatch):
    monkeypatch.setattr(rebuild, "ASKED_PER_REVISION_MAX", 1)
    one = await recorded(*"abc")
    with pytest.raises(errors.SpendLimit):
        await build(one, limit_usd=1e-9)
    assert await sides.of_memory(one.store, *MEANT)
    with pytest.raises(errors.Refused, match="not finished"):
        await promoted(one)
    done, engine = await build(one, limit_usd=10.0)
    assert len(engine.asked) == 2 and done.progress.rollouts == 2


async def test_a_limit_is_no_limit_where_nobody_knows_the_price():
    one = await recorded(*"ab")
    setup = rebuild.setup_of(choices.Choice(model="our/own"))
    with pytest.raises(errors.SpendLimit, match="no price"):
        await build(one, setup=setup, limit_usd=10.0)


async def test_a_side_that_was_begun_otherwise_is_refused_with_what_differs():
    one = await recorded("a")
    await build(one)
    setup = rebuild.setup_of(choices.Choice(model="gpt-5.5", effort="low"))
    with pytest.raises(errors.Refused, match="model"):
        await build(one, setup=setup)


async def test_a_side_is_brought_up_to_date_at_the_price_of_what_came_since():
    one = await recorded("a", "b")
    await build(one)
    await one.runs(made.data(50, rollout="b", record=made.payload(50, text="something else")))
    done, engine = await build(one)
    assert done.progress.rollouts == 1 and len(engine.asked) == 1
    assert "== run 1 of 1" in engine.asked[0].input and "known preferences" in engine.asked[0].input
    assert "They asked: something else" in await texts(one, "side")
    done, engine = await build(one)
    assert not engine.asked and done.progress.rollouts_total == 0
    await sound(one)


async def test_what_the_memorys_own_model_says_since_costs_a_side_nothing():
    one = Pipeline()
    await one.runs(run(1))
    await build(one)
    await one.summarize()
    done, engine = await build(one)
    assert not engine.asked and done.progress.rollouts_total == 0


async def test_a_rollout_that_the_memory_holds_is_left_out_and_stays_out():
    one = await recorded("a")
    first = await files(one)
    await one.runs(made.data(30, rollout="bad"))
    await one.consolidate()
    reader = revisions.Reader(one.store)
    await consolidate.revert(one.store, one.bus, reader, *MEANT, to=1, reason="bad")
    done, _ = await build(one, setup=RULES)
    assert done.left_out == ("bad",) and await files(one, "side") == first


async def test_a_side_line_may_not_be_called_as_what_it_is_not():
    one = await recorded("a")
    for name in ("main", "7", "A b", ""):
        with pytest.raises(errors.InvalidId):
            await build(one, name)


async def test_a_memory_without_runs_has_no_side():
    with pytest.raises(errors.NotFound):
        await build(Pipeline(), setup=RULES)


async def test_revisions_of_both_lines_are_found_by_their_numbers(monkeypatch):
    monkeypatch.setattr(rebuild, "ASKED_PER_REVISION_MAX", 1)
    one = await recorded("a")
    for number in range(2, 4):
        await one.runs(made.data(10 * number, rollout=f"r{number}"))
        await one.consolidate()
    await build(one)
    reader = revisions.Reader(one.store)
    for number in (1, 2, 3):
        main, side = await reader.at(*MEANT, number), await reader.at(*MEANT, number, side="side")
        assert main.number == side.number == number and main.sha256 != side.sha256
        assert (main.body.get("side"), side.body["side"]) == (None, "side")
    assert [body["revision"] async for body in reader.line(*MEANT, side="side")] == [3, 2, 1]


async def test_a_seed_of_a_side_is_pinned_to_it_and_gives_the_same_bytes():
    one = await recorded("a", "b")
    await build(one)
    reader = revisions.Reader(one.store)
    seed = await seeds.resolve(reader, *MEANT, "next", side="side")
    first = await seeds.open_seed(reader, seeds.parse(seed.id))
    assert any("They asked" in file.text for file in first.files.values())
    await sides.drop(one.store, *MEANT, "side", reason="done")
    again = await seeds.open_seed(revisions.Reader(one.store), seeds.parse(seed.id))
    assert again == first
    with pytest.raises(errors.NotFound):
        await seeds.resolve(reader, *MEANT, "next", side="side")


async def test_a_name_that_was_dropped_may_begin_again_otherwise():
    one = await recorded("a")
    await build(one)
    head = await sides.drop(one.store, *MEANT, "side", reason="wrong model")
    done, _ = await build(one, setup=RULES)
    now = await sides.existing(one.store, *MEANT, "side")
    assert done.revision == 1 and now.counter > head.counter and len(now.body["was"]) == 1
    assert await files(one, "side") == await files(one)
    await sound(one)


class At(NoWaits):
    """A clock that a test moves."""

    hours = 0

    def now(self):
        return dt.datetime(2026, 3, 1, tzinfo=dt.UTC) + dt.timedelta(hours=self.hours)


async def test_a_sweep_leaves_a_side_while_it_stands_and_for_the_term_of_its_seeds():
    moving = At()
    clock.install(moving)
    one = await recorded("a")
    await build(one)
    kept = one.store.snapshot()
    moving.hours = 200
    await sweep.delete(one.store, await sweep.scan(one.store, "acme"))
    assert one.store.snapshot() == kept
    await sides.drop(one.store, *MEANT, "side", reason="done")
    head, kept = keys.side_head(*MEANT, "side"), one.store.snapshot()
    moving.hours += 72
    await sweep.delete(one.store, await sweep.scan(one.store, "acme"))
    assert one.store.snapshot() == kept
    moving.hours += 2
    await sweep.delete(one.store, await sweep.scan(one.store, "acme"))
    left = one.store.snapshot()
    gone = kept.keys() - left.keys()
    assert {key.split("/")[1] for key in gone} == {keys.MANIFESTS, keys.PACKS} and head in left
    await sound(one)
    # The name begins again, and its head counts on.
    await build(one)
    await sound(one)


async def test_a_side_of_another_project_or_memory_is_not_this_ones():
    one = await recorded("a")
    await one.runs(made.data(70, project="zeta", rollout="z"), made.data(71, memory="sales", rollout="s"))
    await build(one)
    for meant in (("zeta", "support"), ("acme", "sales")):
        assert await sides.of_memory(one.store, *meant) == []
        with pytest.raises(errors.NotFound):
            await sides.existing(one.store, *meant, "side")
    stored = one.store.snapshot()
    assert not [key for key in stored if key.startswith("zeta/") and key.split("/")[1] == keys.SIDES]


async def test_the_checkers_see_a_side_whose_objects_are_gone_or_another_lines():
    one = await recorded("a")
    await build(one, setup=RULES)
    head = await sides.existing(one.store, *MEANT, "side")
    main = await revisions.Reader(one.store).head(*MEANT)
    wrong = {"manifest": main.body["manifest"]}
    await heads.move(one.store, head, wrong, fmt=sides.FORMAT)
    (found,) = await side_invariants.check(one.store, "acme")
    assert "written for the memory" in found.what
    await one.store.delete(keys.manifest(*MEANT, 1, main.body["manifest"]))
    (found,) = await side_invariants.check(one.store, "acme")
    assert "manifest is missing" in found.what


# --- promote ------------------------------------------------------------------------------------------------


async def test_a_promoted_side_is_the_memory_and_a_revert_takes_it_back():
    one = await recorded("a", "b")
    before = await files(one)
    await build(one)
    done = await promoted(one)
    assert (done.revision, done.taken_in, done.held) == (2, (), ())
    assert await files(one) == await files(one, "side") != before
    revision = await revisions.Reader(one.store).at(*MEANT)
    assert revision.body["promoted"]["side"] == "side" and revision.body["note"] == "it is better"
    await sound(one)
    reader = revisions.Reader(one.store)
    number, held = await consolidate.revert(one.store, one.bus, reader, *MEANT, to=1, reason="worse")
    assert (number, held) == (3, []) and await files(one) == before
    await sound(one)


async def test_promoting_what_is_promoted_already_makes_no_revision_and_after_a_revert_it_does():
    one = await recorded("a")
    await build(one)
    first = await promoted(one)
    assert await promoted(one) == first
    reader = revisions.Reader(one.store)
    await consolidate.revert(one.store, one.bus, reader, *MEANT, to=1, reason="worse")
    assert (await promoted(one)).revision == first.revision + 2
    assert await files(one) == await files(one, "side")


async def test_runs_that_came_since_are_taken_in_with_it_and_nothing_is_left_to_do():
    one = await recorded("a", "b")
    await build(one)
    await one.runs(made.data(50, rollout="b", record=made.payload(50, text="what came since")))
    await one.runs(made.data(60, rollout="new"))
    await one.consolidate()
    done = await promoted(one)
    assert done.taken_in == ("b", "new")
    stood = json.dumps(await files(one))
    assert "what came since" in stood and "They asked: Please do task 11" in stood
    assert (await one.consolidate()).revision is None
    assert await invariants.check(one.store, settled=True) == []
    await sound(one)


async def test_runs_that_wait_for_consolidation_are_taken_in_after():
    one = await recorded("a", "b")
    await build(one)
    await one.runs(made.data(60, rollout="new"))
    assert (await promoted(one)).taken_in == ()
    assert (await one.consolidate()).covered == ("new",)
    assert len(await texts(one)) == 4
    assert await invariants.check(one.store, settled=True) == []


async def test_a_rollouts_next_run_brings_what_the_memory_itself_says_of_it():
    one = await recorded("a", "b")
    await build(one)
    await promoted(one)
    await one.runs(made.data(50, rollout="b"))
    await one.consolidate()
    assert await texts(one) == [f"They asked: Please do task {number} of the list" for number in (1, 2)]


async def test_what_the_memory_holds_stays_held_and_out_of_it():
    one = await recorded("a")
    await one.runs(made.data(30, rollout="bad"))
    await one.consolidate()
    await build(one)
    reader = revisions.Reader(one.store)
    await consolidate.revert(one.store, one.bus, reader, *MEANT, to=1, reason="bad")
    await promoted(one)
    assert not [text for text in await texts(one) if "task 30" in text]
    head = await reader.head(*MEANT)
    assert list(head.body["held"]) == ["bad"]
    await consolidate.release(one.store, one.bus, reader, *MEANT, ["bad"], reason="harmless")
    assert (await one.consolidate()).covered == ("bad",)
    await sound(one)


async def rescanned(one, rollout):
    """A rescan hid something in a rollout's records: its head moved, and a mark says so."""
    head = await summarize.read(one.store, *MEANT, rollout)
    told = {"rescanned": {"counter": head.counter + 1}, "model": None}
    await heads.move(one.store, head, told, fmt=rollouts.HEAD_FORMAT)


async def test_what_a_rescan_has_hidden_since_is_not_promoted():
    one = await recorded("a", "b")
    await build(one)
    await rescanned(one, "b")
    done = await promoted(one)
    assert done.taken_in == ("b",)
    assert await texts(one) == [f"They asked: Please do task {number} of the list" for number in (1, 2)]
    await sound(one)


async def test_a_side_that_is_built_again_after_a_rescan_asks_anew():
    one = await recorded("a", "b")
    await build(one)
    await rescanned(one, "b")
    done, engine = await build(one, engine=models.ScriptedEngine(says))
    # The records say what they said here, so the answer that is kept is the one; nothing known is shown.
    assert done.progress.rollouts == 1 and not engine.asked
    assert len(await texts(one, "side")) == 4


async def test_a_side_that_is_too_far_behind_is_refused_until_it_is_brought_up_to_date(monkeypatch):
    monkeypatch.setattr(consolidate, "ROLLOUTS_PER_REVISION_MAX", 1)
    one = await recorded("a")
    await build(one, setup=RULES)
    for number in (4, 5):
        await one.runs(made.data(10 * number, rollout=f"r{number}"))
        await one.consolidate()
    with pytest.raises(errors.Refused, match="lacks runs of 2 rollouts"):
        await promoted(one)
    await build(one, setup=RULES)
    assert (await promoted(one)).taken_in == ()


async def test_a_consolidation_that_comes_between_is_not_lost(monkeypatch):
    one = await recorded("a", "b")
    await build(one)
    await one.runs(made.data(60, rollout="new"))
    true, seen = revisions.write, []

    async def write(*args, **given):
        if not seen:
            seen.append(1)
            await one.consolidate()
        return await true(*args, **given)

    monkeypatch.setattr(revisions, "write", write)
    done = await promoted(one)
    assert (done.revision, done.taken_in) == (3, ("new",))
    assert await invariants.check(one.store, settled=True) == []


async def test_a_guilty_rollout_is_held_and_the_rest_is_promoted(monkeypatch):
    one = await recorded("a")
    await build(one, setup=RULES)
    await one.runs(made.data(40, rollout="bad"), made.data(50, rollout="good"))
    await one.consolidate()
    true = consolidate.take_in

    def take_in(state, batch, *rest):
        if "bad" in batch:
            raise ValueError
        return true(state, batch, *rest)

    monkeypatch.setattr(consolidate, "take_in", take_in)
    done = await promoted(one)
    assert (done.taken_in, done.held) == (("good",), ("bad",))
    head = await revisions.Reader(one.store).head(*MEANT)
    assert head.body["held"]["bad"]["kind"] == "guard"
    await sound(one)
