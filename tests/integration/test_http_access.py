"""Who may ask the lookup service what: every route, with no key, a foreign one, and one of each scope."""

from __future__ import annotations

import asyncio

import pytest
import structlog

import made
from lookup_service import ACME, kind, served
from runlore import errors
from runlore.lookup.http import app, callers, problems
from runlore.lookup.http.console import app as console
from runlore.upkeep import access

OPEN = {"/livez", "/readyz", "/v1", "/openapi.json"}
"""Routes that tell nothing of any project."""


def paths():
    """(method, path, the scope that it needs) of every route, with something in place of each parameter."""
    described = app.openapi()["paths"]
    found = []
    for path, operations in described.items():
        for method in operations:
            found.append((method.upper(), path))
    return sorted(found)


ADMINISTRATION = "/v1/organization/"
"""What these routes answer, and whom, is in test_http_admin."""
ROUTES = [one for one in paths() if one[1] not in OPEN and not one[1].startswith(ADMINISTRATION)]
FILLED = {
    "memory": "support",
    "n": "head",
    "path": "MEMORY.md",
    "snapshot": "conv-1",
    "run": "run-1",
    "rollout": "conv-1",
    "seed": "s1.x.y",
    "erasure": "0",
}
QUERY = {"session_id": "conv-1", "q": "task", "line": "1", "to": "conv-1"}
WRITES = {"POST", "PUT", "PATCH", "DELETE"}


def test_every_route_but_these_names_a_project():
    others = {path for _, path in paths() if "{project}" not in path}
    assert {path for path in others if not path.startswith(ADMINISTRATION)} | {"/openapi.json"} == OPEN
    assert len(ROUTES) >= 22


def test_every_route_of_the_application_is_in_the_document(tmp_path):
    # Pages are in none: they are walked in the same way by test_console_access.py.
    shown = {route.path for router in console.ROUTERS for route in router.routes}
    routed = {
        route.path.replace(":path}", "}") for route in _flat(app._routed().routes) if route.path not in shown
    }
    assert routed - {"/openapi.json"} == {path for _, path in paths()}


