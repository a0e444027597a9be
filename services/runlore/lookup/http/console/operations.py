"""Pages of whoever keeps it running: dead letters with redrive, status with its causes, keys.

Reviews and spend are in `reviews.py`; users and the audit log join here, and in `pages.PARTS`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore import clock, errors
from runlore.consumers import dead
from runlore.lookup import status as lookup_status
from runlore.lookup.http import answers, callers
from runlore.lookup.http.console import pages, sessions
from runlore.memory import redact
from runlore.upkeep import access, administration, audit, lastuse

router = APIRouter(
    prefix="/projects/{project}",
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
LETTERS_SHOWN = 50
KEYS_SHOWN = 200
PREVIEW_BYTES_MAX = 64 * 1024
PREVIEW_CHARS_MAX = 4000

Viewer = Annotated[sessions.Viewer, sessions.sees(callers.READ)]
Admin = Annotated[sessions.Viewer, sessions.sees(callers.ADMIN)]
Letter = callers.Segment


def reason_of(fields: dict[str, str]) -> str:
    """Why somebody changes what others see. Raises `errors.InvalidInput` where it is not said."""
    reason = fields.get("reason", "").strip()
    if not reason:
        raise errors.InvalidInput("this changes what others see: say why")
    return reason[: audit.REASON_CHARS_MAX]


# --- dead letters ------------------------------------------------------------------------------------------------


async def _letters(request: Request, project: str, viewer: sessions.Viewer) -> list[dead.Letter]:
    """The letters of a project. One that names none may be anybody's: without keys it is this machine's user's."""
    found = await callers.service_of(request).letters()
    wanted = (project,) if viewer.key is not None else (project, None)
    return [one for one in found if dead.project_of(one) in wanted]


@router.get("/dead")
async def letters(
    request: Request,
    project: callers.Project,
    viewer: Viewer,
    every: Annotated[bool, Query(alias="all")] = False,
    cursor: callers.Cursor = None,
) -> Response:
    """Dead letters, oldest first."""
    passed = (answers.place_of(cursor, int) or (0,))[0]
    found = [one for one in await _letters(request, project, viewer) if every or one.resolution is None]
    rows = list(enumerate(found, 1))[passed : passed + LETTERS_SHOWN + 1]
    page = answers.page(rows, LETTERS_SHOWN, lambda row: answers.cursor_of(row[0]), lambda row: row[1])
    return await pages.shown(
        request, "dead.html", title=f"Dead letters · {project}", page=page, total=len(found), every=every
    )


async def _letter(request: Request, project: str, viewer: sessions.Viewer, name: str) -> dead.Letter:
    for one in await _letters(request, project, viewer):
        if one.id == name:
            return one
    raise errors.NotFound("the project has no such dead letter")


@router.get("/dead/{letter}")
async def letter(request: Request, project: callers.Project, letter: Letter, viewer: Viewer) -> Response:
    """One dead letter: its reason, where it came from, its event, and what can be done."""
    found = await _letter(request, project, viewer, letter)
    return await _letter_page(request, found)


async def _letter_page(
    request: Request, found: dead.Letter, problem: str = "", status: int = 200
) -> Response:
    preview = None
    if found.size <= PREVIEW_BYTES_MAX:
        raw = await dead.value_of(callers.service_of(request).store, found)
        # It was refused before anything redacted it.
        preview = redact.text((raw or b"").decode("utf-8", "replace"))
    return await pages.shown(
        request,
        "letter.html",
        title=f"Dead letter {found.id}",
        status=status,
        letter=found,
        run=dead.run_of(found),
        fits=dead.fits(found),
        preview=preview[:PREVIEW_CHARS_MAX] if preview is not None else None,
        cut=len(preview) > PREVIEW_CHARS_MAX if preview is not None else False,
        problem=problem,
    )


@router.post("/dead/{letter}/redrive")
async def redrive(request: Request, project: callers.Project, letter: Letter, viewer: Admin) -> Response:
    """Publish the event again as it came."""
    fields = await sessions.form_of(request, viewer)
    found = await _letter(request, project, viewer, letter)
    try:
        why = reason_of(fields)
    except errors.InvalidInput as exc:
        return await _letter_page(request, found, problem=exc.message, status=400)
    if found.resolution is not None:
        raise errors.Refused(f"dead letter {found.id} was {found.resolution} already")
    service = callers.service_of(request)
    async with audit.acting(
        service.store,
        by=viewer.by(),
        what="dead redrive",
        projects=[project] if dead.project_of(found) else [],
        reason=why,
        arguments={"letters": [found.id], "reason": None, "limit": 1},
    ):
        await dead.redrive(service.bus, service.store, [found], why=why)
    service.forget_letters()
    return pages.go(pages.url("projects", project, "dead", done="redriven"))


# --- status ------------------------------------------------------------------------------------------------------


@router.get("/status")
async def status(request: Request, project: callers.Project, viewer: Viewer) -> Response:
    """How the pipeline is: what waits since when, what stands still, and why, in words."""
    service = callers.service_of(request)
    rows = await service.lists.ask(lambda index: index.memories(project))
    letters = await _letters(request, project, viewer)
    # With keys a project sees what is its own: no other's names, no machines.
    mine = project if viewer.key is not None else None
    found = await lookup_status.told(
        service.store,
        service.bus,
        rows,
        [one for one in letters if one.resolution is None],
        local=service.status_path,
        up=service.up(),
        project=mine,
        chosen=(await service.knows()).chosen,
    )
    return await pages.shown(
        request,
        "status.html",
        title=f"Status · {project}",
        found=found,
        stages=[(name, found[name]) for name in lookup_status.STAGES],
        age=lookup_status.age,
    )


# --- keys --------------------------------------------------------------------------------------------------------


@router.get("/keys")
async def keys(request: Request, project: callers.Project, viewer: Admin) -> Response:
    """The keys of the project, also those that have ended; never a secret."""
    store: Any = callers.service_of(request).store
    found = await access.list_all(store, project)
    # Read after: a key is put before the organization names it.
    org, now = await administration.read(store), clock.now()
    newest = [org.present(one) for one in found[::-1][:KEYS_SHOWN]]
    try:
        used = await lastuse.of(store, [one.id for one in newest])
    except errors.Blocked:
        # Where the process may not know, the page is there without it.
        used = None
    return await pages.shown(
        request,
        "keys.html",
        title=f"Keys · {project}",
        keys=newest,
        total=len(found),
        used=used,
        closed={one.id for one in newest if org.closed(one, now) is not None},
        scopes={one.id: org.scope_of(one) or one.scope for one in newest},
    )


@router.post("/keys/{key}/revoke")
async def revoke(request: Request, project: callers.Project, key: callers.Segment, viewer: Admin) -> Response:
    """End a key."""
    fields = await sessions.form_of(request, viewer)
    why = reason_of(fields)
    store: Any = callers.service_of(request).store
    found = await access.read(store, key)
    if found is None or found.project != project:
        raise errors.NotFound("the project has no such key")
    async with audit.acting(
        store, by=viewer.by(), what="keys revoke", projects=[project], reason=why, arguments={"key": key}
    ):
        keyring = request.app.state.keyring
        hand = administration.Administrator(store, viewer.by(), why, keyring.forget)
        if found.revoked_at is None:
            await hand.delete_key(project, key)
    return pages.go(pages.url("projects", project, "keys", done="revoked"))
