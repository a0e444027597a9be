"""The servers that tests share: one of each for a test process, started by the first test that asks for it.

Where a server can not be started its tests are skipped with the reason, unless RUNLORE_TEST_REQUIRE names it
(`kafka,s3,node`: as CI does), which makes that a failure.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `infra` is no part of the package.


def need(name: str, problem: str | None) -> None:
    """Go on only where `name` can be started; `problem` says why not."""
    if problem is None:
        return
    if name in os.environ.get("RUNLORE_TEST_REQUIRE", "").split(","):
        pytest.fail(f"RUNLORE_TEST_REQUIRE asks for {name}: {problem}", pytrace=False)
    pytest.skip(problem)


@dataclass(frozen=True)
class S3Endpoint:
    """An S3 server as a test sees it."""

    name: str
    endpoint: str
    access_key_id: str
    secret_access_key: str
    bucket: str = "runlore"

    def environment(self, prefix: str = "") -> dict[str, str]:
        """The settings that make a process use it."""
        return {
            "RUNLORE_STORE": "s3",
            "RUNLORE_S3_ENDPOINT": self.endpoint,
            "RUNLORE_S3_BUCKET": self.bucket,
            "RUNLORE_S3_PREFIX": prefix,
            "RUNLORE_S3_REGION": "us-east-1",
            "RUNLORE_S3_ACCESS_KEY_ID": self.access_key_id,
            "RUNLORE_S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "RUNLORE_S3_CONNECTIONS_MAX": "8",
        }

    def place(self, prefix: str = "", **changes: object):
        """The same for `S3Store`."""
        from runlore.store import s3client

        return s3client.Place(
            **{
                "bucket": self.bucket,
                "prefix": prefix,
                "endpoint": self.endpoint,
                "region": "us-east-1",
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
                "connections_max": 8,
                **changes,
            }
        )


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory):
    """A real S3 server (`infra/dev/s3.py`): start, stop and kill are a test's own affair to undo."""
    from infra.dev import s3 as dev_s3

    need("s3", dev_s3.missing())
    server = dev_s3.S3Server(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def seaweedfs(seaweedfs_server):
    return S3Endpoint(
        "seaweedfs",
        seaweedfs_server.endpoint,
        seaweedfs_server.access_key_id,
        seaweedfs_server.secret_access_key,
        seaweedfs_server.bucket,
    )


@pytest.fixture(scope="session")
def moto():
    """A stand-in for AWS: its shapes and error codes, but neither its races nor its authentication."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError as exc:
        need("s3", f"no stand-in for S3: pip install 'moto[s3,server]' ({exc})")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3Endpoint("moto", f"http://{host}:{port}", "test", "test")
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=found.endpoint,
        region_name="us-east-1",
        aws_access_key_id=found.access_key_id,
        aws_secret_access_key=found.secret_access_key,
    )
    client.create_bucket(Bucket=found.bucket)
    client.close()
    yield found
    server.stop()
