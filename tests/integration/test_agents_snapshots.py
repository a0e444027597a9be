"""Our client behind the SDK's own `RemoteSnapshot` and `RemoteSnapshotSpec`, inside of `Runlore.run` and alone."""

from __future__ import annotations

import io
import shutil
import tarfile

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents.sandbox import RemoteSnapshot, RemoteSnapshotSpec  # noqa: E402
from agents.sandbox.capabilities import Filesystem, Shell  # noqa: E402
from agents.sandbox.sandboxes import UnixLocalSandboxClient  # noqa: E402
from agents.sandbox.session.dependencies import Dependencies  # noqa: E402

from runlore import errors, wiring  # noqa: E402
from runlore.agents import Runlore, snapshots  # noqa: E402
from runlore.commit import lines  # noqa: E402
from runlore.settings import Settings  # noqa: E402
from sandboxed import config, done, seen, shell, worker  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
KEY = "runlore"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def lore(home):
    return Runlore("acme", memory="support", home=home)


def wired(lore, rollout=None, snapshot=None, client=UnixLocalSandboxClient):
    made = Dependencies().bind_factory(KEY, snapshots.of(lore, rollout), cache=True, owns_result=True)
    snapshot = snapshot or RemoteSnapshotSpec(client_dependency_key=KEY)
    return config(client=client(dependencies=made), snapshot=snapshot)


def agent(command):
    return worker(shell(command), done(), capabilities=[Shell(), Filesystem()])


async def head(home):
    async with wiring.open_home(Settings(home=home)) as opened:
        return (await lines.read(opened.store, lines.line_of("acme", "conv-7", None))).body


SNAPSHOTS = {
    "spec": None,
    "fixed": RemoteSnapshot(id="fixed", client_dependency_key=KEY),
}


@pytest.mark.parametrize("kind", SNAPSHOTS)
async def test_alone_a_fresh_session_begins_where_the_last_one_stopped(lore, home, kind):
    for command in ("echo 1 > a", "echo 2 > b"):
        await agents.Runner.run(agent(command), "go", run_config=wired(lore, "conv-7", SNAPSHOTS[kind]))
        await lore.aclose()
    result = await agents.Runner.run(agent("cat a b"), "go", run_config=wired(lore, "conv-7"))
    assert {"1", "2"} <= set(seen(result).splitlines())
    await lore.aclose()
    assert not (await head(home)).get("branches")


async def test_inside_a_run_what_is_uploaded_goes_with_the_run_s_event(lore, home):
    cfg = wired(lore)
    await lore.run(agent("echo 1 > a"), "go", conversation_id="conv-7", run_config=cfg)
    result = await lore.run(agent("cat a"), "go", conversation_id="conv-7", run_config=wired(lore))
    assert "1" in seen(result).splitlines()
    await lore.aclose()
    assert not (await head(home)).get("branches")


class Failing(UnixLocalSandboxClient):
    """Its sessions fail while they are restored."""

    async def create(self, **named):
        session = await super().create(**named)

        async def fail(*args):
            raise OSError("the backend broke")

        session._inner.hydrate_workspace = fail
        return session


@pytest.mark.parametrize("inside", [True, False])
async def test_a_start_that_fails_does_not_replace_a_good_version_by_an_empty_one(lore, home, inside):
    cfg = wired(lore, "conv-7")
    await lore.run(agent("echo 1 > a"), "go", conversation_id="conv-7", run_config=cfg)
    await lore.aclose()
    cfg = wired(lore, "conv-7", client=Failing)
    with pytest.raises(Exception, match="the backend broke"):
        if inside:
            await lore.run(agent("true"), "go", conversation_id="conv-7", run_config=cfg)
        else:
            await agents.Runner.run(agent("true"), "go", run_config=cfg)
    await lore.aclose()
    assert (await head(home))["version"] == 1
    result = await lore.run(agent("cat a"), "go", conversation_id="conv-7", run_config=wired(lore))
    assert "1" in seen(result).splitlines()


async def test_what_was_not_fetched_is_not_replaced(lore, home):
    await lore.run(agent("echo 1 > a"), "go", conversation_id="conv-7", run_config=wired(lore))
    await lore.aclose()
    packs = home / "store" / "acme" / "snapshots"
    shutil.move(packs, home / "aside")
    await agents.Runner.run(agent("echo 2 > a"), "go", run_config=wired(lore, "conv-7"))
    shutil.copytree(home / "aside", packs, dirs_exist_ok=True)
    await lore.aclose()
    body = await head(home)
    assert body["version"] == 1 and len(body["branches"]) == 1


async def test_what_it_gives_is_a_plain_tar_that_can_be_sought_in(lore):
    await lore.run(agent("echo 1 > a"), "go", conversation_id="conv-7", run_config=wired(lore))
    one = snapshots.SnapshotClient(lore, "conv-7")
    assert await one.exists("any id")
    with await one.download("any id") as file:
        assert isinstance(file, io.IOBase) and file.seekable()
        with tarfile.open(fileobj=file, mode="r:") as archive:
            assert "./a" in archive.getnames() or "a" in archive.getnames()
    await lore.aclose()


async def test_without_a_run_it_needs_a_rollout(lore):
    with pytest.raises(errors.InvalidInput):
        snapshots.SnapshotClient(lore)
    empty = snapshots.SnapshotClient(lore, "new")
    assert not await empty.exists("x")
    with pytest.raises(errors.SnapshotNotFound):
        await empty.download("x")
