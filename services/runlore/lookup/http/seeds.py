"""Routes of ids and seeds: which rollout is meant, what the next run begins with, and its files."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.events import ids
from runlore.lookup import asking, handing, memories, overlay, seeds, signing
from runlore.lookup.http import answers, callers, limiting, shapes
from runlore.lookup.http.service import WAIT_SECONDS_MAX
from runlore.snapshots import tarout
from runlore.upkeep import seedlog

router = APIRouter(prefix="/v1/projects/{project}")
TAR = "application/x-tar"
HALF_DAY_SECONDS = 12 * 3600
"""A seed that nothing moved is given anew this often: whoever keeps one by its ETag never holds one near its end."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
"""What is kept of the header `X-Request-Id`: it is the sender's, so nothing that could be a text."""

Given = Annotated[str | None, Query(max_length=ids.ID_CHARS_MAX)]


def _rollout(
    conversation_id: str | None, session_id: str | None, group_id: str | None, run_id: str | None
) -> ids.Rollout:
    """The rollout of the ids as given. Raises `errors.InvalidInput`, `errors.InvalidId`."""
    given = {
        "conversation_id": conversation_id,
        "session_id": session_id,
        "group_id": group_id,
        "run_id": run_id,
    }
    named = {name: value for name, value in given.items() if value and value.strip()}
    if not named:
        raise errors.InvalidInput(f"one of {', '.join(given)} is needed")
    for name, value in named.items():
        ids.check_id(value, name)
    return ids.resolve_rollout(
        conversation_id=conversation_id, session_id=session_id, group_id=group_id, run_id=run_id or ""
    )


@router.get(
    "/resolve",
    summary="Which rollout these ids mean, in the SDK's order",
    tags=["ids"],
    responses=shapes.answers(shapes.Resolved),
)
async def resolve(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.READ)],
    conversation_id: Given = None,
    session_id: Given = None,
    group_id: Given = None,
    run_id: Given = None,
) -> Response:
    found = _rollout(conversation_id, session_id, group_id, run_id)
    body = {"rollout": found.original, "alias": found.alias, "matched": found.kind}
    return await answers.found(request, body)


@router.get(
    "/memories/{memory}/seed",
    summary="What the next run begins with",
    tags=["seeds"],
    responses=shapes.answers(shapes.Seed),
)
async def seed(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.READ, counts=limiting.SEED)],
    conversation_id: Given = None,
    session_id: Given = None,
    group_id: Given = None,
    run_id: Given = None,
    subject: callers.Subject = None,
    agent: Given = None,
    at: Annotated[
        str | None, Query(max_length=64, description="A revision's number, or an RFC 3339 time.")
    ] = None,
    wait_for: Annotated[
        str | None, Query(max_length=ids.ID_CHARS_MAX, description="A run that it must cover.")
    ] = None,
    wait_seconds: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX)] = 10.0,
    after: Annotated[str | None, Query(max_length=8192, description="The seed that was seen last.")] = None,
    template: Annotated[
        Literal["yes", "no"], Query(description="What an empty line of the rollout begins with.")
    ] = "yes",
) -> Response:
    service = callers.service_of(request)
    rollout = _rollout(conversation_id, session_id, group_id, run_id)
    secret = await service.secret()
    wanted = asking.Wanted(
        project=project,
        memory=memory,
        rollout=rollout.original,
        subject=subject,
        agent=agent,
        at=asking.moment_of(at),
        after=signing.open_signed(secret, project, after, ended=True) if after else None,
        wait_for=wait_for,
        wait_seconds=wait_seconds,
        with_template=template == "yes",
    )
    asker = asking.Asker(
        service.store,
        service.bus,
        service.reader,
        stopping=service.stopping.is_set,
        letters=service.letters,
    )
    named = {"rollout": rollout.original, "alias": rollout.alias, "matched": rollout.kind}

    async def resolve() -> seeds.Seed | None:
        return await asker.seed(wanted, lambda: service.lists.page(lambda index: index.tagged(project)))

    async def told(found: seeds.Seed | None) -> Response:
        if found is not None:
            return await _told(request, found, secret, named)
        line = await asker.line(wanted)
        body = _nothing(project, memory, named, line.agent, wanted.whom)
        return await answers.found(request, body, etag=answers.quoted("none", weak=True))

    return await seeds.used(resolve, told)


def _nothing(
    project: str, memory: str, named: dict[str, Any], agent: str, subject: str | None
) -> dict[str, Any]:
    """The seed of a memory without a revision, for a rollout without a workspace."""
    return {
        **{"seed": None, "project": project, "memory": memory, **named, "subject": subject, "agent": agent},
        **{"revision": 0, "notes": 0, "expires": None, "layout": asking.default_layout(), "files": []},
        **{"snapshot": None, "from_template": False, "base": {"counter": 0, "snapshot": None}},
    }


