"""A fan-out: one seed for all branches, a rollout for each, and a merge that loses nothing."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents.testing import function_call

from runlore import errors
from runlore.agents import Runlore, fanout
from sandboxed import config, done, events, seen, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def lore(home):
    return Runlore("acme", memory="support", home=home)


async def begun(lore):
    """A rollout with a workspace."""
    first = worker(shell("printf '1\\n2\\n3\\n' > list; echo base > both"), done())
    await lore.run(first, "Begin", conversation_id="audit", run_config=config())


async def each(branches, *commands):
    agents = [worker(shell(command), done(), name=f"w{n}") for n, command in enumerate(commands)]
    runs = [
        branch.run(agent, "Part", run_config=config()) for branch, agent in zip(branches, agents, strict=True)
    ]
    results = await asyncio.gather(*runs)
    assert [result.last_agent for result in results] == agents
    return results


async def streamed(branch, agent):
    stream = branch.run_streamed(agent, "Part", run_config=config())
    async for _ in stream.stream_events():
        pass
    assert stream.last_agent is agent
    return stream


async def test_branches_may_be_streamed_with_the_same_agent(lore):
    await begun(lore)
    steps = [step for n in range(2) for step in (shell("cat both; mktemp ./fXXXXXX", f"c{n}"), done())]
    agent = worker(*steps)
    async with lore.fan_out("audit", n=2) as branches:
        first = await streamed(branches[0], agent)
        second = await streamed(branches[1], agent)
    assert all("base" in seen(one).splitlines() for one in (first, second))
    merged = await lore.merge("audit")
    assert (merged.state, len(merged.merged)) == ("moved", 2)
    await lore.aclose()


async def test_branches_begin_from_one_seed_and_their_work_comes_together(lore, home):
    await begun(lore)
    async with lore.fan_out("audit", n=3) as branches:
        results = await each(
            branches,
            "cat both; echo zero > f0",
            "cat both; echo one > f1",
            "cat both; sed -i 's/2/two/' list",
        )
    assert all("base" in seen(result).splitlines() for result in results)
    merged = await lore.merge("audit")
    assert (merged.state, merged.conflicts, len(merged.merged)) == ("moved", (), 3)
    look = worker(shell("cat f0 f1 list"), done())
    result = await lore.run(look, "go", conversation_id="audit", run_config=config())
    assert {"zero", "one", "two", "3"} <= set(seen(result).splitlines())
    await lore.aclose()
    found = [one for one in await events(home) if one.get("group_id", "").startswith("audit.")]
    assert len({one["group_id"] for one in found}) == 3 and len({one["seed"] for one in found}) == 1


async def test_what_two_branches_want_otherwise_is_told_and_both_are_kept(lore):
    await begun(lore)
    async with lore.fan_out("audit", n=2) as branches:
        await each(branches, "echo left > both", "echo right > both")
    merged = await lore.merge("audit")
    assert [one["path"] for one in merged.conflicts] == ["both"]
    look = worker(shell("cat both*"), done())
    result = await lore.run(look, "go", conversation_id="audit", run_config=config())
    assert {"left", "right"} <= set(seen(result).splitlines())


async def test_a_branch_goes_on_where_it_stopped_and_no_other_sees_it(lore):
    await begun(lore)
    async with lore.fan_out("audit", n=2) as (one, two):
        await each([one, two], "echo 1 > mine", "true")
        again, other = await each([one, two], "cat mine", "cat mine || echo none")
    assert "1" in seen(again).splitlines() and "none" in seen(other).splitlines()


async def test_one_agent_object_runs_on_all_branches_at_once(lore):
    second = worker(done(), done(), done(), name="second")
    calls = [function_call("transfer_to_second", {}, call_id=f"h{n}") for n in range(3)]
    first = worker(*calls, name="first", handoffs=[second])
    async with lore.fan_out("new", n=3) as branches:
        results = await asyncio.gather(*(one.run(first, "go", run_config=config()) for one in branches))
    assert [result.last_agent for result in results] == [second] * 3
    assert first.handoffs == [second]


async def test_a_fan_out_of_nothing_merges_nothing(lore):
    with pytest.raises(errors.InvalidInput):
        lore.fan_out("audit", n=0)
    with pytest.raises(errors.NotFound):
        await lore.merge("never")
    async with lore.fan_out("audit", n=1):
        pass
    assert (await lore.merge("audit")).state == "nothing"


async def test_a_merge_does_not_wait_for_ever_for_another_process_that_delivers(lore, monkeypatch):
    await begun(lore)
    async with lore.fan_out("audit", n=1) as branches:
        with lore.link.outbox.delivering() as mine:
            assert mine
            await each(branches, "echo 1 > a")
            monkeypatch.setattr(fanout, "MERGE_SECONDS_MAX", 0.1)
            with pytest.raises(TimeoutError):
                await lore.merge("audit")
    monkeypatch.undo()
    assert (await lore.merge("audit")).state == "moved"
    await lore.aclose()
