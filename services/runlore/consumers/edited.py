"""Edited: what a memory-edited event changed in the notes, against the revision that it began from.

Part of the record stage, and a function of the event and of that revision, which never changes: whoever takes the
event, however late, makes the same record. An edit whose base can not be told is a dead letter (`edit_base_unknown`):
against anything else, what it adds and what it takes out would be guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from runlore import errors
from runlore.commit import keys, revisions
from runlore.consumers.runtime import Runtime
from runlore.events import envelope, ids, models
from runlore.lookup import seeds
from runlore.memory import edits, redact, render, values
from runlore.store import port as store_port


async def line_of(
    store: store_port.ObjectStore,
    reader: revisions.Reader,
    data: models.MemoryEdited,
    runtime: Runtime,
    key: bytes | None = None,
) -> tuple[str, str, Mapping[str, int]]:
    """(The edit's line as it is kept, the hash of it as received, what was redacted). Raises a `Poison`.

    `key`: the project's redaction key.
    """
    texts = {file.path: await _text(store, data.project, file) for file in data.files}
    revision, opened = await _base(reader, data, runtime)
    return await runtime.offload(_made, data, texts, revision, opened, key)


async def _text(store: store_port.ObjectStore, project: str, file: models.EditedFile) -> str:
    file.check_size()
    if file.text is not None:
        return file.text
    claim = file.text_claim
    assert claim is not None
    # No more than it says that there is: under its name lies whatever somebody put there.
    body = await store.get_range(keys.claim(project, claim.sha256), 0, claim.size + 1)
    if body is None:
        raise errors.ClaimMissing(
            f"the claim {claim.sha256[:12]} is not in project {project}",
            hint="upload the text, then `runlore dead redrive`",
        )
    if len(body) != claim.size or hashlib.sha256(body).hexdigest() != claim.sha256:
        raise errors.ClaimMismatch(f"the object {claim.sha256[:12]} has other bytes than its claim says")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.InvalidEvent(f"the edited {file.path} is not UTF-8") from None


async def _base(
    reader: revisions.Reader, data: models.MemoryEdited, runtime: Runtime
) -> tuple[revisions.Revision | None, seeds.Opened | None]:
    """The files that were edited. Raises `errors.EditBaseUnknown`."""
    if not data.revision:
        return None, None
    wanted = (data.project, data.memory)
    subject = ids.subject_alias(data.subject.strip()) if data.subject and data.subject.strip() else None
    try:
        if data.seed is not None:
            seed = seeds.parse(data.seed, ended=True)
            # Whose files they were decides what may be told by them: another subject's are nobody's to edit.
            if (seed.project, seed.memory, seed.subject, seed.revision) != (*wanted, subject, data.revision):
                raise errors.EditBaseUnknown("the seed is not of this project, memory, subject and revision")
            revision = await reader.load(*wanted, seed.revision, seed.manifest)
        else:
            revision = await reader.at(*wanted, data.revision)
            seed = seeds.Seed(*wanted, revision.number, revision.sha256, data.rollout.alias, subject, "")
        return revision, await runtime.offload(seeds.open_revision, revision, seed)
    except (errors.InvalidInput, errors.NotFound, errors.Corrupt) as exc:
        raise errors.EditBaseUnknown(
            f"revision {data.revision} of {data.project}/{data.memory} is not there: {exc.message}"
        ) from None


def _made(
    data: models.MemoryEdited,
    texts: Mapping[str, str],
    revision: revisions.Revision | None,
    opened: seeds.Opened | None,
    key: bytes | None,
) -> tuple[str, str, Mapping[str, int]]:
    """The edit's line: what was changed, and the files as they were left. Pure."""
    received = [data.revision, data.seed]
    changed: list[dict[str, Any]] = []
    files = []
    redacted: dict[str, int] = {}
    for file in sorted(data.files, key=lambda one: one.path):
        base = _composed(file, opened)
        text = texts[file.path]
        # Of the text before its producer hid anything, as a run's.
        received += [file.path, file.base_sha256, file.received or received_hash(text)]
        kept, counts = redact.counted_text(text, key)
        for kind, count in counts.items():
            redacted[kind] = redacted.get(kind, 0) + count
        notes = _behind(base)
        seen = _seen(revision, {one for some in notes.values() for one in some})
        changed += edits.changes(file.path, edits.Base(_known(base.text, key), notes), kept, seen)
        files.append({"path": file.path, "base_sha256": file.base_sha256, "text": kept})
    body = {
        "run": ids.alias(data.run_id),
        "edit_id": data.edit_id,
        "seed": data.seed,
        "revision": data.revision,
        "changes": changed[: edits.CHANGES_MAX],
        "left_out": max(0, len(changed) - edits.CHANGES_MAX),
        "files": files,
    }
    # As a run's record, with nothing of a run in it: whoever reads records may read this one.
    record = {"rollout_id": data.rollout.alias, "input": [], "generated_items": [], "edit": body}
    # Once more as a whole: what names a secret may stand in another string.
    line, _ = redact.line(envelope.dump(record).decode("ascii"), key)
    return line, hashlib.sha256(envelope.dump(received)).hexdigest()[:32], redacted


def received_hash(text: str) -> str:
    """The hash by which an edited text's sameness is judged: before any redaction."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _known(base: str, key: bytes | None) -> str:
    """The base by the present rules: what they hide in both is no change. As it is, where its lines would move."""
    kept = redact.text(base, key)
    return kept if len(kept.splitlines()) == len(base.splitlines()) else base


def _composed(file: models.EditedFile, opened: seeds.Opened | None) -> render.Composed:
    """The file as it was seeded. Raises `errors.EditBaseUnknown` where that had other bytes than the event says."""
    found = None
    if opened is not None:
        found = opened.files.get(f"{opened.layout['memories_dir']}/{file.path}")
    found = found or render.Composed("")
    if hashlib.sha256(found.text.encode("utf-8")).hexdigest() != file.base_sha256:
        raise errors.EditBaseUnknown(
            f"{file.path} was seeded with other bytes than the event says",
            hint="`base_sha256` is of the file before the edit, `seed` and `revision` say which that was",
        )
    return found


def _behind(base: render.Composed) -> dict[int, list[str]]:
    """Line → the notes behind it."""
    out: dict[int, list[str]] = {}
    for first, last, note in base.why:
        for number in range(first, last + 1):
            out.setdefault(number, []).append(note)
    return out


def _seen(revision: revisions.Revision | None, notes: set[str]) -> dict[str, str]:
    """The notes that an edit may stand against, each with the time of its newest evidence in the base."""
    if revision is None:
        return {}
    known = revision.map("notes")
    out: dict[str, str] = {}
    for name in sorted(notes):
        entry = known.get(name)
        if entry is not None and entry["kind"] in edits.TARGETS:
            times = (str(one.get("at", "")) for one in entry["support"].values())
            out[name] = max(times, key=values.time_key, default="")
    return out