async def _told(
    request: Request, found: seeds.Seed, secret: bytes, named: dict[str, Any], how: str = seedlog.SEED
) -> Response:
    ends = dt.datetime.fromisoformat(found.expires).timestamp()
    etag = answers.quoted(
        *(found.revision, found.version, int(ends // HALF_DAY_SECONDS), int(found.template)), weak=True
    )
    if answers.is_known(request, etag):
        await _noted(request, found, seedlog.UNCHANGED)
        return answers.unchanged(etag, answers.FOLLOWS)
    # The entry is put while the files are read: mostly nobody waits for it.
    (opened, rows), _ = await asyncio.gather(
        callers.service_of(request).listed(found), _noted(request, found, how)
    )
    body = {
        "seed": signing.sign(secret, found),
        "project": found.project,
        "memory": found.memory,
        **named,
        "subject": found.subject,
        "agent": found.agent,
        "revision": found.revision,
        "notes": opened.notes,
        "expires": found.expires,
        "layout": dict(opened.layout),
        "files": rows,
        "snapshot": found.snapshot.partition("/")[0] if found.snapshot else None,
        "from_template": found.template,
        "base": found.base,
    }
    return await answers.found(request, body, etag=etag)


# --- by its id ----------------------------------------------------------------------------------------------


async def _opened(request: Request, project: str, signed: str) -> seeds.Opened:
    service = callers.service_of(request)
    found = signing.open_signed(await service.secret(), project, signed)
    opened, _ = await asyncio.gather(service.opened(found), _noted(request, found, seedlog.CONTENT))
    return opened


# --- the log of seeds ---------------------------------------------------------------------------------------


async def _noted(request: Request, found: seeds.Seed, how: str) -> None:
    """Note in the log of seeds that this one is about to be handed out. Raises what forbids that."""
    writer = callers.service_of(request).seed_log
    if writer is None:
        return
    given = request.headers.get("x-request-id", "")
    named = given if _REQUEST_ID.fullmatch(given) else None
    one = handing.handed(found, by=callers.caller(request), how=how, request=named)
    await writer.hand_out(one, once=how == seedlog.CONTENT)


@router.get(
    "/seeds/{seed}",
    summary="A seed again, until its term ends",
    tags=["seeds"],
    responses=shapes.answers(shapes.Seed),
)
async def again(
    request: Request,
    project: callers.Project,
    seed: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
) -> Response:
    secret = await callers.service_of(request).secret()
    found = signing.open_signed(secret, project, seed)
    named = {"rollout": None, "alias": found.rollout, "matched": None}
    return await _told(request, found, secret, named, seedlog.AGAIN)


@router.get(
    "/seeds/{seed}/files/{path:path}",
    summary="One memory file of a seed",
    tags=["seeds"],
    responses=shapes.content("text/plain", "The file"),
)
async def file(
    request: Request,
    project: callers.Project,
    seed: callers.Segment,
    path: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
) -> Response:
    opened = await _opened(request, project, seed)
    one = opened.files.get(path)
    if one is None:
        raise errors.NotFound(f"the seed has no file {path!r}")
    etag = answers.quoted(memories.sizes([(path, one.text)])[0]["sha256"])
    return await answers.text(request, one.text, etag=etag, immutable=True)


@router.get(
    "/seeds/{seed}/memory.tar",
    summary="A seed's memory files",
    tags=["seeds"],
    responses=shapes.content(TAR, "A plain tar; 206 with `Range`"),
)
async def memory_tar(
    request: Request,
    project: callers.Project,
    seed: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
) -> Response:
    opened = await _opened(request, project, seed)
    raw = await asyncio.to_thread(overlay.memory_tar, opened)

    async def content() -> answers.Pieces:
        return answers.Pieces(len(raw), lambda start, length: _sliced(raw, start, length))

    return await answers.stream(
        request,
        content,
        gate=callers.service_of(request).downloads,
        project=project,
        etag=answers.quoted("memory", seed[-48:]),
        media_type=TAR,
        immutable=True,
    )


async def _sliced(raw: bytes, start: int, length: int) -> Any:
    yield raw[start : start + length]


@router.get(
    "/seeds/{seed}/workspace.tar",
    summary="A seed's whole workspace",
    tags=["seeds"],
    responses=shapes.content(TAR, "A plain tar; 206 with `Range`"),
)
async def workspace_tar(
    request: Request,
    project: callers.Project,
    seed: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
) -> Response:
    service = callers.service_of(request)
    opened = await _opened(request, project, seed)
    memory = await asyncio.to_thread(overlay.memory_tar, opened)

    async def content() -> answers.Files | answers.Pieces:
        if opened.seed.snapshot is None:
            return answers.Pieces(len(memory), lambda start, length: _sliced(memory, start, length))
        found = await service.snapshots(project).open(opened.seed.snapshot)
        export = await tarout.export(found, without=overlay.covered(opened))
        assert isinstance(export, tarout.Export)
        # What the tar ends with comes after the last member of all.
        return answers.Files(export, export.size - tarout.END_BYTES, memory)  # type: ignore[arg-type]

    return await answers.stream(
        request,
        content,
        gate=service.downloads,
        project=project,
        etag=answers.quoted("workspace", seed[-48:]),
        media_type=TAR,
        immutable=True,
    )
