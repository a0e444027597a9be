"""Administration over HTTP, driven by OpenAI's own client against the service on a real port.

Every answer is held against the client's own types, strictly: no field that they do not have, none missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
from typing import get_args, get_origin

import httpx2
import openai
import pydantic
import pytest
from openai.types.admin import organization as client_types
from openai.types.admin.organization import projects as project_types
from openai.types.admin.organization import usage_completions_response, usage_costs_response
from openai.types.admin.organization.projects import service_accounts as account_types

from lookup_service import kind, listening, operation_of, served
from runlore import clock, errors
from runlore.commit import keys
from runlore.lookup.http import app, callers
from runlore.testing.stores import MemoryStore
from runlore.upkeep import administration, adminlog, organization

OPERATOR = {"user": "ann@desk"}
ANN = organization.Person(id="ann@desk", name="ann", created_at="2026-01-01T00:00:00+00:00")


OURS = {
    "ProjectRateLimit": {"max_bytes_per_1_minute"},
    "ProjectAPIKey": {"limits"},
    "RateLimitUpdatedChangesRequested": {"max_bytes_per_1_minute"},
    "APIKeyUpdatedChangesRequested": {"limits"},
    "APIKeyCreatedData": {"limits"},
    "ProjectUpdatedChangesRequested": (
        SET := {"spend_limit_cents", "spend_alert", "threshold_cents", "recipients", "retention_type", "days"}
    ),
    "OrganizationUpdatedChangesRequested": SET,
}
"""What docs/ADMIN.md adds to their types."""


def strictly(model, body):
    """Hold a body against one of the client's types, with no field beside theirs and those of `OURS`, at any depth."""
    _no_more(model, body, model.__name__)
    model.model_validate(body, strict=True)


def _no_more(model, body, where):
    if get_origin(model) is not None:
        for one in get_args(model):
            for row in body if isinstance(body, list) else [body]:
                _no_more(one, row, where)
        return
    if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)) or not isinstance(body, dict):
        return
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    ours = OURS.get(model.__name__, set())
    assert body.keys() <= known.keys() | ours, f"{where}: {body.keys() - known.keys()}"
    for name, value in body.items():
        if value is not None and name not in ours:
            _no_more(known[name].annotation, value, f"{where}.{name}")


TYPES = {
    "organization.admin_api_key": client_types.AdminAPIKey,
    "organization.admin_api_key.deleted": client_types.AdminAPIKeyDeleteResponse,
    "organization.project": client_types.Project,
    "organization.project.service_account": project_types.ProjectServiceAccount,
    "organization.project.service_account.deleted": project_types.ServiceAccountDeleteResponse,
    "organization.project.service_account.api_key": account_types.APIKeyCreateResponse,
    "organization.project.api_key": project_types.ProjectAPIKey,
    "organization.project.api_key.deleted": project_types.APIKeyDeleteResponse,
    "project.rate_limit": project_types.ProjectRateLimit,
    "organization.data_retention": client_types.OrganizationDataRetention,
    "project.data_retention": project_types.ProjectDataRetention,
    "organization.user": client_types.OrganizationUser,
    "organization.user.deleted": client_types.UserDeleteResponse,
    "organization.project.user": project_types.ProjectUser,
    "organization.project.user.deleted": project_types.UserDeleteResponse,
    "organization.invite": client_types.Invite,
    "organization.invite.deleted": client_types.InviteDeleteResponse,
    "organization.spend_limit": client_types.OrganizationSpendLimit,
    "organization.spend_limit.deleted": client_types.OrganizationSpendLimitDeleted,
    "organization.spend_alert": client_types.OrganizationSpendAlert,
    "organization.spend_alert.deleted": client_types.OrganizationSpendAlertDeleted,
    "project.spend_limit": project_types.ProjectSpendLimit,
    "project.spend_limit.deleted": project_types.ProjectSpendLimitDeleted,
    "project.spend_alert": project_types.ProjectSpendAlert,
    "project.spend_alert.deleted": project_types.ProjectSpendAlertDeleted,
}
RESULTS = {
    # Usage and costs are told apart by what their results are.
    "organization.usage.completions.result": usage_completions_response.DataResultOrganizationUsageCompletionsResult,
    "organization.costs.result": usage_costs_response.DataResultOrganizationCostsResult,
}


def check_body(body):
    """Hold an answer's body against the type of its `object`."""
    if body.get("object") == "list":
        assert body.keys() == {"object", "data", "first_id", "last_id", "has_more"}
        for row in body["data"]:
            check_body(row)
        return
    name = body.get("object", "audit_log")
    if name == "page":
        assert body.keys() == {"object", "data", "has_more", "next_page"}
        for bucket in body["data"]:
            assert bucket.keys() == {"object", "start_time", "end_time", "results"}
            for row in bucket["results"]:
                strictly(RESULTS[row["object"]], row)
        client_types.UsageCompletionsResponse.model_validate(body, strict=True)
        return
    model = TYPES.get(name, client_types.AuditLogListResponse)
    if "value" in body and name == "organization.admin_api_key":
        model = client_types.AdminAPIKeyCreateResponse
    if "api_key" in body and name == "organization.project.service_account":
        model = project_types.ServiceAccountCreateResponse
    strictly(model, body)


