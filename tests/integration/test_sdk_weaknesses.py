"""Where the Agents SDK's own way loses data and Runlore's does not, side by side on the real SDK.

Goal: each promise that Runlore makes over the SDK's memory and snapshots is shown, not told. Method: the same agents,
the same sandbox and the same fault, once through `Runner.run`, once through `lore.run`. The first half of each test
asserts the loss: where an SDK release mends it, the test fails and says so. Seen with openai-agents 0.24:

1. A read of the good snapshot fails once, and an empty one takes its place.
2. The upload of a snapshot fails, the workspace is deleted, and the run succeeds.
3. A snapshot with a virtualenv, or any link out of the workspace, can never be restored.
4. A fresh run with a `SnapshotSpec` never finds an earlier snapshot.
5. A session that is stopped but not closed, or whose process dies, remembers nothing.
6. A model that fails while it remembers loses the run; nothing tries again.
7. Writers of one rollout overwrite each other: one of six is kept.
8. Runs under an id that is no file name and runs that end with a plain agent leave no record, and a streamed run's
   record lacks what the user said.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# The SDK and its own dependencies may warn about each other; only our warnings are errors here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, RunConfig, Runner, SQLiteSession, function_tool, set_tracing_disabled  # noqa: E402
from agents.sandbox import (  # noqa: E402
    LocalSnapshotSpec,
    Manifest,
    MemoryGenerateConfig,
    RemoteSnapshot,
    SandboxAgent,
    SandboxRunConfig,
)
from agents.sandbox.capabilities import Filesystem, Memory, Shell  # noqa: E402
from agents.sandbox.errors import SandboxError, SnapshotRestoreError  # noqa: E402
from agents.sandbox.sandboxes import UnixLocalSandboxClient  # noqa: E402
from agents.sandbox.session import Dependencies  # noqa: E402
from agents.testing import ScriptedModel, assistant_message, function_call  # noqa: E402

from runlore.agents import Runlore  # noqa: E402

set_tracing_disabled(True)

FAILED = "python3 export.py"


WRITERS = 6


@pytest.fixture
def faults():
    """What Runlore could not do, as it told it."""
    return []


@pytest.fixture
def lore(tmp_path, monkeypatch, faults):
    """Runlore with nothing else running: a home on this disk."""
    monkeypatch.setenv("RUNLORE_FSYNC", "0")
    return Runlore(
        "acme", memory="support", home=tmp_path / "home", deadline_seconds=120, on_error=faults.append
    )


def kept(tmp_path, kind):
    """What lies in Runlore's store."""
    return [path for path in (tmp_path / "home" / "store" / "acme" / kind).rglob("*") if path.is_file()]


@contextlib.contextmanager
def away(tmp_path, kind=""):
    """A part of Runlore's store that can be neither read nor written for a while."""
    folder = tmp_path / "home" / "store" / "acme" / kind
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.symlink_to(
        folder.name
    )  # To itself: whoever follows it gets an error of the disk, not "there is none".
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


async def recalled(lore, group="g-1", session=None):
    """What a next run of the rollout finds in its memory."""
    look = working("cat memories/*.md memories/*/*.md", memory=Memory(generate=None))
    result = await lore.run(look, "Recall.", session=session, run_config=owned(None if session else group))
    return printed(result)[0]


def command(text, number):
    return [function_call("exec_command", {"cmd": text}, call_id=f"call-{number}")]


def working(*commands, memory=None, name="Worker", then=(), **more):
    """An agent that runs these commands, and then says that it is done."""
    steps = [command(text, number) for number, text in enumerate(commands)]
    return SandboxAgent(
        name=name,
        model=ScriptedModel([*steps, *then] if then else [*steps, [assistant_message("Done.")]]),
        capabilities=[Shell(), Filesystem(), *([memory] if memory else [])],
        **more,
    )


def remembering(*, fails=False):
    """The SDK's memory, with models that extract one sentence and write it down; or the first of them fails."""
    learnt = json.dumps({"rollout_slug": "export", "rollout_summary": "It works.", "raw_memory": "It works."})
    write = command("echo 'It works.' > memories/MEMORY.md", "write")
    first = [OSError("the model is away")] * 3 if fails else [[assistant_message(learnt)]] * 3
    second = [write, [assistant_message("Written.")]] * 3
    return Memory(
        generate=MemoryGenerateConfig(
            phase_one_model=ScriptedModel(first), phase_two_model=ScriptedModel(second)
        )
    )


