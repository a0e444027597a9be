"""Seeds: a revision and a snapshot pinned for one next run, and memory's files written into a workspace.

A seed is a function of the heads at the time of asking: the revision, whom the run is for, which rollout it
continues, and the version of that rollout's workspace. Its id says all of that and when its term ends, so a
seed needs no object of its own, and the same id gives the same bytes until then (invariant 11).
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from runlore import clock, errors
from runlore.commit import age, heads, keys, lines, packs, revisions
from runlore.events import envelope, ids, models
from runlore.memory import render
from runlore.snapshots import names

T = TypeVar("T")

TERM_HOURS = int(age.TERM.total_seconds() // 3600)
"""T: how long a seed stays good after its heads were read, and what it names is kept."""
PREFIX = "s1."
RECEIPT = ".runlore/seed.json"
"""What Runlore wrote into a workspace, with hashes: how it knows its own files from edited ones."""
TEMPORARY = ".runlore-tmp"
RESOLVED_MAX = 4
"""How often a seed is resolved whose revision is erased each time before it is read."""


@dataclass(frozen=True)
class Seed:
    """What a seed id says."""

    project: str
    memory: str
    revision: int
    manifest: str
    rollout: str
    """Alias of the rollout that the next run belongs to."""
    subject: str | None
    """Alias of whom the run is for."""
    expires: str
    agent: str = lines.MAIN
    """Alias of the agent whose workspace it is."""
    version: int = 0
    """The version of the workspace's line that the run will replace."""
    snapshot: str | None = None
    """The workspace: `<id>/<root pack>`; none where the line has nothing."""
    template: bool = False
    """Whether that is the project's template: the line itself has nothing, so the run replaces nothing."""

    @property
    def names(self) -> tuple[int, str, str | None]:
        """What it names in the store: a revision by number and manifest, and a snapshot."""
        return self.revision, self.manifest, self.snapshot

    @property
    def base(self) -> dict[str, Any]:
        """What the next run's event gives as its workspace's `base`."""
        own = self.snapshot is not None and not self.template
        return {"counter": self.version, "snapshot": lines.id_of(self.snapshot) if own else None}

    @property
    def id(self) -> str:
        values = list(asdict(self).values())
        # Left out where it says nothing, so that a seed has the id that it always had.
        values = values if self.template else values[:-1]
        return PREFIX + base64.urlsafe_b64encode(envelope.dump(values)).decode().rstrip("=")


@dataclass(frozen=True)
class Opened:
    """A seed with its files: path inside the workspace → content, with `why` spans per file."""

    seed: Seed
    files: Mapping[str, render.Composed]
    notes: int
    layout: Mapping[str, Any]


def parse(seed_id: str, *, ended: bool = False) -> Seed:
    """The seed that an id names, signed or not; `ended`: also one whose term has ended.

    Raises `errors.InvalidInput` or `errors.SeedExpired`.
    """
    try:
        text = seed_id.removeprefix(PREFIX).partition(".")[0]
        seed = Seed(*json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))
        ids.check_name(seed.project, "project")
        ids.check_name(seed.memory, "memory")
        expires = dt.datetime.fromisoformat(seed.expires)
        ids.check_id(seed.rollout, "rollout")
        if not isinstance(seed.subject, str | None) or expires.tzinfo is None:
            raise ValueError
        if type(seed.template) is not bool or (seed.template and seed.snapshot is None):
            raise ValueError
        ids.check_id(seed.agent, "agent")
        if type(seed.revision) is not int or type(seed.version) is not int or seed.version < 0:
            raise ValueError
        if seed.snapshot is not None:
            names.Ref.parse(seed.snapshot)
        of_workspace_alone = seed.snapshot is not None and (seed.revision, seed.manifest) == (0, "")
        if not (of_workspace_alone or (seed.revision >= 1 and _is_hash(seed.manifest))):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError, errors.InvalidId):
        raise errors.InvalidInput(f"{seed_id[:24]!r} is not a seed id") from None
    if clock.now() >= expires and not ended:
        raise errors.SeedExpired(
            f"the seed of revision {seed.revision} ended at {seed.expires}", hint="ask for a new one"
        )
    return seed


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