class Checked(httpx2.AsyncBaseTransport):
    """The real transport, which looks at every answer on its way."""

    def __init__(self):
        self.inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request):
        answer = await self.inner.handle_async_request(request)
        await answer.aread()
        path = request.url.raw_path.decode().partition("?")[0]
        if answer.status_code == 200 and path.startswith("/v1/organization/"):
            assert operation_of(request.method.lower(), path), path
            check_body(json.loads(answer.content))
        elif path.startswith("/v1/organization/"):
            error = json.loads(answer.content)["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"] and error["code"]
        return answer

    async def aclose(self):
        await self.inner.aclose()


class Deployment:
    """A store, services on it, and clients with their keys."""

    def __init__(self, stack, store, url):
        self.stack, self.store, self.url = stack, store, url

    async def client(self, *, admin=None, key="none", url=None):
        found = openai.AsyncOpenAI(
            api_key=key,
            admin_api_key=admin,
            base_url=f"{url or self.url}/v1",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=Checked()),
        )
        return await self.stack.enter_async_context(found)

    async def bootstrap(self):
        _, token = await administration.Administrator(self.store, OPERATOR).create_admin_key(
            "first", owner=ANN
        )
        return token

    async def ask(self, path, token, method="GET"):
        """The status of a request on a data route."""
        async with httpx2.AsyncClient() as client:
            headers = {"Authorization": f"Bearer {token}"}
            return (
                await client.request(method, f"{self.url}/v1/projects/{path}", headers=headers)
            ).status_code


@contextlib.asynccontextmanager
async def deployed(tmp_path, store=None):
    store = store or MemoryStore()
    async with contextlib.AsyncExitStack() as stack:
        _, url, _ = await stack.enter_async_context(listening(tmp_path, store, with_keys=True))
        yield Deployment(stack, store, url)


@contextlib.asynccontextmanager
async def administered(tmp_path, store=None):
    """(the deployment, `client.admin.organization` of its first admin key)."""
    async with deployed(tmp_path, store) as one:
        client = await one.client(admin=await one.bootstrap())
        yield one, client.admin.organization


async def everything(page):
    return [row async for row in page]


# --- admin keys ---------------------------------------------------------------------------------------------


async def test_an_admin_key_is_shown_once_listed_page_by_page_and_ended(tmp_path):
    async with administered(tmp_path) as (one, org):
        made = await org.admin_api_keys.create(name="ci", expires_in_seconds=3600)
        assert made.value.startswith("rla_") and made.expires_at - made.created_at == 3600
        later = [await org.admin_api_keys.create(name=f"n{number}") for number in range(3)]
        secret = made.value.rpartition("_")[2]
        listed = await everything(org.admin_api_keys.list(limit=2))
        assert [row.name for row in listed] == ["first", "ci", "n0", "n1", "n2"]
        newest = await everything(org.admin_api_keys.list(limit=2, order="desc"))
        assert [row.id for row in newest] == [row.id for row in listed][::-1]
        assert listed[0].last_used_at and not listed[1].last_used_at
        assert secret not in listed[1].redacted_value and listed[1].owner.id == ANN.id
        assert (await org.admin_api_keys.retrieve(made.id)).name == "ci"
        mine = (await one.client(admin=made.value)).admin.organization
        assert (await mine.admin_api_keys.delete(later[0].id)).deleted
        assert (await mine.admin_api_keys.delete(made.id)).deleted
        for gone in (made.id, later[0].id, "nothing"):
            with pytest.raises(openai.NotFoundError):
                await org.admin_api_keys.retrieve(gone)
            with pytest.raises(openai.NotFoundError):
                await org.admin_api_keys.delete(gone)
        stored = [(await one.store.get(row.key)).body.decode() async for row in one.store.list("")]
        assert stored and not [text for text in stored if secret in text]


async def test_the_last_admin_key_that_is_good_can_not_be_ended(tmp_path):
    async with administered(tmp_path) as (_, org):
        (first,) = await everything(org.admin_api_keys.list())
        with pytest.raises(openai.ConflictError) as refused:
            await org.admin_api_keys.delete(first.id)
        assert refused.value.code == "refused" and refused.value.type == "invalid_request_error"
        second = await org.admin_api_keys.create(name="second")
        # Both are ended at the same time: one of the two stays.
        done = await asyncio.gather(
            org.admin_api_keys.delete(first.id), org.admin_api_keys.delete(second.id), return_exceptions=True
        )
        assert len([found for found in done if isinstance(found, openai.APIStatusError)]) == 1


# --- projects -----------------------------------------------------------------------------------------------


