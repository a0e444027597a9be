"""A seed's memory files as a tar, and over its workspace's: what a client unpacks into an empty folder.

Deterministic: the same seed id gives the same bytes (invariant 11).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from runlore.lookup import seeds
from runlore.snapshots import names, tarout, trees

FILE_MODE, DIR_MODE = 0o644, 0o755


def memory_tar(opened: seeds.Opened) -> bytes:
    """The memory files of a seed, paths as in a workspace, each folder before what is in it. Blocking."""
    # When the seed was made: a function of its id.
    made = dt.datetime.fromisoformat(opened.seed.expires) - dt.timedelta(hours=seeds.TERM_HOURS)
    mtime_ns = int(made.timestamp()) * 10**9
    nothing = trees.encode((), (), ())
    parts: list[bytes] = []
    folders: set[str] = set()
    for path, one in sorted(opened.files.items()):
        above = path.split("/")[:-1]
        for count in range(1, len(above) + 1):
            folder = "/".join(above[:count])
            if folder not in folders:
                folders.add(folder)
                raw = folder.encode("utf-8")
                entry = trees.Dir(raw, DIR_MODE, mtime_ns, nothing.tree, nothing.content)
                parts.append(tarout.header(raw, entry))
        raw, content = path.encode("utf-8"), one.text.encode("utf-8")
        parts.append(tarout.header(raw, trees.File(raw, FILE_MODE, mtime_ns, len(content))))
        parts.append(content + bytes(-len(content) % tarout.BLOCK))
    return b"".join([*parts, bytes(tarout.END_BYTES)])


def covered(opened: seeds.Opened) -> Callable[[bytes, trees.Entry], bool]:
    """Which members of the workspace's tar the memory files take the place of.

    Memory's folders are never part of a snapshot; but one that was saved by hand may hold such names, and a link or
    a file where a folder is needed would lead what is unpacked elsewhere.
    """
    roots = [names.from_text(str(opened.layout[name])) for name in ("memories_dir", "sessions_dir")]
    above = {
        b"/".join(root.split(b"/")[:count]) for root in roots for count in range(1, root.count(b"/") + 1)
    }

    def is_covered(path: bytes, entry: trees.Entry) -> bool:
        if any(path == root or path.startswith(root + b"/") for root in roots):
            return True
        return path in above and not isinstance(entry, trees.Dir)

    return is_covered
