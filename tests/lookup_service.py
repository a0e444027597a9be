"""The lookup service in this process, on fakes or a home's adapters, with the stages beside it as functions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import tarfile

import httpx2
import jsonschema

import made
from runlore.consumers import consolidate, record, snapshot
from runlore.lookup.http import app, lists, service, serving
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import access

BASE = "http://127.0.0.1:7077"
ACME = "/v1/projects/acme"


class Served:
    """A service with a client, and the pipeline behind it."""

    def __init__(self, made, client, application):
        self.service, self.client, self.app = made, client, application
        self.store, self.bus = made.store, made.bus

    async def work(self, *, memories=("support",), project="acme"):
        """Every stage over everything on the bus, as often as it takes."""
        taken = [one async for one in self.bus.read("runs")]
        await record.RecordStage(self.store, self.bus).process(taken)
        await snapshot.SnapshotStage(self.store, self.bus).process(taken)
        for memory in memories:
            await consolidate.ConsolidateStage(self.store, self.bus).work(project, memory)

    async def get(self, path, *, status=200, prefix=ACME, **more):
        """The answer to a GET below the project, with this status."""
        answer = await self.client.get(f"{prefix}/{path}" if path else prefix, **more)
        assert answer.status_code == status, (answer.status_code, answer.text[:500])
        check_shape(answer)
        return answer

    async def post(self, path, body=None, *, status, prefix=ACME, **more):
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = await self.client.post(f"{prefix}/{path}", **content, **more)
        assert answer.status_code == status, (answer.status_code, answer.text[:500])
        check_shape(answer)
        return answer.json()

    async def events(self, *datas):
        """These runs, handed in and worked."""
        for data in datas:
            await self.post("events", data, status=202)
        await self.work()

    async def archive(self, *files):
        """The claim of an archive that holds these (path, bytes)."""
        return await self.post("archives", tar(*files), status=201)

    async def seed(self, rollout, *, status=200, **query):
        found = await self.get(
            "memories/support/seed", status=status, params={"session_id": rollout, **query}
        )
        return found.json()

    async def key(self, project="acme", scope="admin"):
        """The header of a new key."""
        _, token = await access.create(self.store, project, scope=scope, name="test")
        return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def served(tmp_path, *, store=None, bus=None, **more):
    store, bus = store or MemoryStore(), bus or MemoryBus()
    found = lists.Lists(tmp_path / "index.db", store, refresh_seconds=0)
    made = service.Service(store, bus, found, tmp_path / "uploads", **more)
    application = app.make(made)
    transport = httpx2.ASGITransport(application, raise_app_exceptions=False)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            yield Served(made, client, application)
    finally:
        await found.close()


@contextlib.asynccontextmanager
async def listening(tmp_path, store, *, drain_seconds=30, **more):
    """(the service, its address, its task) on a real port, until the block ends."""
    found = lists.Lists(tmp_path / "index.db", store)
    one = service.Service(store, MemoryBus(), found, tmp_path / "uploads", **more)
    told = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serving.run(one, host="127.0.0.1", port=0, drain_seconds=drain_seconds, on_listening=told.set_result)
    )
    try:
        yield one, await told, task
    finally:
        one.stopping.set()
        await task
        await found.close()


async def give_workspace(one, client, *files):
    """The rollout `conv` gets these (path, bytes) as its workspace."""
    claim = (await client.post(f"{ACME}/archives", content=tar(*files))).json()
    data = made.data(1, rollout="conv", workspaces=[{"archive": claim}])
    assert (await client.post(f"{ACME}/events", json=data)).status_code == 202
    taken = [message async for message in one.bus.read("runs")]
    await snapshot.SnapshotStage(one.store, one.bus).process(taken)


def tar(*files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        for path, content in files:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def untar(raw):
    """path → bytes of every file; a member that is there twice is a failure."""
    with tarfile.open(fileobj=io.BytesIO(raw)) as found:
        names = found.getnames()
        assert len(names) == len(set(names)), names
        return {one.name: found.extractfile(one).read() for one in found if one.isfile()}


@functools.cache
def document():
    return app.openapi()


def operation_of(method, path):
    """What the OpenAPI document says of the route that answers this path; the most literal where several fit."""
    asked, found = path.split("/"), []
    for template, operations in document()["paths"].items():
        parts = template.split("/")
        open_ended = parts[-1] == "{path}"
        fits = len(asked) >= len(parts) if open_ended else len(asked) == len(parts)
        pairs = zip(parts, asked, strict=False)
        if fits and method in operations and all(one.startswith("{") or one == two for one, two in pairs):
            found.append((sum(one.startswith("{") for one in parts), operations[method]))
    return min(found, key=lambda one: one[0])[1] if found else None


def check_shape(answer):
    """Hold an answer against what the OpenAPI document says of its route."""
    path = answer.request.url.raw_path.decode().partition("?")[0]
    operation = operation_of(answer.request.method.lower(), path)
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    if operation is None or answer.status_code >= 500 or "json" not in media_type:
        return
    said = operation["responses"].get(str(answer.status_code)) or operation["responses"]["4XX"]
    schema = {**said["content"][media_type]["schema"], "components": document()["components"]}
    jsonschema.Draft202012Validator(schema).validate(answer.json())


def kind(answer):
    """The kind of a problem, whose shape is checked."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = json.loads(answer.content)
    assert body["type"] == f"urn:runlore:error:{body['kind']}" and body["status"] == answer.status_code
    assert body["title"] and body["detail"] and {"hint", "context"} <= body.keys()
    return body["kind"]
