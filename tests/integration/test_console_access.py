"""The console: who may see and change what, sessions, and forms."""

from __future__ import annotations

import contextlib
import re
import urllib.parse

import pytest

from console_pages import (
    ASKED,
    HOSTILE,
    HTML,
    OF_PROJECTS,
    WRITES,
    address,
    crawled,
    filled,
    page,
    sign_in,
    signed_in,
    the_letter,
    whole,
    without_tokens,
)
from lookup_service import BASE, kind, served
from runlore import clock, errors
from runlore.commit import lines
from runlore.consumers import dead
from runlore.lookup.http import callers
from runlore.lookup.http.console import pages, sessions
from runlore.upkeep import access, audit


async def test_no_page_shows_a_project_to_nobody_or_to_the_key_of_another(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        await filled(one, await one.key())
        foreign = await signed_in(one, "admin", "other")
        cookie = foreign["Cookie"]
        wrong = {**HTML, "Cookie": cookie[:-1] + ("A" if cookie[-1] != "A" else "B")}
        for method, route in OF_PROJECTS:
            for headers in (HTML, wrong, {**HTML, "Cookie": f"{sessions.COOKIE}=x"}):
                answer = await one.client.request(method, address(route), params=ASKED, headers=headers)
                if method == "GET":
                    assert answer.status_code == 303 and answer.headers["location"].startswith(
                        "/sign-in?next="
                    )
                else:
                    assert answer.status_code == 401, route.path
                    whole(answer, status=401)
            told = [
                await one.client.request(method, address(route, name), params=ASKED, headers=foreign)
                for name in ("acme", "nobody", "NO%20NAME")
            ]
            for answer in told:
                assert answer.status_code == 403 and "forbidden" in answer.text, route.path
                assert without_tokens(answer.text) == without_tokens(told[0].text), route.path
                assert "acme" not in answer.text and "nobody" not in answer.text


async def test_a_page_needs_its_scope_and_shows_no_form_that_the_key_may_not_send(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        await filled(one, await one.key())
        holders = {scope: await signed_in(one, scope) for scope in access.SCOPES}
        for method, route in OF_PROJECTS:
            needed = next((scope for part, scope in WRITES.items() if part in route.path), access.READ)
            for scope, headers in holders.items():
                answer = await one.client.request(method, address(route), params=ASKED, headers=headers)
                may = access.SCOPES.index(scope) >= access.SCOPES.index(needed)
                # A form without its token is refused too; what is looked at is not.
                assert (f"the key&#39;s scope is {scope}" in answer.text) == (not may), (
                    method,
                    route.path,
                    scope,
                )
        line = "/projects/acme/lines/conv/main"
        (letter,) = [
            one for one in (await crawled(one, "/projects/acme/dead", holders["read"]))[0] if "/dead/" in one
        ]
        for path, scope in ((line, access.WRITE), (letter, access.ADMIN)):
            for name, headers in holders.items():
                seen = await page(one, path, headers=headers)
                posts = [form["action"] for form in seen.forms if form["method"] == "post"]
                may = access.SCOPES.index(name) >= access.SCOPES.index(scope)
                assert (len(posts) == 2) == may, (path, name, posts)


async def test_programs_are_told_what_they_always_were(tmp_path):
    async with served(tmp_path) as one:
        for path in ("/", "/projects/acme", "/sign-in", "/projects/acme/dead/x/redrive", "/nowhere"):
            for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
                answer = await one.client.get(path, headers=headers)
                assert answer.status_code in (404, 405), path
                assert kind(answer) in ("not_found", "invalid_input")
        for path in ("/v1/projects/acme/memories/none/revisions", "/v1/nowhere"):
            answer = await one.client.get(path, headers=HTML)
            assert answer.status_code == 404 and kind(answer) == "not_found"
        missing = await page(one, "/nowhere", status=404)
        assert "not_found" in missing.words


async def test_a_session_opens_no_route_below_v1_and_a_key_in_a_header_no_page(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        key, session = await one.key(), await signed_in(one)
        assert (await one.client.get("/v1/projects/acme/memories", headers=session)).status_code == 401
        assert (await one.client.get("/projects/acme", headers={**HTML, **key})).status_code == 303
        assert (await one.client.get("/projects/acme", headers=session)).status_code == 200


# --- sessions -----------------------------------------------------------------------------------------------------


async def test_a_session_ends_with_its_term_with_its_key_and_by_signing_out(tmp_path, monkeypatch):
    async with served(tmp_path, with_keys=True) as one:
        headers = await signed_in(one, "read")
        assert (await one.client.get("/projects/acme", headers=headers)).status_code == 200
        now = clock.now()
        later = now.timestamp() + sessions.TERM_SECONDS + 1
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", lambda: now.fromtimestamp(later, now.tzinfo))
            assert (await one.client.get("/projects/acme", headers=headers)).status_code == 303
        (key,) = await access.list_all(one.store, "acme")
        await access.revoke(one.store, "acme", key.id)
        monkeypatch.setattr(callers, "KEPT_SECONDS", 0.0)
        assert (await one.client.get("/projects/acme", headers=headers)).status_code == 303

        headers = await signed_in(one, "read")
        seen = await page(one, "/projects/acme", headers=headers)
        out = await one.client.post("/sign-out", data={"token": seen.token()}, headers=headers)
        assert out.headers["location"] == "/sign-in" and "Max-Age=0" in out.headers["set-cookie"]


async def test_the_cookie_is_kept_from_scripts_and_other_sites_and_from_plain_http_where_there_is_https(
    tmp_path,
):
    async with served(tmp_path, with_keys=True) as one:
        token = (await one.key())["Authorization"].partition(" ")[2]
        for origin, is_secure in ((BASE, False), ("https://127.0.0.1:7077", True)):
            form = await page(one, "/sign-in")
            answer = await one.client.post(
                "/sign-in", data={"key": token, "token": form.token()}, headers={**HTML, "Origin": origin}
            )
            cookie = answer.headers["set-cookie"]
            assert (
                "HttpOnly" in cookie
                and "SameSite=strict" in cookie
                and f"Max-Age={sessions.TERM_SECONDS}" in cookie
            )
            assert ("Secure" in cookie) == is_secure
            assert token not in cookie and token.rpartition("_")[2] not in cookie


async def test_a_wrong_key_is_told_so_on_the_form_and_is_not_shown_again(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        good = (await one.key())["Authorization"].partition(" ")[2]
        for token in ("", "rl_x", good[:-1] + ("1" if good.endswith("0") else "0"), "é" * 100):
            answer = await sign_in(one, token)
            whole(answer, status=401)
            assert "set-cookie" not in answer.headers
            assert not token or token not in answer.text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/",
        "//evil.example",
        "/projects/other/runs",
        "/projects/acmex",
        "/v1",
        "javascript:alert(1)",
    ],
    ids=lambda one: re.sub(r"\W+", "-", one),
)
async def test_signing_in_leads_to_no_other_place_than_the_key_s_project(tmp_path, wanted):
    async with served(tmp_path, with_keys=True) as one:
        token = (await one.key())["Authorization"].partition(" ")[2]
        assert (await sign_in(one, token, next=wanted)).headers["location"] == "/projects/acme"
        to = "/projects/acme/memories/support/search?q=a+b"
        assert (await sign_in(one, token, next=to)).headers["location"] == to


# --- forms --------------------------------------------------------------------------------------------------------


async def test_a_form_is_taken_from_our_own_pages_alone(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        await filled(one, await one.key())
        mine, other = await signed_in(one), await signed_in(one)
        path = await the_letter(one, mine)
        token = (await page(one, path, headers=mine)).token()
        stale = (await page(one, path, headers=other)).token()
        fields = {"reason": "the producer is mended"}
        form = {"Content-Type": sessions.FORM}
        for headers, sent in (
            ({}, {}),
            ({}, {"token": ""}),
            ({}, {"token": stale}),
            ({}, {"token": token[:-1] + ("A" if token[-1] != "A" else "B")}),
            ({}, {"token": mine["Cookie"].partition("=")[2]}),
            ({"Origin": "https://evil.example"}, {"token": token}),
            ({"Origin": "null"}, {"token": token}),
            ({"Sec-Fetch-Site": "cross-site"}, {"token": token}),
            ({"Sec-Fetch-Site": "same-site"}, {"token": token}),
        ):
            answer = await one.client.post(
                f"{path}/redrive", data={**fields, **sent}, headers={**mine, **headers}
            )
            whole(answer, status=403)
        raw = urllib.parse.urlencode({**fields, "token": token})
        plain = await one.client.post(
            f"{path}/redrive", content=raw, headers={**mine, "Content-Type": "text/plain"}
        )
        assert plain.status_code == 400
        large = await one.client.post(
            f"{path}/redrive", content=b"a=" + b"x" * 100_000, headers={**mine, **form}
        )
        assert large.status_code == 413
        many = await one.client.post(
            f"{path}/redrive", content="&".join(["a=b"] * 99), headers={**mine, **form}
        )
        assert many.status_code == 400
        assert not [one for one in await dead.read_all(one.bus) if one.resolution]
        assert not await audit.read_all(one.store)


async def test_a_dead_letter_is_redriven_for_a_reason_and_the_audit_log_says_by_whom(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        await filled(one, await one.key())
        headers = await signed_in(one)
        path = await the_letter(one, headers)
        seen = await page(one, path, headers=headers)
        assert HOSTILE not in (await one.client.get(path, headers=headers)).text
        before = [message async for message in one.bus.read("runs")]
        refused = await one.client.post(
            f"{path}/redrive", data={"token": seen.token(), "reason": " "}, headers=headers
        )
        whole(refused, status=400)
        sent = {"token": seen.token(), "reason": "the producer is mended"}
        done = await one.client.post(f"{path}/redrive", data=sent, headers={**headers, "Origin": BASE})
        assert done.status_code == 303
        assert "on the bus again" in " ".join(
            (await page(one, done.headers["location"], headers=headers)).words
        )
        after = [message async for message in one.bus.read("runs")]
        assert len(after) == len(before) + 1 and after[-1].value in {one.value for one in before}
        (letter,) = await dead.read_all(one.bus)
        assert letter.resolution == "redriven" and letter.resolved_why == "the producer is mended"
        (act,) = await audit.read_all(one.store)
        assert (act.what, act.reason, act.projects, act.state) == (
            "dead redrive",
            "the producer is mended",
            ("acme",),
            "done",
        )
        assert (
            act.by["via"] == "console"
            and act.by["name"] == "test"
            and act.arguments["letters"] == [letter.id]
        )
        again = await one.client.post(f"{path}/redrive", data=sent, headers=headers)
        whole(again, status=409)


async def test_a_key_is_revoked_and_only_of_the_own_project(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        headers = await signed_in(one)
        await one.key("acme", "read")
        await one.key("other", "read")
        listed = await one.client.get("/projects/acme/keys", headers=headers)
        seen = whole(listed)
        (foreign,) = await access.list_all(one.store, "other")
        assert foreign.id not in listed.text and foreign.sha256 not in listed.text
        for key in await access.list_all(one.store, "acme"):
            assert key.sha256 not in listed.text
        gone = next(key for key in await access.list_all(one.store, "acme") if key.scope == "read")
        for key, status in ((foreign.id, 404), ("x", 404), (gone.id, 303)):
            answer = await one.client.post(
                f"/projects/acme/keys/{key}/revoke",
                data={"token": seen.token(), "reason": "left"},
                headers=headers,
            )
            assert answer.status_code == status, key
        assert (await access.read(one.store, gone.id)).revoked_at
        assert not (await access.read(one.store, foreign.id)).revoked_at
        assert [act.what for act in await audit.read_all(one.store)] == ["keys revoke"]


async def test_branches_are_tried_and_then_merged_from_their_line(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        path = "/projects/acme/lines/conv/main"
        seen = await page(one, path)
        tried = await one.client.post(f"{path}/merge", data={"token": seen.token(), "try": "1"}, headers=HTML)
        assert "would give" in whole(tried).words[0] or "would give" in tried.text
        assert not await audit.read_all(one.store)
        done = await one.client.post(
            f"{path}/merge", data={"token": seen.token(), "reason": "both are right"}, headers=HTML
        )
        assert done.status_code == 303 and done.headers["location"].endswith("done=merged")
        head = await lines.read(one.store, lines.Line("acme", "conv"))
        assert not head.body["branches"]
        (act,) = await audit.read_all(one.store)
        assert act.what == "snapshot merge" and act.by == {"via": "console", "client": "without a key"}


# --- a service that is not well -------------------------------------------------------------------------------------


async def test_a_session_is_good_at_every_replica(tmp_path):
    async with (
        served(tmp_path / "one", with_keys=True) as one,
        served(tmp_path / "two", store=one.store, bus=one.bus, with_keys=True) as two,
    ):
        headers = await signed_in(one)
        seen = await page(one, "/projects/acme/keys", headers=headers)
        (key,) = await access.list_all(one.store, "acme")
        sent = {"token": seen.token(), "reason": "left"}
        answer = await two.client.post(f"/projects/acme/keys/{key.id}/revoke", data=sent, headers=headers)
        assert answer.status_code == 303
        assert (await access.read(one.store, key.id)).revoked_at


async def test_what_goes_wrong_is_told_as_a_page_and_a_bug_without_a_word_of_it(tmp_path, monkeypatch):
    async with served(tmp_path, requests_max=4) as one:

        async def fails(exc):
            async def head(*_):
                raise exc

            monkeypatch.setattr(one.service.reader, "head", head)
            status = 503 if isinstance(exc, errors.RunloreError) else 500
            return await one.client.get("/projects/acme/memories/support", headers=HTML), status

        for exc, told in (
            (errors.StoreUnavailable("the store did not answer"), "the store did not answer"),
            (RuntimeError("rl_secret <b>"), "something went wrong in Runlore"),
        ):
            answer, status = await fails(exc)
            seen = whole(answer, status=status)
            assert told in " ".join(seen.words) and "rl_secret" not in answer.text
            assert ("retry-after" in answer.headers) == (status == 503)
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(one.service.requests.entered("acme"))
            full = await one.client.get("/projects/acme", headers=HTML)
        whole(full, status=503)
        assert full.headers["retry-after"] and "overloaded" in full.text


async def test_what_pages_load_is_there_for_everybody_and_kept_by_the_browser(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        for name, kind_ in pages.STATIC.items():
            answer = await one.client.get(pages.static_url(name))
            assert answer.status_code == 200 and answer.headers["content-type"] == kind_
            again = await one.client.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304


async def test_a_snapshot_of_another_project_is_none_of_this_one_by_whatever_name(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        await filled(one, await one.key())
        body = (await lines.read(one.store, lines.Line("acme", "conv"))).body
        branch = next(iter(body["branches"].values()))["ref"]
        mine, other = await signed_in(one), await signed_in(one, "admin", "other")
        for ref in (body["ref"], lines.id_of(body["ref"]), branch, "conv", body["ref"][:12]):
            for part in ("tree", "file?path=readme.md", "raw?path=readme.md", "diff?to=conv"):
                path = pages.url("projects", "acme", "snapshots", ref) + f"/{part}"
                assert (await one.client.get(path, headers=mine)).status_code == 200, path
                answer = await one.client.get(path.replace("/acme/", "/other/"), headers=other)
                whole(answer, status=404)
