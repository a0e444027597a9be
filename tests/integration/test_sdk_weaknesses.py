"""Where the Agents SDK's own way loses data and Runlore's does not, side by side on the real SDK.

Goal: each promise that Runlore makes over the SDK's memory and snapshots is shown, not told. Method: the same agents,
the same sandbox and the same fault, once through `Runner.run`, once through `lore.run`. The first half of each test
asserts the loss: where an SDK release mends it, the test fails and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
from pathlib import Path

import pytest

# The SDK and its own dependencies may warn about each other; only our warnings are errors here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, RunConfig, Runner, SQLiteSession, set_tracing_disabled  # noqa: E402
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

set_tracing_disabled(True)

FAILED = "python3 export.py"
WORKED = "python3 -c 'print(2)'"


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
    learnt = json.dumps(
        {"rollout_slug": "export", "rollout_summary": "It works.", "raw_memory": "It works."}
    )
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


async def text_of(session, path):
    """A file of the workspace; None where there is none."""
    try:
        return (await session.read(Path(path))).read().decode()
    except SandboxError:
        return None


# --- 1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["exists", "download"])
async def test_1_a_read_that_fails_once_does_not_overwrite_the_good_snapshot(tmp_path, fault):
    bucket = Bucket()
    await Runner.run(working("echo kept > report.md"), "Write.", run_config=in_bucket(bucket))
    assert bucket.names("project") == ["./report.md"]
    bucket.failing = fault
    with pytest.raises((OSError, SnapshotRestoreError)):
        await Runner.run(working("cat report.md"), "Read.", run_config=in_bucket(bucket))
    assert bucket.names("project") == []


async def test_2_an_upload_that_fails_does_not_lose_the_workspace(tmp_path):
    bucket = Bucket()
    bucket.failing = "upload"
    result = await Runner.run(working("pwd", "echo kept > a"), "Write.", run_config=in_bucket(bucket))
    assert result.final_output == "Done." and bucket.kept == {}
    assert not Path(printed(result)[0]).exists() and result.to_state().to_json().get("sandbox") is None


UNRESTORABLE = {"virtualenv": "python3 -m venv --without-pip v", "link": "ln -s /etc/hostname host"}


@pytest.mark.parametrize("made", UNRESTORABLE)
async def test_3_what_a_run_leaves_can_be_restored(tmp_path, made):
    bucket = Bucket()
    first = working(f"echo kept > report.md; {UNRESTORABLE[made]}")
    await Runner.run(first, "Write.", run_config=in_bucket(bucket))
    with pytest.raises(SandboxError):
        await Runner.run(working("cat report.md"), "Read.", run_config=in_bucket(bucket))


async def test_4_a_fresh_run_goes_on_from_the_last_snapshot(tmp_path):
    snapshots = LocalSnapshotSpec(base_path=tmp_path / "snapshots")
    await Runner.run(working("echo kept > report.md"), "Write.", run_config=owned(snapshot=snapshots))
    read = await Runner.run(working("ls"), "Read.", run_config=owned(snapshot=snapshots))
    assert printed(read) == [""] and len(list((tmp_path / "snapshots").iterdir())) == 2


async def test_5_a_session_that_is_stopped_but_not_closed_is_remembered(tmp_path):
    client = UnixLocalSandboxClient()
    session = await client.create(
        manifest=Manifest(), snapshot=LocalSnapshotSpec(base_path=tmp_path / "snapshots")
    )
    await session.start()
    await Runner.run(working(FAILED, memory=remembering()), "Export.", run_config=on(session))
    await session.stop()
    await session.shutdown()
    async with await client.resume(session.state) as resumed:
        assert await text_of(resumed, "memories/MEMORY.md") == ""
    await client.delete(session)


async def test_6_a_model_that_fails_while_it_remembers_does_not_lose_the_run(tmp_path):
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


async def test_7_runs_that_end_at_the_same_time_are_all_kept(tmp_path):
    shared = tmp_path / "prefix"
    shared.mkdir()
    everyone_has_read = asyncio.Barrier(WRITERS)

    async def write(number):
        client = UnixLocalSandboxClient()
        session = await client.create(manifest=Manifest(root=str(shared)))
        await session.start()
        read = session.read

        async def slowly(path, **more):
            try:
                return await read(path, **more)
            finally:
                if "sessions" in str(path):
                    await everyone_has_read.wait()

        session.read = slowly
        agent = working(memory=remembering(), name=f"Worker {number}")
        await Runner.run(agent, f"Export {number}.", run_config=on(session))

    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    kept = (shared / "sessions" / "g-1.jsonl").read_text("ascii").splitlines()
    assert len(kept) == 1


WRITERS = 6


async def test_8_a_session_id_that_is_no_file_name_is_remembered(tmp_path):
    async with live() as session:
        asked = SQLiteSession("user:42")
        agent = working(FAILED, memory=remembering())
        await Runner.run(
            agent, "Export.", session=asked, run_config=RunConfig(sandbox=SandboxRunConfig(session=session))
        )
        asked.close()
        assert await text_of(session, "sessions/user:42.jsonl") is None
        assert not list(Path(session.state.manifest.root).rglob("*.jsonl"))


async def test_8_a_run_that_hands_over_to_a_plain_agent_is_remembered(tmp_path):
    writer = Agent(name="Writer", model=ScriptedModel([[assistant_message("Told.")]]))
    hand_over = [[function_call("transfer_to_writer", {}, call_id="call-h")]]
    agent = working(FAILED, memory=remembering(), handoffs=[writer], then=hand_over)
    async with live() as session:
        result = await Runner.run(agent, "Export.", run_config=on(session))
        assert result.final_output == "Told."
        assert not list(Path(session.state.manifest.root).rglob("*.jsonl"))


async def test_8_what_the_user_said_in_a_stream_is_remembered(tmp_path):
    agent = working(FAILED, memory=remembering())
    async with live() as session:
        result = Runner.run_streamed(agent, "Export the orders.", run_config=on(session))
        async for _ in result.stream_events():
            pass
        line = json.loads(await text_of(session, "sessions/g-1.jsonl"))
    assert line["final_output"] == "Done." and line["input"] == []
