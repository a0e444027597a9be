"""Two versions on one home or one cluster; each test starts with both at rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import upgrading

import runlore


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session")
def old_package(tmp_path_factory):
    return upgrading.unpacked(upgrading.OLD, tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="session")
def _sides(old_package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    made = {}
    here = Path(runlore.__file__).resolve().parents[1]
    for name, package in (("old", old_package), ("new", here)):
        (folder / name).mkdir()
        made[name] = upgrading.Side(folder / name, package=package)
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


@pytest.fixture
def home(tmp_path):
    return upgrading.Home(tmp_path / "home")


@pytest.fixture
def cluster(tmp_path, sides, kafka_server, seaweedfs):
    """A real broker and a real S3 server, of which a test has topics and a prefix of its own."""
    for side in sides.values():
        side.load(
            "boto3.session", "botocore.client", "runlore.bus.kafka", "runlore.bus.topics", "runlore.store.s3"
        )
    name = tmp_path.name.replace("_", "-")
    on_s3 = {
        key.removeprefix("RUNLORE_").lower(): one for key, one in seaweedfs.environment(f"{name}/").items()
    }
    return upgrading.Home(
        tmp_path / "home",
        **on_s3,
        bus="kafka",
        kafka_servers=kafka_server.servers,
        kafka_topic_prefix=f"{name}.",
        kafka_group_prefix=f"{name}.",
        kafka_session_seconds="6",
        retry_seconds_max="1",
    )