async def resolve(
    reader: revisions.Reader,
    project: str,
    memory: str,
    rollout: str,
    *,
    subject: str | None = None,
    at: int | None = None,
    agent: str | None = None,
    side: str | None = None,
) -> Seed | None:
    """The seed for the next run of `rollout` (id as given), in the workspace of `agent` if it has its own.

    None where the memory has no revision yet and the rollout no workspace. `side`: of that side line, for a trial.
    """
    term = clock.now() + dt.timedelta(hours=TERM_HOURS)
    ids.check_name(project, "project")
    ids.check_name(memory, "memory")
    ids.check_id(rollout, "the rollout's id")
    line = lines.line_of(project, rollout, agent)
    # Both heads at once, and nothing else: what the newest revision is, its head says.
    wanted = [line.key, keys.memory_head(project, memory)]
    found = await reader.store.get_many(wanted)
    workspace = heads.parse(wanted[0], found[0], fmt=lines.HEAD_FORMAT).body
    head = heads.parse(wanted[1], found[1], fmt=revisions.HEAD_FORMAT).body
    if at is not None or side is not None:
        revision = await reader.at(project, memory, at, side=side)
        number, manifest = revision.number, revision.sha256
    elif head.get("manifest"):
        number, manifest = int(head["revision"]), str(head["manifest"])
    elif workspace.get("ref"):
        number, manifest = 0, ""
    else:
        if not head:
            # An agent that is told that there is nothing would begin without what was learnt, and say nothing of it.
            # One that began since had not when it was asked for.
            with contextlib.suppress(errors.HeadMoved):
                await revisions.refuse_lost(reader, project, memory)
        return None
    return Seed(
        project=project,
        memory=memory,
        revision=number,
        manifest=manifest,
        rollout=ids.alias(rollout.strip()),
        subject=ids.subject_alias(subject.strip()) if subject and subject.strip() else None,
        expires=term.isoformat(timespec="seconds"),
        agent=line.agent,
        version=int(workspace.get("version", 0)),
        snapshot=workspace.get("ref"),
    )


async def used(
    resolve: Callable[[], Awaitable[Seed | None]], use: Callable[[Seed | None], Awaitable[T]]
) -> T:
    """What `use` makes of the seed that `resolve` gives.

    Whoever asks for a seed means the newest, so where an erasure takes a revision between the read of its head and
    of what it names, the one that stands in its place is used. Raises as both do; `errors.Erased` where resolving
    gives the same again, as it does for a revision that was asked for by its number.
    """
    seed = await resolve()
    for _ in range(RESOLVED_MAX - 1):
        try:
            return await use(seed)
        except errors.Erased:
            before, seed = seed, await resolve()
            if seed is not None and before is not None and seed.names == before.names:
                raise
    return await use(seed)


async def open_newest(
    reader: revisions.Reader, resolve: Callable[[], Awaitable[Seed | None]]
) -> Opened | None:
    """The seed that `resolve` gives, with its files; see `used`."""

    async def use(seed: Seed | None) -> Opened | None:
        return None if seed is None else await open_seed(reader, seed)

    return await used(resolve, use)


async def open_seed(reader: revisions.Reader, seed: Seed) -> Opened:
    """The seed's files, composed from the parts that it may see. Reads and verifies every one."""
    if not seed.revision:
        return Opened(seed, {}, 0, models.Layout().model_dump())
    return open_revision(await load(reader, seed), seed)


async def load(reader: revisions.Reader, seed: Seed) -> revisions.Revision:
    """The seed's revision. Raises `errors.NotFound` where the store is from before it, else as `Reader.load`."""
    try:
        return await reader.load(seed.project, seed.memory, seed.revision, seed.manifest)
    except errors.Corrupt:
        head = await reader.head(seed.project, seed.memory)
        newest = int(head.body.get("revision") or 0)
        if newest >= seed.revision:
            raise
        raise errors.NotFound(
            f"this seed is of revision {seed.revision} of {seed.project}/{seed.memory}, which stands at {newest}: "
            "the store was put back to an older copy since",
            hint="ask for a new seed; what came since comes back with a replay, if the bus still has it",
        ) from None


def open_revision(revision: revisions.Revision, seed: Seed) -> Opened:
    """What a seed holds of a revision. Raises `errors.Corrupt`."""
    try:
        return _opened(revision, seed)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(
            f"revision {revision.number} of {revision.project}/{revision.memory} can not be read"
        ) from None


def _opened(revision: revisions.Revision, seed: Seed) -> Opened:
    layout = revision.body["layout"]
    parts = visible_parts(revision, subject=seed.subject, rollout=seed.rollout)
    composed = render.compose(
        parts, subject=seed.subject, rollout=seed.rollout, layout=models.Layout(**layout)
    )
    root = layout["memories_dir"]
    files = {f"{root}/{path}": one for path, one in composed.items()}
    shown = {note for one in composed.values() for _, _, note in one.why}
    return Opened(seed, files, len(shown), layout)


def visible_parts(
    revision: revisions.Revision, *, subject: str | None, rollout: str | None
) -> dict[str, render.Part]:
    """The parts of a revision that a seed for this subject and rollout may hold (invariant 9)."""
    parts = {}
    for key, entry in revision.map("files").items():
        owner, whom = entry.get("rollout"), entry.get("subject")
        if render.is_visible(owner, whom, for_subject=subject, for_rollout=rollout):
            why = [tuple(span) for span in envelope.kept(revision.frames.content(entry["why"]))]
            parts[key] = render.Part(
                text=revision.text(entry["sha256"]), rollout=owner, subject=whom, why=why
            )
    return parts


# --- into a workspace ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What writing a seed did: counts of files."""

    written: int
    unchanged: int
    removed: int


