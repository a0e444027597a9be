"""A folder in place of an S3 bucket, so that the examples need no server; empty at the start. For plain programs."""

from __future__ import annotations

import atexit
import io
import tempfile
from pathlib import Path

from agents.sandbox import Manifest, SandboxPathGrant
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.sandbox.session import SandboxSession

_made = tempfile.TemporaryDirectory(prefix="bucket-")
atexit.register(_made.cleanup)
FOLDER = Path(_made.name)


async def mounted(client: UnixLocalSandboxClient, manifest: Manifest, *, at: str) -> SandboxSession:
    """A sandbox that shows the bucket as its folder `at`. It stands for an `S3Mount`, which needs a container."""
    grants = (SandboxPathGrant(path=str(FOLDER)),)
    sandbox = await client.create(manifest=manifest.model_copy(update={"extra_path_grants": grants}))
    _show(Path(sandbox.state.manifest.root, at))
    return sandbox


def _show(path: Path) -> None:
    path.symlink_to(FOLDER, target_is_directory=True)


class Snapshots:
    """What `RemoteSnapshot` calls: one tar for each id."""

    def exists(self, snapshot_id: str) -> bool:
        return self._at(snapshot_id).exists()

    def download(self, snapshot_id: str) -> io.IOBase:
        return self._at(snapshot_id).open("rb")

    def upload(self, snapshot_id: str, data: io.IOBase) -> None:
        self._at(snapshot_id).write_bytes(data.read())

    def _at(self, snapshot_id: str) -> Path:
        return FOLDER / f"{snapshot_id}.tar"