async def test_projects_are_made_renamed_listed_and_archived_and_those_of_events_are_there_too(tmp_path):
    store = MemoryStore()
    await store.put("shop/records/00/support/conv/run-1.000001", b"x")
    async with administered(tmp_path, store) as (_, org):
        made = await org.projects.create(name="acme")
        assert (made.id, made.name, made.status) == ("acme", "acme", "active")
        friendly = await org.projects.create(name="Support bots (EU)")
        assert friendly.id == "support-bots-eu" and friendly.name == "Support bots (EU)"
        again = await org.projects.create(name="shop")
        assert re.fullmatch(r"shop-[0-9a-f]{6}", again.id)
        assert (await org.projects.update("shop", name="The shop")).name == "The shop"
        assert (await org.projects.retrieve("shop")).name == "The shop"
        listed = await everything(org.projects.list(limit=1))
        assert [row.id for row in listed] == sorted(["acme", "shop", again.id, friendly.id])
        assert (await org.projects.archive("acme")).status == "archived"
        assert "acme" not in [row.id for row in await everything(org.projects.list())]
        assert "acme" in [row.id for row in await everything(org.projects.list(include_archived=True))]
        for refused in (org.projects.archive("acme"), org.projects.update("acme", name="x")):
            with pytest.raises(openai.ConflictError):
                await refused
        for absent in ("nobody", "NO NAME", "_operations"):
            with pytest.raises(openai.NotFoundError):
                await org.projects.retrieve(absent)
            with pytest.raises(openai.NotFoundError):
                await org.projects.service_accounts.create(absent, name="x")


