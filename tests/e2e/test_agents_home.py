"""`runlore.agents` beside a running `runlore up`: one home, two processes, and the commands of a person on it."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from runlore import errors
from runlore.agents import Runlore
from sandboxed import config, done, seen, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


async def test_where_up_holds_the_home_its_result_is_used(home):
    home.up()
    lore = Runlore("acme", memory="support", home=home.root)
    agent = worker(shell("echo 1 > a; false"), done())
    await lore.run(agent, "go", conversation_id="c", run_config=config())
    agent = worker(shell("cat a; ls memories"), done())
    result = await lore.run(agent, "go", conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines() and "MEMORY.md" in seen(result)
    await lore.aclose()


async def test_a_program_waits_until_its_run_has_come_to_an_end(home):
    lore = Runlore("acme", memory="support", home=home.root)
    with pytest.raises(errors.WaitTimeout, match="nothing has that name"):
        await lore.wait_for("nobody", seconds=0)
    for _ in range(2):
        await lore.run(worker(shell("false"), done()), "go", conversation_id="c", run_config=config())
    ended = await lore.wait_for(rollout="c", seconds=20)
    assert (ended.end, ended.run[:4]) == ("consolidated", ended.run[:4])
    assert (await lore.wait_for(ended.run, rollout="c", with_model=True)).run == ended.run
    with pytest.raises(errors.WaitTimeout):
        await lore.wait_for(ended.run, rollout="another", seconds=0)
    await lore.aclose()


async def two_runs(home):
    async with Runlore("acme", memory="support", home=home.root) as lore:
        for number in range(2):
            agent = worker(shell(f"echo {number} > f{number}; false"), done())
            await lore.run(agent, "go", conversation_id="c", run_config=config())


def test_what_it_left_verifies_and_a_person_sees_it(home):
    asyncio.run(two_runs(home))
    home.verified()
    (row,) = home.json("snapshot", "ls", "--project", "acme")["lines"]
    assert row["rollout"] == "c"


async def one_run(home, rollout, command):
    async with Runlore("acme", memory="support", home=home.root) as lore:
        agent = worker(shell(command), done())
        return await lore.run(agent, "go", conversation_id=rollout, run_config=config())


def test_a_new_rollout_begins_with_the_project_s_template(home):
    asyncio.run(one_run(home, "model", "echo tpl > t"))
    home.json(
        "snapshot", "tag", "model", "template", "--project", "acme", "--reason", "what every rollout needs"
    )
    home.up_once()
    result = asyncio.run(one_run(home, "new", "cat t; echo own > o"))
    assert "tpl" in seen(result).splitlines()
    result = asyncio.run(one_run(home, "new", "cat t o"))
    assert {"tpl", "own"} <= set(seen(result).splitlines())
    lines = home.json("snapshot", "ls", "--project", "acme")["lines"]
    assert sorted(row["rollout"] for row in lines) == ["model", "new"]
