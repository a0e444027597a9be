"""Live edits of memory with the real SDK: what an agent writes into its memory is in the next seed, with its source.

Everything is embedded, as in `test_agents_runs.py`.
"""

from __future__ import annotations

import asyncio
import json

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents.sandbox import MemoryLayoutConfig  # noqa: E402
from agents.sandbox.capabilities import Filesystem, Memory, Shell  # noqa: E402
from agents.sandbox.sandboxes import UnixLocalSandboxClient  # noqa: E402
from agents.testing import function_call  # noqa: E402

from runlore import errors, wiring  # noqa: E402
from runlore.agents import Runlore, harvest  # noqa: E402
from runlore.events import models  # noqa: E402
from runlore.lookup import seeds, why  # noqa: E402
from runlore.settings import Settings  # noqa: E402
from sandboxed import config, done, shell, until, worker  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

LINE = "Use port 6000, the docs are wrong"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def told():
    return []


@pytest.fixture
def lore(home, told):
    return Runlore("acme", memory="support", home=home, on_error=told.append)


def write(line, call_id="c1", folder="memories"):
    """The call with which an agent adds a line to its memory."""
    return shell(f"printf '%s\\n' '- {line}' >> {folder}/MEMORY.md", call_id)


async def learnt(lore):
    """A memory with a revision, from a run that failed at something and then did it."""
    first = worker(shell("cat nothing.txt"), shell("echo 1 > nothing.txt; cat nothing.txt", "c2"), done())
    await lore.run(first, "Look", conversation_id="first", run_config=config())


async def seen_by_next(lore):
    """(Memory's files as the next run of another conversation gets them, the seed.)"""
    seeded = await lore.seed(conversation_id="next")
    return {path.rpartition("/")[2]: text.decode() for path, text in seeded.files.items()}, seeded


async def edits(home):
    """The data of every memory-edited event that a home was given, each once."""
    async with wiring.open_home(Settings(home=home)) as opened:
        read = [message async for message in opened.bus.read("runs")]
    kinds = [dict(message.headers)["ce_type"].decode() for message in read]
    found = [
        json.loads(one.value) for one, kind in zip(read, kinds, strict=True) if kind == models.MEMORY_EDITED
    ]
    return list({one["edit_id"]: one for one in found}.values())


async def behind(home, text, line):
    """What stands behind a line of the present `MEMORY.md`."""
    async with wiring.open_home(Settings(home=home)) as opened:
        seed = await seeds.resolve(opened.reader, "acme", "support", "next")
        whole = await seeds.open_seed(opened.reader, seed)
        revision = await opened.reader.at("acme", "support")
        number = [one for one in text.splitlines()].index(line) + 1
        return await why.of_line(opened.store, revision, whole.files["memories/MEMORY.md"], number)


async def test_what_an_agent_writes_into_its_memory_is_in_the_next_seed_with_the_run_that_wrote_it(
    lore, home, told
):
    await learnt(lore)
    result = await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=config())
    assert result.final_output == "done"
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()
    (edit,) = await edits(home)
    assert (edit["revision"], edit["conversation_id"]) == (1, "c") and edit["agents"] == ["worker"]
    (note,) = await behind(home, files["MEMORY.md"], f"- {LINE}")
    assert note["evidence"][0]["run"] == edit["edit_id"] and LINE in note["evidence"][0]["text"]
    assert [(one["what"], one["run"], one["revision"]) for one in note["edits"]] == [
        ("said", edit["run_id"], 1)
    ]
    assert told == []


async def test_the_first_run_of_a_memory_may_write_it(lore, home):
    first = worker(shell(f"mkdir -p memories; echo '- {LINE}' > memories/MEMORY.md"), done())
    await lore.run(first, "go", conversation_id="c", run_config=config())
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()
    assert [one["revision"] for one in await edits(home)] == [0]


async def test_a_run_that_edits_nothing_sends_no_edit(lore, home):
    await learnt(lore)
    await lore.run(
        worker(shell("cat memories/MEMORY.md"), done()), "go", conversation_id="c", run_config=config()
    )
    await lore.aclose()
    assert await edits(home) == []


async def test_a_line_that_was_taken_out_stays_out(lore, home):
    await learnt(lore)
    before, _ = await seen_by_next(lore)
    (bullet,) = [
        one for one in before["MEMORY.md"].splitlines() if "nothing.txt" in one and one.startswith("- `")
    ]
    drop = shell("grep -v 'nothing.txt' memories/MEMORY.md > m; cat m > memories/MEMORY.md; rm m")
    await lore.run(worker(drop, done()), "go", conversation_id="c", run_config=config())
    files, _ = await seen_by_next(lore)
    assert bullet not in files["MEMORY.md"].splitlines()