def _flat(routes):
    """Every route with a path, also of routers that are kept whole."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if inner:
            yield from _flat(inner)
        elif hasattr(route, "path"):
            yield route


async def test_a_parameter_that_does_not_fit_is_named_and_its_value_is_not_told(tmp_path):
    async with served(tmp_path) as one:
        for query, where in {
            "limit=0": "query.limit",
            "limit=secret": "query.limit",
            "limit=9&limit=1001": "query.limit",
            "cursor=" + "secret" * 1000: "query.cursor",
        }.items():
            answer = (await one.get(f"memories?{query}", status=400)).json()
            assert answer["kind"] == "invalid_input" and answer["detail"].startswith(f"{where}: ")
            assert "secret" not in str(answer)
        for path in ("/v1/projects/%FF/memories", f"{ACME}/memories/%FF/seed?session_id=s"):
            answer = await one.client.get(path)
            assert answer.status_code == 400 and answer.json()["kind"] == "invalid_input", path
        refused = await one.client.request("PUT", f"{ACME}/memories")
        assert refused.status_code == 405 and refused.headers["allow"] == "GET"


async def ask(one, method, path, project, headers):
    filled = path.format(project=project, **FILLED)
    return await one.client.request(method, filled, params=QUERY, headers=headers)


async def test_no_route_answers_anybody_without_a_good_key_or_with_a_key_of_another_project(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        good = await one.key("acme", "admin")
        await one.post("events", made.data(1, rollout="conv-1"), status=202, headers=good)
        await one.work()
        foreign = await one.key("other", "admin")
        token = good["Authorization"]
        wrong = {"Authorization": token[:-1] + ("1" if token.endswith("0") else "0")}
        for route in ROUTES:
            for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}, wrong):
                answer = await ask(one, *route, "acme", headers)
                assert answer.status_code == 401 and kind(answer) == "unauthorized", route
            there, absent, nonsense = [
                await ask(one, *route, project, foreign) for project in ("acme", "nobody", "NO%20NAME")
            ]
            assert there.status_code == 403 and kind(there) == "forbidden", route
            assert there.content == absent.content == nonsense.content, route
            assert there.headers == absent.headers == nonsense.headers, route


async def test_every_route_needs_its_scope_and_those_above_it_will_do(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        holders = {scope: await one.key("acme", scope) for scope in access.SCOPES}
        for method, path in ROUTES:
            needed = access.WRITE if method in WRITES else access.READ
            # What the guards keep from readers, and who decides of it.
            needed = access.ADMIN if "/review/" in path or "/erasures" in path else needed
            for scope, headers in holders.items():
                answer = await ask(one, method, path, "acme", headers)
                may = access.SCOPES.index(scope) >= access.SCOPES.index(needed)
                if "seed}" in path:
                    # Which scope it has does not matter to a seed that nobody gave out.
                    assert kind(answer) == "forbidden"
                else:
                    assert (answer.status_code not in (401, 403)) == may, (method, path, scope)


async def test_without_keys_only_programs_of_this_machine_are_answered(tmp_path):
    async with served(tmp_path) as one:
        for headers in (
            {"Host": "evil.example"},
            {"Host": "evil.example:7077"},
            {"Host": "10.0.0.1"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
        ):
            answer = await one.client.get(f"{ACME}/memories", headers=headers)
            assert answer.status_code == 403 and kind(answer) == "forbidden", headers
        for headers in ({"Host": "localhost:1"}, {"Host": "[::1]:7077"}, {"Origin": "http://localhost:3000"}):
            assert (await one.client.get(f"{ACME}/memories", headers=headers)).status_code == 200, headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", ""])
def test_an_address_that_others_reach_needs_keys(host):
    with pytest.raises(errors.Refused):
        callers.check_bind(host, with_keys=False)
    callers.check_bind(host, with_keys=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_s_own_address_needs_none(host):
    callers.check_bind(host, with_keys=False)


async def test_a_revoked_key_ends_once_what_is_remembered_of_it_is_old(tmp_path, monkeypatch):
    async with served(tmp_path, with_keys=True) as one:
        headers = await one.key("acme", "read")
        assert (await one.client.get(f"{ACME}/memories", headers=headers)).status_code == 200
        (key,) = await access.list_all(one.store, "acme")
        with pytest.raises(errors.NotFound):
            await access.revoke(one.store, "other", key.id)
        first = await access.revoke(one.store, "acme", key.id)
        assert await access.revoke(one.store, "acme", key.id) == first
        assert 0 < callers.ORGANIZATION_SECONDS < callers.ENDS_SECONDS_MAX <= 5 < callers.KEPT_SECONDS <= 30
        monkeypatch.setattr(callers, "KEPT_SECONDS", 0.0)
        assert (await one.client.get(f"{ACME}/memories", headers=headers)).status_code == 401
        assert (await access.read(one.store, key.id)).revoked_at


async def test_a_key_s_secret_is_in_no_object_no_answer_and_no_line_of_the_log(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        headers = await one.key("acme", "write")
        secret = headers["Authorization"].rpartition("_")[2]
        structlog.reset_defaults()  # A command that a fixture ran may have left that requests are not logged.
        with structlog.testing.capture_logs() as logged:
            texts = [
                (await ask(one, method, path, project, headers)).text
                for method, path in ROUTES
                for project in ("acme", "other")
            ]
        keys = [row.key async for row in one.store.list("")]
        stored = [(await one.store.get(key)).body.decode("latin-1") for key in keys]
        assert logged and not [text for text in [*texts, *stored, str(logged)] if secret in text]
        # A line names the route, not the path: paths hold ids, and a query may hold a subject.
        assert "conv-1" not in str([line for line in logged if line["event"] == "request"])


async def test_two_deployments_draw_other_secrets_and_many_processes_the_same(tmp_path):
    async with served(tmp_path / "a") as one, served(tmp_path / "b") as other:
        drawn = await asyncio.gather(
            *(access.secret(one.store, access.SEED_SIGNING) for _ in range(8)),
        )
        assert len(set(drawn)) == 1 and len(drawn[0]) == 32
        assert await access.secret(other.store, access.SEED_SIGNING) != drawn[0]


def test_every_group_of_errors_has_its_status():
    given = {
        errors.InvalidInput: 400,
        errors.InvalidEvent: 400,
        errors.InvalidId: 400,
        errors.RecordTooLarge: 413,
        errors.BodyTooLarge: 413,
        errors.NotFound: 404,
        errors.SnapshotNotFound: 404,
        errors.Refused: 409,
        errors.IdempotencyConflict: 409,
        errors.SeedExpired: 409,
        errors.BadRange: 416,
        errors.StoreUnavailable: 503,
        errors.BusUnavailable: 503,
        errors.PreconditionFailed: 503,
        errors.SeedBehind: 503,
        errors.Overloaded: 503,
        errors.RateLimited: 429,
        errors.WaitTimeout: 504,
        errors.Blocked: 503,
        errors.Unauthorized: 401,
        errors.Forbidden: 403,
        errors.Corrupt: 500,
    }
    assert {one: problems.status_of(one()) for one in given} == given


async def test_a_bug_is_told_without_a_word_of_it(tmp_path, monkeypatch):
    async with served(tmp_path) as one:

        async def broken(*_):
            raise RuntimeError("the secret of the house")

        monkeypatch.setattr(one.service.lists, "page", broken)
        with structlog.testing.capture_logs() as logged:
            answer = await one.get("memories", status=500)
        assert kind(answer) == "internal" and "house" not in answer.text
        assert [line for line in logged if line["log_level"] == "error"]


async def test_one_request_too_many_is_told_so_and_probes_still_answer(tmp_path):
    async with served(tmp_path, requests_max=1) as one:
        entered = asyncio.Event()
        read = one.store.get

        async def noted(key):
            entered.set()
            return await read(key)

        one.store.get = noted
        waiting = asyncio.create_task(
            one.get(
                "memories/support/seed",
                status=504,
                params={"run_id": "x", "wait_for": "x", "wait_seconds": 1},
            )
        )
        await entered.wait()
        answer = await one.client.get(f"{ACME}/memories")
        assert answer.status_code == 503 and kind(answer) == "overloaded" and answer.headers["retry-after"]
        assert (await one.client.get("/readyz")).status_code == 200
        one.service.stopping.set()
        await waiting


async def test_what_is_ready_says_so_and_what_is_not_says_why(tmp_path, monkeypatch):
    async with served(tmp_path) as one:
        assert (await one.client.get("/readyz")).json() == {"ready": True, "reasons": []}

        async def away(key):
            raise errors.StoreUnavailable("the bucket is away")

        monkeypatch.setattr(one.store, "get", away)
        answer = await one.client.get("/readyz")
        assert answer.status_code == 503 and answer.json()["reasons"] == [
            "store_unavailable: the bucket is away"
        ]
        monkeypatch.undo()
        one.service.stopping.set()
        assert (await one.client.get("/readyz")).status_code == 503
        assert (await one.client.get("/livez")).status_code == 200


async def test_what_is_not_there_and_what_does_not_fit_are_problems_too(tmp_path):
    async with served(tmp_path) as one:
        for path, status, wanted in (
            ("nothing/here", 404, "not_found"),
            ("memories/support/revisions/head", 404, "not_found"),
            ("memories/support/revisions/minus", 400, "invalid_input"),
            ("memories/Support/revisions/head", 400, "invalid_id"),
            ("memories?limit=0", 400, "invalid_input"),
            ("memories?limit=1001", 400, "invalid_input"),
            ("memories?cursor=%F0", 400, "invalid_input"),
            ("memories/support/revisions?cursor=Wzcs", 400, "invalid_input"),
            ("memories/%ff/revisions", 400, "invalid_input"),
            ("snapshots/nothing", 404, "not_found"),
        ):
            assert kind(await one.get(path, status=status)) == wanted, path
        assert (await one.client.delete(f"{ACME}/memories")).status_code == 405
        assert kind(await one.client.delete(f"{ACME}/memories")) == "invalid_input"
