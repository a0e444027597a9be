"""Two versions on one home or one cluster; each test starts with both at rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import versions

from runlore import wiring
from runlore.settings import Settings
from runlore.testing import invariants, snapshot_invariants

OLD = "0.1.0"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session")
def old_package(tmp_path_factory):
    return versions.unpacked(OLD, tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="session")
def _sides(old_package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    made = {}
    for name, package in (("old", old_package), ("new", None)):
        (folder / name).mkdir()
        made[name] = versions.Side(folder / name, package=package)
    yield made
    for one in made.values():
        one.close()


@pytest.fixture
def sides(_sides):
    yield _sides
    for side in _sides.values():
        for one in list(side.running):
            one.kill()


@pytest.fixture
def old(sides):
    return sides["old"]


@pytest.fixture
def new(sides):
    return sides["new"]


class Home:
    """One home, which both versions use; looked at by this one."""

    def __init__(self, root, **more):
        self.root = root
        self.settings = {
            "home": str(root),
            "fsync": "0",
            "redact_library": "0",
            "marks_interval_seconds": "0.2",
            "poll_timeout_seconds": "0.1",
            "poll_records_max": "4",
            **more,
        }

    @property
    def environment(self):
        return {f"RUNLORE_{name.upper()}": value for name, value in self.settings.items()} | {
            "HOME": str(self.root.parent)
        }

    def opened(self):
        return wiring.open_home(Settings(**self.settings), create=True)

    async def objects(self, *kinds):
        """Every object of the store (of these kinds) by its key."""
        found = {}
        async with self.opened() as opened:
            for project in await opened.store.children(""):
                async for row in opened.store.list(f"{project}/"):
                    if not kinds or row.key.split("/")[1] in kinds:
                        found[row.key] = (await opened.store.get(row.key)).body
        return found

    async def violations(self):
        """What does not hold, once all work is done."""
        async with self.opened() as opened:
            found = await invariants.check(opened.store, opened.bus, settled=True)
            for project in await invariants.projects(opened.store):
                found += await snapshot_invariants.check(opened.store, project)
        return [str(one) for one in found]

    async def waits(self):
        """Whether there is anything left to do: messages that no stage committed, or marks."""
        async with self.opened() as opened:
            for group in ("record", "snapshot"):
                if sum((await opened.bus.lag(group=group, topic="runs")).values()):
                    return True
        return bool(await self.objects("marks"))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def cluster(tmp_path, kafka_server, seaweedfs):
    """A real broker and a real S3 server, of which a test has topics and a prefix of its own."""
    name = tmp_path.name.replace("_", "-")
    on_s3 = {key.removeprefix("RUNLORE_").lower(): one for key, one in seaweedfs.environment(f"{name}/").items()}
    return Home(
        tmp_path / "home",
        **on_s3,
        bus="kafka",
        kafka_servers=kafka_server.servers,
        kafka_topic_prefix=f"{name}.",
        kafka_group_prefix=f"{name}.",
        kafka_session_seconds="6",
        retry_seconds_max="1",
    )


async def runs_of(home):
    """(project, rollout) → the runs that its head has, each with its attempt."""
    found = {}
    for key, raw in (await home.objects("rollouts")).items():
        head = json.loads(raw)
        runs = {run: entry["attempt"] for run, entry in head["runs"].items()}
        found[key.split("/")[0], head["rollout"]] = runs
    return found
