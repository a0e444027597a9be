"""Runlore over HTTP: the lookup service of docs/HTTP.md, asked by the SDK's process.

Nothing is kept open between calls: a program may run several event loops one after the other. Each call has the
caller's deadline around it; the timeouts here only end what hangs in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

import httpx2

from runlore import clock, errors
from runlore.agents import port, seen
from runlore.events import models
from runlore.snapshots import tarin

IDLE_SECONDS = 30.0
"""How long a connection may stand still."""
MEMORY_BYTES_MAX = 64 * 1024 * 1024
"""Largest memory that is read, in bytes, unfolded."""
MEMORY_FILES_MAX = 20_000
ARCHIVE_BYTES_MAX = 8 * 1024**3
"""Largest workspace that is fetched, in bytes; what the service takes, too."""
ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""Largest answer that is no archive, in bytes, unfolded."""
ANSWER_SECONDS_MAX = 120.0
"""How long one answer may take in all, also if something comes now and then."""
UPLOAD_BYTES_PER_SECOND_MIN = 128 * 1024
"""An upload that is slower than that is given up, and tried again later."""
READ_BYTES = 1024 * 1024
WAIT_SECONDS_MAX = 2.0
"""How long a run waits for the one before it in the same rollout, which this process handed over, in seconds."""
MERGE_WAIT_SECONDS_MAX = 30.0
"""How long a merge waits for each branch to be worked off, in seconds."""
WAIT_SECONDS_OF_SERVICE = 60.0
WAIT_SECONDS_AT_ONCE = IDLE_SECONDS - 10
"""A longer wait is asked in parts: what says nothing for longer is taken for gone, here and by proxies."""
BEHIND_SECONDS_MAX = 2.0
"""How long a replica that is behind what was seen may take to catch up, in seconds."""
ROLLOUTS_MAX = 1000
Line = dict[str, Any]
"""What the service says of a line's seed, with the agent that was asked for as `line`."""


