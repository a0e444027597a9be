"""Every export restores in the real SDK, and what the SDK archives comes in. Goal: invariant 6.

Method: the SDK's own validation and extraction (`agents.sandbox.util.tar_utils`), with the strict rules that its
sandbox clients use when they hydrate a workspace.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

import pytest
from agents.sandbox.util import tar_utils
from hypothesis import HealthCheck, given, settings

from runlore.snapshots import Snapshots, removing
from runlore.testing.stores import MemoryStore

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "snapshots"))
import snaptrees


def _hydrate(archive, into: Path) -> None:
    with tarfile.open(fileobj=archive, mode="r:*") as tar:
        tar_utils.validate_tarfile(tar, allow_external_symlink_targets=False)
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r:*") as tar:
        tar_utils.safe_extract_tarfile(tar, root=into, allow_external_symlink_targets=False)


def _compare(tree: dict, restored: dict, left_out: set[bytes]) -> None:
    """Contents and links are all there; the SDK keeps no times, and of modes what its own rule says."""
    for path, (kind, what, *rest) in tree.items():
        if path in left_out or any(path.startswith(lost + b"/") for lost in left_out):
            assert path not in restored
        elif kind == "file":
            assert restored[path][3:] == tuple(rest[1:])
            assert restored[path][1] == tar_utils._restored_regular_file_mode(what)
        elif kind == "link":
            assert restored[path][:2] == ("link", what)
        else:
            assert restored[path][0] == "dir"


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=snaptrees.TREES)
def test_any_tree_that_can_be_saved_restores_in_the_sdk(tree):
    async def play(folder: str):
        snaptrees.make(os.fsencode(folder) + b"/in", tree)
        snapshots = Snapshots(MemoryStore(), "acme")
        saved = await snapshots.save(folder + "/in")
        with await snapshots.export(saved.ref) as archive:
            await asyncio.to_thread(_hydrate, archive, Path(folder) / "out")
            left_out = {snaptrees_name(path) for path, _ in archive.left_out}
        _compare(snaptrees.describe(folder + "/in"), snaptrees.describe(folder + "/out"), left_out)

    folder = tempfile.mkdtemp()
    try:
        asyncio.run(play(folder))
    finally:
        removing.remove(os.fsencode(folder))


def snaptrees_name(text: str) -> bytes:
    from runlore.snapshots import names

    return names.from_text(text)


async def test_a_virtualenv_which_the_sdk_can_not_restore_itself_does_through_a_snapshot(tmp_path):
    await asyncio.to_thread(venv.create, tmp_path / "in" / ".venv", symlinks=True)
    os.mkfifo(tmp_path / "in" / "pipe")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:  # As UnixLocal archives a workspace.
        tar.add(tmp_path / "in", arcname=".")
    raw.seek(0)
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.ingest(raw)
    assert saved.report["skipped"] == [["pipe", "fifo"]]
    with await snapshots.export(saved.id) as archive:
        await asyncio.to_thread(_hydrate, archive, tmp_path / "out")
        assert all(why == "absolute link" for _, why in archive.left_out)
    config = tmp_path / "out" / ".venv" / "pyvenv.cfg"
    assert config.read_bytes() == (tmp_path / "in" / ".venv" / "pyvenv.cfg").read_bytes()
    assert stat.S_ISREG(config.stat().st_mode)


async def test_an_export_with_attributes_restores_in_the_sdk(tmp_path):
    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "in" / "d" / "f").write_bytes(b"body")
    try:
        for path in ("d", "d/f"):
            os.setxattr(tmp_path / "in" / path, "user.a=b", b"\x00\xff" * 500)
    except OSError:
        pytest.skip("this file system has no extended attributes")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in", xattrs=True)
    with await snapshots.export(saved.id) as archive:
        assert b"SCHILY.xattr.user.a%3Db=" in archive.read()
        archive.seek(0)
        await asyncio.to_thread(_hydrate, archive, tmp_path / "out")
    assert (tmp_path / "out" / "d" / "f").read_bytes() == b"body"