@pytest.mark.parametrize("how", ["error", "stream"])
async def test_an_edit_of_a_run_that_fails_and_of_a_stream_is_taken(lore, home, how):
    await learnt(lore)
    if how == "error":
        broken = worker(write(LINE), RuntimeError("the model broke"))
        with pytest.raises(RuntimeError):
            await lore.run(broken, "go", conversation_id="c", run_config=config())
    else:
        stream = lore.run_streamed(
            worker(write(LINE), done()), "go", conversation_id="c", run_config=config()
        )
        async for _ in stream.stream_events():
            pass
        await until(lambda: not [one for one in lore.link.outbox.folder.glob("waiting/.new-*")])
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()


async def test_the_edit_of_a_run_that_is_cancelled_is_taken(lore, home):
    await learnt(lore)
    reached = asyncio.Event()

    @agents.function_tool
    async def wait() -> str:
        """Wait for ever."""
        reached.set()
        await asyncio.Event().wait()
        return ""

    agent = worker(write(LINE), function_call("wait", {}, call_id="c2"), tools=[wait])
    task = asyncio.ensure_future(lore.run(agent, "go", conversation_id="c", run_config=config()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()


async def test_an_agent_s_tool_and_one_that_is_handed_to_edit_their_own_memory(lore, home):
    await learnt(lore)
    inner = worker(write("From the tool"), done("inner"), name="inner")
    layout = MemoryLayoutConfig(memories_dir="notes/b", sessions_dir="notes/s")
    parts = [Shell(), Filesystem(), Memory(layout=layout)]
    second = worker(write("From the second", folder="notes/b"), done(), name="b", capabilities=parts)
    first = worker(
        function_call("ask", {"input": "x"}, call_id="t"),
        function_call("transfer_to_b", {}, call_id="over"),
        tools=[inner.as_tool("ask", "Ask.")],
        handoffs=[second],
    )
    await lore.run(first, "go", conversation_id="c", run_config=config())
    files, _ = await seen_by_next(lore)
    assert {"- From the tool", "- From the second"} <= set(files["MEMORY.md"].splitlines())
    found = {one["agents"][0]: one for one in await edits(home)}
    assert (
        found["inner"]["run_id"] != found["b"]["run_id"] and found["b"]["layout"]["memories_dir"] == "notes/b"
    )


async def test_two_branches_that_edit_one_line_are_both_shown_with_their_runs(lore, home, told):
    await learnt(lore)
    before, _ = await seen_by_next(lore)
    (bullet,) = [
        one for one in before["MEMORY.md"].splitlines() if "answered" in one and one.startswith("- `")
    ]
    async with lore.fan_out("audit", n=2) as branches:
        for number, branch in enumerate(branches):
            change = f"s|^- .*answered|- Way {number} when cat answered|"
            agent = worker(shell(f'sed -i "{change}" memories/MEMORY.md'), done())
            await branch.run(agent, "go", run_config=config())
    files, _ = await seen_by_next(lore)
    sides = [one for one in files["MEMORY.md"].splitlines() if one.startswith("- Way")]
    assert len(sides) == 2 and bullet not in files["MEMORY.md"].splitlines()
    runs = {one["run_id"] for one in await edits(home)}
    assert all("[conflict " in side for side in sides)
    assert {run for run in runs for side in sides if f"said by run {run}]" in side} == runs
    assert told == []


async def test_a_live_session_gives_its_edits_at_the_end_of_each_run(lore, home):
    await learnt(lore)
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=cfg)
        files, _ = await seen_by_next(lore)
        assert f"- {LINE}" in files["MEMORY.md"].splitlines()
        stream = lore.run_streamed(worker(write("Second"), done()), "go", conversation_id="c", run_config=cfg)
        async for _ in stream.stream_events():
            pass
    await client.delete(session)
    await lore.aclose()
    files, _ = await seen_by_next(lore)
    assert "- Second" in files["MEMORY.md"].splitlines() and len(await edits(home)) == 2


async def test_a_refresh_never_overwrites_an_edit_that_was_not_taken(lore, home, told, monkeypatch):
    await learnt(lore)
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    put, full = lore.link.outbox.put, [True]

    def refuses(data, left):
        if "edit_id" in data and full:
            raise OSError("no room")
        return put(data, left)

    monkeypatch.setattr(lore.link.outbox, "put", refuses)
    async with session:
        cfg = config(client=client, session=session)
        await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=cfg)
        assert told and await edits(home) == []
        # Another run elsewhere moves memory on; still the file is left as the agent wrote it.
        await lore.run(worker(shell("false"), done()), "Fail", conversation_id="d", run_config=config())
        look = worker(shell("cat memories/MEMORY.md"), done())
        result = await lore.run(look, "go", conversation_id="c", run_config=cfg)
        assert LINE in str(result.new_items)
        full.clear()
        await lore.run(worker(done()), "go", conversation_id="c", run_config=cfg)
    await client.delete(session)
    await lore.aclose()
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()
    assert len(await edits(home)) == 1


async def test_the_capability_takes_edits_of_a_plain_runner(lore, home):
    from agents import Runner

    from runlore.agents import capability

    await learnt(lore)
    await lore.aclose()
    parts = [Shell(), Filesystem(), capability.Seeding(lore=lore, rollout="c"), Memory(generate=None)]
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        await Runner.run(worker(write(LINE), done(), capabilities=parts), "go", run_config=cfg)
    await client.delete(session)
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()