class Remote:
    """`port.Backend` on the lookup service at `url`, for one project and memory."""

    is_here = False

    def __init__(
        self,
        url: str,
        key: str,
        *,
        project: str,
        memory: str,
        seeds: seen.Seen,
        behind_seconds: float = BEHIND_SECONDS_MAX,
        follow_seconds: float = WAIT_SECONDS_MAX,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise errors.InvalidInput(f"{url!r} is not a URL", hint="http://… or https://… (RUNLORE_URL)")
        self._base = f"{url.rstrip('/')}/v1/projects/{quote(project, safe='')}"
        key = key.strip()  # Often read from a file, with the end of its line.
        if not (key.isascii() and key.isprintable()):
            raise errors.InvalidInput("the key holds what no key of the lookup service holds (RUNLORE_KEY)")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._memory, self._transport = memory, transport
        self._seeds, self._behind_seconds = seeds, min(behind_seconds, BEHIND_SECONDS_MAX)
        self._follow_seconds = follow_seconds
        self._sent: dict[str, str] = {}
        """Rollout → the run of it that was handed over last."""

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        try:
            async with httpx2.AsyncClient(
                headers=self._headers, timeout=IDLE_SECONDS, transport=self._transport
            ) as client:
                yield client
        except (httpx2.TransportError, httpx2.DecodingError) as exc:
            # Its text may hold the URL, never the key, which is a header.
            raise errors.ServiceUnavailable(
                f"the lookup service does not answer ({type(exc).__name__})"
            ) from exc

    def _url(self, *parts: str) -> str:
        return "/".join([self._base, *(quote(part, safe="") for part in parts)])

    async def _ask(
        self,
        client: httpx2.AsyncClient,
        method: str,
        url: str,
        *,
        seconds_max: float | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """What the service says to this, within bounds. Raises where that is no answer of the service."""
        limit = ANSWER_SECONDS_MAX if seconds_max is None else seconds_max
        body = bytearray()
        try:
            async with asyncio.timeout(limit), client.stream(method, url, **more) as answer:
                async for part in answer.aiter_bytes(READ_BYTES):
                    body += part
                    if len(body) > ANSWER_BYTES_MAX:
                        break
        except TimeoutError:
            # Told as an answer: what takes too long for one run stops no other.
            raise _unavailable(f"the lookup service took longer than {limit:.0f} s", 408) from None
        return _checked(answer.status_code, bytes(body))

    # --- before a run ---------------------------------------------------------------------------------------

    async def seed(self, ask: port.Ask, agent: str | None) -> port.Seeded:
        async with self._client() as client:
            body = await self._placed(client, ask, agent)
            if body.get("seed") is None:
                return port.Seeded(workspace=_workspace_of(body))
            files = await self._files(client, body["seed"]) if body.get("revision") else {}
            return port.Seeded(
                id=body["seed"],
                revision=int(body.get("revision") or 0),
                notes=int(body.get("notes") or 0),
                memories_dir=str((body.get("layout") or {}).get("memories_dir", "memories")),
                files=files,
                workspace=_workspace_of(body),
            )

    async def probe(self, ask: port.Ask) -> None:
        # The heads of this very rollout, without a file: what a service that only looks alive does not answer.
        async with self._client() as client:
            await self._answer(client, ask, None)

    async def _placed(self, client: httpx2.AsyncClient, ask: port.Ask, agent: str | None) -> Line:
        """The seed, after the run before it: by the agent's own line if it has one, else by the main line."""
        before = self._sent.get(ask.rollout.original)
        if before is not None:
            await self._after(client, ask, before, WAIT_SECONDS_MAX)
            self._sent.pop(ask.rollout.original, None)
        elif ask.follows is not None:
            await self._after(client, ask, ask.follows, self._follow_seconds)
        if agent is not None:
            # The template is for the main line: an agent's own counts only if it has one.
            asked = self._seed(client, ask, agent, template="no"), self._seed(client, ask, None)
            own, main = await asyncio.gather(*asked)
            return own if _counter(own) else main
        return await self._seed(client, ask, None)

    async def _after(self, client: httpx2.AsyncClient, ask: port.Ask, run: str, seconds: float) -> None:
        """Until a run that was handed over is covered, and its workspaces are in their lines.

        Without it the next run of a quick conversation begins as the last one did, and its workspace is a branch.
        """
        with contextlib.suppress(TimeoutError, errors.RunloreError):
            async with asyncio.timeout(seconds):
                wait = {"wait_for": run, "wait_seconds": str(min(seconds, WAIT_SECONDS_OF_SERVICE))}
                await self._answer(client, ask, None, **wait)

    async def _seed(self, client: httpx2.AsyncClient, ask: port.Ask, agent: str | None, **more: str) -> Line:
        """A line's seed, never older than the one that was seen last. Raises `errors.SeedBehind`."""
        rollout = ask.rollout.alias
        before = await self._seeds.before(rollout, agent)
        after: dict[str, str] = {}
        if before is not None and before.seed:
            after = {"after": before.seed, "wait_seconds": f"{self._behind_seconds:.3f}"}
        try:
            body = await self._answer(client, ask, agent, **more, **after)
        except (errors.Refused, errors.InvalidEvent):
            if not after:
                raise
            # Signed by another deployment, say: what was seen there says nothing here. Or the key is wrong, still.
            body = await self._answer(client, ask, agent, **more)
            await self._seeds.forget(rollout, agent)
            before = None
        now = seen.Newest(str(body["seed"] or ""), int(body.get("revision") or 0), _counter(body))
        await self._seeds.checked(rollout, agent, now, before)
        return body

    async def _answer(
        self, client: httpx2.AsyncClient, ask: port.Ask, agent: str | None, **more: str
    ) -> Line:
        params = ask.given() | ({"agent": agent} if agent else {}) | more
        body = await self._ask(client, "GET", self._url("memories", self._memory, "seed"), params=params)
        if "seed" not in body:
            raise _unavailable("what answers is not the lookup service: it says nothing of a seed", 200)
        # The line as it was asked for: the answer names it by its alias.
        return {**body, "line": agent}

    async def _files(self, client: httpx2.AsyncClient, seed: str) -> dict[str, bytes]:
        with tempfile.TemporaryFile() as file:
            url = self._url("seeds", seed, "memory.tar")
            await self._download(client, url, file, bytes_max=2 * MEMORY_BYTES_MAX)
            return await asyncio.to_thread(_unpacked, file)

    async def _download(
        self, client: httpx2.AsyncClient, url: str, file: IO[bytes], *, bytes_max: int
    ) -> None:
        async with client.stream("GET", url) as answer:
            if not answer.is_success:
                # What is wrong is told at the beginning, if at all.
                first = await anext(answer.aiter_bytes(READ_BYTES), b"")
                _checked(answer.status_code, first)
            room = bytes_max
            async for part in answer.aiter_bytes(READ_BYTES):
                room -= len(part)
                if room < 0:
                    raise errors.BadArchive(
                        f"an archive of the lookup service has more than {bytes_max} bytes"
                    )
                await asyncio.to_thread(file.write, part)

    async def workspace(self, ask: port.Ask, agent: str) -> port.Workspace:
        async with self._client() as client:
            return _workspace_of(await self._seed(client, ask, agent))

    async def fetch(self, workspace: port.Workspace, to: Path) -> None:
        if workspace.snapshot is None:
            return
        async with self._client() as client:
            with await asyncio.to_thread(open, to, "wb") as file:
                url = self._url("snapshots", workspace.snapshot, "archive.tar")
                await self._download(client, url, file, bytes_max=ARCHIVE_BYTES_MAX)

    async def began_by(self, ask: port.Ask, agent: str | None, run: str) -> Mapping[str, Any] | None:
        async with self._client() as client:
            seeded = await self._seed(client, ask, agent)
            found = await self._ask(client, "GET", self._url("runs", run))
        # Only what the run itself is said to have left may be replaced as seen.
        return seeded.get("base") if _left(found, (seeded.get("base") or {}).get("snapshot")) else None

    # --- after a run ----------------------------------------------------------------------------------------

    async def send(self, data: dict[str, Any], left: Sequence[port.Left]) -> list[str]:
        refused, workspaces = [], []
        is_edit = models.type_of(data) == models.MEMORY_EDITED
        async with self._client() as client:
            for one in left:
                try:
                    claim = await self._upload(client, one.path)
                except (errors.Poison, errors.InvalidInput) as exc:
                    # The run is worth more than its workspace; whoever sent it keeps the tar.
                    refused.append(f"{exc.kind}: {exc.message}")
                    continue
                workspaces.append(one.told({"archive": claim}))
            event = data if is_edit else {**data, "workspaces": workspaces}
            answer = await self._ask(client, "POST", self._url("events"), json=event)
            if not answer.get("event"):
                # The page of a proxy, say. To believe it would be to forget the run.
                raise _unavailable("the lookup service does not say that it took the run", 200)
        self._note(data)
        return refused

    async def _upload(self, client: httpx2.AsyncClient, path: Path) -> dict[str, Any]:
        async def parts() -> AsyncIterator[bytes]:
            with await asyncio.to_thread(open, path, "rb") as file:
                while part := await asyncio.to_thread(file.read, READ_BYTES):
                    yield part

        size = (await asyncio.to_thread(path.stat)).st_size
        headers = {"content-type": "application/x-tar", "content-length": str(size)}
        limit = ANSWER_SECONDS_MAX + size / UPLOAD_BYTES_PER_SECOND_MIN
        # The service answers once the whole is in its store: until then it is silent.
        patient = httpx2.Timeout(IDLE_SECONDS, read=limit)
        body = await self._ask(
            client,
            "POST",
            self._url("archives"),
            seconds_max=limit,
            content=parts(),
            headers=headers,
            timeout=patient,
        )
        if not (isinstance(body.get("sha256"), str) and isinstance(body.get("size"), int)):
            raise _unavailable("the lookup service does not say that it took the archive", 200)
        return {"sha256": body["sha256"], "size": body["size"]}

    def _note(self, data: Mapping[str, Any]) -> None:
        """Remember what the next run of this rollout waits for."""
        known = ("conversation_id", "session_id", "group_id", "run_id")
        ask = port.Ask(**{name: data.get(name) for name in known})  # type: ignore[arg-type]
        # An edit is handed over after its run: whoever waits for it waits for both.
        self._sent[ask.rollout.original] = str(data.get("edit_id") or data["run_id"])
        while len(self._sent) > ROLLOUTS_MAX:
            self._sent.pop(next(iter(self._sent)))

    async def settle(self) -> None:
        """Nothing: the service's workers are at it."""

    async def caught_up(self, ask: port.Ask, *, is_patient: bool = True) -> None:
        before = self._sent.get(ask.rollout.original)
        if before is not None:
            async with self._client() as client:
                limit = MERGE_WAIT_SECONDS_MAX if is_patient else WAIT_SECONDS_MAX
                await self._after(client, ask, before, limit)
            if not is_patient:
                self._sent.pop(ask.rollout.original, None)

    async def wait_for(
        self, run: str, *, rollout: str | None, seconds: float, with_model: bool
    ) -> Sequence[port.Ended]:
        give_up = clock.monotonic() + seconds
        async with self._client() as client:
            while True:
                left = give_up - clock.monotonic()
                wait = min(max(left, 0.1), WAIT_SECONDS_AT_ONCE)
                params = {"wait_seconds": f"{wait:.3f}", "with_model": str(with_model).lower()}
                params |= {"rollout": rollout} if rollout else {}
                try:
                    limit = wait + ANSWER_SECONDS_MAX
                    url = self._url("runs", run)
                    body = await self._ask(client, "GET", url, seconds_max=limit, params=params)
                except errors.WaitTimeout:
                    if left <= wait:
                        raise
                    continue
                told = [one for one in body.get("runs", ()) if isinstance(one, dict) and one.get("end")]
                if not told:
                    raise _unavailable("the lookup service does not say how the run ended: is it older?", 200)
                return [port.Ended(str(one.get("run") or run), one["end"], str(one["cause"])) for one in told]

    async def merge(self, rollout: str, branches: Mapping[str, str], base: str | None) -> Mapping[str, Any]:
        body = {"rollout": rollout, "rollouts": dict(branches), "base": base}
        async with self._client() as client:
            return await self._ask(client, "POST", self._url("snapshots", "merge"), json=body)


def _checked(status: int, raw: bytes) -> dict[str, Any]:
    """The answer, or what it says as an error: to be tried again, to be set aside, or for a person.

    Between a program and the service stand proxies. What does not say that it comes from the service (no JSON object;
    an error without a `kind`; a redirect) is an outage: a run is neither delivered nor refused by it.
    """
    body: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(raw)
    if 200 <= status < 300:
        if not isinstance(body, dict):
            raise _unavailable(f"what answers {status} is not the lookup service", status)
        return body
    problem: dict[str, Any] = body if isinstance(body, dict) else {}
    kind = str(problem.get("kind") or "")[:100]
    text = str(problem.get("detail") or problem.get("title") or "no reason given")[:500]
    told = f"the lookup service answers {status}{f' ({kind})' if kind else ''}: {text}"
    if kind == errors.SeedBehind.kind:
        raise errors.SeedBehind(told)
    if kind == errors.WaitTimeout.kind:
        raise errors.WaitTimeout(told)
    if status in (401, 403):
        raise errors.Refused(told, hint="RUNLORE_KEY must be a key of this project, with the scope `write`")
    if status == 404:
        raise errors.NotFound(told)
    # A proxy that lets no large body through will not let it through tomorrow.
    if status == 413 or (kind and 400 <= status < 500 and status not in (408, 425, 429)):
        raise errors.InvalidEvent(told)
    raise _unavailable(told, status)


def _unavailable(text: str, status: int) -> errors.ServiceUnavailable:
    return errors.ServiceUnavailable(
        text, hint="is RUNLORE_URL where the lookup service itself answers?", status=status
    )


def _counter(body: Mapping[str, Any]) -> int:
    return int((body.get("base") or port.NO_BASE)["counter"])


def _workspace_of(body: Mapping[str, Any]) -> port.Workspace:
    base = body.get("base") or port.NO_BASE
    return port.Workspace(
        agent=body.get("line"),
        snapshot=body.get("snapshot"),
        base={"counter": int(base["counter"]), "snapshot": base.get("snapshot")},
    )


def _left(found: Any, snapshot: str | None) -> bool:
    """Whether what is told of a run names this snapshot as the version of a line that it left."""
    stories = found.get("runs") if isinstance(found, dict) else None
    steps = [step for story in stories or () for step in story.get("steps", ())]
    return snapshot is not None and any(
        step.get("stage") == "snapshot"
        and step.get("what", "").startswith("the workspace's version")
        and step.get("snapshot") == snapshot[:12]
        for step in steps
    )


def _unpacked(file: IO[bytes]) -> dict[str, bytes]:
    """The files of a memory's tar. Raises `errors.BadArchive`: what a server sends is not trusted."""
    file.seek(0)
    files: dict[str, bytes] = {}
    limits = tarin.Limits(bytes_max=MEMORY_BYTES_MAX, entries_max=MEMORY_FILES_MAX)
    room = MEMORY_BYTES_MAX
    try:
        with tarin.opened(file, limits) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                room -= member.size
                if (
                    not (member.isreg() and path.parts)
                    or path.is_absolute()
                    or ".." in path.parts
                    or room < 0
                ):
                    raise errors.BadArchive(f"memory holds {member.name[:100]!r}, which is no file for it")
                if len(files) >= MEMORY_FILES_MAX:
                    raise errors.BadArchive(f"memory holds more than {MEMORY_FILES_MAX} files")
                content = archive.extractfile(member)
                files[str(path)] = content.read() if content is not None else b""
    except (*tarin.DAMAGE, OSError, errors.HostileArchive, errors.ArchiveLimit) as exc:
        raise errors.BadArchive(f"memory can not be read: {exc}") from exc
    return files