async def test_a_request_that_does_not_fit_is_told_so_and_what_has_no_meaning_is_refused(tmp_path):
    async with administered(tmp_path) as (_, org):
        for wrong in (
            org.projects.create(name=" "),
            org.projects.create(name="x" * 101),
            org.projects.create(name="x", geography="eu"),
            org.admin_api_keys.create(name="x", expires_in_seconds=0),
            org.admin_api_keys.list(limit=101),
            org.audit_logs.list(after="secret"),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await wrong
            assert refused.value.code == "invalid_input" and "secret" not in str(refused.value)
        for nothing in (
            org.certificates.list(),
            org.groups.list(),
            org.usage.images(start_time=0),
            org.usage.embeddings(start_time=0),
        ):
            with pytest.raises(openai.NotFoundError) as absent:
                await nothing
            assert "docs/ADMIN.md" in str(absent.value)


# --- service accounts and keys ------------------------------------------------------------------------------


async def test_a_service_account_s_key_opens_its_project_alone_as_far_as_its_role_goes(tmp_path):
    async with administered(tmp_path) as (one, org):
        for project in ("acme", "shop"):
            await org.projects.create(name=project)
        made = await org.projects.service_accounts.create("acme", name="bot", expires_in_seconds=600)
        token = made.api_key.value
        assert made.role == "member" and made.api_key.expires_at
        assert await one.ask("acme/memories", token) == 200
        assert await one.ask("shop/memories", token) == 403
        # A body that is none: the scope let it through.
        assert await one.ask("acme/events", token, "POST") == 400
        reader = await org.projects.service_accounts.api_keys.create(
            made.id, project_id="acme", name="reads", scopes=["api.all.read"]
        )
        assert await one.ask("acme/memories", reader.value) == 200
        assert await one.ask("acme/events", reader.value, "POST") == 403
        with pytest.raises(openai.ConflictError):
            await org.projects.service_accounts.api_keys.create(made.id, project_id="acme", scopes=["admin"])
        changed = await org.projects.service_accounts.update(
            made.id, project_id="acme", role="owner", name="b2"
        )
        assert (changed.role, changed.name) == ("owner", "b2")
        highest = await org.projects.service_accounts.api_keys.create(
            made.id, project_id="acme", scopes=["admin"]
        )
        assert await one.ask("acme/memories", highest.value) == 200

        listed = await everything(org.projects.api_keys.list("acme", limit=1))
        assert {row.id for row in listed} == {made.api_key.id, reader.id, highest.id}
        assert {row.owner.service_account.id for row in listed} == {made.id}
        assert (await org.projects.api_keys.retrieve(reader.id, project_id="acme")).last_used_at
        for wrong in (
            org.projects.api_keys.retrieve(reader.id, project_id="shop"),
            org.projects.api_keys.delete(reader.id, project_id="shop"),
            org.projects.service_accounts.retrieve(made.id, project_id="shop"),
        ):
            with pytest.raises(openai.NotFoundError):
                await wrong
        assert (await org.projects.api_keys.delete(reader.id, project_id="acme")).deleted
        with pytest.raises(openai.NotFoundError):
            await org.projects.api_keys.delete(reader.id, project_id="acme")
        bare = await org.projects.service_accounts.create("acme", name="x", create_service_account_only=True)
        assert bare.role == "none" and bare.api_key is None
        with pytest.raises(openai.ConflictError):
            await org.projects.service_accounts.api_keys.create(bare.id, project_id="acme")
        accounts = await everything(org.projects.service_accounts.list("acme", limit=1))
        assert [row.name for row in accounts] == ["b2", "x"]
        assert (await org.projects.service_accounts.delete(made.id, project_id="acme")).deleted
        assert await everything(org.projects.api_keys.list("acme")) == []


async def test_a_key_that_is_changed_may_what_it_says_by_then_and_no_more_than_its_account(tmp_path, jumping):
    async with administered(tmp_path) as (one, org), deployed(tmp_path / "b", one.store) as other:
        await org.projects.create(name="acme")
        made = await org.projects.service_accounts.create("acme", name="bot")
        key, token = made.api_key.id, made.api_key.value
        assert await other.ask("acme/events", token, "POST") == 400
        changed = await org.projects.api_keys.update(
            key, project_id="acme", scopes=["api.all.read"], expires_in_seconds=600
        )
        assert changed.id == key and changed.expires_at
        assert (await org.projects.api_keys.retrieve(key, project_id="acme")).expires_at == changed.expires_at
        jumping.ahead += callers.ENDS_SECONDS_MAX
        assert [await found.ask("acme/events", token, "POST") for found in (one, other)] == [403, 403]
        assert [await found.ask("acme/memories", token) for found in (one, other)] == [200, 200]
        with pytest.raises(openai.ConflictError):
            await org.projects.api_keys.update(key, project_id="acme", scopes=["admin"])
        back = await org.projects.api_keys.update(key, project_id="acme", scopes=[])
        assert back.expires_at == changed.expires_at and await one.ask("acme/events", token, "POST") == 400
        (entry, *_) = (await org.audit_logs.list(event_types=["api_key.updated"])).data[-1:]
        assert entry.api_key_updated.changes_requested.scopes == ["read"]
        assert entry.api_key_updated.changes_requested.expires_in_seconds == 600
        jumping.ahead += 700
        assert [await found.ask("acme/memories", token) for found in (one, other)] == [401, 401]
        machine, _ = await administration.Administrator(one.store, OPERATOR).create_machine_key(
            "acme", scope="read", name="m"
        )
        for name, error in (
            (key, openai.ConflictError),
            (machine.id, openai.ConflictError),
            ("0" * 32, openai.NotFoundError),
            ("k", openai.NotFoundError),
        ):
            with pytest.raises(error):
                await org.projects.api_keys.update(name, project_id="acme", expires_in_seconds=60)
        assert (await org.projects.api_keys.delete(key, project_id="acme")).deleted


class Jumping(clock.World):
    """A machine whose time can be moved forward."""

    ahead = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead

    def now(self):
        return super().now() + dt.timedelta(seconds=self.ahead)


@pytest.fixture
def jumping():
    world, before = Jumping(), clock._world.get()
    clock.install(world)
    yield world
    clock.install(before)


@pytest.mark.parametrize("how", ["key", "account", "archive", "revoke", "expire"])
async def test_another_service_on_the_store_closes_to_a_key_that_ended_within_five_seconds(
    tmp_path, jumping, how
):
    async with administered(tmp_path) as (one, org), deployed(tmp_path / "b", one.store) as other:
        await org.projects.create(name="acme")
        made = await org.projects.service_accounts.create("acme", name="bot", expires_in_seconds=3600)
        machine, machine_token = await administration.Administrator(one.store, OPERATOR).create_machine_key(
            "acme", scope="read", name="m"
        )
        token = machine_token if how == "revoke" else made.api_key.value
        # At once, though the other one has just looked at an organization without it.
        assert [await found.ask("acme/memories", token) for found in (other, one)] == [200, 200]
        if how == "key":
            await org.projects.api_keys.delete(made.api_key.id, project_id="acme")
        elif how == "account":
            await org.projects.service_accounts.delete(made.id, project_id="acme")
        elif how == "archive":
            await org.projects.archive("acme")
        elif how == "revoke":
            await administration.Administrator(one.store, OPERATOR).delete_key("acme", machine.id)
        else:
            jumping.ahead += 3600
        jumping.ahead += callers.ENDS_SECONDS_MAX
        assert [await found.ask("acme/memories", token) for found in (other, one)] == [401, 401]
        second = made.api_key.value if how == "revoke" else machine_token
        assert await other.ask("acme/memories", second) == (401 if how == "archive" else 200)


async def test_a_new_key_is_good_at_once_at_a_service_that_has_just_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(callers, "ORGANIZATION_SECONDS", 1e6)
    monkeypatch.setattr(callers, "ENDS_SECONDS_MAX", 1e6)
    async with administered(tmp_path) as (one, org), deployed(tmp_path / "b", one.store) as other:
        await org.projects.create(name="acme")
        old = await org.projects.service_accounts.create("acme", name="old")
        assert await other.ask("acme/memories", old.api_key.value) == 200
        new = await org.projects.service_accounts.create("acme", name="new")
        assert await other.ask("acme/memories", new.api_key.value) == 200
        fresh = await org.admin_api_keys.create(name="fresh")
        theirs = (await other.client(admin=fresh.value)).admin.organization
        assert (await theirs.admin_api_keys.retrieve(fresh.id)).name == "fresh"


async def test_a_key_is_not_believed_where_the_store_takes_longer_than_an_end_may(tmp_path, jumping):
    async with served(tmp_path, with_keys=True) as one:
        headers = await one.key("acme", "read")
        read = one.store.get

        async def slowly(key):
            found = await read(key)
            jumping.ahead += callers.ENDS_SECONDS_MAX + 1
            return found

        one.store.get = slowly
        answer = await one.client.get("/v1/projects/acme/memories", headers=headers)
        assert answer.status_code == 503 and kind(answer) == "store_unavailable"


async def test_many_who_wait_for_the_organization_read_it_once_and_are_told_once_that_the_store_is_away(
    tmp_path,
):
    async with served(tmp_path, with_keys=True) as one:
        headers = await one.key("acme", "read")
        read, asked, all_there = one.store.get, [], asyncio.Barrier(20)
        is_away = True

        async def noted(key):
            if key.startswith(keys.access_keys()):
                await all_there.wait()
            if key == keys.organization():
                asked.append(key)
                await asyncio.sleep(0.1)
                if is_away:
                    raise errors.StoreUnavailable("the bucket is away")
            return await read(key)

        async def ask(_=None):
            return (await one.client.get("/v1/projects/acme/memories", headers=headers)).status_code

        one.store.get = noted
        assert set(await asyncio.gather(*map(ask, range(20)))) == {503}
        assert len(asked) == 1
        is_away = False
        assert await ask() == 200


# --- who may ------------------------------------------------------------------------------------------------

ACCEPT = "/v1/organization/invites/accept"
"""Whose token is the invitation's."""
ROUTES = sorted(
    (method.upper(), path)
    for path, operations in app.openapi()["paths"].items()
    if path.startswith("/v1/organization/") and path != ACCEPT
    for method in operations
)
FILLED = {"key_id": "k", "project_id": "acme", "account_id": "a", "rate_limit_id": "rl-seed"} | {
    "user_id": "u",
    "invite_id": "i",
    "alert_id": "spend-alert-1",
}


async def test_no_route_that_administers_answers_a_project_s_key_or_nobody_s(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        _, admin = await administration.Administrator(one.store, OPERATOR).create_admin_key("a", owner=ANN)
        good = {"Authorization": f"Bearer {admin}"}
        wrong = {"Authorization": f"Bearer {admin[:-1]}{'1' if admin.endswith('0') else '0'}"}
        data = await one.key("acme", "admin")
        assert len(ROUTES) == 58
        for method, path in ROUTES:
            asked = path.format(**FILLED)
            for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}, wrong):
                answer = await one.client.request(method, asked, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert answer.json()["error"]["type"] == "authentication_error"
                assert answer.json()["error"]["code"] == "unauthorized"
            answer = await one.client.request(method, asked, headers=data)
            assert answer.status_code == 403 and answer.json()["error"]["code"] == "forbidden", (method, path)
            answer = await one.client.request(method, asked, headers=good)
            assert answer.status_code in (200, 400, 404), (method, path, answer.text)
        described = app.openapi()["paths"]
        for path, operations in described.items():
            for method in operations if "{project}" in path else ():
                filled = re.sub(r"\{\w+\}", "acme", path)
                answer = await one.client.request(method, filled, headers=good)
                assert answer.status_code == 403 and kind(answer) == "forbidden", (method, path)
                answer = await one.client.request(method, filled, headers=wrong)
                assert answer.status_code == 401 and kind(answer) == "unauthorized", (method, path)


async def test_without_keys_of_projects_administration_still_needs_its_own(tmp_path):
    async with served(tmp_path) as one:
        answer = await one.client.get("/v1/organization/projects")
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "unauthorized"
        answer = await one.client.get("/v1/organization/projects", headers={"Host": "evil.example"})
        assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"


async def test_their_client_raises_its_own_errors(tmp_path):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        made = await org.projects.service_accounts.create("acme", name="bot")
        for admin, wanted in (
            ("rla_x", openai.AuthenticationError),
            (made.api_key.value, openai.PermissionDeniedError),
        ):
            theirs = (await one.client(admin=admin)).admin.organization
            with pytest.raises(wanted) as refused:
                await theirs.projects.list()
            assert refused.value.code in ("unauthorized", "forbidden")


# --- people -------------------------------------------------------------------------------------------------


async def joined(one, org, email, *, role="reader", projects=()):
    """(the user, `client.admin.organization` of theirs) of somebody who was invited and accepted."""
    made = await org.invites.with_raw_response.create(email=email, role=role, projects=list(projects))
    async with httpx2.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {made.headers['runlore-invite']}"}
        answer = await client.post(f"{one.url}{ACCEPT}", json={"name": email[:2]}, headers=headers)
        again = await client.post(f"{one.url}{ACCEPT}", json={"name": "x"}, headers=headers)
    assert answer.status_code == 200 and again.status_code == 401, answer.text
    accepted = answer.json()
    strictly(client_types.OrganizationUser, accepted["user"])
    strictly(client_types.AdminAPIKeyCreateResponse, accepted["admin_api_key"])
    theirs = await one.client(admin=accepted["admin_api_key"]["value"])
    return accepted["user"], theirs.admin.organization


async def test_who_is_invited_becomes_a_user_whose_key_may_what_their_role_says(tmp_path):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        await org.projects.create(name="shop")
        bo, his = await joined(
            one,
            org,
            "bo@example.org",
            projects=[{"id": "acme", "role": "owner"}, {"id": "shop", "role": "member"}],
        )
        assert (bo["role"], bo["email"]) == ("reader", "bo@example.org")
        assert [row.id for row in await everything(his.projects.list())] == ["acme", "shop"]
        # In his own project he makes accounts and keys, sets limits, and adds people; the project itself stays.
        made = await his.projects.service_accounts.create("acme", name="bot")
        await his.projects.api_keys.delete(made.api_key.id, project_id="acme")
        await his.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=5
        )
        for refused in (
            his.projects.service_accounts.create("shop", name="bot"),
            his.projects.service_accounts.create("nobody", name="bot"),
            his.projects.update("acme", name="Mine"),
            his.projects.archive("acme"),
            his.projects.create(name="more"),
            his.admin_api_keys.create(name="more"),
            his.invites.create(email="cy@example.org", role="owner"),
            his.users.update(bo["id"], role="owner"),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                await refused
        assert (await org.users.update(bo["id"], role="owner")).role == "owner"
        await his.projects.update("shop", name="The shop")
        mine = [row for row in await everything(org.audit_logs.list(actor_emails=["BO@example.org"]))]
        assert mine[0].type == "project.updated" and mine[0].actor.api_key.user.email == "bo@example.org"
        assert [row.type for row in mine][-3:] == ["api_key.created", "user.added", "invite.accepted"]
        assert (await org.users.delete(bo["id"])).deleted
        with pytest.raises(openai.AuthenticationError):
            await his.projects.list()
        assert await everything(org.users.list()) == []
        assert await everything(org.projects.users.list("acme")) == []


async def test_users_of_a_project_are_added_changed_listed_and_taken_out(tmp_path):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        people = [(await joined(one, org, f"{name}@example.org"))[0] for name in ("al", "bo", "cy")]
        added = await org.projects.users.create("acme", email="AL@example.org", role="member")
        assert (added.id, added.role) == (people[0]["id"], "member")
        await org.projects.users.create("acme", user_id=people[1]["id"], role="owner")
        assert (await org.projects.users.update(added.id, project_id="acme", role="owner")).role == "owner"
        assert (await org.projects.users.retrieve(added.id, project_id="acme")).email == "al@example.org"
        listed = await everything(org.projects.users.list("acme", limit=1))
        assert [row.id for row in listed] == [people[0]["id"], people[1]["id"]]
        assert [row.id for row in await everything(org.users.list(emails=["cy@example.org"]))] == [
            people[2]["id"]
        ]
        assert [row.id for row in await everything(org.users.list(limit=1))] == [row["id"] for row in people]
        assert (await org.projects.users.delete(added.id, project_id="acme")).deleted
        for wrong, error in (
            (org.projects.users.retrieve(added.id, project_id="acme"), openai.NotFoundError),
            (org.projects.users.update(added.id, project_id="acme", role="owner"), openai.NotFoundError),
            (org.projects.users.create("acme", email="no@example.org", role="member"), openai.NotFoundError),
            (org.projects.users.create("acme", role="member"), openai.BadRequestError),
            (org.projects.users.create("acme", user_id=added.id, role="reader"), openai.BadRequestError),
            (org.users.update(added.id, role="member"), openai.BadRequestError),
        ):
            with pytest.raises(error):
                await wrong


async def test_an_invitation_is_listed_taken_back_over_in_a_week_and_for_one_address_at_a_time(
    tmp_path, jumping
):
    async with administered(tmp_path) as (one, org):
        first = await org.invites.create(email="al@example.org", role="reader")
        assert first.status == "pending" and first.expires_at - first.created_at == 7 * 86400
        for wrong, error in (
            (org.invites.create(email="AL@example.org", role="reader"), openai.ConflictError),
            (org.invites.create(email="no address", role="reader"), openai.BadRequestError),
            (
                org.invites.create(email="x@y", role="reader", projects=[{"id": "none", "role": "member"}]),
                openai.NotFoundError,
            ),
        ):
            with pytest.raises(error):
                await wrong
        made = await org.invites.with_raw_response.create(email="bo@example.org", role="reader")
        token = made.headers["runlore-invite"]
        assert (await org.invites.delete(first.id)).deleted
        jumping.ahead += 8 * 86400
        (listed,) = await everything(org.invites.list())
        assert listed.status == "expired" and (await org.invites.retrieve(listed.id)).status == "expired"
        async with httpx2.AsyncClient() as client:
            for bearer in (token, token[:-1] + "g", "rli_x", "rl_x"):
                headers = {"Authorization": f"Bearer {bearer}"}
                answer = await client.post(f"{one.url}{ACCEPT}", json={"name": "x"}, headers=headers)
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "unauthorized"
        user, _ = await joined(one, org, "bo@example.org")
        accepted = [row for row in await everything(org.invites.list()) if row.status == "accepted"]
        with pytest.raises(openai.ConflictError):
            await org.invites.delete(accepted[0].id)
        with pytest.raises(openai.ConflictError):
            await org.invites.create(email="bo@example.org", role="owner")
        assert secret_free(one.store, token) and user["name"] == "bo"


def secret_free(store, token):
    secret = token.rpartition("_")[2].encode()
    return not [key for key, found in store._objects.items() if secret in found[0].body]


async def test_nobody_locks_everybody_out(tmp_path):
    async with administered(tmp_path) as (one, org):
        (first,) = await everything(org.admin_api_keys.list())
        reader, _ = await joined(one, org, "al@example.org")
        with pytest.raises(openai.ConflictError):
            await org.admin_api_keys.delete(first.id)
        owner, hers = await joined(one, org, "bo@example.org", role="owner")
        assert (await hers.admin_api_keys.delete(first.id)).deleted
        for refused in (hers.users.delete(owner["id"]), hers.users.update(owner["id"], role="reader")):
            with pytest.raises(openai.ConflictError):
                await refused
        await hers.users.update(reader["id"], role="owner")
        assert (await hers.users.delete(owner["id"])).deleted


# --- rate limits --------------------------------------------------------------------------------------------


async def test_a_rate_limit_is_kept_enforced_told_with_when_to_ask_again_and_others_are_not_held_up(
    tmp_path, jumping
):
    async with administered(tmp_path) as (one, org):
        tokens = {}
        for project in ("acme", "shop"):
            await org.projects.create(name=project)
            made = await org.projects.service_accounts.create(project, name="bot")
            tokens[project] = made.api_key.value
        free = await everything(org.projects.rate_limits.list_rate_limits("acme"))
        assert [(row.model, row.max_requests_per_1_minute) for row in free] == [
            ("generate", 1_000_000_000),
            ("publish", 1_000_000_000),
            ("read", 1_000_000_000),
            ("seed", 1_000_000_000),
        ]
        assert [getattr(row, "max_bytes_per_1_minute", None) for row in free] == [None, 10**12, None, None]
        limit = await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=2
        )
        assert limit.max_requests_per_1_minute == 2
        jumping.ahead += callers.ENDS_SECONDS_MAX + 60 - clock.now().timestamp() % 60
        clients = {project: await one.client(key=token) for project, token in tokens.items()}

        async def seed(project):
            path = f"/projects/{project}/memories/support/seed"
            return await clients[project].get(path, cast_to=object, options={"params": {"session_id": "s"}})

        for _ in range(2):
            await seed("acme")
        with pytest.raises(openai.RateLimitError) as refused:
            await seed("acme")
        wait = int(refused.value.response.headers["retry-after"])
        assert 1 <= wait <= 60 and refused.value.body["kind"] == "rate_limited"
        await seed("shop")
        assert await one.ask("acme/memories", tokens["acme"]) == 200
        jumping.ahead += wait
        await seed("acme")
        for number, wanted in (("rl-nothing", openai.NotFoundError), ("seed", openai.NotFoundError)):
            with pytest.raises(wanted):
                await org.projects.rate_limits.update_rate_limit(
                    number, project_id="acme", max_requests_per_1_minute=1
                )
        for wrong in ({"max_tokens_per_1_minute": 5}, {"max_requests_per_1_minute": -1}, {}):
            with pytest.raises(openai.BadRequestError):
                await org.projects.rate_limits.update_rate_limit("rl-seed", project_id="acme", **wrong)