def printed(result):
    """What the commands of a run printed."""
    answers = [one.output for one in result.new_items if one.type == "tool_call_output_item"]
    return [answer.rpartition("Output:\n")[2].strip() for answer in answers]


class Bucket:
    """What `RemoteSnapshot` calls: a bucket that can fail once."""

    def __init__(self):
        self.kept = {}
        self.failing = None

    def exists(self, key):
        self._may_fail("exists")
        return key in self.kept

    def download(self, key):
        self._may_fail("download")
        return io.BytesIO(self.kept[key])

    def upload(self, key, data):
        self._may_fail("upload")
        self.kept[key] = data.read()

    def _may_fail(self, what):
        if self.failing == what:
            self.failing = None
            raise OSError("503 Slow Down")

    def names(self, key):
        with tarfile.open(fileobj=io.BytesIO(self.kept[key])) as tar:
            return [name for name in tar.getnames() if name != "."]


def in_bucket(bucket, key="project"):
    """Runs that begin with what the bucket has under `key`, and put it there again."""
    client = UnixLocalSandboxClient(dependencies=Dependencies().bind_value("bucket", bucket))
    snapshot = RemoteSnapshot(id=key, client_dependency_key="bucket")
    return RunConfig(sandbox=SandboxRunConfig(client=client, snapshot=snapshot))


def owned(group="g-1", **more):
    """Runs with a sandbox of their own."""
    return RunConfig(sandbox=SandboxRunConfig(client=UnixLocalSandboxClient(), **more), group_id=group)


@contextlib.asynccontextmanager
async def live(client=None, **more):
    client = client or UnixLocalSandboxClient()
    session = await client.create(manifest=Manifest(), **more)
    try:
        async with session:
            yield session
    finally:
        await client.delete(session)


def on(session, group="g-1"):
    return RunConfig(sandbox=SandboxRunConfig(session=session), group_id=group)


def there(folder, pattern=""):
    """Whether a folder of this machine is there, and something in it."""
    return any(Path(folder).glob(pattern)) if pattern else Path(folder).exists()


async def text_of(session, path):
    """A file of the workspace; None where there is none."""
    try:
        return (await session.read(Path(path))).read().decode()
    except SandboxError:
        return None


@pytest.mark.parametrize("fault", ["exists", "download"])
async def test_1_a_read_that_fails_once_does_not_overwrite_the_good_snapshot(tmp_path, lore, faults, fault):
    bucket = Bucket()
    await Runner.run(working("echo kept > report.md"), "Write.", run_config=in_bucket(bucket))
    assert bucket.names("project") == ["./report.md"]
    bucket.failing = fault
    with pytest.raises((OSError, SnapshotRestoreError)):
        await Runner.run(working("cat report.md"), "Read.", run_config=in_bucket(bucket))
    assert bucket.names("project") == []

    await lore.run(working("echo kept > report.md"), "Write.", run_config=owned())
    assert printed(await lore.run(working("cat report.md"), "Read.", run_config=owned())) == ["kept"]
    with away(tmp_path, {"exists": "workspaces", "download": "snapshots"}[fault]):
        await lore.run(working("echo other > other.md"), "Read.", run_config=owned())
    assert faults
    assert printed(await lore.run(working("cat report.md"), "Read.", run_config=owned())) == ["kept"]
    # What the run left that saw nothing of it is not thrown away either.
    (head,) = kept(tmp_path, "workspaces")
    assert len(json.loads(head.read_bytes())["branches"]) == 1


async def test_2_an_upload_that_fails_does_not_lose_the_workspace(tmp_path, lore, faults):
    bucket = Bucket()
    bucket.failing = "upload"
    result = await Runner.run(working("pwd", "echo kept > a"), "Write.", run_config=in_bucket(bucket))
    assert result.final_output == "Done." and bucket.kept == {}
    assert not there(printed(result)[0]) and result.to_state().to_json().get("sandbox") is None

    with contextlib.ExitStack() as outage:

        @function_tool
        def begin_the_outage() -> str:
            outage.enter_context(away(tmp_path))
            return "The store is away."

        await recalled(lore)
        await lore.aclose()
        call = [function_call("begin_the_outage", {}, call_id="call-o")]
        agent = working(
            "echo kept > report.md", tools=[begin_the_outage], then=[call, [assistant_message("Done.")]]
        )
        result = await lore.run(agent, "Write.", run_config=owned())
        await lore.aclose()
        assert result.final_output == "Done." and faults
    assert printed(await lore.run(working("cat report.md"), "Read.", run_config=owned())) == ["kept"]


