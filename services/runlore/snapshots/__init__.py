"""Workspace snapshots whose cost follows change: the format, and a library over any object store.

A snapshot is a Merkle tree of directories that names chunks by their hash. Chunks are joined into compressed
frames, frames into packs; where a chunk lies is told by indexes beside them, and is no part of any id
(docs/FORMAT.md is the normative text). `Snapshots` in `library.py` is the way in.

    save, ingest ─▶ scan, tarin ─▶ building (dedupe, frames, packs) ─▶ put packs, the root pack last
    restore, open, export, diff, verify ─▶ reading (root → indexes → trees → chunks, each verified by its id)

Place: below the stages and the command line, above the store's port. Nothing here moves a head.
Invariant 7: a writer refers only to packs of the bases that it was given (a head named them), or its own.
"""

from runlore.snapshots.library import Saved, Snapshots
from runlore.snapshots.names import Ref

__all__ = ["Ref", "Saved", "Snapshots"]
