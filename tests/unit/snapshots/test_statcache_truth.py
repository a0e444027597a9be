"""The stat cache never says that something is unchanged which is not. Goal: issue 4, point 2.

Method: a model-free check. Random changes to a tree (in place at equal size and time, replaced, renamed, swapped,
linked, truncated, modes, types), with a save after some of them; each save with the cache must find exactly the
tree that a save finds which reads everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runlore.snapshots import Snapshots, removing
from runlore.testing.stores import MemoryStore

PATHS = ["a", "b", "d/a", "e/a"]
FOLDERS = ["d", "e", "d/s"]
TIME = (0, 1_600_000_000_000_000_000)
TICK_SECONDS = 0.012
"""Longer than the step of a file system's clock: what was written before it may be trusted."""

bodies = st.sampled_from(["x", "y", "longer"])
paths, folders = st.sampled_from(PATHS), st.sampled_from(FOLDERS)
edits = st.sampled_from(["write", "in place", "replace", "touch", "chmod", "remove"])
changes = st.one_of(
    st.tuples(edits, paths, bodies),
    st.tuples(st.just("in place"), paths, st.sampled_from(["x", "y"])),
    st.tuples(st.sampled_from(["rename", "swap", "hard link", "symlink"]), paths, paths),
    st.tuples(st.sampled_from(["rename", "swap"]), folders, folders),
    st.sampled_from([("save", "", ""), ("save", "wait", ""), ("save", "wait", ""), ("restore", "", "")]),
)


def _apply(root: str, what: str, one: str, two: str) -> None:
    path, other = f"{root}/{one}", f"{root}/{two}"
    if what == "write" or what == "in place":
        with open(path, "w" if what == "write" else "r+") as file:
            file.write(two)
        os.utime(path, ns=TIME)  # As a package manager leaves it.
    elif what == "replace":
        with open(f"{root}/new", "w") as file:
            file.write(two)
        os.utime(f"{root}/new", ns=TIME)
        os.replace(f"{root}/new", path)
    elif what == "touch":
        os.utime(path)
    elif what == "chmod":
        os.chmod(path, 0o600 if two == "x" else 0o755)
    elif what == "remove":
        os.unlink(path)
    elif what == "hard link":
        os.link(path, other)
    elif what == "symlink":
        os.symlink(two, path)
    elif what == "rename":
        os.rename(path, other)
    elif what == "swap":
        os.rename(path, f"{root}/aside")
        try:
            os.rename(other, path)
        finally:
            os.rename(f"{root}/aside", other if not os.path.lexists(other) else path)


async def _play(folder: str, made: list) -> None:
    store = MemoryStore()
    trusting, reading = Snapshots(store, "acme", cache_dir=f"{folder}/cache"), Snapshots(store, "acme")
    root = f"{folder}/in"
    for name in FOLDERS:
        os.makedirs(f"{root}/{name}", exist_ok=True)
    for name in PATHS:
        _apply(root, "write", name, "x")
    base = (await trusting.save(root)).ref
    for what, one, two in [*made, ("save", "", "")]:
        if what == "save":
            await asyncio.sleep(TICK_SECONDS if one == "wait" else 0)
            saved = await trusting.save(root, base=base)
            assert saved.id == (await reading.save(root)).id
            base = saved.ref
        elif what == "restore":
            await trusting.restore(base, root, replace=True)
            assert (await reading.save(root)).tree == (await reading.open(base)).record.tree.hex()
        else:
            with contextlib.suppress(OSError):
                _apply(root, what, one, two)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(changes, min_size=3, max_size=25))
def test_a_save_with_the_cache_finds_what_a_save_without_finds(made):
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        asyncio.run(_play(folder, made))
    finally:
        removing.remove(os.fsencode(folder))
