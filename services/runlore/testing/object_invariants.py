"""Invariant 1 of single objects: what is written names what is there, and has the bytes that its name promises.

The simulation runs them at each write, and `runlore verify` over a whole project.
"""

from __future__ import annotations

import hashlib
import json

from runlore import errors
from runlore.commit import keys, packs, revisions
from runlore.store import port as store_port
from runlore.testing import checks, invariants


@checks.of(invariants.DANGLING)
async def objects_have_their_names(store: store_port.ObjectStore, project: str) -> list[invariants.Violation]:
    """Every content-named object of a project has the bytes that its name promises. Reads everything."""
    out = []
    async for row in store.list(f"{project}/"):
        kind, name = row.key.split("/")[1], row.key.rpartition("/")[2]
        if kind not in (keys.PACKS, keys.CLAIMS, keys.MANIFESTS):
            continue
        stored = await store.get(row.key)
        if stored is not None and kind == keys.MANIFESTS and revisions.stub_in(stored.body) is not None:
            continue
        if stored is not None and hashlib.sha256(stored.body).hexdigest() != name.rpartition("-")[2]:
            out.append(
                invariants.Violation(invariants.DANGLING, row.key, "it has other bytes than its name says")
            )
        elif stored is not None and kind == keys.PACKS:
            try:
                packs.decode(name, stored.body)
            except errors.Fatal as exc:
                out.append(invariants.Violation(invariants.DANGLING, row.key, exc.message))
    return out


@checks.of(invariants.DANGLING)
async def rollout_names_what_exists(
    store: store_port.ObjectStore, project: str, memory: str, rollout: str, head: bytes
) -> list[invariants.Violation]:
    """The head of a rollout must name only runs that are recorded: at the moment at which it is moved."""
    where = (project, memory, rollout)
    body = json.loads(head)
    named = [(run, int(entry["attempt"])) for run, entry in body.get("runs", {}).items()]
    found = await store.get_many([keys.record(*where, run, attempt) for run, attempt in named])
    return [
        invariants.Violation(
            invariants.DANGLING, keys.rollout_head(*where), f"run {run} attempt {attempt} has no record"
        )
        for (run, attempt), stored in zip(named, found, strict=True)
        if stored is None
    ]


@checks.of(invariants.DANGLING)
async def manifest_names_what_exists(
    store: store_port.ObjectStore, project: str, manifest: bytes
) -> list[invariants.Violation]:
    """A manifest must name only objects that exist: at the moment at which it is written."""
    body = revisions.stub_in(manifest) or json.loads(manifest)
    wanted = [keys.pack(project, str(pack["sha256"])) for pack in body["packs"]]
    found = await store.get_many(wanted)
    return [
        invariants.Violation(
            invariants.DANGLING,
            key,
            f"the manifest of revision {body['revision']} names it, but it is not there",
        )
        for key, stored in zip(wanted, found, strict=True)
        if stored is None
    ]