UNRESTORABLE = {"virtualenv": "python3 -m venv --without-pip v", "link": "ln -s /etc/hostname host"}


@pytest.mark.parametrize("made", UNRESTORABLE)
async def test_3_what_a_run_leaves_can_be_restored(lore, made):
    write = f"echo kept > report.md; {UNRESTORABLE[made]}"
    bucket = Bucket()
    await Runner.run(working(write), "Write.", run_config=in_bucket(bucket))
    with pytest.raises(SandboxError):
        await Runner.run(working("cat report.md"), "Read.", run_config=in_bucket(bucket))

    await lore.run(working(write), "Write.", run_config=owned())
    assert printed(await lore.run(working("cat report.md"), "Read.", run_config=owned())) == ["kept"]


async def test_4_a_fresh_run_goes_on_from_the_last_snapshot(tmp_path, lore):
    snapshots = LocalSnapshotSpec(base_path=tmp_path / "snapshots")
    await Runner.run(working("echo kept > report.md"), "Write.", run_config=owned(snapshot=snapshots))
    read = await Runner.run(working("ls"), "Read.", run_config=owned(snapshot=snapshots))
    assert printed(read) == [""] and len(list((tmp_path / "snapshots").iterdir())) == 2

    await lore.run(working("echo kept > report.md"), "Write.", run_config=owned())
    assert printed(await lore.run(working("cat report.md"), "Read.", run_config=owned())) == ["kept"]


async def test_5_a_session_that_is_stopped_but_not_closed_is_remembered(tmp_path, lore):
    async def stopped(run):
        client = UnixLocalSandboxClient()
        snapshot = LocalSnapshotSpec(base_path=tmp_path / "snapshots")
        session = await client.create(manifest=Manifest(), snapshot=snapshot)
        await session.start()
        await run(working(FAILED, memory=remembering()), "Export the orders.", run_config=on(session))
        await session.stop()
        await session.shutdown()
        return client, session

    client, session = await stopped(Runner.run)
    async with await client.resume(session.state) as resumed:
        assert await text_of(resumed, "memories/MEMORY.md") == ""
    await client.delete(session)

    client, session = await stopped(lore.run)
    await client.delete(session)
    assert "Export the orders." in await recalled(lore)


def test_5_a_run_whose_process_dies_before_it_closes_the_sandbox_is_remembered(tmp_path, lore):
    environment = {
        **os.environ,
        "RUNLORE_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),  # Nobody removes the sandboxes of who dies.
        "SNAPSHOTS": str(tmp_path / "snapshots"),
    }
    died = subprocess.run([sys.executable, "-c", DIES], env=environment, timeout=60, check=False)
    assert died.returncode == 9
    assert not (tmp_path / "snapshots").exists()
    assert "Export the orders." in asyncio.run(recalled(lore))


DIES = """
import asyncio, os
from agents import RunConfig, Runner
from agents.sandbox import LocalSnapshotSpec, Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Memory, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.testing import ScriptedModel, assistant_message
from runlore.agents import Runlore

async def main():
    for runner in (Runner, Runlore("acme", memory="support")):
        snapshot = LocalSnapshotSpec(base_path=os.environ["SNAPSHOTS"])
        session = await UnixLocalSandboxClient().create(manifest=Manifest(), snapshot=snapshot)
        await session.start()
        model = ScriptedModel([[assistant_message("Done.")]])
        agent = SandboxAgent(name="Worker", model=model, capabilities=[Shell(), Filesystem(), Memory()])
        config = RunConfig(sandbox=SandboxRunConfig(session=session), group_id="g-1")
        await runner.run(agent, "Export the orders.", run_config=config)
    os._exit(9)

asyncio.run(main())
"""