async def test_an_edit_is_found_twice_and_is_one(lore, home):
    await learnt(lore)
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=cfg)
        for held in harvest.of(session).values():
            held.taken.clear()
        await harvest.take_all(session)
    await client.delete(session)
    await lore.aclose()
    assert len(await edits(home)) == 1


async def test_what_lies_there_before_the_first_seed_is_no_edit(lore, home):
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        await session.exec("mkdir -p memories && echo '- my own' > memories/MEMORY.md")
        cfg = config(client=client, session=session)
        await lore.run(worker(shell("true"), done()), "go", conversation_id="c", run_config=cfg)
    await client.delete(session)
    await lore.aclose()
    assert await edits(home) == []


async def test_a_file_too_large_for_an_edit_is_told_and_left(lore, home, told, monkeypatch):
    monkeypatch.setattr(models, "EDITED_BYTES_MAX", 4096)
    await learnt(lore)
    big = shell("head -c 5000 /dev/zero | tr '\\\\0' x >> memories/MEMORY.md")
    result = await lore.run(worker(big, done()), "go", conversation_id="c", run_config=config())
    assert result.final_output == "done"
    await lore.aclose()
    assert await edits(home) == [] and [one.kind for one in told] == ["record_too_large"]


@pytest.fixture
def reading(monkeypatch):
    """What the sandbox does when `MEMORY.md` is read through the session, which only Runlore does."""
    from agents.sandbox.sandboxes.unix_local import UnixLocalSandboxSession

    how, read = [], UnixLocalSandboxSession.read

    async def reads(self, path, *, user=None):
        if how and str(path).endswith("MEMORY.md"):
            if how[0] == "hangs":
                await asyncio.Event().wait()
            raise how[0]
        return await read(self, path, user=user)

    monkeypatch.setattr(UnixLocalSandboxSession, "read", reads)
    return how


@pytest.mark.parametrize("fault", ["hangs", OSError("gone"), RuntimeError("no such sandbox")], ids=repr)
async def test_a_sandbox_that_can_not_be_read_stops_no_run_and_is_told(home, told, reading, fault):
    lore = Runlore("acme", memory="support", home=home, on_error=told.append, deadline_seconds=2)
    await learnt(lore)
    reading.append(fault)
    result = await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=config())
    assert result.final_output == "done"
    reading.clear()
    await lore.aclose()
    kinds = {type(one) for one in told}
    assert kinds == {TimeoutError if fault == "hangs" else type(fault)}
    assert await edits(home) == []


async def refreshed_over(lore, home, reading):
    """Whether a refresh wrote over an edit that could not be read back."""
    await learnt(lore)
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        await lore.run(worker(done()), "go", conversation_id="c", run_config=cfg)
        reading.append(OSError("not now"))
        await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=cfg)
        await lore.run(worker(shell("false"), done()), "Fail", conversation_id="d", run_config=config())
        look = worker(shell("cat memories/MEMORY.md"), done())
        result = await lore.run(look, "go", conversation_id="c", run_config=cfg)
        reading.clear()
    await client.delete(session)
    await lore.aclose()
    return LINE not in str(result.new_items)


async def test_a_refresh_leaves_what_it_can_not_read_back_and_takes_it_later(lore, home, reading):
    assert not await refreshed_over(lore, home, reading)
    assert [LINE in one["files"][0]["text"] for one in await edits(home)] == [True]


async def test_a_refresh_that_did_not_look_would_lose_the_edit(lore, home, reading, monkeypatch):
    async def looks_at_nothing(session, held):
        return True

    monkeypatch.setattr(harvest, "take", looks_at_nothing)
    assert await refreshed_over(lore, home, reading)
    assert await edits(home) == []


async def test_without_room_in_the_outbox_an_edit_is_handed_over_at_once_like_its_run(
    lore, home, told, monkeypatch
):
    await learnt(lore)
    await lore.aclose()

    def full(data, left):
        raise errors.OutboxFull("no room")

    monkeypatch.setattr(lore.link.outbox, "put", full)
    await lore.run(worker(write(LINE), done()), "go", conversation_id="c", run_config=config())
    files, _ = await seen_by_next(lore)
    assert f"- {LINE}" in files["MEMORY.md"].splitlines()
    assert [one.kind for one in told] == ["outbox_full", "outbox_full"]


async def test_the_capability_s_hook_raises_nothing_and_the_session_stops_as_it_would(
    lore, home, told, reading
):
    from agents import Runner

    from runlore.agents import capability

    await learnt(lore)
    await lore.aclose()
    parts = [Shell(), Filesystem(), capability.Seeding(lore=lore, rollout="c"), Memory(generate=None)]
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        await Runner.run(worker(write(LINE), done(), capabilities=parts), "go", run_config=cfg)
        reading.append(RuntimeError("no such sandbox"))
    await client.delete(session)
    assert [str(one) for one in told] == ["no such sandbox"] and await edits(home) == []