# --- retention ----------------------------------------------------------------------------------------------


async def test_how_long_rollouts_are_kept_is_set_for_all_and_for_one_project_and_what_makes_no_sense_is_refused(
    tmp_path,
):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        assert (await org.data_retention.retrieve()).type == "modified_abuse_monitoring"
        assert (await org.projects.data_retention.retrieve("acme")).type == "organization_default"
        made = await org.data_retention.update(
            retention_type="zero_data_retention",
            extra_body={"days": 365},
            extra_headers={"Runlore-Reason": "policy 12"},
        )
        assert made.type == "zero_data_retention"
        told = await org.projects.data_retention.with_raw_response.retrieve("acme")
        assert told.headers["runlore-retention-days"] == "365"
        own = await org.projects.data_retention.update(
            "acme", retention_type="zero_data_retention", extra_body={"days": 30}
        )
        assert own.type == "zero_data_retention"
        kept = await administration.read(one.store)
        assert (kept.retention_of("acme").days, kept.retention_of("other").days) == (30, 365)
        await org.projects.data_retention.update("acme", retention_type="none")
        kept = await administration.read(one.store)
        assert (kept.retention_of("acme").type, kept.retention_of("acme").days) == ("none", None)
        for wrong in (
            {"retention_type": "zero_data_retention"},
            {"retention_type": "modified_abuse_monitoring", "extra_body": {"days": 3}},
            {"retention_type": "enhanced_zero_data_retention", "extra_body": {"days": 3}},
            {"retention_type": "zero_data_retention", "extra_body": {"days": 0}},
            {"retention_type": "none"},
        ):
            with pytest.raises(openai.BadRequestError):
                await org.data_retention.update(**wrong)
        with pytest.raises(openai.NotFoundError):
            await org.projects.data_retention.retrieve("nobody")
        found = await everything(org.audit_logs.list(event_types=["organization.updated", "project.updated"]))
        assert len(found) == 3