async def test_6_a_model_that_fails_while_it_remembers_does_not_lose_the_run(tmp_path, lore, faults):
    snapshots = LocalSnapshotSpec(base_path=tmp_path / "snapshots")
    client = UnixLocalSandboxClient()
    async with live(client, snapshot=snapshots) as first:
        await Runner.run(working(FAILED, memory=remembering(fails=True)), "Export.", run_config=on(first))
    async with await client.resume(first.state) as second:
        await Runner.run(working(FAILED, memory=remembering()), "Export.", run_config=on(second, "g-2"))
    async with await client.resume(first.state) as third:
        assert await text_of(third, "sessions/g-1.jsonl")
        assert await text_of(third, "memories/raw_memories/g-2.md")
        assert await text_of(third, "memories/raw_memories/g-1.md") is None
    await client.delete(third)

    # Ours asks no model, and a stage of its own that fails is tried again.
    memory = remembering(fails=True)
    await lore.run(working(FAILED, memory=memory), "Export the orders.", run_config=owned())
    assert memory.generate.phase_one_model.calls == ()
    await recalled(lore)
    await lore.run(working(FAILED, memory=memory), "Export the refunds.", run_config=owned())
    with away(tmp_path, "memories"):
        await lore.run(working("pwd"), "Look.", run_config=owned())
    assert faults
    found = await recalled(lore)
    assert "Export the orders." in found and "Export the refunds." in found


async def test_7_runs_that_end_at_the_same_time_are_all_kept(tmp_path, lore):
    shared = tmp_path / "prefix"
    shared.mkdir()
    everyone_has_read = asyncio.Barrier(WRITERS)

    async def write(number):
        client = UnixLocalSandboxClient()
        session = await client.create(manifest=Manifest(root=str(shared)))
        await session.start()
        read = session.read

        async def slowly(path, **more):
            # A bucket takes as long to answer the first writer as the last.
            try:
                return await read(path, **more)
            finally:
                if "sessions" in str(path):
                    await everyone_has_read.wait()

        session.read = slowly
        agent = working(memory=remembering(), name=f"Worker {number}")
        await Runner.run(agent, f"Export {number}.", run_config=on(session))

    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    assert len((shared / "sessions" / "g-1.jsonl").read_text("ascii").splitlines()) == 1

    agents = [working(memory=remembering(), name=f"Worker {number}") for number in range(WRITERS)]
    runs = (lore.run(one, f"Export {number}.", run_config=owned()) for number, one in enumerate(agents))
    await asyncio.gather(*runs)
    await recalled(lore)
    records = [path.read_text("ascii") for path in kept(tmp_path, "records")]
    assert all(any(f"Export {number}." in one for one in records) for number in range(WRITERS))


async def test_8_a_session_id_that_is_no_file_name_is_remembered(lore):
    with contextlib.closing(SQLiteSession("user:42")) as asked:
        async with live() as session:
            config = RunConfig(sandbox=SandboxRunConfig(session=session))
            agent = working(FAILED, memory=remembering())
            await Runner.run(agent, "Export the orders.", session=asked, run_config=config)
            assert not there(session.state.manifest.root, "**/*.jsonl")

        agent = working(FAILED, memory=remembering())
        await lore.run(agent, "Export the orders.", session=asked, run_config=owned(None))
        assert "Export the orders." in await recalled(lore, session=asked)


async def test_8_a_run_that_hands_over_to_a_plain_agent_is_remembered(lore):
    def handing_over():
        writer = Agent(name="Writer", model=ScriptedModel([[assistant_message("Told.")]]))
        call = [[function_call("transfer_to_writer", {}, call_id="call-h")]]
        return working(FAILED, memory=remembering(), handoffs=[writer], then=call)

    async with live() as session:
        result = await Runner.run(handing_over(), "Export the orders.", run_config=on(session))
        assert result.final_output == "Told."
        assert not there(session.state.manifest.root, "**/*.jsonl")

    await lore.run(handing_over(), "Export the orders.", run_config=owned())
    assert "Export the orders." in await recalled(lore)


async def test_8_what_the_user_said_in_a_stream_is_remembered(lore):
    async with live() as session:
        agent = working(FAILED, memory=remembering())
        result = Runner.run_streamed(agent, "Export the orders.", run_config=on(session))
        async for _ in result.stream_events():
            pass
        line = json.loads(await text_of(session, "sessions/g-1.jsonl"))
    assert line["final_output"] == "Done." and line["input"] == []

    result = lore.run_streamed(working(FAILED), "Export the orders.", run_config=owned())
    async for _ in result.stream_events():
        pass
    assert "Export the orders." in await recalled(lore)
