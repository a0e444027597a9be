"""Invariant 9 over every route: what one project is told never depends on what another has.

Method: a deployment with two projects, and one with the first of them alone. Each route is asked with the first
one's keys for all that the other has (ids, aliases, snapshots, seeds, cursors, claims, letters, erasures, words), in
its own project's paths and in the other's. Every answer must be the same in both deployments, byte for byte, headers
too; and no word of the other may be in any. A route or a parameter that is in no table here fails a test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import json
import re
import urllib.parse

import neighbours
import prometheus_client
import pytest
from hostile import world

import console_pages
import made
from runlore.commit import revisions
from runlore.events import ids
from runlore.lookup import desk, index, mcp
from runlore.lookup.http import app
from runlore.lookup.http.console import app as console

DOCUMENT = app.openapi()["paths"]
ADMINISTERS = "/v1/organization"
NO_PROJECT = {"/livez", "/readyz", "/v1"}
BEHIND = re.compile(rb"\d+ messages|data-label=\"Oldest waits\">[^<]*")
WORDS = ["no seat", "argument", "Ignore all previous", "file", '"a" OR b', "task"]
"""What is searched for: some of it only `acme` has."""


def tables(names):
    """What each parameter is asked with: what `acme` has, and now and then what everybody has."""
    alias, rollouts = ids.alias("secret-1"), [names["rollout"], "secret-work"]
    snapshots = ["secret-work", names["snapshot"], names["ref"], names["snapshot"][:12], names["tag"]]
    of_path = {
        "memory": ["support", "secret-memory"],
        "n": ["head", "1", "2", "3"],
        "path": ["MEMORY.md", "rollout_summaries/secret-1.md", "secret.txt", "../../acme/secret.txt"],
        "rollout": [names["held"], names["rollout"]],
        "run": [names["run"], names["event"], "secret-run-19", "secret-run-16", names["rollout"]],
        "snapshot": snapshots,
        "seed": [names["seed"]],
        "erasure": [names["erasure"]],
        "agent": ["secret-agent", "main"],
        "letter": [names["letter"]],
        "key": [names["key"]],
        "key_id": [names["key"]],
        "account_id": [names["account"]],
        "project_id": ["acme"],
        "decision": ["approve", "reject"],
        "rate_limit_id": ["rl-seed"],
        "what": ["seed"],
        "user_id": ["ann@desk"],
        "invite_id": ["0"],
        "alert_id": ["0"],
        "name": ["console.css"],
    }
    of_query = {
        "conversation_id": rollouts,
        "session_id": rollouts,
        "group_id": rollouts,
        "run_id": rollouts,
        "subject": ["secret-subject@example.org"],
        "agent": ["secret-agent"],
        "at": ["1", "2026-03-02T00:00:00Z"],
        "wait_for": [names["run"]],
        "wait_seconds": ["0"],
        "after": [names["seed"]],
        "template": ["yes"],
        "limit": ["1"],
        "cursor": names["cursors"],
        "side": ["secret-side"],
        "rollout": [names["rollout"], alias, "secret-work"],
        "line": ["1", "7"],
        "from": ["1"],
        "to": [*snapshots, "1"],
        "q": WORDS,
        "with_model": ["true"],
        "month": ["2026-03"],
        "by": ["memory", "day"],
        "memory": ["support"],
        "path": ["secret.txt", "notes"],
    }
    return of_path, of_query


def bodies(names):
    """What each operation that takes a body is given: all that `acme` has, wherever a body names something."""
    run = {"memory": "support", "session_id": "zoo-1", "run_id": "zoo-probe"}
    line = json.dumps(made.payload(90))
    seeded = {**run, "record": line, "seed": names["seed"]}
    edit = {"path": "MEMORY.md", "text": "x", "base_sha256": "0" * 64}
    claim, ref, snapshot = names["claim"], names["ref"], names["snapshot"]
    why = {"reason": "a probe"}
    rollouts = {"rollouts": [names["held"], names["rollout"]], **why}
    merges = [
        {"rollout": "secret-work", "agent": "secret-agent", "dry_run": True},
        {"rollout": "zoo-work", "rollouts": {"a": "secret-work", "b": "zoo-work"}, "base": snapshot},
        {"rollout": "zoo-work", "branches": [snapshot]},
    ]
    erasures = [
        {"run": names["run"]},
        {"rollout": names["rollout"]},
        {"subject": "secret-subject@example.org"},
    ]
    return {
        "POST …/events": [
            {**run, "record_claim": claim},
            {**run, "run_id": "zoo-claimed", "record_claim": claim, "project": "acme"},
            {**seeded, "run_id": "zoo-seeded"},
            {
                **seeded,
                "run_id": "zoo-moved",
                "workspaces": [{"snapshot": ref if "/" in ref else f"{ref}/{ref}"}],
            },
            {**seeded, "run_id": "zoo-taken", "workspaces": [{"archive": claim}]},
            {**seeded, "run_id": "zoo-same", "session_id": names["rollout"], "parent_run_id": names["run"]},
            {**run, "edit_id": "zoo-edit", "seed": names["seed"], "revision": 1, "files": [edit]},
        ],
        "POST …/archives": [names["archive"]],
        "POST …/archives/url": [claim],
        "POST …/snapshots/merge": merges,
        "POST …/erasures": [{**one, **why} for one in erasures],
        "POST …/erasures/plan": erasures,
        "POST …/memories/{memory}/review/approve": [rollouts],
        "POST …/memories/{memory}/review/reject": [rollouts],
        "POST …/memories/{memory}/refresh": [{}],
    }


def operations():
    """(label, method, path, names of its parameters in the query, those that it needs) of all that name a project."""
    for path, found in DOCUMENT.items():
        if "{project}" in path:
            for method, operation in found.items():
                asked = [one for one in operation.get("parameters", []) if one["in"] == "query"]
                label = f"{method.upper()} {path.replace('/v1/projects/{project}', '…')}"
                needed = [one["name"] for one in asked if one.get("required")]
                yield label, method.upper(), path, [one["name"] for one in asked], needed


def requests(names, project, *, few=False):
    """(label, method, target, body) of requests for what `acme` has, in the paths of `project`; `few`: one of each."""
    of_path, of_query = tables(names)
    for label, method, path, asked, needed in operations():
        base = {name: of_query[name][0] for name in needed}
        if "session_id" in asked:
            base["session_id"] = "secret-work"
        more = (
            []
            if few or method != "GET"
            else [{**base, name: value} for name in asked for value in of_query[name]]
        )
        targets = list(filled(path, of_path, project))[: 1 if few else None]
        for target, query in [*((one, base) for one in targets), *((targets[0], one) for one in more)]:
            for body in bodies(names)[label] if method == "POST" else [None]:
                yield label, method, f"{target}?{urllib.parse.urlencode(query)}", body


def filled(path, of_path, project):
    """`path` with the first of all names in it, then with each other one."""
    parts = [one for one in re.findall(r"{(\w+)(?::path)?}", path) if one != "project"]
    first = {one: of_path[one][0] for one in parts}
    for chosen in [first, *({**first, one: value} for one in parts for value in of_path[one][1:])]:
        target = path.replace("{project}", project)
        for one, value in chosen.items():
            target = re.sub(
                rf"{{{one}(:path)?}}", lambda _, text=value: urllib.parse.quote(text, safe=""), target
            )
        yield target


# --- the worlds ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """(the deployment with both, the one with `zoo` alone, `acme`'s key and names)."""
    with contextlib.ExitStack() as stack:

        def made_in(name):
            folder = tmp_path_factory.mktemp(name)
            store = neighbours.PlacingStore()
            return stack.enter_context(world(folder, neighbours.fill_zoo, with_keys=True, store=store))

        both, alone = made_in("both"), made_in("alone")
        yield both, alone, *both.run(neighbours.fill_acme(both.one, both.filled.still))


def ask(one, method, target, headers, body=None):
    """The answer, a second after the one before; what is random in it follows from the request."""
    one.filled.still.pass_second()
    return _asked(one, method, target, headers, body)


def _asked(one, method, target, headers, body):
    one.filled.still.begin(f"{method} {target} {body!r}")
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    return one.ask(method, target, headers=headers, body=body or b"")


def same(both, alone, method, target, headers, body=None):
    """The one answer of both worlds, given at one time, with nothing of `acme` in it."""
    both.filled.still.pass_second(alone.filled.still)
    alone.filled.still.go_to(both.filled.still)
    told, expected = [_asked(one, method, target, headers, body) for one in (both, alone)]
    if target.startswith("/projects/zoo/status"):
        # How far the stages are behind is the deployment's, and told to everybody in it.
        told, expected = [
            dataclasses.replace(one, body=BEHIND.sub(b"", one.body)) for one in (told, expected)
        ]
    if told != expected:
        lines = difflib.unified_diff(*(one.raw().decode("latin-1").splitlines() for one in (expected, told)))
        raise AssertionError("\n".join([f"{method} {target} {body!r}", *lines]))
    assert neighbours.NEEDLE not in told.raw(), f"{method} {target} {body!r}"
    return told


def objects(one):
    """The version of each object that `acme` has in the store."""
    return {key: stored[0].etag for key, stored in one.one.store._objects.items() if key.startswith("acme/")}


def test_what_a_project_is_told_by_any_route_does_not_depend_on_its_neighbour(worlds):
    both, alone, _, names = worlds
    had, asker = objects(both), both.filled
    known = {"If-None-Match": names["etag"], "Idempotency-Key": "secret-idempotency"}
    for label, method, target, body in requests(names, "zoo"):
        answer = same(both, alone, method, target, asker.keys["admin"], body)
        assert answer.status != 401, label
        if b"https://store.example" in answer.body:
            assert answer.json()["url"].startswith("https://store.example/zoo/")
    for _label, method, target, body in requests(names, "zoo", few=True):
        same(both, alone, method, target, {**asker.keys["admin"], **known}, body)
    both.run(neighbours.stages(both.one, "zoo"))
    alone.run(neighbours.stages(alone.one, "zoo"))
    # What those events came to is told, too.
    for _label, method, target, body in requests(names, "zoo"):
        if method == "GET":
            same(both, alone, method, target, asker.keys["read"], body)
    assert had.items() ^ objects(both).items() == set()


def test_a_key_is_told_the_same_of_a_project_that_is_not_its_own_and_of_one_that_is_not_there(worlds):
    both, alone, _, names = worlds
    for project in ("acme", "nobody"):
        for label, method, target, body in requests(names, project, few=True):
            answer = same(both, alone, method, target, both.filled.keys["admin"], body)
            assert answer.status == 403 and answer.json()["kind"] == "forbidden", label
            assert b"acme" not in answer.raw() and b"nobody" not in answer.raw()


def test_who_administers_one_project_changes_nothing_of_another(worlds):
    both, alone, _, names = worlds
    of_path, _ = tables(names)
    for path, found in DOCUMENT.items():
        for method in found if path.startswith(ADMINISTERS) else ():
            for target in filled(path, of_path, ""):
                is_accept = target.endswith("/invites/accept")
                with_key = same(both, alone, method.upper(), target, both.filled.keys["admin"], {"name": "x"})
                assert with_key.status == (401 if is_accept else 403), target
                if method != "get" and not is_accept:
                    absent = target.replace("/acme", "/nobody")
                    told, absent = [
                        ask(both, method.upper(), one, both.filled.guest, {}) for one in (target, absent)
                    ]
                    assert told.status == 403 and told == absent, target


def test_no_page_shows_a_neighbour(worlds):
    both, alone, _, names = worlds
    of_path, of_query = tables(names)
    had, cookie = objects(both), both.filled.browser
    query = {name: values[0] for name, values in of_query.items()} | {
        "id": names["run"],
        "path": "secret.txt",
    }
    page = ask(both, "GET", "/projects/zoo", cookie)
    token = console_pages.Seen(page.body.decode()).token()
    form = {"Content-Type": "application/x-www-form-urlencoded", **cookie}
    for project, (method, route) in itertools.product(("zoo", "acme"), console_pages.OF_PROJECTS):
        for target in filled(route.path, of_path, project):
            fields = urllib.parse.urlencode({"token": token, "reason": "a probe", "hold": "1"}).encode()
            if method == "POST":
                answer = same(both, alone, method, target, form, fields)
            else:
                for extra in ("", "&line=1", "&cursor=" + names["cursors"][0]):
                    plain = {
                        name: query[name] for name in ("q", "to", "from", "id", "path", "rollout", "agent")
                    }
                    answer = same(
                        both, alone, method, f"{target}?{urllib.parse.urlencode(plain)}{extra}", cookie
                    )
                    answer = same(both, alone, method, target, cookie)
            assert project == "zoo" or answer.status == 403, target
    assert had.items() ^ objects(both).items() == set()


def test_an_agent_that_asks_over_mcp_is_told_nothing_of_a_neighbour(worlds, tmp_path):
    both, alone, _, names = worlds
    values = {
        "query": WORDS,
        "memory": ["support", "../acme", "acme/support"],
        "path": ["", "MEMORY.md", "../../acme/MEMORY.md", "rollout_summaries/secret-1.md"],
        "rollout": [names["rollout"], ids.alias(names["rollout"]), "secret-work", names["run"]],
        "line": [1, 7],
        "revision": [None, 1, 2, 3],
        "limit": [50],
        "from_line": [1],
    }

    async def told(one, where):
        with contextlib.closing(index.Index(where)) as rows:
            server = mcp.serve(desk.Desk(revisions.Reader(one.store), rows, project="zoo"), log_level="error")
            out = [one.uri for one in await server.list_resources()]
            for tool in await server.list_tools():
                arguments = tool.input_schema["properties"]
                first = {name: values[name][0] for name in arguments}
                for given in [
                    first,
                    *({**first, name: one} for name in arguments for one in values[name][1:]),
                ]:
                    answer = await server.call_tool(
                        tool.name, {k: v for k, v in given.items() if v is not None}
                    )
                    out.append((tool.name, given, str(answer)))
            for uri in ("runlore://support/rollout_summaries/secret-1.md", "runlore://acme/MEMORY.md"):
                with pytest.raises(Exception, match="not_found"):
                    await server.read_resource(uri)
        return out

    one, other = both.run(told(both.one, tmp_path / "a.db")), alone.run(told(alone.one, tmp_path / "b.db"))
    assert one == other and "needle" not in str(one)
    assert "Please do task" in str(one)


def test_the_table_asks_for_what_there_is(worlds):
    both, _, key, names = worlds
    shown = set()
    for label, method, target, body in requests(names, "acme"):
        is_new = method == "GET" and label not in shown
        if is_new and neighbours.NEEDLE in ask(both, method, target, key, body).raw():
            shown.add(label)
    assert len(shown) >= 11, sorted(shown)
    metrics = prometheus_client.generate_latest()
    assert b"needle" not in metrics and b"secret" not in metrics and b"acme" not in metrics


def test_every_route_is_asked():
    labels = {one[0] for one in operations()}
    pages = {route.path for router in console.ROUTERS for route in router.routes}
    asked = {path for path in DOCUMENT if "{project}" in path or path.startswith(ADMINISTERS)}
    assert NO_PROJECT | asked == set(DOCUMENT)
    assert {path for path in pages if "{project}" in path} == {
        route.path for _, route in console_pages.OF_PROJECTS
    }
    assert len(labels) > 30