# --- the audit log ------------------------------------------------------------------------------------------


async def test_the_audit_log_tells_every_change_with_its_actor_and_takes_the_client_s_filters_and_cursors(
    tmp_path,
):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme", extra_headers={"Runlore-Reason": "ticket 7"})
        account = await org.projects.service_accounts.create("acme", name="bot")
        await org.projects.service_accounts.update(account.id, project_id="acme", role="owner")
        await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=9
        )
        await org.projects.api_keys.delete(account.api_key.id, project_id="acme")
        await org.projects.service_accounts.delete(account.id, project_id="acme")
        await org.projects.update("acme", name="Acme")
        await org.projects.archive("acme")
        for _ in range(2):  # What was refused, or only read, changed nothing.
            with pytest.raises(openai.ConflictError):
                await org.projects.archive("acme")
        found = await everything(org.audit_logs.list(limit=2))
        told = [
            *("project.archived", "project.updated", "service_account.deleted", "api_key.deleted"),
            *("rate_limit.updated", "service_account.updated", "api_key.created", "service_account.created"),
            *("project.created", "api_key.created"),
        ]
        assert [row.type for row in found] == told
        (admin,) = await everything(org.admin_api_keys.list())
        assert {row.actor.api_key.id for row in found[:-1]} == {admin.id}
        assert found[-1].actor.type == "session" and found[-1].actor.session.user.id == "ann@desk"
        assert found[-1].project is None and found[0].project.name == "Acme"
        assert found[4].rate_limit_updated.changes_requested.max_requests_per_1_minute == 9
        assert found[6].api_key_created.data.scopes == ["write"]

        async def types(**filters):
            return [row.type for row in await everything(org.audit_logs.list(limit=3, **filters))]

        assert await types(event_types=["project.created", "project.archived"]) == [told[0], told[8]]
        assert await types(project_ids=["acme"]) == told[:-1] and await types(project_ids=["shop"]) == []
        assert await types(resource_ids=[account.id]) == [told[2], told[5], told[7]]
        assert await types(resource_ids=["rl-seed"]) == ["rate_limit.updated"]
        assert await types(actor_ids=[admin.id]) == told[:-1]
        assert await types(actor_ids=["ann@desk"]) == told
        assert await types(actor_emails=["ann@example.org"]) == []
        assert await types(tenant_only=True) == []
        at = found[0].effective_at
        assert await types(effective_at={"gt": at + 60}) == [] and await types(effective_at={"lt": 9}) == []
        assert await types(effective_at={"gte": at - 3600, "lte": at + 60}) == told
        before = await org.audit_logs.list(before=found[4].id, limit=3)
        assert [row.id for row in before.data] == [row.id for row in found[1:4]] and before.has_more
        secret = account.api_key.value.rpartition("_")[2]
        entries = [
            one async for one in adminlog.newest_first(one.store, (await administration.read(one.store)).tip)
        ]
        assert entries[8].reason == "ticket 7" and secret not in str(entries)


async def test_a_bug_and_a_store_that_is_away_are_told_in_their_shape(tmp_path, monkeypatch):
    async with served(tmp_path, with_keys=True) as one:
        _, admin = await administration.Administrator(one.store, OPERATOR).create_admin_key("a", owner=ANN)

        async def away(key):
            raise errors.StoreUnavailable("the bucket is away")

        monkeypatch.setattr(one.store, "get", away)
        headers = {"Authorization": f"Bearer {admin}"}
        answer = await one.client.get("/v1/organization/projects", headers=headers)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "store_unavailable"