def write_into(opened: Opened, target: Path, *, force: bool = False) -> Written:
    """Write a seed's files into the workspace `target`, and remove those of an earlier seed.

    Nothing outside `target` is written, also where it holds symlinks (`errors.UnsafeTarget`). A file that
    Runlore did not write, or that was edited since, is not overwritten (`errors.TargetModified`) unless
    `force`. Every file is replaced atomically; interrupted, the same call finishes the work.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        return _write_all(opened, target, force=force)
    except OSError as exc:
        raise errors.UnsafeTarget(
            f"{exc.filename or target} can not be written: {exc.strerror}",
            hint="mend that or choose another --into; the same command finishes what was begun",
        ) from exc


def _write_all(opened: Opened, target: Path, *, force: bool) -> Written:
    receipt = _receipt(target)
    wanted = {path: one.text.encode("utf-8") for path, one in opened.files.items()}
    stale = sorted(set(receipt) - set(wanted))
    for path in [*wanted, *stale, RECEIPT]:
        _check_inside(target, path)
    if not force:
        _check_unedited(target, wanted, stale, receipt)
    _sweep({(target / path).parent for path in [*wanted, RECEIPT]})
    # The receipt first, naming both what was and what will be: after a crash either hash is known as ours.
    merged = {
        path: sorted({*receipt.get(path, []), *([packs.name(wanted[path])] if path in wanted else [])})
        for path in {*receipt, *wanted}
    }
    _write(target, RECEIPT, _receipt_bytes(opened, merged))
    unchanged = 0
    for path, content in wanted.items():
        if _read(target / path) == content:
            unchanged += 1
        else:
            _write(target, path, content)
    for path in stale:
        (target / path).unlink(missing_ok=True)
        _prune(target, (target / path).parent)
    final = {path: [packs.name(content)] for path, content in wanted.items()}
    _write(target, RECEIPT, _receipt_bytes(opened, final))
    return Written(len(wanted) - unchanged, unchanged, len(stale))


def _receipt(target: Path) -> dict[str, list[str]]:
    raw = _read(target / RECEIPT)
    if raw is None:
        return {}
    try:
        files = json.loads(raw)["files"]
        return {str(path): [str(one) for one in hashes] for path, hashes in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _receipt_bytes(opened: Opened, files: Mapping[str, list[str]]) -> bytes:
    seed = opened.seed
    body = {
        "seed": seed.id,
        **asdict(seed),
        "layout": dict(opened.layout),
        "files": dict(sorted(files.items())),
    }
    return (json.dumps(body, indent=2) + "\n").encode()


def receipt_of(target: Path) -> dict[str, Any]:
    """What the receipt in a workspace says; {} where there is none that can be read."""
    try:
        body = json.loads(_read(target / RECEIPT) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def check_unedited(opened: Opened, target: Path) -> None:
    """Raises `errors.TargetModified` where memory's files in `target` were edited since they were written."""
    receipt = _receipt(target)
    wanted = {path: one.text.encode("utf-8") for path, one in opened.files.items()}
    stale = sorted(set(receipt) - set(wanted))
    for path in [*wanted, *stale]:
        _check_inside(target, path)
    _check_unedited(target, wanted, stale, receipt)


def _check_inside(target: Path, path: str) -> None:
    """No part of `path` below `target` may be a symlink, or a file where a directory is needed."""
    at = target
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts or not _is_name(path):
        raise errors.UnsafeTarget(f"{path!r} would be written outside of {target}")
    for part in parts:
        at = at / part
        if at.is_symlink():
            raise errors.UnsafeTarget(
                f"{at} is a symlink; a seed is not written through one",
                hint="remove it, or choose another --into",
            )
    for parent in Path(path).parents:
        if (target / parent).exists() and not (target / parent).is_dir():
            raise errors.UnsafeTarget(f"{target / parent} is a file where a directory is needed")
    if (target / path).is_dir():
        raise errors.UnsafeTarget(f"{target / path} is a directory where a file is needed")


def _is_name(path: str) -> bool:
    """Whether a file system can hold `path`: the receipt lies in the workspace, so anybody may have written it."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _check_unedited(
    target: Path, wanted: Mapping[str, bytes], stale: list[str], receipt: Mapping[str, list[str]]
) -> None:
    edited = []
    for path in [*wanted, *stale]:
        there = _read(target / path)
        if there is None or there == wanted.get(path):
            continue
        # The SDK makes the two files empty where they are missing; an empty file holds nothing to lose.
        if there and packs.name(there) not in receipt.get(path, []):
            edited.append(path)
    if edited:
        raise errors.TargetModified(
            f"{len(edited)} files in {target} are not as Runlore wrote them: {', '.join(sorted(edited)[:5])}",
            hint="--force replaces them; or choose another --into",
        )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sweep(folders: Iterable[Path]) -> None:
    """Remove what a killed writer left half written."""
    for folder in folders:
        for left in folder.glob(f".*{TEMPORARY}"):
            left.unlink(missing_ok=True)


def _write(target: Path, path: str, content: bytes) -> None:
    final = target / path
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{clock.new_id()}{TEMPORARY}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _prune(target: Path, folder: Path) -> None:
    """Remove the folders that a stale file left empty, up to `target`."""
    while folder != target and folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder)
        folder = folder.parent
